//! The peers of one provider: found by name, probed in the background, handed out in turn.
//!
//! Membership and health are the load balancer's (`pingora-load-balancing`). Its loop and its selection are not used:
//! the loop probes only between two lookups, so that a mute resolver stops the probes, and its round robin moves a
//! counter that all requests share at every step, so that one of them may miss a peer when it asks for the next.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use http::uri::Authority;
use pingora_core::connectors::TransportConnector;
use pingora_load_balancing::{Backend, Backends};
use tokio::sync::{Mutex, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::discover::{Discovery, Names};
pub use super::health::Health;
use super::health::{History, Prober};

/// How often names are asked for again.
const REFRESH: Duration = Duration::from_secs(30);
/// How often they are while one of them cannot be resolved, and how often peers are probed.
const PROBES: Duration = Duration::from_secs(5);

/// Where the peers of a provider are, and how they are asked whether they are well. It prints nothing: it holds the
/// credential.
#[derive(Clone, PartialEq)]
pub struct Source {
    /// The base URL's: a name, or an address without brackets.
    pub host: String,
    /// The base URL's, and that of peers which say none.
    pub port: u16,
    pub tls: bool,
    /// The replicas, `host` or `host:port`; none: the host of the base URL is the one name asked for.
    pub peers: Vec<Authority>,
    pub health: Health,
    /// What a probe over HTTP sends as `Host`.
    pub host_header: String,
    /// The name a certificate has to be for.
    pub sni: String,
}

impl Source {
    /// Hosts and ports, for the resolver.
    fn places(&self) -> Vec<(String, u16)> {
        if self.peers.is_empty() {
            return vec![(self.host.clone(), self.port)];
        }
        let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
        self.peers.iter().map(|peer| (bare(peer.host()), peer.port_u16().unwrap_or(self.port))).collect()
    }
}

/// What is known of a peer, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub addr: SocketAddr,
    pub healthy: bool,
    /// When it was found, or when it last fell ill or got well.
    pub since: Instant,
    /// What came of the last probe. Of a peer that is not healthy it says why; a healthy one may have failed once.
    pub last: Result<(), String>,
}

/// The peers of one provider.
pub struct Pool {
    name: String,
    source: Source,
    names: Arc<Names>,
    backends: Backends,
    history: Arc<History>,
    /// Moves on with every request.
    turn: AtomicUsize,
    /// Held by the lookup that is under way.
    looking: Arc<Mutex<()>>,
    /// Lookups that have ended.
    lookups: AtomicU64,
}

impl Pool {
    /// Peers that are addresses are there at once, those behind names when they were asked for: `ready`.
    /// `connector`: what probes connect with.
    pub fn new(name: &str, source: Source, connector: Arc<TransportConnector>) -> Arc<Self> {
        Self::with(name, source, connector, History::default())
    }

    /// A pool in the place of another one. A peer of both that is ill stays so until a probe finds it well.
    pub fn heir(&self, source: Source, connector: Arc<TransportConnector>) -> Arc<Self> {
        let history = History::default();
        if source.health != Health::Off {
            let ill: HashSet<_> = self.describe().iter().filter(|peer| !peer.healthy).map(|peer| peer.addr).collect();
            history.inherit(&self.history, |addr| ill.contains(&addr));
        }
        Self::with(&self.name, source, connector, history)
    }

    fn with(name: &str, source: Source, connector: Arc<TransportConnector>, history: History) -> Arc<Self> {
        let names = Arc::new(Names::new(name, source.places()));
        let history = Arc::new(history);
        let mut backends = Backends::new(Box::new(Discovery(Arc::clone(&names))));
        // Without a check every peer is healthy for good.
        if source.health != Health::Off {
            backends.set_health_check(Box::new(Prober::new(name, source.clone(), connector, Arc::clone(&history))));
        }
        let pool = Self {
            name: name.to_owned(),
            source,
            names,
            backends,
            history,
            turn: AtomicUsize::new(0),
            looking: Arc::default(),
            lookups: AtomicU64::new(0),
        };
        if pool.names.are_literal() {
            // Nothing is waited for, so it is done when it returns.
            pool.update().now_or_never();
        }
        Arc::new(pool)
    }

    /// The provider's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the pool was made from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Resolves when there are peers, which only the first requests of a provider have to wait for. Whoever comes
    /// while a lookup is under way waits for that one.
    ///
    /// # Errors
    /// None of the names could be resolved, or not within `patience`.
    pub async fn ready(self: &Arc<Self>, patience: Duration) -> io::Result<()> {
        if !self.backends.get_backend().is_empty() {
            return Ok(());
        }
        // Names that could not be resolved are asked for again in the background; not by every request, which would
        // wait for them each time.
        if self.lookups.load(Ordering::Relaxed) > 0
            && let Some((name, why)) = self.names.troubles().into_iter().next()
        {
            return Err(io::Error::other(format!("{name}: {why}")));
        }
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("not resolved within {patience:?}"));
        timeout(patience, self.discover()).await.map_err(late)?
    }

    /// Whether no peer is known, so that `ready` has to be asked.
    pub fn is_empty(&self) -> bool {
        self.backends.get_backend().is_empty()
    }

    /// The peers and whether each is healthy: the healthy ones first, and both kinds from another one on each time.
    /// Empty until `ready`. To be asked once a request: two would take every second turn.
    pub fn peers(&self) -> Vec<(SocketAddr, bool)> {
        let known = self.backends.get_backend();
        let mut peers: Vec<_> =
            known.iter().filter_map(|backend| Some((*backend.addr.as_inet()?, self.is_healthy(backend)?))).collect();
        if peers.len() > 1 {
            balance(&mut peers, self.turn.fetch_add(1, Ordering::Relaxed));
        }
        peers
    }

    /// Keeps the names resolved and the peers probed, until `stop` turns true or nobody is left to say so.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.keep_discovering() => {}
            () = self.keep_probing() => {}
        }
    }

    /// Every peer, in the order of addresses.
    pub fn describe(&self) -> Vec<Peer> {
        let known = self.backends.get_backend();
        known
            .iter()
            .filter_map(|backend| {
                let addr = *backend.addr.as_inet()?;
                let seen = self.history.of(addr)?;
                Some(Peer { addr, healthy: self.is_healthy(backend)?, since: seen.since, last: seen.last })
            })
            .collect()
    }

    /// Resolves the names and probes every peer once, now; it counts like any other round. Gives what came of it by
    /// address, and by name where there is none.
    pub async fn probe_now(self: &Arc<Self>) -> Vec<(String, Result<(), String>)> {
        self.discover().await.ok();
        self.backends.run_health_check(true).await;
        let unresolved = self.names.troubles().into_iter().map(|(name, why)| (name, Err(why)));
        unresolved.chain(self.describe().into_iter().map(|peer| (peer.addr.to_string(), peer.last))).collect()
    }
}

impl Pool {
    fn is_healthy(&self, backend: &Backend) -> Option<bool> {
        let addr = *backend.addr.as_inet()?;
        Some(self.backends.ready(backend) && !self.history.is_inherited(addr))
    }

    async fn keep_discovering(self: &Arc<Self>) {
        loop {
            self.discover().await.ok();
            let resolved = self.names.troubles().is_empty();
            sleep(if resolved { REFRESH } else { PROBES }).await;
        }
    }

    async fn keep_probing(self: &Arc<Self>) {
        // The first round comes with the first peers, not five seconds after them.
        self.discover().await.ok();
        let mut rounds = interval(PROBES);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            // In parallel: one peer that lets its probe wait must not make the others' late. Dropped, it ends them.
            self.backends.run_health_check(true).await;
        }
    }

    /// Asks for every name once more, or waits for whoever does. An error: there is no peer.
    async fn discover(self: &Arc<Self>) -> io::Result<()> {
        let before = self.lookups.load(Ordering::Acquire);
        // The load balancer wants one update at a time.
        let turn = Arc::clone(&self.looking).lock_owned().await;
        if self.lookups.load(Ordering::Acquire) == before {
            let pool = Arc::clone(self);
            // A task of its own, which a caller that gives up leaves alone: the resolver's thread could not be stopped
            // with it, and the next caller would start another beside it.
            let looking = tokio::spawn(async move {
                pool.update().await;
                pool.lookups.fetch_add(1, Ordering::Release);
                drop(turn);
            });
            looking.await.map_err(io::Error::other)?;
        }
        self.found()
    }

    async fn update(&self) {
        // It fails where there is no address at all. What was known stays, and the names know why.
        self.backends.update(|peers| self.history.keep(&peers, Instant::now())).await.ok();
    }

    fn found(&self) -> io::Result<()> {
        if !self.backends.get_backend().is_empty() {
            return Ok(());
        }
        let troubles: Vec<_> = self.names.troubles().into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        Err(io::Error::new(io::ErrorKind::NotFound, troubles.join("; ")))
    }
}

/// The healthy ones first, so that those after an ill one do not get its share on top of their own; both kinds from
/// another one on at each turn.
fn balance(peers: &mut [(SocketAddr, bool)], turn: usize) {
    peers.sort_by_key(|(_, healthy)| !healthy);
    let (healthy, ill) = peers.split_at_mut(peers.partition_point(|(_, healthy)| *healthy));
    for kind in [healthy, ill] {
        kind.rotate_left(turn.checked_rem(kind.len()).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn pool(host: &str, peers: &[&str], health: Health) -> Arc<Pool> {
        let peers = peers.iter().map(|peer| peer.parse().expect("an authority")).collect();
        let host = host.to_owned();
        let source = Source { sni: host.clone(), host_header: host.clone(), host, port: 80, tls: false, peers, health };
        Pool::new("local", source, Arc::new(TransportConnector::new(None)))
    }

    fn addrs(pool: &Pool) -> Vec<String> {
        pool.describe().iter().map(|peer| peer.addr.to_string()).collect()
    }

    #[tokio::test]
    async fn every_address_of_the_list_is_a_peer_at_once() {
        for (label, host, peers, want) in [
            ("the base URL's own", "10.0.0.9", &[][..], &["10.0.0.9:80"][..]),
            ("IPv6", "::1", &[], &["[::1]:80"]),
            ("replicas", "whisper.test", &["10.0.0.1:8000", "10.0.0.2"], &["10.0.0.1:8000", "10.0.0.2:80"]),
            ("IPv6 replicas", "whisper.test", &["[::1]:8000", "[::2]"], &["[::1]:8000", "[::2]:80"]),
            ("one said twice", "whisper.test", &["10.0.0.1", "10.0.0.1:80"], &["10.0.0.1:80"]),
        ] {
            let pool = pool(host, peers, Health::Off);
            assert_eq!(addrs(&pool), want, "{label}");
            assert_eq!(pool.peers().len(), want.len(), "{label}");
            pool.ready(Duration::ZERO).await.expect(label);
            assert_eq!(pool.lookups.load(Ordering::Relaxed), 0, "{label}");
        }
    }

    #[tokio::test]
    async fn all_who_wait_share_one_lookup_and_one_who_gives_up_does_not_end_it() {
        let pool = pool("localhost", &[], Health::Off);
        assert!(pool.peers().is_empty());
        assert!(pool.ready(PATIENCE).now_or_never().is_none(), "asks, and gives up");
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let pool = Arc::clone(&pool);
            waiting.spawn(async move { pool.ready(PATIENCE).await.is_ok() });
        }
        assert!(waiting.join_all().await.into_iter().all(|ready| ready));
        assert_eq!(pool.lookups.load(Ordering::Relaxed), 1);
        assert!(pool.peers().iter().all(|(addr, healthy)| addr.ip().is_loopback() && *healthy));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_where_the_resolver_is_mute() {
        let pool = pool("localhost", &[], Health::Off);
        let _mute = pool.looking.lock().await;
        let begin = tokio::time::Instant::now();
        let late = pool.ready(PATIENCE).await.expect_err("nobody answers");
        assert_eq!(begin.elapsed().as_secs(), PATIENCE.as_secs());
        assert_eq!((late.kind(), late.to_string().as_str()), (io::ErrorKind::TimedOut, "not resolved within 60s"));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_says_so_each_time() {
        let pool = pool("no..such.host", &[], Health::Tcp);
        for _ in 1..=2 {
            let error = pool.ready(PATIENCE).await.expect_err("no such host");
            assert!(error.to_string().starts_with("no..such.host:80: "), "{error}");
            assert_eq!(pool.lookups.load(Ordering::Relaxed), 1, "it is asked for again in the background");
            assert!(pool.peers().is_empty() && pool.describe().is_empty());
        }
        let probed = pool.probe_now().await;
        assert!(matches!(&probed[..], [(name, Err(_))] if name == "no..such.host:80"), "{probed:?}");
    }

    #[tokio::test]
    async fn a_peer_that_goes_away_is_marked_after_two_probes_and_used_after_one() {
        // An address no other test binds: the port has to be free when the peer comes back.
        let listener = TcpListener::bind("127.0.0.77:0").expect("a port");
        let other = TcpListener::bind("127.0.0.77:0").expect("a port");
        let [gone, stays] = [&listener, &other].map(|listener| listener.local_addr().expect("an address"));
        let pool = pool("whisper.test", &[&gone.to_string(), &stays.to_string()], Health::Tcp);
        let healthy = |addr| pool.peers().contains(&(addr, true));
        let found = pool.describe()[0].since;
        pool.probe_now().await;
        assert!(healthy(gone));
        drop(listener);
        pool.probe_now().await;
        assert!(healthy(gone), "one failure may be bad luck");
        let probed = pool.probe_now().await;
        assert!(!healthy(gone) && healthy(stays));
        let said = |addr: SocketAddr| probed.iter().find(|(of, _)| *of == addr.to_string()).map(|(_, outcome)| outcome);
        assert!(matches!((said(gone), said(stays)), (Some(Err(_)), Some(Ok(())))), "{probed:?}");
        assert_eq!(pool.peers()[0].0, stays, "the healthy come first");
        let ill = pool.describe().into_iter().find(|peer| peer.addr == gone).expect("described");
        assert!(!ill.healthy && ill.last.is_err() && ill.since > found, "{ill:?}");
        let _back = TcpListener::bind(gone).expect("the same port");
        pool.probe_now().await;
        assert!(healthy(gone));
    }

    #[tokio::test]
    async fn what_is_known_of_peers_that_stay_outlives_a_new_source() {
        let listener = TcpListener::bind("127.0.0.78:0").expect("a port");
        let gone = listener.local_addr().expect("an address");
        let well = TcpListener::bind("127.0.0.78:0").expect("a port").local_addr().expect("an address");
        drop(listener);
        let old = pool("whisper.test", &[&gone.to_string()], Health::Tcp);
        old.probe_now().await;
        old.probe_now().await;
        let since = old.describe()[0].since;
        let source = |health| {
            let peers = [gone, well].map(|addr| addr.to_string().parse().expect("an authority")).to_vec();
            Source { peers, health, ..old.source().clone() }
        };
        let heir = |health| old.heir(source(health), Arc::new(TransportConnector::new(None)));
        let new = heir(Health::Tcp);
        assert_eq!(new.peers(), [(well, true), (gone, false)], "before the first probe");
        let told = new.describe().into_iter().find(|peer| peer.addr == gone).expect("described");
        assert!(!told.healthy && told.last.is_err() && told.since == since, "{told:?}");
        new.probe_now().await;
        assert!(new.peers().contains(&(gone, false)), "one more failure does not make it well");
        let _back = TcpListener::bind(gone).expect("the same port");
        new.probe_now().await;
        assert!(new.peers().contains(&(gone, true)));
        assert!(heir(Health::Off).peers().contains(&(gone, true)), "nobody would find it well again");
    }

    #[tokio::test]
    async fn a_peer_that_is_not_probed_is_well() {
        let pool = pool("127.0.0.1", &["127.0.0.1:1"], Health::Off);
        for _ in 0..3 {
            assert_eq!(pool.probe_now().await, [("127.0.0.1:1".to_owned(), Ok(()))]);
        }
        assert!(pool.peers()[0].1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_run_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        for health in [Health::Off, Health::Tcp] {
            let (stop, stopped) = watch::channel(false);
            let run = tokio::spawn(pool("127.0.0.1", &[&addr], health).run(stopped));
            tokio::task::yield_now().await;
            assert!(!run.is_finished());
            stop.send(true).expect("it listens");
            let begin = tokio::time::Instant::now();
            timeout(PATIENCE, run).await.expect("it ends").expect("without a panic");
            assert_eq!(begin.elapsed(), Duration::ZERO, "no timer was waited for");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_probes_again_and_again_until_nobody_can_stop_it() {
        let pool = pool("127.0.0.1", &["127.0.0.1:1"], Health::Tcp);
        let (stop, stopped) = watch::channel(false);
        let run = tokio::spawn(Arc::clone(&pool).run(stopped));
        // Rounds at 0 s and 5 s, and 2 s for the second to end; time passes by itself.
        timeout(Duration::from_secs(8), std::future::pending::<()>()).await.expect_err("eight seconds");
        assert!(!pool.peers()[0].1, "nothing listens there");
        drop(stop);
        timeout(PATIENCE, run).await.expect("it ends").expect("without a panic");
    }

    proptest! {
        #[test]
        fn the_healthy_share_the_first_place_evenly(
            states in prop::collection::vec(any::<bool>(), 1..9),
            rounds in 1usize..5,
        ) {
            let addr = |port: usize| SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).expect("small")));
            let peers: Vec<_> = states.iter().enumerate().map(|(port, healthy)| (addr(port), *healthy)).collect();
            let healthy = states.iter().filter(|healthy| **healthy).count();
            let share = if healthy > 0 { healthy } else { states.len() };
            let mut firsts = std::collections::HashMap::new();
            for turn in 0..share * rounds {
                let mut order = peers.clone();
                balance(&mut order, turn);
                *firsts.entry(order[0]).or_insert(0) += 1;
                prop_assert!(order.is_sorted_by_key(|(_, healthy)| !healthy), "the healthy first: {order:?}");
                order.sort_unstable();
                prop_assert_eq!(&order, &{ let mut all = peers.clone(); all.sort_unstable(); all }, "each once");
            }
            prop_assert!(firsts.values().all(|times| *times == rounds) && firsts.len() == share, "{firsts:?}");
        }
    }
}
