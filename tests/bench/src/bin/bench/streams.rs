//! What an open stream costs: resident memory of the proxy, with many against with none. Once with providers as
//! slow as speech and clients that listen; once with a fast provider and clients that have stopped to.

use aulos_bench::client::Connection;
use aulos_bench::contender::Contender;
use aulos_bench::load::{Load, Shot};
use aulos_bench::procfs::steady_resident_bytes;
use aulos_bench::speech::Speech;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) const CASES: [Speech; 2] = [Speech::Paced, Speech::Slow];
pub(crate) const STREAMS: usize = 500;
/// Read by each client before it stops, where it does.
pub(crate) const READ_BYTES: usize = 8 * 1024;
const WINDOW_BYTES: u32 = 16 * 1024;
const OPEN_MAX: Duration = Duration::from_secs(15);

pub(crate) async fn resident_bytes_each(contender: &Contender, case: Speech) -> io::Result<f64> {
    let pid = contender.pid().ok_or_else(|| io::Error::other("no process to look at"))?;
    let (warm, length) = (Duration::ZERO, Duration::from_millis(500));
    Load { target: contender.address, shot: Shot::of(Speech::Small), connections: 16, warm, length }.run(None).await?;
    let before = steady_resident_bytes(pid).await?;
    let opened = timeout(OPEN_MAX, open(contender, case)).await;
    let mut streams = opened.map_err(|_| io::Error::other("streams do not begin"))??;
    let after = steady_resident_bytes(pid).await?;
    match streams.try_join_next() {
        Some(_) => Err(io::Error::other("a stream ended while its cost was measured")),
        None => Ok(after.saturating_sub(before) as f64 / streams.len() as f64),
    }
}

async fn open(contender: &Contender, case: Speech) -> io::Result<JoinSet<io::Result<()>>> {
    let request = case.request();
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let mut stream = Connection::open_narrow(contender.address, WINDOW_BYTES).await?;
        let mut room = vec![0; READ_BYTES];
        stream.send(&request).await?;
        stream.skip(READ_BYTES, &mut room).await?;
        streams.spawn(async move {
            if case == Speech::Paced {
                return stream.skip(usize::MAX, &mut room).await;
            }
            let _held = stream;
            std::future::pending().await
        });
    }
    Ok(streams)
}
