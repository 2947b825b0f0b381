//! Headers that are between two neighbours and go no further (RFC 9110 §7.6.1).

use http::{HeaderMap, HeaderName, header};

/// Takes them away, and those that `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        // Framing is the next hop's own, whoever names it.
        let is_framing = |name: &str| matches!(name, "content-length" | "transfer-encoding");
        let named: Vec<String> = named(headers).map(str::to_ascii_lowercase).collect();
        for name in named.iter().filter(|name| !is_framing(name)) {
            headers.remove(name.as_str());
        }
    }
    remove(headers, |name| {
        matches!(
            name,
            "connection" | "keep-alive" | "proxy-authenticate" | "proxy-connection" | "te" | "trailer" | "upgrade"
        )
    });
}

/// Whether a header says where the body ends.
pub fn is_framed(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
}

/// Whether `Connection` names this.
pub fn is_named(headers: &HeaderMap, option: &str) -> bool {
    named(headers).any(|name| name.eq_ignore_ascii_case(option))
}

fn named(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim)
}

/// Takes away the headers whose names are meant.
pub fn remove(headers: &mut HeaderMap, is_meant: impl Fn(&str) -> bool) {
    let meant: Vec<HeaderName> = headers.keys().filter(|name| is_meant(name.as_str())).cloned().collect();
    for name in meant {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_goes_and_framing_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-Secret, content-length , close"),
            ("connection", "authorization"),
            ("x-secret", "1"),
            ("authorization", "Bearer k"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-kept", "1"),
        ] {
            headers.append(name, http::HeaderValue::from_static(value));
        }
        assert!(is_named(&headers, "x-secret") && is_named(&headers, "Close") && !is_named(&headers, "x-kept"));
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "transfer-encoding", "x-kept"]);
    }
}
