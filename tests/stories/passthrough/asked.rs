//! What is asked reaches the provider byte for byte: every method, framing and header, path and query.

use bytes::Bytes;
use http::Method;

use super::{BODY, PATH, Raw, ask, conf, echo, lines, owned, raw, sized, sorted};
use crate::support::form::Framing;
use crate::support::gateway::scratch;
use crate::support::http2::{self, Begun, Http2, KNOWN, LISTEN, issue, pour};
use crate::support::vendor::Received;
use crate::support::{Gateway, KEY, PROVIDER_KEY, Vendor};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "x-Odd~!"];

/// Header lines of a client, all of which reach the provider as they are.
const ASKED: &[(&str, &str)] = &[
    ("User-Agent", "odd/1.0 (a; b) c"),
    ("Accept", "audio/*;q=0.5, */*"),
    ("Accept-Language", "de, en;q=0.1"),
    ("Cache-Control", "no-store"),
    ("Content-Encoding", "gzip"),
    ("Content-Language", "de"),
    ("Content-Type", "application/x-odd; a=\"b c\"; charset=latin1"),
    ("DNT", "1"),
    ("Depth", "infinity"),
    ("Destination", "http://elsewhere.example/x"),
    ("If-None-Match", "\"a\", W/\"b\""),
    ("Origin", "https://page.example"),
    ("Prefer", "respond-async"),
    ("Range", "bytes=0-5,7-"),
    ("Referer", "https://page.example/x"),
    ("Sec-Fetch-Mode", "cors"),
    ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("X-Custom", "two"),
    ("X-Custom", "one, two"),
    ("X-Empty", ""),
    ("X-Model", "model"),
    ("X-Request-Id", "the-clients-own"),
    ("X_Under.Score", "\"quoted\\\"\" (and) <odd> {text}"),
];

/// What belongs to one side alone, or is said anew.
const OWN: [&str; 6] =
    ["host", "authorization", "connection", "accept-encoding", "content-length", "transfer-encoding"];

/// How a client sends a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Nothing,
    Empty,
    Declared,
    /// In chunks of so many bytes.
    Chunked(usize),
    /// After it was asked for.
    Invited(Framing),
    /// By HTTP/1.0.
    Old,
}

impl Sending {
    const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Empty,
        Self::Declared,
        Self::Chunked(997),
        Self::Chunked(70_001),
        Self::Invited(Framing::Declared),
        Self::Invited(Framing::Chunked),
        Self::Old,
    ];

    fn framing(self) -> Option<Framing> {
        match self {
            Self::Nothing => None,
            Self::Chunked(_) | Self::Invited(Framing::Chunked) => Some(Framing::Chunked),
            _ => Some(Framing::Declared),
        }
    }

    fn body(self) -> &'static [u8] {
        if matches!(self, Self::Nothing | Self::Empty) { b"" } else { &BODY }
    }

    /// The body as it goes over the wire.
    fn wire(self) -> Vec<u8> {
        let size = if let Self::Chunked(size) = self { size } else { 50_000 };
        let Some(framing) = self.framing() else { return Vec::new() };
        let pieces = self.body().chunks(size).flat_map(|piece| framing.piece(piece));
        pieces.chain(framing.end().iter().copied()).collect()
    }
}

/// One request; gives the answer.
async fn send(gateway: &Gateway, method: &str, sending: Sending) -> Raw {
    let framing = sending.framing().map(|framing| framing.line(sending.body().len())).unwrap_or_default();
    let expect = if matches!(sending, Sending::Invited(_)) { "Expect: 100-continue\r\n" } else { "" };
    let head = ask(&format!("{method} {PATH}?a=%2f&b&&c=+"), &format!("{}{expect}{framing}", lines(ASKED)), "");
    let head = if sending == Sending::Old {
        String::from_utf8(head).expect("text").replacen("HTTP/1.1", "HTTP/1.0", 1).into_bytes()
    } else {
        head
    };
    let mut client = gateway.client().await;
    client.send(head).await;
    if let Sending::Invited(_) = sending {
        assert_eq!(client.head().await.status, 100, "{method} {sending:?}");
    }
    Raw::parse(&client.send(sending.wire()).await.rest().await)
}

/// What the provider got is what was sent, with its own host and credential.
fn arrived(sent: &Received, vendor: &Vendor, headers: &[(&str, &str)], label: &str) {
    assert_eq!(sent.target, "/v1/odd?a=%2f&b&&c=+", "{label}");
    assert_eq!(sorted(&sent.headers, &OWN), sorted(&owned(headers), &[]), "{label}");
    for (name, want) in [
        ("host", format!("127.0.0.1:{}", vendor.port)),
        ("authorization", format!("Bearer {PROVIDER_KEY}")),
        ("accept-encoding", "identity".to_owned()),
    ] {
        assert_eq!(sent.header(name), Some(want.as_str()), "{label}: {name}");
    }
}

#[tokio::test]
async fn what_is_asked_reaches_the_provider_as_it_was_sent() {
    let vendor = echo_but_for_head().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let mut count = 0;
    for method in METHODS {
        for sending in Sending::ALL {
            // Nobody but a prober does this.
            let is_refused = ["GET", "HEAD"].contains(&method) && sending.framing() == Some(Framing::Chunked);
            if is_refused {
                continue;
            }
            let label = format!("{method} {sending:?}");
            let answer = send(&gateway, method, sending).await;
            count += 1;
            assert_eq!((answer.status, answer.header("x-aulos-origin")), (200, Some("provider")), "{label}");
            let sent = vendor.received(count).await.pop().expect("sent");
            assert_eq!(sent.method, method, "{label}");
            arrived(&sent, &vendor, ASKED, &label);
            match sending.framing() {
                Some(_) => sent.is_exactly(sending.body(), &label),
                None => assert_eq!((sent.body.as_slice(), sent.header("content-length")), (&b""[..], None), "{label}"),
            }
            let framing = sending.framing().map(|framing| framing == Framing::Chunked);
            assert_eq!(sent.header("transfer-encoding").is_some(), framing == Some(true), "{label}");
            if method != "HEAD" {
                assert!(answer.body() == sending.body(), "{label}: the answer is another");
            }
        }
    }
    assert_eq!(vendor.requests().len(), count);
}

/// Answers with what it was sent; to a HEAD, with its length.
async fn echo_but_for_head() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let body: &[u8] = if request.method == "HEAD" { b"" } else { &request.body };
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len())).await;
        wire.write(body).await;
        Some(wire)
    })
    .await
}

#[tokio::test]
async fn a_get_in_chunks_is_refused_before_the_provider_hears_of_it() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for method in ["GET", "HEAD"] {
        let answer =
            raw(&gateway, ask(&format!("{method} {PATH}"), "Transfer-Encoding: chunked\r\n", "0\r\n\r\n")).await;
        assert_eq!(answer.status, 400, "{method}");
    }
    assert_eq!(vendor.connections(), 0);
}

#[tokio::test]
async fn over_http_2_the_same_arrives() {
    let vendor = echo_but_for_head().await;
    let dir = scratch();
    let certificate = issue(&dir);
    let gateway = Gateway::spawn_in(&dir, conf(&vendor).listen(LISTEN)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let length = BODY.len().to_string();
    let mut count = 0;
    for method in METHODS {
        for (has_body, is_declared) in [(false, false), (true, true), (true, false)] {
            let label = format!("{method}, body: {has_body}, declared: {is_declared}");
            let declared = [("content-length", length.as_str())];
            let headers = [&[KNOWN][..], ASKED, if is_declared { &declared[..] } else { &[] }].concat();
            let name = Method::from_bytes(method.as_bytes()).expect("a method");
            let head = http2::request(name, &format!("{PATH}?a=%2f&b&&c=+"), &headers);
            let (answer, mut send) = client.open(head, has_body).await;
            if has_body {
                let body = Bytes::from(BODY.clone());
                tokio::spawn(async move { pour(&mut send, body).await });
            }
            let answer = Begun::of(answer).await.expect("an answer").whole().await;
            if has_body && !is_declared && ["GET", "HEAD"].contains(&method) {
                // In chunks it would be a request that servers disagree about.
                assert_eq!(answer.status, 400, "{label}: {answer:?}");
                continue;
            }
            assert_eq!((answer.status, answer.complete), (200, true), "{label}: {answer:?}");
            count += 1;
            let sent = vendor.received(count).await.pop().expect("sent");
            assert_eq!(sent.method, method, "{label}");
            arrived(&sent, &vendor, ASKED, &label);
            let body: &[u8] = if has_body { &BODY } else { b"" };
            if has_body {
                sent.is_exactly(body, &label);
                assert_eq!(sent.header("content-length").is_some(), is_declared, "{label}");
            } else {
                assert_eq!(sent.header("transfer-encoding"), None, "{label}");
                assert_eq!(sent.header("content-length").unwrap_or("0"), "0", "{label}");
            }
            assert!(method == "HEAD" || answer.body == body, "{label}: the answer is another");
        }
    }
}

#[tokio::test]
async fn path_and_query_go_as_they_came() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let rows = [
        ("/odd", "/v1/odd"),
        ("/v1/odd", "/v1/odd"),
        ("/v2/odd", "/v1/v2/odd"),
        ("", "/v1"),
        ("/", "/v1/"),
        ("/v1", "/v1"),
        ("/v1/", "/v1/"),
        ("?", "/v1?"),
        ("/?x", "/v1/?x"),
        ("/a%2Fb/c%2fd", "/v1/a%2Fb/c%2fd"),
        ("/caf%C3%A9/%f0%9f%8e%a4", "/v1/caf%C3%A9/%f0%9f%8e%a4"),
        ("/%41%7e~%7E", "/v1/%41%7e~%7E"),
        ("/a;x=y/b:c@d,e/$&'()*+=!-_.", "/v1/a;x=y/b:c@d,e/$&'()*+=!-_."),
        ("/a/b/", "/v1/a/b/"),
        ("/.../..x/x..", "/v1/.../..x/x.."),
        ("/a?a=%2f&b&&c=+", "/v1/a?a=%2f&b&&c=+"),
        ("/a?&", "/v1/a?&"),
        ("/a?%zz&%&=&==&?a?b", "/v1/a?%zz&%&=&==&?a?b"),
        ("/a?b=../../c//d\\e", "/v1/a?b=../../c//d\\e"),
        ("/a?url=https://elsewhere.example/x%23y", "/v1/a?url=https://elsewhere.example/x%23y"),
        ("/a?model=m&keys=k&mykey=k&KEY=k", "/v1/a?model=m&keys=k&mykey=k&KEY=k"),
        ("/a?[x]={y}|^~'()*;:@,!$", "/v1/a?[x]={y}|^~'()*;:@,!$"),
        ("/p/openai/v1", "/v1/p/openai/v1"),
    ];
    let mut count = 0;
    for (rest, want) in rows {
        let answer = raw(&gateway, ask(&format!("GET /p/openai{rest}"), "", "")).await;
        assert_eq!(answer.status, 200, "{rest}: {answer:?}");
        count += 1;
        assert_eq!(vendor.received(count).await.pop().expect("sent").target, want, "{rest}");
    }
    assert_eq!(vendor.requests().len(), count);
}

/// Nothing of a caller that the gateway did not know is known to the provider.
#[tokio::test]
async fn a_body_may_hold_anything_the_callers_key_too() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let body = format!("{{\"note\":\"{KEY}\",\"api_base\":\"http://elsewhere.example\",\"model\":1,\"model\":2");
    let answer = raw(&gateway, sized(&format!("POST {PATH}"), "Content-Type: application/json\r\n", &body)).await;
    assert_eq!((answer.status, answer.body()), (200, body.clone().into_bytes()));
    assert_eq!(vendor.requests()[0].text(), body);
}
