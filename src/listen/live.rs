//! A client's connection, for audio that is made while it is heard.
//!
//! Pingora flushes an answer with a length only at its end, or when a buffer is full. Here the connection is
//! flushed whenever its reader has nothing to read, which is when the proxy has nothing to do: each piece goes out
//! as it arrives, and the length stays. And a client that takes nothing for too long is let go, however slowly it
//! may read otherwise.
//!
//! A connection that has been switched to another protocol is taken out of Pingora's hands ([`take`]), which keep a
//! closed one.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// The id of a connection that was taken: no descriptor's.
const CLOSED: UniqueIDType = -1;

/// Wraps `stream`. `stall`: how long the client may take nothing at all.
pub fn live(stream: Stream, stall: Duration) -> Stream {
    Box::new(Live { inner: Mutex::new(Some(stream)), unflushed: false, stall, stalled: None, greeting: None })
}

/// The same for HTTP/2, whose client has to begin within `greeting`: Pingora would wait for it without end.
pub fn live_h2(stream: Stream, stall: Duration, greeting: Duration) -> Stream {
    let greeting = Some((GREETING_BYTES, Box::pin(sleep(greeting))));
    Box::new(Live { inner: Mutex::new(Some(stream)), unflushed: false, stall, stalled: None, greeting })
}

/// Takes the connection out of its wrapper. What is left is closed: it reads nothing, and takes nothing. `None`: it was
/// not wrapped here, or has been taken.
pub fn take(stream: &Stream) -> Option<Stream> {
    stream.as_ref().as_any().downcast_ref::<Live>()?.held().take()
}

/// Gives it back.
pub fn give(stream: &Stream, connection: Stream) {
    if let Some(live) = stream.as_ref().as_any().downcast_ref::<Live>() {
        live.held().replace(connection);
    }
}

struct Live {
    /// `None`: it was taken.
    inner: Mutex<Option<Stream>>,
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
    fn held(&self) -> MutexGuard<'_, Option<Stream>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without a lock: whoever polls it is alone with it.
    fn stream(&mut self) -> Option<Pin<&mut Stream>> {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().map(Pin::new)
    }

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
        let Some(stream) = self.stream() else { return Poll::Ready(Ok(())) };
        let read = stream.poll_read(cx, buf);
        if let Some((missing, timer)) = &mut self.greeting {
            *missing = missing.saturating_sub(buf.filled().len() - before);
            if *missing == 0 {
                self.greeting = None;
            } else if read.is_pending() && timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the client says nothing")));
            }
        }
        if read.is_pending()
            && self.unflushed
            && let Some(stream) = self.stream()
            && stream.poll_flush(cx)?.is_ready()
        {
            self.unflushed = false;
        }
        read
    }
}

impl AsyncWrite for Live {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.unflushed = true;
        let Some(stream) = self.stream() else { return Poll::Ready(Err(std::io::ErrorKind::NotConnected.into())) };
        let written = stream.poll_write(cx, buf);
        self.timed(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.unflushed = true;
        let Some(stream) = self.stream() else { return Poll::Ready(Err(std::io::ErrorKind::NotConnected.into())) };
        let written = stream.poll_write_vectored(cx, bufs);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.held().as_ref().is_some_and(|stream| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let Some(stream) = self.stream() else { return Poll::Ready(Ok(())) };
        let flushed = stream.poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unflushed = false;
        }
        self.timed(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let Some(stream) = self.stream() else { return Poll::Ready(Ok(())) };
        let shut = stream.poll_shutdown(cx);
        self.timed(cx, shut)
    }
}

#[async_trait]
impl Shutdown for Live {
    async fn shutdown(&mut self) {
        let stream = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut();
        if let Some(stream) = stream {
            stream.shutdown().await;
        }
    }
}

impl UniqueID for Live {
    fn id(&self) -> UniqueIDType {
        self.held().as_ref().map_or(CLOSED, |stream| stream.id())
    }
}

impl Ssl for Live {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.held().as_ref().and_then(|stream| stream.get_ssl_digest())
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.held().as_ref().and_then(|stream| stream.selected_alpn_proto())
    }
}

impl GetTimingDigest for Live {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.held().as_ref().map(|stream| stream.get_timing_digest()).unwrap_or_default()
    }
}

impl GetProxyDigest for Live {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.held().as_ref().and_then(|stream| stream.get_proxy_digest())
    }
}

impl GetSocketDigest for Live {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.held().as_ref().and_then(|stream| stream.get_socket_digest())
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
    async fn a_connection_that_was_taken_leaves_a_closed_one() {
        let (mut server, mut client) = pair(Duration::from_secs(60)).await;
        let mut taken = take(&server).expect("wrapped");
        assert!(take(&server).is_none(), "only once");
        client.write_all(b"for the taker").await.expect("written");
        assert_eq!(server.read(&mut [0; 8]).await.expect("ended"), 0);
        server.write_all(b"x").await.expect_err("nobody is there");
        server.flush().await.expect("nothing to do");
        pingora_core::protocols::Shutdown::shutdown(server.as_mut()).await;
        let mut heard = [0; 13];
        taken.read_exact(&mut heard).await.expect("not shut down with it");
        assert_eq!(&heard, b"for the taker");
        give(&server, taken);
        server.write_all(b"back").await.expect("written");
        server.flush().await.expect("flushed");
        client.read_exact(&mut heard[..4]).await.expect("heard");
        assert_eq!(&heard[..4], b"back");
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
