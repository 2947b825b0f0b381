//! Records are never dropped: room for a request's records is reserved before it is served, a thread of its own
//! writes them, and where there is no room or the disk refuses, new requests are refused instead.
//!
//! Two files of JSON lines, `usage.jsonl` and `audit.jsonl`. A line that a crash cut short is cut off when the
//! file is opened, so that every line a reader finds is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::wire::line::Value;

/// Requests whose records may wait for the writer, over and above those in flight.
const WAITING_MAX: usize = 16_384;
/// How long the writer gathers records before it writes them. It bounds the wake-ups, not the order.
const GATHER: Duration = Duration::from_millis(8);
/// How long the writer waits before it tries a refusing disk again.
const RETRY: Duration = Duration::from_millis(250);
/// What a buffer keeps of its memory after a burst.
const BUFFER_BYTES_KEPT: usize = 64 << 10;
/// How often a refusing disk is tried again once the gateway is stopping.
const LAST_TRIES_MAX: usize = 8;

/// The way in, safe from any thread.
pub struct Records(Arc<Shared>);

struct Shared {
    pending: Mutex<Pending>,
    /// Told when there is something to do and the writer may be asleep.
    wake: Condvar,
    /// Requests that hold room.
    taken: AtomicUsize,
    max: usize,
    /// False while the disk refuses.
    writable: AtomicBool,
}

/// What the writer is to do next. Its two buffers are swapped with the writer's, so that neither is ever copied.
#[derive(Default)]
struct Pending {
    usage: Vec<u8>,
    audit: Vec<u8>,
    /// Requests whose records are in them.
    requests: usize,
    reopen: bool,
    close: bool,
}

/// Room for the records of one request. Dropped unused, it gives the room back.
pub struct Slot(Option<Arc<Shared>>);

/// The writer's thread; joined at the end.
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<usize>,
}

impl Records {
    /// Opens the two files below `dir`, which is made if it is missing, and starts the writer.
    pub fn open(dir: &Path, in_flight_max: usize) -> io::Result<(Arc<Self>, Writer)> {
        // Records say who did what from where: they are the service's own.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut files =
            Files { usage: Appender::open(dir.join("usage.jsonl"))?, audit: Appender::open(dir.join("audit.jsonl"))? };
        let shared = Arc::new(Shared::new(WAITING_MAX + in_flight_max));
        let writing = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("records".to_owned()).spawn(move || write(&writing, &mut files))?;
        Ok((Arc::new(Self(Arc::clone(&shared))), Writer { shared, thread }))
    }

    /// Takes room for one request's records. `None`: there is none, or the disk refuses; serve nothing.
    pub fn reserve(&self) -> Option<Slot> {
        if !self.0.writable.load(Ordering::Relaxed) {
            return None;
        }
        let taken = self.0.taken.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Some(Arc::clone(&self.0)));
        (taken < self.0.max).then_some(slot)
    }

    /// Whether records can be written now.
    pub fn writable(&self) -> bool {
        self.0.writable.load(Ordering::Relaxed) && self.waiting() < self.0.max
    }

    /// Requests whose records are not on disk yet, those in flight included.
    pub fn waiting(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Closes both files and opens them again under their names: what a log rotation needs.
    pub fn reopen(&self) {
        self.0.tell(|pending| pending.reopen = true);
    }
}

impl Slot {
    /// Hands the records of one request over. The room is given back when they are on disk.
    pub fn write(mut self, usage: Option<&impl Value>, audit: Option<&impl Value>) {
        let Some(shared) = self.0.take() else { return };
        shared.tell(|pending| {
            usage.iter().for_each(|record| append(&mut pending.usage, record));
            audit.iter().for_each(|record| append(&mut pending.audit, record));
            pending.requests += 1;
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// Writes what is waiting, syncs and ends. Gives the number of requests whose records could not be written.
    pub fn close(self) -> usize {
        self.shared.tell(|pending| pending.close = true);
        self.thread.join().unwrap_or_else(|_| {
            log::error!("the records' writer panicked");
            1
        })
    }
}

impl Shared {
    fn new(max: usize) -> Self {
        Self {
            pending: Mutex::default(),
            wake: Condvar::new(),
            taken: AtomicUsize::new(0),
            max,
            writable: AtomicBool::new(true),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending();
        let asleep = !pending.is_due();
        what(&mut pending);
        drop(pending);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Waits until there is something to do.
    fn due(&self) {
        let mut pending = self.pending();
        while !pending.is_due() {
            pending = self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Pending {
    fn is_due(&self) -> bool {
        self.requests > 0 || self.reopen || self.close
    }
}

/// One line, with its newline.
fn append(to: &mut Vec<u8>, record: &impl Value) {
    record.write(to);
    to.push(b'\n');
}

struct Files {
    usage: Appender,
    audit: Appender,
}

/// The writer's life: gather, write, give the room back; until it is told to close. Gives what it could not write.
fn write(shared: &Shared, files: &mut Files) -> usize {
    loop {
        shared.due();
        std::thread::sleep(GATHER);
        let (requests, reopen, close) = {
            let mut pending = shared.pending();
            std::mem::swap(&mut pending.usage, &mut files.usage.pending);
            std::mem::swap(&mut pending.audit, &mut files.audit.pending);
            (std::mem::take(&mut pending.requests), std::mem::take(&mut pending.reopen), pending.close)
        };
        if !flush(files, shared) {
            return requests + shared.pending().requests;
        }
        shared.taken.fetch_sub(requests, Ordering::Relaxed);
        if reopen {
            files.reopen();
        }
        if close && shared.pending().requests == 0 {
            files.sync();
            return 0;
        }
    }
}

/// Writes both files, and goes on trying while the disk refuses. False: given up, because the gateway ends.
fn flush(files: &mut Files, shared: &Shared) -> bool {
    let mut tries = 0;
    loop {
        match files.usage.flush().and_then(|()| files.audit.flush()) {
            Ok(()) => {
                if !shared.writable.swap(true, Ordering::Relaxed) {
                    log::warn!("records can be written again");
                }
                return true;
            }
            Err(error) => {
                if shared.writable.swap(false, Ordering::Relaxed) {
                    log::error!("records cannot be written, requests are refused until they can: {error}");
                }
                let (reopen, close) = {
                    let mut pending = shared.pending();
                    (std::mem::take(&mut pending.reopen), pending.close)
                };
                tries += usize::from(close);
                if tries >= LAST_TRIES_MAX {
                    log::error!("records are lost: {error}");
                    return false;
                }
                std::thread::sleep(RETRY);
                if reopen {
                    // The files may have been moved to where there is room.
                    files.reopen();
                }
            }
        }
    }
}

impl Files {
    fn reopen(&mut self) {
        for appender in [&mut self.usage, &mut self.audit] {
            if let Err(error) = appender.reopen() {
                log::error!("{} was not reopened, the old file goes on: {error}", appender.path.display());
            }
        }
    }

    fn sync(&self) {
        for appender in [&self.usage, &self.audit] {
            if let Err(error) = appender.file.sync_all() {
                log::error!("{} was not synced: {error}", appender.path.display());
            }
        }
    }
}

/// A file that only grows, by whole lines.
struct Appender {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines in the file.
    len: u64,
    /// Part of a line may stand behind them.
    torn: bool,
    pending: Vec<u8>,
}

impl Appender {
    fn open(path: PathBuf) -> io::Result<Self> {
        let (file, len) = open_whole(&path)?;
        Ok(Self { path, file, len, torn: false, pending: Vec::new() })
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.len) = open_whole(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// Appends what is pending. After an error the file is as it was, and the lines are still pending.
    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.torn {
            self.file.set_len(self.len)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(&self.pending) {
            // What was written in part is cut off now or, if the disk refuses that too, before the next try.
            self.torn = self.file.set_len(self.len).is_err();
            return Err(error);
        }
        self.len += self.pending.len() as u64;
        self.pending.clear();
        self.pending.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }
}

/// Opens for appending, and cuts off a last line that has no end.
fn open_whole(path: &Path) -> io::Result<(File, u64)> {
    const WINDOW: u64 = 64 * 1024;
    let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    let mut end = size;
    let mut window = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(WINDOW);
        file.seek(SeekFrom::Start(start))?;
        window.clear();
        (&file).take(end - start).read_to_end(&mut window)?;
        match memchr::memrchr(b'\n', &window) {
            Some(newline) => {
                end = start + newline as u64 + 1;
                break;
            }
            None => end = start,
        }
    }
    if end < size {
        log::warn!("{}: {} bytes of a line that was never finished are cut off", path.display(), size - end);
        file.set_len(end)?;
    }
    file.seek(SeekFrom::End(0))?;
    Ok((file, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("aulos-records-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        dir
    }

    #[test]
    fn records_are_on_disk_in_order_when_the_writer_has_closed() {
        let dir = scratch("order");
        let (records, writer) = Records::open(&dir, 1).expect("opens");
        for n in 0..5000 {
            let slot = records.reserve().expect("room");
            let record = n.to_string();
            slot.write((n % 2 == 0).then_some(&record), Some(&record));
        }
        assert_eq!(writer.close(), 0);
        assert_eq!(records.waiting(), 0);
        let audit = fs::read_to_string(dir.join("audit.jsonl")).expect("readable");
        assert_eq!(audit.lines().count(), 5000);
        assert!(audit.lines().enumerate().all(|(n, line)| line == format!("\"{n}\"")));
        assert_eq!(fs::read_to_string(dir.join("usage.jsonl")).expect("readable").lines().count(), 2500);
        fs::remove_dir_all(dir).ok();
    }

    #[test]
    fn no_room_is_said_before_anything_is_served() {
        let dir = scratch("room");
        let (records, writer) = Records::open(&dir, 0).expect("opens");
        let slots: Vec<_> = (0..WAITING_MAX).filter_map(|_| records.reserve()).collect();
        assert_eq!(slots.len(), WAITING_MAX);
        assert!(records.reserve().is_none() && !records.writable());
        drop(slots);
        assert!(records.reserve().is_some() && records.writable());
        writer.close();
        fs::remove_dir_all(dir).ok();
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_nothing_else() {
        let dir = scratch("torn");
        fs::create_dir_all(&dir).expect("made");
        let long = "x".repeat(200_000);
        for (content, want) in [
            (String::new(), String::new()),
            ("{\"a\":1}\n".into(), "{\"a\":1}\n".into()),
            ("{\"a\":1}\n{\"b\":".into(), "{\"a\":1}\n".into()),
            ("{\"a".into(), String::new()),
            (format!("{{}}\n{long}"), "{}\n".into()),
            (format!("{long}\n{long}"), format!("{long}\n")),
        ] {
            let path = dir.join("file");
            fs::write(&path, &content).expect("written");
            let (mut file, len) = open_whole(&path).expect("opens");
            assert_eq!(len, want.len() as u64);
            file.write_all(b"next\n").expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), format!("{want}next\n"));
        }
        fs::remove_dir_all(dir).ok();
    }

    #[test]
    fn a_refusing_disk_refuses_requests_and_loses_nothing() {
        let dir = scratch("full");
        fs::create_dir_all(&dir).expect("made");
        let full = || OpenOptions::new().append(true).open("/dev/full").expect("Linux has it");
        let mut files = Files {
            usage: Appender {
                path: "usage".into(),
                file: full(),
                len: 0,
                torn: false,
                pending: b"\"kept\"\n".to_vec(),
            },
            audit: Appender::open(dir.join("audit.jsonl")).expect("opens"),
        };
        let shared = Shared::new(1);
        assert!(files.usage.flush().is_err());
        assert_eq!(files.usage.pending, b"\"kept\"\n", "still pending");
        shared.pending().close = true;
        assert!(!flush(&mut files, &shared), "given up only because it is closing");
        assert!(!shared.writable.load(Ordering::Relaxed));
        files.usage.torn = false;
        files.usage.file = OpenOptions::new().create(true).append(true).open(dir.join("usage")).expect("opens");
        assert!(flush(&mut files, &shared) && shared.writable.load(Ordering::Relaxed));
        assert_eq!(fs::read_to_string(dir.join("usage")).expect("readable"), "\"kept\"\n");
        fs::remove_dir_all(dir).ok();
    }

    #[test]
    fn reopening_follows_a_rotation() {
        let dir = scratch("rotate");
        let (records, writer) = Records::open(&dir, 1).expect("opens");
        records.reserve().expect("room").write(None::<&&str>, Some(&"old"));
        while records.waiting() > 0 {
            std::thread::yield_now();
        }
        fs::rename(dir.join("audit.jsonl"), dir.join("audit.jsonl.1")).expect("renamed");
        records.reopen();
        records.reserve().expect("room").write(None::<&&str>, Some(&"between"));
        while records.waiting() > 0 {
            std::thread::yield_now();
        }
        records.reserve().expect("room").write(None::<&&str>, Some(&"new"));
        writer.close();
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("readable");
        let all = format!("{}{}", read("audit.jsonl.1"), read("audit.jsonl"));
        assert_eq!(all, "\"old\"\n\"between\"\n\"new\"\n", "nothing is lost over a rotation");
        assert!(read("audit.jsonl").ends_with("\"new\"\n"));
        fs::remove_dir_all(dir).ok();
    }
}
