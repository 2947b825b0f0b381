//! What every contender stands on: a scratch directory, cores of their own, the fake provider.

use crate::child::{self, Child, Launch};
use crate::client::Connection;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process;

/// Where the provider says how much of uploads it has read.
pub const RECEIVED_PATH: &str = "/received";
/// Where it says how many requests for speech it has had.
pub const ASKED_PATH: &str = "/asked";

/// Which core does what: the proxy has one to itself, where there are two.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pins {
    pub proxy: Option<usize>,
    pub load: Option<usize>,
    pub provider: Option<usize>,
}

impl Pins {
    pub fn find() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores < 2 || child::on_path("taskset").is_none() {
            return Self::default();
        }
        Self { proxy: Some(0), load: Some(1), provider: Some(if cores > 2 { 2 } else { 1 }) }
    }

    /// This process, before it has more than one thread.
    fn pin_self(self) {
        if let (Some(core), Some(taskset)) = (self.load, child::on_path("taskset")) {
            child::output(&taskset, &["-a", "-c", "-p", &core.to_string(), &process::id().to_string()]);
        }
    }

    pub fn describe(self) -> String {
        match (self.proxy, self.load, self.provider) {
            (Some(proxy), Some(load), Some(provider)) => {
                format!("each proxy alone on core {proxy}, load on core {load}, provider on core {provider}")
            }
            _ => "UNPINNED (no taskset, or one core): proxies, load and provider share what there is".to_owned(),
        }
    }
}

pub struct Rig {
    pub pins: Pins,
    /// Where the fake provider listens.
    pub provider: SocketAddr,
    _provider: Provider,
    // Last: it goes when nothing writes into it any more.
    scratch: Scratch,
}

impl Rig {
    pub fn start() -> io::Result<Self> {
        let pins = Pins::find();
        pins.pin_self();
        let scratch = Scratch::make()?;
        let provider = Provider::start(&[], pins, &scratch.file("provider.log"))?;
        Ok(Self { pins, provider: provider.address, _provider: provider, scratch })
    }

    /// One more provider, with arguments as `upstream` has them; the name is that of its log.
    pub fn start_provider(&self, name: &str, args: &[String]) -> io::Result<Provider> {
        Provider::start(args, self.pins, &self.file(&format!("{name}.log")))
    }

    /// Bytes of uploads that the provider has read by now, of all there ever were.
    pub async fn received(&self) -> io::Result<u64> {
        count(self.provider, RECEIVED_PATH).await
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    pub fn dir(&self) -> &Path {
        &self.scratch.0
    }
}

/// A fake provider, until this is dropped.
pub struct Provider {
    pub address: SocketAddr,
    _process: Child,
}

impl Provider {
    fn start(args: &[String], pins: Pins, log: &Path) -> io::Result<Self> {
        let program = child::sibling("upstream")
            .ok_or_else(|| io::Error::other("no `upstream` beside this program: build the package with --bins"))?;
        let process = Launch::new(program).args(args).core(pins.provider).start(log)?;
        Ok(Self { address: process.line(listening)?, _process: process })
    }

    /// Requests for speech that it has had.
    pub async fn asked(&self) -> io::Result<u64> {
        count(self.address, ASKED_PATH).await
    }
}

async fn count(provider: SocketAddr, path: &str) -> io::Result<u64> {
    let mut connection = Connection::open(provider).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n");
    let (_, count) = connection.fetch(request.as_bytes()).await?;
    String::from_utf8_lossy(&count).parse().map_err(io::Error::other)
}

/// The address in `listening on http://…`, which all our own programs print.
pub fn listening(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on http://")?.parse().ok()
}

/// An address that was free a moment ago, for programs that cannot say which one they took.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

struct Scratch(PathBuf);

impl Scratch {
    fn make() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("aulos-bench-{}", process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the system's directory for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
