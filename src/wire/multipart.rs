//! A strict reader of one `multipart/form-data` body (RFC 7578) that arrives in pieces and is kept elsewhere.
//!
//! It says where the wanted parts stand and up to where the body is decided and may be passed on, and it refuses what
//! two parsers could read in two ways: a name written twice or hidden, a delimiter behind a bare LF, bytes around the
//! form. It keeps the text of wanted fields and no byte of a file, works in linear time, and knows no field by name.

mod boundary;
mod disposition;
mod head;
mod params;
mod search;

use std::mem;
use std::ops::Range;

pub use boundary::{Boundary, BoundaryFault};
pub use disposition::{FILENAME_BYTES_MAX, NAME_BYTES_MAX};
pub use head::{HEAD_BYTES_MAX, HEADERS_MAX, MEDIA_BYTES_MAX};

use head::Head;
use search::{LineEnd, Search};

/// How many parts a form may have.
pub const PARTS_MAX: usize = 1024;
/// How long the text of a wanted field may be.
pub const FIELD_BYTES_MAX: usize = 1024;

/// A wanted part whose head is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name, as it is written between the quotes.
    pub name: String,
    /// The name of its file, if it has one. Its bytes need not have been UTF-8: what was not is replaced.
    pub filename: Option<String>,
    /// Its Content-Type as it came, if that is printable ASCII of at most [`MEDIA_BYTES_MAX`].
    pub media: Option<String>,
    /// Where its value stands in the whole body. The end grows while it arrives.
    pub value: Range<u64>,
    /// The delimiter behind the value was seen.
    pub complete: bool,
    /// The bytes of a complete value, at most [`FIELD_BYTES_MAX`]. Empty where only the place was wanted.
    pub text: Vec<u8>,
}

/// What is kept of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing: it only passes.
    Nothing,
    /// Where it stands, however long its value is.
    Place,
    /// Its text as well, which has to be short. Of a part with a file name it is the place all the same.
    Text,
}

/// Why a body was refused. No reason holds a byte of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not a form, or goes past a limit.
    #[error("{reason} at byte {at}")]
    Syntax {
        /// What is wrong.
        reason: &'static str,
        /// The offset in the whole body: of the byte that is wrong, or of the line that it makes wrong.
        at: u64,
    },
    /// Two parsers could read two different forms in it.
    #[error("{reason} at byte {at}")]
    Ambiguous {
        /// What could be read in two ways.
        reason: &'static str,
        /// As for a syntax fault.
        at: u64,
    },
    /// The text of a wanted field goes past [`FIELD_BYTES_MAX`].
    #[error("the field {name:?} is longer than {max} bytes", max = FIELD_BYTES_MAX)]
    FieldTooLong {
        /// One of the wanted names.
        name: String,
    },
    /// It ended before its closing delimiter was complete.
    #[error("the form is cut off before its end")]
    Truncated,
}

/// Reads one form, fed piece by piece.
#[derive(Debug, Clone)]
pub struct Scanner {
    boundary: Boundary,
    /// CRLF, two dashes, the boundary.
    delimiter: Vec<u8>,
    want: fn(&str) -> Want,
    /// The offset of the next byte.
    at: u64,
    state: State,
    search: Search,
    /// Where the last delimiter begins, its CRLF included.
    delimiter_at: u64,
    /// How many parts have begun.
    begun: usize,
    head: head::Reader,
    /// The text of the field being read, and what of the delimiter behind it has come.
    field: Vec<u8>,
    parts: Vec<Part>,
    close_at: Option<u64>,
    settled: u64,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the first delimiter, after so many of its bytes.
    First(usize),
    /// After `--boundary`, and after one byte of what follows it.
    Boundary(Option<u8>),
    Head,
    Value(Want),
    /// After the closing delimiter, and after so many bytes of what may follow it.
    Closed(usize),
    /// The body has ended, and was a form.
    Done,
}

impl Scanner {
    /// Waits for the first byte of a form. `want` says by their names which parts [`Scanner::parts`] shows, and how
    /// much of them.
    pub fn new(boundary: &Boundary, want: fn(&str) -> Want) -> Self {
        let delimiter = [b"\r\n--", boundary.as_str().as_bytes()].concat();
        Self {
            boundary: boundary.clone(),
            want,
            at: 0,
            state: State::First(0),
            search: Search::new(&delimiter[1..]),
            delimiter,
            delimiter_at: 0,
            begun: 0,
            head: head::Reader::new(0),
            field: Vec::new(),
            parts: Vec::new(),
            close_at: None,
            settled: 0,
            fault: None,
        }
    }

    /// Takes the next bytes of the body. After a fault, every further call gives the same one.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        if self.fault.is_none() {
            self.fault = self.scan(chunk).err();
        }
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Ends the body: everything is settled, or the reason it is no form.
    pub fn finish(&mut self) -> Result<(), Fault> {
        match self.state {
            _ if self.fault.is_some() => {}
            State::Done | State::Closed(0 | 2 | 4) => {
                self.state = State::Done;
                self.settled = self.at;
            }
            _ => self.fault = Some(Fault::Truncated),
        }
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// The offset in the whole body up to which every byte is decided and may be passed on. It never falls.
    ///
    /// It stays before the delimiter of a wanted field until the value is complete, before that of any part until the
    /// head is, and before the closing one until [`Scanner::finish`]. In other values it goes along with the bytes that
    /// can no longer begin a delimiter.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// The wanted parts whose heads are complete, in the order they came.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Where the line of the closing delimiter begins, once it was seen: a further part is inserted here.
    pub fn close_at(&self) -> Option<u64> {
        self.close_at
    }

    /// The boundary of this form.
    pub fn boundary(&self) -> &Boundary {
        &self.boundary
    }

    fn scan(&mut self, mut rest: &[u8]) -> Result<(), Fault> {
        while let Some(&byte) = rest.first() {
            let taken = match self.state {
                State::Value(keep) => self.value(keep, rest)?,
                State::Head => self.head(rest)?,
                State::First(matched) => self.first(matched, byte)?,
                State::Boundary(before) => self.behind_boundary(before, byte)?,
                State::Closed(matched) => self.behind_close(matched, byte)?,
                State::Done => return Err(syntax("bytes behind the end of the form", self.at)),
            };
            rest = &rest[taken..];
            self.at += taken as u64;
        }
        Ok(())
    }

    /// The first delimiter begins the body, with or without its CRLF.
    fn first(&mut self, matched: usize, byte: u8) -> Result<usize, Fault> {
        let matched = if self.at == 0 && byte == b'-' { 2 } else { matched };
        if self.delimiter.get(matched) != Some(&byte) {
            return Err(syntax("the body does not begin with its boundary", self.at));
        }
        let matched = matched + 1;
        self.state = if matched == self.delimiter.len() { State::Boundary(None) } else { State::First(matched) };
        Ok(1)
    }

    /// One of the two bytes that tell whether a part begins or the form ends. No padding may stand before them.
    fn behind_boundary(&mut self, before: Option<u8>, byte: u8) -> Result<usize, Fault> {
        match (before, byte) {
            (None, b'\r' | b'-') => self.state = State::Boundary(Some(byte)),
            (Some(b'\r'), b'\n') => self.begin_part()?,
            (Some(b'-'), b'-') => {
                self.end_part();
                let line_len = self.delimiter.len() - b"\r\n".len() + b"-".len();
                self.close_at = Some(self.at - line_len as u64);
                self.state = State::Closed(0);
            }
            _ => return Err(syntax("neither a line end nor two dashes behind the boundary", self.at)),
        }
        Ok(1)
    }

    /// The delimiter behind a value is complete, and so is its part.
    fn end_part(&mut self) {
        self.settled = self.delimiter_at;
        if let Some(part) = self.parts.last_mut().filter(|part| !part.complete) {
            part.complete = true;
            part.text = mem::take(&mut self.field);
        }
    }

    fn begin_part(&mut self) -> Result<(), Fault> {
        self.end_part();
        if self.begun == PARTS_MAX {
            return Err(syntax("too many parts", self.delimiter_at));
        }
        self.begun += 1;
        self.head = head::Reader::new(self.at + 1);
        self.state = State::Head;
        Ok(())
    }

    fn head(&mut self, rest: &[u8]) -> Result<usize, Fault> {
        let (taken, head) = self.head.push(rest)?;
        if let Some(head) = head {
            self.begin_value(head, self.at + taken as u64)?;
        }
        Ok(taken)
    }

    fn begin_value(&mut self, head: Head, at: u64) -> Result<(), Fault> {
        let Head { name, filename, media, veil } = head;
        let keep = match (self.want)(&name) {
            Want::Text if filename.is_some() => Want::Place,
            want => want,
        };
        match (keep, veil) {
            (Want::Text, Some(fault)) => return Err(fault),
            (Want::Text, None) => {}
            (Want::Place | Want::Nothing, _) => self.settled = at,
        }
        if keep != Want::Nothing {
            self.parts.push(Part { name, filename, media, value: at..at, complete: false, text: Vec::new() });
        }
        self.search.restart();
        self.state = State::Value(keep);
        Ok(())
    }

    /// Bytes of a value, up to the delimiter behind it.
    fn value(&mut self, keep: Want, rest: &[u8]) -> Result<usize, Fault> {
        let taken = self.search.push(rest);
        let end = self.at + taken as u64 - self.search.undecided() as u64;
        match keep {
            Want::Text => self.grow_field(&rest[..taken], end)?,
            Want::Place | Want::Nothing => self.settled = end,
        }
        if let Some(part) = self.parts.last_mut().filter(|_| keep != Want::Nothing) {
            part.value.end = end;
        }
        if let Some(line_end) = self.search.found() {
            match line_end {
                LineEnd::CrLf => {}
                LineEnd::BareLf => return Err(ambiguous("a boundary behind a bare LF", end)),
                LineEnd::Head => return Err(ambiguous("a boundary directly behind the head of a part", end)),
            }
            self.delimiter_at = end;
            self.state = State::Boundary(None);
        }
        Ok(taken)
    }

    /// Adds bytes to the text of a field whose value is known to reach to `end`, if it may be so long.
    fn grow_field(&mut self, bytes: &[u8], end: u64) -> Result<(), Fault> {
        let Some(part) = self.parts.last_mut() else { return Ok(()) };
        let max = part.value.start + FIELD_BYTES_MAX as u64;
        if end > max {
            part.value.end = max;
            return Err(Fault::FieldTooLong { name: part.name.clone() });
        }
        self.field.extend_from_slice(bytes);
        if self.search.found().is_some() {
            self.field.truncate((end - part.value.start) as usize);
        }
        Ok(())
    }

    /// Up to two line ends may follow the closing delimiter.
    fn behind_close(&mut self, matched: usize, byte: u8) -> Result<usize, Fault> {
        if b"\r\n\r\n".get(matched) != Some(&byte) {
            return Err(syntax("bytes behind the closing boundary", self.at));
        }
        self.state = State::Closed(matched + 1);
        Ok(1)
    }
}

/// One more field, to be inserted at [`Scanner::close_at`]. The name holds no quote, backslash or control byte, and
/// the value no line end.
pub fn text_part(boundary: &Boundary, name: &str, value: &str) -> Vec<u8> {
    debug_assert!(
        !name.contains(|char: char| char.is_control() || matches!(char, '"' | '\\')),
        "the name needs escapes"
    );
    debug_assert!(!value.contains(['\r', '\n']), "the value could hold a delimiter");
    let boundary = boundary.as_str();
    format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").into_bytes()
}

fn syntax(reason: &'static str, at: u64) -> Fault {
    Fault::Syntax { reason, at }
}

fn ambiguous(reason: &'static str, at: u64) -> Fault {
    Fault::Ambiguous { reason, at }
}

#[cfg(test)]
mod tests;
