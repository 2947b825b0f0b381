//! What happened → one usage record, one audit record. Their fields are a contract: documented in README, only
//! added to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The answer was delivered whole.
    Complete,
    /// We answered it ourselves; of an upload, a part may have been forwarded before it turned out to be wrong.
    Refused,
    /// No provider gave an answer that could be passed on.
    UpstreamFailed,
    /// The provider's answer broke off.
    UpstreamBroken,
    ClientGone,
    Timeout,
    /// The gateway stopped before the request had ended.
    Drained,
    Panic,
}

impl End {
    /// The value of the label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamBroken => "upstream_broken",
            Self::ClientGone => "client_gone",
            Self::Timeout => "timeout",
            Self::Drained => "drained",
            Self::Panic => "panic",
        }
    }
}

/// Bytes of a path that are recorded.
pub const PATH_BYTES_MAX: usize = 512;
/// The version of both records.
const VERSION: u8 = 1;

/// One for every request that was forwarded.
#[derive(Debug, Serialize)]
pub struct Usage<'e> {
    v: Version,
    #[serde(rename = "type")]
    kind: UsageKind,
    ts: Timestamp,
    id: Uuid,
    key: &'e str,
    user_path: &'e str,
    workspace: Option<&'e str>,
    op: &'static str,
    /// Of what was passed through, where the models are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'e str>,
    model_asked: Option<&'e str>,
    model: Option<&'e str>,
    provider: &'e str,
    provider_model: Option<&'e str>,
    attempts: usize,
    /// What the client was told; `None` where it was told nothing.
    status: Option<u16>,
    end: End,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(serialize_with = "optional_millis")]
    ttfb_ms: Option<Duration>,
    #[serde(serialize_with = "millis")]
    duration_ms: Duration,
    input_chars: Option<usize>,
    format: Option<String>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timestamp_granularities: Vec<String>,
}

/// One for every request whose head was parsed, but for health checks.
#[derive(Debug, Serialize)]
pub struct Audit<'e> {
    v: Version,
    #[serde(rename = "type")]
    kind: AuditKind,
    ts: Timestamp,
    id: Uuid,
    /// The key's name, if it was known; never the key.
    key: Option<&'e str>,
    auth: Option<&'static str>,
    client: &'e Client,
    method: &'e str,
    path: &'e str,
    http: &'static str,
    status: Option<u16>,
    end: End,
    error: Option<&'static str>,
    attempts: Vec<&'e Attempted>,
    /// Reserved for logged bodies.
    bodies: Option<()>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Client {
    pub ip: Option<IpAddr>,
    pub user_agent: Option<String>,
    pub request_id: Option<String>,
}

/// One try at one peer.
#[derive(Debug, Serialize)]
pub struct Attempted {
    pub provider: String,
    pub model: String,
    pub peer: Peer,
    /// Which of the provider's keys, counted from 1; `None` where it asks for none.
    pub key: Option<usize>,
    pub status: Option<u16>,
    pub error: Option<&'static str>,
    #[serde(serialize_with = "optional_millis")]
    pub connect_ms: Option<Duration>,
    #[serde(serialize_with = "optional_millis")]
    pub ttfb_ms: Option<Duration>,
    pub reused: bool,
}

/// Where an attempt went: an address, or the name that had none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Peer {
    Addr(SocketAddr),
    Unresolved(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Unresolved(name) => f.write_str(name),
        }
    }
}

/// What was asked for and who served it: the parts of a usage record that are known before its end.
#[derive(Debug, Default)]
pub struct Served<'e> {
    pub key: &'e str,
    pub user_path: &'e str,
    pub workspace: Option<&'e str>,
    pub op: &'static str,
    pub path: Option<&'e str>,
    pub model_asked: Option<&'e str>,
    pub model: Option<&'e str>,
    pub provider: &'e str,
    pub provider_model: Option<&'e str>,
    pub input_chars: Option<usize>,
    pub format: Option<String>,
    pub stream: bool,
    /// Of an upload: its file's name, and bytes.
    pub filename: Option<String>,
    pub file_bytes: Option<u64>,
    pub language: Option<String>,
    pub timestamp_granularities: Vec<String>,
}

/// The parts that only its end decides.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub ts: Timestamp,
    pub id: Uuid,
    pub attempts: usize,
    pub status: Option<u16>,
    pub end: End,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub ttfb: Option<Duration>,
    pub duration: Duration,
}

/// Builds the usage record.
pub fn usage<'e>(served: Served<'e>, outcome: &Outcome) -> Usage<'e> {
    Usage {
        v: Version,
        kind: UsageKind,
        ts: outcome.ts,
        id: outcome.id,
        key: served.key,
        user_path: served.user_path,
        workspace: served.workspace,
        op: served.op,
        path: served.path,
        model_asked: served.model_asked,
        model: served.model,
        provider: served.provider,
        provider_model: served.provider_model,
        attempts: outcome.attempts,
        status: outcome.status,
        end: outcome.end,
        bytes_in: outcome.bytes_in,
        bytes_out: outcome.bytes_out,
        ttfb_ms: outcome.ttfb,
        duration_ms: outcome.duration,
        input_chars: served.input_chars,
        format: served.format,
        stream: served.stream,
        filename: served.filename,
        file_bytes: served.file_bytes,
        language: served.language,
        timestamp_granularities: served.timestamp_granularities,
    }
}

/// The parts of an audit record that come from the request's head and its caller.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub client: Client,
    pub method: String,
    /// Without the query, where a credential may stand.
    pub path: String,
    pub http: &'static str,
}

/// Builds the audit record.
pub fn audit<'e>(
    request: &'e Request,
    caller: Option<(&'e str, &'static str)>,
    outcome: &Outcome,
    error: Option<&'static str>,
    attempts: Vec<&'e Attempted>,
) -> Audit<'e> {
    let (key, auth) = caller.unzip();
    Audit {
        v: Version,
        kind: AuditKind,
        ts: outcome.ts,
        id: outcome.id,
        key,
        auth,
        client: &request.client,
        method: &request.method,
        path: &request.path,
        http: request.http,
        status: outcome.status,
        end: outcome.end,
        error,
        attempts,
        bodies: None,
    }
}

#[derive(Debug, Clone, Copy)]
struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(VERSION)
    }
}

#[derive(Debug, Clone, Copy)]
struct UsageKind;

impl Serialize for UsageKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("usage")
    }
}

#[derive(Debug, Clone, Copy)]
struct AuditKind;

impl Serialize for AuditKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("audit")
    }
}

/// Milliseconds with one decimal.
fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let tenths = u64::try_from(duration.as_micros() / 100).unwrap_or(u64::MAX);
    #[expect(
        clippy::cast_precision_loss,
        reason = "a duration of more than 2^53 tenths of a millisecond is no request"
    )]
    serializer.serialize_f64(tenths as f64 / 10.0)
}

fn optional_millis<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => millis(duration, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            ts: "2026-11-20T13:00:00.123456Z".parse().expect("a time"),
            id: Uuid::nil(),
            attempts: 1,
            status: Some(200),
            end: End::Complete,
            bytes_in: 97,
            bytes_out: 102_400,
            ttfb: Some(Duration::from_micros(212_449)),
            duration: Duration::from_micros(1_840_250),
        }
    }

    #[test]
    fn a_usage_record_reads_as_documented() {
        let served = Served {
            key: "mobile",
            user_path: "/team/mobile",
            workspace: Some("acme"),
            op: "speech",
            model_asked: Some("tts-1"),
            model: Some("tts-fast"),
            provider: "openai",
            provider_model: Some("gpt-4o-mini-tts"),
            input_chars: Some(44),
            format: Some("mp3".into()),
            stream: false,
            ..Served::default()
        };
        let line = serde_json::to_string(&usage(served, &outcome())).expect("serialises");
        let want = concat!(
            r#"{"v":1,"type":"usage","ts":"2026-11-20T13:00:00.123456Z","id":"00000000-0000-0000-0000-000000000000","key":"mobile","#,
            r#""user_path":"/team/mobile","workspace":"acme","op":"speech","model_asked":"tts-1","model":"tts-fast","#,
            r#""provider":"openai","provider_model":"gpt-4o-mini-tts","attempts":1,"status":200,"end":"complete","#,
            r#""bytes_in":97,"bytes_out":102400,"ttfb_ms":212.4,"duration_ms":1840.2,"input_chars":44,"#,
            r#""format":"mp3","stream":false}"#,
        );
        assert_eq!(line, want);
    }

    #[test]
    fn an_uploads_record_says_what_was_uploaded() {
        let served = Served {
            op: "transcription",
            format: Some("verbose_json".into()),
            filename: Some("a\"b.wav".into()),
            file_bytes: Some(444),
            language: Some("en".into()),
            timestamp_granularities: vec!["word".into()],
            ..Served::default()
        };
        let line = serde_json::to_string(&usage(served, &outcome())).expect("serialises");
        let want = concat!(
            r#""format":"verbose_json","stream":false,"filename":"a\"b.wav","file_bytes":444,"#,
            r#""language":"en","timestamp_granularities":["word"]}"#,
        );
        assert!(line.ends_with(want), "{line}");
    }

    #[test]
    fn an_audit_record_reads_as_documented() {
        let request = Request {
            client: Client {
                ip: "203.0.113.7".parse().ok(),
                user_agent: Some("OpenAI/Python 3.52.0".into()),
                request_id: None,
            },
            method: "POST".into(),
            path: "/v1/audio/speech".into(),
            http: "1.1",
        };
        let attempt = Attempted {
            provider: "openai".into(),
            model: "gpt-4o-mini-tts".into(),
            peer: Peer::Addr(SocketAddr::from(([203, 0, 113, 9], 443))),
            key: Some(1),
            status: Some(200),
            error: None,
            connect_ms: Some(Duration::from_millis(11)),
            ttfb_ms: Some(Duration::from_micros(201_300)),
            reused: true,
        };
        let caller = Some(("mobile", "bearer"));
        let line =
            serde_json::to_string(&audit(&request, caller, &outcome(), None, vec![&attempt])).expect("serialises");
        let want = concat!(
            r#"{"v":1,"type":"audit","ts":"2026-11-20T13:00:00.123456Z","id":"00000000-0000-0000-0000-000000000000","key":"mobile","auth":"bearer","#,
            r#""client":{"ip":"203.0.113.7","user_agent":"OpenAI/Python 3.52.0","request_id":null},"method":"POST","#,
            r#""path":"/v1/audio/speech","http":"1.1","status":200,"end":"complete","error":null,"attempts":[{"#,
            r#""provider":"openai","model":"gpt-4o-mini-tts","peer":"203.0.113.9:443","key":1,"status":200,"#,
            r#""error":null,"connect_ms":11.0,"ttfb_ms":201.3,"reused":true}],"bodies":null}"#,
        );
        assert_eq!(line, want);
    }

    #[test]
    fn every_end_has_one_name() {
        for end in [
            End::Complete,
            End::Refused,
            End::UpstreamFailed,
            End::UpstreamBroken,
            End::ClientGone,
            End::Timeout,
            End::Drained,
            End::Panic,
        ] {
            assert_eq!(serde_json::to_value(end).expect("serialises"), end.label());
        }
    }
}
