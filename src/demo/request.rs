//! What a client may ask to have spoken: OpenAI's `POST /v1/audio/speech`, from bytes to an utterance.
//!
//! Members this speaker has no use for (`instructions`, and any it does not know) are ignored.

use serde_json::{Map, Value};

use super::problem::{Problem, quote};
use super::voice::Voice;

/// The one model that speaks.
pub const SPEECH_MODEL: &str = "demo-tts";

/// Code points of `input`, as OpenAI counts them.
const INPUT_CHARS_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Utterance {
    /// Holds something besides white space, and no control characters but line feeds.
    pub(super) text: String,
    pub(super) voice: Voice,
    pub(super) format: Format,
    /// 0.25 to 4, where 1 is the voice's own pace.
    pub(super) speed: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Mp3,
    Opus,
    Aac,
    Flac,
    Wav,
    Pcm,
}

impl Format {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "mp3" => Self::Mp3,
            "opus" => Self::Opus,
            "aac" => Self::Aac,
            "flac" => Self::Flac,
            "wav" => Self::Wav,
            "pcm" => Self::Pcm,
            _ => return None,
        })
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Mp3 => "audio/mpeg",
            Self::Opus => "audio/opus",
            Self::Aac => "audio/aac",
            Self::Flac => "audio/flac",
            Self::Wav => "audio/wav",
            Self::Pcm => "audio/pcm",
        }
    }
}

/// Reads a request's whole body.
pub(super) fn parse(body: &[u8]) -> Result<Utterance, Problem> {
    let members: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| Problem::NotJson(error.to_string()))?;
    model(&members)?;
    let text = text(&members)?;
    let voice = voice(&members)?;
    let format = format(&members)?;
    let speed = speed(&members)?;
    stream_format(&members)?;
    Ok(Utterance { text, voice, format, speed })
}

/// A member that is there; `null` is as good as absent.
fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    members.get(name).filter(|value| !value.is_null())
}

fn required<'a>(members: &'a Map<String, Value>, name: &'static str) -> Result<&'a Value, Problem> {
    member(members, name).ok_or(Problem::Missing(name))
}

fn string<'a>(name: &'static str, value: &'a Value) -> Result<&'a str, Problem> {
    value.as_str().ok_or_else(|| Problem::invalid(name, "must be a string"))
}

fn model(members: &Map<String, Value>) -> Result<(), Problem> {
    match string("model", required(members, "model")?)? {
        SPEECH_MODEL => Ok(()),
        other => Err(Problem::UnknownModel { model: quote(other), served: SPEECH_MODEL }),
    }
}

fn text(members: &Map<String, Value>) -> Result<String, Problem> {
    let input = string("input", required(members, "input")?)?;
    let length = input.chars().count();
    if !(1..=INPUT_CHARS_MAX).contains(&length) {
        return Err(Problem::invalid("input", format!("must be 1 to {INPUT_CHARS_MAX} characters, not {length}")));
    }
    // Control characters are commands to eSpeak NG, and an end of text to flite.
    let text: String = input.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    if text.trim().is_empty() {
        return Err(Problem::invalid("input", "holds nothing that can be spoken"));
    }
    Ok(text)
}

fn voice(members: &Map<String, Value>) -> Result<Voice, Problem> {
    let value = required(members, "voice")?;
    let id = match value {
        Value::String(id) => id,
        Value::Object(custom) => match custom.get("id") {
            Some(Value::String(id)) => id,
            _ => return Err(Problem::invalid("voice", "must have a string `id` when it is an object")),
        },
        _ => return Err(Problem::invalid("voice", "must be a string, or an object with an `id`")),
    };
    Voice::find(id).ok_or_else(|| {
        let hint = "English is spoken by `rms` and by OpenAI's own voices, other languages by their code, as in `de`";
        Problem::invalid("voice", format!("names no voice of this speaker: `{}`; {hint}", quote(id)))
    })
}

fn format(members: &Map<String, Value>) -> Result<Format, Problem> {
    let Some(value) = member(members, "response_format") else { return Ok(Format::Mp3) };
    Format::parse(string("response_format", value)?)
        .ok_or_else(|| Problem::invalid("response_format", "must be one of mp3, opus, aac, flac, wav, pcm"))
}

fn speed(members: &Map<String, Value>) -> Result<f64, Problem> {
    let Some(value) = member(members, "speed") else { return Ok(1.0) };
    value
        .as_f64()
        .filter(|speed| (0.25..=4.0).contains(speed))
        .ok_or_else(|| Problem::invalid("speed", "must be a number from 0.25 to 4.0"))
}

fn stream_format(members: &Map<String, Value>) -> Result<(), Problem> {
    let Some(value) = member(members, "stream_format") else { return Ok(()) };
    match string("stream_format", value)? {
        "audio" => Ok(()),
        _ => Err(Problem::invalid("stream_format", "must be `audio`: this speaker sends no events")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A good request, with some members changed.
    fn with(changes: Value) -> Result<Utterance, Problem> {
        let mut body = json!({ "model": "demo-tts", "input": "Hello.", "voice": "rms" });
        for (name, value) in changes.as_object().expect("an object") {
            body[name] = value.clone();
        }
        parse(body.to_string().as_bytes())
    }

    #[test]
    fn a_small_request_gets_the_defaults() {
        let utterance = with(json!({})).expect("a good request");
        assert_eq!(
            utterance,
            Utterance {
                text: "Hello.".into(),
                voice: Voice::find("rms").expect("a voice"),
                format: Format::Mp3,
                speed: 1.0
            }
        );
    }

    #[test]
    fn what_may_be_said() {
        for (label, changes) in [
            ("a voice as an object", json!({ "voice": { "id": "alloy" } })),
            ("slowest", json!({ "speed": 0.25 })),
            ("fastest, a whole number", json!({ "speed": 4 })),
            ("audio", json!({ "stream_format": "audio" })),
            ("null is absent", json!({ "speed": null, "response_format": null, "stream_format": null })),
            ("instructions", json!({ "instructions": "calmly" })),
            ("4096 code points of 4 bytes", json!({ "input": "𝄞".repeat(4096) })),
        ] {
            assert!(with(changes).is_ok(), "{label}");
        }
    }

    #[test]
    fn every_complaint_names_its_field() {
        for (field, value) in [
            ("input", json!("")),
            ("input", json!("a".repeat(4097))),
            ("input", json!(" \n\t\u{0}")),
            ("input", json!(["a"])),
            ("model", json!(1)),
            ("voice", json!("nobody")),
            ("voice", json!({ "id": 1 })),
            ("voice", json!(7)),
            ("response_format", json!("ogg")),
            ("response_format", json!(1)),
            ("speed", json!(0.24)),
            ("speed", json!(4.01)),
            ("speed", json!("1")),
            ("stream_format", json!("sse")),
            ("stream_format", json!(true)),
        ] {
            match with(json!({ field: value })) {
                Err(Problem::Invalid { param, .. }) => assert_eq!(param, field, "{value}"),
                other => panic!("{field} = {value}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_required() {
        for field in ["model", "input", "voice"] {
            assert_eq!(with(json!({ field: null })), Err(Problem::Missing(field)));
        }
        let unknown = Problem::UnknownModel { model: "tts-1".into(), served: "demo-tts" };
        assert_eq!(with(json!({ "model": "tts-1" })), Err(unknown));
        for body in ["", "{", "[]", "\"demo-tts\"", "{} {}", "{\"input\":\"\\ud800\"}"] {
            assert!(matches!(parse(body.as_bytes()), Err(Problem::NotJson(_))), "{body}");
        }
    }

    #[test]
    fn commands_to_an_engine_are_not_text() {
        assert_eq!(with(json!({ "input": "a\u{1}b\u{7f}c\r\nd" })).expect("a good request").text, "a b c \nd");
    }
}
