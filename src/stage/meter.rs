//! What passes, counted. An observer: it cannot fail, and never stops the audio.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::tunnel::Counts;

/// The byte counts and times of one exchange.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    /// Bytes of the request's body, as the client sent it.
    pub bytes_in: u64,
    /// Bytes of the answer's body, as the provider sent it.
    pub bytes_out: u64,
    /// When the first of them passed.
    pub first_out: Option<Instant>,
    /// Of a connection that was switched, while it lasts and after.
    pub tunnel: Option<Arc<Counts>>,
}

impl Meter {
    pub fn see_out(&mut self, bytes: usize, now: impl FnOnce() -> Instant) {
        if bytes > 0 {
            self.bytes_out += bytes as u64;
            self.first_out.get_or_insert_with(now);
        }
    }

    /// Bytes in, bytes out, and when the first of those passed.
    pub fn read(&self) -> (u64, u64, Option<Instant>) {
        match &self.tunnel {
            Some(counts) => {
                let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
                (read(&counts.up), read(&counts.down), counts.first_down())
            }
            None => (self.bytes_in, self.bytes_out, self.first_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_is_timed_and_all_are_counted() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.see_out(0, || unreachable!("nothing passed"));
        meter.see_out(3, || start);
        meter.see_out(4, || unreachable!("only the first is timed"));
        meter.bytes_in = 5;
        assert_eq!(meter.read(), (5, 7, Some(start)));
        let counts = Arc::new(Counts::default());
        meter.tunnel = Some(Arc::clone(&counts));
        counts.up.fetch_add(3, Ordering::Relaxed);
        assert_eq!(meter.read(), (3, 0, None), "a tunnel is all there is");
    }
}
