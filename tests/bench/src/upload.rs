//! The form that everybody uploads, and the provider's receipt for it. The boundary says which receipt is wanted:
//! it comes through every proxy, and none has to know it.

use crate::client::Connection;
use crate::head;
use crate::speech::CLIENT_KEY;
use sha2::{Digest, Sha256};
use std::io;
use std::iter;
use std::net::SocketAddr;

/// The name under which clients ask for a transcription; aulos alone replaces it.
pub const MODEL: &str = "scribe";
/// The same model, of whose uploads nothing is kept to be sent again.
pub const STREAMED_MODEL: &str = "scribe-streamed";
/// What the provider calls both.
pub const PROVIDER_MODEL: &str = "whisper-1";

const PATH: &str = "/v1/audio/transcriptions";
/// As clients send them that read a file while they send it.
const PIECE_BYTES: usize = 64 * 1024;

/// Where the model stands, and how the body's end is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    ModelFirst,
    FileFirst,
    FileFirstChunked,
}

impl Layout {
    pub const ALL: [Self; 3] = [Self::ModelFirst, Self::FileFirst, Self::FileFirstChunked];

    pub fn name(self) -> &'static str {
        match self {
            Self::ModelFirst => "model first",
            Self::FileFirst => "file first",
            Self::FileFirstChunked => "file first, chunked",
        }
    }
}

/// What the provider writes on its receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The number of bytes, which costs nothing.
    Count,
    /// The hash of the bytes too.
    Hash,
}

impl Wanted {
    fn boundary(self) -> &'static str {
        match self {
            Self::Count => "bench-form-that-is-counted",
            Self::Hash => "bench-form-that-is-hashed",
        }
    }
}

/// What was taken of a body.
pub struct Receipt {
    bytes: u64,
    hash: Option<Sha256>,
}

impl Receipt {
    fn new(wanted: Wanted) -> Self {
        Self { bytes: 0, hash: (wanted == Wanted::Hash).then(Sha256::new) }
    }

    /// The one that the head of an upload asks for. None: it is no upload.
    pub fn asked(head: &[u8]) -> Option<Self> {
        let kind = head::field(head, "content-type")?.strip_prefix("multipart/form-data")?;
        let wanted = [Wanted::Count, Wanted::Hash].into_iter().find(|wanted| kind.contains(wanted.boundary()))?;
        Some(Self::new(wanted))
    }

    pub fn see(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(piece);
        }
    }

    /// As a transcription.
    pub fn json(self) -> String {
        let hash: String = self
            .hash
            .map(|hash| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
            .unwrap_or_default();
        format!(r#"{{"text":"{} bytes {hash}","usage":{{"type":"duration","seconds":1}}}}"#, self.bytes)
    }
}

/// One upload: made while it is sent, and always the same.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    pub layout: Layout,
    pub model: &'static str,
    pub file_bytes: usize,
    pub wanted: Wanted,
}

impl Upload {
    /// The provider's answer, if this is what it has been sent.
    pub fn receipt(self) -> String {
        let mut receipt = Receipt::new(self.wanted);
        self.body().for_each(|piece| receipt.see(&piece));
        receipt.json()
    }

    /// The whole of it, as it is sent.
    pub fn request(self) -> Vec<u8> {
        self.wire().collect::<Vec<_>>().concat()
    }

    /// Sends it and hears whether it arrived.
    ///
    /// # Errors
    ///
    /// The connection's, or that the answer is another than the `receipt` expected.
    pub async fn deliver(self, target: SocketAddr, receipt: &str) -> io::Result<()> {
        let mut begun = self.begin(target).await?;
        begun.end(receipt).await
    }

    /// Sends all but the last piece: the body cannot have ended for anybody.
    pub async fn begin(self, target: SocketAddr) -> io::Result<Begun> {
        let mut connection = Connection::open(target).await?;
        let mut last = Vec::new();
        for piece in self.wire() {
            if connection.send(&last).await.is_err() {
                // Who refuses an upload may have said why before it hung up.
                return Ok(Begun { connection, last: Vec::new() });
            }
            last = piece;
        }
        Ok(Begun { connection, last })
    }

    fn wire(self) -> impl Iterator<Item = Vec<u8>> {
        let chunked = self.layout == Layout::FileFirstChunked;
        let framed = self.body().map(move |piece| {
            if chunked { [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat() } else { piece }
        });
        let end = chunked.then(|| b"0\r\n\r\n".to_vec());
        iter::once(self.head().into_bytes()).chain(framed).chain(end)
    }

    fn head(self) -> String {
        let framing = match self.layout {
            Layout::FileFirstChunked => "Transfer-Encoding: chunked".to_owned(),
            _ => format!("Content-Length: {}", self.opening().len() + self.file_bytes + self.closing().len()),
        };
        let boundary = self.wanted.boundary();
        format!(
            "POST {PATH} HTTP/1.1\r\nHost: bench.test\r\nAuthorization: Bearer {CLIENT_KEY}\r\n\
             Content-Type: multipart/form-data; boundary={boundary}\r\n{framing}\r\n\r\n"
        )
    }

    fn body(self) -> impl Iterator<Item = Vec<u8>> {
        let file =
            (0..self.file_bytes).step_by(PIECE_BYTES).map(move |at| sound(at, PIECE_BYTES.min(self.file_bytes - at)));
        iter::once(self.opening().into_bytes()).chain(file).chain(iter::once(self.closing().into_bytes()))
    }

    fn opening(self) -> String {
        let file = format!(
            "--{}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"talk.mp3\"\r\n\
             Content-Type: audio/mpeg\r\n\r\n",
            self.wanted.boundary()
        );
        if self.layout == Layout::ModelFirst { self.field() + &file } else { file }
    }

    fn closing(self) -> String {
        let field = if self.layout == Layout::ModelFirst { String::new() } else { self.field() };
        format!("\r\n{field}--{}--\r\n", self.wanted.boundary())
    }

    fn field(self) -> String {
        let (boundary, model) = (self.wanted.boundary(), self.model);
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n")
    }
}

/// An upload whose last piece has not been sent.
pub struct Begun {
    connection: Connection,
    last: Vec<u8>,
}

impl Begun {
    /// Sends the rest and hears whether all of it arrived.
    pub async fn end(&mut self, receipt: &str) -> io::Result<()> {
        let (status, answer) = self.connection.fetch(&self.last).await?;
        if status == 200 && answer == receipt.as_bytes() {
            return Ok(());
        }
        let answer = String::from_utf8_lossy(&answer[..answer.len().min(400)]);
        Err(io::Error::other(format!("an upload was answered {status}: {answer}, and not {receipt}")))
    }
}

/// Bytes as of compressed sound: any, and in no other piece the same, so that one lost or doubled shows.
fn sound(at: usize, bytes: usize) -> Vec<u8> {
    let mut state = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut piece = Vec::with_capacity(bytes + 8);
    while piece.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.extend_from_slice(&state.to_le_bytes());
    }
    piece.truncate(bytes);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Body;
    use memchr::memmem;

    /// Three pieces, the last one short.
    const FILE_BYTES: usize = 2 * PIECE_BYTES + 77;

    fn upload(layout: Layout) -> Upload {
        Upload { layout, model: MODEL, file_bytes: FILE_BYTES, wanted: Wanted::Hash }
    }

    /// What a provider reads off the wire, and the receipt it writes.
    fn received(request: &[u8]) -> io::Result<Option<(Vec<u8>, String)>> {
        let head = head::end(request).map_or(request, |end| &request[..end]);
        let (mut body, mut data) = (Body::of(head), Vec::new());
        let used = body.push(&request[head.len()..], |piece| data.extend_from_slice(piece))?;
        let whole = body.is_done() && head.len() + used == request.len();
        Ok(Receipt::asked(head).filter(|_| whole).map(|mut receipt| {
            receipt.see(&data);
            (data, receipt.json())
        }))
    }

    #[test]
    fn what_is_sent_is_what_the_receipt_is_for() -> io::Result<()> {
        for layout in Layout::ALL {
            let upload = upload(layout);
            let (body, receipt) = received(&upload.request())?.unwrap_or_default();
            assert_eq!(receipt, upload.receipt(), "{layout:?}");
            let [model, file] = [&b"\r\n\r\nscribe\r\n--"[..], b"talk.mp3"].map(|part| memmem::find(&body, part));
            assert_eq!(model < file, layout == Layout::ModelFirst, "{layout:?}: {model:?}, {file:?}");
            assert!(model.is_some() && body.ends_with(b"--\r\n"), "{layout:?}");
            let lines = [b"\r\n", body.as_slice()].concat();
            let delimiters = ["", "\r\n--"].map(|before| format!("{before}{}", Wanted::Hash.boundary()));
            let counts = delimiters.map(|delimiter| memmem::find_iter(&lines, &delimiter).count());
            assert_eq!(counts, [3, 3], "{layout:?}: each at the beginning of a line, none in the sound");
        }
        Ok(())
    }

    #[test]
    fn a_receipt_is_for_one_upload_only() {
        let own = upload(Layout::FileFirst);
        let shorter = Upload { file_bytes: FILE_BYTES - 1, ..own };
        let renamed = Upload { model: PROVIDER_MODEL, ..own };
        for other in [shorter, renamed, upload(Layout::ModelFirst)] {
            assert_ne!(own.receipt(), other.receipt(), "{other:?}");
        }
        assert_eq!(own.receipt(), upload(Layout::FileFirstChunked).receipt());
        assert!(Receipt::asked(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n\r\n").is_none());
    }

    #[test]
    fn no_piece_of_sound_is_like_another() {
        let pieces: Vec<Vec<u8>> = upload(Layout::FileFirst).body().skip(1).take(3).collect();
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 77]);
        assert!(pieces[0] != pieces[1] && !pieces[0].starts_with(&pieces[2]) && !pieces[1].starts_with(&pieces[2]));
    }
}
