//! The proxies that are compared, each set up as its own documentation would for this job: connections kept
//! on both sides, nothing buffered that can stream, no access log, one thread.

use crate::child::{self, Child, Launch, START_MAX};
use crate::client::Connection;
use crate::rig::{Rig, free_address, listening};
use crate::speech::{CLIENT_KEY, PROVIDER_KEY, Speech};
use crate::upload::{MODEL, PROVIDER_MODEL, STREAMED_MODEL, Upload};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Of uploads that the gateway keeps, all together: little more than the soak has it keep at once, so that bytes which
/// are not given back show.
pub const SPOOL_BYTES_MAX: u64 = 1_000_000_000;
/// Between two looks whether a proxy is there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// No proxy: the provider itself.
    Direct,
    Aulos,
    Bare,
    Nginx,
    Haproxy,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Direct, Self::Aulos, Self::Bare, Self::Nginx, Self::Haproxy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Aulos => "aulos",
            Self::Bare => "bare Pingora",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
        }
    }

    /// Where its program is. `AULOS` names the gateway; else it is the one built beside this program.
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Direct => child::sibling("upstream"),
            Self::Aulos => aulos(),
            Self::Bare => child::sibling("bare"),
            Self::Nginx => child::on_path("nginx"),
            Self::Haproxy => child::on_path("haproxy"),
        }
    }

    /// Why it cannot take part.
    pub fn missing(self) -> Option<&'static str> {
        match self {
            _ if self.program().is_some() => None,
            Self::Direct | Self::Aulos | Self::Bare => Some("not built"),
            Self::Nginx | Self::Haproxy => Some("not installed"),
        }
    }

    /// What the provider is to receive of an upload.
    pub fn passed_on(self, upload: Upload) -> Upload {
        match self {
            Self::Aulos => Upload { model: PROVIDER_MODEL, ..upload },
            _ => upload,
        }
    }

    /// What it says of itself.
    pub fn version(self) -> String {
        let said = |args: &[&str]| self.program().map(|program| child::output(&program, args)).unwrap_or_default();
        let line = match self {
            Self::Direct => String::new(),
            Self::Aulos => said(&["--version"]),
            Self::Bare => {
                "Pingora 0.9.1, jemalloc, reads `model` out of the JSON body unless that passes through".to_owned()
            }
            Self::Nginx | Self::Haproxy => said(&["-v"]),
        };
        line.lines().next().unwrap_or_default().to_owned()
    }
}

/// A proxy that runs, until this is dropped.
pub struct Contender {
    pub kind: Kind,
    pub address: SocketAddr,
    /// The gateway's listener for operators.
    pub admin: Option<SocketAddr>,
    /// Where the gateway keeps what it writes.
    pub state_dir: Option<PathBuf>,
    process: Option<Child>,
}

impl Contender {
    /// Starts it and hears it speak before anything is measured.
    pub async fn start(kind: Kind, rig: &Rig) -> io::Result<Self> {
        let contender = match kind {
            Kind::Direct => Self { kind, address: rig.provider, admin: None, state_dir: None, process: None },
            Kind::Aulos => start_aulos(rig, "")?,
            Kind::Bare => start_bare(rig)?,
            Kind::Nginx => {
                start_configured(kind, rig, nginx_conf, &|conf| words(&["-p", ".", "-e", "stderr", "-c", conf]))?
            }
            Kind::Haproxy => start_configured(kind, rig, haproxy_conf, &|conf| words(&["-db", "-f", conf]))?,
        };
        contender.hear_all().await
    }

    /// The gateway, with `more` providers and models in its config.
    pub async fn aulos_with(more: &str, rig: &Rig) -> io::Result<Self> {
        start_aulos(rig, more)?.hear_all().await
    }

    async fn hear_all(self) -> io::Result<Self> {
        self.hear(Speech::Small).await?;
        self.hear(Speech::Clip).await?;
        Ok(self)
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::pid)
    }

    /// Whether what it passes on is what was said, byte for byte.
    async fn hear(&self, speech: Speech) -> io::Result<()> {
        let deadline = Instant::now() + START_MAX;
        let mut connection = loop {
            match Connection::open(self.address).await {
                Ok(connection) => break connection,
                Err(error) if Instant::now() > deadline => return Err(self.complaint(&error.to_string())),
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        let heard = tokio::time::timeout(START_MAX, connection.fetch(&speech.request())).await;
        let heard = heard.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (status, body) = heard.map_err(|error| self.complaint(&error.to_string()))?;
        if status == 200 && body == speech.body() {
            return Ok(());
        }
        Err(self.complaint(&format!("answered {status}: {}", String::from_utf8_lossy(&body[..body.len().min(400)]))))
    }

    /// An error that carries the last words of the process.
    pub fn complaint(&self, what: &str) -> io::Error {
        let what = format!("({}) {what}", self.kind.name());
        self.process.as_ref().map_or_else(|| io::Error::other(what.clone()), |process| process.complaint(&what))
    }
}

fn start_aulos(rig: &Rig, more: &str) -> io::Result<Contender> {
    let conf = rig.file("aulos.toml");
    let state = rig.file("aulos-state");
    fs::create_dir_all(&state)?;
    fs::write(&conf, aulos_conf(rig, &state.display().to_string()) + more)?;
    let process = launch(Kind::Aulos, rig)?
        .args(["run", "--config"])
        .args([&conf])
        .env("BENCH_PROVIDER_KEY", PROVIDER_KEY)
        .start(&rig.file("aulos.log"))?;
    let (mut address, mut admin) = (None, None);
    process.line(|line| {
        address = address.or_else(|| listening(line));
        admin = admin.or_else(|| line.strip_prefix("admin on http://")?.parse().ok());
        (line.trim() == "ready").then_some(())
    })?;
    let address = address.ok_or_else(|| process.complaint("is ready but has not said where it listens"))?;
    Ok(Contender { kind: Kind::Aulos, address, admin, state_dir: Some(state), process: Some(process) })
}

fn start_bare(rig: &Rig) -> io::Result<Contender> {
    let process = launch(Kind::Bare, rig)?.args([rig.provider.to_string()]).start(&rig.file("bare.log"))?;
    let address = process.line(listening)?;
    Ok(Contender { kind: Kind::Bare, address, admin: None, state_dir: None, process: Some(process) })
}

/// One that is told its address, in a file.
fn start_configured(
    kind: Kind,
    rig: &Rig,
    text: fn(&Rig, SocketAddr) -> String,
    args: &dyn Fn(&str) -> Vec<String>,
) -> io::Result<Contender> {
    let address = free_address()?;
    let conf = rig.file(&format!("{}.conf", kind.name()));
    fs::write(&conf, text(rig, address))?;
    let log = rig.file(&format!("{}.log", kind.name()));
    let process = launch(kind, rig)?.args(args(&conf.display().to_string())).start(&log)?;
    Ok(Contender { kind, address, admin: None, state_dir: None, process: Some(process) })
}

fn launch(kind: Kind, rig: &Rig) -> io::Result<Launch> {
    let program = kind.program().ok_or_else(|| io::Error::other(format!("no program for {}", kind.name())))?;
    Ok(Launch::new(program).core(rig.pins.proxy))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn aulos() -> Option<PathBuf> {
    match std::env::var_os("AULOS") {
        Some(named) => Some(PathBuf::from(named)).filter(|file| file.is_file()),
        None => child::sibling("aulos"),
    }
}

/// Its limits are above their defaults for the soak's uploads alone; those of the bench are kept whole with either.
fn aulos_conf(rig: &Rig, state: &str) -> String {
    let hash: String = Sha256::digest(CLIENT_KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        r#"[server]
listen = ["127.0.0.1:0"]
admin = "127.0.0.1:0"
state_dir = "{state}"
threads = 1

[limits]
upload_body = "256MiB"

[spool]
replay_bytes = "256MiB"
total_bytes = "{SPOOL_BYTES_MAX}B"

[providers.openai]
kind = "openai"
base_url = "http://{provider}/v1"
keys = ["${{BENCH_PROVIDER_KEY}}"]

[models."{MODEL}"]
routes = ["openai/{PROVIDER_MODEL}"]

[models."{STREAMED_MODEL}"]
routes = ["openai/{PROVIDER_MODEL}"]
replay_bytes = "0"

[keys.bench]
sha256 = "{hash}"
passthrough = true
"#,
        provider = rig.provider
    )
}

/// Buffers wide enough for a clip: with its own of 4 KiB nginx loses half its speed. `proxy_buffering off` is
/// what makes it stream, and `proxy_request_buffering off` what makes it stream uploads.
fn nginx_conf(rig: &Rig, address: SocketAddr) -> String {
    let (dir, provider) = (rig.dir().display(), rig.provider);
    format!(
        "daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/nginx-body;
  proxy_temp_path {dir}/nginx-proxy;
  fastcgi_temp_path {dir}/nginx-fastcgi;
  uwsgi_temp_path {dir}/nginx-uwsgi;
  scgi_temp_path {dir}/nginx-scgi;
  keepalive_requests 1000000000;
  client_body_buffer_size 256k;
  map $http_upgrade $connection_up {{ default Upgrade; '' ''; }}
  upstream provider {{ server {provider}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen {address} backlog=4096;
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_up;
      proxy_request_buffering off;
      client_max_body_size 0;
      proxy_buffering off;
      proxy_buffer_size 128k;
      proxy_buffers 4 128k;
      proxy_busy_buffers_size 256k;
    }}
  }}
}}
"
    )
}

/// `http-no-delay`: without it pieces of an answer wait up to 200 ms for company. Its buffers stay as they come
/// (wider ones were no faster), and so does splicing, off: it would spare a third of the processor time of a
/// clip for the same number of requests a second, by never looking at what passes.
fn haproxy_conf(rig: &Rig, address: SocketAddr) -> String {
    let provider = rig.provider;
    format!(
        "global
  nbthread 1
  maxconn 4000
defaults
  mode http
  option http-keep-alive
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 75s
  timeout server 75s
  timeout tunnel 75s
frontend clients
  bind {address} backlog 4096
  default_backend provider
backend provider
  server provider {provider}
"
    )
}
