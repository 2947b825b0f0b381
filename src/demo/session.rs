//! What is done with a client's connection whatever is asked for on it.

use std::future::Future;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use http::{Response, StatusCode, Version, response};
use pingora_core::BError;
use pingora_core::protocols::http::ServerSession;

use super::engine::Failure;
use super::problem::Problem;

pub(super) const JSON: &str = "application/json";

/// Why a request did not get the answer it asked for.
pub(super) enum End {
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

/// Waits for `work`, unless the client leaves first; the work is dropped then, and its programs with it.
pub(super) async fn unless_gone<T>(session: &mut ServerSession, work: impl Future<Output = T>) -> Result<T, End> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        // After the request's body nothing is expected: whatever comes, the exchange is over.
        _ = session.read_body_or_idle(true) => Err(End::Broken),
    }
}

/// Has the client send its body, unless that is known to be longer than `bytes_max`.
pub(super) async fn welcome(session: &mut ServerSession, bytes_max: usize) -> Result<(), End> {
    let length = str::from_utf8(session.get_header_bytes(CONTENT_LENGTH)).ok().and_then(|length| length.parse().ok());
    if length.is_some_and(|length: usize| length > bytes_max) {
        return Err(Problem::TooLarge { max: bytes_max }.into());
    }
    if session.get_header_bytes(EXPECT).eq_ignore_ascii_case(b"100-continue") {
        session.write_continue_response().await?;
    }
    Ok(())
}

/// A whole body of at most so many bytes, in memory.
pub(super) async fn body(session: &mut ServerSession, bytes_max: usize) -> Result<Vec<u8>, End> {
    welcome(session, bytes_max).await?;
    let mut body = Vec::new();
    while let Some(piece) = session.read_request_body().await? {
        if body.len() + piece.len() > bytes_max {
            return Err(Problem::TooLarge { max: bytes_max }.into());
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
pub(super) async fn begin_stream(session: &mut ServerSession, media: &'static str) -> Result<(), BError> {
    let mut head = head_of(StatusCode::OK);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    // HTTP/1.0 knows no chunks (RFC 9112 §6.1): there the end of the connection ends the answer.
    if session.req_header().version == Version::HTTP_11 {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    session.write_response_header(Box::new(head.into())).await
}

/// A whole answer to a request that was in order.
pub(super) async fn answer(session: &mut ServerSession, media: &'static str, text: String) -> Result<(), End> {
    Ok(send(session, head_of(StatusCode::OK), media, text).await?)
}

async fn send(
    session: &mut ServerSession,
    mut head: response::Parts,
    media: &'static str,
    text: String,
) -> Result<(), BError> {
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    session.write_response_header(Box::new(head.into())).await?;
    session.write_response_body(Bytes::from(text), true).await
}

/// The answer to any other.
pub(super) async fn refuse(session: &mut ServerSession, problem: &Problem) -> Result<(), BError> {
    let mut head = head_of(problem.status());
    if let Problem::Method { allow } = problem {
        head.headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if matches!(problem, Problem::Busy) {
        head.headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    send(session, head, JSON, problem.to_json()).await?;
    // A socket closed with bytes unread resets the connection, and the client may never see the answer.
    session.drain_request_body().await
}
