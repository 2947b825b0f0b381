//! What a proxy holds of bytes that pass: in its memory, in the spool by its own count, in files that have no name. And
//! whether they arrived.

use crate::finding::Finding;
use crate::gauge;
use aulos_bench::contender::Contender;
use aulos_bench::procfs;
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{interval, timeout};

pub(crate) const MEGA: usize = 1_000_000;
/// More than is kept in memory, and little beside what is measured: what it leaves behind hides nothing.
pub(crate) const WARM_BYTES: usize = 4 * MEGA;
/// Of resident memory, for each body.
pub(crate) const RISE_BYTES_MAX: usize = 8 * MEGA;
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);
pub(crate) const SPOOLED: &str = "aulos_spool_bytes";
const BODY_MAX: Duration = Duration::from_secs(60);

/// The most that was held at once, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Most {
    /// By the gateway's own count.
    pub(crate) spooled: u64,
    pub(crate) on_disk: u64,
}

/// By how many bytes resident memory ever was above what it is now.
pub(crate) async fn rise<T>(pid: u32, work: impl Future<Output = T>) -> io::Result<(u64, T)> {
    let before = procfs::steady_resident_bytes(pid).await?;
    procfs::forget_peak(pid)?;
    let done = work.await;
    Ok((procfs::peak_bytes(pid)?.saturating_sub(before), done))
}

/// Looks at what is held for as long as the work takes.
pub(crate) async fn watch<T>(contender: &Contender, pid: u32, work: impl Future<Output = T>) -> io::Result<(Most, T)> {
    let (mut most, mut look, mut work) = (Most::default(), interval(LOOK_EVERY), pin!(work));
    loop {
        tokio::select! {
            done = &mut work => return Ok((most, done)),
            _ = look.tick() => {
                most.on_disk = most.on_disk.max(procfs::nameless_bytes(pid)?);
                if let Some(admin) = contender.admin {
                    most.spooled = most.spooled.max(gauge::read(admin, SPOOLED).await?);
                }
            }
        }
    }
}

/// 1 if a body is lost on its way, else 0.
pub(crate) async fn lost(figure: &str, body: impl Future<Output = io::Result<()>>) -> u64 {
    let ended = timeout(BODY_MAX, body).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    u64::from(ended.inspect_err(|error| eprintln!("{figure}: {error}")).is_err())
}

pub(crate) fn resident(figure: &'static str, what: &str, rise: u64, bodies: usize) -> Finding {
    let max = (bodies * RISE_BYTES_MAX) as f64 / 1e6;
    Finding::at_most(figure, format!("{what}: rise of resident memory"), rise as f64 / 1e6, max, "MB")
}

pub(crate) fn arrived(figure: &'static str, what: &str, lost: u64, of: u64) -> Finding {
    Finding::none(figure, format!("{what}: not arrived byte for byte, of {of}"), lost)
}

pub(crate) fn megabytes(bytes: usize) -> String {
    format!("{} MB", bytes / MEGA)
}
