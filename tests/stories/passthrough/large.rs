//! A body far larger than any buffer: every byte arrives, and the gateway keeps none of them.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{PATH, ask, passing};
use crate::support::client::find;
use crate::support::form::{Framing, noise};
use crate::support::{Gateway, PATIENCE, soon};

const MIB: usize = 1 << 20;
const LENGTH: usize = 100_000_000;
const GROWTH_MAX: usize = 8 * MIB;

/// Bytes that can be told from any others at their place.
struct Pattern(Vec<u8>);

impl Pattern {
    /// Odd, so that no piece of a body stands where another one of the same size would.
    const PERIOD: usize = 4_000_037;

    fn new() -> Self {
        let once = noise(Self::PERIOD);
        Self([&once[..], &once[..MIB]].concat())
    }

    /// What stands at this place, at most so much.
    fn at(&self, place: usize, max: usize) -> &[u8] {
        let from = place % Self::PERIOD;
        &self.0[from..from + max.min(MIB).min(LENGTH - place)]
    }

    /// `piece` is what stands at this place.
    fn is_at(&self, place: usize, piece: &[u8]) {
        let mut seen = 0;
        while seen < piece.len() {
            let want = self.at(place + seen, piece.len() - seen);
            assert!(!want.is_empty() && piece[seen..].starts_with(want), "another byte after {}", place + seen);
            seen += want.len();
        }
    }
}

/// One end of a connection, which reads a head or a body without keeping what it has read.
struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    async fn more(&mut self) -> usize {
        let mut piece = vec![0; 256 * 1024];
        let read = self.stream.read(&mut piece).await.expect("readable");
        self.buffer.extend_from_slice(&piece[..read]);
        read
    }

    async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = find(&self.buffer, end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            assert_ne!(self.more().await, 0, "closed");
        }
    }

    async fn head(&mut self) -> (String, Framing) {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await).expect("text").to_lowercase();
        let framing = if head.contains("transfer-encoding: chunked") { Framing::Chunked } else { Framing::Declared };
        (head, framing)
    }

    /// Reads the whole pattern.
    async fn body(&mut self, pattern: &Pattern, framing: Framing) {
        let mut place = 0;
        while place < LENGTH || framing == Framing::Chunked {
            let size = match framing {
                Framing::Declared => LENGTH,
                Framing::Chunked => {
                    let line = String::from_utf8(self.until(b"\r\n").await).expect("text");
                    usize::from_str_radix(line.trim(), 16).expect("a size")
                }
            };
            let mut left = size;
            while left > 0 {
                if self.buffer.is_empty() {
                    assert_ne!(self.more().await, 0, "closed after {place}");
                }
                let take = left.min(self.buffer.len());
                pattern.is_at(place, &self.buffer[..take]);
                self.buffer.drain(..take);
                place += take;
                left -= take;
            }
            if framing == Framing::Chunked {
                assert_eq!(self.until(b"\r\n").await, b"\r\n");
                if size == 0 {
                    break;
                }
            }
        }
        assert_eq!(place, LENGTH);
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("taken");
    }

    /// Writes the whole pattern.
    async fn pour(&mut self, pattern: &Pattern, framing: Framing) {
        let mut place = 0;
        while place < LENGTH {
            let piece = pattern.at(place, 300_007);
            place += piece.len();
            self.write(&framing.piece(piece)).await;
        }
        self.write(framing.end()).await;
    }
}

/// A vendor that reads the pattern, or writes it: in chunks where the path says so.
async fn patient() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let pattern = Pattern::new();
                let mut wire = Reader { stream, buffer: Vec::new() };
                let (head, framing) = wire.head().await;
                if head.starts_with("get") {
                    let framing = if head.contains("chunks") { Framing::Chunked } else { Framing::Declared };
                    wire.write(format!("HTTP/1.1 200 OK\r\n{}\r\n", framing.line(LENGTH)).as_bytes()).await;
                    wire.pour(&pattern, framing).await;
                } else if head.starts_with("put") {
                    wire.body(&pattern, framing).await;
                    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nexact").await;
                } else {
                    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_not_kept() {
    let port = patient().await;
    let provider = super::provider("openai", "openai", port, super::ONE_KEY);
    let gateway = Gateway::spawn(passing().with(&provider)).await;
    let pattern = Pattern::new();
    // Buffers that every connection has are made before.
    for _ in 0..3 {
        assert_eq!(super::raw(&gateway, ask(&format!("HEAD {PATH}"), "", "")).await.status, 200);
    }
    let before = gateway.memory("VmRSS");
    for framing in Framing::BOTH {
        let open = async |first: &str, lines: &str| {
            let stream = TcpStream::connect(gateway.addr()).await.expect("connects");
            let mut client = Reader { stream, buffer: Vec::new() };
            client.write(&ask(first, lines, "")).await;
            client
        };
        let exchange = async {
            let mut client = open(&format!("PUT {PATH}"), &framing.line(LENGTH)).await;
            client.pour(&pattern, framing).await;
            assert!(client.head().await.0.starts_with("http/1.1 200"));
            assert_eq!(client.until(b"exact").await, b"exact");
            let chunks = if framing == Framing::Chunked { "chunks" } else { "length" };
            let mut client = open(&format!("GET {PATH}/{chunks}"), "").await;
            let (head, answered) = client.head().await;
            assert!(head.starts_with("http/1.1 200") && answered == framing, "{head}");
            client.body(&pattern, framing).await;
        };
        tokio::time::timeout(PATIENCE * 3, exchange).await.expect("it goes on");
        let peak = gateway.memory("VmHWM");
        assert!(peak < before + GROWTH_MAX, "{framing:?}: {} KiB more", (peak - before) / 1024);
    }
    let records = soon("the records", gateway.recorded("usage", 7)).await;
    for (record, (up, down)) in records[3..].iter().zip([(LENGTH, 5), (0, LENGTH), (LENGTH, 5), (0, LENGTH)]) {
        assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&up.into(), &down.into()), "{record}");
    }
    assert_eq!(gateway.metric("aulos_spool_bytes").await, 0);
}
