//! How tunnels end that the gateway ends: with a Close where one fits, and never kept by who does not listen.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tokio::time::interval;

use super::{BINARY, Far, GOING_AWAY, Line, MASK, TEXT, Tunnel, closing, conf, frame, noise};
use crate::support::{Gateway, nobody_listens, until};

/// A gateway with one limit that is reached in a story, and all others far away.
async fn start(limit: &str) -> (Far, Gateway) {
    let vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port).with(&format!("[timeouts]\n{limit}"))).await;
    (vendor, gateway)
}

/// Both sides are told with a Close of ours, the vendor's with a mask, and hung up on.
async fn both_are_told(tunnel: &mut Tunnel, reason: &str) {
    let (near, far) = (tunnel.near.rest().await, tunnel.far.rest().await);
    assert_eq!(closing(&near), (GOING_AWAY, reason.to_owned(), false));
    assert_eq!(closing(&far), (GOING_AWAY, reason.to_owned(), true));
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_is_ended() {
    let (mut vendor, gateway) = start("tunnel_idle = \"1s\"").await;
    let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
    tunnel.works("before").await;
    both_are_told(&mut tunnel, "idle for too long").await;
    let usage = tunnel.record(&gateway, "timeout", Some("tunnel_idle")).await;
    let (up, down) = (frame(TEXT, b"before", MASK), frame(TEXT, b"before", None));
    assert_eq!((&usage["bytes_in"], &usage["bytes_out"]), (&up.len().into(), &down.len().into()), "without ours");
}

/// A Close in the middle of a frame would be read as part of it.
#[tokio::test]
async fn a_frame_that_is_not_whole_is_cut_and_nothing_put_into_it() {
    let (mut vendor, gateway) = start("tunnel_idle = \"1s\"").await;
    let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
    let half = &frame(BINARY, &noise(9, 5000), None)[..3000];
    tunnel.far.send(half).await;
    assert_eq!(tunnel.near.rest().await, half, "no Close in it");
    let far = tunnel.far.rest().await;
    assert_eq!(closing(&far), (GOING_AWAY, "idle for too long".to_owned(), true), "the other direction has room");
    tunnel.record(&gateway, "timeout", Some("tunnel_idle")).await;
    // The same with lengths that nobody will ever send, and fragments that never end.
    for odd in
        [&[0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4][..], &[0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255]]
    {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        tunnel.near.send(odd).await;
        assert_eq!(tunnel.far.rest().await, odd);
        assert_eq!(closing(&tunnel.near.rest().await).0, GOING_AWAY);
        tunnel.record(&gateway, "timeout", Some("tunnel_idle")).await;
    }
}

/// Traffic one way keeps a tunnel, and only so long.
#[tokio::test]
async fn a_tunnel_that_is_busy_ends_at_its_time() {
    let (mut vendor, gateway) = start("tunnel_idle = \"1s\"\ntunnel_total = \"3s\"").await;
    for up in [true, false] {
        let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
        let beat = frame(TEXT, b"beat", if up { MASK } else { None });
        let Tunnel { near, far, .. } = &mut tunnel;
        let (speaker, listener) = if up { (near, far) } else { (far, near) };
        let mut ticks = interval(Duration::from_millis(100));
        let (mut heard, mut told) = (Vec::new(), Vec::new());
        let speak = async {
            loop {
                tokio::select! {
                    _ = ticks.tick() => if speaker.stream.write_all(&beat).await.is_err() { break },
                    read = speaker.more() => if read == 0 { break },
                }
            }
            told = speaker.rest().await;
        };
        let listen = async { heard = listener.rest().await };
        tokio::join!(speak, listen);
        let beats = heard.chunks(beat.len()).take_while(|piece| **piece == beat).count();
        assert!(beats > 10, "{beats} beats: it lived longer than the idle limit");
        let (last, first) = (closing(&heard[beats * beat.len()..]), closing(&told));
        assert_eq!((last.0, first.0), (GOING_AWAY, GOING_AWAY), "{last:?} {first:?}");
        assert_eq!((last.1.as_str(), last.2, first.2), ("time limit reached", up, !up));
        tunnel.record(&gateway, "timeout", Some("tunnel_total")).await;
    }
}

#[tokio::test]
async fn a_tunnel_goes_on_while_the_gateway_drains_and_is_then_ended() {
    let mut vendor = Far::start().await;
    let mut gateway = Gateway::spawn(conf(vendor.port).server("drain = \"4s\"")).await;
    let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
    let mut brief = Tunnel::open(&gateway, &mut vendor).await;
    gateway.signal("TERM");
    nobody_listens(gateway.addr()).await;
    tunnel.works("while it drains").await;
    brief.works("while it drains").await;
    // One that ends by itself is not cut.
    brief.near.send(frame(super::CLOSE, &super::NORMAL, MASK)).await;
    brief.far.send(frame(super::CLOSE, &super::NORMAL, None)).await;
    brief.far.finish().await;
    assert_eq!(brief.near.rest().await, frame(super::CLOSE, &super::NORMAL, None));
    brief.near.finish().await;
    both_are_told(&mut tunnel, "going away").await;
    assert!(gateway.exit().await.success());
    tunnel.record(&gateway, "drained", None).await;
    brief.record(&gateway, "complete", None).await;
}

/// The last tunnel ends, and with it the drain, however long that might have been.
#[tokio::test]
async fn a_drain_is_over_with_its_last_tunnel() {
    let mut vendor = Far::start().await;
    let mut gateway = Gateway::spawn(conf(vendor.port).server("drain = \"600s\"")).await;
    let Tunnel { mut near, mut far, answer } = Tunnel::open(&gateway, &mut vendor).await;
    gateway.signal("TERM");
    nobody_listens(gateway.addr()).await;
    near.send(b"\x81\x80MASK").await;
    assert_eq!(far.next(6).await, b"\x81\x80MASK");
    drop((near, far));
    assert!(gateway.exit().await.success());
    assert_eq!(gateway.record_of("usage", &answer).await["status"], 101);
}

/// Bytes that wait to be taken are no activity, and hold up nobody else.
#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go_and_others_do_not_notice() {
    let (mut vendor, gateway) = start("tunnel_idle = \"2s\"").await;
    let mut other = Tunnel::open(&gateway, &mut vendor).await;
    // A window that does not grow.
    let socket = TcpSocket::new_v4().expect("made");
    socket.set_recv_buffer_size(4096).expect("set");
    let stream = socket.connect(gateway.addr().parse().expect("an address")).await.expect("connects");
    let mut near = Line::over(stream);
    near.send(super::asking(super::REALTIME, "")).await;
    let (_, mut far) = vendor.called().await;
    far.send(super::AGREED).await;
    let answer = near.answer().await;
    let flood = tokio::spawn(async move {
        let piece = frame(BINARY, &noise(5, 60_000), None);
        while far.stream.write_all(&piece).await.is_ok() {}
    });
    let mut rounds = 0;
    while !flood.is_finished() {
        other.works(&format!("round {rounds}")).await;
        rounds += 1;
    }
    flood.await.expect("it ends where nobody takes anything");
    assert!(rounds > 100, "{rounds} rounds in two seconds");
    let usage = gateway.record_of("usage", &answer).await;
    assert_eq!(usage["end"], "timeout", "{usage}");
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!(audit["error"], "tunnel_idle", "{audit}");
    other.works("afterwards").await;
    drop(near);
}

/// The end is not kept from a side that does not read by one that does not either.
#[tokio::test]
async fn a_vendor_that_takes_nothing_is_let_go() {
    let (mut vendor, gateway) = start("tunnel_idle = \"1s\"").await;
    let Tunnel { mut near, far, answer } = Tunnel::open(&gateway, &mut vendor).await;
    let flood = tokio::spawn(async move {
        let piece = frame(BINARY, &noise(6, 60_000), MASK);
        while near.stream.write_all(&piece).await.is_ok() {}
    });
    until("the flood ends", || flood.is_finished().then_some(())).await;
    flood.await.expect("no panic");
    let usage = gateway.record_of("usage", &answer).await;
    assert_eq!((&usage["end"], &usage["bytes_out"]), (&"timeout".into(), &0.into()), "{usage}");
    drop(far);
}

/// Who does not wait for the drain cuts tunnels, too; what passed until then was asked for, and is counted.
#[tokio::test]
async fn a_tunnel_that_is_cut_by_a_second_signal_has_its_bytes_in_the_record() {
    let mut vendor = Far::start().await;
    let mut gateway = Gateway::spawn(conf(vendor.port).server("drain = \"600s\"")).await;
    let mut tunnel = Tunnel::open(&gateway, &mut vendor).await;
    let (up, down) = (noise(7, 100_000), noise(8, 200_001));
    let (heard, asked) = tokio::join!(tunnel.near.exchange(&up, down.len()), tunnel.far.exchange(&down, up.len()));
    assert!(heard == down && asked == up);
    gateway.signal("TERM");
    nobody_listens(gateway.addr()).await;
    tunnel.works("while it drains").await;
    gateway.signal("TERM");
    gateway.exit().await;
    tunnel.near.rest().await;
    tunnel.far.rest().await;
    let usage = gateway.record_of("usage", &tunnel.answer).await;
    assert_eq!((&usage["end"], &usage["status"]), (&"drained".into(), &101.into()), "{usage}");
    let more = |mask| frame(TEXT, b"while it drains", mask).len();
    let counted = (usage["bytes_in"].as_u64(), usage["bytes_out"].as_u64());
    let passed = ((up.len() + more(MASK)) as u64, (down.len() + more(None)) as u64);
    assert_eq!(counted, (Some(passed.0), Some(passed.1)), "{usage}");
    assert!(usage["ttfb_ms"].is_number(), "{usage}");
}

/// Tunnels last for hours, and leave room for requests that last for seconds.
#[tokio::test]
async fn no_more_tunnels_than_there_may_be() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port).with("[limits]\ntunnels = 1")).await;
    // One that the vendor declines is over.
    let mut near = gateway.client().await;
    near.send(super::asking(super::REALTIME, "")).await;
    let (_, mut far) = vendor.called().await;
    far.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno").await;
    let declined = near.answer().await;
    assert_eq!(declined.status, 403);
    near.rest().await;
    gateway.record_of("usage", &declined).await;
    let mut first = Tunnel::open(&gateway, &mut vendor).await;
    for _ in 0..3 {
        let answer = super::ask(&gateway, super::asking(super::REALTIME, ""), "a second one").await;
        assert_eq!(answer.refusal(), (503, "overloaded".to_owned()), "{answer:?}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!(
            (&audit["end"], audit["attempts"].as_array().map(Vec::len)),
            (&"refused".into(), Some(0)),
            "{audit}"
        );
    }
    // What is no tunnel is served.
    let plain = async {
        let (_, mut far) = vendor.called().await;
        far.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain").await;
    };
    let (answer, ()) = tokio::join!(gateway.get("/p/openai/v1/models"), plain);
    assert_eq!((answer.status, answer.text().as_str()), (200, "plain"));
    first.works("undisturbed").await;
    let Tunnel { near, far, answer } = first;
    drop((near, far));
    gateway.record_of("usage", &answer).await;
    Tunnel::open(&gateway, &mut vendor).await.works("after the first one").await;
}
