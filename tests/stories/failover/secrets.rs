//! Each provider gets its own key, and no client gets any.

use super::{GOOD_KEY, Kind, ask, key_of, provider, saying, two};
use crate::support::client::find;
use crate::support::{Conf, Gateway, PROVIDER_KEY, Vendor};

/// A vendor that says in every place which keys it knows: what it was sent, and these.
async fn telling(known: &'static [&'static str]) -> Vendor {
    Vendor::start(move |request, mut wire| async move {
        let keys = format!("{} {}", key_of(&request), known.join(" "));
        let body = format!("{{\"error\":{{\"message\":\"wrong: {keys}\"}}}}");
        wire.answer(&format!("400 Bad\r\nX-Keys: {keys}"), "application/json", body).await;
        Some(wire)
    })
    .await
}

#[tokio::test]
async fn no_provider_gets_the_key_of_another_and_no_client_gets_any() {
    for status in ["429 Too Many", "401 Unauthorized", "503 Odd"] {
        let (bad, good) = (saying(status).await, telling(&[]).await);
        let gateway = Gateway::spawn(two(bad.port, good.port)).await;
        for kind in Kind::ALL {
            let label = format!("{status}, {kind:?}");
            let answer = ask(&gateway, kind, "house", "x").await;
            assert_eq!(answer.status, 400, "{label}");
            let sent = good.requests().pop().expect("asked");
            assert_eq!(key_of(&sent), GOOD_KEY, "{label}");
            assert!(!sent.headers.iter().any(|(_, value)| value.contains(PROVIDER_KEY)), "{label}");
            let told = format!("{:?} {}", answer.headers, answer.text());
            assert!(![GOOD_KEY, PROVIDER_KEY].iter().any(|key| told.contains(key)), "{label}: {told}");
        }
        let audit = std::fs::read(gateway.dir.join("state/records/audit.jsonl")).expect("there");
        let kept = [audit, gateway.log().into_bytes()].concat();
        assert!([GOOD_KEY, PROVIDER_KEY].iter().all(|key| find(&kept, key.as_bytes()).is_none()), "{status}");
    }
}

/// A provider knows all of its keys, and may speak of another one than it was sent.
#[tokio::test]
async fn a_key_that_was_not_sent_is_covered_as_well() {
    let vendor = telling(&[PROVIDER_KEY, GOOD_KEY]).await;
    let conf =
        Conf::new().env("GOOD_KEY", GOOD_KEY).with(&provider("many", vendor.port, &["PROVIDER_KEY", "GOOD_KEY"]));
    let gateway = Gateway::spawn(conf).await;
    for kind in Kind::ALL {
        let answer = ask(&gateway, kind, "many/m", "x").await;
        let told = format!("{:?} {}", answer.headers, answer.text());
        assert!(![GOOD_KEY, PROVIDER_KEY].iter().any(|key| told.contains(key)), "{kind:?}: {told}");
    }
}
