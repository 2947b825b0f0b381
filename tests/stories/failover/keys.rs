//! Several keys at one provider: one that is limited or refused rests, and the others serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Kind, NO, ask, attempts, is_served, key_of, limiting, provider, saying, serve};
use crate::support::{Conf, Gateway, Vendor, soon};

const KEY_A: &str = "sk-many-a-0123456789";
const KEY_B: &str = "sk-many-b-0123456789";

/// A provider called `many`, with two keys.
fn many(port: u16) -> Conf {
    Conf::new().env("KEY_A", KEY_A).env("KEY_B", KEY_B).with(&provider("many", port, &["KEY_A", "KEY_B"]))
}

/// The keys the vendor was asked with, in their order.
fn asked_with(vendor: &Vendor) -> Vec<String> {
    vendor.requests().iter().map(key_of).collect()
}

#[tokio::test]
async fn keys_are_used_in_turn() {
    let vendor = limiting(&[], "").await;
    let gateway = Gateway::spawn(many(vendor.port)).await;
    for _ in 0..3 {
        is_served(&ask(&gateway, Kind::Speech, "many/m", "x").await, Kind::Speech, "in turn");
    }
    assert_eq!(asked_with(&vendor), [KEY_A, KEY_B, KEY_A]);
}

#[tokio::test]
async fn keys_of_the_environment_win_over_those_of_the_file() {
    let vendor = limiting(&[], "").await;
    let conf = many(vendor.port).env("MANY_API_KEY", "sk-zero").env("MANY_API_KEY_1", "sk-one");
    let gateway = Gateway::spawn(conf).await;
    for _ in 0..3 {
        is_served(&ask(&gateway, Kind::Speech, "many/m", "x").await, Kind::Speech, "in turn");
    }
    assert_eq!(asked_with(&vendor), ["sk-zero", "sk-one", "sk-zero"]);
}

#[tokio::test]
async fn a_key_that_is_limited_or_refused_rests_and_the_next_one_serves() {
    for status in [
        "429 Too Many\r\nRetry-After: 100",
        "429 Too Many\r\nRetry-After-Ms: 100000",
        "429 Too Many\r\nRetry-After: Fri, 31 Dec 2100 23:59:59 GMT",
        "401 Unauthorized",
        "402 Payment Required",
        "403 Forbidden",
    ] {
        let vendor = limiting(&[KEY_A], status).await;
        let gateway = Gateway::spawn(many(vendor.port)).await;
        let first = ask(&gateway, Kind::Speech, "many/m", status).await;
        is_served(&first, Kind::Speech, status);
        assert_eq!(attempts(&gateway, &first).await, [&format!("many/m 1 {} -", &status[..3]), "many/m 2 200 -"]);
        for kind in Kind::ALL {
            let next = ask(&gateway, kind, "many/m", status).await;
            is_served(&next, kind, status);
            assert_eq!(attempts(&gateway, &next).await, ["many/m 2 200 -"], "{status}: it rests");
        }
        assert_eq!(asked_with(&vendor), [KEY_A, KEY_B, KEY_B, KEY_B, KEY_B, KEY_B], "{status}");
    }
}

#[tokio::test]
async fn a_limited_key_is_used_again_when_its_time_has_come() {
    let limited = Arc::new(AtomicBool::new(false));
    let vendor = Vendor::start(move |request, mut wire| {
        let limited = Arc::clone(&limited);
        async move {
            if key_of(&request) == KEY_A && !limited.swap(true, Ordering::Relaxed) {
                wire.answer("429 Too Many\r\nRetry-After: 1", "application/json", NO).await;
            } else {
                serve(&request, &mut wire).await;
            }
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(many(vendor.port)).await;
    soon("the key serves", async {
        while asked_with(&vendor).iter().filter(|key| *key == KEY_A).count() < 2 {
            is_served(&ask(&gateway, Kind::Speech, "many/m", "x").await, Kind::Speech, "meanwhile");
        }
    })
    .await;
}

#[tokio::test]
async fn when_all_keys_are_limited_the_client_is_told_as_the_provider_says_it() {
    let vendor = limiting(&[KEY_A, KEY_B], "429 Too Many\r\nRetry-After: 7").await;
    let gateway = Gateway::spawn(many(vendor.port)).await;
    for kind in Kind::ALL {
        let answer = ask(&gateway, kind, "many/m", "x").await;
        assert_eq!((answer.status, answer.body.as_slice()), (429, NO), "{kind:?}");
        assert_eq!(answer.header("retry-after"), Some("7"), "{kind:?}");
        assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{kind:?}");
        let mut attempts = attempts(&gateway, &answer).await;
        attempts.sort_unstable();
        assert_eq!(attempts, ["many/m 1 429 -", "many/m 2 429 -"], "{kind:?}: resting is no reason to refuse");
    }
}

#[tokio::test]
async fn when_all_keys_are_refused_the_client_hears_that_its_own_is_fine() {
    for status in ["401 Unauthorized", "402 Payment Required", "403 Forbidden"] {
        let vendor = limiting(&[KEY_A, KEY_B], status).await;
        let gateway = Gateway::spawn(many(vendor.port)).await;
        for kind in Kind::ALL {
            let label = format!("{status}, {kind:?}");
            let answer = ask(&gateway, kind, "many/m", "x").await;
            assert_eq!(answer.refusal(), (502, "provider_auth".into()), "{label}");
            assert_eq!(answer.header("x-should-retry"), Some("false"), "{label}");
            assert_eq!(attempts(&gateway, &answer).await.len(), 2, "{label}");
            assert_eq!(gateway.record_of("usage", &answer).await["end"], "upstream_failed", "{label}");
        }
    }
}

/// A limit of one provider is no reason to trouble another key of it where the peer is at fault.
#[tokio::test]
async fn another_key_is_no_help_where_the_peer_fails() {
    let vendor = saying("503 Odd\r\nRetry-After: 9").await;
    let gateway = Gateway::spawn(many(vendor.port)).await;
    let answer = ask(&gateway, Kind::Speech, "many/m", "x").await;
    assert_eq!((answer.status, answer.body.as_slice(), answer.header("retry-after")), (503, NO, Some("9")));
    assert_eq!(attempts(&gateway, &answer).await, ["many/m 1 503 -"]);
}
