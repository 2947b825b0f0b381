//! Runs the gateway: sockets, records, services; until a signal ends it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::ListenerConfig;
use pingora_core::protocols::http::v2::server::default_h2_options;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora_core::services::Service;
use pingora_core::services::background::{BackgroundService, background_service};
use pingora_core::services::listening;
use pingora_proxy::http_proxy;
use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::admin::Admin;
use crate::body::spool::Spools;
use crate::config::{self, Complaints, Environment, Settings};
use crate::desk::Desk;
use crate::gateway::Gateway;
use crate::listen::front::Front;
use crate::listen::signals::{Actions, Connections, Signals, tell_supervisor};
use crate::listen::sockets::Sockets;
use crate::listen::tls::Certificates;
use crate::metrics::Metrics;
use crate::records::Records;
use crate::state::State;
use crate::upstream::{self, Upstreams};

/// Idle connections to providers that are kept, of one gateway.
const UPSTREAM_POOL: usize = 2048;
/// An HTTP/2 connection without a stream is closed after this.
const H2_IDLE: Duration = Duration::from_secs(60);
/// Bytes a client may send ahead on one HTTP/2 stream, and on one connection.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

/// How long the records of what was cut are waited for at the end.
const CUT: Duration = Duration::from_secs(1);

/// Why the gateway did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Config(Complaints),
    #[error("{0}")]
    Start(String),
    #[error("{0} requests' records could not be written")]
    RecordsLost(usize),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Start(error.to_string())
    }
}

/// Where the settings come from, and come from again on reload.
pub trait Source: Send + Sync + 'static {
    fn load(&self) -> Result<Settings, Complaints>;
}

/// A config file.
pub struct FromFile<E> {
    pub path: PathBuf,
    pub env: E,
}

impl<E: Environment + Send + Sync + 'static> Source for FromFile<E> {
    fn load(&self) -> Result<Settings, Complaints> {
        let (settings, warnings) = config::load(&self.path, &self.env)?;
        warnings.iter().for_each(|warning| log::warn!("{}", warning.render(false)));
        Ok(settings)
    }
}

/// A gateway whose sockets are bound, and which is about to serve.
pub struct Starting<'s> {
    pub settings: &'s Settings,
    pub addresses: &'s Addresses,
    server: &'s mut Server,
    stopping: &'s ShutdownWatch,
}

impl Starting<'_> {
    /// Serves something else in the same process, on sockets of its own.
    pub fn beside(&mut self, sockets: Sockets, service: impl Service + 'static) {
        let (fds, stopping) = (sockets.into_fds(), self.stopping.clone());
        self.server.add_service(Ours { inner: service, fds, stopping, threads: Some(1) });
    }
}

/// Serves what `source` says until SIGTERM. `starting` is called once, when everything is bound.
pub fn run(
    source: impl Source,
    insecure: bool,
    starting: impl FnOnce(Starting<'_>) -> io::Result<()>,
) -> Result<(), Failure> {
    let settings = source.load().map_err(Failure::Config)?;
    if settings.keys.is_empty() && !insecure {
        return Err(Failure::Start(
            "no key is configured, so nobody could be served: make one with `aulos keys create NAME`, or say \
             --insecure to serve everybody"
                .to_owned(),
        ));
    }
    let mut sockets = Sockets::default();
    let addresses = bind(&settings, &mut sockets)?;
    let certificates = Arc::new(Certificates::load(&settings.server.listen).map_err(Failure::Start)?);
    let (records, writer) = open_records(&settings)?;
    let metrics = Arc::new(Metrics::new().map_err(|error| Failure::Start(error.to_string()))?);
    let spools = open_spools(&settings, &metrics)?;
    let (stop, stopping) = watch::channel(false);
    let never = watch::Sender::new(false);
    let mut server = Server::new_with_opt_and_conf(None, conf(&settings));
    server.bootstrap();
    let connections = Connections::new(metrics.connections.clone());
    let desk = Arc::new(Desk::new(records, spools, metrics));
    starting(Starting { settings: &settings, addresses: &addresses, server: &mut server, stopping: &stopping })?;
    let upstreams = upstream::of(&settings, &desk.pools, &Upstreams::default(), None);
    let state = Arc::new(ArcSwap::from_pointee(State::with(settings, insecure, upstreams)));
    let watching = Watching { desk: Arc::clone(&desk), stopping: stopping.clone() };
    server.add_service(background_service("peers", watching));
    let fds = sockets.into_fds();
    let proxy = Proxy { state: &state, desk: &desk, conf: &server.configuration, stopping: &stopping };
    let front = proxy.front(Arc::clone(&connections));
    let mut service = listening::Service::new("aulos".to_owned(), front);
    let current = state.load_full();
    for (place, (listener, addr)) in current.settings.server.listen.iter().zip(&addresses.public).enumerate() {
        let mut endpoint = ListenerConfig::tcp(addr.to_string());
        if let Some(tls) = certificates.settings(place, listener).map_err(Failure::Start)? {
            endpoint = endpoint.tls(tls);
        }
        service.add_listener(endpoint);
    }
    server.add_service(Ours { inner: service, fds: Arc::clone(&fds), stopping: stopping.clone(), threads: None });
    if let Some(admin) = addresses.admin {
        let app = Admin::new(Arc::clone(&state), Arc::clone(&desk), stopping.clone());
        let mut service = listening::Service::new("admin".to_owned(), app);
        service.add_tcp(&admin.to_string());
        // It goes on while the public listeners drain: an operator wants to see the end.
        server.add_service(Ours { inner: service, fds, stopping: never.subscribe(), threads: Some(1) });
    }
    let actions = Reload { source, insecure, state, desk: Arc::clone(&desk), certificates };
    let watch = Deferred(std::sync::Mutex::new(Some(Parts { actions, stop, connections })));
    server.run(RunArgs { shutdown_signal: Box::new(watch) });
    // What was cut hands its records over when its task is dropped, which the runtimes do in the background.
    let deadline = std::time::Instant::now() + CUT;
    while desk.records.waiting() > 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    match writer.close() {
        0 => Ok(()),
        lost => Err(Failure::RecordsLost(lost)),
    }
}

/// What was bound.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// In the order of the config.
    pub public: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// Says on standard output what listens where: the one thing a supervisor or a test has to know.
pub fn announce(starting: Starting<'_>) -> io::Result<()> {
    let Starting { settings, addresses, .. } = starting;
    let mut out = io::stdout().lock();
    for (listener, addr) in settings.server.listen.iter().zip(&addresses.public) {
        let scheme = if listener.tls.is_some() { "https" } else { "http" };
        writeln!(out, "listening on {scheme}://{addr}")?;
    }
    if let Some(admin) = addresses.admin {
        writeln!(out, "admin on http://{admin}")?;
    }
    Ok(())
}

fn bind(settings: &Settings, sockets: &mut Sockets) -> io::Result<Addresses> {
    let public =
        settings.server.listen.iter().map(|listener| sockets.bind(listener.addr)).collect::<io::Result<Vec<_>>>()?;
    let admin = settings.server.admin.map(|addr| sockets.bind(addr)).transpose()?;
    Ok(Addresses { public, admin })
}

/// Where the records of this config are.
pub fn records_dir(settings: &Settings) -> PathBuf {
    settings.server.state_dir.join("records")
}

fn open_records(settings: &Settings) -> Result<(Arc<Records>, crate::records::Writer), Failure> {
    let dir: &Path = &records_dir(settings);
    Records::open(dir, settings.limits.in_flight).map_err(|error| {
        Failure::Start(format!("records cannot be written to {}: {error}; set server.state_dir", dir.display()))
    })
}

fn open_spools(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Spools, Failure> {
    let dir = settings.server.state_dir.join("spool");
    Spools::open(&dir, Arc::clone(metrics)).map_err(|error| {
        Failure::Start(format!("uploads cannot be spooled in {}: {error}; set server.state_dir", dir.display()))
    })
}

fn conf(settings: &Settings) -> ServerConf {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ServerConf {
        threads: settings.server.threads.unwrap_or(cores),
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        // The drain is ours; when it is over there is nothing left to wait for.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    }
}

struct Proxy<'r> {
    state: &'r Arc<ArcSwap<State>>,
    desk: &'r Arc<Desk>,
    conf: &'r Arc<ServerConf>,
    stopping: &'r ShutdownWatch,
}

impl Proxy<'_> {
    fn front(&self, connections: Arc<Connections>) -> Front {
        let gateway = Gateway::new(Arc::clone(self.state), Arc::clone(self.desk), self.stopping.clone());
        let mut proxy = http_proxy(self.conf, gateway);
        // The defaults limit the header list and the streams; the windows are widened for uploads.
        let mut h2 = default_h2_options();
        h2.initial_window_size(H2_STREAM_WINDOW).initial_connection_window_size(H2_CONNECTION_WINDOW);
        proxy.h2_options = Some(h2);
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(H2_IDLE);
        proxy.server_options = Some(options);
        Front::new(proxy, Arc::clone(self.state), Arc::clone(self.desk), connections)
    }
}

/// A service on our sockets that stops when we say so, not when Pingora's server does.
struct Ours<S> {
    inner: S,
    fds: ListenFds,
    stopping: ShutdownWatch,
    threads: Option<usize>,
}

#[async_trait]
impl<S: Service> Service for Ours<S> {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, listeners_per_fd: usize) {
        self.inner.start_service(Some(Arc::clone(&self.fds)), self.stopping.clone(), listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.threads.or_else(|| self.inner.threads())
    }
}

/// Keeps the providers' names resolved and their peers probed.
struct Watching {
    desk: Arc<Desk>,
    stopping: ShutdownWatch,
}

#[async_trait]
impl BackgroundService for Watching {
    async fn start(&self, _: ShutdownWatch) {
        self.desk.pools.run(self.stopping.clone()).await;
    }
}

/// What the signals do to a gateway that runs.
struct Reload<S> {
    source: S,
    insecure: bool,
    state: Arc<ArcSwap<State>>,
    desk: Arc<Desk>,
    certificates: Arc<Certificates>,
}

impl<S: Source> Reload<S> {
    /// Builds everything aside, then swaps one pointer.
    fn load(&self) -> Result<(), String> {
        let settings = self.source.load().map_err(|complaints| complaints.to_string())?;
        if settings.keys.is_empty() && !self.insecure {
            return Err("no key is configured".to_owned());
        }
        let old = self.state.load();
        self.certificates.reload(&settings.server.listen)?;
        for key in unapplied(&old.settings, &settings) {
            log::warn!("{key} has changed, and is applied by a restart only");
        }
        let upstreams = upstream::of(&settings, &self.desk.pools, &old.upstreams, Some(&old.settings));
        self.state.store(Arc::new(State::with(settings, self.insecure, upstreams)));
        Ok(())
    }
}

/// The settings that a reload cannot change.
fn unapplied(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let (o, n) = (&old.server, &new.server);
    [
        ("server.listen", o.listen != n.listen),
        ("server.admin", o.admin != n.admin),
        ("server.state_dir", o.state_dir != n.state_dir),
        ("server.threads", o.threads != n.threads),
    ]
    .into_iter()
    .filter_map(|(name, changed)| changed.then_some(name))
    .collect()
}

impl<S: Source> Actions for Reload<S> {
    fn reload(&self) {
        let metrics = &self.desk.metrics;
        match self.load() {
            Ok(()) => {
                metrics.reloads.with_label_values(&["ok"]).inc();
                metrics.reload_successful.set(1);
                log::info!("the config was reloaded");
            }
            Err(why) => {
                metrics.reloads.with_label_values(&["failed"]).inc();
                metrics.reload_successful.set(0);
                log::error!("the config was not reloaded, the old one goes on:\n{why}");
            }
        }
    }

    fn reopen(&self) {
        self.desk.records.reopen();
    }

    fn drain(&self) -> Duration {
        self.state.load().settings.server.drain
    }
}

/// Signals can only be listened to on a runtime, and the first there is one is when the server asks.
struct Deferred<S>(std::sync::Mutex<Option<Parts<S>>>);

struct Parts<S> {
    actions: Reload<S>,
    stop: watch::Sender<bool>,
    connections: Arc<Connections>,
}

#[async_trait]
impl<S: Source> pingora_core::server::ShutdownSignalWatch for Deferred<S> {
    async fn recv(&self) -> pingora_core::server::ShutdownSignal {
        let parts = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(Parts { actions, stop, connections }) = parts else { return std::future::pending().await };
        actions.desk.metrics.reload_successful.set(1);
        let load = Arc::clone(&actions.desk.load);
        match Signals::new(actions, stop, connections, load) {
            Ok(signals) => {
                ready();
                signals.recv().await
            }
            Err(error) => {
                log::error!("signals cannot be listened to: {error}");
                pingora_core::server::ShutdownSignal::FastShutdown
            }
        }
    }
}

/// Everything listens: a supervisor may go on.
fn ready() {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "ready").and_then(|()| out.flush()) {
        log::warn!("nobody reads that the gateway is ready: {error}");
    }
    tell_supervisor(NotifyState::Ready);
}
