//! The operator's listener: health and metrics.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::Response;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;

use crate::answer::Answer;
use crate::desk::Desk;
use crate::state::State;

pub struct Admin {
    state: Arc<ArcSwap<State>>,
    desk: Arc<Desk>,
    stopping: ShutdownWatch,
}

impl Admin {
    pub fn new(state: Arc<ArcSwap<State>>, desk: Arc<Desk>, stopping: ShutdownWatch) -> Self {
        Self { state, desk, stopping }
    }

    fn metrics(&self) -> (u16, &'static str, Vec<u8>) {
        let metrics = &self.desk.metrics;
        metrics.records_waiting.set(i64::try_from(self.desk.records.waiting()).unwrap_or(i64::MAX));
        metrics.records_writable.set(self.desk.records.writable().into());
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
