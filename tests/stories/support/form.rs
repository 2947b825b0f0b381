//! Forms with a file, byte for byte as clients send them.

use super::KEY;

pub(crate) const TRANSCRIBE: &str = "/v1/audio/transcriptions";
pub(crate) const BOUNDARY: &str = "------------------------0123456789abcdef";

/// A form under construction. Its parts stand in the order in which they are put in.
#[derive(Clone, Default)]
pub(crate) struct Form(Vec<u8>);

impl Form {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A field with a text.
    pub(crate) fn field(self, name: &str, text: &str) -> Self {
        self.part(&format!("Content-Disposition: form-data; name=\"{name}\""), text)
    }

    /// What is to be heard.
    pub(crate) fn file(self, sound: impl AsRef<[u8]>) -> Self {
        self.part("Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav", sound)
    }

    /// A part with these header lines.
    pub(crate) fn part(self, lines: &str, value: impl AsRef<[u8]>) -> Self {
        self.raw(format!("--{BOUNDARY}\r\n{lines}\r\n\r\n")).raw(value).raw("\r\n")
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// The body as far as it is here: without an end.
    pub(crate) fn open(self) -> Vec<u8> {
        self.0
    }

    /// The body with its end.
    pub(crate) fn close(self) -> Vec<u8> {
        self.raw(format!("--{BOUNDARY}--\r\n")).0
    }
}

/// The smallest form that is in order.
pub(crate) fn small(model: &str) -> Vec<u8> {
    Form::new().file("SOUND").field("model", model).close()
}

/// The head of a request with a form, the test's key and these lines.
pub(crate) fn head(target: &str, lines: &str) -> Vec<u8> {
    let media = format!("Content-Type: multipart/form-data; boundary={BOUNDARY}");
    format!("POST {target} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n{media}\r\n{lines}\r\n")
        .into_bytes()
}

/// How a client says how long its body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Declared,
    Chunked,
}

impl Framing {
    pub(crate) const BOTH: [Self; 2] = [Self::Declared, Self::Chunked];

    /// The header line for a body of so many bytes.
    pub(crate) fn line(self, length: usize) -> String {
        match self {
            Self::Declared => format!("Content-Length: {length}\r\n"),
            Self::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        }
    }

    /// A piece of a body as it goes over the wire. An empty one is nothing.
    pub(crate) fn piece(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Chunked if !bytes.is_empty() => {
                [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
            }
            _ => bytes.to_vec(),
        }
    }

    /// What stands behind the last piece.
    pub(crate) fn end(self) -> &'static [u8] {
        match self {
            Self::Declared => b"",
            Self::Chunked => b"0\r\n\r\n",
        }
    }

    /// A whole request with a form.
    pub(crate) fn request(self, target: &str, lines: &str, body: &[u8]) -> Vec<u8> {
        let mut request = head(target, &format!("{lines}{}", self.line(body.len())));
        for piece in body.chunks(50_000) {
            request.extend(self.piece(piece));
        }
        request.extend_from_slice(self.end());
        request
    }
}

/// What the chunks of a body hold.
pub(crate) fn dechunked(mut wire: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = super::client::find(wire, b"\r\n").expect("a size ends its line");
        let size = str::from_utf8(&wire[..line]).expect("a size is text");
        let size = usize::from_str_radix(size, 16).expect("a size is a number");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&wire[line + 2..][..size]);
        wire = &wire[line + 2 + size + 2..];
    }
}

/// Sound of every byte there is, always the same for its length.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}
