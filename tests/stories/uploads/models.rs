//! Which model is meant: said in the form, wherever in it, or outside of it.

use serde_json::json;

use super::{MODELS, SHORT, SOUND, TEXT, ask, healthy, is_heard, last, transcriber};
use crate::support::form::{Form, Framing, TRANSCRIBE, head, noise, small};
use crate::support::{Conf, Gateway, Vendor};

/// A form of which nothing but its file says what is wanted.
fn nameless(sound: &[u8]) -> Form {
    Form::new().field("language", "en").file(sound)
}

#[tokio::test]
async fn a_model_behind_a_long_file_is_replaced_and_nothing_else() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    // Almost a boundary, again and again.
    let sound = [&noise(3_000_000)[..], &b"\r\n--------------------------0123456789abcde!".repeat(1000)].concat();
    let form = |model: &str| Form::new().file(&sound).field("model", model).field("temperature", "0").close();
    for (n, framing) in Framing::BOTH.into_iter().enumerate() {
        let answer = ask(&gateway, framing, TRANSCRIBE, &form("short")).await;
        is_heard(&answer, &format!("{framing:?}"));
        last(&vendor).is_exactly(&form("whisper-large"), &format!("{framing:?}"));
        assert_eq!((vendor.requests().len(), vendor.connections()), (n + 1, 1), "asked once: {framing:?}");
        let usage = gateway.record_of("usage", &answer).await;
        assert_eq!((&usage["attempts"], &usage["file_bytes"]), (&json!(1), &json!(sound.len())), "{usage}");
        assert_eq!(usage["bytes_in"], form("short").len(), "{usage}");
    }
}

#[tokio::test]
async fn every_spelling_of_the_path_leads_to_the_same_place() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (base, query) in [
        ("/v1", ""),
        ("/api/v1", "?x=%20"),
        ("/openai/v1", "?api-version=preview"),
        ("/openai/deployments/short", "?api-version=2025-04-01-preview"),
        ("/openai/deployments/openai%2Fwhisper-large", "?api-version=2025-04-01-preview"),
    ] {
        for endpoint in ["audio/transcriptions", "audio/translations"] {
            let target = format!("{base}/{endpoint}{query}");
            is_heard(&ask(&gateway, Framing::Declared, &target, &small("house")).await, &target);
            let sent = last(&vendor);
            assert_eq!(sent.target, format!("/v1/{endpoint}{query}"), "{target}");
            sent.is_exactly(&small("whisper-large"), &target);
        }
    }
}

/// How a model can be named outside the form: the target, and more header lines.
fn outside(model: &str) -> [(String, String); 3] {
    let escaped = model.replace('/', "%2F");
    [
        (TRANSCRIBE.to_owned(), format!("X-Aulos-Model: {model}\r\n")),
        (format!("{TRANSCRIBE}?model={escaped}&x=1"), String::new()),
        (format!("/openai/deployments/{escaped}/audio/transcriptions"), String::new()),
    ]
}

/// A name, and what the provider calls that model. The last is known there under its own name.
const NAMES: [(&str, &str); 4] = [
    ("house", "whisper-large"),
    ("short", "whisper-large"),
    ("openai/whisper-large", "whisper-large"),
    ("whisper-1", "whisper-1"),
];

#[tokio::test]
async fn a_model_that_is_named_outside_is_said_in_the_form_as_the_provider_calls_it() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (model, own) in NAMES {
        for (target, lines) in outside(model) {
            for (framing, length) in Framing::BOTH.into_iter().flat_map(|framing| [(framing, 400), (framing, 300_000)])
            {
                let sound = noise(length);
                let named = |model: &str| Form::new().field("model", model).file(&sound).close();
                for (inside, form, want) in [
                    ("not named inside", nameless(&sound).close(), nameless(&sound).field("model", own).close()),
                    ("named inside", named(model), named(own)),
                    ("named behind the file", nameless(&sound).field("model", model).close(), {
                        nameless(&sound).field("model", own).close()
                    }),
                ] {
                    let label = format!("{target} {lines}{framing:?} {length} {inside}");
                    let mut client = gateway.client().await;
                    client.send(framing.request(&target, &lines, &form)).await;
                    let answer = client.answer().await;
                    is_heard(&answer, &label);
                    let sent = last(&vendor);
                    sent.is_exactly(&want, &label);
                    assert!(!sent.target.contains("model"), "{label}: {}", sent.target);
                    assert!(!sent.headers.iter().any(|(name, _)| name.starts_with("x-aulos")), "{label}");
                    assert_eq!(answer.header("x-aulos-model"), Some(own), "{label}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_model_that_is_named_twice_and_differently_is_refused() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (model, _) in NAMES {
        let [by_header, by_query, _] = outside(model);
        for (target, lines) in [by_header, by_query] {
            for (framing, length) in Framing::BOTH.into_iter().flat_map(|framing| [(framing, 400), (framing, 300_000)])
            {
                let sound = noise(length);
                for (place, form) in [
                    ("before the file", Form::new().field("model", "another").file(&sound).close()),
                    ("behind the file", Form::new().file(&sound).field("model", "another").close()),
                ] {
                    let label = format!("{target} {lines}{framing:?} {length} {place}");
                    let mut client = gateway.client().await;
                    client.send(framing.request(&target, &lines, &form)).await;
                    let answer = client.answer().await;
                    assert_eq!(answer.refusal(), (400, "model_conflict".into()), "{label}");
                    let audit = gateway.record_of("audit", &answer).await;
                    let said = (&audit["end"], &audit["error"]);
                    assert_eq!(said, (&json!("refused"), &json!("model_conflict")), "{label}: {audit}");
                }
            }
        }
    }
    assert!(vendor.requests().is_empty(), "nothing of it arrived whole");
    healthy(&gateway, "conflicts").await;
}

#[tokio::test]
async fn the_model_of_a_deployment_path_wins_over_the_forms() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
    for (deployment, own) in NAMES {
        let target = format!("/openai/deployments/{}/audio/transcriptions", deployment.replace('/', "%2F"));
        for (framing, length) in Framing::BOTH.into_iter().flat_map(|framing| [(framing, 400), (framing, 300_000)]) {
            let sound = noise(length);
            let form = |model: &str| Form::new().file(&sound).field("model", model).close();
            let label = format!("{target} {framing:?} {length}");
            let answer = ask(&gateway, framing, &target, &form("whatever")).await;
            is_heard(&answer, &label);
            last(&vendor).is_exactly(&form(own), &label);
            assert_eq!(gateway.record_of("usage", &answer).await["model_asked"], deployment, "{label}");
        }
    }
}

/// Whoever waits to be asked for the body is not asked for one that goes nowhere.
#[tokio::test]
async fn a_model_outside_that_nobody_serves_is_refused_before_the_upload() {
    let vendor = transcriber().await;
    let keys =
        format!("[keys.test]\nsha256 = \"{}\"\nallow = [\"house\"]\n", crate::support::sha256(crate::support::KEY));
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS).keys(&keys)).await;
    let unknown = (404, "model_not_found");
    for (model, (status, code)) in
        [("nothing", unknown), ("nobody/whisper-1", unknown), ("openai/whisper-1", (403, "model_access_denied"))]
    {
        for (target, lines) in outside(model) {
            for (framing, expects) in Framing::BOTH.into_iter().flat_map(|f| [(f, "Expect: 100-continue\r\n"), (f, "")])
            {
                let label = format!("{target} {lines}{framing:?} {expects}");
                let lines = format!("{lines}{expects}{}", framing.line(50_000_000));
                let mut client = gateway.client().await;
                // The next head is the final one: nothing of the body is here yet, or ever.
                let answer = client.send(&head(&target, &lines)).await.answer().await;
                assert_eq!(answer.refusal(), (status, code.to_owned()), "{label}: {answer:?}");
                assert_eq!(answer.header("connection"), Some("close"), "{label}");
            }
        }
    }
    assert_eq!(vendor.connections(), 0);
}

/// It is sent on as if its model were the one that was named. Where there turns out to be none, the provider has been
/// told a length that is wrong, and is asked again.
#[tokio::test]
async fn a_long_form_that_needs_no_change_leaves_while_it_arrives() {
    for (label, form, want, attempts) in [
        ("named first", Form::new().field("model", "whisper-1").file(&*SOUND), None, 1),
        ("named last", Form::new().file(&*SOUND).field("model", "whisper-1"), None, 1),
        ("not named", Form::new().file(&*SOUND), Some(Form::new().file(&*SOUND).field("model", "whisper-1")), 2),
    ] {
        let vendor = transcriber().await;
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS)).await;
        let body = form.close();
        let (first, rest) = body.split_at(200_000);
        let mut client = gateway.client().await;
        let lines = format!("X-Aulos-Model: whisper-1\r\nContent-Length: {}\r\n", body.len());
        client.send(&head(TRANSCRIBE, &lines)).await.send(first).await;
        vendor.hears("THE BEGINNING").await;
        client.send(rest).await;
        let answer = client.answer().await;
        is_heard(&answer, label);
        assert_eq!((vendor.requests().len(), vendor.heads().len()), (1, attempts), "{label}: one is whole");
        last(&vendor).is_exactly(&want.map_or(body, Form::close), label);
        let usage = gateway.record_of("usage", &answer).await;
        assert_eq!((&usage["attempts"], &usage["end"]), (&json!(attempts), &json!("complete")), "{label}: {usage}");
        assert_eq!(usage["file_bytes"], SOUND.len(), "{label}: {usage}");
    }
}

/// Where nothing is kept there would be nothing to ask again with: such a form is read first.
#[tokio::test]
async fn a_model_is_put_into_a_long_form_that_may_not_be_sent_again() {
    let vendor = transcriber().await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).with("[spool]\nreplay_bytes = \"0\"");
    let gateway = Gateway::spawn(conf).await;
    let mut client = gateway.client().await;
    let form = Form::new().file(&*SOUND).close();
    client.send(Framing::Declared.request(TRANSCRIBE, "X-Aulos-Model: whisper-1\r\n", &form)).await;
    is_heard(&client.answer().await, "it has one in the end");
    assert_eq!((vendor.requests().len(), vendor.heads().len()), (1, 1));
    last(&vendor).is_exactly(&Form::new().file(&*SOUND).field("model", "whisper-1").close(), "put in");
}

/// It left unread, and what was kept of it had to be given up.
#[tokio::test]
async fn a_long_form_that_needs_a_model_and_has_no_room_is_told_to_come_back() {
    let vendor = transcriber().await;
    let conf = Conf::new().upstream(&vendor).with(MODELS).with("[spool]\ntotal_bytes = \"200KB\"");
    let gateway = Gateway::spawn(conf).await;
    let mut client = gateway.client().await;
    let form = Form::new().file(&*SOUND).close();
    client.send(Framing::Declared.request(TRANSCRIBE, "X-Aulos-Model: whisper-1\r\n", &form)).await;
    let answer = client.answer().await;
    assert_eq!(answer.refusal(), (503, "spool_full".into()));
    assert_eq!((vendor.requests().len(), answer.header("x-should-retry")), (0, None));
    let audit = gateway.record_of("audit", &answer).await;
    assert_eq!(audit["attempts"][0]["error"], "model_absent", "{audit}");
    healthy(&gateway, "a form that was not kept").await;
}

#[tokio::test]
async fn a_form_without_a_model_is_refused() {
    let vendor = transcriber().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).with(MODELS).with(SHORT)).await;
    for framing in Framing::BOTH {
        for length in [400, 300_000] {
            let answer = ask(&gateway, framing, TRANSCRIBE, &nameless(&noise(length)).close()).await;
            let label = format!("{framing:?} {length}");
            assert_eq!(answer.refusal(), (400, "missing_required_parameter".into()), "{label}");
            assert_eq!(answer.json()["error"]["param"], "model", "{label}");
        }
    }
    assert_eq!(vendor.connections(), 0);
}

#[tokio::test]
async fn a_provider_is_chosen_by_prefix_header_or_alias() {
    let (openai, local) = (transcriber().await, Vendor::speech("application/json", br#"{"text":"local"}"#).await);
    let url = local.base_url();
    let local_provider = format!("[providers.local]\nkind = \"openai\"\nbase_url = \"{url}\"\n");
    let gateway = Gateway::spawn(Conf::new().upstream(&openai).with(&local_provider).with(MODELS)).await;
    for (model, lines, vendor, own) in [
        ("house", "", &openai, "whisper-large"),
        ("local/whisper/large", "", &local, "whisper/large"),
        ("openai/anything", "", &openai, "anything"),
        ("anything", "X-Aulos-Provider: local\r\n", &local, "anything"),
    ] {
        let mut client = gateway.client().await;
        client.send(Framing::Declared.request(TRANSCRIBE, lines, &small(model))).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{model}: {answer:?}");
        assert_eq!(answer.body == TEXT, std::ptr::eq(vendor, &openai), "{model}");
        last(vendor).is_exactly(&small(own), model);
    }
}
