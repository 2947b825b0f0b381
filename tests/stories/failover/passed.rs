//! What is passed through says little of peers and keys: a provider's own API is larger than what is served with it, and
//! whoever asks for it decides on what it answers.

use serde_json::Value;

use super::peers::{OFF, pool};
use super::{Kind, NO, SOUND, ask, is_served, key_of, provider};
use crate::support::{Answer, Conf, Gateway, KEY, Vendor, sha256};

const KEY_A: &str = "sk-passed-a-0123456789";
const KEY_B: &str = "sk-passed-b-0123456789";

/// The test's key, which may pass anything through.
fn passing(conf: Conf) -> Conf {
    conf.keys(&format!("[keys.test]\nsha256 = \"{}\"\npassthrough = true\n", sha256(KEY)))
}

/// A provider called `many` with these keys.
fn many(port: u16, keys: &[&str]) -> Conf {
    passing(Conf::new().env("KEY_A", KEY_A).env("KEY_B", KEY_B).with(&provider("many", port, keys)))
}

/// What the gateway says of a provider: of its peers or its keys.
async fn said(gateway: &Gateway, name: &str, what: &str, of: &str) -> Vec<Value> {
    let said = gateway.admin("/readyz?verbose").await.json();
    let list = said["providers"][name][what].as_array().unwrap_or_else(|| unreachable!("{said}"));
    list.iter().map(|one| one[of].clone()).collect()
}

async fn breaker(gateway: &Gateway) -> Value {
    said(gateway, "pool", "peers", "breaker").await.remove(0)
}

async fn set_aside(gateway: &Gateway) -> Vec<Value> {
    said(gateway, "many", "keys", "set_aside").await
}

/// Fails as the provider does.
async fn fails(gateway: &Gateway) {
    assert_eq!(ask(gateway, Kind::Speech, "pool/m", "x").await.status, 503);
}

async fn passes(gateway: &Gateway, status: u16) -> Answer {
    let answer = gateway.get("/p/pool/v1/x").await;
    assert_eq!((answer.status, answer.header("x-aulos-origin")), (status, Some("provider")), "{answer:?}");
    answer
}

/// Neither is it a failure: who asks for what fails takes nothing from the others.
#[tokio::test]
async fn a_5xx_that_passes_is_no_success_of_the_peer_and_no_failure() {
    let vendor = super::saying("503 Odd").await;
    let gateway = Gateway::spawn(passing(pool(&[vendor.port], OFF))).await;
    for _ in 0..6 {
        passes(&gateway, 503).await;
    }
    assert_eq!(breaker(&gateway).await, "closed");
    for _ in 0..4 {
        fails(&gateway).await;
        passes(&gateway, 503).await;
    }
    assert_eq!(breaker(&gateway).await, "closed", "four in a row");
    fails(&gateway).await;
    assert_ne!(breaker(&gateway).await, "closed", "the fifth");
}

#[tokio::test]
async fn a_5xx_that_passes_does_not_close_what_is_open() {
    let vendor = super::saying("503 Odd").await;
    let gateway = Gateway::spawn(passing(pool(&[vendor.port], OFF))).await;
    for _ in 0..5 {
        fails(&gateway).await;
    }
    passes(&gateway, 503).await;
    assert_ne!(breaker(&gateway).await, "closed", "while it is open");
    gateway.metric_is(&format!("aulos_peer_breaker{{peer=\"127.0.0.1:{}\",provider=\"pool\"}}", vendor.port), 1).await;
    passes(&gateway, 503).await;
    assert_eq!(breaker(&gateway).await, "half_open", "as its probe");
    // It has given back the probe: the next request is one.
    fails(&gateway).await;
    assert_eq!(breaker(&gateway).await, "open");
}

/// An answer of the provider's to what needs no key, or another right of it.
#[tokio::test]
async fn a_success_that_passes_does_not_bring_back_a_key() {
    const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    for (status, why) in [("429 Too Many\r\nRetry-After: 100", "limited"), ("402 Payment Required", "refused")] {
        let vendor = Vendor::start(move |request, mut wire| async move {
            if request.method == "POST" {
                wire.answer(status, "application/json", NO).await;
            } else if request.header("upgrade").is_some() {
                wire.write(AGREED).await;
                return None;
            } else {
                wire.answer("200 OK", "audio/mpeg", SOUND).await;
            }
            Some(wire)
        })
        .await;
        let gateway = Gateway::spawn(many(vendor.port, &["KEY_A"])).await;
        ask(&gateway, Kind::Speech, "many/m", "x").await;
        assert_eq!(set_aside(&gateway).await, [why], "{status}");
        let answer = gateway.get("/p/many/v1/models").await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, SOUND));
        gateway.record_of("usage", &answer).await;
        assert_eq!(set_aside(&gateway).await, [why], "{status}: after a 200");
        let head = format!(
            "GET /p/many/v1/realtime HTTP/1.1\r\nHost: aulos\r\nX-Api-Key: {KEY}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let answer = gateway.client().await.send(head).await.head().await;
        assert_eq!(answer.status, 101, "{answer:?}");
        gateway.record_of("usage", &answer).await;
        assert_eq!(set_aside(&gateway).await, [why], "{status}: after a 101");
    }
}

/// Limits are of one endpoint or model as often as not: a key is missed by everybody, but not for an hour. How long it
/// rests is seen beside another one that rests for five minutes: the one due back first is asked.
#[tokio::test]
async fn a_429_that_passes_sets_its_key_aside_for_a_minute_at_most() {
    let vendor = Vendor::start(|request, mut wire| async move {
        match (request.method.as_str(), key_of(&request).as_str()) {
            ("POST", KEY_A) => wire.answer("200 OK", "audio/mpeg", SOUND).await,
            ("POST", _) => wire.answer("429 Too Many\r\nRetry-After: 300", "application/json", NO).await,
            _ => wire.answer("429 Too Many\r\nRetry-After: 3600", "application/json", NO).await,
        }
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(many(vendor.port, &["KEY_A", "KEY_B"])).await;
    for _ in 0..2 {
        is_served(&ask(&gateway, Kind::Speech, "many/m", "x").await, Kind::Speech, "in turn");
    }
    assert_eq!(set_aside(&gateway).await, [Value::Null, "limited".into()]);
    for label in ["the one that is left", "the one due back first"] {
        let answer = gateway.get("/p/many/v1/images").await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("3600")), "{label}: as it was said");
        assert_eq!(vendor.requests().last().map(key_of).as_deref(), Some(KEY_A), "{label}");
        assert_eq!(set_aside(&gateway).await, ["limited"; 2], "{label}");
    }
}
