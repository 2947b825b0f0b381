//! What the scanner finds, refuses and holds back, however its input is cut.

mod captures;
mod properties;

use super::*;
use crate::wire::testing::same_however_cut;

fn want(name: &str) -> Want {
    match name {
        "model" | "file" | "stream" => Want::Text,
        "place" => Want::Place,
        _ => Want::Nothing,
    }
}

fn boundary(text: &str) -> Boundary {
    Boundary::parse(&format!("multipart/form-data; boundary={text}")).expect("a boundary")
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    parts: Vec<Part>,
    close_at: Option<u64>,
    settled: u64,
    end: Result<(), Fault>,
}

/// What a caller does, and what it may rely on at every moment.
fn run(boundary: &Boundary, pieces: &[&[u8]]) -> Outcome {
    let mut scanner = Scanner::new(boundary, want);
    let (mut pushed, mut fault) = (0, None);
    for piece in pieces {
        let (before, result) = (scanner.settled(), scanner.push(piece));
        pushed += piece.len() as u64;
        assert!(before <= scanner.settled() && scanner.settled() <= pushed, "{before} to {}", scanner.settled());
        fault = fault.or(result.clone().err());
        assert_eq!(result.err(), fault, "a fault is final");
    }
    let end = scanner.finish();
    assert!(fault.is_none() || end.as_ref().err() == fault.as_ref(), "{fault:?}, then {end:?}");
    assert_eq!(scanner.finish(), end, "an end is final");
    assert!(end.is_err() || scanner.settled() == pushed, "all of a form is settled");
    Outcome { parts: scanner.parts().to_vec(), close_at: scanner.close_at(), settled: scanner.settled(), end }
}

/// The outcome of these bytes, however they are cut.
fn outcome(boundary: &Boundary, body: &[u8]) -> Outcome {
    same_however_cut(body, |pieces| run(boundary, pieces));
    run(boundary, &[body])
}

/// A form with boundary `b`, that has these lines in the head of its one part.
fn with_head(lines: &[u8]) -> Vec<u8> {
    [b"--b\r\n", lines, b"\r\n\r\nvalue\r\n--b--\r\n"].concat()
}

/// The head line of a part, its name as it stands on the wire.
const DISPOSITION: &[u8] = b"Content-Disposition: form-data; name=";

/// Name, file name, Content-Type and text (or bytes of a file) of every part.
type Found<'a> = Vec<(&'a str, Option<&'a str>, Option<&'a str>, &'a [u8])>;

fn found<'a>(body: &'a [u8], parts: &'a [Part]) -> Found<'a> {
    let value = |part: &Part| &body[part.value.start as usize..part.value.end as usize];
    for part in parts {
        assert!(part.complete);
        assert_eq!(part.text, if part.filename.is_none() { value(part) } else { b"" }, "{}", part.name);
    }
    parts.iter().map(|p| (p.name.as_str(), p.filename.as_deref(), p.media.as_deref(), value(p))).collect()
}

#[test]
fn a_form_is_read_as_every_client_spells_it() {
    let utf8 = Some("text/plain; charset=utf-8");
    let octets = Some("application/octet-stream");
    for (client, boundary_text, body, want) in [
        (
            "python: fields first, lower case",
            "721379e091a40b1f6b9bac089048fed2",
            "--B\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--B\r\ncontent-disposition: \
             form-data; name=\"file\"; filename=\"a.wav\"\r\ncontent-type: audio/x-wav\r\n\r\nRIFF\r\n--B--\r\n",
            vec![("model", None, None, &b"whisper-1"[..]), ("file", Some("a.wav"), Some("audio/x-wav"), b"RIFF")],
        ),
        (
            "node: file first, name in UTF-8, an escaped quote",
            "openai-7lvo7gdb8yv",
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"übung %221%22.wav\"\r\nContent-Type: \
             application/octet-stream\r\n\r\nRIFF\r\n--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n\
             whisper-1\r\n--B--\r\n",
            vec![("file", Some("übung %221%22.wav"), octets, b"RIFF"), ("model", None, None, b"whisper-1")],
        ),
        (
            "undici: its boundary, a nested name",
            "----formdata-undici-075070486670",
            "--B\r\nContent-Disposition: form-data; name=\"chunking_strategy[type]\"\r\n\r\nserver_vad\r\n--B\r\n\
             Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--B--\r\n",
            vec![("model", None, None, b"whisper-1")],
        ),
        (
            "curl: backslashes as they are",
            "------------------------1de7368e13fcb05d",
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"C:\\a b.wav\"\r\n\r\n\r\n--B--\r\n",
            vec![("file", Some("C:\\a b.wav"), None, b"")],
        ),
        (
            "Go: escaped backslashes and quotes",
            "8afd2f2f7015df3636f41a26f035b3f904a1cf5217cb3d25e9bef4c72305",
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\\\\b\\\"c.wav\"\r\nContent-Type: \
             application/octet-stream\r\n\r\nRIFF\r\n--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n\
             whisper-1\r\n--B--\r\n",
            vec![("file", Some("a\\b\"c.wav"), octets, b"RIFF"), ("model", None, None, b"whisper-1")],
        ),
        (
            "Java: a Content-Type on every part, a length as well",
            "9c1c7b64-9d55-4f5f-a0b1-1a4a0c3c1a55",
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\nContent-Type: \
             application/octet-stream\r\nContent-Length: 4\r\n\r\nRIFF\r\n--B\r\nContent-Disposition: form-data; \
             name=\"model\"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
             whisper-1\r\n--B--\r\n",
            vec![("file", Some("a"), octets, b"RIFF"), ("model", None, utf8, b"whisper-1")],
        ),
        (
            ".NET: tokens, both file names, no line end behind the form",
            "\"9051914041544843365972754266\"",
            "--B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\r\n\
             whisper-1\r\n--B\r\nContent-Disposition: form-data; name=file; filename=a.wav; filename*=utf-8''b.wav\r\n\
             \r\nRIFF\r\n--B--",
            vec![("model", None, utf8, b"whisper-1"), ("file", Some("a.wav"), None, b"RIFF")],
        ),
    ] {
        let boundary = boundary(boundary_text);
        let body = body.replace("--B", &format!("--{}", boundary.as_str())).into_bytes();
        let outcome = outcome(&boundary, &body);
        assert_eq!(outcome.end, Ok(()), "{client}");
        assert_eq!(found(&body, &outcome.parts), want, "{client}");
        let close = format!("--{}--", boundary.as_str());
        let close_at = outcome.close_at.expect(client) as usize;
        assert!(body[close_at..].starts_with(close.as_bytes()), "{client}");
    }
}

#[test]
fn what_is_unusual_and_plain_passes() {
    let field = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n";
    for (label, body, want) in [
        ("no part", "--b--".to_owned(), vec![]),
        ("a line end before the form", format!("\r\n{field}m\r\n--b--"), vec!["m"]),
        ("a line end behind it", format!("{field}m\r\n--b--\r\n"), vec!["m"]),
        ("two line ends behind it", format!("{field}m\r\n--b--\r\n\r\n"), vec!["m"]),
        ("no bytes", format!("{field}\r\n--b--"), vec![""]),
        ("twice the same", format!("{field}m\r\n{field}n\r\n--b--"), vec!["m", "n"]),
        ("lines", format!("{field}\r\n\r\n\n\r-\r\n--\r\n--B\r\n\r\n--b--"), vec!["\r\n\r\n\n\r-\r\n--\r\n--B\r\n"]),
        ("a boundary within a line", format!("{field}m--b\r\n-b\r--b\r\n--b--"), vec!["m--b\r\n-b\r--b"]),
        ("the most", format!("{field}{}\r\n--b--", "m".repeat(FIELD_BYTES_MAX)), vec![&*"m".repeat(FIELD_BYTES_MAX)]),
    ] {
        let outcome = outcome(&boundary("b"), body.as_bytes());
        assert_eq!(outcome.end, Ok(()), "{label}");
        let texts: Vec<_> = outcome.parts.iter().map(|part| str::from_utf8(&part.text).expect(label)).collect();
        assert_eq!(texts, want, "{label}");
        let close_at = outcome.close_at.expect(label) as usize;
        assert!(body[close_at..].starts_with("--b--"), "{label}");
    }
}

#[test]
fn a_part_says_its_name_and_that_of_its_file() {
    let longest = "n".repeat(NAME_BYTES_MAX);
    let longest_file = "f".repeat(FILENAME_BYTES_MAX);
    for (line, name, filename) in [
        (&b"CONTENT-DISPOSITION:Form-Data;NAME=model"[..], "model", None),
        (b"Content-Disposition: \tform-data ;; \tname=\"model\" ; ", "model", None),
        (b"Content-Disposition: form-data; x=y; z=\"; \"; name=\"a[b] \xC3\xA9\"", "a[b] é", None),
        (b"Content-Disposition: form-data; name=model; filename=\"\"", "model", Some("")),
        (b"Content-Disposition: form-data; filename=\"../a; b\"; name=\"model\"", "model", Some("../a; b")),
        (b"Content-Disposition: form-data; name=\"a\"; filename=\"\xE9.wav\"", "a", Some("\u{FFFD}.wav")),
        (b"Content-Disposition: form-data; name=\"a\"; filename=\"C:\\\\x\\y\\\"\"", "a", Some("C:\\x\\y\"")),
        (b"Content-Disposition: form-data; name=\"a\"; filename=\"my name.wav\"", "a", Some("my name.wav")),
        (b"Content-Disposition: form-data; name=\"a\"; filename*=UTF-8'de'%c3%BCb'.wav", "a", Some("üb'.wav")),
        (b"Content-Disposition: form-data; name=\"a\"; filename*=\"''%e9\"", "a", Some("\u{FFFD}")),
        (b"Content-Disposition: form-data; name=\"a\"; filename*=''b; filename=c", "a", Some("c")),
        (&[DISPOSITION, longest.as_bytes()].concat(), &longest, None),
        (&[DISPOSITION, b"a; filename=", longest_file.as_bytes()].concat(), "a", Some(&longest_file)),
    ] {
        let head = with_head(line);
        let mut scanner = Scanner::new(&boundary("b"), |_| Want::Text);
        assert_eq!(scanner.push(&head), Ok(()), "{}", line.escape_ascii());
        let part = &scanner.parts()[0];
        assert_eq!((part.name.as_str(), part.filename.as_deref()), (name, filename), "{}", line.escape_ascii());
    }
}

#[test]
fn a_content_type_is_shown_if_it_is_printable() {
    let long = format!("a/{}", "b".repeat(MEDIA_BYTES_MAX - 1));
    for (value, want) in [
        ("", None),
        (" audio/wav; x=y \t", Some("audio/wav; x=y")),
        ("audio/\u{e9}", None),
        ("audio/wav;\tx=y", None),
        (&long[1..], Some(&long[1..])),
        (&long, None),
    ] {
        let body = with_head(
            format!("Content-Disposition: form-data; name=file; filename=a\r\nContent-Type:{value}").as_bytes(),
        );
        assert_eq!(run(&boundary("b"), &[&body]).parts[0].media.as_deref(), want, "{value}");
    }
}

/// The reason, and the bytes that stand where the fault does.
type Refused = (&'static str, &'static str);

fn assert_refused(label: &str, body: &[u8], want: fn(&'static str, u64) -> Fault, (reason, stands): Refused) {
    let outcome = outcome(&boundary("b"), body);
    let shown = body.escape_ascii();
    let at = match outcome.end {
        Err(Fault::Syntax { at, .. } | Fault::Ambiguous { at, .. }) => at,
        other => panic!("{label}: {other:?} for {shown}"),
    };
    assert_eq!(outcome.end, Err(want(reason, at)), "{label}: {shown}");
    let there = &body[at as usize..];
    assert!(there.starts_with(stands.as_bytes()), "{label}: {} is at fault in {shown}", there.escape_ascii());
}

#[test]
fn bytes_that_are_not_exactly_a_form_are_refused() {
    const START: &str = "the body does not begin with its boundary";
    const BEHIND: &str = "neither a line end nor two dashes behind the boundary";
    const CLOSED: &str = "bytes behind the closing boundary";
    let field = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n";
    for (label, body, reason, stands) in [
        ("preamble", format!("preamble\r\n{field}m\r\n--b--"), START, "preamble"),
        ("a blank before the form", format!(" {field}m\r\n--b--"), START, " --b"),
        ("two lines before it", format!("\r\n\r\n{field}m\r\n--b--"), START, "\r\n--b"),
        ("a bare LF before it", format!("\n{field}m\r\n--b--"), START, "\n--b"),
        ("a bare CR before it", format!("\r{field}m\r\n--b--"), START, "--b"),
        ("a mark before it", format!("\u{feff}{field}m\r\n--b--"), START, "\u{feff}"),
        ("only one dash", "-b\r\n".to_owned(), START, "b\r\n"),
        ("another boundary", "--a\r\n".to_owned(), START, "a\r\n"),
        ("the boundary in upper case", "--B--".to_owned(), START, "B--"),
        ("a longer boundary", "--bb--".to_owned(), BEHIND, "b--"),
        ("a blank behind the boundary", field.replacen('\r', " \r", 1), BEHIND, " \r\nC"),
        ("a tab behind a later boundary", format!("{field}m\r\n--b\t\r\n"), BEHIND, "\t\r\n"),
        ("a bare LF behind the boundary", "--b\nContent".to_owned(), BEHIND, "\nC"),
        ("a bare CR behind the boundary", "--b\rContent".to_owned(), BEHIND, "C"),
        ("one dash behind the boundary", format!("{field}m\r\n--b-\r\n"), BEHIND, "\r\n"),
        ("three dashes", format!("{field}m\r\n--b---"), CLOSED, "-"),
        ("a blank behind the form", format!("{field}m\r\n--b-- \r\n"), CLOSED, " \r\n"),
        ("a bare LF behind the form", format!("{field}m\r\n--b--\n"), CLOSED, "\n"),
        ("a bare CR behind the form", format!("{field}m\r\n--b--\rx"), CLOSED, "x"),
        ("epilogue", format!("{field}m\r\n--b--\r\nx"), CLOSED, "x"),
        ("a third line end", format!("{field}m\r\n--b--\r\n\r\n\r\n"), CLOSED, "\r\n"),
        ("another form", format!("{field}m\r\n--b--\r\n{field}n\r\n--b--"), CLOSED, "--b\r\n"),
    ] {
        assert_refused(label, body.as_bytes(), syntax, (reason, stands));
    }
}

#[test]
fn what_only_some_would_take_for_a_delimiter_is_refused() {
    const BARE: &str = "a boundary behind a bare LF";
    const HEAD: &str = "a boundary directly behind the head of a part";
    let field = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n";
    let file = "--b\r\nContent-Disposition: form-data; name=\"x\"; filename=\"y\"\r\n\r\n";
    for part in [field, file] {
        for (label, value, reason, stands) in [
            ("behind a bare LF", "m\n--b\r\nx\r\n--b--", BARE, "\n--b\r\nx"),
            ("in the middle of a line that begins so", "m\n--bx\r\n--b--", BARE, "\n--bx"),
            ("closing, behind a bare LF", "m\n--b--\r\n--b--", BARE, "\n--b--\r\n"),
            ("behind two LF", "m\r\n\n--b--", BARE, "\n--b--"),
            ("behind CR, LF and LF", "\r\n\n--b--", BARE, "\n--b--"),
            ("as the first line, LF", "\n--b--", BARE, "\n--b--"),
            ("in place of the value", "--b--", HEAD, "--b--"),
            ("a part in place of the value", "--b\r\n\r\n", HEAD, "--b\r\n\r\n"),
        ] {
            assert_refused(label, format!("{part}{value}").as_bytes(), ambiguous, (reason, stands));
        }
        let value = b"m\r\n--bx\r\n--b--";
        let behind = "neither a line end nor two dashes behind the boundary";
        assert_refused("a longer line", &[part.as_bytes(), value].concat(), syntax, (behind, "x\r\n"));
    }
}

#[test]
fn a_head_that_is_not_clean_is_refused() {
    const FOLDED: &str = "a folded header line";
    const TOKEN: &str = "a header name is not a token";
    const CONTROL: &str = "a control byte in the head of a part";
    const LF: &str = "a LF without its CR in the head of a part";
    const CR: &str = "a CR without its LF in the head of a part";
    for (head, fault, refused) in [
        (&b""[..], syntax as fn(_, _) -> _, ("a part without a Content-Disposition", "\r\n")),
        (b"Content-Type: text/plain", syntax, ("a part without a Content-Disposition", "\r\nvalue")),
        (b"X: y\r\n z", ambiguous, (FOLDED, " z")),
        (b"Content-Disposition: form-data;\r\n\tname=\"model\"", syntax, ("a part without a name", "Content-D")),
        (b"Content-Disposition: form-data; name=\"a\"\r\n\t; name=\"model\"", ambiguous, (FOLDED, "\t; name")),
        (b" X: y", ambiguous, (FOLDED, " X")),
        (b"X", syntax, ("a header line without a colon", "X")),
        (b"X : y", syntax, (TOKEN, "X :")),
        (b": y", syntax, (TOKEN, ": y")),
        (b"X(: y", syntax, (TOKEN, "X(")),
        (b"\xC3\xA9: y", syntax, (TOKEN, "é")),
        (b"X: \0y", syntax, (CONTROL, "\0y")),
        (b"X\0: y", syntax, (CONTROL, "\0: y")),
        (b"X: y\x7F", syntax, (CONTROL, "\x7F")),
        (b"X: y\nZ: z", syntax, (LF, "\nZ")),
        (b"X: y\rZ: z", syntax, (CR, "\rZ")),
        (b"X: y\r\r\nZ: z", syntax, (CR, "\r\r\n")),
        (b"Content-Disposition: form-data; name=\"model\"\n\nm\r\n--b--", syntax, (LF, "\n\nm")),
        (b"Content-Disposition: form-data; name=a; filename=\"b\0.wav\"", syntax, (CONTROL, "\0.wav")),
        (b"Content-Disposition: form-data; name=a; filename=\"b\r\nX: c\"", syntax, ("a quote is not closed", "Cont")),
        (b"Content-Type: a/b\r\ncontent-type: a/b", syntax, ("a second Content-Type", "content-type")),
    ] {
        assert_refused("head", &with_head(head), fault, refused);
    }
}

const TWO_WAYS: &str = "a name that can be read in more than one way";
const BACKSLASH: &str = "a backslash in or before the name of a part";
const UNCLOSED: &str = "a quote is not closed";
const NO_SEMICOLON: &str = "no semicolon before a parameter";
const NO_PARAMETER: &str = "a parameter is not a name, an equals sign and a value";
const NOT_THE_SAME: &str = "a name that is not the same once it is trimmed, split or decoded";
const NO_LENGTH: &str = "the name of a part is empty or too long";

#[test]
fn a_name_that_two_parsers_could_read_in_two_ways_is_refused() {
    for (line, reason) in [
        (&b"form-data; name=\"a\"; name=\"model\""[..], TWO_WAYS),
        (b"form-data; name=\"model\"; NAME=model", TWO_WAYS),
        (b"form-data; name*=utf-8''model", TWO_WAYS),
        (b"form-data; name*0=mod; name*1=el", TWO_WAYS),
        (b"form-data; name=\"a\"; Name*=utf-8''model", TWO_WAYS),
        (b"form-data; name=\"a\"; filename=\"b\"; filename=\"c\"", TWO_WAYS),
        (b"form-data; name=\"a\"; filename=\"b\"; filename*0*=c", TWO_WAYS),
        (b"form-data; name=\"a\"; filename=\"; name=model\"", TWO_WAYS),
        (b"form-data; name=\"a\"; filename=\"b\\\"; name=\\\"model\"", TWO_WAYS),
        (b"form-data; name=\"a\"; x=\"\\\"; filename=\\\"\"", TWO_WAYS),
        (b"form-data; name=\"a name \t= b\"", TWO_WAYS),
        (b"form-data; name=\"a\"; username=b", TWO_WAYS),
        (b"form-data; name=\"mod\\el\"", BACKSLASH),
        (b"form-data; name=\"model\\\"\"", BACKSLASH),
        (b"form-data; filename=\"a\\\\\"; name=\"model\"", BACKSLASH),
        (b"form-data; x=\"\\\"; name=\"model\"", NO_SEMICOLON),
        (b"form-data; name=\"a\"; filename=\"b\\\"", UNCLOSED),
        (b"form-data; name=\"model\\\"", UNCLOSED),
        (b"form-data; name=mo\\del", NO_SEMICOLON),
        (b"form-data; name=\" model\"", NOT_THE_SAME),
        (b"form-data; name=\"model\xC2\xA0\"", NOT_THE_SAME),
        (b"form-data; name=\"model;a\"", NOT_THE_SAME),
        (b"form-data; name='model'", NOT_THE_SAME),
        (b"form-data; name=\"=?utf-8?B?bW9kZWw=?=\"", NOT_THE_SAME),
        (b"form-data; name=\"model\"\r\nCONTENT-disposition: form-data; name=\"a\"", "a second Content-Disposition"),
    ] {
        let head = [b"Content-Disposition: ", line].concat();
        let second = if reason.starts_with("a second") { "CONTENT" } else { "Content" };
        assert_refused("name", &with_head(&head), ambiguous, (reason, second));
    }
}

#[test]
fn a_disposition_that_names_no_part_is_refused() {
    let long = |before: &str, max: usize, after: &str| format!("form-data; {before}{}{after}", "n".repeat(max + 1));
    for (line, reason) in [
        (&b""[..], "Content-Disposition is not form-data"),
        (b"attachment; name=a", "Content-Disposition is not form-data"),
        (b"form-data name=a", "Content-Disposition is not form-data"),
        (b"\"form-data\"; name=a", "Content-Disposition is not form-data"),
        (b"form-data", "a part without a name"),
        (b"form-data; filename=a", "a part without a name"),
        (b"form-data; name", NO_PARAMETER),
        (b"form-data; name =a", NO_PARAMETER),
        (b"form-data; =a", NO_PARAMETER),
        (b"form-data; name=", "a parameter has no value"),
        (b"form-data; name= a", "a parameter has no value"),
        (b"form-data; name=\xC3\xA9", "a parameter has no value"),
        (b"form-data; name=a[]", NO_SEMICOLON),
        (b"form-data; name=\"a\"b", NO_SEMICOLON),
        (b"form-data; name=\"a\" x=y", NO_SEMICOLON),
        (b"form-data; name=\"a", UNCLOSED),
        (b"form-data; name=\"\"", NO_LENGTH),
        (long("name=", NAME_BYTES_MAX, "").as_bytes(), NO_LENGTH),
        (b"form-data; name=\"\xE9\"", "the name of a part is not UTF-8"),
        (b"form-data; name=\"a\tb\"", "a control character in the name of a part"),
        (b"form-data; name=\"a\xC2\x85b\"", "a control character in the name of a part"),
        (long("name=a; filename=\"", FILENAME_BYTES_MAX, "\"").as_bytes(), "the name of a file is too long"),
        (long("name=a; filename*=''", FILENAME_BYTES_MAX - 2, "").as_bytes(), "the name of a file is too long"),
        (b"form-data; name=a; filename*=b", "an extended file name without a charset"),
        (b"form-data; name=a; filename=b; filename*=''%00", "a control byte in the name of a file"),
        (b"form-data; name=a; filename*=''%0d%0a", "a control byte in the name of a file"),
    ] {
        let head = [b"Content-Disposition: ", line].concat();
        assert_refused("disposition", &with_head(&head), syntax, (reason, "Content"));
    }
}

#[test]
fn a_field_whose_bytes_are_not_its_text_is_refused() {
    const ENCODED: &str = "a field with a transfer encoding";
    const CHARSET: &str = "a field in a charset that is not one of ASCII's";
    for (line, reason) in [
        ("Content-Transfer-Encoding: base64", Some(ENCODED)),
        ("content-transfer-encoding: Quoted-Printable", Some(ENCODED)),
        ("Content-Transfer-Encoding:", Some(ENCODED)),
        ("Content-Transfer-Encoding: Binary", None),
        ("Content-Transfer-Encoding: 7bit", None),
        ("Content-Type: text/plain; charset=utf-16", Some(CHARSET)),
        ("Content-Type: text/plain; Charset=\"utf-7\"", Some(CHARSET)),
        ("Content-Type: text/plain; charset=utf-8; charset=utf-7", Some(CHARSET)),
        ("Content-Type: text/plain; charset =utf-7", Some(CHARSET)),
        ("Content-Type: text/plain; charset=ISO-8859-1", None),
        ("Content-Type: text/plain; x=utf-7", None),
    ] {
        for (rest, matters) in [("model", true), ("prompt", false), ("model; filename=a", false)] {
            let body = with_head(format!("{line}\r\nContent-Disposition: form-data; name={rest}").as_bytes());
            match reason.filter(|_| matters) {
                Some(reason) => assert_refused(line, &body, ambiguous, (reason, line)),
                None => assert_eq!(outcome(&boundary("b"), &body).end, Ok(()), "{line} {rest}"),
            }
        }
    }
}

#[test]
fn a_wanted_field_has_a_limit_and_other_values_have_none() {
    let long = "m".repeat(FIELD_BYTES_MAX + 9);
    for (rest, wants) in [("model", false), ("prompt", true), ("place", true), ("model; filename=a", true)] {
        let body = [b"--b\r\n", DISPOSITION, rest.as_bytes(), b"\r\n\r\n", long.as_bytes(), b"\r\n--b--"].concat();
        let fault = Fault::FieldTooLong { name: "model".to_owned() };
        let outcome = outcome(&boundary("b"), &body);
        assert_eq!(outcome.end, if wants { Ok(()) } else { Err(fault) }, "{rest}");
        assert_eq!(outcome.settled, if wants { body.len() as u64 } else { 0 }, "{rest}");
    }
}

#[test]
fn a_body_that_ends_too_early_is_cut_off() {
    let field = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n";
    for end in ["", "m", "m\r\n", "m\r\n--b", "m\r\n--b-", "m\r\n--b\r\n", "m\r\n--b--\r", "m\r\n--b--\r\n\r"] {
        assert_eq!(outcome(&boundary("b"), format!("{field}{end}").as_bytes()).end, Err(Fault::Truncated), "{end:?}");
    }
    for start in ["", "\r\n", "--", "--b", "--b\r", "--b\r\nContent-Disposition: form-data; name=model\r\n"] {
        assert_eq!(outcome(&boundary("b"), start.as_bytes()).end, Err(Fault::Truncated), "{start:?}");
    }
}

#[test]
fn a_content_type_gives_its_boundary() {
    let longest = "b".repeat(70);
    for (header, want) in [
        ("multipart/form-data; boundary=b", "b"),
        (" Multipart/Form-Data ;BOUNDARY=\"a b\" ", "a b"),
        ("multipart/form-data;;boundary=b;", "b"),
        ("multipart/form-data; charset=UTF-8; boundary=b; x=\";\"", "b"),
        ("multipart/form-data; boundary=----formdata-undici-075070486670", "----formdata-undici-075070486670"),
        ("multipart/form-data; boundary=a'()+_-./:=?Z9", "a'()+_-./:=?Z9"),
        ("multipart/form-data; boundary=\"a'()+_,-./:=? Z9\"", "a'()+_,-./:=? Z9"),
        (&format!("multipart/form-data; boundary={longest}"), &longest),
    ] {
        assert_eq!(Boundary::parse(header).as_ref().map(Boundary::as_str), Ok(want), "{header}");
    }
}

#[test]
fn a_content_type_without_one_clear_boundary_is_refused() {
    use BoundaryFault::{Invalid, Missing, NotMultipart};
    const TWO: BoundaryFault = Invalid("the boundary can be read in more than one way");
    const BYTE: BoundaryFault = Invalid("the boundary has a byte that may not stand there");
    const BACKSLASHES: BoundaryFault = Invalid("a backslash, which not everyone reads as an escape");
    const SPACE: BoundaryFault = Invalid("the boundary begins or ends with a space");
    const LENGTH: BoundaryFault = Invalid("the boundary is not 1 to 70 bytes long");
    const CHARSET: BoundaryFault = Invalid("the charset of the form is not one of ASCII and its extensions");
    for (header, want) in [
        ("", NotMultipart),
        ("application/json", NotMultipart),
        ("multipart/mixed; boundary=b", NotMultipart),
        ("multipart/form-data boundary=b", NotMultipart),
        ("multipart/form-data, multipart/form-data; boundary=b", NotMultipart),
        ("multipart/form-data", Missing),
        ("multipart/form-data; charset=utf-8", Missing),
        ("multipart/form-data; boundary=a; boundary=a", TWO),
        ("multipart/form-data; boundary=a; Boundary=b", TWO),
        ("multipart/form-data; boundary*=utf-8''b", TWO),
        ("multipart/form-data; boundary*0=a; boundary*1=b", TWO),
        ("multipart/form-data; boundary=a; boundary*=utf-8''b", TWO),
        ("multipart/form-data; boundary=a; x=\"; boundary=b\"", TWO),
        ("multipart/form-data; x=\"boundary=b\"", TWO),
        ("multipart/form-data; boundary=\"\"", LENGTH),
        (&format!("multipart/form-data; boundary={}", "b".repeat(71)), LENGTH),
        ("multipart/form-data; boundary=\"b \"", SPACE),
        ("multipart/form-data; boundary=\" b\"", SPACE),
        ("multipart/form-data; boundary=a*b", BYTE),
        ("multipart/form-data; boundary=\"a\\b\"", BACKSLASHES),
        ("multipart/form-data; x=\"\\\"\"; boundary=b", BACKSLASHES),
        ("multipart/form-data; boundary=\"\u{e9}\"", BYTE),
        ("multipart/form-data; boundary=\"a\r\nb\"", BYTE),
        ("multipart/form-data; boundary=", Invalid("a parameter has no value")),
        ("multipart/form-data; boundary= b", Invalid("a parameter has no value")),
        ("multipart/form-data; boundary =b", Invalid(NO_PARAMETER)),
        ("multipart/form-data; boundary", Invalid(NO_PARAMETER)),
        ("multipart/form-data; boundary=a b", Invalid(NO_SEMICOLON)),
        ("multipart/form-data; boundary=a,b", Invalid(NO_SEMICOLON)),
        ("multipart/form-data; boundary=b, multipart/form-data", Invalid(NO_SEMICOLON)),
        ("multipart/form-data; boundary=\"b", Invalid(UNCLOSED)),
        ("multipart/form-data; boundary=b; x", Invalid(NO_PARAMETER)),
        ("multipart/form-data; boundary=b; charset=utf-16", CHARSET),
        ("multipart/form-data; charset=UTF-7; boundary=b", CHARSET),
    ] {
        assert_eq!(Boundary::parse(header), Err(want), "{header}");
    }
}

#[test]
fn one_more_field_can_be_put_before_the_end() {
    let boundary = boundary("b");
    for body in ["--b--", "\r\n--b--\r\n", "--b\r\nContent-Disposition: form-data; name=x\r\n\r\ny\r\n--b--"] {
        let at = run(&boundary, &[body.as_bytes()]).close_at.expect("an end") as usize;
        let more = text_part(&boundary, "model", "whisper-1");
        let (before, end) = body.as_bytes().split_at(at);
        let body = [before, &more, end].concat();
        let outcome = outcome(&boundary, &body);
        assert_eq!(outcome.end, Ok(()));
        assert_eq!(found(&body, &outcome.parts), [("model", None, None, &b"whisper-1"[..])]);
    }
}

/// Pieces of a form with boundary `b`, and which bytes are still held back behind each.
fn assert_held_back(table: &[(&str, &str)]) -> Scanner {
    let (mut scanner, mut body) = (Scanner::new(&boundary("b"), want), String::new());
    for (piece, held) in table {
        let _ = scanner.push(piece.as_bytes());
        body += piece;
        assert_eq!(&body[scanner.settled() as usize..], *held, "after {piece:?}");
    }
    scanner
}

#[test]
fn a_file_waits_for_nothing_but_its_head_and_half_a_delimiter() {
    let head = "\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r";
    assert_held_back(&[
        (head, head),
        ("\n", ""),
        ("--", "--"),
        ("-RIFF", ""),
        ("\r", "\r"),
        ("\r\n--", "\r\n--"),
        ("c\n", "\n"),
        ("\r\n--b", "\r\n--b"),
        ("\r", "\r\n--b\r"),
        ("\nX: y", "\r\n--b\r\nX: y"),
    ]);
    let bare = assert_held_back(&[(head, head), ("\nRIFF\n", "\n"), ("--b", "\n--b"), ("\r\n", "\n--b\r\n")]);
    assert!(bare.fault.is_some());
}

#[test]
fn a_field_waits_for_the_whole_delimiter_behind_it() {
    let begun = "\r\n--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n";
    let held = |more: &str| begun.to_owned() + more;
    let mut scanner = assert_held_back(&[
        ("--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\nskipped", ""),
        (begun, begun),
        ("whisper-1", &held("whisper-1")),
        ("\r\n--b\r", &held("whisper-1\r\n--b\r")),
        ("\n", "\r\n--b\r\n"),
        ("Content-Disposition: form-data; name=x\r\n\r\n", ""),
        ("\r\n--b-", "\r\n--b-"),
        ("-\r", "\r\n--b--\r"),
        ("\n", "\r\n--b--\r\n"),
    ]);
    let held = scanner.at - scanner.settled();
    assert_eq!((scanner.finish(), scanner.at - scanner.settled(), held), (Ok(()), 0, 9));
}

#[test]
fn a_value_is_shown_while_it_arrives() {
    let mut scanner = Scanner::new(&boundary("b"), want);
    let head = [b"--b\r\n", DISPOSITION, b"model\r\n\r\n"].concat();
    let start = head.len() as u64;
    for (piece, len, complete) in
        [(&head[..], 0, false), (b"gpt\r", 3, false), (b"\n--", 3, false), (b"b\r", 3, false), (b"\n", 3, true)]
    {
        assert_eq!(scanner.push(piece), Ok(()));
        let part = &scanner.parts()[0];
        assert_eq!((part.value.clone(), part.complete), (start..start + len, complete), "{}", piece.escape_ascii());
        assert_eq!(part.text, if complete { &b"gpt"[..] } else { b"" });
    }
}

#[test]
fn work_and_memory_are_bounded_whatever_comes() {
    let boundary = boundary("------------------------1de7368e13fcb05d");
    let delimiter = format!("\r\n--{}", boundary.as_str());
    let part = |head: &str| format!("--{}\r\nContent-Disposition: form-data; name=x{head}\r\n\r\n", boundary.as_str());
    let near = format!("\n{}", "-".repeat(26)).repeat(160_000);
    let file = part("; filename=y") + &near + "RIFF";
    let parts = [&part(""), &delimiter[..2]].concat().repeat(40_000);
    let headers = part(&"\r\nx: y".repeat(10_000));
    let long_head = part(&format!("\r\nx: {}", "y".repeat(1 << 20)));
    let preamble = "\r".repeat(3 << 20);
    let one_part = part("").len() + 2;
    let in_part = |reason, at: usize| Err(syntax(reason, at as u64));
    for (label, body, want, at) in [
        ("near misses", &file, Ok(()), file.len()),
        ("parts", &parts, in_part("too many parts", one_part * PARTS_MAX - 2), one_part * PARTS_MAX - 2),
        (
            "headers",
            &headers,
            in_part("too many header lines in a part", part("").len() - 2 + 6 * (HEADERS_MAX - 1)),
            0,
        ),
        ("a head", &long_head, in_part("the head of a part is too long", delimiter.len() + HEAD_BYTES_MAX), 0),
        ("a preamble", &preamble, in_part("the body does not begin with its boundary", 1), 0),
    ] {
        let mut scanner = Scanner::new(&boundary, |_| Want::Text);
        let result = body.as_bytes().chunks(64 * 1024).try_for_each(|chunk| {
            let result = scanner.push(chunk);
            assert!(scanner.field.capacity() <= 2 * FIELD_BYTES_MAX, "{label}");
            result
        });
        assert_eq!((result, scanner.settled()), (want, at as u64), "{label}");
    }
}
