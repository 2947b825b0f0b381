//! The session wrapper: presents what was read early, then the socket, as the request's body, and rewinds for the
//! next attempt.
//!
//! It is also where the waiting for a provider is bounded. Pingora has one read timeout; here `first_byte` runs
//! from the end of the request to the beginning of the answer, and `idle` between two pieces of the answer. A slow
//! client does not count: while it is written to, nobody waits for the provider.
//!
//! Everything that is awaited can be dropped at any point: state changes only after an await, never across one.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Version;
use http::header::TRANSFER_ENCODING;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as CustomSession;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::server::ShutdownWatch;
use pingora_core::{Error, ErrorType, Result};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::refusal::Refusal;

/// Bytes handed over at once: what has to be taken within one write's time.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// How long to wait for a provider.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the end of the request to the beginning of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
}

/// Where the wrapped session is found when the wrapper is gone.
#[derive(Clone, Default)]
pub struct Way(Arc<Mutex<Option<Box<ServerSession>>>>);

/// Puts a wrapper around `session`, whose body has been read up to the end of `read`.
pub fn wrap(session: &mut Box<ServerSession>, read: Bytes, patience: Patience, stopping: ShutdownWatch) -> Way {
    let way = Way::default();
    let inner = std::mem::replace(session, placeholder());
    let replay = Replay {
        inner: Some(inner),
        read,
        position: 0,
        patience,
        waiting: Waiting::NotYet,
        alarm: None,
        stopping,
        way: way.clone(),
    };
    **session = ServerSession::new_custom(Box::new(replay));
    way
}

/// Takes the wrapper away. Nothing happens where there is none any more.
pub fn unwrap(session: &mut Box<ServerSession>, way: &Way) {
    if !session.is_custom() {
        return;
    }
    drop(std::mem::replace(session, placeholder()));
    let inner = way.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(inner) = inner {
        *session = inner;
    }
}

/// HTTP/1.0 knows no chunks (RFC 9112 §6.1): an answer without a length ends with its connection.
fn end_by_closing(task: &mut HttpTask) {
    if let HttpTask::Header(head, _) = task {
        head.remove_header(&TRANSFER_ENCODING);
    }
}

fn placeholder() -> Box<ServerSession> {
    Box::new(ServerSession::new_custom(Box::new(())))
}

struct Replay {
    /// Always there until `Drop` hands it back.
    inner: Option<Box<ServerSession>>,
    read: Bytes,
    /// How much of `read` this attempt has been given.
    position: usize,
    patience: Patience,
    waiting: Waiting,
    /// One timer a request: it is set again only when it rings too early.
    alarm: Option<Pin<Box<Sleep>>>,
    stopping: ShutdownWatch,
    way: Way,
}

/// What the provider owes us next.
#[derive(Clone, Copy)]
enum Waiting {
    /// The request is still being sent.
    NotYet,
    /// The head of its answer; the request was sent at this time.
    Head(Instant),
    /// More of its answer; the last piece was passed on at this time.
    More(Instant),
}

impl Drop for Replay {
    fn drop(&mut self) {
        *self.way.0.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
    }
}

impl Replay {
    #[expect(clippy::expect_used, reason = "only `Drop` takes the session out")]
    fn inner(&self) -> &ServerSession {
        self.inner.as_ref().expect("the wrapped session is there until the wrapper is dropped")
    }

    #[expect(clippy::expect_used, reason = "only `Drop` takes the session out")]
    fn inner_mut(&mut self) -> &mut ServerSession {
        self.inner.as_mut().expect("the wrapped session is there until the wrapper is dropped")
    }

    /// Rings when the provider has kept us waiting too long.
    async fn alarm(waiting: &Waiting, patience: Patience, alarm: &mut Option<Pin<Box<Sleep>>>) -> Box<Error> {
        loop {
            let due = match waiting {
                Waiting::NotYet => return std::future::pending().await,
                Waiting::Head(since) => *since + patience.first_byte,
                Waiting::More(since) => *since + patience.idle,
            };
            let sleep = alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if sleep.deadline() > due {
                sleep.as_mut().reset(due);
            }
            sleep.as_mut().await;
            if Instant::now() >= due {
                return Error::because(ErrorType::ReadTimedout, "waiting for the provider", Refusal::UpstreamTimeout);
            }
            sleep.as_mut().reset(due);
        }
    }

    /// A connection that will not be used again says so.
    fn announce_end(&mut self) {
        if *self.stopping.borrow() {
            self.inner_mut().set_keepalive(None);
        }
    }
}

#[async_trait]
impl CustomSession for Replay {
    fn enable_retry_buffering(&mut self) {
        // Called once at the beginning of each attempt.
        self.position = 0;
        self.waiting = Waiting::NotYet;
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn is_body_empty(&mut self) -> bool {
        self.read.is_empty() && self.inner_mut().is_body_done()
    }

    fn is_body_done(&mut self) -> bool {
        self.position == self.read.len() && self.inner_mut().is_body_done()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && self.position < self.read.len() {
            let end = self.read.len().min(self.position + PIECE_BYTES_MAX);
            let piece = self.read.slice(self.position..end);
            self.position = end;
            return Ok(Some(piece));
        }
        let done = no_body_expected || self.inner_mut().is_body_done();
        if done && matches!(self.waiting, Waiting::NotYet) {
            self.waiting = Waiting::Head(Instant::now());
        }
        let Self { inner, waiting, patience, alarm, .. } = self;
        let Some(inner) = inner else { return Ok(None) };
        tokio::select! {
            read = inner.read_body_or_idle(done) => read,
            late = Self::alarm(waiting, *patience, alarm) => Err(late),
        }
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.inner_mut().read_request_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.inner_mut().drain_request_body().await
    }

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        // Interim answers are the provider's word to us, and do not begin the answer.
        tasks.retain(|task| !matches!(task, HttpTask::Header(head, _) if head.status.is_informational()));
        if tasks.is_empty() {
            return Ok(false);
        }
        self.announce_end();
        if self.inner().req_header().version == Version::HTTP_10 {
            tasks.iter_mut().for_each(end_by_closing);
            self.inner_mut().set_keepalive(None);
        }
        let ended = self.inner_mut().response_duplex_vec(tasks).await?;
        self.waiting = Waiting::More(Instant::now());
        Ok(ended)
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.announce_end();
        self.inner_mut().write_response_header(head).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, _end: bool) -> Result<()> {
        self.announce_end();
        self.inner_mut().write_response_header_ref(head).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: http::HeaderMap) -> Result<()> {
        self.inner_mut().write_response_trailers(trailers).await
    }

    async fn finish(&mut self) -> Result<()> {
        self.inner_mut().finish_body().await
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.inner_mut().shutdown().await;
    }

    fn req_header(&self) -> &RequestHeader {
        self.inner().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner_mut().req_header_mut()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner().response_written()
    }

    fn request_summary(&self) -> String {
        self.inner().request_summary()
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner().get_total_drain_timeout()
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner().to_h1_raw()
    }

    // Custom messages belong to protocols that are not HTTP: there are none here.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
