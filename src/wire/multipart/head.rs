//! The head of a part: its header lines, up to and with the empty one.

use std::mem;

use memchr::memchr;

use super::disposition::{Disposition, Flaw};
use super::params::{Params, is_blank, is_token, keeps_ascii};
use super::{Fault, ambiguous, syntax};

/// How many bytes the head of a part may have, its empty line included.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How many header lines the head of a part may have.
pub const HEADERS_MAX: usize = 16;
/// How long the Content-Type of a part may be to be shown.
pub const MEDIA_BYTES_MAX: usize = 256;

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) filename: Option<String>,
    pub(super) media: Option<String>,
    /// Why others may read something else in the bytes of the value, if it is text.
    pub(super) veil: Option<Fault>,
}

/// Reads one head, a line at a time. A line is judged when its LF is here, a size when it is reached.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    /// The bytes of the line being read.
    line: Vec<u8>,
    /// The offset of its first byte in the whole body.
    line_at: u64,
    /// How many bytes more the head may have.
    left: usize,
    lines: usize,
    disposition: Option<Disposition>,
    /// The value of Content-Type.
    media: Option<Vec<u8>>,
    veil: Option<Fault>,
}

impl Reader {
    /// Waits for a head whose first byte stands at `at`.
    pub(super) fn new(at: u64) -> Self {
        Self {
            line: Vec::new(),
            line_at: at,
            left: HEAD_BYTES_MAX,
            lines: 0,
            disposition: None,
            media: None,
            veil: None,
        }
    }

    /// Takes bytes up to the end of a line. Gives how many that are, and the head if the line was the empty one.
    pub(super) fn push(&mut self, rest: &[u8]) -> Result<(usize, Option<Head>), Fault> {
        let rest = rest.get(..self.left).unwrap_or(rest);
        let taken = memchr(b'\n', rest).map_or(rest.len(), |lf| lf + 1);
        self.line.extend_from_slice(&rest[..taken]);
        self.left -= taken;
        if self.line.ends_with(b"\n") {
            let line = mem::take(&mut self.line);
            if self.take_line(&line)? {
                return self.complete().map(|head| (taken, Some(head)));
            }
            self.line_at += line.len() as u64;
        }
        if self.left == 0 {
            return Err(syntax("the head of a part is too long", self.line_at + self.line.len() as u64));
        }
        Ok((taken, None))
    }

    /// Whether this is the empty line.
    fn take_line(&mut self, line: &[u8]) -> Result<bool, Fault> {
        let text = line.strip_suffix(b"\r\n").unwrap_or(line);
        if let Some(at) = text.iter().position(|&byte| byte.is_ascii_control() && byte != b'\t') {
            let reason = match text[at] {
                b'\n' => "a LF without its CR in the head of a part",
                b'\r' => "a CR without its LF in the head of a part",
                _ => "a control byte in the head of a part",
            };
            return Err(syntax(reason, self.line_at + at as u64));
        }
        let Some(&first) = text.first() else { return Ok(true) };
        if is_blank(first) {
            return Err(ambiguous("a folded header line", self.line_at));
        }
        if self.lines == HEADERS_MAX {
            return Err(syntax("too many header lines in a part", self.line_at));
        }
        self.lines += 1;
        let colon = memchr(b':', text).ok_or_else(|| syntax("a header line without a colon", self.line_at))?;
        let (name, value) = (&text[..colon], text[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(syntax("a header name is not a token", self.line_at));
        }
        self.take_header(name, value)?;
        Ok(false)
    }

    fn take_header(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        match name.to_ascii_lowercase().as_slice() {
            b"content-disposition" => {
                let disposition = Disposition::parse(value).map_err(|flaw| self.fault(flaw))?;
                if self.disposition.replace(disposition).is_some() {
                    return Err(ambiguous("a second Content-Disposition", self.line_at));
                }
            }
            b"content-type" => {
                if self.media.replace(value.to_vec()).is_some() {
                    return Err(syntax("a second Content-Type", self.line_at));
                }
                if !is_plain_text(value) {
                    self.veil = Some(ambiguous("a field in a charset that is not one of ASCII's", self.line_at));
                }
            }
            b"content-transfer-encoding" if !is_identity(value) => {
                self.veil = Some(ambiguous("a field with a transfer encoding", self.line_at));
            }
            _ => {}
        }
        Ok(())
    }

    fn fault(&self, flaw: Flaw) -> Fault {
        match flaw {
            Flaw::Syntax(reason) => syntax(reason, self.line_at),
            Flaw::Ambiguous(reason) => ambiguous(reason, self.line_at),
        }
    }

    fn complete(&mut self) -> Result<Head, Fault> {
        let disposition = self.disposition.take();
        let Disposition { name, filename } =
            disposition.ok_or_else(|| syntax("a part without a Content-Disposition", self.line_at))?;
        let media = self.media.take().and_then(|media| String::from_utf8(media).ok());
        let media = media.filter(|media| !media.is_empty() && media.len() <= MEDIA_BYTES_MAX);
        let media = media.filter(|media| media.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
        Ok(Head { name, filename, media, veil: self.veil.take() })
    }
}

/// Without a charset, or with one in which a model is called the same.
fn is_plain_text(content_type: &[u8]) -> bool {
    let (_, mut params) = Params::split(content_type, is_token);
    params
        .all(|param| param.is_ok_and(|param| !param.name.eq_ignore_ascii_case(b"charset") || keeps_ascii(param.value)))
}

fn is_identity(encoding: &[u8]) -> bool {
    ["7bit", "8bit", "binary"].iter().any(|name| encoding.eq_ignore_ascii_case(name.as_bytes()))
}
