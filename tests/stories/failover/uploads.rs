//! Long uploads: sent again as long as they were kept, and honestly ended where they were not.

use std::sync::LazyLock;

use super::{Kind, NO, SHORT, attempts, good, is_served, nobody, two};
use crate::support::form::{Form, Framing, TRANSCRIBE, noise};
use crate::support::{Answer, Gateway, Vendor};

static LONG: LazyLock<Vec<u8>> = LazyLock::new(|| noise(25_000_000));
/// So much of an upload has been heard when its provider fails.
const HEARD: usize = 2 << 20;

/// A vendor that fails in the middle of an upload.
async fn failing(how: &'static str) -> Vendor {
    Vendor::early(move |head, mut wire| async move {
        wire.finds(|heard| (heard.len() > HEARD).then_some(())).await?;
        match how {
            "resets" => wire.reset(),
            // What stands unread keeps the connection as it is.
            "stalls" => std::future::pending().await,
            status => {
                wire.answer(status, "application/json", NO).await;
                wire.whole(head).await?;
                return Some(wire);
            }
        }
        None
    })
    .await
}

/// Where the form says its model, and how the client says its length.
fn forms(model: &str, sound: &[u8]) -> [(Framing, Vec<u8>); 2] {
    let first = Form::new().field("model", model).file(sound).close();
    let last = Form::new().file(sound).field("model", model).close();
    [(Framing::Declared, first), (Framing::Chunked, last)]
}

async fn send(gateway: &Gateway, framing: Framing, form: &[u8]) -> Answer {
    let mut client = gateway.client().await;
    client.send(framing.request(TRANSCRIBE, "", form)).await;
    client.answer().await
}

#[tokio::test]
async fn a_long_upload_survives_whatever_happens_in_its_middle() {
    for (how, word) in [("429 Too Many", "429"), ("503 Odd", "503"), ("resets", "-"), ("stalls", "-")] {
        let wanted = forms("their/m2", &LONG);
        for ((framing, form), (_, want)) in forms("house", &LONG).into_iter().zip(wanted) {
            let label = format!("{how}, {framing:?}");
            let (bad, good) = (failing(how).await, good().await);
            let gateway = Gateway::spawn(two(bad.port, good.port).with(SHORT)).await;
            let answer = send(&gateway, framing, &form).await;
            is_served(&answer, Kind::ModelFirst, &label);
            let attempts = attempts(&gateway, &answer).await;
            assert_eq!(attempts.len(), 2, "{label}: {attempts:?}");
            assert!(attempts[0].starts_with(&format!("bad/m1 1 {word} ")), "{label}: {attempts:?}");
            let sent = good.requests();
            assert_eq!((sent.len(), good.heads().len()), (1, 1), "{label}");
            sent[0].is_exactly(&want, &label);
            gateway.metric_is("aulos_spool_bytes", 0).await;
        }
    }
}

#[tokio::test]
async fn what_was_not_kept_is_not_sent_again_and_the_client_is_told() {
    let sound = &LONG[..5_000_000];
    for (how, status) in [("429 Too Many\r\nRetry-After: 7", 429), ("503 Odd", 503), ("resets", 502), ("stalls", 504)] {
        let (bad, good) = (failing(how).await, good().await);
        let conf = two(bad.port, good.port).with(SHORT).with("[spool]\nreplay_bytes = \"0\"");
        let gateway = Gateway::spawn(conf).await;
        let [(framing, form), _] = forms("house", sound);
        let answer = send(&gateway, framing, &form).await;
        assert_eq!(answer.status, status, "{how}: {answer:?}");
        match status {
            502 => assert_eq!(answer.code(), "upstream_unavailable", "{how}"),
            504 => assert_eq!(answer.code(), "upstream_timeout", "{how}"),
            _ => assert_eq!(answer.body, NO, "{how}"),
        }
        if status == 429 {
            assert_eq!(answer.header("retry-after"), Some("7"), "{how}");
        }
        assert_eq!(attempts(&gateway, &answer).await.len(), 1, "{how}");
        assert_eq!(good.connections(), 0, "{how}");
    }
}

/// Nothing has left as long as nobody took it.
#[tokio::test]
async fn what_has_not_left_needs_not_to_be_kept() {
    let (_nobody, port) = nobody();
    let good = good().await;
    let gateway = Gateway::spawn(two(port, good.port).with("[spool]\nreplay_bytes = \"0\"")).await;
    let [(framing, form), _] = forms("house", &LONG[..5_000_000]);
    let [(_, want), _] = forms("their/m2", &LONG[..5_000_000]);
    let answer = send(&gateway, framing, &form).await;
    is_served(&answer, Kind::ModelFirst, "refused, and not kept");
    assert_eq!(attempts(&gateway, &answer).await.len(), 2);
    good.requests()[0].is_exactly(&want, "refused, and not kept");
}
