//! A provider that fails: another peer is asked where nothing was sent, or where the client says that it may be; what was
//! answered passes; and what breaks is seen to break.

use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;

use super::{ONE_KEY, PATH, SHORT, ask, passing, provider, saying, sized, two};
use crate::support::client::post;
use crate::support::form::{Framing, noise};
use crate::support::{Answer, Gateway, Vendor, Wire};

/// Something that is bound and does not listen: nobody else gets its port, and whoever connects is refused.
fn nobody() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().expect("made");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let port = socket.local_addr().expect("bound").port();
    (socket, port)
}

/// Ways to fail after a request was sent, and what the client is told of each.
const FAULTS: [(&str, (u16, &str)); 8] = [
    ("close", (502, "upstream_unavailable")),
    ("reset", (502, "upstream_unavailable")),
    ("half a head", (502, "upstream_unavailable")),
    ("garbage", (502, "upstream_invalid_response")),
    ("two lengths", (502, "upstream_invalid_response")),
    ("unasked", (502, "upstream_invalid_response")),
    ("interim", (502, "upstream_invalid_response")),
    ("stall", (504, "upstream_timeout")),
];

/// Fails in the way of this name.
async fn fail(how: &str, mut wire: Wire) -> Option<Wire> {
    match how {
        "reset" => wire.reset(),
        "half a head" => {
            wire.write("HTTP/1.1 200 OK\r\nContent-Le").await;
        }
        "garbage" => {
            wire.write("this is not HTTP\r\n\r\n").await;
        }
        "two lengths" => {
            wire.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nhello").await;
        }
        "unasked" => {
            wire.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: odd\r\nConnection: Upgrade\r\n\r\nhello").await;
            wire.gone().await;
        }
        "interim" => {
            wire.write("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000)).await;
            wire.gone().await;
        }
        "stall" => wire.gone().await,
        _ => {}
    }
    None
}

/// A vendor that fails each request in this way, when it has heard all of it.
async fn failing(how: &'static str) -> Vendor {
    Vendor::start(move |_, wire| fail(how, wire)).await
}

async fn attempts(gateway: &Gateway, answer: &Answer) -> Vec<Value> {
    let audit = gateway.record_of("audit", answer).await;
    audit["attempts"].as_array().expect("a list").clone()
}

/// One request on a connection of its own, by a client that writes everything before it reads.
async fn send(gateway: &Gateway, method: &str, lines: &str, framing: Framing, body: &[u8]) -> Answer {
    let mut client = gateway.client().await;
    client.send(ask(&format!("{method} {PATH}"), &format!("{lines}{}", framing.line(body.len())), "")).await;
    for piece in body.chunks(60_000) {
        client.send(framing.piece(piece)).await;
    }
    client.send(framing.end()).await.answer().await
}

#[tokio::test]
async fn who_cannot_be_reached_is_passed_over() {
    let large = noise(5_000_000);
    for body in [&b"hi"[..], &large] {
        for framing in Framing::BOTH {
            let (alive, (_nobody, dead)) = (super::echo().await, nobody());
            let gateway = Gateway::spawn(two([dead, alive.port], ONE_KEY)).await;
            let mut failed = 0;
            for n in 0..4 {
                let label = format!("{n}, {framing:?}, {} bytes", body.len());
                let answer = send(&gateway, "POST", "", framing, body).await;
                assert_eq!((answer.status, answer.complete), (200, true), "{label}: {:?}", answer.headers);
                assert!(answer.body == body, "{label}: another body");
                alive.requests()[n].is_exactly(body, &label);
                let attempts = attempts(&gateway, &answer).await;
                let (last, before) = attempts.split_last().expect("at least one");
                assert_eq!((&last["status"], &last["error"]), (&200.into(), &Value::Null), "{label}");
                assert!(before.iter().all(|attempt| attempt["error"] == "connect_refused"), "{label}: {before:?}");
                failed += before.len();
            }
            assert!(failed >= 1, "nobody met the dead peer");
            assert_eq!(alive.requests().len(), 4, "each once");
        }
    }
    let ((_a, first), (_b, second)) = (nobody(), nobody());
    let gateway = Gateway::spawn(two([first, second], ONE_KEY)).await;
    let answer = send(&gateway, "POST", "", Framing::Declared, b"hi").await;
    assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()));
    assert_eq!(attempts(&gateway, &answer).await.len(), 2);
}

/// A provider may have done what it was asked for, and does it only once.
#[tokio::test]
async fn what_was_sent_is_not_sent_again() {
    for (how, (status, code)) in FAULTS {
        let vendors = [failing(how).await, failing(how).await];
        let gateway = Gateway::spawn(two([vendors[0].port, vendors[1].port], ONE_KEY)).await;
        // What has no body could be sent again without having been kept.
        for (method, body) in [("POST", "hi"), ("POST", ""), ("PATCH", ""), ("GET", ""), ("GET", "hi"), ("PUT", "")] {
            let before: usize = vendors.iter().map(|vendor| vendor.heads().len()).sum();
            let label = format!("{how}, {method} {body}");
            let answer = send(&gateway, method, "", Framing::Declared, body.as_bytes()).await;
            assert_eq!(answer.refusal(), (status, code.to_owned()), "{label}: {answer:?}");
            let told = ["x-aulos-origin", "x-aulos-provider", "x-aulos-attempts"].map(|name| answer.header(name));
            assert_eq!(told, [Some("aulos"), Some("openai"), Some("1")], "{label}");
            let after: usize = vendors.iter().map(|vendor| vendor.heads().len()).sum();
            assert_eq!(after - before, 1, "{label}: once");
            assert_eq!(attempts(&gateway, &answer).await.len(), 1, "{label}");
            let usage = gateway.record_of("usage", &answer).await;
            let end = if status == 504 { "timeout" } else { "upstream_failed" };
            assert_eq!((&usage["end"], &usage["status"]), (&end.into(), &status.into()), "{label}: {usage}");
        }
    }
}

/// A provider that is gone in the middle of an upload has heard some of it.
#[tokio::test]
async fn what_was_sent_in_part_is_not_sent_again() {
    let body = noise(5_000_000);
    for how in ["close", "reset"] {
        let cutting = || Vendor::early(move |_, wire| fail(how, wire));
        let vendors = [cutting().await, cutting().await];
        let gateway = Gateway::spawn(two([vendors[0].port, vendors[1].port], ONE_KEY)).await;
        for framing in Framing::BOTH {
            let before: usize = vendors.iter().map(|vendor| vendor.heads().len()).sum();
            let answer = send(&gateway, "POST", "", framing, &body).await;
            assert_eq!(answer.refusal(), (502, "upstream_unavailable".into()), "{how}, {framing:?}");
            let after: usize = vendors.iter().map(|vendor| vendor.heads().len()).sum();
            assert_eq!(after - before, 1, "{how}, {framing:?}: once");
        }
    }
}

/// `Idempotency-Key` says that a provider does once what it is asked twice.
#[tokio::test]
async fn what_may_be_repeated_is_repeated_at_the_other_peer() {
    const KEYS: &str = "keys = [\"${PROVIDER_KEY}\", \"${OTHER_KEY}\"]";
    let bodies = [b"hi".to_vec(), noise(300_000), noise(5_000_000)];
    for how in ["close", "reset", "garbage", "stall", "500 Odd", "503 Odd", "408 Slow", "429 Too Many"] {
        let bad =
            if FAULTS.iter().any(|(known, _)| *known == how) { failing(how).await } else { saying(how, "no").await };
        let good = super::echo().await;
        let keys = if how.starts_with("429") { KEYS } else { ONE_KEY };
        let conf = two([bad.port, good.port], keys).env("OTHER_KEY", "sk-other-0123456789");
        let gateway = Gateway::spawn(conf).await;
        let mut repeated = 0;
        for (n, (body, framing)) in bodies.iter().flat_map(|body| Framing::BOTH.map(|f| (body, f))).enumerate() {
            let label = format!("{how}, {framing:?}, {} bytes", body.len());
            let lines = format!("Idempotency-Key: key-{n}\r\nX-Custom: {n}\r\n");
            let answer = send(&gateway, "POST", &lines, framing, body).await;
            assert_eq!((answer.status, answer.complete), (200, true), "{label}: {answer:?}");
            assert!(answer.body == *body, "{label}: another body");
            assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{label}");
            let sent = good.requests().pop().expect("sent");
            sent.is_exactly(body, &label);
            assert_eq!(sent.header("idempotency-key"), Some(format!("key-{n}").as_str()), "{label}");
            assert_eq!(sent.header("x-custom"), Some(n.to_string().as_str()), "{label}");
            repeated += attempts(&gateway, &answer).await.len() - 1;
        }
        assert!(repeated >= 1, "{how}: nobody met the bad peer");
        assert_eq!(good.requests().len(), bodies.len() * 2, "{how}: each once");
        gateway.metric_is("aulos_spool_bytes", 0).await;
    }
}

/// Where nobody can serve it, the last answer is the provider's own.
#[tokio::test]
async fn what_may_be_repeated_in_vain_gets_the_last_answer() {
    let vendors = [saying("503 Odd\r\nRetry-After: 7", "no").await, saying("503 Odd\r\nRetry-After: 7", "no").await];
    let gateway = Gateway::spawn(two([vendors[0].port, vendors[1].port], ONE_KEY)).await;
    let answer = send(&gateway, "POST", "Idempotency-Key: 1\r\n", Framing::Declared, b"hi").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "no"), "{answer:?}");
    let told = ["x-aulos-origin", "x-aulos-attempts", "retry-after"].map(|name| answer.header(name));
    assert_eq!(told, [Some("provider"), Some("2"), Some("7")]);
    assert!(vendors.iter().all(|vendor| vendor.requests().len() == 1));
}

/// Any status is an answer, and is nobody's but the provider's.
#[tokio::test]
async fn a_providers_refusal_passes() {
    for status in ["401 No", "402 Pay", "403 Never", "408 Slow", "429 Too Many", "500 Odd", "302 Found", "503 Busy"] {
        let vendors = [saying(status, "{\"theirs\":1}").await, saying(status, "{\"theirs\":1}").await];
        let gateway = Gateway::spawn(two([vendors[0].port, vendors[1].port], ONE_KEY)).await;
        for n in 1..=3 {
            for method in ["POST", "GET"] {
                let answer = send(&gateway, method, "", Framing::Declared, b"hi").await;
                let got = (answer.status.to_string(), answer.text());
                assert_eq!(got, (status[..3].to_owned(), "{\"theirs\":1}".to_owned()), "{status} {n}: {answer:?}");
                let told = ["x-aulos-origin", "x-aulos-provider", "x-aulos-attempts"].map(|name| answer.header(name));
                assert_eq!(told, [Some("provider"), Some("openai"), Some("1")], "{status} {n}");
                let usage = gateway.record_of("usage", &answer).await;
                assert_eq!((&usage["end"], &usage["status"]), (&"complete".into(), &answer.status.into()), "{status}");
            }
        }
        assert_eq!(vendors.iter().map(|vendor| vendor.requests().len()).sum::<usize>(), 6, "{status}: each once");
    }
}

/// Callers choose what they pass through: what fails there says nothing of the provider's speech.
#[tokio::test]
async fn what_fails_here_is_not_held_against_the_provider() {
    let main = Vendor::start(|request, mut wire| async move {
        match request.target.strip_prefix("/fail/") {
            None => {
                wire.answer("200 OK", "audio/mpeg", "SOUND").await;
                Some(wire)
            }
            Some(status) if status.parse::<u16>().is_ok() => {
                wire.answer(&format!("{status} Odd"), "text/plain", "no").await;
                Some(wire)
            }
            Some(how) => fail(&how.replace('-', " "), wire).await,
        }
    })
    .await;
    let spare = super::echo().await;
    let gateway = Gateway::spawn(
        passing()
            .with(SHORT)
            .with(&provider("main", "openai", main.port, ONE_KEY))
            .with(&provider("spare", "openai", spare.port, ONE_KEY))
            .with("[models.house]\nroutes = [\"main/m\", \"spare/m\"]"),
    )
    .await;
    for how in ["500", "503", "599", "404", "403", "408", "close", "reset", "garbage", "half-a-head", "stall"] {
        let times = if how == "stall" { 6 } else { 12 };
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..times {
            let (addr, request) = (gateway.addr().to_owned(), sized(&format!("POST /p/main/fail/{how}"), "", "hi"));
            asking.spawn(async move {
                crate::support::Client::connect(&addr).await.send(request).await.answer().await.status
            });
        }
        let statuses = asking.join_all().await;
        assert!(statuses.iter().all(|status| *status >= 400), "{how}: {statuses:?}");
        let body = r#"{"model":"house","input":"x","voice":"alloy"}"#;
        let answer = gateway.client().await.send(post("/v1/audio/speech", &[], body)).await.answer().await;
        let told = ["x-aulos-provider", "x-aulos-attempts"].map(|name| answer.header(name));
        assert_eq!((answer.status, told), (200, [Some("main"), Some("1")]), "{how}: {answer:?}");
    }
    assert!(spare.requests().is_empty());
}

/// An answer that ends too early.
#[tokio::test]
async fn a_broken_answer_is_broken_for_the_client_too() {
    for (label, head, is_reset) in [
        ("a length, closed", "Content-Length: 100\r\n\r\npiece", false),
        ("a length, reset", "Content-Length: 100\r\n\r\npiece", true),
        ("chunks, closed between two", "Transfer-Encoding: chunked\r\n\r\n5\r\npiece\r\n", false),
        ("chunks, closed in one", "Transfer-Encoding: chunked\r\n\r\n5\r\npiece\r\n9\r\nbro", false),
        ("chunks, reset", "Transfer-Encoding: chunked\r\n\r\n5\r\npiece\r\n", true),
        ("chunks that are none", "Transfer-Encoding: chunked\r\n\r\n5\r\npiece\r\nxyz\r\n\r\n", false),
        ("until it closes, reset", "\r\npiece", true),
    ] {
        for status in ["200 OK", "500 Odd"] {
            let gate = Arc::new(Semaphore::new(0));
            let breaks = Arc::clone(&gate);
            let vendor = Vendor::start(move |_, mut wire| {
                let breaks = Arc::clone(&breaks);
                async move {
                    wire.write(format!("HTTP/1.1 {status}\r\nContent-Type: audio/mpeg\r\n{head}")).await;
                    breaks.acquire().await.expect("open").forget();
                    if is_reset {
                        wire.reset();
                    }
                    None
                }
            })
            .await;
            let gateway = Gateway::spawn(super::conf(&vendor)).await;
            let mut client = gateway.client().await;
            client.send(sized(&format!("POST {PATH}"), "", "hi")).await.sees("piece").await;
            gate.add_permits(1);
            let answer = client.answer().await;
            let label = format!("{status}, {label}");
            assert_eq!(
                (answer.status.to_string().as_str(), answer.complete),
                (&status[..3], false),
                "{label}: {answer:?}"
            );
            let usage = gateway.record_of("usage", &answer).await;
            let end = (&usage["end"], &usage["bytes_out"]);
            assert_eq!(end, (&"upstream_broken".into(), &answer.body.len().into()), "{label}: {usage}");
            assert!(answer.body.starts_with(b"piece"), "{label}: {answer:?}");
        }
    }
}

/// However much of an answer came before it broke off, the client has all of it.
#[tokio::test]
async fn what_came_before_it_broke_off_arrives() {
    const LENGTH: usize = 400_000;
    let body = noise(LENGTH);
    for framing in Framing::BOTH {
        for sent in [5, 3000, 20_000, 100_000, 300_000] {
            let piece = body[..sent].to_vec();
            let vendor = Vendor::start(move |_, mut wire| {
                let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", framing.line(LENGTH));
                let answer = [head.into_bytes(), framing.piece(&piece)].concat();
                async move {
                    wire.write(answer).await;
                    None
                }
            })
            .await;
            let gateway = Gateway::spawn(super::conf(&vendor)).await;
            let answer = send(&gateway, "POST", "", Framing::Declared, b"hi").await;
            let label = format!("{framing:?}, {sent} bytes");
            assert_eq!((answer.status, answer.complete), (200, false), "{label}: {:?}", answer.headers);
            assert!(answer.body == body[..sent], "{label}: {} bytes arrived", answer.body.len());
            let usage = gateway.record_of("usage", &answer).await;
            assert_eq!((&usage["end"], &usage["bytes_out"]), (&"upstream_broken".into(), &sent.into()), "{label}");
        }
    }
}
