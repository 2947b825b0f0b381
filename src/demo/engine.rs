//! The programs this provider is made of: where they are found, how they are started, how they fail.
//!
//! No shell is between. They see nothing of this process's environment but the search path, and end when the value
//! that stands for them is dropped.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::hypothesis::Dialect;

pub(super) const FLITE: &str = "flite";
pub(super) const ESPEAK: &str = "espeak-ng";
pub(super) const FFMPEG: &str = "ffmpeg";
const POCKETSPHINX: &str = "pocketsphinx";
/// The package of what pocketsphinx knows of English.
const POCKETSPHINX_ENGLISH: &str = "pocketsphinx-en-us";

/// A program of the package `pocketsphinx`: which one there is depends on the version.
pub(super) struct Recogniser {
    pub(super) program: &'static str,
    pub(super) args: &'static [&'static str],
    pub(super) dialect: Dialect,
}

/// In the order they are looked for. Both read samples from their standard input while they come, and write an
/// utterance when it has ended.
const RECOGNISERS: [Recogniser; 2] = [
    // Version 5, in Debian from 14 on.
    Recogniser { program: POCKETSPHINX, args: &["live", "-"], dialect: Dialect::Json },
    // Version 0.8, in Debian 12 and 13.
    Recogniser { program: "pocketsphinx_continuous", args: &CONTINUOUS, dialect: Dialect::Lines },
];

/// An utterance ends after 0.3 seconds of silence, as it does with version 5, and begins with 0.15 seconds of speech.
/// That is more than the piece of 0.128 seconds that is read at once: where an utterance ended and another began within
/// one piece, the first would not be seen to end, and the times of both would be wrong.
#[rustfmt::skip]
const CONTINUOUS: [&str; 12] = [
    "-infile", "/dev/stdin", "-time", "yes", "-logfn", "/dev/null",
    "-vad_postspeech", "30", "-vad_startspeech", "15", "-vad_prespeech", "25",
];

/// The Debian packages that are wanted and of which `path`, a search path like the environment's `PATH`, has no program.
pub fn missing_engines(path: &OsStr) -> Vec<&'static str> {
    // These programs have the names of their packages.
    let mut missing = vec![FLITE, ESPEAK, FFMPEG];
    missing.retain(|program| find(path, program).is_none());
    match recogniser(path) {
        Some((_, file)) if knows_english(&file) => {}
        Some(_) => missing.push(POCKETSPHINX_ENGLISH),
        None => missing.extend([POCKETSPHINX, POCKETSPHINX_ENGLISH]),
    }
    missing
}

fn find(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

fn recogniser(path: &OsStr) -> Option<(&'static Recogniser, PathBuf)> {
    RECOGNISERS.iter().find_map(|recogniser| Some((recogniser, find(path, recogniser.program)?)))
}

/// Whether pocketsphinx, which is `file`, finds its model where it looks for one: `share` is beside `bin`.
fn knows_english(file: &Path) -> bool {
    let prefix = fs::canonicalize(file).ok().and_then(|file| Some(file.parent()?.parent()?.to_owned()));
    prefix.is_some_and(|prefix| prefix.join("share/pocketsphinx/model/en-us/en-us").is_dir())
}

/// Why there is no speech, or no transcript, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("The speech engine `{0}` is not installed; on Debian: apt-get install {0}.")]
    Missing(&'static str),
    #[error("The speech engine `{0}` failed.")]
    Broken(&'static str),
    #[error("The speech engine did not answer in time.")]
    Silent,
    #[error("The temporary folder of this machine cannot be used.")]
    Storage,
    #[error("`input` holds nothing that can be spoken.")]
    Nothing,
    #[error("`file` could not be decoded: it is damaged, empty, or no audio that is known here.")]
    Undecodable,
    #[error("`file` is longer than {max} seconds.")]
    TooLong {
        /// In seconds of sound.
        max: u64,
    },
}

/// Where the programs are found.
pub(super) struct Engines {
    path: OsString,
}

impl Engines {
    pub(super) fn new(path: OsString) -> Self {
        Self { path }
    }

    pub(super) fn recogniser(&self) -> Result<&'static Recogniser, Failure> {
        recogniser(&self.path).map(|(recogniser, _)| recogniser).ok_or(Failure::Missing(POCKETSPHINX))
    }

    /// Starts a program with these `args`, between these two files or pipes.
    pub(super) fn start(
        &self,
        program: &'static str,
        args: &[&str],
        [stdin, stdout]: [Stdio; 2],
    ) -> Result<Child, Failure> {
        let file = find(&self.path, program).ok_or(Failure::Missing(program))?;
        Command::new(file)
            .args(args)
            .env_clear()
            .env("PATH", &self.path)
            .env("LANG", "C.UTF-8")
            // Ctrl-C in a terminal is for this process, which may want to finish what it is saying.
            .process_group(0)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(broken(program))
    }
}

/// The words of the failure are for the log: they are about this machine.
pub(super) fn broken<E: Display>(program: &'static str) -> impl Fn(E) -> Failure {
    move |error| {
        log::error!("demo: {program} failed: {error}");
        Failure::Broken(program)
    }
}

/// Waits for a program to end, and to say that all went well.
pub(super) async fn ended_well(program: &'static str, child: &mut Child) -> Result<(), Failure> {
    let status = child.wait().await.map_err(broken(program))?;
    if status.success() { Ok(()) } else { Err(broken(program)(status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 5] = ["flite", "espeak-ng", "ffmpeg", "pocketsphinx", "pocketsphinx-en-us"];

    #[test]
    fn a_package_is_missing_where_its_program_is_not_on_the_path() {
        assert_eq!(missing_engines(OsStr::new("")), ALL);
        assert_eq!(missing_engines(OsStr::new("/nonexistent:.")), ALL);
        assert_eq!(missing_engines(&std::env::var_os("PATH").expect("a PATH")), [""; 0]);
    }

    #[test]
    fn either_recogniser_will_do_but_none_without_its_model() {
        let folder = std::env::temp_dir().join(format!("aulos-demo-recogniser-{}", std::process::id()));
        let (bin, model) = (folder.join("usr/bin"), folder.join("usr/share/pocketsphinx/model/en-us/en-us"));
        for program in ["pocketsphinx_continuous", "pocketsphinx"] {
            fs::create_dir_all(&bin).expect("the temporary folder");
            fs::write(bin.join(program), "").expect("the temporary folder");
            fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).expect("the temporary folder");
            assert_eq!(missing_engines(bin.as_os_str())[3..], ["pocketsphinx-en-us"], "{program}");
            fs::create_dir_all(&model).expect("the temporary folder");
            assert_eq!(missing_engines(bin.as_os_str()), ALL[..3], "{program}");
            fs::remove_dir_all(&folder).expect("the temporary folder");
        }
    }
}
