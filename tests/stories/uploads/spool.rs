//! What is kept of an upload: until it is known where it goes, and to be sent again.

use serde_json::json;

use super::{MODELS, SOUND, TEXT, ask, healthy, is_heard, last, transcriber};
use crate::support::form::{Form, Framing, TRANSCRIBE, head, noise};
use crate::support::{Conf, Gateway, Vendor};

/// Names in the folder where uploads are kept.
fn names(gateway: &Gateway) -> Vec<String> {
    let dir = gateway.dir.join("state/spool").read_dir().expect("there");
    dir.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing is kept any more.
async fn is_empty(gateway: &Gateway) {
    gateway.metric_is("aulos_spool_files", 0).await;
    gateway.metric_is("aulos_spool_bytes", 0).await;
    assert!(names(gateway).is_empty(), "{:?}", names(gateway));
}

#[tokio::test]
async fn an_upload_that_outgrows_its_memory_waits_in_a_file_without_a_name() {
    let vendor = transcriber().await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).with("[spool]\nmemory_bytes = \"16KiB\"");
    let gateway = Gateway::spawn(conf).await;
    for framing in Framing::BOTH {
        let form = |model: &str| Form::new().file(&*SOUND).field("model", model).close();
        let body = form("house");
        let (first, rest) = body.split_at(body.len() / 2);
        let mut client = gateway.client().await;
        client.send(head(TRANSCRIBE, &framing.line(body.len()))).await;
        client.send(framing.piece(first)).await;
        gateway.metric_is("aulos_spool_bytes", first.len() as u64).await;
        gateway.metric_is("aulos_spool_files", 1).await;
        assert!(names(&gateway).is_empty(), "{framing:?}: {:?}", names(&gateway));
        assert_eq!(vendor.requests().len(), vendor.heads().len(), "{framing:?}: nobody knows yet where it goes");
        client.send([&framing.piece(rest), framing.end()].concat()).await;
        is_heard(&client.answer().await, &format!("{framing:?}"));
        last(&vendor).is_exactly(&form("whisper-large"), &format!("{framing:?}"));
        is_empty(&gateway).await;
    }
}

/// It may need its file only to be sent again.
#[tokio::test]
async fn what_passes_is_kept_as_long_as_it_may_be_sent_again() {
    for (label, conf, kept) in [("all", "", true), ("none", "replay_bytes = \"0\"", false)] {
        let vendor = transcriber().await;
        let conf = format!("[spool]\nmemory_bytes = \"16KiB\"\n{conf}");
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&conf)).await;
        let body = Form::new().field("model", "openai/whisper-1").file(&*SOUND).close();
        let (first, rest) = body.split_at(body.len() / 2);
        let mut client = gateway.client().await;
        client.send(head(TRANSCRIBE, &Framing::Declared.line(body.len()))).await;
        client.send(first).await;
        if kept {
            gateway.metric_is("aulos_spool_bytes", first.len() as u64).await;
            gateway.metric_is("aulos_spool_files", 1).await;
        } else {
            vendor.hears("THE BEGINNING").await;
            is_empty(&gateway).await;
        }
        client.send(rest).await;
        is_heard(&client.answer().await, label);
        is_empty(&gateway).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_what_was_kept_with_it() {
    let vendor = transcriber().await;
    let conf = Conf::new().upstream(&vendor).with("[spool]\nmemory_bytes = \"16KiB\"");
    let mut gateway = Gateway::spawn(conf).await;
    let body = Form::new().file(&*SOUND).close();
    let half = [head(TRANSCRIBE, &Framing::Declared.line(body.len())), body[..body.len() / 2].to_vec()].concat();
    let mut client = gateway.client().await;
    client.send(&half).await;
    gateway.metric_is("aulos_spool_files", 1).await;
    drop(client);
    is_empty(&gateway).await;
    // Nor does anything stay when the gateway itself is gone.
    let mut client = gateway.client().await;
    client.send(&half).await;
    gateway.metric_is("aulos_spool_files", 1).await;
    gateway.signal("KILL");
    gateway.exit().await;
    assert!(names(&gateway).is_empty(), "{:?}", names(&gateway));
}

const FULL: &str = "aulos_spool_refusals_total{reason=\"budget\"}";

#[tokio::test]
async fn an_upload_for_which_there_is_no_room_is_told_to_come_back() {
    let vendor = transcriber().await;
    let conf = Conf::new().upstream(&vendor).with(MODELS);
    let gateway = Gateway::spawn(conf.with("[spool]\nmemory_bytes = \"16KiB\"\ntotal_bytes = \"1MiB\"")).await;
    let held = Form::new().file(noise(1_000_000)).field("model", "house").close();
    let (first, rest) = held.split_at(900_000);
    let mut holder = gateway.client().await;
    holder.send(head(TRANSCRIBE, &Framing::Declared.line(held.len()))).await;
    holder.send(first).await;
    gateway.metric_is("aulos_spool_bytes", 900_000).await;
    let another = Form::new().file(noise(300_000)).field("model", "house").close();
    for (n, framing) in (1..).zip(Framing::BOTH) {
        let answer = ask(&gateway, framing, TRANSCRIBE, &another).await;
        assert_eq!(answer.refusal(), (503, "spool_full".into()), "{framing:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{framing:?}");
        assert_eq!(answer.header("x-should-retry"), None, "{framing:?}: another try may fare better");
        assert_eq!(gateway.metric(FULL).await, n, "{framing:?}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["error"], &audit["end"]), (&json!("spool_full"), &json!("refused")), "{audit}");
        gateway.metric_is("aulos_spool_bytes", 900_000).await;
    }
    assert_eq!(vendor.connections(), 0);
    // Whoever says its model first needs no room: it passes, and is sent once.
    let first_named = Form::new().field("model", "house").file(noise(300_000)).close();
    is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &first_named).await, "model first");
    holder.send(rest).await;
    is_heard(&holder.answer().await, "the one that was there first");
    is_empty(&gateway).await;
    is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &another).await, "the next one");
    is_empty(&gateway).await;
}

/// The room is for everybody: one that needs more than all of it is refused, and lets go of what it has.
#[tokio::test]
async fn an_upload_that_is_larger_than_all_room_is_refused() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[spool]\ntotal_bytes = \"1MiB\"")).await;
    for framing in Framing::BOTH {
        let form = Form::new().file(&*SOUND).field("model", "openai/whisper-1").close();
        let answer = ask(&gateway, framing, TRANSCRIBE, &form).await;
        assert_eq!(answer.refusal(), (503, "spool_full".into()), "{framing:?}");
        is_empty(&gateway).await;
    }
    assert_eq!(vendor.connections(), 0);
    healthy(&gateway, "an upload that is too large for the spool").await;
}

/// Answers the first request of each connection, and lets go of the connection when the next one begins.
async fn forgetful() -> Vendor {
    Vendor::early(|head, mut wire| async move {
        if wire.is_used() {
            return None;
        }
        wire.whole(head).await?;
        wire.answer("200 OK", "application/json", TEXT).await;
        Some(wire)
    })
    .await
}

#[tokio::test]
async fn a_connection_that_died_in_the_pool_is_replaced_for_an_upload_too() {
    for (label, form) in [
        ("model last", Form::new().file(&*SOUND).field("model", "openai/whisper-1")),
        ("model first", Form::new().field("model", "openai/whisper-1").file(&*SOUND)),
        ("small", Form::new().field("model", "openai/whisper-1").file("SOUND")),
    ] {
        for framing in Framing::BOTH {
            let label = format!("{label} {framing:?}");
            let vendor = forgetful().await;
            let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
            healthy(&gateway, "its start").await;
            let body = form.clone().close();
            let answer = ask(&gateway, framing, TRANSCRIBE, &body).await;
            is_heard(&answer, &label);
            assert_eq!(answer.header("x-aulos-attempts"), Some("2"), "{label}");
            assert_eq!((vendor.heads().len(), vendor.requests().len(), vendor.connections()), (3, 2, 2), "{label}");
            let want = String::from_utf8_lossy(&body).replace("openai/", "");
            assert_eq!(String::from_utf8_lossy(&last(&vendor).body).len(), want.len(), "{label}: whole");
            let audit = gateway.record_of("audit", &answer).await;
            let (first, second) = (&audit["attempts"][0], &audit["attempts"][1]);
            assert!(first["reused"] == true && first["error"].is_string(), "{label}: {audit}");
            assert_eq!((&second["reused"], &second["error"]), (&json!(false), &json!(null)), "{label}: {audit}");
        }
    }
}

/// What the first attempt has found out about a form holds for the next, and what it has not is found out then.
#[tokio::test]
async fn what_is_sent_again_is_judged_to_its_end() {
    let outside = "/v1/audio/transcriptions?model=whisper-1";
    let bare = || Form::new().file(&*SOUND);
    let named = |model: &str| bare().field("model", model);
    let twice = Form::new().field("model", "house").file(&*SOUND).field("model", "house");
    for (label, target, form, want) in [
        ("replaced", TRANSCRIBE, named("house"), Ok((named("whisper-large"), "2"))),
        ("put in", outside, bare(), Ok((named("whisper-1"), "3"))),
        ("as it is", outside, named("whisper-1"), Ok((named("whisper-1"), "2"))),
        ("another", outside, named("whisper-2"), Err("model_conflict")),
        ("twice", TRANSCRIBE, twice, Err("ambiguous_model")),
    ] {
        let vendor = forgetful().await;
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
        healthy(&gateway, "its start").await;
        let answer = ask(&gateway, Framing::Declared, target, &form.close()).await;
        match want {
            Ok((want, attempts)) => {
                is_heard(&answer, label);
                last(&vendor).is_exactly(&want.close(), label);
                assert_eq!(answer.header("x-aulos-attempts"), Some(attempts), "{label}");
            }
            Err(code) => {
                assert_eq!(answer.refusal(), (400, code.to_owned()), "{label}");
                assert_eq!(vendor.requests().len(), 1, "{label}: nothing but what was healthy");
            }
        }
        gateway.metric_is("aulos_spool_bytes", 0).await;
    }
}

/// The provider closes a connection that nobody uses. Whether the gateway has seen that or not, the next is served.
#[tokio::test]
async fn a_connection_that_was_closed_in_the_pool_is_not_used_for_an_upload() {
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.answer("200 OK", "application/json", TEXT).await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let form = Form::new().field("model", "openai/whisper-1").file(&*SOUND).close();
    for n in 1..=5 {
        is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &form).await, "on a fresh connection");
        vendor.closed(n).await;
        assert_eq!(vendor.requests().len(), n);
    }
}

/// What was not kept cannot be sent again.
#[tokio::test]
async fn a_connection_that_died_in_the_pool_is_the_end_of_an_upload_that_was_not_kept() {
    let vendor = forgetful().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[spool]\nreplay_bytes = \"0\"")).await;
    healthy(&gateway, "its start").await;
    let form = Form::new().field("model", "openai/whisper-1").file(&*SOUND).close();
    let answer = ask(&gateway, Framing::Declared, TRANSCRIBE, &form).await;
    assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()));
    assert_eq!((vendor.heads().len(), vendor.requests().len(), vendor.connections()), (2, 1, 1));
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!((&audit["end"], &audit["error"]), (&json!("upstream_failed"), &json!("upstream_unavailable")));
    healthy(&gateway, "an upload that was not kept").await;
}

#[tokio::test]
async fn a_long_upload_is_not_kept_in_memory() {
    let sound = SOUND.repeat(10);
    for (label, form, conf) in [
        ("model last", Form::new().file(&sound).field("model", "openai/whisper-1"), ""),
        ("model first", Form::new().field("model", "openai/whisper-1").file(&sound), ""),
        ("not kept", Form::new().field("model", "openai/whisper-1").file(&sound), "[spool]\nreplay_bytes = \"0\""),
    ] {
        let vendor = transcriber().await;
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(conf)).await;
        healthy(&gateway, "its start").await;
        let before = gateway.memory("VmRSS");
        is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &form.close()).await, label);
        let grown = gateway.memory("VmHWM").saturating_sub(before);
        assert!(grown < 8 << 20, "{label}: it grew by {grown} bytes for {}", sound.len());
    }
}

/// A disk that takes nothing is a reason to refuse what has to be kept, and nothing else.
#[tokio::test]
async fn an_upload_that_cannot_be_written_down_is_told_to_come_back() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let dir = gateway.dir.join("state/spool");
    std::fs::remove_dir(&dir).expect("empty");
    std::fs::write(&dir, "in the way").expect("written");
    let kept = Form::new().file(&*SOUND).field("model", "house").close();
    for framing in Framing::BOTH {
        let answer = ask(&gateway, framing, TRANSCRIBE, &kept).await;
        assert_eq!(answer.refusal(), (503, "spool_full".into()), "{framing:?}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["error"], &audit["end"]), (&json!("spool_full"), &json!("refused")), "{audit}");
    }
    gateway.metric_is("aulos_spool_refusals_total{reason=\"disk\"}", 2).await;
    assert_eq!(vendor.connections(), 0);
    let passes = Form::new().field("model", "house").file(&*SOUND).close();
    is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &passes).await, "model first");
    healthy(&gateway, "a small one, which needs no disk").await;
    std::fs::remove_file(&dir).expect("removed");
    is_heard(&ask(&gateway, Framing::Declared, TRANSCRIBE, &kept).await, "the disk is back");
    is_empty(&gateway).await;
}
