//! What comes back: whole, when it comes, and called what it is. And what of the form is recorded.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{TEXT, ask, holding, last, transcriber};
use crate::support::form::{Form, Framing, TRANSCRIBE, small};
use crate::support::{Conf, Gateway, Vendor};

#[tokio::test]
async fn an_answer_that_begins_late_arrives_whole() {
    let go = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&go);
    let vendor = Vendor::start(move |request, mut wire| {
        let told = Arc::clone(&told);
        async move {
            let (framing, pieces) = if request.text().contains("counted") {
                ("Content-Length: 16", [&TEXT[..1], &TEXT[1..]].map(<[u8]>::to_vec))
            } else {
                ("Transfer-Encoding: chunked", [Framing::Chunked.piece(TEXT), b"0\r\n\r\n".to_vec()])
            };
            wire.write(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\r\n")).await;
            for piece in pieces {
                told.acquire().await.expect("never closed").forget();
                wire.write(piece).await;
            }
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&holding(&vendor))).await;
    let asked = ["openai", "held"].into_iter().flat_map(|name| ["counted", "chunked"].map(|what| (name, what)));
    for (n, (name, what)) in (1..).zip(asked) {
        let mut client = gateway.client().await;
        client.send(&Framing::Declared.request(TRANSCRIBE, "", &small(&format!("{name}/{what}")))).await;
        // Its head is on the way, or here.
        vendor.received(n).await;
        go.add_permits(1);
        client.sees("{").await;
        go.add_permits(1);
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, TEXT, true), "{what}: {answer:?}");
        gateway.record_of("usage", &answer).await;
    }
    assert_eq!(vendor.connections(), 1, "the connection is used again");
}

#[tokio::test]
async fn an_empty_answer_is_an_answer() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
        let rest = if request.text().contains("counted") {
            "Content-Length: 0\r\n\r\n"
        } else {
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        };
        wire.write(format!("{head}{rest}")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for what in ["counted", "chunked"] {
        let answer = ask(&gateway, Framing::Declared, TRANSCRIBE, &small(&format!("openai/{what}"))).await;
        assert_eq!((answer.status, answer.body.len(), answer.complete), (200, 0, true), "{what}: {answer:?}");
        assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{what}");
        assert_eq!(gateway.record_of("usage", &answer).await["end"], "complete", "{what}");
    }
}

#[tokio::test]
async fn events_of_a_transcription_pass_one_by_one() {
    let seen = Arc::new(Semaphore::new(0));
    let go = Arc::clone(&seen);
    let events: Vec<String> = ["Hel", "lo"]
        .map(|delta| format!("data: {{\"type\":\"transcript.text.delta\",\"delta\":\"{delta}\"}}\n\n"))
        .into_iter()
        .chain(["data: {\"type\":\"transcript.text.done\",\"text\":\"Hello\"}\n\n".to_owned()])
        .collect();
    let said = events.clone();
    let vendor = Vendor::start(move |_, mut wire| {
        let (go, said) = (Arc::clone(&go), said.clone());
        async move {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";
            wire.write(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await;
            for event in said {
                wire.write(Framing::Chunked.piece(event.as_bytes())).await;
                go.acquire().await.expect("never closed").forget();
            }
            wire.write("0\r\n\r\n").await;
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let form = Form::new().file("SOUND").field("model", "openai/gpt-4o-transcribe").field("stream", "true").close();
    let mut client = gateway.client().await;
    client.send(&Framing::Declared.request(TRANSCRIBE, "", &form)).await;
    for event in &events {
        client.sees(event).await;
        seen.add_permits(1);
    }
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text(), answer.complete), (200, events.concat(), true));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let usage = gateway.record_of("usage", &answer).await;
    assert_eq!((&usage["stream"], &usage["op"]), (&json!(true), &json!("transcription")), "{usage}");
}

/// `srt` has no type of its own that all agree on: it is a text, unless the provider says better.
#[tokio::test]
async fn an_answer_without_a_type_is_called_what_was_asked_for() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let typed = if request.text().contains("typed") { "Content-Type: application/x-subrip\r\n" } else { "" };
        let status = if request.text().contains("fails") { "500 Odd" } else { "200 OK" };
        wire.write(format!("HTTP/1.1 {status}\r\n{typed}Content-Length: 1\r\n\r\n1")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let text = Some("text/plain; charset=utf-8");
    for (model, fields, want) in [
        ("plain", &[][..], Some("application/json")),
        ("plain", &[("response_format", "json")], Some("application/json")),
        ("plain", &[("response_format", "verbose_json")], Some("application/json")),
        ("plain", &[("response_format", "text")], text),
        ("plain", &[("response_format", "srt")], text),
        ("plain", &[("response_format", "vtt")], text),
        ("plain", &[("stream", "true")], Some("text/event-stream")),
        ("plain", &[("response_format", "srt"), ("stream", "false")], text),
        ("typed", &[("response_format", "srt")], Some("application/x-subrip")),
        ("fails", &[("response_format", "srt")], None),
    ] {
        let fields = |form| fields.iter().fold(form, |form: Form, (name, value)| form.field(name, value));
        let model = format!("openai/{model}");
        let label =
            format!("{model} {fields:?}", fields = String::from_utf8_lossy(&fields(Form::new()).open()).into_owned());
        for form in [
            fields(Form::new().field("model", &model)).file("SOUND").close(),
            fields(Form::new().file("SOUND").field("model", &model)).close(),
        ] {
            let answer = ask(&gateway, Framing::Declared, TRANSCRIBE, &form).await;
            assert_eq!(answer.header("content-type"), want, "{label}");
        }
    }
}

#[tokio::test]
async fn granularities_are_forwarded_as_they_are_and_recorded() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let (bare, bracketed) = ("timestamp_granularities", "timestamp_granularities[]");
    for (fields, want) in [
        (&[][..], Value::Null),
        (&[(bare, "word")], json!(["word"])),
        (&[(bracketed, "word")], json!(["word"])),
        (&[(bracketed, "word"), (bracketed, "segment")], json!(["word", "segment"])),
        (&[(bare, "segment"), (bare, "word")], json!(["segment", "word"])),
        (&[(bare, "segment"), (bracketed, "word")], json!(["segment", "word"])),
    ] {
        let form = |model: &str| {
            let form = Form::new().file("SOUND").field("model", model).field("response_format", "verbose_json");
            fields.iter().fold(form, |form, (name, value)| form.field(name, value)).close()
        };
        for framing in Framing::BOTH {
            let answer = ask(&gateway, framing, TRANSCRIBE, &form("openai/whisper-1")).await;
            last(&vendor).is_exactly(&form("whisper-1"), &format!("{fields:?}"));
            let usage = gateway.record_of("usage", &answer).await;
            assert_eq!(
                (&usage["timestamp_granularities"], &usage["format"]),
                (&want, &json!("verbose_json")),
                "{usage}"
            );
        }
    }
}

/// Providers know more fields than anybody else does.
#[tokio::test]
async fn what_we_do_not_know_passes_as_it_is() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let form = |model: &str| {
        let form = Form::new().field("temperature", "0.2").field("a field of tomorrow", "\u{1F3B5} ä\r\n--\r\n");
        let form = form
            .field("prompt", &"x".repeat(100_000))
            .field("known_speaker_references[]", "data:audio/wav;base64,AA==");
        let form =
            form.part("Content-Disposition: form-data; name=\"another\"; filename=\"b.bin\"\r\nX-Own: 1", [0, 255]);
        let form = form.field("empty", "").file([b"\r\n--", &[0; 100][..]].concat());
        let form = form
            .part("content-type: text/plain; charset=utf-8\r\ncontent-disposition: form-data; name=\"model\"", model);
        form.field("models", "a").field("the model", "b").field("stream", "maybe").close()
    };
    for framing in Framing::BOTH {
        let answer = ask(&gateway, framing, TRANSCRIBE, &form("openai/whisper-1")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        last(&vendor).is_exactly(&form("whisper-1"), &format!("{framing:?}"));
        let usage = gateway.record_of("usage", &answer).await;
        assert_eq!((&usage["stream"], &usage["file_bytes"]), (&json!(false), &json!(104)), "{usage}");
    }
}

/// A client's words are cut short and made harmless before they are written down.
#[tokio::test]
async fn what_a_form_says_is_recorded_in_short() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let long = format!("a\u{1b}[31m\u{7f}é{}", "x".repeat(900));
    let form = Form::new().field("model", "openai/whisper-1").file("SOUND").field("response_format", &long);
    let form = form.field("language", &long).field("timestamp_granularities[]", &long).close();
    let answer = ask(&gateway, Framing::Declared, TRANSCRIBE, &form).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let usage = gateway.record_of("usage", &answer).await;
    for kept in [&usage["format"], &usage["language"], &usage["timestamp_granularities"][0]] {
        let kept = kept.as_str().expect("text");
        assert!((1..=32).contains(&kept.len()) && !kept.contains(char::is_control), "{kept:?}");
    }
}
