//! Secrets: no key is seen in an answer, a record, the log, the metrics or what a command says.

use std::fs;

use serde_json::{Value, json};

use super::{HIDDEN, SPEAK, asking};
use crate::support::client::find;
use crate::support::gateway::{command, scratch};
use crate::support::{Conf, Gateway, PROVIDER_KEY, Vendor, files_below, sha256};

/// Keys with bytes that look otherwise in base64 and in a URL.
const CLIENT_SECRET: &str = "omx/live+secret==key";
const VENDOR_SECRET: &str = "sk-provider/secret+0123456789==";
/// Every form in which they would be a leak.
const LEAKS: [&str; 8] = [
    CLIENT_SECRET,
    "b214L2xpdmUrc2VjcmV0PT1rZXk",
    "omx%2Flive%2Bsecret%3D%3Dkey",
    "omx%2flive%2bsecret%3d%3dkey",
    VENDOR_SECRET,
    "c2stcHJvdmlkZXIvc2VjcmV0KzAxMjM0NTY3ODk9PQ",
    "sk-provider%2Fsecret%2B0123456789%3D%3D",
    "sk-provider%2fsecret%2b0123456789%3d%3d",
];

fn no_leak(place: &str, text: &str) {
    for leak in LEAKS.into_iter().chain([PROVIDER_KEY]) {
        assert!(!text.contains(leak), "{leak} in {place}: {text}");
    }
}

/// A vendor that repeats the credential it was sent wherever it can, with the status that the input names.
async fn indiscreet() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
        let status = sent["input"].as_str().expect("text").to_owned();
        if status == "reset" {
            return None;
        }
        let credential = request.header("authorization").expect("sent").to_owned();
        let message = format!("Incorrect API key provided: {credential}. Again: {VENDOR_SECRET}{VENDOR_SECRET}");
        let body = json!({ "error": { "message": message, "type": "x", "param": null, "code": null } }).to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nX-Echo: {credential}\r\n\
             X-Echo: again {credential}{VENDOR_SECRET}\r\nWWW-Authenticate: Bearer error=\"{credential}\"\r\n\
             Location: https://elsewhere/{VENDOR_SECRET}\r\nSet-Cookie: key={VENDOR_SECRET}\r\n\r\n",
            body.len()
        );
        let (first, second) = body.split_at(find(body.as_bytes(), b"secret").expect("in the key"));
        wire.write(head).await.write(first).await;
        tokio::task::yield_now().await;
        wire.write(second).await;
        Some(wire)
    })
    .await
}

/// Requests that carry the client's key and are refused, or carry another.
fn secret_mistakes() -> Vec<(&'static str, Vec<u8>, u16)> {
    let good = |first: &str, lines: &str| {
        let key = format!("Authorization: Bearer {CLIENT_SECRET}\r\n{lines}");
        String::from_utf8(asking(&key, HIDDEN)).expect("text").replacen(SPEAK, first, 1).into_bytes()
    };
    let path = |path: &str| good(&format!("POST {path} HTTP/1.1"), "");
    let key = |lines: &str| asking(&lines.replace("KEY", CLIENT_SECRET).replace("VENDOR", VENDOR_SECRET), HIDDEN);
    vec![
        ("a wrong path", path("/nowhere"), 404),
        ("a wrong method", good("PUT /v1/audio/speech HTTP/1.1", ""), 405),
        ("in the query", path(&format!("/v1/audio/speech?key={CLIENT_SECRET}")), 401),
        ("in the query of nothing", path(&format!("/nowhere?token={CLIENT_SECRET}")), 404),
        ("coded in the query", path("/v1/audio/speech?key=omx%2Flive%2Bsecret%3D%3Dkey"), 401),
        ("the wrong scheme", key("Authorization: Basic KEY\r\n"), 401),
        ("a list", key("Authorization: Bearer KEY, KEY\r\n"), 401),
        ("two keys", key("Authorization: Bearer KEY\r\nApi-Key: VENDOR\r\n"), 401),
        ("the vendor's", key("Authorization: Bearer VENDOR\r\n"), 401),
        ("a cookie", key("Cookie: key=KEY\r\n"), 401),
        ("coded", good(SPEAK, "Content-Encoding: gzip\r\n"), 415),
        ("two models", good(SPEAK, "X-Aulos-Model: other\r\n"), 400),
        ("no user path", good(SPEAK, "X-Aulos-User-Path: /a/..\r\n"), 400),
        ("a bad head", good(SPEAK, "X: a\0b\r\n"), 400),
        ("a bad head with a query", good(&format!("POST /?key={CLIENT_SECRET} HTTP/1.1"), "X: a\0b\r\n"), 400),
        ("a bad version", good("POST /v1/audio/speech HTTP/2.0", ""), 505),
        ("too many headers", good(SPEAK, &"X: y\r\n".repeat(101)), 431),
    ]
}

#[tokio::test]
async fn no_key_is_seen_where_it_does_not_belong() {
    let (vendor, dir) = (indiscreet().await, scratch());
    fs::write(dir.join("provider.key"), VENDOR_SECRET).expect("written");
    let provider = format!(
        "[providers.openai]\nkind = \"openai\"\nbase_url = \"{}\"\nkeys = [{{ file = \"provider.key\" }}]\n",
        vendor.base_url()
    );
    let keys = format!("[keys.test]\nsha256 = \"{}\"\n", sha256(CLIENT_SECRET));
    let conf = Conf::new().with(&provider).with("[timeouts]\nfirst_byte = \"5s\"").keys(&keys);
    let mut gateway = Gateway::spawn_in(&dir, conf).await;
    let covered = "*".repeat(VENDOR_SECRET.len());
    for (said, status) in [
        ("200 OK", 200),
        ("400 Bad Request", 400),
        ("401 Unauthorized", 502),
        ("403 Forbidden", 502),
        ("404 Not Found", 404),
        ("429 Too Many Requests", 429),
        ("500 Internal Server Error", 500),
        ("503 Service Unavailable", 503),
        ("302 Found", 502),
        ("reset", 502),
    ] {
        let body = json!({ "model": "openai/tts-1", "input": said, "voice": "alloy" }).to_string();
        let bearer = format!("Authorization: Bearer {CLIENT_SECRET}\r\n");
        let answer = gateway.client().await.send(&asking(&bearer, &body)).await.answer().await;
        assert_eq!((answer.status, answer.complete), (status, true), "{said}: {answer:?}");
        no_leak(said, &format!("{:?}{}", answer.headers, answer.text()));
        if answer.header("x-aulos-origin") == Some("provider") {
            assert!(
                answer
                    .text()
                    .ends_with(&format!("Again: {covered}{covered}\",\"type\":\"x\",\"param\":null,\"code\":null}}}}")),
                "{}",
                answer.text()
            );
            let echoes: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "x-echo").collect();
            assert!(echoes.len() == 2 && echoes.iter().all(|(_, value)| value.ends_with(&covered)), "{echoes:?}");
        }
    }
    assert!(
        vendor
            .requests()
            .iter()
            .all(|sent| sent.header("authorization").is_some_and(|key| key.ends_with(VENDOR_SECRET)))
    );
    for (label, sent, status) in secret_mistakes() {
        let answer = gateway.client().await.send(&sent).await.answer().await;
        assert_eq!(answer.status, status, "{label}: {answer:?}");
        no_leak(label, &format!("{:?}{}", answer.headers, answer.text()));
    }
    no_leak("the metrics", &gateway.admin("/metrics").await.text());
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", gateway.pid())).expect("readable");
        let text = String::from_utf8_lossy(&text).replace(PROVIDER_KEY, "what the story gives every gateway");
        no_leak(file, &text);
    }
    assert!(gateway.stop().await.success());
    no_leak("the log", &gateway.log());
    assert!(gateway.records("usage").len() >= 10 && gateway.records("audit").len() >= 20);
    files_below(&gateway.dir.join("state"), &mut |path, text| no_leak(path, text));
}

#[tokio::test]
async fn what_the_commands_say_holds_no_key() {
    let dir = scratch();
    let text = |keys: &str| {
        format!(
            "[providers.openai]\nkind = \"openai\"\nkeys = [{keys}]\n[keys.test]\nsha256 = \"{}\"\n",
            sha256(CLIENT_SECRET)
        )
    };
    fs::write(dir.join("good.toml"), text("\"${PROVIDER_KEY}\"")).expect("written");
    fs::write(dir.join("clear.toml"), text(&format!("\"{VENDOR_SECRET}\""))).expect("written");
    fs::write(dir.join("broken.toml"), text(&format!("\"{VENDOR_SECRET}"))).expect("written");
    fs::write(dir.join("secret.toml"), text("\"${PROVIDER_KEY}\"").replace("sha256", "secret")).expect("written");
    for (args, well) in [
        (&["--help"][..], true),
        (&["run", "--help"], true),
        (&["check", "--help"], true),
        (&["--version"], true),
        (&["check", "--config", "good.toml"], true),
        (&["check", "--config", "clear.toml"], false),
        (&["check", "--config", "broken.toml"], false),
        (&["check", "--config", "secret.toml"], false),
        (&["run", "--config", "clear.toml"], false),
        (&["route", "--config", "good.toml", "--json", HIDDEN, "-H", "api-key: omx/live+secret==key"], true),
    ] {
        let done = command(&dir).args(args).output().await.expect("runs");
        assert_eq!(done.status.success(), well, "{args:?}: {done:?}");
        no_leak(&format!("{args:?}"), &format!("{done:?}"));
        assert!(done.stdout.len() + done.stderr.len() > 0, "{args:?}");
    }
    fs::remove_dir_all(dir).ok();
}
