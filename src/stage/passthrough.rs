//! Bytes that pass through, `/p/{provider}/…`: which provider they are for, whether the caller may, and what is not
//! handed on as it came: where the provider's path begins, the query's pairs that were meant for us, and a redirect that
//! leads away from the provider.

use std::borrow::Cow;
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::config::settings::{BaseUrl, Provider, Selector};
use crate::provider::{self, Target};
use crate::refusal::Refusal;
use crate::stage::authenticate::{Caller, QUERY_CREDENTIALS, in_sub_protocols, is_scheme, sub_protocols};
use crate::stage::inspect::{Call, Task};
use crate::stage::route::{Again, Leg, Plan};
use crate::state::State;
use crate::surface::{Endpoint, PASSTHROUGH};
use crate::units::printable;
use crate::wire::path;

/// Bytes of a name that is no provider's, as the client is told it.
const PROVIDER_BYTES_MAX: usize = 64;

/// What is asked for, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Path and query at the provider, without its credential.
    pub target: String,
    /// The client offers to speak WebSocket.
    pub upgrade: bool,
    /// What the client has to be told that is spoken, where the provider does not say: what it offered was only there
    /// for its credential.
    pub spoken: Option<HeaderValue>,
}

/// Which provider a path is for, and what of the path is left for it. `host`: the provider that the host name stands
/// for, where it does for one.
pub fn place<'s, 'p>(
    state: &'s State,
    host: Option<&str>,
    path: &'p str,
) -> Result<(&'s Arc<Provider>, &'p str), Refusal> {
    let (name, rest) = named(host, path);
    // The name is a segment like any other, and begins behind the last slash of what stands before it.
    let judged = match host {
        Some(_) => path,
        None => path.strip_prefix(PASSTHROUGH.trim_end_matches('/')).unwrap_or(path),
    };
    path::lint(judged).map_err(Refusal::InvalidPath)?;
    if percent_decode_str(name).any(|byte| matches!(byte, b'/' | b'\\')) {
        return Err(Refusal::InvalidPath("its provider has a slash in its name"));
    }
    let unknown = || Refusal::UnknownProvider { provider: printable(name.as_bytes(), PROVIDER_BYTES_MAX) };
    Ok((state.provider(name).ok_or_else(unknown)?, rest))
}

/// The provider's name, and what follows it.
fn named<'n, 'p: 'n>(host: Option<&'n str>, path: &'p str) -> (&'n str, &'p str) {
    match host {
        Some(name) => (name, path),
        None => {
            let below = path.strip_prefix(PASSTHROUGH).unwrap_or_default();
            below.split_at(below.find('/').unwrap_or(below.len()))
        }
    }
}

/// Whose clients ask, as far as the path says, however wrong the rest of it is. `known`: what is configured under the
/// name may be told.
pub fn dialect(state: &State, host: Option<&str>, path: &str, known: bool) -> Option<&'static dyn provider::Provider> {
    let name = named(host, path).0;
    match state.provider(name) {
        Some(provider) if known => Some(provider.kind),
        _ => provider::by_kind(name),
    }
}

/// The provider whose passthrough the host name stands for, if it does for one. `authority`: that of the target, as
/// HTTP/2 has it.
pub fn host<'s>(authority: Option<&Authority>, headers: &HeaderMap, state: &'s State) -> Option<&'s str> {
    let hosts = &state.settings.hosts;
    if hosts.is_empty() {
        return None;
    }
    let named = authority.map(Authority::as_str).or_else(|| headers.get(header::HOST)?.to_str().ok())?;
    let host = named.parse::<Authority>().ok()?.host().to_ascii_lowercase();
    hosts.get(host.strip_suffix('.').unwrap_or(&host)).map(String::as_str)
}

/// Whether a caller may pass bytes through to a provider: to `path` there, asked for as `rest`. What is permitted is a path
/// at the provider, what is forbidden is so in either spelling.
///
/// Lists of models cannot tell which model is meant here: where there is one, it has to allow the whole provider, unless
/// the key says with a list of its own where it may go.
pub fn permit(state: &State, caller: &Caller, provider: &Provider, rest: &str, path: &str) -> Result<(), Refusal> {
    let key = &caller.key;
    let Some(right) = &key.passthrough else { return Err(Refusal::Forbidden("pass anything through")) };
    let whole = |list: &[Selector]| {
        list.iter().any(|selector| match selector {
            Selector::All => true,
            Selector::Provider(name) => *name == provider.name,
            Selector::Exact { .. } | Selector::Name(_) => false,
        })
    };
    let place = |path: &str| format!("{}{path}", provider.name);
    let is_listed = match (&right.allow, &key.allow) {
        (Some(globs), _) => {
            let place = place(path);
            globs.iter().any(|glob| glob.allows(&place))
        }
        (None, Some(list)) => whole(list),
        (None, None) => true,
    };
    let is_denied = || {
        let (place, asked) = (place(path), place(rest));
        right.deny.iter().any(|glob| glob.denies(&place) || glob.denies(&asked))
    };
    let is_allowed = is_listed && state.lists_of(&caller.user_path).all(whole);
    if !is_allowed || !right.deny.is_empty() && is_denied() {
        return Err(Refusal::Forbidden("pass anything through to this path"));
    }
    Ok(())
}

/// What goes to the provider. `upgrade`: the client offers to speak WebSocket.
pub fn pass(provider: &Provider, path: &str, query: Option<&str>, headers: &HeaderMap, upgrade: bool) -> Pass {
    let is_a_credential = |name: &str| QUERY_CREDENTIALS.contains(&name) || provider.placement.is_query(name);
    let target = match self::query(query, is_a_credential) {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let offers: Vec<&str> = sub_protocols(headers).filter(|_| upgrade).collect();
    let scheme = offers.first().filter(|first| is_scheme(first) && in_sub_protocols(&offers).1.is_empty());
    let spoken = scheme.and_then(|scheme| HeaderValue::from_str(scheme).ok());
    Pass { target, upgrade, spoken }
}

/// The call that passes bytes through, and its plan: one provider, whatever its model. `again`: when it may be sent
/// again.
pub fn plan(provider: &Arc<Provider>, pass: Pass, again: Again) -> (Call, Plan) {
    let target = Target { path: "".into(), query: None, names_model: true };
    let leg = Leg { provider: Arc::clone(provider), provider_model: String::new(), target };
    let plan = Plan { model: String::new(), routes: vec![leg], again };
    let call = Call { endpoint: Endpoint::Passthrough, model: String::new(), provider: None, task: Task::Pass(pass) };
    (call, plan)
}

impl Pass {
    /// The headers of an answer that other answers do not keep: where it leads, within the provider, and what is spoken
    /// from here on.
    pub fn kept(&self, status: StatusCode, headers: &HeaderMap, base: &BaseUrl) -> HeaderMap {
        let mut kept = HeaderMap::new();
        let mut locations = headers.get_all(header::LOCATION).iter();
        if let (Some(location), None) = (locations.next(), locations.next())
            && location.to_str().is_ok_and(|text| location_stays(text, &base.authority(), base.tls))
        {
            kept.insert(header::LOCATION, location.clone());
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            kept.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            kept.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            if let Some(spoken) = self.spoken.as_ref().filter(|_| !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL))
            {
                kept.insert(header::SEC_WEBSOCKET_PROTOCOL, spoken.clone());
            }
        }
        kept
    }
}

/// The path at the provider. `base`: the path of its base URL, without a slash at the end. `rest`: what the client
/// wrote behind the provider's name, empty or beginning with a slash; it goes on as it is.
///
/// Native clients write the version themselves, and base URLs often end in it: it is then there once.
pub fn target<'r>(base: &str, rest: &'r str) -> Cow<'r, str> {
    match (without_duplicate(base, rest), rest) {
        ("", "") => Cow::Borrowed("/"),
        ("", rest) => Cow::Borrowed(rest),
        (base, rest) => Cow::Owned(format!("{base}{rest}")),
    }
}

/// `base` without a version at its end that `rest` begins with.
fn without_duplicate<'b>(base: &'b str, rest: &str) -> &'b str {
    let first = rest.strip_prefix('/').and_then(|rest| rest.split('/').next());
    match base.rsplit_once('/') {
        Some((before, last)) if is_version(last) && first == Some(last) => before,
        _ => base,
    }
}

/// `v1`, `v1beta`, `v3alpha2`.
fn is_version(segment: &str) -> bool {
    let Some(number) = segment.strip_prefix('v') else { return false };
    let stage = number.trim_start_matches(|c: char| c.is_ascii_digit());
    let revision = stage.strip_prefix("alpha").or_else(|| stage.strip_prefix("beta"));
    let is_known = stage.is_empty() || revision.is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    number.len() > stage.len() && is_known
}

/// The client's query without the pairs whose name, decoded, is to be dropped. Everything else stays as it came, empty
/// pairs too. `None` if no pair is left, or there was no query.
pub fn query(query: Option<&str>, drop: impl Fn(&str) -> bool) -> Option<Cow<'_, str>> {
    let query = query?;
    let kept: Vec<&str> = query.split('&').filter(|pair| pair.is_empty() || !drop(&name(pair))).collect();
    if kept.len() == query.split('&').count() {
        return Some(Cow::Borrowed(query));
    }
    (!kept.is_empty()).then(|| Cow::Owned(kept.join("&")))
}

/// The name of a pair, as a form decoder reads it.
fn name(pair: &str) -> String {
    let name = pair.split('=').next().unwrap_or_default().replace('+', " ");
    percent_decode_str(&name).decode_utf8_lossy().into_owned()
}

/// Whether a `Location` leads to the provider that sent it. `authority`: the provider's host, with its port unless
/// that is the default one; `tls`: whether it is spoken to over TLS.
///
/// What clients are known to read in more than one way leads away, and so does `//host`, the provider's own too: its
/// scheme would be the one the client used with us.
pub fn location_stays(location: &str, authority: &str, tls: bool) -> bool {
    if !location.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return false;
    }
    let first_segment = location.split(['/', '?', '#']).next().unwrap_or_default();
    match first_segment.split_once(':') {
        None => !location.starts_with("//"),
        Some((scheme, _)) => {
            let there = if tls { Scheme::Https } else { Scheme::Http };
            let after = &location[scheme.len() + 1..];
            Scheme::parse(scheme).is_some_and(|scheme| scheme >= there && is_at(after, scheme, authority, there))
        }
    }
}

/// Whether the part of a URL behind its scheme's colon names this authority.
fn is_at(after: &str, scheme: Scheme, authority: &str, there: Scheme) -> bool {
    let named = after.strip_prefix("//").and_then(|rest| rest.split(['/', '?', '#']).next());
    named.is_some_and(|named| scheme.without_port(named).eq_ignore_ascii_case(there.without_port(authority)))
}

/// The safer one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    /// The authority without the port it would have anyway.
    fn without_port(self, authority: &str) -> &str {
        let port = match self {
            Self::Http => ":80",
            Self::Https => ":443",
        };
        authority.strip_suffix(port).unwrap_or(authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing;
    use proptest::prelude::*;

    #[test]
    fn a_version_is_there_once() {
        for (base, rest, want) in [
            ("/v1", "/v1/audio/speech", "/v1/audio/speech"),
            ("/v1", "/audio/speech", "/v1/audio/speech"),
            ("/v1", "/v1", "/v1"),
            ("/v1", "/v1/", "/v1/"),
            ("/v1", "", "/v1"),
            ("/v1", "/", "/v1/"),
            ("/v1", "/v1/v1/x", "/v1/v1/x"),
            ("/v1", "/v1x", "/v1/v1x"),
            ("/v1", "/v1;x/y", "/v1/v1;x/y"),
            ("/v1", "/%761/x", "/v1/%761/x"),
            ("/v1", "/V1/x", "/v1/V1/x"),
            ("/v1", "/v2/x", "/v1/v2/x"),
            ("/v1", "/x/v1", "/v1/x/v1"),
            ("/v1/v1", "/v1/x", "/v1/v1/x"),
            ("/api/v1beta", "/v1beta/models", "/api/v1beta/models"),
            ("/api/v1beta", "/v1/models", "/api/v1beta/v1/models"),
            ("/api/v1beta", "/api/v1beta/x", "/api/v1beta/api/v1beta/x"),
            ("/v1beta1", "/v1beta1", "/v1beta1"),
            ("/v3alpha", "/v3alpha/x", "/v3alpha/x"),
            ("/v12alpha34", "/v12alpha34/x", "/v12alpha34/x"),
            ("/v", "/v/x", "/v/v/x"),
            ("/vbeta", "/vbeta/x", "/vbeta/vbeta/x"),
            ("/v1gamma", "/v1gamma/x", "/v1gamma/v1gamma/x"),
            ("/v1beta1a", "/v1beta1a/x", "/v1beta1a/v1beta1a/x"),
            ("/v1.0", "/v1.0/x", "/v1.0/v1.0/x"),
            ("/1", "/1/x", "/1/1/x"),
            ("/api", "/api/x", "/api/api/x"),
            ("/x/v1/api", "/v1/y", "/x/v1/api/v1/y"),
            ("", "/v1/x", "/v1/x"),
            ("", "/a%2fb/c;d/", "/a%2fb/c;d/"),
            ("", "/", "/"),
            ("", "", "/"),
        ] {
            assert_eq!(target(base, rest), want, "{base} {rest}");
        }
    }

    /// What is said where there was something to drop: `key`, `api key` and `token`.
    fn kept(text: &str) -> Option<Cow<'_, str>> {
        query(Some(text), |name| matches!(name, "key" | "api key" | "token"))
    }

    #[test]
    fn dropped_pairs_go_and_the_others_stay_as_they_came() {
        for (text, want) in [
            ("", Some("")),
            ("a=1&b=2", Some("a=1&b=2")),
            ("key=k", None),
            ("key", None),
            ("key=&token=t", None),
            ("a=1&key=k&b=2", Some("a=1&b=2")),
            ("key=k&a=1", Some("a=1")),
            ("a=1&key=k", Some("a=1")),
            ("a=1&key=k&key=l", Some("a=1")),
            ("%6bey=k&a", Some("a")),
            ("k%65y&a", Some("a")),
            ("api+key=k&api%20key=k&a", Some("a")),
            ("api%2bkey=k&a", Some("api%2bkey=k&a")),
            ("key%3Dk=x", Some("key%3Dk=x")),
            ("key%26=x", Some("key%26=x")),
            ("%256bey=k", Some("%256bey=k")),
            ("KEY=k&keys=k&xkey=k", Some("KEY=k&keys=k&xkey=k")),
            ("a=key=k&=key", Some("a=key=k&=key")),
            ("&&a&&key=k&&", Some("&&a&&&")),
            ("key=k&", Some("")),
            ("b=2&key&a=1&b=1", Some("b=2&a=1&b=1")),
            ("a=%zz&b=%&key=%zz&c=+%20", Some("a=%zz&b=%&c=+%20")),
            ("%ff=1&key=k", Some("%ff=1")),
        ] {
            assert_eq!(kept(text).as_deref(), want, "{text}");
        }
        assert_eq!(query(None, |_| true), None);
        assert_eq!(query(Some("&"), |_| true).as_deref(), Some("&"), "an empty pair has no name");
    }

    #[test]
    fn what_is_not_changed_is_not_copied() {
        assert!(matches!(kept("a=1&&b=%zz"), Some(Cow::Borrowed("a=1&&b=%zz"))));
        assert!(matches!(target("", "/v1/x"), Cow::Borrowed("/v1/x")));
        assert!(matches!(target("/v1", "/v1/x"), Cow::Borrowed("/v1/x")));
    }

    const AT_THE_PROVIDER: &[&str] = &[
        "",
        "/",
        "/v1/voices?x=1#y",
        "voices",
        "../voices",
        "./a:b",
        "/a:b",
        "?q",
        "?q=https://evil",
        "?//evil",
        "#f",
        "#https://evil",
        "/https://evil",
        "/redirect?to=//evil",
        "/a//evil",
        "/%09/evil",
        "/%5cevil",
        "a@evil/",
        "https://api.example.com",
        "https://api.example.com/",
        "https://api.example.com?q",
        "https://api.example.com#f",
        "https://api.example.com/v1/x?y@z#w",
        "https://api.example.com//evil",
        "HTTPS://API.Example.COM/x",
        "https://api.example.com:443/x",
    ];

    const AWAY: &[&str] = &[
        "//evil",
        "//evil/x",
        "//api.example.com/x",
        "///evil",
        "////evil",
        "//",
        "https://evil",
        "https://evil/api.example.com",
        "https://evil?api.example.com",
        "https://evil#api.example.com",
        "https://api.example.com.evil",
        "https://api.example.com.",
        "https://evil.api.example.com",
        "https://xapi.example.com",
        "https://example.com",
        "https://api.example.com:80/",
        "https://api.example.com:8443/",
        "https://api.example.com:0443/",
        "https://api.example.com:/",
        "https://api.example.com:443:443/",
        "https://api.example.com%2eevil/",
        "https://%61pi.example.com/",
        "http://api.example.com/",
        "http://api.example.com:443/",
        "HTTP://api.example.com/",
        "http://evil/",
        "https://user@api.example.com/",
        "https://user:secret@api.example.com/",
        "https://@api.example.com/",
        "https://api.example.com@evil/",
        "https://api.example.com:443@evil/",
        "https:evil",
        "https:/evil",
        "https:///evil",
        "https:///api.example.com",
        "https:api.example.com",
        "https:/api.example.com",
        "https:",
        "https://",
        "http:",
        "wss://api.example.com/",
        "ftp://api.example.com/",
        "javascript:alert(1)",
        "data:text/html,x",
        "mailto:a@api.example.com",
        "a:b",
        "1:2",
        ":",
        "://evil",
        "evil:443",
        "/\\evil",
        "\\/evil",
        "\\\\evil",
        "https:\\\\evil",
        "https://api.example.com\\@evil",
        "/a\\b",
        "\t//evil",
        " //evil",
        " /voices",
        "/voices ",
        "/a b",
        "/\t/evil",
        "/\n/evil",
        "ht\ttps://evil",
        "https\t://evil",
        "https://api.example.com\t.evil/",
        "\u{0}//evil",
        "/voices\r\nx: y",
        "/voices\u{7f}",
        "\u{a0}//evil",
        "/caf\u{e9}",
        "https://\u{ff41}pi.example.com/",
    ];

    #[test]
    fn a_redirect_stays_or_leads_away() {
        let stays = |location| location_stays(location, "api.example.com", true);
        for location in AT_THE_PROVIDER {
            assert!(stays(location), "{location:?}");
        }
        for location in AWAY {
            assert!(!stays(location), "{location:?}");
        }
    }

    #[test]
    fn a_default_port_may_be_written_and_no_redirect_gives_up_tls() {
        for (location, authority, tls, want) in [
            ("https://host/", "host:443", true, true),
            ("https://host:443/", "host:443", true, true),
            ("https://host:80/", "host:80", true, true),
            ("https://host/", "host:80", true, false),
            ("https://host:8443/", "host:8443", true, true),
            ("https://host/", "host:8443", true, false),
            ("https://HOST/", "Host", true, true),
            ("https://[::1]:443/", "[::1]", true, true),
            ("https://[::1]/", "[::1]:443", true, true),
            ("https://[::443]/", "[::443]", true, true),
            ("https://[::1]:8443/", "[::1]:8443", true, true),
            ("https://[::1]/", "[::2]", true, false),
            ("http://host/", "host", false, true),
            ("http://host:80/", "host", false, true),
            ("http://host/", "host:80", false, true),
            ("http://host:443/", "host", false, false),
            ("http://host:8000/", "host:8000", false, true),
            ("http://host/", "host:8000", false, false),
            // An upgrade stays, to the default port or on the port it has.
            ("https://host/", "host", false, true),
            ("https://host:443/", "host:80", false, true),
            ("https://host:80/", "host", false, false),
            ("https://host:8000/", "host:8000", false, true),
            ("http://host:80/", "host:80", true, false),
            ("/x", "host", false, true),
            ("//host/x", "host", false, false),
        ] {
            assert_eq!(location_stays(location, authority, tls), want, "{location} {authority} {tls}");
        }
    }

    proptest! {
        #[test]
        fn the_path_ends_as_the_client_wrote_it(
            base in "(/(v1|v2beta|api)){0,3}",
            rest in "((/(v1|v2beta|api|x)){1,4}/?)?",
        ) {
            let path = target(&base, &rest);
            prop_assert!(path.ends_with(&rest) && path.starts_with('/'));
            let swallowed = (base.len() + rest.len()).saturating_sub(path.len());
            prop_assert!(swallowed == 0 || rest[..swallowed] == base[base.len() - swallowed..]);
        }

        #[test]
        fn what_is_kept_is_what_is_not_dropped(
            pairs in proptest::collection::vec("(a|key|k%65y|)(=[a-z%+=]{0,3})?", 1..6),
        ) {
            let stays = |pair: &&str| !matches!(pair.split('=').next(), Some("key" | "k%65y"));
            let want: Vec<&str> = pairs.iter().map(String::as_str).filter(stays).collect();
            let text = pairs.join("&");
            prop_assert_eq!(kept(&text), (!want.is_empty()).then(|| want.join("&").into()));
        }

        #[test]
        fn what_names_a_host_leads_away_unless_it_is_the_providers(
            location in "(https?:|[a-z]:|//|/|\\\\|[a-z.@:]|\t| ){0,6}", tls in any::<bool>(),
        ) {
            // One reading more lenient than any client's: `\` is a slash, and what may not stand there is skipped.
            let read: String = location.replace('\\', "/").split(['\t', ' ']).collect();
            let first = read.split('/').next().unwrap_or_default();
            let names_a_host = read.starts_with("//") || first.contains(':');
            prop_assert!(!names_a_host || !location_stays(&location, "api.example.com", tls));
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), base in any::<String>(), tls in any::<bool>()) {
            let _ = (target(&base, &text), kept(&text), location_stays(&text, &base, tls));
        }
    }

    const CONFIG: &str = r#"
        [providers.eleven]
        kind = "elevenlabs"
        [providers.odd]
        kind = "http"
        base_url = "http://odd.test/api/v2"
        credential = { query = "sig" }
        [paths."/few"]
        allow = ["eleven/"]
        [paths."/some"]
        allow = ["eleven/one-model"]
    "#;

    fn caller(key: &str, user_path: &str) -> Caller {
        let config = format!("{CONFIG}[keys.k]\nsha256 = \"HASH:k\"\n{key}\n");
        let key = Arc::clone(&testing::settings(&config).keys[0]);
        Caller { key, user_path: user_path.to_owned(), spelling: "bearer" }
    }

    #[test]
    fn a_path_names_a_provider_or_nothing_goes_on() {
        let state = testing::state(CONFIG);
        let invalid = Err((400, "invalid_path"));
        let unknown = Err((404, "unknown_provider"));
        for (host, path, want) in [
            (None, "/p/eleven/v1/x%2Fy", Ok(("eleven", "/v1/x%2Fy"))),
            (None, "/p/eleven", Ok(("eleven", ""))),
            (None, "/p/eleven/", Ok(("eleven", "/"))),
            (None, "/p/", unknown),
            (None, "/p/Eleven/v1", unknown),
            (None, "/p/eleven:443/v1", unknown),
            (None, "/p/x@eleven/v1", unknown),
            (None, "/p/eleven./v1", unknown),
            (None, "/p/%65leven/v1", unknown),
            (None, "/p/eleven%2Fv1/x", invalid),
            (None, "/p/eleven%5cv1/x", invalid),
            (None, "/p//eleven/v1", invalid),
            (None, "/p/eleven/../odd/v1", invalid),
            (None, "/p/eleven/%2e%2e/odd", invalid),
            (None, "/p/../v1/models", invalid),
            (Some("eleven"), "/v1/x", Ok(("eleven", "/v1/x"))),
            (Some("eleven"), "/p/odd/x", Ok(("eleven", "/p/odd/x"))),
            (Some("eleven"), "/v1/../x", invalid),
        ] {
            let found = place(&state, host, path).map(|(provider, rest)| (provider.name.as_str(), rest));
            assert_eq!(found.map_err(|refusal| (refusal.status(), refusal.code())), want, "{host:?} {path}");
        }
    }

    #[test]
    fn a_key_goes_where_it_may_go() {
        let state = testing::state(CONFIG);
        let yes = "passthrough = true\n";
        let speech = "passthrough_allow = [\"eleven/v1/text-to-speech/**\", \"*/v1/models\"]";
        let not_delete = "passthrough_deny = [\"*/v1/voices/**\"]";
        let with = |more: &str| format!("{yes}{more}");
        for (key, user_path, path, may) in [
            (String::new(), "/", "/v1/models", false),
            (with(""), "/", "/v1/anything", true),
            (with("allow = [\"eleven/\"]"), "/", "/v1/x", true),
            (with("allow = [\"/\"]"), "/", "/v1/x", true),
            (with("allow = [\"eleven/one-model\"]"), "/", "/v1/x", false),
            (with("allow = [\"odd/\"]"), "/", "/v1/x", false),
            (with(speech), "/", "/v1/text-to-speech/abc/stream", true),
            (with(speech), "/", "/v1/models", true),
            (with(speech), "/", "/v1/voices", false),
            (with(&format!("allow = [\"odd/\"]\n{speech}")), "/", "/v1/models", true),
            (with(not_delete), "/", "/v1/models", true),
            (with(not_delete), "/", "/v1/Voices%2Fabc", false),
            (with(""), "/few/a", "/v1/x", true),
            (with(""), "/some", "/v1/x", false),
            (with(speech), "/some", "/v1/models", false),
        ] {
            let eleven = state.provider("eleven").expect("there");
            let got = permit(&state, &caller(&key, user_path), eleven, path, path);
            assert_eq!(got.is_ok(), may, "{key} {user_path} {path}");
            assert!(got.err().is_none_or(|refusal| (refusal.status(), refusal.code()) == (403, "forbidden")));
        }
    }

    #[test]
    fn what_goes_up_is_what_came_without_credentials() {
        let state = testing::state(CONFIG);
        let provider = |name| state.provider(name).expect("there");
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("Token, k"));
        let pass = |name, query, upgrade| super::pass(provider(name), "/v1/x", query, &headers, upgrade);
        assert_eq!(pass("eleven", None, false).target, "/v1/x");
        assert_eq!(pass("eleven", Some("b=%2f&token=k&a"), false).target, "/v1/x?b=%2f&a");
        assert_eq!(pass("eleven", Some("sig=1"), false).target, "/v1/x?sig=1");
        assert_eq!(pass("odd", Some("sig=1&key=k"), false).target, "/v1/x", "its own credential is ours to say");
        assert_eq!(
            (pass("eleven", None, false).spoken, pass("eleven", None, true).spoken),
            (None, Some(HeaderValue::from_static("Token")))
        );
    }

    #[test]
    fn an_answer_keeps_where_it_leads_and_what_is_spoken() {
        let base = BaseUrl { tls: true, host: "api.test".into(), port: 443, path: String::new() };
        let pass = Pass { target: "/".into(), upgrade: true, spoken: Some(HeaderValue::from_static("token")) };
        let kept = |status: u16, lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let status = StatusCode::from_u16(status).expect("a status");
            let kept = pass.kept(status, &headers, &base);
            kept.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect::<Vec<_>>()
        };
        assert_eq!(kept(302, &[("location", "/v1/y")]), ["location: /v1/y"]);
        assert!(kept(302, &[("location", "https://evil.test/")]).is_empty());
        assert!(kept(302, &[("location", "/a"), ("location", "/b")]).is_empty(), "which one is it?");
        let switched = ["connection: Upgrade", "upgrade: websocket"];
        assert_eq!(kept(101, &[]), [&switched[..], &["sec-websocket-protocol: token"]].concat());
        assert_eq!(kept(101, &[("sec-websocket-protocol", "chat")]), switched, "the provider has chosen");
        assert!(kept(200, &[("upgrade", "h2c")]).is_empty());
    }
}
