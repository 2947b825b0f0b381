//! A provider's end of a WebSocket: as much of RFC 6455 as SDKs insist on.

use crate::clients::speech::base64;
use crate::support::Wire;
use crate::support::vendor::Received;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Text(String),
    Sound(Vec<u8>),
    /// With its code.
    Close(u16),
}

/// A connection that has been switched.
pub(super) struct Socket {
    wire: Wire,
    /// Bytes of the client's frames that have been looked at.
    taken: usize,
}

impl Socket {
    /// Agrees to what was asked for.
    pub(super) async fn accept(request: &Received, mut wire: Wire) -> Self {
        assert!(request.header("upgrade").is_some_and(|name| name.eq_ignore_ascii_case("websocket")), "{request:?}");
        let key = request.header("sec-websocket-key").expect("every handshake has one");
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            accepted(key)
        );
        wire.write(head).await;
        Self { wire, taken: 0 }
    }

    /// What the client says next; pings and pongs are nothing. `None`: it is gone.
    pub(super) async fn said(&mut self) -> Option<Said> {
        loop {
            let taken = self.taken;
            let frame = self.wire.finds(|bytes| Frame::parse(&bytes[taken..])).await?;
            self.taken += frame.len;
            match frame.opcode {
                TEXT => return Some(Said::Text(String::from_utf8(frame.payload).expect("a text"))),
                BINARY => return Some(Said::Sound(frame.payload)),
                CLOSE => {
                    return Some(Said::Close(frame.payload.first_chunk().map_or(1005, |c| u16::from_be_bytes(*c))));
                }
                _ => {}
            }
        }
    }

    pub(super) async fn text(&mut self, text: &serde_json::Value) {
        self.frame(TEXT, text.to_string().as_bytes()).await;
    }

    pub(super) async fn sound(&mut self, bytes: &[u8]) {
        self.frame(BINARY, bytes).await;
    }

    /// Says that this is the end, and hears that the client agrees, with which code.
    pub(super) async fn close(mut self, code: u16, reason: &str) -> Option<u16> {
        self.frame(CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat()).await;
        loop {
            if let Said::Close(code) = self.said().await? {
                return Some(code);
            }
        }
    }

    /// Agrees to the end that the client has said.
    pub(super) async fn closed(mut self, code: u16) {
        self.frame(CLOSE, &code.to_be_bytes()).await;
    }

    async fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            len @ ..126 => frame.push(len as u8),
            len @ 126..0x1_0000 => {
                frame.push(126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        self.wire.write(frame).await;
    }
}

struct Frame {
    opcode: u8,
    payload: Vec<u8>,
    /// Bytes of the whole frame.
    len: usize,
}

impl Frame {
    /// The first frame of what a client sent. `None`: it is not whole yet.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else { return None };
        assert_eq!((first & 0xf0, second & 0x80), (0x80, 0x80), "whole messages, without an extension, masked");
        let (len, rest) = match second & 0x7f {
            126 => rest.split_first_chunk().map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?,
            127 => rest.split_first_chunk().map(|(len, rest)| (u64::from_be_bytes(*len) as usize, rest))?,
            len => (usize::from(len), rest),
        };
        let (mask, rest) = rest.split_first_chunk::<4>()?;
        let payload = rest.get(..len)?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        Some(Self { opcode: first & 0x0f, payload, len: bytes.len() - rest.len() + len })
    }
}

/// What proves to a client that its handshake was understood.
fn accepted(key: &str) -> String {
    base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = [message, &[0x80]].concat();
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words: Vec<u32> =
            block.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]])).collect();
        for at in 16..80 {
            words.push((words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.into_iter().enumerate() {
            let (mixed, constant) = match at {
                ..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = [a.rotate_left(5), mixed, e, constant, word].into_iter().fold(0, u32::wrapping_add);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (sum, value) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[test]
fn a_handshake_is_answered_as_the_standard_shows() {
    assert_eq!(accepted("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}
