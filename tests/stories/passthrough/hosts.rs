//! Host names that stand for a provider, for clients that can be told a host and nothing else.

use super::{ask, conf, echo, provider, raw};
use crate::support::gateway::scratch;
use crate::support::http2::{Http2, LISTEN, issue};
use crate::support::{Answer, Conf, Gateway, KEY, PROVIDER_KEY, Vendor};

const HOSTS: &str = "[hosts]\n\"eleven.example.com\" = \"elevenlabs\"\n\"Deep.Example.com\" = \"deepgram\"\n\
                     \"localhost\" = \"deepgram\"\n";

/// Two providers with host names of their own, and `openai`, which has none.
fn hosted(eleven: &Vendor, deep: &Vendor, openai: &Vendor) -> Conf {
    let keys = "keys = [\"${PROVIDER_KEY}\"]";
    conf(openai)
        .with(&provider("elevenlabs", "elevenlabs", eleven.port, keys))
        .with(&provider("deepgram", "deepgram", deep.port, keys))
        .with(HOSTS)
}

async fn get(gateway: &Gateway, host: &str, target: &str) -> Answer {
    let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nXi-Api-Key: {KEY}\r\n\r\n");
    gateway.client().await.send(head).await.answer().await
}

#[tokio::test]
async fn a_host_name_stands_for_its_provider() {
    let (eleven, deep, openai) = (echo().await, echo().await, echo().await);
    let gateway = Gateway::spawn(hosted(&eleven, &deep, &openai)).await;
    let mut count = 0;
    for host in [
        "eleven.example.com",
        "eleven.example.com:80",
        "eleven.example.com:65535",
        "ELEVEN.Example.COM",
        "Eleven.example.com:8080",
        "eleven.example.com.",
        "eleven.example.com.:443",
    ] {
        // Whatever is a path of ours elsewhere is the provider's here.
        for path in [
            "/v1/text-to-speech/a?b=%2f&&c",
            "/",
            "/livez",
            "/readyz",
            "/v1/models",
            "/v1/audio/speech",
            "/p/openai/v1/models",
            "/p/elevenlabs/v1/x",
            "/p/",
            "/metrics",
            "/nowhere",
        ] {
            let answer = get(&gateway, host, path).await;
            let told = ["x-aulos-origin", "x-aulos-provider"].map(|name| answer.header(name));
            assert_eq!(
                (answer.status, told),
                (200, [Some("provider"), Some("elevenlabs")]),
                "{host} {path}: {answer:?}"
            );
            count += 1;
            let sent = eleven.received(count).await.pop().expect("sent");
            assert_eq!(sent.target, path, "{host}");
            assert_eq!(sent.header("host"), Some(format!("127.0.0.1:{}", eleven.port).as_str()), "{host}");
            assert_eq!(sent.header("xi-api-key"), Some(PROVIDER_KEY), "{host}");
            let usage = gateway.record_of("usage", &answer).await;
            let plain = path.split('?').next().unwrap_or_default();
            assert_eq!((&usage["op"], &usage["path"]), (&"passthrough".into(), &plain.into()), "{host}");
        }
    }
    for host in ["deep.example.com", "DEEP.example.com:1"] {
        assert_eq!(get(&gateway, host, "/v1/listen").await.header("x-aulos-provider"), Some("deepgram"), "{host}");
    }
    let absolute = get(&gateway, "deep.example.com", "http://deep.example.com/v1/listen").await;
    assert_eq!((absolute.status, deep.requests().pop().expect("sent").target.as_str()), (200, "/v1/listen"));
    assert_eq!((deep.requests().len(), openai.connections()), (3, 0));
}

#[tokio::test]
async fn other_hosts_are_as_they_were() {
    let (eleven, deep, openai) = (echo().await, echo().await, echo().await);
    let gateway = Gateway::spawn(hosted(&eleven, &deep, &openai)).await;
    for host in [
        "aulos",
        "example.com",
        "eleven.example.com.evil.example",
        "xeleven.example.com",
        "eleven",
        "eleven.example.com..",
        "eleven_example_com",
        "%65leven.example.com",
        "127.0.0.1",
        "[::1]",
    ] {
        assert_eq!(get(&gateway, host, "/livez").await.status, 200, "{host}");
        let models = get(&gateway, host, "/v1/models").await;
        assert_eq!((models.status, models.header("x-aulos-origin")), (200, Some("aulos")), "{host}");
        assert_eq!(get(&gateway, host, "/v1/text-to-speech/a").await.refusal(), (404, "unknown_url".into()), "{host}");
        let passed = get(&gateway, host, "/p/openai/v1/x").await;
        assert_eq!(passed.header("x-aulos-provider"), Some("openai"), "{host}");
    }
    // No header but the one that names the host.
    for line in
        ["X-Forwarded-Host: eleven.example.com", "Forwarded: host=eleven.example.com", "X-Host: eleven.example.com"]
    {
        let answer = raw(&gateway, ask("GET /v1/text-to-speech/a", &format!("{line}\r\n"), "")).await;
        assert_eq!(answer.status, 404, "{line}");
    }
    assert_eq!((eleven.connections(), deep.connections()), (0, 0));
}

#[tokio::test]
async fn a_host_name_opens_nothing_without_a_key_or_its_right() {
    let (eleven, deep, openai) = (echo().await, echo().await, echo().await);
    let keys = super::key("test", KEY, "passthrough = true\npassthrough_deny = [\"elevenlabs/v1/user\"]")
        + &super::key("poor", "omx_poor", "");
    let gateway = Gateway::spawn(hosted(&eleven, &deep, &openai).keys(&keys)).await;
    for (path, secret, want) in [
        ("/v1/voices", "wrong", (401, "invalid_api_key")),
        ("/livez", "wrong", (401, "invalid_api_key")),
        ("/v1/models", "omx_poor", (403, "forbidden")),
        ("/v1/user", KEY, (403, "forbidden")),
        ("/v1/%75ser", KEY, (403, "forbidden")),
        ("/v1/../x", KEY, (400, "invalid_path")),
        ("//evil/x", KEY, (400, "invalid_path")),
        ("/..%2fx", KEY, (400, "invalid_path")),
        ("/%00", KEY, (400, "invalid_path")),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: eleven.example.com\r\nXi-Api-Key: {secret}\r\n\r\n");
        let answer = gateway.client().await.send(head).await.answer().await;
        let body = answer.json();
        assert_eq!((answer.status, body["detail"]["status"].as_str()), (want.0, Some(want.1)), "{path}: {body}");
    }
    assert_eq!(eleven.connections(), 0);
}

#[tokio::test]
async fn over_http_2_the_authority_is_the_host() {
    let (eleven, deep, openai) = (echo().await, echo().await, echo().await);
    let dir = scratch();
    let certificate = issue(&dir);
    let gateway = Gateway::spawn_in(&dir, hosted(&eleven, &deep, &openai).listen(LISTEN)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    for (authority, path, want) in [
        ("eleven.example.com", "/v1/voices", Some("elevenlabs")),
        ("ELEVEN.example.com:443", "/livez", Some("elevenlabs")),
        ("localhost", "/v1/models", Some("deepgram")),
        ("other.example.com", "/v1/models", None),
    ] {
        let head = http::Request::get(format!("https://{authority}{path}")).header("x-api-key", KEY);
        let answer = client.ask(head.body(()).expect("a head"), "").await;
        assert_eq!((answer.status, answer.header("x-aulos-provider")), (200, want), "{authority}{path}: {answer:?}");
    }
}

/// The same name, written as one that is complete (RFC 1034 §3.1).
#[tokio::test]
async fn a_host_name_with_a_dot_at_its_end_is_found_with_and_without_it() {
    let vendor = echo().await;
    let conf = conf(&vendor).with("[hosts]\n\"eleven.example.com.\" = \"openai\"\n\"DEEP.example.com.\" = \"openai\"");
    let gateway = Gateway::spawn(conf).await;
    for host in [
        "eleven.example.com",
        "eleven.example.com.",
        "ELEVEN.example.com.:443",
        "deep.example.com",
        "deep.example.com.:80",
    ] {
        let answer = get(&gateway, host, "/v1/voices").await;
        assert_eq!((answer.status, answer.header("x-aulos-provider")), (200, Some("openai")), "{host}: {answer:?}");
    }
}
