//! The session wrapper: presents what was read early, then the socket, as the request's body, and rewinds for the
//! next attempt.
//!
//! It is also where the waiting is bounded. Pingora has one read timeout, and none for uploads over HTTP/2; here
//! `idle` runs between two pieces of the upload, `first_byte` from the end of the request to the beginning of the
//! answer, and `idle` again between two pieces of the answer. A slow client does not count: while it is written to,
//! nobody waits for the provider.
//!
//! Where it is asked for, the head of a successful answer waits here for the first bytes behind it: a provider that
//! says 200 and then nothing has failed, and the client can still be told so.
//!
//! The end of a body that goes in many pieces waits until they have left. Pingora hands pieces to the provider's side
//! through a pipe, and where the last one fills it, nobody listens to the client or asks for these timers until the
//! provider says something (`proxy_handle_downstream` of pingora-proxy 0.9.1). A piece that an editor had to copy has
//! left too early by this count; then Pingora's own read timeout remains.
//!
//! Everything that is awaited can be dropped at any point: state changes only after an await, never across one.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::intake::Intake;
use crate::body::read::Failed;
use crate::listen::live::{flush, more_follows};
use crate::refusal::Refusal;

/// Pingora's pipe takes this many pieces of a body.
const PIPE_PIECES: usize = 4;
/// Pieces of an answer that are together longer than this are written one by one.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the end of the request to the beginning of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the upload, or of the answer.
    pub idle: Duration,
    /// Whether a 200 counts only with the first bytes behind it.
    pub hold_200: bool,
}

/// An answer was passed on whole before its provider had the whole request: there is nothing left to wait for.
#[derive(Debug, thiserror::Error)]
#[error("the answer came before the end of the request")]
pub struct Answered;

/// Where the wrapped session is found when the wrapper is gone.
#[derive(Clone, Default)]
pub struct Way(Arc<Mutex<Option<Box<ServerSession>>>>);

/// Puts a wrapper around `session`, whose body has been read up to the end of `intake`.
pub fn wrap(session: &mut Box<ServerSession>, intake: Intake, patience: Patience, stopping: ShutdownWatch) -> Way {
    let mut inner = std::mem::replace(session, placeholder());
    let empty = intake.is_empty() && inner.is_body_done();
    let replay = Replay::new(inner, intake, empty, patience, stopping);
    let way = replay.way.clone();
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

/// Pieces on their way to the provider's side.
#[derive(Default)]
struct Underway {
    pieces: AtomicUsize,
    left: Notify,
}

impl Underway {
    /// The piece as it is, counted until nobody holds it any more.
    fn count(all: &Arc<Self>, piece: Bytes) -> Bytes {
        all.pieces.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Counted { piece, all: Arc::clone(all) })
    }

    /// Waits until there are none.
    async fn none(&self) {
        loop {
            let left = self.left.notified();
            if self.is_none() {
                return;
            }
            left.await;
        }
    }

    fn is_none(&self) -> bool {
        self.pieces.load(Ordering::Acquire) == 0
    }
}

struct Counted {
    piece: Bytes,
    all: Arc<Underway>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.all.pieces.fetch_sub(1, Ordering::Release) == 1 {
            self.all.left.notify_waiters();
        }
    }
}

/// Whether a head that waited can go: there is something behind it, or nothing will come any more.
fn is_substance(task: &HttpTask) -> bool {
    match task {
        HttpTask::Body(body, end) => *end || body.as_ref().is_some_and(|body| !body.is_empty()),
        HttpTask::Failed(_) => false,
        _ => true,
    }
}

/// Whether the head of an answer is among them.
fn begins(tasks: &[HttpTask]) -> bool {
    tasks.iter().any(|task| matches!(task, HttpTask::Header(..)))
}

/// Bytes of a body in a task.
fn len(task: &HttpTask) -> usize {
    match task {
        HttpTask::Body(Some(piece), _) => piece.len(),
        _ => 0,
    }
}

fn refused(refusal: Refusal) -> Box<Error> {
    Error::because(ErrorType::HTTPStatus(refusal.status()), "in the body", refusal)
}

fn unreadable(error: std::io::Error) -> Box<Error> {
    log::error!("what was spooled of an upload cannot be read: {error}");
    refused(Refusal::Internal)
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
    intake: Intake,
    /// There is no body.
    empty: bool,
    /// How many bytes of the body this attempt has been given, and in how many pieces.
    position: u64,
    pieces: usize,
    /// The pieces that have not left.
    underway: Arc<Underway>,
    /// This attempt was told that the body has ended.
    ended: bool,
    patience: Patience,
    waiting: Waiting,
    /// The head of an answer whose first bytes have not come.
    held: Option<HttpTask>,
    /// One timer a request: it is set again only when it rings too early.
    alarm: Option<Pin<Box<Sleep>>>,
    stopping: ShutdownWatch,
    way: Way,
}

/// Who owes us something next.
#[derive(Clone, Copy)]
enum Waiting {
    /// What is here is being sent.
    Nobody,
    /// The client: more of its upload, since this time.
    Upload(Instant),
    /// The provider. The head of its answer; the request was sent at this time.
    Head(Instant),
    /// The provider: more of its answer; the last piece was passed on at this time.
    More(Instant),
}

impl Drop for Replay {
    fn drop(&mut self) {
        *self.way.0.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
    }
}

impl Replay {
    fn new(
        inner: Box<ServerSession>,
        intake: Intake,
        empty: bool,
        patience: Patience,
        stopping: ShutdownWatch,
    ) -> Self {
        Self {
            inner: Some(inner),
            intake,
            empty,
            position: 0,
            pieces: 0,
            underway: Arc::default(),
            ended: false,
            patience,
            waiting: Waiting::Nobody,
            held: None,
            alarm: None,
            stopping,
            way: Way::default(),
        }
    }

    #[expect(clippy::expect_used, reason = "only `Drop` takes the session out")]
    fn inner(&self) -> &ServerSession {
        self.inner.as_ref().expect("the wrapped session is there until the wrapper is dropped")
    }

    #[expect(clippy::expect_used, reason = "only `Drop` takes the session out")]
    fn inner_mut(&mut self) -> &mut ServerSession {
        self.inner.as_mut().expect("the wrapped session is there until the wrapper is dropped")
    }

    /// Rings when somebody has kept us waiting too long. While the client still owes a part of its upload, whatever the
    /// provider has said already, it is the client.
    async fn alarm(
        waiting: &Waiting,
        is_uploading: bool,
        patience: Patience,
        alarm: &mut Option<Pin<Box<Sleep>>>,
    ) -> Box<Error> {
        loop {
            let due = match waiting {
                Waiting::Nobody => return std::future::pending().await,
                Waiting::Head(since) => *since + patience.first_byte,
                Waiting::Upload(since) | Waiting::More(since) => *since + patience.idle,
            };
            let sleep = alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if sleep.deadline() > due {
                sleep.as_mut().reset(due);
            }
            sleep.as_mut().await;
            if Instant::now() >= due {
                return refused(if is_uploading { Refusal::BodyTimeout } else { Refusal::UpstreamTimeout });
            }
            sleep.as_mut().reset(due);
        }
    }

    /// One more piece of an upload, which goes on.
    fn pass(&mut self, read: Result<Option<Bytes>>) -> Result<Option<Bytes>> {
        let piece = read.map_err(|error| match Failed::from(error) {
            Failed::Refused(refusal) => refused(refusal),
            Failed::Gone(error) => error,
        })?;
        // While the upload goes on, the provider has no reason to say more.
        self.waiting = match self.waiting {
            Waiting::More(_) => Waiting::More(Instant::now()),
            _ => Waiting::Nobody,
        };
        if let Some(piece) = &piece {
            self.intake.pass(piece).map_err(refused)?;
            self.position = self.intake.len();
        }
        Ok(piece)
    }

    fn is_given_out(&mut self) -> bool {
        self.position == self.intake.len() && self.inner_mut().is_body_done()
    }

    /// Whether the whole body has left.
    fn is_sent(&mut self) -> bool {
        self.is_given_out() && self.underway.is_none()
    }

    /// A piece that goes out, and is counted until it has left.
    fn given_out(&mut self, piece: Bytes) -> Bytes {
        self.pieces += 1;
        // So few never fill the pipe: the last one is the end. That is said with it or not at all, as Pingora asks
        // for it at other times too.
        self.ended = self.pieces < PIPE_PIECES && self.is_given_out();
        if self.pieces == 1 && self.ended { piece } else { Underway::count(&self.underway, piece) }
    }

    /// Says that the body has ended, when its pieces have left; the client is listened to meanwhile.
    async fn end(&mut self) -> Result<Option<Bytes>> {
        let Self { inner, underway, .. } = self;
        let Some(inner) = inner else { return Ok(None) };
        let read = tokio::select! {
            biased;
            () = underway.none() => Ok(None),
            read = inner.read_body_or_idle(true) => read,
        };
        self.ended |= matches!(read, Ok(None));
        read
    }

    /// Keeps the head of a successful answer until something comes behind it. An error before that is the answer's.
    fn hold(&mut self, mut tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
        if let Some(held) = self.held.take() {
            tasks.insert(0, held);
        }
        let waits = |task: &HttpTask| matches!(task, HttpTask::Header(head, false) if head.status.is_success());
        if !self.patience.hold_200 || !tasks.first().is_some_and(waits) || tasks.iter().skip(1).any(is_substance) {
            return Ok(tasks);
        }
        let mut rest = tasks.drain(1..);
        if let Some(HttpTask::Failed(error)) = rest.find(|task| matches!(task, HttpTask::Failed(_))) {
            return Err(error);
        }
        drop(rest);
        self.held = tasks.pop();
        Ok(Vec::new())
    }

    /// Writes a part of the answer; whether that was its end. Over HTTP/1 Pingora copies pieces that come together into
    /// one, which is worth it for small ones, and gives a head with a length a packet of its own, which is not.
    async fn write(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        let client = match self.inner_mut() {
            ServerSession::H1(client) => client,
            other => return other.response_duplex_vec(tasks).await,
        };
        // An error flushes what stands before it, but only in its company.
        let failed = tasks.iter().position(|task| matches!(task, HttpTask::Failed(_)));
        let mut left: usize = tasks.iter().take(failed.unwrap_or(tasks.len())).map(len).sum();
        if left <= COPIED_BYTES_MAX {
            more_follows(client.stream(), left > 0 && failed.is_none() && begins(&tasks));
            let ended = client.response_duplex_vec(tasks).await;
            more_follows(client.stream(), false);
            return ended;
        }
        let failed = failed.map(|at| tasks.split_off(at));
        let mut ended = false;
        for task in tasks {
            left -= len(&task);
            more_follows(client.stream(), left > 0);
            ended = client.response_duplex_vec(vec![task]).await?;
        }
        match failed {
            Some(mut failed) => {
                failed.insert(0, HttpTask::Body(None, false));
                client.response_duplex_vec(failed).await
            }
            None => Ok(ended),
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
        self.pieces = 0;
        self.underway = Arc::default();
        self.ended = false;
        self.waiting = Waiting::Nobody;
        self.held = None;
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    fn retry_buffer_truncated(&self) -> bool {
        !self.intake.is_replayable()
    }

    fn is_body_empty(&mut self) -> bool {
        self.empty
    }

    fn is_body_done(&mut self) -> bool {
        self.ended || self.empty
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && self.position < self.intake.len() {
            let piece = self.intake.read(self.position).map_err(unreadable)?;
            self.position += piece.len() as u64;
            return Ok(Some(self.given_out(piece)));
        }
        let done = no_body_expected || self.inner_mut().is_body_done();
        if done && !no_body_expected {
            return self.end().await;
        }
        if !done {
            self.intake.room(self.patience.idle).await;
        }
        self.waiting = match self.waiting {
            Waiting::Nobody | Waiting::Upload(_) if done => Waiting::Head(Instant::now()),
            Waiting::Nobody => Waiting::Upload(Instant::now()),
            waiting => waiting,
        };
        let Self { inner, waiting, patience, alarm, .. } = self;
        let Some(inner) = inner else { return Ok(None) };
        let read = tokio::select! {
            read = inner.read_body_or_idle(done) => read,
            late = Self::alarm(waiting, !done, *patience, alarm) => Err(late),
        };
        if done {
            return read;
        }
        match self.pass(read)? {
            Some(piece) => Ok(Some(self.given_out(piece))),
            None => self.end().await,
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
        let mut tasks = self.hold(tasks)?;
        if tasks.is_empty() {
            self.waiting = Waiting::More(Instant::now());
            return Ok(false);
        }
        self.announce_end();
        if begins(&tasks) && !self.is_sent() {
            // The rest of the upload, if the answer ends before it, is not read as a request.
            self.inner_mut().set_keepalive(None);
        }
        if self.inner().req_header().version == Version::HTTP_10 {
            tasks.iter_mut().for_each(end_by_closing);
            self.inner_mut().set_keepalive(None);
        }
        let ended = self.write(tasks).await?;
        self.waiting = Waiting::More(Instant::now());
        if !ended
            && !self.is_sent()
            && let ServerSession::H1(client) = self.inner()
        {
            // The connection is flushed when its client falls silent, which one that uploads may never do.
            flush(client.stream());
        }
        if ended && !self.is_sent() {
            return Err(Error::because(ErrorType::ConnectionClosed, "in mid-upload", Answered));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrapper that holds heads back, or does not.
    fn replay(hold_200: bool) -> Replay {
        let patience = Patience { first_byte: Duration::MAX, idle: Duration::MAX, hold_200 };
        let stopping = tokio::sync::watch::channel(false).1;
        Replay::new(placeholder(), Intake::whole(Bytes::new()), true, patience, stopping)
    }

    fn task(written: &str) -> HttpTask {
        let head = |status, end| match ResponseHeader::build(status, None) {
            Ok(head) => HttpTask::Header(Box::new(head), end),
            Err(error) => HttpTask::Failed(error),
        };
        match written {
            "200" => head(200, false),
            "200 alone" => head(200, true),
            "500" => head(500, false),
            "nothing" => HttpTask::Body(Some(Bytes::new()), false),
            "end" => HttpTask::Body(None, true),
            "broken" => HttpTask::Failed(Error::new(ErrorType::ConnectionClosed)),
            bytes => HttpTask::Body(Some(bytes.to_owned().into()), false),
        }
    }

    /// What goes on of each batch: how many tasks, or that the answer has failed.
    fn passed(hold_200: bool, batches: &[&[&str]]) -> Vec<Option<usize>> {
        let mut replay = replay(hold_200);
        let tasks = |batch: &&[&str]| batch.iter().map(|written| task(written)).collect();
        batches.iter().map(|batch| replay.hold(tasks(batch)).ok().map(|tasks| tasks.len())).collect()
    }

    #[test]
    fn a_200_waits_for_what_is_behind_it_where_that_is_asked_for() {
        for (label, batches, held, not_held) in [
            ("audio", &[&["200"][..], &["a"], &["b"]][..], vec![Some(0), Some(2), Some(1)], vec![Some(1); 3]),
            ("at once", &[&["200", "a", "b"]], vec![Some(3)], vec![Some(3)]),
            (
                "empty pieces first",
                &[&["200", "nothing"], &["nothing"], &["a"]],
                vec![Some(0), Some(0), Some(2)],
                vec![Some(2), Some(1), Some(1)],
            ),
            ("an empty answer", &[&["200"], &["end"]], vec![Some(0), Some(2)], vec![Some(1); 2]),
            ("nothing will come", &[&["200 alone"]], vec![Some(1)], vec![Some(1)]),
            ("it breaks first", &[&["200"], &["broken"]], vec![Some(0), None], vec![Some(1); 2]),
            ("it breaks at once", &[&["200", "nothing", "broken"]], vec![None], vec![Some(3)]),
            ("it breaks later", &[&["200", "a", "broken"]], vec![Some(3)], vec![Some(3)]),
            ("it is none", &[&["500"], &["broken"]], vec![Some(1); 2], vec![Some(1); 2]),
        ] {
            assert_eq!(passed(true, batches), held, "{label}");
            assert_eq!(passed(false, batches), not_held, "{label}, not asked for");
        }
    }
}
