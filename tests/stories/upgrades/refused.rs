//! Offers that are refused: in HTTP, before the vendor hears of them, and with nothing behind them taken for a request.

use serde_json::json;

use super::{AGREED, Far, Line, REALTIME, ask, asking, bare, conf, ends, saying};
use crate::support::client::{find, post};
use crate::support::{Client, Conf, Gateway, KEY, Vendor, sha256};

/// Sub-protocols with a credential that is one, and with another.
const GOOD: &str = "realtime, openai-insecure-api-key.KEY";
const BAD: &str = "openai-insecure-api-key.another";

/// What follows an offer in the same packet: would be served, if it were ever taken for a request.
fn hidden() -> String {
    post("/p/openai/v1/hidden", &[], "{}")
}

#[tokio::test]
async fn what_is_refused_is_refused_in_http_before_anything_goes_up() {
    let vendor = saying(AGREED).await;
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    let to = |target: &str| asking(target, "");
    let query = |query: &str| bare(&format!("/p/openai/v1/realtime?{query}"), "");
    // A line for each.
    let protocols = |all: &[&str]| {
        let line = |one: &&str| format!("Sec-WebSocket-Protocol: {}\r\n", one.replace("KEY", KEY));
        bare(REALTIME, &all.iter().map(line).collect::<String>())
    };
    for (label, request, want) in [
        ("no key", bare(REALTIME, ""), (401, "invalid_api_key")),
        ("a wrong key", bare(REALTIME, &bearer("wrong")), (401, "invalid_api_key")),
        ("two keys", asking(REALTIME, "X-Api-Key: another\r\n"), (401, "invalid_api_key")),
        ("another key in the query", asking(&format!("{REALTIME}&token=another"), ""), (401, "invalid_api_key")),
        ("a wrong key in the query", query("key=wrong"), (401, "invalid_api_key")),
        (
            "a wrong sub-protocol",
            bare(REALTIME, "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.wrong\r\n"),
            (401, "invalid_api_key"),
        ),
        (
            "another key in a sub-protocol",
            asking(REALTIME, "Sec-WebSocket-Protocol: token, another\r\n"),
            (401, "invalid_api_key"),
        ),
        ("two keys in sub-protocols", protocols(&[GOOD, BAD]), (401, "invalid_api_key")),
        ("the other way round", protocols(&[BAD, GOOD]), (401, "invalid_api_key")),
        ("with others between them", protocols(&[GOOD, "realtime", BAD]), (401, "invalid_api_key")),
        ("dots", to("/p/openai/v1/../realtime"), (400, "invalid_path")),
        ("coded dots", to("/p/openai/v1/%2e%2E/realtime"), (400, "invalid_path")),
        ("dots with parameters", to("/p/openai/..;x=y/realtime"), (400, "invalid_path")),
        ("coded slashes beside dots", to("/p/openai/a%2f..%2fb"), (400, "invalid_path")),
        ("an empty segment", to("/p/openai//evil.example/x"), (400, "invalid_path")),
        ("a coded line end", to("/p/openai/v1/x%0d%0aHost:%20evil"), (400, "invalid_path")),
        ("an unknown provider", to("/p/nobody/v1/realtime"), (404, "unknown_provider")),
        ("a fragment", to("/p/openai/v1/realtime#/../x"), (400, "invalid_request")),
        ("a fragment in the query", to("/p/openai/v1/realtime?a=b#c"), (400, "invalid_request")),
        ("an absolute target elsewhere", to("http://evil.example/p/openai/v1/realtime"), (400, "invalid_request")),
        ("a body", asking(REALTIME, "Content-Length: 5\r\n") + "hello", (400, "invalid_request")),
        (
            "a chunked body",
            asking(REALTIME, "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
            (400, "invalid_request"),
        ),
        (
            "both framings",
            asking(REALTIME, "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
            (400, "invalid_request"),
        ),
    ] {
        let gateway = Gateway::spawn(conf(vendor.port)).await;
        for behind in [String::new(), hidden(), "\u{1}\u{2}".repeat(3000)] {
            let mut client = gateway.client().await;
            let answer = client.send(format!("{request}{behind}")).await.answer().await;
            assert_eq!((answer.status, answer.complete), (want.0, true), "{label}: {answer:?}");
            if !behind.is_empty() {
                ends(&mut client, label).await;
            }
            let code = answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
            assert_eq!((code.as_str(), answer.header("x-aulos-origin")), (want.1, Some("aulos")), "{label}");
            assert_eq!((answer.header("upgrade"), answer.header("sec-websocket-accept")), (None, None), "{label}");
            let audit = gateway.record_of("audit", &answer).await;
            assert_eq!((&audit["end"], &audit["attempts"]), (&"refused".into(), &json!([])), "{label}: {audit}");
        }
        assert!(gateway.records("usage").is_empty(), "{label}");
    }
    assert_eq!((vendor.heads().len(), vendor.connections()), (0, 0), "nothing went up");
    // It would have agreed.
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let mut near = gateway.client().await;
    assert_eq!(near.send(asking(REALTIME, "")).await.head().await.status, 101);
}

#[tokio::test]
async fn a_key_without_the_right_is_refused() {
    let vendor = saying(AGREED).await;
    for (right, target, status) in [
        ("", REALTIME, 403),
        ("passthrough = false", REALTIME, 403),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/realtime\"]", REALTIME, 403),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/listen\"]", REALTIME, 403),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/realtime\"]", "/p/openai/v1/realtime/more", 403),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/realtime\"]", REALTIME, 101),
    ] {
        let before = vendor.heads().len();
        let keys = format!("[keys.test]\nsha256 = \"{}\"\n{right}\n", sha256(KEY));
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys)).await;
        let mut client = gateway.client().await;
        let head = client.send(asking(target, "")).await.head().await;
        assert_eq!(head.status, status, "{right}: {head:?}");
        assert_eq!(vendor.heads().len() - before, usize::from(status == 101), "{right}");
    }
}

/// Pingora before 0.8 passed on what stood behind an offer before it was accepted (CVE-2026-2833).
#[tokio::test]
async fn what_stands_behind_an_offer_that_is_declined_goes_nowhere() {
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.answer("403 Forbidden", "text/plain", "no").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for behind in [hidden(), asking("/p/openai/v1/hidden", ""), "\u{81}\u{5}".repeat(20_000)] {
        let answer = ask(&gateway, asking(REALTIME, "") + &behind, &behind[..2]).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (403, "no", true));
    }
    vendor.closed(3).await;
    let targets: Vec<_> = vendor.heads().into_iter().map(|head| head.target).collect();
    assert_eq!(targets, vec!["/v1/realtime?model=gpt-realtime"; 3]);
    assert_eq!(gateway.recorded("audit", 3).await.len(), 3, "and no request of it was served");
}

/// The vendor reads until the gateway hangs up, and tells how much came behind the head.
#[tokio::test]
async fn a_vendor_that_declines_hears_the_head_and_nothing_else() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for behind in [hidden(), "x".to_owned(), "x".repeat(50_000)] {
        let mut near = Line::connect(&gateway).await;
        near.send(asking(REALTIME, "") + &behind).await;
        let (_, mut far) = vendor.called().await;
        far.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
        assert_eq!(near.answer().await.status, 403);
        assert_eq!(near.next(2).await, b"no");
        let heard = far.rest().await;
        assert!(heard.is_empty(), "{} bytes behind the head", heard.len());
        assert!(near.rest().await.is_empty(), "one answer");
    }
}

/// After a 101 whatever follows is the vendor's, be it a request: it is a tunnel.
#[tokio::test]
async fn a_request_in_a_tunnel_is_bytes_to_the_gateway() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let mut near = Line::connect(&gateway).await;
    near.send(asking(REALTIME, "") + &hidden()).await;
    let (_, mut far) = vendor.called().await;
    assert!(far.buffer.is_empty(), "not before the 101");
    far.send(AGREED).await;
    assert_eq!(far.next(hidden().len()).await, hidden().as_bytes());
    assert_eq!(near.answer().await.status, 101);
    drop((near, far));
    assert_eq!(gateway.recorded("audit", 1).await.len(), 1, "one request");
}

/// The offer of a client that is not let in does not keep its connection.
#[tokio::test]
async fn a_refused_offer_may_be_made_again_with_a_key() {
    let vendor = saying(AGREED).await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let mut client = Client::connect(gateway.addr()).await;
    let refused = client.send(bare(REALTIME, "")).await.answer().await;
    assert_eq!(refused.refusal(), (401, "invalid_api_key".to_owned()));
    if refused.header("connection") == Some("close") {
        ends(&mut client, "as it said").await;
        client = Client::connect(gateway.addr()).await;
    }
    assert_eq!(client.send(asking(REALTIME, "")).await.head().await.status, 101);
}

/// What is no list of sub-protocols cannot be searched for the caller's key, and is not passed on.
#[tokio::test]
async fn sub_protocols_that_are_not_ascii_do_not_go_up() {
    let vendor = saying(AGREED).await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for line in
        [&b"token, KEY, \xe9"[..], b"token, KEY\xe9", b"\xc3\xa9, openai-insecure-api-key.KEY", b"token, KEY, \xff"]
    {
        let label = line.escape_ascii().to_string();
        let line: Vec<u8> = match find(line, b"KEY") {
            Some(at) => [&line[..at], KEY.as_bytes(), &line[at + 3..]].concat(),
            None => line.to_vec(),
        };
        let head = asking(REALTIME, "");
        let lines = [b"Sec-WebSocket-Protocol: ", &line[..], b"\r\n\r\n"].concat();
        let request = [&head.as_bytes()[..head.len() - 2], &lines].concat();
        gateway.client().await.send(request).await.head().await;
        for sent in vendor.heads() {
            assert!(!format!("{sent:?}").contains(KEY), "{label}: {sent:?}");
            assert_eq!(sent.header("sec-websocket-protocol"), None, "{label}");
        }
    }
}
