//! Clients that leave, stop or send too much in the middle of an upload. Nothing complete gets to the vendor.

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{SOUND, ask, healthy, is_heard, last, transcriber};
use crate::support::form::{Form, Framing, TRANSCRIBE, head, noise};
use crate::support::{Client, Conf, Gateway, Vendor};

/// One that leaves while it arrives, and one that is kept until its model is there.
fn forms() -> [(&'static str, Form); 2] {
    let sound = &SOUND[..];
    [
        ("model first", Form::new().field("model", "openai/whisper-1").file(sound)),
        ("model last", Form::new().file(sound).field("model", "openai/whisper-1")),
    ]
}

/// The first half of a request.
fn half(framing: Framing, body: &[u8]) -> Vec<u8> {
    [head(TRANSCRIBE, &framing.line(body.len())), framing.piece(&body[..body.len() / 2])].concat()
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_upload_takes_it_with_it() {
    for framing in Framing::BOTH {
        for resets in [false, true] {
            let label = format!("{framing:?}, resets: {resets}");
            let vendor = transcriber().await;
            let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
            healthy(&gateway, "its start").await;
            let mut stream = TcpStream::connect(gateway.addr()).await.expect("connects");
            let [(_, form), _] = forms();
            stream.write_all(&half(framing, &form.close())).await.expect("taken");
            vendor.hears("THE BEGINNING").await;
            if resets {
                stream.set_zero_linger().expect("set");
            }
            drop(stream);
            vendor.closed(1).await;
            assert_eq!((vendor.heads().len(), vendor.requests().len()), (2, 1), "{label}: it is not whole");
            let usage = gateway.recorded("usage", 2).await.pop().expect("there");
            let audit = gateway.recorded("audit", 2).await.pop().expect("there");
            assert_eq!(
                (&usage["end"], &audit["end"]),
                (&json!("client_gone"), &json!("client_gone")),
                "{label}: {audit}"
            );
            assert_eq!(audit["error"], "client_gone", "{label}: {audit}");
            assert_eq!(audit["attempts"][0]["reused"], true, "{label}: {audit}");
            assert!(usage["bytes_in"].as_u64() > Some(0), "{label}: {usage}");
            // Half a request stands on that connection: nobody else gets it.
            healthy(&gateway, &label).await;
            assert_eq!((last(&vendor).connection, vendor.connections()), (1, 2), "{label}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_its_model_is_known_was_never_heard_of() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let [_, (_, form)] = forms();
    let body = form.close();
    for (n, (framing, resets)) in Framing::BOTH.into_iter().flat_map(|f| [(f, false), (f, true)]).enumerate() {
        let mut stream = TcpStream::connect(gateway.addr()).await.expect("connects");
        stream.write_all(&half(framing, &body)).await.expect("taken");
        gateway.metric_is("aulos_spool_bytes", body.len() as u64 / 2).await;
        if resets {
            stream.set_zero_linger().expect("set");
        }
        drop(stream);
        let audit = gateway.recorded("audit", n + 1).await.pop().expect("there");
        // To shut one way may mean to listen still; a reset never does.
        let (end, error) = if resets { ("client_gone", "client_gone") } else { ("refused", "incomplete_body") };
        assert_eq!((&audit["end"], &audit["error"]), (&json!(end), &json!(error)), "{framing:?} {resets}: {audit}");
        gateway.metric_is("aulos_spool_bytes", 0).await;
    }
    assert!(gateway.records("usage").is_empty());
    assert_eq!(vendor.connections(), 0);
    healthy(&gateway, "clients that left").await;
}

/// It may listen still.
#[tokio::test]
async fn an_upload_that_is_cut_short_is_refused() {
    for (label, form) in forms() {
        for framing in Framing::BOTH {
            let label = format!("{label} {framing:?}");
            let vendor = transcriber().await;
            let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
            let mut client = gateway.client().await;
            client.send(half(framing, &form.clone().close())).await;
            let answer = client.finish().await.answer().await;
            assert_eq!(answer.refusal(), (400, "incomplete_body".into()), "{label}");
            assert_eq!(answer.header("connection"), Some("close"), "{label}");
            assert!(vendor.requests().is_empty(), "{label}");
            healthy(&gateway, &label).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_in_mid_upload_is_told_so() {
    for (label, form) in forms() {
        for framing in Framing::BOTH {
            let label = format!("{label} {framing:?}");
            let vendor = transcriber().await;
            let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[timeouts]\nidle = \"300ms\"")).await;
            let mut client = gateway.client().await;
            client.send(half(framing, &form.clone().close())).await;
            let answer = client.answer().await;
            assert_eq!(answer.refusal(), (408, "request_timeout".into()), "{label}");
            assert_eq!(answer.header("connection"), Some("close"), "{label}");
            vendor.closed(vendor.connections()).await;
            assert!(vendor.requests().is_empty(), "{label}");
            let audit = gateway.record_of("audit", &answer).await;
            assert_eq!(audit["error"], "request_timeout", "{label}: {audit}");
            assert_eq!(audit["end"], "refused", "{label}: {audit}");
            healthy(&gateway, &label).await;
        }
    }
}

/// Of a body whose chunks are broken nobody knows where it ends.
#[tokio::test]
async fn an_upload_whose_chunks_are_broken_is_refused() {
    for (label, form) in forms() {
        for broken in ["zz\r\n", "5\r\nabcdefgh\r\n0\r\n\r\n", "-1\r\n", "ffffffffffffffff1\r\n"] {
            let label = format!("{label} {broken:?}");
            let vendor = transcriber().await;
            let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
            let mut client = gateway.client().await;
            client.send(half(Framing::Chunked, &form.clone().close())).await;
            let answer = client.send(broken.as_bytes()).await.answer().await;
            assert_eq!(answer.refusal(), (400, "invalid_request".into()), "{label}");
            assert_eq!(answer.header("connection"), Some("close"), "{label}");
            vendor.closed(vendor.connections()).await;
            assert!(vendor.requests().is_empty(), "{label}");
            let audit = gateway.record_of("audit", &answer).await;
            assert_eq!(
                (&audit["end"], &audit["error"]),
                (&json!("refused"), &json!("invalid_request")),
                "{label}: {audit}"
            );
            healthy(&gateway, &label).await;
        }
    }
}

const LIMIT: usize = 256 << 10;

async fn limited(vendor: &Vendor) -> Gateway {
    Gateway::spawn(Conf::new().upstream(vendor).with("[limits]\nupload_body = \"256KiB\"")).await
}

/// The answer says that it was too much, and so does the record.
async fn is_too_large(gateway: &Gateway, client: &mut Client, label: &str) {
    let answer = client.answer().await;
    assert_eq!(answer.refusal(), (413, "request_too_large".into()), "{label}");
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{label}");
    assert_eq!(answer.header("connection"), Some("close"), "{label}");
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!((&audit["error"], &audit["end"]), (&json!("request_too_large"), &json!("refused")), "{label}: {audit}");
    healthy(gateway, label).await;
}

#[tokio::test]
async fn an_upload_that_declares_too_much_is_refused_at_once() {
    let vendor = transcriber().await;
    let gateway = limited(&vendor).await;
    for (target, declared) in [
        (TRANSCRIBE, LIMIT + 1),
        ("/v1/audio/translations", 100 << 30),
        ("/v1/audio/transcriptions?model=openai/whisper-1", LIMIT + 1),
        ("/openai/deployments/openai%2Fwhisper-1/audio/transcriptions", LIMIT + 1),
    ] {
        for expects in ["", "Expect: 100-continue\r\n"] {
            let mut client = gateway.client().await;
            // Nothing of the body is here: the next head is the final one.
            client.send(&head(target, &format!("{expects}Content-Length: {declared}\r\n"))).await;
            is_too_large(&gateway, &mut client, &format!("{target} {expects}")).await;
        }
    }
    assert_eq!(vendor.requests().len(), 8, "only what was healthy");
}

#[tokio::test]
async fn an_upload_that_grows_too_large_is_refused_when_it_does() {
    for (label, form) in forms() {
        let vendor = transcriber().await;
        let gateway = limited(&vendor).await;
        let chunked = Framing::Chunked;
        let body = form.close();
        let mut client = gateway.client().await;
        client.send(head(TRANSCRIBE, &chunked.line(0))).await;
        // One byte too many, and more to come.
        client.send(chunked.piece(&body[..LIMIT + 1])).await;
        is_too_large(&gateway, &mut client, label).await;
        assert_eq!(vendor.requests().len(), 1, "{label}: only what was healthy");
    }
}

/// Most clients write everything before they read: they, too, must see why they were refused.
#[tokio::test]
async fn an_upload_that_is_too_large_is_refused_to_a_client_that_writes_everything_first() {
    let vendor = transcriber().await;
    let gateway = limited(&vendor).await;
    for (label, form) in forms() {
        for framing in Framing::BOTH {
            let mut client = gateway.client().await;
            client.send(framing.request(TRANSCRIBE, "", &form.clone().close())).await;
            is_too_large(&gateway, &mut client, &format!("{label} {framing:?}")).await;
        }
    }
    assert_eq!(vendor.requests().len(), 4, "only what was healthy");
}

#[tokio::test]
async fn the_limit_itself_may_be_reached() {
    let vendor = transcriber().await;
    let gateway = limited(&vendor).await;
    let frame = Form::new().field("model", "openai/whisper-1").file("").close().len();
    let form = |model: &str, length: usize| Form::new().field("model", model).file(noise(length)).close();
    for framing in Framing::BOTH {
        let most = LIMIT - frame;
        is_heard(&ask(&gateway, framing, TRANSCRIBE, &form("openai/whisper-1", most)).await, &format!("{framing:?}"));
        last(&vendor).is_exactly(&form("whisper-1", most), &format!("{framing:?}"));
        let answer = ask(&gateway, framing, TRANSCRIBE, &form("openai/whisper-1", most + 1)).await;
        assert_eq!(answer.status, 413, "{framing:?}");
    }
}

/// The limit of JSON bodies is another one.
#[tokio::test]
async fn forms_have_a_limit_of_their_own() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[limits]\njson_body = \"1KiB\"")).await;
    let form = Form::new().file(&*SOUND).field("model", "openai/whisper-1").close();
    is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &form).await, "8 MB");
    assert_eq!(vendor.requests().len(), 1);
}
