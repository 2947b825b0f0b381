//! Forms as real clients have sent them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::{TEXT, is_heard, last, transcriber};
use crate::support::client::find;
use crate::support::form::dechunked;
use crate::support::{Conf, Gateway, KEY};

/// One request out of `tests/data/captures`, with the test's key.
struct Capture {
    name: String,
    /// Its head, with the empty line.
    head: Vec<u8>,
    /// Its body as it goes over the wire.
    wire: Vec<u8>,
    /// The form in it.
    form: Vec<u8>,
}

impl Capture {
    /// `None`: a request to another endpoint.
    fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).expect("readable");
        let (head, wire) = bytes.split_at(find(&bytes, b"\r\n\r\n").expect("a head") + 4);
        let head = str::from_utf8(head).expect("a head is text").replace("sk-test", KEY).replace("az-key", KEY);
        let target = head.split(' ').nth(1).expect("a target");
        if !target.contains("/audio/transcriptions") && !target.contains("/audio/translations") {
            return None;
        }
        let is_chunked = head.contains("transfer-encoding: chunked");
        Some(Self {
            name: path.file_stem().expect("a name").to_string_lossy().into_owned(),
            form: if is_chunked { dechunked(wire) } else { wire.to_vec() },
            wire: wire.to_vec(),
            head: head.into_bytes(),
        })
    }

    fn target(&self) -> String {
        String::from_utf8_lossy(&self.head).split(' ').nth(1).expect("a target").to_owned()
    }

    fn is_chunked(&self) -> bool {
        self.form != self.wire
    }

    /// What stands between `before` and the end of its line.
    fn line_behind(&self, before: &str) -> Option<&str> {
        let start = find(&self.form, before.as_bytes())? + before.len();
        let rest = &self.form[start..];
        str::from_utf8(&rest[..find(rest, b"\r\n")?]).ok()
    }

    /// The text of its first field of that name.
    fn field(&self, name: &str) -> Option<&str> {
        self.line_behind(&format!("name=\"{name}\"\r\n\r\n"))
    }

    /// The form with another model in it.
    fn renamed(&self, model: &str) -> Vec<u8> {
        let field = b"name=\"model\"\r\n\r\n";
        let start = find(&self.form, field).expect("every client names its model") + field.len();
        let end = start + find(&self.form[start..], b"\r\n").expect("a field ends");
        [&self.form[..start], model.as_bytes(), &self.form[end..]].concat()
    }

    /// The request in one piece, and cut where it may hurt.
    fn cuts(&self) -> Vec<Vec<&[u8]>> {
        let model = find(&self.wire, b"name=\"model\"").expect("it stands there");
        let last = self.wire.len() - 1;
        let at = |at: usize| vec![&self.wire[..at], &self.wire[at..]];
        vec![
            vec![&self.wire[..]],
            at(model - 30),
            at(model + 5),
            at(model + 17),
            at(self.wire.len() / 2),
            at(last - 3),
            at(last),
            self.wire.chunks(1).collect(),
        ]
    }
}

fn captures() -> Vec<Capture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/captures");
    let mut paths: Vec<_> = dir.read_dir().expect("there").map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    let captures: Vec<_> = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "http"))
        .filter_map(|p| Capture::read(p))
        .collect();
    assert_eq!(captures.len(), 19);
    captures
}

/// The models that the captures ask for, each of them another one at the provider.
fn aliases() -> String {
    let asked =
        ["whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-transcribe-diarize", "my-whisper-deployment"];
    let aliases = asked.map(|model| format!("\"{model}\" = \"openai/the-providers-own-{model}\"\n"));
    format!("[aliases]\n{}", aliases.concat())
}

#[tokio::test]
async fn what_real_clients_send_arrives_byte_for_byte_however_it_is_cut() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&aliases())).await;
    for capture in captures() {
        let name = &capture.name;
        let model = capture.field("model").expect("every client names its model");
        let want = capture.renamed(&format!("the-providers-own-{model}"));
        for (cut, pieces) in capture.cuts().into_iter().enumerate() {
            let label = format!("{name}, cut {cut}");
            let mut client = gateway.client().await;
            client.send(&capture.head).await;
            for piece in pieces {
                client.send(piece).await;
                tokio::task::yield_now().await;
            }
            is_heard(&client.answer().await, &label);
            let sent = last(&vendor);
            sent.is_exactly(&want, &label);
            if !capture.is_chunked() {
                assert_eq!(sent.header("transfer-encoding"), None, "{label}: its length was declared");
            }
            let query = capture.target().split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
            let op = if capture.target().contains("translations") { "translations" } else { "transcriptions" };
            assert_eq!(sent.target, format!("/v1/audio/{op}{query}"), "{label}");
            assert!(!format!("{:?}", sent.headers).contains(KEY), "{label}: {:?}", sent.headers);
        }
    }
}

#[tokio::test]
async fn what_real_clients_send_is_recorded() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&aliases())).await;
    let mut names = BTreeSet::new();
    for capture in captures() {
        let mut client = gateway.client().await;
        let answer = client.send(&capture.head).await.send(&capture.wire).await.answer().await;
        let usage = gateway.record_of("usage", &answer).await;
        let model = capture.field("model").expect("every client names its model");
        let filename = capture.line_behind("filename=\"").and_then(|line| line.strip_suffix('"')).expect("a file");
        names.insert(filename.to_owned());
        let op = if capture.target().contains("translations") { "translation" } else { "transcription" };
        for (member, want) in [
            ("op", json!(op)),
            ("model_asked", json!(model)),
            ("model", json!(format!("openai/the-providers-own-{model}"))),
            ("provider_model", json!(format!("the-providers-own-{model}"))),
            ("provider", json!("openai")),
            ("filename", json!(filename)),
            // They all had the same file.
            ("file_bytes", json!(444)),
            ("bytes_in", json!(capture.form.len())),
            ("bytes_out", json!(TEXT.len())),
            ("format", json!(capture.field("response_format").unwrap_or("json"))),
            ("language", capture.field("language").map_or(Value::Null, Value::from)),
            ("stream", json!(capture.field("stream") == Some("true"))),
            ("input_chars", Value::Null),
            ("attempts", json!(1)),
            ("end", json!("complete")),
        ] {
            assert_eq!(usage[member], want, "{member} of {}: {usage}", capture.name);
        }
        let granularities = usage["timestamp_granularities"].as_array().map_or(0, Vec::len);
        let asked = memchr::memmem::find_iter(&capture.form, b"name=\"timestamp_granularities").count();
        assert_eq!(granularities, asked, "{}: {usage}", capture.name);
    }
    let want = ["blob.wav", "tiny.wav", "übung %221%22 音.wav", "übung 音.wav"];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), want, "as they are, in whatever letters");
}
