//! A client that sends exactly the bytes it is told to, and sees exactly what comes back.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{KEY, soon};

trait Connection: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Connection for T {}

/// One connection.
pub(crate) struct Client {
    stream: Pin<Box<dyn Connection>>,
    /// What was read beyond the last answer.
    buffer: Vec<u8>,
}

/// An answer, as far as it came.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, in the order they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing says. False: it broke off.
    pub(crate) complete: bool,
}

impl Client {
    pub(crate) async fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.expect("connects");
        stream.set_nodelay(true).expect("set");
        Self::over(stream)
    }

    /// Over any stream, TLS for one.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self { stream: Box::pin(stream), buffer: Vec::new() }
    }

    /// Sends bytes as they are. A connection that the other side has closed is no failure here: the answer tells.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        soon("what is sent is taken", async {
            if self.stream.write_all(bytes.as_ref()).await.is_ok() {
                self.stream.flush().await.ok();
            }
        })
        .await;
        self
    }

    /// Says that nothing more will be sent, and goes on listening.
    pub(crate) async fn finish(&mut self) -> &mut Self {
        self.stream.shutdown().await.ok();
        self
    }

    /// A request with the test's key.
    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Answer {
        self.send(post(path, &[], body).as_bytes()).await.answer().await
    }

    /// Reads one answer whole.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        soon("the answer ends", self.body(&mut answer)).await;
        answer
    }

    /// Reads the head of an answer. A connection that closes without one gives the status 0.
    pub(crate) async fn head(&mut self) -> Answer {
        soon("the head of an answer", async {
            loop {
                if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                    let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                    return parse(&head);
                }
                if self.more().await == 0 {
                    return Answer { status: 0, headers: Vec::new(), body: Vec::new(), complete: false };
                }
            }
        })
        .await
    }

    /// Waits until `what` is among the bytes that have come and are not yet read. They stay to be read.
    pub(crate) async fn sees(&mut self, what: impl AsRef<[u8]>) {
        let what = what.as_ref();
        soon(&format!("{:?} at the client", String::from_utf8_lossy(what)), async {
            while find(&self.buffer, what).is_none() {
                assert_ne!(self.more().await, 0, "closed before {:?} came", String::from_utf8_lossy(what));
            }
        })
        .await;
    }

    /// Reads at least one byte of what comes next, raw. Empty: the connection is closed.
    pub(crate) async fn piece(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            soon("the next bytes", self.more()).await;
        }
        std::mem::take(&mut self.buffer)
    }

    /// Reads until the other side closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        soon("the end of the connection", async { while self.more().await > 0 {} }).await;
        std::mem::take(&mut self.buffer)
    }

    async fn body(&mut self, answer: &mut Answer) {
        if answer.status == 0 || answer.status == 204 || answer.status == 304 {
            answer.complete = answer.status != 0;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().await {
                if chunk.is_empty() {
                    answer.complete = true;
                    return;
                }
                answer.body.extend(chunk);
            }
        } else if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().expect("a number");
            while self.buffer.len() < length && self.more().await > 0 {}
            let have = length.min(self.buffer.len());
            answer.body = self.buffer.drain(..have).collect();
            answer.complete = have == length;
        } else {
            while self.more().await > 0 {}
            answer.body = std::mem::take(&mut self.buffer);
            answer.complete = true;
        }
    }

    /// One chunk; an empty one is the last. `None`: the connection broke.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            match find(&self.buffer, b"\r\n") {
                Some(end) => break self.buffer.drain(..end + 2).collect::<Vec<_>>(),
                None if self.more().await == 0 => return None,
                None => {}
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
        while self.buffer.len() < size + 2 {
            if self.more().await == 0 {
                return None;
            }
        }
        let chunk: Vec<u8> = self.buffer.drain(..size + 2).collect();
        Some(chunk[..size].to_vec())
    }

    async fn more(&mut self) -> usize {
        let mut piece = vec![0; 64 * 1024];
        let read = self.stream.read(&mut piece).await.unwrap_or(0);
        self.buffer.extend_from_slice(&piece[..read]);
        read
    }
}

impl Answer {
    /// The value of a header that stands once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(have, _)| have == name);
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands twice: {:?}", self.headers);
        value.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| unreachable!("{error}: {self:?}"))
    }

    /// The code in OpenAI's envelope, which must have exactly its four members.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| unreachable!("no envelope: {body}"));
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
        let members: Vec<_> = error.keys().map(String::as_str).collect();
        assert_eq!(members, ["message", "type", "param", "code"]);
        error["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and code of a refusal.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.code())
    }
}

/// A request with the test's key, `headers` and a JSON body with its length.
pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "POST {path} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n\
         {more}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn parse(head: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status: status.expect("a status line"), headers, body: Vec::new(), complete: false }
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}
