//! OpenAI, and everything that speaks its API at another base URL.
//!
//! Source: the OpenAI API reference (audio, chat), as of 2026-11-20.

use http::{HeaderName, HeaderValue, header};

use super::{Provider, Target, openai_path, scheme};
use crate::surface::Endpoint;
use crate::units::Secret;

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

    fn probe(&self) -> &'static str {
        "/models"
    }

    fn credential(&self, key: &Secret) -> Option<(HeaderName, HeaderValue)> {
        Some((header::AUTHORIZATION, scheme("Bearer ", key)?))
    }
}
