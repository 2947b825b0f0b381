//! A form with a recording in it: too much for memory, so its body goes to a file without a name.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use pingora_core::protocols::http::ServerSession;

use super::hear::storage;
use super::problem::Problem;
use super::session::{End, welcome};
use crate::wire::multipart::{Boundary, BoundaryFault, Fault, Part, Scanner, Want};

/// A file of OpenAI's 25 MiB, and the fields around it.
pub(super) const UPLOAD_BYTES_MAX: usize = 25 * 1024 * 1024 + 64 * 1024;

/// A whole form.
pub(super) struct Upload {
    /// Its body, byte for byte. The parts say what stands where in it.
    pub(super) body: Arc<File>,
    pub(super) parts: Vec<Part>,
}

/// Reads the body of a request as a form. `want` says what is needed of the part of a name.
pub(super) async fn read(session: &mut ServerSession, want: fn(&str) -> Want) -> Result<Upload, End> {
    let content_type = String::from_utf8_lossy(session.get_header_bytes(CONTENT_TYPE));
    let boundary = Boundary::parse(&content_type).map_err(Problem::from)?;
    welcome(session, UPLOAD_BYTES_MAX).await?;
    let body = Arc::new(tempfile::tempfile().map_err(storage)?);
    let mut scanner = Scanner::new(&boundary, want);
    let mut length = 0;
    while let Some(piece) = session.read_request_body().await? {
        length += piece.len();
        if length > UPLOAD_BYTES_MAX {
            return Err(Problem::TooLarge { max: UPLOAD_BYTES_MAX }.into());
        }
        scanner.push(&piece).map_err(Problem::from)?;
        append(&body, piece).await.map_err(storage)?;
    }
    scanner.finish().map_err(Problem::from)?;
    Ok(Upload { body, parts: scanner.parts().to_vec() })
}

/// On a thread that may wait for a disk.
async fn append(file: &Arc<File>, piece: Bytes) -> io::Result<()> {
    let file = Arc::clone(file);
    let written = tokio::task::spawn_blocking(move || (&*file).write_all(&piece)).await;
    written.unwrap_or_else(|lost| Err(io::Error::other(lost)))
}

impl From<BoundaryFault> for Problem {
    fn from(fault: BoundaryFault) -> Self {
        match fault {
            BoundaryFault::NotMultipart => Self::NotMultipart,
            BoundaryFault::Missing | BoundaryFault::Invalid(_) => Self::Form(fault.to_string()),
        }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Form(fault.to_string())
    }
}
