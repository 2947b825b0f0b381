//! `make soak`: what only shows under pressure or after a while. Idle clients, slow heads, dear requests, a
//! minute of mixed traffic of which a third is broken, uploads larger than the memory there is for them, a gigabyte
//! that passes through each way, providers that fail. By hand, on loopback, a few minutes; a table with a target in
//! each row, and exit code 1 if one was missed.
//!
//! ```text
//! soak [--bare] [idle] [slow-heads] [dear] [mixed] [uploads] [passing] [failing]      no figure named: all
//! ```
//!
//! `--bare` puts the bare Pingora proxy in the gateway's place, to see what it is that the gateway adds; it knows one
//! provider, so that `failing` is not for it.

mod amplify;
mod failing;
mod finding;
mod gauge;
mod held;
mod idle;
mod mixed;
mod passing;
mod slow_heads;
mod uploads;
mod visitor;

use aulos_bench::contender::{Contender, Kind};
use aulos_bench::procfs;
use aulos_bench::rig::Rig;
use aulos_bench::table::Table;
use finding::Finding;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

const SOAK_MAX: Duration = Duration::from_secs(480);
const FIGURES: [&str; 7] = ["idle", "slow-heads", "dear", "mixed", "uploads", "passing", "failing"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (flags, figures): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with('-'));
    if flags.iter().any(|flag| flag != "--bare") || !figures.iter().all(|name| FIGURES.contains(&name.as_str())) {
        eprintln!("usage: soak [--bare] [{}]", FIGURES.join("] ["));
        return ExitCode::FAILURE;
    }
    let kind = if flags.is_empty() { Kind::Aulos } else { Kind::Bare };
    let named = |name: &&str| figures.is_empty() || figures.iter().any(|figure| figure == name);
    let chosen: Vec<_> =
        FIGURES.into_iter().filter(named).filter(|name| kind == Kind::Aulos || *name != "failing").collect();
    if chosen.is_empty() {
        eprintln!("soak: bare Pingora knows one provider");
        return ExitCode::FAILURE;
    }
    let soak = tokio::time::timeout(SOAK_MAX, soak(kind, chosen));
    let ended = tokio::select! {
        ended = soak => ended.unwrap_or_else(|_| Err(io::Error::other("not done within eight minutes"))),
        _ = tokio::signal::ctrl_c() => Err(io::Error::other("interrupted")),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every target was met.
async fn soak(kind: Kind, figures: Vec<&str>) -> io::Result<bool> {
    let files_max = procfs::raise_open_files();
    if let Some(why) = kind.missing() {
        return Err(io::Error::other(format!("{} is {why}", kind.name())));
    }
    let machine = procfs::machine().await?;
    let rig = Rig::start()?;
    println!("Machine: {machine}; {}.\n{}\n", rig.pins.describe(), kind.version());
    let mut findings: Vec<Finding> = Vec::new();
    for figure in figures {
        eprintln!("{figure}");
        findings.extend(find(figure, kind, &rig, files_max).await?);
    }
    let mut table = Table::new(&["figure", "what", "measured", "target", ""]);
    findings.iter().for_each(|finding| table.row(finding.row()));
    print!("{}", table.render());
    Ok(findings.iter().all(Finding::holds))
}

/// Each figure has a process of its own: none starts with what another has left behind.
async fn find(figure: &str, kind: Kind, rig: &Rig, files_max: u64) -> io::Result<Vec<Finding>> {
    if figure == "failing" {
        return failing::run(rig).await;
    }
    let contender = Contender::start(kind, rig).await?;
    match figure {
        "idle" => idle::run(&contender, files_max).await,
        "slow-heads" => slow_heads::run(&contender).await,
        "dear" => amplify::run(&contender).await,
        "mixed" => mixed::run(&contender, rig).await,
        "passing" => passing::run(contender).await,
        _ => uploads::run(contender, rig).await,
    }
}
