//! How a body comes: too large, cut short, too slowly, in the wrong coding, or while there is no room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::{
    CHUNKED, Fate, HIDDEN, JSON, SPEAK, Want, canary, check, check_audit, chunked, echo, fate, head, only_canaries,
    request,
};
use crate::support::client::post;
use crate::support::gateway::SPEECH;
use crate::support::{Conf, Gateway, Vendor};

const TOO_LARGE: Want<'static> = (413, "request_too_large", None);

#[tokio::test]
async fn a_body_that_is_coded_or_of_another_type_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let wrong = [
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
        "Content-Type: application/json\r\nContent-Encoding: identity\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: application/json-seq\r\n",
        "Content-Type: \r\n",
    ];
    for lines in wrong {
        let mut client = gateway.client().await;
        let answer = client.send(&request(SPEAK, lines, HIDDEN)).await.answer().await;
        check(lines, &answer, (415, "unsupported_media_type", None));
        assert_eq!(fate(&mut client, &answer, lines).await, Fate::Closed, "{lines}");
        check_audit(lines, &gateway, &answer, Some("test")).await;
    }
    for lines in ["Content-Type: Application/JSON; charset=utf-8\r\n", "Content-Type: application/json ;x=y\r\n", ""] {
        let body = HIDDEN.replace("hidden", "canary type");
        let answer = gateway.client().await.send(&request(SPEAK, lines, body)).await.answer().await;
        assert_eq!(answer.status, 200, "{lines}: {answer:?}");
    }
    only_canaries(&vendor, 3);
}

/// Most clients write everything before they read: they, too, must see why they were refused.
#[tokio::test]
async fn a_body_over_the_limit_is_refused_to_a_client_that_writes_it_all_first() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let big = HIDDEN.replace("hidden", &"x".repeat(20_000_000));
    for (label, sent) in [
        ("declared", request(SPEAK, JSON, &big)),
        ("in chunks", [head(SPEAK, CHUNKED), chunked(&big, 64 * 1024)].concat()),
        ("in one chunk", [head(SPEAK, CHUNKED), chunked(&big, big.len())].concat()),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        check(label, &answer, TOO_LARGE);
        assert_eq!(answer.header("connection"), Some("close"), "{label}");
        assert!(client.rest().await.is_empty(), "{label}: it closes by itself");
        check_audit(label, &gateway, &answer, Some("test")).await;
        canary(&mut gateway.client().await, label).await;
    }
    only_canaries(&vendor, 3);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_as_soon_as_that_is_known() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let start = &HIDDEN.replace("hidden", &"x".repeat(1 << 20))[..(1 << 20) + 1];
    let mut endless = chunked(start, 4096);
    endless.truncate(endless.len() - "0\r\n\r\n".len());
    for (label, sent) in [
        ("declared", head(SPEAK, "Content-Length: 1048577\r\n")),
        ("declared beyond all numbers", head(SPEAK, "Content-Length: 9223372036854775807\r\n")),
        ("the client asks first", head(SPEAK, "Content-Length: 1048577\r\nExpect: 100-continue\r\n")),
        ("in chunks that go on", [head(SPEAK, CHUNKED), endless].concat()),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        check(label, &answer, TOO_LARGE);
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
        check_audit(label, &gateway, &answer, Some("test")).await;
    }
    only_canaries(&vendor, 0);
}

#[tokio::test]
async fn the_limit_itself_may_be_reached() {
    let vendor = echo().await;
    let body = HIDDEN.replace("hidden", "canary limit");
    let limits = format!("[limits]\njson_body = {}\nchat_body = {}", body.len(), body.len() + 1);
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&limits)).await;
    let over = format!("{body} ");
    let chat = "POST /v1/chat/completions HTTP/1.1";
    for (label, first, body, status) in [
        ("speech", SPEAK, body.clone(), 200),
        ("speech over", SPEAK, over.clone(), 413),
        ("chat", chat, over.clone(), 200),
        ("chat over", chat, format!("{over} "), 413),
    ] {
        let declared = gateway.client().await.send(&request(first, JSON, &body)).await.answer().await;
        assert_eq!(declared.status, status, "{label}: {declared:?}");
        let sent = [head(first, CHUNKED), chunked(&body, 7)].concat();
        let pieces = gateway.client().await.send(&sent).await.answer().await;
        assert_eq!(pieces.status, status, "{label} in chunks: {pieces:?}");
    }
    only_canaries(&vendor, 4);
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let length = HIDDEN.len();
    let whole = chunked(HIDDEN, 10);
    for (label, sent) in [
        ("a byte", request(SPEAK, JSON, HIDDEN)[..request(SPEAK, JSON, HIDDEN).len() - 1].to_vec()),
        ("all of it", head(SPEAK, &format!("{JSON}Content-Length: {length}\r\n"))),
        ("whole JSON, and more declared", {
            [head(SPEAK, &format!("{JSON}Content-Length: {}\r\n", length + 1)), HIDDEN.into()].concat()
        }),
        ("no last chunk", [head(SPEAK, CHUNKED), whole[..whole.len() - 5].to_vec()].concat()),
        ("half a last chunk", [head(SPEAK, CHUNKED), whole[..whole.len() - 2].to_vec()].concat()),
        ("half a chunk", [head(SPEAK, CHUNKED), whole[..20].to_vec()].concat()),
        ("half a size", [head(SPEAK, CHUNKED), b"3".to_vec()].concat()),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.finish().await.answer().await;
        check(label, &answer, (400, "incomplete_body", None));
        assert_eq!(answer.header("connection"), Some("close"), "{label}");
        assert!(client.rest().await.is_empty(), "{label}");
        check_audit(label, &gateway, &answer, Some("test")).await;
    }
    only_canaries(&vendor, 0);
    canary(&mut gateway.client().await, "after").await;
}

/// To shut one way may mean to listen still; a reset never does.
#[tokio::test]
async fn a_client_that_resets_in_mid_body_is_recorded_as_gone() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let declared = request(SPEAK, JSON, HIDDEN);
    for (n, (label, sent)) in [
        ("nothing of the body", head(SPEAK, &format!("{JSON}Content-Length: 50\r\n"))),
        ("half a body", declared[..declared.len() - 9].to_vec()),
        ("half a chunk", [head(SPEAK, CHUNKED), b"32\r\n{\"model\"".to_vec()].concat()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = TcpStream::connect(gateway.addr()).await.expect("connects");
        client.write_all(&sent).await.expect("written");
        // Its head is read: a reset would take it away.
        gateway.metric_is("aulos_requests_in_flight", 1).await;
        client.set_zero_linger().expect("set");
        drop(client);
        let audit = gateway.recorded("audit", n + 1).await.pop().expect("there");
        let gone = &Value::from("client_gone");
        assert_eq!((&audit["end"], &audit["error"]), (gone, gone), "{label}: {audit}");
        assert_eq!((&audit["status"], &audit["key"]), (&Value::Null, &"test".into()), "{label}: told nothing: {audit}");
    }
    assert!(gateway.records("usage").is_empty());
    only_canaries(&vendor, 0);
    canary(&mut gateway.client().await, "after").await;
}

#[tokio::test]
async fn a_request_that_stops_arriving_is_given_up() {
    let vendor = echo().await;
    let conf = Conf::new().upstream(&vendor).with("[timeouts]\nidle = \"1s\"\nheader = \"1s\"");
    let gateway = &Gateway::spawn(conf).await;
    let declared = request(SPEAK, JSON, HIDDEN);
    let stops = [
        ("nothing of the body", head(SPEAK, "Content-Length: 5\r\n"), Some("test")),
        ("half a body", declared[..declared.len() - 9].to_vec(), Some("test")),
        ("half a chunk", [head(SPEAK, CHUNKED), b"5\r\n{\"".to_vec()].concat(), Some("test")),
        ("half a head", declared[..40].to_vec(), None),
    ];
    let stopped = stops.map(|(label, sent, key)| async move {
        let began = Instant::now();
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{label}: {:?}", began.elapsed());
        check(label, &answer, (408, "request_timeout", None));
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
        check_audit(label, gateway, &answer, key).await;
    });
    let [one, two, three, four] = stopped;
    let dripping = async {
        let mut client = gateway.client().await;
        for piece in declared.chunks(declared.len() / 40).take(20) {
            client.send(piece).await;
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
        assert_eq!(client.answer().await.status, 408, "the time is for the whole head");
    };
    let slow_body = async {
        let (mut client, body) = (gateway.client().await, HIDDEN.replace("hidden", "canary drip"));
        client.send(&head(SPEAK, &format!("{JSON}Content-Length: {}\r\n", body.len()))).await;
        for piece in body.as_bytes().chunks(body.len() / 11) {
            client.send(piece).await;
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
        assert_eq!(client.answer().await.status, 200, "each piece came in time");
    };
    tokio::join!(one, two, three, four, dripping, slow_body);
    only_canaries(&vendor, 1);
}

#[tokio::test]
async fn over_the_limit_in_flight_the_next_is_refused_at_once_and_health_goes_on() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let vendor = Vendor::start(move |request, mut wire| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("never closed").forget();
            wire.answer("200 OK", "audio/mpeg", &request.body).await;
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[limits]\nin_flight = 2")).await;
    let mut held = [gateway.client().await, gateway.client().await];
    for client in &mut held {
        client.send(post("/v1/audio/speech", &[], SPEECH).as_bytes()).await;
    }
    vendor.received(2).await;
    for label in ["the third", "the fourth"] {
        let mut client = gateway.client().await;
        let asked = Instant::now();
        let answer = client.send(&request(SPEAK, JSON, HIDDEN)).await.answer().await;
        assert!(asked.elapsed() < Duration::from_secs(2), "{label}: {:?}", asked.elapsed());
        check(label, &answer, (503, "overloaded", None));
        assert_eq!(answer.header("retry-after"), Some("1"), "{label}");
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
        check_audit(label, &gateway, &answer, None).await;
        for path in ["/livez", "/readyz"] {
            assert_eq!(
                (gateway.get(path).await.status, gateway.admin(path).await.status),
                (200, 200),
                "{label}: {path}"
            );
        }
    }
    assert_eq!(vendor.requests().len(), 2);
    gate.add_permits(100);
    for client in &mut held {
        assert_eq!(client.answer().await.status, 200);
    }
    for label in ["one", "two", "three"] {
        gateway.metric_is("aulos_requests_in_flight", 0).await;
        canary(&mut gateway.client().await, label).await;
    }
}

/// A client that waits for it gets its 100, once the head is in order.
#[tokio::test]
async fn a_client_that_expects_to_be_asked_for_its_body_is() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary expect");
    let mut client = gateway.client().await;
    client.send(&head(SPEAK, &format!("{JSON}Expect: 100-continue\r\nContent-Length: {}\r\n", body.len()))).await;
    assert_eq!(client.head().await.status, 100);
    assert_eq!(client.send(body.as_bytes()).await.answer().await.status, 200);
    assert_eq!(vendor.received(1).await[0].header("expect"), None);
}
