//! What passes through to a provider's own API: a clip, an upload, messages over WebSocket. What each costs a proxy,
//! beside a bare Pingora proxy that looks at none of it either.

use crate::rounds::{ROUNDS, proven};
use aulos_bench::client::{Connection, READ_BYTES};
use aulos_bench::contender::{Contender, Kind};
use aulos_bench::load::{Load, Run, Shot, spread};
use aulos_bench::speech::{PASSED, Speech};
use aulos_bench::table::Table;
use aulos_bench::upload::{Layout, MODEL, Upload, Wanted};
use aulos_bench::websocket;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

const FILE_BYTES: usize = 25_000_000;
const WARM: Duration = Duration::from_millis(200);
const LENGTH: Duration = Duration::from_secs(1);
/// Of the processor time of a bare Pingora proxy.
const AIM: f64 = 1.25;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Clip,
    Upload,
    /// Over WebSocket and back, with so many bytes in it.
    Message(u16),
}

impl Case {
    const ALL: [Self; 4] = [Self::Clip, Self::Upload, Self::Message(64), Self::Message(16 * 1024)];

    fn name(self) -> String {
        match self {
            Self::Clip => Speech::Clip.word().to_owned(),
            Self::Upload => format!("upload, {} MB", FILE_BYTES / 1_000_000),
            Self::Message(bytes) => format!("message, {bytes} bytes"),
        }
    }

    fn clients(self) -> usize {
        match self {
            Self::Clip => 16,
            Self::Upload => 4,
            Self::Message(_) => 8,
        }
    }

    fn shot(self) -> Shot {
        match self {
            Self::Clip => Shot::passed(Speech::Clip),
            Self::Upload => Shot::upload(file(Wanted::Count), file(Wanted::Count)),
            Self::Message(bytes) => Shot::message(bytes),
        }
    }

    /// Whether what arrives is what was sent, byte for byte.
    async fn prove(self, contender: &Contender) -> io::Result<()> {
        match self {
            Self::Clip => hear_clip(contender).await,
            Self::Upload => file(Wanted::Hash).deliver(contender.address, &file(Wanted::Hash).receipt()).await,
            Self::Message(bytes) => {
                let mut connection = Connection::open(contender.address).await?;
                connection.upgrade().await?;
                connection.echo(&websocket::message(bytes), &mut vec![0; READ_BYTES]).await
            }
        }
    }
}

async fn hear_clip(contender: &Contender) -> io::Result<()> {
    let (status, body) = Connection::open(contender.address).await?.fetch(&Speech::Clip.passed()).await?;
    if status == 200 && body == Speech::Clip.body() {
        return Ok(());
    }
    Err(io::Error::other(format!("answered {status}: {}", String::from_utf8_lossy(&body[..body.len().min(400)]))))
}

fn file(wanted: Wanted) -> Upload {
    Upload { layout: Layout::Alone, model: MODEL, file_bytes: FILE_BYTES, wanted }
}

#[derive(Default)]
pub(crate) struct Passing {
    runs: BTreeMap<(Case, Kind), Vec<Run>>,
}

/// In alternating rounds, as everything here; without the provider itself, which costs no proxy anything.
pub(crate) async fn measure(contenders: &[Contender]) -> io::Result<Passing> {
    let mut passing = Passing::default();
    for case in Case::ALL {
        for round in 0..ROUNDS {
            for contender in contenders.iter().filter(|contender| contender.pid().is_some()) {
                eprintln!("{} {}, round {} of {ROUNDS}", contender.kind.name(), case.name(), round + 1);
                if round == 0 {
                    proven(contender, case.prove(contender)).await?;
                }
                let (target, connections) = (contender.address, case.clients());
                let load = Load { target, shot: case.shot(), connections, warm: WARM, length: LENGTH };
                passing.runs.entry((case, contender.kind)).or_default().push(load.run(contender.pid()).await?);
            }
        }
    }
    Ok(passing)
}

impl Passing {
    pub(crate) fn errors(&self) -> u64 {
        self.runs.values().flatten().map(|run| run.errors).sum()
    }

    /// Empty, if nothing was measured.
    pub(crate) fn render(&self) -> String {
        if self.runs.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&[
            "passthrough",
            "proxy",
            "clients",
            "a second",
            "CPU µs each",
            &format!("÷ bare (aim ≤ {AIM})"),
            "core busy",
            "p50 µs",
            "p99 µs",
            "errors",
        ]);
        self.runs.iter().for_each(|(&(case, kind), runs)| table.row(self.row(case, kind, runs)));
        format!("What passes through {PASSED}/… as it is.\n\n{}\n", table.render())
    }

    fn row(&self, case: Case, kind: Kind, runs: &[Run]) -> Vec<String> {
        let cell = |digits: usize, of: fn(&Run) -> f64| {
            spread(runs, of).map_or_else(String::new, |spread| format!("{spread:.digits$}"))
        };
        let bare = self.runs.get(&(case, Kind::Bare)).and_then(|bare| spread(bare, Run::cpu_per_request));
        let pair = spread(runs, Run::cpu_per_request).zip(bare);
        let busy = spread(runs, |run| run.busy() * 100.0).map_or(0.0, |spread| spread.median);
        vec![
            case.name(),
            kind.name().to_owned(),
            case.clients().to_string(),
            cell(0, Run::rate),
            cell(1, Run::cpu_per_request),
            pair.map_or_else(|| "–".to_owned(), |(own, bare)| format!("{:.2}", own.median / bare.median)),
            format!("{busy:.0} %"),
            cell(0, |run| run.latency(0.5)),
            cell(0, |run| run.latency(0.99)),
            runs.iter().map(|run| run.errors).sum::<u64>().to_string(),
        ]
    }
}
