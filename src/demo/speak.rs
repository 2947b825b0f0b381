//! The programs that speak and the one that encodes: how they are fed and heard.
//!
//! Text goes to their standard input, never on a command line.

use std::io::{Read, Seek};
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::mpsc;

use super::engine::{ESPEAK, Engines, FFMPEG, FLITE, Failure, broken, ended_well};
use super::request::{Format, Utterance};
use super::sentence;
use super::voice::Engine;
use super::wave::{Decoder, RATE_HZ};

/// What is read from a program, or passed on, at once.
const PIECE_BYTES_MAX: usize = 16 * 1024;
/// eSpeak NG's own pace, in words a minute. It goes no slower than 80, whatever it is told.
const ESPEAK_WORDS_PER_MINUTE: f64 = 175.0;

impl Engines {
    /// Speaks into `to`, 24 kHz samples piece by piece; ends early when nobody listens any more.
    pub(super) async fn speak(&self, utterance: &Utterance, to: mpsc::Sender<Bytes>) -> Result<(), Failure> {
        match utterance.voice.engine {
            Engine::Flite { voice } => self.flite(voice, utterance, &to).await,
            Engine::Espeak { voice, pitch } => self.espeak(voice, pitch, utterance, &to).await,
        }
    }

    /// flite hands an utterance out when all of it is made: so it gets the text in portions, and makes the next one
    /// while the last is on its way.
    async fn flite(&self, voice: &str, utterance: &Utterance, to: &mpsc::Sender<Bytes>) -> Result<(), Failure> {
        let text = typewritten(&utterance.text);
        let mut made = Bytes::new();
        for portion in sentence::portions(&text) {
            let (heard, next) = tokio::join!(pass_on(made, to), self.flite_portion(voice, utterance.speed, portion));
            if heard.is_none() {
                return Ok(());
            }
            made = next?;
        }
        pass_on(made, to).await;
        Ok(())
    }

    async fn flite_portion(&self, voice: &str, speed: f64, text: &str) -> Result<Bytes, Failure> {
        // flite appends to its file sentence by sentence and reads back what is there: a pipe would stop it for ever.
        let mut file = tempfile::tempfile().map_err(broken(FLITE))?;
        let stretch = format!("duration_stretch={:.4}", 1.0 / speed);
        let args = ["-voice", voice, "--setf", &stretch, "-o", "/proc/self/fd/1"];
        let stdout = file.try_clone().map_err(broken(FLITE))?;
        let mut child = self.start(FLITE, &args, [Stdio::piped(), stdout.into()])?;
        feed(&mut child, text).await;
        ended_well(FLITE, &mut child).await?;
        let mut wave = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut wave)).map_err(broken(FLITE))?;
        let mut decoder = Decoder::new();
        let mut pcm = BytesMut::from(decoder.push(&wave).map_err(broken(FLITE))?);
        pcm.extend_from_slice(&decoder.finish().map_err(broken(FLITE))?);
        Ok(pcm.freeze())
    }

    /// eSpeak NG writes while it speaks, once it has read all it is to say.
    async fn espeak(
        &self,
        voice: &str,
        pitch: u8,
        utterance: &Utterance,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), Failure> {
        let words_per_minute = (ESPEAK_WORDS_PER_MINUTE * utterance.speed).round().to_string();
        let pitch = pitch.to_string();
        let args = ["--stdin", "--stdout", "-b", "1", "-v", voice, "-p", &pitch, "-s", &words_per_minute];
        let mut child = self.start(ESPEAK, &args, [Stdio::piped(), Stdio::piped()])?;
        feed(&mut child, &utterance.text).await;
        let mut wave = child.stdout.take().ok_or(Failure::Broken(ESPEAK))?;
        let mut decoder = Decoder::new();
        while let Some(piece) = read_piece(ESPEAK, &mut wave).await? {
            let pcm = decoder.push(&piece).map_err(broken(ESPEAK))?;
            if pass_on(pcm, to).await.is_none() {
                return Ok(());
            }
        }
        ended_well(ESPEAK, &mut child).await?;
        pass_on(decoder.finish().map_err(broken(ESPEAK))?, to).await;
        Ok(())
    }

    /// An ffmpeg that waits for 24 kHz samples, or `None` where they go out as they are.
    pub(super) fn encoder(&self, format: Format) -> Result<Option<Encoder>, Failure> {
        let Some(codec) = codec(format) else { return Ok(None) };
        let rate_hz = RATE_HZ.to_string();
        let mut args = vec!["-hide_banner", "-loglevel", "error", "-probesize", "32"];
        args.extend(["-f", "s16le", "-ar", &rate_hz, "-ac", "1", "-i", "pipe:0", "-map_metadata", "-1"]);
        args.extend(codec);
        args.extend(["-flush_packets", "1", "pipe:1"]);
        Ok(Some(Encoder(self.start(FFMPEG, &args, [Stdio::piped(), Stdio::piped()])?)))
    }
}

/// How ffmpeg makes a format, or `None` where the samples are the format.
fn codec(format: Format) -> Option<&'static [&'static str]> {
    Some(match format {
        // Without the headers that could only be filled in at the end.
        Format::Mp3 => &["-c:a", "libmp3lame", "-b:a", "128k", "-id3v2_version", "0", "-write_xing", "0", "-f", "mp3"],
        // Ogg gathers a second of sound in a page, unless told otherwise (in microseconds).
        Format::Opus => &["-c:a", "libopus", "-b:a", "64k", "-page_duration", "100000", "-f", "ogg"],
        Format::Aac => &["-c:a", "aac", "-b:a", "96k", "-f", "adts"],
        Format::Flac => &["-c:a", "flac", "-f", "flac"],
        Format::Wav | Format::Pcm => return None,
    })
}

pub(super) struct Encoder(Child);

impl Encoder {
    /// Encodes `first` and what follows on `from`, into `to`, until the one has ended or nobody listens to the other.
    pub(super) async fn run(
        mut self,
        first: Bytes,
        mut from: mpsc::Receiver<Bytes>,
        to: mpsc::Sender<Bytes>,
    ) -> Result<(), Failure> {
        let mut input = self.0.stdin.take().ok_or(Failure::Broken(FFMPEG))?;
        let mut output = self.0.stdout.take().ok_or(Failure::Broken(FFMPEG))?;
        let feed = async move {
            let mut next = Some(first);
            while let Some(piece) = next {
                input.write_all(&piece).await.map_err(broken(FFMPEG))?;
                next = from.recv().await;
            }
            // Closed here, not when both are done: it is how ffmpeg learns of the end.
            drop(input);
            Ok(())
        };
        let hear = async {
            while let Some(piece) = read_piece(FFMPEG, &mut output).await? {
                if pass_on(piece, &to).await.is_none() {
                    break;
                }
            }
            Ok(())
        };
        tokio::try_join!(feed, hear)?;
        ended_well(FFMPEG, &mut self.0).await
    }
}

/// A program that does not want its text says so by how it ends.
async fn feed(child: &mut Child, text: &str) {
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all(text.as_bytes()).await;
    }
}

async fn read_piece(program: &'static str, from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Bytes>, Failure> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES_MAX);
    match from.read_buf(&mut piece).await {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(piece.freeze())),
        Err(error) => Err(broken(program)(error)),
    }
}

/// `None`: nobody listens any more.
async fn pass_on(mut audio: Bytes, to: &mpsc::Sender<Bytes>) -> Option<()> {
    while !audio.is_empty() {
        to.send(audio.split_to(audio.len().min(PIECE_BYTES_MAX))).await.ok()?;
    }
    Some(())
}

/// flite reads ASCII: the signs of print become those of a typewriter.
fn typewritten(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '‘' | '’' | 'ʼ' => ascii.push('\''),
            '“' | '”' | '„' | '«' | '»' => ascii.push('"'),
            '–' | '—' => ascii.push_str(", "),
            '…' => ascii.push_str("..."),
            '\u{a0}' | '\u{202f}' => ascii.push(' '),
            other => ascii.push(other),
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_is_typewritten() {
        assert_eq!(typewritten("“Don’t” – wait…"), "\"Don't\" ,  wait...");
    }
}
