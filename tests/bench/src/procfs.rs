//! What the kernel counts for a process: proc(5), read as text.

use crate::child;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

/// Two readings of memory this close to one another are the same.
const STEADY_BYTES: u64 = 64 * 1024;
const STEADY_POLL: Duration = Duration::from_millis(250);
const STEADY_POLLS_MAX: usize = 60;
/// What stat(2) counts in, whatever the file system does.
const BLOCK_BYTES: u64 = 512;
const BUSY_OVER: Duration = Duration::from_secs(1);

/// User and system time of all threads, those that have ended included.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, the second field, may hold anything, brackets too: counting starts after its last one.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs(ticks) / ticks_per_second())
}

pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    // `status` is off by what each thread has not yet handed in; the roll-up is exact, where it is readable.
    let exact = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
    let kilobytes = exact.and_then(|text| number(&text, "Rss:"));
    let kilobytes = kilobytes.map_or_else(|| status(pid, "VmRSS:"), Ok)?;
    Ok(kilobytes * 1024)
}

/// Forgets the most that was ever resident: from now on it counts anew.
pub fn forget_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// The most that was resident since `forget_peak`.
pub fn peak_bytes(pid: u32) -> io::Result<u64> {
    Ok(status(pid, "VmHWM:")? * 1024)
}

/// Resident memory once it stands still, or after 15 seconds what it then is.
pub async fn steady_resident_bytes(pid: u32) -> io::Result<u64> {
    let mut last = resident_bytes(pid)?;
    for _ in 0..STEADY_POLLS_MAX {
        tokio::time::sleep(STEADY_POLL).await;
        let now = resident_bytes(pid)?;
        if now.abs_diff(last) <= STEADY_BYTES {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

pub fn threads(pid: u32) -> io::Result<u64> {
    status(pid, "Threads:")
}

pub fn open_files(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What open files without a name take of the disk: nobody sees them, and they fill it all the same.
pub fn nameless_bytes(pid: u32) -> io::Result<u64> {
    let nameless = |file: PathBuf| {
        let link = fs::read_link(&file).ok()?;
        link.as_os_str().as_bytes().ends_with(b" (deleted)").then(|| fs::metadata(&file).ok()).flatten()
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // A file may be open more than once.
    let files: BTreeMap<_, _> = open
        .filter_map(|entry| nameless(entry.ok()?.path()))
        .map(|found| ((found.dev(), found.ino()), found.blocks()))
        .collect();
    Ok(files.values().sum::<u64>() * BLOCK_BYTES)
}

/// Of the open files, the connections that are up to this local port: a provider's pool, idle or not.
pub fn connections_to(pid: u32, port: u16) -> io::Result<usize> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let remote = format!(":{port:04X}");
    let inodes: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(2).is_some_and(|address| address.ends_with(&remote)))
        .filter_map(|fields| fields.get(9).map(|inode| format!("socket:[{inode}]")))
        .collect();
    let held = fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(held.filter(|link| inodes.iter().any(|inode| link == Path::new(inode))).count())
}

/// How many files this process, and what it starts, may open, once it has asked for all it can have.
pub fn raise_open_files() -> u64 {
    let limit = |field| {
        let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default().to_owned();
        line.split_whitespace().nth(field).and_then(|word| word.parse::<u64>().ok())
    };
    if let (Some(prlimit), Some(hard)) = (child::on_path("prlimit"), limit(4)) {
        child::output(&prlimit, &["--pid", &process::id().to_string(), &format!("--nofile={hard}:{hard}")]);
    }
    limit(3).unwrap_or(1024)
}

/// `2 cores of Some CPU, Linux 6.1, 0.0 of them busy before the start`: figures from a machine that does other
/// things at the same time say little.
pub async fn machine() -> io::Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = model.map_or("an unnamed CPU", |(_, name)| name);
    let busy = busy_share().await? * cores as f64;
    Ok(format!("{cores} cores of {name}, Linux {}, {busy:.1} of them busy before the start", kernel.trim()))
}

/// The share of all cores' time that is not idle, over a second.
async fn busy_share() -> io::Result<f64> {
    let read = || -> io::Result<(u64, u64)> {
        let text = fs::read_to_string("/proc/stat")?;
        let first = text.lines().next().unwrap_or_default();
        let fields: Vec<u64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // Fields 4 and 5: idle, and idle while something is read.
        Ok((fields.iter().take(8).sum(), fields.iter().skip(3).take(2).sum()))
    };
    let (all, idle) = read()?;
    tokio::time::sleep(BUSY_OVER).await;
    let (all_later, idle_later) = read()?;
    let passed = (all_later - all).max(1) as f64;
    Ok(1.0 - idle_later.saturating_sub(idle) as f64 / passed)
}

fn status(pid: u32, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    number(&text, name).ok_or_else(|| io::Error::other(format!("no {name} in the status of process {pid}")))
}

fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

fn ticks_per_second() -> u32 {
    static TICKS: OnceLock<u32> = OnceLock::new();
    *TICKS.get_or_init(|| child::output(Path::new("getconf"), &["CLK_TCK"]).parse().unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() -> io::Result<()> {
        let pid = process::id();
        assert!(resident_bytes(pid)? > 100_000);
        assert!(threads(pid)? >= 1);
        let before = cpu_time(pid)?;
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(200) {}
        assert!(cpu_time(pid)? - before >= Duration::from_millis(20));
        Ok(())
    }

    #[test]
    fn a_peak_is_seen_after_it_has_gone_and_until_it_is_forgotten() -> io::Result<()> {
        let pid = process::id();
        forget_peak(pid)?;
        let before = peak_bytes(pid)?;
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        assert!(peak_bytes(pid)? >= before + (60 << 20));
        forget_peak(pid)?;
        assert!(peak_bytes(pid)? < before + (30 << 20));
        Ok(())
    }

    #[test]
    fn a_file_takes_room_after_its_name_has_gone_and_until_it_is_closed() -> io::Result<()> {
        let pid = process::id();
        let path = std::env::temp_dir().join(format!("aulos-bench-nameless-{pid}"));
        fs::write(&path, vec![1; 1 << 20])?;
        let (file, before) = (fs::File::open(&path)?, nameless_bytes(pid)?);
        fs::remove_file(&path)?;
        let again = file.try_clone()?;
        assert!((1 << 20..2 << 20).contains(&(nameless_bytes(pid)? - before)));
        drop((file, again));
        assert_eq!(nameless_bytes(pid)?, before);
        Ok(())
    }

    #[test]
    fn a_connection_is_an_open_file_with_a_port() -> io::Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let client = std::net::TcpStream::connect(address)?;
        assert_eq!(connections_to(process::id(), address.port())?, 1);
        assert!(open_files(process::id())? >= 2);
        drop(client);
        assert_eq!(connections_to(process::id(), address.port())?, 0);
        Ok(())
    }
}
