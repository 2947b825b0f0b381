//! Providers that fail, stall and lie; clients that leave. Each time the client can tell, the records say what was,
//! and the next request is served.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::rustls;

use super::support::client::{find, post};
use super::support::vendor::Received;
use super::support::{Answer, Client, Conf, Gateway, PROVIDER_KEY, Vendor, Wire, soon, until};

const SPEECH: &str = "/v1/audio/speech";
/// Timers short enough to wait for, and long enough for a machine with other things to do.
const SHORT: &str = "[timeouts]\nconnect = \"1s\"\nfirst_byte = \"1s\"\nidle = \"1s\"\n";
const SOUND: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 5\r\n\r\nSOUND";

/// A request whose `input` tells the vendor what to do.
fn asking(input: &str) -> String {
    json!({ "model": "openai/tts-1", "input": input, "voice": "alloy" }).to_string()
}

fn input(request: &Received) -> String {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    body["input"].as_str().expect("a string").to_owned()
}

/// How often the vendor was asked for `what`.
fn asked(vendor: &Vendor, what: &str) -> usize {
    vendor.requests().iter().filter(|request| input(request) == what).count()
}

/// A request right behind a fault is served. When it is recorded, its connection to the vendor is in the pool.
async fn healthy(gateway: &Gateway, after: &str) {
    let answer = gateway.post(SPEECH, &asking("healthy")).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true), "after {after}");
    gateway.record_of("usage", &answer).await;
}

/// A vendor that answers each input of `answers` with its bytes, and closes; any other in good order.
async fn scripted(answers: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Vendor {
    let answers: Arc<BTreeMap<&str, Vec<u8>>> = Arc::new(answers.into_iter().collect());
    Vendor::start(move |request, mut wire| {
        let answers = Arc::clone(&answers);
        async move {
            match answers.get(input(&request).as_str()) {
                Some(bytes) => {
                    wire.write(bytes).await;
                    None
                }
                None => {
                    wire.write(SOUND).await;
                    Some(wire)
                }
            }
        }
    })
    .await
}

/// A vendor below HTTP: `script` gets each connection as it is accepted.
async fn below<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(script(stream));
        }
    });
    port
}

fn provider(name: &str, url: &str) -> String {
    format!("[providers.{name}]\nkind = \"openai\"\nbase_url = \"{url}\"\nkeys = [\"${{PROVIDER_KEY}}\"]\n")
}

/// What a request that got nothing from its provider leaves behind.
async fn is_failed(gateway: &Gateway, answer: &Answer, end: &str, label: &str) -> Value {
    let audit = gateway.record_of("audit", answer).await;
    let usage = gateway.record_of("usage", answer).await;
    assert_eq!((&audit["end"], &usage["end"]), (&json!(end), &json!(end)), "{label}: {audit}");
    assert_eq!(audit["error"], answer.code(), "{label}: {audit}");
    assert_eq!((&audit["status"], &usage["bytes_out"]), (&json!(answer.status), &json!(0)), "{label}: {audit}");
    let attempts = audit["attempts"].as_array().expect("a list");
    assert!(attempts.len() == 1 && attempts[0]["error"].is_string(), "{label}: one attempt, which failed: {audit}");
    assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{label}");
    audit
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_unavailable() {
    // Bound and not listening: nobody else gets the port, and whoever connects is refused.
    let nobody = TcpSocket::new_v4().expect("made");
    nobody.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let nobody = (nobody.local_addr().expect("bound").port(), nobody);
    let resets = below(|stream| async move { stream.set_zero_linger().expect("set") }).await;
    let closes = below(|stream| async move { drop(stream) }).await;
    let hears = |end: fn(&TcpStream)| {
        below(move |mut stream| async move {
            let mut heard = Vec::new();
            while find(&heard, b"alloy").is_none() && stream.read_buf(&mut heard).await.is_ok_and(|read| read > 0) {}
            end(&stream);
        })
    };
    let (hears_and_closes, hears_and_resets) =
        (hears(|_| ()).await, hears(|stream| stream.set_zero_linger().expect("set")).await);
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let mut conf = Conf::new().upstream(&vendor);
    let ports = [
        ("refuses", nobody.0),
        ("resets", resets),
        ("closes", closes),
        ("hears-and-closes", hears_and_closes),
        ("hears-and-resets", hears_and_resets),
    ];
    for (name, port) in ports {
        conf = conf.with(&provider(name, &format!("http://127.0.0.1:{port}/v1")));
    }
    let gateway = Gateway::spawn(conf.with(&provider("nowhere", "http://no-such-host.invalid/v1"))).await;
    for name in ports.iter().map(|(name, _)| *name).chain(["nowhere"]) {
        let answer = gateway.post(SPEECH, &asking("x").replace("openai/", &format!("{name}/"))).await;
        assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()), "{name}");
        assert_eq!(answer.header("x-should-retry"), None, "{name}: another try may fare better");
        assert_eq!(answer.header("x-aulos-provider"), Some(name));
        is_failed(&gateway, &answer, "upstream_failed", name).await;
        healthy(&gateway, name).await;
    }
    let refused = "aulos_upstream_errors_total{provider=\"refuses\",reason=\"connect_refused\"}";
    assert_eq!(gateway.metric(refused).await, 1);
}

#[tokio::test]
async fn a_provider_that_takes_no_connection_is_late() {
    let socket = TcpSocket::new_v4().expect("made");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let listener = socket.listen(1).expect("listens");
    let addr = listener.local_addr().expect("bound");
    // Its queue is full once a connection is no longer taken at once.
    let mut queue = Vec::new();
    while let Ok(taken) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(addr)).await {
        queue.push(taken.expect("taken"));
    }
    let conf = Conf::new().with(SHORT).with(&provider("openai", &format!("http://{addr}/v1")));
    let gateway = Gateway::spawn(conf).await;
    let began = Instant::now();
    let answer = gateway.post(SPEECH, &asking("x")).await;
    assert_eq!(answer.refusal(), (504, "upstream_timeout".into()));
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let audit = is_failed(&gateway, &answer, "timeout", "connect").await;
    assert_eq!(audit["attempts"][0]["connect_ms"], Value::Null, "nothing was sent");
}

/// Keeps the gateway waiting for a head, in one way or another.
async fn stall(how: &str, wire: &mut Wire) {
    let (piece, pause): (&[u8], _) = match how {
        "silent" => (b"", None),
        "half a head" => (b"HTTP/1.1 200 OK\r\nContent-Ty", None),
        "one 100 and silent" => (b"HTTP/1.1 100 Continue\r\n\r\n", None),
        "dripping" => (b"x", Some(100)),
        "slow 103s" => (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", Some(150)),
        "endless 100s" => (b"HTTP/1.1 100 Continue\r\n\r\n", Some(0)),
        _ => (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", Some(0)),
    };
    if how == "dripping" {
        wire.write(b"HTTP/1.1 200 OK\r\nX-Drip: ").await;
    }
    loop {
        let written = wire.stream.write_all(piece).await;
        match pause {
            Some(pause) if written.is_ok() => tokio::time::sleep(Duration::from_millis(pause)).await,
            _ => break,
        }
    }
    wire.gone().await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for_without_end() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let how = input(&request);
        if how == "healthy" {
            wire.write(SOUND).await;
            return Some(wire);
        }
        stall(&how, &mut wire).await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(SHORT)).await;
    let late = (504, "upstream_timeout", "timeout");
    let odd = (502, "upstream_invalid_response", "upstream_failed");
    let rows = [
        ("silent", late),
        ("half a head", late),
        ("one 100 and silent", late),
        ("dripping", late),
        ("slow 103s", late),
        ("endless 100s", odd),
        ("endless 103s", odd),
    ];
    // Side by side: most of them wait for the same timer.
    let asked_for = rows.map(|(how, want)| {
        let addr = gateway.addr().to_owned();
        let asked = tokio::spawn(async move {
            let began = Instant::now();
            let answer = Client::connect(&addr).await.post(SPEECH, &asking(how)).await;
            (answer, began.elapsed())
        });
        (how, want, asked)
    });
    for (how, (status, code, end), asked_for) in asked_for {
        let (answer, took) = asked_for.await.expect("asked");
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{how}");
        assert!(status == 502 || took >= Duration::from_secs(1), "{how}: {took:?}");
        let audit = is_failed(&gateway, &answer, end, how).await;
        assert_eq!(audit["attempts"][0]["status"], Value::Null, "{how}: {audit}");
        assert_eq!(asked(&vendor, how), 1, "{how}: what was sent in full is not sent again");
    }
    // The vendor is let go of each time: it waits for that.
    vendor.closed(rows.len()).await;
    healthy(&gateway, "stalls").await;
}

#[tokio::test]
async fn interim_answers_end_at_the_gateway() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(3);
    let vendor = scripted([("interim", [interim.as_bytes(), SOUND].concat())]).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let answer = gateway.post(SPEECH, &asking("interim")).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true));
    assert_eq!(answer.header("link"), None);
}

/// Heads that are none. What each is refused as is the same for all: the provider spoke, and not HTTP.
fn bad_heads() -> Vec<(&'static str, Vec<u8>)> {
    let ok = "HTTP/1.1 200 OK\r\n";
    let end = "Content-Length: 5\r\n\r\nSOUND";
    vec![
        ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n".to_vec()),
        ("no status", format!("HTTP/1.1 OK\r\n{end}").into()),
        ("a long status", format!("HTTP/1.1 2000 OK\r\n{end}").into()),
        ("a low status", format!("HTTP/1.1 042 OK\r\n{end}").into()),
        ("another protocol", format!("ICY 200 OK\r\n{end}").into()),
        ("a body and no head", b"SOUND\r\n\r\n".to_vec()),
        ("two lengths", format!("{ok}Content-Length: 6\r\n{end}").into()),
        ("a length twice", format!("{ok}Content-Length: 5\r\n{end}").into()),
        ("a length twice in one line", format!("{ok}Content-Length: 5, 5\r\n\r\nSOUND").into()),
        ("a negative length", format!("{ok}Content-Length: -5\r\n\r\nSOUND").into()),
        ("NUL in a value", format!("{ok}X-Odd: a\0b\r\n{end}").into()),
        ("NUL in a name", format!("{ok}X-\0dd: a\r\n{end}").into()),
        ("CR in a value", format!("{ok}X-Odd: a\rb\r\n{end}").into()),
        ("an upgrade", b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_vec()),
        ("an upgrade without its headers", b"HTTP/1.1 101 Switching Protocols\r\n\r\nSOUND".to_vec()),
        ("5000 headers", format!("{ok}{}{end}", "X-Many: 1\r\n".repeat(5000)).into()),
        ("2 MB of header", format!("{ok}X-Big: {}\r\n{end}", "x".repeat(2 << 20)).into()),
    ]
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_refused() {
    let vendor = scripted(bad_heads()).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (label, _) in bad_heads() {
        let mut client = gateway.client().await;
        let answer = client.post(SPEECH, &asking(label)).await;
        assert_eq!((answer.status, asked(&vendor, label)), (502, 1), "{label}: {answer:?}");
        assert_eq!(answer.refusal(), (502, "upstream_invalid_response".into()), "{label}");
        assert!(client.rest().await.is_empty(), "{label}: nothing comes behind the refusal");
        is_failed(&gateway, &answer, "upstream_failed", label).await;
        healthy(&gateway, label).await;
    }
}

#[tokio::test]
async fn an_answer_with_a_length_and_chunks_is_framed_by_its_chunks() {
    // Pingora takes the length away before anybody sees it (RFC 9112 §6.3): what the client gets has one framing.
    let both = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nSOUND\r\n0\r\n\r\n";
    let vendor = scripted([("both", both.into())]).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let answer = gateway.post(SPEECH, &asking("both")).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true));
    assert_eq!((answer.header("transfer-encoding"), answer.header("content-length")), (Some("chunked"), None));
    healthy(&gateway, "both").await;
}

const HALF_HEADS: [(&str, &str); 2] =
    [("nothing but a line", "HTTP/1.1 200 OK\r\n"), ("half a header", "HTTP/1.1 200 OK\r\nContent-Le")];

#[tokio::test]
async fn half_a_head_is_no_answer() {
    let vendor = scripted(HALF_HEADS.map(|(label, head)| (label, head.into()))).await;
    for (label, _) in HALF_HEADS {
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
        let answer = gateway.post(SPEECH, &asking(label)).await;
        assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()), "{label}");
        assert_eq!(asked(&vendor, label), 1, "{label}");
        is_failed(&gateway, &answer, "upstream_failed", label).await;
        healthy(&gateway, label).await;
    }
}

#[tokio::test]
async fn half_a_head_on_a_pooled_connection_is_not_asked_for_again() {
    let vendor = scripted(HALF_HEADS.map(|(label, head)| (label, head.into()))).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (label, _) in HALF_HEADS {
        healthy(&gateway, "its start").await;
        let answer = gateway.post(SPEECH, &asking(label)).await;
        assert_eq!(answer.status, 502, "{label}: {answer:?}");
        assert_eq!(asked(&vendor, label), 1, "{label}: the provider had begun to answer: it was at work");
    }
}

#[tokio::test]
async fn a_large_header_passes_or_is_refused_and_harms_nobody() {
    let large = format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\nContent-Length: 5\r\n\r\nSOUND", "x".repeat(300 << 10));
    let vendor = scripted([("300 KB", large.into_bytes())]).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let answer = gateway.post(SPEECH, &asking("300 KB")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "SOUND"));
    assert_eq!(answer.header("x-big").map(str::len), Some(300 << 10));
    healthy(&gateway, "300 KB").await;
}

#[tokio::test]
async fn what_is_not_for_the_client_becomes_502() {
    let answer = |status: &str, headers: &str| {
        let body = "{\"error\":\"the words of the provider\"}";
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let elsewhere = "Location: http://elsewhere.example/\r\n";
    let rows = [
        ("401", answer("401 Unauthorized", "WWW-Authenticate: Bearer\r\n"), "provider_auth", Some("false")),
        ("403", answer("403 Forbidden", ""), "provider_auth", Some("false")),
        ("300", answer("300 Multiple Choices", elsewhere), "upstream_invalid_response", None),
        ("301", answer("301 Moved Permanently", elsewhere), "upstream_invalid_response", None),
        ("302", answer("302 Found", elsewhere), "upstream_invalid_response", None),
        ("304", b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec(), "upstream_invalid_response", None),
        ("307", answer("307 Temporary Redirect", elsewhere), "upstream_invalid_response", None),
        ("308", answer("308 Permanent Redirect", elsewhere), "upstream_invalid_response", None),
    ];
    let vendor = scripted(rows.iter().map(|(label, bytes, ..)| (*label, bytes.clone()))).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (label, _, code, retry) in rows {
        let answer = gateway.post(SPEECH, &asking(label)).await;
        assert_eq!(answer.refusal(), (502, code.to_owned()), "{label}");
        assert_eq!(answer.header("x-should-retry"), retry, "{label}");
        for name in ["location", "www-authenticate"] {
            assert_eq!(answer.header(name), None, "{label}");
        }
        assert!(!answer.text().contains("words"), "{label}: {}", answer.text());
        let audit = is_failed(&gateway, &answer, "upstream_failed", label).await;
        assert_eq!(audit["attempts"][0]["status"].to_string(), label, "{audit}");
        assert_eq!(asked(&vendor, label), 1, "{label}");
        healthy(&gateway, label).await;
    }
    let refused = "aulos_upstream_errors_total{provider=\"openai\",reason=\"provider_auth\"}";
    assert_eq!(gateway.metric(refused).await, 2, "the operator can see it");
}

#[tokio::test]
async fn a_providers_refusal_is_the_clients_to_read() {
    let json = "{\"error\":{\"message\":\"no\",\"type\":\"t\",\"param\":null,\"code\":\"c\"}}";
    let html = "<html><h1>Bad Gateway</h1></html>";
    let rows = [
        ("429 Too Many Requests", "application/json", "Retry-After: 17\r\n", json),
        ("429 Slow Down", "application/json", "Retry-After: Fri, 20 Nov 2026 13:00:00 GMT\r\n", json),
        (
            "503 Service Unavailable",
            "application/json",
            "Retry-After: 3\r\nx-ratelimit-remaining-requests: 0\r\n",
            json,
        ),
        ("400 Bad Request", "application/json", "", json),
        ("404 Not Found", "application/json", "", json),
        ("408 Request Timeout", "application/json", "", json),
        ("413 Too Large", "application/json", "", json),
        ("422 Unprocessable", "application/json; charset=utf-8", "", json),
        ("500 Internal Server Error", "application/json", "", json),
        ("502 Bad Gateway", "text/html", "", html),
        ("529 Overloaded", "text/plain", "", "overloaded"),
        ("200 OK", "audio/mpeg", "Content-Encoding: gzip\r\n", "\u{1f}this is no gzip"),
        ("500 Odd", "application/json", "Content-Encoding: gzip\r\n", "\u{1f}this is no gzip"),
        ("201 Created", "audio/mpeg", "", "SOUND"),
    ];
    let vendor = scripted(rows.map(|(status, media, headers, body)| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{headers}Content-Length: {length}\r\n\r\n");
        (status, format!("{head}{body}").into_bytes())
    }))
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (label, media, headers, body) in rows {
        let answer = gateway.post(SPEECH, &asking(label)).await;
        assert!(label.starts_with(&answer.status.to_string()), "{label}: {answer:?}");
        assert_eq!((answer.text().as_str(), answer.complete), (body, true), "{label}");
        assert_eq!(answer.header("content-type"), Some(media), "{label}");
        for (name, value) in headers.lines().filter_map(|line| line.split_once(": ")) {
            assert_eq!(answer.header(&name.to_ascii_lowercase()), Some(value), "{label}");
        }
        assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{label}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["end"], &audit["status"]), (&json!("complete"), &json!(answer.status)), "{audit}");
        assert_eq!(gateway.record_of("usage", &answer).await["bytes_out"], body.len(), "{label}");
        assert_eq!(asked(&vendor, label), 1, "{label}");
        healthy(&gateway, label).await;
    }
}

#[tokio::test]
async fn headers_that_end_at_the_gateway_do_not_pass() {
    let vendor = Vendor::start(|_, mut wire| async move {
        let head = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Named, x-other, content-length\r\nX-Named: 1\r\n\
                    X-Other: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
                    Proxy-Authenticate: Basic\r\nTE: trailers\r\nTrailer: x-end\r\nUpgrade: h2c\r\n\
                    Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nAlt-Svc: h3=\":443\"\r\n\
                    Location: http://elsewhere.example/\r\nX-Should-Retry: false\r\nX-Kept: 1\r\n\
                    Content-Type: audio/mpeg\r\nContent-Length: 5\r\n\r\nSOUND";
        wire.write(head).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut client = gateway.client().await;
    for _ in 0..2 {
        let answer = client.post(SPEECH, &asking("x")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "SOUND"));
        let mut names: Vec<_> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.retain(|name| !name.starts_with("x-aulos-"));
        names.sort_unstable();
        names.dedup();
        let ours = ["connection", "content-length", "content-type", "date", "x-kept", "x-request-id", "x-should-retry"];
        assert!(names.iter().all(|name| ours.contains(name)) && names.contains(&"x-kept"), "{names:?}");
        assert!(answer.header("connection").is_none_or(|value| value == "keep-alive"), "our own: {answer:?}");
    }
    assert_eq!(vendor.connections(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to_break_off() {
    let go = Arc::new(Semaphore::new(0));
    let seen = Arc::clone(&go);
    let vendor = Vendor::start(move |request, mut wire| {
        let seen = Arc::clone(&seen);
        async move {
            let label = input(&request);
            let (framing, how) = label.split_once(' ').unwrap_or(("healthy", ""));
            let framing = match framing {
                "counted" => "Content-Length: 100\r\n\r\nfirst piece",
                "chunked" => "Transfer-Encoding: chunked\r\n\r\nb\r\nfirst piece\r\n",
                _ => {
                    wire.write(SOUND).await;
                    return Some(wire);
                }
            };
            wire.write(format!("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n{framing}")).await;
            seen.acquire().await.expect("never closed").forget();
            match how {
                "reset" => wire.reset(),
                "stall" => wire.gone().await,
                "cut in a chunk" => drop(wire.write("10\r\nhalf").await),
                "cut in a size" => drop(wire.write("1").await),
                "without the last line" => drop(wire.write("0\r\n").await),
                "no size" => drop(wire.write("zz\r\nSOUND\r\n0\r\n\r\n").await),
                "another answer" => drop(wire.write(SOUND).await),
                _ => {}
            }
            None
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(SHORT)).await;
    for (label, end) in [
        ("counted close", "upstream_broken"),
        ("counted reset", "upstream_broken"),
        ("counted stall", "timeout"),
        ("chunked close", "upstream_broken"),
        ("chunked reset", "upstream_broken"),
        ("chunked stall", "timeout"),
        ("chunked cut in a chunk", "upstream_broken"),
        ("chunked cut in a size", "upstream_broken"),
        ("chunked without the last line", "upstream_broken"),
        ("chunked no size", "upstream_broken"),
        ("chunked another answer", "upstream_broken"),
    ] {
        let mut client = gateway.client().await;
        client.send(post(SPEECH, &[], &asking(label)).as_bytes()).await.sees("first piece").await;
        go.add_permits(1);
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.complete), (200, false), "{label}: {answer:?}");
        assert!(answer.text().starts_with("first piece"), "{label}: {answer:?}");
        let rest = client.rest().await;
        assert!(find(&rest, b"HTTP/1.1").is_none() && find(&rest, b"\r\n0\r\n").is_none(), "{label}: {rest:?}");
        let (audit, usage) = (gateway.record_of("audit", &answer).await, gateway.record_of("usage", &answer).await);
        assert_eq!((&audit["end"], &usage["end"]), (&json!(end), &json!(end)), "{label}: {audit}");
        assert!(audit["error"].is_string() && audit["attempts"][0]["error"].is_string(), "{label}: {audit}");
        assert_eq!((&audit["status"], &audit["attempts"][0]["status"]), (&json!(200), &json!(200)), "{label}");
        assert!(usage["bytes_out"].as_u64() >= Some(11), "{label}: what was delivered is counted: {usage}");
        assert_eq!(asked(&vendor, label), 1, "{label}: what has begun is not begun again");
        healthy(&gateway, label).await;
    }
}

#[tokio::test]
async fn bytes_behind_an_answer_reach_nobody() {
    const EVIL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL";
    let vendor = Vendor::start(|request, mut wire| async move {
        match input(&request).as_str() {
            "extra" => wire.write([SOUND, EVIL].concat()).await,
            "extra behind chunks" => {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nSOUND\r\n0\r\n\r\n";
                wire.write([&head[..], EVIL].concat()).await
            }
            _ => wire.write(SOUND).await,
        };
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for label in ["extra", "extra behind chunks"] {
        let mut client = gateway.client().await;
        let answer = client.post(SPEECH, &asking(label)).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true), "{label}");
        let used = vendor.requests().pop().expect("asked").connection;
        for _ in 0..2 {
            let next = client.post(SPEECH, &asking("healthy")).await;
            assert_eq!((next.status, next.text().as_str()), (200, "SOUND"), "{label}: the next has its own answer");
            assert_ne!(vendor.requests().pop().expect("asked").connection, used, "{label}: it is not used again");
        }
    }
}

#[tokio::test]
async fn bytes_on_an_idle_connection_reach_nobody() {
    let go = Arc::new(Semaphore::new(0));
    let seen = Arc::clone(&go);
    let done = Arc::new(Semaphore::new(0));
    let said = Arc::clone(&done);
    let vendor = Vendor::start(move |request, mut wire| {
        let (seen, said) = (Arc::clone(&seen), Arc::clone(&said));
        async move {
            wire.write(SOUND).await;
            if input(&request) == "unsolicited" {
                seen.acquire().await.expect("never closed").forget();
                wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL").await;
                said.add_permits(1);
            }
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let answer = gateway.post(SPEECH, &asking("unsolicited")).await;
    assert_eq!(answer.text(), "SOUND");
    gateway.record_of("usage", &answer).await;
    go.add_permits(1);
    soon("the vendor has spoken out of turn", done.acquire()).await.expect("never closed").forget();
    for _ in 0..2 {
        healthy(&gateway, "bytes out of turn").await;
    }
}

#[tokio::test]
async fn a_key_that_is_echoed_is_covered() {
    let cover = "*".repeat(PROVIDER_KEY.len());
    let text = format!("{{\"error\":{{\"message\":\"Incorrect key {PROVIDER_KEY}!\",\"again\":\"{PROVIDER_KEY}\"}}}}");
    let rows = [
        ("400 Bad Request", "application/json"),
        ("400 Odd", "application/problem+json"),
        ("500 Internal Server Error", "text/plain; charset=utf-8"),
        ("502 Bad Gateway", "Text/HTML"),
        ("200 OK", "application/json"),
        ("200 Fine", "text/event-stream"),
    ];
    let vendor = scripted(rows.map(|(status, media)| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nX-Echo: Bearer {PROVIDER_KEY}, {PROVIDER_KEY}\r\n\
             X-Request-Id: {PROVIDER_KEY}\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        (status, format!("{head}{text}").into_bytes())
    }))
    .await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (label, _) in rows {
        let answer = gateway.post(SPEECH, &asking(label)).await;
        assert_eq!((answer.text(), answer.complete), (text.replace(PROVIDER_KEY, &cover), true), "{label}");
        assert_eq!(answer.header("x-echo"), Some(format!("Bearer {cover}, {cover}").as_str()), "{label}");
        assert_eq!(answer.header("content-length"), Some(text.len().to_string().as_str()), "{label}");
        assert!(!format!("{answer:?}").contains(PROVIDER_KEY), "{label}: {answer:?}");
    }
    assert!(gateway.stop().await.success());
    for kind in ["usage", "audit"] {
        assert!(!format!("{:?}", gateway.records(kind)).contains(PROVIDER_KEY), "{kind}");
    }
    assert!(!gateway.log().contains(PROVIDER_KEY), "{}", gateway.log());
}

#[tokio::test]
async fn a_key_in_a_reason_phrase_does_not_pass() {
    let rows = [
        ("400 Bad Request", format!("400 Bad key {PROVIDER_KEY}!")),
        ("200 OK", format!("200 {PROVIDER_KEY}")),
        ("429 Slow Down", "429 Slow Down".to_owned()),
    ];
    let answer = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n");
    let vendor = scripted(rows.iter().map(|(want, status)| (*want, answer(status).into_bytes()))).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (want, _) in rows {
        let mut client = gateway.client().await;
        client.send(post(SPEECH, &[("Connection", "close")], &asking(want)).as_bytes()).await;
        let all = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert_eq!(all.lines().next(), Some(format!("HTTP/1.1 {want}").as_str()), "{all}");
        assert!(!all.contains(PROVIDER_KEY), "{want}: {all}");
    }
}

#[tokio::test]
async fn a_key_in_an_answer_that_is_not_http_is_not_logged() {
    let vendor = scripted([
        ("in a bad head", format!("HTTP/1.1 200 OK\r\nX Echo: {PROVIDER_KEY}\r\n\r\n").into_bytes()),
        ("in a bad size", {
            let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
            format!("{head}{PROVIDER_KEY}\r\n").into_bytes()
        }),
        ("in a redirect", {
            format!("HTTP/1.1 302 Found\r\nLocation: /?key={PROVIDER_KEY}\r\nContent-Length: 0\r\n\r\n").into_bytes()
        }),
        ("in a 401", {
            let length = PROVIDER_KEY.len();
            format!("HTTP/1.1 401 No\r\nContent-Length: {length}\r\n\r\n{PROVIDER_KEY}").into_bytes()
        }),
    ])
    .await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for label in ["in a bad head", "in a bad size", "in a redirect", "in a 401"] {
        let mut client = gateway.client().await;
        client.send(post(SPEECH, &[], &asking(label)).as_bytes()).await;
        let all = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(all.starts_with("HTTP/1.1 ") && !all.contains(PROVIDER_KEY), "{label}: {all}");
    }
    assert!(gateway.stop().await.success());
    let records = format!("{:?}{:?}", gateway.records("usage"), gateway.records("audit"));
    assert!(!records.contains(PROVIDER_KEY), "{records}");
    assert!(!gateway.log().contains(PROVIDER_KEY), "{}", gateway.log());
}

#[tokio::test]
async fn a_key_is_covered_however_it_is_cut() {
    let go = Arc::new(Semaphore::new(0));
    let seen = Arc::clone(&go);
    let vendor = Vendor::start(move |request, mut wire| {
        let seen = Arc::clone(&seen);
        async move {
            let label = input(&request);
            let (framing, at) = label.split_once(' ').expect("two words");
            let (left, right) = PROVIDER_KEY.split_at(at.parse().expect("a number"));
            let (left, right) = (format!("<before>{left}"), format!("{right}<behind>"));
            let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n";
            let pieces = if framing == "counted" {
                [format!("{head}Content-Length: {}\r\n\r\n{left}", left.len() + right.len()), right]
            } else {
                let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{left}\r\n", left.len());
                [format!("{head}{chunked}"), format!("{:x}\r\n{right}\r\n0\r\n\r\n", right.len())]
            };
            let [first, second] = pieces;
            wire.write(first).await;
            seen.acquire().await.expect("never closed").forget();
            wire.write(second).await;
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut client = gateway.client().await;
    let want = format!("<before>{}<behind>", "*".repeat(PROVIDER_KEY.len()));
    for framing in ["counted", "chunked"] {
        for at in [1, 2, PROVIDER_KEY.len() / 2, PROVIDER_KEY.len() - 1, PROVIDER_KEY.len()] {
            let label = format!("{framing} {at}");
            client.send(post(SPEECH, &[], &asking(&label)).as_bytes()).await.sees("<before>").await;
            go.add_permits(1);
            let answer = client.answer().await;
            assert_eq!((answer.text().as_str(), answer.complete), (want.as_str(), true), "{label}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_lets_the_provider_go() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n";
        match input(&request).as_str() {
            "before the head" => {}
            "in the answer" => drop(wire.write(head).await.write("5\r\nSOUND\r\n").await),
            "in the flood" => {
                wire.write(head).await;
                while wire.stream.write_all(b"5\r\nSOUND\r\n").await.is_ok() {}
            }
            _ => {
                wire.write(SOUND).await;
                return Some(wire);
            }
        }
        wire.gone().await;
        None
    })
    .await;
    // Its timers are as they come: none of them can ring here.
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (n, label) in ["before the head", "in the answer", "in the flood"].into_iter().enumerate() {
        let mut client = gateway.client().await;
        client.send(post(SPEECH, &[], &asking(label)).as_bytes()).await;
        until("the vendor is asked", || (asked(&vendor, label) == 1).then_some(())).await;
        if n > 0 {
            client.sees("SOUND").await;
        }
        let left = Instant::now();
        drop(client);
        vendor.closed(n + 1).await;
        assert!(left.elapsed() < Duration::from_secs(10), "{label}: {:?}", left.elapsed());
        let audit = gateway.recorded("audit", 2 * n + 1).await.pop().expect("there");
        let usage = gateway.recorded("usage", 2 * n + 1).await.pop().expect("there");
        assert_eq!((&audit["end"], &usage["end"]), (&json!("client_gone"), &json!("client_gone")), "{label}: {audit}");
        assert_eq!(audit["attempts"][0]["error"], Value::Null, "{label}: the provider is not at fault: {audit}");
        let (status, heard) = if n == 0 { (Value::Null, Some(0)) } else { (json!(200), Some(5)) };
        assert_eq!(usage["status"], status, "{label}: {usage}");
        assert!(usage["bytes_out"].as_u64() >= heard, "{label}: {usage}");
        healthy(&gateway, label).await;
    }
    assert_eq!(vendor.requests().len(), 6, "nothing was asked for twice");
}

/// A client that has asked for much and has little room for it.
async fn narrow(gateway: &Gateway) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("made");
    socket.set_recv_buffer_size(256 << 10).expect("set");
    let mut stream = socket.connect(gateway.addr().parse().expect("an address")).await.expect("connects");
    stream.write_all(post(SPEECH, &[], &asking("much")).as_bytes()).await.expect("sent");
    stream
}

/// Resident bytes of a process.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_provider_and_is_let_go() {
    const OFFERED: usize = 64 << 20;
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let vendor = Vendor::start(move |request, mut wire| {
        let count = Arc::clone(&count);
        async move {
            if input(&request) == "healthy" {
                wire.write(SOUND).await;
                return Some(wire);
            }
            wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {OFFERED}\r\n\r\n")).await;
            let piece = vec![7; 64 << 10];
            while count.load(Ordering::Relaxed) < OFFERED {
                let Ok(written) = wire.stream.write(&piece).await else { break };
                count.fetch_add(written, Ordering::Relaxed);
            }
            wire.gone().await;
            None
        }
    })
    .await;
    let timeouts = "[timeouts]\nidle = \"3s\"\n";
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(timeouts)).await;
    healthy(&gateway, "its start").await;
    let before = resident(gateway.pid());
    let mut client = Client::over(narrow(&gateway).await);
    let head = client.head().await;
    assert_eq!(head.status, 200);
    // It reads no more. What fits into the sockets between is taken, then nothing for as long as it is not let go.
    let mut grown = 0;
    until("the client is let go", || {
        grown = grown.max(resident(gateway.pid()).saturating_sub(before));
        gateway.records("usage").get(1).cloned()
    })
    .await;
    vendor.closed(1).await;
    let accepted = accepted.load(Ordering::Relaxed);
    assert!(accepted < OFFERED / 2, "{accepted} bytes were taken from the provider");
    assert!(grown < 32 << 20, "the gateway grew by {grown} bytes");
    let usage = gateway.record_of("usage", &head).await;
    assert_eq!(usage["end"], "client_gone", "{usage}");
    let took = usage["duration_ms"].as_f64();
    assert!(took >= Some(3000.0), "not before its time: {took:?}");
    healthy(&gateway, "a client that does not read").await;
}

#[tokio::test]
async fn a_slow_client_that_reads_is_kept() {
    // The provider is done long before the client: nobody waits for it, so no timer may cut what is left.
    const OFFERED: usize = 24 << 20;
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.answer("200 OK", "audio/wav", vec![7; OFFERED]).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(SHORT)).await;
    let mut stream = narrow(&gateway).await;
    let (mut read, mut piece) = (0, vec![0; 1 << 20]);
    while read < OFFERED {
        // A pace at which the whole takes longer than any timer here.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let got = soon("more of the answer", stream.read(&mut piece)).await.expect("not broken off");
        assert_ne!(got, 0, "it ended after {read} bytes");
        read += got;
    }
    let usage = gateway.recorded("usage", 1).await.remove(0);
    assert_eq!((&usage["end"], &usage["bytes_out"]), (&json!("complete"), &json!(OFFERED)));
    assert!(usage["duration_ms"].as_f64() > Some(1000.0), "slower than the timers: {usage}");
}

/// A vendor that lets go of every other connection as the input says, and serves on the others.
async fn forgetful() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let is_first = request.connection % 2 == 0;
        match input(&request).as_str() {
            "closes" if is_first => return None,
            "closes late" if is_first => {
                tokio::time::sleep(Duration::from_millis(1200)).await;
                return None;
            }
            "resets" if is_first => {
                wire.reset();
                return None;
            }
            _ => wire.write(SOUND).await,
        };
        Some(wire)
    })
    .await
}

#[tokio::test]
async fn a_connection_that_died_in_the_pool_is_replaced_once() {
    let vendor = forgetful().await;
    for (n, label) in ["closes", "resets"].into_iter().enumerate() {
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
        healthy(&gateway, "its start").await;
        let answer = gateway.post(SPEECH, &asking(label)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "SOUND"), "{label}");
        assert_eq!(answer.header("x-aulos-attempts"), Some("2"), "{label}");
        assert_eq!((asked(&vendor, label), vendor.connections()), (2, 2 * n + 2), "{label}: on a fresh connection");
        let bodies: Vec<_> = vendor.requests().iter().filter(|r| input(r) == label).map(Received::text).collect();
        assert_eq!(bodies, [asking(label).replace("openai/", ""), asking(label).replace("openai/", "")], "{label}");
        let audit = gateway.record_of("audit", &answer).await;
        let (first, second) = (&audit["attempts"][0], &audit["attempts"][1]);
        assert!(first["reused"] == true && first["error"].is_string(), "{label}: {audit}");
        assert_eq!((&second["reused"], &second["error"]), (&json!(false), &Value::Null), "{label}: {audit}");
        assert_eq!(gateway.record_of("usage", &answer).await["attempts"], 2, "{label}");
        assert_eq!(gateway.records("usage").len(), 2, "{label}: one record a request");
    }
}

#[tokio::test]
async fn a_client_that_was_told_to_go_on_is_served_on_a_fresh_connection() {
    let vendor = forgetful().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    healthy(&gateway, "its start").await;
    let body = asking("closes");
    let request = post(SPEECH, &[("Expect", "100-continue")], &body);
    let mut client = gateway.client().await;
    client.send(request.strip_suffix(&body).expect("it ends with its body").as_bytes()).await;
    assert_eq!(client.head().await.status, 100);
    let answer = client.send(body.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true));
    assert_eq!((answer.header("x-aulos-attempts"), asked(&vendor, "closes")), (Some("2"), 2));
}

/// A dead connection says so at once. This one may have been at work, and what it did may cost something.
#[tokio::test]
async fn a_pooled_connection_that_closes_late_is_not_replaced() {
    let vendor = forgetful().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    healthy(&gateway, "its start").await;
    let answer = gateway.post(SPEECH, &asking("closes late")).await;
    assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()));
    assert_eq!((asked(&vendor, "closes late"), vendor.connections()), (1, 1));
    let audit = is_failed(&gateway, &answer, "upstream_failed", "closes late").await;
    assert_eq!(audit["attempts"][0]["reused"], true, "{audit}");
}

#[tokio::test]
async fn a_fresh_connection_that_dies_is_not_tried_again() {
    let vendor = Vendor::raw("").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let answer = gateway.post(SPEECH, &asking("closes")).await;
    assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()));
    assert_eq!(asked(&vendor, "closes"), 1);
    is_failed(&gateway, &answer, "upstream_failed", "closes").await;
}

/// What a vendor behind TLS was told: the bytes on the wire, and what it could decipher.
#[derive(Default)]
struct Told {
    wire: Mutex<Vec<u8>>,
    clear: Mutex<Vec<u8>>,
}

/// A vendor with a certificate that nobody vouches for.
async fn self_signed(told: &Arc<Told>) -> u16 {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let config = config.expect("known").with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a pair")));
    let told = Arc::clone(told);
    below(move |stream| {
        let (acceptor, told) = (acceptor.clone(), Arc::clone(&told));
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.ok();
            told.clear.lock().expect("no test panics with it").extend(heard);
        }
    })
    .await
}

#[tokio::test]
async fn a_provider_that_cannot_prove_itself_is_told_nothing() {
    let told = Arc::new(Told::default());
    let untrusted = self_signed(&told).await;
    let heard = Arc::clone(&told);
    let clear = below(move |mut stream| {
        let heard = Arc::clone(&heard);
        async move {
            let mut first = vec![0; 16 << 10];
            let read = stream.read(&mut first).await.unwrap_or(0);
            heard.wire.lock().expect("no test panics with it").extend(&first[..read]);
            stream.write_all(SOUND).await.ok();
        }
    })
    .await;
    let mute = below(|mut stream| async move {
        stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    let url = |port: u16| format!("https://localhost:{port}/v1");
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with(SHORT).with(&provider("untrusted", &url(untrusted)));
    let gateway = Gateway::spawn(conf.with(&provider("clear", &url(clear))).with(&provider("mute", &url(mute)))).await;
    for (name, refusal, end) in [
        ("untrusted", (502, "upstream_tls"), "upstream_failed"),
        ("clear", (502, "upstream_tls"), "upstream_failed"),
        ("mute", (504, "upstream_timeout"), "timeout"),
    ] {
        let answer = gateway.post(SPEECH, &asking("x").replace("openai/", &format!("{name}/"))).await;
        assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{name}");
        is_failed(&gateway, &answer, end, name).await;
        healthy(&gateway, name).await;
    }
    assert!(told.clear.lock().expect("no test panics with it").is_empty(), "nothing was sent after the handshake");
    let wire = told.wire.lock().expect("no test panics with it").clone();
    assert!(wire.first() == Some(&0x16) && find(&wire, PROVIDER_KEY.as_bytes()).is_none(), "a greeting and no more");
    assert!(find(&wire, b"alloy").is_none());
}
