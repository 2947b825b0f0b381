//! What the scanner finds and refuses, beside another parser, and however its input is cut.

use std::fmt;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::*;
use crate::wire::testing::{pieces, same_however_cut};

fn run(pieces: &[&[u8]]) -> Result<Vec<Member>, Fault> {
    let mut scanner = Scanner::new();
    // Whatever is pushed after a fault, the fault stays.
    let pushed: Vec<_> = pieces.iter().filter_map(|piece| scanner.push(piece).err()).collect();
    let end = scanner.finish();
    assert!(pushed.iter().all(|fault| end.as_ref() == Err(fault)), "{pushed:?}, then {end:?}");
    end
}

#[test]
fn members_are_found_where_they_stand() {
    use Kind::{Array, Bool, Null, Number, Object, String};
    for (label, input, want) in [
        ("empty", "{}", &[][..]),
        ("empty, with space around", " \t\r\n{ \t\r\n} \t\r\n", &[]),
        ("string", r#"{"model":"tts-1"}"#, &[("model", r#""tts-1""#, String)]),
        ("space is not in the span", "{ \"a\" : 1 \n, \"b\" :\t[ ] }", &[("a", "1", Number), ("b", "[ ]", Array)]),
        (
            "words",
            r#"{"a":null,"b":true,"c":false}"#,
            &[("a", "null", Null), ("b", "true", Bool), ("c", "false", Bool)],
        ),
        ("number before a brace", r#"{"a":-0.5e+10}"#, &[("a", "-0.5e+10", Number)]),
        ("zeros", r#"{"a":0,"b":-0,"c":0e0}"#, &[("a", "0", Number), ("b", "-0", Number), ("c", "0e0", Number)]),
        ("a number nobody can hold", r#"{"a":1E999999}"#, &[("a", "1E999999", Number)]),
        ("same key deeper", r#"{"a":{"a":{"a":1,"a":2}}}"#, &[("a", r#"{"a":{"a":1,"a":2}}"#, Object)]),
        ("brackets in strings", r#"{"a":["}","]","\"]"]}"#, &[("a", r#"["}","]","\"]"]"#, Array)]),
        ("mixed nesting", r#"{"a":[{"b":[[],{}]}]}"#, &[("a", r#"[{"b":[[],{}]}]"#, Array)]),
        ("empty key", r#"{"":""}"#, &[("", r#""""#, String)]),
        ("escaped key", r#"{"\"\\\/\b\f\n\r\t":1}"#, &[("\"\\/\u{8}\u{c}\n\r\t", "1", Number)]),
        ("hex in a key", r#"{"mod\u0065l\u00e9\u20AC":1}"#, &[("modelé€", "1", Number)]),
        ("pair in a key", r#"{"\ud83d\uDE00":1}"#, &[("😀", "1", Number)]),
        ("text in a key", "{\"é€😀\":1}", &[("é€😀", "1", Number)]),
        ("keys by case", r#"{"a":1,"A":2}"#, &[("a", "1", Number), ("A", "2", Number)]),
        (
            "half a pair in a value",
            r#"{"a":"\ud800","b":"\udc00\ud800x"}"#,
            &[("a", r#""\ud800""#, String), ("b", r#""\udc00\ud800x""#, String)],
        ),
        ("half a pair in a deeper key", r#"{"a":{"\ud800":1}}"#, &[("a", r#"{"\ud800":1}"#, Object)]),
        (
            "bounds of UTF-8",
            "{\"a\":\"\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}\"}",
            &[("a", "\"\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}\"", String)],
        ),
    ] {
        let members = run(&[input.as_bytes()]).expect(label);
        let found: Vec<_> = members.iter().map(|m| (m.key.as_str(), &input[m.value.clone()], m.kind)).collect();
        assert_eq!(found, want, "{label}");
        same_however_cut(input.as_bytes(), run);
    }
}

fn assert_refused(table: &[(&str, &[u8], &'static str, usize)]) {
    for &(label, input, reason, at) in table {
        assert_eq!(run(&[input]), Err(syntax(reason, at)), "{label}");
        same_however_cut(input, run);
    }
}

#[test]
fn a_body_that_is_not_one_object_is_refused() {
    assert_refused(&[
        ("nothing", b"", "unexpected end", 0),
        ("only space", b" \n", "unexpected end", 2),
        ("cut after the brace", b"{", "unexpected end", 1),
        ("cut in a key", b"{\"a", "unexpected end", 3),
        ("cut after a key", b"{\"a\"", "unexpected end", 4),
        ("cut after the colon", b"{\"a\":", "unexpected end", 5),
        ("cut in a number", b"{\"a\":1", "unexpected end", 6),
        ("cut in a word", b"{\"a\":tru", "unexpected end", 8),
        ("cut in a value", b"{\"a\":[{}", "unexpected end", 8),
        ("array", b"[]", "not an object", 0),
        ("string", b" \"a\"", "not an object", 1),
        ("number", b"1", "not an object", 0),
        ("word", b"null", "not an object", 0),
        ("NUL", b"\0{}", "not an object", 0),
        ("form feed", b"\x0c{}", "not an object", 0),
        ("byte order mark", b"\xEF\xBB\xBF{}", "starts with a byte order mark", 0),
        ("most of a byte order mark", b"\xEF\xBB\xBE{}", "not an object", 0),
        ("half a byte order mark", b"\xEF\xBB", "unexpected end", 2),
        ("byte order mark after space", b" \xEF\xBB\xBF{}", "not an object", 1),
        ("byte order mark inside", b"{\xEF\xBB\xBF}", "expected a key", 1),
        ("byte order mark after", b"{}\xEF\xBB\xBF", "trailing bytes", 2),
        ("UTF-16", b"\xFF\xFE{\0}\0", "not an object", 0),
        ("UTF-16 without a mark", b"{\0}\0", "expected a key", 1),
        ("two documents", b"{} {}", "trailing bytes", 3),
        ("trailing bracket", b"{}}", "trailing bytes", 2),
        ("trailing NUL", b"{}\0", "trailing bytes", 2),
        ("comment", b"{/**/}", "expected a key", 1),
        ("comment before", b"//\n{}", "not an object", 0),
        ("comment in a value", b"{\"a\":1//\n}", "expected a comma or the closing bracket", 6),
        ("single quotes", b"{'a':1}", "expected a key", 1),
        ("bare key", b"{a:1}", "expected a key", 1),
        ("number as a key", b"{1:1}", "expected a key", 1),
        ("only a comma", b"{,}", "expected a key", 1),
        ("trailing comma", b"{\"a\":1,}", "expected a key", 7),
        ("trailing comma in an array", b"{\"a\":[1,]}", "expected a value", 8),
        ("two commas", b"{\"a\":[1,,2]}", "expected a value", 8),
        ("leading comma in an array", b"{\"a\":[,1]}", "expected a value", 6),
        ("no colon", b"{\"a\" 1}", "expected a colon", 5),
        ("no value", b"{\"a\":}", "expected a value", 5),
        ("no comma", b"{\"a\":1 2}", "expected a comma or the closing bracket", 7),
        ("no comma after text", b"{\"a\":\"b\"\"c\":1}", "expected a comma or the closing bracket", 8),
        ("object closed as an array", b"{]", "expected a key", 1),
        ("array closed as an object", b"{\"a\":[}", "expected a value", 6),
        ("array closed as an object, later", b"{\"a\":[1}", "expected a comma or the closing bracket", 7),
        ("object closed as an array, later", b"{\"a\":1]", "expected a comma or the closing bracket", 6),
    ]);
}

#[test]
fn a_token_that_is_not_json_is_refused() {
    assert_refused(&[
        ("NaN", b"{\"a\":NaN}", "expected a value", 5),
        ("Infinity", b"{\"a\":Infinity}", "expected a value", 5),
        ("-Infinity", b"{\"a\":-Infinity}", "expected a digit", 6),
        ("misspelt", b"{\"a\":nul1}", "expected a value", 8),
        ("upper case", b"{\"a\":True}", "expected a value", 5),
        ("too long a word", b"{\"a\":nulll}", "expected a comma or the closing bracket", 9),
        ("plus", b"{\"a\":+1}", "expected a value", 5),
        ("leading zero", b"{\"a\":01}", "leading zero", 6),
        ("leading zero after minus", b"{\"a\":-00}", "leading zero", 7),
        ("only a minus", b"{\"a\":-}", "expected a digit", 6),
        ("no whole part", b"{\"a\":.5}", "expected a value", 5),
        ("no fraction", b"{\"a\":1.}", "expected a digit", 7),
        ("no exponent", b"{\"a\":1e}", "expected a digit", 7),
        ("no exponent after its sign", b"{\"a\":1e+}", "expected a digit", 8),
        ("two points", b"{\"a\":1.2.3}", "expected a comma or the closing bracket", 8),
        ("hexadecimal", b"{\"a\":0x1}", "expected a comma or the closing bracket", 6),
        ("line feed in text", b"{\"a\":\"\n\"}", "control character in a string", 6),
        ("NUL in a key", b"{\"a\0\":1}", "control character in a string", 3),
        ("last control character", b"{\"a\":\"b\x1f\"}", "control character in a string", 7),
        ("unknown escape", b"{\"a\":\"\\x41\"}", "invalid escape", 7),
        ("upper-case escape", b"{\"a\":\"\\U0041\"}", "invalid escape", 7),
        ("short hex", b"{\"a\":\"\\u004\"}", "invalid escape", 11),
        ("bad hex", b"{\"a\":\"\\u00g0\"}", "invalid escape", 10),
        ("signed hex", b"{\"a\":\"\\u+041\"}", "invalid escape", 8),
        ("overlong slash", b"{\"a\":\"\xC0\xAF\"}", NOT_UTF8, 6),
        ("overlong, two bytes", b"{\"a\":\"\xC1\xBF\"}", NOT_UTF8, 6),
        ("overlong, three bytes", b"{\"a\":\"\xE0\x9F\xBF\"}", NOT_UTF8, 7),
        ("overlong, four bytes", b"{\"a\":\"\xF0\x8F\xBF\xBF\"}", NOT_UTF8, 7),
        ("surrogate", b"{\"a\":\"\xED\xA0\x80\"}", NOT_UTF8, 7),
        ("past U+10FFFF", b"{\"a\":\"\xF4\x90\x80\x80\"}", NOT_UTF8, 7),
        ("five bytes", b"{\"a\":\"\xF8\x88\x80\x80\x80\"}", NOT_UTF8, 6),
        ("lone tail", b"{\"a\":\"\x80\"}", NOT_UTF8, 6),
        ("cut character", b"{\"a\":\"\xE2\x82\"}", NOT_UTF8, 8),
        ("Latin-1 in a key", b"{\"\xE9\":1}", NOT_UTF8, 3),
        ("high half in a key", b"{\"a\\ud800\":1}", LONE, 3),
        ("high half before text", b"{\"\\ud800b\":1}", LONE, 2),
        ("high half before an escape", b"{\"\\ud800\\n\":1}", LONE, 2),
        ("high half before a character", b"{\"\\ud800\xC3\xA9\":1}", LONE, 2),
        ("high half before a plain \\u", b"{\"\\ud800\\u0041\":1}", LONE, 2),
        ("halves parted by text", b"{\"\\ud800b\\udc00\":1}", LONE, 2),
        ("halves parted by an escape", b"{\"\\ud800\\n\\udc00\":1}", LONE, 2),
        ("two high halves", b"{\"\\ud800\\ud800\\udc00\":1}", LONE, 2),
        ("low half", b"{\"a\\udc00\":1}", LONE, 3),
    ]);
}

#[test]
fn a_plain_run_ends_at_the_first_byte_that_is_not() {
    for byte in 0..=u8::MAX {
        let is_plain = byte.is_ascii() && byte >= b' ' && !b"\"\\".contains(&byte);
        for at in 0..80 {
            let mut bytes = [b'x'; 80];
            bytes[at] = byte;
            assert_eq!(plain_run(&bytes), if is_plain { 80 } else { at }, "{byte:#x} at {at}");
        }
    }
}

#[test]
fn a_top_level_key_stands_once() {
    for (label, input, key) in [
        ("plain", r#"{"model":"a","input":"b","model":"a"}"#, "model"),
        ("escaped", r#"{"model":"a","mod\u0065l":"b"}"#, "model"),
        ("escaped first", r#"{"\u006dodel":"a","model":"b"}"#, "model"),
        ("empty", r#"{"":1,"":2}"#, ""),
        ("pair", r#"{"😀":1,"\ud83d\ude00":2}"#, "😀"),
        ("known before its value", r#"{"a":1,"a""#, "a"),
        ("known before a later fault", r#"{"a":1,"a"!"#, "a"),
    ] {
        assert_eq!(run(&[input.as_bytes()]), Err(Fault::DuplicateKey { key: key.into() }), "{label}");
        same_however_cut(input.as_bytes(), run);
    }
}

#[test]
fn every_limit_holds_and_is_reached() {
    let members = |count: usize| {
        let members: Vec<_> = (0..count).map(|n| format!("\"{n:03}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    let key = |key: String| format!("{{\"{key}\":0}}");
    let deep = |depth: u32| {
        let arrays = depth as usize - 1;
        format!("{{\"a\":{}{}}}", "[".repeat(arrays), "]".repeat(arrays))
    };
    let too_long = |at| Some(syntax("key too long", at));
    for (label, input, want) in [
        ("members", members(MEMBERS_MAX), None),
        ("one member more", members(MEMBERS_MAX + 1), Some(syntax("too many members", 1 + MEMBERS_MAX * 8))),
        ("key", key("k".repeat(KEY_BYTES_MAX)), None),
        ("key, one more", key("k".repeat(KEY_BYTES_MAX + 1)), too_long(2 + KEY_BYTES_MAX)),
        ("escapes", key(r"\u00e9".repeat(KEY_BYTES_MAX / 2)), None),
        ("escapes, one more", key(r"\u00e9".repeat(KEY_BYTES_MAX / 2) + r"\n"), too_long(3 + KEY_BYTES_MAX * 3)),
        ("characters", key("é".repeat(KEY_BYTES_MAX / 2)), None),
        ("characters, half of one more", key("é".repeat(KEY_BYTES_MAX / 2) + "é"), too_long(2 + KEY_BYTES_MAX)),
        ("depth", deep(DEPTH_MAX), None),
        ("one level more", deep(DEPTH_MAX + 1), Some(syntax("nested too deeply", 5 + 63))),
        ("deeper key of any length", format!("{{\"a\":{}}}", key("k".repeat(9 * KEY_BYTES_MAX))), None),
    ] {
        assert_eq!(run(&[input.as_bytes()]).err(), want, "{label}");
        assert_eq!(run(&input.as_bytes().chunks(1).collect::<Vec<_>>()).err(), want, "{label}, byte by byte");
    }
}

/// The answer comes at the level that is one too many: what follows is not even looked at.
#[test]
fn nesting_without_end_is_refused_at_once() {
    for (label, opening) in [("arrays", "["), ("objects", r#"{"a":"#)] {
        let input = format!(r#"{{"a":{}"#, opening.repeat(100_000));
        let at = 5 + 63 * opening.len();
        assert_eq!(run(&[input.as_bytes()]), Err(syntax("nested too deeply", at)), "{label}");
    }
}

/// Every first byte, with what may follow on and around every bound of the Unicode Standard's table 3-7.
#[test]
fn characters_are_judged_as_by_the_standard_library() {
    const SECOND: &[u8] = b"\x41\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xFF";
    const LATER: &[&[u8]] = &[b"", b"\x7F", b"\x80", b"\xBF", b"\xC0", b"\x80\x80", b"\xBF\xBF", b"\xBF\xC0"];
    for first in 0x80..=u8::MAX {
        for (second, later) in SECOND.iter().flat_map(|second| LATER.iter().map(move |later| (second, later))) {
            let input = [b"{\"\":\"", &[first, *second][..], later, b"\"}"].concat();
            let want = std::str::from_utf8(&input).is_ok();
            assert_eq!(run(&[&input]).is_ok(), want, "{input:x?}");
            assert_eq!(run(&input.chunks(1).collect::<Vec<_>>()).is_ok(), want, "{input:x?}, byte by byte");
        }
    }
}

#[test]
fn text_is_decoded_or_refused() {
    for (label, raw, want) in [
        ("plain", &br#""tts-1""#[..], Some("tts-1")),
        ("empty", br#""""#, Some("")),
        ("escapes", br#""\u0041\n\ud83d\ude00""#, Some("A\n😀")),
        ("half a pair", br#""\ud800""#, None),
        ("other half", br#""a\udc00""#, None),
        ("number", b"1", None),
        ("array of text", br#"["a"]"#, None),
        ("null", b"null", None),
        ("nothing", b"", None),
        ("one quote", b"\"", None),
        ("two strings", br#""a" "b""#, None),
        ("space around", br#" "a" "#, None),
        ("not UTF-8", b"\"\xC0\xAF\"", None),
    ] {
        assert_eq!(text(raw).as_deref(), want, "{label}");
    }
    assert!(matches!(text(br#""tts-1""#), Some(Cow::Borrowed("tts-1"))), "nothing to unescape, nothing to copy");
}

/// The keys of an object as `serde_json` sees them: duplicates kept, values checked but not held, so that its
/// own limits on numbers and depth play no part.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The scanner accepts what `serde_json` accepts, but for its own limits and duplicates.
fn agrees_with_serde_json(input: &[u8]) {
    let theirs = std::str::from_utf8(input).ok().and_then(|input| serde_json::from_str(input).ok());
    match (run(&[input]), theirs) {
        (Ok(members), Some(Keys(keys))) => {
            assert_eq!(members.iter().map(|member| &member.key).collect::<Vec<_>>(), keys.iter().collect::<Vec<_>>());
        }
        (Err(Fault::DuplicateKey { key }), Some(Keys(keys))) => {
            assert!(keys.iter().filter(|other| **other == key).count() > 1, "{key:?} is not there twice");
        }
        (Err(Fault::Syntax { reason, .. }), Some(_)) => {
            assert!(["nested too deeply", "too many members", "key too long"].contains(&reason), "{reason}");
        }
        (Ok(_), None) => panic!("accepted, though serde_json does not"),
        (Err(_), None) => {}
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..4)
                .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// An object as text, written as loosely as the grammar allows: white space around tokens, letters escaped.
fn any_object() -> impl Strategy<Value = String> {
    let members = btree_map(any::<String>(), any_value(), 0..5);
    (members, vec(any::<u8>(), 1..32)).prop_map(|(members, dice)| {
        let tight = Value::from(members.into_iter().collect::<Map<_, _>>()).to_string();
        let mut dice = dice.into_iter().cycle();
        let mut roll = || dice.next().unwrap_or_default();
        let (mut loose, mut in_text, mut escaped) = (String::new(), false, false);
        for char in tight.chars() {
            let spaces = ["", "", " ", "\n", "\t \r\n"];
            let mut space = || spaces[usize::from(roll()) % spaces.len()];
            match char {
                '{' | '}' | '[' | ']' | ',' | ':' if !in_text => loose.extend([space(), &char.to_string(), space()]),
                'g'..='z' if in_text && !escaped && roll() % 4 == 0 => {
                    loose.push_str(&format!("\\u{:04X}", u32::from(char)));
                }
                _ => loose.push(char),
            }
            in_text ^= char == '"' && !escaped;
            escaped = in_text && char == '\\' && !escaped;
        }
        loose
    })
}

fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Null,
        Value::Bool(_) => Kind::Bool,
        Value::Number(_) => Kind::Number,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Array,
        Value::Object(_) => Kind::Object,
    }
}

proptest! {
    #[test]
    fn any_object_is_read_as_serde_json_reads_it(object in any_object(), sizes in vec(0..9_usize, 0..6)) {
        let want: Map<String, Value> = serde_json::from_str(&object).expect("it is JSON");
        let members = run(&pieces(object.as_bytes(), &sizes)).expect("it is JSON");
        prop_assert_eq!(members.len(), want.len());
        for Member { key, value, kind } in members {
            let raw = &object[value];
            let value: Value = serde_json::from_str(raw).expect("a span is a value");
            prop_assert_eq!(raw.trim(), raw);
            prop_assert_eq!(kind, kind_of(&value));
            prop_assert_eq!(text(raw.as_bytes()), value.as_str().map(Cow::from));
            prop_assert_eq!(Some(&value), want.get(&key));
        }
    }

    #[test]
    fn a_damaged_object_is_judged_as_by_serde_json(
        object in any_object(),
        (at, bytes, dropped) in (any::<prop::sample::Index>(), vec(any::<u8>(), 0..3), 0..3_usize),
    ) {
        let mut input = object.into_bytes();
        let at = at.index(input.len());
        input.splice(at..input.len().min(at + dropped), bytes);
        agrees_with_serde_json(&input);
    }

    #[test]
    fn a_heap_of_tokens_is_judged_as_by_serde_json(
        tokens in vec(prop::sample::select(TOKENS), 0..12),
    ) {
        let input = [&b"{\"a\":"[..], &tokens.concat(), b"}"].concat();
        agrees_with_serde_json(&input);
        same_however_cut(&input, run);
    }

    #[test]
    fn any_bytes_are_judged_as_by_serde_json(
        bytes in vec(any::<u8>(), 0..48),
    ) {
        agrees_with_serde_json(&bytes);
        same_however_cut(&bytes, run);
        let input = [b"{\"a\":\"", &bytes[..], b"\"}"].concat();
        agrees_with_serde_json(&input);
        same_however_cut(&input, run);
    }
}

const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"\"",
    b"\"a\"",
    b"\"\\u0061\"",
    b"\"\\ud83d",
    b"\\ude00\"",
    b"\"b\":",
    b",\"c\":",
    b"\\",
    b"0",
    b"1",
    b"-",
    b".",
    b"e",
    b"+",
    b"null",
    b"true",
    b"false",
    b"\xC3",
    b"\xA9",
    b"\xE2\x82\xAC",
];
