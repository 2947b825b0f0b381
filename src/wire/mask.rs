//! Overwrites a secret wherever it appears in bytes that pass, at equal length.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// What stands where the secret stood.
const COVER: u8 = b'*';

/// Masks one secret in a stream. Bytes that may be the secret's beginning are held until it is known.
pub struct Mask {
    secret: Vec<u8>,
    held: BytesMut,
    /// Bytes still looked at; past them everything passes as it is.
    left: usize,
}

impl Mask {
    /// Looks at the first `bytes_max` bytes of the stream.
    pub fn new(secret: &str, bytes_max: usize) -> Self {
        Self { secret: secret.as_bytes().to_vec(), held: BytesMut::new(), left: bytes_max }
    }

    /// Takes the next bytes, gives those that may go on.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.secret.is_empty() || (self.left == 0 && self.held.is_empty()) {
            return chunk;
        }
        let last_look = chunk.len() >= self.left;
        self.left = self.left.saturating_sub(chunk.len());
        if self.held.is_empty() && self.begins(&chunk) == 0 && memmem::find(&chunk, &self.secret).is_none() {
            return chunk;
        }
        self.held.extend_from_slice(&chunk);
        cover(&mut self.held, &self.secret);
        let keep = if last_look { 0 } else { self.begins(&self.held) };
        let passed = self.held.split_to(self.held.len() - keep);
        passed.freeze()
    }

    /// The bytes that were held and turned out to be harmless, at the end of the stream.
    pub fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// How many bytes at the end of `bytes` could be the beginning of the secret.
    fn begins(&self, bytes: &[u8]) -> usize {
        let longest = self.secret.len().saturating_sub(1).min(bytes.len());
        (1..=longest).rev().find(|len| self.secret.starts_with(&bytes[bytes.len() - len..])).unwrap_or(0)
    }
}

/// Overwrites every occurrence in bytes that are there whole. Tells whether there was one.
pub fn cover(bytes: &mut [u8], secret: &[u8]) -> bool {
    let mut found = false;
    let mut from = 0;
    while let Some(at) = bytes.get(from..).and_then(|rest| memmem::find(rest, secret)) {
        if secret.is_empty() {
            break;
        }
        bytes[from + at..from + at + secret.len()].fill(COVER);
        from += at + secret.len();
        found = true;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::same_however_cut;
    use proptest::prelude::*;

    fn run(secret: &str, pieces: &[&[u8]]) -> Vec<u8> {
        let mut mask = Mask::new(secret, 1024);
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| mask.push(Bytes::copy_from_slice(piece))).collect();
        out.extend(mask.finish());
        out
    }

    #[test]
    fn a_secret_is_covered_however_it_is_cut() {
        for (text, want) in [
            ("Incorrect key sk-abc!", "Incorrect key ******!"),
            ("sk-abcsk-abc", "************"),
            ("sk-ab", "sk-ab"),
            ("sk-sk-abc", "sk-******"),
            ("nothing", "nothing"),
            ("", ""),
        ] {
            assert_eq!(run("sk-abc", &[text.as_bytes()]), want.as_bytes());
            same_however_cut(text.as_bytes(), |pieces| run("sk-abc", pieces));
        }
    }

    #[test]
    fn past_the_limit_nothing_is_held() {
        let mut mask = Mask::new("secret", 4);
        assert_eq!(&mask.push(Bytes::from_static(b"sec"))[..], b"");
        assert_eq!(&mask.push(Bytes::from_static(b"re"))[..], b"secre");
        let audio = Bytes::from_static(b"secret");
        assert_eq!(mask.push(audio.clone()), audio);
    }

    proptest! {
        #[test]
        fn the_length_stays_and_the_secret_goes(text in "[ab]{0,40}", secret in "[ab]{1,5}", cut in 0usize..40) {
            let bytes = text.as_bytes();
            let (left, right) = bytes.split_at(cut.min(bytes.len()));
            let out = run(&secret, &[left, right]);
            prop_assert_eq!(out.len(), bytes.len());
            prop_assert!(memmem::find(&out, secret.as_bytes()).is_none());
            prop_assert_eq!(out, run(&secret, &[bytes]));
        }
    }
}
