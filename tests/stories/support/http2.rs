//! A gateway behind TLS, and a client that speaks HTTP/2 to it.

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::gateway::{SPEECH, scratch};
use super::{Answer, Conf, Gateway, KEY, soon};

pub(crate) const SPEECH_PATH: &str = "/v1/audio/speech";
/// The listeners of every gateway here: clear text, TLS with HTTP/2, TLS without.
pub(crate) const LISTEN: &str = r#"listen = [
    "127.0.0.1:0",
    { addr = "127.0.0.1:0", cert = "cert.pem", key = "key.pem" },
    { addr = "127.0.0.1:0", cert = "cert.pem", key = "key.pem", h2 = false },
]"#;

pub(crate) type Certificate = CertificateDer<'static>;

/// Makes a certificate for `localhost`, and puts it and its key where the config says.
pub(crate) fn issue(dir: &Path) -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    made.cert.der().clone()
}

/// A gateway with all three listeners, and its certificate.
pub(crate) async fn spawn(conf: Conf) -> (Gateway, Certificate) {
    let dir = scratch();
    let certificate = issue(&dir);
    (Gateway::spawn_in(&dir, conf.listen(LISTEN)).await, certificate)
}

/// A connection to a listener, by somebody who trusts one certificate only. An error: the handshake failed.
pub(crate) async fn connect(
    addr: &str,
    trusted: &Certificate,
    offered: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(addr).await.expect("connects");
    stream.set_nodelay(true).expect("set");
    let name = ServerName::try_from("localhost").expect("a name");
    soon("the handshake ends", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// A connection of a client that speaks HTTP/2.
pub(crate) struct Http2 {
    pub(crate) send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub(crate) ended: JoinHandle<Result<(), h2::Error>>,
}

/// An answer that has begun.
pub(crate) struct Begun {
    pub(crate) head: Answer,
    pub(crate) body: RecvStream,
}

impl Http2 {
    pub(crate) async fn connect(gateway: &Gateway, trusted: &Certificate) -> Self {
        let stream = connect(&gateway.addrs[1], trusted, &["h2", "http/1.1"]).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        Self { send, ended: tokio::spawn(connection) }
    }

    /// Sends a head, and lets the body follow. No body: it is complete.
    pub(crate) async fn open(&mut self, head: Request<()>, body: bool) -> (ResponseFuture, SendStream<Bytes>) {
        poll_fn(|cx| self.send.poll_ready(cx)).await.expect("the connection is open");
        self.send.send_request(head, !body).expect("sent")
    }

    /// Sends a request whose body is small.
    pub(crate) async fn begin(&mut self, head: Request<()>, body: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let (answer, mut send) = self.open(head, !body.is_empty()).await;
        if !body.is_empty() {
            send.send_data(Bytes::copy_from_slice(body.as_bytes()), true).expect("sent");
        }
        (answer, send)
    }

    pub(crate) async fn ask(&mut self, head: Request<()>, body: &str) -> Answer {
        let (answer, _send) = self.begin(head, body).await;
        Begun::of(answer).await.expect("an answer").whole().await
    }

    pub(crate) async fn speak(&mut self) -> Answer {
        self.ask(speech(), SPEECH).await
    }
}

impl Begun {
    pub(crate) async fn of(answer: ResponseFuture) -> Result<Self, h2::Error> {
        let (head, body) = soon("the head of an answer", answer).await?.into_parts();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let head = Answer { status: head.status.as_u16(), headers, body: Vec::new(), complete: false };
        Ok(Self { head, body })
    }

    /// The next piece. `None`: the end, which may come with an empty frame. An error: the stream was broken off.
    pub(crate) async fn piece(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let piece = soon("the next piece", self.body.data()).await;
        if let Some(Ok(piece)) = &piece {
            self.body.flow_control().release_capacity(piece.len()).expect("within the window");
        }
        piece.filter(|piece| !matches!(piece, Ok(piece) if piece.is_empty() && self.body.is_end_stream()))
    }

    pub(crate) async fn whole(mut self) -> Answer {
        while let Some(piece) = self.piece().await {
            match piece {
                Ok(piece) => self.head.body.extend_from_slice(&piece),
                Err(_) => return self.head,
            }
        }
        self.head.complete = true;
        self.head
    }
}

pub(crate) fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a head")
}

/// The test's key.
pub(crate) const KNOWN: (&str, &str) = ("x-api-key", KEY);

pub(crate) fn speech() -> Request<()> {
    request(Method::POST, SPEECH_PATH, &[KNOWN, ("content-type", "application/json")])
}

/// Sends `bytes` as far as the other side takes them.
pub(crate) async fn pour(send: &mut SendStream<Bytes>, bytes: Bytes) {
    let mut rest = bytes;
    while !rest.is_empty() {
        send.reserve_capacity(rest.len());
        let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        let piece = rest.split_to(room.min(rest.len()));
        if send.send_data(piece, rest.is_empty()).is_err() {
            return;
        }
    }
}
