//! The first to see a connection's bytes: reads each HTTP/1 head whole, under one deadline and strict rules, and
//! hands it to Pingora as a prefix. What Pingora would pass on leniently, or answer with an empty 400, is answered
//! here in the client's dialect and recorded.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::BytesMut;
use http::StatusCode;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{timeout, timeout_at};
use uuid::Uuid;

use crate::desk::Desk;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::listen::live::{live, live_h2};
use crate::listen::signals::{Connections, Protocol};
use crate::refusal::Refusal;
use crate::stage::record::{Client, End, PATH_BYTES_MAX, Request};
use crate::state::State;
use crate::units::printable;
use crate::wire::head::{FaultKind, Limits, METHOD_BYTES_MAX, Reader};

/// How long a connection may be idle between two requests.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// A head usually fits; the rest of the buffer takes the first bytes of the body.
const FIRST_READ: usize = 4 * 1024;
/// After a refusal the client is listened to for a moment, so that it sees the answer and not a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Stands between the listeners and the proxy.
pub struct Front {
    proxy: Arc<HttpProxy<Gateway>>,
    state: Arc<ArcSwap<State>>,
    desk: Arc<Desk>,
    connections: Arc<Connections>,
}

/// Why a connection ends without a request.
enum Ended {
    /// The client closed it, was idle, or the gateway stops.
    Quietly,
    Refused(Refusal, Box<Request>),
}

impl Front {
    pub fn new(
        proxy: HttpProxy<Gateway>,
        state: Arc<ArcSwap<State>>,
        desk: Arc<Desk>,
        connections: Arc<Connections>,
    ) -> Self {
        Self { proxy: Arc::new(proxy), state, desk, connections }
    }

    /// Serves one request after the other.
    async fn serve(&self, mut stream: Stream, shutdown: &ShutdownWatch) {
        let mut kept: Option<HttpPersistentSettings> = None;
        loop {
            let deadline = self.state.load().settings.timeouts.header;
            let head = match head(&mut stream, shutdown.clone(), deadline).await {
                Ok(head) => head,
                Err(Ended::Quietly) => return,
                Err(Ended::Refused(refusal, request)) => return self.refuse(stream, &refusal, *request).await,
            };
            let mut session = ServerSession::new_http1(stream);
            match kept.take() {
                Some(kept) => kept.apply_to_session(&mut session),
                None => session.set_keepalive(Some(KEEPALIVE.as_secs())),
            }
            session.set_pipelined_prefix(head);
            let Some(reused) = self.proxy.process_new_http(session, shutdown).await else { return };
            (stream, kept) = reused.consume();
        }
    }

    async fn refuse(&self, mut stream: Stream, refusal: &Refusal, mut request: Request) {
        request.client.ip = client_ip(&stream);
        let now = self.desk.now();
        let id = self.desk.id(now);
        self.desk.metrics.head_refusals.with_label_values(&[refusal.code()]).inc();
        let answer = plain_answer(refusal, id);
        let exchange = Exchange::new(id, Instant::now(), now, self.state.load_full(), Arc::clone(&self.desk.metrics));
        self.record(exchange, refusal, request);
        if stream.write_all(answer.as_bytes()).await.is_ok() && stream.flush().await.is_ok() {
            linger(&mut stream).await;
        }
        stream.shutdown().await.ok();
    }

    fn record(&self, mut exchange: Exchange, refusal: &Refusal, request: Request) {
        exchange.request = request;
        exchange.status = Some(refusal.status());
        let audited = match self.desk.records.reserve() {
            Some(slot) => {
                exchange.begin(slot, None);
                self.desk.may_audit_a_stranger(Instant::now())
            }
            None => {
                self.desk.metrics.unrecorded_refusals.inc();
                false
            }
        };
        exchange.end(End::Refused, Some(refusal.code()), Instant::now(), audited);
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let timeouts = self.state.load().settings.timeouts.clone();
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            let _connection = self.connections.enter(Protocol::Http2);
            let stream = live_h2(stream, timeouts.idle, timeouts.header);
            return self.proxy.process_new(stream, shutdown).await;
        }
        let _connection = self.connections.enter(Protocol::Http1);
        self.serve(live(stream, timeouts.idle), shutdown).await;
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// Reads until a whole head is there, and whatever came with it.
async fn head(stream: &mut Stream, mut shutdown: ShutdownWatch, deadline: Duration) -> Result<BytesMut, Ended> {
    let mut buf = BytesMut::with_capacity(FIRST_READ);
    let first = tokio::select! {
        biased;
        read = timeout(KEEPALIVE, stream.read_buf(&mut buf)) => read,
        _ = shutdown.wait_for(|stopping| *stopping) => return Err(Ended::Quietly),
    };
    if !matches!(first, Ok(Ok(1..))) {
        return Err(Ended::Quietly);
    }
    // Most heads come whole, and nobody looks at the clock for them.
    let mut late = None;
    let mut reader = Reader::new(Limits::default());
    loop {
        match reader.look(&buf) {
            Ok(Some(_)) => return Ok(buf),
            Ok(None) => {}
            Err(fault) => {
                let text = |range: Option<std::ops::Range<usize>>| {
                    range.and_then(|range| buf.get(range)).unwrap_or_default().to_vec()
                };
                let request = request(&text(fault.method), &text(fault.target));
                return Err(Ended::Refused(refusal(fault.kind), Box::new(request)));
            }
        }
        let late = *late.get_or_insert_with(|| tokio::time::Instant::now() + deadline);
        let read = tokio::select! {
            biased;
            read = timeout_at(late, stream.read_buf(&mut buf)) => read,
            _ = shutdown.wait_for(|stopping| *stopping) => return Err(Ended::Quietly),
        };
        match read {
            Ok(Ok(1..)) => {}
            Ok(_) => return Err(Ended::Quietly),
            Err(_) => return Err(Ended::Refused(Refusal::HeadTimeout, Box::default())),
        }
    }
}

fn refusal(fault: FaultKind) -> Refusal {
    match fault {
        FaultKind::Invalid(why) => Refusal::InvalidHead(Cow::Borrowed(why)),
        FaultKind::UnknownCoding => Refusal::InvalidHead("its Transfer-Encoding is not exactly `chunked`".into()),
        FaultKind::HeadTooLarge(what) => Refusal::HeadTooLarge(what),
        FaultKind::TargetTooLong => Refusal::TargetTooLong,
        FaultKind::Version => Refusal::HttpVersion,
        FaultKind::Method(method) => Refusal::MethodNotAllowed { method: method.to_owned(), allow: "GET, HEAD, POST" },
    }
}

fn request(method: &[u8], target: &[u8]) -> Request {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    Request {
        client: Client::default(),
        method: printable(method, METHOD_BYTES_MAX),
        path: printable(path, PATH_BYTES_MAX),
        http: "1.1",
    }
}

/// The address at the other end.
fn client_ip(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip())
}

/// A refusal as it stands on the wire, for a connection that ends with it.
fn plain_answer(refusal: &Refusal, id: Uuid) -> String {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let body = String::from_utf8_lossy(&refusal.body()).into_owned();
    let mut answer = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    for (name, value) in refusal.headers() {
        let _ = write!(answer, "{name}: {value}\r\n");
    }
    let _ = write!(
        answer,
        "content-type: application/json\r\ncontent-length: {}\r\nx-aulos-request-id: {id}\r\nx-request-id: {id}\r\n\
         x-aulos-origin: aulos\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    answer
}

/// Reads and forgets what the client is still sending.
async fn linger(stream: &mut Stream) {
    let mut heard = 0;
    let mut buf = vec![0; 16 * 1024];
    timeout(LINGER, async {
        while let Ok(read @ 1..) = stream.read(&mut buf).await {
            heard += read;
            if heard > LINGER_BYTES_MAX {
                break;
            }
        }
    })
    .await
    .ok();
}
