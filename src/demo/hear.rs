//! The programs that hear: ffmpeg makes samples of what was uploaded, pocketsphinx words of the samples.
//!
//! What goes from one to the other lies in files without a name, and nothing of them is in memory.

use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines, Take};
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, timeout_at};

use super::engine::{Engines, FFMPEG, Failure, broken, ended_well};
use super::hypothesis::{Hypotheses, Segment};

/// The longest recording, in seconds.
pub(super) const RECORDING_SECONDS_MAX: u64 = 600;
/// What a recogniser may write about it: some dozens of bytes a word.
const OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What the recogniser's model of English was made for: 16-bit samples, a single channel.
const RATE_HZ: u64 = 16_000;
const BYTES_PER_SECOND: u64 = RATE_HZ * 2;
/// Silence behind the recording, in bytes: without it version 5 can miss the last utterance.
const SILENCE_BYTES: u64 = BYTES_PER_SECOND;

/// What a recording may be. Playlists and scripts are not here: they name other files, and ffmpeg would open them.
const CONTAINERS: &str = "aac,aiff,amr,asf,au,caf,flac,matroska,mov,mp3,mpeg,mpegts,ogg,wav,w64";

/// A recording as the recogniser reads it.
pub(super) struct Samples {
    file: File,
    pub(super) duration_ms: u64,
}

impl Engines {
    /// Decodes the bytes `at` of `body`, in whatever format they are.
    pub(super) async fn decode(&self, body: &File, at: &Range<u64>) -> Result<Samples, Failure> {
        let file = tempfile::tempfile().map_err(storage)?;
        // Opened as a file, which a pipe is not: an M4A tells at its end what is at its beginning.
        let input = format!("subfile,,start,{},end,{},,:/dev/stdin", at.start, at.end);
        let (rate_hz, most) = (RATE_HZ.to_string(), (RECORDING_SECONDS_MAX + 1).to_string());
        // Without -nostdin it would take what is in the file for keys that are pressed.
        let mut args = vec!["-nostdin", "-hide_banner", "-loglevel", "error"];
        args.extend(["-protocol_whitelist", "subfile,file", "-format_whitelist", CONTAINERS, "-i", &input]);
        args.extend(["-map", "0:a:0", "-t", &most, "-f", "s16le", "-ar", &rate_hz, "-ac", "1", "pipe:1"]);
        let stdin = body.try_clone().map_err(storage)?;
        let stdout = file.try_clone().map_err(storage)?;
        let mut ffmpeg = self.start(FFMPEG, &args, [stdin.into(), stdout.into()])?;
        match ffmpeg.wait().await.map_err(broken(FFMPEG))?.code() {
            Some(0) => Samples::of(file),
            Some(_) => Err(Failure::Undecodable),
            None => Err(broken(FFMPEG)("it was killed")),
        }
    }

    /// Begins to recognise what is said in `samples`, for which there is time until `deadline`.
    pub(super) fn recognise(&self, samples: Samples, deadline: Instant) -> Result<Recognition, Failure> {
        let recogniser = self.recogniser()?;
        let program = recogniser.program;
        let mut child = self.start(program, recogniser.args, [samples.file.into(), Stdio::piped()])?;
        let output = child.stdout.take().ok_or(Failure::Broken(program))?;
        Ok(Recognition {
            program,
            child,
            lines: BufReader::new(output.take(OUTPUT_BYTES_MAX)).lines(),
            hypotheses: Hypotheses::new(recogniser.dialect),
            deadline,
        })
    }
}

impl Samples {
    /// `file` is all that was decoded.
    fn of(mut file: File) -> Result<Self, Failure> {
        let bytes = file.metadata().map_err(storage)?.len();
        if bytes == 0 {
            return Err(Failure::Undecodable);
        }
        if bytes > RECORDING_SECONDS_MAX * BYTES_PER_SECOND {
            return Err(Failure::TooLong { max: RECORDING_SECONDS_MAX });
        }
        // A file that is made longer is filled with zeros.
        file.set_len(bytes + SILENCE_BYTES).and_then(|()| file.rewind()).map_err(storage)?;
        Ok(Self { file, duration_ms: bytes * 1000 / BYTES_PER_SECOND })
    }
}

/// The words of the failure are for the log.
pub(super) fn storage(error: io::Error) -> Failure {
    log::error!("demo: the temporary folder: {error}");
    Failure::Storage
}

/// A recogniser at work. Dropping it ends it.
pub(super) struct Recognition {
    program: &'static str,
    child: Child,
    lines: Lines<BufReader<Take<ChildStdout>>>,
    hypotheses: Hypotheses,
    deadline: Instant,
}

impl Recognition {
    /// Everything that is said.
    pub(super) async fn all(mut self) -> Result<Vec<Segment>, Failure> {
        let mut segments = Vec::new();
        while let Some(segment) = self.next().await? {
            segments.push(segment);
        }
        Ok(segments)
    }

    /// What was said next, as soon as it is known. `None` is the end, and only if all went well.
    pub(super) async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        timeout_at(self.deadline, self.hear()).await.unwrap_or(Err(Failure::Silent))
    }

    async fn hear(&mut self) -> Result<Option<Segment>, Failure> {
        while let Some(line) = self.lines.next_line().await.map_err(broken(self.program))? {
            let segment = self.hypotheses.push(&line).map_err(broken(self.program))?;
            if segment.is_some() {
                return Ok(segment);
            }
        }
        ended_well(self.program, &mut self.child).await?;
        Ok(self.hypotheses.finish())
    }
}
