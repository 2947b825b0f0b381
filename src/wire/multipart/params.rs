//! The parameters of a header value (RFC 9110 §5.6.6), read without any leniency.

/// One `name=value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Param<'a> {
    pub(super) name: &'a [u8],
    /// Without its quotes; escapes stand as they came.
    pub(super) value: &'a [u8],
}

/// Reads `; name=value; name="value"`, where every backslash escapes what follows it. Nothing behind a fault has a
/// meaning.
#[derive(Debug)]
pub(super) struct Params<'a> {
    rest: &'a [u8],
    /// The bytes of which a value without quotes may consist.
    bare: fn(u8) -> bool,
}

impl<'a> Params<'a> {
    /// What a header value begins with, and the parameters behind it.
    pub(super) fn split(header: &'a [u8], bare: fn(u8) -> bool) -> (&'a [u8], Self) {
        let (first, rest) = split_while(header, |byte| byte != b';');
        (first.trim_ascii(), Self { rest, bare })
    }

    fn param(&mut self) -> Result<Param<'a>, &'static str> {
        let (name, rest) = split_while(self.rest, is_token);
        let value = rest.strip_prefix(b"=").filter(|_| !name.is_empty());
        let value = value.ok_or("a parameter is not a name, an equals sign and a value")?;
        if let Some(text) = value.strip_prefix(b"\"") {
            let end = closing_quote(text).ok_or("a quote is not closed")?;
            self.rest = &text[end + 1..];
            return Ok(Param { name, value: &text[..end] });
        }
        let (value, rest) = split_while(value, self.bare);
        self.rest = rest;
        if value.is_empty() { Err("a parameter has no value") } else { Ok(Param { name, value }) }
    }
}

impl<'a> Iterator for Params<'a> {
    type Item = Result<Param<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let before = self.rest.trim_ascii_start();
        self.rest = split_while(before, |byte| byte == b';' || is_blank(byte)).1;
        if self.rest.is_empty() {
            return None;
        }
        Some(if before.starts_with(b";") { self.param() } else { Err("no semicolon before a parameter") })
    }
}

/// How often something is assigned to a word that ends in `name`, in a parser's eyes or not: anywhere, in any case,
/// also in quotes and also as `name*`. Whatever a parser makes of quotes and escapes, it finds no more of them.
pub(super) fn assignments(header: &[u8], name: &str) -> usize {
    let assigned = |behind: &[u8]| matches!(behind.trim_ascii_start().first(), Some(b'=' | b'*'));
    let words = header.windows(name.len()).enumerate();
    words
        .filter(|(_, word)| word.eq_ignore_ascii_case(name.as_bytes()))
        .filter(|(at, _)| assigned(&header[at + name.len()..]))
        .count()
}

/// A charset in which ASCII is ASCII, from the few that forms are sent in. In UTF-16 or UTF-7 a field has another name.
pub(super) fn keeps_ascii(charset: &[u8]) -> bool {
    ["utf-8", "us-ascii", "iso-8859-1"].iter().any(|name| charset.eq_ignore_ascii_case(name.as_bytes()))
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn split_while(text: &[u8], wanted: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&byte| !wanted(byte)).unwrap_or(text.len()))
}
