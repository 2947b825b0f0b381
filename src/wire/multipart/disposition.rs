//! The Content-Disposition of a part: its name, and that of its file.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use super::params::{Params, assignments, is_token};

/// How long the name of a part may be.
pub const NAME_BYTES_MAX: usize = 256;
/// How long the name of a file may be, as it is written.
pub const FILENAME_BYTES_MAX: usize = 1024;

/// What a Content-Disposition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disposition {
    pub(super) name: String,
    pub(super) filename: Option<String>,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    Syntax(&'static str),
    Ambiguous(&'static str),
}

use Flaw::{Ambiguous, Syntax};

impl Disposition {
    /// Reads `form-data; name="…"; filename="…"`.
    ///
    /// Parsers disagree on backslashes, on quotes and on which of two names counts. So the one name ends before the
    /// first backslash, and nothing else in the line looks like an assignment to a name, wherever it stands.
    pub(super) fn parse(value: &[u8]) -> Result<Self, Flaw> {
        let (kind, params) = Params::split(value, is_token);
        if !kind.eq_ignore_ascii_case(b"form-data") {
            return Err(Syntax("Content-Disposition is not form-data"));
        }
        let (mut name, mut filename, mut extended) = (None, None, None);
        let mut escapes = false;
        for param in params {
            let param = param.map_err(if value.contains(&b'\\') { Ambiguous } else { Syntax })?;
            escapes |= param.value.contains(&b'\\');
            match param.name.to_ascii_lowercase().as_slice() {
                b"name" if escapes => return Err(Ambiguous("a backslash in or before the name of a part")),
                b"name" => name = Some(param.value),
                b"filename" => filename = Some(param.value),
                b"filename*" => extended = Some(param.value),
                _ => {}
            }
        }
        if assignments(value, "name") != [name, filename, extended].iter().flatten().count() {
            return Err(Ambiguous("a name that can be read in more than one way"));
        }
        let name = read_name(name.ok_or(Syntax("a part without a name"))?)?;
        let extended = extended.map(read_extended).transpose()?;
        Ok(Self { name, filename: filename.map(read_filename).transpose()?.or(extended) })
    }
}

fn read_name(raw: &[u8]) -> Result<String, Flaw> {
    if raw.is_empty() || raw.len() > NAME_BYTES_MAX {
        return Err(Syntax("the name of a part is empty or too long"));
    }
    let name = str::from_utf8(raw).map_err(|_| Syntax("the name of a part is not UTF-8"))?;
    if name.contains(char::is_control) {
        return Err(Syntax("a control character in the name of a part"));
    }
    // Some take blanks off, or single quotes, some split at every semicolon, and some decode the words of RFC 2047.
    if name.trim() != name || name.contains(['\'', ';']) || name.contains("=?") {
        return Err(Ambiguous("a name that is not the same once it is trimmed, split or decoded"));
    }
    Ok(name.to_owned())
}

/// Only a quote and a backslash are ever escaped; other backslashes are letters of a path, and stay.
fn read_filename(raw: &[u8]) -> Result<String, Flaw> {
    bounded(raw)?;
    let mut filename = Vec::with_capacity(raw.len());
    let mut rest = raw.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        let escaped = rest.next_if(|next| byte == b'\\' && matches!(next, b'"' | b'\\'));
        filename.push(escaped.unwrap_or(byte));
    }
    Ok(lossy(&filename))
}

/// RFC 8187: charset, language and text in percent encoding, each behind an apostrophe.
fn read_extended(raw: &[u8]) -> Result<String, Flaw> {
    bounded(raw)?;
    let text = raw.splitn(3, |&byte| byte == b'\'').nth(2).ok_or(Syntax("an extended file name without a charset"))?;
    let text: Cow<'_, [u8]> = percent_decode(text).into();
    // Its other controls never arrive here: they were refused in the line itself.
    if text.iter().any(u8::is_ascii_control) {
        return Err(Syntax("a control byte in the name of a file"));
    }
    Ok(lossy(&text))
}

fn bounded(raw: &[u8]) -> Result<(), Flaw> {
    if raw.len() > FILENAME_BYTES_MAX { Err(Syntax("the name of a file is too long")) } else { Ok(()) }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
