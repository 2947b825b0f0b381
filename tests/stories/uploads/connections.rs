//! Connections of clients: one upload behind the other, many at once, old protocols, and the gateway's end.

use serde_json::json;
use tokio::task::JoinSet;

use super::{MODELS, SOUND, ask, is_heard, last, transcriber};
use crate::support::form::{BOUNDARY, Form, Framing, TRANSCRIBE, head, noise, small};
use crate::support::{Client, Conf, Gateway, KEY, Vendor, nobody_listens};

#[tokio::test]
async fn one_connection_serves_one_upload_after_the_other() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let mut client = gateway.client().await;
    for n in 0..3 {
        for framing in Framing::BOTH {
            for form in
                [Form::new().file(&*SOUND).field("model", "house"), Form::new().field("model", "house").file("x")]
            {
                client.send(framing.request(TRANSCRIBE, "", &form.close())).await;
                let answer = client.answer().await;
                is_heard(&answer, &format!("{n} {framing:?}"));
                assert_eq!(gateway.record_of("usage", &answer).await["end"], "complete", "{n} {framing:?}");
            }
        }
    }
    assert_eq!((vendor.requests().len(), vendor.connections()), (12, 1), "and so does one to the provider");
}

#[tokio::test]
async fn a_form_in_chunks_of_a_byte_is_the_same_form() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let form = |model: &str| Form::new().file(noise(20_000)).field("model", model).close();
    let chunked = Framing::Chunked;
    let chunks: Vec<u8> = form("house").iter().flat_map(|byte| chunked.piece(&[*byte])).collect();
    let mut client = gateway.client().await;
    client.send([&head(TRANSCRIBE, &chunked.line(0))[..], &chunks, b"0\r\nX-Trailer: 1\r\n\r\n"].concat()).await;
    is_heard(&client.answer().await, "chunks of a byte");
    last(&vendor).is_exactly(&form("whisper-large"), "chunks of a byte");
}

/// HTTP/1.0 knows neither chunks nor interim answers.
#[tokio::test]
async fn a_client_of_http_1_0_is_heard() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for form in [Form::new().file(&*SOUND).field("model", "house"), Form::new().field("model", "house").file(&*SOUND)] {
        let request = Framing::Declared.request(TRANSCRIBE, "Expect: 100-continue\r\n", &form.close());
        let line = b"POST /v1/audio/transcriptions HTTP/1.";
        let request = [line, &b"0"[..], &request[line.len() + 1..]].concat();
        let mut client = gateway.client().await;
        client.send(request).await;
        is_heard(&client.answer().await, "HTTP/1.0");
    }
    assert_eq!(vendor.requests().len(), 2);
}

#[tokio::test]
async fn uploads_side_by_side_are_not_mixed_up() {
    let vendor = Vendor::start(|request, mut wire| async move {
        wire.answer("200 OK", "application/octet-stream", &request.body).await;
        Some(wire)
    })
    .await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).with("[spool]\nmemory_bytes = \"16KiB\"");
    let gateway = Gateway::spawn(conf).await;
    let mut uploads = JoinSet::new();
    for n in 0..16_usize {
        let addr = gateway.addr().to_owned();
        uploads.spawn(async move {
            let sound = [format!("upload {n}").as_bytes(), &noise(1_000_000 + n)].concat();
            let form = |model: &str| match n % 2 {
                0 => Form::new().file(&sound).field("model", model).close(),
                _ => Form::new().field("model", model).file(&sound).close(),
            };
            let framing = Framing::BOTH[n / 2 % 2];
            let mut client = Client::connect(&addr).await;
            client.send(framing.request(TRANSCRIBE, "", &form("house"))).await;
            let answer = client.answer().await;
            assert!(answer.status == 200 && answer.body == form("whisper-large"), "{n} got another's");
        });
    }
    uploads.join_all().await;
    gateway.metric_is("aulos_spool_bytes", 0).await;
    gateway.metric_is("aulos_spool_files", 0).await;
}

/// What has begun may end.
#[tokio::test]
async fn an_upload_that_has_begun_ends_after_sigterm() {
    for form in [Form::new().file(&*SOUND).field("model", "house"), Form::new().field("model", "house").file(&*SOUND)] {
        let vendor = transcriber().await;
        let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
        let body = form.close();
        let (first, rest) = body.split_at(body.len() / 2);
        let mut client = gateway.client().await;
        client.send(head(TRANSCRIBE, &Framing::Declared.line(body.len()))).await;
        client.send(first).await;
        gateway.metric_is("aulos_spool_bytes", first.len() as u64).await;
        gateway.signal("TERM");
        nobody_listens(gateway.addr()).await;
        client.send(rest).await;
        let answer = client.answer().await;
        is_heard(&answer, "after SIGTERM");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(gateway.exit().await.success());
        assert_eq!(gateway.records("usage")[0]["end"], json!("complete"));
    }
}

/// The config may forget a model while it is in use.
#[tokio::test]
async fn an_upload_ends_with_the_config_it_began_with() {
    let vendor = transcriber().await;
    let conf = Conf::new().upstream(&vendor);
    let gateway = Gateway::spawn(conf.clone().with(MODELS)).await;
    let form = Form::new().file(&*SOUND).field("model", "house").close();
    let (first, rest) = form.split_at(form.len() / 2);
    let mut client = gateway.client().await;
    client.send(head(TRANSCRIBE, &Framing::Declared.line(form.len()))).await;
    client.send(first).await;
    gateway.metric_is("aulos_spool_bytes", first.len() as u64).await;
    gateway.rewrite(&conf);
    gateway.signal("HUP");
    gateway.metric_is("aulos_config_reloads_total{result=\"ok\"}", 1).await;
    client.send(rest).await;
    is_heard(&client.answer().await, "begun before");
    let answer = ask(&gateway, Framing::Declared, TRANSCRIBE, &small("house")).await;
    assert_eq!(answer.refusal(), (404, "model_not_found".into()), "begun behind");
}

/// Whoever waits to be asked for the body learns at once that nobody will.
#[tokio::test]
async fn a_client_that_expects_to_be_asked_is_told_what_is_wrong_instead() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let form = format!("Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n");
    let key = format!("Authorization: Bearer {KEY}\r\n");
    for (target, lines, status) in [
        (TRANSCRIBE, form.clone(), 401),
        (TRANSCRIBE, format!("{form}Authorization: Bearer wrong\r\n"), 401),
        ("/v1/audio/nothing", format!("{form}{key}"), 404),
        (TRANSCRIBE, format!("Content-Type: application/json\r\n{key}"), 415),
        (TRANSCRIBE, format!("{form}{key}Content-Encoding: gzip\r\n"), 415),
        (TRANSCRIBE, format!("Content-Type: multipart/form-data\r\n{key}"), 400),
        (TRANSCRIBE, format!("{form}{key}X-Aulos-Model: a\r\nX-Aulos-Model: b\r\n"), 400),
    ] {
        for framing in Framing::BOTH {
            let rest = format!("{lines}Expect: 100-continue\r\n{}", framing.line(10_000_000));
            let request = format!("POST {target} HTTP/1.1\r\nHost: aulos\r\n{rest}\r\n");
            let answer = gateway.client().await.send(request.as_bytes()).await.answer().await;
            assert_eq!(answer.status, status, "{target} {lines}: {answer:?}");
        }
    }
    assert_eq!(vendor.connections(), 0);
}
