//! Where a request goes is the operator's word alone: what could be read as another place is refused, and nothing of it
//! is forwarded.

use serde_json::json;

use super::{PATH, ask, conf, echo, provider, raw, saying, sized};
use crate::support::gateway::scratch;
use crate::support::http2::{self, Http2, KNOWN, LISTEN, issue};
use crate::support::{Answer, Gateway, KEY, Vendor};

const INVALID: (u16, &str) = (400, "invalid_path");
const UNKNOWN: (u16, &str) = (404, "unknown_provider");

/// Refused in every detail, with its record.
async fn refused(gateway: &Gateway, answer: &Answer, want: (u16, &str), label: &str) {
    assert_eq!(answer.refusal(), (want.0, want.1.to_owned()), "{label}: {answer:?}");
    assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    assert_eq!(answer.header("x-aulos-provider"), None, "{label}");
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{label}");
    let audit = gateway.record_of("audit", answer).await;
    assert_eq!((&audit["status"], &audit["error"]), (&want.0.into(), &want.1.into()), "{label}: {audit}");
    assert_eq!((&audit["end"], &audit["attempts"]), (&"refused".into(), &json!([])), "{label}: {audit}");
}

const BAD_PATHS: &[&str] = &[
    "/p/openai/v1/../x",
    "/p/openai/../openai/v1/x",
    "/p/../p/openai/v1/x",
    "/p/openai/..",
    "/p/openai/.",
    "/p/openai/v1/./x",
    "/p/openai/v1/%2e%2e/x",
    "/p/openai/v1/%2E./x",
    "/p/openai/v1/.%2e",
    "/p/openai/v1/%252e%252e/x",
    "/p/openai/v1/..;/x",
    "/p/openai/v1/..;x=y/x",
    "/p/openai/v1/..%3bx/x",
    "/p/openai/v1/;/x",
    "/p/openai/v1/..\\x",
    "/p/openai\\v1",
    "/p/openai/v1/a\\b",
    "/p/openai//v1/x",
    "/p/openai/v1//x",
    "/p//openai/v1/x",
    "/p/openai/v1/x//",
    "/p/openai/v1/%00",
    "/p/openai/v1/a%0d%0aX-Evil:%201",
    "/p/openai/v1/%0a",
    "/p/openai/v1/%7f",
    "/p/openai/v1/%c0%ae%c0%ae/x",
    "/p/openai/v1/%e0%80%ae",
    "/p/openai/v1/%80",
    "/p/openai/v1/%ff",
    "/p/openai/v1/a%2f..%2fb",
    "/p/openai/v1/..%2fx",
    "/p/openai/v1/a%2F%2e%2e",
    "/p/openai/v1/a%5c..%5cb",
    "/p/openai/v1/..%5Cx",
    "/p/openai/v1/%252e%252e%252fx",
    "/p/openai%2fv1/x",
    "/p/openai%2Fv1",
    "/p/openai%5cv1/x",
    "/p/..%2fopenai/v1",
    "/p/%2e%2e/v1",
    "/p/openai/%",
    "/p/openai/%zz",
    "/p/openai/a%2",
    "/p/openai/%u002e",
];

const NO_PROVIDERS: &[&str] = &[
    "/p/",
    "/p/nobody/v1/x",
    "/p/OpenAI/v1/x",
    "/p/OPENAI",
    "/p/openai./v1/x",
    "/p/openai.example/v1/x",
    "/p/openai@elsewhere/v1/x",
    "/p/openai:8080/v1/x",
    "/p/openai:/v1/x",
    "/p/elsewhere@openai/v1/x",
    "/p/open%61i/v1/x",
    "/p/openai%00/v1",
    "/p/openai;x/v1/x",
    "/p/openai%20/v1",
    "/p/127.0.0.1/v1/x",
    "/p/http:/elsewhere.example/x",
    "/p/http:%2f%2felsewhere.example/x",
    "/p/oрenai/v1/x",
];

#[tokio::test]
async fn an_ambiguous_path_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for path in BAD_PATHS {
        for (method, query) in [("GET", ""), ("POST", "?a=1")] {
            let label = format!("{method} {path}{query}");
            let answer = gateway.client().await.send(sized(&label, "", "hidden")).await.answer().await;
            refused(&gateway, &answer, INVALID, &label).await;
        }
    }
    assert_eq!((vendor.connections(), gateway.records("usage").len()), (0, 0));
}

#[tokio::test]
async fn an_unknown_provider_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for path in NO_PROVIDERS {
        // Not even a path where it has a byte that is no text, or a control byte.
        let want = match *path {
            "/p/openai%00/v1" | "/p/http:%2f%2felsewhere.example/x" => INVALID,
            path if !path.is_ascii() => (400, "invalid_request"),
            _ => UNKNOWN,
        };
        let answer = gateway.client().await.send(sized(&format!("POST {path}"), "", "hidden")).await.answer().await;
        refused(&gateway, &answer, want, path).await;
    }
    let answer = gateway.get("/p").await;
    assert_eq!(answer.refusal(), (404, "unknown_url".into()), "it is no provider's");
    assert_eq!((vendor.connections(), gateway.records("usage").len()), (0, 0));
}

#[tokio::test]
async fn over_http_2_paths_are_judged_alike() {
    let vendor = echo().await;
    let dir = scratch();
    let certificate = issue(&dir);
    let gateway = Gateway::spawn_in(&dir, conf(&vendor).listen(LISTEN)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let rows = BAD_PATHS.iter().map(|path| (*path, INVALID)).chain(NO_PROVIDERS.iter().map(|path| (*path, UNKNOWN)));
    for (path, want) in rows {
        // Other bytes never leave a client.
        let is_sent = path.is_ascii() && format!("https://localhost{path}").parse::<http::Uri>().is_ok();
        if !is_sent {
            continue;
        }
        let want =
            if ["/p/openai%00/v1", "/p/http:%2f%2felsewhere.example/x"].contains(&path) { INVALID } else { want };
        let answer = client.ask(http2::request(http::Method::POST, path, &[KNOWN]), "hidden").await;
        refused(&gateway, &answer, want, path).await;
    }
    assert_eq!(vendor.connections(), 0);
}

/// A stranger is told nothing of what is there.
#[tokio::test]
async fn who_has_no_key_learns_nothing_of_places() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for path in [PATH, "/p/nobody/v1", "/p/openai/v1/../x"] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer wrong\r\n\r\n");
        let answer = gateway.client().await.send(head).await.answer().await;
        assert_eq!(answer.refusal(), (401, "invalid_api_key".into()), "{path}");
    }
    assert_eq!(vendor.connections(), 0);
}

#[tokio::test]
async fn no_field_and_no_header_chooses_a_host() {
    let (vendor, elsewhere) = (echo().await, echo().await);
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let (url, host) = (elsewhere.base_url(), format!("127.0.0.1:{}", elsewhere.port));
    let names = [
        "Api-Base",
        "Base-Url",
        "Destination",
        "Forwarded",
        "Origin",
        "Proxy",
        "Referer",
        "X-Aulos-Base-Url",
        "X-Aulos-Provider",
        "X-Base-Url",
        "X-Forwarded-Host",
        "X-Forwarded-Server",
        "X-Host",
        "X-Http-Destinationurl",
        "X-Original-Url",
        "X-Portkey-Config",
        "X-Portkey-Custom-Host",
        "X-Rewrite-Url",
        "X-Target-Url",
        "X-Upstream",
    ];
    let mut requests = Vec::new();
    for value in [&url, &host] {
        requests.extend(names.map(|name| ask(&format!("GET {PATH}"), &format!("{name}: {value}\r\n"), "")));
    }
    for field in ["api_base", "base_url", "custom_host", "webhook_url", "url", "proxy", "callback_url"] {
        let body = format!("{{\"{field}\":\"{url}\"}}");
        requests.push(sized(&format!("POST {PATH}"), "Content-Type: application/json\r\n", body));
        requests.push(ask(&format!("GET {PATH}?{field}={url}"), "", ""));
    }
    // The gateway's own name, whatever it is said to be.
    let close = format!("Authorization: Bearer {KEY}\r\nConnection: close\r\n\r\n");
    requests.push(format!("GET {PATH} HTTP/1.1\r\nHost: {host}\r\n{close}").into());
    requests.push(format!("GET http://{host}{PATH} HTTP/1.1\r\nHost: {host}\r\n{close}").into());
    requests.push(format!("GET https://{host}{PATH} HTTP/1.1\r\nHost: {host}\r\n{close}").into());
    requests.push(format!("GET {PATH} HTTP/1.0\r\n{close}").into());
    let count = requests.len();
    for request in requests {
        let shown = request.escape_ascii().to_string();
        assert_eq!(raw(&gateway, request).await.status, 200, "{shown}");
    }
    let own = format!("127.0.0.1:{}", vendor.port);
    assert_eq!(vendor.received(count).await.len(), count);
    assert!(
        vendor.requests().iter().all(|sent| sent.header("host") == Some(&own) && sent.target.starts_with("/v1/odd"))
    );
    for (first, lines) in [
        (format!("GET http://{host}{PATH} HTTP/1.1"), "Host: aulos\r\n".to_owned()),
        (format!("GET http://aulos{PATH} HTTP/1.1"), format!("Host: {host}\r\n")),
        (format!("GET http://aulos@{host}{PATH} HTTP/1.1"), format!("Host: {host}\r\n")),
        (format!("GET //{host}{PATH} HTTP/1.1"), "Host: aulos\r\n".to_owned()),
        (format!("GET {host}{PATH} HTTP/1.1"), "Host: aulos\r\n".to_owned()),
        (format!("GET ftp://aulos{PATH} HTTP/1.1"), "Host: aulos\r\n".to_owned()),
        (format!("GET {PATH} HTTP/1.1"), format!("Host: aulos\r\nHost: {host}\r\n")),
        (format!("GET {PATH} HTTP/1.1"), format!("Host: aulos@{host}\r\n")),
        (format!("GET {PATH} HTTP/1.1"), String::new()),
        (format!("CONNECT {host} HTTP/1.1"), format!("Host: {host}\r\n")),
        (format!("TRACE {PATH} HTTP/1.1"), "Host: aulos\r\n".to_owned()),
        ("OPTIONS * HTTP/1.1".to_owned(), "Host: aulos\r\n".to_owned()),
    ] {
        let answer = raw(&gateway, format!("{first}\r\n{lines}{close}")).await;
        assert!([400, 404, 405].contains(&answer.status), "{first} {lines}: {answer:?}");
        assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{first} {lines}");
    }
    assert_eq!((elsewhere.connections(), vendor.requests().len()), (0, count));
}

/// A redirect is never followed, and is passed without a `Location` that leads away.
#[tokio::test]
async fn a_redirect_leads_nowhere_else() {
    let elsewhere = echo().await;
    let vendor = Vendor::start(|request, mut wire| async move {
        let location = request.header("x-location").expect("said").to_owned();
        let head = format!("302 Found\r\nLocation: {location}");
        wire.answer(&head, "text/plain", "over there").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let (own, away) = (format!("127.0.0.1:{}", vendor.port), format!("127.0.0.1:{}", elsewhere.port));
    let rows = [
        ("/v1/voices?x=1#y".to_owned(), true),
        ("voices".to_owned(), true),
        ("?page=2".to_owned(), true),
        (format!("http://{own}/v1/x"), true),
        (format!("HTTP://{own}/v1/x?to=http://{away}"), true),
        (format!("http://{away}/v1/x"), false),
        (format!("https://{away}/"), false),
        (format!("//{away}/v1/x"), false),
        (format!("//{own}/v1/x"), false),
        (format!("http://{own}@{away}/"), false),
        (format!("http://{away}#@{own}/"), false),
        (format!("http:{away}/"), false),
        (format!("/\\{away}/"), false),
        (format!("\\\\{away}/"), false),
        ("javascript:alert(1)".to_owned(), false),
        ("http://127.0.0.1/".to_owned(), false),
        ("ws://127.0.0.1/".to_owned(), false),
    ];
    let count = rows.len();
    for (location, stays) in rows {
        let answer = raw(&gateway, ask(&format!("GET {PATH}"), &format!("X-Location: {location}\r\n"), "")).await;
        assert_eq!((answer.status, answer.body()), (302, b"over there".to_vec()), "{location}: {answer:?}");
        assert_eq!(answer.header("location"), stays.then_some(location.as_str()), "{location}");
        assert_eq!(answer.header("x-aulos-origin"), Some("provider"), "{location}");
    }
    assert_eq!((vendor.requests().len(), elsewhere.connections()), (count, 0));
}

/// What one provider is asked never reaches another one.
#[tokio::test]
async fn each_provider_has_its_own_place() {
    let (first, second) = (saying("200 OK", "first").await, saying("200 OK", "second").await);
    let keys = "keys = [\"${PROVIDER_KEY}\"]";
    let conf = super::passing().with(&provider("a", "http", first.port, keys)).with(&provider(
        "a-b",
        "http",
        second.port,
        keys,
    ));
    let gateway = Gateway::spawn(conf).await;
    for (path, want) in [("/p/a/a-b/x", "first"), ("/p/a-b/a/x", "second"), ("/p/a", "first"), ("/p/a-b?a", "second")] {
        let answer = raw(&gateway, ask(&format!("GET {path}"), "", "")).await;
        assert_eq!(String::from_utf8_lossy(&answer.body()), want, "{path}");
    }
    assert_eq!((first.requests()[0].target.as_str(), second.requests()[0].target.as_str()), ("/a-b/x", "/a/x"));
}

/// Refusals are said as a provider's clients expect it, so that their form could tell which ones there are.
#[tokio::test]
async fn who_has_no_key_sees_the_same_refusals_whatever_is_configured() {
    let vendor = echo().await;
    let named = [("elevenlabs", "elevenlabs"), ("deepgram", "deepgram"), ("house", "elevenlabs"), ("mine", "deepgram")];
    let table = |(name, kind): &(&str, &str)| provider(name, kind, vendor.port, super::ONE_KEY);
    let all = named.iter().fold(conf(&vendor), |conf, row| conf.with(&table(row)));
    let (all, one) = (Gateway::spawn(all).await, Gateway::spawn(conf(&vendor)).await);
    let paths =
        ["/p/openai/x", "/p/elevenlabs/x", "/p/deepgram/x", "/p/house/x", "/p/mine/x", "/p/nobody/x", "/p/http/x"];
    for path in paths {
        for line in ["", "Authorization: Bearer wrong\r\n", "Xi-Api-Key: wrong\r\n"] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: aulos\r\n{line}\r\n");
            let mut said = Vec::new();
            for gateway in [&all, &one] {
                let answer = gateway.client().await.send(&head).await.answer().await;
                assert_eq!(answer.status, 401, "{path} {line}: {answer:?}");
                let id = answer.header("x-aulos-request-id").expect("every answer has one").to_owned();
                let names: Vec<_> = answer.headers.iter().map(|(name, _)| name.clone()).collect();
                said.push((names, answer.text().replace(&id, "ID")));
            }
            assert_eq!(said[0], said[1], "{path} {line}");
        }
    }
    assert_eq!(vendor.connections(), 0);
}
