//! The operator's listener: health and metrics.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::Response;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;

use crate::answer::Answer;
use crate::desk::Desk;
use crate::state::State;
use crate::upstream::breaker;
use crate::upstream::keys::Cause;

pub struct Admin {
    state: Arc<ArcSwap<State>>,
    desk: Arc<Desk>,
    stopping: ShutdownWatch,
}

impl Admin {
    pub fn new(state: Arc<ArcSwap<State>>, desk: Arc<Desk>, stopping: ShutdownWatch) -> Self {
        Self { state, desk, stopping }
    }

    /// How the providers of the config that runs fare now; those of an old one are forgotten.
    fn providers(&self) {
        let (metrics, now, state) = (&self.desk.metrics, Instant::now(), self.state.load());
        metrics.peer_healthy.reset();
        metrics.peer_breaker.reset();
        metrics.key_set_aside.reset();
        for (name, provider) in &state.settings.providers {
            let Some(upstream) = state.upstreams.get(name) else { continue };
            for standing in upstream.describe(now) {
                let peer = standing.peer.addr.to_string();
                metrics.peer_healthy.with_label_values(&[name.as_str(), &peer]).set(standing.peer.healthy.into());
                metrics.peer_breaker.with_label_values(&[name.as_str(), &peer]).set(match standing.breaker {
                    breaker::State::Closed => 0,
                    breaker::State::HalfOpen => 1,
                    breaker::State::Open => 2,
                });
            }
            for index in 0..provider.keys.len() {
                let aside = match upstream.key_trouble(index, now) {
                    None => 0,
                    Some(Cause::Limited) => 1,
                    Some(Cause::Refused) => 2,
                };
                metrics.key_set_aside.with_label_values(&[name.as_str(), &(index + 1).to_string()]).set(aside);
            }
        }
    }

    fn metrics(&self) -> (u16, &'static str, Vec<u8>) {
        let metrics = &self.desk.metrics;
        metrics.records_waiting.set(i64::try_from(self.desk.records.waiting()).unwrap_or(i64::MAX));
        metrics.records_writable.set(self.desk.records.writable().into());
        self.providers();
        match metrics.text() {
            Ok(text) => (200, "text/plain; version=0.0.4", text),
            Err(error) => {
                log::error!("metrics could not be encoded: {error}");
                (500, "text/plain", Vec::new())
            }
        }
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        let json = |answer: Answer| (answer.status, "application/json", answer.body.to_vec());
        let (status, media, body) = match (head.method.as_str(), head.uri.path()) {
            ("GET" | "HEAD", "/livez") => json(Answer::live()),
            ("GET" | "HEAD", "/readyz") if head.uri.query() == Some("verbose") => {
                json(self.desk.ready_verbose(&self.state.load(), &self.stopping, Instant::now()))
            }
            ("GET" | "HEAD", "/readyz") => json(self.desk.ready(&self.state.load(), &self.stopping)),
            ("GET" | "HEAD", "/metrics") => self.metrics(),
            (_, "/livez" | "/readyz" | "/metrics") => (405, "text/plain", Vec::new()),
            _ => (404, "text/plain", b"here are /livez, /readyz and /metrics\n".to_vec()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media));
        let length = response.body().len().into();
        response.headers_mut().insert(http::header::CONTENT_LENGTH, length);
        if status == 405 {
            response.headers_mut().insert(http::header::ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}
