//! The demo as a newcomer meets it: what it prints is pasted, and what comes out is speech, or what was spoken.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::support::form::{BOUNDARY, Form, TRANSCRIBE};
use super::support::gateway::{command, scratch};
use super::support::{Answer, Client, soon};

/// Every voice of flite says it so that it is recognised.
const WEATHER: &str = "The weather is very nice today.";

/// Starts the demo, and gives what it prints up to its being ready.
async fn demo(dir: &Path) -> (Child, Vec<String>) {
    demo_with(dir, &search_path()).await
}

fn search_path() -> OsString {
    std::env::var_os("PATH").expect("a PATH")
}

/// The demo, with its programs looked for in `path`.
async fn demo_with(dir: &Path, path: &OsStr) -> (Child, Vec<String>) {
    let mut child = command(dir)
        .env("PATH", path)
        .args(["demo", "--port", "0", "--state-dir", "state"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let printed = soon("the demo is ready", async {
        let mut printed = Vec::new();
        while let Some(line) = lines.next_line().await.expect("readable") {
            if line == "ready" {
                return printed;
            }
            printed.push(line);
        }
        unreachable!("it ended: {printed:?}")
    })
    .await;
    (child, printed)
}

#[tokio::test]
async fn every_line_it_prints_works_when_pasted() {
    let dir = scratch();
    let (_demo, printed) = demo(&dir).await;
    let lines: Vec<_> = printed.iter().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(lines.len(), 4, "{printed:?}");
    for line in &lines {
        let line = line.replacen("curl -s", "curl -sS --fail", 1);
        let done = Command::new("sh").args(["-c", &line]).current_dir(&dir).output().await.expect("sh is there");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        if line.contains("/voices") {
            let voices: Value = serde_json::from_slice(&done.stdout).expect("JSON");
            assert!(voices["voices"].as_array().is_some_and(|all| all.iter().any(|voice| voice["id"] == "rms")));
        }
        if line.contains("/transcriptions") {
            let heard: Value = serde_json::from_slice(&done.stdout).expect("JSON");
            let said = "Hello. This is your own machine, speaking to you.";
            assert!(printed.iter().any(|line| line.contains(said)), "{printed:?}");
            assert!(alike(said, heard["text"].as_str().expect("a text")), "{heard}");
        }
    }
    let mp3 = std::fs::read(dir.join("hello.mp3")).expect("written");
    assert!(mp3.starts_with(b"ID3") || mp3.starts_with(&[0xff]), "an MP3 begins so");
    let (seconds, level) = heard(&std::fs::read(dir.join("hallo.wav")).expect("written"));
    assert!((1.0..8.0).contains(&seconds) && level > 500.0, "{seconds} s at a level of {level}");
    assert!(dir.join("state/records").is_dir(), "records go where they were told to go");
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn a_sentence_has_the_length_and_the_level_of_speech() {
    let dir = scratch();
    let (_demo, printed) = demo(&dir).await;
    let addr = addr(&printed);
    for (voice, format) in [("rms", "wav"), ("alloy", "wav"), ("fr", "wav"), ("rms", "pcm")] {
        let answer = speak(&addr, voice, format, "The quick brown fox jumps over the lazy dog.").await;
        assert_eq!(answer.header("content-type"), Some(format!("audio/{format}").as_str()));
        let (seconds, level) = if format == "wav" { heard(&answer.body) } else { loudness(&answer.body) };
        assert!((1.5..6.0).contains(&seconds) && level > 500.0, "{voice}: {seconds} s at a level of {level}");
    }
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn what_was_spoken_is_recognised_by_whatever_name_the_model_is_called() {
    let dir = scratch();
    let (_demo, printed) = demo(&dir).await;
    let addr = addr(&printed);
    let models = ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "demo-stt"];
    for (model, format) in models.into_iter().zip(["mp3", "opus", "aac", "flac", "wav"]) {
        let spoken = speak(&addr, "rms", format, WEATHER).await;
        let answer = transcribe(&addr, Form::new().file(&spoken.body).field("model", model)).await;
        assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
        assert!(alike(WEATHER, answer.json()["text"].as_str().expect("a text")), "{model}: {}", answer.text());
        assert_eq!(answer.json()["usage"]["type"], "duration");
    }
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn every_response_format_tells_the_same() {
    let dir = scratch();
    let (_demo, printed) = demo(&dir).await;
    let addr = addr(&printed);
    let spoken = speak(&addr, "rms", "mp3", WEATHER).await.body;
    for (format, media, head) in [
        ("json", "application/json", "{\"text\":\""),
        ("text", "text/plain; charset=utf-8", ""),
        ("verbose_json", "application/json", "{\"task\":\"transcribe\",\"language\":\"english\",\"duration\":"),
        ("srt", "text/plain; charset=utf-8", "1\n00:00:00,"),
        ("vtt", "text/plain; charset=utf-8", "WEBVTT\n\n00:00:00."),
    ] {
        let form = Form::new().field("model", "whisper-1").field("response_format", format).file(&spoken);
        let answer = transcribe(&addr, form).await;
        assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some(media), "{format}");
        assert!(answer.text().starts_with(head) && alike(WEATHER, &answer.text()), "{format}: {}", answer.text());
    }
    let form = Form::new().file(&spoken).field("model", "gpt-4o-transcribe").field("stream", "true");
    let answer = transcribe(&addr, form).await;
    assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = answer.text();
    let (deltas, done) = events.split_once("data: {\"type\":\"transcript.text.done\",").expect("an end");
    assert!(deltas.contains("transcript.text.delta") && alike(WEATHER, deltas) && alike(WEATHER, done));
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn what_it_cannot_do_it_says() {
    let dir = scratch();
    let (_demo, printed) = demo(&dir).await;
    let addr = addr(&printed);
    let form = Form::new().field("model", "whisper-1").file("This is not a recording. ".repeat(50));
    let undecodable = transcribe(&addr, form.clone()).await;
    assert_eq!(undecodable.refusal(), (400, "invalid_value".into()));
    assert!(undecodable.text().contains("could not be decoded"), "{}", undecodable.text());
    let translation = post_form(&addr, "/v1/audio/translations", form).await.answer().await;
    assert_eq!(translation.refusal(), (400, "unsupported_endpoint".into()));
    assert!(translation.text().contains("cannot translate"), "{}", translation.text());
    let german = Form::new().field("model", "whisper-1").field("language", "de").file("RIFF");
    assert_eq!(transcribe(&addr, german).await.refusal(), (400, "invalid_value".into()));
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn a_client_who_leaves_takes_the_recogniser_along() {
    let dir = scratch();
    // In the place of pocketsphinx: it waits for ever, and holds a pipe open for as long as it lives.
    let script = format!("#!/bin/sh\ncd {}\nexec 9>alive\necho here >&9\nexec cat never\n", dir.display());
    std::fs::create_dir_all(dir.join("usr/share/pocketsphinx/model/en-us/en-us")).expect("made");
    std::fs::create_dir_all(dir.join("usr/bin")).expect("made");
    std::fs::write(dir.join("script"), script).expect("written");
    let set_up = "install -m 755 script usr/bin/pocketsphinx && mkfifo alive never";
    let done = Command::new("sh").args(["-c", set_up]).current_dir(&dir).status().await.expect("sh is there");
    assert!(done.success());
    let mut alive = pipe::OpenOptions::new().open_receiver(dir.join("alive")).expect("opened");
    let path = [dir.join("usr/bin").as_os_str(), OsStr::new(":"), &search_path()].into_iter().collect::<OsString>();
    let (_demo, printed) = demo_with(&dir, &path).await;
    let addr = addr(&printed);
    let spoken = speak(&addr, "rms", "wav", WEATHER).await.body;
    let client = post_form(&addr, TRANSCRIBE, Form::new().field("model", "whisper-1").file(&spoken)).await;
    let mut seen = [0; 5];
    soon("the recogniser is at work", alive.read_exact(&mut seen)).await.expect("readable");
    drop(client);
    assert_eq!(soon("the recogniser ends", alive.read(&mut seen)).await.expect("readable"), 0);
    std::fs::remove_dir_all(dir).ok();
}

/// Where the demo listens.
fn addr(printed: &[String]) -> String {
    printed[0].rsplit("://").next().expect("an address").to_owned()
}

/// Has a text spoken.
async fn speak(addr: &str, voice: &str, format: &str, text: &str) -> Answer {
    let body = json!({ "model": "gpt-4o-mini-tts", "voice": voice, "response_format": format, "input": text });
    let body = body.to_string();
    let request = format!(
        "POST /v1/audio/speech HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer demo\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = Client::connect(addr).await.send(request.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
    answer
}

/// Sends a form, and leaves the answer to be read.
async fn post_form(addr: &str, path: &str, form: Form) -> Client {
    let body = form.close();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer demo\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut client = Client::connect(addr).await;
    client.send(head.as_bytes()).await.send(&body).await;
    client
}

async fn transcribe(addr: &str, form: Form) -> Answer {
    post_form(addr, TRANSCRIBE, form).await.answer().await
}

/// Whether three of four words of what was said are in what was heard. A recogniser may miss one.
fn alike(said: &str, heard: &str) -> bool {
    let heard: Vec<&str> = heard.split(|c: char| !c.is_ascii_alphabetic()).collect();
    let said = said.to_ascii_lowercase();
    let words: Vec<&str> = said.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()).collect();
    4 * words.iter().filter(|word| heard.contains(word)).count() >= 3 * words.len()
}

/// Seconds and level of a wav of 24 kHz, 16 bit, mono.
fn heard(wav: &[u8]) -> (f64, f64) {
    assert_eq!((&wav[..4], &wav[8..12]), (&b"RIFF"[..], &b"WAVE"[..]));
    assert_eq!(wav[24..28], 24_000u32.to_le_bytes(), "the sample rate");
    let data = memchr::memmem::find(wav, b"data").expect("there is sound in it");
    loudness(&wav[data + 8..])
}

/// Seconds and root mean square of such samples.
fn loudness(pcm: &[u8]) -> (f64, f64) {
    let samples: Vec<f64> = pcm.chunks_exact(2).map(|pair| f64::from(i16::from_le_bytes([pair[0], pair[1]]))).collect();
    let count = f64::from(u32::try_from(samples.len()).expect("a few seconds"));
    let power = samples.iter().map(|sample| sample * sample).sum::<f64>() / count.max(1.0);
    (count / 24_000.0, power.sqrt())
}
