//! Which keys may pass what through, and how a refusal is said to the clients of each provider.

use serde_json::{Value, json};

use super::{conf, echo, key, provider};
use crate::support::{Answer, Conf, Gateway, KEY, Vendor};

const PROVIDERS: [(&str, &str); 4] =
    [("openai", "openai"), ("elevenlabs", "elevenlabs"), ("deepgram", "deepgram"), ("other", "http")];

fn providers(vendor: &Vendor, keys: &str) -> Conf {
    PROVIDERS.iter().fold(Conf::new().keys(keys), |conf, (name, kind)| {
        conf.with(&provider(name, kind, vendor.port, "keys = [\"${PROVIDER_KEY}\"]"))
    })
}

async fn get(gateway: &Gateway, path: &str, secret: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {secret}\r\n\r\n");
    gateway.client().await.send(head).await.answer().await
}

#[tokio::test]
async fn a_key_may_pass_through_what_it_says() {
    let vendor = echo().await;
    let rows = [
        ("", "/p/openai/v1/x", false),
        ("passthrough = false", "/p/openai/v1/x", false),
        ("passthrough = true", "/p/openai/v1/x", true),
        ("passthrough = true", "/p/other", true),
        // Lists of models say nothing of what is passed through, but for whole providers.
        ("passthrough = true\nallow = [\"openai/\"]", "/p/openai/v1/x", true),
        ("passthrough = true\nallow = [\"openai/\"]", "/p/deepgram/v1/x", false),
        ("passthrough = true\nallow = [\"openai/tts-1\"]", "/p/openai/v1/audio/speech", false),
        ("passthrough = true\nallow = [\"/\"]", "/p/openai/v1/x", true),
        ("allow = [\"openai/\"]", "/p/openai/v1/x", false),
        // Globs.
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices\"]", "/p/openai/v1/voices", true),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices\"]", "/p/openai/v1/voices?page=2", true),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices\"]", "/p/openai/v1/voices/", false),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices\"]", "/p/openai/v1/Voices", false),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices\"]", "/p/openai/v1/voices/a", false),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices\"]", "/p/deepgram/v1/voices", false),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices/*\"]", "/p/openai/v1/voices/a", true),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices/*\"]", "/p/openai/v1/voices/a%2fb", false),
        ("passthrough = true\npassthrough_allow = [\"openai/v1/voices/*\"]", "/p/openai/v1/voices/", false),
        ("passthrough = true\npassthrough_allow = [\"openai/**\"]", "/p/openai/v1/a/b/c", true),
        ("passthrough = true\npassthrough_allow = [\"*/v1/voices\"]", "/p/other/v1/voices", true),
        ("passthrough = true\npassthrough_allow = [\"openai/**\"]\nallow = [\"m\"]", "/p/openai/v1/x", true),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices/**\"]", "/p/openai/v1/x", true),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices/**\"]", "/p/openai/v1/voices", false),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices/**\"]", "/p/openai/v1/voices/a", false),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices/**\"]", "/p/openai/v1/Voices/a", false),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices/**\"]", "/p/openai/v1/%76oices/a", false),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices\"]", "/p/openai/v1/voices/", false),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices\"]", "/p/openai/v1/voices;x=y", false),
        ("passthrough = true\npassthrough_deny = [\"openai/v1/voices\"]", "/p/openai/v1%2fvoices", false),
        (
            "passthrough = true\npassthrough_allow = [\"openai/**\"]\npassthrough_deny = [\"openai/v1/voices\"]",
            "/p/openai/v1/voices",
            false,
        ),
        (
            "passthrough = true\npassthrough_allow = [\"openai/**\"]\npassthrough_deny = [\"openai/v1/voices\"]",
            "/p/openai/v1/x",
            true,
        ),
    ];
    let secret = |n: usize| format!("omx_live_key_{n}");
    let keys: String =
        rows.iter().enumerate().map(|(n, (lines, ..))| key(&format!("k{n}"), &secret(n), lines)).collect();
    let gateway = Gateway::spawn(providers(&vendor, &keys)).await;
    let mut served = 0;
    for (n, (lines, path, may)) in rows.iter().enumerate() {
        let answer = get(&gateway, path, &secret(n)).await;
        if *may {
            served += 1;
            assert_eq!(answer.status, 200, "{lines}: {path}: {answer:?}");
            continue;
        }
        assert_eq!(answer.status, 403, "{lines}: {path}: {answer:?}");
        let audit = gateway.record_of("audit", &answer).await;
        let name = format!("k{n}");
        assert_eq!((&audit["error"], &audit["key"]), (&"forbidden".into(), &name.as_str().into()), "{lines}: {path}");
        assert_eq!(audit["attempts"], json!([]), "{lines}: {path}");
    }
    assert_eq!(vendor.requests().len(), served);
    assert_eq!(gateway.recorded("usage", served).await.len(), served);
}

/// The base URL's own path is what a rule is about, not what is left of it when a version stands twice.
#[tokio::test]
async fn a_rule_is_about_the_path_at_the_provider() {
    let vendor = echo().await;
    let keys = key("test", KEY, "passthrough = true\npassthrough_deny = [\"openai/v1/voices\"]");
    let gateway = Gateway::spawn(conf(&vendor).keys(&keys)).await;
    for (path, status) in [
        ("/p/openai/v1/voices", 403),
        ("/p/openai/voices", 403),
        ("/p/openai/v1/v1/voices", 200),
        ("/p/openai/v1/models", 200),
    ] {
        assert_eq!(get(&gateway, path, KEY).await.status, status, "{path}");
    }
    let up: Vec<_> = vendor.requests().into_iter().map(|sent| sent.target).collect();
    assert_eq!(up, ["/v1/v1/voices", "/v1/models"]);
}

#[tokio::test]
async fn the_lists_of_a_path_are_heard_too() {
    let vendor = echo().await;
    let keys = key("test", KEY, "passthrough = true\nuser_path = \"/team\"");
    let conf = providers(&vendor, &keys).with("[paths.\"/team\"]\nallow = [\"openai/\"]");
    let gateway = Gateway::spawn(conf).await;
    for (path, status) in [("/p/openai/v1/x", 200), ("/p/deepgram/v1/x", 403)] {
        assert_eq!(get(&gateway, path, KEY).await.status, status, "{path}");
    }
}

/// What a client of this kind of provider reads of a refusal: its code, and a text.
fn complaint(kind: &str, answer: &Answer) -> (String, String) {
    let body = answer.json();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| unreachable!("{kind}: {body}")).to_owned();
    match kind {
        "elevenlabs" => (text(&body["detail"]["status"]), text(&body["detail"]["message"])),
        "deepgram" => {
            assert_eq!(body["request_id"], answer.header("x-aulos-request-id").unwrap_or_default());
            (text(&body["err_code"]).to_lowercase(), text(&body["err_msg"]))
        }
        _ => (answer.code(), text(&body["error"]["message"])),
    }
}

#[tokio::test]
async fn a_refusal_is_said_as_the_providers_clients_expect_it() {
    let vendor = Vendor::raw("").await;
    let keys = key("test", KEY, "passthrough = true") + &key("poor", "omx_poor", "");
    let gateway = Gateway::spawn(providers(&vendor, &keys)).await;
    for (name, kind) in PROVIDERS {
        for (secret, path, want) in [
            ("wrong", "v1/x", (401, "invalid_api_key")),
            ("omx_poor", "v1/x", (403, "forbidden")),
            (KEY, "v1/x?key=another", (401, "invalid_api_key")),
            (KEY, "v1/../x", (400, "invalid_path")),
            (KEY, "v1/x", (502, "upstream_unavailable")),
        ] {
            let label = format!("{name}, {path}, {}", want.1);
            let answer = get(&gateway, &format!("/p/{name}/{path}"), secret).await;
            let (code, message) = complaint(kind, &answer);
            assert_eq!((answer.status, code.as_str()), want, "{label}: {answer:?}");
            assert!(message.ends_with('.') && !message.contains(KEY), "{label}: {message}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{label}");
            assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
        }
    }
}

#[tokio::test]
async fn a_refusal_of_a_head_has_no_body() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let mut client = gateway.client().await;
    client.send("HEAD /p/openai/v1/x HTTP/1.1\r\nHost: aulos\r\nX-Api-Key: wrong\r\nConnection: close\r\n\r\n").await;
    assert_eq!(client.head().await.status, 401);
    assert_eq!(client.rest().await, b"");
    assert_eq!(vendor.connections(), 0);
}

/// Whoever writes a rule may think of the path that clients ask for, or of the one at the provider: what is forbidden is
/// so in both.
#[tokio::test]
async fn what_is_forbidden_is_so_as_it_is_asked_for_and_as_it_is_at_the_provider() {
    let vendor = echo().await;
    let table = provider("another", "http", vendor.port, "keys = [\"${PROVIDER_KEY}\"]");
    let base = |path: &str| table.replace(&format!(":{}\"", vendor.port), &format!(":{}{path}\"", vendor.port));
    for (path, deny, asked, status) in [
        ("/api", "another/admin/**", "/p/another/admin/x", 403),
        ("/api", "another/api/admin/**", "/p/another/admin/x", 403),
        ("/api", "another/admin/**", "/p/another/%61dmin/x", 403),
        ("/api", "another/admin/**", "/p/another/Admin", 403),
        ("/api", "another/admin/**", "/p/another/other/x", 200),
        ("/api/v1", "another/keys", "/p/another/keys", 403),
        ("/api/v1", "another/api/v1/keys", "/p/another/keys", 403),
        ("/api/v1", "another/keys", "/p/another/keys/x", 200),
        ("/v1", "another/keys", "/p/another/keys", 403),
        ("/v1", "another/v1/keys", "/p/another/keys", 403),
        ("/v1", "another/v1/keys", "/p/another/v1/keys", 403),
        ("", "another/keys", "/p/another/keys", 403),
    ] {
        let keys = key("test", KEY, &format!("passthrough = true\npassthrough_deny = [\"{deny}\"]"));
        let gateway = Gateway::spawn(Conf::new().keys(&keys).with(&base(path))).await;
        let before = vendor.requests().len();
        assert_eq!(get(&gateway, asked, KEY).await.status, status, "{deny}, at {path}: {asked}");
        assert_eq!(vendor.requests().len() - before, usize::from(status == 200), "{deny}, at {path}: {asked}");
    }
}

/// Some servers decode twice, take a backslash for a slash, or decode before they look for the end of a path.
#[tokio::test]
async fn what_a_provider_may_read_as_another_path_is_judged_as_that_too() {
    let vendor = echo().await;
    let voices = "passthrough_allow = [\"openai/v1/voices/*\"]";
    let keys = "passthrough_deny = [\"openai/v1/keys\"]";
    for (rule, path, is_served) in [
        (voices, "/p/openai/v1/voices/a", true),
        (voices, "/p/openai/v1/voices/a%20b", true),
        (voices, "/p/openai/v1/voices/a%2fb", false),
        (voices, "/p/openai/v1/voices/a%252fb", false),
        (voices, "/p/openai/v1/voices/a%252Fsettings%252Fedit", false),
        (voices, "/p/openai/v1/voices/a%5cb", false),
        (voices, "/p/openai/v1/voices/a%255cb", false),
        (keys, "/p/openai/v1/keys2", true),
        (keys, "/p/openai/v1/keys", false),
        (keys, "/p/openai/v1/keys%3fa", false),
        (keys, "/p/openai/v1/keys%3Fa=b", false),
        (keys, "/p/openai/v1/keys%23a", false),
        (keys, "/p/openai/v1/keys%253fa", false),
        (keys, "/p/openai/v1%252fkeys", false),
    ] {
        let gateway =
            Gateway::spawn(conf(&vendor).keys(&key("test", KEY, &format!("passthrough = true\n{rule}")))).await;
        let before = vendor.requests().len();
        let status = get(&gateway, path, KEY).await.status;
        assert!(if is_served { status == 200 } else { [400, 403].contains(&status) }, "{rule}: {path}: {status}");
        assert_eq!(vendor.requests().len() - before, usize::from(is_served), "{rule}: {path}");
    }
}
