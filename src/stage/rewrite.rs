//! The client's head → the provider's: path, host, credential, length. What belongs between the client and us
//! stays here.

use http::{HeaderName, header};
use pingora::http::RequestHeader;

use crate::refusal::Refusal;
use crate::stage::authenticate::{QUERY_CREDENTIALS, credential_headers, user_path_alias};
use crate::stage::route::Plan;
use crate::state::State;

/// Headers that say who we or the client are, or choose something at the provider that is the operator's to choose.
const OURS: [&str; 14] = [
    "expect",
    "referer",
    "origin",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-real-ip",
    "via",
    "set-cookie",
    "openai-organization",
    "openai-project",
];
/// Everything beginning with this is between clients and us.
const OWN_PREFIX: &str = "x-aulos-";

/// Makes `head`, the client's, into what the provider of `plan` gets. `length`: of the body, where it is known.
pub fn head(head: &mut RequestHeader, state: &State, plan: &Plan, length: Option<u64>) -> Result<(), Refusal> {
    let provider = &plan.provider;
    let target = target(&provider.base_url.path, plan.path, head.uri.query());
    let uri = target.parse().map_err(|_| Refusal::Internal)?;
    head.set_uri(uri);
    strip(head, &state.settings.server.user_path_header);
    let internal = |_| Refusal::Internal;
    head.insert_header(header::HOST, provider.base_url.authority()).map_err(internal)?;
    // What passes is looked at for an echoed credential, which no coding may hide.
    head.insert_header(header::ACCEPT_ENCODING, "identity").map_err(internal)?;
    if let Some(length) = length {
        head.insert_header(header::CONTENT_LENGTH, length).map_err(internal)?;
    }
    if let Some(key) = &provider.key {
        let (name, value) = provider.kind.credential(key).ok_or(Refusal::Internal)?;
        head.insert_header(name, value).map_err(internal)?;
    }
    Ok(())
}

fn strip(head: &mut RequestHeader, user_path_header: &HeaderName) {
    for name in credential_headers().chain([user_path_alias(), user_path_header.clone()]) {
        head.remove_header(&name);
    }
    for name in OURS {
        head.remove_header(name);
    }
    let own: Vec<HeaderName> =
        head.headers.keys().filter(|name| name.as_str().starts_with(OWN_PREFIX)).cloned().collect();
    for name in own {
        head.remove_header(&name);
    }
}

/// The path at the provider, and the client's query without what was meant for us.
fn target(base: &str, path: &str, query: Option<&str>) -> String {
    let kept: Vec<&str> = query.unwrap_or_default().split('&').filter(|pair| is_the_providers(pair)).collect();
    if kept.is_empty() { format!("{base}{path}") } else { format!("{base}{path}?{}", kept.join("&")) }
}

fn is_the_providers(pair: &str) -> bool {
    let name = pair.split('=').next().unwrap_or_default();
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    !pair.is_empty() && name != "model" && !QUERY_CREDENTIALS.contains(&name.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::route::{Asked, plan};
    use crate::stage::{authenticate, testing};
    use crate::surface::Endpoint;

    fn rewritten(config: &str, model: &str, target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let state = State::new(testing::settings(config), true);
        let anyone = authenticate::caller(&state, &http::HeaderMap::new(), "", jiff::Timestamp::UNIX_EPOCH);
        let asked = Asked { model, provider: None, endpoint: Endpoint::Speech };
        let plan = plan(&state, &anyone.expect("insecure"), asked).expect("a route");
        let mut request = RequestHeader::build("POST", target.as_bytes(), None).expect("a head");
        for (name, value) in headers {
            request.append_header(*name, *value).expect("a header");
        }
        head(&mut request, &state, &plan, Some(7)).expect("rewritten");
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
