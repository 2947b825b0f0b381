//! The client's body → the provider's: the bytes that say the model, and no others. A form is scanned while it
//! passes, and its end waits here until the scanner has accepted it.

use bytes::{Bytes, BytesMut};

use crate::refusal::Refusal;
use crate::stage::form::{Facts, Form, Model};
use crate::stage::inspect::{Call, Chat, Speech, Task, Upload};
use crate::wire::multipart::text_part;
use crate::wire::splice::{Edit, Splice};

/// Edits one body for one attempt.
pub struct Editor {
    body: Body,
    length: Option<u64>,
}

enum Body {
    Json(Splice),
    Form(Box<FormEditor>),
    /// Nothing changes.
    Pass,
}

/// Why a body does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The provider was told a length that turned out to be wrong.
    #[error("the form names no model, and one has to be put in at byte {insert_at}")]
    LengthUnkept { insert_at: u64 },
}

impl Editor {
    /// `name`: what the provider calls the model; `None`: it does not read it in the body.
    pub fn new(call: &Call, name: Option<&str>, known: &Known) -> Self {
        match &call.task {
            Task::Speech(Speech { body, .. }) | Task::Chat(Chat { body, .. }) => {
                let splice = Splice::new(body.edits(name));
                let length = known.len.and_then(|len| len.checked_add_signed(splice.delta()));
                Self { body: Body::Json(splice), length }
            }
            Task::Pass(_) => Self { body: Body::Pass, length: known.len },
            Task::Upload(upload) => {
                let change = Change::new(upload, name);
                // Of a form whose length was declared nothing is sent before it is known what changes in it, but
                // where it is likely that nothing does. If that was somewhere else, it goes on in chunks here.
                let likely = change.is_none_where_agreed().then_some(0);
                let delta = change.delta(&known.model).or(likely);
                let length = known.len.zip(delta).and_then(|(len, delta)| len.checked_add_signed(delta));
                let promised = length.and(delta);
                let form = known.form.clone().unwrap_or_else(|| Form::new(&upload.boundary));
                Self { body: Body::Form(Box::new(FormEditor::new(change, form, promised))), length }
            }
        }
    }

    /// Bytes that the provider gets. `None`: nobody knows yet.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Takes the next bytes of the body and gives what goes out instead, which may be nothing.
    pub fn push(&mut self, chunk: Bytes, end: bool) -> Result<Bytes, Fault> {
        match &mut self.body {
            Body::Json(splice) => Ok(splice.push(chunk)),
            Body::Form(form) => form.push(chunk, end),
            Body::Pass => Ok(chunk),
        }
    }

    /// What is recorded of a form.
    pub fn facts(&self) -> Option<Facts> {
        match &self.body {
            Body::Json(_) | Body::Pass => None,
            Body::Form(editor) => Some(editor.form.facts()),
        }
    }
}

/// What is known of a body before it is forwarded.
#[derive(Debug, Clone)]
pub struct Known {
    /// Bytes of it, as the client sends it; `None`: nobody knows yet.
    pub len: Option<u64>,
    /// Where a form says the model.
    pub model: Place,
    /// A form as far as it has been read: that much need not be read again.
    pub form: Option<Form>,
}

/// Where a form says the model, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// That part of it has not passed yet.
    Unknown,
    There(Model),
    /// Nowhere; it can be put in here.
    Absent {
        insert_at: u64,
    },
}

impl Known {
    /// Takes over what an attempt has seen of the form, for the next one.
    pub fn learn(&mut self, editor: &Editor) {
        let Body::Form(editor) = &editor.body else { return };
        let place = Place::of(&editor.form);
        if place != Place::Unknown {
            self.model = place;
        }
        if editor.form.ended() {
            self.len = Some(editor.form.seen());
        }
        self.form = Some(editor.form.clone());
    }
}

impl Place {
    /// What a form that has been read so far says.
    pub fn of(form: &Form) -> Self {
        match (form.model(), form.close_at()) {
            (Some(model), _) => Self::There(model.clone()),
            (None, Some(insert_at)) if form.ended() => Self::Absent { insert_at },
            _ => Self::Unknown,
        }
    }
}

/// Whether a form whose model the head has named can be forwarded before anything of it has been read: its length is
/// not declared, or what it says of the model can stay as it is.
///
/// A `small` one is read whole all the same, and one that may have to be sent again, as it turns out to name no model,
/// has to be within `replay` bytes.
pub fn passes_unread(call: &Call, name: Option<&str>, declared: Option<u64>, small: usize, replay: usize) -> bool {
    let (Task::Upload(upload), Some(len)) = (&call.task, declared) else { return true };
    let change = Change::new(upload, name);
    let stays = name.is_none() || change.is_none_where_agreed() && len <= replay as u64;
    len > small as u64 && stays
}

/// What a form becomes for one provider.
#[derive(Debug, Clone)]
struct Change {
    upload: Upload,
    /// What the provider calls the model; `None`: it does not read it in the body.
    name: Option<String>,
}

impl Change {
    fn new(upload: &Upload, name: Option<&str>) -> Self {
        Self { upload: upload.clone(), name: name.map(str::to_owned) }
    }

    /// By how many bytes the form grows. `None`: that is not known yet.
    fn delta(&self, place: &Place) -> Option<i64> {
        if self.name.is_none() {
            return Some(0);
        }
        match place {
            Place::Unknown => None,
            known => Some(self.edit(known).map_or(0, |edit| signed(edit.with.len()) - signed(edit.range.len()))),
        }
    }

    /// Whether a form that names the model, as it has to be named, goes on unchanged.
    fn is_none_where_agreed(&self) -> bool {
        self.name == self.upload.agreed
    }

    fn edit(&self, place: &Place) -> Option<Edit> {
        let name = self.name.as_ref()?;
        match place {
            Place::There(model) if model.name != *name => {
                Some(Edit { range: index(model.at.start)..index(model.at.end), with: Bytes::from(name.clone()) })
            }
            Place::Absent { insert_at } => {
                let at = index(*insert_at);
                Some(Edit { range: at..at, with: text_part(&self.upload.boundary, "model", name).into() })
            }
            Place::There(_) | Place::Unknown => None,
        }
    }
}

/// Scans a form while it passes, and edits it.
struct FormEditor {
    form: Form,
    change: Change,
    splice: Splice,
    /// By how many bytes the provider was told that the form grows.
    promised: Option<i64>,
    decided: bool,
    /// What has been scanned, and may not go on yet.
    held: BytesMut,
    /// Bytes of the client's body that have come, and that have gone on.
    came: u64,
    passed: u64,
}

impl FormEditor {
    fn new(change: Change, form: Form, promised: Option<i64>) -> Self {
        let splice = Splice::new(Vec::new());
        Self { form, change, splice, promised, decided: false, held: BytesMut::new(), came: 0, passed: 0 }
    }

    fn push(&mut self, chunk: Bytes, end: bool) -> Result<Bytes, Fault> {
        let known = index(self.form.seen().saturating_sub(self.came));
        self.came += chunk.len() as u64;
        self.form.push(chunk.get(known..).unwrap_or_default())?;
        if end {
            self.form.finish()?;
        }
        if !self.decided {
            self.decide()?;
        }
        let free = index(self.form.settled() - self.passed);
        let out = self.release(chunk, free);
        self.passed += out.len() as u64;
        Ok(self.splice.push(out))
    }

    /// Once it is known where the form says the model, it is known what changes.
    fn decide(&mut self) -> Result<(), Fault> {
        let place = Place::of(&self.form);
        self.decided = place != Place::Unknown;
        if let (Place::There(model), Some(agreed)) = (&place, &self.change.upload.agreed)
            && model.name != *agreed
        {
            let (outside, inside) = (agreed.clone(), model.name.clone());
            return Err(Refusal::ModelConflict { outside, inside }.into());
        }
        let Some(edit) = self.change.edit(&place) else { return Ok(()) };
        if self.promised.is_some_and(|promised| Some(promised) != self.change.delta(&place)) {
            return Err(match place {
                Place::Absent { insert_at } => Fault::LengthUnkept { insert_at },
                _ => Refusal::Internal.into(),
            });
        }
        self.splice.add(edit);
        Ok(())
    }

    /// The first `free` bytes of what is held and of `chunk`; the rest is held.
    fn release(&mut self, mut chunk: Bytes, free: usize) -> Bytes {
        if self.held.is_empty() {
            let out = chunk.split_to(free.min(chunk.len()));
            self.held.extend_from_slice(&chunk);
            return out;
        }
        self.held.extend_from_slice(&chunk);
        self.held.split_to(free.min(self.held.len())).freeze()
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::stage::inspect::{Named, upload};
    use crate::surface::Endpoint;
    use crate::wire::multipart::Boundary;
    use crate::wire::testing::same_however_cut;

    fn boundary() -> Boundary {
        Boundary::parse("multipart/form-data; boundary=b").expect("valid")
    }

    /// A call whose head names `outside`.
    fn call(boundary: Boundary, outside: Option<&str>, by_path: bool) -> Call {
        let named = Named { model: outside.map(str::to_owned), provider: None, by_path };
        let inside = outside.is_none().then_some("whatever the form says");
        upload(Endpoint::Transcription, named, boundary, inside).expect("a model")
    }

    /// A form with a file that looks like a delimiter here and there, and `parts` behind it.
    fn form(parts: &str) -> Vec<u8> {
        let file = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nRI\r\n-\r\nFF --b\r\n";
        format!("{file}{parts}--b--\r\n").into_bytes()
    }

    const MODEL: &str = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nasked\r\n";
    const UNKNOWN: Known = Known { len: None, model: Place::Unknown, form: None };

    fn sent(editor: &mut Editor, pieces: &[&[u8]]) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&editor.push(Bytes::copy_from_slice(piece), false)?);
        }
        out.extend_from_slice(&editor.push(Bytes::new(), true)?);
        Ok(out)
    }

    #[test]
    fn only_the_model_changes_however_the_form_is_cut() {
        let (with, without) = (form(MODEL), form(""));
        let theirs = String::from_utf8(with.clone()).expect("text").replace("asked", "their-own").into_bytes();
        for (label, body, outside, by_path, name, want) in [
            ("inside", &with, None, false, Some("their-own"), Ok(&theirs)),
            ("the same there", &with, None, false, Some("asked"), Ok(&with)),
            ("outside too", &with, Some("asked"), false, Some("their-own"), Ok(&theirs)),
            ("outside only", &without, Some("asked"), false, Some("asked"), Ok(&with)),
            ("outside only, another name", &without, Some("asked"), false, Some("their-own"), Ok(&theirs)),
            ("the path wins", &with, Some("other"), true, Some("their-own"), Ok(&theirs)),
            ("the provider's path names it", &with, Some("asked"), false, None, Ok(&with)),
            ("and there is none", &without, Some("asked"), false, None, Ok(&without)),
            ("two models", &with, Some("other"), false, Some("their-own"), Err("model_conflict")),
            ("two models, though the path names it", &with, Some("other"), false, None, Err("model_conflict")),
        ] {
            let call = call(boundary(), outside, by_path);
            let run = |pieces: &[&[u8]]| sent(&mut Editor::new(&call, name, &UNKNOWN), pieces);
            let code = |fault: Fault| match fault {
                Fault::Refused(refusal) => refusal.code(),
                Fault::LengthUnkept { .. } => "length",
            };
            assert_eq!(run(&[body]).as_ref().map_err(|fault| code(fault.clone())), want, "{label}");
            same_however_cut(body, run);
        }
    }

    #[test]
    fn what_has_been_read_before_is_not_read_again_and_gives_the_same() {
        let put_in = String::from_utf8(form("")).expect("text").replace("--b--", &format!("{MODEL}--b--"));
        let put_in = put_in.replace("asked", "their-own").into_bytes();
        for (body, want) in [(form(MODEL), None), (form(""), Some(put_in))] {
            let call = call(boundary(), Some("asked"), false);
            let want = want.unwrap_or_else(|| {
                String::from_utf8(body.clone()).expect("text").replace("asked", "their-own").into_bytes()
            });
            for read in 0..=body.len() {
                let mut form = Form::new(&boundary());
                form.push(&body[..read]).expect("a form");
                if read == body.len() {
                    form.finish().expect("complete");
                }
                let known = Known { len: None, model: Place::of(&form), form: Some(form) };
                for pieces in [vec![&body[..]], body.chunks(7).collect()] {
                    let sent = sent(&mut Editor::new(&call, Some("their-own"), &known), &pieces);
                    assert!(sent.as_ref() == Ok(&want), "{read} bytes read before: {sent:?}");
                }
            }
        }
    }

    #[test]
    fn the_length_is_told_as_soon_as_it_is_known() {
        let body = form(MODEL);
        let len = body.len() as u64;
        let at = body.windows(5).position(|five| five == b"asked").expect("there") as u64;
        let there = Place::There(Model { name: "asked".into(), at: at..at + 5 });
        let absent = Place::Absent { insert_at: 40 };
        let put_in = text_part(&boundary(), "model", "their-own").len() as u64;
        for (label, len, model, name, want) in [
            ("declared, found", Some(len), &there, Some("their-own"), Some(len + 4)),
            ("declared, found, the same", Some(len), &there, Some("asked"), Some(len)),
            ("declared, absent", Some(len), &absent, Some("their-own"), Some(len + put_in)),
            ("declared, absent, not needed", Some(len), &absent, None, Some(len)),
            ("declared, not looked for, and another name here", Some(len), &Place::Unknown, Some("their-own"), None),
            ("declared, not looked for", Some(len), &Place::Unknown, Some("asked"), Some(len)),
            ("not declared", None, &there, Some("their-own"), None),
        ] {
            let known = Known { len, model: model.clone(), form: None };
            let editor = Editor::new(&call(boundary(), Some("asked"), false), name, &known);
            assert_eq!(editor.length(), want, "{label}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_kept_is_said_before_the_end_goes_out() {
        let body = form("");
        let call = call(boundary(), Some("asked"), false);
        let known = Known { len: Some(body.len() as u64), ..UNKNOWN };
        let mut editor = Editor::new(&call, Some("asked"), &known);
        let passed = editor.push(Bytes::from(body.clone()), false).expect("scanned");
        assert!(!passed.is_empty() && passed.len() < body.len() - b"--b--".len(), "the end waits");
        let Err(Fault::LengthUnkept { insert_at }) = editor.push(Bytes::new(), true) else {
            unreachable!("the form has no model")
        };
        let known = Known { model: Place::Absent { insert_at }, ..known };
        let mut again = Editor::new(&call, Some("asked"), &known);
        let length = again.length();
        let sent = sent(&mut again, &[&body]).expect("sent");
        assert_eq!((sent.len() as u64, sent), (length.expect("known"), form(MODEL)));
    }

    #[test]
    fn nothing_complete_goes_out_of_a_form_that_is_not_accepted() {
        let good = form(MODEL);
        let bad = [&good[..], b"more"].concat();
        let call = call(boundary(), None, false);
        for pieces in [vec![&bad[..]], vec![&good[..], b"more"], good.chunks(1).chain([&b"more"[..]]).collect()] {
            let mut editor = Editor::new(&call, Some("asked"), &UNKNOWN);
            let mut out = Vec::new();
            let mut fault = None;
            for piece in pieces {
                match editor.push(Bytes::copy_from_slice(piece), false) {
                    Ok(piece) => out.extend_from_slice(&piece),
                    Err(found) => fault = Some(found),
                }
            }
            assert!(matches!(fault, Some(Fault::Refused(Refusal::InvalidMultipart { .. }))), "{fault:?}");
            assert!(good.starts_with(&out) && !out.ends_with(b"--b--"), "no end without its acceptance");
        }
        let mut editor = Editor::new(&call, Some("asked"), &UNKNOWN);
        assert_eq!(sent(&mut editor, &[&good[..good.len() - 5]]), Err(Fault::Refused(Refusal::MultipartTruncated)));
    }

    #[test]
    fn a_form_passes_unread_where_its_length_stays_true() {
        let (small, replay) = (100, 200);
        for (label, outside, by_path, name, declared, want) in [
            ("chunked", "asked", false, Some("other"), None, true),
            ("chunked, by path", "asked", true, Some("other"), None, true),
            ("declared, the same name", "asked", false, Some("asked"), Some(101), true),
            ("declared, but small", "asked", false, Some("asked"), Some(100), false),
            ("declared, too long to be sent again", "asked", false, Some("asked"), Some(201), false),
            ("declared, too long, but nothing can change", "asked", false, None, Some(201), true),
            ("declared, another name", "asked", false, Some("other"), Some(101), false),
            ("declared, by path", "asked", true, Some("asked"), Some(101), false),
            ("declared, the provider's path names it", "asked", true, None, Some(101), true),
        ] {
            assert_eq!(
                passes_unread(&call(boundary(), Some(outside), by_path), name, declared, small, replay),
                want,
                "{label}"
            );
        }
    }

    /// Head and body of a request as a client sent it, its chunks put together.
    fn captured(path: &Path) -> (String, Vec<u8>) {
        let raw = std::fs::read(path).expect("readable");
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8(raw[..end].to_vec()).expect("a text");
        let mut rest = &raw[end..];
        if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            return (head, rest.to_vec());
        }
        let mut body = Vec::new();
        loop {
            let line = rest.windows(2).position(|two| two == b"\r\n").expect("a size");
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).expect("text"), 16).expect("a size");
            body.extend_from_slice(&rest[line + 2..line + 2 + size]);
            rest = &rest[line + 4 + size..];
            if size == 0 {
                return (head, body);
            }
        }
    }

    #[test]
    fn what_real_clients_send_goes_on_but_for_its_model() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/captures");
        let mut seen = 0;
        for path in std::fs::read_dir(dir).expect("there").map(|entry| entry.expect("readable").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            if !name.contains("transcribe") && !name.contains("translate") {
                continue;
            }
            seen += 1;
            let (head, body) = captured(&path);
            let media = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-type:")).expect("one");
            let boundary = Boundary::parse(media.split_once(':').expect("a value").1.trim()).expect("valid");
            let marker = b"name=\"model\"";
            let field = body.windows(marker.len()).position(|bytes| bytes == marker).expect("a model");
            let start = field + body[field..].windows(4).position(|four| four == b"\r\n\r\n").expect("a value") + 4;
            let len = body[start..].windows(2).position(|two| two == b"\r\n").expect("its end");
            let want = [&body[..start], b"their-own", &body[start + len..]].concat();
            let call = call(boundary, None, false);
            let run = |pieces: &[&[u8]]| sent(&mut Editor::new(&call, Some("their-own"), &UNKNOWN), pieces);
            assert!(run(&[&body]).as_ref() == Ok(&want), "{name}");
            same_however_cut(&body, run);
        }
        assert!(seen >= 15, "{seen} captures");
    }
}
