//! What has to hold for any bytes: each law panics where it does not.
//!
//! The scanners are taken as they are, without the gateway around them: a fuzzer is built in seconds, and counts
//! nothing but them.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;

use percent_encoding::percent_decode;
use serde::de::IgnoredAny;

#[path = "../../../src/wire/mod.rs"]
pub mod wire;

use wire::glob::Glob;
use wire::head::{Body, Head, Limits, Reader};
use wire::multipart::{Boundary, Part, Want};
use wire::{json, multipart, path};

/// What panics for bytes that break it. Gives whether the scanner accepts them.
pub type Law = fn(&[u8]) -> bool;

/// The laws, by the names of their seeds.
pub const LAWS: [(&str, Law); 4] = [("form", form), ("head", head), ("json", json), ("path", path)];

/// The first byte says into pieces of how many bytes the network cuts the rest; at least one.
fn cuts(input: &[u8]) -> (&[u8], usize) {
    match input.split_first() {
        Some((&size, rest)) => (rest, usize::from(size)),
        None => (input, 0),
    }
}

/// The same result for the whole as for its pieces.
fn same_however_cut<T: PartialEq + Debug>(input: &[u8], size: usize, run: impl Fn(&[&[u8]]) -> T) -> T {
    let whole = run(&[input]);
    let pieces: Vec<&[u8]> = input.chunks(size.max(1)).collect();
    assert_eq!(run(&pieces), whole, "in pieces of {}", size.max(1));
    whole
}

/// A head that passes is read by a lenient parser in the same way, as far as framing goes.
pub fn head(input: &[u8]) -> bool {
    let (input, size) = cuts(input);
    let read = same_however_cut(input, size, |pieces| {
        let mut reader = Reader::new(Limits::default());
        let mut buf = Vec::new();
        for piece in pieces {
            buf.extend_from_slice(piece);
            match reader.look(&buf) {
                Ok(None) => {}
                done => return done.map_err(|fault| fault.kind),
            }
        }
        Ok(None)
    });
    let Ok(Some(head)) = read else { return false };
    is_read_alike(input, &head);
    true
}

fn is_read_alike(input: &[u8], head: &Head) {
    let mut fields = [httparse::EMPTY_HEADER; wire::head::FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let len = request.parse(input).expect("what passes is a head");
    assert_eq!(len, httparse::Status::Complete(head.len));
    assert_eq!(request.method.map(str::as_bytes), input.get(head.method.clone()));
    assert_eq!(request.path.map(str::as_bytes), input.get(head.target.clone()));
    assert_eq!(request.version, Some(head.version_minor));
    let all = |name: &str| {
        let values = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        values.map(|field| String::from_utf8_lossy(field.value).trim().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let framing = (all("content-length"), all("transfer-encoding"));
    let want = match head.body {
        Body::None => (vec![], vec![]),
        Body::Length(length) => (vec![length.to_string()], vec![]),
        Body::Chunked => (vec![], vec!["chunked".to_owned()]),
    };
    assert_eq!(framing, want);
    assert!(all("host").len() <= 1);
}

type Keys = HashMap<String, IgnoredAny>;

/// A body is one JSON object to the scanner where it is one to `serde_json`, but for the scanner's limits and keys that
/// stand twice; and its members stand where it says.
pub fn json(input: &[u8]) -> bool {
    let (input, size) = cuts(input);
    let found = same_however_cut(input, size, |pieces| {
        let mut scanner = json::Scanner::new();
        pieces.iter().try_for_each(|piece| scanner.push(piece))?;
        scanner.finish()
    });
    // It does not look at text that it skips: neither at its bytes, nor for half a surrogate pair, which is grammar too.
    let theirs = std::str::from_utf8(input).ok().and_then(|text| serde_json::from_str::<Keys>(text).ok());
    match (found, theirs) {
        (Ok(members), theirs) => {
            let theirs = theirs.expect("what passes is an object");
            assert_eq!(members.iter().map(|member| &member.key).collect::<HashSet<_>>(), theirs.keys().collect());
            assert_eq!(members.len(), theirs.len(), "a key stands twice");
            for member in members {
                let raw = &input[member.value];
                assert_eq!(raw.trim_ascii(), raw);
                let value: Option<serde_json::Value> = serde_json::from_slice(raw).ok();
                assert_eq!(json::text(raw).as_deref(), value.as_ref().and_then(serde_json::Value::as_str));
                assert!(serde_json::from_slice::<IgnoredAny>(raw).is_ok(), "a span is a value");
            }
            true
        }
        (Err(json::Fault::Syntax { reason, .. }), Some(_)) => {
            assert!(["nested too deeply", "too many members", "key too long"].contains(&reason), "{reason}");
            false
        }
        (Err(_), _) => false,
    }
}

/// The boundary of the form in every input.
const BOUNDARY: &str = "b";

/// The parts of a form are where its delimiters are, no delimiter is inside one, and a field is not passed on before it is
/// whole.
pub fn form(input: &[u8]) -> bool {
    let (input, size) = cuts(input);
    let boundary = Boundary::parse(&format!("multipart/form-data; boundary={BOUNDARY}")).expect("a boundary");
    let want = |name: &str| match name {
        "model" => Want::Text,
        "file" => Want::Place,
        _ => Want::Nothing,
    };
    let run = |pieces: &[&[u8]]| {
        let mut scanner = multipart::Scanner::new(&boundary, want);
        let mut pushed = 0;
        for piece in pieces {
            let before = scanner.settled();
            let result = scanner.push(piece);
            pushed += piece.len() as u64;
            assert!(before <= scanner.settled() && scanner.settled() <= pushed);
            let is_open = |part: &&Part| !part.complete && part.name == "model" && part.filename.is_none();
            let open = scanner.parts().iter().find(is_open);
            assert!(open.is_none_or(|part| scanner.settled() < part.value.start));
            if result.is_err() {
                break;
            }
        }
        let end = scanner.finish();
        assert!(end.is_err() || scanner.settled() == pushed, "all of a form is passed on");
        (end, scanner.parts().to_vec(), scanner.close_at(), scanner.settled())
    };
    let (end, parts, close_at, _) = same_however_cut(input, size, run);
    if end.is_ok() {
        let close_at = usize::try_from(close_at.expect("a form has an end")).expect("inside");
        assert!(input[close_at..].starts_with(format!("--{BOUNDARY}--").as_bytes()));
        parts.iter().for_each(|part| is_a_part(input, part));
    }
    end.is_ok()
}

fn is_a_part(input: &[u8], part: &Part) {
    let place = |at: u64| usize::try_from(at).expect("inside");
    let (start, end) = (place(part.value.start), place(part.value.end));
    let delimiter = format!("\r\n--{BOUNDARY}");
    assert!(part.complete);
    assert!(input[..start].ends_with(b"\r\n\r\n"), "a value stands behind a head");
    assert!(input[end..].starts_with(delimiter.as_bytes()), "and before a delimiter");
    assert!(memchr::memmem::find(&input[start..end], delimiter.as_bytes()).is_none());
    if part.name == "model" && part.filename.is_none() {
        assert_eq!(part.text, input[start..end]);
    }
}

/// The globs that paths are held against.
const GLOBS: [&str; 4] = ["a/v1/*", "a/**/c", "**", "a/v1/x*y/z"];

/// How often a server may decode a path.
const DECODINGS: usize = 2;

/// A path that passes has no dot segment, decoded or not, whatever is taken for a slash and with parameters or without; and
/// what a glob allows, it would also deny.
pub fn path(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    for glob in GLOBS.map(|glob| Glob::parse(glob).expect("a glob")) {
        assert!(!glob.allows(text) || glob.denies(text), "{text}");
    }
    if path::lint(text).is_err() {
        return false;
    }
    let mut decoded = text.as_bytes().to_vec();
    for _ in 0..=DECODINGS {
        for segment in decoded.split(|byte| b"/\\".contains(byte)) {
            let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
            assert!(!matches!(name, b"." | b".."), "{text}");
        }
        decoded = percent_decode(&decoded).collect();
    }
    true
}
