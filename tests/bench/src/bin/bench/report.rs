//! All rounds as one table: absolute figures, and the ratios that are aimed at (CPU to bare Pingora, requests
//! a second to HAProxy).

use crate::rounds::{CASES, CLIENTS, ROUNDS, Round};
use crate::streams::{self, READ_BYTES, STREAMS};
use aulos_bench::contender::Kind;
use aulos_bench::rig::Pins;
use aulos_bench::speech::Speech;
use aulos_bench::stats::Spread;
use aulos_bench::table::Table;
use std::collections::BTreeMap;

pub(crate) struct Report {
    machine: String,
    pins: Pins,
    rounds: BTreeMap<(Speech, Kind), Vec<Round>>,
    streams: BTreeMap<(Speech, Kind), f64>,
    left_out: BTreeMap<Kind, &'static str>,
}

impl Report {
    pub(crate) fn new(machine: String, pins: Pins) -> Self {
        Self { machine, pins, rounds: BTreeMap::new(), streams: BTreeMap::new(), left_out: BTreeMap::new() }
    }

    pub(crate) fn leave_out(&mut self, kind: Kind, why: &'static str) {
        self.left_out.insert(kind, why);
    }

    pub(crate) fn add(&mut self, case: Speech, kind: Kind, round: Round) {
        self.rounds.entry((case, kind)).or_default().push(round);
    }

    pub(crate) fn add_stream(&mut self, case: Speech, kind: Kind, bytes: f64) {
        self.streams.insert((case, kind), bytes);
    }

    pub(crate) fn errors(&self) -> u64 {
        self.rounds.values().flatten().map(|round| round.busy.errors + round.quiet.errors).sum()
    }

    pub(crate) fn render(&self) -> String {
        let mut text = self.preamble();
        let mut table = Table::new(&[
            "case",
            "proxy",
            "req/s",
            "÷ HAProxy",
            "CPU µs/request",
            "÷ bare",
            "core busy",
            "p50 µs",
            "p99 µs",
            "added p50 µs, c=1",
            "added p99 µs, c=1",
            "KB/stream",
            "errors",
        ]);
        let ran = |case: &Speech| self.rounds.keys().any(|(ran, _)| ran == case);
        for case in CASES.into_iter().filter(ran) {
            Kind::ALL.into_iter().for_each(|kind| table.row(self.row(case, kind)));
        }
        let ran = |case: &Speech| self.streams.keys().any(|(ran, _)| ran == case);
        for case in streams::CASES.into_iter().filter(ran) {
            Kind::ALL.into_iter().skip(1).for_each(|kind| table.row(self.stream_row(case, kind)));
        }
        if !(self.rounds.is_empty() && self.streams.is_empty()) {
            text.push_str(&(table.render() + "\n"));
        }
        text
    }

    fn preamble(&self) -> String {
        let versions = Kind::ALL.map(|kind| (kind.name(), kind.version()));
        let versions = versions.iter().filter(|(_, version)| !version.is_empty());
        let versions: Vec<String> = versions.map(|(name, version)| format!("{name} is {version}")).collect();
        format!(
            "Machine: {}; {}.\nVersions: {}.\n\
             {CLIENTS} keep-alive clients in a closed loop, {ROUNDS} alternating rounds: median (min–max). \
             small: {} bytes answered, clip: {} bytes. \
             paced: {STREAMS} streams as slow as speech, all read; \
             slow: {STREAMS} streams as fast as they are taken, none read after its first {READ_BYTES} bytes. \
             ¹ the provider's own, to which the others add.\n\n",
            self.machine,
            self.pins.describe(),
            versions.join("; "),
            Speech::Small.body_bytes(),
            Speech::Clip.body_bytes(),
        )
    }

    fn row(&self, case: Speech, kind: Kind) -> Vec<String> {
        let mut row = vec![case.word().to_owned(), kind.name().to_owned()];
        let Some(rounds) = self.rounds.get(&(case, kind)) else {
            row.push((*self.left_out.get(&kind).unwrap_or(&"not run")).to_owned());
            return row;
        };
        let proxied = kind != Kind::Direct;
        let cell = |digits: usize, of: &dyn Fn(&Round) -> f64| {
            self.spread(case, kind, of).map_or_else(String::new, |spread| format!("{spread:.digits$}"))
        };
        let proxied_cell = |digits, of: &dyn Fn(&Round) -> f64| if proxied { cell(digits, of) } else { "–".into() };
        let busy = self.spread(case, kind, |round| round.busy.busy() * 100.0).map_or(0.0, |spread| spread.median);
        row.push(cell(0, &|round| round.busy.rate()));
        row.push(self.ratio(case, kind, Kind::Haproxy, |round| round.busy.rate()));
        row.push(proxied_cell(1, &|round| round.busy.cpu_per_request()));
        row.push(if proxied { self.ratio(case, kind, Kind::Bare, |r| r.busy.cpu_per_request()) } else { "–".into() });
        row.push(if proxied { format!("{busy:.0} %") } else { "–".into() });
        row.push(cell(0, &|round| round.busy.latency(0.5)));
        row.push(cell(0, &|round| round.busy.latency(0.99)));
        row.push(if proxied {
            self.added(case, kind, 0.5)
        } else {
            cell(0, &|round| round.quiet.latency(0.5)) + " ¹"
        });
        row.push(if proxied {
            self.added(case, kind, 0.99)
        } else {
            cell(0, &|round| round.quiet.latency(0.99)) + " ¹"
        });
        row.push("–".into());
        row.push(rounds.iter().map(|round| round.busy.errors + round.quiet.errors).sum::<u64>().to_string());
        row
    }

    fn stream_row(&self, case: Speech, kind: Kind) -> Vec<String> {
        let mut row = vec![case.word().to_owned(), kind.name().to_owned()];
        let Some(bytes) = self.streams.get(&(case, kind)) else {
            row.push((*self.left_out.get(&kind).unwrap_or(&"not run")).to_owned());
            return row;
        };
        row.resize(11, "–".to_owned());
        row.push(format!("{:.1}", bytes / 1e3));
        row
    }

    fn spread(&self, case: Speech, kind: Kind, of: impl Fn(&Round) -> f64) -> Option<Spread> {
        let rounds = self.rounds.get(&(case, kind))?;
        Spread::of(&rounds.iter().map(of).collect::<Vec<_>>())
    }

    /// Median against median.
    fn ratio(&self, case: Speech, kind: Kind, base: Kind, of: impl Fn(&Round) -> f64) -> String {
        let pair = self.spread(case, kind, &of).zip(self.spread(case, base, &of));
        pair.map_or_else(|| "–".into(), |(own, base)| format!("{:.2}", own.median / base.median))
    }

    /// What a proxy adds for a client alone, against the provider itself in the same round.
    fn added(&self, case: Speech, kind: Kind, share: f64) -> String {
        let Some((own, direct)) = self.rounds.get(&(case, kind)).zip(self.rounds.get(&(case, Kind::Direct))) else {
            return "–".into();
        };
        let pairs = own.iter().zip(direct);
        let added: Vec<f64> = pairs.map(|(own, base)| own.quiet.latency(share) - base.quiet.latency(share)).collect();
        Spread::of(&added).map_or_else(String::new, |spread| format!("{spread:.0}"))
    }
}
