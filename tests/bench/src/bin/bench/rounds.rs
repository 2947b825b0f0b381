//! One round of one case against one contender: many clients for the throughput, one for the latency.

use aulos_bench::contender::Contender;
use aulos_bench::load::{Load, Run, Shot};
use aulos_bench::speech::Speech;
use std::io;
use std::time::Duration;
use tokio::time::timeout;

pub(crate) const CASES: [Speech; 2] = [Speech::Small, Speech::Clip];
pub(crate) const ROUNDS: usize = 3;
pub(crate) const CLIENTS: usize = 16;
const BUSY: Duration = Duration::from_millis(1500);
const QUIET: Duration = Duration::from_millis(600);
const PROOF_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Round {
    /// Many clients at once.
    pub(crate) busy: Run,
    /// One client alone.
    pub(crate) quiet: Run,
}

pub(crate) async fn round(contender: &Contender, case: Speech, round: usize) -> io::Result<Round> {
    // The first round also fills pools and lets allocators grow.
    let warm = Duration::from_millis(if round == 0 { 1000 } else { 300 });
    let load = Load { target: contender.address, shot: Shot::of(case), connections: CLIENTS, warm, length: BUSY };
    let busy = load.run(contender.pid()).await?;
    let warm = Duration::from_millis(200);
    let quiet = Load { connections: 1, warm, length: QUIET, ..load }.run(contender.pid()).await?;
    Ok(Round { busy, quiet })
}

/// Waits for the proof that a contender does what is measured, and has it say why if it does not.
pub(crate) async fn proven(contender: &Contender, proof: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let proof = timeout(PROOF_MAX, proof).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    proof.map_err(|error| contender.complaint(&error.to_string()))
}
