//! A gigabyte to a provider's own API, and one back, each with its length announced and without: all of it arrives,
//! next to nothing is ever resident, and nothing is kept.

use crate::finding::Finding;
use crate::held::{self, SPOOLED, WARM_BYTES};
use aulos_bench::client::Connection;
use aulos_bench::contender::Contender;
use aulos_bench::speech::{LONG_BYTES, Speech};
use aulos_bench::upload::{Layout, MODEL, Receipt, Upload, Wanted};
use std::io;

const FIGURE: &str = "passing";

pub(crate) async fn run(contender: Contender) -> io::Result<Vec<Finding>> {
    let receipt = upload(Layout::Alone, LONG_BYTES).receipt();
    let mut findings = Vec::new();
    for (layout, framing) in Layout::ALONE.into_iter().zip(["with a length", "chunked"]) {
        let warm = upload(layout, WARM_BYTES);
        warm.deliver(contender.address, &warm.receipt()).await?;
        let body = upload(layout, LONG_BYTES).deliver(contender.address, &receipt);
        findings.extend(one(&contender, &format!("up, {framing}"), body).await?);
    }
    for (speech, framing) in [(Speech::Long, "with a length"), (Speech::Chunked, "chunked")] {
        let body = hear(&contender, speech, &receipt);
        findings.extend(one(&contender, &format!("down, {framing}"), body).await?);
    }
    Ok(findings)
}

fn upload(layout: Layout, file_bytes: usize) -> Upload {
    Upload { layout, model: MODEL, file_bytes, wanted: Wanted::Hash }
}

/// Whether what is heard is what was uploaded: the same bytes, and so the same receipt.
async fn hear(contender: &Contender, speech: Speech, receipt: &str) -> io::Result<()> {
    let mut connection = Connection::open(contender.address).await?;
    let mut heard = Receipt::new(Wanted::Hash);
    let status = connection.listen(&speech.passed(), |piece| heard.see(piece)).await?;
    let heard = heard.json();
    if status == 200 && heard == receipt {
        return Ok(());
    }
    Err(io::Error::other(format!("was answered {status}: {heard}, and not {receipt}")))
}

async fn one(contender: &Contender, way: &str, body: impl Future<Output = io::Result<()>>) -> io::Result<Vec<Finding>> {
    let pid = contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
    let watched = held::watch(contender, pid, held::lost(FIGURE, body));
    let (rise, seen) = held::rise(pid, watched).await?;
    let (most, lost) = seen?;
    let what = format!("{} {way}", held::megabytes(LONG_BYTES));
    let mut findings = vec![
        held::resident(FIGURE, &what, rise, 1),
        held::arrived(FIGURE, &what, lost, 1),
        Finding::none(FIGURE, format!("{what}: most bytes of nameless files"), most.on_disk),
    ];
    if contender.admin.is_some() {
        findings.push(Finding::none(FIGURE, format!("{what}: most of `{SPOOLED}`"), most.spooled));
    }
    Ok(findings)
}
