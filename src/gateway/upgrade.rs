//! A client that offers to speak WebSocket. Its provider is asked; where it agrees, both connections are taken out of
//! Pingora's hands and joined: it has no way to end such a connection from outside, none to say why, and one that is
//! answered at once may be cut (pingora issue 946).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use http::StatusCode;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::{Error, Result};
use pingora_proxy::{ProxyHttp, Session};

use super::attempts::connected;
use super::{Context, Gateway, is_interim};
use crate::failure::internal;
use crate::listen::live;
use crate::tunnel::{self, Bounds, Counts, Side};

/// A tunnel ends so much earlier than the process, so that both ends hear why.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

impl Gateway {
    /// Asks the provider, passes on what it says, and relays where it agrees, to the end.
    pub(super) async fn upgrade(&self, session: &mut Session, ctx: &mut Context) -> Result<()> {
        let provider = self.ask(session, ctx).await?;
        let mut head = provider.resp_header().ok_or_else(internal)?.clone();
        let status = head.status;
        let accepted = self.upstream_response_filter(session, &mut head, ctx).await;
        accepted.map_err(|error| self.judged(session, &mut ctx.exchange, error, false))?;
        self.response_filter(session, &mut head, ctx).await?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let client = &mut session.downstream_session;
            client.write_response_header(Box::new(head)).await.map_err(|error| error.into_down())?;
            return self.relay(session, ctx, provider).await;
        }
        session.set_keepalive(None);
        let client = &mut session.downstream_session;
        client.write_response_header(Box::new(head)).await.map_err(|error| error.into_down())?;
        self.declined(session, ctx, provider).await
    }

    /// The provider with the head of its answer.
    async fn ask(&self, session: &mut Session, ctx: &mut Context) -> Result<HttpSession> {
        loop {
            self.resolve(&mut ctx.exchange).await;
            let peer = self.attempt(&mut ctx.exchange)?;
            match self.desk.pools.connector().new_stream(&*peer).await {
                Ok(stream) => {
                    return match self.shake_hands(session, ctx, stream).await {
                        Ok(provider) => Ok(provider),
                        Err(error) => Err(self.judged(session, &mut ctx.exchange, error, false)),
                    };
                }
                Err(error) => {
                    let mut error = error.into_up();
                    self.unconnected(session, &mut ctx.exchange, &mut error);
                    if !error.retry() {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn shake_hands(&self, session: &mut Session, ctx: &mut Context, stream: Stream) -> Result<HttpSession> {
        connected(ctx, false);
        let timeouts = &ctx.exchange.state.settings.timeouts;
        let mut provider = HttpSession::new(stream);
        provider.read_timeout = Some(timeouts.first_byte);
        provider.write_timeout = Some(timeouts.idle);
        let mut head = session.req_header().clone();
        self.upstream_request_filter(session, &mut head, ctx).await?;
        let up = |error: Box<Error>| {
            let mut error = error.into_up();
            error.retry.decide_reuse(false);
            error
        };
        provider.write_request_header(Box::new(head)).await.map_err(up)?;
        loop {
            provider.read_response().await.map_err(up)?;
            let status = provider.get_status().ok_or_else(internal)?;
            if !is_interim(status) {
                return Ok(provider);
            }
            let mut interim = provider.resp_header().ok_or_else(internal)?.clone();
            self.upstream_response_filter(session, &mut interim, ctx).await?;
        }
    }

    /// The provider answered something else, which the client gets as it is.
    async fn declined(&self, session: &mut Session, ctx: &mut Context, mut provider: HttpSession) -> Result<()> {
        provider.read_timeout = Some(ctx.exchange.state.settings.timeouts.idle);
        loop {
            let mut piece = provider.read_body_bytes().await.map_err(|error| error.into_up())?;
            let end = piece.is_none();
            self.response_body_filter(session, &mut piece, end, ctx)?;
            let client = &mut session.downstream_session;
            let piece = piece.unwrap_or_default();
            if end || !piece.is_empty() {
                client.write_response_body(piece, end).await.map_err(|error| error.into_down())?;
            }
            if end {
                return Ok(());
            }
        }
    }

    /// Both have agreed: from here on bytes go both ways until one of them, or we, end it.
    async fn relay(&self, session: &mut Session, ctx: &mut Context, mut provider: HttpSession) -> Result<()> {
        // What was read together with the heads; nothing is waited for.
        let early = session.downstream_session.read_request_body().now_or_never();
        let late = provider.read_body_bytes().now_or_never();
        let piece = |read: Option<Result<Option<Bytes>>>| read.and_then(Result::ok).flatten().unwrap_or_default();
        let taken = session.downstream_session.stream().and_then(live::take);
        let Some(client) = taken else { return Err(internal()) };
        if let Some(underway) = ctx.exchange.attempt_mut().and_then(|attempt| attempt.underway.as_mut()) {
            underway.served(Instant::now);
        }
        let settings = &ctx.exchange.state.settings;
        let bounds = Bounds {
            idle: settings.timeouts.tunnel_idle,
            total: settings.timeouts.tunnel_total,
            drain: settings.server.drain.saturating_sub(BEFORE_THE_END),
        };
        let counts = Counts::default();
        let client = Side { stream: client, early: piece(early) };
        let provider = Side { stream: provider.into_inner(), early: piece(late) };
        let mask = || getrandom::u32().unwrap_or_default().to_ne_bytes();
        let over = tunnel::relay(client, provider, bounds, self.stopping.clone(), &counts, mask).await;
        ctx.over = Some(over);
        let meter = &mut ctx.exchange.meter;
        meter.bytes_in = counts.up.load(Ordering::Relaxed);
        meter.bytes_out = counts.down.load(Ordering::Relaxed);
        meter.first_out = counts.first_down();
        Ok(())
    }
}
