//! A speech provider that really speaks, on this machine: no key, no network, no model to download.
//!
//! It serves the speech half of OpenAI's audio API through three programs of Debian: flite, eSpeak NG and
//! ffmpeg. Audio goes out while it is made; an answer that cannot be completed has no end; a client who leaves
//! takes the programs started for it along. The module knows nothing of the gateway in front of it.

mod engine;
mod problem;
mod request;
mod resample;
mod sentence;
mod sound;
#[cfg(test)]
mod tests;
mod voice;
mod wave;

use std::ffi::OsString;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode, Version, response};
use pingora_core::BError;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

use engine::{Engines, Failure};
use problem::Problem;
use request::{Format, Utterance};
use sound::Sound;

pub use engine::missing_engines;
pub use request::MODEL;
pub use voice::{Voice, voices};

/// 4096 code points, each written as two `\uXXXX`, and what stands around them.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Utterances being spoken at the same time.
const SPEAKING_MAX: usize = 4;
/// Utterances that wait for their turn.
const WAITING_MAX: usize = 32;
/// The longest pause between two pieces of a request's body.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long what is left of a refused body is read, so that the client gets to see the answer.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a client may leave a piece of audio untaken.
const UNTAKEN_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an engine may take for the next piece of audio.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The provider: an application for one of Pingora's listening services.
pub struct Speaker {
    engines: Arc<Engines>,
    /// Who is inside: those who speak and those who wait.
    room: Semaphore,
    turns: Semaphore,
}

impl Speaker {
    /// `path` is where the engines are looked for, written like the environment's `PATH`.
    pub fn new(path: impl Into<OsString>) -> Self {
        Self {
            engines: Arc::new(Engines::new(path.into())),
            room: Semaphore::new(SPEAKING_MAX + WAITING_MAX),
            turns: Semaphore::new(SPEAKING_MAX),
        }
    }
}

#[async_trait]
impl HttpServerApp for Speaker {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !matches!(session.read_request().await, Ok(true)) {
            return None;
        }
        session.set_read_timeout(Some(BODY_PAUSE_MAX));
        session.set_total_drain_timeout(Some(DRAIN_TIME_MAX));
        session.set_write_timeout(Some(UNTAKEN_TIME_MAX));
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        match self.serve(&mut session).await {
            Ok(()) => {}
            Err(End::Problem(problem)) => refuse(&mut session, &problem).await.ok()?,
            // Dropped as it is: a chunked answer without its last chunk is seen to be broken.
            Err(End::Broken) => return None,
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}

/// Why a request did not get the answer it asked for.
enum End {
    /// Nothing was sent yet: there is room for a proper answer.
    Problem(Problem),
    /// The client has left, or the answer had begun: the connection is of no more use.
    Broken,
}

impl From<Problem> for End {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Problem(failure.into())
    }
}

impl From<BError> for End {
    fn from(error: BError) -> Self {
        log::debug!("demo: the connection broke: {error}");
        Self::Broken
    }
}

enum Route {
    Speech,
    Models,
}

fn route(method: &Method, path: &str) -> Result<Route, Problem> {
    let (route, allow) = match path {
        "/v1/audio/speech" => (Route::Speech, Method::POST),
        "/v1/models" => (Route::Models, Method::GET),
        _ => return Err(Problem::unknown_path(path)),
    };
    if *method != allow {
        return Err(Problem::Method { allow: if allow == Method::POST { "POST" } else { "GET" } });
    }
    Ok(route)
}

impl Speaker {
    async fn serve(&self, session: &mut ServerSession) -> Result<(), End> {
        let head = session.req_header();
        match route(&head.method, head.uri.path())? {
            Route::Speech => {
                let utterance = request::parse(&body(session).await?)?;
                self.speak(session, utterance).await
            }
            Route::Models => {
                let model = json!({ "id": MODEL, "object": "model", "created": 0, "owned_by": "demo" });
                let list = json!({ "object": "list", "data": [model] });
                Ok(send(session, head_of(StatusCode::OK), list.to_string()).await?)
            }
        }
    }

    async fn speak(&self, session: &mut ServerSession, utterance: Utterance) -> Result<(), End> {
        let format = utterance.format;
        let _turn = unless_gone(session, self.turn()).await??;
        let mut sound = unless_gone(session, audible(Sound::begin(&self.engines, utterance))).await??;
        let first = unless_gone(session, audible(sound.next())).await??;
        begin_audio(session, format).await?;
        let mut piece = first;
        while let Some(audio) = piece {
            session.write_response_body(audio, false).await?;
            piece = match unless_gone(session, audible(sound.next())).await? {
                Ok(next) => next,
                Err(failure) => {
                    log::warn!("demo: speech broke off: {failure}");
                    return Err(End::Broken);
                }
            };
        }
        Ok(session.write_response_body(Bytes::new(), true).await?)
    }

    /// Waits until it is this request's turn, or says at once that too many wait already.
    async fn turn(&self) -> Result<Turn<'_>, Problem> {
        let room = self.room.try_acquire().map_err(|_| Problem::Busy)?;
        let turn = self.turns.acquire().await.map_err(|_| Problem::Busy)?;
        Ok(Turn { _turn: turn, _room: room })
    }
}

/// The right to speak, given back when dropped.
struct Turn<'a> {
    _turn: SemaphorePermit<'a>,
    _room: SemaphorePermit<'a>,
}

/// Waits for `work`, unless the client leaves first; the work is dropped then, and its programs with it.
async fn unless_gone<T>(session: &mut ServerSession, work: impl Future<Output = T>) -> Result<T, End> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        // After the request's body nothing is expected: whatever comes, the exchange is over.
        _ = session.read_body_or_idle(true) => Err(End::Broken),
    }
}

/// An engine that hangs must not keep its client and its turn for ever.
async fn audible<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(SILENCE_MAX, work).await.unwrap_or(Err(Failure::Silent))
}

async fn body(session: &mut ServerSession) -> Result<Vec<u8>, End> {
    if session.get_header_bytes(EXPECT).eq_ignore_ascii_case(b"100-continue") {
        session.write_continue_response().await?;
    }
    let mut body = Vec::new();
    while let Some(piece) = session.read_request_body().await? {
        if body.len() + piece.len() > BODY_BYTES_MAX {
            return Err(Problem::TooLarge { max: BODY_BYTES_MAX }.into());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn head_of(status: StatusCode) -> response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    head
}

/// Without a length: each piece is flushed as it is written.
async fn begin_audio(session: &mut ServerSession, format: Format) -> Result<(), BError> {
    let mut head = head_of(StatusCode::OK);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    // HTTP/1.0 knows no chunks (RFC 9112 §6.1): there the end of the connection ends the audio.
    if session.req_header().version == Version::HTTP_11 {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    session.write_response_header(Box::new(head.into())).await
}

async fn send(session: &mut ServerSession, mut head: response::Parts, json: String) -> Result<(), BError> {
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(json.len()));
    session.write_response_header(Box::new(head.into())).await?;
    session.write_response_body(Bytes::from(json), true).await
}

async fn refuse(session: &mut ServerSession, problem: &Problem) -> Result<(), BError> {
    let mut head = head_of(problem.status());
    if let Problem::Method { allow } = problem {
        head.headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if matches!(problem, Problem::Busy) {
        head.headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    send(session, head, problem.to_json()).await?;
    // A socket closed with bytes unread resets the connection, and the client may never see the answer.
    session.drain_request_body().await
}
