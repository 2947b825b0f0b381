//! The table of providers. Each is a description in a file of its own: where its endpoints are and how it is
//! signed. Stages do the work.

use std::borrow::Cow;
use std::fmt::Debug;

use serde_json::Value;

use crate::refusal::Refusal;
use crate::surface::Endpoint;

mod azure;
mod credential;
mod deepgram;
mod elevenlabs;
mod generic;
mod openai;

pub use credential::{Credential, Placement, spellings};

/// What a provider's API looks like from outside.
pub trait Provider: Sync + Send + Debug {
    /// The name in the config's `kind`.
    fn kind(&self) -> &'static str;
    /// Where it is, unless the config says otherwise. `None`: the config has to.
    fn base_url(&self) -> Option<&'static str>;
    /// Where an endpoint is, for a model of this name and the version of the API that the config may name. `None`: it
    /// has no such endpoint.
    fn target(&self, endpoint: Endpoint, model: &str, api_version: Option<&str>) -> Option<Target>;
    /// Where its credential stands, unless the config says otherwise.
    fn placement(&self) -> Placement;
    /// Whether its config may name a version of the API.
    fn takes_api_version(&self) -> bool {
        false
    }

    /// A path below the base URL that a free GET is for, to see whether a peer is well. `None`: nobody knows one.
    fn probe(&self) -> Option<&'static str>;
    /// Whether a 404 says that the provider does not have this model, and another one may.
    fn lacks_model(&self, status: u16) -> bool {
        status == 404
    }

    /// What people paste behind the address of its base URL although it is said here: longest first.
    fn own_paths(&self) -> &'static [&'static str] {
        &[]
    }

    /// A refusal of ours as its own clients expect one; `id`: the request's. `None`: as OpenAI's do.
    fn complaint(&self, _refusal: &Refusal, _id: &str) -> Option<Value> {
        None
    }

    /// Whether it serves requests of this kind.
    fn serves(&self, endpoint: Endpoint) -> bool {
        self.target(endpoint, "model", None).is_some()
    }
}

/// Where a request goes at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Below the base URL.
    pub path: Cow<'static, str>,
    /// A parameter that is ours to say, whatever the client says: its name, and its encoded value. `None`: it is left
    /// away.
    pub query: Option<(&'static str, Option<String>)>,
    /// The path says which model is meant: what the body says of it stays as it is.
    pub names_model: bool,
}

/// Every provider aulos knows. A new one is its file, its `mod` line and its place here.
pub static ALL: &[&dyn Provider] =
    &[&openai::OpenAi, &azure::Azure, &elevenlabs::ElevenLabs, &deepgram::Deepgram, &generic::Http];

/// The provider of that name.
pub fn by_kind(kind: &str) -> Option<&'static dyn Provider> {
    ALL.iter().copied().find(|provider| provider.kind() == kind)
}

/// The path of an endpoint as OpenAI spells it, and everybody after it.
fn openai_path(endpoint: Endpoint) -> Option<&'static str> {
    match endpoint {
        Endpoint::Speech => Some("/audio/speech"),
        Endpoint::Transcription => Some("/audio/transcriptions"),
        Endpoint::Translation => Some("/audio/translations"),
        Endpoint::Chat => Some("/chat/completions"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Secret;

    /// The contract every provider's file keeps.
    #[test]
    fn every_provider_is_found_and_signs_what_it_serves() {
        let key = Secret::new("provider-key").expect("not empty");
        for provider in ALL {
            let kind = provider.kind();
            assert!(by_kind(kind).is_some_and(|found| found.kind() == kind), "{kind} is found by its name");
            assert_eq!(ALL.iter().filter(|other| other.kind() == kind).count(), 1, "{kind} stands once");
            for (endpoint, version) in Endpoint::FORWARDED.iter().flat_map(|e| [(e, None), (e, Some("2025-04-01"))]) {
                let Some(target) = provider.target(*endpoint, "a model/ö?", version) else { continue };
                let path = target.path;
                assert!(path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok(), "{kind}: {path}");
                assert!(!path.contains('?'), "{kind}: {path}");
            }
            assert!(provider.probe().is_none_or(|path| path.starts_with('/')), "{kind}");
            assert!(!provider.serves(Endpoint::Models), "{kind}: models are answered here");
            let signed = provider.placement().sign(&key).expect("a plain key can be sent");
            let Credential::Header(_, value) = signed else { unreachable!("{kind}: a header keeps out of logs") };
            assert!(value.to_str().is_ok_and(|value| value.ends_with("provider-key")), "{kind}");
        }
    }
}
