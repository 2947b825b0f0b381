//! Replicas of one provider: what one cannot serve, another one does, and whoever comes back is used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;

use super::{Kind, NO, ask, attempts, good, is_served, nobody, serve};
use crate::support::{Conf, Gateway, Vendor, soon};

/// A provider called `pool` with peers at these ports, whose host is not there.
pub(super) fn pool(ports: &[u16], health: &str) -> Conf {
    let peers: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let peers = format!("peers = {peers:?}\n{health}");
    Conf::new().with(&format!(
        "[providers.pool]\nkind = \"openai\"\nbase_url = \"http://whisper.test/v1\"\nkeys = [\"${{PROVIDER_KEY}}\"]\n{peers}"
    ))
}

pub(super) const OFF: &str = "health = \"off\"";

#[tokio::test]
async fn peers_take_turns_and_are_asked_by_the_providers_name() {
    let vendors = [good().await, good().await];
    let gateway = Gateway::spawn(pool(&[&vendors[0], &vendors[1]].map(|vendor| vendor.port), OFF)).await;
    for kind in Kind::ALL {
        is_served(&ask(&gateway, kind, "pool/m", "x").await, kind, "in turn");
    }
    for vendor in vendors {
        assert_eq!(vendor.requests().len(), 2);
        assert!(vendor.requests().iter().all(|request| request.header("host") == Some("whisper.test")));
    }
}

#[tokio::test]
async fn a_peer_that_is_dead_costs_no_request_and_is_soon_left_alone() {
    const REQUESTS: usize = 30;
    let (_nobody, dead) = nobody();
    for health in [OFF, ""] {
        let alive = good().await;
        let gateway = Gateway::spawn(pool(&[dead, alive.port], health)).await;
        let (began, mut failed) = (Instant::now(), 0);
        for n in 0..REQUESTS {
            let kind = if n % 10 == 0 { Kind::ModelFirst } else { Kind::Speech };
            let answer = ask(&gateway, kind, "pool/m", "x").await;
            is_served(&answer, kind, health);
            let attempts = attempts(&gateway, &answer).await;
            assert_eq!(attempts.last().map(String::as_str), Some("pool/m 1 200 -"), "{attempts:?}");
            failed += attempts.iter().filter(|line| line.ends_with("connect_refused")).count();
        }
        assert_eq!(alive.requests().len(), REQUESTS, "each once");
        // It opens for a second at least, and then for a probe.
        let probes = usize::try_from(began.elapsed().as_secs()).expect("few");
        assert!((1..=5 + probes).contains(&failed), "{failed} requests met the dead peer, with {probes} probes");
    }
}

#[tokio::test]
async fn a_peer_that_comes_back_is_used_again() {
    for health in [OFF, "health = \"tcp\"", "health = \"http\""] {
        let ((socket, port), alive) = (nobody(), good().await);
        let gateway = Gateway::spawn(pool(&[port, alive.port], health)).await;
        let served = async || {
            let answer = ask(&gateway, Kind::Speech, "pool/m", "x").await;
            is_served(&answer, Kind::Speech, health);
            attempts(&gateway, &answer).await.len()
        };
        let mut failed = 0;
        soon(&format!("the dead peer is left alone, {health}"), async {
            while failed < 5 {
                failed += served().await - 1;
            }
        })
        .await;
        let back = Vendor::at(socket.listen(1024).expect("listens"), |head, mut wire| async move {
            let request = wire.whole(head).await?;
            serve(&request, &mut wire).await;
            Some(wire)
        });
        soon(&format!("it is used again, {health}"), async {
            while !back.requests().iter().any(|request| request.target == "/v1/audio/speech") {
                served().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_peer_that_dies_under_load_fails_no_request() {
    let dead = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&dead);
    let mortal = Vendor::early(move |head, mut wire| {
        let dead = Arc::clone(&told);
        async move {
            if dead.load(Ordering::Relaxed) {
                wire.reset();
                return None;
            }
            let request = wire.whole(head).await?;
            serve(&request, &mut wire).await;
            Some(wire)
        }
    })
    .await;
    let steady = good().await;
    let gateway = Arc::new(Gateway::spawn(pool(&[mortal.port, steady.port], "")).await);
    let over = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for kind in [Kind::Speech, Kind::Chat, Kind::Speech, Kind::Chat] {
        let (gateway, over) = (Arc::clone(&gateway), Arc::clone(&over));
        load.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                is_served(&ask(&gateway, kind, "pool/m", "x").await, kind, "under load");
            }
        });
    }
    mortal.received(5).await;
    // It resets connections that are in the pool, and new ones.
    dead.store(true, Ordering::Relaxed);
    let served = steady.requests().len();
    steady.received(served + 60).await;
    dead.store(false, Ordering::Relaxed);
    let served = mortal.requests().len();
    mortal.received(served + 5).await;
    over.store(true, Ordering::Relaxed);
    load.join_all().await;
}

/// A peer that answers, and cannot.
#[tokio::test]
async fn what_one_peer_cannot_serve_another_one_does() {
    for status in ["500 Odd", "503 Odd", "408 Slow"] {
        let (bad, good) = (super::saying(status).await, good().await);
        let gateway = Gateway::spawn(pool(&[bad.port, good.port], OFF)).await;
        for kind in Kind::ALL {
            is_served(&ask(&gateway, kind, "pool/m", "x").await, kind, status);
        }
        assert_eq!(good.requests().len(), Kind::ALL.len(), "{status}");
        assert!((1..=Kind::ALL.len()).contains(&bad.requests().len()), "{status}");
    }
    let both = [super::saying("503 Odd").await, super::saying("503 Odd").await];
    let gateway = Gateway::spawn(pool(&[&both[0], &both[1]].map(|vendor| vendor.port), OFF)).await;
    let answer = ask(&gateway, Kind::Speech, "pool/m", "x").await;
    assert_eq!((answer.status, answer.body.as_slice()), (503, NO));
    assert_eq!(attempts(&gateway, &answer).await, ["pool/m 1 503 -"; 2]);
    assert!(both.iter().all(|vendor| vendor.requests().len() == 1), "each once");
}
