//! Uploads larger than the memory there is for them: all of each arrives, little of it is ever resident, and what
//! waits on the disk stays within its budget and goes when they do, even if the process is killed under them.

use crate::finding::Finding;
use crate::gauge::{self, SETTLE_MAX};
use crate::held::{self, MEGA, RISE_BYTES_MAX, SPOOLED, WARM_BYTES};
use aulos_bench::contender::{Contender, SPOOL_BYTES_MAX};
use aulos_bench::procfs;
use aulos_bench::rig::Rig;
use aulos_bench::upload::{Begun, Layout, MODEL, STREAMED_MODEL, Upload, Wanted};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const FIGURE: &str = "uploads";
const ONE_BYTES: usize = 200 * MEGA;
const STREAMED_BYTES: usize = 25 * MEGA;
const MANY: usize = 8;
const MANY_BYTES: usize = 100 * MEGA;
/// What is sent and has not reached the provider: in sockets, and in the hands of the proxy.
const UNDER_WAY_BYTES_MAX: usize = MEGA;
const UPLOAD_MAX: Duration = Duration::from_secs(60);

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

impl Proxy<'_> {
    async fn one(&self) -> io::Result<Vec<Finding>> {
        let (warm, upload) = (model_last(WARM_BYTES), model_last(ONE_BYTES));
        let lost_warm = self.lost(warm).await;
        let (rise, lost) = held::rise(self.pid, self.lost(upload)).await?;
        let what = format!("{}, after one of {}", describe(upload), held::megabytes(WARM_BYTES));
        Ok(vec![held::resident(FIGURE, &what, rise, 1), held::arrived(FIGURE, &what, lost_warm + lost, 2)])
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
        let lost = held::lost(FIGURE, begun.end(&receipt)).await;
        let what = format!("{}, replay_bytes = \"0\"", describe(upload));
        let early = format!("{what}: with the provider before the last byte was sent");
        Ok(vec![
            Finding::at_least(FIGURE, early, passed_on as f64 / 1e6, target as f64 / 1e6, "MB"),
            held::arrived(FIGURE, &what, lost, 1),
        ])
    }

    async fn many(&self) -> io::Result<Vec<Finding>> {
        let upload = model_last(MANY_BYTES);
        let receipt = self.receipt(upload).into();
        let watched = held::watch(self.contender, self.pid, self.at_once(upload, receipt));
        let (rise, seen) = held::rise(self.pid, watched).await?;
        let (most, lost) = seen?;
        let lost = lost?;
        let what = format!("{MANY} at once of {}", describe(upload));
        let on_disk = gauge::at_rest(async || procfs::nameless_bytes(self.pid)).await?;
        let disk =
            format!("{what}: bytes of nameless files when all have gone (most: {} MB)", most.on_disk / 1_000_000);
        let mut findings = vec![
            held::resident(FIGURE, &what, rise, MANY),
            held::arrived(FIGURE, &what, lost, MANY as u64),
            Finding::none(FIGURE, disk, on_disk),
        ];
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
            ends.spawn(async move { held::lost(FIGURE, begun.end(&receipt)).await });
        }
        Ok(ends.join_all().await.into_iter().sum())
    }

    async fn lost(&self, upload: Upload) -> u64 {
        held::lost(FIGURE, upload.deliver(self.contender.address, &self.receipt(upload))).await
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
        sleep(held::LOOK_EVERY).await;
    }
}

fn describe(upload: Upload) -> String {
    format!("{}, {}", held::megabytes(upload.file_bytes), upload.layout.name())
}
