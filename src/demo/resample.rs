//! Samples of one rate into samples of another, as they come.
//!
//! Band-limited interpolation: every output sample is a windowed sinc laid over the input around its place.
//! Places are counted in whole numbers, so nothing drifts, and the result does not depend on how the input is cut.

use std::f64::consts::PI;

/// Input samples that count towards one output sample, half of them on each side of it.
const TAPS: usize = 16;

pub(super) struct Resampler {
    /// An output sample lies `down / up` input samples behind the one before.
    up: usize,
    down: usize,
    /// The weights for each of the `up` places between two input samples.
    weights: Vec<[f32; TAPS]>,
    /// Input that is still needed; it begins with the first sample under the next output sample.
    window: Vec<f32>,
    /// Where between two input samples the next output sample lies, in parts of `up`.
    phase: usize,
}

impl Resampler {
    pub(super) fn new(from_hz: u32, to_hz: u32) -> Self {
        let common = gcd(from_hz, to_hz).max(1);
        let (up, down) = ((to_hz / common) as usize, (from_hz / common) as usize);
        // Neither rate can carry more than half of the smaller one.
        let cutoff = (up as f64 / down as f64).min(1.0);
        Self {
            up,
            down,
            weights: (0..up).map(|phase| weights(phase as f64 / up as f64, cutoff)).collect(),
            window: vec![0.0; TAPS / 2 - 1],
            phase: 0,
        }
    }

    /// Takes the next input and gives `out` every sample that no later input can change.
    pub(super) fn push(&mut self, input: impl IntoIterator<Item = i16>, mut out: impl FnMut(i16)) {
        self.window.extend(input.into_iter().map(f32::from));
        let mut start = 0;
        while let Some(under) = self.window.get(start..start + TAPS) {
            let sum: f32 = under.iter().zip(&self.weights[self.phase]).map(|(sample, weight)| sample * weight).sum();
            // The cast rounds towards zero and saturates.
            out(sum.round() as i16);
            self.phase += self.down;
            start += self.phase / self.up;
            self.phase %= self.up;
        }
        self.window.drain(..start.min(self.window.len()));
    }

    /// The samples that waited for input to follow; there is none.
    pub(super) fn finish(mut self, out: impl FnMut(i16)) {
        self.push([0; TAPS / 2], out);
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A Hann-windowed sinc at `place` (0 to 1) between the two middle taps; silence and a steady level stay what they are.
fn weights(place: f64, cutoff: f64) -> [f32; TAPS] {
    let half = TAPS as f64 / 2.0;
    let raw: [f64; TAPS] = std::array::from_fn(|tap| {
        let distance = tap as f64 - (half - 1.0) - place;
        let window = if distance.abs() < half { (PI * distance / (2.0 * half)).cos().powi(2) } else { 0.0 };
        sinc(cutoff * distance) * window
    });
    let sum: f64 = raw.iter().sum();
    raw.map(|weight| (weight / sum) as f32)
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(from_hz: u32, to_hz: u32, pieces: &[&[i16]]) -> Vec<i16> {
        let mut out = Vec::new();
        let mut resampler = Resampler::new(from_hz, to_hz);
        for piece in pieces {
            resampler.push(piece.iter().copied(), |sample| out.push(sample));
        }
        resampler.finish(|sample| out.push(sample));
        out
    }

    fn tone(hz: f64, rate_hz: u32, samples: usize) -> Vec<i16> {
        let step = 2.0 * PI * hz / f64::from(rate_hz);
        (0..samples).map(|n| (10_000.0 * (step * n as f64).sin()).round() as i16).collect()
    }

    #[test]
    fn a_tone_stays_the_tone_it_was() {
        for (from, hz) in [(16_000, 440.0), (16_000, 3_000.0), (22_050, 440.0), (22_050, 5_000.0), (48_000, 3_000.0)] {
            let got = run(from, 24_000, &[&tone(hz, from, from as usize / 2)]);
            let want = tone(hz, 24_000, 12_000);
            assert_eq!(got.len(), want.len());
            // At its ends the tone begins and stops at once, which no band-limited signal does.
            let off = (100..11_900).map(|n| (i32::from(got[n]) - i32::from(want[n])).abs()).max();
            assert!(off.is_some_and(|off| off < 100), "{hz} Hz at {from}: off by {off:?} of 10000");
        }
    }

    #[test]
    fn what_the_new_rate_cannot_carry_is_gone() {
        let got = run(48_000, 24_000, &[&tone(17_000.0, 48_000, 24_000)]);
        assert!(got[100..11_900].iter().all(|sample| sample.abs() < 400), "5 kHz is not heard in its place");
    }

    #[test]
    fn the_rate_it_has_already_is_left_alone() {
        let input = [0, 1, -1, i16::MAX, i16::MIN, 7];
        assert_eq!(run(24_000, 24_000, &[&input]), input);
        assert_eq!(run(16_000, 24_000, &[]), [0_i16; 0]);
    }

    #[test]
    fn too_loud_is_cut_off_and_does_not_wrap() {
        let square: Vec<i16> = (0..400).map(|n| if n / 20 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        let got = run(16_000, 24_000, &[&square]);
        assert!((0..600).all(|n| n % 30 < 3 || n % 30 > 26 || (got[n] > 0) == (n / 30 % 2 == 0)));
    }

    proptest! {
        #[test]
        fn same_however_cut(
            input in proptest::collection::vec(any::<i16>(), 0..200),
            at in any::<proptest::sample::Index>(),
            from in prop::sample::select(vec![8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]),
        ) {
            let whole = run(from, 24_000, &[&input]);
            let (left, right) = input.split_at(at.index(input.len() + 1));
            prop_assert_eq!(&run(from, 24_000, &[left, right]), &whole);
            prop_assert_eq!(&run(from, 24_000, &input.chunks(1).collect::<Vec<_>>()), &whole);
            prop_assert_eq!(whole.len(), (input.len() * 24_000).div_ceil(from as usize));
        }
    }
}
