//! The paths aulos serves, and what each one means.
//!
//! Everything is under `/v1`, `/api/v1` and `/openai/v1` (Azure's spelling of the same), and what is forwarded also
//! under `/openai/deployments/{deployment}`, where the path names the model. Below `/p/{provider}` is the provider's own
//! API.

use percent_encoding::percent_decode_str;

/// What a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Speech,
    Transcription,
    Translation,
    Chat,
    /// The provider's own API, byte for byte.
    Passthrough,
    Models,
    Model,
    AudioModels,
    AudioVoices,
    Livez,
    Readyz,
}

impl Endpoint {
    /// Those that we know the meaning of, and a provider serves.
    pub const FORWARDED: [Self; 4] = [Self::Speech, Self::Transcription, Self::Translation, Self::Chat];

    /// The name in records and metrics.
    pub fn op(self) -> &'static str {
        match self {
            Self::Speech => "speech",
            Self::Transcription => "transcription",
            Self::Translation => "translation",
            Self::Chat => "chat",
            Self::Passthrough => "passthrough",
            Self::Models | Self::Model => "models",
            Self::AudioModels => "audio_models",
            Self::AudioVoices => "audio_voices",
            Self::Livez | Self::Readyz => "health",
        }
    }

    /// The methods it answers, as `Allow` lists them.
    pub fn allow(self) -> &'static str {
        match self {
            Self::Passthrough => "any",
            _ if self.is_forwarded() => "POST",
            _ => "GET, HEAD",
        }
    }

    pub fn allows(self, method: &http::Method) -> bool {
        self == Self::Passthrough || self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// Whether a request of this kind goes to a provider.
    pub fn is_forwarded(self) -> bool {
        self == Self::Passthrough || Self::FORWARDED.contains(&self)
    }

    /// Whether its body is a form with a file, not JSON.
    pub fn is_upload(self) -> bool {
        matches!(self, Self::Transcription | Self::Translation)
    }

    pub fn is_health(self) -> bool {
        matches!(self, Self::Livez | Self::Readyz)
    }
}

/// What every path of the passthrough begins with; the provider's name follows.
pub const PASSTHROUGH: &str = "/p/";

/// An endpoint, and the model its path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub endpoint: Endpoint,
    /// The deployment of Azure's spelling, or the id of `models/{id}`, percent-decoded.
    pub model: Option<String>,
}

/// What is at `path` (without its query). `None`: nothing.
pub fn find(path: &str) -> Option<Place> {
    if let Some(endpoint) = health(path) {
        return Some(Place { endpoint, model: None });
    }
    if path.starts_with(PASSTHROUGH) {
        return Some(Place { endpoint: Endpoint::Passthrough, model: None });
    }
    if let Some(rest) = path.strip_prefix("/openai/deployments/") {
        let (deployment, rest) = rest.split_once('/')?;
        let endpoint = unified(rest).filter(|endpoint| endpoint.is_forwarded())?;
        return Some(Place { endpoint, model: Some(decode(deployment)?) });
    }
    if path == "/openai/models" {
        // Azure's clients ask so for what a resource has.
        return Some(Place { endpoint: Endpoint::Models, model: None });
    }
    let rest = ["/v1/", "/api/v1/", "/openai/v1/"].iter().find_map(|base| path.strip_prefix(base))?;
    match rest.strip_prefix("models/") {
        Some(id) => Some(Place { endpoint: Endpoint::Model, model: Some(decode(id)?) }),
        None => unified(rest).map(|endpoint| Place { endpoint, model: None }),
    }
}

/// What to tell a client that asked for something that is not here.
pub fn hint(path: &str) -> &'static str {
    let doubled = [
        "/v1/v1/",
        "/v1/api/v1/",
        "/audio/speech/audio/",
        "/audio/transcriptions/audio/",
        "/audio/translations/audio/",
        "/chat/completions/",
    ];
    if doubled.iter().any(|twice| path.contains(twice)) {
        "The path stands there twice: set the base URL to `…/v1`, without an endpoint behind it."
    } else if path.strip_suffix('/').is_some_and(|path| find(path).is_some()) {
        "It is there without the slash at the end."
    } else if unified(path.trim_start_matches('/')).is_some() {
        "Set the base URL to `…/v1`."
    } else {
        "Set the base URL of an OpenAI client to `…/v1`; speech is `POST /v1/audio/speech`, transcription \
         `POST /v1/audio/transcriptions`."
    }
}

fn health(path: &str) -> Option<Endpoint> {
    match path {
        "/livez" => Some(Endpoint::Livez),
        "/readyz" => Some(Endpoint::Readyz),
        _ => None,
    }
}

fn unified(rest: &str) -> Option<Endpoint> {
    match rest {
        "audio/speech" => Some(Endpoint::Speech),
        "audio/transcriptions" => Some(Endpoint::Transcription),
        "audio/translations" => Some(Endpoint::Translation),
        "chat/completions" => Some(Endpoint::Chat),
        "models" => Some(Endpoint::Models),
        "audio/models" => Some(Endpoint::AudioModels),
        "audio/voices" => Some(Endpoint::AudioVoices),
        _ => None,
    }
}

fn decode(segment: &str) -> Option<String> {
    let text = percent_decode_str(segment).decode_utf8().ok()?;
    (!text.is_empty()).then(|| text.into_owned())
}

/// The decoded values of the query parameter `name`, in order.
pub fn query_values<'q>(query: &'q str, name: &'q str) -> impl Iterator<Item = String> + 'q {
    query.split('&').filter(|pair| !pair.is_empty()).filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        (plain(key) == name).then(|| plain(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_leads_to_its_endpoint() {
        let place = |endpoint, model: Option<&str>| Some(Place { endpoint, model: model.map(str::to_owned) });
        for (path, want) in [
            ("/v1/audio/speech", place(Endpoint::Speech, None)),
            ("/api/v1/audio/speech", place(Endpoint::Speech, None)),
            ("/openai/v1/audio/speech", place(Endpoint::Speech, None)),
            ("/openai/deployments/my-tts/audio/speech", place(Endpoint::Speech, Some("my-tts"))),
            ("/openai/deployments/a%2Fb/chat/completions", place(Endpoint::Chat, Some("a/b"))),
            ("/v1/audio/transcriptions", place(Endpoint::Transcription, None)),
            ("/api/v1/audio/translations", place(Endpoint::Translation, None)),
            ("/openai/deployments/w/audio/transcriptions", place(Endpoint::Transcription, Some("w"))),
            ("/openai/deployments/w/audio/translations", place(Endpoint::Translation, Some("w"))),
            ("/openai/deployments/my-tts/models", None),
            ("/openai/deployments//audio/speech", None),
            ("/v1/models", place(Endpoint::Models, None)),
            ("/openai/models", place(Endpoint::Models, None)),
            ("/v1/models/tts-1", place(Endpoint::Model, Some("tts-1"))),
            ("/v1/models/openai/tts-1", place(Endpoint::Model, Some("openai/tts-1"))),
            ("/v1/models/openai%2Ftts-1", place(Endpoint::Model, Some("openai/tts-1"))),
            ("/v1/models/", None),
            ("/v1/models/%ff", None),
            ("/v1/audio/voices", place(Endpoint::AudioVoices, None)),
            ("/api/v1/audio/models", place(Endpoint::AudioModels, None)),
            ("/p/openai/v1/audio/speech", place(Endpoint::Passthrough, None)),
            ("/p/", place(Endpoint::Passthrough, None)),
            ("/p", None),
            ("/livez", place(Endpoint::Livez, None)),
            ("/v1/livez", None),
            ("/v1/audio/speech/", None),
            ("/v1", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(find(path), want, "{path}");
        }
    }

    #[test]
    fn a_lost_client_is_told_which_base_url_to_set() {
        for (path, fragment) in [
            ("/audio/speech", "Set the base URL to `…/v1`."),
            ("/v1/v1/audio/speech", "stands there twice"),
            ("/v1/audio/speech/audio/speech", "stands there twice"),
            ("/v1/audio/transcriptions/", "without the slash"),
            ("/elsewhere", "POST /v1/audio/speech"),
            ("/elsewhere", "POST /v1/audio/transcriptions"),
        ] {
            assert!(hint(path).contains(fragment), "{path}: {}", hint(path));
        }
    }

    #[test]
    fn query_values_are_decoded() {
        let values = |query, name| query_values(query, name).collect::<Vec<_>>();
        assert_eq!(values("model=a%2Fb&x=1&model=c+d", "model"), ["a/b", "c d"]);
        assert_eq!(values("mod%65l=a&model", "model"), ["a", ""]);
        assert!(values("", "model").is_empty());
    }
}
