//! The gateway as an operator starts it: the binary, a config file, its standard output.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{Answer, Client, KEY, PROVIDER_KEY, Vendor, sha256, soon, until};

/// A config under construction.
#[derive(Clone)]
pub(crate) struct Conf {
    server: String,
    rest: String,
    keys: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    through: Vec<String>,
}

impl Conf {
    /// One listener on loopback, one key, no provider.
    pub(crate) fn new() -> Self {
        Self {
            server: "listen = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\n".into(),
            rest: String::new(),
            keys: format!("[keys.test]\nsha256 = \"{}\"\n", sha256(KEY)),
            args: Vec::new(),
            env: Vec::new(),
            through: Vec::new(),
        }
    }

    /// A provider called `openai` at `vendor`, with its credential.
    pub(crate) fn upstream(self, vendor: &Vendor) -> Self {
        let url = vendor.base_url();
        self.with(&format!(
            "[providers.openai]\nkind = \"openai\"\nbase_url = \"{url}\"\nkeys = [\"${{PROVIDER_KEY}}\"]\n"
        ))
    }

    /// More tables.
    pub(crate) fn with(mut self, toml: &str) -> Self {
        self.rest.push_str(toml);
        self.rest.push('\n');
        self
    }

    /// Lines of `[server]`.
    pub(crate) fn server(mut self, toml: &str) -> Self {
        self.server.push_str(toml);
        self.server.push('\n');
        self
    }

    /// Instead of `[server]`'s first lines.
    pub(crate) fn listen(mut self, toml: &str) -> Self {
        self.server = format!("admin = \"127.0.0.1:0\"\n{toml}\n");
        self
    }

    /// Instead of the key that every config has.
    pub(crate) fn keys(mut self, toml: &str) -> Self {
        self.keys = toml.to_owned();
        self
    }

    /// Another argument of `aulos run`.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Another environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Started by another command, which becomes the gateway: `env`, for one.
    pub(crate) fn through(mut self, command: &[&str]) -> Self {
        self.through = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    fn text(&self, dir: &Path) -> String {
        let state = dir.join("state");
        format!("[server]\nstate_dir = \"{}\"\n{}\n{}\n{}", state.display(), self.server, self.rest, self.keys)
    }
}

/// A gateway that runs. It is killed when the story ends, however it ends.
pub(crate) struct Gateway {
    pub(crate) child: Child,
    pub(crate) dir: PathBuf,
    /// `host:port` of the public listeners.
    pub(crate) addrs: Vec<String>,
    pub(crate) admin: String,
}

impl Gateway {
    pub(crate) async fn spawn(conf: Conf) -> Self {
        Self::spawn_in(&scratch(), conf).await
    }

    /// Starts it with the state a former one has left in `dir`.
    pub(crate) async fn spawn_in(dir: &Path, conf: Conf) -> Self {
        std::fs::write(dir.join("aulos.toml"), conf.text(dir)).expect("written");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("opened");
        let mut child = command_through(&conf.through, dir)
            .args(["run", "--config"])
            .arg(dir.join("aulos.toml"))
            .args(&conf.args)
            .envs(conf.env.clone())
            .stderr(log)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (mut addrs, mut admin) = (Vec::new(), String::new());
        soon("the gateway is ready", async {
            while let Some(line) = lines.next_line().await.expect("readable") {
                let addr = line.rsplit("://").next().unwrap_or_default().to_owned();
                match line.as_str() {
                    "ready" => return,
                    line if line.starts_with("listening on ") => addrs.push(addr),
                    line if line.starts_with("admin on ") => admin = addr,
                    line => unreachable!("an unexpected line: {line}"),
                }
            }
            unreachable!("it ended: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
        })
        .await;
        Self { child, dir: dir.to_owned(), addrs, admin }
    }

    /// Where clients connect to.
    pub(crate) fn addr(&self) -> &str {
        &self.addrs[0]
    }

    /// A connection of a client.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addr()).await
    }

    /// One request with the test's key, on a connection of its own.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.client().await.post(path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        self.client().await.send(head.as_bytes()).await.answer().await
    }

    /// A speech request that is in order.
    pub(crate) async fn speak(&self) -> Answer {
        self.post("/v1/audio/speech", SPEECH).await
    }

    /// A page of the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nHost: aulos\r\n\r\n");
        Client::connect(&self.admin).await.send(head.as_bytes()).await.answer().await
    }

    /// The value of a metric, its labels written as `/metrics` has them. 0: there is none yet.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.admin("/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0)
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_is(&self, name: &str, want: u64) {
        soon(&format!("{name} {want}"), async {
            while self.metric(name).await != want {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("still runs")
    }

    /// Bytes of memory, by one of the names in `/proc/PID/status`: VmRSS, VmHWM.
    pub(crate) fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("there");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// Sends a signal by its name: TERM, HUP, USR1, KILL.
    pub(crate) fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.expect("kill is there").success());
    }

    /// Replaces the config file; the gateway hears of it by SIGHUP.
    pub(crate) fn rewrite(&self, conf: &Conf) {
        std::fs::write(self.dir.join("aulos.toml"), conf.text(&self.dir)).expect("written");
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        soon("the gateway ends", self.child.wait()).await.expect("waited for")
    }

    /// Stops it with SIGTERM and waits for its end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exit().await
    }

    /// The lines it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The records in `usage` or `audit`, as they are on disk now. A line that is just being written is left out.
    pub(crate) fn records(&self, kind: &str) -> Vec<Value> {
        let path = self.dir.join("state/records").join(format!("{kind}.jsonl"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("every line is a record")).collect()
    }

    /// Waits for the record of this kind of the request that got `answer`.
    pub(crate) async fn record_of(&self, kind: &str, answer: &Answer) -> Value {
        let id = answer.header("x-aulos-request-id").expect("every answer has one");
        let path = self.dir.join("state/records").join(format!("{kind}.jsonl"));
        until(&format!("the {kind} record of {id}"), || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.lines().filter(|line| line.contains(id)).find_map(|line| serde_json::from_str(line).ok())
        })
        .await
    }

    /// Waits until there are `count` records of this kind, and gives them.
    pub(crate) async fn recorded(&self, kind: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} {kind} records"), || Some(self.records(kind)).filter(|all| all.len() >= count)).await
    }
}

/// A speech request that is in order.
pub(crate) const SPEECH: &str = r#"{"model":"openai/tts-1","input":"Hello","voice":"alloy"}"#;

/// The binary, with the environment a story gives it and no other.
pub(crate) fn command(dir: &Path) -> Command {
    command_through(&[], dir)
}

fn command_through(through: &[String], dir: &Path) -> Command {
    let mut words = through.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_aulos")]);
    let mut command = Command::new(words.next().expect("at least the binary"));
    command.args(words);
    command.current_dir(dir).env_clear().env("PROVIDER_KEY", PROVIDER_KEY);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// A folder of one story's own.
pub(crate) fn scratch() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("aulos-story-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).expect("made");
    dir
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}
