//! A request goes in, speech comes out.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::support::client::post;
use super::support::gateway::SPEECH;
use super::support::vendor::Received;
use super::support::{Answer, Conf, Gateway, KEY, PROVIDER_KEY, Vendor, sha256};

/// A model of the gateway's own, and an alias of it.
const MODELS: &str =
    "[models.tts-fast]\nroutes = [\"openai/gpt-4o-mini-tts\"]\n[aliases]\n\"tts-1\" = \"tts-fast\"\nhd = \"tts-1\"\n";
/// A speech request that names no model.
const NAMELESS: &str = r#"{"input":"Hello","voice":"alloy"}"#;

/// One request with the test's key on a connection of its own.
async fn ask(gateway: &Gateway, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    gateway.client().await.send(post(path, headers, body).as_bytes()).await.answer().await
}

/// A speech request for `model` with another key than the test's.
async fn ask_as(gateway: &Gateway, key: &str, headers: &[(&str, &str)], model: &str) -> Answer {
    let body = json!({ "model": model, "input": "Hello", "voice": "alloy" }).to_string();
    let request = post("/v1/audio/speech", headers, &body).replace(KEY, key);
    gateway.client().await.send(request.as_bytes()).await.answer().await
}

/// A request without a body. `key`: none for a stranger.
async fn get_as(gateway: &Gateway, key: Option<&str>, path: &str) -> Answer {
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!("GET {path} HTTP/1.1\r\nHost: aulos\r\n{key}\r\n");
    gateway.client().await.send(head.as_bytes()).await.answer().await
}

/// What the vendor was sent last.
fn last(vendor: &Vendor) -> Received {
    vendor.requests().pop().expect("it was sent something")
}

fn model_of(received: &Received) -> Value {
    serde_json::from_slice::<Value>(&received.body).expect("JSON")["model"].clone()
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(|item| item["id"].as_str()).collect()
}

/// A vendor that writes `pieces` one after the other, each when the story has seen the one before.
async fn paced(pieces: Vec<Vec<u8>>) -> (Vendor, Arc<Semaphore>) {
    let seen = Arc::new(Semaphore::new(0));
    let go = Arc::clone(&seen);
    let vendor = Vendor::start(move |_, mut wire| {
        let (go, pieces) = (Arc::clone(&go), pieces.clone());
        async move {
            for piece in pieces {
                wire.write(piece).await;
                go.acquire().await.expect("never closed").forget();
            }
            Some(wire)
        }
    })
    .await;
    (vendor, seen)
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[tokio::test]
async fn speech_comes_out_and_is_recorded() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with("[aliases]\n\"tts-1\" = \"openai/gpt-4o-mini-tts\"");
    let mut gateway = Gateway::spawn(conf).await;
    let body = r#"{ "voice":"alloy", "model" : "tts-1", "input":"Hëllo" , "x":[1,{"y":null}]}"#;
    let answer = gateway.post("/v1/audio/speech", body).await;
    assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, &b"SOUND"[..], true));
    assert_eq!(answer.header("content-type"), Some("audio/mpeg"));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert_eq!(answer.header("x-aulos-origin"), Some("provider"));
    let sent = &vendor.received(1).await[0];
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", "/v1/audio/speech"));
    assert_eq!(sent.text(), body.replace("tts-1", "gpt-4o-mini-tts"), "only the model's name is another");
    assert_eq!(sent.header("content-length"), Some(sent.body.len().to_string().as_str()));
    assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
    assert!(gateway.stop().await.success());
    let (usage, audit) = (gateway.records("usage"), gateway.records("audit"));
    assert_eq!((usage.len(), audit.len()), (1, 1));
    assert_eq!(usage[0]["id"].as_str(), answer.header("x-aulos-request-id"));
    assert_eq!((&usage[0]["model_asked"], &usage[0]["bytes_out"]), (&"tts-1".into(), &5.into()));
    assert_eq!((&audit[0]["end"], &audit[0]["status"]), (&"complete".into(), &200.into()));
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut client = gateway.client().await;
    for _ in 0..3 {
        assert_eq!(client.post("/v1/audio/speech", SPEECH).await.status, 200);
        let refused = client.post("/v1/audio/speech", NAMELESS).await;
        assert_eq!(refused.refusal(), (400, "missing_required_parameter".into()), "a refusal does not end it");
        assert_eq!(client.post("/v1/nothing", "").await.status, 404);
    }
    assert_eq!(vendor.received(3).await[2].connection, 0, "the connection to the vendor is used again");
    assert_eq!(vendor.connections(), 1);
}

#[tokio::test]
async fn every_spelling_of_a_path_leads_to_the_same_place() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (path, query) in [
        ("/v1/", ""),
        ("/api/v1/", ""),
        ("/openai/v1/", "?api-version=preview"),
        ("/openai/deployments/tts-fast/", "?api-version=2025-04-01-preview"),
        ("/openai/deployments/openai%2Fgpt-4o-mini-tts/", "?api-version=2025-04-01-preview&x=%20"),
    ] {
        for endpoint in ["audio/speech", "chat/completions"] {
            // A client of Azure's dialect names the deployment; what its body calls the model is of no account.
            let model = if path.contains("deployments") { "whatever" } else { "tts-1" };
            let body = format!(r#"{{"input":"Hello","voice":"alloy","model":"{model}"}}"#);
            let answer = ask(&gateway, &format!("{path}{endpoint}{query}"), &[], &body).await;
            assert_eq!(answer.status, 200, "{path}{endpoint}: {answer:?}");
            let sent = last(&vendor);
            assert_eq!(sent.target, format!("/v1/{endpoint}{query}"), "{path}");
            assert_eq!(sent.text(), body.replace(model, "gpt-4o-mini-tts"), "{path}{endpoint}");
        }
    }
}

#[tokio::test]
async fn the_model_may_be_named_outside_the_body() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let inserted = NAMELESS.replacen('{', r#"{"model":"gpt-4o-mini-tts","#, 1);
    let named = r#"{"input":"Hello","voice":"alloy","model":"tts-1"}"#;
    let renamed = named.replace("tts-1", "gpt-4o-mini-tts");
    let model = "x-aulos-model";
    let (speech, deployment) = ("/v1/audio/speech", "/openai/deployments/tts-fast/audio/speech");
    for (path, headers, body, want) in [
        (speech, &[(model, "tts-1")][..], NAMELESS, &inserted),
        ("/v1/audio/speech?model=tts-1", &[], NAMELESS, &inserted),
        ("/v1/audio/speech?x=1&model=openai%2Fgpt-4o-mini-tts&y", &[], NAMELESS, &inserted),
        (deployment, &[], NAMELESS, &inserted),
        (speech, &[(model, "tts-1")], named, &renamed),
        ("/v1/audio/speech?model=tts-1", &[(model, "tts-1")], named, &renamed),
        (deployment, &[(model, "tts-1")], named, &renamed),
    ] {
        let answer = ask(&gateway, path, headers, body).await;
        assert_eq!(answer.status, 200, "{path} {headers:?} {body}: {answer:?}");
        let sent = last(&vendor);
        assert_eq!(sent.text(), *want, "{path} {headers:?}");
        let length = want.len().to_string();
        assert_eq!(sent.header("content-length"), Some(length.as_str()), "{path} {headers:?} {body}");
        assert!(!sent.target.contains("model"), "{path}: the name was for us: {}", sent.target);
        assert!(!sent.headers.iter().any(|(name, _)| name.starts_with("x-aulos")), "{:?}", sent.headers);
    }
    let served = vendor.requests().len();
    for (path, headers) in [
        (speech, &[(model, "tts-2")][..]),
        ("/v1/audio/speech?model=tts-2", &[]),
        ("/v1/audio/speech?model=tts-1", &[(model, "tts-2")]),
        (speech, &[(model, "tts-1"), (model, "tts-2")]),
    ] {
        let refusal = ask(&gateway, path, headers, named).await.refusal();
        assert_eq!(refusal, (400, "model_conflict".into()), "{path} {headers:?}");
    }
    assert_eq!(vendor.requests().len(), served, "nothing of a refused request is forwarded");
}

#[tokio::test]
async fn a_model_that_is_null_is_replaced_and_not_doubled() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let body = r#"{"input":"Hello","model" : null,"voice":"alloy"}"#;
    assert_eq!(ask(&gateway, "/v1/audio/speech?model=tts-1", &[], body).await.status, 200);
    // With the name put in front, a parser that takes the last of two would read `null`.
    assert_eq!(last(&vendor).text(), body.replace("null", "\"gpt-4o-mini-tts\""));
}

#[tokio::test]
async fn a_model_is_put_into_an_empty_object() {
    let vendor = Vendor::speech("application/json", b"{}").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for body in ["{}", " {\n} "] {
        assert_eq!(ask(&gateway, "/v1/chat/completions?model=tts-1", &[], body).await.status, 200);
        let sent: Option<Value> = serde_json::from_slice(&last(&vendor).body).ok();
        assert_eq!(sent, Some(json!({ "model": "gpt-4o-mini-tts" })), "{body:?} became {}", last(&vendor).text());
    }
}

#[tokio::test]
async fn a_provider_is_chosen_by_prefix_header_model_or_alias() {
    let (openai, local) = (Vendor::speech("audio/mpeg", b"A").await, Vendor::speech("audio/mpeg", b"B").await);
    let url = local.base_url();
    let conf = Conf::new().upstream(&openai).with(&format!(
        "[providers.local]\nkind = \"openai\"\nbase_url = \"{url}\"\n{MODELS}kokoro = \"local/hexgrad/kokoro\"\n"
    ));
    let gateway = Gateway::spawn(conf).await;
    let hint = "x-aulos-provider";
    for (model, headers, provider, want) in [
        ("tts-fast", &[][..], "openai", "gpt-4o-mini-tts"),
        ("hd", &[], "openai", "gpt-4o-mini-tts"),
        ("openai/anything", &[], "openai", "anything"),
        ("local/anything", &[], "local", "anything"),
        ("kokoro", &[], "local", "hexgrad/kokoro"),
        ("local/hexgrad/kokoro", &[], "local", "hexgrad/kokoro"),
        ("unheard-of", &[(hint, "local")], "local", "unheard-of"),
        ("local/piper", &[(hint, "local")], "local", "piper"),
        ("tts-fast", &[(hint, "openai")], "openai", "gpt-4o-mini-tts"),
    ] {
        let answer = ask_as(&gateway, KEY, headers, model).await;
        assert_eq!(answer.status, 200, "{model} {headers:?}: {answer:?}");
        let vendor = if provider == "openai" { &openai } else { &local };
        assert_eq!(answer.body, if provider == "openai" { b"A" } else { b"B" }, "{model} {headers:?}");
        assert_eq!(model_of(&last(vendor)), want, "{model} {headers:?}");
        assert_eq!((answer.header(hint), answer.header("x-aulos-model")), (Some(provider), Some(want)), "{model}");
    }
    assert_eq!(last(&local).header("authorization"), None, "a provider without a key gets nobody else's");
    let served = openai.requests().len() + local.requests().len();
    for (model, headers) in
        [("unheard-of", &[][..]), ("nobody/tts", &[]), ("openai/", &[]), ("tts-1", &[(hint, "nobody")])]
    {
        let refusal = ask_as(&gateway, KEY, headers, model).await.refusal();
        assert_eq!(refusal, (404, "model_not_found".into()), "{model} {headers:?}");
    }
    assert_eq!(openai.requests().len() + local.requests().len(), served);
}

#[tokio::test]
async fn closed_models_leave_only_what_the_config_names() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).server("closed_models = true");
    let gateway = Gateway::spawn(conf).await;
    let hint = ("x-aulos-provider", "openai");
    for (model, headers) in [("tts-fast", &[][..]), ("tts-1", &[]), ("tts-fast", &[hint])] {
        assert_eq!(ask_as(&gateway, KEY, headers, model).await.status, 200, "{model} {headers:?}");
    }
    for (model, headers) in [("openai/gpt-4o-mini-tts", &[][..]), ("openai/other", &[]), ("gpt-4o-mini-tts", &[hint])] {
        let refusal = ask_as(&gateway, KEY, headers, model).await.refusal();
        assert_eq!(refusal, (404, "model_not_found".into()), "{model} {headers:?}");
    }
    assert_eq!(vendor.requests().len(), 3);
}

/// Keys that may use some models only.
fn access() -> String {
    let keys = [
        ("everything", r#"allow = ["/"]"#),
        ("provider", r#"allow = ["openai/"]"#),
        ("exact", r#"allow = ["openai/gpt-4o-mini-tts"]"#),
        ("model", r#"allow = ["tts-fast"]"#),
        ("alias", r#"allow = ["tts-1"]"#),
        ("team", r#"user_path = "/team""#),
        ("child", "user_path = \"/team/kids/a\"\nallow = [\"openai/\"]"),
    ];
    let keys = keys.map(|(name, rest)| format!("[keys.{name}]\nsha256 = \"{}\"\n{rest}\n", sha256(name)));
    format!("[paths.\"/team/kids\"]\nallow = [\"tts-fast\", \"local/\"]\n{}", keys.concat())
}

#[tokio::test]
async fn a_key_uses_what_its_lists_allow() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let url = vendor.base_url();
    let local = format!("[providers.local]\nkind = \"openai\"\nbase_url = \"{url}\"\n");
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(&local).with(MODELS).keys(&access())).await;
    let asked = ["tts-fast", "tts-1", "openai/gpt-4o-mini-tts", "openai/x", "local/x"];
    let (own, alias) = ("x-aulos-user-path", "X-GoModel-User-Path");
    for (key, headers, allowed) in [
        ("everything", &[][..], &asked[..]),
        ("provider", &[], &asked[..4]),
        ("exact", &[], &asked[..3]),
        ("model", &[], &asked[..2]),
        ("alias", &[], &asked[1..2]),
        ("team", &[], &asked),
        ("team", &[(own, "/team/kids")], &[asked[0], asked[1], asked[4]]),
        ("team", &[(own, "/team/kids/b/c")], &[asked[0], asked[1], asked[4]]),
        ("team", &[(alias, "/team/kids")], &[asked[0], asked[1], asked[4]]),
        ("team", &[(own, "/team/kids-2")], &asked),
        ("child", &[], &asked[..2]),
    ] {
        for model in asked {
            let before = vendor.requests().len();
            let answer = ask_as(&gateway, key, headers, model).await;
            let forwarded = vendor.requests().len() - before;
            if allowed.contains(&model) {
                assert_eq!((answer.status, forwarded), (200, 1), "{key} {headers:?} {model}: {answer:?}");
                assert!(!last(&vendor).headers.iter().any(|(name, _)| name.contains("user-path")), "it was for us");
            } else {
                let got = (answer.refusal(), forwarded);
                assert_eq!(got, ((403, "model_access_denied".into()), 0), "{key} {headers:?} {model}");
                assert_eq!(answer.header("x-should-retry"), Some("false"));
            }
        }
    }
    for path in ["/other", "/team/../root", "/team-2"] {
        let refusal = ask_as(&gateway, "team", &[(own, path)], "tts-1").await.refusal();
        assert_eq!(refusal, (400, "invalid_user_path".into()), "{path}");
    }
    let answer = ask_as(&gateway, "team", &[(own, "team//kids/")], "tts-1").await;
    assert_eq!(gateway.record_of("usage", &answer).await["user_path"], "/team/kids");
}

#[tokio::test]
async fn those_who_switch_keep_their_status_and_their_header() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).keys(&access().replace(", \"local/\"", ""));
    let conf = conf.server("access_denied_status = 400\nuser_path_header = \"X-Tenant\"");
    let gateway = Gateway::spawn(conf).await;
    for name in ["x-tenant", "x-gomodel-user-path"] {
        let denied = ask_as(&gateway, "team", &[(name, "/team/kids")], "openai/x").await;
        assert_eq!(denied.refusal(), (400, "model_access_denied".into()), "{name}");
        assert_eq!(denied.json()["error"]["param"], "model");
        assert_eq!(ask_as(&gateway, "team", &[(name, "/team/kids")], "tts-fast").await.status, 200, "{name}");
        assert_eq!(last(&vendor).header(name), None);
    }
    assert_eq!(vendor.requests().len(), 2);
}

#[tokio::test]
async fn however_a_client_spells_its_key_it_ends_here() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let bearer = format!("Authorization: Bearer {KEY}");
    for (spelling, auth) in [
        (bearer.clone(), "bearer"),
        (format!("authorization: token {KEY}"), "token"),
        (format!("api-key: {KEY}"), "api-key"),
        (format!("X-Api-Key: {KEY}"), "x-api-key"),
        (format!("xi-api-key: {KEY}"), "xi-api-key"),
        (format!("x-goog-api-key: {KEY}"), "x-goog-api-key"),
        (format!("{bearer}\r\nx-api-key: {KEY}\r\nCookie: key={KEY}\r\nProxy-Authorization: {KEY}"), "bearer"),
    ] {
        let request = post("/v1/audio/speech", &[], SPEECH).replace(&bearer, &spelling);
        let answer = gateway.client().await.send(request.as_bytes()).await.answer().await;
        assert_eq!(answer.status, 200, "{spelling}: {answer:?}");
        let sent = last(&vendor);
        assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()), "{spelling}");
        assert!(!format!("{sent:?}").contains(KEY), "{spelling}: {sent:?}");
        assert_eq!(gateway.record_of("audit", &answer).await["auth"], auth);
    }
}

#[tokio::test]
async fn events_pass_one_by_one_and_untouched() {
    let events: Vec<String> = (0..10)
        .map(|n| format!("data: {{\"id\":{n},\"x\":\"ä\\u00e4 {}\"}}\r\n\n: event {n} ends\n\n", "é".repeat(n)))
        .chain(["data: [DONE]\n\n".to_owned()])
        .collect();
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = events.iter().map(|event| chunk(event.as_bytes()));
    let pieces = [head.to_vec()].into_iter().chain(chunks).chain([b"0\r\n\r\n".to_vec()]).collect();
    let (vendor, seen) = paced(pieces).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = r#"{"model":"openai/gpt-audio","stream":true,"messages":[],"audio":{"format":"pcm16","voice":"alloy"}}"#;
    let mut client = gateway.client().await;
    client.send(post("/v1/chat/completions", &[], body).as_bytes()).await.sees("\r\n\r\n").await;
    seen.add_permits(1);
    for event in &events {
        client.sees(event).await;
        seen.add_permits(1);
    }
    seen.add_permits(1);
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.text(), events.concat());
    let usage = gateway.record_of("usage", &answer).await;
    assert_eq!((&usage["op"], &usage["stream"], &usage["format"]), (&json!("chat"), &json!(true), &json!("pcm16")));
    assert_eq!((&usage["bytes_out"], &usage["end"]), (&json!(events.concat().len()), &json!("complete")));
}

#[tokio::test]
async fn a_client_that_hangs_up_on_the_last_event_has_heard_it_all() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let last: &[u8] = if request.text().contains("done") { b"data: [DONE]\n\n" } else { b"data: {\"b\":2}\n\n" };
        wire.write(head).await.write(chunk(b"data: {\"a\":1}\n\n")).await.write(chunk(last)).await;
        // The end of the answer never comes: the client has left by then.
        wire.gone().await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (user, last, end) in [("done", "[DONE]\n\n", "complete"), ("open", "{\"b\":2}\n\n", "client_gone")] {
        let mut client = gateway.client().await;
        let body = format!(r#"{{"model":"openai/gpt-audio","stream":true,"user":"{user}"}}"#);
        let answer = client.send(post("/v1/chat/completions", &[], &body).as_bytes()).await.head().await;
        client.sees(last.as_bytes()).await;
        drop(client);
        assert_eq!(gateway.record_of("audit", &answer).await["end"], end);
    }
}

#[tokio::test]
async fn a_chat_that_is_not_streamed_passes_whole() {
    let reply = br#"{"id":"chatcmpl-1", "choices":[{"message":{"audio":{"data":"UklGRg=="}}}] , "usage":{"total":3}}"#;
    let vendor = Vendor::speech("application/json", reply).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let body = r#"{"messages":[{"role":"user","content":"x"}],"model":"tts-fast","modalities":["text","audio"]}"#;
    let answer = gateway.post("/v1/chat/completions", body).await;
    assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, &reply[..], true));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let sent = last(&vendor);
    let want = ("/v1/chat/completions", body.replace("tts-fast", "gpt-4o-mini-tts"));
    assert_eq!((sent.target.as_str(), sent.text()), want);
    let usage = gateway.record_of("usage", &answer).await;
    assert_eq!((&usage["op"], &usage["stream"], &usage["input_chars"]), (&json!("chat"), &json!(false), &Value::Null));
}

#[tokio::test]
async fn audio_is_heard_while_it_is_made() {
    let pieces: Vec<Vec<u8>> = (0..10).map(|n| format!("<piece {n} of the sound>").into_bytes()).collect();
    let length = pieces.concat().len().to_string();
    let counted = format!("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: {length}\r\n\r\n");
    let chunked = "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let (framed, last) = (pieces.iter().map(|piece| chunk(piece)), b"0\r\n\r\n".to_vec());
    for (label, head, bodies, is_counted) in [
        ("counted", counted, pieces.clone(), true),
        ("chunked", chunked, framed.chain([last]).collect::<Vec<_>>(), false),
    ] {
        let (vendor, seen) = paced([vec![head.into_bytes()], bodies].concat()).await;
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
        let mut client = gateway.client().await;
        client.send(post("/v1/audio/speech", &[], SPEECH).as_bytes()).await.sees("\r\n\r\n").await;
        seen.add_permits(1);
        for piece in &pieces {
            client.sees(piece).await;
            seen.add_permits(1);
        }
        seen.add_permits(1);
        let answer = client.answer().await;
        assert!(answer.complete && answer.body == pieces.concat(), "{label}: {answer:?}");
        let want = if is_counted { (Some(length.as_str()), None) } else { (None, Some("chunked")) };
        let got = (answer.header("content-length"), answer.header("transfer-encoding"));
        assert_eq!(got, want, "{label}: the framing stays");
        // The connection is in order behind it.
        assert_eq!(client.post("/v1/nothing", "").await.status, 404, "{label}");
    }
}

#[tokio::test]
async fn the_type_is_the_providers_or_what_was_asked_for() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let kind = if request.text().contains("typed") { "Content-Type: Audio/X-Odd; rate=8000\r\n" } else { "" };
        wire.write(format!("HTTP/1.1 200 OK\r\n{kind}Content-Length: 5\r\n\r\nSOUND")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (input, format, want) in [
        ("typed", Some("wav"), "Audio/X-Odd; rate=8000"),
        ("bare", None, "audio/mpeg"),
        ("bare", Some("mp3"), "audio/mpeg"),
        ("bare", Some("opus"), "audio/ogg"),
        ("bare", Some("aac"), "audio/aac"),
        ("bare", Some("flac"), "audio/flac"),
        ("bare", Some("wav"), "audio/wav"),
        ("bare", Some("pcm"), "audio/pcm"),
        ("bare", Some("pcm16"), "audio/pcm"),
        ("bare", Some("strange"), "application/octet-stream"),
    ] {
        let mut body = json!({ "model": "openai/x", "input": input, "voice": "a" });
        if let Some(format) = format {
            body["response_format"] = format.into();
        }
        let answer = gateway.post("/v1/audio/speech", &body.to_string()).await;
        assert_eq!(answer.header("content-type"), Some(want), "{input} {format:?}");
        let sent: Value = serde_json::from_slice(&last(&vendor).body).expect("JSON");
        let format = format.map(|format| if format == "pcm16" { "pcm" } else { format });
        assert_eq!(sent["response_format"].as_str(), format, "`pcm16` is what providers call `pcm`");
    }
}

/// A sequence that looks random and is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    fn space(&mut self) -> &'static str {
        self.pick(&["", "", " ", "\t", "\n", "\r\n  "])
    }

    fn value(&mut self, depth: usize) -> String {
        const TEXTS: [&str; 7] = [
            r#""""#,
            r#""Hëllo, 日本語 😀""#,
            r#""\u00e9\ud83d\ude00\u0000""#,
            r#""\"model\":\"tts-fast\"""#,
            r#""\\\/\b\f\n\r\t""#,
            "\"\u{7f}\u{2028}\"",
            r#""{[,:]}""#,
        ];
        let (a, b) = (self.space(), self.space());
        match self.roll(if depth > 3 { 3 } else { 5 }) {
            0 => self.pick(&TEXTS).to_owned(),
            1 => self.pick(&["0", "-0", "1E+2", "-12.50e-7", "123456789012345678901234567890", "3.0"]).to_owned(),
            2 => self.pick(&["true", "false", "null"]).to_owned(),
            3 => format!("[{a}{},{b}{}]", self.value(depth + 1), self.value(depth + 1)),
            _ => format!("{{{a}\"model\"{b}:{},\"\":{} }}", self.value(depth + 1), self.value(depth + 1)),
        }
    }

    /// A body as a client sends it, and as the provider has to get it.
    fn body(&mut self) -> (String, String) {
        const MARK: &str = "\u{1}";
        let key = self.pick(&["\"model\"", "\"mod\\u0065l\""]);
        let name = self.pick(&["\"tts-fast\"", "\"tts\\u002dfast\"", "\"tts-1\""]);
        let mut members = vec![(key.to_owned(), MARK.to_owned()), ("\"input\"".into(), "\"H\\u00e9 \\n\"".into())];
        members.push(("\"voice\"".into(), "\"alloy\"".into()));
        members.extend((0..self.roll(6)).map(|n| (format!("\"x{n}é\\n\""), self.value(0))));
        let mut body = String::new();
        while !members.is_empty() {
            let (key, value) = members.swap_remove(self.roll(members.len()));
            let comma = if body.is_empty() { "" } else { "," };
            let [a, b, c, d] = [self.space(), self.space(), self.space(), self.space()];
            body.push_str(&format!("{comma}{a}{key}{b}:{c}{value}{d}"));
        }
        let body = format!("{}{{{body}}}{}", self.space(), self.space());
        (body.replace(MARK, name), body.replace(MARK, "\"gpt-4o-mini-tts\""))
    }
}

#[tokio::test]
async fn every_byte_but_the_models_name_is_the_clients() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let mut dice = Dice(2026);
    let mut client = gateway.client().await;
    for round in 0..200 {
        let (body, want) = dice.body();
        let answer = client.post("/v1/audio/speech", &body).await;
        assert_eq!(answer.status, 200, "round {round}: {body}: {answer:?}");
        let sent = last(&vendor);
        assert_eq!(sent.text(), want, "round {round}: {body}");
        assert_eq!(sent.header("content-length"), Some(want.len().to_string().as_str()), "round {round}");
    }
}

#[tokio::test]
async fn a_body_in_chunks_goes_up_with_its_length() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let head = format!(
        "POST /v1/audio/speech HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n\
         Transfer-Encoding: chunked\r\nTrailer: x-checksum\r\n\r\n"
    );
    let body = r#"{"input":"Hëllo","voice":"alloy","model":"tts-1"}"#;
    let want = body.replace("tts-1", "gpt-4o-mini-tts");
    let mut client = gateway.client().await;
    for size in [1, 7, body.len()] {
        let chunks: Vec<u8> = body.as_bytes().chunks(size).flat_map(chunk).collect();
        client.send(head.as_bytes()).await.send(&chunks).await.send(b"0\r\nx-checksum: 1\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 200, "{size}");
        let sent = last(&vendor);
        assert_eq!((sent.text(), sent.header("transfer-encoding")), (want.clone(), None), "{size}");
        assert_eq!(sent.header("content-length"), Some(want.len().to_string().as_str()), "{size}");
        assert_eq!(sent.header("x-checksum"), None, "trailers end here");
    }
}

#[tokio::test]
async fn a_long_chat_goes_up_byte_for_byte() {
    let vendor = Vendor::speech("application/json", b"{}").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[limits]\nchat_body = \"4MiB\"")).await;
    let mut dice = Dice(3);
    let audio: String = (0..5 << 19).map(|_| dice.pick(&["A", "b", "3", "+", "/", "\\n", "é"])).collect();
    let messages = format!(r#""messages":[{{"role":"user","content":"{audio}"}}]"#);
    let model = r#""model":"openai/gpt-audio""#;
    let mut client = gateway.client().await;
    for (label, body) in
        [("the model first", format!("{{{model},{messages}}}")), ("the model last", format!("{{{messages},{model}}}"))]
    {
        let answer = client.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{label}: {answer:?}");
        let (sent, want) = (last(&vendor), body.replace("openai/", ""));
        assert!(sent.body == want.as_bytes(), "{label}: {} bytes of {}", sent.body.len(), want.len());
        assert_eq!(sent.header("content-length"), Some(want.len().to_string().as_str()), "{label}");
        assert_eq!(gateway.record_of("usage", &answer).await["bytes_in"], body.len(), "{label}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let request = post("/v1/audio/speech", &[("Expect", "100-continue")], SPEECH);
    let (head, body) = request.split_at(request.len() - SPEECH.len());
    let mut client = gateway.client().await;
    assert_eq!(client.send(head.as_bytes()).await.head().await.status, 100);
    let answer = client.send(body.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"SOUND"[..]));
    let sent = last(&vendor);
    assert_eq!((sent.header("expect"), sent.text()), (None, SPEECH.replace("openai/", "")));
    // What is refused by its head is refused without a 100.
    let wrong = head.replace(KEY, "wrong");
    let refused = gateway.client().await.send(wrong.as_bytes()).await.answer().await;
    assert_eq!(refused.refusal(), (401, "invalid_api_key".into()));
}

#[tokio::test]
async fn a_client_of_http_1_0_is_not_told_to_go_on() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let request = post("/v1/audio/speech", &[("Expect", "100-continue")], SPEECH).replace("HTTP/1.1", "HTTP/1.0");
    let answer = gateway.client().await.send(request.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"SOUND"[..]), "it knows no interim answers");
}

#[tokio::test]
async fn to_ask_first_does_not_cost_the_connection() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let request = post("/v1/audio/speech", &[("Expect", "100-continue")], SPEECH);
    let (head, body) = request.split_at(request.len() - SPEECH.len());
    let mut client = gateway.client().await;
    for _ in 0..2 {
        assert_eq!(client.send(head.as_bytes()).await.head().await.status, 100);
        let answer = client.send(body.as_bytes()).await.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let request = post("/v1/audio/speech", &[], SPEECH).replace("HTTP/1.1", "HTTP/1.0");
    let mut client = gateway.client().await;
    let answer = client.send(request.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"SOUND"[..]));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert!(client.rest().await.is_empty(), "the connection ends with the answer");
    assert_eq!(gateway.record_of("audit", &answer).await["http"], "1.0");
}

#[tokio::test]
async fn a_client_of_http_1_0_is_sent_no_chunks() {
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nSO\r\n3\r\nUND\r\n0\r\n\r\n").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let request = post("/v1/audio/speech", &[], SPEECH).replace("HTTP/1.1", "HTTP/1.0");
    let mut client = gateway.client().await;
    let answer = client.send(request.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"SOUND"[..]));
    assert_eq!(answer.header("transfer-encoding"), None, "it does not know them: the end of the connection ends it");
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_passes_whole() {
    let vendor = Vendor::raw("HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\nSOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut client = gateway.client().await;
    for _ in 0..2 {
        let answer = client.post("/v1/audio/speech", SPEECH).await;
        assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, &b"SOUND"[..], true));
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "so that the client's connection goes on");
    }
}

#[tokio::test]
async fn models_and_voices_are_listed_as_the_caller_may_use_them() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with(
        "[providers.cloud]\nkind = \"openai\"\nkeys = [\"${PROVIDER_KEY}\"]\n\
         [models.house]\nroutes = [\"openai/kokoro\"]\nvoices = [\"bella\", \"alloy\"]\n\
         [models.\"house/two\"]\nroutes = [\"openai/piper\"]\nvoices = [\"rms\"]\n[aliases]\n\"tts-1\" = \"house\"\n",
    );
    let few = format!("[keys.few]\nsha256 = \"{}\"\nallow = [\"house\"]\n", sha256("few"));
    let gateway = Gateway::spawn(conf.keys(&format!("{few}[keys.all]\nsha256 = \"{}\"\n", sha256("all")))).await;
    for path in ["/v1/models", "/api/v1/models", "/openai/v1/models"] {
        let list = get_as(&gateway, Some("all"), path).await.json();
        assert_eq!(list["object"], "list", "{path}");
        for id in ["house", "house/two", "tts-1", "cloud/tts-1", "cloud/gpt-audio"] {
            assert!(ids(&list["data"]).contains(&id), "{path}: {id} in {list}");
        }
    }
    let get = |path: &'static str| get_as(&gateway, Some("few"), path);
    assert_eq!(ids(&get("/v1/models").await.json()["data"]), ["house", "tts-1"]);
    assert_eq!(ids(&get("/v1/audio/models").await.json()["models"]), ["house", "tts-1"]);
    let voices = get("/v1/audio/voices").await.json();
    assert_eq!((ids(&voices["voices"]), ids(&voices["data"])), (vec!["bella", "alloy"], vec!["bella", "alloy"]));
    for hidden in ["/v1/models/house/two", "/v1/models/nothing", "/v1/audio/voices?model=house/two"] {
        assert_eq!(get(hidden).await.refusal(), (404, "model_not_found".into()), "{hidden}");
    }
    for path in ["/v1/models/house/two", "/v1/models/house%2Ftwo", "/api/v1/models/house%2ftwo"] {
        let model = get_as(&gateway, Some("all"), path).await.json();
        assert_eq!(
            (&model["id"], &model["object"], &model["owned_by"]),
            (&json!("house/two"), &json!("model"), &json!("openai"))
        );
    }
    let voices = get_as(&gateway, Some("all"), "/api/v1/audio/voices?model=house%2Ftwo").await.json();
    assert_eq!(ids(&voices["voices"]), ["rms"]);
    let speaking = get_as(&gateway, Some("all"), "/v1/audio/models").await.json();
    assert!(ids(&speaking["data"]).contains(&"cloud/tts-1") && !ids(&speaking["data"]).contains(&"cloud/gpt-audio"));
    for path in ["/v1/models", "/v1/models/house", "/v1/audio/voices", "/v1/audio/models"] {
        assert_eq!(get_as(&gateway, None, path).await.refusal(), (401, "invalid_api_key".into()), "{path}");
    }
    assert!(vendor.requests().is_empty(), "no provider is asked");
}

#[tokio::test]
async fn a_public_catalog_and_health_need_no_key() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).server("public_catalog = true");
    let gateway = Gateway::spawn(conf).await;
    for path in ["/v1/models", "/v1/models/tts-fast", "/v1/audio/voices", "/v1/audio/models", "/livez", "/readyz"] {
        let answer = get_as(&gateway, None, path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}");
        assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{path}");
    }
    let wrong = get_as(&gateway, Some("wrong"), "/v1/models").await;
    assert_eq!(wrong.refusal(), (401, "invalid_api_key".into()), "a wrong key is never as good as none");
    let speech = post("/v1/audio/speech", &[], SPEECH).replace(&format!("Authorization: Bearer {KEY}\r\n"), "");
    let stranger = gateway.client().await.send(speech.as_bytes()).await.answer().await;
    assert_eq!(stranger.refusal(), (401, "invalid_api_key".into()), "speech is for those who have a key");
    assert!(vendor.requests().is_empty());
}

#[tokio::test]
async fn health_that_is_not_public_is_not_there() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).server("public_health = false")).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(gateway.admin(path).await.status, 200, "{path} is the operator's");
        for key in [None, Some(KEY)] {
            assert_eq!(get_as(&gateway, key, path).await.refusal(), (404, "unknown_url".into()), "{path} {key:?}");
        }
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    let mut client = gateway.client().await;
    for path in ["/v1/models", "/v1/models/tts-fast", "/v1/audio/voices", "/v1/audio/models", "/livez", "/readyz"] {
        let get = gateway.get(path).await;
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        let answer = client.send(head.as_bytes()).await.head().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, get.header("content-type")), "{path}");
        assert_eq!(answer.header("content-length"), get.header("content-length"), "{path}");
    }
    let head = format!("HEAD /v1/audio/speech HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n\r\n");
    let refused = client.send(head.as_bytes()).await.head().await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")));
    // Had one of them sent a body, it would stand here in the way.
    assert_eq!(client.post("/v1/audio/speech", SPEECH).await.body, b"SOUND");
}

#[tokio::test]
async fn the_id_is_ours_and_the_providers_passes_beside_it() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let ids = if request.text().contains("plain") {
            ""
        } else {
            "X-Request-ID: req_1\r\nX-Aulos-Request-Id: forged\r\nx-aulos-origin: aulos\r\nx-aulos-cost: 0\r\n\
             x-aulos-model: forged\r\nx-aulos-provider: forged\r\nopenai-processing-ms: 12\r\n"
        };
        wire.write(format!("HTTP/1.1 200 OK\r\n{ids}Content-Length: 5\r\n\r\nSOUND")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut seen = std::collections::BTreeSet::new();
    for (input, theirs) in [("plain", None), ("named", Some("req_1"))] {
        let headers = [("x-aulos-request-id", "mine"), ("X-Request-Id", "client-7")];
        let body = SPEECH.replace("Hello", input);
        let answer = ask(&gateway, "/v1/audio/speech", &headers, &body).await;
        let id = answer.header("x-aulos-request-id").expect("every answer has one").to_owned();
        assert!(seen.insert(id.clone()) && !["mine", "client-7", "forged"].contains(&id.as_str()), "{id}");
        assert_eq!(answer.header("x-request-id"), theirs.or(Some(id.as_str())), "{input}");
        assert_eq!(answer.header("openai-processing-ms"), theirs.map(|_| "12"));
        let ours: Vec<_> = answer.headers.iter().filter(|(name, _)| name.starts_with("x-aulos-")).collect();
        let mut ours: Vec<_> = ours.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        ours.sort_unstable();
        let want = [
            ("x-aulos-attempts", "1"),
            ("x-aulos-model", "tts-1"),
            ("x-aulos-origin", "provider"),
            ("x-aulos-provider", "openai"),
            ("x-aulos-request-id", id.as_str()),
        ];
        assert_eq!(ours, want, "{input}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["id"], &audit["client"]["request_id"]), (&json!(id), &json!("client-7")));
        assert_eq!(last(&vendor).header("x-request-id"), Some("client-7"), "the client's own passes, as its word");
    }
    let refused = ask(&gateway, "/v1/nothing", &[("x-aulos-request-id", "mine")], "").await;
    let id = refused.header("x-aulos-request-id");
    assert!(id.is_some_and(|id| id != "mine") && refused.header("x-request-id") == id, "{refused:?}");
}

#[tokio::test]
async fn a_forwarded_request_has_one_usage_record_and_a_refused_one_none() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let key = format!("[keys.mobile]\nsha256 = \"{}\"\nuser_path = \"/team\"\nworkspace = \"acme\"\n", sha256(KEY));
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS).keys(&key)).await;
    let body = r#"{"model":"tts-1","input":"Hëllo 😀","voice":"alloy","response_format":"wav"}"#;
    let agent = [("User-Agent", "OpenAI/Python 3.52.0")];
    let answer = ask(&gateway, "/api/v1/audio/speech?x=secret", &agent, body).await;
    for (path, key, body, status) in [
        ("/v1/audio/speech", KEY, "{", 400),
        ("/v1/audio/speech", KEY, NAMELESS, 400),
        ("/v1/audio/speech", KEY, r#"{"model":"none","input":"x","voice":"a"}"#, 404),
        ("/v1/audio/speech", "wrong", SPEECH, 401),
        ("/v1/nothing", KEY, SPEECH, 404),
    ] {
        let request = post(path, &[], body).replace(KEY, key);
        assert_eq!(
            gateway.client().await.send(request.as_bytes()).await.answer().await.status,
            status,
            "{path} {body}"
        );
    }
    assert!(gateway.stop().await.success());
    let (mut usage, mut audit) = (gateway.records("usage"), gateway.records("audit"));
    assert_eq!((usage.len(), audit.len()), (1, 6));
    assert!(audit[1..].iter().all(|record| record["end"] == "refused" && record["attempts"] == json!([])));
    let id = json!(answer.header("x-aulos-request-id"));
    for record in [&mut usage[0], &mut audit[0]] {
        assert!(record["ts"].as_str().is_some_and(|ts| ts.parse::<jiff::Timestamp>().is_ok()), "{record}");
        record["ts"] = "TS".into();
    }
    let (ttfb, duration) = (usage[0]["ttfb_ms"].as_f64(), usage[0]["duration_ms"].as_f64());
    assert!(ttfb > Some(0.0) && duration >= ttfb, "{usage:?}");
    let want = json!({ "v": 1, "type": "usage", "ts": "TS", "id": id, "key": "mobile", "user_path": "/team",
        "workspace": "acme", "op": "speech", "model_asked": "tts-1", "model": "tts-fast", "provider": "openai",
        "provider_model": "gpt-4o-mini-tts", "attempts": 1, "status": 200, "end": "complete", "bytes_in": body.len(),
        "bytes_out": 5, "ttfb_ms": ttfb, "duration_ms": duration, "input_chars": 7, "format": "wav", "stream": false });
    assert_eq!(usage[0].to_string(), want.to_string(), "the order is part of the contract");
    let attempt = audit[0]["attempts"][0].clone();
    assert!(attempt["connect_ms"].is_f64() && attempt["ttfb_ms"].is_f64(), "{attempt}");
    let attempt = json!([{ "provider": "openai", "model": "gpt-4o-mini-tts",
        "peer": format!("127.0.0.1:{}", vendor.port), "key": 1, "status": 200, "error": null,
        "connect_ms": attempt["connect_ms"], "ttfb_ms": attempt["ttfb_ms"], "reused": false }]);
    let want = json!({ "v": 1, "type": "audit", "ts": "TS", "id": id, "key": "mobile", "auth": "bearer",
        "client": { "ip": "127.0.0.1", "user_agent": "OpenAI/Python 3.52.0", "request_id": null }, "method": "POST",
        "path": "/api/v1/audio/speech", "http": "1.1", "status": 200, "end": "complete", "error": null,
        "attempts": attempt, "bodies": null });
    assert_eq!(audit[0].to_string(), want.to_string());
    for secret in [KEY, PROVIDER_KEY] {
        assert!(!format!("{usage:?}{audit:?}{}", gateway.log()).contains(secret), "a key is nobody's to read");
    }
}

#[tokio::test]
async fn a_format_is_recorded_in_short() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let controls: String = (0..10_000u32).map(|n| char::from_u32(n % 32).unwrap_or('x')).collect();
    let mixed = format!("a\u{1b}[31m\r\n\u{7f}{}", "é\u{7}".repeat(5_000));
    for format in [&controls, &mixed, &"m".repeat(10_000)] {
        let speech = json!({ "model": "openai/tts-1", "input": "x", "voice": "a", "response_format": format });
        let chat = json!({ "model": "openai/gpt-audio", "messages": [], "audio": { "format": format } });
        for (path, body) in [("/v1/audio/speech", speech), ("/v1/chat/completions", chat)] {
            let answer = gateway.post(path, &body.to_string()).await;
            assert_eq!((answer.status, model_of(&last(&vendor)).is_string()), (200, true), "{path}: {answer:?}");
            let usage = gateway.record_of("usage", &answer).await;
            let kept = usage["format"].as_str().expect("text");
            assert!((1..=32).contains(&kept.len()), "{path}: {} bytes: {kept:?}", kept.len());
            assert!(!kept.contains(char::is_control), "{path}: {kept:?}");
        }
    }
}

#[tokio::test]
async fn what_happens_is_counted_under_names_the_config_gave() {
    let vendor = Vendor::start(|request, mut wire| async move {
        let status = if request.text().contains("denied") { "401 Unauthorized" } else { "200 OK" };
        wire.answer(status, "audio/mpeg", b"SOUND").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for model in ["tts-1", "openai/made-up-1", "openai/made-up-2", "openai/denied", "made-up-3"] {
        let answer = ask_as(&gateway, KEY, &[], model).await;
        gateway.record_of("audit", &answer).await;
    }
    let request = "aulos_requests_total{end=\"";
    let counted = [
        format!("{request}complete\",model=\"tts-fast\",op=\"speech\",provider=\"openai\",status_class=\"2xx\"}} 1"),
        format!("{request}complete\",model=\"_other\",op=\"speech\",provider=\"openai\",status_class=\"2xx\"}} 2"),
        format!(
            "{request}upstream_failed\",model=\"_other\",op=\"speech\",provider=\"openai\",status_class=\"5xx\"}} 1"
        ),
        format!("{request}refused\",model=\"\",op=\"speech\",provider=\"\",status_class=\"4xx\"}} 1"),
        "aulos_request_duration_seconds_count{op=\"speech\"} 5".to_owned(),
        "aulos_overhead_seconds_count 4".to_owned(),
        "aulos_time_to_first_audio_seconds_count{model=\"tts-fast\",provider=\"openai\"} 1".to_owned(),
        "aulos_time_to_first_audio_seconds_count{model=\"_other\",provider=\"openai\"} 2".to_owned(),
        "aulos_upstream_errors_total{provider=\"openai\",reason=\"provider_auth\"} 1".to_owned(),
        "aulos_requests_in_flight 0".to_owned(),
        "aulos_records_waiting 0".to_owned(),
        "aulos_records_writable 1".to_owned(),
    ];
    let metrics = gateway.admin("/metrics").await;
    assert_eq!(metrics.status, 200);
    for line in counted {
        assert!(metrics.text().lines().any(|have| have == line), "{line} in {}", metrics.text());
    }
    for name in ["made-up", "denied", KEY, PROVIDER_KEY] {
        assert!(!metrics.text().contains(name), "{name} in {}", metrics.text());
    }
}

#[tokio::test]
async fn what_is_being_served_is_in_flight() {
    let (vendor, seen) = paced(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec(), b"SOUND".to_vec()]).await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut client = gateway.client().await;
    client.send(post("/v1/audio/speech", &[], SPEECH).as_bytes()).await.sees("\r\n\r\n").await;
    assert!(gateway.admin("/metrics").await.text().contains("aulos_requests_in_flight 1\n"));
    seen.add_permits(2);
    let answer = client.answer().await;
    gateway.record_of("usage", &answer).await;
    assert!(gateway.admin("/metrics").await.text().contains("aulos_requests_in_flight 0\n"));
}

#[tokio::test]
async fn a_long_answer_arrives_whole() {
    const LENGTH: usize = 20_000_000;
    let mut dice = Dice(7);
    let sound: Arc<Vec<u8>> = Arc::new((0..LENGTH).map(|_| dice.roll(256).to_le_bytes()[0]).collect());
    let source = Arc::clone(&sound);
    let vendor = Vendor::start(move |request, mut wire| {
        let sound = Arc::clone(&source);
        async move {
            if request.text().contains("counted") {
                wire.answer("200 OK", "audio/wav", sound.as_slice()).await;
                return Some(wire);
            }
            wire.write("HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for piece in sound.chunks(100_003) {
                wire.write(chunk(piece)).await;
            }
            wire.write("0\r\n\r\n").await;
            Some(wire)
        }
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for input in ["counted", "chunked"] {
        let answer = gateway.post("/v1/audio/speech", &SPEECH.replace("Hello", input)).await;
        assert!(answer.complete && answer.body == *sound, "{input}: {} bytes", answer.body.len());
        assert_eq!(gateway.record_of("usage", &answer).await["bytes_out"], LENGTH);
    }
}
