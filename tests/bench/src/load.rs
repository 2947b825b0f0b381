//! A closed loop: so many keep-alive connections, each sending its next request when the last is answered.

use crate::client::{Connection, READ_BYTES};
use crate::procfs;
use crate::speech::Speech;
use crate::stats;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// An answer that takes longer than this after the end of a run is an error.
const STRAGGLER_MAX: Duration = Duration::from_secs(5);

/// What is sent, and what a good answer to it is.
#[derive(Debug, Clone)]
pub struct Shot {
    pub request: Arc<[u8]>,
    pub status: u16,
    pub body_bytes: usize,
}

impl Shot {
    pub fn of(speech: Speech) -> Self {
        Self { request: speech.request().into(), status: 200, body_bytes: speech.body_bytes() }
    }
}

#[derive(Debug, Clone)]
pub struct Load {
    pub target: SocketAddr,
    pub shot: Shot,
    pub connections: usize,
    pub warm: Duration,
    pub length: Duration,
}

/// What was seen between the end of the warm-up and the end of the run.
#[derive(Debug, Default)]
pub struct Run {
    latencies: Vec<u64>,
    pub errors: u64,
    pub length: Duration,
    /// Processor time of the process watched.
    pub cpu: Duration,
}

impl Load {
    /// Runs, and watches the process behind the target where there is one.
    pub async fn run(&self, watched: Option<u32>) -> io::Result<Run> {
        let from = Instant::now() + self.warm;
        let until = from + self.length;
        let mut crew = JoinSet::new();
        for _ in 0..self.connections {
            let (target, shot) = (self.target, self.shot.clone());
            crew.spawn(async move {
                let mut seen = Seen { from, latencies: Vec::with_capacity(1 << 12), errors: 0 };
                let worked = timeout_at(until + STRAGGLER_MAX, seen.work(target, &shot, until)).await;
                seen.errors += u64::from(worked.is_err());
                seen
            });
        }
        sleep_until(from).await;
        let before = watched.map(procfs::cpu_time).transpose()?;
        let counted_from = Instant::now();
        sleep_until(until).await;
        let after = watched.map(procfs::cpu_time).transpose()?;
        let length = counted_from.elapsed();
        let cpu = after.unwrap_or_default().saturating_sub(before.unwrap_or_default());
        let mut run = Run { cpu, length, ..Run::default() };
        while let Some(seen) = crew.join_next().await {
            let seen = seen.map_err(io::Error::other)?;
            run.errors += seen.errors;
            run.latencies.extend(seen.latencies);
        }
        run.latencies.sort_unstable();
        Ok(run)
    }
}

impl Run {
    pub fn served(&self) -> usize {
        self.latencies.len()
    }

    pub fn rate(&self) -> f64 {
        self.served() as f64 / self.length.as_secs_f64()
    }

    /// In microseconds.
    pub fn latency(&self, share: f64) -> f64 {
        stats::percentile(&self.latencies, share) as f64 / 1e3
    }

    /// In microseconds of processor time.
    pub fn cpu_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.served().max(1) as f64
    }

    /// The share of one core that the process watched used.
    pub fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.length.as_secs_f64()
    }
}

/// What one connection saw.
struct Seen {
    from: Instant,
    latencies: Vec<u64>,
    errors: u64,
}

impl Seen {
    async fn work(&mut self, target: SocketAddr, shot: &Shot, until: Instant) {
        let mut room = vec![0; READ_BYTES];
        while Instant::now() < until {
            if self.connection(target, shot, until, &mut room).await.is_err() {
                self.errors += 1;
                // A target that is gone must not be asked a million times.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// One connection, for as long as it is kept.
    async fn connection(&mut self, target: SocketAddr, shot: &Shot, until: Instant, room: &mut [u8]) -> io::Result<()> {
        let mut connection = Connection::open(target).await?;
        let mut began = Instant::now();
        while began < until {
            let answer = connection.exchange(&shot.request, room).await?;
            let ended = Instant::now();
            if (answer.status, answer.body_bytes) != (shot.status, shot.body_bytes) {
                self.errors += 1;
            } else if began >= self.from && ended <= until {
                self.latencies.push((ended - began).as_nanos() as u64);
            }
            if answer.closes {
                return Ok(());
            }
            began = ended;
        }
        Ok(())
    }
}
