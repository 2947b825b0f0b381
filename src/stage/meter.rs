//! What passes, counted. An observer: it cannot fail, and never stops the audio.

use std::time::Instant;

/// The byte counts and times of one exchange.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    /// Bytes of the request's body, as the client sent it.
    pub bytes_in: u64,
    /// Bytes of the answer's body, as the provider sent it.
    pub bytes_out: u64,
    /// When the first of them passed.
    pub first_out: Option<Instant>,
}

impl Meter {
    pub fn see_out(&mut self, bytes: usize, now: impl FnOnce() -> Instant) {
        if bytes > 0 {
            self.bytes_out += bytes as u64;
            self.first_out.get_or_insert_with(now);
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
        assert_eq!((meter.bytes_in, meter.bytes_out, meter.first_out), (5, 7, Some(start)));
    }
}
