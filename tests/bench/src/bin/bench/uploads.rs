//! Uploads of 25 MB, the model before the file and behind it: how many megabytes a second pass, and what they cost.

use crate::rounds::{ROUNDS, proven};
use aulos_bench::contender::{Contender, Kind};
use aulos_bench::load::{Load, Run, Shot, spread};
use aulos_bench::table::Table;
use aulos_bench::upload::{Layout, MODEL, STREAMED_MODEL, Upload, Wanted};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

const CLIENTS: usize = 4;
const FILE_BYTES: usize = 25_000_000;
const WARM: Duration = Duration::from_millis(300);
const LENGTH: Duration = Duration::from_millis(1200);
/// Of the throughput of a bare Pingora proxy.
const AIM: f64 = 0.95;

/// Who takes part, and under which name it is asked for the model.
type Entrant = (Kind, &'static str);

#[derive(Default)]
pub(crate) struct Uploads {
    runs: BTreeMap<(Layout, Entrant), Vec<Run>>,
}

/// In alternating rounds, as everything here.
pub(crate) async fn measure(contenders: &[Contender]) -> io::Result<Uploads> {
    let mut uploads = Uploads::default();
    for layout in Layout::FORMS {
        for round in 0..ROUNDS {
            for (contender, model) in entrants(contenders, layout) {
                eprintln!("{} {}, round {} of {ROUNDS}", name((contender.kind, model)), layout.name(), round + 1);
                if round == 0 {
                    prove(contender, layout, model).await?;
                }
                let run = run(contender, layout, model).await?;
                uploads.runs.entry((layout, (contender.kind, model))).or_default().push(run);
            }
        }
    }
    Ok(uploads)
}

/// Each once, and the gateway a second time where it does not have to keep anything.
fn entrants(contenders: &[Contender], layout: Layout) -> impl Iterator<Item = (&Contender, &'static str)> {
    contenders.iter().flat_map(move |contender| {
        let streams = contender.kind == Kind::Aulos && layout == Layout::ModelFirst;
        [Some(MODEL), streams.then_some(STREAMED_MODEL)].into_iter().flatten().map(move |model| (contender, model))
    })
}

/// Whether what arrives is what was sent, byte for byte.
async fn prove(contender: &Contender, layout: Layout, model: &'static str) -> io::Result<()> {
    let upload = Upload { layout, model, file_bytes: FILE_BYTES, wanted: Wanted::Hash };
    let receipt = contender.kind.passed_on(upload).receipt();
    proven(contender, upload.deliver(contender.address, &receipt)).await
}

async fn run(contender: &Contender, layout: Layout, model: &'static str) -> io::Result<Run> {
    let upload = Upload { layout, model, file_bytes: FILE_BYTES, wanted: Wanted::Count };
    let shot = Shot::upload(upload, contender.kind.passed_on(upload));
    Load { target: contender.address, shot, connections: CLIENTS, warm: WARM, length: LENGTH }
        .run(contender.pid())
        .await
}

fn name((kind, model): Entrant) -> String {
    let kept = if model == STREAMED_MODEL { ", replay_bytes = \"0\"" } else { "" };
    format!("{}{kept}", kind.name())
}

impl Uploads {
    pub(crate) fn errors(&self) -> u64 {
        self.runs.values().flatten().map(|run| run.errors).sum()
    }

    /// Empty, if nothing was measured.
    pub(crate) fn render(&self) -> String {
        if self.runs.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&[
            "upload",
            "proxy",
            "MB/s",
            &format!("÷ bare (aim ≥ {AIM})"),
            "CPU ms/upload",
            "÷ bare",
            "core busy",
            "p50 ms",
            "errors",
        ]);
        self.runs.iter().for_each(|(&(layout, entrant), runs)| table.row(self.row(layout, entrant, runs)));
        let each = FILE_BYTES / 1_000_000;
        format!("{CLIENTS} clients that upload {each} MB each, again and again.\n\n{}", table.render())
    }

    fn row(&self, layout: Layout, entrant: Entrant, runs: &[Run]) -> Vec<String> {
        let proxied = |cell: String| if entrant.0 == Kind::Direct { "–".to_owned() } else { cell };
        let cell = |digits: usize, of: fn(&Run) -> f64| {
            spread(runs, of).map_or_else(String::new, |spread| format!("{spread:.digits$}"))
        };
        let ratio = |of: fn(&Run) -> f64| {
            let bare = self.runs.get(&(layout, (Kind::Bare, MODEL))).and_then(|bare| spread(bare, of));
            let pair = spread(runs, of).zip(bare);
            pair.map_or_else(|| "–".to_owned(), |(own, bare)| format!("{:.2}", own.median / bare.median))
        };
        let busy = spread(runs, |run| run.busy() * 100.0).map_or(0.0, |spread| spread.median);
        vec![
            layout.name().to_owned(),
            name(entrant),
            cell(0, megabytes_per_second),
            ratio(megabytes_per_second),
            proxied(cell(1, cpu_milliseconds)),
            proxied(ratio(cpu_milliseconds)),
            proxied(format!("{busy:.0} %")),
            cell(0, |run| run.latency(0.5) / 1e3),
            runs.iter().map(|run| run.errors).sum::<u64>().to_string(),
        ]
    }
}

fn megabytes_per_second(run: &Run) -> f64 {
    run.rate() * FILE_BYTES as f64 / 1e6
}

fn cpu_milliseconds(run: &Run) -> f64 {
    run.cpu_per_request() / 1e3
}
