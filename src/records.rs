//! Records are never dropped: room for a request's records is reserved before it is served, a thread of its own
//! writes them, and where there is no room or the disk refuses, new requests are refused instead.
//!
//! Two files of JSON lines, `usage.jsonl` and `audit.jsonl`. A line that a crash cut short is cut off when the
//! file is opened, so that every line a reader finds is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

/// Records that may wait for the writer, over and above the requests in flight.
const QUEUE_MAX: usize = 16_384;
/// How long the writer gathers records before it writes them. It bounds the wake-ups, not the order.
const GATHER: Duration = Duration::from_millis(2);
/// How long the writer waits before it tries a refusing disk again.
const RETRY: Duration = Duration::from_millis(250);
/// How often a refusing disk is tried again once the gateway is stopping.
const LAST_TRIES: usize = 8;
/// Records written at once.
const BATCH_MAX: usize = 1024;

/// One line for one of the two files.
pub trait Line: Send {
    /// Appends the line, with its newline.
    fn append(&self, to: &mut Vec<u8>);
}

impl<T: Serialize + Send> Line for T {
    fn append(&self, to: &mut Vec<u8>) {
        let start = to.len();
        if let Err(error) = serde_json::to_writer(&mut *to, self) {
            // Only a type that refuses to be serialised gets here, and the records have none.
            log::error!("a record could not be serialised: {error}");
            to.truncate(start);
            return;
        }
        to.push(b'\n');
    }
}

enum Message {
    Record { usage: Option<Box<dyn Line>>, audit: Option<Box<dyn Line>>, _slot: Held },
    Reopen,
    Close,
}

/// The way in: cheap to clone, safe from any thread.
pub struct Records {
    queue: Sender<Message>,
    room: Arc<Room>,
}

struct Room {
    taken: AtomicUsize,
    max: usize,
    /// False while the disk refuses.
    writable: AtomicBool,
    /// The gateway ends: the disk is not waited for without end.
    closing: AtomicBool,
}

/// Room for the records of one request. Dropped unused, it gives the room back.
pub struct Slot {
    queue: Sender<Message>,
    room: Arc<Room>,
    held: Held,
}

struct Held(Arc<Room>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The writer's thread; joined at the end.
pub struct Writer {
    queue: Sender<Message>,
    room: Arc<Room>,
    thread: JoinHandle<usize>,
}

impl Records {
    /// Opens the two files below `dir`, which is made if it is missing, and starts the writer.
    pub fn open(dir: &Path, in_flight_max: usize) -> io::Result<(Arc<Self>, Writer)> {
        // Records say who did what from where: they are the service's own.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let files =
            Files { usage: Appender::open(dir.join("usage.jsonl"))?, audit: Appender::open(dir.join("audit.jsonl"))? };
        let (queue, messages) = mpsc::channel();
        let room = Arc::new(Room {
            taken: AtomicUsize::new(0),
            max: QUEUE_MAX + in_flight_max,
            writable: AtomicBool::new(true),
            closing: AtomicBool::new(false),
        });
        let writing = Arc::clone(&room);
        let thread =
            std::thread::Builder::new().name("records".to_owned()).spawn(move || write(&messages, files, &writing))?;
        Ok((Arc::new(Self { queue: queue.clone(), room: Arc::clone(&room) }), Writer { queue, room, thread }))
    }

    /// Takes room for one request's records. `None`: there is none, or the disk refuses; serve nothing.
    pub fn reserve(&self) -> Option<Slot> {
        if !self.room.writable.load(Ordering::Relaxed) {
            return None;
        }
        let taken = self.room.taken.fetch_add(1, Ordering::Relaxed);
        let held = Held(Arc::clone(&self.room));
        (taken < self.room.max).then(|| Slot { queue: self.queue.clone(), room: Arc::clone(&self.room), held })
    }

    /// Whether records can be written now.
    pub fn writable(&self) -> bool {
        self.room.writable.load(Ordering::Relaxed) && self.room.taken.load(Ordering::Relaxed) < self.room.max
    }

    /// Requests whose records are not on disk yet, those in flight included.
    pub fn waiting(&self) -> usize {
        self.room.taken.load(Ordering::Relaxed)
    }

    /// Closes both files and opens them again under their names: what a log rotation needs.
    pub fn reopen(&self) {
        self.send(Message::Reopen);
    }

    fn send(&self, message: Message) {
        if self.queue.send(message).is_err() {
            log::error!("the records' writer is gone");
        }
    }
}

impl Slot {
    /// Hands the records of one request over. The room is given back when they are on disk.
    pub fn write(self, usage: Option<Box<dyn Line>>, audit: Option<Box<dyn Line>>) {
        let message = Message::Record { usage, audit, _slot: self.held };
        if self.queue.send(message).is_err() {
            log::error!("the records' writer is gone: a record is lost");
            self.room.writable.store(false, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// Writes what is waiting, syncs and ends. Gives the number of records that could not be written.
    pub fn close(self) -> usize {
        self.room.closing.store(true, Ordering::Relaxed);
        if self.queue.send(Message::Close).is_err() {
            log::error!("the records' writer was already gone");
        }
        self.thread.join().unwrap_or_else(|_| {
            log::error!("the records' writer panicked");
            1
        })
    }
}

struct Files {
    usage: Appender,
    audit: Appender,
}

/// The writer's life: gather, write, give the room back; until it is told to close.
fn write(messages: &Receiver<Message>, mut files: Files, room: &Room) -> usize {
    let mut closing = false;
    while !closing {
        let Ok(first) = messages.recv() else { break };
        std::thread::sleep(GATHER);
        let mut held = Vec::new();
        let mut reopen = false;
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Record { usage, audit, _slot } => {
                    usage.iter().for_each(|line| line.append(&mut files.usage.pending));
                    audit.iter().for_each(|line| line.append(&mut files.audit.pending));
                    held.push(_slot);
                }
                Message::Reopen => reopen = true,
                Message::Close => closing = true,
            }
            if held.len() >= BATCH_MAX {
                break;
            }
        }
        if !flush(&mut files, room) {
            let waiting = messages.try_iter().filter(|message| matches!(message, Message::Record { .. })).count();
            return held.len() + waiting;
        }
        drop(held);
        if reopen {
            for appender in [&mut files.usage, &mut files.audit] {
                if let Err(error) = appender.reopen() {
                    log::error!("{} was not reopened, the old file goes on: {error}", appender.path.display());
                }
            }
        }
    }
    for appender in [&files.usage, &files.audit] {
        if let Err(error) = appender.file.sync_all() {
            log::error!("{} was not synced: {error}", appender.path.display());
        }
    }
    0
}

/// Writes both files, and goes on trying while the disk refuses. False: given up, because the gateway ends.
fn flush(files: &mut Files, room: &Room) -> bool {
    let mut tries = 0;
    loop {
        match files.usage.flush().and_then(|()| files.audit.flush()) {
            Ok(()) => {
                if !room.writable.swap(true, Ordering::Relaxed) {
                    log::warn!("records can be written again");
                }
                return true;
            }
            Err(error) => {
                if room.writable.swap(false, Ordering::Relaxed) {
                    log::error!("records cannot be written, requests are refused until they can: {error}");
                }
                tries += usize::from(room.closing.load(Ordering::Relaxed));
                if tries >= LAST_TRIES {
                    log::error!("records are lost: {error}");
                    return false;
                }
                std::thread::sleep(RETRY);
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

    fn line(text: &str) -> Option<Box<dyn Line>> {
        Some(Box::new(text.to_owned()))
    }

    #[test]
    fn records_are_on_disk_in_order_when_the_writer_has_closed() {
        let dir = scratch("order");
        let (records, writer) = Records::open(&dir, 1).expect("opens");
        for n in 0..5000 {
            let slot = records.reserve().expect("room");
            slot.write((n % 2 == 0).then(|| line(&n.to_string())).flatten(), line(&n.to_string()));
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
        let slots: Vec<_> = (0..QUEUE_MAX).filter_map(|_| records.reserve()).collect();
        assert_eq!(slots.len(), QUEUE_MAX);
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
        let room = Room {
            taken: AtomicUsize::new(0),
            max: 1,
            writable: AtomicBool::new(true),
            closing: AtomicBool::new(true),
        };
        assert!(files.usage.flush().is_err());
        assert_eq!(files.usage.pending, b"\"kept\"\n", "still pending");
        room.closing.store(true, Ordering::Relaxed);
        assert!(!flush(&mut files, &room), "given up only because it is closing");
        assert!(!room.writable.load(Ordering::Relaxed));
        files.usage.torn = false;
        files.usage.file = OpenOptions::new().create(true).append(true).open(dir.join("usage")).expect("opens");
        assert!(flush(&mut files, &room) && room.writable.load(Ordering::Relaxed));
        assert_eq!(fs::read_to_string(dir.join("usage")).expect("readable"), "\"kept\"\n");
        fs::remove_dir_all(dir).ok();
    }

    #[test]
    fn reopening_follows_a_rotation() {
        let dir = scratch("rotate");
        let (records, writer) = Records::open(&dir, 1).expect("opens");
        records.reserve().expect("room").write(None, line("old"));
        while records.waiting() > 0 {
            std::thread::yield_now();
        }
        fs::rename(dir.join("audit.jsonl"), dir.join("audit.jsonl.1")).expect("renamed");
        records.reopen();
        records.reserve().expect("room").write(None, line("between"));
        while records.waiting() > 0 {
            std::thread::yield_now();
        }
        records.reserve().expect("room").write(None, line("new"));
        writer.close();
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("readable");
        let all = format!("{}{}", read("audit.jsonl.1"), read("audit.jsonl"));
        assert_eq!(all, "\"old\"\n\"between\"\n\"new\"\n", "nothing is lost over a rotation");
        assert!(read("audit.jsonl").ends_with("\"new\"\n"));
        fs::remove_dir_all(dir).ok();
    }
}
