//! Headers that are between two neighbours and go no further (RFC 9110 §7.6.1).

use http::{HeaderMap, HeaderName, header};

/// Takes them away, and those that `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<String> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|name| name.trim().to_ascii_lowercase())
            // Framing is the next hop's own, whoever names it.
            .filter(|name| name != "content-length" && name != "transfer-encoding")
            .collect();
        for name in named {
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
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "transfer-encoding", "x-kept"]);
    }
}
