//! What happened → one usage record, one audit record. Their fields are a contract: documented in README, only
//! added to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::wire::line::{Members, Millis, Value, object};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Its name in records, and in metrics.
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
const VERSION: u64 = 1;

/// One for every request that was forwarded.
#[derive(Debug)]
pub struct Usage<'e> {
    pub served: Served<'e>,
    pub outcome: &'e Outcome,
}

/// One for every request whose head was parsed, but for health checks.
#[derive(Debug)]
pub struct Audit<'e> {
    pub request: &'e Request,
    /// The key's name, if it was known, and how it was spelled; never the key.
    pub caller: Option<(&'e str, &'static str)>,
    pub outcome: &'e Outcome,
    /// The code of what went wrong.
    pub error: Option<&'static str>,
    pub attempts: Vec<&'e Attempted>,
}

#[derive(Debug, Clone, Default)]
pub struct Client {
    pub ip: Option<IpAddr>,
    pub user_agent: Option<String>,
    pub request_id: Option<String>,
}

/// One try at one peer.
#[derive(Debug)]
pub struct Attempted {
    pub provider: String,
    pub model: String,
    pub peer: Peer,
    /// Which of the provider's keys, counted from 1; `None` where it asks for none.
    pub key: Option<usize>,
    pub status: Option<u16>,
    pub error: Option<&'static str>,
    pub connect_ms: Option<Duration>,
    pub ttfb_ms: Option<Duration>,
    pub reused: bool,
}

/// Where an attempt went: an address, or the name that had none.
#[derive(Debug)]
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
    /// Of what was passed through, where the models are not known.
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
    /// What the client was told; `None` where it was told nothing.
    pub status: Option<u16>,
    pub end: End,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub ttfb: Option<Duration>,
    pub duration: Duration,
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

impl Outcome {
    /// What both records begin with.
    fn begin(&self, record: &mut Members<'_>, kind: &'static str) {
        record.add("v", &VERSION).add("type", kind).add("ts", &self.ts).add("id", &self.id);
    }
}

impl Value for Usage<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        let Self { served, outcome } = self;
        object(to, |record| {
            outcome.begin(record, "usage");
            record
                .add("key", served.key)
                .add("user_path", served.user_path)
                .add("workspace", &served.workspace)
                .add("op", served.op)
                .add_some("path", served.path)
                .add("model_asked", &served.model_asked)
                .add("model", &served.model)
                .add("provider", served.provider)
                .add("provider_model", &served.provider_model)
                .add("attempts", &outcome.attempts)
                .add("status", &outcome.status)
                .add("end", outcome.end.label())
                .add("bytes_in", &outcome.bytes_in)
                .add("bytes_out", &outcome.bytes_out)
                .add("ttfb_ms", &outcome.ttfb.map(Millis))
                .add("duration_ms", &Millis(outcome.duration))
                .add("input_chars", &served.input_chars)
                .add("format", &served.format)
                .add("stream", &served.stream)
                .add_some("filename", served.filename.as_ref())
                .add_some("file_bytes", served.file_bytes.as_ref())
                .add_some("language", served.language.as_ref());
            if !served.timestamp_granularities.is_empty() {
                record.add("timestamp_granularities", &served.timestamp_granularities);
            }
        });
    }
}

impl Value for Audit<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        let Self { request, caller, outcome, error, attempts } = self;
        let (key, auth) = caller.unzip();
        object(to, |record| {
            outcome.begin(record, "audit");
            record
                .add("key", &key)
                .add("auth", &auth)
                .add("client", &request.client)
                .add("method", &request.method)
                .add("path", &request.path)
                .add("http", request.http)
                .add("status", &outcome.status)
                .add("end", outcome.end.label())
                .add("error", error)
                .add("attempts", attempts)
                // Reserved for logged bodies.
                .add("bodies", &None::<bool>);
        });
    }
}

impl Value for Client {
    fn write(&self, to: &mut Vec<u8>) {
        object(to, |client| {
            client.add("ip", &self.ip).add("user_agent", &self.user_agent).add("request_id", &self.request_id);
        });
    }
}

impl Value for Attempted {
    fn write(&self, to: &mut Vec<u8>) {
        object(to, |attempt| {
            attempt
                .add("provider", &self.provider)
                .add("model", &self.model)
                .add("peer", &self.peer)
                .add("key", &self.key)
                .add("status", &self.status)
                .add("error", &self.error)
                .add("connect_ms", &self.connect_ms.map(Millis))
                .add("ttfb_ms", &self.ttfb_ms.map(Millis))
                .add("reused", &self.reused);
        });
    }
}

impl Value for Peer {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Addr(addr) => addr.write(to),
            Self::Unresolved(name) => name.write(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(record: &impl Value) -> String {
        let mut to = Vec::new();
        record.write(&mut to);
        String::from_utf8(to).expect("text")
    }

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
        let line = line(&Usage { served, outcome: &outcome() });
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
        let line = line(&Usage { served, outcome: &outcome() });
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
            line(&Audit { request: &request, caller, outcome: &outcome(), error: None, attempts: vec![&attempt] });
        let want = concat!(
            r#"{"v":1,"type":"audit","ts":"2026-11-20T13:00:00.123456Z","id":"00000000-0000-0000-0000-000000000000","key":"mobile","auth":"bearer","#,
            r#""client":{"ip":"203.0.113.7","user_agent":"OpenAI/Python 3.52.0","request_id":null},"method":"POST","#,
            r#""path":"/v1/audio/speech","http":"1.1","status":200,"end":"complete","error":null,"attempts":[{"#,
            r#""provider":"openai","model":"gpt-4o-mini-tts","peer":"203.0.113.9:443","key":1,"status":200,"#,
            r#""error":null,"connect_ms":11.0,"ttfb_ms":201.3,"reused":true}],"bodies":null}"#,
        );
        assert_eq!(line, want);
    }
}
