//! A provider behind TLS that does not prove who it is, or cannot: it is told nothing, and the next one serves.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, rustls};

use super::matrix::{goes_on, is_asked_once};
use super::{GOOD_KEY, Kind, ask, attempts, good, is_served, key_of, provider};
use crate::support::gateway::scratch;
use crate::support::{Conf, Gateway, PROVIDER_KEY, Vendor, until};

/// The name the provider goes by.
const NAME: &str = "vendor.test";

/// What is wrong with a provider, and the last it hears of whoever found that out: why it is not to be trusted. The
/// alerts of those that speak TLS 1.0 are as they stand on the wire; who ends it by itself hears none.
const FAULTS: [(&str, &str); 7] = [
    ("self-signed", "received fatal alert: UnknownCA"),
    ("forged", "received fatal alert: DecryptError"),
    ("expired", "received fatal alert: CertificateExpired"),
    ("another's", "received fatal alert: BadCertificate"),
    ("TLS 1.0", ""),
    ("TLS 1.0 of old", ""),
    ("TLS 1.0 all the same", "15030300020246"),
];

/// How a server that speaks nothing newer than TLS 1.0 answers somebody who speaks nothing older than TLS 1.2.
fn old(fault: &str) -> Option<Vec<u8>> {
    const CHOSEN: &[u8] = b"\x16\x03\x01\0\x2a\x02\0\0\x26\x03\x01";
    match fault {
        // One that is kept to it by its config knows the extension that lists versions: protocol_version, as OpenSSL 3
        // says it.
        "TLS 1.0" => Some(b"\x15\x03\x03\0\x02\x02\x46".to_vec()),
        // One from before that extension takes it that everybody speaks all that is older, and finds no cipher suite
        // it knows, as those that are offered came with TLS 1.2: handshake_failure.
        "TLS 1.0 of old" => Some(b"\x15\x03\x01\0\x02\x02\x28".to_vec()),
        // No server in order does this, and whoever wants to read what is sent does: it chooses TLS 1.0 and a suite of
        // that time, TLS_RSA_WITH_AES_128_CBC_SHA, whatever was offered.
        "TLS 1.0 all the same" => Some([CHOSEN, &[7; 32], b"\0\0\x2f\0"].concat()),
        _ => None,
    }
}

/// A certificate and its key.
type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Who vouches for certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("made")).expect("made"))
    }

    /// A certificate for `name` that is good until a year begins.
    fn issue(&self, name: &str, year: i32) -> Pair {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("made");
        let made = params.signed_by(&key, &self.0).expect("made");
        (made.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// A gateway on a machine that trusts it, and nobody else.
    async fn gateway(&self, conf: Conf) -> Gateway {
        let dir = scratch();
        let roots = dir.join("roots.pem");
        std::fs::write(&roots, self.0.pem()).expect("written");
        Gateway::spawn_in(&dir, conf.env("SSL_CERT_FILE", &roots.display().to_string())).await
    }
}

/// Nobody vouches for it but itself.
fn self_signed() -> Pair {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("made");
    (made.cert.der().clone(), PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()))
}

/// TLS, and behind it a vendor in good order, which gets all that can be deciphered.
struct Front {
    port: u16,
    vendor: Vendor,
    /// What was said last on each connection that came to nothing.
    farewells: Arc<Mutex<Vec<String>>>,
}

impl Front {
    /// `fault`: one of those above.
    async fn failing(fault: &str, authority: &Authority) -> Self {
        if let Some(answer) = old(fault) {
            return Self::start(move |stream, _| {
                let answer = answer.clone();
                async move { Some(end(stream, &answer).await) }
            })
            .await;
        }
        let pair = match fault {
            // Somebody else's, who goes by the same name.
            "forged" => Authority::new().issue(NAME, 4096),
            "expired" => authority.issue(NAME, 2020),
            "another's" => authority.issue("another.test", 4096),
            _ => self_signed(),
        };
        Self::with(pair, rustls::ALL_VERSIONS).await
    }

    /// Speaks these versions.
    async fn with((certificate, key): Pair, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(ring).with_protocol_versions(versions);
        let config = config.expect("known").with_no_client_auth().with_single_cert(vec![certificate], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
        Self::start(move |stream, vendor| {
            let acceptor = acceptor.clone();
            async move {
                match acceptor.accept(stream).await {
                    Ok(mut stream) => {
                        let mut behind = TcpStream::connect(("127.0.0.1", vendor)).await.expect("connects");
                        copy_bidirectional(&mut stream, &mut behind).await.ok();
                        None
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
        })
        .await
    }

    /// `meet` gets each connection and the vendor's port, and gives what was said last where it came to nothing.
    async fn start<F>(meet: impl Fn(TcpStream, u16) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Option<String>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let (vendor, farewells) = (good().await, Arc::<Mutex<Vec<String>>>::default());
        let (behind, heard) = (vendor.port, Arc::clone(&farewells));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (met, heard) = (meet(stream, behind), Arc::clone(&heard));
                tokio::spawn(async move {
                    if let Some(farewell) = met.await {
                        heard.lock().expect("no test panics with it").push(farewell);
                    }
                });
            }
        });
        Self { port, vendor, farewells }
    }

    /// So many connections came to nothing, all with these words.
    async fn is_told_nothing(&self, connections: usize, farewell: &str, label: &str) {
        let heard = until(&format!("{connections} connections that come to nothing, {label}"), || {
            assert_eq!(self.vendor.connections(), 0, "{label}: something could be deciphered");
            let heard = self.farewells.lock().expect("no test panics with it").clone();
            (heard.len() >= connections).then_some(heard)
        })
        .await;
        assert_eq!(heard, vec![farewell; connections], "{label}");
    }

    /// A provider called `bad`, found here by its name.
    fn provider(&self, health: &str) -> String {
        let (port, keys) = (self.port, "keys = [\"${PROVIDER_KEY}\"]");
        let peers = format!("peers = [\"127.0.0.1:{port}\"]\nhealth = \"{health}\"");
        format!("[providers.bad]\nkind = \"openai\"\nbase_url = \"https://{NAME}/v1\"\n{keys}\n{peers}\n")
    }
}

/// Reads a greeting, gives this answer, and tells all that comes behind, in hexadecimal.
async fn end(mut stream: TcpStream, answer: &[u8]) -> String {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.expect("a record");
    let mut greeting = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut greeting).await.expect("a whole one");
    stream.write_all(answer).await.expect("is taken");
    let mut behind = Vec::new();
    stream.read_to_end(&mut behind).await.ok();
    behind.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model at both providers.
fn two(bad: &Front, good: &Vendor) -> Conf {
    Conf::new()
        .env("GOOD_KEY", GOOD_KEY)
        .with(&bad.provider("off"))
        .with(&provider("good", good.port, &["GOOD_KEY"]))
        .with("[models.house]\nroutes = [\"bad/m1\", \"good/their/m2\"]")
}

#[tokio::test]
async fn a_provider_that_cannot_be_trusted_is_told_nothing_and_the_next_one_serves() {
    let authority = Authority::new();
    for (fault, farewell) in FAULTS {
        let (bad, good) = (Front::failing(fault, &authority).await, good().await);
        let gateway = authority.gateway(two(&bad, &good)).await;
        for kind in Kind::ALL {
            let label = format!("{fault}, {kind:?}");
            let mut client = gateway.client().await;
            client.send(kind.request("house", &label)).await;
            let answer = client.answer().await;
            is_served(&answer, kind, &label);
            assert_eq!(attempts(&gateway, &answer).await, ["bad/m1 1 - tls", "good/their/m2 1 200 -"], "{label}");
            is_asked_once(&good, kind, &label);
            goes_on(&gateway, &mut client, &label).await;
        }
        bad.is_told_nothing(Kind::ALL.len(), farewell, fault).await;
        gateway.metric_is("aulos_failovers_total{provider=\"bad\",reason=\"tls\"}", 4).await;
        gateway.metric_is("aulos_spool_bytes", 0).await;
        assert!(!gateway.log().contains(PROVIDER_KEY), "{fault}");
    }
}

#[tokio::test]
async fn where_there_is_no_other_provider_the_client_is_told_why() {
    let authority = Authority::new();
    for (fault, farewell) in FAULTS {
        let (bad, good) = (Front::failing(fault, &authority).await, good().await);
        let gateway = authority.gateway(two(&bad, &good)).await;
        for kind in Kind::ALL {
            let label = format!("{fault}, {kind:?}");
            let mut client = gateway.client().await;
            client.send(kind.request("bad/m1", &label)).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.complete), (502, true), "{label}");
            assert_eq!(answer.refusal(), (502, "upstream_tls".into()), "{label}");
            assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
            assert_eq!(attempts(&gateway, &answer).await, ["bad/m1 1 - tls"], "{label}");
            assert_eq!(gateway.record_of("usage", &answer).await["end"], "upstream_failed", "{label}");
            if answer.header("connection") == Some("close") {
                assert!(client.rest().await.is_empty(), "{label}: nothing behind the answer");
                client = gateway.client().await;
            }
            goes_on(&gateway, &mut client, &label).await;
        }
        bad.is_told_nothing(Kind::ALL.len(), farewell, fault).await;
        gateway.metric_is("aulos_upstream_errors_total{provider=\"bad\",reason=\"tls\"}", 4).await;
        gateway.metric_is("aulos_spool_bytes", 0).await;
    }
}

/// A probe over HTTP carries the credential.
#[tokio::test]
async fn nor_is_it_told_anything_by_a_probe() {
    let authority = Authority::new();
    for (fault, farewell) in FAULTS {
        let bad = Front::failing(fault, &authority).await;
        let _gateway = authority.gateway(Conf::new().with(&bad.provider("http"))).await;
        bad.is_told_nothing(1, farewell, fault).await;
    }
}

/// What the others lack: the same authority, the same name, a certificate of today.
#[tokio::test]
async fn a_provider_that_proves_who_it_is_serves_all_of_it() {
    let authority = Authority::new();
    for version in [&version::TLS12, &version::TLS13] {
        let front = Front::with(authority.issue(NAME, 4096), &[version]).await;
        let gateway = authority.gateway(Conf::new().with(&front.provider("http"))).await;
        let probe = front.vendor.received(1).await.remove(0);
        assert_eq!((probe.method.as_str(), key_of(&probe).as_str()), ("GET", PROVIDER_KEY));
        for kind in Kind::ALL {
            let label = format!("{version:?}, {kind:?}");
            let answer = ask(&gateway, kind, "bad/m1", &label).await;
            is_served(&answer, kind, &label);
            let sent = front.vendor.requests().into_iter().rfind(|request| request.method == "POST").expect("asked");
            sent.is_exactly(&kind.body("m1", &label), &label);
            assert_eq!((key_of(&sent).as_str(), sent.header("host")), (PROVIDER_KEY, Some(NAME)), "{label}");
        }
        // It is the authority that is trusted, not whatever is new enough and has the right name.
        let gateway = Gateway::spawn(Conf::new().with(&front.provider("off"))).await;
        let answer = ask(&gateway, Kind::Speech, "bad/m1", "x").await;
        assert_eq!(answer.refusal(), (502, "upstream_tls".into()), "{version:?}");
    }
}
