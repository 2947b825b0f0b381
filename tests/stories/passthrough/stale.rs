//! A pooled connection that its provider has closed meanwhile: who is asked twice, and who is not.

use super::{PATH, ask, conf, raw};
use crate::support::{Answer, Gateway, Vendor};

/// Serves the first request of a connection, and closes on the second without a word.
async fn forgetful() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        if wire.is_used() {
            return None;
        }
        wire.answer("200 OK", "text/plain", &request.body).await;
        Some(wire)
    })
    .await
}

async fn send(gateway: &Gateway, method: &str, lines: &str, body: &str) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = ask(&format!("{method} {PATH}"), &format!("{lines}{length}"), body);
    gateway.client().await.send(request).await.answer().await
}

#[tokio::test]
async fn only_what_may_be_done_twice_is_asked_again() {
    for (method, lines, body, is_repeated) in [
        ("GET", "", "", true),
        ("OPTIONS", "", "", true),
        ("PUT", "", "", true),
        ("DELETE", "", "", true),
        ("POST", "", "", false),
        ("PATCH", "", "", false),
        ("PROPFIND", "", "", false),
        ("POST", "", "a body", false),
        ("PATCH", "", "a body", false),
        ("POST", "Idempotency-Key: 1\r\n", "", true),
        ("POST", "Idempotency-Key: 1\r\n", "a body", true),
        ("PATCH", "Idempotency-Key: 1\r\n", "a body", true),
    ] {
        let label = format!("{method} {lines}{body}");
        let vendor = forgetful().await;
        let gateway = Gateway::spawn(conf(&vendor)).await;
        let first = send(&gateway, "GET", "", "").await;
        assert_eq!(first.status, 200, "{label}");
        // When it is recorded, its connection is in the pool.
        gateway.record_of("usage", &first).await;
        let answer = send(&gateway, method, lines, body).await;
        let heard: Vec<_> = vendor.requests().iter().skip(1).map(|sent| (sent.method.clone(), sent.text())).collect();
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!(audit["attempts"][0]["reused"], true, "{label}: {audit}");
        let times = if is_repeated { 2 } else { 1 };
        assert_eq!(heard, vec![(method.to_owned(), body.to_owned()); times], "{label}");
        assert_eq!(audit["attempts"].as_array().map(Vec::len), Some(times), "{label}: {audit}");
        if is_repeated {
            assert_eq!((answer.status, answer.text().as_str()), (200, body), "{label}: {answer:?}");
        } else {
            assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()), "{label}");
        }
    }
}

/// A connection that was closed while nobody used it is not used at all.
#[tokio::test]
async fn a_connection_that_is_known_to_be_closed_is_left_alone() {
    let vendor = Vendor::start(|request, mut wire| async move {
        wire.answer("200 OK", "text/plain", &request.body).await;
        None
    })
    .await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for n in 1..=5 {
        let answer = send(&gateway, "POST", "", "a body").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "a body"), "{n}: {answer:?}");
        gateway.record_of("usage", &answer).await;
        vendor.closed(n).await;
    }
    assert_eq!(raw(&gateway, ask(&format!("GET {PATH}"), "", "")).await.status, 200);
    assert_eq!(vendor.requests().len(), 6);
}
