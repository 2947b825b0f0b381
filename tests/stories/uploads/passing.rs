//! What may leave leaves at once; and clients that ask before they send.

use super::{MODELS, SOUND, TEXT, healthy, is_heard, last, transcriber};
use crate::support::form::{Form, Framing, TRANSCRIBE, head, noise, small};
use crate::support::{Conf, Gateway, Vendor};

#[tokio::test]
async fn a_file_behind_its_model_leaves_while_it_arrives() {
    for (label, conf) in [
        ("kept", ""),
        ("not kept", "[spool]\nreplay_bytes = \"0\""),
        ("not kept for this model", "[models.whisper-1]\nroutes = [\"openai/whisper-1\"]\nreplay_bytes = \"0\""),
    ] {
        let vendor = transcriber().await;
        let model = if conf.contains("models") { "whisper-1" } else { "openai/whisper-1" };
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(conf)).await;
        for framing in Framing::BOTH {
            let form = |model: &str| Form::new().field("model", model).file(&*SOUND).close();
            let body = form(model);
            let (first, rest) = body.split_at(100_000);
            let mut client = gateway.client().await;
            client.send(&head(TRANSCRIBE, &framing.line(body.len()))).await.send(&framing.piece(first)).await;
            vendor.hears("THE BEGINNING").await;
            client.send([&framing.piece(rest), framing.end()].concat()).await;
            is_heard(&client.answer().await, label);
            last(&vendor).is_exactly(&form("whisper-1"), &format!("{label} {framing:?}"));
        }
        assert_eq!(vendor.requests().len(), 2, "{label}");
        gateway.metric_is("aulos_spool_bytes", 0).await;
    }
}

/// Whose length is not known, is sent in chunks, and what has to change in it changes while it passes.
#[tokio::test]
async fn a_form_in_chunks_leaves_while_it_arrives_if_its_model_is_named_outside() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (label, form, want) in [
        ("named last", Form::new().file(&*SOUND).field("model", "house"), "whisper-large"),
        ("not named", Form::new().file(&*SOUND), "whisper-large"),
    ] {
        let (chunked, want) = (Framing::Chunked, Form::new().file(&*SOUND).field("model", want).close());
        let body = form.close();
        let (first, rest) = body.split_at(10_000);
        let mut client = gateway.client().await;
        let lines = format!("X-Aulos-Model: house\r\n{}", chunked.line(0));
        client.send(&head(TRANSCRIBE, &lines)).await.send(&chunked.piece(first)).await;
        vendor.hears("THE BEGINNING").await;
        client.send([&chunked.piece(rest), chunked.end()].concat()).await;
        is_heard(&client.answer().await, label);
        last(&vendor).is_exactly(&want, label);
    }
    assert_eq!(vendor.heads().len(), 2);
}

/// The end of a form goes on when all of it was accepted, and not before.
#[tokio::test]
async fn the_end_of_a_form_waits_for_the_end_of_the_body() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let chunked = Framing::Chunked;
    let body = Form::new().field("model", "openai/whisper-1").file([&noise(200_000)[..], b"THE END"].concat()).close();
    let mut client = gateway.client().await;
    client.send(&head(TRANSCRIBE, &chunked.line(0))).await;
    client.send(&chunked.piece(&body)).await;
    vendor.hears("THE END").await;
    // The closing delimiter is here, and so might be something behind it.
    client.send(&chunked.piece(b"something")).await.send(chunked.end()).await;
    assert_eq!(client.answer().await.refusal(), (400, "invalid_multipart".into()));
    vendor.closed(1).await;
    assert!(vendor.requests().is_empty());
    healthy(&gateway, "something behind the end").await;
}

#[tokio::test]
async fn a_client_that_expects_to_be_asked_for_its_form_is_asked_once() {
    let vendor = Vendor::early(|head, mut wire| async move {
        // A provider may ask as well, whether or not it was told to.
        wire.write("HTTP/1.1 100 Continue\r\n\r\n").await;
        wire.whole(head).await?;
        wire.answer("200 OK", "application/json", TEXT).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (label, target, form, want) in [
        ("model first", TRANSCRIBE, Form::new().field("model", "house").file(&*SOUND), "whisper-large"),
        ("model last", TRANSCRIBE, Form::new().file(&*SOUND).field("model", "house"), "whisper-large"),
        ("small", TRANSCRIBE, Form::new().file("SOUND").field("model", "house"), "whisper-large"),
        (
            "named outside, and to be kept",
            "/v1/audio/transcriptions?model=whisper-1",
            Form::new().file(&*SOUND).field("model", "whisper-1"),
            "whisper-1",
        ),
        (
            "named outside, and to be replaced",
            "/v1/audio/transcriptions?model=house",
            Form::new().file(&*SOUND).field("model", "house"),
            "whisper-large",
        ),
    ] {
        for framing in Framing::BOTH {
            let label = format!("{label} {framing:?}");
            let form = form.clone().close();
            let mut client = gateway.client().await;
            let lines = format!("Expect: 100-continue\r\n{}", framing.line(form.len()));
            let asked = client.send(&head(target, &lines)).await.head().await;
            assert_eq!((asked.status, asked.headers.len()), (100, 0), "{label}");
            client.send([&framing.piece(&form), framing.end()].concat()).await;
            // Had it been asked twice, this would be the second time.
            let answer = client.answer().await;
            is_heard(&answer, &label);
            let sent = last(&vendor);
            assert_eq!(sent.header("expect"), None, "{label}");
            assert_eq!(sent.body.len() + "house".len(), form.len() + if want == "whisper-1" { 5 } else { want.len() });
            // The connection goes on.
            client.send(framing.request(TRANSCRIBE, "", &small("house"))).await;
            is_heard(&client.answer().await, &label);
        }
    }
}
