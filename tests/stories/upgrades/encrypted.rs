//! Upgrades over TLS, on either side, and over HTTP/2, where there are none.

use std::sync::Arc;

use http::{Method, Request};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};
use tokio_rustls::server::TlsStream;

use super::{
    AGREED, Far, GOING_AWAY, Line, MASK, REALTIME, TEXT, asking, closing, conf, frame, noise, peers, same, saying,
};
use crate::support::gateway::scratch;
use crate::support::http2::{Begun, Http2, KNOWN, connect, issue, request, spawn};
use crate::support::vendor::Received;
use crate::support::{Gateway, PROVIDER_KEY, soon};

/// A vendor behind TLS, by the name `localhost`.
struct Sealed {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Sealed {
    async fn start(dir: &std::path::Path) -> Self {
        let certificate = CertificateDer::from_pem_file(dir.join("cert.pem")).expect("readable");
        let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).expect("readable");
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().expect("bound").port()
    }

    async fn called(&self) -> (Received, Line<TlsStream<TcpStream>>) {
        let (stream, _) = soon("a connection", self.listener.accept()).await.expect("accepted");
        let mut line = Line::over(soon("a handshake", self.acceptor.accept(stream)).await.expect("trusted"));
        (line.asked().await.expect("a request"), line)
    }
}

#[tokio::test]
async fn a_vendor_behind_tls_is_spoken_to_through_tls() {
    let dir = scratch();
    issue(&dir);
    let vendor = Sealed::start(&dir).await;
    let place = format!("base_url = \"https://localhost:{}/v1\"", vendor.port());
    let trusted = dir.join("cert.pem");
    let conf =
        peers(&place).with("[timeouts]\ntunnel_idle = \"1s\"").env("SSL_CERT_FILE", trusted.to_str().expect("a path"));
    let gateway = Gateway::spawn_in(&dir, conf).await;
    let (up, down) = (noise(11, 300_000), noise(12, 300_001));
    let mut near = Line::connect(&gateway).await;
    let (head, behind) = (asking(REALTIME, ""), &up[..3000]);
    let talk = async {
        near.send([head.as_bytes(), behind].concat()).await;
        assert_eq!(near.answer().await.status, 101);
        near.exchange(&up[3000..], down.len()).await
    };
    let serve = async {
        let (request, mut far) = vendor.called().await;
        assert_eq!(request.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
        assert_eq!(request.header("host"), Some(format!("localhost:{}", vendor.port()).as_str()));
        far.send([AGREED.as_bytes(), &down[..1000]].concat()).await;
        let asked = far.exchange(&down[1000..], up.len()).await;
        (asked, far)
    };
    let (heard, (asked, mut far)) = tokio::join!(talk, serve);
    same(&heard, &down, "down");
    same(&asked, &up, "up");
    drop(near);
    assert!(far.rest().await.is_empty(), "seen through TLS too");
    // One of ours: it is told through TLS as well.
    let mut near = Line::connect(&gateway).await;
    near.send(asking(REALTIME, "")).await;
    let (_, mut far) = vendor.called().await;
    far.send(AGREED).await;
    let answer = near.answer().await;
    let (told, heard) = tokio::join!(near.rest(), far.rest());
    assert_eq!((closing(&told).0, closing(&heard).0, closing(&heard).2), (GOING_AWAY, GOING_AWAY, true));
    assert_eq!(gateway.record_of("usage", &answer).await["end"], "timeout");
}

/// A certificate that is not trusted, or for another name, is no vendor.
#[tokio::test]
async fn a_vendor_that_is_not_trusted_is_not_spoken_to() {
    let dir = scratch();
    issue(&dir);
    let vendor = Sealed::start(&dir).await;
    let accept = async {
        let (stream, _) = vendor.listener.accept().await.expect("accepted");
        vendor.acceptor.accept(stream).await.err()
    };
    let gateway = Gateway::spawn(peers(&format!("base_url = \"https://localhost:{}/v1\"", vendor.port()))).await;
    let mut client = gateway.client().await;
    let ask = async { client.send(asking(REALTIME, "")).await.answer().await };
    let (refused, answer) = tokio::join!(soon("a handshake", accept), ask);
    assert!(refused.is_some(), "the gateway hung up");
    assert_eq!(answer.refusal(), (502, "upstream_tls".to_owned()));
}

#[tokio::test]
async fn a_client_behind_tls_gets_its_tunnel() {
    let mut vendor = Far::start().await;
    let (gateway, certificate) = spawn(conf(vendor.port)).await;
    for (addr, offered) in [(&gateway.addrs[1], &["http/1.1"][..]), (&gateway.addrs[2], &[])] {
        let mut near = Line::over(connect(addr, &certificate, offered).await.expect("a handshake"));
        let (up, down) = (frame(TEXT, &noise(13, 100_000), MASK), frame(TEXT, &noise(14, 100_000), None));
        let talk = async {
            near.send([asking(REALTIME, "").as_bytes(), &up[..2000]].concat()).await;
            let answer = near.answer().await;
            (answer, near.exchange(&up[2000..], down.len()).await)
        };
        let serve = async {
            let (_, mut far) = vendor.called().await;
            far.send([AGREED.as_bytes(), &down[..2000]].concat()).await;
            (far.exchange(&down[2000..], up.len()).await, far)
        };
        let ((answer, heard), (asked, mut far)) = tokio::join!(talk, serve);
        assert_eq!(answer.status, 101, "{answer:?}");
        same(&heard, &down, "down");
        same(&asked, &up, "up");
        far.finish().await;
        assert!(near.rest().await.is_empty(), "closed in order, with an alert");
    }
}

/// RFC 8441 is not spoken here: it is not announced, and who tries all the same is told.
#[tokio::test]
async fn http2_has_no_upgrades_and_says_so() {
    let vendor = saying(AGREED).await;
    let (gateway, certificate) = spawn(conf(vendor.port)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    // The settings have come with the first answer.
    assert_eq!(client.ask(request(Method::GET, "/livez", &[]), "").await.status, 200);
    assert!(!client.send.is_extended_connect_protocol_enabled(), "not announced");
    let mut extended = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://localhost{REALTIME}"))
        .header(KNOWN.0, KNOWN.1)
        .header("sec-websocket-version", "13")
        .body(())
        .expect("a head");
    extended.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, _send) = client.open(extended, true).await;
    match Begun::of(answer).await {
        Ok(begun) => {
            let answer = begun.whole().await;
            assert!((400..=501).contains(&answer.status), "{answer:?}");
            assert_eq!((answer.complete, answer.header("x-aulos-origin")), (true, Some("aulos")), "{answer:?}");
        }
        Err(error) => assert!(error.reason().is_some(), "a reset of its stream says why: {error}"),
    }
    assert!(vendor.heads().is_empty(), "nothing went up");
    // The connection is as good as before.
    assert_eq!(client.ask(request(Method::GET, "/livez", &[]), "").await.status, 200);
}
