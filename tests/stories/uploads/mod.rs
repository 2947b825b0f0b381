//! A form with a file goes in, a text comes out. Wherever the form says its model, the provider gets the file byte for
//! byte, and as early as it can be known that it may.

mod answers;
mod azure;
mod captures;
mod connections;
mod early;
mod failing;
mod http2;
mod leaving;
mod models;
mod passing;
mod spool;

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::support::client::find;
use super::support::form::{Form, Framing, TRANSCRIBE, noise, small};
use super::support::vendor::Received;
use super::support::{Answer, Gateway, Vendor, Wire};

/// What every provider here has heard, unless a story says otherwise.
const TEXT: &[u8] = br#"{"text":"Hello"}"#;
/// Timers short enough to wait for, and long enough for a machine with other things to do.
const SHORT: &str = "[timeouts]\nconnect = \"1s\"\nfirst_byte = \"1s\"\nidle = \"1s\"\n";
/// A model under a name of the gateway's own, one under the provider's name, and an alias.
const MODELS: &str = "[models.house]\nroutes = [\"openai/whisper-large\"]\n\
                      [models.whisper-1]\nroutes = [\"openai/whisper-1\"]\n\
                      [aliases]\nshort = \"house\"\n";
/// What a client is told of a provider that gave no answer.
const UNAVAILABLE: (u16, &str) = (502, "upstream_unavailable");
const LATE: (u16, &str) = (504, "upstream_timeout");
/// Far more than fits into the buffers on the way. Its end can be told from its beginning.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| [b"THE BEGINNING", &noise(8_000_000)[..], b"THE END"].concat());

/// A vendor that has heard the same in everything.
async fn transcriber() -> Vendor {
    Vendor::speech("application/json", TEXT).await
}

/// One request with a form, on a connection of its own, by a client that writes everything before it reads.
async fn ask(gateway: &Gateway, framing: Framing, target: &str, body: &[u8]) -> Answer {
    let mut client = gateway.client().await;
    client.send(framing.request(target, "", body)).await;
    client.answer().await
}

/// The answer is the transcriber's, and whole.
fn is_heard(answer: &Answer, label: &str) {
    assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, TEXT, true), "{label}: {answer:?}");
}

/// An upload right behind a fault is served. When it is recorded, its connection to the vendor is in the pool.
async fn healthy(gateway: &Gateway, after: &str) {
    let answer = ask(gateway, Framing::Declared, TRANSCRIBE, &small("openai/healthy")).await;
    is_heard(&answer, after);
    gateway.record_of("usage", &answer).await;
}

/// What the vendor was sent last, whole.
fn last(vendor: &Vendor) -> Received {
    vendor.requests().pop().expect("it was sent something")
}

/// A form that tells the vendor what to do, in the name of its model, and that leaves while it arrives.
fn telling(model: &str) -> Vec<u8> {
    Form::new().field("model", model).file(&*SOUND).close()
}

/// The text of the model, once all of it is there.
fn model(body: &[u8]) -> Option<String> {
    let field = b"name=\"model\"\r\n\r\n";
    let rest = &body[find(body, field)? + field.len()..];
    Some(String::from_utf8_lossy(&rest[..find(rest, b"\r\n")?]).into_owned())
}

/// A vendor that does what it is told as soon as it hears it. What is called healthy is read whole, and served.
async fn hasty<F>(script: impl Fn(String, Received, Wire) -> F + Clone + Send + Sync + 'static) -> Vendor
where
    F: Future<Output = Option<Wire>> + Send,
{
    Vendor::early(move |request, mut wire| {
        let script = script.clone();
        async move {
            let what = wire.finds(model).await?;
            if what == "healthy" {
                wire.whole(request).await?;
                wire.answer("200 OK", "application/json", TEXT).await;
                return Some(wire);
            }
            script(what, request, wire).await
        }
    })
    .await
}

/// A provider that asks for no key.
fn provider(name: &str, port: u16) -> String {
    format!("[providers.{name}]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\n")
}

/// A provider whose 200 waits for what comes behind it.
fn holding(vendor: &Vendor) -> String {
    format!("{}hold_200 = true\n", provider("held", vendor.port))
}

/// What a request that got nothing from its provider leaves behind.
async fn is_failed(gateway: &Gateway, answer: &Answer, refusal: (u16, &str), end: &str, label: &str) -> Value {
    assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{label}");
    assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    assert_eq!(answer.header("x-should-retry"), None, "{label}: another try may fare better");
    let audit = gateway.record_of("audit", answer).await;
    let usage = gateway.record_of("usage", answer).await;
    assert_eq!((&audit["end"], &usage["end"]), (&json!(end), &json!(end)), "{label}: {audit}");
    assert_eq!((&audit["error"], &audit["status"]), (&json!(refusal.1), &json!(refusal.0)), "{label}: {audit}");
    assert_eq!(usage["bytes_out"], 0, "{label}: {usage}");
    audit
}
