//! Globs over request paths: `elevenlabs/v1/text-to-speech/*`, `*/v1/voices/**`.
//!
//! `*` stands for any run of characters within one segment, the empty one too, except that a segment that is just `*`
//! has at least one character. A segment `**` stands for any number of segments, none too. Everything else stands for
//! itself. A glob is written decoded and covers the whole path.

use std::borrow::Cow;

use percent_encoding::{percent_decode, percent_decode_str};

/// Any number of segments.
const SEGMENTS: &str = "**";
/// Characters with a meaning in other globs or in URLs. Taken literally they would match nothing, and a rule that
/// matches nothing forbids nothing.
const RESERVED: &[char] = &['%', '?', '#', '\\', '[', ']', '{', '}'];

/// Which paths a rule covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    /// At least one, none empty.
    segments: Vec<String>,
}

impl Glob {
    /// `None` for an empty glob or segment (so also a slash at either end), a `**` glued to something, a dot segment,
    /// and any of `%?#\[]{}`.
    pub fn parse(text: &str) -> Option<Self> {
        let segments: Vec<String> = text.split('/').map(String::from).collect();
        segments.iter().all(|segment| can_match(segment)).then_some(Self { segments })
    }

    /// Whether the rule covers exactly this path: `provider/v1/…`, percent-encoded as it came. It is decoded once, so
    /// a `%2f` counts as a slash. What a server may take for other segments is covered by no rule.
    pub fn allows(&self, path: &str) -> bool {
        let path = decoded(path);
        let twice: Cow<[u8]> = percent_decode(&path).into();
        let slashes = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
        if twice.contains(&b'\\') || slashes(&twice) != slashes(&path) {
            return false;
        }
        let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        self.covers(&segments, u8::eq)
    }

    /// Whether the rule covers this path in any reading a provider may have of it: without regard to ASCII case, to
    /// empty segments and a slash at the end, with `;parameters` and without, `\` being a slash or not, decoded once or
    /// twice. Whatever [`Glob::allows`] covers is covered here.
    pub fn denies(&self, path: &str) -> bool {
        if !path.contains(['%', ';', '\\']) {
            return self.denies_segments(path.as_bytes().split(|byte| *byte == b'/'));
        }
        // Parameters are cut before decoding by some servers, after it by others: `a;x%2fb` is `a` or `a/b`.
        let bare: Vec<&str> = path.split('/').filter_map(|segment| segment.split(';').next()).collect();
        let bare = bare.join("/");
        let once = [decoded(path), decoded(&bare)];
        // Some servers decode twice.
        let twice: Vec<Cow<[u8]>> = once.iter().map(|path| percent_decode(path).into()).collect();
        // And some take a `?` or `#` that was encoded for the end of the path.
        let cut = |path: &'_ Cow<[u8]>| path.split(|byte| b"?#".contains(byte)).next().unwrap_or_default().to_vec();
        once.iter().chain(&twice).any(|path| {
            [path.to_vec(), cut(path)]
                .iter()
                .any(|path| self.denies_split_at(b"/", path) || self.denies_split_at(b"/\\", path))
        })
    }

    fn denies_split_at(&self, slashes: &[u8], path: &[u8]) -> bool {
        let segments = || path.split(|byte| slashes.contains(byte));
        let bare = segments().filter_map(|segment| segment.split(|byte| *byte == b';').next());
        self.denies_segments(segments()) || self.denies_segments(bare)
    }

    fn denies_segments<'p>(&self, segments: impl Iterator<Item = &'p [u8]>) -> bool {
        let segments: Vec<&[u8]> = segments.filter(|segment| !segment.is_empty()).collect();
        self.covers(&segments, u8::eq_ignore_ascii_case)
    }

    fn covers(&self, path: &[&[u8]], same: fn(&u8, &u8) -> bool) -> bool {
        wildcard(&self.segments, path, |glob| glob == SEGMENTS, |glob, segment| covers_segment(glob, segment, same))
    }
}

fn can_match(segment: &str) -> bool {
    let is_dead = matches!(segment, "" | "." | "..") || segment.contains("**") || segment.contains(RESERVED);
    segment == SEGMENTS || !is_dead
}

fn decoded(path: &str) -> Cow<'_, [u8]> {
    percent_decode_str(path).into()
}

fn covers_segment(glob: &str, segment: &[u8], same: fn(&u8, &u8) -> bool) -> bool {
    match glob {
        "*" => !segment.is_empty(),
        _ => wildcard(glob.as_bytes(), segment, |byte| *byte == b'*', same),
    }
}

/// Matches segments to a path's, and bytes to a segment's: an item that `is_run` stands for any run, every other one
/// for one that `fits`.
///
/// Only the last run met is ever lengthened. Between two runs the first place that fits is as good as any later one,
/// so an earlier run need not be tried again, and the time is at most the product of both lengths.
fn wildcard<P, T>(
    mut pattern: &[P],
    mut text: &[T],
    is_run: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let mut last_run: Option<(&[P], &[T])> = None;
    loop {
        match (pattern, text) {
            ([item, after @ ..], _) if is_run(item) => {
                last_run = Some((after, text));
                pattern = after;
            }
            ([item, after @ ..], [unit, rest @ ..]) if fits(item, unit) => (pattern, text) = (after, rest),
            ([], []) => return true,
            _ => {
                let Some((after, [_, rest @ ..])) = last_run else { return false };
                last_run = Some((after, rest));
                (pattern, text) = (after, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn glob(text: &str) -> Glob {
        Glob::parse(text).expect(text)
    }

    #[test]
    fn a_glob_that_could_not_match_is_not_one() {
        for text in [
            "", "/", "/a", "a/", "a//b", "a**", "**a", "a/**b/c", "***", "a/****", "a/../b", ".", "a/.", "a%2fb",
            "%61", "a?", "a/b?x=*", "a#b", "a\\b", "[ab]", "{a,b}",
        ] {
            assert_eq!(Glob::parse(text), None, "{text}");
        }
        for text in ["a", "*", "**", "a/b", "a/*", "**/a", "*a*b*", "a/..b", "...", "é", "a b", "a;x=y"] {
            assert!(Glob::parse(text).is_some(), "{text}");
        }
    }

    /// A glob, a path, whether it is allowed, whether it is denied.
    const ROWS: &[(&str, &str, bool, bool)] = &[
        ("openai/v1/models", "openai/v1/models", true, true),
        ("openai/v1/models", "openai/v1/model", false, false),
        ("openai/v1/models", "openai/v1/models2", false, false),
        ("openai/v1/models", "openai/v1/models/x", false, false),
        ("openai/v1/models", "openai/v1", false, false),
        ("openai", "", false, false),
        // Runs within a segment.
        ("openai/v1/*", "openai/v1/models", true, true),
        ("openai/v1/*", "openai/v1/models/x", false, false),
        ("openai/v1/*", "openai/v1", false, false),
        ("openai/v1/*", "openai/v1/", false, false),
        ("openai/v*/models", "openai/v/models", true, true),
        ("openai/v*/models", "openai/v1beta/models", true, true),
        ("openai/v*/models", "openai/v1/x/models", false, false),
        ("*a*b", "xaxbxab", true, true),
        ("*a*b", "xaxbxa", false, false),
        ("*/v1/voices", "elevenlabs/v1/voices", true, true),
        // Any number of segments.
        ("**", "", true, true),
        ("**", "openai/v1", true, true),
        ("openai/**", "openai", true, true),
        ("openai/**", "openai/", true, true),
        ("openai/**", "openai/v1/a/b/c/", true, true),
        ("openai/**", "openai2/v1", false, false),
        ("**/delete", "delete", true, true),
        ("**/delete", "a/b/delete", true, true),
        ("**/delete", "a/delete/b", false, false),
        ("a/**/x/**/x", "a/x/x", true, true),
        ("a/**/x/**/x", "a/1/x/2/3/x", true, true),
        ("a/**/x/**/x", "a/1/x/2/3", false, false),
        ("**/*", "", false, false),
        ("**/**", "a", true, true),
        // Encoded.
        ("a/b", "a%2fb", true, true),
        ("a/b", "a%2Fb", true, true),
        ("a/*", "a/b%2fc", false, false),
        ("a/**", "a/b%2fc", true, true),
        ("a/voices", "a/%76oices", true, true),
        ("a/voices", "a/%2576oices", false, true),
        ("a/é", "a/%C3%A9", true, true),
        ("a/*", "a/%ff", true, true),
        ("a/b*", "a/b%2a", true, true),
        ("a/x y", "a/x%20y", true, true),
        // Where a refusal is wider than a permission.
        ("a/Voices", "a/voices", false, true),
        ("a/voices", "A/V%4fICES", false, true),
        ("a/É", "a/é", false, false),
        ("a/b", "a/b/", false, true),
        ("a/b", "a/b%2f", false, true),
        ("a/b", "a%2f%2fb", false, true),
        ("a/b", "a/b;x=y", false, true),
        ("a/b", "a/b;", false, true),
        ("a/b", "a/b;x=y/", false, true),
        ("a/b/c", "a;x/b;y;z/c%3bw", false, true),
        ("a/b/c", "a/b/;x/c", false, true),
        ("a/b", "a/b;x%2fc", false, true),
        ("a/b/c", "a/b;x%2fc", false, true),
        ("a/b;x=y", "a/b;x=y", true, true),
        ("a/b;x=y", "a/b;X=Y/", false, true),
        ("a/*c", "a/b;c", true, true),
        ("a/b/c", "a/b%5cc", false, true),
        ("a/b/c", "a/b\\c", false, true),
        ("a/b/c", "a/b;x%5cc", false, true),
        ("a/*", "a/b%5cc", false, true),
        ("a/b", "a/b;x%5cc", false, true),
        ("a/b", "a/bc;x", false, false),
    ];

    #[test]
    fn a_permission_is_exact_and_a_refusal_is_wide() {
        for (text, path, allows, denies) in ROWS {
            assert_eq!(glob(text).allows(path), *allows, "{text} allows {path}");
            assert_eq!(glob(text).denies(path), *denies, "{text} denies {path}");
        }
    }

    #[test]
    fn every_item_is_tried_at_most_once_for_every_place() {
        for (pattern, text) in [("*a".repeat(50) + "*b", "a".repeat(5_000)), ("*ab".repeat(50), "a".repeat(5_000))] {
            let tries = std::cell::Cell::new(0);
            let fits = |item: &u8, unit: &u8| {
                tries.set(tries.get() + 1);
                item == unit
            };
            assert!(!wildcard(pattern.as_bytes(), text.as_bytes(), |byte| *byte == b'*', fits));
            assert!(tries.get() <= pattern.len() * text.len(), "{} tries", tries.get());
        }
    }

    /// The definition, tried in every way there is.
    fn naive(glob: &[&str], path: &[&str]) -> bool {
        match (glob, path) {
            (["**", after @ ..], _) => (0..=path.len()).any(|run| naive(after, &path[run..])),
            ([first, after @ ..], [segment, rest @ ..]) => naive_segment(first, segment) && naive(after, rest),
            (glob, path) => glob.is_empty() && path.is_empty(),
        }
    }

    fn naive_segment(glob: &str, segment: &str) -> bool {
        match (glob, glob.split_at_checked(1)) {
            ("*", _) => true,
            (_, Some(("*", after))) => (0..=segment.len()).any(|run| naive_segment(after, &segment[run..])),
            (_, Some((byte, after))) => segment.strip_prefix(byte).is_some_and(|rest| naive_segment(after, rest)),
            (_, None) => segment.is_empty(),
        }
    }

    const GLOB: &str = r"(\*\*|\*|(\*?[ab]){1,3}\*?)(/(\*\*|\*|(\*?[ab]){1,3}\*?)){0,4}";

    proptest! {
        #[test]
        fn it_matches_what_the_definition_says(text in GLOB, path in "[ab]{1,4}(/[ab]{1,4}){0,5}") {
            let segments = |text| str::split(text, '/').collect::<Vec<_>>();
            let want = naive(&segments(&text), &segments(&path));
            prop_assert_eq!(glob(&text).allows(&path), want);
            prop_assert_eq!(glob(&text).denies(&path), want);
        }

        #[test]
        fn what_is_allowed_would_be_denied(text in GLOB, path in "(a|b|A|/|;|%2f|%5c|%3b|%41|%|\\*){0,12}") {
            prop_assert!(!glob(&text).allows(&path) || glob(&text).denies(&path));
        }

        #[test]
        fn no_spelling_escapes_a_refusal(
            text in GLOB,
            path in "[ab]{1,3}(/[ab]{1,3}){0,4}",
            spelling in proptest::collection::vec(0..5_usize, 20),
        ) {
            let spell = |(at, byte): (usize, char)| match (byte, spelling[at]) {
                ('/', 0) => "%2f".to_owned(),
                ('/', 1) => ";x=y/".to_owned(),
                ('/', 2) => "%3bx/".to_owned(),
                ('/', 3) => "%2F/".to_owned(),
                (byte, 0) => format!("%{:02x}", u32::from(byte)),
                (byte, 1) => byte.to_ascii_uppercase().to_string(),
                (byte, 2) => format!("%{:02X}", u32::from(byte.to_ascii_uppercase())),
                (byte, _) => byte.to_string(),
            };
            let spelt: String = path.chars().enumerate().map(spell).collect();
            if glob(&text).denies(&path) {
                prop_assert!(glob(&text).denies(&spelt), "{}", spelt);
                prop_assert!(glob(&text).denies(&(spelt + "/")));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), path in any::<String>(), ascii in "[*/a;%2f\\\\.-]{0,20}") {
            for text in [&text, &ascii] {
                let Some(glob) = Glob::parse(text) else { continue };
                let _ = (glob.allows(&path), glob.denies(&path), glob.allows(&ascii), glob.denies(&ascii));
            }
        }
    }
}
