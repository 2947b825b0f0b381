//! Relays a WebSocket connection once both sides have switched to it: bytes as they are, both ways.
//!
//! Nothing is queued: each direction has one buffer, and a side that takes nothing stops only what is sent to it. The
//! frames are followed so that an end of our own can be said with a Close frame (RFC 6455 §5.5.1), where one fits in.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::wire::frames::{self, Frames};

/// How much is read at once, and so held at most, in each direction.
const PIECE_BYTES: usize = 16 * 1024;
/// How long an end may take: the other side's last words, our own, and what has to be read so that they arrive.
const PARTING: Duration = Duration::from_secs(1);
/// The code of every Close frame of ours: "going away" (RFC 6455 §7.4.1).
const GOING_AWAY: u16 = 1001;

/// How long a tunnel may last.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Without a byte read or written either way.
    pub idle: Duration,
    /// In all.
    pub total: Duration,
}

/// The end of the process.
pub struct Stopping<D> {
    /// Turns true when it begins.
    pub begun: watch::Receiver<bool>,
    /// How long a tunnel may last after that; asked for then.
    pub drain: D,
}

/// One end of the tunnel.
pub struct Side<S> {
    pub stream: S,
    /// Bytes from it that were read with its head: relayed first.
    pub early: Bytes,
}

/// Why a tunnel is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// A side ended, and a Close frame had gone by.
    Closed,
    /// The client ended first, and no Close frame had gone by.
    ClientGone,
    /// The provider ended first, and no Close frame had gone by.
    ProviderGone,
    /// We ended it: nothing had moved for [`Bounds::idle`].
    Idle,
    /// We ended it after [`Bounds::total`].
    Total,
    /// We ended it, [`Stopping::drain`] after we were told to stop.
    Drained,
}

/// What has passed. May be read while the tunnel runs.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes written to the provider.
    pub up: AtomicU64,
    /// Bytes written to the client, without a Close frame of ours.
    pub down: AtomicU64,
    first_down: OnceLock<Instant>,
}

impl Counts {
    /// When the first byte was written to the client, if there was one.
    pub fn first_down(&self) -> Option<std::time::Instant> {
        self.first_down.get().map(|instant| instant.into_std())
    }
}

/// Passes bytes both ways until a side ends, or its `bounds` are reached, or `stopping` is true and the time to drain
/// is up (a sender that is gone says nothing any more). Takes at most a second longer than that, for the end itself.
///
/// `mask` gives the key of a Close frame to the provider: one that nobody can foresee. If the future is dropped, the
/// connections are too.
pub async fn relay<C, P>(
    client: Side<C>,
    provider: Side<P>,
    bounds: Bounds,
    stopping: Stopping<impl FnOnce() -> Duration>,
    counts: &Counts,
    mask: impl FnOnce() -> [u8; 4],
) -> Over
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Activity::new();
    let (from_client, to_client) = io::split(client.stream);
    let (from_provider, to_provider) = io::split(provider.stream);
    let meter = Meter { bytes: &counts.up, first: None, activity: &activity };
    let mut up = Pump::new(from_client, client.early, to_provider, meter);
    let meter = Meter { bytes: &counts.down, first: Some(&counts.first_down), activity: &activity };
    let mut down = Pump::new(from_provider, provider.early, to_client, meter);
    let over = tokio::select! {
        // The bounds come first: under load, the pumps use up what a task may do before it has to yield.
        biased;
        over = reached(bounds, stopping, &activity) => over,
        over = first_end(&mut up, &mut down) => over,
    };
    part(over, &mut up, &mut down, mask).await
}

impl Over {
    /// What our Close frame says, where the end is ours.
    fn reason(self) -> Option<&'static str> {
        match self {
            Self::Idle => Some("idle for too long"),
            Self::Total => Some("time limit reached"),
            Self::Drained => Some("going away"),
            Self::Closed | Self::ClientGone | Self::ProviderGone => None,
        }
    }
}

/// Waits for the first of the bounds.
async fn reached(bounds: Bounds, stopping: Stopping<impl FnOnce() -> Duration>, activity: &Activity) -> Over {
    let Stopping { mut begun, drain } = stopping;
    let drained = async {
        if begun.wait_for(|begun| *begun).await.is_err() {
            std::future::pending::<()>().await;
        }
        sleep(drain()).await;
    };
    tokio::select! {
        biased;
        () = sleep(bounds.total) => Over::Total,
        () = drained => Over::Drained,
        () = activity.ceases(bounds.idle) => Over::Idle,
    }
}

/// Pumps until a side ends, and tells which. In random order, so that a busy direction cannot starve the other.
async fn first_end<C, P>(up: &mut Pump<'_, C, P>, down: &mut Pump<'_, P, C>) -> Over
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        end = up.run() => match end { End::Source => Over::ClientGone, End::Sink => Over::ProviderGone },
        end = down.run() => match end { End::Source => Over::ProviderGone, End::Sink => Over::ClientGone },
    }
}

/// Ends both directions, within [`PARTING`]; past it, the connections are dropped as they are.
async fn part<C, P>(
    over: Over,
    up: &mut Pump<'_, C, P>,
    down: &mut Pump<'_, P, C>,
    mask: impl FnOnce() -> [u8; 4],
) -> Over
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let closed = up.frames.closed() || down.frames.closed();
    if let Some(reason) = over.reason() {
        let _ = timeout(PARTING, async { tokio::join!(up.cut(reason, Some(mask())), down.cut(reason, None)) }).await;
    } else {
        let _ = timeout(PARTING, async { tokio::join!(up.finish(), down.finish()) }).await;
    }
    // A side that could not be written to may have sent its Close before, unread until now.
    match over {
        Over::ClientGone if closed || up.frames.closed() => Over::Closed,
        Over::ProviderGone if closed || down.frames.closed() => Over::Closed,
        over => over,
    }
}

/// When something last moved.
struct Activity {
    began: Instant,
    /// Microseconds after `began`.
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }

    fn note(&self) {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.store(micros, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for `idle`. The timer is not touched when something does: it rings, and is set
    /// again for the rest.
    async fn ceases(&self, idle: Duration) {
        loop {
            let quiet = self.began.elapsed().saturating_sub(Duration::from_micros(self.last.load(Ordering::Relaxed)));
            let rest = idle.saturating_sub(quiet);
            if rest.is_zero() {
                return;
            }
            sleep(rest).await;
        }
    }
}

/// What one direction is measured with.
struct Meter<'a> {
    bytes: &'a AtomicU64,
    /// When the first of them was written, where that matters.
    first: Option<&'a OnceLock<Instant>>,
    activity: &'a Activity,
}

impl Meter<'_> {
    fn read(&self) {
        self.activity.note();
    }

    fn written(&self, bytes: usize) {
        self.activity.note();
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(first) = self.first {
            first.get_or_init(Instant::now);
        }
    }
}

/// Which end of a direction is over, in order or not.
enum End {
    Source,
    Sink,
}

/// One direction, from `A` to `B`.
struct Pump<'a, A, B> {
    source: ReadHalf<A>,
    /// Read, and not yet written.
    held: BytesMut,
    sink: WriteHalf<B>,
    /// What the sink has got.
    frames: Frames,
    meter: Meter<'a>,
}

impl<'a, A, B> Pump<'a, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    fn new(source: ReadHalf<A>, early: Bytes, sink: WriteHalf<B>, meter: Meter<'a>) -> Self {
        Self { source, held: early.into(), sink, frames: Frames::default(), meter }
    }

    /// Passes bytes on until an end is over. May be dropped while it waits, and run again: nothing is lost.
    async fn run(&mut self) -> End {
        loop {
            while !self.held.is_empty() {
                match self.sink.write(&self.held).await {
                    Ok(bytes) if bytes > 0 => self.passed(bytes),
                    _ => return End::Sink,
                }
            }
            if self.sink.flush().await.is_err() {
                return End::Sink;
            }
            // Allocates once: as the buffer is empty, its room is taken again.
            self.held.reserve(PIECE_BYTES);
            match self.source.read_buf(&mut self.held).await {
                Ok(bytes) if bytes > 0 => self.meter.read(),
                _ => return End::Source,
            }
        }
    }

    fn passed(&mut self, bytes: usize) {
        self.frames.push(&self.held[..bytes]);
        self.held.advance(bytes);
        self.meter.written(bytes);
    }

    /// After a side has ended: passes on what still comes, then ends this direction.
    async fn finish(&mut self) {
        self.run().await;
        // It may be the sink that is gone.
        let _ = self.sink.shutdown().await;
        discard(&mut self.source).await;
    }

    /// Ends this direction for `reason`, which the sink is told if it stands between two frames.
    async fn cut(&mut self, reason: &str, mask: Option<[u8; 4]>) {
        let farewell = async {
            if self.frames.at_boundary() {
                self.sink.write_all(&frames::close(GOING_AWAY, reason, mask)).await?;
            }
            self.sink.shutdown().await
        };
        let (_, ()) = tokio::join!(farewell, discard(&mut self.source));
    }
}

/// Reads to the end. A connection that is closed with bytes unread is reset, and what was last written to it is lost.
async fn discard(source: &mut (impl AsyncRead + Unpin)) {
    let _ = io::copy(source, &mut io::sink()).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{BufStream, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::wire::testing::pieces;

    const KEY: [u8; 4] = *b"KEY!";
    const SECOND: Duration = Duration::from_secs(1);
    const DRAIN: Duration = Duration::from_secs(5);

    fn until(begun: watch::Receiver<bool>) -> Stopping<fn() -> Duration> {
        Stopping { begun, drain: || DRAIN }
    }

    const BOUNDS: Bounds = Bounds { idle: Duration::from_secs(10), total: Duration::from_secs(100) };
    const CLOSE: &[u8] = b"\x88\x02\x03\xe8";

    /// A tunnel that runs, and what stands at its ends.
    struct Tunnel {
        client: DuplexStream,
        provider: DuplexStream,
        stop: watch::Sender<bool>,
        counts: Arc<Counts>,
        began: Instant,
        over: JoinHandle<Over>,
    }

    /// A tunnel whose streams hold `room` bytes each, each way.
    fn tunnel(room: usize) -> Tunnel {
        tunnel_after(room, b"", b"")
    }

    /// The same, after a head of each side was read with the first bytes behind it.
    fn tunnel_after(room: usize, client_early: &[u8], provider_early: &[u8]) -> Tunnel {
        let ((client, near), (far, provider)) = (duplex(room), duplex(room));
        let near = Side { stream: near, early: Bytes::copy_from_slice(client_early) };
        let far = Side { stream: far, early: Bytes::copy_from_slice(provider_early) };
        let (stop, stopping) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let over = tokio::spawn(async move { relay(near, far, BOUNDS, until(stopping), &counted, || KEY).await });
        Tunnel { client, provider, stop, counts, began: Instant::now(), over }
    }

    impl Tunnel {
        /// How it ended, and what each side still had to read.
        async fn end(mut self) -> (Over, Vec<u8>, Vec<u8>) {
            let (heard, asked) = tokio::join!(rest(&mut self.client), rest(&mut self.provider));
            drop((self.client, self.provider));
            (self.over.await.expect("no panic"), heard, asked)
        }

        fn counted(&self) -> (u64, u64) {
            (self.counts.up.load(Ordering::Relaxed), self.counts.down.load(Ordering::Relaxed))
        }
    }

    async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("read");
        bytes
    }

    async fn next(length: usize, stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.expect("read");
        bytes
    }

    /// Writes `bytes` in pieces, and no more.
    async fn say(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], sizes: &[usize]) {
        for piece in pieces(bytes, sizes) {
            stream.write_all(piece).await.expect("taken");
            tokio::task::yield_now().await;
        }
        stream.shutdown().await.expect("shut");
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn paused<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("starts").block_on(test)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_byte_passes_both_ways_at_once_in_order(
            (up, down) in (vec(any::<u8>(), 0..2000), vec(any::<u8>(), 0..2000)),
            (up_early, down_early) in (0..200_usize, 0..200_usize),
            (up_sizes, down_sizes) in (vec(0..300_usize, 0..5), vec(0..300_usize, 0..5)),
            room in 1..100_usize,
        ) {
            let (up_early, up_rest) = up.split_at(up_early.min(up.len()));
            let (down_early, down_rest) = down.split_at(down_early.min(down.len()));
            paused(async {
                let mut tunnel = tunnel_after(room, up_early, down_early);
                let (mut from_provider, mut to_provider) = io::split(&mut tunnel.client);
                let (mut from_client, mut to_client) = io::split(&mut tunnel.provider);
                let ((), (), heard, asked) = tokio::join!(
                    say(&mut to_provider, up_rest, &up_sizes),
                    say(&mut to_client, down_rest, &down_sizes),
                    rest(&mut from_provider),
                    rest(&mut from_client),
                );
                prop_assert_eq!(heard, &down[..]);
                prop_assert_eq!(asked, &up[..]);
                prop_assert_eq!(tunnel.counted(), (up.len() as u64, down.len() as u64));
                prop_assert_eq!(tunnel.counts.first_down().is_some(), !down.is_empty());
                Ok(())
            })?;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_echo_of_more_than_all_buffers_hold_comes_back() {
        let mut tunnel = tunnel(1000);
        let sent = noise(1_000_000);
        let (mut from_provider, mut to_provider) = io::split(&mut tunnel.client);
        let (mut from_client, mut to_client) = io::split(&mut tunnel.provider);
        let echo = async {
            io::copy(&mut from_client, &mut to_client).await.expect("copied");
            to_client.shutdown().await.expect("shut");
        };
        let ((), (), heard) = tokio::join!(say(&mut to_provider, &sent, &[7000]), echo, rest(&mut from_provider));
        assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
        assert_eq!(tunnel.counted(), (1_000_000, 1_000_000));
        assert_eq!(tunnel.began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_heard_all_the_same() {
        let mut tunnel = tunnel(100);
        let flood = noise(100_000);
        let (mut from_client, mut to_client) = io::split(&mut tunnel.provider);
        let sent = noise(100_000);
        let talk = async { tokio::join!(say(&mut tunnel.client, &sent, &[999]), rest(&mut from_client)).1 };
        let asked = tokio::select! {
            asked = talk => asked,
            _ = to_client.write_all(&flood) => unreachable!("the tunnel takes what nobody reads"),
        };
        assert!(asked == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_is_left_to_the_one_who_sends_it() {
        let mut tunnel = tunnel(100_000);
        let flood = noise(1_000_000);
        let mut taken = 0;
        while let Ok(bytes) = timeout(SECOND, tunnel.provider.write(&flood)).await {
            taken += bytes.expect("written");
        }
        assert_eq!(taken, 100_000 + 16 * 1024 + 100_000, "two streams and one buffer");
        assert_eq!(tunnel.counted(), (0, 100_000), "what is held has not passed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_is_not_left_in_a_buffer_of_the_stream() {
        let ((mut client, near), (far, mut provider)) = (duplex(100), duplex(100));
        let near = Side { stream: BufStream::new(near), early: Bytes::new() };
        let far = Side { stream: BufStream::new(far), early: Bytes::from_static(b"early") };
        let (_stop, stopping) = watch::channel(false);
        let counts = Counts::default();
        let talk = async {
            assert_eq!(next(5, &mut client).await, b"early");
            client.write_all(b"up").await.expect("written");
            assert_eq!(next(2, &mut provider).await, b"up");
            provider.write_all(b"down").await.expect("written");
            assert_eq!(next(4, &mut client).await, b"down");
        };
        tokio::select! {
            over = relay(near, far, BOUNDS, until(stopping), &counts, || KEY) => unreachable!("{over:?}"),
            () = talk => {}
        }
    }

    /// What a client and a provider are told, at a boundary.
    fn farewells(reason: &str) -> (Vec<u8>, Vec<u8>) {
        (frames::close(1001, reason, None), frames::close(1001, reason, Some(KEY)))
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_end_both_sides_hear_of() {
        for (want, reason, after) in [
            (Over::Idle, "idle for too long", Duration::from_secs(10)),
            (Over::Total, "time limit reached", Duration::from_secs(100)),
            (Over::Drained, "going away", Duration::from_secs(7)),
        ] {
            let mut tunnel = tunnel(1000);
            let began = tunnel.began;
            match want {
                Over::Total => {
                    for _ in 0..12 {
                        sleep(Duration::from_secs(8)).await;
                        tunnel.client.write_all(b"\x81\x00").await.expect("written");
                        assert_eq!(next(2, &mut tunnel.provider).await, b"\x81\x00");
                    }
                }
                Over::Drained => {
                    sleep(Duration::from_secs(2)).await;
                    tunnel.stop.send_replace(true);
                }
                _ => {}
            }
            let counts = Arc::clone(&tunnel.counts);
            let (heard, asked) = tokio::join!(rest(&mut tunnel.client), rest(&mut tunnel.provider));
            assert_eq!((heard, asked), farewells(reason), "{want:?}");
            assert_eq!(began.elapsed(), after, "{want:?}");
            assert_eq!(counts.down.load(Ordering::Relaxed), 0, "a Close of ours is not theirs");
            assert_eq!(tunnel.end().await.0, want);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_begins_while_we_stop_has_the_time_to_drain() {
        let (client, near) = duplex(100);
        let (far, provider) = duplex(100);
        let (stop, stopping) = watch::channel(true);
        drop(stop);
        let (near, far) = (Side { stream: near, early: Bytes::new() }, Side { stream: far, early: Bytes::new() });
        let began = Instant::now();
        let over = relay(near, far, BOUNDS, until(stopping), &Counts::default(), || KEY).await;
        assert_eq!((over, began.elapsed()), (Over::Drained, DRAIN + PARTING));
        drop((client, provider));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_left_to_stop_us_is_no_stop() {
        let mut tunnel = tunnel(100);
        tunnel.stop = watch::channel(false).0;
        let began = tunnel.began;
        assert_eq!(tunnel.end().await.0, Over::Idle);
        assert_eq!(began.elapsed(), BOUNDS.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn any_byte_either_way_keeps_a_tunnel_from_being_idle() {
        let mut tunnel = tunnel(100);
        for _ in 0..3 {
            sleep(Duration::from_secs(9)).await;
            tunnel.client.write_all(b"\x89\x00").await.expect("written");
            sleep(Duration::from_secs(9)).await;
            tunnel.provider.write_all(b"\x8a\x00").await.expect("written");
        }
        let began = tunnel.began;
        let (over, heard, asked) = tunnel.end().await;
        let (client_close, provider_close) = farewells("idle for too long");
        assert_eq!((over, began.elapsed()), (Over::Idle, Duration::from_secs(6 * 9 + 10)));
        assert_eq!(heard, [&b"\x8a\x00".repeat(3), &client_close[..]].concat());
        assert_eq!(asked, [&b"\x89\x00".repeat(3), &provider_close[..]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_idle_however_much_there_is_for_it() {
        let mut tunnel = tunnel(100);
        let (began, counts) = (tunnel.began, Arc::clone(&tunnel.counts));
        let flood = noise(100_000);
        tunnel.provider.write_all(&flood).await.expect("thrown away in the end");
        assert_eq!(began.elapsed(), BOUNDS.idle);
        assert_eq!(tunnel.over.await.expect("no panic"), Over::Idle);
        assert_eq!(counts.down.load(Ordering::Relaxed), 100);
        assert_eq!(rest(&mut tunnel.client).await, flood[..100]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_that_is_written_is_activity_though_none_is_read() {
        let mut tunnel = tunnel(100);
        tunnel.provider.write_all(&noise(200)).await.expect("written");
        sleep(SECOND * 5).await;
        // A hundred wait in the stream to the client, a hundred are held: these two are not even read.
        tunnel.provider.write_all(b"..").await.expect("written");
        for _ in 0..4 {
            sleep(SECOND * 4).await;
            next(10, &mut tunnel.client).await;
        }
        tunnel.over.await.expect("no panic");
        assert_eq!(tunnel.began.elapsed(), SECOND * (5 + 4 * 4) + BOUNDS.idle + PARTING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_that_is_read_is_activity_though_none_is_written() {
        let mut tunnel = tunnel(100);
        tunnel.provider.write_all(&noise(100)).await.expect("written");
        sleep(SECOND * 6).await;
        tunnel.provider.write_all(b"held").await.expect("written");
        tunnel.over.await.expect("no panic");
        assert_eq!(tunnel.began.elapsed(), SECOND * 6 + BOUNDS.idle + PARTING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_that_is_reached_comes_before_what_there_is_to_pass() {
        for _ in 0..16 {
            let bounds = Bounds { total: Duration::ZERO, ..BOUNDS };
            let near = Side { stream: duplex(100).0, early: Bytes::from_static(b"up") };
            let far = Side { stream: duplex(100).0, early: Bytes::from_static(b"down") };
            let (_stop, stopping) = watch::channel(false);
            assert_eq!(relay(near, far, bounds, until(stopping), &Counts::default(), || KEY).await, Over::Total);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_has_stalled_does_not_keep_us() {
        let tunnel = tunnel(4);
        let over = tunnel.over.await.expect("no panic");
        assert_eq!((over, tunnel.began.elapsed()), (Over::Idle, BOUNDS.idle + PARTING));
        drop((tunnel.client, tunnel.provider));
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_is_put_in_between_two_frames_only() {
        let (client_close, provider_close) = farewells("going away");
        let both = |first: &[u8], second: &[u8]| [first, second].concat();
        for (label, up, down, asked, heard) in [
            ("within a frame up", &b"\x81\x85KEY!h"[..], &b"\x81\x01a"[..], None, Some(&client_close)),
            ("within a head down", b"\x81\x80KEY!", b"\x81", Some(&provider_close), None),
            ("behind a close up", CLOSE, b"", None, Some(&client_close)),
            ("behind a close down", b"", CLOSE, Some(&provider_close), None),
            ("behind a close and what follows it", b"\x88\x00\x81\x00", CLOSE, None, None),
        ] {
            let mut tunnel = tunnel(1000);
            tunnel.client.write_all(up).await.expect("written");
            tunnel.provider.write_all(down).await.expect("written");
            tunnel.stop.send_replace(true);
            let end = tunnel.end().await;
            let asked = both(up, asked.map_or(&[][..], |close| close));
            assert_eq!(end, (Over::Drained, both(down, heard.map_or(&[][..], |close| close)), asked), "{label}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_after_our_close_is_read_and_thrown_away() {
        let mut tunnel = tunnel(1000);
        tunnel.stop.send_replace(true);
        let (client_close, provider_close) = farewells("going away");
        assert_eq!(next(client_close.len(), &mut tunnel.client).await, client_close);
        // More than the streams hold: somebody reads.
        tunnel.client.write_all(&noise(100_000)).await.expect("taken");
        tunnel.client.shutdown().await.expect("shut");
        tunnel.provider.write_all(&noise(100_000)).await.expect("taken");
        assert_eq!(tunnel.began.elapsed(), DRAIN);
        let (began, counts) = (tunnel.began, Arc::clone(&tunnel.counts));
        assert_eq!(tunnel.over.await.expect("no panic"), Over::Drained);
        assert_eq!(began.elapsed(), DRAIN + PARTING, "the provider has not ended");
        assert_eq!((counts.up.load(Ordering::Relaxed), counts.down.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(rest(&mut tunnel.provider).await, provider_close);
    }

    #[tokio::test(start_paused = true)]
    async fn the_side_that_ends_first_gives_the_end_its_name() {
        let text = &b"\x81\x02hi"[..];
        for (label, up, down, client_first, want) in [
            ("client", text, text, true, Over::ClientGone),
            ("provider", text, text, false, Over::ProviderGone),
            ("client, which said so", CLOSE, b"", true, Over::Closed),
            ("client, which was told so", b"", CLOSE, true, Over::Closed),
            ("provider, which said so", b"", CLOSE, false, Over::Closed),
            ("provider, which was told so", CLOSE, b"", false, Over::Closed),
            ("client, within a frame", b"\x82\x02\x88", b"", true, Over::ClientGone),
        ] {
            let mut tunnel = tunnel(1000);
            tunnel.client.write_all(up).await.expect("written");
            tunnel.provider.write_all(down).await.expect("written");
            tokio::task::yield_now().await;
            let (first, second) = match client_first {
                true => (&mut tunnel.client, &mut tunnel.provider),
                false => (&mut tunnel.provider, &mut tunnel.client),
            };
            first.shutdown().await.expect("shut");
            let (said, back) = if client_first { (up, down) } else { (down, up) };
            assert_eq!(rest(second).await, said, "{label}: all it sent, then its end");
            second.shutdown().await.expect("shut");
            assert_eq!(rest(first).await, back, "{label}");
            assert_eq!(tunnel.over.await.expect("no panic"), want, "{label}");
            assert_eq!(tunnel.began.elapsed(), Duration::ZERO, "{label}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_has_said_all_is_answered_for_a_second() {
        let mut tunnel = tunnel(1000);
        tunnel.client.write_all(b"last").await.expect("written");
        tunnel.client.shutdown().await.expect("shut");
        assert_eq!(rest(&mut tunnel.provider).await, b"last");
        sleep(PARTING / 2).await;
        tunnel.provider.write_all(b"answer").await.expect("written");
        assert_eq!(next(6, &mut tunnel.client).await, b"answer");
        // It never ends by itself.
        assert_eq!(tunnel.over.await.expect("no panic"), Over::ClientGone);
        assert_eq!(tunnel.began.elapsed(), SECOND);
        assert!(tunnel.provider.write_all(b"too late").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_cannot_be_written_to_has_ended() {
        for (label, last, want) in [("silent", &b""[..], Over::ProviderGone), ("with a close", CLOSE, Over::Closed)] {
            let mut tunnel = tunnel(1000);
            tunnel.client.write_all(b"\x81\x02hi").await.expect("written");
            tunnel.provider.write_all(last).await.expect("written");
            // Gone before the tunnel has run at all: it may find out by writing, or by reading.
            drop(tunnel.provider);
            assert_eq!(rest(&mut tunnel.client).await, last, "{label}");
            // The client goes on until it has seen that, and is not reset.
            tunnel.client.write_all(&noise(10_000)).await.expect("taken");
            drop(tunnel.client);
            assert_eq!(tunnel.over.await.expect("no panic"), want, "{label}");
            assert_eq!(tunnel.counts.up.load(Ordering::Relaxed), 0, "{label}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_counts_that_was_sent_before_a_write_failed() {
        // Which direction finds out first is a matter of chance.
        for _ in 0..32 {
            let mut tunnel = tunnel(1000);
            tunnel.client.write_all(CLOSE).await.expect("written");
            tunnel.provider.write_all(b"\x81\x02hi").await.expect("written");
            drop(tunnel.client);
            assert_eq!(rest(&mut tunnel.provider).await, CLOSE);
            drop(tunnel.provider);
            assert_eq!(tunnel.over.await.expect("no panic"), Over::Closed);
        }
    }

    #[test]
    fn a_relay_runs_on_any_thread() {
        fn sent(_: impl Future<Output = Over> + Send) {}
        let (client, provider) = (duplex(1).0, duplex(1).0);
        let (client, provider) =
            (Side { stream: client, early: Bytes::new() }, Side { stream: provider, early: Bytes::new() });
        sent(relay(client, provider, BOUNDS, until(watch::channel(false).1), &Counts::default(), || KEY));
    }
}
