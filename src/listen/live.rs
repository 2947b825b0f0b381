//! A client's connection, for audio that is made while it is heard.
//!
//! Pingora flushes an answer with a length only at its end, or when a buffer is full. Here the connection is
//! flushed whenever it is read from, which is when the proxy has nothing else to do: each piece goes out
//! as it arrives, and the length stays. And a client that takes nothing for too long is let go, however slowly it
//! may read otherwise.
//!
//! What is written in one go goes out in one go, where the writer says that more follows ([`more_follows`]) and does not
//! flush in between: each write is a packet, a system call and a wake-up at the other end.
//!
//! A connection that has been switched to another protocol is taken out of Pingora's hands ([`take`]), which keep a
//! closed one.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use futures::task::noop_waker_ref;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What every HTTP/2 client begins with (RFC 9113 §3.4), in bytes.
const GREETING_BYTES: usize = 24;
/// The id of a connection that was taken: no descriptor's.
const CLOSED: UniqueIDType = -1;
/// So many bytes wait for more to go with: a head, and what the provider sent along with its own.
const WAITING_BYTES_MAX: usize = 8 * 1024;

/// Wraps `stream`. `stall`: how long the client may take nothing at all.
pub fn live(stream: Stream, stall: Duration) -> Stream {
    Box::new(Live::new(stream, stall, None))
}

/// The same for HTTP/2, whose client has to begin within `greeting`: Pingora would wait for it without end.
pub fn live_h2(stream: Stream, stall: Duration, greeting: Duration) -> Stream {
    Box::new(Live::new(stream, stall, Some((GREETING_BYTES, Box::pin(sleep(greeting))))))
}

/// Says that the next write waits for one behind it, which has to come; or, `false`, that it does not.
pub fn more_follows(stream: &Stream, follows: bool) {
    if let Some(live) = stream.as_ref().as_any().downcast_ref::<Live>() {
        live.more_follows.store(follows, Ordering::Relaxed);
    }
}

/// Flushes what was written, as far as that can be done at once: for when nobody reads.
pub fn flush(stream: &Stream) {
    let Some(live) = stream.as_ref().as_any().downcast_ref::<Live>() else { return };
    if let Some(stream) = live.held().as_mut() {
        let _ = Pin::new(stream).poll_flush(&mut Context::from_waker(noop_waker_ref()));
    }
}

/// Takes the connection out of its wrapper. What is left is closed: it reads nothing, and takes nothing. `None`: it was
/// not wrapped here, has been taken, or something written to it is not flushed.
pub fn take(stream: &Stream) -> Option<Stream> {
    let live = stream.as_ref().as_any().downcast_ref::<Live>()?;
    if live.waiting.is_empty() { live.held().take() } else { None }
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
    /// The next write waits for the one behind it.
    more_follows: AtomicBool,
    /// Written, and not handed on.
    waiting: BytesMut,
    /// Bytes were written that may still be in a buffer, ours or another.
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
    fn new(stream: Stream, stall: Duration, greeting: Option<(usize, Pin<Box<Sleep>>)>) -> Self {
        Self {
            inner: Mutex::new(Some(stream)),
            more_follows: AtomicBool::new(false),
            waiting: BytesMut::new(),
            unflushed: false,
            stall,
            stalled: None,
            greeting,
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Stream>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without a lock: whoever polls it is alone with it.
    fn stream(&mut self) -> Option<Pin<&mut Stream>> {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().map(Pin::new)
    }

    /// Hands on what waits, and `more` behind it. Ready with the bytes of `more` that were taken, when nothing waits any
    /// more.
    fn poll_hand_on(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<std::io::Result<usize>> {
        let Self { inner, waiting, stalled, .. } = self;
        let stream = inner.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut();
        let Some(mut stream) = stream.map(Pin::new) else {
            return Poll::Ready(Err(std::io::ErrorKind::NotConnected.into()));
        };
        while !waiting.is_empty() {
            let both = [IoSlice::new(waiting), IoSlice::new(more)];
            let written = ready!(stream.as_mut().poll_write_vectored(cx, &both))?;
            let ours = written.min(waiting.len());
            if ours == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            waiting.advance(ours);
            *stalled = None;
            if waiting.is_empty() {
                // An idle connection keeps no room for it.
                *waiting = BytesMut::new();
                if written > ours {
                    return Poll::Ready(Ok(written - ours));
                }
            }
        }
        if more.is_empty() { Poll::Ready(Ok(0)) } else { stream.poll_write(cx, more) }
    }

    /// Ready when nothing waits, or the client takes nothing.
    fn poll_none_waits(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let handed_on = self.poll_hand_on(cx, &[]).map_ok(|_| ());
        self.timed(cx, handed_on)
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.waiting.is_empty() {
            ready!(self.poll_hand_on(cx, &[]))?;
        }
        let Some(stream) = self.stream() else { return Poll::Ready(Ok(())) };
        let flushed = stream.poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unflushed = false;
        }
        flushed
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
        // Also where there is something to read: what could not go out before is not to wait for silence.
        if self.unflushed
            && let Poll::Ready(Err(error)) = self.poll_flush_all(cx)
            && read.is_pending()
        {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for Live {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.unflushed = true;
        let waits = std::mem::take(self.more_follows.get_mut());
        if waits && self.waiting.len() + buf.len() <= WAITING_BYTES_MAX && self.stream().is_some() {
            self.waiting.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let written = self.poll_hand_on(cx, buf);
        self.timed(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.unflushed = true;
        ready!(self.poll_none_waits(cx))?;
        let Some(stream) = self.stream() else { return Poll::Ready(Err(std::io::ErrorKind::NotConnected.into())) };
        let written = stream.poll_write_vectored(cx, bufs);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.held().as_ref().is_some_and(|stream| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = self.poll_flush_all(cx);
        self.timed(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_none_waits(cx))?;
        let Some(stream) = self.stream() else { return Poll::Ready(Ok(())) };
        let shut = stream.poll_shutdown(cx);
        self.timed(cx, shut)
    }
}

/// What waits is not lost with the connection, as far as it can be handed on at once.
impl Drop for Live {
    fn drop(&mut self) {
        if !self.waiting.is_empty() {
            let _ = self.poll_flush_all(&mut Context::from_waker(noop_waker_ref()));
        }
    }
}

#[async_trait]
impl Shutdown for Live {
    async fn shutdown(&mut self) {
        AsyncWriteExt::shutdown(self).await.ok();
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
    use proptest::prelude::{prop_assert_eq, proptest};
    use std::collections::VecDeque;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair(stall: Duration) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (server, _) = listener.accept().await.expect("accepts");
        (live(Box::new(L4Stream::from(server)), stall), client)
    }

    /// A connection that takes as many bytes of a write as it is told to, or makes it wait, and keeps what it was given.
    #[derive(Debug)]
    struct Wire {
        /// Bytes taken of each write to come, 0 for one that has to be asked again; all of it after the last.
        takes: VecDeque<usize>,
        writes: Writes,
    }

    type Writes = Arc<Mutex<Vec<Vec<u8>>>>;

    impl Wire {
        fn live(takes: &[usize]) -> (Stream, Writes) {
            let writes = Writes::default();
            let wire = Self { takes: takes.iter().copied().collect(), writes: Arc::clone(&writes) };
            (live(Box::new(wire), Duration::from_secs(60)), writes)
        }
    }

    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<std::io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let taken = self.takes.pop_front().unwrap_or(usize::MAX).min(all.len());
            if taken == 0 && !all.is_empty() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.writes.lock().expect("whole").push(all[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[async_trait]
    impl Shutdown for Wire {
        async fn shutdown(&mut self) {}
    }

    impl UniqueID for Wire {
        fn id(&self) -> UniqueIDType {
            1
        }
    }

    impl Ssl for Wire {}

    impl GetTimingDigest for Wire {
        fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
            Vec::new()
        }
    }

    impl GetProxyDigest for Wire {
        fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
            None
        }
    }

    impl GetSocketDigest for Wire {
        fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
            None
        }
    }

    #[async_trait]
    impl Peek for Wire {}

    #[tokio::test]
    async fn a_head_goes_out_with_the_body_behind_it() {
        let body = [7; WAITING_BYTES_MAX];
        for (takes, want) in [
            (&[][..], &[WAITING_BYTES_MAX + 4][..]),
            (&[2, 3], &[2, 3, WAITING_BYTES_MAX - 1]),
            (&[0, 4, 0], &[4, WAITING_BYTES_MAX]),
        ] {
            let (mut server, writes) = Wire::live(takes);
            for part in [b"he", b"ad"] {
                more_follows(&server, true);
                server.write_all(part).await.expect("written");
            }
            assert!(writes.lock().expect("whole").is_empty(), "nothing is behind it yet");
            server.write_all(&body).await.expect("written");
            server.flush().await.expect("flushed");
            let writes = writes.lock().expect("whole");
            assert_eq!(writes.iter().map(Vec::len).collect::<Vec<_>>(), want, "{takes:?}");
            assert_eq!(writes.concat(), [&b"head"[..], &body].concat());
        }
    }

    #[tokio::test]
    async fn nothing_waits_unless_more_is_to_follow() {
        let (mut server, writes) = Wire::live(&[]);
        for (part, follows) in [(b"1", false), (b"2", true), (b"3", false), (b"4", false)] {
            more_follows(&server, follows);
            server.write_all(part).await.expect("written");
        }
        more_follows(&server, true);
        more_follows(&server, false);
        server.write_all(b"5").await.expect("written");
        assert_eq!(*writes.lock().expect("whole"), [&b"1"[..], b"23", b"4", b"5"]);
    }

    #[tokio::test]
    async fn what_waits_is_not_lost_with_its_connection() {
        let (mut server, writes) = Wire::live(&[]);
        more_follows(&server, true);
        server.write_all(b"head").await.expect("written");
        assert!(take(&server).is_none(), "its bytes would be lost");
        drop(server);
        assert_eq!(writes.lock().expect("whole").concat(), b"head");
        let (mut server, writes) = Wire::live(&[0, 1, 0]);
        more_follows(&server, true);
        server.write_all(b"head").await.expect("written");
        pingora_core::protocols::Shutdown::shutdown(server.as_mut()).await;
        assert_eq!(writes.lock().expect("whole").concat(), b"head");
        let (mut server, writes) = Wire::live(&[0, 1, 0]);
        more_follows(&server, true);
        server.write_all(b"head").await.expect("written");
        AsyncWriteExt::shutdown(&mut server).await.expect("shut down");
        assert_eq!(writes.lock().expect("whole").concat(), b"head");
    }

    proptest! {
        #[test]
        fn everything_goes_out_once_and_in_order(
            writes in proptest::collection::vec((0usize..WAITING_BYTES_MAX, 0u8..5), 0..12),
            takes in proptest::collection::vec(0usize..WAITING_BYTES_MAX, 0..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            let (sent, heard) = runtime.block_on(async {
                let (mut server, heard) = Wire::live(&takes);
                let mut sent = Vec::new();
                for (at, (len, then)) in (1u8..).zip(writes) {
                    let piece = vec![at; len];
                    more_follows(&server, then > 1);
                    match then {
                        0 => {
                            server.write_all(&piece).await.expect("written");
                            server.flush().await.expect("flushed");
                        }
                        1 => {
                            let (half, rest) = piece.split_at(len / 2);
                            let mut slices = &mut [IoSlice::new(half), IoSlice::new(rest)][..];
                            while slices.iter().any(|slice| !slice.is_empty()) {
                                let written = server.write_vectored(slices).await.expect("written");
                                IoSlice::advance_slices(&mut slices, written);
                            }
                        }
                        _ => server.write_all(&piece).await.expect("written"),
                    }
                    sent.extend(piece);
                }
                server.flush().await.expect("flushed");
                (sent, heard)
            });
            prop_assert_eq!(heard.lock().expect("whole").concat(), sent);
        }
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
