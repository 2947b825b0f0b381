//! No key is seen where it does not belong, however a provider repeats it.

use std::fs;

use super::{key, provider};
use crate::support::client::find;
use crate::support::{Client, Conf, Gateway, Vendor, files_below};

/// Keys with bytes that look otherwise in base64 and in a URL.
const CALLER: &str = "omx/live+secret==key";
const CALLER_IN_A_URL: &str = "omx%2Flive%2Bsecret%3D%3Dkey";
const OURS: &str = "sk-provider/secret+0123456789==";
/// As the gateway writes it into a query.
const OURS_IN_A_URL: &str = "sk-provider%2Fsecret%2B0123456789%3D%3D";
/// Every form in which they would be a leak.
const LEAKS: [&str; 9] = [
    CALLER,
    "b214L2xpdmUrc2VjcmV0PT1rZXk",
    CALLER_IN_A_URL,
    "omx%2flive%2bsecret%3d%3dkey",
    OURS,
    "c2stcHJvdmlkZXIvc2VjcmV0KzAxMjM0NTY3ODk9PQ",
    OURS_IN_A_URL,
    "sk-provider%2fsecret%2b0123456789%3d%3d",
    "sk%2Dprovider%2Fsecret%2B0123456789%3D%3D",
];

fn no_leak(place: &str, text: &str) {
    for leak in LEAKS {
        assert!(!text.contains(leak), "{leak} in {place}: {text}");
    }
}

/// A vendor that repeats the credential and the target it was sent wherever it can, with the status, type and framing
/// that it is asked for. `?how`: what else it does.
async fn indiscreet() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let said = |name: &str| request.header(name).unwrap_or_default().to_owned();
        let (status, media, how) = (said("x-say"), said("x-media"), said("x-how"));
        if how == "reset" {
            wire.reset();
            return None;
        }
        let target = &request.target;
        let sent = request.headers.iter().map(|(_, value)| value.as_str()).find(|value| value.contains(OURS));
        let credential = sent.unwrap_or(target).to_owned();
        // What was sent in the query is repeated as it stood there.
        let known = if sent.is_some() { OURS } else { OURS_IN_A_URL };
        let text = format!("data: wrong key {credential}, of {target}. Again: {known}{known}\n\n");
        let reason = if how == "reason" { format!("No {known}") } else { "Odd".to_owned() };
        let media = if media.is_empty() { String::new() } else { format!("Content-Type: {media}\r\n") };
        let headers = format!(
            "X-Echo: {credential}\r\nX-Echo: again {credential}{known}\r\nWWW-Authenticate: Bearer error=\"{credential}\"\r\n\
             Link: <{target}>; rel=next\r\nLocation: {target}&again={known}\r\nSet-Cookie: key={known}\r\n\
             X-Aulos-Echo: {known}\r\n"
        );
        let framing = if how == "chunked" { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {}", text.len()) };
        wire.write(format!("HTTP/1.1 {status} {reason}\r\n{media}{headers}{framing}\r\n\r\n")).await;
        // In two pieces, with a cut in the middle of the key.
        let cut = find(text.as_bytes(), b"secret").expect("in the key");
        let (first, second) = text.split_at(cut);
        for piece in [first, second] {
            match how.as_str() {
                "chunked" => wire.write(format!("{:x}\r\n{piece}\r\n", piece.len())).await,
                _ => wire.write(piece).await,
            };
            tokio::task::yield_now().await;
        }
        if how == "chunked" {
            wire.write("0\r\n\r\n").await;
        }
        Some(wire)
    })
    .await
}

/// Requests that are refused, or that nobody answers.
fn mistakes() -> Vec<(String, u16)> {
    let bearer = format!("Authorization: Bearer {CALLER}\r\n");
    let get =
        |path: &str, lines: &str| format!("GET {path} HTTP/1.1\r\nHost: aulos\r\nConnection: close\r\n{lines}\r\n");
    vec![
        (get("/p/header/v1/../x", &bearer), 400),
        (get("/p/nobody/v1/x", &bearer), 404),
        (get(&format!("/p/nobody?key={CALLER_IN_A_URL}"), ""), 404),
        (get(&format!("/p/header/x?key={CALLER_IN_A_URL}&token=b"), ""), 401),
        (get(&format!("/p/header/x?key={OURS_IN_A_URL}"), ""), 401),
        (get("/p/header/x", &format!("Authorization: Bearer {OURS}\r\n")), 401),
        (get("/p/header/x", &format!("{bearer}X-Api-Key: {OURS}\r\n")), 401),
        (get("/p/header/x", &format!("Authorization: Basic {CALLER}\r\n")), 401),
        (get("/p/header/x", &format!("Cookie: key={CALLER}\r\n")), 401),
        (get("/p/header/x", &format!("{bearer}X-How: reset\r\n")), 502),
        (get("/p/query/x", &format!("{bearer}X-How: reset\r\n")), 502),
        (get(&format!("/p/query/x?key={CALLER_IN_A_URL}"), "X-How: reset\r\n"), 502),
        (get("/p/gone/x", &bearer), 502),
        (get(&format!("/p/gone/x?token={CALLER_IN_A_URL}"), ""), 502),
        (get(&format!("/p/header/x?key={CALLER_IN_A_URL}"), "X: a\0b\r\n"), 400),
    ]
}

#[tokio::test]
async fn no_key_is_seen_where_it_does_not_belong() {
    let vendor = indiscreet().await;
    let gone = tokio::net::TcpSocket::new_v4().expect("made");
    gone.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let gone_port = gone.local_addr().expect("bound").port();
    let keys = "keys = [{ file = \"provider.key\" }]\nhealth = \"off\"";
    let dir = crate::support::gateway::scratch();
    fs::write(dir.join("provider.key"), OURS).expect("written");
    let conf = Conf::new()
        .keys(&key("test", CALLER, "passthrough = true"))
        .with(&provider("header", "elevenlabs", vendor.port, keys))
        .with(&provider("query", "http", vendor.port, &format!("{keys}\ncredential = {{ query = \"key\" }}")))
        .with(&provider("gone", "http", gone_port, &format!("{keys}\ncredential = {{ query = \"key\" }}")));
    let mut gateway = Gateway::spawn_in(&dir, conf).await;
    let mut echoed = 0;
    for name in ["header", "query"] {
        for status in ["200", "206", "302", "400", "401", "403", "404", "429", "500", "503"] {
            for media in [
                "application/json",
                "application/problem+json",
                "text/plain",
                "text/html; charset=utf-8",
                "text/event-stream",
                "",
            ] {
                for how in ["", "chunked", "reason"] {
                    // What says nothing of its type and is no failure is sound, which nobody looks into.
                    if media.is_empty() && status.starts_with('2') {
                        continue;
                    }
                    let label = format!("{name}, {status}, {media}, {how}");
                    let lines = format!("X-Say: {status}\r\nX-Media: {media}\r\nX-How: {how}\r\n");
                    let head = format!(
                        "GET /p/{name}/v1/x?a=1 HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {CALLER}\r\n{lines}Connection: close\r\n\r\n"
                    );
                    let said = gateway.client().await.send(head).await.rest().await;
                    let said = String::from_utf8_lossy(&said).into_owned();
                    assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{label}: {said}");
                    no_leak(&label, &said.replace("\r\n", ""));
                    // At equal length.
                    let known = if name == "header" { OURS } else { OURS_IN_A_URL };
                    assert!(said.contains(&"*".repeat(known.len() * 2)), "{label}: {said}");
                    echoed += 1;
                }
            }
        }
    }
    for (sent, status) in mistakes() {
        let answer = gateway.client().await.send(&sent).await.answer().await;
        assert_eq!(answer.status, status, "{sent}: {answer:?}");
        no_leak(&sent.replace(CALLER, "").replace(OURS, ""), &format!("{:?}{}", answer.headers, answer.text()));
    }
    no_leak("the metrics", &gateway.admin("/metrics").await.text());
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", gateway.pid())).expect("readable");
        no_leak(file, &String::from_utf8_lossy(&text));
    }
    assert!(gateway.stop().await.success());
    no_leak("the log", &gateway.log());
    assert!(gateway.records("usage").len() >= echoed && gateway.records("audit").len() >= echoed);
    files_below(&gateway.dir.join("state"), &mut |path, text| no_leak(path, text));
}

/// Sound may hold any bytes, a key's too: it is not touched.
#[tokio::test]
async fn sound_is_not_looked_into() {
    const SOUND: &[u8] = b"\0\xff sk-provider-secret-0123456789abcdef sk-prov";
    let vendor = Vendor::speech("audio/mpeg", SOUND).await;
    let gateway = Gateway::spawn(super::conf(&vendor)).await;
    let mut client = Client::connect(gateway.addr()).await;
    let answer = client.send(super::ask(&format!("GET {}", super::PATH), "", "")).await.answer().await;
    assert_eq!(answer.body, SOUND);
}

/// What is no success is no sound, whatever it says that it is.
#[tokio::test]
async fn a_refusal_of_any_type_is_looked_into() {
    let vendor = indiscreet().await;
    let keys = "keys = [\"${OURS}\"]\nhealth = \"off\"";
    let conf = Conf::new()
        .env("OURS", OURS)
        .keys(&key("test", CALLER, "passthrough = true"))
        .with(&provider("header", "elevenlabs", vendor.port, keys))
        .with(&provider("query", "http", vendor.port, &format!("{keys}\ncredential = {{ query = \"key\" }}")));
    let gateway = Gateway::spawn(conf).await;
    for name in ["header", "query"] {
        for status in ["302", "400", "401", "404", "429", "500", "503"] {
            for media in [
                "application/xml",
                "application/x-www-form-urlencoded",
                "application/octet-stream",
                "application/x-odd",
                "message/http",
                "audio/mpeg",
                "image/svg+xml",
                "multipart/mixed; boundary=x",
                "odd",
            ] {
                for how in ["", "chunked"] {
                    let label = format!("{name}, {status}, {media}, {how}");
                    let head = format!(
                        "GET /p/{name}/v1/x HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {CALLER}\r\nX-Say: {status}\r\n\
                         X-Media: {media}\r\nX-How: {how}\r\nConnection: close\r\n\r\n"
                    );
                    let said = gateway.client().await.send(head).await.rest().await;
                    let said = String::from_utf8_lossy(&said).into_owned();
                    assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{label}: {said}");
                    assert!(said.contains("wrong key"), "{label}: {said}");
                    no_leak(&label, &said);
                }
            }
        }
    }
}
