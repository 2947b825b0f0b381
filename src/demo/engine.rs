//! The programs that speak and the one that encodes: how they are started, fed and heard.
//!
//! Text goes to their standard input, never on a command line; no shell is between. They see nothing of this
//! process's environment but the search path, and end when the value that stands for them is dropped.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::request::{Format, Utterance};
use super::sentence;
use super::voice::Engine;
use super::wave::{Decoder, RATE_HZ};

const FLITE: &str = "flite";
const ESPEAK: &str = "espeak-ng";
const FFMPEG: &str = "ffmpeg";

/// What is read from a program, or passed on, at once.
const PIECE_BYTES_MAX: usize = 16 * 1024;
/// eSpeak NG's own pace, in words a minute. It goes no slower than 80, whatever it is told.
const ESPEAK_WORDS_PER_MINUTE: f64 = 175.0;

/// The Debian packages of which `path`, a search path like the environment's `PATH`, has no program.
pub fn missing_engines(path: &OsStr) -> Vec<&'static str> {
    [FLITE, ESPEAK, FFMPEG].into_iter().filter(|program| find(path, program).is_none()).collect()
}

/// Each program has the name of the Debian package it comes in.
fn find(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

/// Why there is no speech, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("The speech engine `{0}` is not installed; on Debian: apt-get install {0}.")]
    Missing(&'static str),
    #[error("`{0}`, of the Debian package of that name, failed.")]
    Broken(&'static str),
    #[error("The speech engine did not answer in time.")]
    Silent,
    #[error("`input` holds nothing that can be spoken.")]
    Nothing,
}

/// Where the programs are found.
pub(super) struct Engines {
    path: OsString,
}

impl Engines {
    pub(super) fn new(path: OsString) -> Self {
        Self { path }
    }

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
        let broken = |error: io::Error| broken(FLITE, &error);
        // flite appends to its file sentence by sentence and reads back what is there: a pipe would stop it for ever.
        let mut file = unlinked_file().map_err(broken)?;
        let stretch = format!("duration_stretch={:.4}", 1.0 / speed);
        let args = ["-voice", voice, "--setf", &stretch, "-o", "/proc/self/fd/1"];
        let mut child = self.start(FLITE, &args, file.try_clone().map_err(broken)?.into())?;
        feed(&mut child, text).await;
        ended_well(FLITE, child).await?;
        let mut wave = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut wave)).map_err(broken)?;
        let mut decoder = Decoder::new();
        let mut pcm = BytesMut::from(decoder.push(&wave).map_err(|error| self::broken(FLITE, &error))?);
        pcm.extend_from_slice(&decoder.finish().map_err(|error| self::broken(FLITE, &error))?);
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
        let mut child = self.start(ESPEAK, &args, Stdio::piped())?;
        feed(&mut child, &utterance.text).await;
        let mut wave = child.stdout.take().ok_or(Failure::Broken(ESPEAK))?;
        let mut decoder = Decoder::new();
        while let Some(piece) = read_piece(ESPEAK, &mut wave).await? {
            let pcm = decoder.push(&piece).map_err(|error| broken(ESPEAK, &error))?;
            if pass_on(pcm, to).await.is_none() {
                return Ok(());
            }
        }
        ended_well(ESPEAK, child).await?;
        pass_on(decoder.finish().map_err(|error| broken(ESPEAK, &error))?, to).await;
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
        Ok(Some(Encoder(self.start(FFMPEG, &args, Stdio::piped())?)))
    }

    fn start(&self, program: &'static str, args: &[&str], stdout: Stdio) -> Result<Child, Failure> {
        let file = find(&self.path, program).ok_or(Failure::Missing(program))?;
        Command::new(file)
            .args(args)
            .env_clear()
            .env("PATH", &self.path)
            .env("LANG", "C.UTF-8")
            // Ctrl-C in a terminal is for this process, which may want to finish what it is saying.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| broken(program, &error))
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
                input.write_all(&piece).await.map_err(|error| broken(FFMPEG, &error))?;
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
        ended_well(FFMPEG, self.0).await
    }
}

/// The words of the failure are for the log: they are about this machine.
fn broken(program: &'static str, why: &dyn std::fmt::Display) -> Failure {
    log::error!("demo: {program} failed: {why}");
    Failure::Broken(program)
}

/// A program that does not want its text says so by how it ends.
async fn feed(child: &mut Child, text: &str) {
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all(text.as_bytes()).await;
    }
}

async fn ended_well(program: &'static str, mut child: Child) -> Result<(), Failure> {
    let status = child.wait().await.map_err(|error| broken(program, &error))?;
    if status.success() { Ok(()) } else { Err(broken(program, &status)) }
}

async fn read_piece(program: &'static str, from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Bytes>, Failure> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES_MAX);
    match from.read_buf(&mut piece).await {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(piece.freeze())),
        Err(error) => Err(broken(program, &error)),
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

/// A file that is nobody's but ours, and gone when it is closed.
fn unlinked_file() -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let folder = std::env::temp_dir();
    loop {
        let name = format!("aulos-demo-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(name);
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file),
            // Left behind by an earlier process of the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_missing_where_its_program_is_not_on_the_path() {
        assert_eq!(missing_engines(OsStr::new("")), ["flite", "espeak-ng", "ffmpeg"]);
        assert_eq!(missing_engines(OsStr::new("/nonexistent:.")), ["flite", "espeak-ng", "ffmpeg"]);
        assert_eq!(missing_engines(&std::env::var_os("PATH").expect("a PATH")), [""; 0]);
    }

    #[test]
    fn print_is_typewritten() {
        assert_eq!(typewritten("“Don’t” – wait…"), "\"Don't\" ,  wait...");
    }

    #[test]
    fn the_file_has_no_name() {
        let file = unlinked_file().expect("the temporary folder");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&file.metadata().expect("the temporary folder")), 0);
    }
}
