//! Bytes as they are: of any kind, of any number, at any time.

use tokio::sync::oneshot;

use super::{AGREED, CLOSE, Far, Line, MASK, NORMAL, REALTIME, Tunnel, asking, conf, frame, noise, same};
use crate::support::Gateway;

/// More than all buffers on the way hold together.
const MUCH: usize = 4 << 20;

/// Who says all it has before it reads a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Nobody,
    Client,
    Vendor,
}

#[tokio::test]
async fn megabytes_both_ways_at_once_arrive_whatever_the_sides_do_first() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    // No frames: what is relayed is not judged.
    let (up, down) = (noise(1, MUCH + 1), noise(2, MUCH + 7));
    for first in [First::Nobody, First::Client, First::Vendor] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        let Tunnel { near, far, .. } = &mut tunnel;
        let client = async {
            if first != First::Client {
                return near.exchange(&up, down.len()).await;
            }
            near.send(&up).await;
            near.next(down.len()).await
        };
        let server = async {
            if first != First::Vendor {
                return far.exchange(&down, up.len()).await;
            }
            far.send(&down).await;
            far.next(up.len()).await
        };
        let (heard, asked) = tokio::join!(client, server);
        same(&heard, &down, &format!("down, {first:?} first"));
        same(&asked, &up, &format!("up, {first:?} first"));
        near.finish().await;
        assert!(far.rest().await.is_empty(), "nothing more");
        far.finish().await;
        assert!(near.rest().await.is_empty(), "nothing more");
    }
}

#[tokio::test]
async fn the_record_has_what_passed_exactly() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for (up, down) in [(0, 0), (1, 0), (0, 1), (100_000, 300_001)] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        let (said, heard) = (noise(3, up), noise(4, down));
        let up = [frame(2, &said, MASK), frame(CLOSE, &NORMAL, MASK)].concat();
        let down = [frame(2, &heard, None), frame(CLOSE, &NORMAL, None)].concat();
        let Tunnel { near, far, .. } = &mut tunnel;
        let (got, asked) = tokio::join!(near.exchange(&up, down.len()), far.exchange(&down, up.len()));
        same(&got, &down, "down");
        same(&asked, &up, "up");
        far.finish().await;
        near.finish().await;
        assert!(near.rest().await.is_empty());
        let usage = tunnel.record(&gateway, "complete", None).await;
        let counted = (usage["bytes_in"].as_u64(), usage["bytes_out"].as_u64());
        assert_eq!(counted, (Some(up.len() as u64), Some(down.len() as u64)), "{usage}");
        assert_eq!((&usage["op"], &usage["path"]), (&"passthrough".into(), &"/p/openai/v1/realtime".into()), "{usage}");
        let (ttfb, duration) = (usage["ttfb_ms"].as_f64(), usage["duration_ms"].as_f64());
        assert!(ttfb.is_some_and(|ttfb| ttfb > 0.0) && duration >= ttfb, "{usage}");
        let audit = gateway.record_of("audit", &tunnel.answer).await;
        let attempts = audit["attempts"].as_array().expect("a list");
        assert_eq!((attempts.len(), &attempts[0]["status"], &attempts[0]["error"]), (1, &101.into(), &().into()));
    }
}

/// Impatient clients do not wait for the 101. Until it is there, none of their bytes are the vendor's.
#[tokio::test]
async fn what_comes_with_the_head_waits_for_the_101_and_is_not_lost() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for size in [1, 100, 3500, 4096, 5000, 20_000, 70_000, 200_000] {
        for pieces in [1, 2] {
            let label = format!("{size} bytes, with the head in {pieces} pieces");
            let (up, down) = (noise(size, size), noise(size + 1, size));
            let mut near = Line::connect(&gateway).await;
            let sent = [asking(REALTIME, "").as_bytes(), &up].concat();
            let talk = async {
                // The cut is within the head: its end, and all that follows, comes in the second piece.
                let (first, rest) = sent.split_at(if pieces == 1 { 0 } else { 60 });
                near.send(first).await;
                near.send(rest).await;
                let answer = near.answer().await;
                assert_eq!(answer.status, 101, "{label}");
                near.next(down.len()).await
            };
            let serve = async {
                let (_, mut far) = vendor.called().await;
                assert!(far.buffer.is_empty(), "{label}: bytes before the 101");
                // As fast as it can, too.
                far.send([AGREED.as_bytes(), &down].concat()).await;
                far.next(up.len()).await
            };
            let (heard, asked) = tokio::join!(talk, serve);
            same(&heard, &down, &label);
            same(&asked, &up, &label);
        }
    }
}

/// More than the gateway hears before the answer: what it has heard goes up first, what waits in the socket behind it.
#[tokio::test]
async fn what_is_said_between_the_head_and_a_late_101_keeps_its_order() {
    const SAID: usize = 200 * 1024;
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let mut other = Tunnel::open(&gateway, &mut vendor).await;
    for at_once in [1, 100, 100 * 1024] {
        let (up, down) = (noise(at_once, SAID), noise(at_once + 1, 5000));
        let mut near = Line::connect(&gateway).await;
        near.send(asking(REALTIME, "")).await;
        let (_, mut far) = vendor.called().await;
        let (first, rest) = up.split_at(at_once);
        near.send(first).await;
        // What comes back through the same gateway was sent after it, so that it has been heard by now.
        other.works(&format!("{at_once} bytes before the 101")).await;
        let (go, told) = oneshot::channel();
        let talk = async {
            // No more than fits into the buffers on the way: the last piece may have to wait for the 101.
            let (now, later) = rest.split_at(30 * 1024);
            near.send(now).await;
            go.send(()).expect("the vendor waits");
            near.send(later).await;
            assert_eq!(near.answer().await.status, 101, "{at_once}");
            near.next(down.len()).await
        };
        let serve = async {
            told.await.expect("the client goes on");
            far.send([AGREED.as_bytes(), &down].concat()).await;
            far.next(SAID).await
        };
        let (heard, asked) = tokio::join!(talk, serve);
        same(&asked, &up, &format!("up, {at_once} at once"));
        same(&heard, &down, &format!("down, {at_once} at once"));
    }
}

#[tokio::test]
async fn each_frame_is_passed_on_when_it_arrives() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
    for n in 0..200 {
        tunnel.works(&format!("turn {n}")).await;
    }
    // A frame that comes in crumbs is no frame for the gateway to wait for.
    for byte in frame(2, b"crumbs", None) {
        tunnel.far.send([byte]).await;
        assert_eq!(tunnel.near.next(1).await, [byte]);
    }
}
