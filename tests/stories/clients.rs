//! Real clients, as they are today: openai-python, openai-node, the SDKs of ElevenLabs and Deepgram, and curl, against
//! providers that do what they ask for.
//!
//! What the SDKs do stands in `tests/clients`; here are the providers, and what they and the records saw of it.

mod curl;
mod native;
mod speech;
mod typist;
mod uploads;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::support::{Gateway, KEY};

/// A script that takes longer hangs. It takes a few seconds, most of them for what it imports or for long uploads.
const SCRIPT_TIME_MAX: Duration = Duration::from_secs(180);

/// An SDK, and what runs it.
#[derive(Clone, Copy)]
enum Sdk {
    Python,
    Node,
}

impl Sdk {
    /// The command that runs `script` of `tests/clients`. `dir`: for what has to stand beside it.
    fn command(self, script: &str, dir: &Path) -> Command {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        match self {
            Self::Python => {
                let mut command = Command::new(installed("venv").join("bin/python"));
                command.arg("-B").arg(scripts.join(format!("{script}.py")));
                command
            }
            Self::Node => {
                // Modules are looked for beside the script.
                let modules = installed("node").join("node_modules");
                let script = format!("{script}.mjs");
                for name in [&*script, "common.mjs"] {
                    std::fs::copy(scripts.join(name), dir.join(name)).expect("copied");
                }
                std::os::unix::fs::symlink(modules, dir.join("node_modules")).expect("linked");
                let mut command = Command::new(node());
                command.arg(dir.join(script));
                command
            }
        }
    }
}

/// Something that `tests/clients/install` has put there.
fn installed(what: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(what);
    assert!(path.join("stamp").exists(), "{what} is not installed: run `make test`, or `tests/clients/install`");
    path
}

/// The system's, or one of its own where that is too old: `tests/clients/install` has chosen.
fn node() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/node-bin");
    assert!(path.exists(), "there is no node: run `make test`, or `tests/clients/install`");
    path
}

/// Runs a script to its end. Every check in `expected` has to be there, once, and well, and no other.
async fn perform(mut command: Command, gateway: &Gateway, env: &[(&str, &str)], mut expected: Vec<&str>) {
    let inherited = ["PATH", "HOME"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command
        .env_clear()
        .envs(inherited)
        .env("GATEWAY", format!("http://{}", gateway.addr()))
        .env("API_KEY", KEY)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(SCRIPT_TIME_MAX, command.output()).await;
    let output = output.expect("the script ends in time").expect("the script starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}\n{errors}", output.status);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
    let mut checks = BTreeMap::new();
    for line in &lines {
        match line["check"].as_str() {
            None => {
                println!("{}", ["sdk", "version", "runtime"].map(|key| line[key].as_str().unwrap_or("?")).join(" "))
            }
            Some(name) => assert!(checks.insert(name, line).is_none(), "{name} ran twice"),
        }
    }
    let failed: Vec<_> = checks.values().filter(|line| line["ok"] != true).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{}\n{errors}\n{}", failed.join("\n"), gateway.log());
    expected.sort_unstable();
    assert_eq!(checks.into_keys().collect::<Vec<_>>(), expected, "{errors}");
}

/// What a provider remembers from one request to the next.
#[derive(Default)]
struct Memory {
    attempts: Mutex<HashMap<String, usize>>,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Memory {
    /// Where a take waits until its client says that it may go on.
    fn gate(&self, tag: &str) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().expect("no story panics with it");
        Arc::clone(gates.entry(tag.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(0))))
    }

    async fn pass(&self, tag: &str) {
        self.gate(tag).acquire().await.expect("never closed").forget();
    }

    /// How often the same was asked for, this time included.
    fn count(&self, take: &str) -> usize {
        let mut attempts = self.attempts.lock().expect("no story panics with it");
        let count = attempts.entry(take.to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// An answer with what real ones have in their head.
fn whole(status: &str, media: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {}\r\nX-Request-Id: req_vendor\r\n\
         Set-Cookie: a=b\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn chunked(media: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n\r\n")
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn event(data: &Value) -> Vec<u8> {
    chunk(format!("data: {data}\n\n").as_bytes())
}

fn refusal(message: &str, param: Option<&str>, code: &str) -> Value {
    let kind = if code == "server_error" { code } else { "invalid_request_error" };
    json!({ "message": message, "type": kind, "param": param, "code": code })
}
