//! What is answered reaches the client byte for byte: every status, framing and header.

use http::Method;

use super::{BODY, Headers, PATH, ask, conf, lines, owned, raw, sorted};
use crate::support::form::Framing;
use crate::support::gateway::scratch;
use crate::support::http2::{self, Http2, KNOWN, LISTEN, issue};
use crate::support::{Gateway, Vendor};

/// Header lines of a provider, all of which reach the client as they are.
const ANSWERED: &[(&str, &str)] = &[
    ("Server", "odd/1.0"),
    ("Content-Type", "audio/x-odd; a=\"b c\""),
    ("Content-Encoding", "gzip"),
    ("Content-Disposition", "attachment; filename=\"a.mp3\""),
    ("Content-Range", "bytes 0-5/9"),
    ("Cache-Control", "private, max-age=1"),
    ("ETag", "W/\"a\""),
    ("Link", "</a>; rel=next"),
    ("Link", "</b>; rel=prev"),
    ("Retry-After", "7"),
    ("Vary", "*"),
    ("WWW-Authenticate", "Basic realm=\"theirs\""),
    ("X-Empty", ""),
    ("X-Ratelimit-Remaining", "0"),
    ("X-Request-Id", "the-providers-own"),
    ("character-cost", "17"),
    ("Access-Control-Allow-Origin", "*"),
    ("Strict-Transport-Security", "max-age=1"),
];

/// Those that no gateway hands on.
const THEIRS: &[(&str, &str)] = &[
    ("Connection", "X-Hop, keep-alive"),
    ("X-Hop", "1"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authenticate", "Basic"),
    ("Trailer", "X-T"),
    ("Set-Cookie", "a=b"),
    ("Alt-Svc", "h3=\":443\""),
    ("Location", "https://elsewhere.example/"),
    ("X-Aulos-Provider", "another"),
    ("X-Aulos-Origin", "aulos"),
    ("X-Aulos-Made-Up", "1"),
];

/// What a gateway adds to every answer, and how it ends. `Date` is Pingora's, which nothing can keep it from writing.
const ADDED: [&str; 8] = [
    "date",
    "x-aulos-request-id",
    "x-aulos-origin",
    "x-aulos-provider",
    "x-aulos-attempts",
    "connection",
    "content-length",
    "transfer-encoding",
];

const STATUSES: [&str; 25] = [
    "200 OK",
    "200 Fine, thank you!",
    "201 Created",
    "202 Accepted",
    "203 Non-Authoritative Information",
    "206 Partial Content",
    "207 Multi-Status",
    "299 Odd",
    "300 Multiple Choices",
    "301 Moved Permanently",
    "400 Bad Request",
    "401 Unauthorized",
    "402 Payment Required",
    "403 Forbidden",
    "404 Not Found",
    "405 Method Not Allowed",
    "409 Conflict",
    "418 I'm a teapot",
    "422 Unprocessable",
    "429 Too Many Requests",
    "451 Unavailable For Legal Reasons",
    "500 Internal Server Error",
    "503 Service Unavailable",
    "529 Overloaded",
    "599 Network Connect Timeout Error",
];

/// How a provider says how long its answer is.
const LENGTHS: [&str; 5] = ["length", "chunked", "closed", "empty", "old"];

/// A vendor that answers with the status, and in the framing, that a request asks for.
async fn obedient() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let status = request.header("x-say").expect("said").to_owned();
        let framing = request.header("x-framing").expect("said").to_owned();
        let minor = if framing == "old" { 0 } else { 1 };
        let own = format!("{}{}", lines(ANSWERED), lines(THEIRS));
        let has_body = request.method != "HEAD" && !["empty", "none", "declared"].contains(&framing.as_str());
        let body: &[u8] = if has_body { &BODY } else { b"" };
        let length = match framing.as_str() {
            "length" | "declared" => format!("Content-Length: {}\r\n", BODY.len()),
            "empty" => "Content-Length: 0\r\n".to_owned(),
            "chunked" => "Transfer-Encoding: chunked\r\n".to_owned(),
            _ => String::new(),
        };
        // What comes before an answer is the provider's word to us.
        wire.write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </c>\r\n\r\n").await;
        wire.write(format!("HTTP/1.{minor} {status}\r\n{own}{length}\r\n")).await;
        let framing_of = if framing == "chunked" { Framing::Chunked } else { Framing::Declared };
        for piece in body.chunks(9_973) {
            wire.write(framing_of.piece(piece)).await;
        }
        if has_body {
            wire.write(framing_of.end()).await;
        }
        (!["closed", "old"].contains(&framing.as_str())).then_some(wire)
    })
    .await
}

/// The head is the provider's, with what a gateway adds.
fn came_back(headers: &Headers, label: &str) {
    assert_eq!(sorted(headers, &ADDED), sorted(&owned(ANSWERED), &[]), "{label}");
    let one = |name: &str| {
        let mut values = headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none())
    };
    let said = ["x-aulos-origin", "x-aulos-provider", "x-aulos-attempts"].map(one);
    assert_eq!(said, [Some("provider"), Some("openai"), Some("1")], "{label}");
    assert!(one("x-aulos-request-id").is_some_and(|id| id.len() == 36), "{label}");
}

#[tokio::test]
async fn what_is_answered_reaches_the_client_as_it_is() {
    let vendor = obedient().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for status in STATUSES {
        for framing in LENGTHS {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let label = format!("{status}, {framing}, to {version}");
                let request = ask(&format!("GET {PATH}"), &format!("X-Say: {status}\r\nX-Framing: {framing}\r\n"), "");
                let request = String::from_utf8(request).expect("text").replacen("HTTP/1.1", version, 1);
                let answer = raw(&gateway, request).await;
                assert_eq!(format!("{} {}", answer.status, answer.reason), status, "{label}");
                came_back(&answer.headers, &label);
                let body: &[u8] = if framing == "empty" { b"" } else { &BODY };
                assert!(answer.body() == body, "{label}: another body");
                let is_declared = ["length", "empty"].contains(&framing);
                assert_eq!(answer.header("content-length").is_some(), is_declared, "{label}");
                let is_chunked = !is_declared && version == "HTTP/1.1";
                assert_eq!(answer.header("transfer-encoding").is_some(), is_chunked, "{label}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_body_has_none() {
    let vendor = obedient().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let length = BODY.len().to_string();
    for (method, status, framing, declared) in [
        ("GET", "204 No Content", "none", None),
        ("DELETE", "204 Gone, as asked", "none", None),
        ("GET", "304 Not Modified", "none", None),
        ("GET", "304 Not Modified", "declared", Some(length.as_str())),
        ("HEAD", "200 OK", "length", Some(length.as_str())),
        ("HEAD", "200 OK", "none", None),
        ("HEAD", "200 OK", "chunked", None),
        ("HEAD", "404 Not Found", "length", Some(length.as_str())),
        ("HEAD", "204 No Content", "none", None),
        ("OPTIONS", "200 OK", "empty", Some("0")),
    ] {
        let label = format!("{method} {status}, {framing}");
        let said = format!("X-Say: {status}\r\nX-Framing: {framing}\r\n");
        let answer = raw(&gateway, ask(&format!("{method} {PATH}"), &said, "")).await;
        assert_eq!(format!("{} {}", answer.status, answer.reason), status, "{label}");
        came_back(&answer.headers, &label);
        assert_eq!(answer.header("content-length"), declared, "{label}");
        assert!(answer.rest.is_empty(), "{label}: {}", answer.rest.escape_ascii());
        // The same on a connection that goes on: what follows is the next answer.
        let keep = String::from_utf8(ask(&format!("{method} {PATH}"), &said, "")).expect("text");
        let mut client = gateway.client().await;
        client.send(keep.replacen("Connection: close\r\n", "", 1)).await;
        assert_eq!(client.head().await.status, answer.status, "{label}");
        let next = "X-Say: 299 Next\r\nX-Framing: length\r\n";
        client.send(ask(&format!("GET {PATH}"), next, "")).await;
        assert_eq!(client.answer().await.status, 299, "{label}: the connection goes on");
    }
}

#[tokio::test]
async fn over_http_2_the_same_comes_back() {
    let vendor = obedient().await;
    let dir = scratch();
    let certificate = issue(&dir);
    let gateway = Gateway::spawn_in(&dir, conf(&vendor).listen(LISTEN)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let rows = STATUSES.iter().flat_map(|status| LENGTHS.map(|framing| ("GET", *status, framing)));
    let rows = rows.chain([
        ("GET", "204 No Content", "none"),
        ("GET", "304 Not Modified", "none"),
        ("HEAD", "200 OK", "length"),
        ("HEAD", "200 OK", "chunked"),
    ]);
    for (method, status, framing) in rows {
        let label = format!("{method} {status}, {framing}");
        let name = Method::from_bytes(method.as_bytes()).expect("a method");
        let head = http2::request(name, PATH, &[KNOWN, ("x-say", status), ("x-framing", framing)]);
        let answer = client.ask(head, "").await;
        assert_eq!((answer.status.to_string().as_str(), answer.complete), (&status[..3], true), "{label}");
        came_back(&answer.headers, &label);
        let has_body = method != "HEAD" && !["empty", "none"].contains(&framing);
        assert!(answer.body == if has_body { &BODY[..] } else { b"" }, "{label}: another body");
    }
}
