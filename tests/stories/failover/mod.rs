//! A provider fails and another one serves: before the first byte of an answer, as often as may be, and never beyond
//! what the client was told.

mod bounds;
mod keys;
mod leaving;
mod matrix;
mod ninefold;
mod once;
mod passed;
mod peers;
mod records;
mod reload;
mod routes;
mod secrets;
mod tls;
mod uploads;

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::support::client::post;
use super::support::form::{Form, Framing, TRANSCRIBE, noise};
use super::support::vendor::Received;
use super::support::{Answer, Conf, Gateway, Vendor, Wire};

/// The credential of the provider that serves.
const GOOD_KEY: &str = "sk-good-secret-fedcba9876543210";
/// Timers short enough to wait for, and long enough for a machine with other things to do.
const SHORT: &str = "[timeouts]\nconnect = \"2s\"\nfirst_byte = \"2s\"\nidle = \"2s\"\n";

const SOUND: &[u8] = b"SOUND";
/// What a provider says that does not serve.
const NO: &[u8] = br#"{"error":{"message":"no"}}"#;
const TEXT: &[u8] = br#"{"text":"Hello"}"#;
const EVENTS: [&str; 2] = ["data: {\"n\":1}\n\n", "data: [DONE]\n\n"];
/// Far more than fits into the buffers on the way.
static VOICE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(3_000_000));

/// What is asked for, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Speech,
    /// A chat whose answer is a stream of events.
    Chat,
    /// An upload that says its model before the sound, and goes on while it arrives.
    ModelFirst,
    /// One that says it behind, and has to be kept.
    ModelLast,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Speech, Self::Chat, Self::ModelFirst, Self::ModelLast];

    /// The body of a request for this model; `tag` stands in it once.
    fn body(self, model: &str, tag: &str) -> Vec<u8> {
        let form = || Form::new().field("prompt", tag);
        match self {
            Self::Speech => json!({ "model": model, "input": tag, "voice": "alloy" }).to_string().into(),
            Self::Chat => {
                let messages = [json!({ "role": "user", "content": tag })];
                json!({ "model": model, "messages": messages, "stream": true }).to_string().into()
            }
            Self::ModelFirst => form().field("model", model).file(&*VOICE).close(),
            Self::ModelLast => form().file(&*VOICE).field("model", model).close(),
        }
    }

    /// A whole request with its length, the test's key and these header lines.
    fn asking(self, model: &str, tag: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let body = self.body(model, tag);
        let path = match self {
            Self::Speech => "/v1/audio/speech",
            Self::Chat => "/v1/chat/completions",
            Self::ModelFirst | Self::ModelLast => {
                let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                return Framing::Declared.request(TRANSCRIBE, &lines, &body);
            }
        };
        post(path, headers, &String::from_utf8_lossy(&body)).into()
    }

    fn request(self, model: &str, tag: &str) -> Vec<u8> {
        self.asking(model, tag, &[])
    }

    /// What the provider that serves makes of it.
    fn served(self) -> Vec<u8> {
        match self {
            Self::Speech => SOUND.into(),
            Self::Chat => EVENTS.concat().into(),
            Self::ModelFirst | Self::ModelLast => TEXT.into(),
        }
    }
}

/// Serves a request in good order.
async fn serve(request: &Received, wire: &mut Wire) {
    if request.target.ends_with("/audio/speech") {
        wire.answer("200 OK", "audio/mpeg", SOUND).await;
    } else if request.target.ends_with("/chat/completions") {
        wire.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for event in EVENTS {
            wire.write(Framing::Chunked.piece(event.as_bytes())).await;
        }
        wire.write(Framing::Chunked.end()).await;
    } else {
        wire.answer("200 OK", "application/json", TEXT).await;
    }
}

/// A vendor that serves everything.
async fn good() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        serve(&request, &mut wire).await;
        Some(wire)
    })
    .await
}

/// A vendor that has the same answer for everything: a status, and perhaps header lines.
async fn saying(status: &'static str) -> Vendor {
    Vendor::start(move |_, mut wire| async move {
        wire.answer(status, "application/json", NO).await;
        Some(wire)
    })
    .await
}

/// A provider at a port, which asks for the keys in these variables.
fn provider(name: &str, port: u16, keys: &[&str]) -> String {
    let mut table =
        format!("[providers.{name}]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nkeys = [");
    for key in keys {
        write!(table, "\"${{{key}}}\", ").expect("a string takes all");
    }
    table + "]\n"
}

/// Something that is bound and does not listen: nobody else gets its port, and whoever connects is refused.
fn nobody() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().expect("made");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let port = socket.local_addr().expect("bound").port();
    (socket, port)
}

/// A vendor that hears all of a request and closes.
async fn closing() -> Vendor {
    Vendor::start(|_, _| async { None }).await
}

/// A vendor that hears all of a request and says nothing.
async fn stalling() -> Vendor {
    Vendor::start(|_, mut wire| async move {
        wire.gone().await;
        None
    })
    .await
}

/// The key a request came with.
fn key_of(request: &Received) -> String {
    let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    bearer.expect("a key").to_owned()
}

/// A vendor that answers `odd` with this status and these header lines, and serves all other keys.
async fn limiting(odd: &'static [&'static str], status: &'static str) -> Vendor {
    Vendor::start(move |request, mut wire| async move {
        if odd.contains(&key_of(&request).as_str()) {
            wire.answer(status, "application/json", NO).await;
        } else {
            serve(&request, &mut wire).await;
        }
        Some(wire)
    })
    .await
}

/// Two providers, `bad` and `good`, and a model called `house` that is at both, under a name of each one's own.
fn two(bad: u16, good: u16) -> Conf {
    Conf::new()
        .env("GOOD_KEY", GOOD_KEY)
        .with(&provider("bad", bad, &["PROVIDER_KEY"]))
        .with(&provider("good", good, &["GOOD_KEY"]))
        .with("[models.house]\nroutes = [\"bad/m1\", \"good/their/m2\"]")
}

/// One request on a connection of its own.
async fn ask(gateway: &Gateway, kind: Kind, model: &str, tag: &str) -> Answer {
    let mut client = gateway.client().await;
    client.send(kind.request(model, tag)).await;
    client.answer().await
}

/// The answer is the one of the provider that serves, and whole.
fn is_served(answer: &Answer, kind: Kind, label: &str) {
    let got = (answer.status, String::from_utf8_lossy(&answer.body), answer.complete);
    assert_eq!(got, (200, String::from_utf8_lossy(&kind.served()), true), "{label}: {:?}", answer.headers);
    assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{label}");
}

/// The attempts of a request, a line for each: `provider/model key status error`.
async fn attempts(gateway: &Gateway, answer: &Answer) -> Vec<String> {
    let audit = gateway.record_of("audit", answer).await;
    let attempts = audit["attempts"].as_array().expect("a list");
    assert_eq!(answer.header("x-aulos-attempts"), Some(attempts.len().to_string().as_str()), "{audit}");
    let line = |attempt: &Value| {
        let text = |name: &str| attempt[name].as_str().unwrap_or("-").to_owned();
        let number = |name: &str| attempt[name].as_u64().map_or("-".to_owned(), |number| number.to_string());
        let (key, status) = (number("key"), number("status"));
        format!("{}/{} {key} {status} {}", text("provider"), text("model"), text("error"))
    };
    attempts.iter().map(line).collect()
}
