//! What clients do wrong: each mistake has its exact answer and its record, and no vendor hears of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::support::client::{find, post};
use super::support::gateway::{SPEECH, command, scratch};
use super::support::vendor::Received;
use super::support::{Answer, Client, Conf, Gateway, KEY, PROVIDER_KEY, Vendor, sha256};

const SPEAK: &str = "POST /v1/audio/speech HTTP/1.1";
/// Would be served, if it were ever taken for a request.
const HIDDEN: &str = r#"{"model":"openai/tts-1","input":"hidden","voice":"alloy"}"#;

/// What a refusal says: status, code, and the field at fault.
type Want<'w> = (u16, &'w str, Option<&'w str>);

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Usable,
    Closed,
}

/// A vendor that answers with what it was sent, so that every answer shows whose it is.
async fn echo() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        wire.answer("200 OK", "audio/mpeg", &request.body).await;
        Some(wire)
    })
    .await
}

/// A request that is in order, on a connection that should be.
async fn canary(client: &mut Client, label: &str) {
    let input = format!("canary {label}");
    let body = json!({ "model": "openai/tts-1", "input": input, "voice": "alloy" }).to_string();
    let answer = client.post("/v1/audio/speech", &body).await;
    assert_eq!(answer.status, 200, "{label}: {answer:?}");
    assert_eq!(answer.json()["input"], input, "{label}: everyone gets their own answer");
}

/// The vendor was sent `count` requests, and each of them was in order.
fn only_canaries(vendor: &Vendor, count: usize) {
    let sent = vendor.requests();
    let strange: Vec<_> = sent.iter().filter(|sent| !sent.text().contains(r#""input":"canary "#)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(sent.len(), count);
}

/// The answer is a refusal of ours, in every detail.
fn check(label: &str, answer: &Answer, (status, code, param): Want<'_>) {
    assert!(answer.complete, "{label}: {answer:?}");
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{label}: {answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["param"], param.map_or(Value::Null, Value::from), "{label}");
    let kind = match status {
        401 => "authentication_error",
        500..=504 => "server_error",
        _ => "invalid_request_error",
    };
    assert_eq!(error["type"], kind, "{label}");
    assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')), "{label}: {error}");
    let helps = ["request_timeout", "incomplete_body", "overloaded"].contains(&code);
    assert_eq!(answer.header("x-should-retry"), (!helps).then_some("false"), "{label}");
    assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer realm=\"aulos\""), "{label}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{label}");
    assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    assert_eq!(answer.header("x-aulos-provider"), None, "{label}");
    assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()), "{label}");
    assert_eq!(answer.header("x-request-id"), answer.header("x-aulos-request-id"), "{label}");
}

/// What has become of the connection, which must be what its answer says.
async fn fate(client: &mut Client, answer: &Answer, label: &str) -> Fate {
    if !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        canary(client, label).await;
        return Fate::Usable;
    }
    client.send(post("/v1/audio/speech", &[], HIDDEN).as_bytes()).await.finish().await;
    let rest = client.rest().await;
    assert!(rest.is_empty(), "{label}: answered after it was closed: {}", rest.escape_ascii());
    Fate::Closed
}

/// What the audit record of a refused request says.
async fn check_audit(label: &str, gateway: &Gateway, answer: &Answer, key: Option<&str>) -> Value {
    let audit = gateway.record_of("audit", answer).await;
    let code = answer.code();
    assert_eq!((&audit["status"], &audit["error"]), (&answer.status.into(), &code.into()), "{label}: {audit}");
    assert_eq!((&audit["end"], &audit["attempts"]), (&"refused".into(), &json!([])), "{label}: {audit}");
    assert_eq!(audit["key"], key.map_or(Value::Null, Value::from), "{label}: {audit}");
    assert!(audit.to_string().len() < 2048, "{label}: a record is bounded");
    audit
}

/// A request with the test's key, these header lines, and the length of its body.
fn request(first: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = format!("Content-Length: {}\r\n", body.as_ref().len());
    [&head(first, &format!("{lines}{length}"))[..], body.as_ref()].concat()
}

/// A head with the test's key and these lines.
fn head(first: &str, lines: &str) -> Vec<u8> {
    format!("{first}\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n").into_bytes()
}

const JSON: &str = "Content-Type: application/json\r\n";

/// Sends each body to the speech endpoint. The refusals leave the connection usable.
async fn refuses_bodies(gateway: &Gateway, rows: Vec<(&'static str, Vec<u8>, Want<'_>)>) {
    for (label, body, want) in rows {
        let mut client = gateway.client().await;
        let answer = client.send(&request(SPEAK, JSON, body)).await.answer().await;
        check(label, &answer, want);
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Usable, "{label}");
        check_audit(label, gateway, &answer, Some("test")).await;
    }
}

/// A speech request with other fields.
fn speech(fields: &str) -> Vec<u8> {
    format!("{{{fields}}}").into_bytes()
}

#[tokio::test]
async fn what_is_not_one_json_object_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let ok = r#""model":"openai/tts-1","input":"x","voice":"alloy""#;
    let utf16 = |order: fn(u16) -> [u8; 2]| SPEECH.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    let nested = |depth: usize| format!(r#"{ok},"x":{}{}"#, "[".repeat(depth), "]".repeat(depth));
    let rows: Vec<_> = [
        ("empty", Vec::new()),
        ("no JSON", b"speech, please".to_vec()),
        ("an array", format!("[{SPEECH}]").into()),
        ("a string", b"\"x\"".to_vec()),
        ("null", b"null".to_vec()),
        ("cut", SPEECH.as_bytes()[..SPEECH.len() - 1].to_vec()),
        ("cut in a string", SPEECH.as_bytes()[..SPEECH.len() - 4].to_vec()),
        ("trailing garbage", format!("{SPEECH}x").into()),
        ("two documents", format!("{SPEECH}{SPEECH}").into()),
        ("two lines of JSON", format!("{SPEECH}\n{SPEECH}").into()),
        ("a NUL behind it", format!("{SPEECH}\0").into()),
        ("a trailing comma", speech(&format!("{ok},"))),
        ("a comment", speech(&format!("{ok}/* x */"))),
        ("single quotes", SPEECH.replace('"', "'").into()),
        ("NaN", speech(&format!(r#"{ok},"speed":NaN"#))),
        ("Infinity", speech(&format!(r#"{ok},"speed":-Infinity"#))),
        ("a leading zero", speech(&format!(r#"{ok},"speed":01"#))),
        ("a plus", speech(&format!(r#"{ok},"speed":+1"#))),
        ("a line break in a string", speech(&format!("{ok},\"x\":\"a\nb\""))),
        ("an unknown escape", speech(&format!(r#"{ok},"x":"\x41""#))),
        ("too deep", speech(&nested(64))),
        (
            "a byte that is not UTF-8",
            [br#"{"model":"openai/tts-1","voice":"alloy","input":""#, &b"\xff\"}"[..]].concat(),
        ),
        ("overlong UTF-8", [br#"{"model":"openai/tts-1"#, &b"\xc0\xaf\",\"input\":\"x\"}"[..]].concat()),
        ("a surrogate in UTF-8", [br#"{"input":""#, &b"\xed\xa0\x80\"}"[..]].concat()),
        ("UTF-8 cut short", [br#"{"input":""#, &b"\xe2\x82\"}"[..]].concat()),
        ("a byte order mark", format!("\u{feff}{SPEECH}").into()),
        ("UTF-16LE", utf16(u16::to_le_bytes)),
        ("UTF-16BE", utf16(u16::to_be_bytes)),
        ("UTF-16LE with its mark", [b"\xff\xfe".to_vec(), utf16(u16::to_le_bytes)].concat()),
    ]
    .into_iter()
    .map(|(label, body)| (label, body, (400, "invalid_json", None)))
    .collect();
    let count = rows.len();
    refuses_bodies(&gateway, rows).await;
    // As deep as is allowed, it is the vendor's business.
    let body = speech(&nested(63)).iter().map(|byte| char::from(*byte)).collect::<String>();
    let body = body.replace(r#""input":"x""#, r#""input":"canary""#).replace("canary", "canary deep");
    assert_eq!(gateway.post("/v1/audio/speech", &body).await.status, 200);
    only_canaries(&vendor, count + 1);
    assert_eq!(gateway.recorded("usage", count + 1).await.len(), count + 1, "none for what was refused");
}

#[tokio::test]
async fn a_key_that_stands_twice_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let rows = [
        ("model", r#""model":"openai/tts-1","input":"x","voice":"alloy","model":"openai/tts-1-hd""#, "model"),
        ("the same model", r#""model":"openai/tts-1","model":"openai/tts-1","input":"x","voice":"alloy""#, "model"),
        (
            "an escaped model",
            r#""model":"openai/tts-1","mod\u0065l":"openai/tts-1-hd","input":"x","voice":"alloy""#,
            "model",
        ),
        ("model, then null", r#""model":"openai/tts-1","input":"x","voice":"alloy","model":null"#, "model"),
        ("input", r#""model":"openai/tts-1","input":"x","input":"a longer one","voice":"alloy""#, "input"),
        ("an escaped input", r#""model":"openai/tts-1","\u0069nput":"x","input":"y","voice":"alloy""#, "input"),
        ("voice", r#""model":"openai/tts-1","input":"x","voice":"alloy","voice":"ash""#, "voice"),
        ("a field we do not know", r#""model":"openai/tts-1","input":"x","voice":"a","seed":1,"seed":2"#, "seed"),
    ];
    let count = rows.len();
    let rows = rows.map(|(label, fields, key)| (label, speech(fields), (400, "duplicate_key", Some(key))));
    refuses_bodies(&gateway, rows.into()).await;
    only_canaries(&vendor, count);
}

#[tokio::test]
async fn a_field_that_is_missing_or_wrong_is_named() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let model = |json: &str| speech(&format!(r#""model":{json},"input":"x","voice":"alloy""#));
    let rest = |fields: &str| speech(&format!(r#""model":"openai/tts-1",{fields}"#));
    let missing = |param| (400, "missing_required_parameter", Some(param));
    let invalid = |param| (400, "invalid_value", Some(param));
    let invalid_model = (400, "invalid_model", Some("model"));
    let rows = vec![
        ("an empty object", b"{}".to_vec(), missing("model")),
        ("no model", speech(r#""input":"x","voice":"alloy""#), missing("model")),
        ("model is null", model("null"), missing("model")),
        ("no input", rest(r#""voice":"alloy""#), missing("input")),
        ("input is null", rest(r#""input":null,"voice":"alloy""#), missing("input")),
        ("input is empty", rest(r#""input":"","voice":"alloy""#), missing("input")),
        ("input is spaces", rest(r#""input":" \n","voice":"alloy""#), missing("input")),
        ("no voice", rest(r#""input":"x""#), missing("voice")),
        ("voice is empty", rest(r#""input":"x","voice":"""#), missing("voice")),
        ("model is a number", model("1"), invalid_model),
        ("model is a list", model(r#"["openai/tts-1"]"#), invalid_model),
        ("model is an object", model(r#"{"id":"openai/tts-1"}"#), invalid_model),
        ("model is empty", model(r#""""#), invalid_model),
        ("model is spaces", model(r#""  ""#), invalid_model),
        ("model with a NUL", model(r#""openai/tts-1\u0000""#), invalid_model),
        ("model with a line break", model(r#""openai/tts-1\r\nx: y""#), invalid_model),
        ("model with half a surrogate pair", model(r#""openai/\ud800""#), invalid_model),
        ("model of 257 bytes", model(&format!("\"openai/{}\"", "m".repeat(250))), invalid_model),
        ("model of 1 MB", model(&format!("\"{}\"", "m".repeat(1_000_000))), invalid_model),
        ("model that nobody serves", model(r#""tts-9""#), (404, "model_not_found", Some("model"))),
        ("provider that is not there", model(r#""elsewhere/tts-1""#), (404, "model_not_found", Some("model"))),
        ("input is a number", rest(r#""input":5,"voice":"alloy""#), invalid("input")),
        ("input with half a surrogate pair", rest(r#""input":"\udc00","voice":"alloy""#), invalid("input")),
        ("voice is a number", rest(r#""input":"x","voice":5"#), invalid("voice")),
        ("format is a list", rest(r#""input":"x","voice":"a","response_format":["mp3"]"#), invalid("response_format")),
        ("stream format", rest(r#""input":"x","voice":"a","stream_format":true"#), invalid("stream_format")),
        ("speed is text", rest(r#""input":"x","voice":"a","speed":"1""#), invalid("speed")),
        ("speed is not finite", rest(r#""input":"x","voice":"a","speed":1e999"#), invalid("speed")),
        ("speed is not finite, below", rest(r#""input":"x","voice":"a","speed":-1e999"#), invalid("speed")),
    ];
    let count = rows.len();
    refuses_bodies(&gateway, rows).await;
    only_canaries(&vendor, count);
    let audits = fs::read_to_string(gateway.dir.join("state/records/audit.jsonl")).expect("readable");
    assert!(!audits.contains("mmmm") && !audits.contains("x: y"), "names that are none are not recorded");
}

#[tokio::test]
async fn numbers_that_are_the_vendors_business_do_not_change_what_is_recorded() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (label, numbers) in [
        ("negative", r#""speed":-1,"n":-5,"input_chars":-7"#),
        ("huge", r#""n":123456789012345678901234567890,"max_tokens":18446744073709551616"#),
        ("not finite in a float", r#""temperature":1e400,"n":-1e999,"seed":0.00e-999"#),
    ] {
        let body = format!(r#"{{"model":"openai/tts-1","input":"canary Ünï","voice":"alloy",{numbers}}}"#);
        let answer = gateway.post("/v1/audio/speech", &body).await;
        assert_eq!((answer.status, answer.text()), (200, body.replace("openai/", "")), "{label}: byte for byte");
        let usage = gateway.record_of("usage", &answer).await;
        assert_eq!(usage["input_chars"], 10, "{label}: counted from the text alone");
    }
}

#[tokio::test]
async fn a_chat_is_checked_like_speech() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let path = "POST /v1/chat/completions HTTP/1.1";
    for (label, body, want) in [
        ("cut", r#"{"model":"openai/gpt-audio","messages":["#, (400, "invalid_json", None)),
        ("no model", r#"{"messages":[]}"#, (400, "missing_required_parameter", Some("model"))),
        ("two models", r#"{"model":"openai/a","messages":[],"model":"b"}"#, (400, "duplicate_key", Some("model"))),
        ("a model that is none", r#"{"model":7,"messages":[]}"#, (400, "invalid_model", Some("model"))),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&request(path, JSON, body)).await.answer().await;
        check(label, &answer, want);
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Usable, "{label}");
        assert_eq!(check_audit(label, &gateway, &answer, Some("test")).await["path"], "/v1/chat/completions");
    }
    only_canaries(&vendor, 4);
}

/// What the operator says of a model, and what is known of OpenAI's own, bounds a request; nobody is asked for it.
#[tokio::test]
async fn what_a_model_cannot_do_is_refused_before_its_vendor_is_asked() {
    let vendor = echo().await;
    let conf = Conf::new().upstream(&vendor).with(
        r#"
        [models.house]
        routes = ["openai/tts-1"]
        voices = ["alloy", "nova"]
        formats = ["mp3", "pcm"]
        input_chars_max = 10
        [providers.original]
        kind = "openai"
        keys = ["${PROVIDER_KEY}"]
        "#,
    );
    let gateway = Gateway::spawn(conf).await;
    let long = "x".repeat(4097);
    let body = |model: &str, fields: &str| speech(&format!(r#""model":"{model}",{fields}"#));
    let refused = |param| (400, "invalid_value", Some(param));
    let rows = vec![
        ("voice", body("house", r#""input":"x","voice":"ash""#), refused("voice")),
        ("voice in other letters", body("house", r#""input":"x","voice":"Alloy""#), refused("voice")),
        ("format", body("house", r#""input":"x","voice":"nova","response_format":"wav""#), refused("response_format")),
        ("length", body("house", r#""input":"12345678901","voice":"nova""#), refused("input")),
        ("known voice", body("original/tts-1", r#""input":"x","voice":"nobody""#), refused("voice")),
        (
            "known format",
            body("original/tts-1", r#""input":"x","voice":"ash","response_format":"ogg""#),
            refused("response_format"),
        ),
        ("known length", body("original/tts-1", &format!(r#""input":"{long}","voice":"ash""#)), refused("input")),
        ("known speed", body("original/tts-1", r#""input":"x","voice":"ash","speed":4.5"#), refused("speed")),
    ];
    let count = rows.len();
    refuses_bodies(&gateway, rows).await;
    let fitting = [
        r#""input":"canary ëëë","voice":"nova""#,
        r#""input":"canary","voice":"alloy","response_format":"pcm16""#,
        r#""input":"canary","voice":{"id":"voice_1"},"response_format":"mp3""#,
    ];
    for fields in fitting {
        let body = String::from_utf8(body("house", fields)).expect("text");
        assert_eq!(gateway.post("/v1/audio/speech", &body).await.status, 200, "{fields}");
    }
    assert_eq!(vendor.requests().len(), count + fitting.len());
    assert!(vendor.requests().iter().all(|sent| sent.text().contains("canary")));
}

#[tokio::test]
async fn a_model_that_is_named_twice_and_differently_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let conflict = Some((400, "model_conflict", Some("model")));
    let invalid = Some((400, "invalid_model", Some("model")));
    let speech = "/v1/audio/speech";
    for (label, target, lines, want) in [
        ("header and body", speech, "X-Aulos-Model: openai/tts-1-hd\r\n", conflict),
        ("query and body", "/v1/audio/speech?model=openai%2Ftts-1-hd", "", conflict),
        ("header and query", "/v1/audio/speech?model=openai/tts-1", "X-Aulos-Model: openai/tts-1-hd\r\n", conflict),
        ("query twice", "/v1/audio/speech?model=openai/tts-1&model=openai/tts-1-hd", "", conflict),
        ("query in disguise", "/v1/audio/speech?model=openai/tts-1&mod%65l=openai/tts-1-hd", "", conflict),
        ("header twice", speech, "X-Aulos-Model: openai/tts-1\r\nx-aulos-model: openai/tts-2\r\n", conflict),
        ("an empty header", speech, "X-Aulos-Model:\r\n", invalid),
        ("an empty query", "/v1/audio/speech?model=", "", invalid),
        ("a control byte", "/v1/audio/speech?model=openai/tts-1%00", "", invalid),
        ("bytes that are no text", speech, "X-Aulos-Model: openai/tts-1\u{e4}\r\n", invalid),
        ("the same everywhere", "/v1/audio/speech?model=openai/tts-1", "X-Aulos-Model: openai/tts-1\r\n", None),
        ("a path is not what the body says", "/openai/deployments/openai%2Ftts-1/audio/speech", "", None),
    ] {
        let mut client = gateway.client().await;
        let body = HIDDEN.replace("hidden", if want.is_some() { "hidden" } else { "canary" });
        let first = format!("POST {target} HTTP/1.1");
        let answer = client.send(&request(&first, &format!("{JSON}{lines}"), &body)).await.answer().await;
        match want {
            Some(want) => {
                check(label, &answer, want);
                check_audit(label, &gateway, &answer, Some("test")).await;
                fate(&mut client, &answer, label).await;
            }
            None => assert_eq!(answer.status, 200, "{label}: {answer:?}"),
        }
    }
    let sent = vendor.requests();
    assert!(sent.iter().all(|sent| sent.text().contains("canary")), "{sent:?}");
}

#[tokio::test]
async fn an_unknown_path_says_which_base_url_to_set() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (path, hint) in [
        ("/audio/speech", "Set the base URL to `…/v1`."),
        ("/chat/completions", "Set the base URL to `…/v1`."),
        ("/v1/v1/audio/speech", "stands there twice: set the base URL to `…/v1`"),
        ("/v1/audio/speech/audio/speech", "stands there twice"),
        ("/", "Set the base URL of an OpenAI client to `…/v1`; speech is `POST /v1/audio/speech`."),
        ("/v1", "POST /v1/audio/speech"),
        ("/v1/audio/speech/", "POST /v1/audio/speech"),
        ("/V1/audio/speech", "POST /v1/audio/speech"),
        ("//v1/audio/speech", "POST /v1/audio/speech"),
        ("/v1/../v1/audio/speech", "POST /v1/audio/speech"),
        ("/v1/audio%2fspeech", "POST /v1/audio/speech"),
        ("/v1/responses", "POST /v1/audio/speech"),
        ("/openai/deployments//audio/speech", "POST /v1/audio/speech"),
    ] {
        for with_body in [true, false] {
            let mut client = gateway.client().await;
            let first = format!("{} {path} HTTP/1.1", if with_body { "POST" } else { "GET" });
            let sent = if with_body { request(&first, JSON, HIDDEN) } else { head(&first, "") };
            let answer = client.send(&sent).await.answer().await;
            check(path, &answer, (404, "unknown_url", None));
            let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
            assert!(message.contains(hint) && message.contains(&format!("`{path}`")), "{message}");
            let want = if with_body { Fate::Closed } else { Fate::Usable };
            assert_eq!(fate(&mut client, &answer, path).await, want, "{path}");
            assert_eq!(check_audit(path, &gateway, &answer, None).await["path"], path);
        }
    }
    only_canaries(&vendor, 13);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (method, path, allow) in [
        ("GET", "/v1/audio/speech", "POST"),
        ("PUT", "/api/v1/audio/speech", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("post", "/v1/audio/speech", "POST"),
        ("PATCH", "/openai/deployments/x/audio/speech", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tts-1", "GET, HEAD"),
        ("POST", "/v1/audio/voices", "GET, HEAD"),
        ("POST", "/v1/audio/models", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ] {
        for with_body in [true, false] {
            let label = &format!("{method} {path}");
            let mut client = gateway.client().await;
            let first = format!("{label} HTTP/1.1");
            let sent = if with_body { request(&first, JSON, HIDDEN) } else { head(&first, "") };
            let answer = client.send(&sent).await.answer().await;
            check(label, &answer, (405, "method_not_allowed", None));
            assert_eq!(answer.header("allow"), Some(allow), "{label}");
            let want = if with_body { Fate::Closed } else { Fate::Usable };
            assert_eq!(fate(&mut client, &answer, label).await, want, "{label}");
            assert_eq!(check_audit(label, &gateway, &answer, None).await["method"], method);
        }
    }
    only_canaries(&vendor, 10);
}

#[tokio::test]
async fn a_body_that_is_coded_or_of_another_type_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let wrong = [
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
        "Content-Type: application/json\r\nContent-Encoding: identity\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: application/json-seq\r\n",
        "Content-Type: \r\n",
    ];
    for lines in wrong {
        let mut client = gateway.client().await;
        let answer = client.send(&request(SPEAK, lines, HIDDEN)).await.answer().await;
        check(lines, &answer, (415, "unsupported_media_type", None));
        assert_eq!(fate(&mut client, &answer, lines).await, Fate::Closed, "{lines}");
        check_audit(lines, &gateway, &answer, Some("test")).await;
    }
    for lines in ["Content-Type: Application/JSON; charset=utf-8\r\n", "Content-Type: application/json ;x=y\r\n", ""] {
        let body = HIDDEN.replace("hidden", "canary type");
        let answer = gateway.client().await.send(&request(SPEAK, lines, body)).await.answer().await;
        assert_eq!(answer.status, 200, "{lines}: {answer:?}");
    }
    only_canaries(&vendor, 3);
}

/// `body` in chunks of at most `size` bytes, with the last one.
fn chunked(body: &str, size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.as_bytes().chunks(size) {
        out.extend([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

const CHUNKED: &str = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
const TOO_LARGE: Want<'static> = (413, "request_too_large", None);

/// Most clients write everything before they read: they, too, must see why they were refused.
#[tokio::test]
async fn a_body_over_the_limit_is_refused_to_a_client_that_writes_it_all_first() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let big = HIDDEN.replace("hidden", &"x".repeat(20_000_000));
    for (label, sent) in [
        ("declared", request(SPEAK, JSON, &big)),
        ("in chunks", [head(SPEAK, CHUNKED), chunked(&big, 64 * 1024)].concat()),
        ("in one chunk", [head(SPEAK, CHUNKED), chunked(&big, big.len())].concat()),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        check(label, &answer, TOO_LARGE);
        assert_eq!(answer.header("connection"), Some("close"), "{label}");
        assert!(client.rest().await.is_empty(), "{label}: it closes by itself");
        check_audit(label, &gateway, &answer, Some("test")).await;
        canary(&mut gateway.client().await, label).await;
    }
    only_canaries(&vendor, 3);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_as_soon_as_that_is_known() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let start = &HIDDEN.replace("hidden", &"x".repeat(1 << 20))[..(1 << 20) + 1];
    let mut endless = chunked(start, 4096);
    endless.truncate(endless.len() - "0\r\n\r\n".len());
    for (label, sent) in [
        ("declared", head(SPEAK, "Content-Length: 1048577\r\n")),
        ("declared beyond all numbers", head(SPEAK, "Content-Length: 9223372036854775807\r\n")),
        ("the client asks first", head(SPEAK, "Content-Length: 1048577\r\nExpect: 100-continue\r\n")),
        ("in chunks that go on", [head(SPEAK, CHUNKED), endless].concat()),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        check(label, &answer, TOO_LARGE);
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
        check_audit(label, &gateway, &answer, Some("test")).await;
    }
    only_canaries(&vendor, 0);
}

#[tokio::test]
async fn the_limit_itself_may_be_reached() {
    let vendor = echo().await;
    let body = HIDDEN.replace("hidden", "canary limit");
    let limits = format!("[limits]\njson_body = {}\nchat_body = {}", body.len(), body.len() + 1);
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&limits)).await;
    let over = format!("{body} ");
    let chat = "POST /v1/chat/completions HTTP/1.1";
    for (label, first, body, status) in [
        ("speech", SPEAK, body.clone(), 200),
        ("speech over", SPEAK, over.clone(), 413),
        ("chat", chat, over.clone(), 200),
        ("chat over", chat, format!("{over} "), 413),
    ] {
        let declared = gateway.client().await.send(&request(first, JSON, &body)).await.answer().await;
        assert_eq!(declared.status, status, "{label}: {declared:?}");
        let sent = [head(first, CHUNKED), chunked(&body, 7)].concat();
        let pieces = gateway.client().await.send(&sent).await.answer().await;
        assert_eq!(pieces.status, status, "{label} in chunks: {pieces:?}");
    }
    only_canaries(&vendor, 4);
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_refused() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let length = HIDDEN.len();
    let whole = chunked(HIDDEN, 10);
    for (label, sent) in [
        ("a byte", request(SPEAK, JSON, HIDDEN)[..request(SPEAK, JSON, HIDDEN).len() - 1].to_vec()),
        ("all of it", head(SPEAK, &format!("{JSON}Content-Length: {length}\r\n"))),
        ("whole JSON, and more declared", {
            [head(SPEAK, &format!("{JSON}Content-Length: {}\r\n", length + 1)), HIDDEN.into()].concat()
        }),
        ("no last chunk", [head(SPEAK, CHUNKED), whole[..whole.len() - 5].to_vec()].concat()),
        ("half a last chunk", [head(SPEAK, CHUNKED), whole[..whole.len() - 2].to_vec()].concat()),
        ("half a chunk", [head(SPEAK, CHUNKED), whole[..20].to_vec()].concat()),
        ("half a size", [head(SPEAK, CHUNKED), b"3".to_vec()].concat()),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.finish().await.answer().await;
        check(label, &answer, (400, "incomplete_body", None));
        assert_eq!(answer.header("connection"), Some("close"), "{label}");
        assert!(client.rest().await.is_empty(), "{label}");
        check_audit(label, &gateway, &answer, Some("test")).await;
    }
    only_canaries(&vendor, 0);
    canary(&mut gateway.client().await, "after").await;
}

#[tokio::test]
async fn a_request_that_stops_arriving_is_given_up() {
    let vendor = echo().await;
    let conf = Conf::new().upstream(&vendor).with("[timeouts]\nidle = \"1s\"\nheader = \"1s\"");
    let gateway = &Gateway::spawn(conf).await;
    let declared = request(SPEAK, JSON, HIDDEN);
    let stops = [
        ("nothing of the body", head(SPEAK, "Content-Length: 5\r\n"), Some("test")),
        ("half a body", declared[..declared.len() - 9].to_vec(), Some("test")),
        ("half a chunk", [head(SPEAK, CHUNKED), b"5\r\n{\"".to_vec()].concat(), Some("test")),
        ("half a head", declared[..40].to_vec(), None),
    ];
    let stopped = stops.map(|(label, sent, key)| async move {
        let began = Instant::now();
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{label}: {:?}", began.elapsed());
        check(label, &answer, (408, "request_timeout", None));
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
        check_audit(label, gateway, &answer, key).await;
    });
    let [one, two, three, four] = stopped;
    let dripping = async {
        let mut client = gateway.client().await;
        for piece in declared.chunks(declared.len() / 40).take(20) {
            client.send(piece).await;
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
        assert_eq!(client.answer().await.status, 408, "the time is for the whole head");
    };
    let slow_body = async {
        let (mut client, body) = (gateway.client().await, HIDDEN.replace("hidden", "canary drip"));
        client.send(&head(SPEAK, &format!("{JSON}Content-Length: {}\r\n", body.len()))).await;
        for piece in body.as_bytes().chunks(body.len() / 11) {
            client.send(piece).await;
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
        assert_eq!(client.answer().await.status, 200, "each piece came in time");
    };
    tokio::join!(one, two, three, four, dripping, slow_body);
    only_canaries(&vendor, 1);
}

#[tokio::test]
async fn over_the_limit_in_flight_the_next_is_refused_at_once_and_health_goes_on() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let vendor = Vendor::start(move |request, mut wire| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("never closed").forget();
            wire.answer("200 OK", "audio/mpeg", &request.body).await;
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[limits]\nin_flight = 2")).await;
    let mut held = [gateway.client().await, gateway.client().await];
    for client in &mut held {
        client.send(post("/v1/audio/speech", &[], SPEECH).as_bytes()).await;
    }
    vendor.received(2).await;
    for label in ["the third", "the fourth"] {
        let mut client = gateway.client().await;
        let asked = Instant::now();
        let answer = client.send(&request(SPEAK, JSON, HIDDEN)).await.answer().await;
        assert!(asked.elapsed() < Duration::from_secs(2), "{label}: {:?}", asked.elapsed());
        check(label, &answer, (503, "overloaded", None));
        assert_eq!(answer.header("retry-after"), Some("1"), "{label}");
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
        check_audit(label, &gateway, &answer, None).await;
        for path in ["/livez", "/readyz"] {
            assert_eq!(
                (gateway.get(path).await.status, gateway.admin(path).await.status),
                (200, 200),
                "{label}: {path}"
            );
        }
    }
    assert_eq!(vendor.requests().len(), 2);
    gate.add_permits(100);
    for client in &mut held {
        assert_eq!(client.answer().await.status, 200);
    }
    for label in ["one", "two", "three"] {
        gateway.metric_is("aulos_requests_in_flight", 0).await;
        canary(&mut gateway.client().await, label).await;
    }
}

/// One request in JSON with exactly these header lines for a credential.
fn asking(lines: &str, body: &str) -> Vec<u8> {
    format!("{SPEAK}\r\nHost: aulos\r\n{lines}{JSON}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn keys() -> String {
    [
        ("test", KEY, ""),
        ("other", "other", ""),
        ("off", "off", "disabled = true"),
        ("few", "few", "allow = [\"house\"]"),
    ]
    .into_iter()
    .chain([("old", "old", "expires = \"2020-01-01T00:00:00Z\"")])
    .map(|(name, key, more)| format!("[keys.{name}]\nsha256 = \"{}\"\n{more}\n", sha256(key)))
    .collect()
}

const BAD_KEY: Want<'static> = (401, "invalid_api_key", None);

#[tokio::test]
async fn every_spelling_of_a_key_is_understood_and_none_goes_to_the_vendor() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys())).await;
    let rows = [
        ("Authorization: Bearer KEY\r\n", "bearer"),
        ("authorization: bearer KEY\r\n", "bearer"),
        ("Authorization: BEARER   KEY \r\n", "bearer"),
        ("Authorization: Token KEY\r\n", "token"),
        ("Authorization: KEY\r\n", "authorization"),
        ("Api-Key: KEY\r\n", "api-key"),
        ("X-Api-Key: KEY\r\n", "x-api-key"),
        ("xi-api-key: KEY\r\n", "xi-api-key"),
        ("x-goog-api-key: KEY\r\n", "x-goog-api-key"),
        ("Authorization: Bearer KEY\r\nX-Api-Key: KEY\r\napi-key: KEY\r\nX-API-Key: KEY\r\n", "bearer"),
    ];
    for (lines, spelling) in rows {
        let body = HIDDEN.replace("hidden", "canary spelling");
        let answer = gateway.client().await.send(&asking(&lines.replace("KEY", KEY), &body)).await.answer().await;
        assert_eq!(answer.status, 200, "{lines}: {answer:?}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["key"], &audit["auth"]), (&"test".into(), &spelling.into()), "{lines}");
    }
    let sent = vendor.requests();
    assert_eq!(sent.len(), rows.len());
    sent.iter().for_each(only_the_vendors_credential);
}

/// What a vendor is sent holds its own credential once, and nobody else's.
fn only_the_vendors_credential(sent: &Received) {
    assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
    for name in ["api-key", "x-api-key", "xi-api-key", "x-goog-api-key", "cookie", "proxy-authorization"] {
        assert_eq!(sent.header(name), None, "{name}");
    }
    assert!(!format!("{sent:?}").contains(KEY), "{sent:?}");
}

#[tokio::test]
async fn every_mistake_with_a_key_has_one_answer() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys())).await;
    let rows = [
        ("none", ""),
        ("an empty one", "Authorization: Bearer \r\n"),
        ("an empty header", "Authorization:\r\n"),
        ("a scheme alone", "Authorization: Bearer\r\n"),
        ("other letters", "Authorization: Bearer OMX_live_test_key\r\n"),
        ("one byte off", "Authorization: Bearer omx_live_test_kez\r\n"),
        ("one byte short", "Authorization: Bearer omx_live_test_ke\r\n"),
        ("one byte more", "Authorization: Bearer KEY2\r\n"),
        ("quoted", "Authorization: Bearer \"KEY\"\r\n"),
        ("a list", "Authorization: Bearer KEY, Bearer KEY\r\n"),
        ("another scheme", "Authorization: Basic KEY\r\n"),
        ("a digest of it", "Authorization: Bearer SHA\r\n"),
        ("the vendor's", "Authorization: Bearer PROVIDER\r\n"),
        ("in a cookie", "Cookie: authorization=KEY; api-key=KEY\r\n"),
        ("in a proxy's header", "Proxy-Authorization: Bearer KEY\r\n"),
        ("two that differ", "Authorization: Bearer KEY\r\nX-Api-Key: other\r\n"),
        ("a good one, then a bad one", "Authorization: Bearer KEY\r\nAuthorization: Bearer wrong\r\n"),
        ("a bad one, then a good one", "Authorization: Bearer wrong\r\nAuthorization: Bearer KEY\r\n"),
        ("a good one beside an empty one", "Authorization: Bearer KEY\r\nApi-Key:\r\n"),
        ("other spelling of the user path", "X-GoModel-User-Path: /\r\n"),
    ];
    let query = ["key", "token", "api-key", "api_key", "access_token", "%6bey"];
    let mut refused = 0;
    let provided =
        |lines: &str| lines.replace("KEY", KEY).replace("SHA", &sha256(KEY)).replace("PROVIDER", PROVIDER_KEY);
    let by_header = rows.map(|(label, lines)| (label, asking(&provided(lines), HIDDEN)));
    let by_query = query.map(|name| {
        let first = format!("POST /v1/audio/speech?{name}={KEY} HTTP/1.1");
        (name, String::from_utf8_lossy(&asking("", HIDDEN)).replace(SPEAK, &first).into_bytes())
    });
    let both = query.map(|name| (name, request(&format!("POST /v1/audio/speech?{name}={KEY} HTTP/1.1"), JSON, HIDDEN)));
    for (label, sent) in by_header.into_iter().chain(by_query).chain(both) {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        check(label, &answer, BAD_KEY);
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}: its body was not read");
        refused += 1;
    }
    only_canaries(&vendor, 0);
    assert_eq!(gateway.metric("aulos_credential_refusals_total").await, refused);
    let unrecorded = gateway.metric("aulos_unrecorded_refusals_total").await;
    let written = usize::try_from(refused - unrecorded).expect("a small number");
    let audits = gateway.recorded("audit", written).await;
    assert_eq!(audits.len(), written, "each is written down or counted");
    assert!(audits.iter().all(|audit| audit["error"] == "invalid_api_key" && audit["status"] == 401));
}

#[tokio::test]
async fn unknown_expired_and_disabled_keys_are_told_the_same() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys())).await;
    let mut told = BTreeSet::new();
    let mut known = Vec::new();
    for (key, name) in [("unknown", None), ("old", Some("old")), ("off", Some("off"))] {
        let mut client = gateway.client().await;
        let get = format!("GET /v1/models HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {key}\r\n\r\n");
        let answer = client.send(get.as_bytes()).await.answer().await;
        check(key, &answer, BAD_KEY);
        assert_eq!(fate(&mut client, &answer, key).await, Fate::Usable, "{key}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["status"], &audit["end"]), (&401.into(), &"refused".into()), "{key}");
        known.push((name, audit["key"].as_str().map(str::to_owned)));
        let headers: Vec<_> =
            answer.headers.iter().filter(|(name, _)| !name.ends_with("-id") && name != "date").collect();
        told.insert(format!("{headers:?}{}", answer.text()));
    }
    assert_eq!(told.len(), 1, "{told:?}");
    for (want, audited) in known {
        assert_eq!(audited.as_deref(), want, "the operator sees whose key it was");
    }
}

#[tokio::test]
async fn a_key_may_use_what_it_may_use() {
    let vendor = echo().await;
    let house = "[models.house]\nroutes = [\"openai/tts-1\"]\n[paths.\"/closed\"]\nallow = [\"openai/other\"]\n";
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys()).with(house)).await;
    let denied = (403, "model_access_denied", Some("model"));
    for (label, lines, model, want) in [
        ("another model", "Api-Key: few\r\n", "openai/tts-1", Some(denied)),
        ("by header", "Api-Key: few\r\nX-Aulos-Provider: openai\r\n", "tts-1", Some(denied)),
        ("its path", "Api-Key: other\r\nX-Aulos-User-Path: /closed/a\r\n", "house", Some(denied)),
        ("a model that is not there", "Api-Key: few\r\n", "tts-9", Some((404, "model_not_found", Some("model")))),
        ("no path", "Api-Key: few\r\nX-Aulos-User-Path: /a/../b\r\n", "house", Some((400, "invalid_user_path", None))),
        ("its own", "Api-Key: few\r\n", "house", None),
        ("another path", "Api-Key: other\r\nX-Aulos-User-Path: /closed-not\r\n", "house", None),
    ] {
        let mut client = gateway.client().await;
        let body = json!({ "model": model, "input": "canary access", "voice": "alloy" }).to_string();
        let answer = client.send(&asking(lines, &body)).await.answer().await;
        let Some(want) = want else {
            assert_eq!(answer.status, 200, "{label}: {answer:?}");
            continue;
        };
        check(label, &answer, want);
        let key = if lines.contains("other") { "other" } else { "few" };
        check_audit(label, &gateway, &answer, Some(key)).await;
        fate(&mut client, &answer, label).await;
    }
    assert!(vendor.requests().iter().all(|sent| sent.text().contains("canary")));
}

#[tokio::test]
async fn a_flood_of_strangers_is_counted_and_not_all_written_down() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let get = b"GET /v1/models HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer wrong\r\n\r\n";
    let (began, mut client) = (Instant::now(), gateway.client().await);
    for _ in 0..200 {
        assert_eq!(client.send(get).await.answer().await.status, 401, "the connection is kept");
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("a short while") + 2;
    let good = gateway.get("/v1/models").await;
    assert_eq!(gateway.record_of("audit", &good).await["status"], 200, "who is known is always written down");
    let unrecorded = gateway.metric("aulos_unrecorded_refusals_total").await;
    let strangers = gateway.records("audit").iter().filter(|audit| audit["status"] == 401).count();
    assert!((10..=10 * seconds).contains(&strangers), "{strangers} in fewer than {seconds} s");
    assert_eq!(gateway.metric("aulos_credential_refusals_total").await, 200);
    assert_eq!(unrecorded, 200 - strangers as u64, "what is not written down is counted");
}

#[tokio::test]
async fn a_hundred_thousand_levels_are_refused_quickly_and_survived() {
    let vendor = echo().await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let pid = gateway.pid();
    const DEPTH: usize = 100_000;
    let within = |open: &str, close: &str| {
        let (open, close) = (open.repeat(DEPTH), close.repeat(DEPTH));
        format!(r#"{{"model":"openai/tts-1","input":"hidden","voice":"alloy","x":{open}1{close}}}"#)
    };
    for (label, path, body) in [
        ("arrays", "/v1/audio/speech", within("[", "]")),
        ("objects", "/v1/audio/speech", within("{\"a\":", "}")),
        ("both", "/v1/audio/speech", within("[{\"a\":", "}]")),
        ("never closed", "/v1/audio/speech", within("[", "")),
        ("a chat", "/v1/chat/completions", within("[", "]")),
        ("nothing else", "/v1/audio/speech", "[".repeat(DEPTH)),
    ] {
        let mut client = gateway.client().await;
        let began = Instant::now();
        let answer = client.post(path, &body).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{label}: {:?}", began.elapsed());
        check(label, &answer, (400, "invalid_json", None));
        fate(&mut client, &answer, label).await;
        check_audit(label, &gateway, &answer, Some("test")).await;
        canary(&mut gateway.client().await, label).await;
    }
    assert!(gateway.child.try_wait().expect("asked").is_none() && gateway.pid() == pid, "it is alive");
    assert!(vendor.requests().iter().all(|sent| sent.text().contains("canary")));
}

/// A head that must be refused: its bytes, and the answer's status and code.
type Bad = (&'static str, Vec<u8>, u16, &'static str);

/// Refused heads are written down ten a second at most: a gateway for every ten.
const AUDITED_AT_ONCE: usize = 10;

/// Sends each head with a request behind it that would be served. Somebody else's requests go on.
async fn refuses_heads(rows: Vec<Bad>) {
    let vendor = echo().await;
    for rows in rows.chunks(AUDITED_AT_ONCE) {
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
        let mut other = gateway.client().await;
        for (label, bad, status, code) in rows {
            let mut client = gateway.client().await;
            let sent = [bad, post("/v1/audio/speech", &[], HIDDEN).as_bytes()].concat();
            let answer = client.send(&sent).await.answer().await;
            check(label, &answer, (*status, code, None));
            assert_eq!(answer.header("allow"), (*status == 405).then_some("GET, HEAD, POST"), "{label}");
            assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
            let audit = check_audit(label, &gateway, &answer, None).await.to_string();
            assert!(!audit.contains(KEY) && !audit.contains("marker"), "{label}: no values: {audit}");
            canary(&mut other, label).await;
        }
        let codes: BTreeSet<_> = rows.iter().map(|row| row.3).collect();
        for code in codes {
            let count = rows.iter().filter(|row| row.3 == code).count() as u64;
            assert_eq!(gateway.metric(&format!("aulos_head_refusals_total{{code=\"{code}\"}}")).await, count);
        }
    }
    only_canaries(&vendor, rows.len());
}

const INVALID: &str = "invalid_request";

#[tokio::test]
async fn heads_whose_length_could_be_read_in_two_ways_are_refused() {
    let lines = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nX: y\r\ncontent-length: 0\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 05\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 5;x\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Content-Length\t: 5\r\n",
        "Content_Length: 5\r\n",
        "Content-Length:\r\n 5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding: chunked\0\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        "Upgrade: h2c, websocket\r\nTransfer-Encoding: chunked\r\n",
        "Connection: content-length\r\nContent-Length: 5\r\n",
        "Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
        "Connection: authorization\r\n",
        "Connection: x-api-key\r\n",
        "Expect: 200-ok\r\nContent-Length: 5\r\n",
    ];
    let mut rows: Vec<Bad> = lines.map(|lines| (lines, head(SPEAK, lines), 400, INVALID)).into();
    let first =
        [("chunks on HTTP/1.0", "POST /v1/audio/speech HTTP/1.0"), ("chunks with GET", "GET /v1/models HTTP/1.1")];
    rows.extend(first.map(|(label, first)| (label, head(first, "Transfer-Encoding: chunked\r\n"), 400, INVALID)));
    refuses_heads(rows).await;
}

#[tokio::test]
async fn heads_that_break_the_grammar_are_refused() {
    let good = String::from_utf8(head(SPEAK, "X-Marker: marker\r\n")).expect("text");
    let with = |line: &str| head(SPEAK, line);
    let first = |line: &str| head(line, "");
    let rows = [
        ("bare LF everywhere", good.replace("\r\n", "\n").into_bytes()),
        ("bare LF after the request line", good.replacen("\r\n", "\n", 1).into_bytes()),
        ("bare LF after a header", with("X-Marker: marker\nX: y\r\n")),
        ("bare LF at the end", good.replace("\r\n\r\n", "\r\n\n").into_bytes()),
        ("two LF at the end", good.replace("\r\n\r\n", "\n\n").into_bytes()),
        ("bare CR in a value", with("X-Marker: mar\rker\r\n")),
        ("bare CR before the end of a line", with("X-Marker: marker\r\r\n")),
        ("bare CR in a name", with("X-\rMarker: marker\r\n")),
        ("NUL in a value", with("X-Marker: mar\0ker\r\n")),
        ("NUL in a name", with("X-\0Marker: marker\r\n")),
        ("NUL in the target", first("POST /v1/audio/speech\0 HTTP/1.1")),
        ("NUL in the method", first("PO\0ST /v1/audio/speech HTTP/1.1")),
        ("DEL in a value", with("X-Marker: mar\x7fker\r\n")),
        ("escape in a value", with("X-Marker: \x1b[31mmarker\r\n")),
        ("a folded line", with("X-Marker: mar\r\n ker\r\n")),
        ("a line folded by a tab", with("X-Marker: mar\r\n\tker\r\n")),
        ("the first line folded", first("POST /v1/audio/speech HTTP/1.1\r\n X-Marker: marker")),
        ("a space before the colon", with("X-Marker : marker\r\n")),
        ("a tab before the colon", with("X-Marker\t: marker\r\n")),
        ("a space in a name", with("X Marker: marker\r\n")),
        ("a header without a colon", with("X-Marker\r\n")),
        ("a header without a name", with(": marker\r\n")),
        ("a name that is not ASCII", with("X-M\u{e4}rker: marker\r\n")),
        ("a name in brackets", with("[X-Marker]: marker\r\n")),
        ("an empty line first", format!("\r\n{good}").into_bytes()),
        ("a bare LF first", format!("\n{good}").into_bytes()),
        ("two spaces", first("POST  /v1/audio/speech HTTP/1.1")),
        ("two spaces before the version", first("POST /v1/audio/speech  HTTP/1.1")),
        ("a tab", first("POST\t/v1/audio/speech\tHTTP/1.1")),
        ("a space at the end", first("POST /v1/audio/speech HTTP/1.1 ")),
        ("a space at the start", first(" POST /v1/audio/speech HTTP/1.1")),
        ("one word", first("POST")),
        ("no target", first("POST  HTTP/1.1")),
        ("a method in brackets", first("PO(ST) /v1/audio/speech HTTP/1.1")),
        ("a method without end", first(&"P".repeat(40))),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a fragment", first("POST /v1/audio/speech#x HTTP/1.1")),
        ("a target that is not ASCII", first("POST /v1/audio/sp\u{e9}ech HTTP/1.1")),
    ];
    refuses_heads(rows.into_iter().map(|(label, bad)| (label, bad, 400, INVALID)).collect()).await;
}

#[tokio::test]
async fn heads_that_do_not_name_one_host_are_refused() {
    let named = |hosts: &str| format!("{SPEAK}\r\n{hosts}Authorization: Bearer {KEY}\r\n\r\n").into_bytes();
    let target = |target: &str| head(&format!("POST {target} HTTP/1.1"), "");
    let rows = [
        ("none", named("")),
        ("two", named("Host: aulos\r\nHost: other\r\n")),
        ("the same twice", named("Host: aulos\r\nhost: aulos\r\n")),
        ("an empty one", named("Host:\r\n")),
        ("userinfo", named("Host: user@aulos\r\n")),
        ("userinfo with a password", named("Host: user:marker@aulos\r\n")),
        ("a path", named("Host: aulos/v1\r\n")),
        ("a URL", named("Host: http://aulos\r\n")),
        ("a query", named("Host: aulos?x\r\n")),
        ("a list", named("Host: aulos, other\r\n")),
        ("a space", named("Host: au los\r\n")),
        ("a port that is none", named("Host: aulos:x\r\n")),
        ("a port that is too large", named("Host: aulos:65536\r\n")),
        ("brackets around a name", named("Host: [aulos]\r\n")),
        ("the target names another", target("http://other/v1/audio/speech")),
        ("the target names another port", target("http://aulos:81/v1/audio/speech")),
        ("the target names it in capitals", target("http://AULOS/v1/audio/speech")),
        ("the target has userinfo", target("http://user@aulos/v1/audio/speech")),
        ("the target names none", target("http:///v1/audio/speech")),
        ("another scheme", target("ftp://aulos/v1/audio/speech")),
        ("a file", target("file:///etc/passwd")),
    ];
    refuses_heads(rows.into_iter().map(|(label, bad)| (label, bad, 400, INVALID)).collect()).await;
}

#[tokio::test]
async fn methods_targets_and_versions_that_are_not_served_are_refused() {
    let rows = [
        ("TRACE", "TRACE /v1/audio/speech HTTP/1.1", 405, "method_not_allowed"),
        ("trace", "trace / HTTP/1.1", 405, "method_not_allowed"),
        ("CONNECT", "CONNECT aulos:443 HTTP/1.1", 405, "method_not_allowed"),
        ("CONNECT to a path", "CONNECT /v1/audio/speech HTTP/1.1", 405, "method_not_allowed"),
        ("OPTIONS *", "OPTIONS * HTTP/1.1", 400, INVALID),
        ("POST *", "POST * HTTP/1.1", 400, INVALID),
        ("an authority", "POST aulos:80 HTTP/1.1", 400, INVALID),
        ("no slash", "POST v1/audio/speech HTTP/1.1", 400, INVALID),
        ("a query alone", "POST ?model=x HTTP/1.1", 400, INVALID),
        ("HTTP/0.9", "GET /v1/models", 505, "http_version_not_supported"),
        ("HTTP/0.9, said", "GET /v1/models HTTP/0.9", 505, "http_version_not_supported"),
        ("HTTP/2.0", "POST /v1/audio/speech HTTP/2.0", 505, "http_version_not_supported"),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n", 505, "http_version_not_supported"),
        ("HTTP/1.2", "POST /v1/audio/speech HTTP/1.2", 505, "http_version_not_supported"),
        ("HTTP/1.10", "POST /v1/audio/speech HTTP/1.10", 505, "http_version_not_supported"),
        ("http/1.1", "POST /v1/audio/speech http/1.1", 505, "http_version_not_supported"),
        ("another protocol", "POST /v1/audio/speech RTSP/1.0", 505, "http_version_not_supported"),
    ];
    refuses_heads(rows.map(|(label, first, status, code)| (label, head(first, ""), status, code)).into()).await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let target = |bytes: usize| head(&format!("POST /v1/audio/speech?{} HTTP/1.1", "m".repeat(bytes)), "");
    let fields =
        |count: usize, bytes: usize| head(SPEAK, &format!("X-M: {}\r\n", "marker".repeat(bytes)).repeat(count));
    let too_large = "headers_too_large";
    refuses_heads(vec![
        ("a target of 9 KiB", target(9 << 10), 414, "target_too_long"),
        ("a target of a byte too much", target((8 << 10) + 1 - "/v1/audio/speech?".len()), 414, "target_too_long"),
        ("a target longer than a head", target(70 << 10), 414, "target_too_long"),
        ("a head of 70 KiB", fields(1, (70 << 10) / 6), 431, too_large),
        ("a head of 70 KiB in 50 lines", fields(50, (70 << 10) / 300), 431, too_large),
        ("101 header lines", fields(99, 0), 431, too_large),
        ("1000 header lines", fields(1000, 0), 431, too_large),
        ("a name of 70 KiB", head(SPEAK, &format!("{}: x\r\n", "m".repeat(70 << 10))), 431, too_large),
        ("a head of 1 MB", fields(1, 1_000_000 / 6), 431, too_large),
    ])
    .await;
}

/// The other side of the same limits.
#[tokio::test]
async fn heads_that_are_just_in_order_are_served() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary head");
    let query = "q".repeat((8 << 10) - "/v1/audio/speech?".len());
    let rows = [
        ("100 header lines", request(SPEAK, &format!("{JSON}{}", "X-M: y\r\n".repeat(96)), &body)),
        ("60 KiB", request(SPEAK, &format!("{JSON}X-M: {}\r\n", "m".repeat(60 << 10)), &body)),
        ("a target of 8 KiB", request(&format!("POST /v1/audio/speech?{query} HTTP/1.1"), JSON, &body)),
        ("a URL", request("POST http://aulos/v1/audio/speech HTTP/1.1", JSON, &body)),
        ("a URL with its scheme in capitals", request("POST HTTP://aulos/v1/audio/speech HTTP/1.1", JSON, &body)),
        ("HTTP/1.0", request("POST /v1/audio/speech HTTP/1.0", JSON, &body)),
        ("chunks", [head(SPEAK, CHUNKED), chunked(&body, 3)].concat()),
        ("chunks in capitals", [head(SPEAK, "Transfer-Encoding: CHUNKED\r\n"), chunked(&body, 99)].concat()),
        ("no space after the colon", request(SPEAK, "X-M:y\r\ncontent-type:application/json\r\n", &body)),
        ("spaces around a value", request(SPEAK, "X-M: \t y \t\r\n", &body)),
        ("bytes beyond ASCII in a value", request(SPEAK, "X-M: \u{e4}\r\n", &body)),
    ];
    for (label, sent) in &rows {
        let answer = gateway.client().await.send(sent).await.answer().await;
        assert_eq!(answer.status, 200, "{label}: {answer:?}");
        assert_eq!(answer.text(), body.replace("openai/", ""), "{label}");
    }
    only_canaries(&vendor, rows.len());
    assert!(vendor.requests().iter().all(|sent| sent.target.starts_with("/v1/audio/speech")));
}

/// Whatever byte the head lint lets through, no parser behind it answers in our place, and none is changed on the way.
#[tokio::test]
async fn every_byte_that_may_stand_in_a_head_is_answered_by_us() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary byte");
    for byte in (0x21u8..=0x7e).filter(|byte| *byte != b'#') {
        // Of the others, which no URL has (RFC 3986), each may be refused; but it is we who answer.
        let plain = byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&byte);
        let byte = char::from(byte);
        let first = format!("GET /v1/a{byte}b HTTP/1.1");
        let answer = gateway.client().await.send(&head(&first, "")).await.answer().await;
        check(
            &first,
            &answer,
            if plain || answer.status == 404 { (404, "unknown_url", None) } else { (400, INVALID, None) },
        );
        let target = format!("/v1/audio/speech?a{byte}b=a{byte}b");
        let sent = request(&format!("POST {target} HTTP/1.1"), JSON, &body);
        let answer = gateway.client().await.send(&sent).await.answer().await;
        if plain || answer.status == 200 {
            assert_eq!(answer.status, 200, "{target}: {answer:?}");
            assert_eq!(vendor.requests().last().map(|sent| sent.target.clone()), Some(target));
        } else {
            check(&target, &answer, (400, INVALID, None));
        }
    }
    let mut client = gateway.client().await;
    for byte in (0x21u8..=0x7e).filter(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)) {
        let byte = char::from(byte);
        let first = format!("M{byte} /v1/models HTTP/1.1");
        let answer = client.send(&head(&first, "")).await.answer().await;
        check(&first, &answer, (405, "method_not_allowed", None));
        let lines = format!("{JSON}X{byte}Y: y\r\n");
        assert_eq!(client.send(&request(SPEAK, &lines, &body)).await.answer().await.status, 200, "{lines}");
        let name = format!("x{byte}y").to_ascii_lowercase();
        assert_eq!(vendor.requests().last().and_then(|sent| sent.header(&name).map(str::to_owned)), Some("y".into()));
    }
    for byte in (0x20u8..=0xff).filter(|byte| *byte != 0x7f) {
        let mut sent = request(SPEAK, &format!("{JSON}X-Marker: a@b\r\n"), &body);
        let at = find(&sent, b"@").expect("there");
        sent[at] = byte;
        assert_eq!(client.send(&sent).await.answer().await.status, 200, "{byte:#x}");
    }
}

/// A client that waits for it gets its 100, once the head is in order.
#[tokio::test]
async fn a_client_that_expects_to_be_asked_for_its_body_is() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary expect");
    let mut client = gateway.client().await;
    client.send(&head(SPEAK, &format!("{JSON}Expect: 100-continue\r\nContent-Length: {}\r\n", body.len()))).await;
    assert_eq!(client.head().await.status, 100);
    assert_eq!(client.send(body.as_bytes()).await.answer().await.status, 200);
    assert_eq!(vendor.received(1).await[0].header("expect"), None);
}

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
    let size = format!("{:x}", json.len());
    let hidden = post("/v1/audio/speech", &[], HIDDEN);
    let large = "e".repeat(300_000);
    let rows = [
        ("a size past 64 bits", format!("1000000000000000{size}\r\n{json}\r\n0\r\n\r\n")),
        ("a negative size", format!("-{size}\r\n{json}\r\n0\r\n\r\n")),
        ("a plus", format!("+{size}\r\n{json}\r\n0\r\n\r\n")),
        ("0x", format!("0x{size}\r\n{json}\r\n0\r\n\r\n")),
        ("an underscore", format!("0_{size}\r\n{json}\r\n0\r\n\r\n")),
        ("no size", format!("\r\n{json}\r\n0\r\n\r\n")),
        ("a size that is no number", format!("xyz\r\n{json}\r\n0\r\n\r\n")),
        ("a size too small", format!("5\r\n{json}\r\n0\r\n\r\n")),
        ("a size too large", format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len() + 2)),
        ("no CRLF behind the data", format!("{size}\r\n{json}0\r\n\r\n")),
        ("LF behind the data", format!("{size}\r\n{json}\n0\r\n\r\n")),
        ("LF behind the size", format!("{size}\n{json}\r\n0\r\n\r\n")),
        ("a space before the size", format!(" {size}\r\n{json}\r\n0\r\n\r\n")),
        ("a space behind the size", format!("{size} \r\n{json}\r\n0\r\n\r\n")),
        ("LF in an extension", format!("{size};a\nb\r\n{json}\r\n0\r\n\r\n")),
        ("CR in an extension", format!("{size};a\rb\r\n{json}\r\n0\r\n\r\n")),
        ("NUL in an extension", format!("{size};a\0b\r\n{json}\r\n0\r\n\r\n")),
        ("a large extension", format!("{size};{large}\r\n{json}\r\n0\r\n\r\n")),
        ("a large trailer", format!("{size}\r\n{json}\r\n0\r\nX-T: {large}\r\n\r\n")),
        ("many trailers", format!("{size}\r\n{json}\r\n0\r\n{}\r\n", "X-T: y\r\n".repeat(20_000))),
        ("a request in an extension", format!("0;\n{hidden}\r\n\r\n")),
    ];
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
    let vectors = desync::vectors();
    let ambiguous = vectors.iter().filter(|vector| vector.is_ambiguous()).count();
    assert!(ambiguous > 80 && vectors.len() - ambiguous > 30, "{ambiguous} of {}", vectors.len());
    for vector in &vectors {
        for target in [&vector.uri[..], b"/v1/audio/speech"] {
            let mut sent = vector.head(target);
            if vector.is_ambiguous() {
                sent.extend_from_slice(b"0\r\n\r\n");
                sent.extend_from_slice(post("/v1/audio/speech", &[], HIDDEN).as_bytes());
            }
            let mut client = gateway.client().await;
            let said = client.send(&sent).await.finish().await.rest().await.to_ascii_lowercase();
            let shown = format!("{}: {}\n{}", vector.name, sent.escape_ascii(), said.escape_ascii());
            let refused = [&b"http/1.1 4"[..], b"http/1.1 5"].iter().any(|status| said.starts_with(status));
            assert!(refused || said.is_empty(), "{shown}");
            assert!(memchr::memmem::find_iter(&said, "x-aulos-request-id").count() <= 1, "one answer: {shown}");
        }
        canary(&mut other, &vector.name).await;
    }
    only_canaries(&vendor, vectors.len());
}

/// Reads the vectors from the crate's package: a list of cases, one `key: scalar` a line, nested by indentation.
mod desync {
    use std::path::Path;
    use std::process::Command;

    use super::KEY;

    #[derive(Default)]
    pub(super) struct Vector {
        pub(super) name: String,
        pub(super) uri: Vec<u8>,
        method: Vec<u8>,
        version: Vec<u8>,
        headers: Vec<[Vec<u8>; 2]>,
        tier: Vec<u8>,
    }

    impl Vector {
        /// Where the crate says that what follows the head may be read in two ways.
        pub(super) fn is_ambiguous(&self) -> bool {
            [&b"Ambiguous"[..], b"Severe"].contains(&&self.tier[..])
        }

        pub(super) fn head(&self, target: &[u8]) -> Vec<u8> {
            let mut head = [&self.method[..], b" ", target, b" ", &self.version, b"\r\n"].concat();
            if !self.headers.iter().any(|[name, _]| name.eq_ignore_ascii_case(b"host")) {
                head.extend_from_slice(b"Host: aulos\r\n");
            }
            head.extend_from_slice(format!("Authorization: Bearer {KEY}\r\n").as_bytes());
            head.extend(self.headers.iter().flat_map(|[name, value]| [&name[..], b": ", value, b"\r\n"].concat()));
            [&head[..], b"\r\n"].concat()
        }
    }

    pub(super) fn vectors() -> Vec<Vector> {
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let metadata = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform", &platform])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let metadata: serde_json::Value = serde_json::from_slice(&metadata.expect("runs").stdout).expect("JSON");
        let mut packages = metadata["packages"].as_array().expect("packages").iter();
        let found = packages.find(|package| package["name"] == "http_desync_guardian").expect("a dev-dependency");
        let package = Path::new(found["manifest_path"].as_str().expect("a path")).parent().expect("a directory");
        let files = std::fs::read_dir(package.join("tests")).expect("the package has its tests");
        let files = files.map(|file| file.expect("readable").path());
        let yaml = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        yaml.flat_map(|path| parse(&std::fs::read_to_string(path).expect("readable"))).collect()
    }

    fn parse(text: &str) -> Vec<Vector> {
        let mut vectors: Vec<Vector> = Vec::new();
        for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', '"'])) {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = scalar(value.trim());
            if key == "- name" {
                vectors.push(Vector { name: String::from_utf8_lossy(&value).into_owned(), ..Vector::default() });
            }
            let Some(last) = vectors.last_mut() else { continue };
            match key {
                "  uri" => last.uri = value,
                "  method" => last.method = value,
                "  version" => last.version = value,
                "    - name" => last.headers.push([value, Vec::new()]),
                "      value" => last.headers.last_mut().expect("a header has a name")[1] = value,
                "    tier" => last.tier = value,
                _ => {}
            }
        }
        vectors
    }

    /// `\xHH` is that byte, in plain scalars too.
    fn scalar(text: &str) -> Vec<u8> {
        let quoted = ['"', '\''].iter().find_map(|mark| text.strip_prefix(*mark)?.strip_suffix(*mark));
        let mut parts = quoted.unwrap_or(text).split('\\');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        while let Some(part) = parts.next() {
            let hex = part.strip_prefix('x').and_then(|hex| Some((u8::from_str_radix(hex.get(..2)?, 16).ok()?, 3)));
            let escaped =
                [("t", b'\t'), ("r", b'\r'), ("n", b'\n')].into_iter().find(|(name, _)| part.starts_with(name));
            match hex.or(escaped.map(|(_, byte)| (byte, 1))) {
                Some((byte, taken)) => bytes.extend([&[byte], &part.as_bytes()[taken..]].concat()),
                None if part.is_empty() => bytes.extend([b"\\", parts.next().unwrap_or_default().as_bytes()].concat()),
                None => bytes.extend_from_slice(part.as_bytes()),
            }
        }
        bytes
    }
}

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

fn files_below(dir: &Path, see: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files_below(&path, see);
        } else {
            see(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).expect("readable")));
        }
    }
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
