//! What clients do wrong: each mistake has its exact answer and its record, and no vendor hears of it.

mod bodies;
mod forms;
mod heads;
mod json;
mod keys;
mod secrets;
mod smuggling;

use serde_json::{Value, json};

use super::support::client::post;
use super::support::vendor::Received;
use super::support::{Answer, Client, Gateway, KEY, PROVIDER_KEY, Vendor};

const SPEAK: &str = "POST /v1/audio/speech HTTP/1.1";
/// Would be served, if it were ever taken for a request.
const HIDDEN: &str = r#"{"model":"openai/tts-1","input":"hidden","voice":"alloy"}"#;
const JSON: &str = "Content-Type: application/json\r\n";
const CHUNKED: &str = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
const INVALID: &str = "invalid_request";

/// What a refusal says: status, code, and the field at fault.
type Want<'w> = (u16, &'w str, Option<&'w str>);

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Usable,
    Closed,
}

/// A vendor that answers with what it was sent, so that every answer shows whose it is.
async fn echo() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        wire.answer("200 OK", "audio/mpeg", &request.body).await;
        Some(wire)
    })
    .await
}

/// A request that is in order, on a connection that should be.
async fn canary(client: &mut Client, label: &str) {
    let input = format!("canary {label}");
    let body = json!({ "model": "openai/tts-1", "input": input, "voice": "alloy" }).to_string();
    let answer = client.post("/v1/audio/speech", &body).await;
    assert_eq!(answer.status, 200, "{label}: {answer:?}");
    assert_eq!(answer.json()["input"], input, "{label}: everyone gets their own answer");
}

/// The vendor was sent `count` requests, and each of them was in order.
fn only_canaries(vendor: &Vendor, count: usize) {
    let sent = vendor.requests();
    let strange: Vec<_> = sent.iter().filter(|sent| !sent.text().contains(r#""input":"canary "#)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(sent.len(), count);
}

/// The answer is a refusal of ours, in every detail.
fn check(label: &str, answer: &Answer, (status, code, param): Want<'_>) {
    assert!(answer.complete, "{label}: {answer:?}");
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{label}: {answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["param"], param.map_or(Value::Null, Value::from), "{label}");
    let kind = match status {
        401 => "authentication_error",
        500..=504 => "server_error",
        _ => "invalid_request_error",
    };
    assert_eq!(error["type"], kind, "{label}");
    assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')), "{label}: {error}");
    let helps = ["request_timeout", "incomplete_body", "overloaded"].contains(&code);
    assert_eq!(answer.header("x-should-retry"), (!helps).then_some("false"), "{label}");
    assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer realm=\"aulos\""), "{label}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{label}");
    assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    assert_eq!(answer.header("x-aulos-provider"), None, "{label}");
    assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()), "{label}");
    assert_eq!(answer.header("x-request-id"), answer.header("x-aulos-request-id"), "{label}");
}

/// What has become of the connection, which must be what its answer says.
async fn fate(client: &mut Client, answer: &Answer, label: &str) -> Fate {
    if !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        canary(client, label).await;
        return Fate::Usable;
    }
    client.send(post("/v1/audio/speech", &[], HIDDEN).as_bytes()).await.finish().await;
    let rest = client.rest().await;
    assert!(rest.is_empty(), "{label}: answered after it was closed: {}", rest.escape_ascii());
    Fate::Closed
}

/// What the audit record of a refused request says.
async fn check_audit(label: &str, gateway: &Gateway, answer: &Answer, key: Option<&str>) -> Value {
    let audit = gateway.record_of("audit", answer).await;
    let code = answer.code();
    assert_eq!((&audit["status"], &audit["error"]), (&answer.status.into(), &code.into()), "{label}: {audit}");
    assert_eq!((&audit["end"], &audit["attempts"]), (&"refused".into(), &json!([])), "{label}: {audit}");
    assert_eq!(audit["key"], key.map_or(Value::Null, Value::from), "{label}: {audit}");
    assert!(audit.to_string().len() < 2048, "{label}: a record is bounded");
    audit
}

/// A request with the test's key, these header lines, and the length of its body.
fn request(first: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = format!("Content-Length: {}\r\n", body.as_ref().len());
    [&head(first, &format!("{lines}{length}"))[..], body.as_ref()].concat()
}

/// A head with the test's key and these lines.
fn head(first: &str, lines: &str) -> Vec<u8> {
    format!("{first}\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n").into_bytes()
}

/// One request in JSON with exactly these header lines for a credential.
fn asking(lines: &str, body: &str) -> Vec<u8> {
    format!("{SPEAK}\r\nHost: aulos\r\n{lines}{JSON}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a vendor is sent holds its own credential once, and nobody else's.
fn only_the_vendors_credential(sent: &Received) {
    assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
    for name in ["api-key", "x-api-key", "xi-api-key", "x-goog-api-key", "cookie", "proxy-authorization"] {
        assert_eq!(sent.header(name), None, "{name}");
    }
    assert!(!format!("{sent:?}").contains(KEY), "{sent:?}");
}

/// `body` in chunks of at most `size` bytes, with the last one.
fn chunked(body: &str, size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.as_bytes().chunks(size) {
        out.extend([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}
