//! The provider's own API below `/p/`: what a client says reaches the provider as it was said, and its answer comes back
//! as it is, but for what belongs to one side alone.

mod answered;
mod asked;
mod browsers;
mod credentials;
mod failing;
mod framing;
mod headers;
mod hosts;
mod http2;
mod keys;
mod large;
mod pieces;
mod places;
mod records;
mod secrets;
mod stale;

use std::sync::LazyLock;

use super::support::client::find;
use super::support::form::{dechunked, noise};
use super::support::{Conf, Gateway, KEY, Vendor, Wire, sha256};

/// Where everything here goes, unless a story says otherwise.
const PATH: &str = "/p/openai/v1/odd";
/// Timers short enough to wait for, and long enough for a machine with other things to do.
const SHORT: &str = "[timeouts]\nconnect = \"2s\"\nfirst_byte = \"1s\"\nidle = \"2s\"\n";

/// Every byte there is, and more than fits into one read.
static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| [(0..=255).collect::<Vec<u8>>(), noise(150_000)].concat());

/// A key with these lines beside its hash.
fn key(name: &str, secret: &str, lines: &str) -> String {
    format!("[keys.{name}]\nsha256 = \"{}\"\n{lines}\n", sha256(secret))
}

/// The test's key, which may pass anything through.
fn passing() -> Conf {
    Conf::new().keys(&key("test", KEY, "passthrough = true"))
}

/// That key, and a provider called `openai` at `vendor`.
fn conf(vendor: &Vendor) -> Conf {
    passing().upstream(vendor)
}

/// A provider at a port, with these lines beside its address.
fn provider(name: &str, kind: &str, port: u16, lines: &str) -> String {
    format!("[providers.{name}]\nkind = \"{kind}\"\nbase_url = \"http://127.0.0.1:{port}\"\n{lines}\n")
}

/// A provider called `openai` with two peers.
fn two(ports: [u16; 2], lines: &str) -> Conf {
    let [a, b] = ports;
    passing().with(SHORT).with(&format!(
        "[providers.openai]\nkind = \"openai\"\nbase_url = \"http://openai.test/v1\"\nhealth = \"off\"\n\
         peers = [\"127.0.0.1:{a}\", \"127.0.0.1:{b}\"]\n{lines}"
    ))
}

const ONE_KEY: &str = "keys = [\"${PROVIDER_KEY}\"]";

/// A request with the test's key and these header lines, whose connection ends behind it.
fn ask(first: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let head =
        format!("{first} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n{lines}\r\n");
    [head.as_bytes(), body.as_ref()].concat()
}

/// The same with its body's length.
fn sized(first: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    ask(first, &format!("{lines}Content-Length: {}\r\n", body.as_ref().len()), body)
}

/// A vendor that answers with what it was sent.
async fn echo() -> Vendor {
    Vendor::start(|request, mut wire| async move {
        wire.answer("200 OK", "application/octet-stream", &request.body).await;
        Some(wire)
    })
    .await
}

/// A vendor that has the same answer for everything: a status, and perhaps header lines.
async fn saying(status: &'static str, body: &'static str) -> Vendor {
    Vendor::start(move |_, mut wire: Wire| async move {
        wire.answer(status, "application/json", body).await;
        Some(wire)
    })
    .await
}

type Headers = Vec<(String, String)>;

/// An answer as it stood on the wire, on a connection that ended behind it.
#[derive(Debug)]
struct Raw {
    status: u16,
    reason: String,
    headers: Headers,
    /// Behind the head, as it came.
    rest: Vec<u8>,
}

impl Raw {
    fn parse(wire: &[u8]) -> Self {
        let end = find(wire, b"\r\n\r\n").unwrap_or_else(|| unreachable!("no head: {}", wire.escape_ascii()));
        let head = String::from_utf8_lossy(&wire[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
        let status = first.nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let reason = first.next().expect("a space behind the status").to_owned();
        let pair = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { status, reason, headers: lines.map(pair).collect(), rest: wire[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(have, _)| have == name);
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands twice: {:?}", self.headers);
        value.map(|(_, value)| value.as_str())
    }

    /// The body, which must end as its framing says.
    fn body(&self) -> Vec<u8> {
        match (self.header("transfer-encoding"), self.header("content-length")) {
            (Some("chunked"), None) => {
                assert!(self.rest.ends_with(b"0\r\n\r\n"), "it broke off: {}", self.rest.escape_ascii());
                dechunked(&self.rest)
            }
            (None, length) => {
                let length = length.map_or(self.rest.len(), |length| length.parse().expect("a number"));
                assert_eq!(self.rest.len(), length, "{self:?}");
                self.rest.clone()
            }
            both => unreachable!("{both:?}"),
        }
    }
}

/// The answer to a request whose connection ends behind it.
async fn raw(gateway: &Gateway, request: impl AsRef<[u8]>) -> Raw {
    Raw::parse(&gateway.client().await.send(request).await.rest().await)
}

/// Headers in an order of their own, without those of these names.
fn sorted(headers: &[(String, String)], without: &[&str]) -> Headers {
    let mut kept: Headers = headers.iter().filter(|(name, _)| !without.contains(&name.as_str())).cloned().collect();
    // What stands several times keeps its order.
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    kept
}

fn owned(headers: &[(&str, &str)]) -> Headers {
    headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned())).collect()
}

fn lines(headers: &[(&str, &str)]) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}
