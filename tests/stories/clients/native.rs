//! The SDKs of providers, told a base URL and a key of the gateway and nothing else: what they send goes to a provider
//! of their own kind byte for byte, and what it says comes back.
//!
//! Every answer of the providers here names the target and the SHA-256 of the body it is for: the scripts compare them
//! with what their SDK has sent.

mod deepgram;
mod elevenlabs;
mod openai;
mod socket;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::speech::SOUND;
use super::typist::digest;
use super::{Memory, Sdk, chunk, perform};
use crate::support::client::find;
use crate::support::gateway::scratch;
use crate::support::vendor::Received;
use crate::support::{Conf, Gateway, KEY, PROVIDER_KEY, Vendor, Wire, sha256};

/// In clear text, and encrypted.
const LISTEN: &str = r#"listen = ["127.0.0.1:0", { addr = "127.0.0.1:0", cert = "cert.pem", key = "key.pem" }]"#;
/// Sizes of the pieces in which sound is streamed: the scripts know them too.
const PIECES: [usize; 3] = [1_024, 5_120, 33_856];
const PLAIN_KEY: &str = "omx_live_plain_key";
const SPEECH_KEY: &str = "omx_live_speech_key";
/// The base URLs that every check marked with them is done with.
const PLACES: &[&str] = &["by_path", "by_host", "by_path_tls", "by_host_tls"];

/// What a script is expected to do: checks done once, and checks done at each of some places.
struct Checks {
    once: &'static [&'static str],
    at: &'static [(&'static [&'static str], &'static [&'static str])],
}

impl Checks {
    fn names(&self) -> Vec<String> {
        let at = |(places, checks): &(&[&str], &[&str])| {
            let named = |place: &&str| checks.iter().map(|check| format!("{check}_{place}")).collect::<Vec<_>>();
            places.iter().flat_map(named).collect::<Vec<_>>()
        };
        self.once.iter().map(ToString::to_string).chain(self.at.iter().flat_map(at)).collect()
    }
}

/// A provider of one kind, and a gateway before it that has a host name for it too.
struct Stage {
    kind: &'static str,
    vendor: Vendor,
    gateway: Gateway,
}

impl Stage {
    /// `path`: of the provider's base URL. `speech`: what the one key may pass through to.
    async fn set<S, F>(kind: &'static str, path: &str, speech: &str, serve: S) -> Self
    where
        S: Fn(Arc<Memory>, Received, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        let memory = Arc::new(Memory::default());
        let vendor = Vendor::start(move |request, wire| serve(Arc::clone(&memory), request, wire)).await;
        let provider = |name: &str, port: u16| {
            format!(
                "[providers.{name}]\nkind = \"{kind}\"\nbase_url = \"http://127.0.0.1:{port}{path}\"\n\
                 keys = [\"${{PROVIDER_KEY}}\"]\n"
            )
        };
        let keys = format!(
            "[keys.test]\nsha256 = \"{}\"\npassthrough = true\n[keys.plain]\nsha256 = \"{}\"\n\
             [keys.speech]\nsha256 = \"{}\"\npassthrough = true\npassthrough_allow = [\"{kind}{speech}\"]\n",
            sha256(KEY),
            sha256(PLAIN_KEY),
            sha256(SPEECH_KEY)
        );
        let conf = Conf::new().listen(LISTEN).keys(&keys).with(&provider(kind, vendor.port)).with(&provider("gone", 1));
        let dir = scratch();
        issue(&dir);
        let gateway = Gateway::spawn_in(&dir, conf.with(&format!("[hosts]\nlocalhost = \"{kind}\""))).await;
        Self { kind, vendor, gateway }
    }

    async fn perform(&self, checks: &Checks) {
        let of = |at: usize| self.gateway.addrs[at].rsplit(':').next().expect("a port");
        let (port, tls) = (of(0), of(1));
        let trusted = self.gateway.dir.join("cert.pem");
        let env = [
            ("BY_HOST", format!("http://localhost:{port}")),
            ("BY_HOST_TLS", format!("https://localhost:{tls}")),
            ("BY_PATH_TLS", format!("https://127.0.0.1:{tls}")),
            ("SSL_CERT_FILE", trusted.display().to_string()),
            ("PLAIN_KEY", PLAIN_KEY.to_owned()),
            ("SPEECH_KEY", SPEECH_KEY.to_owned()),
        ];
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let command = Sdk::Python.command(&format!("native_{}", self.kind), &self.gateway.dir);
        let names = checks.names();
        perform(command, &self.gateway, &env, names.iter().map(String::as_str).collect()).await;
    }

    /// Every request reached the provider as its own SDK would have sent it: with the credential it expects, once,
    /// and with nothing of the gateway's. `agent`: what the SDK calls itself.
    fn signed(&self, (name, value): (&str, &str), agent: &str) {
        const CREDENTIALS: [&str; 6] =
            ["authorization", "proxy-authorization", "api-key", "x-api-key", "xi-api-key", "x-goog-api-key"];
        for request in self.vendor.requests() {
            assert_eq!(request.header(name), Some(value), "{request:?}");
            let credentials = request.headers.iter().filter(|(name, _)| CREDENTIALS.contains(&name.as_str())).count();
            assert_eq!(credentials, 1, "{:?}", request.headers);
            let leaked = |(name, value): &(String, String)| name.starts_with("x-aulos") || value.contains("omx_live");
            assert!(!request.headers.iter().any(leaked), "{:?}", request.headers);
            assert!(!request.target.contains("omx_live") && find(&request.body, b"omx_live").is_none(), "{request:?}");
            assert!(find(&request.body, b"never").is_none() && !request.target.contains("never"), "{request:?}");
            assert_eq!(request.header("host"), Some(&*format!("127.0.0.1:{}", self.vendor.port)));
            let is_its_own = request.header("user-agent").is_some_and(|name| name.contains(agent));
            assert!(is_its_own || request.header("upgrade").is_some(), "{:?}", request.headers);
        }
    }

    /// How often the provider was sent a request like this one, method and target, whatever its place.
    fn asked(&self, like: &[(&str, usize)]) {
        let requests = self.vendor.requests();
        let lines: Vec<_> = requests.iter().map(|request| format!("{} {}", request.method, request.target)).collect();
        for (line, count) in like {
            assert_eq!(lines.iter().filter(|have| have == line).count(), *count, "{line} in {lines:#?}");
        }
    }

    /// How often it was sent a text to speak.
    fn told(&self, like: &[(&str, usize)]) {
        let requests = self.vendor.requests();
        for (text, count) in like {
            let quoted = format!("\"{text}\"");
            let told = requests.iter().filter(|request| find(&request.body, quoted.as_bytes()).is_some());
            assert_eq!(told.count(), *count, "{text}");
        }
    }

    /// Ends the gateway and reads its records. `broken`: answers that broke off.
    async fn close(mut self, broken: usize) {
        assert!(self.gateway.stop().await.success());
        let (usage, audit) = (self.gateway.records("usage"), self.gateway.records("audit"));
        let passed: Vec<_> = usage.iter().filter(|record| record["provider"] == self.kind).collect();
        assert_eq!(passed.len(), self.vendor.requests().len(), "one usage record a forwarded request");
        assert!(passed.iter().all(|record| record["op"] == "passthrough" && record["key"] != "plain"), "{passed:#?}");
        let ends = |end: &str| passed.iter().filter(|record| record["end"] == end).count();
        assert_eq!((ends("upstream_broken"), ends("complete")), (broken, passed.len() - broken), "{passed:#?}");
        let sockets = |status: u16| passed.iter().filter(|record| record["status"] == status).count();
        let upgrades = self.vendor.requests().iter().filter(|request| request.header("upgrade").is_some()).count();
        assert!(0 < sockets(101) && sockets(101) <= upgrades, "{upgrades}");
        for record in usage.iter().chain(&audit) {
            let text = record.to_string();
            assert!(!text.contains("omx_live") && !text.contains(PROVIDER_KEY) && !text.contains('?'), "{text}");
        }
    }
}

/// A certificate for both ways to call the gateway.
fn issue(dir: &Path) {
    let names = ["localhost", "127.0.0.1"].map(str::to_owned).to_vec();
    let made = rcgen::generate_simple_self_signed(names).expect("made");
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
}

/// The head of an answer to `request`, up to where its framing stands.
fn head(request: &Received, status: &str, media: &str) -> String {
    let heard = digest(&request.body);
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nX-Heard-At: {}\r\nX-Heard: {heard}\r\n\
         X-Request-Id: req_vendor\r\nCharacter-Cost: 13\r\nSet-Cookie: a=b\r\n",
        request.target
    )
}

async fn answer(request: &Received, mut wire: Wire, status: &str, media: &str, body: impl AsRef<[u8]>) -> Option<Wire> {
    let body = body.as_ref();
    let head = head(request, status, media);
    wire.write(format!("{head}Content-Length: {}\r\n\r\n", body.len())).await.write(body).await;
    Some(wire)
}

async fn answer_json(request: &Received, wire: Wire, status: &str, body: &Value) -> Option<Wire> {
    answer(request, wire, status, "application/json", body.to_string()).await
}

async fn ok(request: &Received, wire: Wire, body: Value) -> Option<Wire> {
    answer_json(request, wire, "200 OK", &body).await
}

/// Speaks, or does what the first word of `text` says. `failure`: status and body of an answer that is none.
async fn speak(
    memory: &Memory,
    request: &Received,
    mut wire: Wire,
    text: &str,
    failure: impl Fn(&str) -> (&'static str, Value),
) -> Option<Wire> {
    let (what, tag) = text.split_once(' ').unwrap_or((text, ""));
    match what {
        "next" => memory.gate(tag).add_permits(1),
        "pieces" => return pieces(memory, request, wire, tag).await,
        "break" => {
            let head = head(request, "200 OK", "audio/mpeg");
            wire.write(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await.write(chunk(&SOUND[..5_000])).await;
            return None;
        }
        "page" => {
            let page = "<h1>Upstream is napping</h1>";
            return answer(request, wire, "503 Service Unavailable", "text/html", page).await;
        }
        "thrice" if memory.count(text) == 3 => {}
        "plain" => {}
        what => {
            let (status, body) = failure(what);
            return answer_json(request, wire, status, &body).await;
        }
    }
    answer(request, wire, "200 OK", "audio/mpeg", SOUND.as_slice()).await
}

/// The sound in pieces, each when the client has said that it has the last one.
async fn pieces(memory: &Memory, request: &Received, mut wire: Wire, tag: &str) -> Option<Wire> {
    wire.write(format!("{}Transfer-Encoding: chunked\r\n\r\n", head(request, "200 OK", "audio/mpeg"))).await;
    let mut sound = SOUND.as_slice();
    for (i, size) in PIECES.into_iter().enumerate() {
        if i > 0 {
            memory.pass(tag).await;
        }
        let (piece, rest) = sound.split_at(size);
        wire.write(chunk(piece)).await;
        sound = rest;
    }
    wire.write(chunk(b"")).await;
    Some(wire)
}

/// Statuses of the failures that every kind of provider has words of its own for.
fn status(what: &str) -> &'static str {
    match what {
        "credential" => "401 Unauthorized",
        "limit" => "429 Too Many Requests\r\nRetry-After: 7",
        "thrice" => "500 Internal Server Error\r\nRetry-After-Ms: 10",
        what => unreachable!("nobody asked for {what}"),
    }
}

fn parsed(request: &Received) -> Value {
    serde_json::from_slice(&request.body).expect("the SDK sends JSON")
}
