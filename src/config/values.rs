//! From the words of a config to values, one function for each kind of word. Each gives `None` for what it does
//! not understand; saying so is the caller's business.

use std::net::Ipv6Addr;
use std::time::Duration;

use http::uri::Authority;
use jiff::Timestamp;
use toml::de::DeValue;

use super::settings::BaseUrl;

/// No wait that a config names is longer.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of the name of a model, an alias, a key or a workspace.
const NAME_BYTES_MAX: usize = 256;
/// Characters of the name of a provider.
const PROVIDER_NAME_MAX: usize = 63;

/// The one spelling of a user path: begins with a slash, has no empty segment and no slash at its end (`/` alone
/// is the root). `None` for `.` and `..`, for a colon and for control characters.
pub fn normalise_user_path(text: &str) -> Option<String> {
    let segments: Vec<_> = text.split('/').filter(|segment| !segment.is_empty()).collect();
    let plain =
        |segment: &&str| !matches!(*segment, "." | "..") && !segment.contains(|c: char| c == ':' || c.is_control());
    segments.iter().all(plain).then(|| format!("/{}", segments.join("/")))
}

/// A whole number and `ms`, `s`, `m` or `h`; more than nothing, at most a day.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = number.checked_mul(match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    })?;
    let duration = Duration::from_millis(millis);
    (!duration.is_zero() && duration <= DURATION_MAX).then_some(duration)
}

/// Bytes: a whole number, alone or with KB, MB, GB (powers of ten) or KiB, MiB, GiB (of two); more than none.
pub(super) fn size(text: &str) -> Option<usize> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = number.checked_mul(match unit {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    })?;
    usize::try_from(bytes).ok()
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.strip_prefix(' ').unwrap_or(unit)))
}

/// A host, and perhaps a port.
pub(super) fn peer(text: &str) -> Option<Authority> {
    let peer: Authority = text.parse().ok()?;
    let plain = !peer.host().is_empty() && !text.contains('@') && !text.ends_with(':');
    (plain && (peer.port().is_none() || peer.port_u16().is_some_and(|port| port > 0))).then_some(peer)
}

/// A host name or an address, alone.
pub(super) fn host(text: &str) -> Option<&str> {
    let authority = peer(text)?;
    (authority.port().is_none() && authority.host() == text).then_some(text)
}

/// `http` or `https`, a host, perhaps a port and a path; nothing else, and above all no user and password.
pub(super) fn base_url(text: &str) -> Option<BaseUrl> {
    let (tls, rest) = match text.split_once("://")? {
        ("https", rest) => (true, rest),
        ("http", rest) => (false, rest),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path_is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte));
    let (host, port) = host_and_port(authority)?;
    let port = port.map_or(Some(if tls { 443 } else { 80 }), port_number)?;
    path_is_plain.then(|| BaseUrl { tls, host, port, path: path.trim_end_matches('/').to_owned() })
}

fn host_and_port(authority: &str) -> Option<(String, Option<&str>)> {
    if let Some((host, port)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let address: Ipv6Addr = host.parse().ok()?;
        let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
        return Some((address.to_string(), port));
    }
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let named = !host.is_empty() && host.len() <= 253 && host.bytes().all(plain) && !host.starts_with('.');
    named.then(|| (host.to_ascii_lowercase(), port))
}

fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

/// An instant as RFC 3339 writes it, with its offset.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    let value = DeValue::parse(text).ok().filter(|value| value.span() == (0..text.len()))?;
    let DeValue::Datetime(written) = value.get_ref() else { return None };
    let whole = written.date.is_some() && written.time.is_some() && written.offset.is_some();
    whole.then(|| written.to_string().parse().ok())?
}

/// The name of a provider: it stands in headers, paths, metrics and the names of environment variables.
pub(super) fn provider_name(text: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    (text.len() <= PROVIDER_NAME_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(plain))
    .then_some(text)
}

/// Any other name.
pub fn name(text: &str) -> Option<&str> {
    (!text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control)).then_some(text)
}

/// `${NAME}`, and nothing around it.
pub(super) fn variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn user_paths_have_one_spelling() {
        for (text, want) in [
            ("", Some("/")),
            ("/", Some("/")),
            ("team", Some("/team")),
            ("/team/", Some("/team")),
            ("//team///mobile//", Some("/team/mobile")),
            ("/team/.hidden", Some("/team/.hidden")),
            ("/Team", Some("/Team")),
            ("/team/..", None),
            ("./team", None),
            ("/team:a", None),
            ("/team\n", None),
        ] {
            assert_eq!(normalise_user_path(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("1ms", Some(1)),
            ("10s", Some(10_000)),
            ("10 s", Some(10_000)),
            ("5m", Some(300_000)),
            ("24h", Some(86_400_000)),
            ("25h", None),
            ("86401s", None),
            ("0s", None),
            ("10", None),
            ("s", None),
            ("", None),
            ("1.5s", None),
            ("-1s", None),
            ("+1s", None),
            ("1S", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("1", Some(1)),
            ("1048576", Some(1 << 20)),
            ("64B", Some(64)),
            ("1KB", Some(1000)),
            ("1MB", Some(1_000_000)),
            ("1GB", Some(1_000_000_000)),
            ("64KiB", Some(65_536)),
            ("1 MiB", Some(1 << 20)),
            ("2GiB", Some(2 << 30)),
            ("0", Some(0)),
            ("0MiB", Some(0)),
            ("1mb", None),
            ("1M", None),
            ("1.5MB", None),
            ("-1", None),
            ("MiB", None),
            ("18446744073709551615KiB", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }

    #[test]
    fn base_urls() {
        let url = |tls, host: &str, port, path: &str| {
            Some(BaseUrl { tls, host: host.to_owned(), port, path: path.to_owned() })
        };
        for (text, want) in [
            ("https://api.openai.com/v1", url(true, "api.openai.com", 443, "/v1")),
            ("https://API.openai.com/v1//", url(true, "api.openai.com", 443, "/v1")),
            ("http://localhost", url(false, "localhost", 80, "")),
            ("http://10.0.0.1:8000/", url(false, "10.0.0.1", 8000, "")),
            ("https://[::1]:8443/a/b", url(true, "::1", 8443, "/a/b")),
            ("http://[::1]", url(false, "::1", 80, "")),
            ("ftp://host/", None),
            ("host/v1", None),
            ("https://", None),
            ("https:///v1", None),
            ("https://user:pass@host/v1", None),
            ("https://user@host/v1", None),
            ("https://host/v1?key=1", None),
            ("https://host?key=1", None),
            ("https://host/v1#top", None),
            ("https://host:0/", None),
            ("https://host:/", None),
            ("https://host:99999/", None),
            ("https://host:+80/", None),
            ("https://[::1/", None),
            ("https://[::1]x/", None),
            ("https://::1/", None),
            ("https://ho st/", None),
            ("https://höst/", None),
            ("https://host/a b", None),
            ("https://host/a\r\nb", None),
        ] {
            assert_eq!(base_url(text), want, "{text}");
        }
    }

    #[test]
    fn instants() {
        for (text, want) in [
            ("2027-01-01T00:00:00Z", Some("2027-01-01T00:00:00Z")),
            ("2027-01-01T01:30:00+01:30", Some("2027-01-01T00:00:00Z")),
            ("2027-01-01 00:00:00.5Z", Some("2027-01-01T00:00:00.5Z")),
            ("2027-01-01T00:00:00", None),
            ("2027-01-01", None),
            ("00:00:00Z", None),
            ("2027-13-01T00:00:00Z", None),
            ("2027-02-30T00:00:00Z", None),
            ("2027-01-01T00:00:00Z[Europe/Berlin]", None),
            (" 2027-01-01T00:00:00Z", None),
            ("2027-01-01T00:00:00Z # noon", None),
            ("tomorrow", None),
            ("", None),
        ] {
            assert_eq!(instant(text).map(|instant| instant.to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn names_and_variables() {
        let long = "a".repeat(64);
        for (text, want) in [
            ("openai", true),
            ("a-b_2", true),
            ("2a", true),
            ("", false),
            ("-a", false),
            ("A", false),
            ("a.b", false),
            ("a/b", false),
            (&long[1..], true),
            (&long, false),
        ] {
            assert_eq!(provider_name(text).is_some(), want, "{text}");
        }
        for (text, want) in [
            ("gpt-4.1/x y", true),
            ("ü", true),
            ("", false),
            ("a\nb", false),
            (&long.repeat(4), true),
            (&long.repeat(5), false),
        ] {
            assert_eq!(name(text).is_some(), want, "{text}");
        }
        for (text, want) in [
            ("${OPENAI_API_KEY}", Some("OPENAI_API_KEY")),
            ("${_a1}", Some("_a1")),
            ("${}", None),
            ("${1a}", None),
            ("${A-B}", None),
            ("${A:-default}", None),
            ("x${A}", None),
            ("${A}x", None),
            ("$A", None),
            ("sk-1", None),
        ] {
            assert_eq!(variable(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_reads_back_in_every_unit(number in 1..86_400_000u64) {
            for (unit, millis) in [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)] {
                let whole = Duration::from_millis(number * millis);
                let want = (whole <= DURATION_MAX).then_some(whole);
                prop_assert_eq!(duration(&format!("{number}{unit}")), want);
                if let Some(read) = want {
                    prop_assert_eq!(duration(&format!("{}ms", read.as_millis())), Some(read));
                }
            }
        }

        #[test]
        fn a_normal_user_path_stays_as_it_is(text in "[a-z./:]{0,12}|\\PC{0,8}") {
            if let Some(path) = normalise_user_path(&text) {
                prop_assert!(path.starts_with('/') && !path.contains("//"));
                prop_assert_eq!(normalise_user_path(&path), Some(path));
            }
        }

        #[test]
        fn no_word_is_too_strange(text in "\\PC{0,24}|[a-z0-9:/@\\[\\].?#${}-]{0,24}") {
            let _ = (duration(&text), size(&text), base_url(&text), instant(&text), variable(&text));
            let _ = (provider_name(&text), name(&text), normalise_user_path(&text));
        }
    }
}
