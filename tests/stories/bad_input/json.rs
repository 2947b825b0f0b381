//! What a body says: JSON that is none, fields that are wrong, models that nobody serves.

use std::fs;
use std::time::{Duration, Instant};

use super::{Fate, HIDDEN, JSON, SPEAK, Want, canary, check, check_audit, echo, fate, only_canaries, request};
use crate::support::gateway::SPEECH;
use crate::support::{Conf, Gateway};

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
        // Some providers do not tell these from the ones that were checked.
        ("model in other letters", r#""model":"openai/tts-1","Model":"x/y","input":"x","voice":"alloy""#, "Model"),
        ("input in capitals", r#""model":"openai/tts-1","input":"x","voice":"alloy","INPUT":"a longer one""#, "INPUT"),
        ("model in capitals alone", r#""MODEL":"openai/tts-1","input":"x","voice":"alloy""#, "MODEL"),
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
