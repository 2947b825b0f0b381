//! A provider that speaks at once: HTTP/1.1, kept alive, on a loopback port of the system's choice, which it
//! prints. What it says is chosen by the first word of the request's `input` (`aulos_bench::speech`). An upload it
//! reads as fast as it comes, and answers with a receipt (`aulos_bench::upload`). Over WebSocket it sends back what it
//! gets.
//!
//! ```text
//! upstream [ADDRESS [FAILS_EVERY]]
//! ```
//!
//! One in `FAILS_EVERY` requests for speech fails, with a 500 and a reset in turn. 0, as without it: none.

use aulos_bench::framing::{self, Body};
use aulos_bench::head;
use aulos_bench::rig::{ASKED_PATH, RECEIVED_PATH};
use aulos_bench::sound;
use aulos_bench::speech::{ENDLESS_BYTES, LONG_BYTES, Speech};
use aulos_bench::upload::Receipt;
use aulos_bench::websocket;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const READ_BYTES: usize = 16 * 1024;
/// Of an upload, at once.
const UPLOAD_READ_BYTES: usize = 256 * 1024;
const REQUEST_BYTES_MAX: usize = 8 << 20;
const CHUNKED_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n";
/// Speech of 32 kbit/s, after a first piece that a player wants in hand.
const PACED_FIRST_BYTES: usize = 8 * 1024;
const PACED_BYTES: usize = 1024;
const PACE: Duration = Duration::from_millis(250);

struct Provider {
    answers: Answers,
    /// Bytes of uploads, of all connections together.
    received: AtomicU64,
    /// Requests for speech, of all connections together.
    asked: AtomicU64,
    fails_every: u64,
}

/// What a provider does instead of what it is asked for.
enum Fault {
    Error,
    Reset,
}

/// The answers, made once: one write each.
struct Answers {
    small: Vec<u8>,
    clip: Vec<u8>,
    endless_head: Vec<u8>,
    error: Vec<u8>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let listener = TcpListener::bind(args.next().as_deref().unwrap_or("127.0.0.1:0")).await?;
    let fails_every = args.next().map_or(Ok(0), |every| every.parse()).map_err(io::Error::other)?;
    println!("listening on http://{}", listener.local_addr()?);
    let (received, asked) = (AtomicU64::new(0), AtomicU64::new(0));
    let provider = Arc::new(Provider { answers: Answers::new(), received, asked, fails_every });
    loop {
        let (stream, _) = listener.accept().await?;
        let provider = Arc::clone(&provider);
        // A proxy that goes away in the middle is what half of the measurements are about.
        tokio::spawn(async move { provider.serve(stream).await.ok() });
    }
}

impl Provider {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let answers = &self.answers;
        let mut bytes = Vec::with_capacity(READ_BYTES);
        while let Some(body_at) = head(&mut stream, &mut bytes).await? {
            if let Some(receipt) = Receipt::asked(&bytes[..body_at]) {
                self.take(&mut stream, &mut bytes, body_at, receipt).await?;
                continue;
            }
            if websocket::asked(&bytes[..body_at]) {
                bytes.drain(..body_at);
                return echo(&mut stream, bytes).await;
            }
            let end = body(&mut stream, &mut bytes, body_at).await?;
            let speech = Speech::asked(&bytes[body_at..end]);
            match (speech.and_then(|_| self.fault()), speech) {
                (Some(Fault::Error), _) => stream.write_all(&answers.error).await?,
                (Some(Fault::Reset), _) | (None, Some(Speech::Reset)) => return stream.set_zero_linger(),
                (None, Some(Speech::Small)) => stream.write_all(&answers.small).await?,
                (None, Some(Speech::Clip)) => stream.write_all(&answers.clip).await?,
                (None, Some(speech @ (Speech::Long | Speech::Chunked))) => long(&mut stream, speech).await?,
                (None, Some(Speech::Slow)) => return endless(&mut stream, answers).await,
                (None, Some(Speech::Paced)) => return paced(&mut stream, answers).await,
                (None, Some(Speech::Cut)) => {
                    stream.write_all(&answers.clip[..answers.clip.len() / 2]).await?;
                    return stream.set_zero_linger();
                }
                (None, None) => stream.write_all(&self.other(&bytes[..body_at])).await?,
            }
            bytes.drain(..end);
        }
        Ok(())
    }

    /// Counts one request for speech, and says how it is to fail. None: it is not.
    fn fault(&self) -> Option<Fault> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let failures = number.checked_div(self.fails_every)?;
        let fails = number.is_multiple_of(self.fails_every);
        fails.then_some(if failures.is_multiple_of(2) { Fault::Reset } else { Fault::Error })
    }

    /// Reads an upload to its end, keeps nothing of it, and gives the receipt.
    async fn take(
        &self,
        stream: &mut TcpStream,
        bytes: &mut Vec<u8>,
        body_at: usize,
        mut receipt: Receipt,
    ) -> io::Result<()> {
        let mut body = Body::of(&bytes[..body_at]);
        bytes.drain(..body_at);
        loop {
            let used = body.push(bytes, |piece| receipt.see(piece))?;
            self.received.fetch_add(used as u64, Ordering::Relaxed);
            bytes.drain(..used);
            if body.is_done() {
                return stream.write_all(&answer("application/json", receipt.json().as_bytes())).await;
            }
            bytes.reserve(UPLOAD_READ_BYTES);
            more(stream, bytes).await?;
        }
    }

    /// To what is no speech.
    fn other(&self, head: &[u8]) -> Vec<u8> {
        let path = head.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        let count = match path {
            _ if path == RECEIVED_PATH.as_bytes() => &self.received,
            _ if path == ASKED_PATH.as_bytes() => &self.asked,
            _ => return answer("application/json", br#"{"object":"list","data":[]}"#),
        };
        answer("text/plain", count.load(Ordering::Relaxed).to_string().as_bytes())
    }
}

impl Answers {
    fn new() -> Self {
        let whole = |speech: Speech| answer("audio/mpeg", &speech.body());
        Self {
            small: whole(Speech::Small),
            clip: whole(Speech::Clip),
            endless_head: answer_head("audio/mpeg", ENDLESS_BYTES),
            error: b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec(),
        }
    }
}

fn answer(kind: &str, body: &[u8]) -> Vec<u8> {
    [answer_head(kind, body.len()).as_slice(), body].concat()
}

fn answer_head(kind: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

async fn long(stream: &mut TcpStream, speech: Speech) -> io::Result<()> {
    if speech == Speech::Long {
        stream.write_all(&answer_head("audio/mpeg", LONG_BYTES)).await?;
        for piece in sound::pieces(LONG_BYTES) {
            stream.write_all(&piece).await?;
        }
        return Ok(());
    }
    stream.write_all(CHUNKED_HEAD).await?;
    for piece in sound::pieces(LONG_BYTES) {
        stream.write_all(&framing::chunk(&piece)).await?;
    }
    stream.write_all(framing::LAST_CHUNK).await
}

/// Begins with what was read behind the head.
async fn echo(stream: &mut TcpStream, mut bytes: Vec<u8>) -> io::Result<()> {
    stream.write_all(&websocket::agreement()).await?;
    bytes.reserve(READ_BYTES * 2);
    loop {
        stream.write_all(&bytes).await?;
        bytes.clear();
        more(stream, &mut bytes).await?;
    }
}

async fn endless(stream: &mut TcpStream, answers: &Answers) -> io::Result<()> {
    stream.write_all(&answers.endless_head).await?;
    let mut left = ENDLESS_BYTES;
    while left > 0 {
        let piece = &answers.clip[answers.clip.len() - left.min(64 * 1024)..];
        stream.write_all(piece).await?;
        left -= piece.len();
    }
    Ok(())
}

async fn paced(stream: &mut TcpStream, answers: &Answers) -> io::Result<()> {
    stream.write_all(&answers.endless_head).await?;
    stream.write_all(&answers.clip[answers.clip.len() - PACED_FIRST_BYTES..]).await?;
    loop {
        tokio::time::sleep(PACE).await;
        stream.write_all(&answers.clip[answers.clip.len() - PACED_BYTES..]).await?;
    }
}

/// Reads the head of a request, and gives where its body begins. None: the proxy has hung up between two.
async fn head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(body_at) = head::end(bytes) {
            return Ok(Some(body_at));
        }
        match more(stream, bytes).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && bytes.is_empty() => return Ok(None),
            read => read?,
        }
    }
}

/// Reads the body of a request, which is a small one, and gives where it ends.
async fn body(stream: &mut TcpStream, bytes: &mut Vec<u8>, body_at: usize) -> io::Result<usize> {
    let end = body_at + head::content_length(&bytes[..body_at]).unwrap_or(0);
    while bytes.len() < end {
        more(stream, bytes).await?;
    }
    Ok(end)
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    if bytes.len() > REQUEST_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match stream.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
