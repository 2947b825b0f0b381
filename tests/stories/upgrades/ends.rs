//! How tunnels end that somebody else ends: in order, or not.

use super::{CLOSE, Far, MASK, NORMAL, TEXT, Tunnel, conf, frame};
use crate::support::Gateway;

async fn start() -> (Far, Gateway) {
    let vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    (vendor, gateway)
}

#[tokio::test]
async fn a_close_that_is_answered_ends_it_in_order_whoever_begins() {
    let (mut vendor, gateway) = start().await;
    for client_first in [true, false] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        tunnel.works("before").await;
        let Tunnel { near, far, .. } = &mut tunnel;
        let (up, down) = (frame(CLOSE, &NORMAL, MASK), frame(CLOSE, &NORMAL, None));
        if client_first {
            near.send(&up).await;
            assert_eq!(far.next(up.len()).await, up);
            far.send(&down).await;
        } else {
            far.send(&down).await;
            assert_eq!(near.next(down.len()).await, down);
            near.send(&up).await;
            assert_eq!(far.next(up.len()).await, up);
        }
        // It is the server who closes (RFC 6455 §7.1.1).
        far.finish().await;
        assert_eq!(near.rest().await, if client_first { &down[..] } else { b"" });
        near.finish().await;
        assert!(far.rest().await.is_empty());
        tunnel.record(&gateway, "complete", None).await;
    }
}

/// Whoever has sent a Close may hang up at once. It is an end in order all the same.
#[tokio::test]
async fn a_close_and_a_hang_up_arrive_both() {
    let (mut vendor, gateway) = start().await;
    for client_first in [true, false] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        let (up, down) = (frame(CLOSE, &NORMAL, MASK), frame(CLOSE, &NORMAL, None));
        let Tunnel { near, far, .. } = &mut tunnel;
        if client_first {
            near.send(&up).await;
            near.finish().await;
            assert_eq!(far.rest().await, up);
            far.finish().await;
            assert!(near.rest().await.is_empty());
        } else {
            far.send(&down).await;
            far.finish().await;
            assert_eq!(near.rest().await, down);
            near.finish().await;
            assert!(far.rest().await.is_empty());
        }
        tunnel.record(&gateway, "complete", None).await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_seen_by_the_vendor() {
    let (mut vendor, gateway) = start().await;
    for reset in [true, false] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        tunnel.works("before").await;
        let Tunnel { near, mut far, answer } = tunnel;
        if reset {
            near.reset();
        } else {
            drop(near);
        }
        assert!(far.rest().await.is_empty(), "reset: {reset}");
        let usage = gateway.record_of("usage", &answer).await;
        assert_eq!((&usage["end"], &usage["status"]), (&"client_gone".into(), &101.into()), "{usage}");
        assert_eq!(gateway.record_of("audit", &answer).await["error"], "client_gone", "reset: {reset}");
    }
}

#[tokio::test]
async fn a_vendor_that_vanishes_is_seen_by_the_client() {
    let (mut vendor, gateway) = start().await;
    for reset in [true, false] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        tunnel.works("before").await;
        let Tunnel { mut near, far, answer } = tunnel;
        if reset {
            far.reset();
        } else {
            drop(far);
        }
        assert!(near.rest().await.is_empty(), "reset: {reset}");
        let usage = gateway.record_of("usage", &answer).await;
        assert_eq!((&usage["end"], &usage["status"]), (&"upstream_broken".into(), &101.into()), "{usage}");
        assert!(gateway.record_of("audit", &answer).await["error"].is_string(), "reset: {reset}");
    }
}

/// What was said before an end arrives, though the other direction is still open, or nobody reads it yet.
#[tokio::test]
async fn last_words_are_heard() {
    let (mut vendor, gateway) = start().await;
    let words: Vec<u8> = (0..200).flat_map(|n| frame(TEXT, format!("last words {n}").as_bytes(), MASK)).collect();
    let Tunnel { mut near, mut far, .. } = Tunnel::open(&gateway, &mut vendor).await;
    near.send(&words).await;
    near.finish().await;
    assert_eq!(far.rest().await, words);
    // A client that has ended its direction may still listen, for a moment.
    far.send(&words).await;
    far.finish().await;
    assert_eq!(near.rest().await, words);
    let Tunnel { mut near, mut far, .. } = Tunnel::open(&gateway, &mut vendor).await;
    far.send(&words).await;
    drop(far);
    assert_eq!(near.rest().await, words);
}

/// A side that ended one way is not waited for without end in the other.
#[tokio::test]
async fn half_a_connection_is_not_kept() {
    let (mut vendor, gateway) = start().await;
    for client_first in [true, false] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        let Tunnel { near, far, .. } = &mut tunnel;
        let (gone, kept) = if client_first { (near, far) } else { (far, near) };
        gone.finish().await;
        assert!(kept.rest().await.is_empty(), "told at once");
        assert!(gone.rest().await.is_empty(), "and hung up on, though the other side keeps its half open");
        tunnel.record_ends(&gateway, if client_first { "client_gone" } else { "upstream_broken" }).await;
    }
}

impl Tunnel {
    async fn record_ends(&self, gateway: &Gateway, end: &str) {
        let usage = gateway.record_of("usage", &self.answer).await;
        assert_eq!(usage["end"], end, "{usage}");
    }
}
