//! Azure OpenAI as the provider, in both of its styles.

use serde_json::json;

use super::{TEXT, ask, is_heard, last, transcriber};
use crate::support::client::post;
use crate::support::form::{Form, Framing, TRANSCRIBE, noise, small};
use crate::support::{Conf, Gateway, PROVIDER_KEY, Vendor};

/// A gateway in front of a resource whose deployments are called otherwise than its models.
async fn resource(vendor: &Vendor, version: &str) -> Gateway {
    let base_url = format!("http://127.0.0.1:{}", vendor.port);
    let conf = format!(
        "[providers.azure]\nkind = \"azure\"\nbase_url = \"{base_url}\"\nkeys = [\"${{PROVIDER_KEY}}\"]\n{version}\n\
         [models.whisper]\nroutes = [\"azure/whisper eu\"]\n\
         [aliases]\nwhisper-1 = \"whisper\"\ntts-1 = \"azure/tts\"\n"
    );
    Gateway::spawn(Conf::new().with(&conf)).await
}

/// The provider's credential, in the provider's own header, and nothing else of the kind.
fn is_signed(vendor: &Vendor, label: &str) {
    let sent = last(vendor);
    assert_eq!((sent.header("api-key"), sent.header("authorization")), (Some(PROVIDER_KEY), None), "{label}");
}

const DEPLOYMENTS: &str = "api_version = \"2025-04-01-preview\"";
const VERSION: &str = "api-version=2025-04-01-preview";

#[tokio::test]
async fn a_deployment_is_named_by_the_path_and_the_form_stays_as_it_is() {
    let vendor = transcriber().await;
    let gateway = resource(&vendor, DEPLOYMENTS).await;
    let deployment = "/openai/deployments/whisper%20eu";
    for (target, op, query) in [
        (TRANSCRIBE, "transcriptions", ""),
        ("/api/v1/audio/translations", "translations", ""),
        ("/openai/deployments/whisper-1/audio/transcriptions?api-version=2023-01-01", "transcriptions", ""),
        ("/openai/v1/audio/translations?x=1&API-Version=preview&y", "translations", "x=1&y&"),
    ] {
        for framing in Framing::BOTH {
            for form in [
                Form::new().field("model", "whisper-1").file(noise(300_000)).close(),
                Form::new().file(noise(300_000)).field("model", "whisper-1").close(),
                small("whisper-1"),
            ] {
                let label = format!("{target} {framing:?} {}", form.len());
                let answer = ask(&gateway, framing, target, &form).await;
                is_heard(&answer, &label);
                let sent = last(&vendor);
                assert_eq!(sent.target, format!("{deployment}/audio/{op}?{query}{VERSION}"), "{label}");
                sent.is_exactly(&form, &label);
                is_signed(&vendor, &label);
                assert_eq!(answer.header("x-aulos-model"), Some("whisper eu"), "{label}");
            }
        }
    }
}

/// Nothing has to be put into a form whose provider does not read its model there.
#[tokio::test]
async fn a_deployment_needs_no_model_in_the_form() {
    let vendor = transcriber().await;
    let gateway = resource(&vendor, DEPLOYMENTS).await;
    for framing in Framing::BOTH {
        for length in [400, 300_000] {
            let form = Form::new().file(noise(length)).close();
            let label = format!("{framing:?} {length}");
            is_heard(&ask(&gateway, framing, "/v1/audio/transcriptions?model=whisper-1", &form).await, &label);
            last(&vendor).is_exactly(&form, &label);
            let other = Form::new().file(noise(length)).field("model", "whatever").close();
            let target = "/openai/deployments/whisper-1/audio/transcriptions";
            is_heard(&ask(&gateway, framing, target, &other).await, &label);
            last(&vendor).is_exactly(&other, &label);
            let answer = ask(&gateway, framing, "/v1/audio/transcriptions?model=whisper-1", &other).await;
            assert_eq!(answer.refusal(), (400, "model_conflict".into()), "{label}");
        }
    }
    assert_eq!(vendor.requests().len(), 8);
}

#[tokio::test]
async fn the_v1_api_reads_the_deployment_in_the_form() {
    for (version, want) in
        [("", ""), ("api_version = \"v1\"", ""), ("api_version = \"preview\"", "?api-version=preview")]
    {
        let vendor = transcriber().await;
        let gateway = resource(&vendor, version).await;
        for target in [TRANSCRIBE, "/openai/deployments/whisper-1/audio/transcriptions?api-version=2023-01-01"] {
            for framing in Framing::BOTH {
                let form = |model: &str| Form::new().file(noise(300_000)).field("model", model).close();
                let label = format!("{version} {target} {framing:?}");
                is_heard(&ask(&gateway, framing, target, &form("whisper-1")).await, &label);
                let sent = last(&vendor);
                assert_eq!(sent.target, format!("/openai/v1/audio/transcriptions{want}"), "{label}");
                sent.is_exactly(&form("whisper eu"), &label);
                is_signed(&vendor, &label);
            }
        }
    }
}

#[tokio::test]
async fn speech_goes_to_azure_in_both_styles() {
    let body = |model: &str| json!({ "model": model, "input": "Hello", "voice": "alloy" }).to_string();
    for (version, path, model) in [
        (DEPLOYMENTS, format!("/openai/deployments/tts/audio/speech?{VERSION}"), "tts-1"),
        ("", "/openai/v1/audio/speech".to_owned(), "tts"),
    ] {
        let vendor = Vendor::speech("audio/mpeg", TEXT).await;
        let gateway = resource(&vendor, version).await;
        for target in ["/v1/audio/speech", "/openai/deployments/tts-1/audio/speech?api-version=2023-01-01"] {
            let request = post(target, &[], &body("tts-1"));
            let answer = gateway.client().await.send(request.as_bytes()).await.answer().await;
            assert_eq!((answer.status, answer.body.as_slice()), (200, TEXT), "{target}: {answer:?}");
            let sent = last(&vendor);
            assert_eq!((&sent.target, sent.text()), (&path, body(model)), "{version} {target}");
            assert_eq!(sent.header("content-length"), Some(sent.body.len().to_string().as_str()), "{target}");
            is_signed(&vendor, target);
        }
    }
}
