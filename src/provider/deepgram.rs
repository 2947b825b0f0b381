//! Deepgram, through passthrough: `/p/<its name>/v1/listen`, `/v1/speak` and everything beside them.
//!
//! Source: the Deepgram API reference and its Python SDK 7.17.0, as of 2026-11-20. That listing the projects costs
//! nothing is not verified against the service.

use http::header;
use serde_json::{Value, json};

use super::{Placement, Provider, Target};
use crate::refusal::Refusal;
use crate::surface::Endpoint;

#[derive(Debug)]
pub(super) struct Deepgram;

impl Provider for Deepgram {
    fn kind(&self) -> &'static str {
        "deepgram"
    }

    fn base_url(&self) -> Option<&'static str> {
        Some("https://api.deepgram.com")
    }

    fn target(&self, _: Endpoint, _: &str, _: Option<&str>) -> Option<Target> {
        None
    }

    fn probe(&self) -> Option<&'static str> {
        Some("/v1/projects")
    }

    fn placement(&self) -> Placement {
        Placement::header(header::AUTHORIZATION, "Token")
    }

    /// Its API has several versions, which the path names.
    fn own_paths(&self) -> &'static [&'static str] {
        &["/v1"]
    }

    fn complaint(&self, refusal: &Refusal, id: &str) -> Option<Value> {
        let code = refusal.code().to_ascii_uppercase();
        Some(json!({ "err_code": code, "err_msg": refusal.to_string(), "request_id": id }))
    }
}
