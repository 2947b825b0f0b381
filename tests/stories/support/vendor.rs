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
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Received>>,
    connections: Mutex<usize>,
    closed: Mutex<usize>,
    changed: Notify,
}

/// The vendor. Its connections end with the story's runtime.
pub(crate) struct Vendor {
    pub(crate) port: u16,
    seen: Arc<Seen>,
}

/// The vendor's end of one connection, while it answers one request.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
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
        let mut byte = [0; 1024];
        while let Ok(1..) = self.stream.read(&mut byte).await {}
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(&self) {
        self.stream.set_zero_linger().expect("set");
    }
}

impl Vendor {
    /// Answers every request with `script`, which gives back the wire to go on with, or `None` to close it.
    pub(crate) async fn start<S, F>(script: S) -> Self
    where
        S: Fn(Received, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let seen = Arc::new(Seen::default());
        let (script, keep) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let (script, seen) = (Arc::clone(&script), Arc::clone(&keep));
                let connection = {
                    let mut connections = seen.connections.lock().expect("no test panics with it");
                    *connections += 1;
                    *connections - 1
                };
                seen.changed.notify_waiters();
                tokio::spawn(async move {
                    let mut wire = Wire { stream };
                    let mut buffer = Vec::new();
                    while let Some(request) = receive(&mut wire.stream, &mut buffer, connection).await {
                        seen.requests.lock().expect("no test panics with it").push(request.clone());
                        seen.changed.notify_waiters();
                        match script(request, wire).await {
                            Some(next) => wire = next,
                            None => break,
                        }
                    }
                    *seen.closed.lock().expect("no test panics with it") += 1;
                    seen.changed.notify_waiters();
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

    /// Everything it was sent so far.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.seen.requests.lock().expect("no test panics with it").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.seen.connections.lock().expect("no test panics with it")
    }

    /// Waits until it has been sent `count` requests whole, and gives them.
    pub(crate) async fn received(&self, count: usize) -> Vec<Received> {
        self.wait("requests at the vendor", || Some(self.requests()).filter(|all| all.len() >= count)).await
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

/// Reads one request: its head, and a body by length or chunks. `None`: the connection ended.
async fn receive(stream: &mut TcpStream, buffer: &mut Vec<u8>, connection: usize) -> Option<Received> {
    let end = loop {
        match find(buffer, b"\r\n\r\n") {
            Some(end) => break end + 4,
            None => more(stream, buffer).await?,
        }
    };
    let head: Vec<u8> = buffer.drain(..end).collect();
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
    let body = if header("transfer-encoding").is_some() {
        chunked(stream, buffer).await?
    } else {
        let length: usize = header("content-length").map_or(0, |length| length.parse().expect("a number"));
        while buffer.len() < length {
            more(stream, buffer).await?;
        }
        buffer.drain(..length).collect()
    };
    Some(Received { method, target, headers, body, connection })
}

async fn chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = loop {
            match find(buffer, b"\r\n") {
                Some(end) => break buffer.drain(..end + 2).collect::<Vec<_>>(),
                None => more(stream, buffer).await?,
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
        while buffer.len() < size + 2 {
            more(stream, buffer).await?;
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
        if size == 0 {
            return Some(body);
        }
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut piece = vec![0; 64 * 1024];
    match stream.read(&mut piece).await {
        Ok(read @ 1..) => {
            buffer.extend_from_slice(&piece[..read]);
            Some(())
        }
        _ => None,
    }
}
