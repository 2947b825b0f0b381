//! Vendors that cannot be reached, or do not answer a handshake as one has to be.

use std::time::Duration;

use tokio::net::TcpSocket;

use super::{AGREED, Far, Line, REALTIME, ask, asking, conf, peers, saying};
use crate::support::{Answer, Gateway, Vendor, soon};

/// Something that is bound and does not listen: whoever connects is refused.
fn nobody() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().expect("made");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let port = socket.local_addr().expect("bound").port();
    (socket, port)
}

/// A provider with two peers.
fn pool(ports: [u16; 2]) -> String {
    let [a, b] = ports;
    format!(
        "base_url = \"http://realtime.test/v1\"\npeers = [\"127.0.0.1:{a}\", \"127.0.0.1:{b}\"]\nhealth = \"off\"\n"
    )
}

#[tokio::test]
async fn a_peer_that_refuses_the_connection_is_left_for_the_other() {
    let (_nobody, dead) = nobody();
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(peers(&pool([dead, vendor.port]))).await;
    let mut refused = 0;
    for _ in 0..4 {
        let mut near = Line::connect(&gateway).await;
        near.send(asking(REALTIME, "")).await;
        let (request, mut far) = vendor.called().await;
        assert_eq!(request.header("host"), Some("realtime.test"));
        far.send(AGREED).await;
        let answer = near.answer().await;
        assert_eq!(answer.status, 101, "{answer:?}");
        near.send("up").await;
        assert_eq!(far.next(2).await, b"up");
        drop((near, far));
        let audit = gateway.record_of("audit", &answer).await;
        let errors: Vec<_> = audit["attempts"].as_array().expect("a list").iter().map(|try_| &try_["error"]).collect();
        assert!(errors.last().is_some_and(|last| last.is_null()), "{audit}");
        refused += errors.iter().filter(|error| **error == "connect_refused").count();
        assert_eq!(answer.header("x-aulos-attempts"), Some(errors.len().to_string().as_str()));
    }
    assert!(refused > 0, "the dead one was met");
}

#[tokio::test]
async fn where_nobody_listens_the_client_is_told() {
    let ((_one, a), (_two, b)) = (nobody(), nobody());
    let gateway = Gateway::spawn(peers(&pool([a, b]))).await;
    let answer = ask(&gateway, asking(REALTIME, ""), "nobody").await;
    assert_eq!(answer.refusal(), (502, "upstream_unavailable".to_owned()));
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!(
        (&audit["end"], audit["attempts"].as_array().map(Vec::len)),
        (&"upstream_failed".into(), Some(2)),
        "{audit}"
    );
}

/// What the client is told of a handshake that came to nothing, and what the record says; it is not made again.
async fn fails(label: &str, vendors: &[Vendor; 2], want: (u16, &str, &str)) -> Answer {
    let conf = peers(&pool([vendors[0].port, vendors[1].port])).with("[timeouts]\nfirst_byte = \"1s\"");
    let gateway = Gateway::spawn(conf).await;
    let answer = ask(&gateway, asking(REALTIME, ""), label).await;
    assert_eq!(answer.refusal(), (want.0, want.1.to_owned()), "{label}: {answer:?}");
    assert_eq!((answer.complete, answer.header("x-aulos-origin")), (true, Some("aulos")), "{label}");
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!((&audit["status"], &audit["end"]), (&want.0.into(), &want.2.into()), "{label}: {audit}");
    let asked: usize = vendors.iter().map(|vendor| vendor.heads().len()).sum();
    assert_eq!((asked, audit["attempts"].as_array().map(Vec::len)), (1, Some(1)), "{label}: once: {audit}");
    assert!(audit["attempts"][0]["error"].is_string(), "{label}: {audit}");
    answer
}

#[tokio::test]
async fn a_vendor_that_says_nothing_is_not_waited_for_without_end() {
    for said in ["", "HTTP/1.1 101 Switching Pro", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let stall = || {
            Vendor::start(move |_, mut wire| async move {
                wire.write(said).await.gone().await;
                None
            })
        };
        let vendors = [stall().await, stall().await];
        fails(&format!("stalls after {said:?}"), &vendors, (504, "upstream_timeout", "timeout")).await;
        // The one that was asked sees that it is not waited for any more.
        let closed = async {
            tokio::select! { () = vendors[0].closed(1) => {}, () = vendors[1].closed(1) => {} }
        };
        soon("the vendor is let go", closed).await;
    }
}

#[tokio::test]
async fn a_vendor_that_breaks_the_handshake_is_asked_once() {
    let cut = |said: &'static str| Vendor::raw(said);
    let reset = |said: &'static str| {
        Vendor::start(move |_, mut wire| async move {
            wire.write(said).await.reset();
            None
        })
    };
    for said in ["", "HTTP/1.1 101 Switching Pro"] {
        let label = format!("closes after {said:?}");
        fails(&label, &[cut(said).await, cut(said).await], (502, "upstream_unavailable", "upstream_failed")).await;
        let label = format!("resets after {said:?}");
        fails(&label, &[reset(said).await, reset(said).await], (502, "upstream_unavailable", "upstream_failed")).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_not_passed_on() {
    for (label, said) in [
        ("another protocol", "SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned()),
        ("frames at once", "\u{1}\u{2}hello\r\n\r\n".to_owned()),
        ("a broken status", "HTTP/1.1 1o1 Switching Protocols\r\n\r\n".to_owned()),
        ("a broken header", AGREED.replace("Connection: ", "Connection\0: ")),
        ("two lengths", "HTTP/1.1 403 No\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nnoo".to_owned()),
        ("a huge head", format!("HTTP/1.1 403 No\r\n{}\r\n", "X-Filler: 0123456789abcdef\r\n".repeat(40_000))),
    ] {
        let vendors = [saying(said.clone()).await, saying(said).await];
        fails(label, &vendors, (502, "upstream_invalid_response", "upstream_failed")).await;
    }
}

/// A 101 has no body (RFC 9110 §8.6), and whoever stands before us might wait for the one that it names.
#[tokio::test]
async fn a_101_with_a_framing_is_not_passed_on() {
    for line in ["Content-Length: 5", "Content-Length: 0", "Transfer-Encoding: chunked", "transfer-encoding: identity"]
    {
        let said = AGREED.replace("\r\n\r\n", &format!("\r\n{line}\r\n\r\nhello"));
        let vendors = [saying(said.clone()).await, saying(said).await];
        fails(line, &vendors, (502, "upstream_invalid_response", "upstream_failed")).await;
    }
}

/// Each interim answer would let a vendor have its client wait a little longer.
#[tokio::test]
async fn interim_answers_without_end_are_no_answer() {
    let endless = || {
        Vendor::start(|_, mut wire| async move {
            let mut taken = Ok(());
            while taken.is_ok() {
                taken =
                    tokio::io::AsyncWriteExt::write_all(&mut wire.stream, b"HTTP/1.1 103 Early Hints\r\n\r\n").await;
            }
            None
        })
    };
    let vendors = [endless().await, endless().await];
    fails("endless", &vendors, (502, "upstream_invalid_response", "upstream_failed")).await;
}

/// Who has left needs no tunnel: the vendor is not kept waiting for it.
#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_not_waited_for() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let mut near = Line::connect(&gateway).await;
    near.send(asking(REALTIME, "")).await;
    let (_, mut far) = vendor.called().await;
    near.reset();
    assert!(far.rest().await.is_empty());
    let audit = &gateway.recorded("audit", 1).await[0];
    assert_eq!((&audit["end"], &audit["error"]), (&"client_gone".into(), &"client_gone".into()), "{audit}");
}

/// A vendor that drips its head is as slow as one that does not answer.
#[tokio::test]
async fn a_head_that_drips_is_not_waited_for_without_end() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port).with("[timeouts]\nfirst_byte = \"1s\"")).await;
    let mut near = Line::connect(&gateway).await;
    near.send(asking(REALTIME, "")).await;
    let (_, far) = vendor.called().await;
    let drip = async move {
        let (mut far, mut ticks) = (far.stream, tokio::time::interval(Duration::from_millis(200)));
        let mut taken = tokio::io::AsyncWriteExt::write_all(&mut far, b"HTTP/1.1 403 No\r\nX-Slow: ").await;
        while taken.is_ok() {
            ticks.tick().await;
            taken = tokio::io::AsyncWriteExt::write_all(&mut far, b"x").await;
        }
    };
    let (answer, ()) = tokio::join!(near.answer(), soon("the vendor is let go", drip));
    assert_eq!(answer.status, 504, "{answer:?}");
}
