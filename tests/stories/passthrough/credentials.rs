//! The caller's key stays here, in whatever place it came; the provider's is sent once, where the provider looks for it.

use super::{PATH, ask, conf, echo, key, provider, raw};
use crate::support::client::post;
use crate::support::gateway::scratch;
use crate::support::http2::{self, Http2, LISTEN, issue};
use crate::support::vendor::Received;
use crate::support::{Conf, Gateway, KEY, PROVIDER_KEY, Vendor};

/// Keys with bytes that look otherwise in base64 and in a URL.
const CALLER: &str = "omx/live+secret==key";
const CALLER_IN_A_URL: &str = "omx%2Flive%2Bsecret%3D%3Dkey";
const OURS: &str = "sk-provider/secret+0123==";
const OURS_IN_A_URL: &str = "sk-provider%2Fsecret%2B0123%3D%3D";
/// The caller's, in every form in which it would be a leak.
const LEAKS: [&str; 4] = [CALLER, "b214L2xpdmUrc2VjcmV0PT1rZXk", CALLER_IN_A_URL, "omx%2flive%2bsecret%3d%3dkey"];

/// Every place of a key: header lines, and a query.
const PLACES: &[(&str, &str)] = &[
    ("Authorization: Bearer KEY\r\n", ""),
    ("authorization: bEaReR  KEY\r\n", ""),
    ("Authorization: Token KEY\r\n", ""),
    ("Authorization: KEY\r\n", ""),
    ("Api-Key: KEY\r\n", ""),
    ("X-Api-Key: KEY\r\n", ""),
    ("Xi-Api-Key: KEY\r\n", ""),
    ("X-Goog-Api-Key: KEY\r\n", ""),
    ("", "key=CODED"),
    ("", "token=CODED"),
    ("", "api-key=CODED"),
    ("", "api_key=CODED"),
    ("", "access_token=CODED"),
    ("", "xi-api-key=CODED"),
    ("", "k%65y=CODED"),
    ("", "a=1&key=CODED&b=2"),
    ("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.KEY\r\n", ""),
    ("Sec-WebSocket-Protocol: token, KEY\r\n", ""),
    // All of them the same.
    ("Authorization: Bearer KEY\r\nX-Api-Key: KEY\r\nXi-Api-Key: KEY\r\nApi-Key: KEY\r\n", "key=CODED&token=CODED"),
    ("X-Goog-Api-Key: KEY\r\nX-Goog-Api-Key: KEY\r\n", "key=CODED&key=CODED"),
];

/// Providers, and the place where each of them looks for its key.
const PROVIDERS: &[(&str, &str, &str, Place)] = &[
    ("openai", "openai", "", Place::Header("authorization", "Bearer ")),
    ("elevenlabs", "elevenlabs", "", Place::Header("xi-api-key", "")),
    ("deepgram", "deepgram", "", Place::Header("authorization", "Token ")),
    ("azure", "azure", "", Place::Header("api-key", "")),
    ("http", "http", "", Place::Header("authorization", "Bearer ")),
    ("bare", "http", "credential = { header = \"X-Own-Key\" }", Place::Header("x-own-key", "")),
    ("odd", "openai", "credential = { header = \"X-Own\", scheme = \"Odd\" }", Place::Header("x-own", "Odd ")),
    ("google", "http", "credential = { query = \"key\" }", Place::Query("key")),
    ("asked", "http", "credential = { query = \"own_key\" }", Place::Query("own_key")),
];

#[derive(Debug, Clone, Copy)]
enum Place {
    /// A header, and what stands there before the key.
    Header(&'static str, &'static str),
    /// A parameter, as it stands in a query.
    Query(&'static str),
}

fn every_provider(vendor: &Vendor) -> Conf {
    let keys = key("test", CALLER, "passthrough = true");
    PROVIDERS.iter().fold(Conf::new().keys(&keys).env("OURS", OURS), |conf, (name, kind, lines, _)| {
        conf.with(&provider(name, kind, vendor.port, &format!("keys = [\"${{OURS}}\"]\n{lines}")))
    })
}

/// Filled in, as one goes over the wire.
fn filled(text: &str) -> String {
    text.replace("KEY", CALLER).replace("CODED", CALLER_IN_A_URL)
}

/// Everything that a provider was sent, as text.
fn everything(sent: &Received) -> String {
    let lines: String = sent.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("{} {}\n{lines}\n{}", sent.method, sent.target, sent.text())
}

/// What a provider was sent holds its own credential once, where it belongs, and nobody else's.
fn has_only_its_own(sent: &Received, place: Place, label: &str) {
    let all = everything(sent);
    for leak in LEAKS {
        assert!(!all.contains(leak), "{label}: {leak} in {all}");
    }
    let (raw, coded) = (all.matches(OURS).count(), all.matches(OURS_IN_A_URL).count());
    match place {
        Place::Header(name, before) => {
            assert_eq!(sent.header(name), Some(format!("{before}{OURS}").as_str()), "{label}");
            assert_eq!((raw, coded), (1, 0), "{label}: {all}");
        }
        Place::Query(name) => {
            let pair = format!("{name}={OURS_IN_A_URL}");
            assert!(sent.target.ends_with(&format!("?{pair}")) || sent.target.ends_with(&format!("&{pair}")), "{all}");
            assert_eq!((raw, coded), (0, 1), "{label}: {all}");
        }
    }
    let own = if let Place::Header(name, _) = place { name } else { "" };
    for name in ["authorization", "api-key", "x-api-key", "xi-api-key", "x-goog-api-key"] {
        assert!(name == own || sent.header(name).is_none(), "{label}: {name} in {all}");
    }
}

#[tokio::test]
async fn a_key_in_any_place_is_accepted_and_goes_no_further() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(every_provider(&vendor)).await;
    let mut count = 0;
    for (name, _, _, own) in PROVIDERS {
        for (lines, query) in PLACES {
            let label = format!("{name}: {lines}{query}");
            let (lines, query) = (filled(lines), filled(query));
            let mark = if query.is_empty() { "" } else { "?" };
            let head = format!("POST /p/{name}/v1/x{mark}{query} HTTP/1.1\r\nHost: aulos\r\nConnection: close\r\n");
            let answer = raw(&gateway, format!("{head}{lines}Content-Length: 2\r\n\r\nhi")).await;
            assert_eq!(answer.status, 200, "{label}: {answer:?}");
            count += 1;
            let sent = vendor.received(count).await.pop().expect("sent");
            has_only_its_own(&sent, *own, &label);
            assert_eq!(sent.text(), "hi", "{label}");
            if query.starts_with("a=1") {
                assert!(sent.target.starts_with("/v1/x?a=1&b=2"), "{label}: {}", sent.target);
            } else if !matches!(own, Place::Query(_)) {
                assert_eq!(sent.target, "/v1/x", "{label}");
            }
        }
    }
    assert!(gateway.records("audit").iter().all(|audit| audit["key"] == "test"));
}

#[tokio::test]
async fn over_http_2_a_key_goes_no_further_either() {
    let vendor = echo().await;
    let dir = scratch();
    let certificate = issue(&dir);
    let gateway = Gateway::spawn_in(&dir, every_provider(&vendor).listen(LISTEN)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let protocol = format!("openai-insecure-api-key.{CALLER}");
    let bearer = format!("Bearer {CALLER}");
    let mut count = 0;
    for (header, query) in [
        (Some(("authorization", bearer.as_str())), ""),
        (Some(("xi-api-key", CALLER)), ""),
        (Some(("sec-websocket-protocol", protocol.as_str())), ""),
        (None, "?key=CODED"),
    ] {
        let headers: Vec<_> = header.into_iter().collect();
        let path = filled(&format!("/p/openai/v1/x{query}"));
        let answer = client.ask(http2::request(http::Method::POST, &path, &headers), "hi").await;
        assert_eq!(answer.status, 200, "{header:?} {query}: {answer:?}");
        count += 1;
        let sent = vendor.received(count).await.pop().expect("sent");
        has_only_its_own(&sent, PROVIDERS[0].3, &format!("{header:?} {query}"));
    }
}

/// A client's own word in the place of the provider's credential.
#[tokio::test]
async fn a_client_cannot_say_the_providers_credential() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(every_provider(&vendor)).await;
    for (count, (name, lines, query)) in [
        ("bare", "X-Own-Key: mine\r\nX-Own-Key: mine\r\n", ""),
        ("odd", "X-Own: Odd mine\r\n", ""),
        ("asked", "", "?own_key=mine"),
        ("asked", "", "?a=1&own%5Fkey=mine&own_key"),
    ]
    .into_iter()
    .enumerate()
    {
        let head = format!("GET /p/{name}/v1/x{query} HTTP/1.1\r\nHost: aulos\r\nConnection: close\r\n");
        let answer = raw(&gateway, format!("{head}Authorization: Bearer {CALLER}\r\n{lines}\r\n")).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let sent = vendor.received(count + 1).await.pop().expect("sent");
        let place = PROVIDERS.iter().find(|(known, ..)| *known == name).expect("known").3;
        has_only_its_own(&sent, place, name);
        assert!(!everything(&sent).contains("mine"), "{name}: {sent:?}");
    }
}

#[tokio::test]
async fn what_is_between_the_client_and_us_does_not_go_up() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let own = [
        "Cookie: session=1",
        "Proxy-Authorization: Basic eDp5",
        "Proxy-Connection: keep-alive",
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Host: elsewhere.example",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Anything: 1",
        "X-Real-Ip: 10.0.0.1",
        "Forwarded: for=10.0.0.1;host=elsewhere.example",
        "X-Aulos-User-Path: /a",
        "X-Aulos-Provider: another",
        "X-Aulos-Anything: 1",
        "X-Gomodel-User-Path: /a",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X-T",
        "X-Hop: 1",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "Upgrade: h2c",
    ];
    for connection in ["X-Hop, close, HTTP2-Settings, Upgrade", "x-hop,te ,close,,http2-settings"] {
        let lines: String = own.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("GET {PATH} HTTP/1.1\r\nHost: aulos\r\nX-Api-Key: {KEY}\r\nConnection: {connection}\r\n");
        let answer = raw(&gateway, format!("{head}{lines}X-Stays: 1\r\n\r\n")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for sent in vendor.requests() {
        for line in own {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            assert_eq!(sent.header(&name), None, "{sent:?}");
        }
        assert!(!sent.header("connection").is_some_and(|value| value.to_ascii_lowercase().contains("hop")), "{sent:?}");
        assert_eq!(sent.header("x-stays"), Some("1"));
        assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
    }
}

#[tokio::test]
async fn what_is_no_key_and_two_that_differ_are_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let bearer = "Authorization: Bearer <KEY>\r\n";
    let rows = [
        ("", ""),
        ("Authorization: Bearer wrong\r\n", ""),
        ("Authorization: Bearer OMX_LIVE_TEST_KEY\r\n", ""),
        ("Authorization: Bearer <KEY>x\r\n", ""),
        ("Authorization: Basic <KEY>\r\n", ""),
        ("Authorization: Bearer <KEY>, Bearer <KEY>\r\n", ""),
        ("Authorization: Bearer <PROVIDER>\r\n", ""),
        ("Xi-Api-Key: <PROVIDER>\r\n", ""),
        ("Cookie: key=<KEY>\r\n", ""),
        ("Proxy-Authorization: Bearer <KEY>\r\n", ""),
        ("X-Aulos-Key: <KEY>\r\n", ""),
        ("", "?key=wrong"),
        ("", "?KEY=<KEY>"),
        ("", "?keys=<KEY>"),
        ("", "?key=<PROVIDER>"),
        ("", "#key=<KEY>"),
        (bearer, "?key=wrong"),
        (bearer, "?token="),
        (bearer, "?api-key=<PROVIDER>"),
        ("", "?key=<KEY>&token=wrong"),
        ("", "?key=<KEY>&key=wrong"),
        ("Authorization: Bearer <KEY>\r\nAuthorization: Bearer wrong\r\n", ""),
        ("Authorization: Bearer wrong\r\nAuthorization: Bearer <KEY>\r\n", ""),
        ("Authorization: Bearer <KEY>\r\nXi-Api-Key: wrong\r\n", ""),
        ("Authorization: Bearer <KEY>\r\nX-Goog-Api-Key: <PROVIDER>\r\n", ""),
        ("Api-Key: <KEY>\r\nX-Api-Key: wrong\r\n", ""),
        ("Authorization: Bearer <KEY>\r\nSec-WebSocket-Protocol: token, wrong\r\n", ""),
    ];
    for (lines, query) in rows {
        let label = format!("{lines}{query}");
        let fill = |text: &str| text.replace("<KEY>", KEY).replace("<PROVIDER>", PROVIDER_KEY);
        let lines = fill(lines);
        let head = format!("GET {PATH}{} HTTP/1.1\r\nHost: aulos\r\nConnection: close\r\n{lines}\r\n", fill(query));
        let answer = gateway.client().await.send(head).await.answer().await;
        let want = if query.starts_with('#') { (400, "invalid_request") } else { (401, "invalid_api_key") };
        assert_eq!(answer.refusal(), (want.0, want.1.to_owned()), "{label}: {answer:?}");
        assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
        assert_eq!(answer.header("www-authenticate").is_some(), want.0 == 401, "{label}");
        assert!(!answer.text().contains(KEY), "{label}: {answer:?}");
    }
    assert_eq!(vendor.connections(), 0);
}

/// What is accepted below `/p/` is not accepted elsewhere.
#[tokio::test]
async fn a_key_in_the_query_is_accepted_nowhere_else() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let speech = r#"{"model":"openai/tts-1","input":"Hello","voice":"alloy"}"#;
    for query in ["key", "token", "api-key", "api_key", "access_token", "xi-api-key", "tok%65n"] {
        for path in ["/v1/audio/speech", "/api/v1/audio/speech", "/openai/deployments/m/audio/speech"] {
            let sent = post(&format!("{path}?{query}={KEY}"), &[], speech);
            let bearer = format!("Authorization: Bearer {KEY}\r\n");
            for sent in [sent.clone(), sent.replacen(&bearer, "", 1)] {
                let answer = gateway.client().await.send(sent).await.answer().await;
                assert_eq!(answer.refusal(), (401, "invalid_api_key".into()), "{path}?{query}");
            }
        }
    }
    assert_eq!(vendor.connections(), 0);
    let answer = raw(&gateway, ask(&format!("GET {PATH}?key={KEY}"), "", "")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// On the endpoints of the gateway's own, too.
#[tokio::test]
async fn a_client_cannot_sign_a_speech_request_in_the_query() {
    let vendor = echo().await;
    let signed = "keys = [\"${OURS}\"]\ncredential = { query = \"sig\" }";
    let conf = Conf::new().keys(&key("test", KEY, "passthrough = true")).env("OURS", OURS).with(&provider(
        "openai",
        "openai",
        vendor.port,
        signed,
    ));
    let gateway = Gateway::spawn(conf).await;
    let speech = r#"{"model":"openai/tts-1","input":"Hello","voice":"alloy"}"#;
    for (count, (query, kept)) in [
        ("", ""),
        ("?sig=mine", ""),
        ("?sig=mine&sig=mine", ""),
        ("?s%69g=mine", ""),
        ("?sig", ""),
        ("?a=1&sig=mine&b=%2f", "a=1&b=%2f&"),
        ("?signature=1", "signature=1&"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer =
            gateway.client().await.send(post(&format!("/v1/audio/speech{query}"), &[], speech)).await.answer().await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        let sent = vendor.received(count + 1).await.pop().expect("sent");
        let (_, asked) = sent.target.split_once('?').expect("a query");
        assert_eq!(asked, format!("{kept}sig={OURS_IN_A_URL}"), "{query}");
        assert!(!everything(&sent).contains("mine"), "{query}: {sent:?}");
    }
}
