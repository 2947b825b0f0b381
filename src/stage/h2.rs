//! HTTP/2 heads: they do not pass the front, and what its lint refuses is refused here.

use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Version};
use pingora::http::RequestHeader;

use crate::refusal::Refusal;
use crate::wire::head::{FIELDS_MAX, METHOD_BYTES_MAX, TARGET_BYTES_MAX, is_framing, is_target};

/// What the front's lint refuses, for heads that it does not see.
pub fn lint(head: &RequestHeader) -> Result<(), Refusal> {
    if head.version != Version::HTTP_2 {
        return Ok(());
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let method = head.method.as_str();
    if method.len() > METHOD_BYTES_MAX {
        return Err(Refusal::InvalidHead("the method is too long".into()));
    }
    if target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    if head.headers.len() > FIELDS_MAX {
        return Err(Refusal::HeadTooLarge("fields"));
    }
    if !target.starts_with('/') {
        return Err(Refusal::InvalidHead("its path does not begin with a slash".into()));
    }
    // Methods are case-sensitive, but not everyone behind us may know.
    if let Some(refused) = ["TRACE", "CONNECT"].into_iter().find(|refused| method.eq_ignore_ascii_case(refused)) {
        return Err(Refusal::MethodNotAllowed { method: refused.into(), allow: "GET, HEAD, POST" });
    }
    if !target.bytes().all(is_target) {
        return Err(Refusal::InvalidHead("its target has a byte that cannot stand there".into()));
    }
    if head.uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(Refusal::InvalidHead("its authority names a user".into()));
    }
    framing(head)
}

/// What another server could take for another framing than the one that HTTP/2 has.
fn framing(head: &RequestHeader) -> Result<(), Refusal> {
    let odd = |name: &str| name != "content-length" && is_framing(name.as_bytes());
    if head.headers.keys().any(|name| odd(name.as_str())) {
        return Err(Refusal::InvalidHead("a header looks like one of the body's framing".into()));
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let plain = |length: &HeaderValue| {
        let digits = length.as_bytes();
        digits.iter().all(u8::is_ascii_digit) && (digits == b"0" || !digits.starts_with(b"0"))
    };
    if !lengths.next().is_none_or(plain) || lengths.next().is_some() {
        return Err(Refusal::InvalidHead("its Content-Length is not one plain number".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http2_heads_are_looked_at_and_judged_as_the_front_does() {
        let long = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
        for (version, method, target, fields, want) in [
            (Version::HTTP_2, "POST", "/v1/audio/speech", 3, None),
            (Version::HTTP_2, "POST", &long, 0, Some(414)),
            (Version::HTTP_2, "POST", "/", FIELDS_MAX + 1, Some(431)),
            (Version::HTTP_2, "TRACE", "/", 0, Some(405)),
            (Version::HTTP_2, "trace", "/", 0, Some(405)),
            (Version::HTTP_2, "connect", "/", 0, Some(405)),
            (Version::HTTP_2, "AMETHODTHATISFARTOOLONGTOBEANYOFTHEM", "/", 0, Some(400)),
            (Version::HTTP_2, "OPTIONS", "*", 0, Some(400)),
            (Version::HTTP_11, "TRACE", "*", FIELDS_MAX + 1, None),
        ] {
            let mut head = RequestHeader::build(method, target.as_bytes(), None).expect("a head");
            head.set_version(version);
            for n in 0..fields {
                head.append_header(format!("x-{n}"), "1").expect("a header");
            }
            assert_eq!(lint(&head).err().map(|refusal| refusal.status()), want, "{method} {}", &target[..1]);
        }
    }

    #[test]
    fn nothing_reads_as_another_framing() {
        for (lines, want) in [
            (&[("content-length", "7")][..], true),
            (&[("content-length", "0")], true),
            (&[("content-length", "7"), ("content-length", "7")], false),
            (&[("content-length", "07")], false),
            (&[("content-length", "+7")], false),
            (&[("transfer_encoding", "chunked")], false),
            (&[("content_length", "7")], false),
            (&[("x-content-length", "7")], true),
        ] {
            let mut head = RequestHeader::build("POST", b"/", None).expect("a head");
            head.set_version(Version::HTTP_2);
            lines.iter().for_each(|(name, value)| _ = head.append_header(*name, *value).expect("a header"));
            assert_eq!(lint(&head).is_ok(), want, "{lines:?}");
        }
    }
}
