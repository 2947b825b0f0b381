//! The client's head → the provider's: path, host, credential, length. What belongs between the client and us
//! stays here.

use http::{HeaderMap, HeaderValue, Method, header};
use pingora::http::RequestHeader;

use crate::config::settings::{Provider, ProviderKey};
use crate::provider::{Credential, Target};
use crate::refusal::Refusal;
use crate::stage::authenticate::{QUERY_CREDENTIALS, USER_PATH_ALIAS, in_sub_protocols, is_credential, sub_protocols};
use crate::stage::hops;
use crate::stage::passthrough::Pass;
use crate::stage::route::Leg;
use crate::state::State;

/// Everything beginning with this is between clients and us.
const OWN_PREFIX: &str = "x-aulos-";

/// Makes `head`, the client's, into what the provider gets. `key`: which of its keys is sent. `length`: of the body,
/// where it is known.
///
/// The head is taken apart and put together again: its parts are cheaper to change than Pingora's head, which keeps
/// the case of every name beside it.
pub fn head(
    head: &mut RequestHeader,
    state: &State,
    leg: &Leg,
    key: Option<&ProviderKey>,
    length: Option<u64>,
) -> Result<(), Refusal> {
    let provider = &leg.provider;
    let mut parts = take(head);
    let target = target(provider, &leg.target, parts.uri.query());
    let headers = &mut parts.headers;
    let user_path_header = &state.settings.server.user_path_header;
    hops::remove(headers, |name| is_ours(name) || is_of_a_page(name) || name == user_path_header.as_str());
    headers.insert(header::HOST, provider.host.clone());
    // What passes is looked at for an echoed credential, which no coding may hide.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    match length {
        Some(length) => headers.insert(header::CONTENT_LENGTH, length.into()),
        None => headers.remove(header::CONTENT_LENGTH),
    };
    parts.uri = signed(headers, target, key).parse().map_err(|_| Refusal::Internal)?;
    *head = parts.into();
    Ok(())
}

/// The same for what passes through: everything stays but for what is between the client and us.
pub fn passed(
    head: &mut RequestHeader,
    state: &State,
    leg: &Leg,
    key: Option<&ProviderKey>,
    pass: &Pass,
) -> Result<(), Refusal> {
    let mut parts = take(head);
    let headers = &mut parts.headers;
    hops::strip(headers);
    let user_path_header = &state.settings.server.user_path_header;
    hops::remove(headers, |name| is_ours(name) || name == user_path_header.as_str());
    headers.insert(header::HOST, leg.provider.host.clone());
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    offer(headers)?;
    if headers.get(header::REFERER).is_some_and(|page| page.as_bytes().contains(&b'?')) {
        // Where the key may stand that this request was made with.
        headers.remove(header::REFERER);
    }
    let is_for_bodies = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
        || headers.contains_key(header::TRANSFER_ENCODING);
    if has_body && !is_for_bodies {
        // A provider that does not read it must not take it for the next request, which may be another caller's.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if pass.upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    parts.uri = signed(headers, pass.target.clone(), key).parse().map_err(|_| Refusal::Internal)?;
    *head = parts.into();
    Ok(())
}

/// Leaves what the client offers to speak, without its credential.
fn offer(headers: &mut HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        let offers: Vec<&str> = sub_protocols(headers).collect();
        let left = in_sub_protocols(&offers).1.join(", ");
        let left = HeaderValue::from_str(&left).map_err(|_| Refusal::Internal)?;
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if !left.is_empty() {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, left);
        }
    }
    Ok(())
}

/// Puts the credential where the provider looks for it; gives the target with it.
fn signed(headers: &mut HeaderMap, target: String, key: Option<&ProviderKey>) -> String {
    match key.map(|key| &key.credential) {
        None => target,
        Some(Credential::Header(name, value)) => {
            headers.insert(name.clone(), value.clone());
            target
        }
        Some(Credential::Query(pair)) if target.contains('?') => format!("{target}&{pair}"),
        Some(Credential::Query(pair)) => format!("{target}?{pair}"),
    }
}

fn take(head: &mut RequestHeader) -> http::request::Parts {
    let (empty, ()) = http::Request::new(()).into_parts();
    std::mem::replace(head, empty.into()).into()
}

/// Headers that carry a credential, say who we or the client are, or choose what is the operator's to choose: whose account
/// is used at the provider, and another place than the path's.
fn is_ours(name: &str) -> bool {
    is_credential(name)
        || name.starts_with(OWN_PREFIX)
        || name.starts_with("x-forwarded-")
        || matches!(
            name,
            "expect"
                | "forwarded"
                | "openai-organization"
                | "openai-project"
                | "set-cookie"
                | "via"
                | "x-goog-user-project"
                | "x-host"
                | "x-original-host"
                | "x-original-url"
                | "x-real-ip"
                | "x-rewrite-url"
        )
        || name == USER_PATH_ALIAS.as_str()
}

/// Headers of browsers: a page that may ask us is none of the provider's business, nor what it offers to speak.
fn is_of_a_page(name: &str) -> bool {
    matches!(name, "origin" | "referer" | "sec-websocket-protocol")
}

/// The path at the provider, and the client's query without what was meant for us, or is ours to say.
pub fn target(provider: &Provider, target: &Target, query: Option<&str>) -> String {
    let (base, own) = (&provider.base_url.path, target.query.as_ref());
    let is_the_providers = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        let is_ours = name == "model" || QUERY_CREDENTIALS.contains(&name.as_ref());
        !pair.is_empty()
            && !is_ours
            && !provider.placement.is_query(&name)
            && own.is_none_or(|(own, _)| !name.eq_ignore_ascii_case(own))
    };
    let said = own.and_then(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    let kept = query.unwrap_or_default().split('&').filter(|pair| is_the_providers(pair));
    let query: Vec<&str> = kept.chain(said.as_deref()).collect();
    let path = &target.path;
    if query.is_empty() { format!("{base}{path}") } else { format!("{base}{path}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::route::{Asked, plan};
    use crate::stage::testing;
    use crate::surface::Endpoint;

    fn rewritten(config: &str, model: &str, target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let state = State::new(testing::settings(config), true);
        let asked = Asked { model, provider: None, endpoint: Endpoint::Speech };
        let plan = plan(&state, &testing::anyone(&state), asked).expect("a route");
        let mut request = RequestHeader::build("POST", target.as_bytes(), None).expect("a head");
        for (name, value) in headers {
            request.append_header(*name, *value).expect("a header");
        }
        let leg = plan.first();
        head(&mut request, &state, leg, leg.provider.keys.first(), Some(7)).expect("rewritten");
        request
    }

    #[test]
    fn nothing_of_the_clients_credentials_goes_up() {
        let request = rewritten(
            "",
            "openai/tts-1",
            "/v1/audio/speech?model=x&api-version=1&key=k&tok%65n=t",
            &[
                ("host", "gateway"),
                ("authorization", "Bearer client"),
                ("authorization", "Bearer client"),
                ("proxy-authorization", "client"),
                ("api-key", "client"),
                ("x-api-key", "client"),
                ("xi-api-key", "client"),
                ("x-goog-api-key", "client"),
                ("cookie", "client"),
                ("x-aulos-user-path", "client"),
                ("x-gomodel-user-path", "client"),
                ("x-aulos-model", "client"),
                ("x-aulos-anything", "client"),
                ("x-forwarded-for", "client"),
                ("openai-organization", "client"),
                ("expect", "100-continue"),
                ("content-length", "99"),
                ("user-agent", "OpenAI/Python"),
                ("x-stainless-lang", "python"),
            ],
        );
        assert_eq!(request.uri, "/v1/audio/speech?api-version=1");
        let mut seen: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        seen.sort_unstable();
        let want = [
            ("accept-encoding", "identity"),
            ("authorization", "Bearer provider-secret-0123456789"),
            ("content-length", "7"),
            ("host", "api.openai.com"),
            ("user-agent", "OpenAI/Python"),
            ("x-stainless-lang", "python"),
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn a_provider_without_a_key_gets_none_and_keeps_its_own_path() {
        let request = rewritten("", "local/kokoro", "/api/v1/audio/speech", &[("authorization", "Bearer client")]);
        assert_eq!(request.uri, "/base/v1/audio/speech");
        assert_eq!(request.headers["host"], "127.0.0.1:9");
        assert!(!request.headers.contains_key("authorization"));
    }
}
