//! A client that offers to speak WebSocket. Its provider is asked; where it agrees, both connections are taken out of
//! Pingora's hands and joined: it has no way to end such a connection from outside, none to say why, and one that is
//! answered at once may be cut (pingora issue 946).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::attempts::connected;
use super::{Context, Gateway, is_interim};
use crate::failure::{internal, refused};
use crate::listen::live;
use crate::refusal::Refusal;
use crate::stage::hops;
use crate::tunnel::{self, Bounds, Counts, Side, Stopping};
use crate::units::joined;

/// A tunnel ends so much earlier than the process, so that both ends hear why.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// What a client may say before it is answered.
const EARLY_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 4 * 1024;

impl Gateway {
    /// Asks the provider, passes on what it says, and relays where it agrees, to the end.
    pub(super) async fn upgrade(&self, session: &mut Session, ctx: &mut Context) -> Result<()> {
        let max = ctx.exchange.state.settings.limits.tunnels;
        let _one = self.desk.tunnels.enter(max).ok_or_else(|| refused(Refusal::Overloaded))?;
        let taken = session.downstream_session.stream().and_then(live::take);
        let mut client = taken.ok_or_else(internal)?;
        let mut early = BytesMut::new();
        let asked = tokio::select! {
            asked = self.ask(session, ctx) => asked,
            gone = listen(&mut client, &mut early) => Err(gone),
        };
        if let Some(closed) = session.downstream_session.stream() {
            live::give(closed, client);
        }
        let provider = asked?;
        let mut head = provider.resp_header().ok_or_else(internal)?.clone();
        let status = head.status;
        let accepted = self.upstream_response_filter(session, &mut head, ctx).await;
        accepted.map_err(|error| self.judged(session, &mut ctx.exchange, error, false))?;
        if status != StatusCode::SWITCHING_PROTOCOLS {
            end_visibly(&mut head)?;
            session.set_keepalive(None);
        }
        self.response_filter(session, &mut head, ctx).await?;
        let client = &mut session.downstream_session;
        client.write_response_header(Box::new(head)).await.map_err(|error| error.into_down())?;
        match status {
            StatusCode::SWITCHING_PROTOCOLS => self.relay(session, ctx, provider, early.freeze()).await,
            _ => self.declined(session, ctx, provider).await,
        }
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
        provider.write_request_header(Box::new(head)).await.map_err(up)?;
        let patience = ctx.exchange.state.settings.timeouts.first_byte;
        let answer = timeout(patience, self.answer(session, ctx, &mut provider)).await;
        answer.unwrap_or_else(|_| Err(refused(Refusal::UpstreamTimeout))).map_err(up)?;
        Ok(provider)
    }

    /// Reads heads until one is no interim one.
    async fn answer(&self, session: &mut Session, ctx: &mut Context, provider: &mut HttpSession) -> Result<()> {
        loop {
            provider.read_response().await?;
            let mut head = provider.resp_header().ok_or_else(internal)?.clone();
            if !is_interim(head.status) {
                return Ok(());
            }
            self.upstream_response_filter(session, &mut head, ctx).await?;
        }
    }

    /// The provider answered something else, which the client gets as it is.
    async fn declined(&self, session: &mut Session, ctx: &mut Context, mut provider: HttpSession) -> Result<()> {
        provider.read_timeout = Some(ctx.exchange.state.settings.timeouts.idle);
        loop {
            // A client that is listened to is one that hears each piece as it comes (`listen::live`).
            let client = &mut session.downstream_session;
            let piece = tokio::select! {
                biased;
                said = client.read_body_or_idle(true) => match said {
                    Err(error) if *error.etype() == ErrorType::ConnectionClosed => return Err(error.into_down()),
                    // What it says before the answer is over means nothing, and nothing follows.
                    _ => continue,
                },
                piece = provider.read_body_bytes() => piece,
            };
            let mut piece = piece.map_err(|error| {
                let late = *error.etype() == ErrorType::ReadTimedout;
                let error = if late { refused(Refusal::UpstreamTimeout) } else { up(error) };
                self.judged(session, &mut ctx.exchange, error, false)
            })?;
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
    async fn relay(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        mut provider: HttpSession,
        heard: Bytes,
    ) -> Result<()> {
        // First the connection: what is still to be had without it was read together with the head, before `heard`.
        let taken = session.downstream_session.stream().and_then(live::take);
        let Some(client) = taken else { return Err(internal()) };
        let with_head = session.downstream_session.read_request_body().now_or_never();
        let with_head = with_head.and_then(Result::ok).flatten().unwrap_or_default();
        let said = provider.read_body_bytes().now_or_never();
        let said = said.and_then(Result::ok).flatten().unwrap_or_default();
        if let Some(underway) = ctx.exchange.attempt_mut().and_then(|attempt| attempt.underway.as_mut()) {
            underway.served(Instant::now);
        }
        let timeouts = &ctx.exchange.state.settings.timeouts;
        let bounds = Bounds { idle: timeouts.tunnel_idle, total: timeouts.tunnel_total };
        // The process ends by the config that runs, not by the one the request began with.
        let drain = || self.state.load().settings.server.drain.saturating_sub(BEFORE_THE_END);
        let stopping = Stopping { begun: self.stopping.clone(), drain };
        let client = Side { stream: client, early: joined(&[with_head, heard]) };
        let provider = Side { stream: provider.into_inner(), early: said };
        let mask = || getrandom::u32().unwrap_or_default().to_ne_bytes();
        let counts = Arc::new(Counts::default());
        ctx.exchange.meter.tunnel = Some(Arc::clone(&counts));
        ctx.over = Some(tunnel::relay(client, provider, bounds, stopping, &counts, mask).await);
        Ok(())
    }
}

/// An error of the provider's, as whoever judges it wants it.
fn up(error: Box<Error>) -> Box<Error> {
    let mut error = error.into_up();
    error.retry.decide_reuse(false);
    error
}

/// An answer without a length that is not chunked ends with its connection: broken off, it would look whole.
fn end_visibly(head: &mut ResponseHeader) -> Result<()> {
    let has_body = !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_body && !hops::is_framed(&head.headers) {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

/// Listens to a client that waits: it may leave. What it says already is kept for the provider.
async fn listen(client: &mut Stream, early: &mut BytesMut) -> Box<Error> {
    while early.len() < EARLY_BYTES_MAX {
        early.reserve(READ_BYTES);
        match client.read_buf(early).await {
            Ok(1..) => {}
            Ok(_) => return Error::explain(ErrorType::ConnectionClosed, "the client left").into_down(),
            Err(error) => return Error::because(ErrorType::ReadError, "the client left", error).into_down(),
        }
    }
    std::future::pending().await
}
