//! A closed loop: so many keep-alive connections, each sending its next request, or message, when the last is answered.

use crate::client::{Connection, READ_BYTES};
use crate::procfs;
use crate::speech::{CLIENT_KEY, Speech, post};
use crate::stats::{self, Spread};
use crate::upload::Upload;
use crate::websocket;
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
pub enum Shot {
    Request {
        bytes: Arc<[u8]>,
        status: u16,
        body_bytes: usize,
    },
    /// Over WebSocket, and back.
    Message(Arc<[u8]>),
}

impl Shot {
    pub fn of(speech: Speech) -> Self {
        Self::request(&speech.request(), speech.body_bytes())
    }

    /// Speech of another model than the one everybody asks for.
    pub fn of_model(speech: Speech, model: &str) -> Self {
        Self::request(&post(CLIENT_KEY, "", speech.json_for(model).as_bytes()), speech.body_bytes())
    }

    /// Speech by the provider's own API.
    pub fn passed(speech: Speech) -> Self {
        Self::request(&speech.passed(), speech.body_bytes())
    }

    /// The provider is sent `arriving`, which is for the proxy to make of `sent`.
    pub fn upload(sent: Upload, arriving: Upload) -> Self {
        Self::request(&sent.request(), arriving.receipt().len())
    }

    /// A message with so many bytes in it.
    pub fn message(bytes: u16) -> Self {
        Self::Message(websocket::message(bytes).into())
    }

    fn request(bytes: &[u8], body_bytes: usize) -> Self {
        Self::Request { bytes: bytes.into(), status: 200, body_bytes }
    }

    async fn open(&self, target: SocketAddr) -> io::Result<Connection> {
        let mut connection = Connection::open(target).await?;
        if matches!(self, Self::Message(_)) {
            connection.upgrade().await?;
        }
        Ok(connection)
    }

    async fn fire(&self, connection: &mut Connection, room: &mut [u8]) -> io::Result<Hit> {
        match self {
            Self::Request { bytes, status, body_bytes } => {
                let answer = connection.exchange(bytes, room).await?;
                Ok(Hit { is_good: (answer.status, answer.body_bytes) == (*status, *body_bytes), closes: answer.closes })
            }
            Self::Message(bytes) => {
                connection.echo(bytes, room).await?;
                Ok(Hit { is_good: true, closes: false })
            }
        }
    }
}

/// What came of a shot.
struct Hit {
    is_good: bool,
    closes: bool,
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
    /// Exchanges, of which one that an end of the run cuts in two counts in part.
    pub served: f64,
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
                let mut seen = Seen { from, until, latencies: Vec::with_capacity(1 << 12), served: 0.0, errors: 0 };
                let worked = timeout_at(until + STRAGGLER_MAX, seen.work(target, &shot)).await;
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
            run.served += seen.served;
            run.latencies.extend(seen.latencies);
        }
        run.latencies.sort_unstable();
        Ok(run)
    }
}

impl Run {
    /// Exchanges a second.
    pub fn rate(&self) -> f64 {
        self.served / self.length.as_secs_f64()
    }

    /// In microseconds.
    pub fn latency(&self, share: f64) -> f64 {
        stats::percentile(&self.latencies, share) as f64 / 1e3
    }

    /// In microseconds of processor time.
    pub fn cpu_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.served.max(1.0)
    }

    /// The share of one core that the process watched used.
    pub fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.length.as_secs_f64()
    }
}

/// What one figure was in several rounds.
pub fn spread(runs: &[Run], of: impl Fn(&Run) -> f64) -> Option<Spread> {
    Spread::of(&runs.iter().map(of).collect::<Vec<_>>())
}

/// What one connection saw.
struct Seen {
    from: Instant,
    until: Instant,
    latencies: Vec<u64>,
    served: f64,
    errors: u64,
}

impl Seen {
    async fn work(&mut self, target: SocketAddr, shot: &Shot) {
        let mut room = vec![0; READ_BYTES];
        while Instant::now() < self.until {
            if self.connection(target, shot, &mut room).await.is_err() {
                self.errors += 1;
                // A target that is gone must not be asked a million times.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// One connection, for as long as it is kept.
    async fn connection(&mut self, target: SocketAddr, shot: &Shot, room: &mut [u8]) -> io::Result<()> {
        let mut connection = shot.open(target).await?;
        let mut began = Instant::now();
        while began < self.until {
            let hit = shot.fire(&mut connection, room).await?;
            let ended = Instant::now();
            if hit.is_good {
                self.count(began, ended);
            } else {
                self.errors += 1;
            }
            if hit.closes {
                return Ok(());
            }
            began = ended;
        }
        Ok(())
    }

    fn count(&mut self, began: Instant, ended: Instant) {
        let within = ended.min(self.until).saturating_duration_since(began.max(self.from));
        self.served += within.as_secs_f64() / (ended - began).as_secs_f64().max(f64::MIN_POSITIVE);
        if began >= self.from && ended <= self.until {
            self.latencies.push((ended - began).as_nanos() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_counts_for_as_much_of_it_as_lies_within_the_run() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        for (label, began, ended, share, whole) in [
            ("within", 10, 12, 1.0, true),
            ("all of the run", 10, 20, 1.0, true),
            ("cut by its beginning", 7, 11, 0.25, false),
            ("cut by its end", 18, 22, 0.5, false),
            ("longer than the run", 5, 25, 0.5, false),
            ("in the warm-up", 1, 10, 0.0, false),
            ("afterwards", 20, 30, 0.0, false),
        ] {
            let mut seen = Seen { from: at(10), until: at(20), latencies: Vec::new(), served: 0.0, errors: 0 };
            seen.count(at(began), at(ended));
            assert!((seen.served - share).abs() < 1e-9, "{label}: {}", seen.served);
            assert_eq!(seen.latencies.len(), usize::from(whole), "{label}");
        }
    }
}
