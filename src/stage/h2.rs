//! HTTP/2 heads: they do not pass the front, and what its lint refuses is refused here.

use http::{Method, Version};
use pingora::http::RequestHeader;

use crate::refusal::Refusal;
use crate::wire::head::{FIELDS_MAX, TARGET_BYTES_MAX};

/// What the front's lint refuses, for heads that it does not see.
pub fn lint(head: &RequestHeader) -> Result<(), Refusal> {
    if head.version != Version::HTTP_2 {
        return Ok(());
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    if target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    if head.headers.len() > FIELDS_MAX {
        return Err(Refusal::HeadTooLarge("fields"));
    }
    if !target.starts_with('/') {
        return Err(Refusal::InvalidHead("its path does not begin with a slash".into()));
    }
    if head.method == Method::TRACE {
        return Err(Refusal::MethodNotAllowed { method: "TRACE".into(), allow: "GET, HEAD, POST" });
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
}
