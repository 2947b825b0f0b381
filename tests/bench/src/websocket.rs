//! WebSocket (RFC 6455), as far as a client needs it whose provider sends back what it gets, byte for byte: such a
//! provider does not have to know where a message ends.

use crate::head;
use crate::speech::{CLIENT_KEY, PASSED};

/// The RFC's own example (§1.3), and what a server has to answer to it: the same for every connection.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Of every message: that it looks like noise is what counts here.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a client begins with.
pub fn handshake() -> Vec<u8> {
    format!(
        "GET {PASSED}/v1/echo HTTP/1.1\r\nHost: bench.test\r\nAuthorization: Bearer {CLIENT_KEY}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes()
}

/// What the provider answers.
pub fn agreement() -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
    .into_bytes()
}

/// Whether a request's head is a handshake.
pub fn asked(head: &[u8]) -> bool {
    head::field(head, "upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// Whether an answer's head is the provider's agreement.
pub fn agreed(head: &[u8]) -> bool {
    head::status(head) == Some(101) && head::field(head, "sec-websocket-accept") == Some(ACCEPT)
}

/// One binary frame of a client, with so many bytes in it, fewer than 64 KiB.
pub fn message(bytes: u16) -> Vec<u8> {
    const FINAL_AND_BINARY: u8 = 0x82;
    const MASKED: u8 = 0x80;
    let length = match u8::try_from(bytes) {
        Ok(short @ 0..126) => vec![MASKED | short],
        _ => [&[MASKED | 126], bytes.to_be_bytes().as_slice()].concat(),
    };
    let masked = MASK.iter().cycle().zip(0..bytes).map(|(key, at)| (at % 251) as u8 ^ key);
    [FINAL_AND_BINARY].into_iter().chain(length).chain(MASK).chain(masked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_know_each_other() {
        assert!(asked(&handshake()) && agreed(&agreement()));
        assert!(!asked(&agreement()[..30]) && !agreed(&handshake()));
        assert!(!agreed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"));
        assert!(!asked(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"));
    }

    #[test]
    fn a_message_is_one_frame_that_says_its_length() {
        for (bytes, opening) in [
            (0, &[0x82, 0x80][..]),
            (64, &[0x82, 0xc0]),
            (125, &[0x82, 0xfd]),
            (126, &[0x82, 0xfe, 0, 126]),
            (16_384, &[0x82, 0xfe, 0x40, 0]),
        ] {
            let message = message(bytes);
            let (head, masked) = message.split_at(opening.len() + MASK.len());
            assert_eq!((head, masked.len()), (&*[opening, &MASK].concat(), usize::from(bytes)));
            let plain = masked.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key);
            assert!(plain.zip(0_u16..).all(|(byte, at)| byte == (at % 251) as u8), "{bytes}");
        }
    }
}
