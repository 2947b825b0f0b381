//! The provider as a client meets it: over a socket, with the real engines, and with engines that misbehave.

mod transcription;

use std::path::{Path, PathBuf};
use std::process::Command;

use pingora_core::apps::ServerApp;
use pingora_core::protocols::l4::stream::Stream as TcpPart;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, unix::pipe};
use tokio::sync::watch;

use super::*;

const FOX: &str = "The quick brown fox jumps over the lazy dog.";

struct Server {
    speaker: Arc<Speaker>,
    address: std::net::SocketAddr,
    _shutdown: watch::Sender<bool>,
}

impl Server {
    async fn start() -> Self {
        Self::with_path(std::env::var_os("PATH").expect("a PATH")).await
    }

    async fn with_path(path: impl Into<OsString>) -> Self {
        let speaker = Arc::new(Speaker::new(path));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("loopback");
        let (shutdown, watch) = watch::channel(false);
        let app = speaker.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (app, watch) = (app.clone(), watch.clone());
                tokio::spawn(async move { app.process_new(Box::new(TcpPart::from(socket)), &watch).await });
            }
        });
        Self { speaker, address, _shutdown: shutdown }
    }

    async fn send(&self, request: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.expect("loopback");
        socket.write_all(request).await.expect("the connection");
        socket
    }

    async fn ask(&self, request: &[u8]) -> Answer {
        let mut raw = Vec::new();
        self.send(request).await.read_to_end(&mut raw).await.expect("the connection");
        Answer::parse(&raw)
    }

    async fn say(&self, changes: Value) -> Answer {
        self.ask(&speech(changes)).await
    }
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The fox, spoken by rms as wave, but for the `changes`.
fn speech(changes: Value) -> Vec<u8> {
    let mut body = json!({ "model": SPEECH_MODEL, "input": FOX, "voice": "rms", "response_format": "wav" });
    for (name, value) in changes.as_object().expect("an object") {
        body[name] = value.clone();
    }
    post("/v1/audio/speech", body.to_string().as_bytes())
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// Whether its end was seen: the last chunk, or as many bytes as were announced.
    complete: bool,
}

impl Answer {
    fn parse(raw: &[u8]) -> Self {
        let end = raw.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(raw[..end].to_vec()).expect("ASCII").to_ascii_lowercase();
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a status");
        let rest = &raw[end + 4..];
        let mut answer = Self { status, head, body: Vec::new(), complete: false };
        match answer.header("content-length") {
            Some(length) => {
                answer.complete = rest.len().to_string() == length;
                answer.body = rest.to_vec();
            }
            None if answer.header("transfer-encoding") == Some("chunked") => answer.join_chunks(rest),
            None => answer.body = rest.to_vec(),
        }
        answer
    }

    fn join_chunks(&mut self, mut rest: &[u8]) {
        while let Some(line) = rest.windows(2).position(|bytes| bytes == b"\r\n") {
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).expect("a chunk length"), 16)
                .expect("a chunk length");
            let chunk = &rest[line + 2..];
            self.complete = length == 0;
            if length == 0 || chunk.len() < length + 2 {
                return;
            }
            self.body.extend_from_slice(&chunk[..length]);
            rest = &chunk[length + 2..];
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn error(&self) -> Value {
        let answer: Value = serde_json::from_slice(&self.body).expect("an answer in JSON");
        answer["error"].clone()
    }

    /// The samples of a whole wave of ours.
    fn samples(&self) -> Vec<i16> {
        assert_eq!((self.status, self.complete), (200, true), "{}", self.head);
        let (head, pcm) = self.body.split_at(wave::HEAD.len());
        assert_eq!(head, wave::HEAD);
        let (pairs, odd) = pcm.as_chunks();
        assert!(odd.is_empty());
        pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect()
    }

    fn seconds(&self) -> f64 {
        self.samples().len() as f64 / 24_000.0
    }
}

/// Root mean square: how loud it is, of 32767.
fn level(samples: &[i16]) -> f64 {
    let sum: f64 = samples.iter().map(|sample| f64::from(*sample).powi(2)).sum();
    (sum / samples.len() as f64).sqrt()
}

#[tokio::test]
async fn it_speaks() {
    let server = Server::start().await;
    for voice in [json!("rms"), json!("slt"), json!("awb"), json!("kal16"), json!({ "id": "alloy" }), json!("de")] {
        let answer = server.say(json!({ "voice": voice })).await;
        let samples = answer.samples();
        assert_eq!(answer.header("content-type"), Some("audio/wav"));
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert!((1.5..6.0).contains(&answer.seconds()), "{voice}: {} s", answer.seconds());
        assert!(level(&samples) > 500.0, "{voice}: level {}", level(&samples));
    }
}

#[tokio::test]
async fn every_voice_of_the_list_speaks() {
    let server = Server::start().await;
    for voice in voices() {
        let answer = server.say(json!({ "voice": voice.id, "input": "Radio 1, 2, 3", "speed": 2 })).await;
        assert!(level(&answer.samples()) > 500.0, "{}", voice.id);
    }
}

#[tokio::test]
async fn every_format_is_what_it_says() {
    let server = Server::start().await;
    for (format, content_type, magic) in [
        ("mp3", "audio/mpeg", &[0xFF, 0xF3][..]),
        ("opus", "audio/opus", b"OggS"),
        ("aac", "audio/aac", &[0xFF, 0xF1]),
        ("flac", "audio/flac", b"fLaC"),
        ("wav", "audio/wav", b"RIFF\xff\xff\xff\xff"),
        ("pcm", "audio/pcm", b""),
    ] {
        let answer = server.say(json!({ "response_format": format })).await;
        assert_eq!((answer.status, answer.complete), (200, true), "{format}");
        assert_eq!(answer.header("content-type"), Some(content_type));
        assert!(answer.body.starts_with(magic), "{format}: {:?}", &answer.body[..8]);
        assert!(answer.body.len() > 8_000, "{format}: {} bytes", answer.body.len());
    }
    let mp3 = server.say(json!({ "response_format": null })).await;
    assert_eq!(mp3.header("content-type"), Some("audio/mpeg"), "which is the default");
}

#[tokio::test]
async fn faster_is_shorter_and_more_is_longer() {
    let server = Server::start().await;
    for voice in ["rms", "nova"] {
        let slow = server.say(json!({ "voice": voice, "speed": 0.5 })).await.seconds();
        let plain = server.say(json!({ "voice": voice })).await.seconds();
        let fast = server.say(json!({ "voice": voice, "speed": 2.0 })).await.seconds();
        assert!(slow > 1.5 * plain && plain > 1.5 * fast, "{voice}: {slow} {plain} {fast}");
        let four = server.say(json!({ "voice": voice, "input": format!("{FOX} {FOX} {FOX} {FOX}") })).await.seconds();
        assert!((3.5 * plain..4.5 * plain).contains(&four), "{voice}: {four} is not four times {plain}");
    }
}

#[tokio::test]
async fn text_is_never_an_option() {
    let server = Server::start().await;
    for voice in ["rms", "alloy"] {
        for input in ["--version", "-o /dev/null hello", "$(id) `id` | cat", "<speak>Hello</speak>", "\u{1}100I Hello"]
        {
            let answer = server.say(json!({ "voice": voice, "input": input })).await;
            assert!(level(&answer.samples()) > 100.0, "{voice}: {input}");
        }
    }
}

#[tokio::test]
async fn the_models_are_listed() {
    let server = Server::start().await;
    let answer = server.ask(b"GET /v1/models?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let list: Value = serde_json::from_slice(&answer.body).expect("an answer in JSON");
    assert_eq!((answer.status, &list["object"]), (200, &json!("list")));
    assert_eq!((&list["data"][0]["id"], &list["data"][1]["id"]), (&json!("demo-tts"), &json!("demo-stt")));
}

#[tokio::test]
async fn what_is_not_served_is_refused_in_openais_envelope() {
    let server = Server::start().await;
    let huge = vec![b' '; 3 * 1024 * 1024];
    for (label, request, status, code) in [
        ("no such path", post("/v1/audio/nothing", b"{}"), 404, "unknown_url"),
        ("wrong method", post("/v1/models", b"{}"), 405, "method_not_allowed"),
        ("no JSON", post("/v1/audio/speech", b"hello"), 400, "invalid_json"),
        ("a field", speech(json!({ "voice": "nobody" })), 400, "invalid_value"),
        ("events", speech(json!({ "stream_format": "sse" })), 400, "invalid_value"),
        ("a model", speech(json!({ "model": "tts-1" })), 404, "model_not_found"),
        ("far too long", post("/v1/audio/speech", &huge), 413, "request_too_large"),
    ] {
        let answer = server.ask(&request).await;
        assert_eq!((answer.status, answer.complete), (status, true), "{label}");
        assert_eq!(answer.error()["code"], code, "{label}");
    }
    let answer = server.ask(b"GET /v1/audio/speech HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("post")));
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let server = Server::start().await;
    let kept =
        String::from_utf8(speech(json!({ "voice": "nobody" }))).expect("ASCII").replace("Connection: close\r\n", "");
    let mut socket = server.send(kept.as_bytes()).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        assert_ne!(socket.read_buf(&mut answer).await.expect("the connection"), 0);
    }
    answer.clear();
    socket.write_all(&speech(json!({ "response_format": "pcm" }))).await.expect("the connection");
    socket.read_to_end(&mut answer).await.expect("the connection");
    assert!(Answer::parse(&answer).complete);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let server = Server::start().await;
    let old = String::from_utf8(speech(json!({}))).expect("ASCII").replace("HTTP/1.1", "HTTP/1.0");
    let answer = server.ask(old.as_bytes()).await;
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None));
    assert!(answer.body.starts_with(&wave::HEAD) && answer.body.len() > 72_000);
}

#[tokio::test]
async fn past_the_waiting_room_it_is_busy() {
    let server = Server::start().await;
    let all = u32::try_from(TURNS_MAX + WAITING_MAX).expect("a small number");
    let crowd = server.speaker.room.acquire_many(all).await.expect("an open semaphore");
    let answer = server.say(json!({})).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.error()["code"], "overloaded");
    drop(crowd);
    assert_eq!(server.say(json!({})).await.status, 200);
    assert_eq!(server.speaker.turns.available_permits(), TURNS_MAX, "every turn was given back");
}

#[tokio::test]
async fn who_has_to_wait_is_served_in_turn_and_who_leaves_is_forgotten() {
    let server = Server::start().await;
    let speaking = server
        .speaker
        .turns
        .acquire_many(u32::try_from(TURNS_MAX).expect("a small number"))
        .await
        .expect("an open semaphore");
    let in_room = |count: usize| {
        let room = &server.speaker.room;
        async move {
            while room.available_permits() != TURNS_MAX + WAITING_MAX - count {
                tokio::task::yield_now().await;
            }
        }
    };
    let leaves = server.send(&speech(json!({}))).await;
    let mut waits = server.send(&speech(json!({}))).await;
    in_room(2).await;
    drop(leaves);
    in_room(1).await;
    drop(speaking);
    let mut answer = Vec::new();
    waits.read_to_end(&mut answer).await.expect("the connection");
    assert!(Answer::parse(&answer).seconds() > 1.5);
}

/// A folder with a program that behaves as the test wants, and the wave it may need.
struct FakeEngine {
    folder: PathBuf,
}

impl FakeEngine {
    fn new(program: &str, name: &str, script: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("aulos-fake-engine-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder");
        let wave = wave::wave_of(22_050, 0x7FFF_F000, &[1000; 4000]);
        std::fs::write(folder.join("speech.wav"), wave).expect("the temporary folder");
        std::fs::write(folder.join("script"), format!("#!/bin/sh\ncd {}\n{script}\n", folder.display()))
            .expect("the temporary folder");
        // Another process writes the program: one that is open for writing here could not be started.
        run(Command::new("install").args(["-m", "755"]).arg(folder.join("script")).arg(folder.join(program)));
        Self { folder }
    }

    /// Itself before anything else.
    fn path(&self) -> OsString {
        let mut path = self.folder.clone().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").expect("a PATH"));
        path
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn run(command: &mut Command) {
    assert!(command.status().expect("a program").success(), "{command:?}");
}

fn fifo(path: &Path) -> pipe::Receiver {
    run(Command::new("mkfifo").arg(path));
    pipe::OpenOptions::new().open_receiver(path).expect("the pipe")
}

#[tokio::test]
async fn audio_goes_out_while_it_is_made_and_stops_when_the_client_leaves() {
    // It speaks for ever: whatever is heard of it went out before its end. While it lives it holds `alive` open.
    let engine =
        FakeEngine::new("espeak-ng", "endless", "exec 9>alive; cat >/dev/null; cat speech.wav; exec cat /dev/zero");
    let server = Server::with_path(engine.path()).await;
    for format in ["wav", "pcm", "mp3", "opus", "aac", "flac"] {
        let mut alive = fifo(&engine.folder.join("alive"));
        let mut client = server.send(&speech(json!({ "voice": "nova", "response_format": format }))).await;
        let mut heard = vec![0; 20_000];
        client.read_exact(&mut heard).await.expect("the connection");
        assert!(heard.starts_with(b"HTTP/1.1 200 OK\r\n"), "{format}");
        drop(client);
        assert_eq!(alive.read(&mut heard).await.expect("the pipe"), 0, "{format}: its end is the end of the pipe");
        std::fs::remove_file(engine.folder.join("alive")).expect("the temporary folder");
    }
}

#[tokio::test]
async fn an_engine_that_says_nothing_more_is_ended_when_the_client_leaves() {
    // It waits for a writer that never comes: no closed pipe tells it that nobody listens.
    let engine = FakeEngine::new("espeak-ng", "stuck", "exec 9>alive; cat >/dev/null; cat speech.wav; exec cat never");
    let mut alive = fifo(&engine.folder.join("alive"));
    run(Command::new("mkfifo").arg(engine.folder.join("never")));
    let server = Server::with_path(engine.path()).await;
    let mut client = server.send(&speech(json!({ "voice": "nova" }))).await;
    let mut heard = vec![0; 4_000];
    client.read_exact(&mut heard).await.expect("the connection");
    drop(client);
    let ended = tokio::time::timeout(Duration::from_secs(20), alive.read(&mut heard)).await;
    assert_eq!(ended.expect("it still lives").expect("the pipe"), 0);
    while server.speaker.turns.available_permits() < TURNS_MAX {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_breaks_off_has_no_end() {
    let engine = FakeEngine::new("espeak-ng", "breaks", "cat >/dev/null; cat speech.wav; exit 3");
    let server = Server::with_path(engine.path()).await;
    for format in ["wav", "pcm", "mp3", "flac"] {
        let answer = server.say(json!({ "voice": "nova", "response_format": format })).await;
        assert_eq!((answer.status, answer.complete), (200, false), "{format}");
        assert!(!answer.body.is_empty(), "{format}");
    }
}

#[tokio::test]
async fn an_engine_that_fails_before_the_first_sound_is_an_error() {
    for (label, script, status, code) in [
        ("fails", "exit 3", 500, "engine_failed"),
        ("noise", "cat >/dev/null; echo this is no wave file", 500, "engine_failed"),
        ("mute", "cat >/dev/null", 400, "invalid_value"),
    ] {
        let engine = FakeEngine::new("espeak-ng", label, script);
        let server = Server::with_path(engine.path()).await;
        for format in ["wav", "mp3", "opus", "flac"] {
            let answer = server.say(json!({ "voice": "nova", "response_format": format })).await;
            assert_eq!((answer.status, answer.complete), (status, true), "{label}, {format}");
            assert_eq!(answer.error()["code"], code, "{label}, {format}");
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let nothing = Server::with_path("").await;
    let engine = FakeEngine::new("espeak-ng", "alone", "/bin/cat >/dev/null; /bin/cat speech.wav");
    let alone = Server::with_path(engine.folder.clone()).await;
    for (server, voice, format, package) in
        [(&nothing, "rms", "wav", "flite"), (&nothing, "de", "mp3", "espeak-ng"), (&alone, "rms", "mp3", "flite")]
    {
        let answer = server.say(json!({ "voice": voice, "response_format": format })).await;
        assert_eq!((answer.status, answer.complete), (503, true));
        assert!(
            answer.error()["message"]
                .as_str()
                .expect("an answer in JSON")
                .contains(&format!("apt-get install {package}"))
        );
    }
}
