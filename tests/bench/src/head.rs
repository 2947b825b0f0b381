//! The head of an HTTP/1.1 message, read from raw bytes: just what a fake provider and a load generator
//! need of RFC 9112. Both ends are ours, so nothing here defends against a stranger.

use memchr::{memchr, memmem};

/// Where the head ends and the body begins.
pub fn end(bytes: &[u8]) -> Option<usize> {
    memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The first field of that name, without the blanks around its value.
pub fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let (key, value) = line.split_at(memchr(b':', line)?);
        let value = value.strip_prefix(b":").filter(|_| key.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok().map(str::trim)
    })
}

pub fn content_length(head: &[u8]) -> Option<usize> {
    field(head, "content-length")?.parse().ok()
}

/// The status of an answer: `HTTP/1.1 200 …`.
pub fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_whatever_the_case_of_its_names() {
        let message = b"HTTP/1.1 429 Too Many\r\ncontent-LENGTH:  12 \r\nX: y:z\r\n\r\n{\"Content-Length: 3";
        let head = end(message).map_or(&[][..], |end| &message[..end]);
        assert_eq!((status(head), content_length(head), field(head, "x")), (Some(429), Some(12), Some("y:z")));
        assert_eq!((end(&message[..20]), field(head, "absent")), (None, None));
    }
}
