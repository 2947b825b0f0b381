//! What a client may ask to have transcribed: the form of OpenAI's `POST /v1/audio/transcriptions`.
//!
//! Fields this provider has no use for (`prompt`, `temperature`, and any it does not know) are ignored.

use std::ops::Range;

use super::problem::{Problem, quote};
use crate::wire::multipart::{Part, Want};

/// The one model that transcribes.
pub const TRANSCRIPTION_MODEL: &str = "demo-stt";

const FILE: &str = "file";
const MODEL: &str = "model";
const LANGUAGE: &str = "language";
const FORMAT: &str = "response_format";
const STREAM: &str = "stream";
const GRANULARITIES: &str = "timestamp_granularities[]";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transcription {
    /// Where the recording stands in the body of the request.
    pub(super) recording: Range<u64>,
    pub(super) delivery: Delivery,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// When all of it is known.
    Whole(Layout),
    /// As events, a segment at a time.
    Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Json,
    Text,
    Verbose(Detail),
    Srt,
    Vtt,
}

/// What `verbose_json` tells the times of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Detail {
    pub(super) segments: bool,
    pub(super) words: bool,
}

/// What [`parse`] needs of the part of this name.
pub(super) fn want(name: &str) -> Want {
    match name {
        FILE => Want::Place,
        MODEL | LANGUAGE | FORMAT | STREAM | GRANULARITIES => Want::Text,
        _ => Want::Nothing,
    }
}

/// Reads the wanted parts of a form.
pub(super) fn parse(parts: &[Part]) -> Result<Transcription, Problem> {
    model(parts)?;
    language(parts)?;
    let delivery = delivery(parts)?;
    let recording = one(parts, FILE)?.ok_or(Problem::Missing(FILE))?.value.clone();
    Ok(Transcription { recording, delivery })
}

/// The part of this name, which stands at most once.
fn one<'a>(parts: &'a [Part], name: &'static str) -> Result<Option<&'a Part>, Problem> {
    let mut named = parts.iter().filter(|part| part.name == name);
    match (named.next(), named.next()) {
        (_, Some(_)) => Err(Problem::invalid(name, "stands in the form more than once")),
        (part, None) => Ok(part),
    }
}

fn text<'a>(part: &'a Part, name: &'static str) -> Result<&'a str, Problem> {
    match str::from_utf8(&part.text) {
        Ok(text) if part.filename.is_none() => Ok(text),
        _ => Err(Problem::invalid(name, "must be text")),
    }
}

/// The field of this name; one that is empty is as good as absent.
fn field<'a>(parts: &'a [Part], name: &'static str) -> Result<Option<&'a str>, Problem> {
    let value = one(parts, name)?.map(|part| text(part, name)).transpose()?;
    Ok(value.filter(|text| !text.is_empty()))
}

fn model(parts: &[Part]) -> Result<(), Problem> {
    match field(parts, MODEL)?.ok_or(Problem::Missing(MODEL))? {
        TRANSCRIPTION_MODEL => Ok(()),
        other => Err(Problem::UnknownModel { model: quote(other), served: TRANSCRIPTION_MODEL }),
    }
}

fn language(parts: &[Part]) -> Result<(), Problem> {
    match field(parts, LANGUAGE)? {
        None | Some("en") => Ok(()),
        Some(_) => Err(Problem::invalid(LANGUAGE, "must be `en`: nothing else is understood here")),
    }
}

fn delivery(parts: &[Part]) -> Result<Delivery, Problem> {
    let layout = layout(parts)?;
    match (field(parts, STREAM)?, layout) {
        (None | Some("false"), _) => Ok(Delivery::Whole(layout)),
        (Some("true"), Layout::Json | Layout::Text) => Ok(Delivery::Events),
        (Some("true"), _) => Err(Problem::invalid(STREAM, format!("goes with a `{FORMAT}` of json or text only"))),
        _ => Err(Problem::invalid(STREAM, "must be true or false")),
    }
}

fn layout(parts: &[Part]) -> Result<Layout, Problem> {
    let detail = detail(parts)?;
    match field(parts, FORMAT)? {
        None | Some("json") => Ok(Layout::Json),
        Some("text") => Ok(Layout::Text),
        Some("verbose_json") => Ok(Layout::Verbose(detail)),
        Some("srt") => Ok(Layout::Srt),
        Some("vtt") => Ok(Layout::Vtt),
        Some(_) => Err(Problem::invalid(FORMAT, "must be one of json, text, verbose_json, srt, vtt")),
    }
}

fn detail(parts: &[Part]) -> Result<Detail, Problem> {
    let mut asked = Detail { segments: false, words: false };
    for part in parts.iter().filter(|part| part.name == GRANULARITIES) {
        match text(part, GRANULARITIES)? {
            "segment" => asked.segments = true,
            "word" => asked.words = true,
            _ => return Err(Problem::invalid(GRANULARITIES, "must be segment or word")),
        }
    }
    Ok(Detail { segments: asked.segments || !asked.words, ..asked })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, filename: Option<&str>, text: &[u8]) -> Part {
        let value = 100..100 + text.len() as u64;
        let (name, filename) = (name.to_owned(), filename.map(str::to_owned));
        Part { name, filename, media: None, value, complete: true, text: text.to_vec() }
    }

    /// A good form, with these fields besides.
    fn with(fields: &[(&str, &str)]) -> Result<Transcription, Problem> {
        let mut parts = vec![part("model", None, b"demo-stt"), part("file", Some("a.mp3"), b"")];
        parts[1].value = 7..4711;
        parts.retain(|part| fields.iter().all(|(name, _)| *name != part.name));
        parts.extend(fields.iter().map(|(name, value)| part(name, None, value.as_bytes())));
        parse(&parts)
    }

    #[test]
    fn a_small_form_gets_the_defaults() {
        assert_eq!(with(&[]), Ok(Transcription { recording: 7..4711, delivery: Delivery::Whole(Layout::Json) }));
        let wants = ["file", "model", "timestamp_granularities[]", "prompt"].map(want);
        assert_eq!(wants, [Want::Place, Want::Text, Want::Text, Want::Nothing]);
    }

    #[test]
    fn what_may_be_asked_for() {
        let verbose = |segments, words| Delivery::Whole(Layout::Verbose(Detail { segments, words }));
        let (format, granularity) = ("response_format", "timestamp_granularities[]");
        let rows: &[(&[(&str, &str)], Delivery)] = &[
            (&[("language", "en"), (format, "json")], Delivery::Whole(Layout::Json)),
            (&[(format, "text"), ("stream", "false")], Delivery::Whole(Layout::Text)),
            (&[(format, "srt")], Delivery::Whole(Layout::Srt)),
            (&[(format, "vtt"), (granularity, "word")], Delivery::Whole(Layout::Vtt)),
            (&[(format, "verbose_json")], verbose(true, false)),
            (&[(format, "verbose_json"), (granularity, "segment")], verbose(true, false)),
            (&[(format, "verbose_json"), (granularity, "word")], verbose(false, true)),
            (&[(format, "verbose_json"), (granularity, "word"), (granularity, "segment")], verbose(true, true)),
            (&[("stream", "true")], Delivery::Events),
            (&[("stream", "true"), (format, "text")], Delivery::Events),
            (&[("language", ""), (format, ""), ("stream", "")], Delivery::Whole(Layout::Json)),
        ];
        for (fields, want) in rows {
            assert_eq!(with(fields).map(|asked| asked.delivery), Ok(*want), "{fields:?}");
        }
    }

    #[test]
    fn every_complaint_names_its_field() {
        for (field, fields) in [
            ("language", &[("language", "de")][..]),
            ("response_format", &[("response_format", "xml")]),
            ("stream", &[("stream", "yes")]),
            ("stream", &[("stream", "true"), ("response_format", "srt")]),
            ("timestamp_granularities[]", &[("timestamp_granularities[]", "phoneme")]),
            ("model", &[("model", "demo-stt"), ("model", "demo-stt")]),
            ("file", &[("file", "a"), ("file", "b")]),
        ] {
            match with(fields) {
                Err(Problem::Invalid { param, .. }) => assert_eq!(param, field, "{fields:?}"),
                other => panic!("{fields:?}: {other:?}"),
            }
        }
        let file = [part("file", Some("a"), b""), part("model", Some("demo-stt"), b"")];
        assert!(matches!(parse(&file), Err(Problem::Invalid { param: "model", .. })), "a file is no text");
        let bytes = [part("file", Some("a"), b""), part("model", None, b"\xff")];
        assert!(matches!(parse(&bytes), Err(Problem::Invalid { param: "model", .. })), "nor is this");
    }

    #[test]
    fn what_is_required() {
        let (model, file) = (part("model", None, b"demo-stt"), part("file", None, b"RIFF"));
        assert_eq!(parse(std::slice::from_ref(&file)), Err(Problem::Missing("model")));
        assert_eq!(parse(std::slice::from_ref(&model)), Err(Problem::Missing("file")));
        assert!(parse(&[file, model]).is_ok(), "a file needs no name");
        assert_eq!(with(&[("model", "")]), Err(Problem::Missing("model")));
        let unknown = Problem::UnknownModel { model: "whisper-1".into(), served: "demo-stt" };
        assert_eq!(with(&[("model", "whisper-1")]), Err(unknown));
    }
}
