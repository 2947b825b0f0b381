//! Any HTTP API, through passthrough: what aulos knows of it is what the config says.

use http::header;

use super::{Placement, Provider, Target};
use crate::surface::Endpoint;

#[derive(Debug)]
pub(super) struct Http;

impl Provider for Http {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn base_url(&self) -> Option<&'static str> {
        None
    }

    fn target(&self, _: Endpoint, _: &str, _: Option<&str>) -> Option<Target> {
        None
    }

    fn probe(&self) -> Option<&'static str> {
        None
    }

    fn placement(&self) -> Placement {
        Placement::header(header::AUTHORIZATION, "Bearer")
    }
}
