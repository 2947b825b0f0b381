//! WebSocket through passthrough: what a provider is asked, what its answer becomes, and every byte both ways until
//! one side, or the gateway, ends it.

mod bytes;
mod declined;
mod encrypted;
mod ends;
mod failing;
mod fast;
mod handshake;
mod limits;
mod plain;
mod refused;
mod secrets;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::support::client::find;
use super::support::vendor::Received;
use super::support::{Answer, Client, Conf, Gateway, KEY, Vendor, sha256, soon};

const REALTIME: &str = "/p/openai/v1/realtime?model=gpt-realtime";
/// What a client that offers WebSocket says of it (RFC 6455 §1.3).
const OFFER: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// What a vendor that agrees answers.
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
/// What clients mask with. It need not be secret here.
const MASK: Option<[u8; 4]> = Some(*b"MASK");
/// A Close frame's code for an end in order, and the one of the gateway's own.
const NORMAL: [u8; 2] = 1000_u16.to_be_bytes();
const GOING_AWAY: u16 = 1001;

/// A provider at a port, and a key that may pass anything through to it.
fn conf(port: u16) -> Conf {
    peers(&format!("base_url = \"http://127.0.0.1:{port}/v1\""))
}

/// The same, with a line of its own for where the provider is.
fn peers(place: &str) -> Conf {
    let provider = format!("[providers.openai]\nkind = \"openai\"\nkeys = [\"${{PROVIDER_KEY}}\"]\n{place}\n");
    let key = format!("[keys.test]\nsha256 = \"{}\"\npassthrough = true\n", sha256(KEY));
    Conf::new().with(&provider).keys(&key)
}

/// A head that offers WebSocket, with the test's key and these header lines.
fn asking(target: &str, lines: &str) -> String {
    bare(target, &format!("Authorization: Bearer {KEY}\r\n{lines}"))
}

/// The same without a key.
fn bare(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: aulos\r\n{OFFER}{lines}\r\n")
}

/// A vendor that has one answer for everything, then hears what still comes and closes.
async fn saying(answer: impl AsRef<[u8]> + Clone + Send + Sync + 'static) -> Vendor {
    Vendor::start(move |_, mut wire| {
        let answer = answer.clone();
        async move {
            wire.write(answer).await.linger().await;
            None
        }
    })
    .await
}

/// One request on a connection of its own: its answer, and that nothing follows it.
async fn ask(gateway: &Gateway, request: impl AsRef<[u8]>, label: &str) -> Answer {
    let mut client = gateway.client().await;
    let answer = client.send(request).await.answer().await;
    ends(&mut client, label).await;
    answer
}

/// The connection ends, and nothing more is said on it.
async fn ends(client: &mut Client, label: &str) {
    let rest = client.rest().await;
    assert!(rest.is_empty(), "{label}: {}", rest.escape_ascii());
}

/// One end of a connection, whose bytes a story writes and reads itself.
struct Line<S = TcpStream> {
    stream: S,
    /// Read, and not yet asked for.
    buffer: Vec<u8>,
}

impl Line {
    async fn connect(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(gateway.addr()).await.expect("connects");
        stream.set_nodelay(true).expect("set");
        Self::over(stream)
    }

    /// Ends the connection with a reset.
    fn reset(self) {
        self.stream.set_zero_linger().expect("set");
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("what is sent is taken", async {
            self.stream.write_all(bytes.as_ref()).await.expect("the other side is there");
            self.stream.flush().await.expect("the other side is there");
        })
        .await;
    }

    /// Says that nothing more will be sent, and goes on listening.
    async fn finish(&mut self) {
        self.stream.shutdown().await.expect("the other side is there");
    }

    /// The head of an answer. What follows it stays to be read.
    async fn answer(&mut self) -> Answer {
        let (first, headers) = self.head().await.expect("an answer");
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer { status: status.expect("a status line"), headers, body: Vec::new(), complete: false }
    }

    /// The head of a request. `None`: the connection ended before it did.
    async fn asked(&mut self) -> Option<Received> {
        let (first, headers) = self.head().await?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next()?, words.next()?);
        Some(Received { method, target, headers, body: Vec::new(), connection: 0 })
    }

    async fn head(&mut self) -> Option<(String, Vec<(String, String)>)> {
        let end = soon("a head", async {
            loop {
                match find(&self.buffer, b"\r\n\r\n") {
                    Some(end) => return Some(end + 4),
                    None if self.more().await == 0 => return None,
                    None => {}
                }
            }
        })
        .await?;
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("text");
        let mut lines = head.lines();
        let first = lines.next()?.to_owned();
        let pair =
            |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Some((first, lines.filter_map(pair).collect()))
    }

    /// Exactly so many bytes of what comes next.
    async fn next(&mut self, length: usize) -> Vec<u8> {
        self.exchange(&[], length).await
    }

    /// Reads to the end, be it in order or not.
    async fn rest(&mut self) -> Vec<u8> {
        soon("the end of the connection", async { while self.more().await > 0 {} }).await;
        std::mem::take(&mut self.buffer)
    }

    /// Writes `bytes` while it reads so many.
    async fn exchange(&mut self, bytes: &[u8], length: usize) -> Vec<u8> {
        let (mut from, mut to) = tokio::io::split(&mut self.stream);
        let buffer = &mut self.buffer;
        let say = async {
            to.write_all(bytes).await.expect("the other side is there");
            to.flush().await.expect("the other side is there");
        };
        let hear = async {
            while buffer.len() < length {
                let read = from.read_buf(buffer).await.unwrap_or(0);
                assert_ne!(read, 0, "ended after {} bytes of {length}", buffer.len());
            }
        };
        soon(&format!("{} bytes out and {length} in", bytes.len()), async { tokio::join!(say, hear) }).await;
        self.buffer.drain(..length).collect()
    }

    async fn more(&mut self) -> usize {
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0)
    }
}

/// A vendor whose connections a story serves itself.
struct Far {
    port: u16,
    calls: mpsc::UnboundedReceiver<(Received, Line)>,
}

impl Far {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let (call, calls) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let call = call.clone();
                tokio::spawn(async move {
                    let mut line = Line::over(stream);
                    if let Some(request) = line.asked().await {
                        call.send((request, line)).ok();
                    }
                });
            }
        });
        Self { port, calls }
    }

    /// The next request, and the connection to answer it on.
    async fn called(&mut self) -> (Received, Line) {
        soon("a request at the vendor", self.calls.recv()).await.expect("it listens")
    }
}

/// Both ends of a tunnel.
struct Tunnel {
    near: Line,
    far: Line,
    /// The answer to the handshake.
    answer: Answer,
}

impl Tunnel {
    /// A client that offers WebSocket, and a vendor that agrees.
    async fn open(gateway: &Gateway, vendor: &mut Far) -> Self {
        let mut near = Line::connect(gateway).await;
        near.send(asking(REALTIME, "")).await;
        let (_, mut far) = vendor.called().await;
        far.send(AGREED).await;
        let answer = near.answer().await;
        assert_eq!(answer.status, 101, "{answer:?}");
        Self { near, far, answer }
    }

    /// A frame each way arrives.
    async fn works(&mut self, label: &str) {
        let (up, down) = (frame(TEXT, label.as_bytes(), MASK), frame(TEXT, label.as_bytes(), None));
        self.near.send(&up).await;
        assert_eq!(self.far.next(up.len()).await, up, "{label}");
        self.far.send(&down).await;
        assert_eq!(self.near.next(down.len()).await, down, "{label}");
    }

    /// Its usage record, which agrees with the audit record about its end.
    async fn record(&self, gateway: &Gateway, end: &str, error: Option<&str>) -> Value {
        let usage = gateway.record_of("usage", &self.answer).await;
        let audit = gateway.record_of("audit", &self.answer).await;
        assert_eq!((&usage["end"], &audit["end"]), (&end.into(), &end.into()), "{audit}");
        assert_eq!(audit["error"], error.map_or(Value::Null, Value::from), "{audit}");
        assert_eq!((&usage["status"], &audit["status"]), (&101.into(), &101.into()), "{audit}");
        usage
    }
}

/// A whole frame (RFC 6455 §5.2).
fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = vec![0x80 | opcode];
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        length @ ..126 => out.push(masked | u8::try_from(length).expect("small")),
        length @ ..0x1_0000 => {
            out.push(masked | 126);
            out.extend(u16::try_from(length).expect("small").to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(mask.into_iter().flatten());
    let key = mask.unwrap_or_default();
    out.extend(payload.iter().zip(key.into_iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// What `bytes` say, which have to be one Close frame and nothing else: its code, its reason, and whether it is masked.
fn closing(bytes: &[u8]) -> (u16, String, bool) {
    let [first, length, rest @ ..] = bytes else { unreachable!("no frame: {}", bytes.escape_ascii()) };
    assert_eq!(*first, 0x80 | CLOSE, "{}", bytes.escape_ascii());
    let (key, payload) = if length & 0x80 == 0 { (&[0; 4][..], rest) } else { rest.split_at(4) };
    assert_eq!(usize::from(length & 0x7f), payload.len(), "{}", bytes.escape_ascii());
    let plain: Vec<u8> = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    let (code, reason) = plain.split_first_chunk().expect("a code");
    let reason = String::from_utf8(reason.to_vec()).expect("UTF-8");
    (u16::from_be_bytes(*code), reason, length & 0x80 != 0)
}

/// Bytes that look like nothing, others for each `seed`.
fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// `bytes` are these, and where they are not, that is what is shown of them.
fn same(bytes: &[u8], want: &[u8], label: &str) {
    let at = bytes.iter().zip(want).position(|(got, want)| got != want);
    assert!(bytes == want, "{label}: {} bytes for {}, other from {at:?} on", bytes.len(), want.len());
}
