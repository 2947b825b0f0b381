//! What all requests share, whatever the config says: room for records, the load, metrics, names.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use pingora_core::server::ShutdownWatch;
use serde_json::json;
use uuid::Uuid;

use crate::answer::Answer;
use crate::body::spool::Spools;
use crate::exchange::Load;
use crate::metrics::Metrics;
use crate::records::Records;
use crate::state::State;
use crate::upstream::Standings;
use crate::upstream::keys::Cause;
use crate::upstream::pools::Pools;

/// Audit records a second of requests that no valid key came with. The rest is counted.
const STRANGERS_A_SECOND: u64 = 10;

/// What all requests share, whatever the config says.
pub struct Desk {
    pub records: Arc<Records>,
    pub load: Arc<Load>,
    pub tunnels: Arc<Load>,
    pub metrics: Arc<Metrics>,
    pub pools: Pools,
    pub spools: Arc<Spools>,
    began: Instant,
    /// The second that is being counted, and how many strangers were recorded in it.
    strangers: AtomicU64,
}

impl Desk {
    pub fn new(records: Arc<Records>, spools: Spools, metrics: Arc<Metrics>) -> Self {
        Self {
            records,
            load: Arc::new(Load::new(metrics.in_flight.clone())),
            tunnels: Arc::new(Load::new(metrics.tunnels.clone())),
            metrics,
            pools: Pools::default(),
            spools: Arc::new(spools),
            began: Instant::now(),
            strangers: AtomicU64::new(0),
        }
    }

    /// A new request's id: unique, and in the order of time, to a millisecond. `now`: the wall clock.
    pub fn id(&self, now: Timestamp) -> Uuid {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        match RANDOM.with_borrow_mut(Random::next) {
            Some(random) => uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid(),
            None => Uuid::now_v7(),
        }
    }

    /// The wall clock, in microseconds as records show it.
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// Whether one more request that no valid key came with is written down.
    pub fn may_audit_a_stranger(&self, now: Instant) -> bool {
        const COUNT_BITS: u32 = 16;
        let second = now.saturating_duration_since(self.began).as_secs() << COUNT_BITS;
        let count = self.strangers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
            let same = last >> COUNT_BITS == second >> COUNT_BITS;
            let count = if same { last & ((1 << COUNT_BITS) - 1) } else { 0 };
            (count < STRANGERS_A_SECOND).then_some(second | (count + 1))
        });
        if count.is_err() {
            self.metrics.unrecorded_refusals.inc();
        }
        count.is_ok()
    }

    /// A number from 0 to 1 that nobody can guess.
    pub fn jitter(&self) -> f64 {
        f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
    }

    /// Whether requests would be served, and how every provider fares.
    pub fn ready_verbose(&self, state: &State, stopping: &ShutdownWatch, now: Instant) -> Answer {
        let mut providers = serde_json::Map::new();
        for (name, provider) in &state.settings.providers {
            let Some(upstream) = state.upstreams.get(name) else { continue };
            let peers: Vec<_> = upstream
                .describe(now)
                .into_iter()
                .map(|Standings { peer, breaker }| {
                    json!({
                        "peer": peer.addr.to_string(),
                        "healthy": peer.healthy,
                        "since_s": now.saturating_duration_since(peer.since).as_secs(),
                        "why": peer.last.err(),
                        "breaker": breaker.label(),
                    })
                })
                .collect();
            let key =
                |index| json!({ "key": index + 1, "set_aside": upstream.key_trouble(index, now).map(Cause::label) });
            let keys: Vec<_> = (0..provider.keys.len()).map(key).collect();
            providers.insert(name.clone(), json!({ "peers": peers, "keys": keys }));
        }
        self.ready(state, stopping).with("providers", providers.into())
    }

    /// Whether requests would be served.
    pub fn ready(&self, state: &State, stopping: &ShutdownWatch) -> Answer {
        let routes = !state.settings.providers.is_empty();
        let callers = state.anonymous.is_some() || !state.settings.keys.is_empty();
        Answer::ready(&[
            ("accepting", !*stopping.borrow()),
            ("callers", callers),
            ("providers", routes),
            ("records", self.records.writable()),
        ])
    }
}

/// The system's randomness, asked for once for many ids: each time is a system call.
struct Random {
    bytes: [u8; Self::BYTES],
    used: usize,
}

thread_local! {
    static RANDOM: RefCell<Random> = const { RefCell::new(Random { bytes: [0; Random::BYTES], used: Random::BYTES }) };
}

impl Random {
    /// What an id of version 7 has room for, and some.
    const ID_BYTES: usize = 10;
    const BYTES: usize = 100 * Self::ID_BYTES;

    /// Bytes nobody has had. `None`: the system gives none.
    fn next(&mut self) -> Option<[u8; Self::ID_BYTES]> {
        if self.used == Self::BYTES {
            getrandom::fill(&mut self.bytes).ok()?;
            self.used = 0;
        }
        let next = self.bytes.get(self.used..)?.first_chunk().copied();
        self.used += Self::ID_BYTES;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_randomness_is_given_twice() {
        let mut random = Random { bytes: [0; Random::BYTES], used: Random::BYTES };
        let seen: std::collections::HashSet<_> = (0..1000).map(|_| random.next().expect("random")).collect();
        assert_eq!(seen.len(), 1000);
        assert!(!seen.contains(&[0; Random::ID_BYTES]));
    }

    #[test]
    fn strangers_are_written_down_only_so_often() {
        let dir = std::env::temp_dir().join(format!("aulos-strangers-{}", std::process::id()));
        let (records, writer) = Records::open(&dir, 1).expect("opens");
        let metrics = Arc::new(Metrics::new().expect("registers"));
        let spools = Spools::open(&dir.join("spool"), Arc::clone(&metrics)).expect("opens");
        let desk = Desk::new(records, spools, metrics);
        let start = desk.began;
        let written = |at: Instant| (0..1000).filter(|_| desk.may_audit_a_stranger(at)).count() as u64;
        assert_eq!(written(start), STRANGERS_A_SECOND);
        assert_eq!(written(start + Duration::from_millis(900)), 0);
        assert_eq!(written(start + Duration::from_secs(1)), STRANGERS_A_SECOND);
        assert_eq!(desk.metrics.unrecorded_refusals.get(), 3000 - 2 * STRANGERS_A_SECOND);
        writer.close();
        std::fs::remove_dir_all(dir).ok();
    }
}
