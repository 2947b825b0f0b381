//! The handshake as the vendor sees it, and the vendor's as the client does.

use super::{AGREED, Far, Line, REALTIME, asking, bare, conf, peers};
use crate::support::{Conf, Gateway, KEY, PROVIDER_KEY, sha256};

/// Header lines, sorted.
fn sorted(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    let mut sorted: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    sorted.sort_unstable();
    sorted
}

#[tokio::test]
async fn the_vendor_gets_the_clients_handshake_with_its_own_credential() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let lines = "Origin: https://app.example\r\nUser-Agent: Browser/1.0\r\nOpenAI-Beta: realtime=v1\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
                 X-Hop: 1\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nCookie: session=1\r\n\
                 X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\n\
                 Via: 1.1 elsewhere\r\nProxy-Authorization: Basic eDp5\r\nX-Aulos-User-Path: /\r\n\
                 OpenAI-Organization: org-theirs\r\nAccept-Encoding: gzip\r\n";
    let mut near = Line::connect(&gateway).await;
    let target = "/p/openai/v1/realtime?model=gpt%2drealtime&x=a%2Fb+c&&empty=";
    near.send(asking(target, &format!("{lines}X-API-Key: {KEY}\r\n"))).await;
    let (request, mut far) = vendor.called().await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", &target["/p/openai".len()..]));
    let (bearer, host) = (format!("Bearer {PROVIDER_KEY}"), format!("127.0.0.1:{}", vendor.port));
    let want = [
        ("accept-encoding", "identity"),
        ("authorization", bearer.as_str()),
        ("connection", "Upgrade"),
        ("host", host.as_str()),
        ("openai-beta", "realtime=v1"),
        ("origin", "https://app.example"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
        ("upgrade", "websocket"),
        ("user-agent", "Browser/1.0"),
    ];
    assert_eq!(sorted(&request.headers), want);
    let more = "Sec-WebSocket-Extensions: permessage-deflate\r\nX-Request-Id: req_1\r\nSet-Cookie: a=b\r\n\
                Alt-Svc: h3=\":443\"\r\nX-Aulos-Origin: aulos\r\nKeep-Alive: timeout=5\r\n\r\n";
    far.send(AGREED.replace("\r\n\r\n", &format!("\r\n{more}"))).await;
    let answer = near.answer().await;
    let id = answer.header("x-aulos-request-id").expect("every answer has one").to_owned();
    let got: Vec<_> = sorted(&answer.headers).into_iter().filter(|(name, _)| *name != "date").collect();
    let want = [
        ("connection", "Upgrade"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("upgrade", "websocket"),
        ("x-aulos-attempts", "1"),
        ("x-aulos-origin", "provider"),
        ("x-aulos-provider", "openai"),
        ("x-aulos-request-id", id.as_str()),
        ("x-request-id", "req_1"),
    ];
    assert_eq!((answer.status, &got[..]), (101, &want[..]));
}

/// Upgrade is offered in any case, with other things beside it.
#[tokio::test]
async fn every_spelling_of_the_offer_is_understood() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for (connection, upgrade) in [
        ("Upgrade", "websocket"),
        ("keep-alive, Upgrade", "WebSocket"),
        ("UPGRADE", "WEBSOCKET"),
        ("upgrade,", "websocket"),
    ] {
        let mut near = Line::connect(&gateway).await;
        let head = asking(REALTIME, "")
            .replace("Connection: Upgrade", &format!("Connection: {connection}"))
            .replace("Upgrade: websocket", &format!("Upgrade: {upgrade}"));
        near.send(head).await;
        let (request, mut far) = vendor.called().await;
        assert_eq!(request.header("upgrade"), Some("websocket"), "{connection} {upgrade}");
        assert_eq!(request.header("connection"), Some("Upgrade"), "{connection} {upgrade}");
        far.send(AGREED).await;
        assert_eq!(near.answer().await.status, 101, "{connection} {upgrade}");
    }
}

#[tokio::test]
async fn a_sub_protocol_that_is_a_credential_is_replaced() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    let bearer = format!("Authorization: Bearer {KEY}\r\n");
    let insecure = format!("openai-insecure-api-key.{KEY}");
    for (label, lines, upstream, chosen, told) in [
        (
            "OpenAI's",
            format!("Sec-WebSocket-Protocol: realtime, {insecure}, openai-beta.realtime-v1\r\n"),
            Some("realtime, openai-beta.realtime-v1"),
            Some("realtime"),
            Some("realtime"),
        ),
        (
            "OpenAI's, with an account",
            format!("Sec-WebSocket-Protocol: realtime, {insecure}, openai-organization.o, openai-project.p\r\n"),
            Some("realtime"),
            Some("realtime"),
            Some("realtime"),
        ),
        ("Deepgram's", format!("Sec-WebSocket-Protocol: token, {KEY}\r\n"), None, None, Some("token")),
        ("a bearer", format!("Sec-WebSocket-Protocol: bearer,{KEY}\r\n"), None, None, Some("bearer")),
        (
            "on two lines",
            format!("Sec-WebSocket-Protocol: token\r\nSec-WebSocket-Protocol: {KEY}\r\n"),
            None,
            None,
            Some("token"),
        ),
        (
            // It is never said back: heads of answers are what others log.
            "the credential alone",
            format!("Sec-WebSocket-Protocol: {insecure}\r\n"),
            None,
            None,
            None,
        ),
        (
            "none at all",
            format!("{bearer}Sec-WebSocket-Protocol: chat, superchat\r\n"),
            Some("chat, superchat"),
            Some("superchat"),
            Some("superchat"),
        ),
        (
            "a vendor that does not choose",
            format!("{bearer}Sec-WebSocket-Protocol: chat\r\n"),
            Some("chat"),
            None,
            None,
        ),
        ("nothing offered", bearer.clone(), None, None, None),
    ] {
        let mut near = Line::connect(&gateway).await;
        near.send(bare(REALTIME, &lines)).await;
        let (request, mut far) = vendor.called().await;
        assert_eq!(request.header("sec-websocket-protocol"), upstream, "{label}");
        let bearer = format!("Bearer {PROVIDER_KEY}");
        assert_eq!(request.header("authorization"), Some(bearer.as_str()), "{label}");
        assert!(!format!("{request:?}").contains(KEY), "{label}: {request:?}");
        let line = chosen.map_or(String::new(), |chosen| format!("Sec-WebSocket-Protocol: {chosen}\r\n"));
        far.send(AGREED.replace("\r\n\r\n", &format!("\r\n{line}\r\n"))).await;
        let answer = near.answer().await;
        assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, told), "{label}");
    }
}

#[tokio::test]
async fn a_key_in_the_query_is_taken_out_of_it() {
    let mut vendor = Far::start().await;
    let gateway = Gateway::spawn(conf(vendor.port)).await;
    for (target, upstream) in [
        ("/p/openai/v1/realtime?model=m&key=KEY", "/v1/realtime?model=m"),
        ("/p/openai/v1/realtime?token=KEY&a=%2f&&b", "/v1/realtime?a=%2f&&b"),
        ("/p/openai/v1/realtime?api-key=KEY", "/v1/realtime"),
        ("/p/openai/v1/realtime?t%6fken=KEY&key=KEY", "/v1/realtime"),
        ("/p/openai/listen?key=KEY", "/v1/listen"),
    ] {
        let mut near = Line::connect(&gateway).await;
        near.send(bare(&target.replace("KEY", KEY), "")).await;
        let (request, mut far) = vendor.called().await;
        assert_eq!(request.target, upstream, "{target}");
        let bearer = format!("Bearer {PROVIDER_KEY}");
        assert_eq!(request.header("authorization"), Some(bearer.as_str()), "{target}");
        assert!(!format!("{request:?}").contains(KEY), "{target}: {request:?}");
        far.send(AGREED).await;
        let answer = near.answer().await;
        assert_eq!(answer.status, 101, "{target}");
        drop((near, far));
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!(audit["auth"], "query", "{audit}");
    }
}

/// Native clients of each vendor speak to their own path, and the credential stands where the vendor looks for it.
#[tokio::test]
async fn each_vendor_gets_its_credential_in_its_own_place() {
    let mut vendor = Far::start().await;
    let port = vendor.port;
    let table = |name: &str, kind: &str, more: &str| {
        let base = format!("base_url = \"http://127.0.0.1:{port}\"\nkeys = [\"${{PROVIDER_KEY}}\"]");
        format!("[providers.{name}]\nkind = \"{kind}\"\n{base}\n{more}\n")
    };
    let key = format!("[keys.test]\nsha256 = \"{}\"\npassthrough = true\n", sha256(KEY));
    let conf = Conf::new()
        .with(&table("deepgram", "deepgram", ""))
        .with(&table("elevenlabs", "elevenlabs", ""))
        .with(&table("other", "http", "credential = { query = \"sign\" }"))
        .keys(&key);
    let gateway = Gateway::spawn(conf).await;
    let (token, query) = (format!("Token {PROVIDER_KEY}"), format!("?sign={PROVIDER_KEY}"));
    for (path, target, name, value) in [
        ("/p/deepgram/v1/listen", "/v1/listen", "authorization", Some(token.as_str())),
        ("/p/elevenlabs/v1/stream-input", "/v1/stream-input", "xi-api-key", Some(PROVIDER_KEY)),
        ("/p/other/socket", &format!("/socket{query}"), "authorization", None),
    ] {
        let mut near = Line::connect(&gateway).await;
        near.send(asking(path, "")).await;
        let (request, mut far) = vendor.called().await;
        assert_eq!((request.target.as_str(), request.header(name)), (target, value), "{path}");
        let names: Vec<_> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
        let credentials =
            names.iter().filter(|name| ["authorization", "xi-api-key", "x-api-key"].contains(name)).count();
        assert_eq!(credentials, usize::from(value.is_some()), "{path}: {names:?}");
        far.send(AGREED).await;
        assert_eq!(near.answer().await.status, 101, "{path}");
    }
}

#[tokio::test]
async fn a_host_name_leads_to_its_provider() {
    let mut vendor = Far::start().await;
    let place =
        format!("base_url = \"http://127.0.0.1:{}/v1\"\n[hosts]\n\"api.example.com\" = \"openai\"", vendor.port);
    let gateway = Gateway::spawn(peers(&place)).await;
    let mut near = Line::connect(&gateway).await;
    near.send(asking("/v1/realtime", "").replace("Host: aulos", "Host: API.example.com:8080")).await;
    let (request, mut far) = vendor.called().await;
    assert_eq!(request.target, "/v1/realtime");
    assert_eq!(request.header("host"), Some(format!("127.0.0.1:{}", vendor.port).as_str()));
    far.send(AGREED).await;
    assert_eq!(near.answer().await.status, 101);
}
