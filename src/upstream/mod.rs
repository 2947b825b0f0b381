//! The way to a provider: where its peers are and how they fare, which of its keys may be used, and who is tried next.

pub mod breaker;
pub mod candidates;
mod discover;
mod health;
pub mod keys;
pub mod pool;
pub mod pools;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pingora_core::connectors::TransportConnector;

use crate::config::settings::{self, Provider, ProviderKey, Settings};
use crate::provider::Credential;
use breaker::{Breaker, Standing};
use keys::{Cause, Keys};
use pool::{Health, Pool, Source};
use pools::Pools;

/// A peer whose probes fail is tried only where nothing better is left.
const UNHEALTHY: Duration = Duration::from_secs(5);

/// What is known of every provider of one config, by name.
pub type Upstreams = BTreeMap<String, Arc<Upstream>>;

/// What is known of one provider while it runs.
pub struct Upstream {
    pub pool: Arc<Pool>,
    keys: Arc<Mutex<Keys>>,
    /// By address, so that what was learned of a peer that stays outlives a reload.
    breakers: Arc<Mutex<HashMap<SocketAddr, Breaker>>>,
}

/// How a peer fares.
pub struct Standings {
    pub peer: pool::Peer,
    pub breaker: breaker::State,
}

/// One attempt that is under way. An attempt of which nobody says how it ended says nothing of its peer.
pub struct Underway {
    upstream: Arc<Upstream>,
    key: usize,
    peer: SocketAddr,
    began: Instant,
    told: Told,
}

/// What was said of an attempt. One that was served may fail all the same: its answer breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Answered,
    Failed,
}

/// The providers of a config; what was learned under the one before stays with those that stay.
pub fn of(settings: &Settings, pools: &Pools, old: &Upstreams, before: Option<&Settings>) -> Upstreams {
    let sources: Vec<_> =
        settings.providers.values().map(|provider| (provider.name.clone(), source(provider))).collect();
    pools.reload(&sources);
    let upstream = |(name, source): &(String, Source)| {
        let pool = pools.of(name, source);
        let old = old.get(name);
        let breakers = old.map(|old| Arc::clone(&old.breakers));
        let provider = settings.providers.get(name);
        let was = before.and_then(|before| before.providers.get(name));
        let keys = keys_of(provider.map(Arc::as_ref), was.map(Arc::as_ref), old.map(Arc::as_ref));
        let upstream = Upstream { pool, keys, breakers: breakers.unwrap_or_default() };
        (name.clone(), Arc::new(upstream))
    };
    sources.iter().map(upstream).collect()
}

/// What is known of a provider's keys. Where they are the same as before, requests that are under way go on telling.
fn keys_of(provider: Option<&Provider>, was: Option<&Provider>, old: Option<&Upstream>) -> Arc<Mutex<Keys>> {
    let keys = provider.map_or(&[][..], |provider| &provider.keys);
    let secret = |index: usize| keys.get(index).map(|key| key.secret.expose());
    let known = match (was, old) {
        (Some(was), Some(old)) => {
            let place = |index| was.keys.iter().position(|key| Some(key.secret.expose()) == secret(index));
            if was.keys.len() == keys.len() && (0..keys.len()).all(|index| place(index) == Some(index)) {
                return Arc::clone(&old.keys);
            }
            lock(&old.keys).reloaded(keys.len(), place)
        }
        _ => Keys::new(keys.len()),
    };
    Arc::new(Mutex::new(known))
}

/// Where a provider's peers are, and how they are probed.
fn source(provider: &Provider) -> Source {
    let health = match provider.health {
        settings::Health::Off => Health::Off,
        settings::Health::Tcp => Health::Tcp,
        settings::Health::Http => asked(provider, provider.keys.first(), is_well),
    };
    reached(provider, health)
}

fn reached(provider: &Provider, health: Health) -> Source {
    let base = &provider.base_url;
    Source {
        host: base.host.clone(),
        port: base.port,
        tls: base.tls,
        peers: provider.peers.clone(),
        health,
        host_header: base.authority(),
        sni: base.host.clone(),
    }
}

/// A free GET, where the provider's kind knows one.
fn asked(provider: &Provider, key: Option<&ProviderKey>, accept: fn(u16) -> bool) -> Health {
    let Some(probe) = provider.kind.probe() else { return Health::Tcp };
    let mut path = format!("{}{probe}", provider.base_url.path);
    let mut headers = Vec::new();
    match key.map(|key| &key.credential) {
        Some(Credential::Header(name, value)) => headers.push((name.clone(), value.clone())),
        Some(Credential::Query(pair)) => path = format!("{path}?{pair}"),
        None => {}
    }
    Health::Http { path, headers, accept }
}

/// Asks every peer of a provider with every key for what costs nothing. Gives what came of it, by peer and by the
/// number of the key; 0 where the provider asks for none.
pub async fn prove(provider: &Provider) -> Vec<(String, usize, Result<(), String>)> {
    let connector = Arc::new(TransportConnector::new(None));
    let keys: Vec<_> = (1..).zip(&provider.keys).map(|(number, key)| (number, Some(key))).collect();
    let keys = if keys.is_empty() || provider.kind.probe().is_none() { vec![(0, None)] } else { keys };
    let mut proven = Vec::new();
    for (number, key) in keys {
        let health = asked(provider, key, |status| status < 400);
        let pool = Pool::new(&provider.name, reached(provider, health), Arc::clone(&connector));
        proven.extend(pool.probe_now().await.into_iter().map(|(peer, what)| (peer, number, what)));
    }
    proven
}

/// A refused key or a path that is not there says nothing of a peer's health.
fn is_well(status: u16) -> bool {
    status < 500
}

impl Upstream {
    /// Its keys, in the order they should be used in.
    pub fn keys(&self, now: Instant) -> Vec<(usize, Standing)> {
        lock(&self.keys).order(now).collect()
    }

    /// Its peers, in the order they should be used in.
    pub fn peers(&self, now: Instant) -> Vec<(SocketAddr, Standing)> {
        let breakers = lock(&self.breakers);
        let standing = |(addr, healthy): (SocketAddr, bool)| {
            let breaker = breakers.get(&addr).map_or(Standing::Ready, |breaker| breaker.standing(now));
            let probes = if healthy { Standing::Ready } else { Standing::Back { at: now + UNHEALTHY } };
            (addr, breaker.max(probes))
        };
        self.pool.peers().into_iter().map(standing).collect()
    }

    /// An attempt begins.
    pub fn begin(self: &Arc<Self>, key: usize, peer: SocketAddr, now: Instant) -> Underway {
        if let Some(breaker) = lock(&self.breakers).get_mut(&peer) {
            breaker.begin(now);
        }
        Underway { upstream: Arc::clone(self), key, peer, began: now, told: Told::Nothing }
    }

    /// How each of its peers fares.
    pub fn describe(&self, now: Instant) -> Vec<Standings> {
        let breakers = lock(&self.breakers);
        let state = |addr: &SocketAddr| breakers.get(addr).map_or(breaker::State::Closed, |breaker| breaker.state(now));
        self.pool.describe().into_iter().map(|peer| Standings { breaker: state(&peer.addr), peer }).collect()
    }

    /// Why a key is set aside; `None` where it is not.
    pub fn key_trouble(&self, index: usize, now: Instant) -> Option<Cause> {
        lock(&self.keys).cause(index, now)
    }
}

impl Underway {
    /// The peer answered, and neither it nor the key is at fault for what it said. Said again, it changes nothing.
    pub fn served(&mut self, now: impl FnOnce() -> Instant) {
        if self.told == Told::Nothing {
            self.answered(now());
            lock(&self.upstream.keys).succeeded(self.key, self.began);
        }
    }

    /// The peer is to blame. `jitter`: a random number from 0 to 1.
    pub fn failed(&mut self, now: Instant, jitter: f64) {
        if std::mem::replace(&mut self.told, Told::Failed) == Told::Failed {
            return;
        }
        let mut breakers = lock(&self.upstream.breakers);
        if !breakers.contains_key(&self.peer) {
            // A name that leads elsewhere every time must not be remembered for ever.
            let peers = self.upstream.pool.peers();
            breakers.retain(|known, _| peers.iter().any(|(peer, _)| peer == known));
        }
        breakers.entry(self.peer).or_default().failed(self.began, now, jitter);
    }

    /// The key was limited; `retry_after` is what the provider asked for.
    pub fn limited(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.answered(now);
        lock(&self.upstream.keys).limited(self.key, retry_after, now);
    }

    /// The key was refused.
    pub fn refused(&mut self, now: Instant) {
        self.answered(now);
        lock(&self.upstream.keys).refused(self.key, now);
    }

    /// The peer answered, whatever it said.
    pub fn answered(&mut self, now: Instant) {
        self.told = Told::Answered;
        if let Some(breaker) = lock(&self.upstream.breakers).get_mut(&self.peer) {
            breaker.succeeded(self.began, now);
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if self.told == Told::Nothing
            && let Some(breaker) = lock(&self.upstream.breakers).get_mut(&self.peer)
        {
            breaker.abandoned(self.began);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
