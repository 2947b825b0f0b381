//! Azure OpenAI, in both of its styles. With an `api_version` the path names the deployment, and the body's `model`
//! means nothing; without one, or with `v1` or `preview`, it is the v1 API: OpenAI's paths, with the deployment as
//! the model in the body.
//!
//! Source: Azure OpenAI in Foundry Models, REST reference, as of 2026-11-20. That `preview` goes with the v1 paths is
//! not verified against the service.

use http::HeaderName;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Placement, Provider, Target, openai_path};
use crate::surface::Endpoint;

/// What stands as it is in a segment of a path: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What would end a query, or a pair in it.
const VALUE: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'&').add(b'+').add(b'%').add(b'"').add(b'<').add(b'>');

#[derive(Debug)]
pub(super) struct Azure;

impl Provider for Azure {
    fn kind(&self) -> &'static str {
        "azure"
    }

    /// Every resource has an address of its own.
    fn base_url(&self) -> Option<&'static str> {
        None
    }

    fn target(&self, endpoint: Endpoint, model: &str, api_version: Option<&str>) -> Option<Target> {
        let suffix = openai_path(endpoint)?;
        let query = |version| ("api-version", Some(utf8_percent_encode(version, VALUE).to_string()));
        Some(match api_version {
            None | Some("v1") => {
                // The parameter of the other style would choose that one again.
                let query = Some(("api-version", None));
                Target { path: format!("/openai/v1{suffix}").into(), query, names_model: false }
            }
            Some("preview") => {
                Target { path: format!("/openai/v1{suffix}").into(), query: Some(query("preview")), names_model: false }
            }
            Some(version) => {
                let deployment = utf8_percent_encode(model, SEGMENT);
                let path = format!("/openai/deployments/{deployment}{suffix}");
                Target { path: path.into(), query: Some(query(version)), names_model: true }
            }
        })
    }

    fn probe(&self) -> Option<&'static str> {
        Some("/openai/v1/models")
    }

    fn placement(&self) -> Placement {
        Placement::header(HeaderName::from_static("api-key"), "")
    }

    fn takes_api_version(&self) -> bool {
        true
    }

    fn own_paths(&self) -> &'static [&'static str] {
        &["/openai/v1", "/openai"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_style_has_its_paths_and_says_the_model_in_one_place() {
        let v1 = "/openai/v1/audio/transcriptions";
        for (version, path, query, names_model) in [
            (None, v1, None, false),
            (Some("v1"), v1, None, false),
            (Some("preview"), v1, Some("preview"), false),
            (
                Some("2025-04-01-preview"),
                "/openai/deployments/whisper%20one%2Ftwo/audio/transcriptions",
                Some("2025-04-01-preview"),
                true,
            ),
            (Some("a&b=#"), "/openai/deployments/whisper%20one%2Ftwo/audio/transcriptions", Some("a%26b=%23"), true),
        ] {
            let target = Azure.target(Endpoint::Transcription, "whisper one/two", version).expect("served");
            assert_eq!((&*target.path, target.names_model), (path, names_model), "{version:?}");
            let (name, value) = target.query.expect("the client's own is replaced in any style");
            assert_eq!((name, value.as_deref()), ("api-version", query), "{version:?}");
        }
    }
}
