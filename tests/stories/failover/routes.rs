//! Which providers may be asked, and by which name each of them knows the model.

use super::{Kind, NO, VOICE, ask, attempts, good, is_served, saying, two};
use crate::support::form::{Form, Framing, TRANSCRIBE};
use crate::support::{Gateway, KEY, Vendor, sha256};

#[tokio::test]
async fn only_routes_that_the_key_may_use_are_tried() {
    for (allow, want) in [
        ("\"/\"", &["bad/m1 1 503 -", "good/their/m2 1 200 -"][..]),
        ("\"house\"", &["bad/m1 1 503 -", "good/their/m2 1 200 -"]),
        ("\"bad/\"", &["bad/m1 1 503 -"]),
        ("\"good/\"", &["good/their/m2 1 200 -"]),
        ("\"good/their/m2\"", &["good/their/m2 1 200 -"]),
    ] {
        let (bad, good) = (saying("503 Odd").await, good().await);
        let keys = format!("[keys.test]\nsha256 = \"{}\"\nallow = [{allow}]\n", sha256(KEY));
        let gateway = Gateway::spawn(two(bad.port, good.port).keys(&keys)).await;
        for kind in Kind::ALL {
            let answer = ask(&gateway, kind, "house", allow).await;
            assert_eq!(attempts(&gateway, &answer).await, want, "{allow}, {kind:?}");
        }
        let asked = [&bad, &good].map(|vendor| vendor.connections() > 0);
        let may = ["bad/", "good/"].map(|name| want.iter().any(|line| line.starts_with(name)));
        assert_eq!(asked, may, "{allow}");
    }
}

#[tokio::test]
async fn a_provider_that_is_asked_for_by_name_is_the_only_one() {
    let (bad, good) = (saying("503 Odd").await, good().await);
    let gateway = Gateway::spawn(two(bad.port, good.port)).await;
    for kind in Kind::ALL {
        for (model, headers) in [("house", &[("X-Aulos-Provider", "bad")][..]), ("bad/m1", &[])] {
            let mut client = gateway.client().await;
            client.send(kind.asking(model, "x", headers)).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.body.as_slice()), (503, NO), "{model}, {kind:?}");
            assert_eq!(attempts(&gateway, &answer).await, ["bad/m1 1 503 -"], "{model}, {kind:?}");
        }
    }
    assert_eq!(good.connections(), 0);
}

/// A vendor that is limited, which it says at once or when it has heard all.
async fn limited(early: bool) -> Vendor {
    Vendor::early(move |head, mut wire| async move {
        let head = if early { Some(head) } else { wire.whole(head).await.map(|_| None)? };
        wire.answer("429 Too Many", "application/json", NO).await;
        if let Some(head) = head {
            wire.whole(head).await?;
        }
        Some(wire)
    })
    .await
}

/// The first provider knows the model by the name the client gave outside, and gets the form as it is; the second one
/// does not.
#[tokio::test]
async fn a_form_that_was_passed_on_unread_is_rewritten_for_the_next_provider() {
    let named = |model: &str| Form::new().field("model", model).file(&*VOICE).close();
    let behind = |model: &str| Form::new().file(&*VOICE).field("model", model).close();
    let without = Form::new().field("language", "en").file(&*VOICE);
    let forms = [
        ("model first", named("m1"), named("m2")),
        ("model last", behind("m1"), behind("m2")),
        ("not named", without.clone().close(), without.field("model", "m2").close()),
    ];
    for (early, framing) in [false, true].into_iter().flat_map(|early| Framing::BOTH.map(|framing| (early, framing))) {
        for (place, form, want) in &forms {
            let label = format!("{place}, {framing:?}, early: {early}");
            let (bad, good) = (limited(early).await, good().await);
            let conf = two(bad.port, good.port).with("[models.m1]\nroutes = [\"bad/m1\", \"good/m2\"]");
            let gateway = Gateway::spawn(conf).await;
            let mut client = gateway.client().await;
            client.send(framing.request(TRANSCRIBE, "X-Aulos-Model: m1\r\n", form)).await;
            let answer = client.answer().await;
            is_served(&answer, Kind::ModelFirst, &label);
            let sent = good.requests();
            assert_eq!(sent.len(), 1, "{label}");
            sent[0].is_exactly(want, &label);
            if framing == Framing::Declared && !early {
                let length = want.len().to_string();
                assert_eq!(sent[0].header("content-length"), Some(length.as_str()), "{label}: all of it is known");
            }
            let attempts = attempts(&gateway, &answer).await;
            assert_eq!(attempts.last().map(String::as_str), Some("good/m2 1 200 -"), "{label}: {attempts:?}");
        }
    }
}
