//! Signals: SIGHUP reloads, SIGUSR1 reopens the records, SIGTERM and SIGINT drain, and cut where they come again.
//!
//! The drain ends when the last connection does. Pingora's own would sleep its whole grace period, so the server
//! is told to stop at once when we are done waiting.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use prometheus::IntGauge;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{interval, timeout};

use crate::exchange::Load;

/// How often the wall clock is compared with the monotonic one.
const CLOCK_CHECK: Duration = Duration::from_secs(10);
/// A difference that is not the clock's slow correction.
const CLOCK_JUMP: Duration = Duration::from_secs(60);
/// How long a client of HTTP/2 whose requests have all ended is given to hang up.
const GOODBYE: Duration = Duration::from_secs(1);
/// A connection that was accepted just before the end may not be counted yet when the count is zero.
const SETTLE: Duration = Duration::from_millis(10);

/// The open client connections.
pub struct Connections {
    http1: AtomicUsize,
    http2: AtomicUsize,
    changed: Notify,
    gauge: IntGauge,
}

/// What a connection speaks. Over HTTP/1 it is there for as long as its request; over HTTP/2 it may outlive all.
#[derive(Debug, Clone, Copy)]
pub enum Protocol {
    Http1,
    Http2,
}

/// One of them.
pub struct Connection(Arc<Connections>, Protocol);

impl Connections {
    /// `gauge` shows how many there are.
    pub fn new(gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { http1: AtomicUsize::new(0), http2: AtomicUsize::new(0), changed: Notify::new(), gauge })
    }

    /// Counts one more, until what is given back is dropped.
    pub fn enter(self: &Arc<Self>, protocol: Protocol) -> Connection {
        self.count(protocol).fetch_add(1, Ordering::SeqCst);
        self.gauge.inc();
        Connection(Arc::clone(self), protocol)
    }

    fn count(&self, protocol: Protocol) -> &AtomicUsize {
        match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        }
    }

    /// How many are open.
    fn open(&self) -> usize {
        self.http1.load(Ordering::SeqCst) + self.http2.load(Ordering::SeqCst)
    }

    /// Resolves when none is open.
    async fn none(&self, protocol: Protocol) {
        loop {
            let changed = self.changed.notified();
            if self.count(protocol).load(Ordering::SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when nothing is served any more. A client of HTTP/2 that does not hang up is not waited for long.
    async fn drained(&self, load: &Load) {
        loop {
            self.none(Protocol::Http1).await;
            if load.now() == 0 {
                break;
            }
            tokio::time::sleep(SETTLE).await;
        }
        timeout(GOODBYE, self.none(Protocol::Http2)).await.ok();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.gauge.dec();
        if self.0.count(self.1).fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_one();
        }
    }
}

/// What a signal makes the gateway do.
pub trait Actions: Send + Sync {
    fn reload(&self);
    fn reopen(&self);
    /// How long running requests may go on.
    fn drain(&self) -> Duration;
}

/// Waits for signals for as long as the gateway runs.
pub struct Signals<A> {
    actions: A,
    stop: watch::Sender<bool>,
    connections: Arc<Connections>,
    load: Arc<Load>,
    streams: Mutex<Streams>,
}

struct Streams {
    hang_up: Signal,
    user1: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl<A: Actions> Signals<A> {
    /// `stop`: told when no new connection is wanted. Must be called on a Tokio runtime.
    pub fn new(
        actions: A,
        stop: watch::Sender<bool>,
        connections: Arc<Connections>,
        load: Arc<Load>,
    ) -> io::Result<Self> {
        let streams = Streams {
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        Ok(Self { actions, stop, connections, load, streams: Mutex::new(streams) })
    }

    async fn until_stopped(&self) {
        let mut streams = self.streams.lock().await;
        let Streams { hang_up, user1, terminate, interrupt } = &mut *streams;
        let mut clock = interval(CLOCK_CHECK);
        let mut last = (Instant::now(), SystemTime::now());
        loop {
            tokio::select! {
                _ = hang_up.recv() => self.actions.reload(),
                _ = user1.recv() => self.actions.reopen(),
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = clock.tick() => {
                    let now = (Instant::now(), SystemTime::now());
                    if let Some(jump) = clock_jump(last, now) {
                        log::warn!("the wall clock has jumped by about {} s; keys expire by it", jump.as_secs());
                    }
                    last = now;
                }
            }
        }
    }
}

/// Tells systemd, where it has asked to be told (`Type=notify`).
pub(super) fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("the supervisor was not told: {error}");
    }
}

/// By how much the wall clock has moved more, or less, than time has passed.
fn clock_jump(before: (Instant, SystemTime), now: (Instant, SystemTime)) -> Option<Duration> {
    let passed = now.0.saturating_duration_since(before.0);
    let expected = before.1 + passed;
    let jump = match now.1.duration_since(expected) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    (jump > CLOCK_JUMP).then_some(jump)
}

#[async_trait]
impl<A: Actions> ShutdownSignalWatch for Signals<A> {
    async fn recv(&self) -> ShutdownSignal {
        self.until_stopped().await;
        tell_supervisor(NotifyState::Stopping);
        let limit = self.actions.drain();
        log::info!("stopping: running requests have {limit:?}, or until the next signal");
        self.stop.send(true).ok();
        let drained = timeout(limit, async {
            self.connections.drained(&self.load).await;
            tokio::time::sleep(SETTLE).await;
            self.connections.drained(&self.load).await;
        });
        let whole = tokio::select! {
            drained = drained => drained.is_ok(),
            () = self.until_stopped() => false,
        };
        if !whole {
            log::warn!("{} connections are cut", self.connections.open());
        }
        ShutdownSignal::FastShutdown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_connection_ends_the_wait() {
        let gauge = IntGauge::new("g", "g").expect("a gauge");
        let connections = Connections::new(gauge.clone());
        let load = Load::new(IntGauge::new("load", "of a test").expect("a gauge"));
        connections.drained(&load).await;
        let (one, two) = (connections.enter(Protocol::Http1), connections.enter(Protocol::Http2));
        assert_eq!(gauge.get(), 2);
        let waiting = tokio::spawn({
            let connections = Arc::clone(&connections);
            async move { connections.drained(&load).await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        waiting.await.expect("ends");
    }

    #[test]
    fn a_jump_of_the_clock_is_noticed_either_way() {
        let (then, wall) = (Instant::now(), SystemTime::now());
        let year = Duration::from_secs(365 * 24 * 3600);
        let tick = Duration::from_secs(10);
        for (wall_now, want) in
            [(wall + tick, false), (wall + tick + year, true), (wall + tick - year, true), (wall + tick * 2, false)]
        {
            assert_eq!(clock_jump((then, wall), (then + tick, wall_now)).is_some(), want);
        }
    }
}
