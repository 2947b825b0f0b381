//! Whether a peer is well: one question that costs nothing, asked of each again and again.
//!
//! The load balancer counts the answers; what is asked, and for how long an answer is waited for, is said here. Its
//! own checks do not serve: the one for HTTP drains the body, which may be a list of every model a provider has, and
//! none of them ends by itself when a peer sends a byte now and then.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use tokio::time::timeout;

use super::pool::Source;

/// How long a probe may take from the first packet to the status.
const PROBE: Duration = Duration::from_secs(2);
/// Probes that have to fail one after the other before a peer counts as ill: one may be bad luck.
const FAILURES: usize = 2;
/// Probes that have to succeed before it is used again. If it is too soon, the breaker knows.
const SUCCESSES: usize = 1;

/// How the peers of a provider are asked whether they are well.
#[derive(Clone)]
pub enum Health {
    /// They take a connection, and shake hands where it is TLS.
    Tcp,
    /// They answer a GET.
    Http {
        /// Path and query as they are sent, with the base URL's path in front.
        path: String,
        /// What is sent with it: the credential.
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Which statuses are those of a peer that is well. Redirects are not followed.
        accept: fn(u16) -> bool,
    },
    /// They are not asked: all are well.
    Off,
}

impl PartialEq for Health {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp, Self::Tcp) | (Self::Off, Self::Off) => true,
            (Self::Http { path, headers, accept }, Self::Http { path: p, headers: h, accept: a }) => {
                path == p && headers == h && std::ptr::fn_addr_eq(*accept, *a)
            }
            _ => false,
        }
    }
}

/// What is known of each peer besides whether it is well, which the load balancer knows.
#[derive(Default)]
pub(super) struct History {
    seen: Mutex<HashMap<SocketAddr, Seen>>,
    /// How many are taken for ill because they were before a reload: most often none, and then no request has to look.
    inherited: AtomicUsize,
}

/// What probes have seen of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// When it was found, or when it last fell ill or got well.
    pub(super) since: Instant,
    /// What came of the last probe.
    pub(super) last: Result<(), String>,
    /// It was ill before a reload, and no probe has found it well since.
    inherited: bool,
}

impl History {
    /// Begins with what was known before a reload. `is_ill`: those that were.
    pub(super) fn inherit(&self, old: &Self, is_ill: impl Fn(SocketAddr) -> bool) {
        let inherit = |(addr, seen): (&SocketAddr, &Seen)| (*addr, Seen { inherited: is_ill(*addr), ..seen.clone() });
        let known: HashMap<_, _> = old.seen().iter().map(inherit).collect();
        self.put(&mut self.seen(), known);
    }

    /// Whether a peer counts as ill for what was known of it before a reload.
    pub(super) fn is_inherited(&self, addr: SocketAddr) -> bool {
        self.inherited.load(Ordering::Relaxed) > 0 && self.seen().get(&addr).is_some_and(|seen| seen.inherited)
    }

    /// Begins with peers that are new and forgets those that are gone, as the load balancer does.
    pub(super) fn keep(&self, peers: &BTreeSet<Backend>, now: Instant) {
        let mut seen = self.seen();
        let new = || Seen { since: now, last: Ok(()), inherited: false };
        let kept = |addr: &SocketAddr| (*addr, seen.get(addr).cloned().unwrap_or_else(new));
        let known = peers.iter().filter_map(|peer| peer.addr.as_inet()).map(kept).collect();
        self.put(&mut seen, known);
    }

    /// `None`: the peer is gone.
    pub(super) fn of(&self, addr: SocketAddr) -> Option<Seen> {
        self.seen().get(&addr).cloned()
    }

    fn probed(&self, addr: SocketAddr, outcome: &Result<(), String>) {
        if let Some(seen) = self.seen().get_mut(&addr) {
            seen.last.clone_from(outcome);
            if outcome.is_ok() && std::mem::take(&mut seen.inherited) {
                seen.since = Instant::now();
                self.inherited.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn changed(&self, addr: SocketAddr, now: Instant) {
        // To the load balancer of a new pool it is news that a peer is ill which was so before.
        if let Some(seen) = self.seen().get_mut(&addr).filter(|seen| !seen.inherited) {
            seen.since = now;
        }
    }

    fn put(&self, seen: &mut HashMap<SocketAddr, Seen>, known: HashMap<SocketAddr, Seen>) {
        *seen = known;
        self.inherited.store(seen.values().filter(|seen| seen.inherited).count(), Ordering::Relaxed);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<SocketAddr, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the peers of one provider.
pub(super) struct Prober {
    /// The provider's name, for the log.
    provider: String,
    source: Source,
    connector: Arc<TransportConnector>,
    history: Arc<History>,
}

impl Prober {
    pub(super) fn new(
        provider: &str,
        source: Source,
        connector: Arc<TransportConnector>,
        history: Arc<History>,
    ) -> Self {
        Self { provider: provider.to_owned(), source, connector, history }
    }

    async fn probe(&self, addr: SocketAddr) -> Result<()> {
        // A new connection each time: one that is open already would hide that no other can be made.
        let peer = HttpPeer::new(addr, self.source.tls, self.source.sni.clone());
        let stream = self.connector.new_stream(&peer).await?;
        let Health::Http { path, headers, accept } = &self.source.health else { return Ok(()) };
        let mut session = HttpSession::new(stream);
        session.write_request_header(Box::new(self.request(path, headers)?)).await?;
        loop {
            session.read_response().await?;
            match session.get_status().map_or(0, |status| status.as_u16()) {
                100..200 => {}
                status if accept(status) => return Ok(()),
                status => return Err(Error::new(ErrorType::HTTPStatus(status))),
            }
        }
    }

    fn request(&self, path: &str, headers: &[(HeaderName, HeaderValue)]) -> Result<RequestHeader> {
        let mut request = RequestHeader::build("GET", path.as_bytes(), Some(3 + headers.len()))?;
        request.insert_header(http::header::HOST, &self.source.host_header)?;
        request.insert_header(http::header::USER_AGENT, concat!("aulos/", env!("CARGO_PKG_VERSION")))?;
        request.insert_header(http::header::CONNECTION, "close")?;
        for (name, value) in headers {
            request.insert_header(name, value)?;
        }
        Ok(request)
    }
}

#[async_trait]
impl HealthCheck for Prober {
    async fn check(&self, target: &Backend) -> Result<()> {
        let Some(addr) = target.addr.as_inet() else { return Ok(()) };
        let outcome = match timeout(PROBE, self.probe(*addr)).await {
            Ok(outcome) => outcome.map_err(|error| reason(&error)),
            Err(_) => Err(format!("no answer within {PROBE:?}")),
        };
        self.history.probed(*addr, &outcome);
        outcome.map_err(|why| Error::explain(ErrorType::InternalError, why))
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let Some(addr) = target.addr.as_inet() else { return };
        self.history.changed(*addr, Instant::now());
        let why = self.history.of(*addr).and_then(|seen| seen.last.err()).unwrap_or_default();
        if healthy {
            log::info!("{}: peer {addr} is well again", self.provider);
        } else {
            log::warn!("{}: peer {addr} does not serve: {why}", self.provider);
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success { SUCCESSES } else { FAILURES }
    }
}

/// The kind of an error and what caused it. What Pingora says besides may quote the peer, and so the credential.
fn reason(error: &Error) -> String {
    let (kind, cause) = (error.root_etype(), error.root_cause());
    match kind {
        ErrorType::HTTPStatus(status) => format!("status {status}"),
        _ if cause.is::<Error>() => kind.as_str().to_owned(),
        _ => format!("{}: {cause}", kind.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use pingora_core::connectors::ConnectorOptions;

    use super::super::discover::backend;
    use super::*;

    /// The statuses of a peer that is well, as a provider's file would have it.
    fn accept(status: u16) -> bool {
        status < 500 && ![401, 403, 429].contains(&status)
    }

    fn http() -> Health {
        let mut credential = HeaderValue::from_static("Bearer provider-key");
        credential.set_sensitive(true);
        Health::Http {
            path: "/v1/models?a=b".to_owned(),
            headers: vec![(http::header::AUTHORIZATION, credential)],
            accept,
        }
    }

    fn source(health: Health, tls: bool) -> Source {
        let host = "vendor.test".to_owned();
        Source { sni: host.clone(), host_header: host.clone(), host, port: 80, tls, peers: vec![], health }
    }

    fn prober(source: Source, options: Option<ConnectorOptions>) -> Prober {
        Prober::new("local", source, Arc::new(TransportConnector::new(options)), Arc::default())
    }

    async fn check(prober: &Prober, addr: SocketAddr) -> Result<(), String> {
        prober.history.keep(&BTreeSet::from([backend(addr)]), Instant::now());
        let checked = prober.check(&backend(addr)).await;
        let seen = prober.history.of(addr).expect("a peer").last;
        assert_eq!(checked.is_ok(), seen.is_ok(), "{addr}");
        seen
    }

    /// Takes one connection and gives this answer to a whole head, which it returns; then it waits for the end.
    fn vendor(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                head.extend_from_slice(&byte);
            }
            stream.write_all(answer.as_bytes()).expect("is taken");
            if answer.is_empty() {
                drop(stream);
            } else {
                stream.read_to_end(&mut Vec::new()).ok();
            }
            String::from_utf8(head).expect("text")
        });
        (addr, served)
    }

    #[tokio::test]
    async fn one_get_with_the_credential_is_judged_by_its_status() {
        let prober = prober(source(http(), false), None);
        for (label, answer, want) in [
            ("well", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Ok(())),
            ("the body is not waited for", "HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n[", Ok(())),
            (
                "nor followed",
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
                Ok(()),
            ),
            ("no such list", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Ok(())),
            ("interim", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Ok(())),
            ("interim, then ill", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n", Err("status 500")),
            ("the key is refused", "HTTP/1.1 401 Unauthorized\r\n\r\n", Err("status 401")),
            ("not HTTP", "SSH-2.0-OpenSSH_9.9\r\n\r\n", Err("InvalidHTTPHeader")),
            ("an echo", "HTTP/1.1 2x0 Bearer provider-key\r\n\r\n", Err("InvalidHTTPHeader")),
            ("an echo in a header", "HTTP/1.1 200 OK\r\nprovider-key\r\n\r\n", Err("InvalidHTTPHeader")),
            ("hung up", "", Err("ConnectionClosed")),
        ] {
            let (addr, served) = vendor(answer);
            let outcome = check(&prober, addr).await;
            match (&outcome, want) {
                (Err(why), Err(want)) => assert!(why.starts_with(want), "{label}: {why}"),
                (outcome, want) => assert_eq!(outcome.is_ok(), want.is_ok(), "{label}: {outcome:?}"),
            }
            assert!(!format!("{outcome:?}").contains("provider-key"), "{label}: {outcome:?}");
            let head = served.join().expect("served").to_ascii_lowercase();
            assert!(head.starts_with("get /v1/models?a=b http/1.1\r\n"), "{label}: {head}");
            assert!(head.contains("\r\nhost: vendor.test\r\n"), "{label}: {head}");
            assert!(head.contains("\r\nauthorization: bearer provider-key\r\n"), "{label}: {head}");
            assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{label}: {head}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_enough_without_http() {
        let prober = prober(source(Health::Tcp, false), None);
        let listener = TcpListener::bind("127.0.0.78:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        assert_eq!(check(&prober, addr).await, Ok(()));
        drop(listener);
        let why = check(&prober, addr).await.expect_err("nobody listens");
        assert!(why.starts_with("ConnectRefused"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        for (label, source) in [("HTTP", source(http(), false)), ("TLS", source(Health::Tcp, true))] {
            let prober = prober(source, None);
            let begin = tokio::time::Instant::now();
            assert_eq!(check(&prober, addr).await, Err("no answer within 2s".to_owned()), "{label}");
            // Of a clock that moves only where everything waits.
            assert_eq!(begin.elapsed().as_secs(), 2, "{label}");
        }
    }

    #[tokio::test]
    async fn a_certificate_has_to_be_trusted_and_for_the_name() {
        let key = rcgen::generate_simple_self_signed(["vendor.test".to_owned()]).expect("a certificate");
        let mut ca = tempfile::NamedTempFile::new().expect("a file");
        ca.write_all(key.cert.pem().as_bytes()).expect("is written");
        let (acceptor, listener) = tls_vendor(&key).await;
        let addr = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                acceptor.accept(stream).await.ok();
            }
        });
        let trusting = || {
            let mut options = ConnectorOptions::new(1);
            options.ca_file = Some(ca.path().to_string_lossy().into_owned());
            Some(options)
        };
        let other = Source { sni: "other.test".to_owned(), ..source(Health::Tcp, true) };
        for (label, source, options, want) in [
            ("trusted", source(Health::Tcp, true), trusting(), true),
            ("another's", other, trusting(), false),
            ("unknown", source(Health::Tcp, true), None, false),
        ] {
            let outcome = check(&prober(source, options), addr).await;
            assert_eq!(outcome.is_ok(), want, "{label}: {outcome:?}");
        }
    }

    type Key = rcgen::CertifiedKey<rcgen::KeyPair>;

    async fn tls_vendor(key: &Key) -> (tokio_rustls::TlsAcceptor, tokio::net::TcpListener) {
        use tokio_rustls::rustls::crypto::ring::default_provider;
        use tokio_rustls::rustls::{self, pki_types::PrivateKeyDer};
        let der = PrivateKeyDer::try_from(key.signing_key.serialize_der()).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], der))
            .expect("a config");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        (Arc::new(config).into(), listener)
    }

    #[test]
    fn history_follows_the_peers() {
        let history = History::default();
        let [a, b] = ["10.0.0.1:80", "10.0.0.2:80"].map(|addr| addr.parse().expect("an address"));
        let begin = Instant::now();
        let later = begin + Duration::from_secs(1);
        history.keep(&BTreeSet::from([backend(a)]), begin);
        history.probed(a, &Err("down".to_owned()));
        history.keep(&BTreeSet::from([backend(a), backend(b)]), later);
        assert_eq!(
            history.of(a),
            Some(Seen { since: begin, last: Err("down".to_owned()), inherited: false }),
            "it stays"
        );
        assert_eq!(history.of(b), Some(Seen { since: later, last: Ok(()), inherited: false }), "it is new");
        history.keep(&BTreeSet::from([backend(b)]), later);
        history.probed(a, &Ok(()));
        assert_eq!(history.of(a), None, "a probe that ends after its peer was dropped does not bring it back");
        history.changed(b, begin);
        assert_eq!(history.of(b).map(|seen| seen.since), Some(begin));
    }
}
