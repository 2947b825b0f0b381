//! What the gateway counts itself, read off its page for operators, and the wait until a count is back at nothing.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long what is held may take to come back.
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(20);

pub(crate) async fn read(admin: SocketAddr, name: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n").await?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await?;
    let page = String::from_utf8_lossy(&page);
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let value = value.ok_or_else(|| io::Error::other(format!("no `{name}` among the metrics")))?;
    // Below nothing is as wrong as above it.
    Ok(value.abs() as u64)
}

/// What `count` counts once that is nothing, or when there was time enough for that.
pub(crate) async fn at_rest(mut count: impl AsyncFnMut() -> io::Result<u64>) -> io::Result<u64> {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let counted = count().await?;
        if counted == 0 || Instant::now() > deadline {
            return Ok(counted);
        }
        sleep(LOOK_EVERY).await;
    }
}
