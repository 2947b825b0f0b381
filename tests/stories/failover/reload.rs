//! A new config in the middle of it: what was learned stays with what stays.

use std::time::Instant;

use super::ninefold::probes;
use super::peers::{OFF, pool};
use super::{Kind, ask, attempts, good, is_served, key_of, limiting, nobody, provider, serve};
use crate::support::{Conf, Gateway, Vendor, soon};

const KEYS: [&str; 3] = ["sk-first-0123456789", "sk-second-0123456789", "sk-third-0123456789"];

/// The `n`th new config.
async fn reload(gateway: &Gateway, conf: &Conf, n: u64) {
    gateway.rewrite(conf);
    gateway.signal("HUP");
    gateway.metric_is("aulos_config_reloads_total{result=\"ok\"}", n).await;
}

#[tokio::test]
async fn a_key_that_stays_goes_on_resting_wherever_it_stands() {
    for status in ["429 Too Many\r\nRetry-After: 100", "401 Unauthorized"] {
        let vendor = limiting(&KEYS[..1], status).await;
        let conf = |keys: &[&str]| {
            let env = KEYS.iter().zip(["FIRST", "SECOND", "THIRD"]);
            let conf = env.fold(Conf::new(), |conf, (key, name)| conf.env(name, key));
            conf.with(&provider("many", vendor.port, keys))
        };
        let gateway = Gateway::spawn(conf(&["FIRST", "SECOND"])).await;
        let answer = ask(&gateway, Kind::Speech, "many/m", "x").await;
        assert_eq!(attempts(&gateway, &answer).await.len(), 2, "{status}");
        let reloads = [&["FIRST", "SECOND"][..], &["THIRD", "FIRST"], &["FIRST", "THIRD", "SECOND"]];
        for (n, keys) in (1..).zip(reloads) {
            reload(&gateway, &conf(keys), n).await;
            for _ in 0..keys.len() {
                let answer = ask(&gateway, Kind::Speech, "many/m", "x").await;
                is_served(&answer, Kind::Speech, status);
                assert_eq!(attempts(&gateway, &answer).await.len(), 1, "{status}, {keys:?}");
            }
        }
        let asked = vendor.requests().iter().filter(|request| key_of(request) == KEYS[0]).count();
        assert_eq!(asked, 1, "{status}");
    }
}

/// A request that is served by one of the peers; how many of them failed before.
async fn failed(gateway: &Gateway, label: &str) -> usize {
    let answer = ask(gateway, Kind::Speech, "pool/m", "x").await;
    is_served(&answer, Kind::Speech, label);
    attempts(gateway, &answer).await.len() - 1
}

/// Peers of which one is dead, with one more after each reload.
struct Growing {
    ports: Vec<u16>,
    alive: Vec<Vendor>,
}

impl Growing {
    async fn new(dead: u16) -> Self {
        let mut growing = Self { ports: vec![dead], alive: Vec::new() };
        growing.grow().await;
        growing
    }

    async fn grow(&mut self) {
        let vendor = good().await;
        self.ports.push(vendor.port);
        self.alive.push(vendor);
    }
}

/// What requests have found out is not found out again.
#[tokio::test]
async fn a_peer_that_failed_stays_left_alone_when_another_one_comes() {
    let (_nobody, dead) = nobody();
    let mut peers = Growing::new(dead).await;
    let gateway = Gateway::spawn(pool(&peers.ports, OFF)).await;
    let (mut all, mut since) = (0, Instant::now());
    soon("the dead peer is left alone", async {
        while all < 5 {
            since = Instant::now();
            all += failed(&gateway, "before").await;
        }
    })
    .await;
    for n in 1..=6 {
        peers.grow().await;
        reload(&gateway, &pool(&peers.ports, OFF), n).await;
        // As many as there are peers: each has its turn.
        for _ in &peers.ports {
            all += failed(&gateway, "with one more").await;
        }
    }
    assert!(all <= 5 + probes(since), "{all} requests met the dead peer");
    assert!(peers.alive.iter().all(|vendor| !vendor.requests().is_empty()), "those that come are used");
}

/// What probes have found out is believed until they find something else.
async fn is_believed(health: &str) {
    let (socket, dead) = nobody();
    let conf = |peers: &Growing| pool(&peers.ports, &format!("health = \"{health}\""));
    let mut peers = Growing::new(dead).await;
    let gateway = Gateway::spawn(conf(&peers)).await;
    for (port, healthy) in [(peers.ports[1], 1), (dead, 0)] {
        let metric = format!("aulos_peer_healthy{{peer=\"127.0.0.1:{port}\",provider=\"pool\"}}");
        gateway.metric_is(&metric, healthy).await;
    }
    for n in 1..=3 {
        peers.grow().await;
        reload(&gateway, &conf(&peers), n).await;
        for _ in &peers.ports {
            assert_eq!(failed(&gateway, health).await, 0, "{health}: it is asked last, and so not at all");
        }
    }
    let back = Vendor::at(socket.listen(1024).expect("listens"), |head, mut wire| async move {
        let request = wire.whole(head).await?;
        serve(&request, &mut wire).await;
        Some(wire)
    });
    soon(&format!("it is used again, {health}"), async {
        while !back.requests().iter().any(|request| request.method == "POST") {
            assert_eq!(failed(&gateway, health).await, 0, "{health}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_is_ill_stays_so_when_another_one_comes_until_it_is_well() {
    // Side by side: probes are waited for.
    tokio::join!(is_believed("tcp"), is_believed("http"));
}
