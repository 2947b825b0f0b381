//! The one place that knows ports, processes and waiting.

pub(crate) mod chunks;
pub(crate) mod client;
pub(crate) mod form;
pub(crate) mod gateway;
pub(crate) mod http2;
pub(crate) mod vendor;

pub(crate) use client::{Answer, Client};
pub(crate) use gateway::{Conf, Gateway};
pub(crate) use vendor::{Vendor, Wire};

/// The key of every test's client.
pub(crate) const KEY: &str = "omx_live_test_key";
/// The credential the gateway has for its provider.
pub(crate) const PROVIDER_KEY: &str = "sk-provider-secret-0123456789abcdef";
/// How long a story waits for something that has to happen before it calls it a failure.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Shows every file below `dir`: its path, and its text.
pub(crate) fn files_below(dir: &std::path::Path, see: &mut impl FnMut(&str, &str)) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files_below(&path, see);
        } else {
            see(&path.display().to_string(), &String::from_utf8_lossy(&std::fs::read(&path).expect("readable")));
        }
    }
}

/// The SHA-256 of `text`, in hexadecimal.
pub(crate) fn sha256(text: &str) -> String {
    aulos::units::KeyHash::of(text.as_bytes()).to_string()
}

/// Awaits `future`, and fails the story where it takes too long.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => unreachable!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// Waits until `check` gives something. For states that only another process can reach.
pub(crate) async fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = check() {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await
}

/// Waits until nobody listens at `addr`. A port that was given up may be another story's the next moment, so that one
/// look is not enough.
pub(crate) async fn nobody_listens(addr: &str) {
    soon(&format!("{addr} is given up"), async {
        while tokio::net::TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
}
