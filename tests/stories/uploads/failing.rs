//! Providers that are not there, take nothing, or say 200 and then nothing. The client has often not read anything by
//! then: it must find out all the same.

use std::sync::Arc;

use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{LATE, SHORT, SOUND, TEXT, UNAVAILABLE, ask, hasty, healthy, holding, is_failed, model, provider, telling};
use crate::support::form::{Form, Framing, TRANSCRIBE, small};
use crate::support::{Conf, Gateway, Vendor};

#[tokio::test]
async fn a_provider_that_is_not_there_is_said_so_to_a_client_that_writes_everything_first() {
    // Bound and not listening: nobody else gets the port, and whoever connects is refused.
    let nobody = TcpSocket::new_v4().expect("made");
    nobody.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let resets = Vendor::early(|_, wire| async move {
        wire.reset();
        None
    })
    .await;
    let closes = Vendor::early(|_, _| async { None }).await;
    let vendor = Vendor::speech("application/json", TEXT).await;
    let conf = Conf::new().upstream(&vendor).with(&provider("refuses", nobody.local_addr().expect("bound").port()));
    let conf = conf.with(&provider("resets", resets.port)).with(&provider("closes", closes.port));
    let gateway = Gateway::spawn(conf).await;
    for name in ["refuses", "resets", "closes"] {
        let model = format!("{name}/whisper-1");
        for (place, form) in [
            ("model first", Form::new().field("model", &model).file(&*SOUND)),
            ("model last", Form::new().file(&*SOUND).field("model", &model)),
        ] {
            for framing in Framing::BOTH {
                let label = format!("{name}, {place}, {framing:?}");
                let answer = ask(&gateway, framing, TRANSCRIBE, &form.clone().close()).await;
                let audit = is_failed(&gateway, &answer, UNAVAILABLE, "upstream_failed", &label).await;
                assert_eq!(audit["attempts"].as_array().map(Vec::len), Some(1), "{label}: {audit}");
                healthy(&gateway, &label).await;
            }
        }
    }
    gateway.metric_is("aulos_spool_bytes", 0).await;
}

#[tokio::test]
async fn a_provider_that_takes_no_more_is_late() {
    let vendor = hasty(|what, request, mut wire| async move {
        if what == "never answers" {
            wire.whole(request).await?;
        }
        // What stands unread keeps the connection as it is.
        std::future::pending::<()>().await;
        Some(wire)
    })
    .await;
    let gateway = Arc::new(Gateway::spawn(Conf::new().upstream(&vendor).with(SHORT)).await);
    // Side by side: they all wait for the same timer.
    let mut asked = JoinSet::new();
    for (what, framing) in
        ["never reads", "never answers"].into_iter().flat_map(|what| Framing::BOTH.map(|f| (what, f)))
    {
        let gateway = Arc::clone(&gateway);
        let form = telling(&format!("openai/{what}"));
        asked.spawn(async move {
            let answer = ask(&gateway, framing, TRANSCRIBE, &form).await;
            is_failed(&gateway, &answer, LATE, "timeout", &format!("{what} {framing:?}")).await;
        });
    }
    asked.join_all().await;
    assert_eq!(vendor.requests().len(), 2, "only those that were read are whole");
    healthy(&gateway, "stalls").await;
}

/// A vendor that hears all, says 200, and then does what the model tells it to.
async fn saying() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let what = model(&request.body)?;
        let (framing, how) = what.split_once(' ').unwrap_or_default();
        let framing = match framing {
            "counted" => "Content-Length: 16",
            "chunked" => "Transfer-Encoding: chunked",
            _ => {
                wire.answer("200 OK", "application/json", TEXT).await;
                return Some(wire);
            }
        };
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\r\n")).await;
        match how {
            "stalls" => wire.gone().await,
            "resets" => wire.reset(),
            _ => {}
        }
        None
    })
    .await
}

#[tokio::test]
async fn a_200_that_is_held_back_and_has_nothing_behind_it_is_no_200() {
    let vendor = saying().await;
    let conf = Conf::new().upstream(&vendor).with(&holding(&vendor)).with(SHORT);
    let gateway = Arc::new(Gateway::spawn(conf).await);
    let rows = [
        ("counted closes", UNAVAILABLE, "upstream_failed"),
        ("counted resets", UNAVAILABLE, "upstream_failed"),
        ("chunked closes", UNAVAILABLE, "upstream_failed"),
        ("counted stalls", LATE, "timeout"),
        ("chunked stalls", LATE, "timeout"),
    ];
    let mut asked = JoinSet::new();
    for ((what, refusal, end), framing) in rows.into_iter().flat_map(|row| Framing::BOTH.map(|f| (row, f))) {
        let gateway = Arc::clone(&gateway);
        asked.spawn(async move {
            let label = format!("{what} {framing:?}");
            let answer = ask(&gateway, framing, TRANSCRIBE, &small(&format!("held/{what}"))).await;
            let audit = is_failed(&gateway, &answer, refusal, end, &label).await;
            assert_eq!(audit["attempts"][0]["status"], 200, "{label}: what it said is kept: {audit}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{label}");
        });
    }
    asked.join_all().await;
    assert_eq!(vendor.requests().len(), 10, "nothing is asked for twice");
    healthy(&gateway, "a 200 with nothing behind it").await;
}

/// Whoever has been sent a head sees that it has no end.
#[tokio::test]
async fn a_200_that_breaks_is_seen_to_break() {
    let seen = Arc::new(Semaphore::new(0));
    let go = Arc::clone(&seen);
    let vendor = Vendor::start(move |request, mut wire| {
        let go = Arc::clone(&go);
        async move {
            let behind = match model(&request.body)?.as_str() {
                "nothing" => "",
                "a byte" => "{",
                _ => {
                    wire.answer("200 OK", "application/json", TEXT).await;
                    return Some(wire);
                }
            };
            wire.write("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n").await;
            wire.write(behind).await;
            go.acquire().await.expect("never closed").forget();
            None
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&holding(&vendor))).await;
    for (model, behind) in [("openai/nothing", ""), ("openai/a byte", "{"), ("held/a byte", "{")] {
        let mut client = gateway.client().await;
        client.send(&Framing::Declared.request(TRANSCRIBE, "", &small(model))).await;
        // As early as it came.
        client.sees(format!("\r\n\r\n{behind}")).await;
        seen.add_permits(1);
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.complete, answer.text().as_str()), (200, false, behind), "{model}");
        assert_eq!(gateway.record_of("usage", &answer).await["end"], "upstream_broken", "{model}");
        healthy(&gateway, model).await;
    }
}
