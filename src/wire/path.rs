//! A lint for request paths that are handed on byte for byte: what two servers could read as two different places
//! is refused, with the reason. Everything else passes, however odd.

use std::borrow::Cow;
use std::str;

use percent_encoding::{percent_decode, percent_decode_str};

/// Lints a path as it stood on the wire: ASCII, without spaces, control bytes, `?` and `#`.
///
/// An error says, in words for the client, what is wrong with "it". Takes time and memory linear in the path.
pub fn lint(path: &str) -> Result<(), &'static str> {
    // Where parameters are cut off, a segment of nothing else is an empty one. A slash at the end is no segment.
    if path.contains("//") || path.contains("/;") {
        return Err("it has an empty segment");
    }
    // Most paths have none of what could be read in two ways.
    if !path.bytes().fold(false, |found, byte| found | matches!(byte, b'%' | b'.' | b'\\') | byte.is_ascii_control()) {
        return Ok(());
    }
    if path.contains('\\') {
        return Err("it has a `\\`");
    }
    if !path.split('%').skip(1).all(begins_with_hex) {
        return Err("it has a `%` that is not followed by two hexadecimal digits");
    }
    let decoded: Cow<[u8]> = percent_decode_str(path).into();
    // Overlong forms too: the dot that `%c0%ae` is to a careless decoder.
    if str::from_utf8(&decoded).is_err() {
        return Err("it has percent-encoded bytes that are not UTF-8");
    }
    if decoded.iter().any(u8::is_ascii_control) {
        return Err("it has an encoded control character");
    }
    // `%252e%252e` is the text `%2e%2e` to a provider that decodes once, and `..` to one that decodes twice. Nobody
    // needs the text. What is a dot segment after one decoding still is after two: one look finds both.
    let twice: Cow<[u8]> = percent_decode(&decoded).into();
    if has_dot_segment(&twice) {
        return Err("it has a segment `.` or `..`");
    }
    Ok(())
}

fn begins_with_hex(text: &str) -> bool {
    matches!(text.as_bytes(), [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Takes every reading at once: `\` may be a slash, and parameters may be cut off.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\'))
        .filter_map(|segment| segment.split(|byte| *byte == b';').next())
        .any(|name| matches!(name, b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "it has an empty segment";
    const BACKSLASH: &str = "it has a `\\`";
    const ESCAPE: &str = "it has a `%` that is not followed by two hexadecimal digits";
    const UTF_8: &str = "it has percent-encoded bytes that are not UTF-8";
    const CONTROL: &str = "it has an encoded control character";
    const DOTS: &str = "it has a segment `.` or `..`";

    #[test]
    fn an_ambiguous_path_is_refused_with_its_reason() {
        for (why, paths) in [
            (EMPTY, &["//", "//openai/v1", "/openai//v1", "/openai/v1//", "/openai/;x/v1", "/openai/;x"][..]),
            (BACKSLASH, &["/openai\\v1", "/openai/..\\v1", "\\", "/openai/v1\\"]),
            (
                ESCAPE,
                &["/%", "/a%2", "/a%/b", "/%zz", "/%2g", "/%g2", "/%%2e", "/a%2/e", "/%2%65", "/%+1", "/%u002e", "/%é"],
            ),
            (UTF_8, &["/%c0%ae%c0%ae/", "/%80", "/%ff", "/%c3", "/%c3/%a9", "/%e0%80%ae", "/%ed%a0%80"]),
            (UTF_8, &["/%C0%AF", "/%f8%80%80%80%ae", "/%f4%90%80%80", "/a%bf"]),
            (CONTROL, &["/%00", "/a%0d%0ab", "/a%0D%0Ab", "/%1f", "/%7f", "/%09", "/a.mp3%00.json"]),
            (DOTS, &[".", "..", "/.", "/..", "/a/./b", "/a/../b", "/../b", "/a/..", "/a/../", "/./"]),
            (DOTS, &["/%2e", "/%2E%2e", "/.%2e/b", "/%2e./b", "/a/%2E", "/%2e%2e%2f", "/%2e%2e/%2e%2e"]),
            (DOTS, &["/a/..;x=y/b", "/a/.;/b", "/%2e%2e%3bx", "/..%3Bx", "/..;a;b", "/..;%2f", "/a;x%2f../b"]),
            (DOTS, &["/a%2f..%2fb", "/..%2fb", "/a%2f..", "/a%2F.%2Fb", "/a%2f%2e%2e/b", "/a%2f%2f.."]),
            (DOTS, &["/a%5c..%5cb", "/..%5cb", "/a%5C..", "/a%5c.%2fb", "/%5c%2e%2e"]),
            (DOTS, &["/%252e%252e", "/.%252e", "/a%252f..%252fb", "/..%253bx", "/..%255cb", "/%25%32%65"]),
        ] {
            for path in paths {
                assert_eq!(lint(path), Err(why), "{path}");
            }
        }
    }

    #[test]
    fn a_path_with_one_meaning_passes() {
        for path in [
            "",
            "/",
            "/elevenlabs",
            "/elevenlabs/",
            "/elevenlabs/v1/text-to-speech/JBFqnCBsd6RMkjVDRZzb/stream",
            "/deepgram/v1/listen",
            "/openai/v1/files/a%2fb",
            "/openai/v1/files/a%5cb",
            "/openai/v1/files/%2fb",
            "/openai/v1/files/a%2f",
            "/gemini/v1beta/models/tts:generate",
            "/openai/v1/@me/a,b/a;x=y/b;z",
            "/openai/v1/caf%C3%A9/%f0%9f%8e%a4",
            "/openai/v1/a.b/..c/.d/e../...",
            "/openai/v1/.../....",
            "/openai/v1/a%2eb/%2e%2e%2e",
            "/openai/v1/a%20b/100%25",
            "/openai/v1/%2541/%25zz/%252",
            "/openai/v1/a..%2fb",
            "/openai/v1/a%3b..",
            "/openai/v1/%252525252e%252525252e",
            "/openai/v1/$&'()*+,=~_-!\"<>[]^`{|}",
        ] {
            assert_eq!(lint(path), Ok(()), "{path}");
        }
    }

    /// Decodes what is well-formed, one escape after the other.
    fn decoded(text: &[u8]) -> Vec<u8> {
        let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            match (byte, digit(at + 1), digit(at + 2)) {
                (b'%', Some(high), Some(low)) => {
                    out.push(u8::try_from(high * 16 + low).expect("a byte"));
                    at += 3;
                }
                _ => {
                    out.push(*byte);
                    at += 1;
                }
            }
        }
        out
    }

    fn climbs(path: &[u8]) -> bool {
        let path = String::from_utf8_lossy(path);
        path.split(['/', '\\']).any(|segment| [".", ".."].contains(&segment.split(';').next().unwrap_or_default()))
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(path in "[ -~]{0,60}", any in any::<String>()) {
            let _ = lint(&path);
            let _ = lint(&any);
        }

        #[test]
        fn a_dot_segment_is_refused_at_every_depth(
            path in "(/|a|;|\\.|%2e|%2F|%5c|%3B|%25|%252e|%252f|%255C|%253b|2|e|5){1,12}",
        ) {
            let once = decoded(path.as_bytes());
            let twice = decoded(&once);
            if climbs(path.as_bytes()) || climbs(&once) || climbs(&twice) {
                prop_assert!(lint(&path).is_err());
            } else if !path.contains("//") && !path.contains("/;") {
                prop_assert_eq!(lint(&path), Ok(()));
            }
        }

        #[test]
        fn what_passes_decodes_to_text_without_control_characters(path in "(/|a|%[0-9a-fA-F]{2}|%c3%a9|%){1,12}") {
            if lint(&path).is_ok() {
                let text = String::from_utf8(decoded(path.as_bytes()));
                prop_assert!(text.is_ok_and(|text| !text.contains(|c: char| c.is_ascii_control())));
            }
        }

        #[test]
        fn plain_paths_pass(path in "(/[a-z0-9_~-][a-z0-9_.~:@,-]{0,8}(;[a-z]=[a-z0-9.]{1,3})?){0,6}/?") {
            prop_assert_eq!(lint(&path), Ok(()));
        }
    }
}
