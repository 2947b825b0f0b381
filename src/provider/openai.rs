//! OpenAI, and everything that speaks its API at another base URL.
//!
//! Source: the OpenAI API reference (audio, chat), as of 2026-11-20.

use http::header;

use super::{Placement, Provider, Target, openai_path};
use crate::surface::Endpoint;

#[derive(Debug)]
pub(super) struct OpenAi;

impl Provider for OpenAi {
    fn kind(&self) -> &'static str {
        "openai"
    }

    fn base_url(&self) -> Option<&'static str> {
        Some("https://api.openai.com/v1")
    }

    fn target(&self, endpoint: Endpoint, _: &str, _: Option<&str>) -> Option<Target> {
        Some(Target { path: openai_path(endpoint)?.into(), query: None, names_model: false })
    }

    fn probe(&self) -> Option<&'static str> {
        Some("/models")
    }

    fn placement(&self) -> Placement {
        Placement::header(header::AUTHORIZATION, "Bearer")
    }
}
