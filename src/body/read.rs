//! Reads bodies, within their limits: JSON whole, validating while it arrives; a form as far as it has to be read to
//! know where it goes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::http::RequestHeader;
use pingora_core::ErrorType;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, Result};
use tokio::time::timeout;

use crate::body::intake::Intake;
use crate::refusal::Refusal;
use crate::stage::form::Form;
use crate::wire::json::{Fault, Member, Scanner};

/// A JSON body that is complete and valid.
pub struct Body {
    pub bytes: Bytes,
    pub members: Vec<Member>,
}

/// Why there is no body.
pub enum Failed {
    /// It is refused, and the client can be told.
    Refused(Refusal),
    /// The client is gone.
    Gone(Box<Error>),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Box<Error>> for Failed {
    /// What Pingora says of a body that could not be read.
    fn from(error: Box<Error>) -> Self {
        match error.etype() {
            ErrorType::ReadTimedout => Refusal::BodyTimeout.into(),
            // The client may have closed one way only, and still be listening.
            ErrorType::ConnectionClosed => Refusal::BodyTruncated.into(),
            // Pingora names these, but does not export the names.
            kind if kind.as_str() == "PrematureBodyEnd" => Refusal::BodyTruncated.into(),
            kind if ["InvalidChunk", "InvalidTrailerEnd"].contains(&kind.as_str()) => Refusal::InvalidBody.into(),
            _ => Self::Gone(error.into_down()),
        }
    }
}

/// The length that a head declares, if it is within `max`.
pub fn declared(head: &RequestHeader, max: usize) -> Result<Option<u64>, Refusal> {
    let length = head.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > max as u64) { Err(Refusal::BodyTooLarge { max }) } else { Ok(length) }
}

/// Tells a client to go on that waits for it.
pub async fn invite(session: &mut ServerSession) -> Result<(), Failed> {
    let head = session.req_header();
    // HTTP/1.0 knows no interim answers (RFC 9110 §10.1.1).
    if head.headers.contains_key(header::EXPECT) && head.version != http::Version::HTTP_10 {
        // Pingora would close the connection for any head that is written before the body has been read.
        session.set_close_on_response_before_downstream_finish(false);
        session.write_continue_response().await.map_err(|error| Failed::Gone(error.into_down()))?;
        session.set_close_on_response_before_downstream_finish(true);
    }
    Ok(())
}

/// Reads at most `max` bytes, waiting at most `idle` for each piece of them.
pub async fn json(session: &mut ServerSession, max: usize, idle: Duration) -> Result<Body, Failed> {
    let declared = declared(session.req_header(), max)?;
    invite(session).await?;
    let mut scanner = Scanner::new();
    // One buffer, however small the pieces are that the client cuts its body into.
    let mut body = BytesMut::new();
    while let Some(piece) = piece(session, idle).await? {
        if body.len().saturating_add(piece.len()) > max {
            return Err(Refusal::BodyTooLarge { max }.into());
        }
        scanner.push(&piece).map_err(fault)?;
        body.extend_from_slice(&piece);
    }
    if declared.is_some_and(|length| length != body.len() as u64) {
        return Err(Refusal::BodyTruncated.into());
    }
    let members = scanner.finish().map_err(fault)?;
    Ok(Body { bytes: body.freeze(), members })
}

/// Reads a form into `intake` until `enough` says so. `true`: it has ended, and is valid.
pub async fn form(
    session: &mut ServerSession,
    idle: Duration,
    intake: &mut Intake,
    form: &mut Form,
    enough: impl Fn(&Form) -> bool,
) -> Result<bool, Failed> {
    while !enough(form) {
        let Some(piece) = piece(session, idle).await? else {
            form.finish()?;
            return Ok(true);
        };
        form.push(&piece)?;
        // A disk that hangs is as good as full.
        timeout(idle, intake.keep(&piece)).await.map_err(|_| Refusal::SpoolFull)??;
    }
    let ended = session.is_body_done();
    if ended {
        form.finish()?;
    }
    Ok(ended)
}

async fn piece(session: &mut ServerSession, idle: Duration) -> Result<Option<Bytes>, Failed> {
    match timeout(idle, session.read_request_body()).await {
        Err(_) => Err(Refusal::BodyTimeout.into()),
        Ok(piece) => Ok(piece?),
    }
}

fn fault(fault: Fault) -> Failed {
    Failed::Refused(fault.into())
}
