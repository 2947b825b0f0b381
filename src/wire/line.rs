//! JSON records, one to a line, written member by member.
//!
//! Every request writes two of them. What a serialiser does for any type, it does anew for each name and each byte;
//! here names are known not to need it, and text is looked at once.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use uuid::Uuid;

static TIMES: DateTimePrinter = DateTimePrinter::new();

/// Something that can stand in a record.
pub trait Value {
    /// Appends it as JSON.
    fn write(&self, to: &mut Vec<u8>);
}

/// The members of an object, one after the other.
pub struct Members<'b> {
    to: &'b mut Vec<u8>,
    first: bool,
}

/// Appends an object.
pub fn object(to: &mut Vec<u8>, members: impl FnOnce(&mut Members<'_>)) {
    to.push(b'{');
    members(&mut Members { to, first: true });
    to.push(b'}');
}

impl Members<'_> {
    /// One more. `name` needs no escaping.
    // In line, where the name is known: its bytes are then copied without a call.
    #[inline(always)]
    pub fn add(&mut self, name: &'static str, value: &(impl Value + ?Sized)) -> &mut Self {
        debug_assert!(is_plain(name.as_bytes()));
        if !std::mem::take(&mut self.first) {
            self.to.push(b',');
        }
        quoted(self.to, name.as_bytes());
        self.to.push(b':');
        value.write(self.to);
        self
    }

    /// One more, if there is a value for it.
    pub fn add_some(&mut self, name: &'static str, value: Option<&(impl Value + ?Sized)>) -> &mut Self {
        match value {
            Some(value) => self.add(name, value),
            None => self,
        }
    }
}

/// Milliseconds, with one decimal.
pub struct Millis(pub Duration);

impl<T: Value + ?Sized> Value for &T {
    fn write(&self, to: &mut Vec<u8>) {
        (**self).write(to);
    }
}

impl<T: Value> Value for Option<T> {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(to),
            None => to.extend_from_slice(b"null"),
        }
    }
}

impl<T: Value> Value for Vec<T> {
    fn write(&self, to: &mut Vec<u8>) {
        to.push(b'[');
        for (at, value) in self.iter().enumerate() {
            if at > 0 {
                to.push(b',');
            }
            value.write(to);
        }
        to.push(b']');
    }
}

impl Value for str {
    fn write(&self, to: &mut Vec<u8>) {
        let text = self.as_bytes();
        if is_plain(text) {
            return quoted(to, text);
        }
        to.push(b'"');
        for &byte in text {
            match escape(byte) {
                None => to.push(byte),
                Some(b'u') => {
                    to.extend_from_slice(b"\\u00");
                    to.extend([byte >> 4, byte & 0xF].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
                }
                Some(letter) => to.extend_from_slice(&[b'\\', letter]),
            }
        }
        to.push(b'"');
    }
}

impl Value for String {
    fn write(&self, to: &mut Vec<u8>) {
        self.as_str().write(to);
    }
}

impl Value for bool {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl Value for u64 {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
    }
}

impl Value for u16 {
    fn write(&self, to: &mut Vec<u8>) {
        u64::from(*self).write(to);
    }
}

impl Value for usize {
    fn write(&self, to: &mut Vec<u8>) {
        (*self as u64).write(to);
    }
}

impl Value for Millis {
    fn write(&self, to: &mut Vec<u8>) {
        let tenths = u64::try_from(self.0.as_micros() / 100).unwrap_or(u64::MAX);
        (tenths / 10).write(to);
        to.push(b'.');
        (tenths % 10).write(to);
    }
}

impl Value for Timestamp {
    fn write(&self, to: &mut Vec<u8>) {
        to.push(b'"');
        // Memory is all it needs.
        let _ = TIMES.print_timestamp(self, &mut *to);
        to.push(b'"');
    }
}

impl Value for Uuid {
    fn write(&self, to: &mut Vec<u8>) {
        quoted(to, self.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    }
}

impl Value for IpAddr {
    fn write(&self, to: &mut Vec<u8>) {
        to.push(b'"');
        address(to, self);
        to.push(b'"');
    }
}

impl Value for SocketAddr {
    fn write(&self, to: &mut Vec<u8>) {
        to.push(b'"');
        match self {
            Self::V4(addr) => {
                address(to, &IpAddr::V4(*addr.ip()));
                to.push(b':');
                addr.port().write(to);
            }
            Self::V6(addr) => {
                let _ = write!(to, "{addr}");
            }
        }
        to.push(b'"');
    }
}

fn address(to: &mut Vec<u8>, ip: &IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (at, octet) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    to.push(b'.');
                }
                u64::from(octet).write(to);
            }
        }
        IpAddr::V6(ip) => {
            let _ = write!(to, "{ip}");
        }
    }
}

#[inline(always)]
fn quoted(to: &mut Vec<u8>, text: &[u8]) {
    to.reserve(text.len() + 2);
    to.push(b'"');
    to.extend_from_slice(text);
    to.push(b'"');
}

/// Whether nothing in it has to be escaped. It does not stop at the first that has to, so that many are looked at at once.
fn is_plain(text: &[u8]) -> bool {
    !text.iter().fold(false, |found, &byte| found | (byte < b' ') | (byte == b'"') | (byte == b'\\'))
}

/// What stands behind the backslash (RFC 8259 §7), if there has to be one.
fn escape(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' => Some(byte),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        0x08 => Some(b'b'),
        0x0C => Some(b'f'),
        ..b' ' => Some(b'u'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn written(value: &(impl Value + ?Sized)) -> String {
        let mut to = Vec::new();
        value.write(&mut to);
        String::from_utf8(to).expect("text")
    }

    #[test]
    fn an_object_reads_back() {
        let mut to = b"before".to_vec();
        object(&mut to, |members| {
            members.add("none", &None::<bool>).add("list", &vec![1u64, 2]).add("empty", &Vec::<bool>::new());
            members.add_some("left", Some("in")).add_some("right", None::<&str>).add("last", &true);
        });
        let text = String::from_utf8(to).expect("text");
        assert_eq!(text, r#"before{"none":null,"list":[1,2],"empty":[],"left":"in","last":true}"#);
        let mut nothing = Vec::new();
        object(&mut nothing, |_| {});
        assert_eq!(nothing, b"{}");
    }

    #[test]
    fn every_character_reads_back() {
        let all: String = (0..0x250).chain([0x2028, 0xFFFD, 0x1_F50A]).filter_map(char::from_u32).collect();
        assert_eq!(written(all.as_str()), json!(all).to_string());
        for one in all.chars().map(String::from) {
            assert_eq!(written(&one), json!(one).to_string());
        }
    }

    #[test]
    fn times_and_addresses_are_written_as_everybody_does() {
        for (millis, want) in [(0, "0.0"), (99, "0.0"), (100, "0.1"), (11_000, "11.0"), (1_840_250, "1840.2")] {
            assert_eq!(written(&Millis(Duration::from_micros(millis))), want);
        }
        assert_eq!(written(&Millis(Duration::MAX)), "1844674407370955161.5");
        for ip in ["0.0.0.0", "203.0.113.7", "255.255.255.255", "::1", "2001:db8::7", "::ffff:1.2.3.4"] {
            let ip: IpAddr = ip.parse().expect("an address");
            assert_eq!(written(&ip), format!("\"{ip}\""));
            let addr = SocketAddr::new(ip, 443);
            assert_eq!(written(&addr), format!("\"{addr}\""));
        }
        for ts in ["2026-11-20T13:00:00Z", "2026-11-20T13:00:00.1Z", "1969-12-31T23:59:59.999999Z"] {
            assert_eq!(written(&ts.parse::<Timestamp>().expect("a time")), format!("\"{ts}\""));
        }
        assert_eq!(written(&Uuid::max()), "\"ffffffff-ffff-ffff-ffff-ffffffffffff\"");
    }

    proptest! {
        #[test]
        fn text_and_numbers_read_back(text in ".*", number: u64) {
            prop_assert_eq!(written(&text), json!(text).to_string());
            prop_assert_eq!(written(&number), number.to_string());
        }
    }
}
