//! Every answer the gateway gives by itself, and what it looks like on the wire.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::wire::json::Fault;
use crate::wire::multipart;

/// A request that was not served, and why. The text is for the client: no provider's words or numbers in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("The request head is not valid HTTP: {0}.")]
    InvalidHead(Cow<'static, str>),
    #[error("The request head is larger than this gateway accepts ({0}).")]
    HeadTooLarge(&'static str),
    #[error("The request target is longer than this gateway accepts.")]
    TargetTooLong,
    #[error("The request head did not arrive in time.")]
    HeadTimeout,
    #[error("The request body did not arrive in time.")]
    BodyTimeout,
    #[error("This gateway speaks HTTP/1.0 and HTTP/1.1 here, and HTTP/2 over TLS.")]
    HttpVersion,
    #[error("There is nothing at `{path}`. {hint}")]
    UnknownPath { path: String, hint: &'static str },
    #[error("The path cannot be passed on: {0}.")]
    InvalidPath(&'static str),
    #[error("There is no provider `{provider}`.")]
    UnknownProvider { provider: String },
    #[error("This key may not {0}.")]
    Forbidden(&'static str),
    #[error("`{method}` is not allowed here; allowed: {allow}.")]
    MethodNotAllowed { method: String, allow: &'static str },
    #[error("A request body with `Content-Encoding` is not accepted here; send it as it is.")]
    ContentEncoding,
    #[error("This endpoint takes `{0}`.")]
    MediaType(&'static str),
    #[error("{0}")]
    MissingKey(&'static str),
    #[error("Incorrect API key provided.")]
    InvalidKey,
    #[error("The request carries two different API keys; send one.")]
    ConflictingKeys,
    #[error("The user path is not valid: {0}.")]
    InvalidUserPath(&'static str),
    #[error("This key may not use the model `{model}`.")]
    AccessDenied { model: String, status: u16 },
    #[error("The model `{model}` does not exist or you do not have access to it.")]
    UnknownModel { model: String },
    #[error("The model is named twice and differently: `{outside}` outside the body, `{inside}` in it.")]
    ModelConflict { outside: String, inside: String },
    #[error("`model` must be a string of 1 to {max} bytes without control characters.", max = MODEL_BYTES_MAX)]
    InvalidModel,
    #[error("The body is not valid JSON: {reason} at byte {at}.")]
    InvalidJson { reason: &'static str, at: usize },
    #[error("The `Content-Type` of the form is not valid: {0}.")]
    InvalidBoundary(&'static str),
    #[error("The form is not valid multipart/form-data: {reason} at byte {at}.")]
    InvalidMultipart { reason: &'static str, at: u64 },
    #[error("The form ended without its closing delimiter.")]
    MultipartTruncated,
    #[error("Which field of the form is the model can be read in two ways: {0}.")]
    AmbiguousModel(Cow<'static, str>),
    #[error("The body names `{key}` twice.")]
    DuplicateKey { key: String },
    #[error("`{0}` is required.")]
    MissingField(&'static str),
    #[error("`{param}` {reason}.")]
    InvalidValue { param: &'static str, reason: String },
    #[error("`{field}` {reason}.")]
    InvalidForm { field: String, reason: &'static str },
    #[error("The request body is larger than the limit of {max} bytes.")]
    BodyTooLarge { max: usize },
    #[error("The request body is not validly chunked.")]
    InvalidBody,
    #[error("The request body ended before it was complete.")]
    BodyTruncated,
    #[error("The provider `{provider}` does not offer this endpoint.")]
    Unsupported { provider: String },
    #[error("Too many requests at once. Try again shortly.")]
    Overloaded,
    #[error("Usage records cannot be written right now, so nothing is forwarded. Try again shortly.")]
    RecordsUnavailable,
    #[error("There is no room to keep this upload. Try again shortly, or send `model` first.")]
    SpoolFull,
    #[error("The provider answered {status}, and no other could serve the request.")]
    Provider { status: u16, retry_after: Option<Duration> },
    #[error("No provider could be reached for this request.")]
    UpstreamUnavailable,
    #[error("The provider did not answer in time.")]
    UpstreamTimeout,
    #[error("No secure connection to the provider could be made.")]
    UpstreamTls,
    #[error("The provider's answer was not valid HTTP.")]
    UpstreamInvalid,
    #[error("The provider did not accept this gateway's credential. The operator has to mend it; your key is fine.")]
    ProviderAuth,
    #[error("Something went wrong inside this gateway.")]
    Internal,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Syntax { reason, at } => Self::InvalidJson { reason, at },
            Fault::DuplicateKey { key } => Self::DuplicateKey { key },
        }
    }
}

impl From<multipart::Fault> for Refusal {
    fn from(fault: multipart::Fault) -> Self {
        match fault {
            multipart::Fault::Syntax { reason, at } => Self::InvalidMultipart { reason, at },
            multipart::Fault::Ambiguous { reason, .. } => Self::AmbiguousModel(reason.into()),
            multipart::Fault::FieldTooLong { name } if name == "model" => Self::InvalidModel,
            multipart::Fault::FieldTooLong { name } => Self::InvalidForm { field: name, reason: "is too long" },
            multipart::Fault::Truncated => Self::MultipartTruncated,
        }
    }
}

impl From<multipart::BoundaryFault> for Refusal {
    fn from(fault: multipart::BoundaryFault) -> Self {
        match fault {
            multipart::BoundaryFault::NotMultipart => Self::MediaType("multipart/form-data"),
            multipart::BoundaryFault::Missing => Self::InvalidBoundary("it has no boundary"),
            multipart::BoundaryFault::Invalid(reason) => Self::InvalidBoundary(reason),
        }
    }
}

/// Bytes of a model's name, wherever it is given.
pub const MODEL_BYTES_MAX: usize = 256;

/// How long a client is asked to wait when the gateway has no room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const INVALID: &str = "invalid_request_error";
const AUTH: &str = "authentication_error";
const SERVER: &str = "server_error";

impl Refusal {
    /// HTTP status, OpenAI error type, code.
    pub fn answer(&self) -> (u16, &'static str, &'static str) {
        match self {
            Self::InvalidHead(_) | Self::InvalidBody => (400, INVALID, "invalid_request"),
            Self::HeadTooLarge(_) => (431, INVALID, "headers_too_large"),
            Self::TargetTooLong => (414, INVALID, "target_too_long"),
            Self::HeadTimeout | Self::BodyTimeout => (408, INVALID, "request_timeout"),
            Self::HttpVersion => (505, INVALID, "http_version_not_supported"),
            Self::UnknownPath { .. } => (404, INVALID, "unknown_url"),
            Self::InvalidPath(_) => (400, INVALID, "invalid_path"),
            Self::UnknownProvider { .. } => (404, INVALID, "unknown_provider"),
            Self::Forbidden(_) => (403, INVALID, "forbidden"),
            Self::MethodNotAllowed { .. } => (405, INVALID, "method_not_allowed"),
            Self::ContentEncoding | Self::MediaType(_) => (415, INVALID, "unsupported_media_type"),
            Self::MissingKey(_) | Self::InvalidKey | Self::ConflictingKeys => (401, AUTH, "invalid_api_key"),
            Self::InvalidUserPath(_) => (400, INVALID, "invalid_user_path"),
            Self::AccessDenied { status, .. } => (*status, INVALID, "model_access_denied"),
            Self::UnknownModel { .. } => (404, INVALID, "model_not_found"),
            Self::ModelConflict { .. } => (400, INVALID, "model_conflict"),
            Self::InvalidModel => (400, INVALID, "invalid_model"),
            Self::InvalidJson { .. } => (400, INVALID, "invalid_json"),
            Self::InvalidBoundary(_) | Self::InvalidMultipart { .. } | Self::MultipartTruncated => {
                (400, INVALID, "invalid_multipart")
            }
            Self::AmbiguousModel(_) => (400, INVALID, "ambiguous_model"),
            Self::DuplicateKey { .. } => (400, INVALID, "duplicate_key"),
            Self::MissingField(_) => (400, INVALID, "missing_required_parameter"),
            Self::InvalidValue { .. } | Self::InvalidForm { .. } => (400, INVALID, "invalid_value"),
            Self::BodyTooLarge { .. } => (413, INVALID, "request_too_large"),
            Self::BodyTruncated => (400, INVALID, "incomplete_body"),
            Self::Unsupported { .. } => (400, INVALID, "unsupported_endpoint"),
            Self::Overloaded => (503, SERVER, "overloaded"),
            Self::SpoolFull => (503, SERVER, "spool_full"),
            Self::RecordsUnavailable => (503, SERVER, "records_unavailable"),
            Self::Provider { status: 429, .. } => (429, "rate_limit_error", "rate_limit_exceeded"),
            Self::Provider { status: 404, .. } => (404, INVALID, "model_not_found"),
            Self::Provider { status, .. } => (*status, SERVER, "upstream_error"),
            Self::UpstreamUnavailable => (502, SERVER, "upstream_unavailable"),
            Self::UpstreamTimeout => (504, SERVER, "upstream_timeout"),
            Self::UpstreamTls => (502, SERVER, "upstream_tls"),
            Self::UpstreamInvalid => (502, SERVER, "upstream_invalid_response"),
            Self::ProviderAuth => (502, SERVER, "provider_auth"),
            Self::Internal => (500, SERVER, "internal_error"),
        }
    }

    pub fn status(&self) -> u16 {
        self.answer().0
    }

    pub fn code(&self) -> &'static str {
        self.answer().2
    }

    /// The member of the request that is at fault.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::MissingField(param) | Self::InvalidValue { param, .. } => Some(param),
            Self::DuplicateKey { key } => Some(key),
            Self::InvalidForm { field, .. } => Some(field),
            Self::AccessDenied { .. }
            | Self::UnknownModel { .. }
            | Self::ModelConflict { .. }
            | Self::AmbiguousModel(_)
            | Self::InvalidModel => Some("model"),
            _ => None,
        }
    }

    /// OpenAI's envelope: exactly four members.
    pub fn body(&self) -> Bytes {
        let (_, kind, code) = self.answer();
        let envelope =
            json!({ "error": { "message": self.to_string(), "type": kind, "param": self.param(), "code": code } });
        envelope.to_string().into()
    }

    /// Headers that go with this answer, beside those every answer has.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        match self {
            Self::MissingKey(_) | Self::InvalidKey | Self::ConflictingKeys => {
                headers.push(("www-authenticate", "Bearer realm=\"aulos\"".to_owned()));
            }
            Self::MethodNotAllowed { allow, .. } => headers.push(("allow", (*allow).to_owned())),
            Self::Overloaded | Self::RecordsUnavailable | Self::SpoolFull => {
                headers.push(("retry-after", RETRY_AFTER.as_secs().to_string()));
            }
            Self::Provider { retry_after: Some(after), .. } => {
                headers.push(("retry-after", after.as_millis().div_ceil(1000).to_string()));
                headers.push(("retry-after-ms", after.as_millis().to_string()));
            }
            _ => {}
        }
        if !self.worth_retrying() {
            headers.push(("x-should-retry", "false".to_owned()));
        }
        headers
    }

    /// Whether the same request could fare better in a moment. Official SDKs obey `x-should-retry`.
    fn worth_retrying(&self) -> bool {
        matches!(
            self,
            Self::HeadTimeout
                | Self::BodyTimeout
                | Self::BodyTruncated
                | Self::Overloaded
                | Self::RecordsUnavailable
                | Self::SpoolFull
                | Self::Provider { status: 408 | 429 | 500.., .. }
                | Self::UpstreamUnavailable
                | Self::UpstreamTimeout
                | Self::UpstreamInvalid
                | Self::Internal
        )
    }

    /// Whether nobody can tell where the request's body ends.
    pub fn is_of_a_broken_body(&self) -> bool {
        matches!(self, Self::InvalidBody | Self::BodyTruncated)
    }

    /// Whether it says that no provider gave an answer that could be passed on.
    pub fn is_of_no_answer(&self) -> bool {
        matches!(self, Self::UpstreamUnavailable | Self::UpstreamTimeout | Self::UpstreamTls | Self::UpstreamInvalid)
    }

    /// Whether the client's request is at fault, and not a provider or the gateway.
    pub fn is_the_clients(&self) -> bool {
        !matches!(self, Self::Provider { .. }) && (400..500).contains(&self.status())
    }

    /// Whether a credential is what was wrong. Such refusals are counted, and recorded only so often.
    pub fn is_of_credentials(&self) -> bool {
        self.status() == 401
    }
}
