//! Where the frames of a WebSocket connection begin and end (RFC 6455 §5.2), for whoever relays one and wants to put
//! in a frame of its own. What the frames say, and whether they may say it, is not looked at.

/// In a frame's first byte: the opcode, and the one of a Close frame.
const OPCODE: u8 = 0x0F;
const CLOSE: u8 = 0x08;
/// In a Close frame's first byte: it is not the first fragment of several.
const FINAL: u8 = 0x80;
/// In a frame's second byte: a masking key follows the length.
const MASKED: u8 = 0x80;
const KEY_BYTES: u64 = 4;
/// What a Close frame has room for after its code: a control frame's payload is at most 125 bytes.
const REASON_BYTES_MAX: usize = 123;

/// Follows one direction of a connection, from the first byte after the handshake. Payload is skipped, not kept.
#[derive(Debug, Default)]
pub struct Frames {
    next: Next,
}

/// What the next byte is.
#[derive(Debug, Default, Clone, Copy)]
enum Next {
    /// The first of a frame: flags and opcode.
    #[default]
    Opcode,
    /// The second: the mask bit, and the length or its form.
    Length,
    /// One of a longer length, of which so many bytes are missing: at least one.
    LongLength { missing: u8, length: u64, masked: bool },
    /// One of the masking key and the payload, of which so many are left: at least one.
    Payload { left: u64 },
    /// Of no interest: a Close frame has begun.
    Closed,
}

impl Frames {
    /// Takes the next bytes of the direction.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            (self.next, bytes) = match self.next {
                Next::Opcode if byte & OPCODE == CLOSE => (Next::Closed, rest),
                Next::Opcode => (Next::Length, rest),
                Next::Length => (Next::after_length(byte), rest),
                Next::LongLength { missing, length, masked } => {
                    (Next::long_length(missing - 1, length << 8 | u64::from(byte), masked), rest)
                }
                Next::Payload { left } => {
                    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    (Next::after_payload(left - skipped as u64), &bytes[skipped..])
                }
                Next::Closed => return,
            };
        }
    }

    /// Whether the next byte begins a frame: here a frame may be put in. Never after the beginning of a Close frame.
    pub fn at_boundary(&self) -> bool {
        matches!(self.next, Next::Opcode)
    }

    /// Whether a Close frame has begun: nothing may follow it.
    pub fn closed(&self) -> bool {
        matches!(self.next, Next::Closed)
    }
}

impl Next {
    fn after_length(byte: u8) -> Self {
        let masked = byte & MASKED != 0;
        match byte & !MASKED {
            126 => Self::long_length(2, 0, masked),
            127 => Self::long_length(8, 0, masked),
            length => Self::after_head(u64::from(length), masked),
        }
    }

    fn long_length(missing: u8, length: u64, masked: bool) -> Self {
        if missing == 0 { Self::after_head(length, masked) } else { Self::LongLength { missing, length, masked } }
    }

    fn after_head(length: u64, masked: bool) -> Self {
        // No such length is valid, and no connection lives to see its end.
        Self::after_payload(length.saturating_add(if masked { KEY_BYTES } else { 0 }))
    }

    fn after_payload(left: u64) -> Self {
        if left == 0 { Self::Opcode } else { Self::Payload { left } }
    }
}

/// A Close frame with `code` and as much of `reason` as a control frame holds. A frame to a server has to be masked
/// (RFC 6455 §5.1), with a key that nobody can foresee; one to a client must not be.
pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let payload = code.to_be_bytes().into_iter().chain(reason.bytes().take(end));
    // At most 125: the cast loses nothing.
    let length = (size_of_val(&code) + end) as u8;
    match mask {
        None => [FINAL | CLOSE, length].into_iter().chain(payload).collect(),
        Some(key) => {
            let masked = payload.zip(key.into_iter().cycle()).map(|(byte, key)| byte ^ key);
            [FINAL | CLOSE, MASKED | length].into_iter().chain(key).chain(masked).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{pieces, same_however_cut};

    /// At a boundary, and closed.
    fn run(pieces: &[&[u8]]) -> (bool, bool) {
        let mut frames = Frames::default();
        pieces.iter().for_each(|piece| frames.push(piece));
        (frames.at_boundary(), frames.closed())
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let (between, within, closed) = ((true, false), (false, false), (false, true));
        for (label, bytes, want) in [
            ("nothing yet", &b""[..], between),
            ("half a head", b"\x81", within),
            ("an empty frame", b"\x81\x00", between),
            ("a text", b"\x81\x02hi", between),
            ("most of a text", b"\x81\x02h", within),
            ("a masked one", b"\x81\x82KEY!hi", between),
            ("its head and key", b"\x81\x82KEY!", within),
            ("empty, but for a key", b"\x89\x80KEY!", between),
            ("two bytes of length", b"\x82\x7e\x00\x03abc", between),
            ("half of them", b"\x82\x7e\x00", within),
            ("no payload, in two bytes", b"\x82\x7e\x00\x00", between),
            ("eight bytes of length", b"\x82\x7f\0\0\0\0\0\0\0\x03abc", between),
            ("masked", b"\x82\xff\0\0\0\0\0\0\0\x03KEY!abc", between),
            ("the second length byte counts", b"\x82\x7f\0\0\0\0\0\0\x01\x03abc", within),
            ("a fragment, a ping, the rest", b"\x01\x01a\x89\x00\x80\x01b", between),
            ("reserved bits and an unknown opcode", b"\xff\x01a", between),
            ("a payload that looks like a close", b"\x82\x02\x88\x00", between),
            ("a close has begun", b"\x88", closed),
            ("a close is over", b"\x81\x00\x88\x02\x03\xe8", closed),
            ("a close, and more", b"\x88\x00\x81\x02hi", closed),
            ("a close in fragments, which is wrong", b"\x08\x00", closed),
        ] {
            assert_eq!(run(&[bytes]), want, "{label}");
            same_however_cut(bytes, run);
        }
    }

    #[test]
    fn a_length_without_end_is_only_long() {
        for length in [u64::MAX, u64::MAX - 3, 1 << 63, (1 << 63) - 1, 1 << 32] {
            for mask in [0, MASKED] {
                let mut bytes = vec![0x82, mask | 127];
                bytes.extend(length.to_be_bytes());
                bytes.extend([0x88; 100]);
                assert_eq!(run(&[&bytes]), (false, false), "{length}");
                same_however_cut(&bytes, run);
            }
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        for (label, reason, kept) in [
            ("none", String::new(), 0),
            ("short", "going away".into(), 10),
            ("the longest", "a".repeat(123), 123),
            ("too long", "a".repeat(124), 123),
            ("a character in the way", "a".repeat(122) + "é", 122),
            ("a long one in the way", "a".repeat(120) + "🎧", 120),
            ("characters that fit", "a".repeat(121) + "éé", 123),
        ] {
            let frame = close(1001, &reason, None);
            assert_eq!(frame[..4], [0x88, 2 + kept as u8, 0x03, 0xe9], "{label}");
            assert_eq!(frame[4..], reason.as_bytes()[..kept], "{label}");
        }
    }

    #[test]
    fn a_masked_close_is_the_same_under_its_key() {
        let (plain, masked) = (close(1001, "going away", None), close(1001, "going away", Some(*b"KEY!")));
        assert_eq!(masked[..6], *b"\x88\x8cKEY!");
        let payload: Vec<u8> = masked[6..].iter().zip(b"KEY!".iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        assert_eq!(payload, plain[2..]);
    }

    /// A frame that is no Close, with its length in any form that holds it.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let opcode = any::<u8>().prop_filter("no close", |first| first & OPCODE != CLOSE);
        let payload = prop_oneof![8 => vec(any::<u8>(), 0..20), 1 => vec(any::<u8>(), 120..300)];
        (opcode, payload, any::<Option<[u8; 4]>>(), 0..3).prop_map(|(first, payload, key, form)| {
            let mask = if key.is_some() { MASKED } else { 0 };
            let mut frame = vec![first];
            match form {
                0 if payload.len() <= 125 => frame.push(mask | payload.len() as u8),
                0 | 1 => {
                    frame.push(mask | 126);
                    frame.extend((payload.len() as u16).to_be_bytes());
                }
                _ => {
                    frame.push(mask | 127);
                    frame.extend((payload.len() as u64).to_be_bytes());
                }
            }
            frame.extend(key.into_iter().flatten());
            frame.extend(payload);
            frame
        })
    }

    proptest! {
        #[test]
        fn a_boundary_is_where_a_frame_ends_and_nowhere_else(
            all in vec(frame(), 0..6),
            sizes in vec(0..40_usize, 0..6),
            last in any::<Option<(u16, Option<[u8; 4]>)>>(),
        ) {
            let mut bytes = all.concat();
            let mut ends = vec![0];
            ends.extend(all.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) }));
            let close_at = bytes.len();
            bytes.extend(last.map(|(code, mask)| close(code, "so long", mask)).unwrap_or_default());
            for sizes in [&sizes[..], &[1]] {
                let mut frames = Frames::default();
                let mut at = 0;
                for piece in pieces(&bytes, sizes) {
                    frames.push(piece);
                    at += piece.len();
                    prop_assert_eq!(frames.at_boundary(), ends.contains(&at), "after byte {}", at);
                    prop_assert_eq!(frames.closed(), at > close_at, "after byte {}", at);
                }
            }
        }

        #[test]
        fn any_bytes_are_only_bytes(bytes in vec(any::<u8>(), 0..64)) {
            same_however_cut(&bytes, run);
        }

        #[test]
        fn any_close_is_one(code: u16, reason in ".{0,80}", mask: Option<[u8; 4]>) {
            let frame = close(code, &reason, mask);
            prop_assert_eq!(run(&[&frame]), (false, true));
            // Under another opcode the scanner finds its end where it is.
            let ping = [&[0x89], &frame[1..]].concat();
            prop_assert_eq!(run(&[&ping]), (true, false));
            let key_bytes = mask.map_or(0, |key| key.len());
            prop_assert!(frame.len() <= 2 + key_bytes + 125);
            let unmasked = close(code, &reason, None);
            prop_assert!(reason.starts_with(std::str::from_utf8(&unmasked[4..]).expect("whole characters")));
        }
    }
}
