//! The pools of every provider, by name. A reload changes those whose providers have changed, and no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use pingora_core::connectors::TransportConnector;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::pool::{Pool, Source};

/// The pools of the config that runs.
pub struct Pools {
    current: ArcSwap<BTreeMap<String, Running>>,
    /// One for all, as it has read the machine's certificates.
    connector: Arc<TransportConnector>,
    /// One reload at a time.
    reloading: Mutex<()>,
    starts: mpsc::UnboundedSender<Start>,
    /// Taken by `run`.
    waiting: Mutex<Option<mpsc::UnboundedReceiver<Start>>>,
}

/// A pool and the way to stop it.
#[derive(Clone)]
struct Running {
    pool: Arc<Pool>,
    stop: Arc<watch::Sender<bool>>,
}

/// A pool that is to be run until its receiver says otherwise.
type Start = (Arc<Pool>, watch::Receiver<bool>);

impl Default for Pools {
    fn default() -> Self {
        let (starts, waiting) = mpsc::unbounded_channel();
        Self {
            current: ArcSwap::default(),
            connector: Arc::new(TransportConnector::new(None)),
            reloading: Mutex::default(),
            starts,
            waiting: Mutex::new(Some(waiting)),
        }
    }
}

impl Pools {
    /// The pool of a provider. Where the config that runs knows it otherwise or not at all, as it is for a request that
    /// began before a reload, the pool is one that nobody else has: nothing is probed, and it is gone with the request.
    pub fn of(&self, name: &str, source: &Source) -> Arc<Pool> {
        match self.current.load().get(name) {
            Some(running) if running.pool.source() == source => Arc::clone(&running.pool),
            _ => Pool::new(name, source.clone(), Arc::clone(&self.connector)),
        }
    }

    /// What probes connect with, and whoever else needs a connection outside of the proxy.
    pub fn connector(&self) -> &TransportConnector {
        &self.connector
    }

    /// Every pool of the config that runs, by name.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.current.load().values().map(|running| Arc::clone(&running.pool)).collect()
    }

    /// Takes the providers of a new config. Pools whose source has not changed stay with all they have learned, new
    /// ones are started with what the old ones knew of the same peers, and those that are gone are stopped: requests
    /// that have one may finish with it. It may be
    /// called outside of a runtime and before `run`.
    pub fn reload(&self, wanted: &[(String, Source)]) {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current.load_full();
        let kept = |name: &String, source| old.get(name).filter(|running| running.pool.source() == source).cloned();
        let started = |name: &String, source| self.start(name, source, old.get(name).map(|running| &*running.pool));
        let new: BTreeMap<String, Running> = wanted
            .iter()
            .map(|(name, source)| (name.clone(), kept(name, source).unwrap_or_else(|| started(name, source))))
            .collect();
        let stays = |name: &String, pool| new.get(name).is_some_and(|running| Arc::ptr_eq(&running.pool, pool));
        let gone: Vec<_> = old.iter().filter(|(name, running)| !stays(name, &running.pool)).collect();
        for (_, running) in gone {
            running.stop.send_replace(true);
        }
        self.current.store(Arc::new(new));
    }

    fn start(&self, name: &str, source: &Source, old: Option<&Pool>) -> Running {
        let (source, connector) = (source.clone(), Arc::clone(&self.connector));
        let pool = match old {
            Some(old) => old.heir(source, connector),
            None => Pool::new(name, source, connector),
        };
        let (stop, stopped) = watch::channel(false);
        // It fails after the end of `run` only, when nothing is to be started any more.
        self.starts.send((Arc::clone(&pool), stopped)).ok();
        Running { pool, stop: Arc::new(stop) }
    }

    /// Runs the pools, those there are and those that come, until `stop` turns true. To be called once.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = waiting else { return };
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                Some((pool, stopped)) = waiting.recv() => { running.spawn(pool.run(stopped)); }
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        log::error!("a provider's peers are not watched any more: {error}");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Health;
    use super::*;

    fn source(peer: &str, health: Health) -> Source {
        let host = "whisper.test".to_owned();
        let peers = vec![peer.parse().expect("an authority")];
        Source { sni: host.clone(), host_header: host.clone(), host, port: 80, tls: false, peers, health }
    }

    fn named(name: &str, source: &Source) -> (String, Source) {
        (name.to_owned(), source.clone())
    }

    #[test]
    fn a_reload_keeps_what_has_not_changed() {
        let pools = Pools::default();
        let (a, b) = (source("10.0.0.1", Health::Off), source("10.0.0.2", Health::Off));
        pools.reload(&[named("stays", &a), named("changes", &a), named("goes", &a)]);
        let [stays, changes, goes] = ["stays", "changes", "goes"].map(|name| pools.of(name, &a));
        assert!(Arc::ptr_eq(&stays, &pools.of("stays", &a)));
        pools.reload(&[named("changes", &b), named("comes", &b), named("stays", &a)]);
        assert!(Arc::ptr_eq(&stays, &pools.of("stays", &a)));
        assert!(!Arc::ptr_eq(&changes, &pools.of("changes", &b)));
        let current: Vec<_> =
            pools.all().iter().map(|pool| (pool.name().to_owned(), pool.peers()[0].0.to_string())).collect();
        let want = [("changes", "10.0.0.2:80"), ("comes", "10.0.0.2:80"), ("stays", "10.0.0.1:80")];
        assert_eq!(current, want.map(|(name, addr)| (name.to_owned(), addr.to_owned())));
        assert_eq!(goes.peers().len(), 1, "a request may finish with it");
        let late = pools.of("goes", &a);
        assert!(!Arc::ptr_eq(&goes, &late) && late.peers().len() == 1, "it is not there any more, and serves");
        assert!(pools.of("changes", &a).source() == &a, "never another's");
    }

    #[test]
    fn any_difference_of_sources_counts() {
        let get = |path: &str, key: &'static str, accept: fn(u16) -> bool| Health::Http {
            path: path.to_owned(),
            headers: vec![(http::header::AUTHORIZATION, http::HeaderValue::from_static(key))],
            accept,
        };
        let accept: fn(u16) -> bool = |status| status < 500;
        let base = source("10.0.0.1", get("/v1/models", "a", accept));
        assert!(base == source("10.0.0.1", get("/v1/models", "a", accept)));
        for (label, other) in [
            ("peers", source("10.0.0.2", get("/v1/models", "a", accept))),
            ("path", source("10.0.0.1", get("/v1/voices", "a", accept))),
            ("credential", source("10.0.0.1", get("/v1/models", "b", accept))),
            ("statuses", source("10.0.0.1", get("/v1/models", "a", |status| status != 401))),
            ("kind", source("10.0.0.1", Health::Tcp)),
            ("TLS", Source { tls: true, ..base.clone() }),
        ] {
            assert!(base != other, "{label}");
        }
        assert!(source("10.0.0.1", Health::Tcp) != source("10.0.0.1", Health::Off));
    }

    #[tokio::test]
    async fn pools_are_run_when_they_come_and_stopped_when_they_go() {
        let listeners = [tokio::net::TcpListener::bind("127.0.0.1:0"), tokio::net::TcpListener::bind("127.0.0.1:0")];
        let [first, second] = listeners;
        let (first, second) = (first.await.expect("a port"), second.await.expect("a port"));
        let [a, b] = [&first, &second]
            .map(|listener| source(&listener.local_addr().expect("an address").to_string(), Health::Tcp));
        let pools = Arc::new(Pools::default());
        pools.reload(&[named("early", &a)]);
        let early = pools.current.load().get("early").cloned().expect("there");
        let (stop, stopped) = watch::channel(false);
        let running = Arc::clone(&pools);
        let run = tokio::spawn(async move { running.run(stopped).await });
        first.accept().await.expect("a probe of what was there");
        pools.reload(&[named("late", &b)]);
        early.stop.closed().await;
        second.accept().await.expect("a probe of what has come");
        let late = pools.current.load().get("late").cloned().expect("there");
        stop.send(true).expect("it listens");
        run.await.expect("ends");
        late.stop.closed().await;
    }
}
