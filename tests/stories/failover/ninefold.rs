//! A provider that fails in the same way again and again: every request is served, each by one call to the provider
//! that is well, and the one that fails is soon left alone.

use std::time::Instant;

use super::matrix::{Bad, is_asked_once};
use super::{Kind, SHORT, ask, attempts, good, is_served, two};
use crate::support::Gateway;

const REQUESTS: usize = 20;

/// How a provider fails, and how many requests find out before it is left alone: five where the peer is at fault, one
/// where the key is.
const FAULTS: [(&str, usize); 9] = [
    ("refuses", 5),
    ("resets at accept", 5),
    ("resets at the head", 5),
    ("closes", 5),
    ("garbage", 5),
    ("500", 5),
    ("stalls", 5),
    ("401", 1),
    ("429", 1),
];

/// How many probes a provider may have had that is left alone since then: the first after a second, the next after
/// two more, and so on, twice as long each time. It holds for a minute; pauses do not grow for ever.
pub(super) fn probes(since: Instant) -> usize {
    let probes = (since.elapsed().as_secs() + 1).ilog2();
    probes.try_into().expect("few")
}

#[tokio::test]
async fn every_request_is_served_by_one_call_and_the_provider_that_fails_is_soon_left_alone() {
    for (fault, enough) in FAULTS {
        let (bad, good) = (Bad::start(fault).await, good().await);
        let timers = if fault == "stalls" { SHORT } else { "" };
        let gateway = Gateway::spawn(two(bad.port, good.port).with(timers)).await;
        let (mut failed, mut enough_since) = (0, Instant::now());
        for (n, kind) in (1..=REQUESTS).zip(Kind::ALL.into_iter().cycle()) {
            let label = format!("{fault}, request {n} of {kind:?}");
            if failed < enough {
                enough_since = Instant::now();
            }
            let answer = ask(&gateway, kind, "house", &label).await;
            is_served(&answer, kind, &label);
            is_asked_once(&good, kind, &label);
            let attempts = attempts(&gateway, &answer).await;
            assert_eq!(attempts.last().map(String::as_str), Some("good/their/m2 1 200 -"), "{label}: {attempts:?}");
            failed += attempts.len() - 1;
            assert!(failed <= enough + probes(enough_since), "{label}: {failed} calls failed");
        }
        assert_eq!(good.heads().len(), REQUESTS, "{fault}: one call for each answer");
        assert!(failed > 0 && bad.asked().is_none_or(|asked| asked == failed), "{fault}: {failed} calls failed");
    }
}
