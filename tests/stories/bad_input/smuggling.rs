//! Requests hidden in requests, and headers that would choose where one goes.

#[path = "../../support/desync.rs"]
mod desync;

use serde_json::json;

use super::{
    CHUNKED, Fate, HIDDEN, INVALID, JSON, SPEAK, asking, canary, check, check_audit, chunked, echo, fate, head,
    only_canaries, only_the_vendors_credential, request,
};
use crate::support::chunks::tricks;
use crate::support::client::post;
use crate::support::{Conf, Gateway, KEY};

/// A body that nobody reads must not become the next request.
#[tokio::test]
async fn what_follows_a_refusal_is_not_the_next_request() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let hidden = post("/v1/audio/speech", &[], HIDDEN);
    let bad_key = asking("Authorization: Bearer wrong\r\n", &hidden);
    for (label, sent, status) in [
        ("401", bad_key, 401),
        ("404", request("POST /nowhere HTTP/1.1", JSON, &hidden), 404),
        ("405", request("PUT /v1/audio/speech HTTP/1.1", JSON, &hidden), 405),
        ("GET with a body", request("GET /v1/models HTTP/1.1", "", &hidden), 200),
        ("health with a body", request("GET /livez HTTP/1.1", "", &hidden), 200),
        ("413", [head(SPEAK, "Content-Length: 9999999\r\n"), hidden.clone().into_bytes()].concat(), 413),
        ("415", request(SPEAK, "Content-Encoding: gzip\r\n", &hidden), 415),
        ("400 by its JSON", request(SPEAK, JSON, &hidden), 400),
        ("400 by its model", request(&format!("{SPEAK}\r\nX-Aulos-Model:"), JSON, &hidden), 400),
        ("400 in chunks", [head(SPEAK, CHUNKED), chunked(&hidden, 20)].concat(), 400),
    ] {
        for pieces in [1, 3] {
            let mut client = gateway.client().await;
            for piece in sent.chunks(sent.len().div_ceil(pieces)) {
                client.send(piece).await;
            }
            let answer = client.finish().await.answer().await;
            assert_eq!(answer.status, status, "{label}: {answer:?}");
            let rest = client.rest().await;
            assert!(rest.is_empty(), "{label}: a second answer: {}", rest.escape_ascii());
            canary(&mut gateway.client().await, label).await;
        }
    }
    only_canaries(&vendor, 20);
}

/// Pingora's parser of chunks is lenient in places; whatever it takes, the vendor is sent one request in plain framing.
#[tokio::test]
async fn tricks_with_chunks_never_make_a_second_request() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let json = HIDDEN.replace("hidden", "canary chunks");
    let hidden = post("/v1/audio/speech", &[], HIDDEN);
    let rows = tricks(&json, &hidden);
    let mut served = 0;
    for (label, body) in rows {
        let mut client = gateway.client().await;
        let answer = client.send(&[head(SPEAK, CHUNKED), body.into_bytes()].concat()).await.answer().await;
        if answer.status == 200 {
            served += 1;
        } else if answer.code() == "invalid_json" {
            // Taken for an empty body.
            check(label, &answer, (400, "invalid_json", None));
        } else {
            check(label, &answer, (400, INVALID, None));
            assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}: nobody knows where it ends");
            check_audit(label, &gateway, &answer, Some("test")).await;
        }
        canary(&mut gateway.client().await, label).await;
        served += 1;
    }
    only_canaries(&vendor, served);
    assert!(vendor.requests().iter().all(|sent| sent.header("transfer-encoding").is_none()));
}

#[tokio::test]
async fn trailers_are_dropped() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary trailers");
    let mut sent = [head(SPEAK, &format!("Trailer: X-Marker\r\n{CHUNKED}")), chunked(&body, 16)].concat();
    sent.truncate(sent.len() - 2);
    sent.extend_from_slice(b"X-Marker: marker\r\nAuthorization: Bearer other\r\nX-Aulos-Model: other\r\n\r\n");
    let answer = gateway.client().await.send(&sent).await.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let up = &vendor.received(1).await[0];
    assert_eq!((up.header("x-marker"), up.header("trailer")), (None, None));
    assert_eq!(up.text(), body.replace("openai/", ""));
    only_the_vendors_credential(up);
}

#[tokio::test]
async fn what_is_between_the_client_and_us_does_not_go_to_the_vendor() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let lines = [
        "Connection: keep-alive, X-Hop, te, Upgrade, HTTP2-Settings",
        "X-Hop: 1",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X-T",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "Cookie: session=1",
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=10.0.0.1",
        "X-Aulos-Anything: 1",
        "X-Aulos-User-Path: /a",
        "X-Stays: 1",
    ];
    let stays = ["x-stays"];
    for credential in ["Authorization: Bearer KEY", "X-Api-Key: KEY", "Api-Key: KEY"] {
        let all: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let all = format!("{}\r\n{all}", credential.replace("KEY", KEY));
        let answer =
            gateway.client().await.send(&asking(&all, &HIDDEN.replace("hidden", "canary hop"))).await.answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for sent in vendor.requests() {
        only_the_vendors_credential(&sent);
        for line in lines {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            let value = sent.header(&name).filter(|_| name != "connection");
            assert_eq!(value.is_some(), stays.contains(&name.as_str()), "{name}: {value:?}");
        }
        assert!(!sent.header("connection").is_some_and(|value| value.contains("Hop")), "{sent:?}");
        assert_eq!(sent.header("host"), Some(format!("127.0.0.1:{}", vendor.port).as_str()));
    }
}

/// No field and no header of a request ever chooses a host.
#[tokio::test]
async fn no_client_chooses_where_a_request_goes() {
    let (vendor, elsewhere) = (echo().await, echo().await);
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let (url, host) = (elsewhere.base_url(), format!("127.0.0.1:{}", elsewhere.port));
    let names = [
        "X-Portkey-Custom-Host",
        "X-Portkey-Config",
        "Destination",
        "Referer",
        "Origin",
        "Forwarded",
        "X-Forwarded-Host",
        "X-Host",
        "X-Original-Url",
        "X-Rewrite-Url",
        "X-Http-Destinationurl",
        "Api-Base",
        "Base-Url",
        "X-Base-Url",
        "X-Aulos-Base-Url",
        "X-Target-Url",
        "Proxy",
        "X-Upstream",
    ];
    for name in names {
        for value in [&url, &host] {
            let lines = format!("{JSON}{name}: {value}\r\n");
            let body = HIDDEN.replace("hidden", "canary host");
            let answer = gateway.client().await.send(&request(SPEAK, &lines, body)).await.answer().await;
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        }
    }
    let by_host = format!("{SPEAK}\r\nHost: {host}\r\nApi-Key: {KEY}\r\n");
    let fields = ["api_base", "base_url", "custom_host", "webhook_url", "url", "proxy", "callback_url"];
    let body =
        |field: &str| HIDDEN.replace("hidden", "canary host").replacen('{', &format!("{{\"{field}\":\"{url}\","), 1);
    for field in fields {
        let answer = gateway.post("/v1/audio/speech", &body(field)).await;
        assert_eq!(answer.status, 200, "{field}: {answer:?}");
    }
    let sent = format!("{by_host}Content-Length: {}\r\n\r\n{}", body("x").len(), body("x"));
    assert_eq!(gateway.client().await.send(sent.as_bytes()).await.answer().await.status, 200);
    let query = format!("/v1/audio/speech?api_base={url}&base_url={url}");
    assert_eq!(gateway.post(&query, &body("x")).await.status, 200);
    only_canaries(&vendor, names.len() * 2 + fields.len() + 2);
    assert_eq!(elsewhere.connections(), 0);
    let models =
        [format!("{host}/tts-1"), format!("{url}/tts-1"), "openai@elsewhere/tts-1".into(), "OpenAI/tts-1".into()];
    for model in models {
        let body = json!({ "model": model, "input": "hidden", "voice": "alloy" }).to_string();
        check(&model, &gateway.post("/v1/audio/speech", &body).await, (404, "model_not_found", Some("model")));
    }
    assert_eq!(elsewhere.connections(), 0);
}

/// The vectors of the `http_desync_guardian` crate, each with its own path and with one that is served.
#[tokio::test]
async fn no_vector_of_the_desync_guardian_hides_a_request() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut other = gateway.client().await;
    let vectors = desync::cases();
    let ambiguous = vectors.iter().filter(|vector| is_ambiguous(vector)).count();
    assert!(ambiguous > 80 && vectors.len() - ambiguous > 30, "{ambiguous} of {}", vectors.len());
    for vector in &vectors {
        for target in [&vector.uri[..], b"/v1/audio/speech"] {
            let mut sent = vector_head(vector, target);
            if is_ambiguous(vector) {
                sent.extend_from_slice(b"0\r\n\r\n");
                sent.extend_from_slice(post("/v1/audio/speech", &[], HIDDEN).as_bytes());
            }
            let mut client = gateway.client().await;
            let said = client.send(&sent).await.finish().await.rest().await.to_ascii_lowercase();
            let shown =
                format!("{} ({}): {}\n{}", vector.name, vector.reason, sent.escape_ascii(), said.escape_ascii());
            let refused = [&b"http/1.1 4"[..], b"http/1.1 5"].iter().any(|status| said.starts_with(status));
            assert!(refused || said.is_empty(), "{shown}");
            assert!(memchr::memmem::find_iter(&said, "x-aulos-request-id").count() <= 1, "one answer: {shown}");
        }
        canary(&mut other, &vector.name).await;
    }
    only_canaries(&vendor, vectors.len());
}

/// Where the crate says that what follows the head may be read in two ways.
fn is_ambiguous(vector: &desync::Case) -> bool {
    ["Ambiguous", "Severe"].contains(&vector.tier.as_str())
}

fn vector_head(vector: &desync::Case, target: &[u8]) -> Vec<u8> {
    let mut head = [&vector.method[..], b" ", target, b" ", &vector.version, b"\r\n"].concat();
    if !vector.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"host")) {
        head.extend_from_slice(b"Host: aulos\r\n");
    }
    head.extend_from_slice(format!("Authorization: Bearer {KEY}\r\n").as_bytes());
    head.extend(vector.headers.iter().flat_map(|(name, value)| [&name[..], b": ", value, b"\r\n"].concat()));
    [&head[..], b"\r\n"].concat()
}
