//! What a client costs that was served once and is kept, and whether a second wave of them costs
//! more than the first. (Resident memory is not given back at once, so waves are compared, not with zero.)

use crate::finding::Finding;
use aulos_bench::client::Connection;
use aulos_bench::contender::Contender;
use aulos_bench::procfs;
use aulos_bench::speech::Speech;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

const FIGURE: &str = "idle";
const CLIENTS: usize = 10_000;
/// Files that are open anyway, on either side.
const FILES_SPARE: usize = 500;
const OPENERS: usize = 20;
const BYTES_EACH_MAX: f64 = 48e3;
const SECOND_WAVE_MAX: f64 = 1.05;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const CLOSE_POLLS_MAX: usize = 100;

struct Wave {
    peak: u64,
    steady: u64,
}

pub(crate) async fn run(contender: &Contender, files_max: u64) -> io::Result<Vec<Finding>> {
    let pid = contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
    let allowed = usize::try_from(files_max).unwrap_or(usize::MAX).saturating_sub(FILES_SPARE);
    let clients = CLIENTS.min(allowed) / OPENERS * OPENERS;
    let before = procfs::steady_resident_bytes(pid).await?;
    let first = wave(contender.address, pid, clients, Ipv4Addr::new(127, 0, 0, 2)).await?;
    let second = wave(contender.address, pid, clients, Ipv4Addr::new(127, 0, 0, 3)).await?;
    let each = first.steady.saturating_sub(before) as f64 / clients as f64;
    let short = if clients < CLIENTS { ", all that RLIMIT_NOFILE allows" } else { "" };
    Ok(vec![
        Finding::at_most(
            FIGURE,
            format!("memory of an idle connection, {clients} of them{short}"),
            each / 1e3,
            BYTES_EACH_MAX / 1e3,
            "KB",
        ),
        Finding::at_most(
            FIGURE,
            format!("peak of a second equal wave (first: {:.0} MB)", first.peak as f64 / 1e6),
            second.peak as f64 / first.peak as f64,
            SECOND_WAVE_MAX,
            "×",
        ),
    ])
}

/// Opens them all, has each served once, looks, and closes them again.
async fn wave(target: SocketAddr, pid: u32, clients: usize, source: Ipv4Addr) -> io::Result<Wave> {
    let files = procfs::open_files(pid)?;
    let mut openers = JoinSet::new();
    for _ in 0..OPENERS {
        openers.spawn(open(target, clients / OPENERS, source));
    }
    let mut held = Vec::with_capacity(clients);
    let (mut peak, mut look) = (0, interval(LOOK_EVERY));
    while !openers.is_empty() {
        tokio::select! {
            _ = look.tick() => peak = peak.max(procfs::resident_bytes(pid)?),
            Some(opened) = openers.join_next() => held.extend(opened.map_err(io::Error::other)??),
        }
    }
    let steady = procfs::steady_resident_bytes(pid).await?;
    drop(held);
    for _ in 0..CLOSE_POLLS_MAX {
        if procfs::open_files(pid)? <= files + OPENERS {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(Wave { peak: peak.max(steady), steady })
}

async fn open(target: SocketAddr, count: usize, source: Ipv4Addr) -> io::Result<Vec<Connection>> {
    let request = Speech::Small.request();
    let mut room = vec![0; 8 * 1024];
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open_from(source, target).await?;
        let answer = connection.exchange(&request, &mut room).await?;
        if answer.status != 200 || answer.closes {
            return Err(io::Error::other(format!("client {} of a wave was answered {answer:?}", held.len() + 1)));
        }
        held.push(connection);
    }
    Ok(held)
}
