//! What arrives leaves at once, both ways, and connections stay usable behind it.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::{ONE_KEY, PATH, ask, conf, echo, passing, provider, sized};
use crate::support::client::find;
use crate::support::form::Framing;
use crate::support::{Gateway, KEY, Vendor, soon};

/// A vendor that sends a piece of its answer each time it is told to.
async fn told(gate: &Arc<Semaphore>) -> Vendor {
    let gate = Arc::clone(gate);
    Vendor::start(move |request, mut wire| {
        let gate = Arc::clone(&gate);
        async move {
            let (status, media) = (request.header("x-say")?.to_owned(), request.header("x-media")?.to_owned());
            let framing = request.header("x-framing")?.to_owned();
            let whole: usize = PIECES.iter().map(|piece| piece.len()).sum();
            let length = match framing.as_str() {
                "length" => Framing::Declared.line(whole),
                "chunked" => Framing::Chunked.line(whole),
                _ => String::new(),
            };
            let framing_of = if framing == "chunked" { Framing::Chunked } else { Framing::Declared };
            wire.write(format!("HTTP/1.1 {status}\r\n{media}\r\n{length}\r\n")).await;
            for piece in PIECES {
                gate.acquire().await.expect("open").forget();
                wire.write(framing_of.piece(piece.as_bytes())).await;
            }
            wire.write(framing_of.end()).await;
            (framing != "closed").then_some(wire)
        }
    })
    .await
}

const PIECES: [&str; 5] = ["<1>", "<2>", "<3>", "<4>", "<5>"];

/// The next piece is sent only when the client has the one before it.
#[tokio::test]
async fn an_answer_leaves_as_it_arrives() {
    let gate = Arc::new(Semaphore::new(0));
    let vendor = told(&gate).await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for framing in ["length", "chunked", "closed"] {
        for (status, media) in [
            ("200 OK", "Content-Type: audio/mpeg\r\n"),
            ("200 OK", "Content-Type: text/event-stream\r\n"),
            ("200 OK", "Content-Type: application/json\r\n"),
            ("200 OK", ""),
            ("206 Partial", "Content-Type: audio/wav\r\n"),
            ("500 Odd", "Content-Type: text/plain\r\n"),
            ("404 Odd", ""),
        ] {
            let label = format!("{status}, {framing}, {media}");
            // The media type goes to the vendor in one line, as it is to come back.
            let lines = format!("X-Say: {status}\r\nX-Framing: {framing}\r\nX-Media: {}\r\n", media.trim_end());
            let lines = lines.replace("X-Media: \r\n", "X-Media: X-None: 1\r\n");
            let mut client = gateway.client().await;
            client.send(ask(&format!("GET {PATH}"), &lines, "")).await;
            let head = client.head().await;
            assert_eq!(head.status.to_string(), status[..3], "{label}: the head waits for nothing");
            for piece in PIECES {
                gate.add_permits(1);
                client.sees(piece).await;
            }
        }
    }
}

/// Takes an upload more slowly than anybody sends it, and answers in the middle: one byte less than it promised.
async fn sip(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut heard = Vec::new();
        while heard.len() < 100_000 {
            assert_ne!(stream.read_buf(&mut heard).await.expect("readable"), 0, "an upload");
        }
        let head = String::from_utf8_lossy(&heard).into_owned();
        let len = head.split("x-len: ").nth(1).and_then(|rest| rest.split('\r').next()).expect("named");
        let len: usize = len.parse().expect("a number");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", len + 1);
        stream.write_all(&[head.as_bytes(), &vec![b'a'; len]].concat()).await.expect("sent");
        while let Ok(1..) = stream.read(&mut [0; 512]).await {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Also while the client never stops sending.
#[tokio::test]
async fn an_answer_in_mid_upload_leaves_as_it_arrives() {
    let socket = TcpSocket::new_v4().expect("made");
    socket.set_recv_buffer_size(16 * 1024).expect("set");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let listener = socket.listen(8).expect("listens");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(sip(listener));
    let gateway = Gateway::spawn(passing().with(&provider("openai", "openai", port, ONE_KEY))).await;
    for len in [5, 1000, 4000, 7000, 20_000, 100_000] {
        let (mut reader, mut writer) = TcpStream::connect(gateway.addr()).await.expect("connects").into_split();
        let head = ask(&format!("POST {PATH}"), &format!("X-Len: {len}\r\nContent-Length: 1000000000\r\n"), "");
        writer.write_all(head.as_ref()).await.expect("sent");
        let sending = tokio::spawn(async move { while writer.write_all(&[0; 64 * 1024]).await.is_ok() {} });
        let mut heard = Vec::new();
        let body = |heard: &[u8]| find(heard, b"\r\n\r\n").map_or(0, |at| heard.len() - at - 4);
        let arrives = async {
            while body(&heard) < len {
                assert_ne!(reader.read_buf(&mut heard).await.expect("readable"), 0, "{len}: closed");
            }
        };
        soon(&format!("{len} bytes"), arrives).await;
        sending.abort();
    }
}

#[tokio::test]
async fn an_upload_leaves_as_it_arrives() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for framing in Framing::BOTH {
        for more in ["", "Idempotency-Key: 1\r\n", "Content-Type: application/json\r\n"] {
            let pieces = PIECES.map(|piece| format!("{piece}{more}"));
            let whole = pieces.concat();
            let mut client = gateway.client().await;
            client.send(ask(&format!("POST {PATH}"), &format!("{more}{}", framing.line(whole.len())), "")).await;
            let (last, before) = pieces.split_last().expect("some");
            for piece in before {
                client.send(framing.piece(piece.as_bytes())).await;
                vendor.hears(piece).await;
            }
            let answer = client.send(framing.piece(last.as_bytes())).await.send(framing.end()).await.answer().await;
            assert_eq!((answer.status, answer.text()), (200, whole), "{framing:?} {more}");
        }
    }
}

/// One connection to the gateway, one to the provider, whatever was asked on it before; but a body that a provider may
/// not read, of a method that has none as a rule, is the last thing on its connection.
#[tokio::test]
async fn connections_stay_usable() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let mut client = gateway.client().await;
    for n in 0..4 {
        for method in ["POST", "DELETE", "GET", "PROPFIND"] {
            let body = format!("{method} {n}");
            let request = String::from_utf8(sized(&format!("{method} {PATH}"), "", &body)).expect("text");
            client.send(request.replacen("Connection: close\r\n", "", 1)).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.text()), (200, body.clone()), "{answer:?}");
            gateway.record_of("usage", &answer).await;
        }
    }
    let unread = vendor.requests().iter().filter(|request| request.header("connection") == Some("close")).count();
    assert_eq!((vendor.requests().len(), unread, vendor.connections()), (16, 12, 12));
}

/// Requests that a client sends without waiting for answers are each answered, in their order; or the connection ends, so
/// that the client can tell.
#[tokio::test]
async fn requests_sent_at_once_are_not_forgotten() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for (label, first, lines) in [("no body", "", ""), ("a body", "first", "Content-Length: 5\r\n")] {
        let one = format!("POST {PATH} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n{first}");
        let mut client = gateway.client().await;
        client.send([one.as_bytes(), &sized(&format!("POST {PATH}"), "", "second")].concat()).await;
        let said = client.rest().await;
        let raws: Vec<_> = memchr::memmem::find_iter(&said, "HTTP/1.1 200").collect();
        let is_whole = raws.len() == 2 && said.ends_with(b"second");
        let is_closed = raws.len() == 1 && said.ends_with(first.as_bytes());
        assert!(is_whole || is_closed, "{label}: {}", said.escape_ascii());
    }
}
