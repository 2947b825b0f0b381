//! What has been read of a body, and what is kept of it: everything, until it is known where it goes; then as much as
//! may be sent again.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::body::spool::Spool;
use crate::refusal::Refusal;

/// Bytes handed over at once, of what is kept in memory: what has to be taken within one write's time.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// One body, as far as it has been read.
pub struct Intake {
    kept: Kept,
    /// Bytes read.
    len: u64,
    /// More than this is refused.
    max: usize,
    declared: Option<u64>,
    /// More than this is not kept to be sent again.
    replay: u64,
}

enum Kept {
    Whole(Bytes),
    Spool(Spool),
    /// It has gone on, and cannot be sent again.
    Nothing,
}

impl Intake {
    /// A body that has been read to its end.
    pub fn whole(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self { kept: Kept::Whole(bytes), len, max: usize::MAX, declared: Some(len), replay: len }
    }

    /// A body that goes on as it comes, however long it is.
    pub fn passing() -> Self {
        Self { kept: Kept::Nothing, len: 0, max: usize::MAX, declared: None, replay: 0 }
    }

    /// A body of at most `max` bytes, and of the length that was declared, if one was.
    pub fn new(spool: Spool, max: usize, declared: Option<u64>) -> Self {
        Self { kept: Kept::Spool(spool), len: 0, max, declared, replay: 0 }
    }

    /// From here on, this many bytes are kept only to be sent again.
    pub fn keep_for_replay(&mut self, bytes: usize) {
        self.replay = bytes as u64;
    }

    /// Bytes read.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the body can be sent from its beginning. One of which nothing has been read always can.
    pub fn is_replayable(&self) -> bool {
        self.len == 0 || !matches!(self.kept, Kept::Nothing)
    }

    /// Takes one more piece, which must not be lost: nobody has seen it yet.
    pub async fn keep(&mut self, piece: &Bytes) -> Result<(), Refusal> {
        self.count(piece)?;
        let Kept::Spool(spool) = &mut self.kept else { return Err(Refusal::Internal) };
        spool.append(piece).map_err(|_| Refusal::SpoolFull)?;
        spool.room().await.map_err(|_| Refusal::SpoolFull)
    }

    /// Waits until one more piece can be taken; for a disk no longer than `patience`. May be dropped and called again.
    pub async fn room(&mut self, patience: Duration) {
        if let Kept::Spool(spool) = &mut self.kept
            && !matches!(timeout(patience, spool.room()).await, Ok(Ok(())))
        {
            self.kept = Kept::Nothing;
        }
    }

    /// Takes one more piece, which goes on at once: it is kept only where it may be needed again.
    pub fn pass(&mut self, piece: &Bytes) -> Result<(), Refusal> {
        self.count(piece)?;
        if let Kept::Spool(spool) = &mut self.kept
            && (self.declared.unwrap_or(self.len) > self.replay || spool.append(piece).is_err())
        {
            self.kept = Kept::Nothing;
        }
        Ok(())
    }

    /// The bytes from `at` on, as far as they stand together; none at the end of what has been read.
    pub fn read(&self, at: u64) -> io::Result<Bytes> {
        match &self.kept {
            Kept::Whole(bytes) => {
                let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let end = bytes.len().min(at.saturating_add(PIECE_BYTES_MAX));
                Ok(bytes.slice(at..end))
            }
            Kept::Spool(spool) => spool.read(at),
            Kept::Nothing => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn count(&mut self, piece: &Bytes) -> Result<(), Refusal> {
        self.len += piece.len() as u64;
        let max = self.max;
        if self.len > max as u64 { Err(Refusal::BodyTooLarge { max }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::body::spool::{Bounds, Spools};
    use crate::metrics::Metrics;

    fn intake(total: u64, max: usize, declared: Option<u64>) -> (tempfile::TempDir, Arc<Spools>, Intake) {
        let dir = tempfile::tempdir().expect("a folder");
        let metrics = Arc::new(Metrics::new().expect("registers"));
        let spools = Arc::new(Spools::open(dir.path(), metrics).expect("opens"));
        let spool = Spool::new(Arc::clone(&spools), Bounds { memory: 1 << 20, total });
        (dir, spools, Intake::new(spool, max, declared))
    }

    #[test]
    fn a_whole_body_is_handed_over_in_pieces() {
        let whole = Intake::whole(Bytes::from(vec![7; PIECE_BYTES_MAX + 5]));
        let sizes = [0, PIECE_BYTES_MAX as u64, whole.len()].map(|at| whole.read(at).expect("there").len());
        assert_eq!(sizes, [PIECE_BYTES_MAX, 5, 0]);
        assert!(whole.is_replayable());
    }

    #[tokio::test]
    async fn what_nobody_has_seen_is_kept_or_the_request_is_refused() {
        let (_dir, spools, mut intake) = intake(10, 100, None);
        intake.keep(&Bytes::from_static(b"12345678")).await.expect("room");
        assert_eq!(intake.keep(&Bytes::from_static(b"90a")).await, Err(Refusal::SpoolFull));
        assert_eq!((spools.held(), intake.is_replayable()), (8, true));
    }

    #[test]
    fn what_passes_is_kept_as_far_as_it_may_be_needed_again() {
        for (label, total, replay, declared, kept) in [
            ("everything", 100, 12, None, [true, true, true]),
            ("not more than may be replayed", 100, 11, None, [true, true, false]),
            ("nothing", 100, 0, None, [false, false, false]),
            ("nothing of what is declared to be longer", 100, 11, Some(12), [false, false, false]),
            ("not more than there is room for", 9, 100, None, [true, true, false]),
        ] {
            let (_dir, spools, mut intake) = intake(total, 100, declared);
            intake.keep_for_replay(replay);
            for (passed, kept) in (1..).zip(kept) {
                intake.pass(&Bytes::from_static(b"1234")).expect("within the limit");
                assert_eq!((intake.len(), intake.is_replayable()), (4 * passed, kept), "{label}");
                assert_eq!(spools.held(), if kept { 4 * passed } else { 0 }, "{label}: the rest is given back");
            }
            assert_eq!(intake.read(0).ok(), kept[2].then(|| Bytes::from_static(b"123412341234")), "{label}");
        }
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_refused_wherever_that_is_found() {
        let (_dir, _spools, mut intake) = intake(100, 7, None);
        intake.keep(&Bytes::from_static(b"1234")).await.expect("room");
        assert_eq!(intake.pass(&Bytes::from_static(b"5678")), Err(Refusal::BodyTooLarge { max: 7 }));
        assert_eq!(intake.keep(&Bytes::from_static(b"9")).await, Err(Refusal::BodyTooLarge { max: 7 }));
    }
}
