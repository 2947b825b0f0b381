//! The file that everybody uploads, in a form or alone, and the provider's receipt for it. A word in the media type
//! says which receipt is wanted: it comes through every proxy, and none has to know it.

use crate::client::Connection;
use crate::framing;
use crate::head;
use crate::sound;
use crate::speech::{CLIENT_KEY, PASSED};
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

/// Where the model stands, and how the body's end is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    ModelFirst,
    FileFirst,
    FileFirstChunked,
    /// No form and no model: the file is the body, and the provider's own API is asked.
    Alone,
    AloneChunked,
}

impl Layout {
    pub const FORMS: [Self; 3] = [Self::ModelFirst, Self::FileFirst, Self::FileFirstChunked];
    pub const ALONE: [Self; 2] = [Self::Alone, Self::AloneChunked];

    pub fn name(self) -> &'static str {
        match self {
            Self::ModelFirst => "model first",
            Self::FileFirst => "file first",
            Self::FileFirstChunked => "file first, chunked",
            Self::Alone => "the file alone",
            Self::AloneChunked => "the file alone, chunked",
        }
    }

    fn is_chunked(self) -> bool {
        matches!(self, Self::FileFirstChunked | Self::AloneChunked)
    }

    fn is_form(self) -> bool {
        Self::FORMS.contains(&self)
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
    /// The boundary of a form, too.
    fn word(self) -> &'static str {
        match self {
            Self::Count => "bench-upload-that-is-counted",
            Self::Hash => "bench-upload-that-is-hashed",
        }
    }
}

/// What was taken of a body.
pub struct Receipt {
    bytes: u64,
    hash: Option<Sha256>,
}

impl Receipt {
    pub fn new(wanted: Wanted) -> Self {
        Self { bytes: 0, hash: (wanted == Wanted::Hash).then(Sha256::new) }
    }

    /// The one that the head of an upload asks for. None: it is no upload.
    pub fn asked(head: &[u8]) -> Option<Self> {
        let kind = head::field(head, "content-type")?;
        let wanted = [Wanted::Count, Wanted::Hash].into_iter().find(|wanted| kind.contains(wanted.word()))?;
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
        let chunked = self.layout.is_chunked();
        let framed = self.body().map(move |piece| if chunked { framing::chunk(&piece) } else { piece });
        let end = chunked.then(|| framing::LAST_CHUNK.to_vec());
        iter::once(self.head().into_bytes()).chain(framed).chain(end)
    }

    fn head(self) -> String {
        let framing = if self.layout.is_chunked() {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {}", self.opening().len() + self.file_bytes + self.closing().len())
        };
        let word = self.wanted.word();
        let (path, kind) = if self.layout.is_form() {
            ("/v1/audio/transcriptions".to_owned(), format!("multipart/form-data; boundary={word}"))
        } else {
            (format!("{PASSED}/v1/listen"), format!("audio/mpeg; receipt={word}"))
        };
        format!(
            "POST {path} HTTP/1.1\r\nHost: bench.test\r\nAuthorization: Bearer {CLIENT_KEY}\r\n\
             Content-Type: {kind}\r\n{framing}\r\n\r\n"
        )
    }

    fn body(self) -> impl Iterator<Item = Vec<u8>> {
        let [opening, closing] = [self.opening(), self.closing()]
            .map(|text| iter::once(text.into_bytes()).filter(|bytes| !bytes.is_empty()));
        opening.chain(sound::pieces(self.file_bytes)).chain(closing)
    }

    /// What stands before the file.
    fn opening(self) -> String {
        if !self.layout.is_form() {
            return String::new();
        }
        let file = format!(
            "--{}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"talk.mp3\"\r\n\
             Content-Type: audio/mpeg\r\n\r\n",
            self.wanted.word()
        );
        if self.layout == Layout::ModelFirst { self.field() + &file } else { file }
    }

    /// What stands behind it.
    fn closing(self) -> String {
        if !self.layout.is_form() {
            return String::new();
        }
        let field = if self.layout == Layout::ModelFirst { String::new() } else { self.field() };
        format!("\r\n{field}--{}--\r\n", self.wanted.word())
    }

    fn field(self) -> String {
        let (boundary, model) = (self.wanted.word(), self.model);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Body;
    use memchr::memmem;

    /// Three pieces, the last one short.
    const FILE_BYTES: usize = 128 * 1024 + 77;

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
        for layout in Layout::FORMS {
            let upload = upload(layout);
            let (body, receipt) = received(&upload.request())?.unwrap_or_default();
            assert_eq!(receipt, upload.receipt(), "{layout:?}");
            let [model, file] = [&b"\r\n\r\nscribe\r\n--"[..], b"talk.mp3"].map(|part| memmem::find(&body, part));
            assert_eq!(model < file, layout == Layout::ModelFirst, "{layout:?}: {model:?}, {file:?}");
            assert!(model.is_some() && body.ends_with(b"--\r\n"), "{layout:?}");
            let lines = [b"\r\n", body.as_slice()].concat();
            let delimiters = ["", "\r\n--"].map(|before| format!("{before}{}", Wanted::Hash.word()));
            let counts = delimiters.map(|delimiter| memmem::find_iter(&lines, &delimiter).count());
            assert_eq!(counts, [3, 3], "{layout:?}: each at the beginning of a line, none in the sound");
        }
        Ok(())
    }

    #[test]
    fn a_file_alone_is_all_that_is_sent() -> io::Result<()> {
        let file = sound::pieces(FILE_BYTES).collect::<Vec<_>>().concat();
        for layout in Layout::ALONE {
            let upload = upload(layout);
            assert_eq!(received(&upload.request())?, Some((file.clone(), upload.receipt())), "{layout:?}");
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
}
