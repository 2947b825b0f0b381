//! The SDKs ask for speech, chats and models, of a provider that streams, stumbles and refuses as it is told.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Memory, Sdk, chunk, chunked, event, perform, refusal, whole};
use crate::support::client::post;
use crate::support::vendor::Received;
use crate::support::{Conf, Gateway, KEY, PROVIDER_KEY, Vendor, Wire, sha256, soon};

const LIMITED_KEY: &str = "omx_live_limited_key";
/// The sound, and the sizes of its pieces: the scripts know them too. The first is less than anybody would flush.
pub(super) static SOUND: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..40_000).map(|i| ((i * 7 + i / 256) % 256) as u8).collect());
const PIECES: [usize; 3] = [16, 5_000, 34_984];

/// What both scripts check. One that is missing from a script's output did not run.
const CHECKS: &[&str] = &[
    "speech_create",
    "speech_piece_by_piece",
    "speech_events",
    "speech_left_early",
    "speech_broken",
    "speech_broken_stream",
    "raw_response",
    "base_urls",
    "base_url_wrong",
    "chat_json",
    "chat_stream",
    "chat_stream_broken",
    "chat_stream_error",
    "models_list",
    "models_retrieve",
    "azure_speech",
    "azure_chat_stream",
    "azure_wrong_key",
    "error_authentication",
    "error_permission",
    "error_not_found",
    "error_bad_request",
    "error_too_large",
    "error_of_the_provider",
    "error_rate_limit",
    "error_page",
    "error_unreachable",
    "retry_until_served",
    "retry_gives_up",
    "retry_not_asked_for",
    "retry_overloaded",
];
const PYTHON_CHECKS: &[&str] = &[
    "speech_write_to_file",
    "provider_hint",
    "async_speech",
    "async_piece_by_piece",
    "async_chat_stream",
    "async_models",
    "async_azure",
    "async_errors",
    "async_retry",
    "async_cancelled",
];
const NODE_CHECKS: &[&str] = &["speech_many"];

#[tokio::test]
async fn openai_python_gets_what_it_asks_for() {
    let stage = Stage::set().await;
    stage.perform(Sdk::Python, PYTHON_CHECKS).await;
    // How often the provider was asked for the same thing, the SDK's retries included.
    stage.asked(&[("thrice async", 3), ("credential async", 1), ("plain async 19", 1), ("next async", 2)]);
    stage.close(Ends { broken: 5, left: 2 }).await;
}

#[tokio::test]
async fn openai_node_gets_what_it_asks_for() {
    let stage = Stage::set().await;
    stage.perform(Sdk::Node, NODE_CHECKS).await;
    stage.asked(&[("plain many 19", 1), ("short whole", 1)]);
    stage.close(Ends { broken: 5, left: 2 }).await;
}

/// How many answers broke off, and how many their client left.
struct Ends {
    broken: usize,
    left: usize,
}

/// Two gateways with their providers: one to use, and one that has room for a single request.
struct Stage {
    studio: Arc<Studio>,
    vendor: Vendor,
    gateway: Gateway,
    busy: Gateway,
}

impl Stage {
    async fn set() -> Self {
        let (studio, vendor) = Studio::open().await;
        let gone =
            "[providers.gone]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\nkeys = [\"${PROVIDER_KEY}\"]";
        let house = "[models.house]\nroutes = [\"openai/tts-1-hd\"]\nvoices = [\"alloy\"]\n\
                     formats = [\"mp3\", \"wav\"]\ninput_chars_max = 100";
        let keys = format!(
            "[keys.test]\nsha256 = \"{}\"\n[keys.few]\nsha256 = \"{}\"\nallow = [\"house\"]\n",
            sha256(KEY),
            sha256(LIMITED_KEY)
        );
        let conf = Conf::new().upstream(&vendor).keys(&keys).with(gone).with(house);
        let gateway = Gateway::spawn(conf.with("[aliases]\nmy-tts = \"openai/tts-1\"")).await;
        let busy = Gateway::spawn(Conf::new().upstream(&vendor).with("[limits]\nin_flight = 1")).await;
        Self { studio, vendor, gateway, busy }
    }

    /// Runs the script, while another request fills the busy gateway.
    async fn perform(&self, sdk: Sdk, more: &[&str]) {
        let mut occupant = self.busy.client().await;
        occupant.send(post("/v1/audio/speech", &[], &speech("hold on")).as_bytes()).await;
        self.vendor.received(1).await;
        let busy = format!("http://{}", self.busy.addr());
        let env = [("BUSY_GATEWAY", busy.as_str()), ("LIMITED_KEY", LIMITED_KEY)];
        let command = sdk.command("checks", &self.gateway.dir);
        tokio::select! {
            () = perform(command, &self.gateway, &env, [CHECKS, more].concat()) => {}
            () = self.make_room() => unreachable!("it waits for the script"),
        }
        assert_eq!(occupant.answer().await.body, *SOUND);
    }

    /// Lets the request that fills the busy gateway end, once another was refused for it. Does not return.
    async fn make_room(&self) {
        while !self.busy.records("audit").iter().any(|record| record["error"] == "overloaded") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.studio.memory.gate("on").add_permits(1);
        std::future::pending().await
    }

    /// How often the provider heard each request, and what only it could see of them.
    fn asked(&self, more: &[(&str, usize)]) {
        let requests = self.vendor.requests();
        let of = |take: &str| requests.iter().filter(|request| line(request) == take).collect::<Vec<_>>();
        let common = [
            ("thrice sync", 3),
            ("thrice chat", 3),
            ("thrice once", 2),
            ("credential", 1),
            ("refuse", 1),
            ("limit", 1),
            ("plain busy", 1),
            ("pieces sync", 1),
            ("plain /openai/v1", 1),
        ];
        for (take, count) in common.iter().chain(more) {
            assert_eq!(of(take).len(), *count, "{take}");
        }
        let never = requests.iter().find(|request| line(request).starts_with("never"));
        assert!(never.is_none(), "it was refused, and forwarded all the same");
        let attempt = |request: &&Received| request.header("x-stainless-retry-count").map(str::to_owned);
        let attempts: Vec<_> = of("thrice sync").iter().filter_map(attempt).collect();
        assert_eq!(attempts, ["0", "1", "2"]);
        assert_ne!(of("plain busy").first().and_then(attempt).as_deref(), Some("0"), "it was refused first");
        let want = json!({
            "model": "tts-1", "input": "plain Grüße, 世界 🌍", "voice": "alloy", "instructions": "calm",
            "response_format": "opus", "speed": 1.25,
        });
        assert_eq!(parsed(of("plain Grüße, 世界 🌍")[0]), want);
        let chat = parsed(of("talk json")[0]);
        assert_eq!(chat["messages"][0]["content"][1]["input_audio"]["data"], base64(&SOUND));
        for request in of("plain azure") {
            assert_eq!(request.target.split('?').next(), Some("/v1/audio/speech"));
            assert_eq!(parsed(request)["model"], "tts-1", "whatever the deployment was called");
        }
        for request in &requests {
            assert_eq!(request.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
            let leaked = request.headers.iter().any(|(name, value)| name == "api-key" || value.contains("omx_live"));
            assert!(!leaked, "{:?}", request.headers);
        }
    }

    /// Ends the gateway and reads its records.
    async fn close(mut self, ends: Ends) {
        let permits = u32::try_from(ends.left).expect("few");
        soon("the provider sees them leave", self.studio.left.acquire_many(permits)).await.expect("open").forget();
        assert_eq!(self.studio.left.available_permits(), 0);
        assert!(self.gateway.stop().await.success());
        let (usage, audit) = (self.gateway.records("usage"), self.gateway.records("audit"));
        let forwarded = usage.iter().filter(|record| record["provider"] == "openai").count();
        let elsewhere = ["hold on", "plain busy"];
        let here = self.vendor.requests().iter().filter(|request| !elsewhere.contains(&&*line(request))).count();
        assert_eq!(forwarded, here, "one usage record a forwarded request");
        // Of a chat, a client may leave at `[DONE]`, before the end of the body.
        let left = usage.iter().filter(|record| record["end"] == "client_gone" && record["op"] == "speech").count();
        let broken = usage.iter().filter(|record| record["end"] == "upstream_broken").count();
        assert_eq!((broken, left), (ends.broken, ends.left));
        let user_agents = audit.iter().map(|record| record["client"]["user_agent"].as_str().unwrap_or_default());
        assert!(user_agents.clone().count() > 0 && user_agents.clone().all(|name| name.contains("OpenAI/")));
        let escaped =
            audit.iter().any(|record| record["path"] == "/v1/models/openai%2Ftts-1" && record["status"] == 200);
        assert!(escaped, "the SDK escapes the slash in a model's name");
    }
}

/// The provider.
struct Studio {
    memory: Memory,
    /// Answers that their client left.
    left: Semaphore,
}

impl Studio {
    async fn open() -> (Arc<Self>, Vendor) {
        let studio = Arc::new(Self { memory: Memory::default(), left: Semaphore::new(0) });
        let keep = Arc::clone(&studio);
        let vendor = Vendor::start(move |request, wire| Arc::clone(&studio).serve(request, wire)).await;
        (keep, vendor)
    }

    async fn serve(self: Arc<Self>, request: Received, mut wire: Wire) -> Option<Wire> {
        let take = line(&request);
        let (what, tag) = take.split_once(' ').unwrap_or((&take, ""));
        let is_chat = request.target.starts_with("/v1/chat/completions");
        match what {
            "plain" => wire.write(spoken()).await,
            "next" => {
                self.memory.gate(tag).add_permits(1);
                wire.write(whole("200 OK", "audio/mpeg", b"on it goes")).await
            }
            "hold" => {
                self.memory.pass(tag).await;
                wire.write(spoken()).await
            }
            "pieces" => return self.pieces(tag, wire).await,
            "events" => return self.events(tag, wire).await,
            "talk" => wire.write(whole("200 OK", "application/json", talk())).await,
            "stream" => return self.stream(tag, wire).await,
            "leave" => {
                wire.write(chunked("audio/mpeg")).await.write(chunk(&SOUND[..PIECES[0]])).await.gone().await;
                self.left.add_permits(1);
                return None;
            }
            "break" => {
                wire.write(chunked("audio/mpeg")).await.write(chunk(&SOUND[..PIECES[1]])).await;
                return None;
            }
            "short" => {
                let answer = spoken();
                wire.write(&answer[..answer.len() - PIECES[2]]).await;
                return None;
            }
            "breakoff" => {
                wire.write(chunked("text/event-stream")).await.write(delta(&json!({ "transcript": "Hi" }))).await;
                return None;
            }
            "stumble" => {
                let error = json!({ "error": refusal("Lost the thread.", None, "server_error") });
                wire.write(chunked("text/event-stream")).await.write(delta(&json!({ "transcript": "Hi" }))).await;
                wire.write(event(&error)).await.write(chunk(b"")).await
            }
            "thrice" if self.memory.count(&take) < 3 => {
                let body = json!({ "error": refusal("Try again.", None, "server_error") }).to_string();
                wire.write(whole("500 Internal Server Error\r\nRetry-After-Ms: 10", "application/json", body)).await
            }
            "thrice" if is_chat => wire.write(whole("200 OK", "application/json", talk())).await,
            "thrice" => wire.write(spoken()).await,
            _ => wire.write(failure(what)).await,
        };
        Some(wire)
    }

    async fn pieces(&self, tag: &str, mut wire: Wire) -> Option<Wire> {
        wire.write(chunked("audio/mpeg")).await;
        let mut sound = SOUND.as_slice();
        for (i, size) in PIECES.into_iter().enumerate() {
            if i > 0 {
                self.memory.pass(tag).await;
            }
            let (piece, rest) = sound.split_at(size);
            wire.write(chunk(piece)).await;
            sound = rest;
        }
        wire.write(chunk(b"")).await;
        Some(wire)
    }

    async fn events(&self, tag: &str, mut wire: Wire) -> Option<Wire> {
        let (first, rest) = SOUND.split_at(PIECES[0]);
        let delta = |piece| event(&json!({ "type": "speech.audio.delta", "audio": base64(piece) }));
        let usage = json!({ "input_tokens": 14, "output_tokens": 101, "total_tokens": 115 });
        wire.write(chunked("text/event-stream")).await.write(delta(first)).await;
        self.memory.pass(tag).await;
        wire.write(delta(rest)).await;
        wire.write(event(&json!({ "type": "speech.audio.done", "usage": usage }))).await.write(chunk(b"")).await;
        Some(wire)
    }

    async fn stream(&self, tag: &str, mut wire: Wire) -> Option<Wire> {
        wire.write(chunked("text/event-stream")).await;
        for words in ["Hi", " there"] {
            wire.write(delta(&json!({ "id": "audio_1", "transcript": words }))).await;
            self.memory.pass(tag).await;
        }
        wire.write(delta(&json!({ "data": base64(&SOUND) }))).await;
        let last = json!({ "index": 0, "delta": {}, "finish_reason": "stop" });
        wire.write(event(&completion("chat.completion.chunk", json!([last])))).await;
        let mut usage = completion("chat.completion.chunk", json!([]));
        usage["usage"] = usage_of_a_talk();
        wire.write(event(&usage)).await.write(chunk(b"data: [DONE]\n\n")).await.write(chunk(b"")).await;
        Some(wire)
    }
}

/// What a request says to the provider: its input, or its first message.
fn line(request: &Received) -> String {
    let body = parsed(request);
    let content = &body["messages"][0]["content"];
    let said = [&body["input"], content, &content[0]["text"]].into_iter().find_map(Value::as_str);
    said.expect("speech or chat").to_owned()
}

fn parsed(request: &Received) -> Value {
    serde_json::from_slice(&request.body).expect("the gateway sends valid JSON")
}

fn speech(input: &str) -> String {
    json!({ "model": "openai/tts-1", "input": input, "voice": "alloy" }).to_string()
}

fn spoken() -> Vec<u8> {
    whole("200 OK", "audio/mpeg", SOUND.as_slice())
}

/// A chat's event with a part of its audio.
fn delta(audio: &Value) -> Vec<u8> {
    let choice = json!({ "index": 0, "delta": { "role": "assistant", "audio": audio }, "finish_reason": null });
    event(&completion("chat.completion.chunk", json!([choice])))
}

fn completion(object: &str, choices: Value) -> Value {
    json!({
        "id": "chatcmpl-1", "object": object, "created": 1_795_000_000, "model": "gpt-audio", "choices": choices,
    })
}

fn talk() -> String {
    let audio = json!({ "id": "audio_1", "data": base64(&SOUND), "expires_at": 1, "transcript": "Hi there" });
    let message = json!({ "role": "assistant", "content": null, "refusal": null, "audio": audio });
    let choice = json!({ "index": 0, "message": message, "finish_reason": "stop", "logprobs": null });
    let mut answer = completion("chat.completion", json!([choice]));
    answer["usage"] = usage_of_a_talk();
    answer.to_string()
}

fn usage_of_a_talk() -> Value {
    json!({
        "prompt_tokens": 22, "completion_tokens": 18, "total_tokens": 40,
        "completion_tokens_details": { "audio_tokens": 12, "text_tokens": 6, "reasoning_tokens": 0 },
    })
}

/// An answer that is no success.
fn failure(what: &str) -> Vec<u8> {
    let (status, error) = match what {
        "refuse" => ("400 Bad Request", refusal("No such parameter.", Some("speed"), "unsupported_parameter")),
        "limit" => ("429 Too Many Requests\r\nRetry-After: 7", refusal("Slow down.", None, "rate_limit_exceeded")),
        "credential" => {
            let words = format!("Incorrect API key provided: {PROVIDER_KEY}.");
            ("401 Unauthorized", refusal(&words, None, "invalid_api_key"))
        }
        "page" => return whole("503 Service Unavailable", "text/html", "<h1>Upstream is napping</h1>"),
        what => unreachable!("nobody asked for {what}"),
    };
    whole(status, "application/json", json!({ "error": error }).to_string())
}

pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let of = |three: &[u8]| {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        (0..4)
            .map(|i| if i > three.len() { '=' } else { char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]) })
            .collect::<String>()
    };
    bytes.chunks(3).map(of).collect()
}
