//! A provider that speaks at once: HTTP/1.1, kept alive, on a loopback port of the system's choice, which it
//! prints. What it says is chosen by the first word of the request's `input` (`aulos_bench::speech`).

use aulos_bench::head;
use aulos_bench::speech::{ENDLESS_BYTES, Speech};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const READ_BYTES: usize = 16 * 1024;
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Speech of 32 kbit/s, after a first piece that a player wants in hand.
const PACED_FIRST_BYTES: usize = 8 * 1024;
const PACED_BYTES: usize = 1024;
const PACE: Duration = Duration::from_millis(250);

/// The answers, made once: one write each.
struct Answers {
    small: Vec<u8>,
    clip: Vec<u8>,
    endless_head: Vec<u8>,
    other: Vec<u8>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let answers = Arc::new(Answers::new());
    loop {
        let (stream, _) = listener.accept().await?;
        let answers = Arc::clone(&answers);
        // A proxy that goes away in the middle is what half of the measurements are about.
        tokio::spawn(async move { serve(stream, &answers).await.ok() });
    }
}

impl Answers {
    fn new() -> Self {
        let whole = |speech: Speech| answer("audio/mpeg", speech.body_bytes(), &speech.body());
        let other = br#"{"object":"list","data":[]}"#;
        Self {
            small: whole(Speech::Small),
            clip: whole(Speech::Clip),
            endless_head: answer("audio/mpeg", ENDLESS_BYTES, &[]),
            other: answer("application/json", other.len(), other),
        }
    }
}

fn answer(kind: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(READ_BYTES);
    while let Some((body_at, end)) = request(&mut stream, &mut bytes).await? {
        match Speech::asked(&bytes[body_at..end]) {
            Some(Speech::Small) => stream.write_all(&answers.small).await?,
            Some(Speech::Clip) => stream.write_all(&answers.clip).await?,
            Some(Speech::Slow) => return endless(&mut stream, answers).await,
            Some(Speech::Paced) => return paced(&mut stream, answers).await,
            Some(Speech::Reset) => return stream.set_zero_linger(),
            Some(Speech::Cut) => {
                stream.write_all(&answers.clip[..answers.clip.len() / 2]).await?;
                return stream.set_zero_linger();
            }
            None => stream.write_all(&answers.other).await?,
        }
        bytes.drain(..end);
    }
    Ok(())
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

/// Reads one request: where its body begins and ends. None: the proxy has hung up between two.
async fn request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<(usize, usize)>> {
    loop {
        if let Some(body_at) = head::end(bytes) {
            let end = body_at + head::content_length(&bytes[..body_at]).unwrap_or(0);
            if bytes.len() >= end {
                return Ok(Some((body_at, end)));
            }
        }
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}
