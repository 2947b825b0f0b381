//! Reads a JSON body whole, within its limits, validating while it arrives.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;
use pingora_core::ErrorType;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, Result};
use tokio::time::timeout;

use crate::refusal::Refusal;
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

/// Reads at most `max` bytes, waiting at most `idle` for each piece of them.
pub async fn json(session: &mut ServerSession, max: usize, idle: Duration) -> Result<Body, Failed> {
    let declared = session.req_header().headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()).and_then(|length| length.parse::<u64>().ok());
    if declared.is_some_and(|length| length > max as u64) {
        return Err(Refusal::BodyTooLarge { max }.into());
    }
    let head = session.req_header();
    // HTTP/1.0 knows no interim answers (RFC 9110 §10.1.1).
    if head.headers.contains_key(header::EXPECT) && head.version != http::Version::HTTP_10 {
        // Pingora would close the connection for any head that is written before the body has been read.
        session.set_close_on_response_before_downstream_finish(false);
        session.write_continue_response().await.map_err(|error| Failed::Gone(error.into_down()))?;
        session.set_close_on_response_before_downstream_finish(true);
    }
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

async fn piece(session: &mut ServerSession, idle: Duration) -> Result<Option<Bytes>, Failed> {
    match timeout(idle, session.read_request_body()).await {
        Err(_) => Err(Refusal::BodyTimeout.into()),
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(error)) => Err(match error.etype() {
            ErrorType::ReadTimedout => Refusal::BodyTimeout.into(),
            // The client may have closed one way only, and still be listening.
            ErrorType::ConnectionClosed => Refusal::BodyTruncated.into(),
            // Pingora names these, but does not export the names.
            kind if kind.as_str() == "PrematureBodyEnd" => Refusal::BodyTruncated.into(),
            kind if ["InvalidChunk", "InvalidTrailerEnd"].contains(&kind.as_str()) => Refusal::InvalidBody.into(),
            _ => Failed::Gone(error.into_down()),
        }),
    }
}

fn fault(fault: Fault) -> Failed {
    Failed::Refused(fault.into())
}
