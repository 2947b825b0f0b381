//! Requests that look like an offer of WebSocket and are none: served as what they are, without the offer; and vendors
//! that switch though nobody asked, or to something else.

use super::{AGREED, Far, Line, REALTIME, ask, asking, conf, saying};
use crate::support::{Client, Gateway, KEY, Vendor};

/// A head with the test's key and these lines, a `\n` each.
fn request(first: &str, lines: &str) -> String {
    let lines = lines.replace('\n', "\r\n");
    format!("{first}\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n")
}

const GET: &str = "GET /p/openai/v1/realtime HTTP/1.1";
const WEBSOCKET: &str = "Connection: Upgrade\nUpgrade: websocket\n";

/// Requests that offer nothing we know, and what of a body they have.
fn requests() -> Vec<(&'static str, String, &'static str)> {
    let post = "POST /p/openai/v1/realtime HTTP/1.1";
    let h2c = "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n";
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        ("h2c", request(GET, h2c), ""),
        ("h2c with a body", request(post, &format!("{h2c}Content-Length: 5\n")) + "hello", "hello"),
        ("h2c with chunks", request(post, &format!("{h2c}Transfer-Encoding: chunked\n")) + chunks, "hello"),
        ("something else", request(GET, "Connection: Upgrade\nUpgrade: foo\n"), ""),
        ("TLS", request("OPTIONS /p/openai/v1/x HTTP/1.1", "Connection: Upgrade\nUpgrade: TLS/1.2\n"), ""),
        ("a version of it", request(GET, "Connection: Upgrade\nUpgrade: websocket/13\n"), ""),
        ("nothing", request(GET, "Connection: Upgrade\nUpgrade:\n"), ""),
        ("POST", request(post, &format!("{WEBSOCKET}Content-Length: 0\n")), ""),
        ("PUT without a length", request("PUT /p/openai/v1/realtime HTTP/1.1", WEBSOCKET), ""),
        ("HEAD", request("HEAD /p/openai/v1/realtime HTTP/1.1", WEBSOCKET), ""),
        ("HTTP/1.0", request("GET /p/openai/v1/realtime HTTP/1.0", WEBSOCKET), ""),
        // RFC 9110 §7.8: without the option it may be a neighbour's, passed on by somebody who does not know it.
        ("not for us", request(GET, "Upgrade: websocket\n"), ""),
        ("kept alive only", request(GET, "Connection: keep-alive\nUpgrade: websocket\n"), ""),
    ]
}

#[tokio::test]
async fn what_is_no_offer_of_websocket_is_a_plain_request() {
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.answer("200 OK", "text/plain", "plain").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for (label, request, body) in requests() {
        let before = vendor.requests().len();
        let mut client = Client::connect(gateway.addr()).await;
        client.send(&request).await;
        let (head, want) = if label == "HEAD" { (client.head().await, "") } else { (client.answer().await, "plain") };
        assert_eq!((head.status, head.header("x-aulos-origin")), (200, Some("provider")), "{label}: {head:?}");
        assert_eq!((head.header("upgrade"), head.text()), (None, want.to_owned()), "{label}: {head:?}");
        client.finish().await;
        assert_eq!(client.rest().await, b"", "{label}");
        let sent = &vendor.received(before + 1).await[before];
        assert_eq!(sent.text(), body, "{label}");
        for name in ["upgrade", "http2-settings"] {
            assert_eq!(sent.header(name), None, "{label}: {sent:?}");
        }
        let options = sent.header("connection").unwrap_or_default().to_ascii_lowercase();
        assert!(!options.contains("upgrade") && !options.contains("http2"), "{label}: {options}");
    }
    let usage = gateway.recorded("usage", requests().len()).await;
    assert!(usage.iter().all(|record| record["end"] == "complete" && record["status"] == 200), "{usage:?}");
}

/// A vendor that switches unasked would leave the client with bytes that are no answer.
#[tokio::test]
async fn a_101_that_nobody_asked_for_is_never_passed_on() {
    let vendor = saying([AGREED.as_bytes(), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden"].concat()).await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let plain = [("a plain request", request(GET, ""), "")];
    for (label, request, _) in requests().into_iter().chain(plain) {
        let mut client = Client::connect(gateway.addr()).await;
        let head = client.send(&request).await.head().await;
        client.finish().await;
        assert_eq!((head.status, head.header("x-aulos-origin")), (502, Some("aulos")), "{label}: {head:?}");
        assert_eq!((head.header("upgrade"), head.header("sec-websocket-accept")), (None, None), "{label}: {head:?}");
        let rest = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(!rest.contains("hidden"), "{label}: {rest}");
        let audit = gateway.record_of("audit", &head).await;
        assert_eq!((&audit["end"], &audit["status"]), (&"upstream_failed".into(), &502.into()), "{label}: {audit}");
    }
}

/// RFC 9110 §15.2.2, RFC 6455 §4.1: who accepts says what, and it has to be what was offered.
#[tokio::test]
async fn a_101_that_does_not_switch_to_websocket_is_no_valid_answer() {
    let lines = |lines: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n");
    for (label, answer) in [
        ("without Upgrade", lines("Connection: Upgrade\r\n")),
        ("with nothing", lines("")),
        ("to h2c", lines("Connection: Upgrade\r\nUpgrade: h2c\r\n")),
        ("to something that begins like it", lines("Connection: Upgrade\r\nUpgrade: websocketx\r\n")),
        ("to two things", lines("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n")),
        ("to two things on two lines", lines("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n")),
        ("over HTTP/1.0", AGREED.replace("HTTP/1.1", "HTTP/1.0")),
    ] {
        let vendor = saying(answer + "hidden").await;
        let gateway = Gateway::spawn(conf(vendor.port)).await;
        let answer = ask(&gateway, asking(REALTIME, ""), label).await;
        assert_eq!(answer.refusal(), (502, "upstream_invalid_response".to_owned()), "{label}: {answer:?}");
        assert_eq!((answer.complete, answer.header("upgrade")), (true, None), "{label}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["end"], &audit["status"]), (&"upstream_failed".into(), &502.into()), "{label}: {audit}");
        assert_eq!(audit["attempts"][0]["error"], "upstream_invalid_response", "{label}: {audit}");
        vendor.closed(1).await;
    }
}

/// Case is of no matter, and interim answers before it are not passed on.
#[tokio::test]
async fn a_101_may_be_spelled_in_any_case_and_come_after_interim_answers() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let loud = "HTTP/1.1 101 Sure\r\nUPGRADE: WebSocket\r\nCONNECTION: upgrade\r\nSEC-WEBSOCKET-ACCEPT: x\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    for answer in [loud.to_owned(), format!("HTTP/1.1 100 Continue\r\n\r\n{hints}{AGREED}")] {
        let mut near = Line::connect(&gateway).await;
        near.send(asking(REALTIME, "")).await;
        let (_, mut far) = vendor.called().await;
        far.send(answer + "first").await;
        let answer = near.answer().await;
        assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")), "{answer:?}");
        assert!(answer.header("sec-websocket-accept").is_some(), "{answer:?}");
        assert_eq!(near.next(5).await, b"first");
    }
}
