//! The process: how it starts, what signals do to it, how it ends, and what is left on disk then.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::support::client::post;
use super::support::gateway::{SPEECH, command, scratch};
use super::support::{Answer, Client, Conf, Gateway, KEY, PROVIDER_KEY, Vendor, nobody_listens, sha256, soon, until};

/// "At once" for a process on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);
const SPEECH_PATH: &str = "/v1/audio/speech";

/// Clients that speak without a pause, one request after the other, each on a connection of its own.
struct Load {
    stop: watch::Sender<bool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Answer>>>,
}

impl Load {
    fn start(gateway: &Gateway, clients: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let answered = Arc::new(AtomicUsize::new(0));
        let client = || {
            let (addr, stopped, answered) = (gateway.addr().to_owned(), stopped.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut client = Client::connect(&addr).await;
                let mut answers = Vec::new();
                while !*stopped.borrow() {
                    let answer = client.post(SPEECH_PATH, SPEECH).await;
                    let goes_on = answer.complete;
                    answers.push(answer);
                    answered.fetch_add(1, Ordering::Relaxed);
                    if !goes_on {
                        break;
                    }
                }
                answers
            })
        };
        Self { stop, clients: (0..clients).map(|_| client()).collect(), answered }
    }

    /// Waits until so many more requests have been answered.
    async fn more(&self, count: usize) {
        let want = self.answered.load(Ordering::Relaxed) + count;
        until("answers under load", || (self.answered.load(Ordering::Relaxed) >= want).then_some(())).await;
    }

    /// Stops it, and gives every answer.
    async fn end(self) -> Vec<Answer> {
        self.stop.send(true).ok();
        let mut answers = Vec::new();
        for client in self.clients {
            answers.extend(soon("the client ends", client).await.expect("no client panics"));
        }
        answers
    }
}

/// A vendor that answers with `first ` at once and `second` when it is told to; asked for the model `silent`, it
/// says nothing until then.
async fn held_vendor() -> (Vendor, watch::Sender<bool>) {
    let (go, told) = watch::channel(false);
    let vendor = Vendor::start(move |request, mut wire| {
        let mut told = told.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 12\r\n\r\nfirst ";
            let silent = request.text().contains("silent");
            if !silent {
                wire.write(head).await;
            }
            told.wait_for(|told| *told).await.ok()?;
            if silent {
                wire.write(head).await;
            }
            wire.write("second").await;
            Some(wire)
        }
    })
    .await;
    (vendor, go)
}

/// Every line of a record file, which must be whole.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("readable");
    assert!(text.is_empty() || text.ends_with('\n'), "{} ends in mid-line", path.display());
    text.lines().map(|line| serde_json::from_str(line).expect("every line is a record")).collect()
}

fn ids(records: &[Value]) -> BTreeSet<String> {
    let ids: BTreeSet<String> = records.iter().filter_map(|record| record["id"].as_str()).map(str::to_owned).collect();
    assert_eq!(ids.len(), records.len(), "no record stands twice");
    ids
}

fn ids_of(answers: &[Answer]) -> BTreeSet<String> {
    let whole = answers.iter().filter(|answer| answer.complete);
    whole.filter_map(|answer| answer.header("x-aulos-request-id")).map(str::to_owned).collect()
}

/// Runs the binary to its end.
async fn run(dir: &Path, args: &[&str], stdin: &str) -> Output {
    let mut command = command(dir);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("starts");
    let mut input = child.stdin.take().expect("piped");
    // A verb that reads nothing may have ended already.
    input.write_all(stdin.as_bytes()).await.ok();
    drop(input);
    soon("the command ends", child.wait_with_output()).await.expect("waited for")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// SIGTERM

#[tokio::test]
async fn an_idle_gateway_ends_at_once_whatever_connections_are_open() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let whole = post(SPEECH_PATH, &[], SPEECH);
    for (label, signal, sent) in [
        ("no connection", "TERM", None),
        ("no connection, Ctrl-C", "INT", None),
        ("a connection that has said nothing", "TERM", Some("")),
        ("a connection that was used and is kept", "TERM", Some(whole.as_str())),
        ("half a head", "TERM", Some(&whole[..40])),
    ] {
        let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
        let mut client = None;
        if let Some(sent) = sent {
            let open = client.insert(gateway.client().await);
            open.send(sent.as_bytes()).await;
            if sent == whole {
                assert_eq!(open.answer().await.status, 200, "{label}");
            }
            gateway.metric_is("aulos_connections", 1).await;
        }
        let before = Instant::now();
        gateway.signal(signal);
        assert_eq!(gateway.exit().await.code(), Some(0), "{label}");
        assert!(before.elapsed() < AT_ONCE, "{label}: {:?}", before.elapsed());
        nobody_listens(gateway.addr()).await;
        if let Some(mut client) = client {
            assert_eq!(text(&client.rest().await), "", "{label}: it is closed without a word");
        }
    }
}

#[tokio::test]
async fn running_requests_end_whole_while_new_ones_are_refused() {
    let (vendor, go) = held_vendor().await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut begun = gateway.client().await;
    let head = begun.send(post(SPEECH_PATH, &[], SPEECH).as_bytes()).await.head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("12")));
    let mut body = begun.piece().await;
    let mut waiting = gateway.client().await;
    waiting.send(post(SPEECH_PATH, &[], &SPEECH.replace("tts-1", "silent")).as_bytes()).await;
    vendor.received(2).await;
    let mut idle = gateway.client().await;
    gateway.signal("TERM");
    nobody_listens(gateway.addr()).await;
    assert_eq!(text(&idle.rest().await), "", "an idle connection does not hold it up");
    let ready = gateway.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["checks"]["accepting"]), (503, &false.into()), "the operator can look on");
    assert_eq!(gateway.admin("/livez").await.status, 200);
    go.send(true).expect("the vendor is there");
    body.extend(begun.rest().await);
    assert_eq!(text(&body), "first second");
    let answer = waiting.answer().await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "first second", true));
    assert_eq!(answer.header("connection"), Some("close"), "an answer that begins now is the last of its connection");
    let before = Instant::now();
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(before.elapsed() < AT_ONCE, "{:?}", before.elapsed());
    for kind in ["usage", "audit"] {
        let records = lines(&gateway.dir.join(format!("state/records/{kind}.jsonl")));
        assert_eq!(records.len(), 2, "{kind}");
        assert!(records.iter().all(|record| record["end"] == "complete"), "{records:?}");
    }
}

#[tokio::test]
async fn what_has_not_ended_at_the_drain_limit_is_cut_and_recorded() {
    const STREAMS: usize = 100;
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.write("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
        wire.gone().await;
        None
    })
    .await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor).server("drain = \"300ms\"")).await;
    let mut clients = Vec::new();
    for _ in 0..STREAMS {
        let mut client = gateway.client().await;
        let head = client.send(post(SPEECH_PATH, &[], SPEECH).as_bytes()).await.head().await;
        assert_eq!(head.status, 200);
        assert!(!client.piece().await.is_empty());
        clients.push(client);
    }
    let before = Instant::now();
    assert_eq!(gateway.stop().await.code(), Some(0));
    assert!(before.elapsed() >= Duration::from_millis(300), "they had their time");
    for mut client in clients {
        assert_eq!(text(&client.rest().await), "", "no clean end");
    }
    vendor.closed(STREAMS).await;
    for kind in ["usage", "audit"] {
        let records = lines(&gateway.dir.join(format!("state/records/{kind}.jsonl")));
        assert_eq!(ids(&records).len(), STREAMS, "{kind}: {}", gateway.log());
        assert!(records.iter().all(|record| record["end"] == "drained"), "{records:?}");
    }
}

#[tokio::test]
async fn a_supervisor_is_told_when_it_is_ready_and_when_it_stops() {
    let dir = scratch();
    let socket = tokio::net::UnixDatagram::bind(dir.join("notify")).expect("binds");
    let path = dir.join("notify").display().to_string();
    let mut gateway = Gateway::spawn_in(&dir, Conf::new().env("NOTIFY_SOCKET", &path)).await;
    let mut heard = [0; 256];
    for want in ["READY=1", "STOPPING=1"] {
        let length = soon(want, socket.recv(&mut heard)).await.expect("heard");
        assert_eq!(text(&heard[..length]).trim(), want);
        if want == "READY=1" {
            gateway.signal("TERM");
        }
    }
    assert!(gateway.exit().await.success());
}

// SIGHUP

const RELOADED: &str = "aulos_config_reloads_total{result=\"ok\"}";
const NOT_RELOADED: &str = "aulos_config_reloads_total{result=\"failed\"}";
const LAST_RELOAD: &str = "aulos_config_last_reload_successful";

#[tokio::test]
async fn a_new_config_is_for_new_requests() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let alias = |model: &str| Conf::new().upstream(&vendor).with(&format!("[aliases]\nvoice = \"openai/{model}\""));
    let gateway = Gateway::spawn(alias("old")).await;
    let body = SPEECH.replace("openai/tts-1", "voice");
    let request = post(SPEECH_PATH, &[], &body);
    let (first, second) = request.split_at(request.len() - 10);
    let mut running = gateway.client().await;
    running.send(first.as_bytes()).await;
    gateway.metric_is("aulos_requests_in_flight", 1).await;
    let new_key = "another key";
    gateway.rewrite(&alias("new").keys(&format!("[keys.new]\nsha256 = \"{}\"\n", sha256(new_key))));
    gateway.signal("HUP");
    gateway.metric_is(RELOADED, 1).await;
    assert_eq!(gateway.metric(LAST_RELOAD).await, 1);
    assert_eq!(gateway.speak().await.refusal(), (401, "invalid_api_key".to_owned()), "the old key is gone");
    let answer = gateway.client().await.send(request.replace(KEY, new_key).as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.header("x-aulos-model")), (200, Some("new")));
    let answer = running.send(second.as_bytes()).await.answer().await;
    assert_eq!((answer.status, answer.header("x-aulos-model")), (200, Some("old")), "it keeps what it began with");
    assert_eq!(running.post(SPEECH_PATH, &body).await.status, 401, "but its connection does not");
}

#[tokio::test]
async fn a_bad_config_changes_nothing_and_the_log_says_why() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let good = Conf::new().upstream(&vendor);
    let gateway = Gateway::spawn(good.clone()).await;
    let file = gateway.dir.join("aulos.toml");
    assert_eq!(gateway.metric(LAST_RELOAD).await, 1);
    let absent = "[providers.other]\nkind = \"openai\"\nkeys = [\"${NOT_THERE}\"]";
    let rows = [
        // What is written in such a line is anybody's guess, so that it is drawn without its words.
        ("not TOML", good.clone().with("in_flight = = 3"), "in_flight = = 3", ["not TOML", "| ********* = = *"]),
        (
            "unknown key",
            good.clone().with("[limits]\nin_fligth = 3"),
            "in_fligth = 3",
            ["| in_fligth = ", "did you mean `in_flight`?"],
        ),
        ("unset variable", good.clone().with(absent), "keys = [\"${NOT_THERE}\"]", ["| keys = ", "NOT_THERE"]),
        ("no key", good.clone().keys(""), "", ["no key is configured", ""]),
        ("no file", good.clone(), "", ["cannot read", "aulos.toml"]),
    ];
    let mut told = gateway.log().len();
    for (count, (label, conf, line, why)) in rows.into_iter().enumerate() {
        gateway.rewrite(&conf);
        if label == "no file" {
            std::fs::remove_file(&file).expect("removed");
        }
        gateway.signal("HUP");
        gateway.metric_is(NOT_RELOADED, count as u64 + 1).await;
        assert_eq!(gateway.metric(LAST_RELOAD).await, 0, "{label}");
        let log = gateway.log().split_off(told);
        told += log.len();
        assert!(log.contains("ERROR") && why.iter().all(|why| log.contains(why)), "{label}: {log}");
        if !line.is_empty() {
            let text = std::fs::read_to_string(&file).expect("readable");
            let number = text.lines().position(|have| have == line).expect("it is there") + 1;
            assert!(log.contains(&format!("aulos.toml:{number}:")), "{label}: {log}");
        }
        assert_eq!(gateway.speak().await.status, 200, "{label}");
    }
    gateway.rewrite(&good);
    gateway.signal("HUP");
    gateway.metric_is(RELOADED, 1).await;
    assert_eq!(gateway.metric(LAST_RELOAD).await, 1);
}

#[tokio::test]
async fn reloads_good_and_bad_fail_no_request() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let load = Load::start(&gateway, 4);
    load.more(4).await;
    for round in 0..10 {
        let good = Conf::new().upstream(&vendor).with(&format!("[aliases]\nvoice = \"openai/round-{round}\""));
        for (conf, metric) in [(good.clone(), RELOADED), (good.with("[limits]\nin_fligth = 1"), NOT_RELOADED)] {
            gateway.rewrite(&conf);
            gateway.signal("HUP");
            gateway.metric_is(metric, round + 1).await;
            let answer = gateway.post(SPEECH_PATH, &SPEECH.replace("openai/tts-1", "voice")).await;
            let want = format!("round-{round}");
            assert_eq!((answer.status, answer.header("x-aulos-model")), (200, Some(want.as_str())), "{metric}");
            load.more(4).await;
        }
    }
    let answers = load.end().await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete), "{} answers", answers.len());
}

// Records

#[tokio::test]
async fn a_rotation_loses_no_record() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let records = gateway.dir.join("state/records");
    let path = |kind: &str, end: &str| records.join(format!("{kind}.jsonl{end}"));
    let load = Load::start(&gateway, 4);
    for end in [".1", ".2"] {
        load.more(8).await;
        for kind in ["usage", "audit"] {
            std::fs::rename(path(kind, ""), path(kind, end)).expect("renamed");
        }
        load.more(4).await;
        gateway.signal("USR1");
        until("new files", || ["usage", "audit"].iter().all(|kind| path(kind, "").exists()).then_some(())).await;
    }
    load.more(8).await;
    let answers = load.end().await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete));
    assert!(gateway.stop().await.success());
    for kind in ["usage", "audit"] {
        let parts = [".1", ".2", ""].map(|end| lines(&path(kind, end)));
        assert!(parts.iter().all(|part| !part.is_empty()), "{kind}: each file has its share");
        assert_eq!(ids(&parts.concat()), ids_of(&answers), "{kind}");
    }
}

#[tokio::test]
async fn a_killed_gateway_leaves_records_that_the_next_one_goes_on_with() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let dir = scratch();
    let conf = Conf::new().upstream(&vendor);
    let mut killed = Gateway::spawn_in(&dir, conf.clone()).await;
    let load = Load::start(&killed, 8);
    load.more(50).await;
    let seen = ["usage", "audit"].map(|kind| ids(&killed.records(kind)));
    assert!(seen.iter().all(|seen| !seen.is_empty()));
    killed.signal("KILL");
    assert_eq!(killed.exit().await.code(), None, "it could not defend itself");
    let answers = load.end().await;
    let mut next = Gateway::spawn_in(&dir, conf).await;
    let answer = next.speak().await;
    assert_eq!(answer.status, 200);
    let new = answer.header("x-aulos-request-id").expect("every answer has one").to_owned();
    assert!(next.stop().await.success());
    for (kind, seen) in ["usage", "audit"].into_iter().zip(seen) {
        let records = lines(&dir.join(format!("state/records/{kind}.jsonl")));
        assert_eq!(records.last().and_then(|last| last["id"].as_str()), Some(new.as_str()), "{kind}: it is appended");
        let kept = ids(&records);
        assert!(kept.is_superset(&seen), "{kind}: what was there is still there");
        // Whoever had an answer has asked; a record of anything else would be made up.
        assert!(kept.len() <= answers.len() + 1, "{kind}: {} records of {} requests", kept.len(), answers.len());
    }
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_and_said() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let dir = scratch();
    let conf = Conf::new().upstream(&vendor);
    let mut before = Gateway::spawn_in(&dir, conf.clone()).await;
    assert_eq!(before.speak().await.status, 200);
    assert!(before.stop().await.success());
    let path = |kind: &str| dir.join(format!("state/records/{kind}.jsonl"));
    let torn = r#"{"v":1,"type":"usage","ts":"2026-11-2"#;
    let whole = ["usage", "audit"].map(|kind| {
        let whole = std::fs::read_to_string(path(kind)).expect("readable");
        std::fs::write(path(kind), format!("{whole}{torn}")).expect("written");
        whole
    });
    let mut after = Gateway::spawn_in(&dir, conf).await;
    for (kind, whole) in ["usage", "audit"].into_iter().zip(&whole) {
        assert_eq!(&std::fs::read_to_string(path(kind)).expect("readable"), whole);
        let said = format!("{kind}.jsonl: {} bytes of a line that was never finished", torn.len());
        assert!(after.log().contains(&said), "{}", after.log());
    }
    assert_eq!(after.speak().await.status, 200);
    assert!(after.stop().await.success());
    assert_eq!((lines(&path("usage")).len(), lines(&path("audit")).len()), (2, 2));
}

/// A gateway whose usage records can be opened, and never written.
async fn with_a_full_disk(vendor: &Vendor) -> Gateway {
    let dir = scratch();
    std::fs::create_dir_all(dir.join("state/records")).expect("made");
    std::os::unix::fs::symlink("/dev/full", dir.join("state/records/usage.jsonl")).expect("linked");
    Gateway::spawn_in(&dir, Conf::new().upstream(vendor)).await
}

#[tokio::test]
async fn nothing_is_forwarded_while_records_cannot_be_written() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = with_a_full_disk(&vendor).await;
    assert_eq!(gateway.get("/readyz").await.status, 200);
    assert_eq!(gateway.speak().await.status, 200, "nobody knows yet");
    gateway.metric_is("aulos_records_writable", 0).await;
    for _ in 0..3 {
        let answer = gateway.speak().await;
        assert_eq!(answer.refusal(), (503, "records_unavailable".to_owned()));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(vendor.requests().len(), 1);
    for ready in [gateway.get("/readyz").await, gateway.admin("/readyz").await] {
        assert_eq!((ready.status, &ready.json()["checks"]["records"]), (503, &false.into()));
    }
    assert_eq!((gateway.get("/livez").await.status, gateway.admin("/livez").await.status), (200, 200));
    assert_eq!(gateway.metric("aulos_unrecorded_refusals_total").await, 3);
    let log = gateway.log();
    assert!(log.contains("records cannot be written") && log.contains("No space left on device"), "{log}");
}

#[tokio::test]
async fn a_full_disk_does_not_keep_the_gateway_from_ending() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let mut gateway = with_a_full_disk(&vendor).await;
    assert_eq!(gateway.speak().await.status, 200);
    gateway.metric_is("aulos_records_writable", 0).await;
    assert_eq!(gateway.stop().await.code(), Some(1), "a record is lost");
    let log = gateway.log();
    assert!(log.contains("records could not be written"), "{log}");
}

#[tokio::test]
async fn records_go_on_where_they_stopped_when_there_is_space_again() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    // A limit for the size of files stands for the disk: the record that reaches it is written in part.
    let conf = Conf::new().upstream(&vendor).through(&["env", "--ignore-signal=XFSZ"]);
    let mut gateway = Gateway::spawn(conf).await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(gateway.speak().await);
    }
    gateway.recorded("audit", 20).await;
    let path = |kind: &str| gateway.dir.join(format!("state/records/{kind}.jsonl"));
    let longest = ["usage", "audit"].map(|kind| std::fs::metadata(path(kind)).expect("is there").len());
    let limit = |soft: &str| {
        let (pid, limit) = (gateway.pid().to_string(), format!("--fsize={soft}:"));
        let set = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(set.expect("prlimit is there").success());
    };
    limit(&(longest.into_iter().max().unwrap_or_default() + 100).to_string());
    // The usage file may have room for some more.
    let refused = soon("records are refused", async {
        loop {
            let answer = gateway.speak().await;
            if answer.status != 200 {
                return answer;
            }
            answers.push(answer);
        }
    });
    assert_eq!(refused.await.refusal(), (503, "records_unavailable".to_owned()));
    // It tries again and again; between two tries the file ends with a whole line.
    until("a file of whole lines", || std::fs::read_to_string(path("audit")).ok()?.ends_with('\n').then_some(())).await;
    limit("unlimited");
    gateway.metric_is("aulos_records_writable", 1).await;
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    answers.push(gateway.speak().await);
    assert!(gateway.stop().await.success());
    for kind in ["usage", "audit"] {
        let records = lines(&gateway.dir.join(format!("state/records/{kind}.jsonl")));
        assert_eq!(ids(&records), ids_of(&answers), "{kind}: each that was served, and no other");
    }
}

// Starting, and the other verbs

#[tokio::test]
async fn what_keeps_it_from_starting_is_said_at_once() {
    let dir = scratch();
    std::fs::write(dir.join("file"), "").expect("written");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let taken = taken.local_addr().expect("bound").to_string();
    let state = format!("state_dir = \"{}\"", dir.join("state").display());
    let keys = format!("[keys.test]\nsha256 = \"{}\"", sha256(KEY));
    let encrypted = "{ addr = \"127.0.0.1:0\", cert = \"no.pem\", key = \"no.pem\" }";
    let free = "listen = [\"127.0.0.1:0\"]\nadmin = false";
    let rows: [(&str, String, &[&str]); 8] = [
        (
            "the port is taken",
            format!("[server]\nlisten = [\"{taken}\"]\nadmin = false\n{state}\n{keys}"),
            &["cannot listen on", &taken, "something listens there already"],
        ),
        (
            "the admin's port is taken",
            format!("[server]\nlisten = [\"127.0.0.1:0\"]\nadmin = \"{taken}\"\n{state}\n{keys}"),
            &["cannot listen on", &taken],
        ),
        (
            "no key",
            format!("[server]\n{free}\n{state}\n"),
            &["no key is configured", "aulos keys create", "--insecure"],
        ),
        (
            "several mistakes",
            format!("[server]\n{free}\ndrian = \"1s\"\n{state}\n[timeouts]\nidle = \"soon\"\n{keys}\nallow = [\"x/\"]"),
            &["drian", "did you mean `drain`?", "aulos.toml:4:", "soon", "aulos.toml:7:", "aulos.toml:10:"],
        ),
        (
            "a provider's key that is empty",
            format!("[server]\n{free}\n{state}\n[providers.p]\nkind = \"openai\"\nkeys = [\"${{EMPTY}}\"]\n{keys}"),
            &["EMPTY", "aulos.toml:7:"],
        ),
        (
            "a folder that cannot be made",
            format!("[server]\n{free}\nstate_dir = \"{}\"\n{keys}", dir.join("file/below").display()),
            &["records cannot be written to", "file/below", "server.state_dir"],
        ),
        ("no certificate", format!("[server]\nadmin = false\nlisten = [{encrypted}]\n{state}\n{keys}"), &["no.pem"]),
        ("an empty file", String::new(), &["no key is configured"]),
    ];
    for (label, config, wanted) in rows {
        std::fs::write(dir.join("aulos.toml"), config).expect("written");
        let before = Instant::now();
        let output = run(&dir, &["run", "--config", "aulos.toml"], "").await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{label}: {said}");
        assert!(before.elapsed() < AT_ONCE, "{label}: {:?}", before.elapsed());
        wanted.iter().for_each(|want| assert!(said.contains(want), "{label}: no {want} in\n{said}"));
        assert!(!text(&output.stdout).contains("ready"), "{label}");
    }
    let output = run(&dir, &["run", "--config", "elsewhere.toml"], "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot read `elsewhere.toml`"), "{}", text(&output.stderr));
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn without_keys_everybody_is_served_where_the_operator_says_so() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys("").arg("--insecure")).await;
    let request = post(SPEECH_PATH, &[], SPEECH).replace(&format!("Authorization: Bearer {KEY}\r\n"), "");
    assert_eq!(gateway.client().await.send(request.as_bytes()).await.answer().await.status, 200);
    assert!(gateway.log().contains("everybody who reaches the listener is served"), "{}", gateway.log());
    assert!(gateway.stop().await.success());
    assert_eq!(gateway.records("usage")[0]["key"], "anonymous");
    // A flag that is left over does not open what has keys.
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).arg("--insecure")).await;
    assert_eq!(gateway.client().await.send(request.as_bytes()).await.answer().await.status, 401);
}

#[tokio::test]
async fn check_reads_a_config_and_starts_nothing() {
    let dir = scratch();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let state = dir.join("state");
    let config = |more: &str| {
        let addr = taken.local_addr().expect("bound");
        let server = format!("[server]\nlisten = [\"{addr}\"]\nstate_dir = \"{}\"\n", state.display());
        std::fs::write(dir.join("aulos.toml"), server + more).expect("written");
    };
    config("[providers.p]\nkind = \"openai\"\nkeys = [\"${PROVIDER_KEY}\"]\n[aliases]\na = \"p/m\"\n");
    let output = run(&dir, &["check", "--config", "aulos.toml"], "").await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(said.contains("aulos.toml is fine: 1 providers, 0 models, 1 aliases, 0 keys"), "{said}");
    assert!(said.contains("will not serve without --insecure"), "{said}");
    assert!(!state.exists());
    config("drian = 1\n[limits]\nin_flight = \"many\"\n[aliases]\na = \"nothing\"\n");
    let output = run(&dir, &["check", "--config", "aulos.toml"], "").await;
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
    for want in ["aulos.toml:4:", "aulos.toml:6:", "aulos.toml:8:", "did you mean `drain`?", "`nothing`"] {
        assert!(said.contains(want), "no {want} in\n{said}");
    }
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn a_made_key_is_shown_once_and_serves() {
    let dir = scratch();
    let output = run(&dir, &["keys", "create", "mobile", "--user-path", "/team/mobile"], "").await;
    assert_eq!(output.status.code(), Some(0));
    let shown = text(&output.stdout);
    let (key, table) = shown.split_once("\n\n").expect("the key, and the lines for the config");
    assert!(key.starts_with("aulos_") && key.len() > 40 && !table.contains(key), "{shown}");
    assert!(!text(&output.stderr).contains(key), "what is logged is not the key");
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let states = ["disabled = true", "expires = \"2020-01-01T00:00:00Z\""];
    let other = |n: usize| format!("[keys.other{n}]\nsha256 = \"{}\"\n{}\n", sha256(&format!("key {n}")), states[n]);
    let conf = Conf::new().upstream(&vendor).keys(&format!("{table}\n{}{}", other(0), other(1)));
    let mut gateway = Gateway::spawn_in(&dir, conf).await;
    let request = post(SPEECH_PATH, &[], SPEECH).replace(KEY, key);
    assert_eq!(gateway.client().await.send(request.as_bytes()).await.answer().await.status, 200);
    assert!(gateway.stop().await.success());
    let usage = &gateway.records("usage")[0];
    assert_eq!((&usage["key"], &usage["user_path"]), (&"mobile".into(), &"/team/mobile".into()));
    for (given, code, want) in [
        (key, 0, "`mobile`, valid, user path /team/mobile"),
        ("key 0", 1, "the key is disabled"),
        ("key 1", 1, "the key is expired"),
        ("key 2", 1, "this is no key of aulos.toml"),
        ("", 1, "this is no key of aulos.toml"),
    ] {
        let output = run(&dir, &["keys", "check", "--config", "aulos.toml"], &format!("{given}\n")).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(want), "{given}: {said}");
        assert!(given.is_empty() || !said.contains(given), "{said}");
    }
}

#[tokio::test]
async fn route_says_what_would_become_of_a_request() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let keys = format!("[keys.few]\nsha256 = \"{}\"\nallow = [\"other\"]\n", sha256("few"));
    let conf = Conf::new().upstream(&vendor).with("[aliases]\n\"tts-1\" = \"openai/gpt-4o-mini-tts\"").keys(&keys);
    let gateway = Gateway::spawn(conf).await;
    let body = SPEECH.replace("openai/tts-1", "tts-1");
    let alias = format!("1. openai/gpt-4o-mini-tts at {}/audio/speech", vendor.base_url());
    let rows: [(&[&str], i32, &str); 5] = [
        (&["--json", &body], 0, &alias),
        (&["--json", &body, "--key", "few"], 1, "403 model_access_denied"),
        (&["--json", "{"], 1, "400 invalid_json"),
        (&["-X", "GET", "/v1/models"], 0, "is made here"),
        (&["--key", "nobody"], 2, "no key of the config is called `nobody`"),
    ];
    for (args, code, want) in rows {
        let args = [&["route", "--config", "aulos.toml"], args].concat();
        let output = run(&gateway.dir, &args, "").await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(want), "{args:?}: {said}");
    }
    assert_eq!(vendor.connections(), 0, "nothing is sent");
    // Told where the admin listener is, it says how the provider fares in the service that runs.
    let toml = std::fs::read_to_string(gateway.dir.join("aulos.toml")).expect("the config");
    let admin = toml.replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{}\"", gateway.admin));
    std::fs::write(gateway.dir.join("known.toml"), admin).expect("written");
    let output = run(&gateway.dir, &["route", "--config", "known.toml", "--json", &body], "").await;
    let healthy = format!("peer      127.0.0.1:{} is healthy; its breaker is closed", vendor.port);
    assert!(text(&output.stdout).contains(&healthy), "{}", text(&output.stdout));
}

/// The allocator takes its settings by the name of a symbol, and says at the end which it has.
#[tokio::test]
async fn freed_memory_is_kept_for_a_second() {
    let dir = scratch();
    let mut asked = command(&dir);
    let output = asked.arg("--version").env("_RJEM_MALLOC_CONF", "stats_print:true").output().await.expect("runs");
    let said = text(&output.stderr);
    assert!(said.contains("opt.dirty_decay_ms: 1000 "), "{said}");
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn help_and_version_are_there_and_show_nobodys_key() {
    let dir = scratch();
    let version = format!("aulos {}\n", env!("CARGO_PKG_VERSION"));
    let rows: [(&[&str], i32, &[&str]); 8] = [
        (&["--version"], 0, &[&version]),
        (&["--help"], 0, &["run", "check", "route", "keys", "--version"]),
        (&["run", "--help"], 0, &["--config", "--insecure"]),
        (&["check", "--help"], 0, &["--config"]),
        (&["route", "--help"], 0, &["--key", "--json"]),
        (&["keys", "create", "--help"], 0, &["--user-path"]),
        (&[], 2, &["Usage"]),
        (&["rnu"], 2, &["unrecognized subcommand 'rnu'"]),
    ];
    for (args, code, wanted) in rows {
        let output = run(&dir, args, "").await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        wanted.iter().for_each(|want| assert!(said.contains(want), "{args:?}: no {want} in\n{said}"));
        assert!(!said.contains(PROVIDER_KEY), "{args:?}");
    }
    std::fs::remove_dir_all(dir).ok();
}

// Secrets

#[tokio::test]
async fn no_key_is_found_in_the_process_its_log_its_records_or_its_metrics() {
    let secret = "sk-from-a-file-0123456789abcdef";
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.answer("500 Oh", "application/json", r#"{"error":{"message":"no"}}"#).await;
        Some(wire)
    })
    .await;
    let dir = scratch();
    std::fs::write(dir.join("secret"), secret).expect("written");
    let provider = "[providers.openai]\nkind = \"openai\"\nkeys = [{ file = \"secret\" }]\nbase_url = ";
    let conf = Conf::new().with(&format!("{provider}\"{}\"", vendor.base_url()));
    // Even where the operator wants to hear everything.
    let mut gateway = Gateway::spawn_in(&dir, conf.env("RUST_LOG", "trace")).await;
    assert_eq!(gateway.speak().await.status, 500);
    let wrong = format!("{KEY}-mistyped");
    let request = post(SPEECH_PATH, &[], SPEECH).replace(KEY, &wrong);
    assert_eq!(gateway.client().await.send(request.as_bytes()).await.answer().await.status, 401);
    assert_eq!(vendor.requests()[0].header("authorization"), Some(format!("Bearer {secret}").as_str()));
    let metrics = gateway.admin("/metrics").await.text();
    let of_process = |name: &str| text(&std::fs::read(format!("/proc/{}/{name}", gateway.pid())).expect("readable"));
    let (cmdline, environ) = (of_process("cmdline"), of_process("environ"));
    assert!(gateway.stop().await.success());
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("readable");
    for (place, text) in [
        ("cmdline", cmdline),
        ("environ", environ),
        ("metrics", metrics),
        ("usage", read("state/records/usage.jsonl")),
        ("audit", read("state/records/audit.jsonl")),
        ("log", read("log")),
    ] {
        assert!(!text.is_empty(), "{place}");
        for key in [KEY, secret] {
            let line = text.lines().find(|line| line.contains(key));
            assert_eq!(line, None, "a key in {place}");
        }
    }
}

// What is in deploy/

const UNIT: &str = include_str!("../../deploy/aulos.service");

#[tokio::test]
async fn the_unit_is_hardened_and_in_order() {
    let dir = scratch();
    let file = dir.join("aulos.service");
    // The binary is not installed here; the one under test stands for it.
    std::fs::write(&file, UNIT.replace("/usr/bin/aulos", env!("CARGO_BIN_EXE_aulos"))).expect("written");
    let analyze = |args: &[&str]| {
        let output = std::process::Command::new("systemd-analyze").args(args).arg(&file).output();
        let output = output.expect("systemd-analyze is there: it comes with systemd");
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let (holds, said) = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"]);
    assert!(holds && said.contains("Overall exposure level"), "{said}");
    let (holds, said) = analyze(&["verify", "--man=no", "--recursive-errors=no"]);
    assert!(holds && !said.contains("aulos.service"), "{said}");
    let value = |key: &str| UNIT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    for (key, want) in [
        ("Type", "notify"),
        ("User", "aulos"),
        ("LimitCORE", "0"),
        ("ExecStart", "/usr/bin/aulos run --config /etc/aulos/aulos.toml"),
        ("ExecStartPre", "/usr/bin/aulos check --config /etc/aulos/aulos.toml"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("StateDirectory", "aulos"),
        ("TimeoutStopSec", "330s"),
    ] {
        assert_eq!(value(key), Some(want), "{key}");
    }
    let files: u64 = value("LimitNOFILE").and_then(|limit| limit.parse().ok()).expect("a number");
    assert!(files >= 65_536);
    std::fs::remove_dir_all(dir).ok();
}

#[tokio::test]
async fn the_service_user_has_no_shell() {
    let root = scratch();
    std::fs::create_dir(root.join("etc")).expect("made");
    let conf = std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/aulos.sysusers.conf"));
    let made = std::process::Command::new("systemd-sysusers")
        .arg(format!("--root={}", root.display()))
        .arg("-")
        .stdin(conf.expect("is there"))
        .output();
    assert!(made.expect("systemd-sysusers is there: it comes with systemd").status.success());
    let users = std::fs::read_to_string(root.join("etc/passwd")).expect("readable");
    let fields: Vec<&str> = users.trim_end().split(':').collect();
    assert_eq!((fields[0], fields[5], fields[6]), ("aulos", "/var/lib/aulos", "/usr/sbin/nologin"), "{users}");
    assert_ne!(fields[2], "0");
    std::fs::remove_dir_all(root).ok();
}

/// That renaming and this signal lose nothing is a story above; here it is said of the same files.
#[tokio::test]
async fn the_rotation_of_the_records_names_the_files_and_the_signal() {
    let rotation = include_str!("../../deploy/aulos.logrotate");
    let state = UNIT.lines().find_map(|line| line.strip_prefix("StateDirectory=")).expect("it has one");
    assert!(rotation.contains(&format!("/var/lib/{state}/records/*.jsonl {{")), "{rotation}");
    let told = rotation.lines().find(|line| line.contains("systemctl kill")).expect("the gateway is told");
    assert!(told.contains("-s USR1 aulos.service") && told.contains("--kill-who=main"), "{told}");
    // Both would write to the renamed file, or take it away, before the gateway has let it go.
    assert!(!rotation.contains("copytruncate") && rotation.contains("delaycompress"), "{rotation}");
}
