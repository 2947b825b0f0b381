//! openai-python, passing through to a provider that answers it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::socket::{Said, Socket};
use super::{Checks, Stage, ok, parsed, speak, status};
use crate::clients::speech::{SOUND, base64};
use crate::clients::typist::digest;
use crate::clients::{Memory, refusal};
use crate::support::vendor::Received;
use crate::support::{PROVIDER_KEY, Wire};

const CHECKS: Checks = Checks {
    once: &[
        "speech_broken",
        "speech_retried",
        "error_of_the_provider",
        "error_unreachable",
        "realtime_async",
        "realtime_refused",
        "async_speech",
    ],
    at: &[(
        &["by_path", "by_host", "by_path_tls", "by_host_tls", "by_short_path"],
        &[
            "speech_whole",
            "speech_piece_by_piece",
            "transcript",
            "models",
            "endpoint_unknown",
            "error_wrong_key",
            "error_without_the_right",
            "realtime",
        ],
    )],
};

#[tokio::test]
async fn openai_python_can_pass_through() {
    let stage = Stage::set("openai", "/v1", "/v1/audio/speech", serve).await;
    stage.perform(&CHECKS).await;
    stage.signed(("authorization", &format!("Bearer {PROVIDER_KEY}")), "OpenAI/Python");
    stage.asked(&[
        ("POST /v1/audio/transcriptions", 5 * 4 + 1),
        ("GET /v1/models", 5),
        ("POST /v1/nobody/knows:this@all?a+b=c%2Fd%26e&list%5B%5D=x&list%5B%5D=y", 5),
        ("DELETE /v1/nobody/knows:this@all", 5),
        ("GET /v1/realtime?model=gpt-realtime", 5 + 1),
    ]);
    stage.told(&[("thrice sync", 3), ("credential", 1), ("refuse", 1), ("limit", 1), ("plain async 19", 1)]);
    stage.close(1).await;
}

async fn serve(memory: Arc<Memory>, request: Received, wire: Wire) -> Option<Wire> {
    let path = request.target.split('?').next().unwrap_or_default();
    match (&*request.method, path) {
        ("POST", "/v1/audio/speech") => {
            let asked = parsed(&request);
            assert_eq!(asked["model"], "tts-1");
            let text = asked["input"].as_str().expect("what to say");
            speak(&memory, &request, wire, text, failure).await
        }
        ("POST", "/v1/audio/transcriptions") => {
            let sound: &[u8] = &SOUND;
            assert!(request.body.windows(sound.len()).any(|bytes| bytes == sound), "the recording is in the form");
            ok(&request, wire, json!({ "text": "I heard it." })).await
        }
        ("GET", "/v1/models") => {
            let model = |id: &str| json!({ "id": id, "object": "model", "created": 1, "owned_by": "openai" });
            ok(&request, wire, json!({ "object": "list", "data": [model("tts-1"), model("ft:whisper-1:a/b")] })).await
        }
        ("POST", "/v1/nobody/knows:this@all") => {
            assert_eq!(parsed(&request), json!({ "words": "Grüße, 世界 🌍", "numbers": [1, 2.5] }));
            ok(&request, wire, json!({ "object": "unknown" })).await
        }
        ("DELETE", "/v1/nobody/knows:this@all") => ok(&request, wire, json!({ "object": "unknown" })).await,
        ("GET", "/v1/realtime") => talk(&request, wire).await,
        _ => unreachable!("{request:?}"),
    }
}

fn failure(what: &str) -> (&'static str, Value) {
    let (status, error) = match what {
        "refuse" => ("400 Bad Request", refusal("No such parameter.", Some("speed"), "unsupported_parameter")),
        "credential" => {
            let words = format!("Incorrect API key provided: {PROVIDER_KEY}.");
            (status(what), refusal(&words, None, "invalid_api_key"))
        }
        what => (status(what), refusal("Slow down.", None, "rate_limit_exceeded")),
    };
    (status, json!({ "error": error }))
}

/// A conversation: sound comes in events, and goes back in events, with what was heard.
async fn talk(request: &Received, wire: Wire) -> Option<Wire> {
    let mut socket = Socket::accept(request, wire).await;
    let event = |kind: &str, name: &str, value: Value| json!({ "type": kind, "event_id": "1", name: value });
    let session = json!({ "type": "realtime", "model": "gpt-realtime" });
    socket.text(&event("session.created", "session", session)).await;
    let mut heard = String::new();
    loop {
        let said: Value = match socket.said().await? {
            Said::Text(text) => serde_json::from_str(&text).expect("JSON"),
            Said::Close(code) => {
                socket.closed(code).await;
                return None;
            }
            Said::Sound(_) => unreachable!("it is told in text"),
        };
        match said["type"].as_str() {
            Some("session.update") => socket.text(&event("session.updated", "session", said["session"].clone())).await,
            Some("input_audio_buffer.append") => heard.push_str(said["audio"].as_str().expect("sound")),
            Some("response.create") => {
                for piece in SOUND.chunks(9_000) {
                    socket.text(&event("response.output_audio.delta", "delta", base64(piece).into())).await;
                }
                let transcript = digest(heard.as_bytes());
                let done = event("response.output_audio_transcript.done", "transcript", transcript.into());
                socket.text(&done).await;
                socket.text(&event("response.done", "response", json!({ "status": "completed" }))).await;
            }
            _ => unreachable!("{said}"),
        }
    }
}
