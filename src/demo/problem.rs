//! Every answer this provider gives that is neither speech nor a transcript, in OpenAI's envelope.

use http::StatusCode;
use serde_json::json;

use super::engine::Failure;

/// A request that was not served, and why. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("The body is not a JSON object: {0}.")]
    NotJson(String),
    #[error("`{0}` is required.")]
    Missing(&'static str),
    #[error("`{param}` {reason}.")]
    Invalid { param: &'static str, reason: String },
    #[error("The body must be a form (multipart/form-data).")]
    NotMultipart,
    #[error("The body is not a form that can be read: {0}.")]
    Form(String),
    #[error("The model `{model}` does not exist here; this endpoint serves `{served}`.")]
    UnknownModel { model: String, served: &'static str },
    #[error("This demo cannot translate. A provider of the kind `openai` can, with its model `whisper-1`.")]
    Translation,
    #[error("The request body is larger than {max} bytes.")]
    TooLarge { max: usize },
    #[error("There is nothing at `{0}`; here are `/v1/audio/speech`, `/v1/audio/transcriptions` and `/v1/models`.")]
    UnknownPath(String),
    #[error("Only {allow} is allowed here.")]
    Method { allow: &'static str },
    #[error("Too many requests are waiting for their turn. Try again shortly.")]
    Busy,
    #[error(transparent)]
    Engine(#[from] Failure),
}

/// What is repeated of a client's own words, in characters.
const QUOTE_CHARS_MAX: usize = 64;

/// Enough of what the client wrote to recognise it, and no more.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Problem {
    pub(super) fn invalid(param: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { param, reason: reason.into() }
    }

    pub(super) fn unknown_path(path: &str) -> Self {
        Self::UnknownPath(quote(path))
    }

    pub(super) fn status(&self) -> StatusCode {
        self.answer().0
    }

    /// HTTP status, OpenAI error type, code.
    fn answer(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotJson(_) => (StatusCode::BAD_REQUEST, INVALID, "invalid_json"),
            Self::Missing(_) => (StatusCode::BAD_REQUEST, INVALID, "missing_required_parameter"),
            Self::Invalid { .. } | Self::Engine(Failure::Nothing | Failure::Undecodable | Failure::TooLong { .. }) => {
                (StatusCode::BAD_REQUEST, INVALID, "invalid_value")
            }
            Self::NotMultipart => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type"),
            Self::Form(_) => (StatusCode::BAD_REQUEST, INVALID, "invalid_multipart"),
            Self::Translation => (StatusCode::BAD_REQUEST, INVALID, "unsupported_endpoint"),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, INVALID, "model_not_found"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large"),
            Self::UnknownPath(_) => (StatusCode::NOT_FOUND, INVALID, "unknown_url"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "overloaded"),
            Self::Engine(Failure::Missing(_)) => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "engine_missing"),
            Self::Engine(Failure::Broken(_) | Failure::Silent | Failure::Storage) => {
                (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "engine_failed")
            }
        }
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::Missing(param) | Self::Invalid { param, .. } => Some(param),
            Self::Engine(Failure::Nothing) => Some("input"),
            Self::Engine(Failure::Undecodable | Failure::TooLong { .. }) => Some("file"),
            _ => None,
        }
    }

    pub(super) fn to_json(&self) -> String {
        let (_, kind, code) = self.answer();
        json!({ "error": { "message": self.to_string(), "type": kind, "param": self.param(), "code": code } })
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_has_its_four_members() {
        let rows = [
            (Problem::Missing("voice"), 400, json!("voice"), json!("missing_required_parameter")),
            (Problem::invalid("speed", "is too fast"), 400, json!("speed"), json!("invalid_value")),
            (Problem::UnknownModel { model: "x".into(), served: "y" }, 404, json!(null), json!("model_not_found")),
            (Problem::NotMultipart, 415, json!(null), json!("unsupported_media_type")),
            (Problem::Form("cut off".into()), 400, json!(null), json!("invalid_multipart")),
            (Problem::Translation, 400, json!(null), json!("unsupported_endpoint")),
            (Failure::Missing("flite").into(), 503, json!(null), json!("engine_missing")),
            (Failure::Nothing.into(), 400, json!("input"), json!("invalid_value")),
            (Failure::Undecodable.into(), 400, json!("file"), json!("invalid_value")),
            (Failure::TooLong { max: 1 }.into(), 400, json!("file"), json!("invalid_value")),
            (Failure::Storage.into(), 500, json!(null), json!("engine_failed")),
        ];
        for (problem, status, param, code) in rows {
            let answer: serde_json::Value = serde_json::from_str(&problem.to_json()).expect("an answer in JSON");
            let error = answer["error"].as_object().expect("an answer in JSON");
            assert_eq!(problem.status().as_u16(), status, "{problem}");
            assert_eq!(error.len(), 4, "{problem}");
            assert_eq!((&error["param"], &error["code"]), (&param, &code), "{problem}");
        }
    }

    #[test]
    fn a_quote_is_short_and_cut_between_characters() {
        assert_eq!(quote("short"), "short");
        assert_eq!(quote(&"é".repeat(65)), format!("{}…", "é".repeat(64)));
    }
}
