//! Encrypted listeners: HTTPS, HTTP/2, and certificates that change while they are in use.

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::client::TlsStream;

use super::support::gateway::{SPEECH, scratch};
use super::support::http2::{Begun, Http2, KNOWN, LISTEN, SPEECH_PATH, connect, issue, pour, request, spawn, speech};
use super::support::{Client, Conf, Gateway, KEY, Vendor, nobody_listens, soon};

const CHAT: &str = r#"{"model":"openai/gpt-audio","messages":[],"stream":true}"#;

/// A vendor that answers with `first ` at once and `second` when it is told to.
async fn held_vendor() -> (Vendor, watch::Sender<bool>) {
    let (go, told) = watch::channel(false);
    let vendor = Vendor::start(move |_, mut wire| {
        let mut told = told.clone();
        async move {
            wire.write("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 12\r\n\r\nfirst ").await;
            told.wait_for(|told| *told).await.ok()?;
            wire.write("second").await;
            Some(wire)
        }
    })
    .await;
    (vendor, go)
}

/// The first bytes of a client that speaks HTTP/2: the preface, and settings that set nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// The next frame: its type, its flags and what is in it. `None`: the connection was closed in order.
async fn frame(stream: &mut TlsStream<TcpStream>) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    let first = soon("the next frame", stream.read(&mut head[..1])).await.expect("closed with an alert, if at all");
    if first == 0 {
        return None;
    }
    stream.read_exact(&mut head[1..]).await.expect("a whole head");
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.expect("a whole frame");
    Some((head[3], head[4], payload))
}

#[tokio::test]
async fn https_serves_what_http_serves() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    for (addr, offered, agreed) in [
        (&gateway.addrs[1], &["http/1.1"][..], Some(&b"http/1.1"[..])),
        (&gateway.addrs[1], &[], None),
        (&gateway.addrs[2], &["h2", "http/1.1"], None),
    ] {
        let stream = connect(addr, &certificate, offered).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed, "{offered:?}");
        let mut client = Client::over(stream);
        for _ in 0..2 {
            let answer = client.post(SPEECH_PATH, SPEECH).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true), "{offered:?}");
        }
    }
    let audit = gateway.recorded("audit", 6).await;
    assert!(audit.iter().all(|record| record["http"] == "1.1" && record["client"]["ip"] == "127.0.0.1"), "{audit:?}");
}

#[tokio::test]
async fn http2_carries_speech_and_lists_models() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with("[models.narrator]\nroutes = [\"openai/tts-1\"]");
    let (mut gateway, certificate) = spawn(conf).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let answer = client.ask(speech(), &SPEECH.replace("openai/tts-1", "narrator")).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "SOUND", true));
    for (name, want) in [
        ("content-type", Some("audio/mpeg")),
        ("content-length", Some("5")),
        ("x-aulos-origin", Some("provider")),
        ("connection", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(answer.header(name), want, "{name}");
    }
    let sent = &vendor.received(1).await[0];
    assert_eq!(sent.text(), SPEECH.replace("openai/", ""));
    assert_eq!(sent.header("host"), Some(format!("127.0.0.1:{}", vendor.port).as_str()));
    assert_eq!(sent.header("content-length"), Some(sent.body.len().to_string().as_str()), "though none was given");
    let models = client.ask(request(Method::GET, "/v1/models", &[KNOWN]), "").await;
    assert_eq!((models.status, &models.json()["data"][0]["id"]), (200, &"narrator".into()));
    let head = client.ask(request(Method::HEAD, "/v1/models", &[KNOWN]), "").await;
    assert_eq!((head.status, head.body.len(), head.complete), (200, 0, true));
    assert_eq!(client.ask(request(Method::GET, "/livez", &[]), "").await.status, 200);
    assert!(gateway.stop().await.success());
    let (usage, audit) = (gateway.records("usage"), gateway.records("audit"));
    assert_eq!((usage.len(), audit.len()), (1, 3));
    assert_eq!((&usage[0]["end"], &usage[0]["bytes_out"]), (&"complete".into(), &5.into()));
    assert!(audit.iter().all(|record| record["http"] == "2"), "{audit:?}");
}

#[tokio::test]
async fn what_is_refused_over_http1_is_refused_over_http2() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let json = ("content-type", "application/json");
    let long = format!("/v1/models/{}", "x".repeat(8 * 1024));
    let names: Vec<String> = (0..101).map(|n| format!("x-field-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).chain([KNOWN]).collect();
    let post = |headers: &[(&str, &str)]| request(Method::POST, SPEECH_PATH, headers);
    let rows = [
        ("no key", post(&[json]), SPEECH, (401, "invalid_api_key")),
        ("two keys", post(&[json, KNOWN, ("api-key", "another")]), SPEECH, (401, "invalid_api_key")),
        ("not JSON", post(&[json, KNOWN]), "{", (400, "invalid_json")),
        ("a coded body", post(&[json, KNOWN, ("content-encoding", "gzip")]), SPEECH, (415, "unsupported_media_type")),
        ("elsewhere", request(Method::GET, "/v1/elsewhere", &[KNOWN]), "", (404, "unknown_url")),
        ("wrong method", request(Method::GET, SPEECH_PATH, &[KNOWN]), "", (405, "method_not_allowed")),
        ("TRACE", request(Method::TRACE, "/v1/models", &[KNOWN]), "", (405, "method_not_allowed")),
        ("a long target", request(Method::GET, &long, &[KNOWN]), "", (414, "target_too_long")),
        ("many fields", request(Method::GET, "/v1/models", &many), "", (431, "headers_too_large")),
    ];
    let count = rows.len();
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (label, head, body, (status, code)) in rows {
        let answer = client.ask(head, body).await;
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{label}");
        assert_eq!((answer.complete, answer.header("x-aulos-origin")), (true, Some("aulos")), "{label}");
    }
    let connect = Request::builder().method(Method::CONNECT).uri("elsewhere:443").body(()).expect("a head");
    let (answer, _send) = client.open(connect, true).await;
    let answer = Begun::of(answer).await.expect("an answer").head;
    assert!([400, 405].contains(&answer.status), "{answer:?}");
    // More than the header list may have is refused by the HTTP/2 layer, which knows no envelope.
    let big = "x".repeat(70 * 1024);
    let answer = client.ask(request(Method::GET, "/v1/models", &[KNOWN, ("x-big", &big)]), "").await;
    assert_eq!(answer.status, 431);
    assert_eq!(client.speak().await.status, 200, "the connection goes on");
    assert_eq!(vendor.requests().len(), 1, "nothing else was forwarded");
    // CONNECT and the long list never became requests.
    let audit = gateway.recorded("audit", count + 1).await;
    assert!(audit.iter().all(|record| record["http"] == "2"), "{audit:?}");
}

#[tokio::test]
async fn an_authority_that_is_no_host_is_refused() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let models = |uri: &str, host: Option<&str>| {
        let head = Request::builder().uri(uri).header(KNOWN.0, KNOWN.1);
        host.into_iter().fold(head, |head, host| head.header("host", host)).body(()).expect("a head")
    };
    for (label, head, want) in [
        ("userinfo", models("https://user@localhost/v1/models", None), 400),
        ("a Host that differs", models("https://localhost/v1/models", Some("elsewhere")), 400),
        ("a Host that agrees", models("https://localhost/v1/models", Some("localhost")), 200),
    ] {
        assert_eq!(client.ask(head, "").await.status, want, "{label}");
    }
}

#[tokio::test]
async fn events_of_a_chat_arrive_one_by_one() {
    let next = Arc::new(Semaphore::new(0));
    let asked = Arc::clone(&next);
    let vendor = Vendor::start(move |_, mut wire| {
        let asked = Arc::clone(&asked);
        async move {
            wire.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            for event in ["data: {\"n\":1}\n\n", "data: {\"n\":2}\n\n", "data: [DONE]\n\n"] {
                asked.acquire().await.ok()?.forget();
                wire.write(format!("{:x}\r\n{event}\r\n", event.len())).await;
            }
            wire.write("0\r\n\r\n").await;
            Some(wire)
        }
    })
    .await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let (answer, _send) = client.begin(request(Method::POST, "/v1/chat/completions", &[KNOWN]), CHAT).await;
    let mut answer = Begun::of(answer).await.expect("the head comes before the first event");
    assert_eq!((answer.head.status, answer.head.header("content-type")), (200, Some("text/event-stream")));
    for want in ["data: {\"n\":1}\n\n", "data: {\"n\":2}\n\n", "data: [DONE]\n\n"] {
        // The vendor says the next one only when this client has the last.
        next.add_permits(1);
        let mut event = Vec::new();
        while event.len() < want.len() {
            event.extend_from_slice(&answer.piece().await.expect("more").expect("unbroken"));
        }
        assert_eq!(String::from_utf8_lossy(&event), want);
    }
    assert!(answer.piece().await.is_none(), "a clean end");
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let (vendor, go) = held_vendor().await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        let (answer, _send) = client.begin(speech(), SPEECH).await;
        let mut answer = Begun::of(answer).await.expect("an answer");
        assert_eq!(answer.piece().await.expect("more").expect("unbroken"), "first ");
        begun.push(answer);
    }
    let models = client.ask(request(Method::GET, "/v1/models", &[KNOWN]), "").await;
    assert_eq!(models.status, 200, "between two that are running");
    assert_eq!(gateway.metric("aulos_connections").await, 1);
    go.send(true).expect("the vendor is there");
    for answer in begun {
        let rest = answer.whole().await;
        assert_eq!((rest.text().as_str(), rest.complete), ("second", true));
    }
}

#[tokio::test]
async fn a_long_answer_arrives_whole_through_a_small_window() {
    let sound: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).take(3_000_000).collect();
    let vendor = {
        let sound = Bytes::from(sound.clone());
        Vendor::start(move |_, mut wire| {
            let sound = sound.clone();
            async move {
                wire.answer("200 OK", "audio/pcm", sound).await;
                Some(wire)
            }
        })
        .await
    };
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let answer = client.speak().await;
    assert!(answer.complete && answer.body == sound, "{} bytes", answer.body.len());
}

#[tokio::test]
async fn an_upload_that_is_too_large_sees_its_refusal() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor).with("[limits]\njson_body = \"64KiB\"")).await;
    let body = Bytes::from(format!("{{\"model\":\"openai/tts-1\",\"input\":\"{}\"}}", "x".repeat(5 << 20)));
    let length = body.len().to_string();
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (label, headers) in [("declared", &[KNOWN, ("content-length", &length)][..]), ("streamed", &[KNOWN][..])] {
        let (answer, mut send) = client.open(request(Method::POST, SPEECH_PATH, headers), true).await;
        let whole = async { Begun::of(answer).await.expect("an answer, not a reset").whole().await };
        let (answer, ()) = tokio::join!(whole, pour(&mut send, body.clone()));
        assert_eq!(answer.refusal(), (413, "request_too_large".to_owned()), "{label}");
        assert!(answer.complete, "{label}");
        assert_eq!(client.speak().await.status, 200, "{label}: the connection goes on");
    }
    assert_eq!(vendor.requests().len(), 2, "nothing of it was forwarded");
}

#[tokio::test]
async fn an_upload_that_stalls_is_told_so() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor).with("[timeouts]\nidle = \"300ms\"")).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let (answer, mut send) = client.open(speech(), true).await;
    send.send_data(Bytes::from_static(b"{\"model\""), false).expect("sent");
    let answer = Begun::of(answer).await.expect("an answer").whole().await;
    assert_eq!(answer.refusal(), (408, "request_timeout".to_owned()));
    assert_eq!(client.speak().await.status, 200);
}

#[tokio::test]
async fn a_client_that_resets_its_stream_cancels_the_upstream() {
    let vendor = Vendor::start(|request, mut wire| async move {
        if request.text().contains("begun") {
            wire.write("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 9\r\n\r\nabc").await;
        }
        wire.gone().await;
        None
    })
    .await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (count, model) in ["openai/silent", "openai/begun"].into_iter().enumerate() {
        let (answer, mut send) = client.begin(speech(), &SPEECH.replace("openai/tts-1", model)).await;
        vendor.received(count + 1).await;
        let mut begun = None;
        if model == "openai/begun" {
            let answer = begun.insert(Begun::of(answer).await.expect("an answer"));
            assert_eq!(answer.piece().await.expect("more").expect("unbroken"), "abc");
        }
        send.send_reset(Reason::CANCEL);
        vendor.closed(count + 1).await;
        let usage = &gateway.recorded("usage", count + 1).await[count];
        assert_eq!((&usage["end"], &usage["provider_model"]), (&"client_gone".into(), &model[7..].into()), "{usage}");
    }
    let models = client.ask(request(Method::GET, "/v1/models", &[KNOWN]), "").await;
    assert_eq!(models.status, 200, "the connection goes on");
}

#[tokio::test]
async fn a_client_that_resets_its_stream_in_mid_body_is_recorded_as_gone() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (n, body) in ["", "{\"model\""].into_iter().enumerate() {
        let (_answer, mut send) = client.open(speech(), true).await;
        if !body.is_empty() {
            send.send_data(Bytes::from_static(body.as_bytes()), false).expect("sent");
        }
        gateway.metric_is("aulos_requests_in_flight", 1).await;
        send.send_reset(Reason::CANCEL);
        let audit = gateway.recorded("audit", n + 1).await.pop().expect("there");
        assert_eq!((&audit["end"], &audit["error"]), (&"client_gone".into(), &"client_gone".into()), "{body}: {audit}");
        assert!(audit["status"].is_null() && audit["attempts"] == json!([]), "{body}: {audit}");
    }
    assert_eq!(client.speak().await.status, 200, "the connection goes on");
    assert_eq!(vendor.requests().len(), 1, "nothing else was forwarded");
}

#[tokio::test]
async fn an_answer_that_breaks_is_seen_to_break() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let framing = if request.text().contains("chunked") {
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        } else {
            "Content-Length: 9\r\n\r\nabc"
        };
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n{framing}")).await;
        None
    })
    .await;
    let (gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (count, model) in ["openai/chunked", "openai/with-a-length"].into_iter().enumerate() {
        let (answer, _send) = client.begin(speech(), &SPEECH.replace("openai/tts-1", model)).await;
        let mut answer = Begun::of(answer).await.expect("an answer");
        let error = loop {
            match answer.piece().await.expect("no clean end") {
                Ok(piece) => assert_eq!(piece, "abc"),
                Err(error) => break error,
            }
        };
        assert!(error.is_reset() && error.reason() != Some(Reason::NO_ERROR), "{model}: {error}");
        let usage = &gateway.recorded("usage", count + 1).await[count];
        assert_eq!((&usage["end"], &usage["bytes_out"]), (&"upstream_broken".into(), &3.into()), "{model}");
    }
    let models = client.ask(request(Method::GET, "/v1/models", &[KNOWN]), "").await;
    assert_eq!(models.status, 200, "the connection goes on");
}

#[tokio::test]
async fn the_limits_of_http2_are_announced() {
    let (gateway, certificate) = spawn(Conf::new()).await;
    let mut stream = connect(&gateway.addrs[1], &certificate, &["h2"]).await.expect("a handshake");
    stream.write_all(PREFACE).await.expect("written");
    stream.flush().await.expect("written");
    let (kind, flags, settings) = frame(&mut stream).await.expect("a frame");
    assert_eq!((kind, flags), (SETTINGS, 0));
    let value = |id: u8| {
        let setting = settings.chunks(6).find(|setting| setting[..2] == [0, id])?;
        Some(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]))
    };
    for (name, id, want) in
        [("concurrent streams", 3, 100), ("the window of a stream", 4, 1 << 20), ("the header list", 6, 64 * 1024)]
    {
        assert_eq!(value(id), Some(want), "{name}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_begin_is_let_go() {
    let (gateway, certificate) = spawn(Conf::new().with("[timeouts]\nheader = \"300ms\"")).await;
    let mut begun = connect(&gateway.addrs[1], &certificate, &["h2"]).await.expect("a handshake");
    begun.write_all(PREFACE).await.expect("written");
    begun.flush().await.expect("written");
    for (label, greeting) in [("nothing", &PREFACE[..0]), ("half a greeting", &PREFACE[..12])] {
        let before = Instant::now();
        let mut client = connect(&gateway.addrs[1], &certificate, &["h2"]).await.expect("a handshake");
        client.write_all(greeting).await.expect("written");
        client.flush().await.expect("written");
        // However it ends; what comes before that are the gateway's own settings.
        soon(&format!("{label}: it is closed"), client.read_to_end(&mut Vec::new())).await.ok();
        assert!(before.elapsed() >= Duration::from_millis(300), "{label}: {:?}", before.elapsed());
    }
    // Who has begun has all the time there is.
    begun.write_all(&[0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).await.expect("written");
    begun.flush().await.expect("written");
    while frame(&mut begun).await.expect("it is open") != (PING, 1, vec![1, 2, 3, 4, 5, 6, 7, 8]) {}
}

#[tokio::test]
async fn http2_is_not_spoken_in_clear_text() {
    let (gateway, certificate) = spawn(Conf::new()).await;
    let without = connect(&gateway.addrs[2], &certificate, &["http/1.1"]).await.expect("a handshake");
    for (label, mut client) in [("clear text", gateway.client().await), ("TLS without h2", Client::over(without))] {
        client.send(PREFACE).await;
        let answer = client.answer().await;
        assert_eq!(answer.refusal(), (505, "http_version_not_supported".to_owned()), "{label}");
        assert_eq!(answer.header("connection"), Some("close"), "{label}");
        assert!(client.rest().await.is_empty(), "{label}");
    }
    // Nor is it switched to.
    let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let head = format!("GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n{upgrade}\r\n");
    let answer = gateway.client().await.send(head.as_bytes()).await.answer().await;
    assert!([200, 400].contains(&answer.status), "{answer:?}");
}

#[tokio::test]
async fn a_certificate_changes_while_it_is_in_use() {
    const RELOADED: &str = "aulos_config_reloads_total{result=\"ok\"}";
    const NOT_RELOADED: &str = "aulos_config_reloads_total{result=\"failed\"}";
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = |name: &str| Conf::new().upstream(&vendor).with(&format!("[aliases]\n{name} = \"openai/tts-1\""));
    let (gateway, old) = spawn(conf("first")).await;
    let mut running = Http2::connect(&gateway, &old).await;
    let new = issue(&gateway.dir);
    gateway.signal("HUP");
    gateway.metric_is(RELOADED, 1).await;
    for addr in &gateway.addrs[1..] {
        assert!(connect(addr, &new, &[]).await.is_ok() && connect(addr, &old, &[]).await.is_err(), "{addr}");
    }
    assert_eq!(running.speak().await.status, 200, "who is connected stays connected");
    for (count, (label, break_it)) in [
        ("no key", (|dir: &Path| std::fs::write(dir.join("key.pem"), "nothing")) as fn(&Path) -> _),
        ("another's key", |dir| {
            let key = std::fs::read(dir.join("key.pem"))?;
            issue(dir);
            std::fs::write(dir.join("key.pem"), key)
        }),
        ("no file", |dir| std::fs::remove_file(dir.join("cert.pem"))),
    ]
    .into_iter()
    .enumerate()
    {
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| std::fs::read(gateway.dir.join(name)).expect("readable"));
        break_it(&gateway.dir).expect("broken");
        gateway.rewrite(&conf("second").listen(LISTEN));
        let told = gateway.log().len();
        gateway.signal("HUP");
        gateway.metric_is(NOT_RELOADED, count as u64 + 1).await;
        assert_eq!(gateway.metric("aulos_config_last_reload_successful").await, 0, "{label}");
        let log = gateway.log().split_off(told);
        assert!(log.contains("ERROR") && log.contains(".pem: "), "{label}: {log}");
        assert!(connect(&gateway.addrs[1], &new, &[]).await.is_ok(), "{label}: the one there was is kept");
        let body = SPEECH.replace("openai/tts-1", "second");
        assert_eq!(gateway.post(SPEECH_PATH, &body).await.status, 404, "{label}: so is the config, whole");
        std::fs::write(gateway.dir.join("cert.pem"), cert).expect("written");
        std::fs::write(gateway.dir.join("key.pem"), key).expect("written");
    }
    gateway.signal("HUP");
    gateway.metric_is(RELOADED, 2).await;
    let body = SPEECH.replace("openai/tts-1", "second");
    assert_eq!(gateway.post(SPEECH_PATH, &body).await.status, 200);
}

#[tokio::test]
async fn running_streams_end_whole_after_sigterm() {
    let (vendor, go) = held_vendor().await;
    let (mut gateway, certificate) = spawn(Conf::new().upstream(&vendor)).await;
    let mut idle = connect(&gateway.addrs[1], &certificate, &["h2"]).await.expect("a handshake");
    idle.write_all(PREFACE).await.expect("written");
    idle.flush().await.expect("written");
    assert_eq!(frame(&mut idle).await.expect("a frame").0, SETTINGS);
    let mut used = Client::over(connect(&gateway.addrs[1], &certificate, &[]).await.expect("a handshake"));
    let head = "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(used.send(head.as_bytes()).await.answer().await.status, 401);
    let mut client = Http2::connect(&gateway, &certificate).await;
    let (answer, _send) = client.begin(speech(), SPEECH).await;
    let mut answer = Begun::of(answer).await.expect("an answer");
    assert_eq!(answer.piece().await.expect("more").expect("unbroken"), "first ");
    gateway.signal("TERM");
    let mut goodbyes = Vec::new();
    while let Some((kind, flags, payload)) = frame(&mut idle).await {
        match (kind, flags) {
            (GOAWAY, _) => goodbyes.push(payload[4..8].to_vec()),
            (PING, 0) => {
                let answer = [&[0, 0, 8, PING, 1, 0, 0, 0, 0], payload.as_slice()].concat();
                idle.write_all(&answer).await.expect("written");
                idle.flush().await.expect("written");
            }
            _ => {}
        }
    }
    assert!(!goodbyes.is_empty() && goodbyes.iter().all(|code| *code == [0; 4]), "{goodbyes:?}");
    assert!(used.rest().await.is_empty());
    for addr in &gateway.addrs {
        nobody_listens(addr).await;
    }
    go.send(true).expect("the vendor is there");
    let rest = answer.whole().await;
    assert_eq!((rest.text().as_str(), rest.complete), ("second", true));
    let gone = soon("the connection takes no more", poll_fn(|cx| client.send.poll_ready(cx))).await;
    assert!(gone.is_err(), "it was said goodbye to");
    soon("the connection ends", client.ended).await.expect("no panic").ok();
    let before = Instant::now();
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    let usage = gateway.records("usage");
    assert_eq!((usage.len(), &usage[0]["end"]), (1, &"complete".into()));
}

#[tokio::test]
async fn a_client_that_does_not_hang_up_does_not_hold_up_the_end() {
    let dir = scratch();
    let certificate = issue(&dir);
    let mut gateway = Gateway::spawn_in(&dir, Conf::new().listen(LISTEN).server("drain = \"60s\"")).await;
    let mut idle = connect(&gateway.addrs[1], &certificate, &["h2"]).await.expect("a handshake");
    idle.write_all(PREFACE).await.expect("written");
    idle.flush().await.expect("written");
    assert_eq!(frame(&mut idle).await.expect("a frame").0, SETTINGS);
    gateway.metric_is("aulos_connections", 1).await;
    // It hears the goodbye, and answers nothing.
    let before = Instant::now();
    assert_eq!(gateway.stop().await.code(), Some(0));
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    drop(idle);
}

#[tokio::test]
async fn a_handshake_that_was_never_made_does_not_hold_up_the_end() {
    let (mut gateway, _) = spawn(Conf::new()).await;
    let mut silent = TcpStream::connect(&gateway.addrs[1]).await.expect("connects");
    let mut half = TcpStream::connect(&gateway.addrs[1]).await.expect("connects");
    half.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("written");
    let before = Instant::now();
    assert_eq!(gateway.stop().await.code(), Some(0));
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    for stream in [&mut silent, &mut half] {
        let read = soon("it is closed", stream.read(&mut [0; 16])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}
