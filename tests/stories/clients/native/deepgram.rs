//! Deepgram's own SDK, and a provider that answers it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::socket::{Said, Socket};
use super::{Checks, PLACES, Stage, answer_json, ok, parsed, speak, status};
use crate::clients::Memory;
use crate::clients::speech::SOUND;
use crate::clients::typist::digest;
use crate::support::vendor::Received;
use crate::support::{PROVIDER_KEY, Wire};

const CHECKS: Checks = Checks {
    once: &[
        "speech_broken",
        "transcript_long",
        "retried",
        "access_token",
        "error_of_the_provider",
        "error_unreachable",
        "live_long",
        "live_async",
        "live_refused",
        "async_speech",
    ],
    at: &[(
        PLACES,
        &[
            "speech_whole",
            "speech_piece_by_piece",
            "transcript",
            "projects",
            "error_wrong_key",
            "error_without_the_right",
            "live",
        ],
    )],
};

#[tokio::test]
async fn the_sdk_of_deepgram_needs_base_urls_and_a_key() {
    let stage = Stage::set("deepgram", "", "/v1/speak", serve).await;
    stage.perform(&CHECKS).await;
    stage.signed(("authorization", &format!("Token {PROVIDER_KEY}")), "deepgram-sdk/");
    stage.asked(&[
        ("POST /v1/speak?container=wav&encoding=linear16&model=aura-2-thalia-en&sample_rate=24000", 4),
        ("GET /v1/projects", 4),
        ("GET /v1/projects/thrice", 3),
        ("DELETE /v1/projects/a%2Fb%20%C3%BC/keys/c", 4),
    ]);
    stage.told(&[("credential", 1), ("refuse", 1), ("limit", 1), ("plain async 19", 1)]);
    stage.close(1).await;
}

async fn serve(memory: Arc<Memory>, request: Received, wire: Wire) -> Option<Wire> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match (&*request.method, path) {
        ("POST", "/v1/speak") => {
            let asked = parsed(&request);
            let text = asked["text"].as_str().expect("what to say");
            speak(&memory, &request, wire, text, failure).await
        }
        ("GET", "/v1/speak") => say(&request, wire).await,
        ("GET", "/v1/listen") if query == "model=refuse" => {
            let refusal = json!({ "err_code": "ASR_PAYMENT_REQUIRED", "err_msg": "No credits.", "request_id": "1" });
            answer_json(&request, wire, "402 Payment Required", &refusal).await
        }
        ("GET", "/v1/listen") => hear(&request, query, wire).await,
        ("POST", "/v1/listen") => {
            let is_url = request.body.starts_with(b"{\"url\":");
            assert!(is_url || request.body.starts_with(&SOUND), "the recording is the body");
            if query.contains("smart_format") {
                assert_keyterms(query);
            }
            ok(
                &request,
                wire,
                json!({
                    "metadata": { "request_id": "1", "sha256": "", "duration": 1.0, "channels": 1 },
                    "results": { "channels": [{ "alternatives": [alternative("I heard it.")] }] },
                }),
            )
            .await
        }
        ("GET", "/v1/projects") => {
            ok(&request, wire, json!({ "projects": [{ "project_id": "1", "name": "house" }] })).await
        }
        ("GET", "/v1/projects/thrice") if memory.count(path) < 3 => {
            let (status, body) = failure("thrice");
            answer_json(&request, wire, status, &body).await
        }
        ("GET", "/v1/projects/thrice") => ok(&request, wire, json!({ "project_id": "1", "name": "house" })).await,
        ("DELETE", _) => ok(&request, wire, json!({ "message": "done" })).await,
        _ => unreachable!("{request:?}"),
    }
}

fn assert_keyterms(query: &str) {
    let terms: Vec<_> = query.split('&').filter_map(|pair| pair.strip_prefix("keyterm=")).collect();
    assert_eq!(terms.join("&").replace("%20", "+"), "a+b&Gr%C3%BC%C3%9Fe%26co", "{query}");
}

fn alternative(transcript: &str) -> Value {
    json!({ "transcript": transcript, "confidence": 1.0, "words": [] })
}

fn failure(what: &str) -> (&'static str, Value) {
    let words = |code: &str, message: &str| json!({ "err_code": code, "err_msg": message, "request_id": "1" });
    match what {
        "refuse" => ("400 Bad Request", words("INVALID_QUERY_PARAMETER", "No such voice.")),
        "credential" => (status(what), words("INVALID_AUTH", &format!("Invalid credentials: {PROVIDER_KEY}"))),
        what => (status(what), words("TOO_MANY_REQUESTS", "Slow down.")),
    }
}

/// Every text is spoken at once.
async fn say(request: &Received, wire: Wire) -> Option<Wire> {
    let mut socket = Socket::accept(request, wire).await;
    loop {
        let text = match socket.said().await? {
            Said::Text(text) => serde_json::from_str::<Value>(&text).expect("JSON"),
            said => unreachable!("{said:?}"),
        };
        match text["type"].as_str() {
            Some("Speak") => socket.sound(&SOUND).await,
            Some("Close") => {
                socket.close(1000, "").await;
                return None;
            }
            _ => unreachable!("{text}"),
        }
    }
}

/// Sound comes in pieces; what was heard of it so far is told when the client asks.
async fn hear(request: &Received, query: &str, wire: Wire) -> Option<Wire> {
    if query.contains("keyterm") {
        assert_keyterms(query);
    }
    let metadata = json!({ "type": "Metadata", "request_id": "1", "sha256": "", "duration": 1.0, "channels": 1 });
    let mut socket = Socket::accept(request, wire).await;
    socket.text(&metadata).await;
    let mut heard = Vec::new();
    loop {
        let text = match socket.said().await? {
            Said::Sound(sound) => {
                heard.extend(sound);
                continue;
            }
            Said::Text(text) => serde_json::from_str::<Value>(&text).expect("JSON"),
            Said::Close(_) => unreachable!("it says so first"),
        };
        match text["type"].as_str() {
            Some("Finalize") => {
                let channel = json!({ "alternatives": [alternative(&digest(&heard))] });
                let results = json!({
                    "type": "Results", "channel_index": [0, 1], "duration": 1.0, "start": 0.0, "is_final": true,
                    "from_finalize": true, "channel": channel, "metadata": { "request_id": "1" },
                });
                socket.text(&results).await;
            }
            Some("CloseStream") => {
                socket.text(&metadata).await;
                socket.close(1000, "").await;
                return None;
            }
            Some("KeepAlive") => {}
            _ => unreachable!("{text}"),
        }
    }
}
