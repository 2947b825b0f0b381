//! A strict lint for the raw bytes of an HTTP/1.x request head, run before a lenient parser sees them.
//!
//! It promises: what two HTTP parsers could read in two ways is refused, with the reason; what it accepts has one
//! request line, one meaning for its length, and at most one Host. It owns no socket and copies no byte: the ranges
//! it gives are offsets in the caller's buffer, and the bytes are handed on as they came.
//!
//! Bytes are judged in their order and the first fault is the answer, so the verdict never depends on how the network
//! cut them. A byte that may not stand where it stands is refused when it arrives, a line when it is complete, a size
//! when it is passed; what only the whole head can tell (a missing Host, a body after `Upgrade`) at its empty line.

use std::net::Ipv6Addr;
use std::ops::Range;
use std::str;

/// Bytes of a whole head, its empty line included.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header lines in a head.
pub const FIELDS_MAX: usize = 100;
/// Bytes of the request target.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a method: none that is registered comes near.
pub const METHOD_BYTES_MAX: usize = 32;

/// How large a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub head_bytes_max: usize,
    pub fields_max: usize,
    pub target_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes_max: HEAD_BYTES_MAX, fields_max: FIELDS_MAX, target_bytes_max: TARGET_BYTES_MAX }
    }
}

/// A head that passed. Ranges are offsets in the buffer that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head, its empty line included: what follows is body.
    pub len: usize,
    pub method: Range<usize>,
    pub target: Range<usize>,
    /// 0 or 1.
    pub version_minor: u8,
    pub body: Body,
    /// The client waits for a 100 before it sends its body. Never on HTTP/1.0 (RFC 9110 §10.1.1).
    pub expect_continue: bool,
    /// The connection ends after the answer.
    pub close: bool,
    /// The client offers to speak something else. Never on HTTP/1.0 (RFC 9110 §7.8).
    pub upgrade: bool,
}

/// What follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Neither length nor coding was declared: a request then has no body (RFC 9112 §6.3).
    None,
    /// As declared, which may be 0.
    Length(u64),
    Chunked,
}

/// A head that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// The method, if it was a token and its end was seen.
    pub method: Option<Range<usize>>,
    /// The target, if it was clean ASCII and its end was seen; its form may be the fault.
    pub target: Option<Range<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Not HTTP/1.x as we accept it, and why.
    Invalid(&'static str),
    /// What there is too much of.
    HeadTooLarge(&'static str),
    TargetTooLong,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// One that a gateway must not forward.
    Method(&'static str),
    /// A `Transfer-Encoding` other than exactly `chunked`.
    UnknownCoding,
}

use FaultKind::Invalid;

/// Finds the end of a head while it arrives, and lints it on the way.
///
/// It remembers how far it has looked: a byte is scanned once and a line linted once, so the cost is linear however
/// the bytes come.
/// One reader serves one head: once it has given a head or a fault it is spent.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    place: Place,
    /// Everything before this offset was looked at.
    at: usize,
    /// Where the current part (method, target, version, name or value) began.
    from: usize,
    /// The last byte was a CR.
    cr: bool,
    method: Option<Range<usize>>,
    target: Option<Range<usize>>,
    /// The authority inside a target in absolute form.
    authority: Option<Range<usize>>,
    version_minor: u8,
    name: Range<usize>,
    fields: Fields,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Method,
    Target,
    Version,
    LineStart,
    Name,
    Value,
}

impl Reader {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            place: Place::Method,
            at: 0,
            from: 0,
            cr: false,
            method: None,
            target: None,
            authority: None,
            version_minor: 1,
            name: 0..0,
            fields: Fields::default(),
        }
    }

    /// Takes everything received so far of this head, which only ever grows. `None`: more is needed.
    pub fn look(&mut self, buf: &[u8]) -> Result<Option<Head>, Fault> {
        self.scan(buf).map_err(|kind| Fault { kind, method: self.method.clone(), target: self.target.clone() })
    }

    fn scan(&mut self, buf: &[u8]) -> Result<Option<Head>, FaultKind> {
        let buf = buf.get(..self.limits.head_bytes_max).unwrap_or(buf);
        loop {
            self.skip_plain(buf)?;
            let Some(&byte) = buf.get(self.at) else { break };
            if let Some(head) = self.step(buf, byte)? {
                return Ok(Some(head));
            }
            self.at += 1;
        }
        // Full and still without an end: one more byte cannot help.
        if self.at >= self.limits.head_bytes_max {
            return Err(FaultKind::HeadTooLarge("too many bytes"));
        }
        Ok(None)
    }

    /// Runs over the bytes that mean nothing more where they stand.
    fn skip_plain(&mut self, buf: &[u8]) -> Result<(), FaultKind> {
        let class = match self.place {
            _ if self.cr => return Ok(()),
            Place::LineStart => return Ok(()),
            Place::Method | Place::Name => TOKEN,
            Place::Target | Place::Version => TARGET,
            Place::Value => TEXT,
        };
        let rest = buf.get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|&byte| !is(class, byte)).unwrap_or(rest.len());
        match self.place {
            Place::Method if self.at - self.from > METHOD_BYTES_MAX => Err(Invalid("the method is too long")),
            Place::Target if self.at - self.from > self.limits.target_bytes_max => Err(FaultKind::TargetTooLong),
            _ => Ok(()),
        }
    }

    fn step(&mut self, buf: &[u8], byte: u8) -> Result<Option<Head>, FaultKind> {
        match byte {
            b'\n' if self.cr => return self.end_line(buf),
            _ if self.cr => return Err(Invalid("a CR without its LF")),
            b'\n' => return Err(Invalid("a LF without its CR")),
            // RFC 9112 §2.2 would have a server ignore one empty line here. We hand the bytes on as they are, and
            // not every parser behind us skips it: then its idea of where the head begins is not ours.
            b'\r' if self.at == 0 => return Err(Invalid("an empty line before the request line")),
            b'\r' => self.cr = true,
            b'\t' => self.turn(byte)?,
            _ if byte.is_ascii_control() => return Err(Invalid("a control byte")),
            _ => self.turn(byte)?,
        }
        Ok(None)
    }

    /// A byte that ends a part or begins one, or has no place where it stands.
    fn turn(&mut self, byte: u8) -> Result<(), FaultKind> {
        let part = self.from..self.at;
        match (self.place, byte) {
            (Place::Method, b' ') if !part.is_empty() => {
                self.method = Some(part);
                self.begin(Place::Target);
            }
            (Place::Method, _) => return Err(Invalid("the method is not a token")),
            (Place::Target, b' ') if !part.is_empty() => {
                self.target = Some(part);
                self.begin(Place::Version);
            }
            (Place::Target, b' ') => return Err(Invalid("the target is empty")),
            (Place::Target, _) => return Err(Invalid("the target has a byte that may not stand there")),
            (Place::Version, b' ') => return Err(Invalid("the request line does not have three parts")),
            (Place::Version, _) => return Err(Invalid("the version has a byte that may not stand there")),
            (Place::LineStart, b' ' | b'\t') => return Err(Invalid("a folded header line")),
            (Place::LineStart, _) if self.fields.count >= self.limits.fields_max => {
                return Err(FaultKind::HeadTooLarge("too many header lines"));
            }
            (Place::LineStart, b':') => return Err(Invalid("a header without a name")),
            (Place::LineStart, _) if is(TOKEN, byte) => {
                self.fields.count += 1;
                self.place = Place::Name;
                self.from = self.at;
            }
            (Place::Name, b':') => {
                self.name = part;
                self.begin(Place::Value);
            }
            (Place::Name, b' ' | b'\t') => return Err(Invalid("a space in a header name or before its colon")),
            (Place::LineStart | Place::Name, _) => return Err(Invalid("a header name is not a token")),
            (Place::Value, _) => {}
        }
        Ok(())
    }

    /// The next part begins after the byte that ended the last.
    fn begin(&mut self, place: Place) {
        self.place = place;
        self.from = self.at + 1;
    }

    /// The LF of a line is here, its CR stood before it.
    fn end_line(&mut self, buf: &[u8]) -> Result<Option<Head>, FaultKind> {
        let part = self.from..self.at.saturating_sub(1);
        match self.place {
            Place::Method => return Err(Invalid("the request line does not have three parts")),
            Place::Target if part.is_empty() => return Err(Invalid("the target is empty")),
            Place::Target => {
                // HTTP/0.9 names no version.
                self.target = Some(part);
                return Err(FaultKind::Version);
            }
            Place::Version => self.request_line(buf, part)?,
            Place::LineStart => return self.complete(buf).map(Some),
            Place::Name => return Err(Invalid("a header line without a colon")),
            Place::Value => self.fields.add(buf, &self.name, trimmed(buf, part))?,
        }
        self.cr = false;
        self.begin(Place::LineStart);
        Ok(None)
    }

    fn request_line(&mut self, buf: &[u8], version: Range<usize>) -> Result<(), FaultKind> {
        // The version first: the preface of HTTP/2 (`PRI * HTTP/2.0`) has a target of no form that we know.
        self.version_minor = match bytes(buf, &version) {
            b"HTTP/1.0" => 0,
            b"HTTP/1.1" => 1,
            _ => return Err(FaultKind::Version),
        };
        let method = self.method(buf);
        // Methods are case-sensitive, but not everyone behind us may know.
        if let Some(method) = ["TRACE", "CONNECT"].into_iter().find(|name| same(method, name)) {
            return Err(FaultKind::Method(method));
        }
        self.authority = self.target.as_ref().map_or(Ok(None), |target| authority(buf, target))?;
        Ok(())
    }

    fn method<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.method.as_ref().map_or(b"", |method| bytes(buf, method))
    }

    /// The empty line is here: what only the whole head can tell.
    fn complete(&mut self, buf: &[u8]) -> Result<Head, FaultKind> {
        let fields = &self.fields;
        let host = fields.host.as_ref().map(|host| bytes(buf, host));
        if host.is_none() && self.version_minor == 1 {
            return Err(Invalid("no Host"));
        }
        if let Some(authority) = self.authority.as_ref().map(|authority| bytes(buf, authority))
            // To the letter, as Pingora compares them.
            && host != Some(authority)
        {
            return Err(Invalid("the target names another host than Host"));
        }
        let body = self.body(buf)?;
        Ok(Head {
            len: self.at + 1,
            method: self.method.clone().unwrap_or_default(),
            target: self.target.clone().unwrap_or_default(),
            version_minor: self.version_minor,
            body,
            expect_continue: fields.expect && self.version_minor == 1,
            close: fields.close || (self.version_minor == 0 && !fields.keep_alive),
            upgrade: fields.upgrade && self.version_minor == 1,
        })
    }

    fn body(&self, buf: &[u8]) -> Result<Body, FaultKind> {
        let body = match self.fields.length {
            _ if self.fields.chunked => Body::Chunked,
            Some(length) => Body::Length(length),
            None => Body::None,
        };
        // RFC 9112 §6.1: faulty framing.
        if body == Body::Chunked && self.version_minor == 0 {
            return Err(Invalid("Transfer-Encoding on HTTP/1.0"));
        }
        // A body here has no meaning (RFC 9110 §9.3.1), and not every server reads it. With a plain length it is
        // passed all the same; nobody but a prober sends it chunked.
        if body == Body::Chunked && ["GET", "HEAD"].iter().any(|name| same(self.method(buf), name)) {
            return Err(Invalid("Transfer-Encoding with GET or HEAD"));
        }
        // Where the body ends and the other protocol begins is not the same place for everyone.
        if self.fields.switches && !matches!(body, Body::None | Body::Length(0)) {
            return Err(Invalid("Upgrade with a body"));
        }
        Ok(body)
    }
}

/// What the header lines said so far, as far as it bears on framing.
#[derive(Debug, Default)]
struct Fields {
    count: usize,
    host: Option<Range<usize>>,
    length: Option<u64>,
    chunked: bool,
    expect: bool,
    upgrade: bool,
    /// An upgrade that is more than an offer of HTTP/2, which some clients make with every request and which is
    /// ignored (RFC 9113 §3.1).
    switches: bool,
    close: bool,
    keep_alive: bool,
    /// Names in `Connection`, over all its lines.
    options: usize,
}

impl Fields {
    fn add(&mut self, buf: &[u8], name: &Range<usize>, at: Range<usize>) -> Result<(), FaultKind> {
        let (name, value) = (bytes(buf, name), bytes(buf, &at));
        match name.len() {
            4 if same(name, "host") => self.host(value, at),
            6 if same(name, "expect") => self.expect(value),
            7 if same(name, "upgrade") => {
                self.upgrade = true;
                self.switches |= !same(value, "h2c");
                Ok(())
            }
            10 if same(name, "connection") => self.connection(value),
            14 if same(name, "content-length") => self.content_length(value),
            17 if same(name, "transfer-encoding") => self.transfer_encoding(value),
            _ if looks_like(name, "contentlength") => Err(Invalid("a header that looks like Content-Length")),
            _ if looks_like(name, "transferencoding") => Err(Invalid("a header that looks like Transfer-Encoding")),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8], at: Range<usize>) -> Result<(), FaultKind> {
        if self.host.replace(at).is_some() {
            return Err(Invalid("more than one Host"));
        }
        host(value).ok_or(Invalid("Host is not a host and perhaps a port"))
    }

    /// RFC 9110 §10.1.1 knows one expectation. Others, and lists, are read differently from server to server, and
    /// whoever waits for a 100 that the other side never meant has lost the frame.
    fn expect(&mut self, value: &[u8]) -> Result<(), FaultKind> {
        if self.expect || !same(value, "100-continue") {
            return Err(Invalid("Expect is not exactly 100-continue"));
        }
        self.expect = true;
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), FaultKind> {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if !option.iter().all(|&byte| is(TOKEN, byte)) {
                return Err(Invalid("Connection is not a list of names"));
            }
            if END_TO_END.iter().any(|name| same(option, name)) {
                return Err(Invalid("Connection names a header that must reach the other end"));
            }
            self.options += usize::from(!option.is_empty());
            if self.options > OPTIONS_MAX {
                return Err(Invalid("Connection names too many headers"));
            }
            self.close |= same(option, "close");
            self.keep_alive |= same(option, "keep-alive");
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), FaultKind> {
        if self.chunked {
            return Err(Invalid(BOTH_FRAMINGS));
        }
        let length = length(value).ok_or(Invalid("Content-Length is not one plain number"))?;
        if self.length.replace(length).is_some() {
            return Err(Invalid("more than one Content-Length"));
        }
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), FaultKind> {
        if self.length.is_some() {
            return Err(Invalid(BOTH_FRAMINGS));
        }
        if self.chunked {
            return Err(Invalid("more than one Transfer-Encoding"));
        }
        if !same(value, "chunked") {
            return Err(FaultKind::UnknownCoding);
        }
        self.chunked = true;
        Ok(())
    }
}

const BOTH_FRAMINGS: &str = "Content-Length with Transfer-Encoding";

/// What a client may not have dropped on the way by naming it in `Connection`.
const END_TO_END: [&str; 12] = [
    "content-length",
    "transfer-encoding",
    "host",
    "authorization",
    "api-key",
    "x-api-key",
    "xi-api-key",
    "x-goog-api-key",
    "cookie",
    // These Pingora refuses, without an answer, once a provider has been connected to; and more names than a few.
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];
const OPTIONS_MAX: usize = 9;

/// A decimal number and nothing else. A leading zero makes it octal for some, and past `i64` some overflow.
fn length(value: &[u8]) -> Option<u64> {
    let plain = value == b"0" || (!value.starts_with(b"0") && value.iter().all(u8::is_ascii_digit));
    let number: i64 = str::from_utf8(value).ok().filter(|_| plain)?.parse().ok()?;
    u64::try_from(number).ok()
}

/// `host [":" port]` of RFC 3986 §3.2, without what a proxy could split or join at: no empty host or port, no comma,
/// no IPvFuture, no zone.
fn host(value: &[u8]) -> Option<()> {
    if let Some(literal) = value.strip_prefix(b"[") {
        let end = literal.iter().position(|&byte| byte == b']')?;
        let (address, rest) = literal.split_at(end);
        str::from_utf8(address).ok()?.parse::<Ipv6Addr>().ok()?;
        return port(rest.strip_prefix(b"]")?);
    }
    let end = value.iter().position(|&byte| byte == b':').unwrap_or(value.len());
    let (name, rest) = value.split_at(end);
    reg_name(name)?;
    port(rest)
}

fn reg_name(mut name: &[u8]) -> Option<()> {
    if name.is_empty() {
        return None;
    }
    while let Some((&byte, rest)) = name.split_first() {
        name = match byte {
            b'%' if rest.get(..2)?.iter().all(u8::is_ascii_hexdigit) => rest.get(2..)?,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=' => rest,
            _ if byte.is_ascii_alphanumeric() => rest,
            _ => return None,
        };
    }
    Some(())
}

/// Nothing, or a colon and a port.
fn port(rest: &[u8]) -> Option<()> {
    let Some(port) = rest.strip_prefix(b":") else { return rest.is_empty().then_some(()) };
    let digits = port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    str::from_utf8(port).ok().filter(|_| digits)?.parse::<u16>().ok().map(|_| ())
}

/// Where a target in absolute form names its host; `None` for one that is a path.
fn authority(buf: &[u8], target: &Range<usize>) -> Result<Option<Range<usize>>, FaultKind> {
    let text = bytes(buf, target);
    if text.starts_with(b"/") {
        return Ok(None);
    }
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| text.get(..scheme.len()).is_some_and(|start| same(start, scheme)));
    let found = scheme.and_then(|scheme| {
        let rest = text.get(scheme.len()..)?;
        let start = target.start + scheme.len();
        Some(start..start + rest.iter().position(|&byte| byte == b'/')?)
    });
    found.map(Some).ok_or(Invalid("the target is neither a path nor an http URL"))
}

/// Whether a header's name is, or may be taken for, one that says where a body ends.
pub fn is_framing(name: &[u8]) -> bool {
    looks_like(name, "contentlength") || looks_like(name, "transferencoding")
}

/// Whether a byte may stand in a target.
pub fn is_target(byte: u8) -> bool {
    is(TARGET, byte)
}

/// The same letters, whatever stands between them: some servers fold `_` and the like into `-`, or drop them.
fn looks_like(name: &[u8], letters: &str) -> bool {
    name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).eq(letters.bytes())
}

fn same(text: &[u8], name: &str) -> bool {
    text.eq_ignore_ascii_case(name.as_bytes())
}

/// A range without the spaces and tabs around it.
fn trimmed(buf: &[u8], range: Range<usize>) -> Range<usize> {
    let text = bytes(buf, &range);
    let end = range.start + text.trim_ascii_end().len();
    end - text.trim_ascii().len()..end
}

/// Ranges were found in this very buffer; a shorter one than before gives nothing instead of a panic.
fn bytes<'a>(buf: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    buf.get(range.clone()).unwrap_or_default()
}

/// RFC 9110 §5.6.2.
const TOKEN: u8 = 1;
/// 0x21 to 0x7E without `#`: a fragment is never sent (RFC 9112 §3.2).
const TARGET: u8 = 2;
/// RFC 9110 §5.5: VCHAR, SP, HTAB and obs-text.
const TEXT: u8 = 4;

/// Which classes a byte belongs to: one look-up a byte.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0u8;
    loop {
        let mut class = 0;
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        {
            class |= TOKEN;
        }
        // What RFC 3986 has no place for is refused here, before Pingora does so without a word.
        if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>' | b'`') {
            class |= TARGET;
        }
        if !byte.is_ascii_control() || byte == b'\t' {
            class |= TEXT;
        }
        classes[byte as usize] = class;
        if byte == u8::MAX {
            return classes;
        }
        byte += 1;
    }
}

fn is(class: u8, byte: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

#[cfg(test)]
mod tests;
