//! A fake vendor: it keeps what it was sent, byte for byte, and answers whatever a story scripts.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::client::find;
use super::soon;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Empty as long as only the head is here.
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub(crate) connection: usize,
}

impl Received {
    /// The value of a header that stands once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(have, _)| have == name);
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands twice");
        value.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What was sent is `body`, and its head says how long it is in one way.
    pub(crate) fn is_exactly(&self, body: &[u8], label: &str) {
        let at = self.body.iter().zip(body).position(|(got, want)| got != want);
        assert!(self.body == body, "{label}: {} bytes for {}, other from {at:?} on", self.body.len(), body.len());
        match self.header("transfer-encoding") {
            Some(coding) => assert_eq!((coding, self.header("content-length")), ("chunked", None), "{label}"),
            None => assert_eq!(self.header("content-length"), Some(body.len().to_string().as_str()), "{label}"),
        }
    }
}

#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<Received>>,
    requests: Mutex<Vec<Received>>,
    /// How the request that is arriving on each connection begins, raw.
    heard: Mutex<Vec<Vec<u8>>>,
    closed: Mutex<usize>,
    changed: Notify,
}

/// Bytes of a request in which a story can look for something while it arrives.
const HEARD_BYTES_MAX: usize = 1 << 20;

impl Seen {
    fn note(&self, change: impl FnOnce(&Self)) {
        change(self);
        self.changed.notify_waiters();
    }
}

/// The vendor. Its connections end with the story's runtime.
pub(crate) struct Vendor {
    pub(crate) port: u16,
    seen: Arc<Seen>,
}

/// The vendor's end of one connection, while it answers one request.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    /// What was read beyond the last request.
    buffer: Vec<u8>,
    connection: usize,
    /// Requests that have begun on it.
    begun: usize,
    seen: Arc<Seen>,
}

impl Wire {
    /// Writes bytes as they are. A client that is gone is no failure: stories look for it with [`Wire::gone`].
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).await.ok();
        self.stream.flush().await.ok();
        self
    }

    /// A whole answer with its length.
    pub(crate) async fn answer(&mut self, status: &str, media: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n", body.len());
        self.write(head).await.write(body).await;
    }

    /// Resolves when the gateway closes the connection.
    pub(crate) async fn gone(&mut self) {
        while self.more().await.is_some() {}
    }

    /// Says that nothing more will be written, and goes on reading until the gateway closes.
    pub(crate) async fn linger(&mut self) {
        self.stream.shutdown().await.ok();
        self.gone().await;
    }

    /// Whether this is not the first request on its connection.
    pub(crate) fn is_used(&self) -> bool {
        self.begun > 1
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(&self) {
        self.stream.set_zero_linger().expect("set");
    }

    /// Reads the head of the next request. `None`: the connection ended.
    async fn head(&mut self) -> Option<Received> {
        let end = loop {
            match find(&self.buffer, b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.more().await?,
            }
        };
        let connection = self.connection;
        self.begun += 1;
        self.seen.note(|seen| {
            seen.heard.lock().expect("no test panics with it")[connection].clone_from(&self.buffer);
        });
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.lines();
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let head = Received { method, target, headers, body: Vec::new(), connection };
        self.seen.note(|seen| seen.heads.lock().expect("no test panics with it").push(head.clone()));
        Some(head)
    }

    /// Reads the body behind a head, by its length or in chunks. `None`: the connection ended before it did.
    pub(crate) async fn whole(&mut self, mut request: Received) -> Option<Received> {
        request.body = if request.header("transfer-encoding").is_some() {
            self.chunked().await?
        } else {
            let length: usize = request.header("content-length").map_or(0, |length| length.parse().expect("a number"));
            while self.buffer.len() < length {
                self.more().await?;
            }
            self.buffer.drain(..length).collect()
        };
        self.forget();
        self.seen.note(|seen| seen.requests.lock().expect("no test panics with it").push(request.clone()));
        Some(request)
    }

    /// Reads on until `check` finds something in what has come behind the head. It stays there to be read.
    pub(crate) async fn finds<T>(&mut self, check: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        loop {
            match check(&self.buffer) {
                Some(found) => return Some(found),
                None => self.more().await?,
            }
        }
    }

    fn forget(&self) {
        self.seen.heard.lock().expect("no test panics with it")[self.connection].clear();
    }

    async fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                match find(&self.buffer, b"\r\n") {
                    Some(end) => break self.buffer.drain(..end + 2).collect::<Vec<_>>(),
                    None => self.more().await?,
                }
            };
            let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
            while self.buffer.len() < size + 2 {
                self.more().await?;
            }
            body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
            if size == 0 {
                return Some(body);
            }
        }
    }

    async fn more(&mut self) -> Option<()> {
        let mut piece = vec![0; 64 * 1024];
        match self.stream.read(&mut piece).await {
            Ok(read @ 1..) => {
                let piece = &piece[..read];
                self.buffer.extend_from_slice(piece);
                let connection = self.connection;
                self.seen.note(|seen| {
                    let heard = &mut seen.heard.lock().expect("no test panics with it")[connection];
                    let room = HEARD_BYTES_MAX.saturating_sub(heard.len());
                    heard.extend_from_slice(&piece[..read.min(room)]);
                });
                Some(())
            }
            _ => None,
        }
    }
}

/// What ends here is not arriving any more.
impl Drop for Wire {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Vendor {
    /// Answers every request with `script`, which gives back the wire to go on with, or `None` to close it.
    pub(crate) async fn start<S, F>(script: S) -> Self
    where
        S: Fn(Received, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        let script = Arc::new(script);
        Self::early(move |head, mut wire| {
            let script = Arc::clone(&script);
            async move {
                let request = wire.whole(head).await?;
                script(request, wire).await
            }
        })
        .await
    }

    /// The same, but the script is asked as soon as the head is here: the body is its own to read, or not.
    pub(crate) async fn early<S, F>(script: S) -> Self
    where
        S: Fn(Received, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        Self::at(TcpListener::bind("127.0.0.1:0").await.expect("binds"), script)
    }

    /// The same, behind a listener of the story's own.
    pub(crate) fn at<S, F>(listener: TcpListener, script: S) -> Self
    where
        S: Fn(Received, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        let port = listener.local_addr().expect("bound").port();
        let seen = Arc::new(Seen::default());
        let (script, keep) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let (script, seen) = (Arc::clone(&script), Arc::clone(&keep));
                let connection = {
                    let mut heard = seen.heard.lock().expect("no test panics with it");
                    heard.push(Vec::new());
                    heard.len() - 1
                };
                seen.changed.notify_waiters();
                tokio::spawn(async move {
                    let mut wire = Wire { stream, buffer: Vec::new(), connection, begun: 0, seen: Arc::clone(&seen) };
                    while let Some(head) = wire.head().await {
                        match script(head, wire).await {
                            Some(next) => wire = next,
                            None => break,
                        }
                    }
                    seen.note(|seen| *seen.closed.lock().expect("no test panics with it") += 1);
                });
            }
        });
        Self { port, seen }
    }

    /// Answers every request with `body`, as this type, with its length.
    pub(crate) async fn speech(media: &'static str, body: &'static [u8]) -> Self {
        Self::start(move |_, mut wire| async move {
            wire.answer("200 OK", media, body).await;
            Some(wire)
        })
        .await
    }

    /// Writes these bytes to every request, then closes.
    pub(crate) async fn raw(bytes: impl AsRef<[u8]> + Clone + Send + Sync + 'static) -> Self {
        Self::start(move |_, mut wire| {
            let bytes = bytes.clone();
            async move {
                wire.write(bytes).await;
                None
            }
        })
        .await
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Everything it was sent so far, whole.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.seen.requests.lock().expect("no test panics with it").clone()
    }

    /// The heads of everything it was sent so far, whole or not.
    pub(crate) fn heads(&self) -> Vec<Received> {
        self.seen.heads.lock().expect("no test panics with it").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.heard.lock().expect("no test panics with it").len()
    }

    /// Waits until it has been sent `count` requests whole, and gives them.
    pub(crate) async fn received(&self, count: usize) -> Vec<Received> {
        self.wait("requests at the vendor", || Some(self.requests()).filter(|all| all.len() >= count)).await
    }

    /// Waits until `what` is in the beginning of a request that is not whole yet.
    pub(crate) async fn hears(&self, what: impl AsRef<[u8]>) {
        let what = what.as_ref();
        self.wait(&format!("{:?} at the vendor", String::from_utf8_lossy(what)), || {
            let heard = self.seen.heard.lock().expect("no test panics with it");
            heard.iter().any(|heard| find(heard, what).is_some()).then_some(())
        })
        .await;
    }

    /// Waits until `count` of its connections have ended.
    pub(crate) async fn closed(&self, count: usize) {
        self.wait("connections closed", || {
            (*self.seen.closed.lock().expect("no test panics with it") >= count).then_some(())
        })
        .await;
    }

    async fn wait<T>(&self, what: &str, check: impl Fn() -> Option<T>) -> T {
        soon(what, async {
            loop {
                let changed = self.seen.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = check() {
                    return found;
                }
                changed.await;
            }
        })
        .await
    }
}
