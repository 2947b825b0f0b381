//! No request costs more than a hundred plain ones, or a hundred times its bytes of memory; and reading JSON
//! takes time in proportion to its length, whatever its shape.

use crate::finding::Finding;
use aulos_bench::client::{Connection, READ_BYTES};
use aulos_bench::contender::Contender;
use aulos_bench::procfs;
use aulos_bench::speech::{CLIENT_KEY, Speech, post};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const FIGURE: &str = "dear";
const CPU_RATIO_MAX: f64 = 100.0;
const MEMORY_RATIO_MAX: f64 = 100.0;
/// Proportional is 1, quadratic is 4.
const GROWTH_MAX: f64 = 1.5;
const MEASURED: Duration = Duration::from_millis(1000);
const ANSWER_MAX: Duration = Duration::from_secs(5);
const KIB: usize = 1024;
const STALLED: usize = 64;
const STALLED_BYTES: usize = 64 * KIB;

pub(crate) async fn run(contender: &Contender) -> io::Result<Vec<Finding>> {
    let mut asker = Asker { contender, room: vec![0; READ_BYTES], connection: None, answered: 0, unanswered: 0 };
    // Twice: the first one fills pools.
    asker.cpu_each(&Speech::Small.request()).await?;
    let plain = asker.cpu_each(&Speech::Small.request()).await?;
    let mut findings = Vec::new();
    for (what, request) in dear_requests() {
        let ratio = asker.cpu_each(&request).await? / plain;
        let answered = asker.answered;
        let what = format!("CPU of {what}, answered {answered}, against a plain request of {:.0} µs", plain * 1e6);
        findings.push(Finding::at_most(FIGURE, what, ratio, CPU_RATIO_MAX, "×"));
    }
    for (what, pad) in SHAPES {
        let quarter = asker.cpu_each(&padded(pad, 256 * KIB)).await?;
        let half = asker.cpu_each(&padded(pad, 512 * KIB)).await?;
        let whole = asker.cpu_each(&padded(pad, 1024 * KIB)).await?;
        let growth = (half / quarter / 2.0).max(whole / quarter / 4.0);
        let (answered, quarter) = (asker.answered, quarter * 1e3);
        let what =
            format!("CPU a byte of {what}, answered {answered}, 512 KiB and 1 MiB against 256 KiB ({quarter:.2} ms)");
        findings.push(Finding::at_most(FIGURE, what, growth, GROWTH_MAX, "×"));
    }
    let what =
        format!("memory of {STALLED} requests that stop after {} KiB of brackets, by their bytes", STALLED_BYTES / KIB);
    findings.push(Finding::at_most(FIGURE, what, memory_ratio(contender).await?, MEMORY_RATIO_MAX, "×"));
    findings.push(Finding::none(FIGURE, "requests without an answer in 5 s", asker.unanswered));
    Ok(findings)
}

/// Makes a member of about so many bytes.
type Pad = fn(usize) -> String;

/// Shapes that a reader might be slow at.
const SHAPES: [(&str, Pad); 4] = [
    ("one long string", |bytes| format!(r#""pad":"{}""#, "x".repeat(bytes))),
    ("a string of escapes", |bytes| format!(r#""pad":"{}""#, r"\u00e9".repeat(bytes / 6))),
    ("an array of numbers", |bytes| format!(r#""pad":[{}0]"#, "0,".repeat(bytes / 2))),
    ("an object of many members", |bytes| {
        let members: Vec<String> = (0..bytes / 13).map(|at| format!(r#""m{at:07}":0"#)).collect();
        format!(r#""pad":{{{}}}"#, members.join(","))
    }),
];

/// A request for speech whose body is at most so long.
fn padded(pad: Pad, body_bytes: usize) -> Vec<u8> {
    const MEMBERS: usize = 80;
    let body = format!(r#"{{"input":"small","model":"openai/tts-1","voice":"alloy",{}}}"#, pad(body_bytes - MEMBERS));
    post(CLIENT_KEY, "", body.as_bytes())
}

fn dear_requests() -> Vec<(&'static str, Vec<u8>)> {
    let body = Speech::Small.json();
    let with = |fields: &str| post(CLIENT_KEY, fields, body.as_bytes());
    let json = |text: String| post(CLIENT_KEY, "", text.as_bytes());
    let lines = |count: usize, value: &str| (0..count).map(|at| format!("X-F-{at}: {value}\r\n")).collect::<String>();
    let members: String = (0..4000).map(|at| format!(r#""m{at}":0,"#)).collect();
    vec![
        ("64 KiB of nested arrays", json(format!(r#"{{"model":"openai/tts-1","input":{}"#, "[".repeat(64 * KIB)))),
        ("1 MiB of brackets", json("[".repeat(1024 * KIB))),
        ("95 more header lines", with(&lines(95, "v"))),
        ("60 KB of header", with(&lines(60, &"v".repeat(1000)))),
        ("a key of 8 KB", post(&"k".repeat(8000), "", body.as_bytes())),
        ("a model of 60 KB", json(body.replace("tts-1", &"m".repeat(60_000)))),
        ("60 KB of escapes", json(body.replace("talk", &r"\u0061".repeat(10_000)))),
        ("4000 members beside `model`", json(body.replacen('{', &format!("{{{members}"), 1))),
    ]
}

/// One client that asks one thing after the other, whatever it is answered.
struct Asker<'a> {
    contender: &'a Contender,
    room: Vec<u8>,
    connection: Option<Connection>,
    /// The last status seen, 0 before there was one.
    answered: u16,
    unanswered: u64,
}

impl Asker<'_> {
    /// Seconds of the proxy's processor time a request.
    async fn cpu_each(&mut self, request: &[u8]) -> io::Result<f64> {
        let pid = self.contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
        let (before, until) = (procfs::cpu_time(pid)?, Instant::now() + MEASURED);
        let mut asked = 0_u32;
        while Instant::now() < until {
            self.unanswered += u64::from(timeout(ANSWER_MAX, self.ask(request)).await.is_err());
            asked += 1;
        }
        Ok((procfs::cpu_time(pid)?.saturating_sub(before) / asked).as_secs_f64())
    }

    /// A refusal, an early end and a reset are answers too.
    async fn ask(&mut self, request: &[u8]) {
        let kept = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(self.contender.address).await,
        };
        let Ok(mut connection) = kept else { return };
        let Ok(answer) = connection.exchange(request, &mut self.room).await else { return };
        self.answered = answer.status;
        if !answer.closes {
            self.connection = Some(connection);
        }
    }
}

/// Resident memory for every byte of requests that do not end.
async fn memory_ratio(contender: &Contender) -> io::Result<f64> {
    let pid = contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
    let body = format!(r#"{{"model":"openai/tts-1","input":{}"#, "[".repeat(STALLED_BYTES));
    let whole = post(CLIENT_KEY, "", body.as_bytes());
    let before = procfs::steady_resident_bytes(pid).await?;
    let mut held = Vec::with_capacity(STALLED);
    for _ in 0..STALLED {
        let mut connection = Connection::open(contender.address).await?;
        connection.send(&whole[..whole.len() - 1]).await?;
        held.push(connection);
    }
    let after = procfs::steady_resident_bytes(pid).await?;
    Ok(after.saturating_sub(before) as f64 / (STALLED * STALLED_BYTES) as f64)
}
