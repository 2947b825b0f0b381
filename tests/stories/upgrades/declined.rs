//! A vendor that does not agree: what it says passes as it is, and the connection ends in order.

use super::{Far, Line, REALTIME, ask, asking, conf, noise, saying};
use crate::support::{Gateway, PROVIDER_KEY};

/// An answer of the vendor's: its first line and its headers, and its body in each framing.
fn framings(head: &str, body: &[u8]) -> [(&'static str, Vec<u8>); 3] {
    let chunks: Vec<u8> = body
        .chunks(1000)
        .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
        .collect();
    let length = format!("{head}Content-Length: {}\r\n\r\n", body.len());
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    [
        ("with a length", [length.as_bytes(), body].concat()),
        ("in chunks", [chunked.as_bytes(), &chunks, b"0\r\n\r\n"].concat()),
        ("until it closes", [head.as_bytes(), b"\r\n", body].concat()),
    ]
}

#[tokio::test]
async fn what_a_vendor_says_instead_passes_as_it_is() {
    for (status, lines, kept) in [
        ("200 OK", "", None),
        ("302 Found", "Location: /v1/elsewhere\r\n", Some(("location", "/v1/elsewhere"))),
        ("307 Temporary Redirect", "Location: https://evil.example/\r\n", None),
        ("400 Bad Request", "", None),
        ("401 Unauthorized", "WWW-Authenticate: Bearer\r\n", Some(("www-authenticate", "Bearer"))),
        ("403 Forbidden", "Set-Cookie: a=b\r\n", None),
        ("404 Not Here", "X-Request-Id: req_9\r\n", Some(("x-request-id", "req_9"))),
        ("426 Upgrade Required", "Sec-WebSocket-Version: 8, 7\r\n", Some(("sec-websocket-version", "8, 7"))),
        ("429 Too Many Requests", "Retry-After: 7\r\n", Some(("retry-after", "7"))),
        ("500 Internal Server Error", "", None),
        ("503 Service Unavailable", "Retry-After: 2\r\n", Some(("retry-after", "2"))),
    ] {
        let body = noise(status.len(), 5000);
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\n{lines}");
        for (framing, answer) in framings(&head, &body) {
            let label = format!("{status} {framing}");
            let vendor = saying(answer).await;
            let gateway = Gateway::spawn(conf(vendor.port)).await;
            let answer = ask(&gateway, asking(REALTIME, ""), &label).await;
            assert_eq!(status.split(' ').next(), Some(answer.status.to_string().as_str()), "{label}");
            assert!(answer.complete && answer.body == body, "{label}: {} bytes", answer.body.len());
            assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{label}");
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{label}");
            assert_eq!(answer.header("connection"), Some("close"), "{label}");
            if let Some((name, value)) = kept {
                assert_eq!(answer.header(name), Some(value), "{label}");
            }
            let location = kept.filter(|(name, _)| *name == "location").map(|(_, value)| value);
            assert_eq!((answer.header("location"), answer.header("set-cookie")), (location, None), "{label}");
            assert_eq!(vendor.heads().len(), 1, "{label}: asked once");
            let usage = gateway.record_of("usage", &answer).await;
            assert_eq!((&usage["end"], &usage["status"]), (&"complete".into(), &answer.status.into()), "{label}");
            assert_eq!((&usage["bytes_in"], &usage["bytes_out"]), (&0.into(), &body.len().into()), "{label}: {usage}");
            vendor.closed(1).await;
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    for (status, lines) in
        [("204 No Content", ""), ("304 Not Modified", ""), ("403 Forbidden", "Content-Length: 0\r\n")]
    {
        let vendor = saying(format!("HTTP/1.1 {status}\r\n{lines}\r\n")).await;
        let gateway = Gateway::spawn(conf(vendor.port)).await;
        let answer = ask(&gateway, asking(REALTIME, ""), status).await;
        assert_eq!(status.split(' ').next(), Some(answer.status.to_string().as_str()), "{status}");
        assert!(answer.complete && answer.body.is_empty(), "{status}: {answer:?}");
    }
}

/// Pieces pass when they come: the vendor sends the next one when the client has read the last, whatever the client
/// says meanwhile.
#[tokio::test]
async fn an_answer_instead_is_passed_on_piece_by_piece() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for (before, meanwhile) in [("", ""), ("early", ""), ("", "late")] {
        let mut near = Line::connect(&gateway).await;
        near.send(asking(REALTIME, "") + before).await;
        let (_, mut far) = vendor.called().await;
        far.send("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 15\r\n\r\n").await;
        assert_eq!(near.answer().await.status, 200, "{before}{meanwhile}");
        for piece in [b"first", b"secon", b"third"] {
            near.send(meanwhile).await;
            far.send(piece).await;
            assert_eq!(near.next(5).await, piece, "{before}{meanwhile}");
        }
        assert!(near.rest().await.is_empty(), "{before}{meanwhile}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_is_broken_visibly() {
    for (label, answer) in [
        ("short of its length", "HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf"),
        ("without its last chunk", "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("in a chunk", "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf"),
    ] {
        let vendor = saying(answer).await;
        let gateway = Gateway::spawn(conf(vendor.port)).await;
        let answer = gateway.client().await.send(asking(REALTIME, "")).await.answer().await;
        assert_eq!((answer.status, answer.complete), (403, false), "{label}: {answer:?}");
        assert_eq!(gateway.record_of("usage", &answer).await["end"], "upstream_broken", "{label}");
    }
}

#[tokio::test]
async fn a_key_that_is_echoed_is_covered() {
    let body = format!(r#"{{"error":{{"message":"Incorrect API key: {PROVIDER_KEY}"}}}}"#);
    let head =
        format!("HTTP/1.1 401 No {PROVIDER_KEY}\r\nContent-Type: application/json\r\nX-Echo: {PROVIDER_KEY}\r\n");
    for (framing, answer) in framings(&head, body.as_bytes()) {
        let vendor = saying(answer).await;
        let gateway = Gateway::spawn(conf(vendor.port)).await;
        let raw = gateway.client().await.send(asking(REALTIME, "")).await.rest().await;
        let text = String::from_utf8_lossy(&raw).into_owned();
        assert!(text.starts_with("HTTP/1.1 401 ") && !text.contains(PROVIDER_KEY), "{framing}: {text}");
        assert!(text.contains(&body.replace(PROVIDER_KEY, &"*".repeat(PROVIDER_KEY.len()))), "{framing}: {text}");
    }
}

/// How an answer that has begun ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Reset,
    Stall,
}

/// Of what has neither a length nor chunks, only the end of the connection tells whether it is whole: the client is told
/// in chunks, whose last one is missing where it is not.
#[tokio::test]
async fn how_an_answer_ended_is_seen_by_the_client_and_in_the_records() {
    let rows = [
        ("HTTP/1.1 403 No\r\n\r\npiece", End::InOrder),
        ("HTTP/1.1 403 No\r\n\r\npiece", End::Reset),
        ("HTTP/1.1 403 No\r\n\r\npiece", End::Stall),
        ("HTTP/1.0 403 No\r\n\r\npiece", End::InOrder),
        ("HTTP/1.0 403 No\r\n\r\npiece", End::Reset),
        ("HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\npiece\r\n", End::Reset),
        ("HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\npiece\r\n", End::Stall),
        ("HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\npiece", End::Reset),
        ("HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\npiece", End::Stall),
    ];
    for (said, end) in rows {
        let label = format!("{end:?} after {said:?}");
        let mut vendor = Far::start().await;
        let gateway = Gateway::spawn(conf(vendor.port).with("[timeouts]\nidle = \"1s\"")).await;
        let mut client = gateway.client().await;
        client.send(asking(REALTIME, "")).await;
        let (_, mut far) = vendor.called().await;
        far.send(said).await;
        // A reset takes away what was not read yet.
        client.sees("piece").await;
        match end {
            End::InOrder => far.finish().await,
            End::Reset => far.reset(),
            End::Stall => assert!(far.rest().await.is_empty(), "{label}: it is let go"),
        }
        let answer = client.answer().await;
        let got = (answer.status, answer.text(), answer.complete);
        assert_eq!(got, (403, "piece".to_owned(), end == End::InOrder), "{label}: {answer:?}");
        let want = match end {
            End::InOrder => "complete",
            End::Reset => "upstream_broken",
            End::Stall => "timeout",
        };
        let (usage, audit) = (gateway.record_of("usage", &answer).await, gateway.record_of("audit", &answer).await);
        assert_eq!((&usage["end"], &audit["end"]), (&want.into(), &want.into()), "{label}: {audit}");
        assert_eq!(audit["attempts"][0]["status"], 403, "{label}: {audit}");
        assert_eq!(audit["attempts"][0]["error"].is_string(), end != End::InOrder, "{label}: {audit}");
    }
}
