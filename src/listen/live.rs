//! A client's connection, for audio that is made while it is heard.
//!
//! Pingora flushes an answer with a length only at its end, or when a buffer is full. Here the connection is
//! flushed whenever its reader has nothing to read, which is when the proxy has nothing to do: each piece goes out
//! as it arrives, and the length stays. And a client that takes nothing for too long is let go, however slowly it
//! may read otherwise.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What every HTTP/2 client begins with (RFC 9113 §3.4), in bytes.
const GREETING_BYTES: usize = 24;

/// Wraps `stream`. `stall`: how long the client may take nothing at all.
pub fn live(stream: Stream, stall: Duration) -> Stream {
    Box::new(Live { inner: stream, unflushed: false, stall, stalled: None, greeting: None })
}

/// The same for HTTP/2, whose client has to begin within `greeting`: Pingora would wait for it without end.
pub fn live_h2(stream: Stream, stall: Duration, greeting: Duration) -> Stream {
    let greeting = Some((GREETING_BYTES, Box::pin(sleep(greeting))));
    Box::new(Live { inner: stream, unflushed: false, stall, stalled: None, greeting })
}

struct Live {
    inner: Stream,
    /// Bytes were written that may still be in a buffer.
    unflushed: bool,
    stall: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes of the greeting that are still to come, and the time they have.
    greeting: Option<(usize, Pin<Box<Sleep>>)>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Live {
    /// Passes progress on; without progress, the time runs.
    fn timed<T>(&mut self, cx: &mut Context<'_>, progress: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let stall = self.stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl AsyncRead for Live {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some((missing, timer)) = &mut self.greeting {
            *missing = missing.saturating_sub(buf.filled().len() - before);
            if *missing == 0 {
                self.greeting = None;
            } else if read.is_pending() && timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the client says nothing")));
            }
        }
        if read.is_pending() && self.unflushed && Pin::new(&mut self.inner).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        read
    }
}

impl AsyncWrite for Live {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.unflushed = true;
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.timed(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.unflushed = true;
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unflushed = false;
        }
        self.timed(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.timed(cx, shut)
    }
}

#[async_trait]
impl Shutdown for Live {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Live {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Live {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Live {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Live {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Live {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[async_trait]
impl Peek for Live {}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_core::protocols::l4::stream::Stream as L4Stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair(stall: Duration) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (server, _) = listener.accept().await.expect("accepts");
        (live(Box::new(L4Stream::from(server)), stall), client)
    }

    #[tokio::test]
    async fn what_was_written_goes_out_when_the_reader_goes_idle() {
        let (mut server, mut client) = pair(Duration::from_secs(60)).await;
        server.write_all(b"piece").await.expect("written");
        let mut byte = [0];
        let mut heard = [0; 5];
        tokio::select! {
            read = server.read(&mut byte) => unreachable!("the client says nothing: {read:?}"),
            heard = client.read_exact(&mut heard) => { heard.expect("flushed by the reader going idle"); }
        }
        assert_eq!(&heard, b"piece");
    }

    #[tokio::test]
    async fn an_http2_client_has_to_begin_in_time() {
        let (mut server, mut client) = pair(Duration::from_secs(60)).await;
        let wait = Duration::from_millis(50);
        server = live_h2(server, wait, wait);
        client.write_all(b"PRI * HTTP/2.0").await.expect("written");
        let mut heard = Vec::new();
        let error = server.read_to_end(&mut heard).await.expect_err("half a greeting is none");
        assert_eq!((error.kind(), heard.len()), (std::io::ErrorKind::TimedOut, 14));
        let (mut server, mut client) = pair(Duration::from_secs(60)).await;
        server = live_h2(server, wait, wait);
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        let mut greeting = [0; GREETING_BYTES];
        server.read_exact(&mut greeting).await.expect("whole");
        tokio::time::sleep(wait * 2).await;
        client.write_all(b"more").await.expect("written");
        server.read_exact(&mut greeting[..4]).await.expect("after it there is time");
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_let_go() {
        let (mut server, client) = pair(Duration::from_millis(50)).await;
        let piece = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = server.write_all(&piece).await {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        drop(client);
    }
}
