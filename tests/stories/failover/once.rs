//! What a provider has had in full and did not answer may have been done there: it is asked of one more, or of none.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{Kind, NO, SHORT, ask, attempts, closing, good, is_served, nobody, provider, saying, serve, stalling, two};
use crate::support::{Answer, Conf, Gateway, Vendor};

/// Three providers in a row, at these ports.
fn three(ports: [u16; 3]) -> Conf {
    let conf = Conf::new().with("[models.house]\nroutes = [\"a/m1\", \"b/m2\", \"c/m3\"]");
    ["a", "b", "c"]
        .iter()
        .zip(ports)
        .fold(conf, |conf, (name, port)| conf.with(&provider(name, port, &["PROVIDER_KEY"])))
}

/// Nobody answered, and that is said. What several could not do is not to be tried again, several times over.
fn is_unanswered(answer: &Answer, refusal: (u16, &str), label: &str) {
    assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{label}");
    assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    let several = answer.header("x-aulos-attempts") != Some("1");
    assert_eq!(answer.header("x-should-retry"), several.then_some("false"), "{label}");
}

const UNAVAILABLE: (u16, &str) = (502, "upstream_unavailable");
const LATE: (u16, &str) = (504, "upstream_timeout");

#[tokio::test]
async fn what_was_heard_and_not_answered_is_asked_once_more() {
    for (first, second, refusal) in [
        (closing().await, closing().await, UNAVAILABLE),
        (stalling().await, stalling().await, LATE),
        (closing().await, stalling().await, LATE),
        (stalling().await, closing().await, UNAVAILABLE),
    ] {
        let third = good().await;
        let gateway = Gateway::spawn(three([first.port, second.port, third.port]).with(SHORT)).await;
        for (n, kind) in (1..).zip([Kind::Speech, Kind::ModelFirst]) {
            let label = format!("{refusal:?}, {kind:?}");
            let answer = ask(&gateway, kind, "house", &label).await;
            is_unanswered(&answer, refusal, &label);
            let attempts = attempts(&gateway, &answer).await;
            assert!(attempts.len() == 2 && attempts[1].starts_with("b/m2 "), "{label}: {attempts:?}");
            assert_eq!((first.requests().len(), second.requests().len()), (n, n), "{label}");
        }
        assert_eq!(third.connections(), 0, "{refusal:?}");
    }
}

#[tokio::test]
async fn what_may_be_done_at_most_once_is_not_asked_again() {
    for (first, refusal) in [(closing().await, UNAVAILABLE), (stalling().await, LATE)] {
        let second = good().await;
        let conf = two(first.port, second.port).with("at_most_once = true").with(SHORT);
        let gateway = Gateway::spawn(conf).await;
        for (n, kind) in (1..).zip(Kind::ALL) {
            let label = format!("{refusal:?}, {kind:?}");
            let answer = ask(&gateway, kind, "house", &label).await;
            is_unanswered(&answer, refusal, &label);
            assert_eq!((attempts(&gateway, &answer).await.len(), first.requests().len()), (1, n), "{label}");
        }
        assert_eq!(second.connections(), 0, "{refusal:?}");
    }
}

/// Nothing can have been done where nobody was there, or where the provider says so.
#[tokio::test]
async fn what_was_not_done_is_asked_of_another_even_then() {
    let (_nobody, port) = nobody();
    let limited = saying("429 Too Many").await;
    for (port, first) in [(port, "bad/m1 1 - connect_refused"), (limited.port, "bad/m1 1 429 -")] {
        let second = good().await;
        let gateway = Gateway::spawn(two(port, second.port).with("at_most_once = true")).await;
        let answer = ask(&gateway, Kind::Speech, "house", "x").await;
        is_served(&answer, Kind::Speech, first);
        assert_eq!(attempts(&gateway, &answer).await, [first, "good/their/m2 1 200 -"]);
    }
}

/// A vendor that answers the first request of each connection, and lets go of the connection when the next one begins.
async fn forgetful() -> Vendor {
    Vendor::early(|head, mut wire| async move {
        if wire.is_used() {
            return None;
        }
        let request = wire.whole(head).await?;
        serve(&request, &mut wire).await;
        Some(wire)
    })
    .await
}

/// A connection that had died in the pool says nothing of its provider, which is asked again on another one.
#[tokio::test]
async fn what_a_dead_connection_took_is_asked_again() {
    let (forgetful, good) = (forgetful().await, good().await);
    let gateway = Gateway::spawn(two(forgetful.port, good.port)).await;
    for n in 1..=4 {
        let answer = ask(&gateway, Kind::Speech, "house", "x").await;
        is_served(&answer, Kind::Speech, "on a fresh connection");
        gateway.record_of("usage", &answer).await;
        assert_eq!(answer.header("x-aulos-provider"), Some("bad"));
        assert_eq!(forgetful.requests().len(), n);
    }
    assert_eq!(good.connections(), 0);
}

/// Nobody can tell for sure that it was dead before it had all.
#[tokio::test]
async fn what_a_dead_connection_may_have_taken_is_not_done_twice() {
    let (forgetful, good) = (forgetful().await, good().await);
    let gateway = Gateway::spawn(two(forgetful.port, good.port).with("at_most_once = true")).await;
    for is_first in [true, false, true] {
        let answer = ask(&gateway, Kind::Speech, "house", "x").await;
        if is_first {
            is_served(&answer, Kind::Speech, "on a fresh connection");
        } else {
            is_unanswered(&answer, UNAVAILABLE, "on a dead one");
        }
        gateway.record_of("usage", &answer).await;
        assert_eq!(answer.header("x-aulos-attempts"), Some("1"));
    }
    assert_eq!((forgetful.requests().len(), good.connections()), (2, 0));
}

/// Behind the first byte nothing is mended: it would be another answer's.
#[tokio::test]
async fn an_answer_that_breaks_stays_broken() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n";
    for (label, behind) in [
        ("counted, closes", "Content-Length: 9\r\n\r\nSOUN"),
        ("counted, resets", "Content-Length: 9\r\n\r\nSOUN"),
        ("chunked, closes", "Transfer-Encoding: chunked\r\n\r\n4\r\nSOUN\r\n"),
        ("chunked, cut", "Transfer-Encoding: chunked\r\n\r\n4\r\nSOUN\r\n9\r\n"),
        ("chunked, stalls", "Transfer-Encoding: chunked\r\n\r\n4\r\nSOUN\r\n"),
    ] {
        let seen = Arc::new(Semaphore::new(0));
        let go = Arc::clone(&seen);
        let first = Vendor::start(move |_, mut wire| {
            let go = Arc::clone(&go);
            async move {
                wire.write(format!("{head}{behind}")).await;
                if label.ends_with("stalls") {
                    wire.gone().await;
                } else {
                    go.acquire().await.expect("never closed").forget();
                }
                if label.ends_with("resets") {
                    wire.reset();
                }
                None
            }
        })
        .await;
        let second = good().await;
        let gateway = Gateway::spawn(two(first.port, second.port).with(SHORT)).await;
        for (n, kind) in (1..).zip(Kind::ALL) {
            let label = format!("{label}, {kind:?}");
            let mut client = gateway.client().await;
            client.send(kind.request("house", &label)).await.sees("SOUN").await;
            seen.add_permits(1);
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUN", false), "{label}");
            assert_eq!(answer.header("x-aulos-provider"), Some("bad"), "{label}");
            let usage = gateway.record_of("usage", &answer).await;
            assert!(["upstream_broken", "timeout"].map(Some).contains(&usage["end"].as_str()), "{label}: {usage}");
            assert_eq!((&usage["attempts"], first.requests().len()), (&1.into(), n), "{label}: {usage}");
        }
        assert_eq!(second.connections(), 0, "{label}");
    }
}

/// A provider that answered is told of, where those behind it gave no answer.
#[tokio::test]
async fn an_earlier_answer_is_told_where_the_last_one_gave_none() {
    let (_nobody, refusing) = nobody();
    for (status, refusal, retry_after) in [
        ("429 Too Many\r\nRetry-After: 7", (429, "rate_limit_exceeded"), Some("7")),
        ("503 Odd\r\nRetry-After: 7", (503, "upstream_error"), Some("7")),
        ("500 Odd", (500, "upstream_error"), None),
        ("404 Not Found", (404, "model_not_found"), None),
        ("401 Unauthorized", (502, "provider_auth"), None),
    ] {
        let (first, closing) = (saying(status).await, closing().await);
        for (port, how) in [(refusing, "refuses"), (closing.port, "closes")] {
            for kind in [Kind::Speech, Kind::ModelFirst] {
                // A gateway that has not yet learned who is to be asked last.
                let gateway = Gateway::spawn(two(first.port, port)).await;
                let label = format!("{status}, then one that {how}, {kind:?}");
                let answer = ask(&gateway, kind, "house", &label).await;
                assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{label}");
                assert_eq!(answer.header("retry-after"), retry_after, "{label}");
                assert_eq!(attempts(&gateway, &answer).await.len(), 2, "{label}");
            }
        }
    }
}

/// The last answer is the provider's own.
#[tokio::test]
async fn the_last_answer_passes_as_it_is() {
    for (status, want) in [("503 Odd\r\nRetry-After: 7", 503), ("404 Not Found\r\nRetry-After: 7", 404)] {
        let (first, second) = (saying("500 Odd").await, saying(status).await);
        let gateway = Gateway::spawn(two(first.port, second.port)).await;
        for kind in Kind::ALL {
            let label = format!("{status}, {kind:?}");
            let answer = ask(&gateway, kind, "house", &label).await;
            assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (want, NO, true), "{label}");
            let told = ["retry-after", "x-aulos-origin", "x-aulos-provider"].map(|name| answer.header(name));
            assert_eq!(told, [Some("7"), Some("provider"), Some("good")], "{label}");
        }
    }
}
