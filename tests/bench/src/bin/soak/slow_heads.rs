//! Five hundred clients that send their request heads a byte at a time and never end them. Nobody else
//! notices, and each is sent away when its ten seconds are over.
//!
//! Half a thousand timers and writes cost the load's own core something too. So for comparison the same clients
//! send their bytes to nobody, and what is left is the proxy's doing.

use crate::finding::Finding;
use aulos_bench::client::Connection;
use aulos_bench::contender::Contender;
use aulos_bench::load::{Load, Run, Shot};
use aulos_bench::speech::Speech;
use aulos_bench::stats::Spread;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const FIGURE: &str = "slow-heads";
const SLOW: usize = 500;
const BYTE_EVERY: Duration = Duration::from_millis(500);
const GIVE_UP: Duration = Duration::from_secs(14);
/// From the last word of the proxy to the end of the connection.
const CLOSE_MAX: Duration = Duration::from_secs(2);
const HEALTHY: usize = 8;
const ROUNDS: usize = 3;
/// While all of the slow ones are there: they come within half a second and leave after ten.
const WARM: Duration = Duration::from_millis(800);
const MEASURED: Duration = Duration::from_secs(8);
const P99_RATIO_MAX: f64 = 1.2;
const HEADER_TIMEOUT: f64 = 10.0;
const TOLERANCE: f64 = 0.5;

pub(crate) async fn run(contender: &Contender) -> io::Result<Vec<Finding>> {
    let (mut calm, mut crowded, mut left) = (Vec::new(), Vec::new(), Vec::new());
    let nobody = Nobody::listen().await?;
    for round in 0..ROUNDS {
        eprintln!("slow-heads, round {} of {ROUNDS}", round + 1);
        let elsewhere = slow_heads(nobody.address);
        calm.push(healthy(contender).await?);
        drop(elsewhere);
        let mut slow = slow_heads(contender.address);
        crowded.push(healthy(contender).await?);
        while let Some(ended) = slow.join_next().await {
            left.push(ended.map_err(io::Error::other)??);
        }
    }
    let p99 = |runs: &[Run]| {
        let spread = Spread::of(&runs.iter().map(|run| run.latency(0.99)).collect::<Vec<_>>());
        spread.map_or(0.0, |spread| spread.median)
    };
    let errors = calm.iter().chain(&crowded).map(|run| run.errors).sum();
    let (calm, crowded) = (p99(&calm), p99(&crowded));
    let seconds: Vec<f64> = left.iter().flatten().map(Duration::as_secs_f64).collect();
    let stayed = (left.len() - seconds.len()) as u64;
    let mut findings = vec![
        Finding::at_most(
            FIGURE,
            format!("healthy p99 beside {SLOW} slow heads ({crowded:.0} µs; {calm:.0} µs with those elsewhere)"),
            crowded / calm,
            P99_RATIO_MAX,
            "×",
        ),
        Finding::none(FIGURE, "healthy requests that failed", errors),
        Finding::none(FIGURE, format!("slow heads still there after {} s", GIVE_UP.as_secs()), stayed),
    ];
    if let Some(spread) = Spread::of(&seconds) {
        let target = HEADER_TIMEOUT - TOLERANCE..=HEADER_TIMEOUT + TOLERANCE;
        findings.push(Finding::between(FIGURE, "slow heads sent away after", spread.min..=spread.max, target, "s"));
    }
    Ok(findings)
}

async fn healthy(contender: &Contender) -> io::Result<Run> {
    let shot = Shot::of(Speech::Small);
    let load = Load { target: contender.address, shot, connections: HEALTHY, warm: WARM, length: MEASURED };
    load.run(None).await
}

fn slow_heads(target: SocketAddr) -> JoinSet<io::Result<Option<Duration>>> {
    let delay = |at| BYTE_EVERY.mul_f64(at as f64 / SLOW as f64);
    (0..SLOW).map(|at| slow_head(target, delay(at))).collect()
}

/// Takes connections, and nothing from them.
struct Nobody {
    address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Nobody {
    async fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Ok(Self { address, _accepting: accepting })
    }
}

/// When it was sent away, by an answer or without. None: it was not, or the connection stayed after the answer.
async fn slow_head(target: SocketAddr, delay: Duration) -> io::Result<Option<Duration>> {
    sleep(delay).await;
    let mut stream = Connection::open(target).await?.stream;
    let began = Instant::now();
    let mut room = [0; 1024];
    for byte in Speech::Small.request() {
        // Whether it can still be written shows in the next read.
        let _ = stream.write_all(&[byte]).await;
        match timeout(BYTE_EVERY, stream.read(&mut room)).await {
            Err(_) if began.elapsed() > GIVE_UP => return Ok(None),
            Err(_) => {}
            Ok(Ok(0) | Err(_)) => return Ok(Some(began.elapsed())),
            Ok(Ok(_)) => {
                let told = began.elapsed();
                let closed = timeout(CLOSE_MAX, async { while stream.read(&mut room).await.is_ok_and(|n| n > 0) {} });
                return Ok(closed.await.is_ok().then_some(told));
            }
        }
    }
    Ok(None)
}
