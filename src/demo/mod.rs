//! A speech provider that really speaks and listens, on this machine: no key, no network, no model to download.
//!
//! It serves speech and transcriptions as OpenAI's audio API has them, through programs of Debian: flite, eSpeak NG,
//! ffmpeg and pocketsphinx. Audio goes out while it is made; an answer that cannot be completed has no end; a client
//! who leaves takes the programs started for it along. The module knows nothing of the gateway in front of it: of the
//! crate it uses the byte formats only.

mod engine;
mod hear;
mod hypothesis;
mod problem;
mod request;
mod resample;
mod sentence;
mod session;
mod sound;
mod speak;
#[cfg(test)]
mod tests;
mod transcript;
mod transcription;
mod upload;
mod voice;
mod wave;

use std::ffi::OsString;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use engine::{Engines, Failure};
use hear::Recognition;
use problem::Problem;
use request::Utterance;
use session::{End, JSON, begin_stream, unless_gone};
use sound::Sound;
use transcript::Transcript;
use transcription::Delivery;

pub use engine::missing_engines;
pub use request::SPEECH_MODEL;
pub use transcription::TRANSCRIPTION_MODEL;
pub use voice::{Voice, voices};

/// What is spoken: 4096 code points, each written as two `\uXXXX`, and what stands around them.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Requests being spoken or listened to at the same time.
const TURNS_MAX: usize = 4;
/// Requests that wait for their turn, or whose recording is on its way.
const WAITING_MAX: usize = 32;
/// The longest pause between two pieces of a request's body.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long what is left of a refused body is read, so that the client gets to see the answer.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a client may leave a piece of audio untaken.
const UNTAKEN_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an engine may take for the next piece of audio, or to decode a recording.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a recogniser may take for a whole recording.
const RECOGNITION_TIME_MAX: Duration = Duration::from_secs(300);

/// The provider: an application for one of Pingora's listening services.
pub struct Speaker {
    engines: Arc<Engines>,
    /// Who is inside: those whose turn it is and those who wait.
    room: Semaphore,
    turns: Semaphore,
}

impl Speaker {
    /// `path` is where the engines are looked for, written like the environment's `PATH`.
    pub fn new(path: impl Into<OsString>) -> Self {
        Self {
            engines: Arc::new(Engines::new(path.into())),
            room: Semaphore::new(TURNS_MAX + WAITING_MAX),
            turns: Semaphore::new(TURNS_MAX),
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
            Err(End::Problem(problem)) => session::refuse(&mut session, &problem).await.ok()?,
            // Dropped as it is: a chunked answer without its last chunk is seen to be broken.
            Err(End::Broken) => return None,
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}

enum Route {
    Speech,
    Transcriptions,
    Translations,
    Models,
}

fn route(method: &Method, path: &str) -> Result<Route, Problem> {
    let (route, allow) = match path {
        "/v1/audio/speech" => (Route::Speech, Method::POST),
        "/v1/audio/transcriptions" => (Route::Transcriptions, Method::POST),
        "/v1/audio/translations" => (Route::Translations, Method::POST),
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
                let utterance = request::parse(&session::body(session, BODY_BYTES_MAX).await?)?;
                self.speak(session, utterance).await
            }
            Route::Transcriptions => self.transcribe(session).await,
            Route::Translations => Err(Problem::Translation.into()),
            Route::Models => {
                let model = |id| json!({ "id": id, "object": "model", "created": 0, "owned_by": "demo" });
                let models = [SPEECH_MODEL, TRANSCRIPTION_MODEL].map(model);
                let list = json!({ "object": "list", "data": models });
                session::answer(session, JSON, list.to_string()).await
            }
        }
    }

    async fn speak(&self, session: &mut ServerSession, utterance: Utterance) -> Result<(), End> {
        let media = utterance.format.content_type();
        let seat = self.seat()?;
        let _turn = unless_gone(session, self.turn(seat)).await??;
        let mut sound = unless_gone(session, timely(Sound::begin(&self.engines, utterance))).await??;
        let first = unless_gone(session, timely(sound.next())).await??;
        begin_stream(session, media).await?;
        let mut piece = first;
        while let Some(audio) = piece {
            session.write_response_body(audio, false).await?;
            piece = unless_gone(session, timely(sound.next())).await?.map_err(broke_off)?;
        }
        Ok(session.write_response_body(Bytes::new(), true).await?)
    }

    async fn transcribe(&self, session: &mut ServerSession) -> Result<(), End> {
        // Before the recording is taken in: so there are never more of them than seats.
        let seat = self.seat()?;
        let upload = upload::read(session, transcription::want).await?;
        let asked = transcription::parse(&upload.parts)?;
        let _turn = unless_gone(session, self.turn(seat)).await??;
        let samples = unless_gone(session, timely(self.engines.decode(&upload.body, &asked.recording))).await??;
        drop(upload);
        let mut transcript = Transcript { segments: Vec::new(), duration_ms: samples.duration_ms };
        let recognition = self.engines.recognise(samples, Instant::now() + RECOGNITION_TIME_MAX)?;
        let Delivery::Whole(layout) = asked.delivery else {
            return stream_events(session, recognition, transcript).await;
        };
        transcript.segments = unless_gone(session, recognition.all()).await??;
        let (media, text) = transcript.render(layout);
        session::answer(session, media, text).await
    }

    /// Lets a request in, or says at once that too many wait already.
    fn seat(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.room.try_acquire().map_err(|_| Problem::Busy)
    }

    /// Waits until it is this request's turn.
    async fn turn<'a>(&'a self, seat: SemaphorePermit<'a>) -> Result<Turn<'a>, Problem> {
        let turn = self.turns.acquire().await.map_err(|_| Problem::Busy)?;
        Ok(Turn { _turn: turn, _seat: seat })
    }
}

/// The right to start programs, given back when dropped.
struct Turn<'a> {
    _turn: SemaphorePermit<'a>,
    _seat: SemaphorePermit<'a>,
}

/// Sends each segment when it was recognised, and the whole text at the end.
async fn stream_events(
    session: &mut ServerSession,
    mut recognition: Recognition,
    mut transcript: Transcript,
) -> Result<(), End> {
    let mut next = unless_gone(session, recognition.next()).await??;
    begin_stream(session, transcript::EVENTS).await?;
    while let Some(segment) = next {
        let delta = transcript::delta(&transcript.segments, &segment);
        session.write_response_body(delta.into(), false).await?;
        transcript.segments.push(segment);
        next = unless_gone(session, recognition.next()).await?.map_err(broke_off)?;
    }
    Ok(session.write_response_body(transcript.done().into(), true).await?)
}

/// What has begun to go out can only end without an end.
fn broke_off(failure: Failure) -> End {
    log::warn!("demo: an answer broke off: {failure}");
    End::Broken
}

/// An engine that hangs must not keep its client and its turn for ever.
async fn timely<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(SILENCE_MAX, work).await.unwrap_or(Err(Failure::Silent))
}
