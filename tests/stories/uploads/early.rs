//! Providers that answer before they have heard all. Most clients write everything before they read: they must see that
//! answer all the same.

use serde_json::json;

use super::{SHORT, TEXT, UNAVAILABLE, ask, hasty, healthy, holding, is_failed, is_heard, telling};
use crate::support::form::{Framing, TRANSCRIBE, head, small};
use crate::support::{Answer, Conf, Gateway};

/// What an early answer leaves behind: it is the provider's, whole, and recorded as such.
async fn is_passed(gateway: &Gateway, answer: &Answer, status: u16, label: &str) {
    assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (status, TEXT, true), "{label}: {answer:?}");
    assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{label}");
    let usage = gateway.record_of("usage", answer).await;
    assert_eq!((&usage["status"], &usage["end"]), (&json!(status), &json!("complete")), "{label}: {usage}");
}

#[tokio::test]
async fn an_answer_in_mid_upload_reaches_a_client_that_writes_everything_first() {
    let vendor = hasty(|what, request, mut wire| async move {
        let (status, how) = what.split_once(' ')?;
        let close = if how == "stays" { "" } else { "Connection: close\r\n" };
        let head = "Content-Type: application/json\r\nRetry-After: 17\r\n";
        wire.write(format!("HTTP/1.1 {status} Early\r\n{head}{close}Content-Length: {}\r\n\r\n", TEXT.len())).await;
        wire.write(TEXT).await;
        match how {
            "stays" => {
                wire.whole(request).await?;
                return Some(wire);
            }
            "lingers" => wire.linger().await,
            _ => {}
        }
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for status in [413, 429, 400, 503, 200] {
        for how in ["stays", "lingers", "closes"] {
            for framing in Framing::BOTH {
                let label = format!("{status} and {how}, {framing:?}");
                let request = framing.request(TRANSCRIBE, "", &telling(&format!("openai/{status} {how}")));
                let mut client = gateway.client().await;
                client.send(request).await;
                let answer = client.answer().await;
                is_passed(&gateway, &answer, status, &label).await;
                assert_eq!(answer.header("retry-after"), Some("17"), "{label}");
                if answer.header("connection") != Some("close") {
                    client.send(framing.request(TRANSCRIBE, "", &small("openai/healthy"))).await;
                    is_heard(&client.answer().await, &label);
                }
                healthy(&gateway, &label).await;
            }
        }
    }
}

/// What a provider says of itself, and not to the client, is not passed on for being early.
#[tokio::test]
async fn an_answer_in_mid_upload_that_is_not_the_clients_becomes_502() {
    let vendor = hasty(|what, _, mut wire| async move {
        let head = format!("HTTP/1.1 {what} Early\r\nConnection: close\r\nLocation: http://elsewhere.example/\r\n");
        wire.write(format!("{head}Content-Length: {}\r\n\r\n", TEXT.len())).await.write(TEXT).await;
        wire.linger().await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (what, code) in [
        ("401", "provider_auth"),
        ("403", "provider_auth"),
        ("307", "upstream_invalid_response"),
        ("x", "upstream_invalid_response"),
    ] {
        for framing in Framing::BOTH {
            let label = format!("{what} {framing:?}");
            let answer = ask(&gateway, framing, TRANSCRIBE, &telling(&format!("openai/{what}"))).await;
            assert_eq!(answer.refusal(), (502, code.to_owned()), "{label}");
            assert_eq!(answer.header("location"), None, "{label}");
            assert_eq!(gateway.record_of("usage", &answer).await["end"], "upstream_failed", "{label}");
            healthy(&gateway, &label).await;
        }
    }
}

/// A client that reads while it writes need not write the rest, and may stay or leave.
#[tokio::test]
async fn an_answer_in_mid_upload_reaches_a_client_that_reads() {
    let vendor = hasty(|_, _, mut wire| async move {
        wire.answer("413 Content Too Large\r\nConnection: close", "application/json", TEXT).await;
        wire.linger().await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for leaves in [true, false] {
        for framing in Framing::BOTH {
            let body = telling("openai/refuse");
            let mut client = gateway.client().await;
            client.send(&head(TRANSCRIBE, &framing.line(body.len()))).await;
            client.send(&framing.piece(&body[..100_000])).await;
            let answer = client.answer().await;
            let stays = Some(client).filter(|_| !leaves);
            is_passed(&gateway, &answer, 413, &format!("{framing:?}, leaves: {leaves}")).await;
            drop(stays);
        }
    }
    vendor.closed(4).await;
    assert!(vendor.requests().is_empty());
    assert_eq!(gateway.metric("aulos_upstream_errors_total{provider=\"openai\",reason=\"upstream_timeout\"}").await, 0);
    healthy(&gateway, "an early answer").await;
}

/// A transcript may begin before the sound has ended.
#[tokio::test]
async fn an_answer_that_begins_in_mid_upload_passes_while_the_upload_goes_on() {
    let vendor = hasty(|_, request, mut wire| async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        wire.write(head).await.write(Framing::Chunked.piece(b"data: 1\n\n")).await;
        wire.whole(request).await?;
        wire.write(Framing::Chunked.piece(b"data: 2\n\n")).await.write("0\r\n\r\n").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&holding(&vendor))).await;
    for model in ["openai/streams", "held/streams"] {
        for framing in Framing::BOTH {
            let body = telling(model);
            let (first, rest) = body.split_at(100_000);
            let mut client = gateway.client().await;
            client.send(&head(TRANSCRIBE, &framing.line(body.len()))).await.send(&framing.piece(first)).await;
            client.sees("data: 1\n\n").await;
            client.send([&framing.piece(rest), framing.end()].concat()).await;
            let answer = client.answer().await;
            let label = format!("{model} {framing:?}");
            assert_eq!((answer.status, answer.complete), (200, true), "{label}: {answer:?}");
            assert_eq!(answer.text(), "data: 1\n\ndata: 2\n\n", "{label}");
            assert_eq!(gateway.record_of("usage", &answer).await["end"], "complete", "{label}");
        }
    }
    assert_eq!(vendor.requests().len(), 4);
}

/// It was the client that stopped.
#[tokio::test]
async fn an_upload_that_stops_behind_the_beginning_of_its_answer_is_not_the_providers_fault() {
    let vendor = hasty(|_, _, mut wire| async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        wire.write(head).await.write(Framing::Chunked.piece(b"data: 1\n\n")).await;
        wire.gone().await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[timeouts]\nidle = \"300ms\"")).await;
    let body = telling("openai/streams");
    let mut client = gateway.client().await;
    client.send(&head(TRANSCRIBE, &Framing::Declared.line(body.len()))).await.send(&body[..100_000]).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.complete), (200, false), "{answer:?}");
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!(audit["error"], "request_timeout", "{audit}");
    assert_eq!(gateway.metric("aulos_upstream_errors_total{provider=\"openai\",reason=\"upstream_timeout\"}").await, 0);
}

/// Where the head is held back, the client can still be told.
#[tokio::test]
async fn an_early_200_that_is_held_back_and_has_nothing_behind_it_is_no_200() {
    let vendor = hasty(|_, _, mut wire| async move {
        wire.write("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n").await;
        wire.linger().await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&holding(&vendor)).with(SHORT)).await;
    for framing in Framing::BOTH {
        let answer = ask(&gateway, framing, TRANSCRIBE, &telling("held/200 and closes")).await;
        is_failed(&gateway, &answer, UNAVAILABLE, "upstream_failed", &format!("{framing:?}")).await;
    }
    healthy(&gateway, "an early 200").await;
}
