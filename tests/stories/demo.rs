//! The demo as a newcomer meets it: what it prints is pasted, and what comes out is speech.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::support::gateway::{command, scratch};
use super::support::{Client, soon};

/// Starts the demo, and gives what it prints up to its being ready.
async fn demo(dir: &Path) -> (Child, Vec<String>) {
    let mut child = command(dir)
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
    assert_eq!(lines.len(), 3, "{printed:?}");
    for line in &lines {
        let line = line.replacen("curl -s", "curl -sS --fail", 1);
        let done = Command::new("sh").args(["-c", &line]).current_dir(&dir).output().await.expect("sh is there");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        if line.contains("/voices") {
            let voices: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
            assert!(voices["voices"].as_array().is_some_and(|all| all.iter().any(|voice| voice["id"] == "rms")));
        }
    }
    let mp3 = std::fs::read(dir.join("hello.mp3")).expect("written");
    assert!(mp3.starts_with(b"ID3") || mp3.starts_with(&[0xff]), "an MP3 begins so");
    let (seconds, level) = heard(&std::fs::read(dir.join("hallo.wav")).expect("written"));
    assert!((1.0..8.0).contains(&seconds) && level > 500.0, "{seconds} s at a level of {level}");
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn a_sentence_has_the_length_and_the_level_of_speech() {
    let dir = scratch();
    let (_demo, printed) = demo(&dir).await;
    let addr = printed[0].rsplit("://").next().expect("an address").to_owned();
    for (voice, format) in [("rms", "wav"), ("alloy", "wav"), ("fr", "wav"), ("rms", "pcm")] {
        let body = serde_json::json!({
            "model": "gpt-4o-mini-tts", "voice": voice, "response_format": format,
            "input": "The quick brown fox jumps over the lazy dog.",
        })
        .to_string();
        let request = format!(
            "POST /v1/audio/speech HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer demo\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = Client::connect(&addr).await.send(request.as_bytes()).await.answer().await;
        assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some(format!("audio/{format}").as_str()));
        let (seconds, level) = if format == "wav" { heard(&answer.body) } else { loudness(&answer.body) };
        assert!((1.5..6.0).contains(&seconds) && level > 500.0, "{voice}: {seconds} s at a level of {level}");
    }
    std::fs::remove_dir_all(dir).ok();
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
