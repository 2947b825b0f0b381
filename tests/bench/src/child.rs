//! A process started here, and its end: killed by its own id when the guard goes, and by the kernel when
//! the driver dies without a word (`setpriv --pdeathsig`, where util-linux is present).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take to say that it is there.
pub const START_MAX: Duration = Duration::from_secs(10);

/// What to start, and where.
pub struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    core: Option<usize>,
}

impl Launch {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), core: None }
    }

    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// None: wherever the kernel likes.
    pub fn core(mut self, core: Option<usize>) -> Self {
        self.core = core;
        self
    }

    /// Starts it, with what it complains about in `log`. Both wrappers `exec`, so the id stays the program's own.
    pub fn start(self, log: &Path) -> io::Result<Child> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(setpriv) = on_path("setpriv") {
            words.extend([setpriv.into(), "--pdeathsig".into(), "KILL".into()]);
        }
        if let (Some(core), Some(taskset)) = (self.core, on_path("taskset")) {
            words.extend([taskset.into(), "-c".into(), core.to_string().into()]);
        }
        words.push(self.program.into());
        words.extend(self.args);
        let mut words = words.into_iter();
        let mut process = Command::new(words.next().unwrap_or_default())
            .args(words)
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            .spawn()?;
        let lines = process.stdout.take().map(forward);
        Ok(Child { process, lines, log: log.to_owned() })
    }
}

pub struct Child {
    process: Process,
    lines: Option<Receiver<String>>,
    log: PathBuf,
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the line of its output that `found` knows.
    pub fn line<T>(&self, mut found: impl FnMut(&str) -> Option<T>) -> io::Result<T> {
        let deadline = Instant::now() + START_MAX;
        let lines = self.lines.as_ref().ok_or_else(|| self.complaint("has no output"))?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = lines.recv_timeout(left).map_err(|_| self.complaint("did not say that it is ready"))?;
            if let Some(value) = found(&line) {
                return Ok(value);
            }
        }
    }

    /// An error that carries the last words of the process.
    pub fn complaint(&self, what: &str) -> io::Error {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
        io::Error::other(format!("process {} {what}\n  {last}", self.pid()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if it has ended already, which is what they are for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where a program is; the places for daemons are looked at even if `PATH` leaves them out.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(daemons).map(|place| place.join(program)).find(|file| file.is_file())
}

/// A program built beside this one.
pub fn sibling(program: &str) -> Option<PathBuf> {
    let file = std::env::current_exe().ok()?.with_file_name(program);
    file.is_file().then_some(file)
}

/// What a program prints, both ways; empty where it cannot be run.
pub fn output(program: &Path, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).stdin(Stdio::null()).output() else { return String::new() };
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
}

/// Keeps the pipe empty for as long as the process lives, whether or not anybody still listens.
fn forward(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}
