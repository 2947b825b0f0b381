//! ElevenLabs, through passthrough: `/p/<its name>/v1/text-to-speech/…` and everything beside it.
//!
//! Source: the ElevenLabs API reference and its Python SDK 2.78.0, as of 2026-11-20.

use http::HeaderName;
use serde_json::{Value, json};

use super::{Placement, Provider, Target};
use crate::refusal::Refusal;
use crate::surface::Endpoint;

#[derive(Debug)]
pub(super) struct ElevenLabs;

impl Provider for ElevenLabs {
    fn kind(&self) -> &'static str {
        "elevenlabs"
    }

    fn base_url(&self) -> Option<&'static str> {
        Some("https://api.elevenlabs.io")
    }

    fn target(&self, _: Endpoint, _: &str, _: Option<&str>) -> Option<Target> {
        None
    }

    fn probe(&self) -> Option<&'static str> {
        Some("/v1/models")
    }

    fn placement(&self) -> Placement {
        Placement::header(HeaderName::from_static("xi-api-key"), "")
    }

    /// Its API has several versions, which the path names.
    fn own_paths(&self) -> &'static [&'static str] {
        &["/v1"]
    }

    fn complaint(&self, refusal: &Refusal, _: &str) -> Option<Value> {
        Some(json!({ "detail": { "status": refusal.code(), "message": refusal.to_string() } }))
    }
}
