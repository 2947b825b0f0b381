//! The SDKs upload what is to be transcribed, to a provider that says what it heard.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::typist::{Heard, Typist, digest};
use super::{Sdk, perform};
use crate::support::form::Framing::{self, Chunked, Declared};
use crate::support::{Conf, Gateway, PROVIDER_KEY, Vendor};

/// What both scripts check. One that is missing from a script's output did not run.
const CHECKS: &[&str] = &[
    "upload_long",
    "format_text",
    "format_verbose",
    "translation",
    "events",
    "events_broken",
    "events_error",
    "raw_response",
    "azure_uploads",
    "azure_v1",
    "error_too_large",
    "error_not_found",
    "error_authentication",
    "error_bad_request",
    "error_of_the_provider",
    "error_early",
    "retry_until_served",
];
const PYTHON_CHECKS: &[&str] = &[
    "upload_path",
    "upload_open_file",
    "upload_bytes",
    "upload_bytesio",
    "upload_tuple",
    "async_files",
    "async_long",
    "async_events",
    "async_formats",
    "async_azure",
    "async_errors",
];
const NODE_CHECKS: &[&str] = &["upload_short", "upload_named", "upload_many", "retry_not_possible"];

/// What a file was called and how it was framed, by what was asked with it.
type Sent = (&'static str, &'static str, Framing);

#[tokio::test]
async fn openai_python_uploads_what_it_has() {
    let stage = Stage::set().await;
    stage.perform(Sdk::Python, PYTHON_CHECKS).await;
    // It always knows the length, and puts the file last.
    stage.heard(&[
        ("plain path", "speech.wav", Declared),
        ("plain open", "speech.wav", Declared),
        ("plain bytes", "upload", Declared),
        ("plain bytesio", "upload", Declared),
        ("plain named", "note.mp3", Declared),
        ("plain tuple", "Grüße %22世界%22.wav", Declared),
        ("plain long", "long.mp3", Declared),
        ("plain long bytes", "upload", Declared),
        ("plain translation", "speech.wav", Declared),
        ("plain azure", "speech.wav", Declared),
        ("plain azure path", "upload", Declared),
        ("plain async open", "speech.wav", Declared),
        ("plain async tuple", "Grüße.wav", Declared),
        ("plain async long", "long.mp3", Declared),
    ]);
    stage.said("plain open", &["model", "language", "prompt", "temperature", "file"]);
    let granularities = ["timestamp_granularities[]"; 2];
    stage.said("plain verbose", &[&["model", "prompt", "response_format"][..], &granularities, &["file"]].concat());
    stage.asked(&[("thrice open", 3), ("thrice bytes", 3), ("refuse sync", 1), ("refuse async", 1)]);
    // A retry of what was refused would be counted here.
    stage.close(&[("model_not_found", 4), ("invalid_api_key", 3), ("model_conflict", 1)], 4).await;
}

#[tokio::test]
async fn openai_node_uploads_what_it_has() {
    let stage = Stage::set().await;
    stage.perform(Sdk::Node, NODE_CHECKS).await;
    stage.heard(&[
        ("plain stream, file first", "speech.wav", Chunked),
        ("plain stream, model first", "speech.wav", Chunked),
        ("plain buffer, file first", "speech.wav", Declared),
        ("plain buffer, model first", "speech.wav", Declared),
        ("plain long stream, file first", "long.mp3", Chunked),
        ("plain long stream, model first", "long.mp3", Chunked),
        ("plain long buffer, file first", "long.mp3", Declared),
        ("plain long buffer, model first", "long.mp3", Declared),
        ("plain long query", "long.mp3", Chunked),
        ("plain named", "Grüße %22世界%22.wav", Declared),
        ("plain blob", "blob.flac", Declared),
        ("plain many 19", "speech.wav", Chunked),
        ("plain translation", "speech.wav", Chunked),
        ("plain azure alias", "speech.wav", Chunked),
        ("plain azure path", "speech.wav", Declared),
    ]);
    stage.said("plain stream, file first", &["file", "model", "prompt"]);
    stage.said("plain stream, model first", &["model", "prompt", "file"]);
    let granularities = ["timestamp_granularities[]"; 2];
    stage.said("plain verbose", &[&["file", "model", "prompt", "response_format"][..], &granularities].concat());
    // What was streamed cannot be sent again.
    stage.asked(&[("thrice buffer", 3), ("thrice stream", 1), ("refuse sync", 1)]);
    stage.close(&[("model_not_found", 9), ("invalid_api_key", 8), ("model_conflict", 4)], 4).await;
}

/// The provider, and two gateways before it: one to use, and one that takes small forms only.
struct Stage {
    typist: Arc<Typist>,
    vendor: Vendor,
    gateway: Gateway,
    narrow: Gateway,
}

impl Stage {
    async fn set() -> Self {
        let (typist, vendor) = Typist::open().await;
        let conf = Conf::new().upstream(&vendor).with("[aliases]\nmy-stt = \"openai/whisper-1\"");
        let narrow = Gateway::spawn(conf.clone().with("[limits]\nupload_body = \"1MiB\"")).await;
        Self { gateway: Gateway::spawn(conf).await, typist, vendor, narrow }
    }

    async fn perform(&self, sdk: Sdk, more: &[&str]) {
        let narrow = format!("http://{}", self.narrow.addr());
        let command = sdk.command("uploads", &self.gateway.dir);
        perform(command, &self.gateway, &[("NARROW_GATEWAY", &narrow)], [CHECKS, more].concat()).await;
    }

    /// What the provider heard, with this take.
    fn takes(&self, take: &str) -> Vec<Heard> {
        self.typist.heard().into_iter().filter(|heard| heard.take() == take).collect()
    }

    /// The provider got every recording byte for byte, under its own name for the model and the client's for the file.
    fn heard(&self, sent: &[Sent]) {
        let mut recordings = BTreeMap::new();
        for heard in self.typist.heard() {
            let want = recordings.entry(heard.file.len).or_insert_with(|| digest(&recording(heard.file.len)));
            assert_eq!(heard.field("file"), Some(want.as_str()), "{heard:?}");
            assert_eq!(heard.field("model"), Some("whisper-1"), "{heard:?}");
            assert!(!heard.take().starts_with("never"), "it was refused, and forwarded all the same");
            let op = if heard.take().contains("translation") { "translations" } else { "transcriptions" };
            assert_eq!(heard.path.split('?').next(), Some(&*format!("/v1/audio/{op}")), "{heard:?}");
        }
        assert_eq!(recordings.into_keys().collect::<Vec<_>>(), [100_000, 30_000_000]);
        for (take, name, framing) in sent {
            let takes = self.takes(take);
            let got: Vec<_> = takes.iter().map(|heard| (heard.file.name.as_deref(), heard.framing)).collect();
            assert_eq!(got, [(Some(*name), *framing)], "{take}");
        }
        for head in self.vendor.heads() {
            assert_eq!(head.header("authorization"), Some(&*format!("Bearer {PROVIDER_KEY}")));
            let leaked = head.headers.iter().any(|(name, value)| name == "api-key" || value.contains("omx_live"));
            assert!(!leaked, "{:?}", head.headers);
        }
    }

    /// The fields of a form, in the order in which its client put them.
    fn said(&self, take: &str, fields: &[&str]) {
        let takes = self.takes(take);
        let said: Vec<_> = takes.iter().flat_map(|heard| &heard.fields).map(|(name, _)| name.as_str()).collect();
        assert_eq!(said, fields, "{take}");
    }

    /// How often the provider was asked the same.
    fn asked(&self, takes: &[(&str, usize)]) {
        for (take, count) in takes {
            assert_eq!(self.takes(take).len(), *count, "{take}");
        }
    }

    /// Ends the gateways and reads their records. `refused`: how often, by the code; `too_large`: by the narrow one.
    async fn close(mut self, refused: &[(&str, usize)], too_large: usize) {
        assert!(self.gateway.stop().await.success());
        assert!(self.narrow.stop().await.success());
        let (usage, audit) = (self.gateway.records("usage"), self.gateway.records("audit"));
        for (code, count) in refused {
            assert_eq!(audit.iter().filter(|record| record["error"] == *code).count(), *count, "{code}");
        }
        let all = self.narrow.records("audit");
        assert!(all.iter().all(|record| record["error"] == "request_too_large"), "{all:?}");
        assert_eq!(all.len(), too_large);
        let forwarded = usage.len() + self.narrow.records("usage").len();
        assert_eq!(forwarded, self.vendor.heads().len(), "one usage record a forwarded request");
        let mut early = usage.iter().filter(|record| record["status"] == 429).peekable();
        assert!(
            early.peek().is_some() && early.all(|record| record["end"] == "complete"),
            "they have had their answer"
        );
        let is_heard = |record: &&Value| record["status"] != 429 && record["end"] != "refused";
        let mut recorded: Vec<_> = usage.iter().filter(is_heard).map(|record| record["file_bytes"].as_u64()).collect();
        let mut heard: Vec<_> = self.typist.heard().iter().map(|heard| Some(heard.file.len as u64)).collect();
        recorded.sort_unstable();
        heard.sort_unstable();
        assert_eq!(recorded, heard, "the files are recorded as long as they are");
    }
}

/// What the scripts send: no two places in it are alike.
fn recording(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(len).collect()
}
