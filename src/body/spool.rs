//! The beginning of a body, kept to be sent, and to be sent again: in memory at first, then in a file without a name.
//!
//! Nothing here waits for a disk: pieces are handed to a thread that writes them, and what it is still writing stays
//! readable. What was written is read back from the page cache, in one call that nobody can interrupt, so that a
//! reader may be dropped at any point.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

/// Bytes handed to the disk at once, and read back at once.
pub const PIECE_BYTES_MAX: usize = 128 * 1024;
/// What is left to the records, which are on the same disk.
const FREE_BYTES_MIN: u64 = 16 << 20;
/// Smaller pieces are put together, so that a client cannot make many small allocations stay.
const SHARED_BYTES_MIN: usize = 32 * 1024;

/// What all spools share: where their files are, and how many bytes they may hold together.
pub struct Spools {
    dir: PathBuf,
    held: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Spools {
    /// Makes the folder, and sees that a file without a name can be made in it.
    pub fn open(dir: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        tempfile::tempfile_in(dir)?;
        Ok(Self { dir: dir.to_owned(), held: AtomicU64::new(0), metrics })
    }

    /// Bytes that all spools hold.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// A file without a name. The folder is made again where somebody has tidied it away.
    fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.dir).or_else(|_| {
            std::fs::create_dir_all(&self.dir)?;
            tempfile::tempfile_in(&self.dir)
        })
    }

    fn take(&self, bytes: u64, max: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= max);
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if taken {
            self.metrics.spool_bytes.add(signed(bytes));
        }
        taken
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.spool_bytes.sub(signed(bytes));
    }
}

/// Why a body cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Full {
    #[error("all spools together hold as much as they may")]
    Budget,
    #[error("the spool's file: {0}")]
    Disk(#[from] io::Error),
}

/// The bounds of one spool.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes in memory, before there is a file.
    pub memory: usize,
    /// Bytes of all spools together.
    pub total: u64,
}

/// The beginning of one body. Its bytes are given back when it is dropped.
pub struct Spool {
    shared: Arc<Spools>,
    bounds: Bounds,
    /// The end of what is kept, which no file has yet.
    tail: Tail,
    writing: Option<Writing>,
    file: Option<OnDisk>,
    /// Bytes have been handed to the disk.
    spilled: bool,
    len: u64,
}

/// Pieces in memory, in order: large ones as they came, small ones put together.
#[derive(Default)]
struct Tail {
    pieces: Vec<Bytes>,
    open: BytesMut,
    len: usize,
}

/// Bytes on their way to the disk.
struct Writing {
    pieces: Vec<Bytes>,
    len: usize,
    task: JoinHandle<io::Result<Arc<File>>>,
    failed: bool,
}

struct OnDisk {
    file: Arc<File>,
    len: u64,
}

impl Spool {
    pub fn new(shared: Arc<Spools>, bounds: Bounds) -> Self {
        Self { shared, bounds, tail: Tail::default(), writing: None, file: None, spilled: false, len: 0 }
    }

    /// Bytes kept.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps one more piece. Wait for [`Spool::room`] before each.
    pub fn append(&mut self, piece: &Bytes) -> Result<(), Full> {
        if !self.shared.take(piece.len() as u64, self.bounds.total) {
            self.shared.metrics.spool_refusals.with_label_values(&["budget"]).inc();
            return Err(Full::Budget);
        }
        self.len += piece.len() as u64;
        self.tail.push(piece);
        Ok(())
    }

    /// Waits until there is room for one more piece: what is too much for the memory is handed to the disk, and there
    /// is never more than one write on its way. May be dropped and called again.
    pub async fn room(&mut self) -> Result<(), Full> {
        let keep = if self.spilled { PIECE_BYTES_MAX } else { self.bounds.memory };
        if self.tail.len <= keep {
            return Ok(());
        }
        self.written().await?;
        self.spill();
        Ok(())
    }

    /// The bytes from `at` on, as far as they stand together; at least one, unless `at` is the end.
    pub fn read(&self, at: u64) -> io::Result<Bytes> {
        let on_disk = self.file.as_ref().map_or(0, |file| file.len);
        if let Some(OnDisk { file, len }) = &self.file
            && at < *len
        {
            let size = usize::try_from(len - at).unwrap_or(usize::MAX).min(PIECE_BYTES_MAX);
            return read_at(file, at, size);
        }
        let mut at = usize::try_from(at - on_disk).unwrap_or(usize::MAX);
        let writing = self.writing.iter().flat_map(|writing| &writing.pieces);
        for piece in writing.chain(&self.tail.pieces) {
            if at < piece.len() {
                return Ok(piece.slice(at..piece.len().min(at + PIECE_BYTES_MAX)));
            }
            at -= piece.len();
        }
        let end = self.tail.open.len().min(at.saturating_add(PIECE_BYTES_MAX));
        Ok(Bytes::copy_from_slice(self.tail.open.get(at..end).unwrap_or_default()))
    }

    /// Waits for the write that is under way. A failure stays one: the bytes are still here, but no more are taken.
    async fn written(&mut self) -> Result<(), Full> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        if writing.failed {
            return Err(io::Error::other("an earlier write failed").into());
        }
        let result = (&mut writing.task).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match result {
            Ok(file) => {
                let before = self.file.as_ref().map_or(0, |file| file.len);
                self.file = Some(OnDisk { file, len: before + writing.len as u64 });
                self.writing = None;
                Ok(())
            }
            Err(error) => {
                writing.failed = true;
                self.shared.metrics.spool_refusals.with_label_values(&["disk"]).inc();
                log::error!("an upload cannot be spooled in {}: {error}", self.shared.dir.display());
                Err(error.into())
            }
        }
    }

    /// Hands the tail to a thread that writes it.
    fn spill(&mut self) {
        let (pieces, len) = self.tail.take();
        let (shared, data) = (Arc::clone(&self.shared), pieces.clone());
        let before = self.file.as_ref().map(|file| (Arc::clone(&file.file), file.len));
        if !std::mem::replace(&mut self.spilled, true) {
            self.shared.metrics.spool_files.inc();
        }
        let task = tokio::task::spawn_blocking(move || {
            let (file, mut at) = match before {
                Some(before) => before,
                None => (Arc::new(shared.file()?), 0),
            };
            let free = rustix::fs::fstatvfs(&file)?;
            if free.f_bavail.saturating_mul(free.f_frsize) < FREE_BYTES_MIN {
                return Err(io::ErrorKind::StorageFull.into());
            }
            for piece in data {
                file.write_all_at(&piece, at)?;
                at += piece.len() as u64;
            }
            Ok(file)
        });
        self.writing = Some(Writing { pieces, len, task, failed: false });
    }
}

impl Tail {
    fn push(&mut self, piece: &Bytes) {
        self.len += piece.len();
        if piece.len() < SHARED_BYTES_MIN {
            return self.open.extend_from_slice(piece);
        }
        self.close();
        self.pieces.push(piece.clone());
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.pieces.push(std::mem::take(&mut self.open).freeze());
        }
    }

    fn take(&mut self) -> (Vec<Bytes>, usize) {
        self.close();
        (std::mem::take(&mut self.pieces), std::mem::take(&mut self.len))
    }
}

/// Reads exactly `size` bytes.
fn read_at(file: &File, mut at: u64, size: usize) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(size);
    while piece.len() < size {
        // Into memory that nobody had to clear first.
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut piece), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => at += read as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    piece.truncate(size);
    Ok(piece.into())
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.shared.give_back(self.len);
        if self.spilled {
            self.shared.metrics.spool_files.dec();
        }
        let Some(file) = self.file.take() else { return };
        // The last to close a file without a name frees its blocks: that is a disk's work.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A folder of the test's own, gone with it.
    fn spools() -> (tempfile::TempDir, Arc<Spools>) {
        let dir = tempfile::tempdir().expect("a folder");
        let metrics = Arc::new(Metrics::new().expect("registers"));
        let spools = Spools::open(&dir.path().join("spool"), metrics).expect("opens");
        (dir, Arc::new(spools))
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    fn read_all(spool: &Spool, mut at: u64) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = spool.read(at).expect("readable");
            if piece.is_empty() {
                return all;
            }
            assert!(piece.len() <= PIECE_BYTES_MAX);
            at += piece.len() as u64;
            all.extend_from_slice(&piece);
        }
    }

    fn pattern(len: usize) -> Bytes {
        (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    fn pieces(all: &Bytes, size: usize) -> impl Iterator<Item = Bytes> {
        (0..all.len()).step_by(size).map(move |at| all.slice(at..all.len().min(at + size)))
    }

    const BOUNDS: Bounds = Bounds { memory: 1024, total: 1 << 30 };

    #[test]
    fn small_ones_stay_in_memory_and_large_ones_get_a_file_without_a_name() {
        let (dir, spools) = spools();
        block_on(async {
            let mut spool = Spool::new(Arc::clone(&spools), BOUNDS);
            spool.append(&pattern(1024)).expect("room");
            spool.room().await.expect("room");
            assert_eq!(spools.metrics.spool_files.get(), 0);
            let all = pattern(3 * PIECE_BYTES_MAX);
            for piece in pieces(&all.slice(1024..), 50_000) {
                spool.append(&piece).expect("room");
                spool.room().await.expect("room");
            }
            spool.written().await.expect("written");
            assert_eq!(spools.metrics.spool_files.get(), 1);
            assert_eq!((spool.len(), spools.held()), (all.len() as u64, all.len() as u64));
            assert!(std::fs::read_dir(dir.path().join("spool")).expect("there").next().is_none(), "no name");
            assert!(read_all(&spool, 0) == all && read_all(&spool, 200_000) == all[200_000..]);
            drop(spool);
            assert_eq!((spools.held(), spools.metrics.spool_files.get(), spools.metrics.spool_bytes.get()), (0, 0, 0));
        });
    }

    #[test]
    fn what_is_too_much_for_all_is_refused_and_nothing_leaks() {
        let (_dir, spools) = spools();
        let bounds = Bounds { memory: 64, total: 100 };
        let mut one = Spool::new(Arc::clone(&spools), bounds);
        let mut other = Spool::new(Arc::clone(&spools), bounds);
        one.append(&Bytes::from_static(&[1; 60])).expect("room");
        assert!(matches!(other.append(&Bytes::from_static(&[2; 41])), Err(Full::Budget)));
        assert_eq!((other.len(), spools.held()), (0, 60), "a piece that is refused is not counted");
        other.append(&Bytes::from_static(&[2; 40])).expect("room");
        drop(one);
        other.append(&Bytes::from_static(&[2; 60])).expect("there is room again");
        assert_eq!(spools.held(), 100);
        drop(other);
        assert_eq!((spools.held(), spools.metrics.spool_refusals.with_label_values(&["budget"]).get()), (0, 1));
    }

    #[test]
    fn a_disk_that_fails_is_said_and_loses_nothing() {
        let (dir, spools) = spools();
        std::fs::remove_dir_all(dir.path().join("spool")).expect("removed");
        std::fs::write(dir.path().join("spool"), "in the way").expect("written");
        block_on(async {
            let mut spool = Spool::new(Arc::clone(&spools), BOUNDS);
            let all = pattern(400_000);
            let mut failed = false;
            for piece in pieces(&all, 50_000) {
                spool.append(&piece).expect("within the budget");
                failed |= matches!(spool.room().await, Err(Full::Disk(_)));
            }
            assert!(failed && read_all(&spool, 0) == all);
            assert_eq!(spools.metrics.spool_refusals.with_label_values(&["disk"]).get(), 1, "it is said once");
        });
        assert_eq!(spools.held(), 0);
    }

    #[test]
    fn a_wait_that_is_dropped_can_be_made_again() {
        let (_dir, spools) = spools();
        block_on(async {
            let mut spool = Spool::new(spools, Bounds { memory: 0, ..BOUNDS });
            let all = pattern(1 << 20);
            for piece in pieces(&all, 30_000) {
                spool.append(&piece).expect("room");
                // One poll, and away.
                let once = std::future::poll_fn(|_| std::task::Poll::Ready(()));
                tokio::select! { biased; _ = spool.room() => {}, () = once => {} }
            }
            assert!(read_all(&spool, 0) == all);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_goes_in_comes_out(
            sizes in proptest::collection::vec(0..90_000_usize, 0..12),
            memory in 0..200_000_usize,
            total in 0..600_000_u64,
            from in any::<prop::sample::Index>(),
        ) {
            let (_dir, spools) = spools();
            block_on(async {
                let mut spool = Spool::new(Arc::clone(&spools), Bounds { memory, total });
                let mut kept = Vec::new();
                for size in sizes {
                    let piece = pattern(size);
                    if spool.append(&piece).is_ok() {
                        kept.extend_from_slice(&piece);
                    }
                    spool.room().await.expect("the disk takes it");
                    assert!(spools.held() <= total, "the budget is never exceeded");
                    assert_eq!(spools.held(), spool.len());
                }
                let from = from.index(kept.len() + 1);
                assert!(read_all(&spool, from as u64) == kept[from..]);
                drop(spool);
                assert_eq!(spools.held(), 0, "nor leaked");
            });
        }
    }
}
