//! ElevenLabs' own SDK, and a provider that answers it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::socket::{Said, Socket};
use super::{Checks, PLACES, Stage, answer_json, ok, parsed, speak, status};
use crate::clients::Memory;
use crate::clients::speech::{SOUND, base64};
use crate::clients::typist::digest;
use crate::support::vendor::Received;
use crate::support::{PROVIDER_KEY, Wire};

const VOICE: &str = "JBFqnCBsd6RMkjVDRZzb";

const CHECKS: Checks = Checks {
    once: &[
        "speech_headers",
        "speech_broken",
        "transcript_long",
        "retried",
        "error_of_the_provider",
        "error_unreachable",
        "error_nowhere",
        "realtime_refused",
        "async_speech",
    ],
    at: &[
        (
            PLACES,
            &[
                "speech_whole",
                "speech_piece_by_piece",
                "transcript",
                "voices",
                "error_wrong_key",
                "error_without_the_right",
                "realtime_transcript",
            ],
        ),
        (&["by_path_tls", "by_host_tls"], &["realtime_speech"]),
    ],
};

#[tokio::test]
async fn the_sdk_of_elevenlabs_needs_a_base_url_and_a_key() {
    let stage = Stage::set("elevenlabs", "", "/v1/text-to-speech/**", serve).await;
    stage.perform(&CHECKS).await;
    stage.signed(("xi-api-key", PROVIDER_KEY), "elevenlabs/");
    let speech = format!("POST /v1/text-to-speech/{VOICE}");
    stage.asked(&[
        (&format!("{speech}?output_format=mp3_44100_128"), 4),
        (&format!("{speech}/stream?optimize_streaming_latency=0"), 4),
        ("GET /v1/voices", 4),
        ("GET /v1/voices/thrice", 3),
        ("DELETE /v1/voices/a%2Fb%20%C3%BC", 4),
    ]);
    stage.told(&[("credential", 1), ("refuse", 1), ("limit", 1), ("plain async 19", 1)]);
    stage.close(1).await;
}

async fn serve(memory: Arc<Memory>, request: Received, wire: Wire) -> Option<Wire> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let below = path.strip_prefix("/v1/text-to-speech/").and_then(|path| path.strip_prefix(VOICE));
    match (&*request.method, path) {
        ("POST", _) if matches!(below, Some("" | "/stream")) => {
            let asked = parsed(&request);
            let text = asked["text"].as_str().expect("what to say");
            speak(&memory, &request, wire, text, failure).await
        }
        ("GET", _) if below == Some("/stream-input") => say(&request, query, wire).await,
        ("GET", "/v1/speech-to-text/realtime") => hear(&request, query, wire).await,
        ("POST", "/v1/speech-to-text") => {
            let sound: &[u8] = &SOUND;
            assert!(request.body.windows(sound.len()).any(|bytes| bytes == sound), "the recording is in the form");
            ok(
                &request,
                wire,
                json!({
                    "language_code": "eng", "language_probability": 1.0, "text": "I heard it.", "words": [],
                }),
            )
            .await
        }
        ("GET", "/v1/voices") => ok(&request, wire, json!({ "voices": [voice()] })).await,
        ("GET", "/v2/voices") => {
            let want = "page_size=2&search=Gr%C3%BC%C3%9Fe+%26+co%2F%3F%2B&voice_ids=a+b&voice_ids=c%252Fd";
            let mut pairs: Vec<_> = query.split('&').collect();
            pairs.sort_unstable();
            assert_eq!(pairs.join("&"), want);
            ok(&request, wire, json!({ "voices": [voice()], "has_more": false, "total_count": 1 })).await
        }
        ("GET", "/v1/voices/thrice") if memory.count(path) < 3 => {
            let (status, body) = failure("thrice");
            answer_json(&request, wire, status, &body).await
        }
        ("GET", "/v1/voices/thrice") => ok(&request, wire, voice()).await,
        ("DELETE", _) => ok(&request, wire, json!({ "status": "ok" })).await,
        _ => unreachable!("{request:?}"),
    }
}

fn voice() -> Value {
    json!({ "voice_id": VOICE, "name": "George", "category": "premade", "labels": { "accent": "British" } })
}

fn failure(what: &str) -> (&'static str, Value) {
    let detail = |status: &str, message: &str| json!({ "detail": { "status": status, "message": message } });
    match what {
        "refuse" => {
            let detail = json!([{ "loc": ["body", "text"], "msg": "field required", "type": "value_error.missing" }]);
            ("422 Unprocessable Entity", json!({ "detail": detail }))
        }
        "credential" => (status(what), detail("invalid_api_key", &format!("Invalid API key: {PROVIDER_KEY}"))),
        what => (status(what), detail("too_many_concurrent_requests", "Slow down.")),
    }
}

/// Text comes in pieces, and sound goes back in pieces.
async fn say(request: &Received, query: &str, wire: Wire) -> Option<Wire> {
    assert!(query.split('&').any(|pair| pair == "model_id=eleven_flash_v2_5"), "{query}");
    let mut socket = Socket::accept(request, wire).await;
    let mut said = String::new();
    loop {
        let Some(Said::Text(text)) = socket.said().await else { unreachable!("{said} was not the end") };
        let text: Value = serde_json::from_str(&text).expect("JSON");
        match text["text"].as_str().expect("a text") {
            "" => break,
            text if text.trim() == "stumble" => {
                socket.text(&json!({ "message": "No credits.", "error": "quota_exceeded", "code": 1008 })).await;
                socket.close(1008, "No credits.").await;
                return None;
            }
            text => said.push_str(text),
        }
    }
    assert_eq!(said.trim(), "Hello, how are you? Grüße, 世界 🌍.");
    for piece in SOUND.chunks(9_000) {
        socket.text(&json!({ "audio": base64(piece), "isFinal": null })).await;
    }
    socket.text(&json!({ "audio": null, "isFinal": true })).await;
    socket.close(1000, "").await;
    None
}

/// Sound comes in pieces; what was heard of it so far is told when the client asks.
async fn hear(request: &Received, query: &str, wire: Wire) -> Option<Wire> {
    assert!(query.contains("keyterms=a%20b&keyterms=Gr%C3%BC%C3%9Fe"), "{query}");
    let mut socket = Socket::accept(request, wire).await;
    socket.text(&json!({ "message_type": "session_started", "session_id": "1" })).await;
    let mut heard = String::new();
    loop {
        match socket.said().await? {
            Said::Text(text) => {
                let text: Value = serde_json::from_str(&text).expect("JSON");
                heard.push_str(text["audio_base_64"].as_str().expect("sound"));
                if text["commit"] == true {
                    let text = digest(heard.as_bytes());
                    socket.text(&json!({ "message_type": "committed_transcript", "text": text })).await;
                }
            }
            Said::Close(code) => {
                socket.closed(code).await;
                return None;
            }
            Said::Sound(_) => unreachable!("it is told in text"),
        }
    }
}
