//! Host names → socket addresses, never on the event loop: the answer is kept for a while, and an old one serves
//! when the resolver fails.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is used before the name is asked for again.
const FRESH: Duration = Duration::from_secs(30);

/// The addresses of the names that were asked for.
#[derive(Debug, Default)]
pub struct Resolver {
    known: Mutex<HashMap<(String, u16), (SocketAddr, Instant)>>,
}

impl Resolver {
    /// The address of `host`, waiting at most `patience`. An error only where the name has never been resolved.
    pub async fn resolve(
        &self,
        host: &str,
        port: u16,
        patience: Duration,
        now: Instant,
    ) -> std::io::Result<SocketAddr> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port));
        }
        let old = self.known(host, port);
        if let Some((addr, at)) = old {
            if now.saturating_duration_since(at) < FRESH {
                return Ok(addr);
            }
            // One asks, the others go on with the old one.
            self.remember(host, port, addr, now);
        }
        let asked = tokio::time::timeout(patience, tokio::net::lookup_host((host, port))).await;
        match (asked.map_err(std::io::Error::from).flatten(), old) {
            (Ok(mut addrs), _) => {
                let addr = addrs.next().ok_or(std::io::ErrorKind::NotFound)?;
                self.remember(host, port, addr, now);
                Ok(addr)
            }
            (Err(error), Some((addr, _))) => {
                log::warn!("{host} could not be resolved again, its old address serves: {error}");
                Ok(addr)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn known(&self, host: &str, port: u16) -> Option<(SocketAddr, Instant)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(host.to_owned(), port)).copied()
    }

    fn remember(&self, host: &str, port: u16, addr: SocketAddr, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((host.to_owned(), port), (addr, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn an_address_needs_no_resolver_and_a_name_is_asked_for_once() {
        let resolver = Resolver::default();
        let now = Instant::now();
        for (host, want) in [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")] {
            assert_eq!(resolver.resolve(host, 80, PATIENCE, now).await.expect("an address").to_string(), want);
        }
        assert!(resolver.known("127.0.0.1", 80).is_none());
        let local = resolver.resolve("localhost", 80, PATIENCE, now).await.expect("every machine knows it");
        assert!(local.ip().is_loopback() && resolver.known("localhost", 80) == Some((local, now)));
        let later = now + FRESH;
        resolver.resolve("localhost", 80, PATIENCE, later).await.expect("resolves again");
        assert_eq!(resolver.known("localhost", 80).map(|(_, at)| at), Some(later));
    }

    #[tokio::test]
    async fn an_old_address_serves_when_the_resolver_fails() {
        let resolver = Resolver::default();
        let now = Instant::now();
        assert!(resolver.resolve("no-such-host.invalid", 80, PATIENCE, now).await.is_err());
        let old = "127.0.0.9:80".parse().expect("an address");
        resolver.remember("no-such-host.invalid", 80, old, now);
        let later = now + FRESH;
        let again = resolver.resolve("no-such-host.invalid", 80, PATIENCE, later).await;
        assert_eq!(again.expect("the old one"), old);
        resolver.remember("no-such-host.invalid", 80, old, now);
        let mute = resolver.resolve("no-such-host.invalid", 80, Duration::ZERO, later).await;
        assert_eq!(mute.expect("the old one, where nobody answers in time"), old);
    }
}
