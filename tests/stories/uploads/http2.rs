//! Uploads over HTTP/2, where a stream is all that a client can close.

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request};
use serde_json::json;

use super::{MODELS, TEXT, healthy, last, transcriber};
use crate::support::form::{BOUNDARY, Form, TRANSCRIBE, noise};
use crate::support::http2::{Begun, Http2, KNOWN, pour, request, spawn};
use crate::support::{Answer, Conf, Gateway, Vendor, soon};

/// The head of an upload.
fn head(length: Option<usize>) -> Request<()> {
    let media = format!("multipart/form-data; boundary={BOUNDARY}");
    let length = length.map(|length| length.to_string());
    let mut headers = vec![KNOWN, ("content-type", media.as_str())];
    headers.extend(length.as_deref().map(|length| ("content-length", length)));
    request(Method::POST, TRANSCRIBE, &headers)
}

async fn ask(client: &mut Http2, length: Option<usize>, body: Vec<u8>) -> Answer {
    let (answer, mut send) = client.open(head(length), true).await;
    let whole = async { Begun::of(answer).await.expect("an answer, not a reset").whole().await };
    let (answer, ()) = tokio::join!(whole, soon("the upload is taken", pour(&mut send, body.into())));
    answer
}

fn is_heard(answer: &Answer, label: &str) {
    assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, TEXT, true), "{label}: {answer:?}");
}

#[tokio::test]
async fn uploads_over_http2_arrive_byte_for_byte() {
    let vendor = transcriber().await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let sound = noise(1_000_000);
    for (label, form) in [
        ("model last", (|sound, model| Form::new().file(sound).field("model", model)) as fn(&[u8], &str) -> Form),
        ("model first", |sound, model| Form::new().field("model", model).file(sound)),
    ] {
        let body = form(&sound, "house").close();
        for length in [Some(body.len()), None] {
            let label = format!("{label} {length:?}");
            let answer = ask(&mut client, length, body.clone()).await;
            is_heard(&answer, &label);
            let sent = last(&vendor);
            sent.is_exactly(&form(&sound, "whisper-large").close(), &label);
            assert!(length.is_none() || sent.header("content-length").is_some(), "{label}: it was declared");
            let usage = gateway.record_of("usage", &answer).await;
            assert_eq!(
                (&usage["bytes_in"], &usage["file_bytes"]),
                (&json!(body.len()), &json!(sound.len())),
                "{usage}"
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_in_mid_upload_over_http2_is_told_so() {
    let vendor = transcriber().await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor).with("[timeouts]\nidle = \"300ms\"")).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (label, form, begun) in [
        ("model first", Form::new().field("model", "openai/whisper-1").file(noise(40_000)), true),
        ("model last", Form::new().file(noise(40_000)), false),
    ] {
        let before = vendor.connections();
        let (answer, mut send) = client.open(head(None), true).await;
        send.send_data(Bytes::from(form.open()), false).expect("sent");
        let answer = Begun::of(answer).await.expect("an answer").whole().await;
        assert_eq!(answer.refusal(), (408, "request_timeout".into()), "{label}");
        assert_eq!(vendor.connections() - before, usize::from(begun), "{label}");
        vendor.closed(vendor.connections()).await;
        assert!(vendor.requests().is_empty(), "{label}");
    }
    healthy(&gateway, "uploads that stopped").await;
}

#[tokio::test]
async fn a_client_that_resets_its_upload_takes_it_with_it() {
    let vendor = transcriber().await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let (_answer, mut send) = client.open(head(None), true).await;
    let form = Form::new().field("model", "openai/whisper-1").file([b"THE BEGINNING", &noise(30_000)[..]].concat());
    send.send_data(Bytes::from(form.open()), false).expect("sent");
    vendor.hears("THE BEGINNING").await;
    send.send_reset(Reason::CANCEL);
    vendor.closed(1).await;
    assert!(vendor.requests().is_empty());
    let usage = gateway.recorded("usage", 1).await.remove(0);
    assert_eq!(usage["end"], "client_gone", "{usage}");
    is_gone_on(&gateway, &mut client).await;
    assert_eq!(last(&vendor).connection, 1, "on a fresh connection");
}

#[tokio::test]
async fn an_answer_in_mid_upload_reaches_a_client_of_http2() {
    let vendor = transcriber().await;
    let early = Vendor::early(|_, mut wire| async move {
        wire.answer("413 Content Too Large\r\nConnection: close", "application/json", TEXT).await;
        wire.linger().await;
        None
    })
    .await;
    let provider = format!("[providers.early]\nkind = \"openai\"\nbase_url = \"{}\"\n", early.base_url());
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor).with(&provider)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let body = Form::new().field("model", "early/whisper-1").file(noise(3_000_000)).close();
    for length in [Some(body.len()), None] {
        let answer = ask(&mut client, length, body.clone()).await;
        assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (413, TEXT, true), "{answer:?}");
        assert_eq!(gateway.record_of("usage", &answer).await["end"], "complete");
        is_gone_on(&gateway, &mut client).await;
    }
}

#[tokio::test]
async fn an_upload_over_http2_that_is_too_large_is_refused() {
    let vendor = transcriber().await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor).with("[limits]\nupload_body = \"256KiB\"")).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    for form in [
        Form::new().field("model", "openai/whisper-1").file(noise(3_000_000)),
        Form::new().file(noise(3_000_000)).field("model", "openai/whisper-1"),
    ] {
        let body = form.close();
        for length in [Some(body.len()), None] {
            let answer = ask(&mut client, length, body.clone()).await;
            assert_eq!(answer.refusal(), (413, "request_too_large".into()), "{length:?}");
        }
    }
    assert!(vendor.requests().is_empty());
    is_gone_on(&gateway, &mut client).await;
}

/// A stream that ends before its declared length is one that was cut (RFC 9113 §8.1.1).
#[tokio::test]
async fn an_upload_over_http2_that_ends_too_early_never_arrives_whole() {
    let vendor = transcriber().await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let sound = noise(30_000);
    for form in [
        Form::new().field("model", "openai/whisper-1").file(&sound),
        Form::new().file(&sound).field("model", "openai/whisper-1"),
    ] {
        let body = form.close();
        let (answer, mut send) = client.open(head(Some(body.len() + 1)), true).await;
        send.send_data(Bytes::from(body), true).expect("sent");
        let refused = match Begun::of(answer).await {
            Ok(begun) => begun.whole().await.status == 400,
            Err(error) => error.is_reset(),
        };
        assert!(refused);
    }
    vendor.closed(vendor.connections()).await;
    assert!(vendor.requests().is_empty());
    is_gone_on(&gateway, &mut client).await;
}

/// The connection of the client is as good as before.
async fn is_gone_on(gateway: &Gateway, client: &mut Http2) {
    let form = Form::new().file("SOUND").field("model", "openai/whisper-1").close();
    let answer = ask(client, None, form).await;
    is_heard(&answer, "the next one");
    gateway.record_of("usage", &answer).await;
}
