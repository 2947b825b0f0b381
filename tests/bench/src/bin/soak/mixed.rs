//! A minute of mixed traffic, 30 % of it faulty. Memory stands still once it is warm, and when all have gone
//! the process holds what it held before: files, threads, and by its own count no request, connection or record.

use crate::finding::Finding;
use crate::gauge::{self, LOOK_EVERY, SETTLE_MAX};
use crate::visitor::{Tally, Visitor};
use aulos_bench::contender::Contender;
use aulos_bench::procfs;
use aulos_bench::rig::Rig;
use aulos_bench::stats;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const FIGURE: &str = "mixed";
const VISITORS: u8 = 32;
const FAULTY_PERCENT: u64 = 30;
const LENGTH: Duration = Duration::from_secs(60);
const WARM: Duration = Duration::from_secs(15);
const SLOPE_MAX: f64 = 1.0;
const FILES_APART: u64 = 5;
const THREADS_APART: u64 = 2;
/// What the gateway counts itself, and must count down to nothing.
const GAUGES: [&str; 3] = ["aulos_requests_in_flight", "aulos_connections", "aulos_records_waiting"];

/// What a process holds. Of its files, the provider's connections do not count: a pool may keep them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    files: u64,
    threads: u64,
}

impl Held {
    fn by(pid: u32, rig: &Rig) -> io::Result<Self> {
        let pooled = procfs::connections_to(pid, rig.provider.port())?;
        let files = procfs::open_files(pid)?.saturating_sub(pooled) as u64;
        Ok(Self { files, threads: procfs::threads(pid)? })
    }

    fn is_back_to(self, start: Self) -> bool {
        self.files.abs_diff(start.files) <= FILES_APART && self.threads.abs_diff(start.threads) <= THREADS_APART
    }
}

pub(crate) async fn run(contender: &Contender, rig: &Rig) -> io::Result<Vec<Finding>> {
    let pid = contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
    // In order, to begin with: pools, threads and log files are what a process starts with.
    collect(crowd(contender, 0, Instant::now() + Duration::from_secs(3))).await?;
    sleep(Duration::from_secs(1)).await;
    let start = Held::by(pid, rig)?;
    let began = Instant::now();
    let visitors = crowd(contender, FAULTY_PERCENT, began + LENGTH);
    let memory = watch(pid, began).await?;
    let tally = collect(visitors).await?;
    let end = settle(pid, rig, start).await?;
    let slope = stats::slope(&memory).ok_or_else(|| io::Error::other("memory was never looked at"))?;
    let resident = memory.last().map_or(0.0, |(_, megabytes)| *megabytes);
    let mut findings = vec![
        Finding::at_most(FIGURE, format!("memory growth once warm (at {resident:.0} MB)"), slope, SLOPE_MAX, "MB/min"),
        Finding::back(FIGURE, "open files but for the provider's pool", start.files, end.files, FILES_APART),
        Finding::back(FIGURE, "threads", start.threads, end.threads, THREADS_APART),
        Finding::none(FIGURE, format!("healthy requests that failed, of {}", tally.healthy), tally.failed),
        Finding::none(FIGURE, format!("faults answered otherwise, of {}", tally.faulty), tally.wrong),
    ];
    if let Some(admin) = contender.admin {
        for name in GAUGES {
            let left = gauge::at_rest(async || gauge::read(admin, name).await).await?;
            findings.push(Finding::none(FIGURE, format!("`{name}` when all have gone"), left));
        }
    }
    Ok(findings)
}

fn crowd(contender: &Contender, faulty_percent: u64, until: Instant) -> JoinSet<Tally> {
    let visitors = (0..VISITORS).map(|number| Visitor::new(contender.address, number, faulty_percent));
    visitors.map(|visitor| visitor.stay(until)).collect()
}

async fn collect(mut visitors: JoinSet<Tally>) -> io::Result<Tally> {
    let mut sum = Tally::default();
    while let Some(tally) = visitors.join_next().await {
        let tally = tally.map_err(io::Error::other)?;
        sum.healthy += tally.healthy;
        sum.faulty += tally.faulty;
        sum.failed += tally.failed;
        sum.wrong += tally.wrong;
    }
    Ok(sum)
}

/// Minutes and megabytes, from the end of the warm-up to the end of the traffic.
async fn watch(pid: u32, began: Instant) -> io::Result<Vec<(f64, f64)>> {
    sleep_until(began + WARM).await;
    let mut points = Vec::new();
    while began.elapsed() < LENGTH {
        points.push((began.elapsed().as_secs_f64() / 60.0, procfs::resident_bytes(pid)? as f64 / 1e6));
        sleep(LOOK_EVERY).await;
    }
    Ok(points)
}

/// What is held once it is what it was, or when there was time enough for that.
async fn settle(pid: u32, rig: &Rig, start: Held) -> io::Result<Held> {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let now = Held::by(pid, rig)?;
        if now.is_back_to(start) || Instant::now() > deadline {
            return Ok(now);
        }
        sleep(LOOK_EVERY).await;
    }
}
