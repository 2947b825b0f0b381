//! What is written down of what passes: who, where, how many bytes; never a query, and nothing that a client can make up
//! without end.

use serde_json::{Value, json};

use super::{PATH, ask, conf, raw, sized};
use crate::support::form::{Framing, noise};
use crate::support::{Answer, Gateway, KEY, Vendor};

/// A vendor that answers with as many bytes as it is asked for, in the framing that it is asked for.
async fn counting() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let count: usize = request.header("x-count").map_or(0, |count| count.parse().expect("a number"));
        let framing = match request.header("x-framing") {
            Some("chunked") => Framing::Chunked,
            _ => Framing::Declared,
        };
        let is_head = request.method == "HEAD";
        wire.write(format!("HTTP/1.1 200 OK\r\n{}\r\n", framing.line(count))).await;
        if !is_head {
            for piece in noise(count).chunks(7_919) {
                wire.write(framing.piece(piece)).await;
            }
            wire.write(framing.end()).await;
        }
        Some(wire)
    })
    .await
}

/// A request whose answer is read by a client that stays.
async fn send(gateway: &Gateway, first: &str, lines: &str, body: &[u8]) -> Answer {
    gateway.client().await.send(ask(first, lines, body)).await.answer().await
}

#[tokio::test]
async fn a_usage_record_counts_every_byte() {
    let vendor = counting().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for (up, down) in [(0, 0), (1, 1), (0, 70_000), (70_000, 0), (300_000, 300_000)] {
        for framing in Framing::BOTH {
            for answered in ["length", "chunked"] {
                let label = format!("{up} up {framing:?}, {down} down {answered}");
                let body = noise(up);
                let mut wire: Vec<u8> = body.chunks(4_001).flat_map(|piece| framing.piece(piece)).collect();
                wire.extend_from_slice(framing.end());
                let lines = format!("X-Count: {down}\r\nX-Framing: {answered}\r\n{}", framing.line(up));
                let answer = send(&gateway, &format!("POST {PATH}?secret=query"), &lines, &wire).await;
                assert_eq!((answer.status, answer.body.len()), (200, down), "{label}");
                let usage = gateway.record_of("usage", &answer).await;
                assert_eq!((&usage["bytes_in"], &usage["bytes_out"]), (&up.into(), &down.into()), "{label}: {usage}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_written_down_says_who_and_where() {
    let vendor = counting().await;
    let conf = conf(&vendor).keys(&super::key(
        "mobile",
        KEY,
        "passthrough = true\nuser_path = \"/team\"\nworkspace = \"acme\"",
    ));
    let gateway = Gateway::spawn(conf).await;
    let path = "/p/openai/v1/caf%C3%A9/a%2Fb;x=y";
    let lines = "X-Count: 5\r\nX-Aulos-User-Path: /team/a\r\nUser-Agent: odd\r\n";
    let answer =
        send(&gateway, &format!("PROPFIND {path}?a=hidden"), &format!("{lines}Content-Length: 2\r\n"), b"hi").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let usage = gateway.record_of("usage", &answer).await;
    for (name, want) in [
        ("v", json!(1)),
        ("type", json!("usage")),
        ("op", json!("passthrough")),
        ("path", json!(path)),
        ("key", json!("mobile")),
        ("user_path", json!("/team/a")),
        ("workspace", json!("acme")),
        ("provider", json!("openai")),
        ("model", Value::Null),
        ("model_asked", Value::Null),
        ("provider_model", Value::Null),
        ("attempts", json!(1)),
        ("status", json!(200)),
        ("end", json!("complete")),
        ("bytes_in", json!(2)),
        ("bytes_out", json!(5)),
    ] {
        assert_eq!(usage[name], want, "{name}: {usage}");
    }
    assert!(usage["ttfb_ms"].is_number() && usage["duration_ms"].is_number(), "{usage}");
    let audit = gateway.record_of("audit", &answer).await;
    for (name, want) in [
        ("key", json!("mobile")),
        ("auth", json!("bearer")),
        ("method", json!("PROPFIND")),
        ("path", json!(path)),
        ("http", json!("1.1")),
        ("status", json!(200)),
        ("error", Value::Null),
    ] {
        assert_eq!(audit[name], want, "{name}: {audit}");
    }
    let attempt = &audit["attempts"][0];
    for (name, want) in [
        ("provider", json!("openai")),
        ("model", json!("")),
        ("peer", json!(format!("127.0.0.1:{}", vendor.port))),
        ("key", json!(1)),
        ("status", json!(200)),
        ("error", Value::Null),
        ("reused", json!(false)),
    ] {
        assert_eq!(attempt[name], want, "{name}: {audit}");
    }
    assert!(attempt["ttfb_ms"].is_number() && attempt["connect_ms"].is_number(), "{audit}");
}

#[tokio::test]
async fn a_head_counts_no_body() {
    let vendor = counting().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let answer = raw(&gateway, ask(&format!("HEAD {PATH}"), "X-Count: 1000\r\n", "")).await;
    assert_eq!(answer.header("content-length"), Some("1000"));
    let usage = &gateway.recorded("usage", 1).await[0];
    assert_eq!((&usage["bytes_out"], &usage["end"]), (&0.into(), &"complete".into()), "{usage}");
}

#[tokio::test]
async fn no_query_is_written_down() {
    let vendor = Vendor::start(|request, mut wire| async move {
        if request.target.contains("broken") {
            return None;
        }
        wire.answer("200 OK", "text/plain", "ok").await;
        Some(wire)
    })
    .await;
    let mut gateway = Gateway::spawn(conf(&vendor).with(super::SHORT)).await;
    for path in ["/p/openai/v1/x", "/p/openai/v1/broken", "/p/nobody/x", "/p/openai/v1/../x", "/p/openai/v1/%zz"] {
        for query in ["?a=hidden", "?hidden", "?key=hidden", "?%68idden&hidden"] {
            raw(&gateway, ask(&format!("GET {path}{query}"), "", "")).await;
        }
    }
    gateway.recorded("audit", 20).await;
    let metrics = gateway.admin("/metrics").await.text();
    assert!(gateway.stop().await.success());
    let records = ["usage", "audit"].map(|kind| format!("{:?}", gateway.records(kind)));
    for (place, text) in
        [("usage", &records[0]), ("audit", &records[1]), ("log", &gateway.log()), ("metrics", &metrics)]
    {
        assert!(!text.contains("hidden"), "{place}: {text}");
    }
}

/// A client cannot make the metrics grow.
#[tokio::test]
async fn the_labels_of_metrics_are_bounded() {
    let vendor = counting().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let ask_all = async |n: usize| {
        for first in [
            format!("GET /p/openai/v1/made-up-{n}"),
            format!("MADEUP{n} /p/openai/v1/x"),
            format!("GET /p/made-up-{n}/v1/x"),
            format!("GET /p/openai/v1/x?made-up-{n}"),
        ] {
            let lines = format!("X-Aulos-Model: made-up-{n}\r\nX-Made-Up-{n}: made-up\r\n");
            let body = format!("{{\"model\":\"made-up-{n}\"}}");
            raw(&gateway, sized(&first, &lines, body)).await;
        }
        gateway.recorded("audit", 4 * (n + 1)).await;
        gateway.admin("/metrics").await.text().to_lowercase()
    };
    let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let first = ask_all(0).await;
    let mut last = String::new();
    for n in 1..10 {
        last = ask_all(n).await;
    }
    assert_eq!(lines(&first), lines(&last), "{last}");
    assert!(!last.contains("made-up") && !last.contains("madeup"), "{last}");
    let served =
        r#"aulos_requests_total{end="complete",model="",op="passthrough",provider="openai",status_class="2xx"} 30"#;
    assert!(last.contains(served), "{last}");
}
