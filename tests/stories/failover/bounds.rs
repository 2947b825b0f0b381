//! How hard a request is tried: `[failover]`.

use super::{Kind, NO, ask, attempts, good, is_served, provider, saying, stalling, two};
use crate::support::{Conf, Gateway};

#[tokio::test]
async fn no_more_attempts_are_made_than_are_allowed() {
    for (max, conf) in [(1, "max_attempts = 1"), (2, "max_attempts = 2"), (3, ""), (4, "max_attempts = 4")] {
        let (bad, good) = (saying("503 Odd").await, good().await);
        let mut conf = Conf::new().with(&format!("[failover]\n{conf}"));
        for name in ["a", "b", "c"] {
            conf = conf.with(&provider(name, bad.port, &["PROVIDER_KEY"]));
        }
        let conf = conf.with(&provider("good", good.port, &["PROVIDER_KEY"]));
        let gateway =
            Gateway::spawn(conf.with("[models.house]\nroutes = [\"a/m\", \"b/m\", \"c/m\", \"good/m\"]")).await;
        for (n, kind) in (1..).zip([Kind::Speech, Kind::ModelFirst]) {
            let label = format!("{max} attempts, {kind:?}");
            let answer = ask(&gateway, kind, "house", &label).await;
            let want = ["a/m 1 503 -", "b/m 1 503 -", "c/m 1 503 -", "good/m 1 200 -"];
            assert_eq!(attempts(&gateway, &answer).await, want[..max], "{label}");
            assert_eq!(bad.requests().len(), n * max.min(3), "{label}");
            if max > 3 {
                is_served(&answer, kind, &label);
            } else {
                assert_eq!((answer.status, answer.body.as_slice()), (503, NO), "{label}");
                assert_eq!(good.connections(), 0, "{label}");
            }
        }
    }
}

#[tokio::test]
async fn no_attempt_begins_when_the_time_is_over() {
    let (bad, good) = (stalling().await, good().await);
    let conf = two(bad.port, good.port).with("[failover]\ntotal = \"500ms\"\n[timeouts]\nfirst_byte = \"1s\"");
    let gateway = Gateway::spawn(conf).await;
    for kind in [Kind::Speech, Kind::ModelFirst] {
        let answer = ask(&gateway, kind, "house", "x").await;
        assert_eq!(answer.refusal(), (504, "upstream_timeout".into()), "{kind:?}");
        assert_eq!(attempts(&gateway, &answer).await.len(), 1, "{kind:?}");
    }
    assert_eq!(good.connections(), 0);
}
