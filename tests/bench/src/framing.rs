//! Where a message's body ends, as its head says: by a length, or by its last chunk (RFC 9112 §6, §7). The bytes are
//! handed on while they come, as nobody here has room for a long upload.

use crate::head;
use std::io;

/// Behind all chunks of a body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A piece of a body whose length nobody knows. It is not empty, or it would be the last one.
pub fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// A body that has not come to its end.
#[derive(Debug)]
pub struct Body {
    next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// So many bytes, and no more.
    Rest(u64),
    /// The line with a chunk's size, of which so much was read.
    Size(u64),
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// A line behind the last chunk; an empty one is the end.
    Trailer {
        empty: bool,
    },
    Done,
}

impl Body {
    /// The body that `head` announces.
    pub fn of(head: &[u8]) -> Self {
        let coding = head::field(head, "transfer-encoding");
        let next = if coding.is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            Next::Size(0)
        } else {
            Next::Rest(head::content_length(head).unwrap_or(0) as u64).or_done()
        };
        Self { next }
    }

    pub fn is_done(&self) -> bool {
        self.next == Next::Done
    }

    /// Calls `found` for the data in `bytes`, and says how many of them belong to this body.
    ///
    /// # Errors
    ///
    /// A size that is none. Chunk extensions are not known here.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let Next::Rest(left) | Next::Chunk(left) = self.next {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                found(&bytes[at..at + most]);
                at += most;
                self.next = self.next.after(most as u64);
            } else {
                self.next = self.next.line(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }
}

impl Next {
    fn or_done(self) -> Self {
        if self == Self::Rest(0) { Self::Done } else { self }
    }

    /// After so many bytes of data.
    fn after(self, bytes: u64) -> Self {
        match self {
            Self::Rest(left) => Self::Rest(left - bytes).or_done(),
            Self::Chunk(left) if left == bytes => Self::ChunkEnd,
            Self::Chunk(left) => Self::Chunk(left - bytes),
            other => other,
        }
    }

    /// After one byte of what stands between the data.
    fn line(self, byte: u8) -> io::Result<Self> {
        Ok(match (self, byte) {
            (Self::Size(_) | Self::ChunkEnd | Self::Trailer { .. }, b'\r') => self,
            (Self::Size(0), b'\n') => Self::Trailer { empty: true },
            (Self::Size(size), b'\n') => Self::Chunk(size),
            (Self::Size(size), _) => match char::from(byte).to_digit(16) {
                Some(digit) => Self::Size((size << 4) | u64::from(digit)),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk without a size")),
            },
            (Self::ChunkEnd, b'\n') => Self::Size(0),
            (Self::Trailer { empty: true }, b'\n') => Self::Done,
            (Self::Trailer { .. }, _) => Self::Trailer { empty: byte == b'\n' },
            _ => self,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &[u8] = b"POST /next";

    /// The data of a body cut into such pieces, and what is left of them for the next request.
    fn read(head: &[u8], pieces: &[&[u8]]) -> io::Result<(Vec<u8>, Vec<u8>, bool)> {
        let (mut body, mut data, mut left) = (Body::of(head), Vec::new(), Vec::new());
        for piece in pieces {
            let used = body.push(piece, |bytes| data.extend_from_slice(bytes))?;
            left.extend_from_slice(&piece[used..]);
        }
        Ok((data, left, body.is_done()))
    }

    #[test]
    fn a_body_ends_where_its_head_says_however_it_is_cut() -> io::Result<()> {
        const LENGTH: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\n";
        const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (label, head, body, want) in [
            ("by length", LENGTH, &b"0\r\nand\r\n0\r\n\r"[..], &b"0\r\nand\r\n0\r\n\r"[..]),
            ("in chunks", CHUNKED, b"5\r\nhello\r\n0000A\r\n\r\n0\r\n\r\nxyz\r\n0\r\n\r\n", b"hello\r\n0\r\n\r\nxyz"),
            ("with a trailer", CHUNKED, b"1\r\n!\r\n0\r\nDigest: none\r\nA: \r\n\r\n", b"!"),
            ("without data", CHUNKED, b"0\r\n\r\n", b""),
            ("without a body", b"GET / HTTP/1.1\r\n\r\n", b"", b""),
        ] {
            assert!(read(head, &[body])?.2, "{label}, and nothing behind it");
            let whole = [body, NEXT].concat();
            for cut in 0..=whole.len() {
                let (left, right) = whole.split_at(cut);
                assert_eq!(read(head, &[left, right])?, (want.to_vec(), NEXT.to_vec(), true), "{label}, cut at {cut}");
            }
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            assert_eq!(read(head, &bytes)?, (want.to_vec(), NEXT.to_vec(), true), "{label}, one byte at a time");
            if let Some(early) = body.len().checked_sub(1) {
                assert!(!read(head, &[&body[..early]])?.2, "{label}, without its last byte");
            }
        }
        assert!(read(CHUNKED, &[b"5\r\nhello\r\nx\r\n"]).is_err());
        let made = [&chunk(b"in two"), &chunk(&[b'!'; 300]), LAST_CHUNK, NEXT].concat();
        assert_eq!(read(CHUNKED, &[&made])?, ([&b"in two"[..], &[b'!'; 300]].concat(), NEXT.to_vec(), true));
        Ok(())
    }
}
