//! Small types that carry a meaning a `String` or a number would lose.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A provider's key, or any other text that must never be printed.
///
/// `Debug` shows a placeholder; the text leaves only through [`Secret::expose`], which is called where a
/// header is signed and nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`. `None` for an empty one: an empty secret is a mistake, never a credential.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        (!text.is_empty()).then_some(Self(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The SHA-256 of a client's key: what the config holds, and what a presented key is compared with.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes a key as it was presented.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Parses 64 hexadecimal digits.
    pub fn parse(hex: &str) -> Option<Self> {
        let digits: Vec<u8> = hex
            .bytes()
            .map(|byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()?;
        let mut hash = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(Self(hash))
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The first eight bytes, as an index into a table of keys. A hash prefix tells nothing about the key.
    pub fn prefix(&self) -> u64 {
        self.0.iter().take(8).fold(0, |prefix, byte| prefix << 8 | u64::from(*byte))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// Text for a record or a log: at most `max` bytes, cut at a character, control characters replaced.
pub fn printable(text: &[u8], max: usize) -> String {
    // All bytes at once, which is cheaper than to stop at the first odd one: most text has none.
    let is_plain = || !text.iter().fold(false, |odd, byte| odd | !(b' '..=b'~').contains(byte));
    if text.len() <= max
        && is_plain()
        && let Ok(text) = str::from_utf8(text)
    {
        return text.to_owned();
    }
    let text = String::from_utf8_lossy(text);
    let clean: String = text.chars().take(max).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let mut end = clean.len().min(max);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean[..end].to_owned()
}

/// Several slices of one body, in order, as one.
pub fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => many.concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::new("sk-very-secret").expect("not empty");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert!(Secret::new("").is_none());
    }

    #[test]
    fn a_hash_reads_what_it_prints() {
        let hash = KeyHash::of(b"abc");
        let printed = hash.to_string();
        assert_eq!(printed, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(KeyHash::parse(&printed).is_some_and(|again| again.matches(&hash)));
        for wrong in ["", "ba78", &printed[1..], &printed.replace('b', "g")] {
            assert!(KeyHash::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn printable_text_is_bounded_and_harmless() {
        for (text, max, want) in [
            (&b"plain"[..], 9, "plain"),
            (b"a\x1b[31m\nb", 99, "a\u{fffd}[31m\u{fffd}b"),
            ("äöü".as_bytes(), 3, "ä"),
            (b"\xff\xfe", 99, "\u{fffd}\u{fffd}"),
            (b"\x07\x07\x07", 4, "\u{fffd}"),
        ] {
            assert_eq!(printable(text, max), want);
        }
    }
}
