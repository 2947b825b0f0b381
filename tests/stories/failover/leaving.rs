//! Clients that leave while nobody has answered yet.

use super::{Kind, good, stalling, two};
use crate::support::form::{Framing, TRANSCRIBE, head};
use crate::support::{Gateway, Vendor};

#[tokio::test]
async fn nobody_is_asked_for_a_client_that_has_left() {
    let (bad, good) = (stalling().await, good().await);
    let gateway = Gateway::spawn(two(bad.port, good.port)).await;
    for (n, kind) in (1..).zip(Kind::ALL) {
        let mut client = gateway.client().await;
        client.send(kind.request("house", "x")).await;
        bad.received(n).await;
        drop(client);
        bad.closed(n).await;
        let usage = gateway.recorded("usage", n).await.pop().expect("there");
        assert_eq!((&usage["end"], &usage["attempts"]), (&"client_gone".into(), &1.into()), "{kind:?}: {usage}");
    }
    assert_eq!(good.connections(), 0);
    gateway.metric_is("aulos_spool_bytes", 0).await;
}

#[tokio::test]
async fn nor_for_one_that_leaves_in_mid_upload() {
    let bad = Vendor::early(|head, mut wire| async move { wire.whole(head).await.map(|_| wire) }).await;
    let good = good().await;
    let gateway = Gateway::spawn(two(bad.port, good.port)).await;
    let body = Kind::ModelFirst.body("house", "half of it");
    for (n, framing) in (1..).zip(Framing::BOTH) {
        let mut client = gateway.client().await;
        client.send(head(TRANSCRIBE, &framing.line(body.len()))).await;
        client.send(framing.piece(&body[..1_000_000])).await;
        bad.hears("half of it").await;
        drop(client);
        bad.closed(n).await;
        let usage = gateway.recorded("usage", n).await.pop().expect("there");
        assert_eq!((&usage["end"], &usage["attempts"]), (&"client_gone".into(), &1.into()), "{framing:?}: {usage}");
    }
    assert_eq!((bad.requests().len(), good.connections()), (0, 0));
    gateway.metric_is("aulos_spool_bytes", 0).await;
}
