//! What holds for any form, and for any bytes.

use std::ops::Range;

use memchr::memmem;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{boundary, run, want, with_head};
use crate::wire::multipart::disposition::Disposition;
use crate::wire::multipart::{Boundary, Fault, Scanner, Want};
use crate::wire::testing::{pieces, same_however_cut};

/// A part of a made-up form.
#[derive(Debug, Clone)]
struct Made {
    name: &'static str,
    filename: Option<&'static str>,
    value: Vec<u8>,
}

/// Where a part of a made-up form stands.
#[derive(Debug, Clone)]
struct Place {
    delimiter: usize,
    value: Range<usize>,
    /// Its value is kept, so it waits for the delimiter behind it.
    field: bool,
}

/// Values full of what looks like the boundary `--b-`, but without a delimiter.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    const BITS: &[&[u8]] =
        &[b"\r", b"\n", b"\r\n", b"-", b"--", b"--b", b"--b-", b"b-", b"\r\n--b", b"\r\n-", b"x", b"\0\xFF"];
    let bits = vec(select(BITS), 0..12).prop_map(|bits| bits.concat());
    bits.prop_filter("a delimiter", |value| !value.starts_with(b"--b-") && memmem::find(value, b"\n--b-").is_none())
}

fn any_parts() -> impl Strategy<Value = Vec<Made>> {
    let name = select(&["model", "stream", "file", "prompt", "a[b]"][..]);
    let filename = prop::option::of(select(&["", "a.wav", "ü; b"][..]));
    vec((name, filename, any_value()).prop_map(|(name, filename, value)| Made { name, filename, value }), 0..5)
}

/// A form of these parts with boundary `b-`, where they stand in it, and where its closing delimiter does.
fn compose(parts: &[Made]) -> (Vec<u8>, Vec<Place>, usize) {
    let mut body = b"--b-".to_vec();
    let mut places = Vec::new();
    for Made { name, filename, value } in parts {
        let delimiter = body.len().saturating_sub(b"\r\n--b-".len());
        let filename_param = filename.map(|filename| format!("; filename=\"{filename}\"")).unwrap_or_default();
        let head = format!("\r\nContent-Disposition: form-data; name=\"{name}\"{filename_param}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        let start = body.len();
        body.extend_from_slice(value);
        places.push(Place {
            delimiter,
            value: start..body.len(),
            field: want(name) == Want::Text && filename.is_none(),
        });
        body.extend_from_slice(b"\r\n--b-");
    }
    let close = body.len().saturating_sub(b"\r\n--b-".len());
    body.extend_from_slice(b"--\r\n");
    (body, places, close)
}

/// How much may be passed on at most once `pushed` bytes have come: up to the first part that is not decided.
fn may_settle(pushed: usize, places: &[Place], close: usize) -> usize {
    let delimiter_end = |value_end: usize| value_end + b"\r\n--b-\r\n".len();
    let undecided = places
        .iter()
        .find(|place| pushed < place.value.start || (place.field && pushed < delimiter_end(place.value.end)));
    undecided.map_or(close, |place| place.delimiter)
}

proptest! {
    #[test]
    fn a_form_gives_back_the_parts_it_was_made_of(parts in any_parts(), sizes in vec(0..9_usize, 0..6)) {
        let (body, places, close) = compose(&parts);
        let outcome = run(&boundary("b-"), &pieces(&body, &sizes));
        prop_assert_eq!(outcome.end.clone(), Ok(()));
        let dashes = if parts.is_empty() { close } else { close + 2 };
        prop_assert_eq!(outcome.close_at, Some(dashes as u64));
        let wants = parts.iter().zip(&places).filter(|(part, _)| want(part.name) != Want::Nothing);
        for (found, (part, place)) in outcome.parts.iter().zip(wants.clone()) {
            prop_assert_eq!((found.name.as_str(), found.filename.as_deref()), (part.name, part.filename));
            prop_assert_eq!(found.value.clone(), place.value.start as u64..place.value.end as u64);
            prop_assert_eq!(&found.text, if place.field { &part.value } else { &b""[..] });
        }
        prop_assert_eq!(outcome.parts.len(), wants.count());
        same_however_cut(&body, |pieces| run(&boundary("b-"), pieces));
    }

    /// With every byte: as much as may be is settled, and no byte more.
    #[test]
    fn nothing_is_settled_that_may_still_be_refused_and_all_else_is(parts in any_parts()) {
        let (body, places, close) = compose(&parts);
        let mut scanner = Scanner::new(&boundary("b-"), want);
        for (before, byte) in body.iter().enumerate() {
            prop_assert_eq!(scanner.push(&[*byte]), Ok(()));
            let (pushed, settled) = (before + 1, scanner.settled() as usize);
            let most = may_settle(pushed, &places, close);
            prop_assert!(settled <= most.min(pushed), "{} settled of {}, at most {}", settled, pushed, most);
            let held = &body[settled..pushed.min(most).max(settled)];
            let begins = (0..4).any(|cut| b"\r\n--b-"[cut..].starts_with(held));
            prop_assert!(begins, "{} is held back", held.escape_ascii());
        }
        prop_assert_eq!(scanner.finish(), Ok(()));
        prop_assert_eq!(scanner.settled(), body.len() as u64);
    }

    #[test]
    fn a_form_without_its_end_is_cut_off(parts in any_parts(), cut in any::<Index>()) {
        let (body, _, close) = compose(&parts);
        let end = body.len() - b"\r\n".len();
        let cut = cut.index(end);
        let outcome = run(&boundary("b-"), &[&body[..cut]]);
        prop_assert_eq!(outcome.end, Err(Fault::Truncated));
        prop_assert!(outcome.settled <= close as u64);
    }

    #[test]
    fn a_damaged_form_is_judged_the_same_however_it_is_cut(
        parts in any_parts(),
        (at, bytes, dropped) in (any::<Index>(), vec(any::<u8>(), 0..3), 0..3_usize),
    ) {
        let mut body = compose(&parts).0;
        let at = at.index(body.len());
        body.splice(at..body.len().min(at + dropped), bytes);
        same_however_cut(&body, |pieces| run(&boundary("b-"), pieces));
    }

    #[test]
    fn any_bytes_are_judged_the_same_however_they_are_cut(
        bits in vec(select(BITS), 0..24),
        bytes in vec(any::<u8>(), 0..24),
    ) {
        same_however_cut(&bits.concat(), |pieces| run(&boundary("b"), pieces));
        same_however_cut(&with_head(&bytes), |pieces| run(&boundary("b"), pieces));
        same_however_cut(&bytes, |pieces| run(&boundary("b"), pieces));
        let _ = Boundary::parse(&String::from_utf8_lossy(&bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Whatever a lenient parser makes of quotes and backslashes.
    #[test]
    fn no_other_parser_finds_another_name_in_a_line_that_passes(params in any_params("filename")) {
        if let Ok(disposition) = Disposition::parse(format!("form-data{params}").as_bytes()) {
            for quotes in [Quotes::Escaped, Quotes::Literal, Quotes::Ignored] {
                prop_assert_eq!(names(&params, quotes), [disposition.name.as_str()], "{:?} in {}", quotes, params);
            }
        }
    }

    #[test]
    fn no_other_parser_finds_another_boundary_in_a_header_that_passes(params in any_params("z")) {
        let header = format!("multipart/form-data{}", params.replace("name", "boundary"));
        if let Ok(boundary) = Boundary::parse(&header) {
            for quotes in [Quotes::Escaped, Quotes::Literal, Quotes::Ignored] {
                let want = boundary.as_str().replace("boundary", "name");
                prop_assert_eq!(names(&params, quotes), [want], "{:?} in {}", quotes, params);
            }
        }
    }
}

const BITS: &[&[u8]] = &[
    b"--b\r\n",
    b"\r\n--b\r\n",
    b"\r\n--b--",
    b"\n--b",
    b"\r",
    b"\n",
    b"--",
    b"\r\n\r\n",
    b"Content-Disposition: form-data; name=model\r\n",
    b"Content-Disposition: form-data; name=a; filename=\"b\"\r\n\r\n",
    b"Content-Type: a/b\r\n",
    b"X: y",
    b"m",
];

/// A `name` between two other parameters, each with what else could stand in its quotes, or end them.
fn any_params(last: &'static str) -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &["a", "b", " ", ";", "=", "\\", "\"", "\\\"", "\\\\", "; name=c", "name=", "\"; x=\"", "*"];
    let text = || vec(select(WORDS), 0..3).prop_map(|words| words.concat());
    (text(), text(), text())
        .prop_map(move |(before, name, after)| format!("; y=\"{before}\"; name=\"{name}\"; {last}=\"{after}\""))
}

/// What a lenient parser makes of a quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// A semicolon between quotes separates nothing, and a backslash hides a quote.
    Escaped,
    /// As before, but a backslash is a letter.
    Literal,
    /// Every semicolon separates.
    Ignored,
}

/// Every name that such a parser finds.
fn names(line: &str, quotes: Quotes) -> Vec<String> {
    let (mut within, mut hidden) = (false, false);
    let params = line.split(|char| {
        within ^= char == '"' && !hidden;
        hidden = char == '\\' && !hidden && within && quotes == Quotes::Escaped;
        char == ';' && (!within || quotes == Quotes::Ignored)
    });
    let assigned = params.filter_map(|param| param.split_once('='));
    let named = assigned.filter(|(name, _)| name.trim().trim_end_matches('*').eq_ignore_ascii_case("name"));
    named.map(|(_, value)| value.trim().trim_matches('"').to_owned()).collect()
}
