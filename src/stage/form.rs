//! A transcription's form, while it passes: which model it names, and what the later stages need to know of it.
//!
//! Nothing of the audio is kept. A form that two parsers could read differently where the model is concerned is
//! refused, wherever in it that stands.

use std::ops::Range;

use crate::refusal::{MODEL_BYTES_MAX, Refusal};
use crate::stage::inspect::valid_model;
use crate::units::printable;
use crate::wire::multipart::{Boundary, Part, Scanner, Want};

/// The audio, or where some providers may fetch it themselves.
const FILES: [&str; 3] = ["file", "url", "file_url"];
/// There are two; what is more is a client's mistake.
const GRANULARITIES_MAX: usize = 4;
/// Bytes of a field that records keep.
const RECORDED_BYTES_MAX: usize = 256;

/// Reads one form. However the network cuts it, the result is the same.
#[derive(Debug, Clone)]
pub struct Form {
    scanner: Scanner,
    /// Bytes it has read.
    seen: u64,
    ended: bool,
    model: Option<Model>,
    /// Parts that have been judged.
    judged: usize,
}

/// The form's model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    pub name: String,
    /// Where the name stands: byte offsets in the body as it came.
    pub at: Range<u64>,
}

/// What is recorded of a form, as far as it has passed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub filename: Option<String>,
    /// Bytes of the file.
    pub file_bytes: Option<u64>,
    pub response_format: Option<String>,
    pub language: Option<String>,
    pub timestamp_granularities: Vec<String>,
    pub stream: bool,
}

impl Form {
    pub fn new(boundary: &Boundary) -> Self {
        Self { scanner: Scanner::new(boundary, want), seen: 0, ended: false, model: None, judged: 0 }
    }

    /// Reads the next bytes of the body.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.seen += chunk.len() as u64;
        let scanned = self.scanner.push(chunk);
        self.judge()?;
        Ok(scanned?)
    }

    /// The body has ended.
    pub fn finish(&mut self) -> Result<(), Refusal> {
        self.scanner.finish()?;
        self.ended = true;
        self.judge()?;
        let has_file = self.scanner.parts().iter().any(|part| FILES.contains(&part.name.as_str()));
        if has_file { Ok(()) } else { Err(Refusal::MissingField("file")) }
    }

    /// Bytes it has read.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Whether all of it has been read, and accepted.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The model, once its field has passed.
    pub fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// Up to where every byte is decided, and may be passed on.
    pub fn settled(&self) -> u64 {
        self.scanner.settled()
    }

    /// Where one more field can be put in, once the end of the form has been seen.
    pub fn close_at(&self) -> Option<u64> {
        self.scanner.close_at()
    }

    pub fn facts(&self) -> Facts {
        let parts = self.scanner.parts();
        let text = |name: &str| parts.iter().find(|part| part.name == name && part.complete).map(text_of);
        let file = parts.iter().find(|part| part.name == "file");
        let granularities = parts.iter().filter(|part| is_granularity(&part.name) && part.complete);
        Facts {
            filename: file.and_then(|file| file.filename.as_ref()).map(|name| recorded(name.as_bytes())),
            file_bytes: file.map(|file| file.value.end - file.value.start),
            response_format: text("response_format"),
            language: text("language"),
            timestamp_granularities: granularities.take(GRANULARITIES_MAX).map(text_of).collect(),
            stream: text("stream").is_some_and(|stream| stream.eq_ignore_ascii_case("true") || stream == "1"),
        }
    }

    /// Looks at the parts that have come since the last time.
    fn judge(&mut self) -> Result<(), Refusal> {
        let parts = self.scanner.parts();
        while let Some(part) = parts.get(self.judged) {
            if may_mean_model(&part.name) {
                refuse_ambiguous(part, self.model.is_some())?;
                if !part.complete {
                    return Ok(());
                }
                self.model = Some(model(part)?);
            }
            self.judged += 1;
        }
        Ok(())
    }
}

fn want(name: &str) -> Want {
    match name {
        // It need not have a file name.
        _ if FILES.contains(&name) => Want::Place,
        "response_format" | "language" | "stream" => Want::Text,
        _ if is_granularity(name) || may_mean_model(name) => Want::Text,
        _ => Want::Nothing,
    }
}

/// Clients write it with brackets and without.
fn is_granularity(name: &str) -> bool {
    matches!(name, "timestamp_granularities" | "timestamp_granularities[]")
}

/// Whether some parser would take a field of this name for the model.
fn may_mean_model(name: &str) -> bool {
    let bare = name.trim().split('[').next().unwrap_or_default();
    bare.trim().eq_ignore_ascii_case("model")
}

fn refuse_ambiguous(part: &Part, another: bool) -> Result<(), Refusal> {
    let reason = match part {
        _ if another => "it stands there twice",
        part if part.name != "model" => "a field's name differs from it only in spelling",
        part if part.filename.is_some() => "it is a file",
        _ => return Ok(()),
    };
    Err(Refusal::AmbiguousModel(reason.into()))
}

fn model(part: &Part) -> Result<Model, Refusal> {
    if part.text.len() > MODEL_BYTES_MAX {
        return Err(Refusal::InvalidModel);
    }
    let name = String::from_utf8(part.text.clone()).map_err(|_| Refusal::InvalidModel)?;
    Ok(Model { name: valid_model(name)?, at: part.value.clone() })
}

fn text_of(part: &Part) -> String {
    recorded(&part.text)
}

fn recorded(bytes: &[u8]) -> String {
    printable(bytes, RECORDED_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::same_however_cut;

    /// A form of parts, each given as what follows `form-data; ` and its value.
    fn form_of(parts: &[(&str, &str)]) -> Vec<u8> {
        let part =
            |(head, value): &(&str, &str)| format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n");
        let parts: String = parts.iter().map(part).collect();
        format!("{parts}--b--\r\n").into_bytes()
    }

    fn read(pieces: &[&[u8]]) -> Result<(Option<Model>, Facts), Refusal> {
        let mut form = Form::new(&Boundary::parse("multipart/form-data; boundary=b").expect("valid"));
        for piece in pieces {
            form.push(piece)?;
        }
        form.finish()?;
        Ok((form.model().cloned(), form.facts()))
    }

    const FILE: (&str, &str) = ("name=\"file\"; filename=\"a.wav\"", "RIFF");

    #[test]
    fn model_and_facts_are_taken_while_the_form_passes() {
        let body = form_of(&[
            FILE,
            ("name=\"timestamp_granularities[]\"", "word"),
            ("name=\"timestamp_granularities\"", "segment"),
            ("name=\"response_format\"", "verbose_json"),
            ("name=\"prompt\"", &"long ".repeat(1000)),
            ("name=model", "whisper-1"),
            ("name=\"stream\"", "true"),
            ("name=\"language\"", "en"),
        ]);
        same_however_cut(&body, read);
        let (model, facts) = read(&[&body]).expect("a form");
        let model = model.expect("it names one");
        assert_eq!(model.name, "whisper-1");
        assert_eq!(&body[model.at.start as usize..model.at.end as usize], b"whisper-1");
        let want = Facts {
            filename: Some("a.wav".into()),
            file_bytes: Some(4),
            response_format: Some("verbose_json".into()),
            language: Some("en".into()),
            timestamp_granularities: vec!["word".into(), "segment".into()],
            stream: true,
        };
        assert_eq!(facts, want);
    }

    #[test]
    fn whatever_could_be_another_model_is_refused() {
        let model = ("name=\"model\"", "whisper-1");
        for (parts, code) in [
            (&[model, FILE, model][..], "ambiguous_model"),
            (&[model, FILE, ("name=model", "x")], "ambiguous_model"),
            (&[FILE, ("name=\"Model\"", "x")], "ambiguous_model"),
            (&[FILE, ("name=\" model\"", "x")], "ambiguous_model"),
            (&[FILE, ("name=\"model[]\"", "x")], "ambiguous_model"),
            (&[FILE, ("name=\"model[a]\"", "x")], "ambiguous_model"),
            (&[FILE, ("name=\"model\"; filename=\"x\"", "x")], "ambiguous_model"),
            (&[model, FILE, ("name*=UTF-8''model", "x")], "ambiguous_model"),
            (&[FILE, ("name=\"model\"", "")], "invalid_model"),
            (&[FILE, ("name=\"model\"", " ")], "invalid_model"),
            (&[FILE, ("name=\"model\"", "a\u{1}b")], "invalid_model"),
            (&[FILE, ("name=\"model\"", &"m".repeat(MODEL_BYTES_MAX + 1))], "invalid_model"),
            (&[FILE, ("name=\"model\"", &"m".repeat(5000))], "invalid_model"),
            (&[model], "missing_required_parameter"),
            (&[model, ("name=\"files\"", "x")], "missing_required_parameter"),
        ] {
            let body = form_of(parts);
            same_however_cut(&body, |pieces| read(pieces).map_err(|refusal| refusal.code()));
            assert_eq!(read(&[&body]).map_err(|refusal| refusal.code()), Err(code), "{parts:?}");
        }
        let (model, _) = read(&[&form_of(&[FILE, ("name=\"models\"", "x"), ("name=\"remodel\"", "x")])]).expect("fine");
        assert_eq!(model, None, "names that only look alike are other fields");
    }

    #[test]
    fn some_providers_fetch_the_file() {
        assert!(read(&[&form_of(&[("name=\"model\"", "m"), ("name=\"url\"", "https://example.com/a")])]).is_ok());
    }

    #[test]
    fn a_file_may_have_no_name() {
        let long = "x".repeat(5000);
        let (_, facts) = read(&[&form_of(&[("name=\"model\"", "m"), ("name=\"file\"", &long)])]).expect("a form");
        assert_eq!((facts.filename, facts.file_bytes), (None, Some(5000)));
    }
}
