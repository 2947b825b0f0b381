//! OpenAI, and everything that speaks its API at another base URL.
//!
//! Source: the OpenAI API reference (audio, chat), as of 2026-11-20.

use http::{HeaderName, HeaderValue, header};

use super::{Provider, scheme};
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

    fn path(&self, endpoint: Endpoint) -> Option<&'static str> {
        match endpoint {
            Endpoint::Speech => Some("/audio/speech"),
            Endpoint::Chat => Some("/chat/completions"),
            _ => None,
        }
    }

    fn credential(&self, key: &Secret) -> Option<(HeaderName, HeaderValue)> {
        Some((header::AUTHORIZATION, scheme("Bearer ", key)?))
    }
}
