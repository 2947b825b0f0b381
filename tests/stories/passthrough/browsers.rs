//! Web pages: a browser lets each of them ask a gateway on its machine, and says so with an Origin.

use super::{PATH, key, passing};
use crate::support::{Conf, Gateway, KEY, Vendor};

const ORIGINS: [&str; 4] = ["https://page.example", "http://localhost:3000", "http://127.0.0.1", "null"];
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A vendor that agrees to WebSocket, and answers everything else.
async fn vendor() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        if request.header("upgrade").is_some() {
            wire.write(AGREED).await.linger().await;
            return None;
        }
        wire.answer("200 OK", "text/plain", "served").await;
        Some(wire)
    })
    .await
}

/// A plain request with these header lines, one with a body that a page may send to anybody, and an upgrade.
fn requests(lines: &str) -> [(String, u16); 3] {
    let head = |method: &str, more: &str| format!("{method} {PATH} HTTP/1.1\r\nHost: aulos\r\n{lines}{more}\r\n");
    let offer = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    [
        (head("GET", ""), 200),
        (head("POST", "Content-Type: text/plain\r\nContent-Length: 2\r\n") + "hi", 200),
        (head("GET", offer), 101),
    ]
}

#[tokio::test]
async fn where_no_key_is_asked_for_pages_have_no_passthrough() {
    let vendor = vendor().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys("").arg("--insecure")).await;
    for origin in ORIGINS {
        for (request, _) in requests(&format!("Origin: {origin}\r\n")) {
            let answer = gateway.client().await.send(&request).await.answer().await;
            assert_eq!(answer.refusal(), (403, "forbidden".into()), "{request}: {answer:?}");
            assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{request}");
        }
    }
    assert_eq!(vendor.connections(), 0);
    for (request, status) in requests("") {
        let head = gateway.client().await.send(&request).await.head().await;
        assert_eq!((head.status, head.header("x-aulos-origin")), (status, Some("provider")), "{request}");
    }
}

/// A page that knows a key may use it.
#[tokio::test]
async fn with_a_key_pages_are_served() {
    let vendor = vendor().await;
    for insecure in [false, true] {
        let conf = passing().upstream(&vendor).keys(&key("test", KEY, "passthrough = true"));
        let gateway = Gateway::spawn(if insecure { conf.arg("--insecure") } else { conf }).await;
        for (request, status) in requests(&format!("Origin: {}\r\nX-Api-Key: {KEY}\r\n", ORIGINS[0])) {
            let head = gateway.client().await.send(&request).await.head().await;
            assert_eq!(head.status, status, "{request}");
        }
    }
}
