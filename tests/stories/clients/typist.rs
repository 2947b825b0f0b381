//! A provider that transcribes: it takes every form apart, and answers with the SHA-256 of the file in it.
//!
//! The first word of the field `prompt` tells it what to do, and the header `x-early` to refuse what is still being
//! sent.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Memory, chunk, chunked, event, refusal, whole};
use crate::support::client::find;
use crate::support::form::Framing;
use crate::support::vendor::Received;
use crate::support::{Vendor, Wire};

/// Bytes of an upload that are here when it is refused in its middle.
const EARLY_BYTES: usize = 1 << 20;
/// How long every recording is said to be.
const SECONDS: f64 = 8.47;

/// The provider.
#[derive(Default)]
pub(super) struct Typist {
    memory: Memory,
    heard: Mutex<Vec<Heard>>,
}

/// One upload that came to its end.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) path: String,
    pub(super) framing: Framing,
    /// Every field and its text, in order; of the file, its SHA-256.
    pub(super) fields: Vec<(String, String)>,
    pub(super) file: File,
}

/// The file of an upload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: Option<String>,
    pub(super) media: Option<String>,
    pub(super) len: usize,
}

impl Typist {
    pub(super) async fn open() -> (Arc<Self>, Vendor) {
        let typist = Arc::new(Self::default());
        let keep = Arc::clone(&typist);
        let vendor = Vendor::early(move |head, wire| Arc::clone(&typist).serve(head, wire)).await;
        (keep, vendor)
    }

    /// Every upload that came to its end.
    pub(super) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no story panics with it").clone()
    }

    async fn serve(self: Arc<Self>, head: Received, mut wire: Wire) -> Option<Wire> {
        if let Some(how) = head.header("x-early").map(str::to_owned) {
            return refuse_early(&how, head, wire).await;
        }
        let heard = Heard::new(&wire.whole(head).await?);
        self.heard.lock().expect("no story panics with it").push(heard.clone());
        let take = heard.take();
        let (what, tag) = take.split_once(' ').unwrap_or((take, ""));
        match what {
            "events" | "breakoff" | "stumble" => return self.events(&heard, wire).await,
            "refuse" => {
                let error = refusal("Invalid file format.", Some("file"), "unsupported_value");
                wire.write(failure("400 Bad Request", &error)).await;
            }
            "thrice" if self.memory.count(take) < 3 => {
                let error = refusal("Try again.", None, "server_error");
                wire.write(failure("500 Internal Server Error\r\nRetry-After-Ms: 10", &error)).await;
            }
            _ => {
                if what == "next" {
                    self.memory.gate(tag).add_permits(1);
                }
                let (media, text) = transcript(&heard);
                wire.write(whole("200 OK", media, text)).await;
            }
        }
        Some(wire)
    }

    /// What was heard in two pieces, the second when the client has the first; then all of it.
    async fn events(&self, heard: &Heard, mut wire: Wire) -> Option<Wire> {
        assert_eq!(heard.field("stream"), Some("true"));
        let (what, tag) = heard.take().split_once(' ')?;
        let (first, rest) = heard.field("file")?.split_at(32);
        let delta = |words: &str| event(&json!({ "type": "transcript.text.delta", "delta": words }));
        wire.write(chunked("text/event-stream")).await.write(delta(first)).await;
        match what {
            "breakoff" => return None,
            "stumble" => wire.write(event(&json!({ "error": refusal("Lost it.", None, "server_error") }))).await,
            _ => {
                self.memory.pass(tag).await;
                let text = [first, rest].concat();
                let usage = json!({ "type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59 });
                let done = json!({ "type": "transcript.text.done", "text": text, "usage": usage });
                wire.write(delta(rest)).await.write(event(&done)).await
            }
        };
        wire.write(chunk(b"")).await;
        Some(wire)
    }
}

impl Heard {
    fn new(request: &Received) -> Self {
        let (mut fields, mut file) = (Vec::new(), File::default());
        for part in parts(request) {
            let (head, value) = part.split_at(find(part, b"\r\n\r\n").expect("the head of a part ends") + 4);
            let head = String::from_utf8_lossy(head);
            let name = quoted(&head, "; name=").expect("a part has a name");
            if name == "file" {
                let media = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).map(str::to_owned);
                file = File { name: quoted(&head, "; filename="), media, len: value.len() };
                fields.push((name, digest(value)));
            } else {
                fields.push((name, String::from_utf8_lossy(value).into_owned()));
            }
        }
        let framing = request.header("content-length").map_or(Framing::Chunked, |_| Framing::Declared);
        Self { path: request.target.clone(), framing, fields, file }
    }

    /// The first field of this name.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// What it asks for.
    pub(super) fn take(&self) -> &str {
        self.field("prompt").unwrap_or_default()
    }
}

/// Refuses in the middle of an upload, and then reads the rest of it or does not.
async fn refuse_early(how: &str, head: Received, mut wire: Wire) -> Option<Wire> {
    wire.finds(|read| (read.len() >= EARLY_BYTES).then_some(())).await?;
    let error = refusal("Slow down.", None, "rate_limit_exceeded");
    wire.write(failure("429 Too Many Requests\r\nRetry-After: 7", &error)).await;
    match how {
        "drains" => {
            wire.whole(head).await?;
            return Some(wire);
        }
        "lingers" => wire.linger().await,
        // What was not read makes a reset of it.
        _ => {}
    }
    None
}

fn failure(status: &str, error: &Value) -> Vec<u8> {
    whole(status, "application/json", json!({ "error": error }).to_string())
}

/// The answer in the format that was asked for: what was heard is the SHA-256 of the file.
fn transcript(heard: &Heard) -> (&'static str, String) {
    let text = heard.field("file").unwrap_or_default();
    let usage = json!({ "type": "duration", "seconds": 9 });
    let subtitle = |dot: char, number: &str| format!("{number}00:00:00{dot}000 --> 00:00:08{dot}470\n{text}\n\n");
    match heard.field("response_format").unwrap_or("json") {
        "text" => ("text/plain; charset=utf-8", format!("{text}\n")),
        "srt" => ("text/plain; charset=utf-8", subtitle(',', "1\n")),
        "vtt" => ("text/plain; charset=utf-8", format!("WEBVTT\n\n{}", subtitle('.', ""))),
        "verbose_json" => {
            let mut answer = json!({
                "task": "transcribe", "language": "english", "duration": SECONDS, "text": text, "usage": usage,
            });
            for (_, wanted) in heard.fields.iter().filter(|(name, _)| name == "timestamp_granularities[]") {
                answer[format!("{wanted}s")] = timed(wanted, text);
            }
            ("application/json", answer.to_string())
        }
        _ => ("application/json", json!({ "text": text, "usage": usage }).to_string()),
    }
}

/// One word, or one segment, that is everything.
fn timed(granularity: &str, text: &str) -> Value {
    if granularity == "word" {
        return json!([{ "word": text, "start": 0.0, "end": SECONDS }]);
    }
    json!([{
        "id": 0, "seek": 0, "start": 0.0, "end": SECONDS, "text": text, "tokens": [1], "temperature": 0.0,
        "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0,
    }])
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes it");
        hex
    })
}

/// The parts of a form. Nothing stands before the first or after the last.
fn parts(request: &Received) -> Vec<&[u8]> {
    let media = request.header("content-type").expect("a form has a type");
    let boundary = media.split_once("boundary=").expect("a form has a boundary").1;
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    let mut rest = request.body.strip_prefix(&delimiter[2..]).expect("it begins with its boundary");
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n").filter(|part| !part.is_empty()) {
        let end = find(part, &delimiter).expect("every part ends");
        parts.push(&part[..end]);
        rest = &part[end + delimiter.len()..];
    }
    assert_eq!(String::from_utf8_lossy(rest).trim_end(), "--", "it ends with its boundary");
    parts
}

/// A parameter of a part's head, up to the next quote: clients write a quote in a name as `%22`.
fn quoted(head: &str, name: &str) -> Option<String> {
    let (_, value) = head.split_once(&format!("{name}\""))?;
    Some(value.split('"').next()?.to_owned())
}
