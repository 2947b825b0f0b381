//! Wave files: those the engines write, read as they come, and the head of those this speaker sends.
//!
//! Out of any 16-bit mono wave come 24 kHz samples, signed and little-endian, as OpenAI's `pcm` has them.

use bytes::Bytes;

use super::resample::Resampler;

/// What every answer is made of, in samples a second.
pub(super) const RATE_HZ: u32 = 24_000;

/// Chunks before the samples may not be longer than this together.
const HEAD_BYTES_MAX: usize = 4096;
/// A length from here on is that of a stream, whose end nobody knew when it was written.
const UNKNOWN_LENGTH_MIN: u32 = 0x7FFF_0000;

/// The head of a wave whose length is not known, as OpenAI writes it: both lengths are `0xFFFFFFFF`.
pub(super) const HEAD: [u8; 44] = head(RATE_HZ, u32::MAX, u32::MAX);

const fn head(rate_hz: u32, riff_bytes: u32, data_bytes: u32) -> [u8; 44] {
    let mut head = *b"RIFF....WAVEfmt \x10\0\0\0\x01\0\x01\0........\x02\0\x10\0data....";
    let fields = [(4, riff_bytes), (24, rate_hz), (28, rate_hz * 2), (40, data_bytes)];
    let mut field = 0;
    while field < fields.len() {
        let (at, value) = fields[field];
        let bytes = value.to_le_bytes();
        let mut n = 0;
        while n < bytes.len() {
            head[at + n] = bytes[n];
            n += 1;
        }
        field += 1;
    }
    head
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAWave {
    #[error("these are not 16-bit mono samples in a wave file")]
    Unknown,
    #[error("the wave file ends too soon")]
    Truncated,
}

/// Reads one wave. Nothing at all is a wave too: it is silent.
pub(super) enum Decoder {
    Head(Vec<u8>),
    Samples(Samples),
}

pub(super) struct Samples {
    resampler: Resampler,
    /// The first half of a sample that was cut in two.
    half: Option<u8>,
    /// Bytes of samples to come, where the head says.
    left: Option<usize>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self::Head(Vec::new())
    }

    /// Takes the next bytes of the file, gives what can be heard of them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Bytes, NotAWave> {
        match self {
            Self::Samples(samples) => Ok(samples.push(bytes)),
            Self::Head(head) => {
                head.extend_from_slice(bytes);
                let Some((mut samples, start)) = parse_head(head)? else { return Ok(Bytes::new()) };
                let pcm = samples.push(&head[start..]);
                *self = Self::Samples(samples);
                Ok(pcm)
            }
        }
    }

    /// The file has ended: gives what is left to be heard.
    pub(super) fn finish(self) -> Result<Bytes, NotAWave> {
        match self {
            Self::Head(head) if head.is_empty() => Ok(Bytes::new()),
            Self::Head(_) => Err(NotAWave::Truncated),
            Self::Samples(Samples { half: Some(_), .. }) => Err(NotAWave::Truncated),
            Self::Samples(Samples { left: Some(1..), .. }) => Err(NotAWave::Truncated),
            Self::Samples(samples) => Ok(samples.finish()),
        }
    }
}

impl Samples {
    fn push(&mut self, bytes: &[u8]) -> Bytes {
        let bytes = &bytes[..bytes.len().min(self.left.unwrap_or(usize::MAX))];
        self.left = self.left.map(|left| left - bytes.len());
        let (first, bytes) = match (self.half.take(), bytes) {
            (Some(low), [high, rest @ ..]) => (Some([low, *high]), rest),
            (half, bytes) => {
                self.half = half;
                (None, bytes)
            }
        };
        let (pairs, odd) = bytes.as_chunks::<2>();
        self.half = self.half.or(odd.first().copied());
        let mut pcm = Vec::new();
        let samples = first.iter().chain(pairs).map(|pair| i16::from_le_bytes(*pair));
        self.resampler.push(samples, |sample| pcm.extend_from_slice(&sample.to_le_bytes()));
        pcm.into()
    }

    fn finish(self) -> Bytes {
        let mut pcm = Vec::new();
        self.resampler.finish(|sample| pcm.extend_from_slice(&sample.to_le_bytes()));
        pcm.into()
    }
}

/// How to read the samples and where they begin, or `None` while the head is not complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(Samples, usize)>, NotAWave> {
    let Some((riff, _)) = bytes.split_first_chunk::<12>() else { return Ok(None) };
    if !riff.starts_with(b"RIFF") || !riff.ends_with(b"WAVE") {
        return Err(NotAWave::Unknown);
    }
    let mut rate_hz = None;
    let mut at = riff.len();
    while let Some((name, length, body)) = chunk(&bytes[at..]) {
        let start = bytes.len() - body.len();
        if name == *b"data" {
            let resampler = Resampler::new(rate_hz.ok_or(NotAWave::Unknown)?, RATE_HZ);
            let left = (length < UNKNOWN_LENGTH_MIN).then_some(length as usize);
            return Ok(Some((Samples { resampler, half: None, left }, start)));
        }
        // A chunk of odd length is followed by a byte of padding.
        at = start.saturating_add(length as usize).saturating_add((length % 2) as usize);
        if at > HEAD_BYTES_MAX {
            return Err(NotAWave::Unknown);
        }
        if at > bytes.len() {
            return Ok(None);
        }
        if name == *b"fmt " {
            rate_hz = Some(rate(body)?);
        }
    }
    Ok(None)
}

/// Name, length and what follows, of which the first `length` bytes are the chunk's own.
fn chunk(bytes: &[u8]) -> Option<([u8; 4], u32, &[u8])> {
    let (name, rest) = bytes.split_first_chunk()?;
    let (length, body) = rest.split_first_chunk()?;
    Some((*name, u32::from_le_bytes(*length), body))
}

/// The rate a `fmt ` chunk gives, if it is one of speech in 16-bit mono.
fn rate(format: &[u8]) -> Result<u32, NotAWave> {
    match format {
        [1, 0, 1, 0, a, b, c, d, _, _, _, _, 2, 0, 16, 0, ..] => Some(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    }
    .filter(|rate_hz| (8_000..=48_000).contains(rate_hz))
    .ok_or(NotAWave::Unknown)
}

/// A wave of `samples`, as an engine writes it.
#[cfg(test)]
pub(super) fn wave_of(rate_hz: u32, data_bytes: u32, samples: &[i16]) -> Vec<u8> {
    let mut wave = head(rate_hz, data_bytes.saturating_add(36), data_bytes).to_vec();
    wave.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    wave
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&[u8]]) -> Result<Vec<u8>, NotAWave> {
        let mut decoder = Decoder::new();
        let mut pcm = Vec::new();
        for piece in pieces {
            pcm.extend_from_slice(&decoder.push(piece)?);
        }
        pcm.extend_from_slice(&decoder.finish()?);
        Ok(pcm)
    }

    fn samples() -> Vec<i16> {
        (0..100).map(|n| n * 300 - 15_000).collect()
    }

    #[test]
    fn same_however_cut() {
        let mut with_more = b"RIFF....WAVELIST\x03\0\0\0abc\0".to_vec();
        with_more.extend_from_slice(&wave_of(16_000, 200, &samples())[12..]);
        with_more.extend_from_slice(b"LIST\x02\0\0\0no");
        let stream = wave_of(22_050, 0x7FFF_F000, &samples());
        let (cut_short, odd) = (wave_of(16_000, 300, &samples()), &stream[..stream.len() - 1]);
        for input in [&with_more[..], &stream, &cut_short, odd, b"RIFF....AVI fmt ", b""] {
            let whole = run(&[input]);
            for cut in 0..=input.len() {
                let (left, right) = input.split_at(cut);
                assert_eq!(run(&[left, right]), whole, "cut at byte {cut}");
            }
            assert_eq!(run(&input.chunks(1).collect::<Vec<_>>()), whole, "one byte at a time");
        }
        assert_eq!(run(&[&with_more]).map(|pcm| pcm.len()), Ok(300), "16 kHz to 24 kHz, and only the samples");
        assert_eq!(run(&[&stream]).map(|pcm| pcm.len()), Ok(2 * 109), "22.05 kHz to 24 kHz");
    }

    #[test]
    fn what_is_not_a_wave_of_speech() {
        let wave = wave_of(16_000, 200, &samples());
        let changed = |at: usize, byte: u8| {
            let mut changed = wave.clone();
            changed[at] = byte;
            run(&[&changed])
        };
        assert_eq!(run(&[b"ID3\x04 and so on and on"]), Err(NotAWave::Unknown));
        for (label, at, byte) in
            [("stereo", 22, 2), ("8 bits", 34, 8), ("floats", 20, 3), ("64 kHz", 25, 250), ("huge chunk", 19, 0x7F)]
        {
            assert_eq!(changed(at, byte), Err(NotAWave::Unknown), "{label}");
        }
        assert_eq!(run(&[b"RIFF....WAVEodd \xff\xff\xff\xff"]), Err(NotAWave::Unknown));
        for end in [1, 11, 30, 43, 44, 45, 46, 243] {
            assert_eq!(run(&[&wave[..end]]), Err(NotAWave::Truncated), "ends after {end}");
        }
        assert_eq!(run(&[]), Ok(vec![]));
    }

    #[test]
    fn the_head_sent_is_that_of_a_stream() {
        assert_eq!(&HEAD[..16], b"RIFF\xff\xff\xff\xffWAVEfmt ");
        assert_eq!(HEAD[24..32], [0xC0, 0x5D, 0, 0, 0x80, 0xBB, 0, 0], "24000 samples, 48000 bytes a second");
        assert_eq!(&HEAD[36..], b"data\xff\xff\xff\xff");
        let mut wave = HEAD.to_vec();
        wave.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(run(&[&wave]), Ok(vec![1, 2, 3, 4]), "and is read back as it was");
    }
}
