//! Uploads larger than the memory there is for them: all of each arrives, little of it is ever resident, and what
//! waits on the disk stays within its budget and goes when they do, even if the process is killed under them.

use crate::finding::Finding;
use crate::gauge::{self, SETTLE_MAX};
use aulos_bench::contender::{Contender, SPOOL_BYTES_MAX};
use aulos_bench::procfs;
use aulos_bench::rig::Rig;
use aulos_bench::upload::{Begun, Layout, MODEL, STREAMED_MODEL, Upload, Wanted};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

const FIGURE: &str = "uploads";
const MEGA: usize = 1_000_000;
/// More than is kept in memory, and little beside what is measured: what it leaves behind hides nothing.
const WARM_BYTES: usize = 4 * MEGA;
const ONE_BYTES: usize = 200 * MEGA;
const STREAMED_BYTES: usize = 25 * MEGA;
const MANY: usize = 8;
const MANY_BYTES: usize = 100 * MEGA;
/// Of resident memory, for each upload.
const RISE_BYTES_MAX: usize = 8 * MEGA;
/// What is sent and has not reached the provider: in sockets, and in the hands of the proxy.
const UNDER_WAY_BYTES_MAX: usize = MEGA;
const UPLOAD_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SPOOLED: &str = "aulos_spool_bytes";

pub(crate) async fn run(contender: Contender, rig: &Rig) -> io::Result<Vec<Finding>> {
    let pid = contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
    let proxy = Proxy { contender: &contender, pid };
    let mut findings = proxy.one().await?;
    findings.extend(proxy.streamed(rig).await?);
    findings.extend(proxy.many().await?);
    if contender.state_dir.is_some() {
        findings.extend(killed(contender, pid).await?);
    }
    Ok(findings)
}

/// The proxy has all of the file before it knows the model.
fn model_last(file_bytes: usize) -> Upload {
    Upload { layout: Layout::FileFirstChunked, model: MODEL, file_bytes, wanted: Wanted::Hash }
}

struct Proxy<'a> {
    contender: &'a Contender,
    pid: u32,
}

/// The most that was held of uploads, in bytes.
#[derive(Debug, Default)]
struct Most {
    /// By the gateway's own count.
    spooled: u64,
    on_disk: u64,
}

impl Proxy<'_> {
    async fn one(&self) -> io::Result<Vec<Finding>> {
        let (warm, upload) = (model_last(WARM_BYTES), model_last(ONE_BYTES));
        let lost_warm = self.lost(warm).await;
        let (rise, lost) = self.rise(self.lost(upload)).await?;
        let what = format!("{}, after one of {}", describe(upload), megabytes(WARM_BYTES));
        Ok(vec![resident(&what, rise, 1), arrived(&what, lost_warm + lost, 2)])
    }

    /// The client keeps its last piece until the provider has what went before.
    async fn streamed(&self, rig: &Rig) -> io::Result<Vec<Finding>> {
        let (layout, file_bytes) = (Layout::ModelFirst, STREAMED_BYTES);
        let upload = Upload { layout, model: STREAMED_MODEL, file_bytes, wanted: Wanted::Hash };
        let receipt = self.receipt(upload);
        let before = rig.received().await?;
        let mut begun = timeout(UPLOAD_MAX, upload.begin(self.contender.address)).await??;
        let target = (STREAMED_BYTES - UNDER_WAY_BYTES_MAX) as u64;
        let passed_on = reached(target, async || Ok(rig.received().await? - before)).await?;
        let lost = count_lost(begun.end(&receipt)).await;
        let what = format!("{}, replay_bytes = \"0\"", describe(upload));
        let early = format!("{what}: with the provider before the last byte was sent");
        Ok(vec![
            Finding::at_least(FIGURE, early, passed_on as f64 / 1e6, target as f64 / 1e6, "MB"),
            arrived(&what, lost, 1),
        ])
    }

    async fn many(&self) -> io::Result<Vec<Finding>> {
        let upload = model_last(MANY_BYTES);
        let receipt = self.receipt(upload).into();
        let (rise, seen) = self.rise(self.watch(self.at_once(upload, receipt))).await?;
        let (most, lost) = seen?;
        let what = format!("{MANY} at once of {}", describe(upload));
        let on_disk = gauge::at_rest(async || procfs::nameless_bytes(self.pid)).await?;
        let disk =
            format!("{what}: bytes of nameless files when all have gone (most: {} MB)", most.on_disk / 1_000_000);
        let mut findings =
            vec![resident(&what, rise, MANY), arrived(&what, lost, MANY as u64), Finding::none(FIGURE, disk, on_disk)];
        if let Some(admin) = self.contender.admin {
            let (spooled, max) = (most.spooled as f64 / 1e6, SPOOL_BYTES_MAX as f64 / 1e6);
            let left = gauge::at_rest(async || gauge::read(admin, SPOOLED).await).await?;
            findings.push(Finding::at_most(FIGURE, format!("{what}: most of `{SPOOLED}`"), spooled, max, "MB"));
            findings.push(Finding::none(FIGURE, format!("{what}: `{SPOOLED}` when all have gone"), left));
        }
        Ok(findings)
    }

    /// How many are lost if none ends before all are there.
    async fn at_once(&self, upload: Upload, receipt: Arc<str>) -> io::Result<u64> {
        let mut ends = JoinSet::new();
        for mut begun in begin_many(self.contender, upload).await? {
            let receipt = Arc::clone(&receipt);
            ends.spawn(async move { count_lost(begun.end(&receipt)).await });
        }
        Ok(ends.join_all().await.into_iter().sum())
    }

    /// By how many bytes resident memory ever was above what it is now.
    async fn rise<T>(&self, work: impl Future<Output = T>) -> io::Result<(u64, T)> {
        let before = procfs::steady_resident_bytes(self.pid).await?;
        procfs::forget_peak(self.pid)?;
        let done = work.await;
        Ok((procfs::peak_bytes(self.pid)?.saturating_sub(before), done))
    }

    /// Looks at what is held for as long as the work takes.
    async fn watch<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<(Most, T)> {
        let (mut most, mut look, mut work) = (Most::default(), interval(LOOK_EVERY), pin!(work));
        loop {
            tokio::select! {
                done = &mut work => return Ok((most, done?)),
                _ = look.tick() => {
                    most.on_disk = most.on_disk.max(procfs::nameless_bytes(self.pid)?);
                    if let Some(admin) = self.contender.admin {
                        most.spooled = most.spooled.max(gauge::read(admin, SPOOLED).await?);
                    }
                }
            }
        }
    }

    async fn lost(&self, upload: Upload) -> u64 {
        count_lost(upload.deliver(self.contender.address, &self.receipt(upload))).await
    }

    fn receipt(&self, upload: Upload) -> String {
        self.contender.kind.passed_on(upload).receipt()
    }
}

/// Ends the process while uploads are under way. What the memory cannot hold has to be on the disk by then, and the
/// disk has to get it back.
async fn killed(contender: Contender, pid: u32) -> io::Result<Vec<Finding>> {
    let spool = contender.state_dir.as_deref().unwrap_or(Path::new("")).join("spool");
    let begun = begin_many(&contender, model_last(MANY_BYTES)).await?;
    let target = (MANY * (MANY_BYTES - RISE_BYTES_MAX)) as u64;
    let on_disk = reached(target, async || procfs::nameless_bytes(pid)).await?;
    // Sends SIGKILL.
    drop(contender);
    drop(begun);
    let left = std::fs::read_dir(&spool).map_err(|error| io::Error::other(format!("{}: {error}", spool.display())))?;
    let what = format!("SIGKILL under {MANY} of {}", describe(model_last(MANY_BYTES)));
    let before = format!("{what}: nameless files before");
    Ok(vec![
        Finding::at_least(FIGURE, before, on_disk as f64 / 1e6, target as f64 / 1e6, "MB"),
        Finding::none(FIGURE, format!("{what}: files left"), left.count() as u64),
    ])
}

async fn begin_many(contender: &Contender, upload: Upload) -> io::Result<Vec<Begun>> {
    let address = contender.address;
    let all: JoinSet<_> = (0..MANY).map(|_| timeout(UPLOAD_MAX, upload.begin(address))).collect();
    all.join_all().await.into_iter().map(|begun| begun?).collect()
}

/// What `count` counts once that is enough, or when there was time enough for that.
async fn reached(enough: u64, mut count: impl AsyncFnMut() -> io::Result<u64>) -> io::Result<u64> {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let counted = count().await?;
        if counted >= enough || Instant::now() > deadline {
            return Ok(counted);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// 1 if the upload is lost, else 0.
async fn count_lost(upload: impl Future<Output = io::Result<()>>) -> u64 {
    let ended = timeout(UPLOAD_MAX, upload).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    u64::from(ended.inspect_err(|error| eprintln!("{FIGURE}: {error}")).is_err())
}

fn resident(what: &str, rise: u64, uploads: usize) -> Finding {
    let max = (uploads * RISE_BYTES_MAX) as f64 / 1e6;
    Finding::at_most(FIGURE, format!("{what}: rise of resident memory"), rise as f64 / 1e6, max, "MB")
}

fn arrived(what: &str, lost: u64, of: u64) -> Finding {
    Finding::none(FIGURE, format!("{what}: not arrived byte for byte, of {of}"), lost)
}

fn describe(upload: Upload) -> String {
    format!("{}, {}", megabytes(upload.file_bytes), upload.layout.name())
}

fn megabytes(bytes: usize) -> String {
    format!("{} MB", bytes / MEGA)
}
