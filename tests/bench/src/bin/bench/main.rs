//! `make bench`: aulos, a bare Pingora proxy, nginx and HAProxy before one fake provider, side by side in one
//! run, as Markdown tables. By hand, on loopback, in less than six minutes. Fails if any request failed.
//!
//! ```text
//! bench [speech] [passthrough] [uploads] [streams]      no figure named: all
//! ```
//!
//! Rounds alternate (A B C D, A B C D, …), so that what the machine does meanwhile hits all alike.

mod passing;
mod report;
mod rounds;
mod streams;
mod uploads;

use aulos_bench::contender::{Contender, Kind};
use aulos_bench::procfs;
use aulos_bench::rig::Rig;
use passing::Passing;
use report::Report;
use rounds::{CASES, ROUNDS};
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use uploads::Uploads;

const BENCH_MAX: Duration = Duration::from_secs(360);
const FIGURES: [&str; 4] = ["speech", "passthrough", "uploads", "streams"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if !chosen.iter().all(|figure| FIGURES.contains(&figure.as_str())) {
        eprintln!("usage: bench [{}]", FIGURES.join("] ["));
        return ExitCode::FAILURE;
    }
    let bench = tokio::time::timeout(BENCH_MAX, bench(&chosen));
    let ended = tokio::select! {
        ended = bench => ended.unwrap_or_else(|_| Err(io::Error::other("not done within six minutes"))),
        _ = tokio::signal::ctrl_c() => Err(io::Error::other("interrupted")),
    };
    match ended {
        Ok(0) => ExitCode::SUCCESS,
        Ok(errors) => {
            println!("\nFAILED: {errors} requests were not answered as they should have been.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many requests failed.
async fn bench(chosen: &[String]) -> io::Result<u64> {
    let wants = |figure: &str| chosen.is_empty() || chosen.iter().any(|name| name == figure);
    procfs::raise_open_files();
    let machine = procfs::machine().await?;
    let rig = Rig::start()?;
    let mut report = Report::new(machine, rig.pins);
    let mut contenders = Vec::new();
    for kind in Kind::ALL {
        match kind.missing() {
            Some(why) => report.leave_out(kind, why),
            None => contenders.push(Contender::start(kind, &rig).await?),
        }
    }
    for case in CASES.into_iter().filter(|_| wants("speech")) {
        for round in 0..ROUNDS {
            for contender in &contenders {
                eprintln!("{} {}, round {} of {ROUNDS}", contender.kind.name(), case.word(), round + 1);
                report.add(case, contender.kind, rounds::round(contender, case, round).await?);
            }
        }
    }
    let passing = if wants("passthrough") { passing::measure(&contenders).await? } else { Passing::default() };
    let uploads = if wants("uploads") { uploads::measure(&contenders).await? } else { Uploads::default() };
    let kinds: Vec<Kind> = contenders.iter().filter(|contender| contender.pid().is_some()).map(|c| c.kind).collect();
    drop(contenders);
    for case in streams::CASES.into_iter().filter(|_| wants("streams")) {
        for &kind in &kinds {
            eprintln!("{} {} streams", kind.name(), case.word());
            // A fresh process: what earlier rounds left in an allocator would hide what a stream needs.
            let contender = Contender::start(kind, &rig).await?;
            report.add_stream(case, kind, streams::resident_bytes_each(&contender, case).await?);
        }
    }
    print!("{}{}{}", report.render(), passing.render(), uploads.render());
    Ok(report.errors() + passing.errors() + uploads.errors())
}
