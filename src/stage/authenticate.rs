//! Headers → [`Caller`]: who asks, and below which path.
//!
//! Every spelling of a credential is looked at; two that differ are refused. Unknown, expired and disabled keys
//! get one and the same answer, after the same work.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use jiff::Timestamp;

use crate::config::settings::Key;
use crate::config::values::normalise_user_path;
use crate::refusal::Refusal;
use crate::state::{State, is_below};
use crate::surface::query_values;
use crate::units::KeyHash;

/// Who is asking.
#[derive(Debug, Clone)]
pub struct Caller {
    pub key: Arc<Key>,
    /// The path the request is for: the key's own, or one below it that a header named.
    pub user_path: String,
    /// How the credential was spelled, for the audit record.
    pub spelling: &'static str,
}

/// Headers that carry a credential as they are.
static BARE_HEADERS: [(&str, HeaderName); 4] = [
    ("api-key", HeaderName::from_static("api-key")),
    ("x-api-key", HeaderName::from_static("x-api-key")),
    ("xi-api-key", HeaderName::from_static("xi-api-key")),
    ("x-goog-api-key", HeaderName::from_static("x-goog-api-key")),
];
/// Query parameters that carry one for clients that cannot set a header; only passthrough takes them.
pub const QUERY_CREDENTIALS: [&str; 6] = ["key", "token", "api-key", "api_key", "access_token", "xi-api-key"];
/// Before a credential in a sub-protocol, as OpenAI's browser clients send it.
const SUB_PROTOCOL: &str = "openai-insecure-api-key.";
/// Sub-protocols behind which a credential stands as one of its own, as Deepgram's browser clients send it.
const SCHEMES: [&str; 2] = ["token", "bearer"];
/// What clients of GoModel call the user path header.
pub const USER_PATH_ALIAS: HeaderName = HeaderName::from_static("x-gomodel-user-path");

/// A request that is not let in, and whose it was, if that is known: for the audit record, never for the answer.
#[derive(Debug)]
pub struct Denied {
    pub refusal: Refusal,
    pub caller: Option<Caller>,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, caller: None }
    }
}

/// Where a credential may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    Headers,
    /// Also in the query and in a sub-protocol: for clients that cannot set a header.
    Anywhere,
}

/// Finds the caller. `now` is the wall clock, which a key's expiry is read by.
pub fn caller(
    state: &State,
    headers: &HeaderMap,
    query: &str,
    places: Places,
    now: Timestamp,
) -> Result<Caller, Denied> {
    let (key, spelling) = match &state.anonymous {
        Some(key) => (key, "none"),
        None => {
            let (presented, spelling) = credential(headers, query, places)?;
            (state.key(&KeyHash::of(&presented)).ok_or(Refusal::InvalidKey)?, spelling)
        }
    };
    admit(state, key, spelling, headers, now)
}

/// Lets a known key in, if it may come in now, for the path that the headers name.
pub fn admit(
    state: &State,
    key: &Arc<Key>,
    spelling: &'static str,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Caller, Denied> {
    let mut caller = Caller { user_path: key.user_path.clone(), key: Arc::clone(key), spelling };
    let expired = key.expires.is_some_and(|expires| expires <= now);
    if expired | key.disabled {
        return Err(Denied { refusal: Refusal::InvalidKey, caller: Some(caller) });
    }
    match user_path(state, headers, key) {
        Ok(None) => Ok(caller),
        Ok(Some(path)) => {
            caller.user_path = path;
            Ok(caller)
        }
        Err(refusal) => Err(Denied { refusal, caller: Some(caller) }),
    }
}

/// Whether a header carries a credential, in any spelling: none of them goes upstream.
pub fn is_credential(name: &str) -> bool {
    matches!(name, "authorization" | "proxy-authorization" | "cookie")
        || BARE_HEADERS.iter().any(|(bare, _)| *bare == name)
}

/// What a client offers to speak, one by one, in their order.
pub fn sub_protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).filter(|offer| !offer.is_empty())
}

/// The credentials among sub-protocols, and the offers that are left without it: those that only go with a credential
/// are left away too.
pub fn in_sub_protocols<'o>(offers: &[&'o str]) -> (Vec<&'o str>, Vec<&'o str>) {
    if let [scheme, key, rest @ ..] = offers
        && is_scheme(scheme)
    {
        return (vec![*key], rest.to_vec());
    }
    let keys = offers.iter().filter_map(|offer| offer.strip_prefix(SUB_PROTOCOL)).collect();
    let is_left = |offer: &&&str| {
        !["openai-insecure-api-key.", "openai-organization.", "openai-project."]
            .iter()
            .any(|prefix| offer.starts_with(prefix))
    };
    (keys, offers.iter().filter(is_left).copied().collect())
}

/// Whether a sub-protocol only says that a credential follows.
pub fn is_scheme(offer: &str) -> bool {
    SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(offer))
}

type Presented<'h> = (Cow<'h, [u8]>, &'static str);

fn credential<'h>(headers: &'h HeaderMap, query: &str, places: Places) -> Result<Presented<'h>, Refusal> {
    let found = in_headers(headers)?.map(|(key, spelling)| (Cow::Borrowed(key), spelling));
    let found = if places == Places::Anywhere { elsewhere(found, headers, query)? } else { found };
    let is_in_query = || QUERY_CREDENTIALS.iter().any(|name| query_values(query, name).next().is_some());
    if places == Places::Headers && !query.is_empty() && is_in_query() {
        return Err(Refusal::MissingKey(
            "An API key in the URL is not accepted here; send it as `Authorization: Bearer …`.",
        ));
    }
    found.ok_or(Refusal::MissingKey("You didn't provide an API key. Send it as `Authorization: Bearer …`."))
}

/// Takes a credential from where browsers put it. All that are there have to be the same.
fn elsewhere<'h>(
    mut found: Option<Presented<'h>>,
    headers: &'h HeaderMap,
    query: &str,
) -> Result<Option<Presented<'h>>, Refusal> {
    let offers: Vec<&str> = sub_protocols(headers).collect();
    let offered = in_sub_protocols(&offers).0.into_iter().map(|key| (Cow::Borrowed(key.as_bytes()), "sub_protocol"));
    let names: &[&str] = if query.is_empty() { &[] } else { &QUERY_CREDENTIALS };
    let in_query = names.iter().flat_map(|name| query_values(query, name));
    let in_query = in_query.map(|key| (Cow::Owned(key.into_bytes()), "query"));
    for (key, spelling) in offered.chain(in_query) {
        match &found {
            None => found = Some((key, spelling)),
            Some((first, _)) if *first == key => {}
            Some(_) => return Err(Refusal::ConflictingKeys),
        }
    }
    Ok(found)
}

fn in_headers(headers: &HeaderMap) -> Result<Option<(&[u8], &'static str)>, Refusal> {
    let mut found: Option<(&[u8], &'static str)> = None;
    for (name, value) in headers {
        let (presented, spelling) = if name == header::AUTHORIZATION {
            scheme(value.as_bytes())
        } else if let Some((spelling, _)) = BARE_HEADERS.iter().find(|(_, bare)| bare == name) {
            (value.as_bytes(), *spelling)
        } else {
            continue;
        };
        match found {
            None => found = Some((presented, spelling)),
            Some((first, _)) if first == presented => {}
            Some(_) => return Err(Refusal::ConflictingKeys),
        }
    }
    Ok(found)
}

/// The credential of an `Authorization` header. Another scheme's text is no key of ours, and is looked up as one.
fn scheme(value: &[u8]) -> (&[u8], &'static str) {
    for (scheme, spelling) in [("bearer ", "bearer"), ("token ", "token")] {
        if let Some((head, key)) = value.split_at_checked(scheme.len())
            && head.eq_ignore_ascii_case(scheme.as_bytes())
        {
            return (key.trim_ascii(), spelling);
        }
    }
    (value, "authorization")
}

/// The path a header names, which must be the key's own or below it.
fn user_path(state: &State, headers: &HeaderMap, key: &Key) -> Result<Option<String>, Refusal> {
    let own = &state.settings.server.user_path_header;
    let mut named: Option<String> = None;
    for value in headers.get_all(own).iter().chain(headers.get_all(USER_PATH_ALIAS)) {
        let path = value
            .to_str()
            .ok()
            .and_then(normalise_user_path)
            .ok_or(Refusal::InvalidUserPath("it must be `/segments` without `.`, `..` or `:`"))?;
        if named.as_ref().is_some_and(|first| *first != path) {
            return Err(Refusal::InvalidUserPath("it is given twice and differently"));
        }
        named = Some(path);
    }
    match named {
        None => Ok(None),
        Some(path) if is_below(&path, &key.user_path) => Ok(Some(path)),
        Some(_) => Err(Refusal::InvalidUserPath("it is not below the key's own path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header value"));
        }
        headers
    }

    fn state() -> State {
        testing::state(
            r#"
            [keys.mobile]
            sha256 = "HASH:omx_live_1"
            user_path = "/team/mobile"
            [keys.root]
            sha256 = "HASH:sk_gom_2"
            [keys.old]
            sha256 = "HASH:old"
            expires = "2026-01-01T00:00:00Z"
            [keys.off]
            sha256 = "HASH:off"
            disabled = true
            "#,
        )
    }

    fn ask(pairs: &[(&'static str, &str)], query: &str) -> Result<(String, String, &'static str), Refusal> {
        let now = "2026-11-20T12:00:00Z".parse().expect("a time");
        let caller = caller(&state(), &headers(pairs), query, Places::Headers, now).map_err(|denied| denied.refusal)?;
        Ok((caller.key.name.clone(), caller.user_path, caller.spelling))
    }

    #[test]
    fn every_spelling_of_a_key_is_understood() {
        for (pairs, want) in [
            (&[("authorization", "Bearer omx_live_1")][..], "bearer"),
            (&[("authorization", "bearer  omx_live_1 ")], "bearer"),
            (&[("authorization", "Token omx_live_1")], "token"),
            (&[("api-key", "omx_live_1")], "api-key"),
            (&[("x-api-key", "omx_live_1")], "x-api-key"),
            (&[("xi-api-key", "omx_live_1")], "xi-api-key"),
            (&[("x-goog-api-key", "omx_live_1")], "x-goog-api-key"),
            (&[("authorization", "Bearer omx_live_1"), ("api-key", "omx_live_1")], "bearer"),
        ] {
            assert_eq!(ask(pairs, ""), Ok(("mobile".into(), "/team/mobile".into(), want)), "{pairs:?}");
        }
    }

    #[test]
    fn browsers_put_a_key_where_they_can_and_only_where_it_is_looked_for() {
        const PROTOCOL: &str = "sec-websocket-protocol";
        let anywhere = |pairs: &[(&'static str, &str)], query| {
            let now = "2026-11-20T12:00:00Z".parse().expect("a time");
            let caller = caller(&state(), &headers(pairs), query, Places::Anywhere, now);
            caller.map(|caller| caller.spelling).map_err(|denied| denied.refusal)
        };
        let bearer = ("authorization", "Bearer omx_live_1");
        for (pairs, query, want) in [
            (&[][..], "x=1&key=omx_live_1", Ok("query")),
            (&[], "token=omx%5Flive_1", Ok("query")),
            (&[], "api-key=omx_live_1&key=omx_live_1", Ok("query")),
            (&[], "xi-api-key=omx_live_1", Ok("query")),
            (&[bearer], "token=omx_live_1", Ok("bearer")),
            (&[bearer], "token=another", Err(Refusal::ConflictingKeys)),
            (&[], "key=omx_live_1&token=another", Err(Refusal::ConflictingKeys)),
            (&[(PROTOCOL, "realtime, openai-insecure-api-key.omx_live_1, openai-beta.x")], "", Ok("sub_protocol")),
            (&[(PROTOCOL, "Token,omx_live_1")], "", Ok("sub_protocol")),
            (&[(PROTOCOL, "token"), (PROTOCOL, "omx_live_1")], "", Ok("sub_protocol")),
            (&[bearer, (PROTOCOL, "token, another")], "", Err(Refusal::ConflictingKeys)),
            (&[bearer, (PROTOCOL, "chat, superchat")], "", Ok("bearer")),
            (&[(PROTOCOL, "token, wrong")], "", Err(Refusal::InvalidKey)),
            (
                &[(PROTOCOL, "openai-insecure-api-key.omx_live_1, openai-insecure-api-key.another")],
                "",
                Err(Refusal::ConflictingKeys),
            ),
        ] {
            assert_eq!(anywhere(pairs, query), want, "{pairs:?} {query}");
            if !pairs.iter().any(|(name, _)| *name == "authorization") {
                assert!(ask(pairs, query).is_err(), "elsewhere it is none: {pairs:?} {query}");
            }
        }
    }

    #[test]
    fn a_sub_protocol_that_is_a_credential_is_not_spoken() {
        for (offers, key, left) in [
            (
                &["realtime", "openai-insecure-api-key.k", "openai-organization.o", "v1"][..],
                &["k"][..],
                &["realtime", "v1"][..],
            ),
            (&["token", "k"], &["k"], &[]),
            (&["bearer", "k"], &["k"], &[]),
            (&["token", "k", "x"], &["k"], &["x"]),
            (&["token"], &[], &["token"]),
            (&["chat"], &[], &["chat"]),
            (&[], &[], &[]),
        ] {
            assert_eq!(in_sub_protocols(offers), (key.to_vec(), left.to_vec()), "{offers:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_as_such() {
        for (pairs, query) in [
            (&[][..], ""),
            (&[("authorization", "Bearer ")], ""),
            (&[("authorization", "Bearer omx_live_2")], ""),
            (&[("authorization", "Bearer OMX_LIVE_1")], ""),
            (&[("authorization", "Basic omx_live_1")], ""),
            (&[("authorization", "omx_live_1x")], ""),
            (&[("authorization", "Bearer omx_live_1, Bearer omx_live_1")], ""),
            (&[("authorization", "Bearer old")], ""),
            (&[("authorization", "Bearer off")], ""),
            (&[("cookie", "authorization=omx_live_1")], ""),
            (&[], "key=omx_live_1"),
            (&[("authorization", "Bearer omx_live_1")], "api-key=omx_live_1"),
            (&[], "tok%65n=omx_live_1"),
            (&[("authorization", "Bearer omx_live_1"), ("x-api-key", "sk_gom_2")], ""),
            (&[("authorization", "Bearer omx_live_1"), ("authorization", "Bearer wrong")], ""),
        ] {
            let refusal = ask(pairs, query).expect_err("refused");
            assert_eq!(refusal.answer().0, 401, "{pairs:?} {query}");
            assert_eq!(refusal.code(), "invalid_api_key");
        }
        let bodies: Vec<_> = ["unknown", "old", "off"]
            .map(|key| ask(&[("api-key", key)], "").expect_err("refused").body())
            .into_iter()
            .collect();
        let expired = caller(&state(), &headers(&[("api-key", "old")]), "", Places::Headers, Timestamp::MAX)
            .expect_err("refused");
        assert_eq!(expired.caller.map(|caller| caller.key.name.clone()).as_deref(), Some("old"), "the record knows");
        assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "one answer, whatever is wrong with the key");
    }

    #[test]
    fn a_header_may_name_a_path_below_the_keys_own() {
        let mobile = ("authorization", "Bearer omx_live_1");
        let root = ("authorization", "Bearer sk_gom_2");
        for (pairs, want) in [
            (&[mobile, ("x-aulos-user-path", "/team/mobile/ios")][..], Some("/team/mobile/ios")),
            (&[mobile, ("X-GoModel-User-Path", "team//mobile/ios/")], Some("/team/mobile/ios")),
            (&[root, ("x-gomodel-user-path", "/anything")], Some("/anything")),
            (&[mobile, ("x-aulos-user-path", "/team")], None),
            (&[mobile, ("x-aulos-user-path", "/team/mobile-2")], None),
            (&[mobile, ("x-aulos-user-path", "/team/mobile/../root")], None),
            (&[mobile, ("x-aulos-user-path", "/team/mobile/a"), ("x-gomodel-user-path", "/team/mobile/b")], None),
        ] {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (lower(name), *value)).collect();
            match (ask(&pairs, ""), want) {
                (Ok((_, path, _)), Some(want)) => assert_eq!(path, want),
                (Err(refusal), None) => assert_eq!(refusal.code(), "invalid_user_path"),
                (got, _) => unreachable!("{pairs:?}: {got:?}"),
            }
        }
    }

    fn lower(name: &str) -> &'static str {
        if name.eq_ignore_ascii_case("x-gomodel-user-path") { "x-gomodel-user-path" } else { known(name) }
    }

    fn known(name: &str) -> &'static str {
        ["authorization", "x-aulos-user-path"].into_iter().find(|known| *known == name).expect("a header of the table")
    }

    #[test]
    fn without_keys_only_the_insecure_are_served() {
        let settings = || testing::settings("");
        let now = Timestamp::UNIX_EPOCH;
        let insecure = State::new(settings(), true);
        assert!(
            caller(&insecure, &HeaderMap::new(), "", Places::Headers, now)
                .is_ok_and(|caller| caller.key.name == "anonymous")
        );
        let closed = State::new(settings(), false);
        assert_eq!(
            caller(&closed, &HeaderMap::new(), "", Places::Headers, now).expect_err("refused").refusal.status(),
            401
        );
    }
}
