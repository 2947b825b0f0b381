//! Host names → the addresses of peers, never on the event loop.
//!
//! What was found once serves for as long as the resolver fails, each name by itself.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use http::Extensions;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::{Error, ErrorType, Result};
use pingora_load_balancing::Backend;
use pingora_load_balancing::discovery::ServiceDiscovery;

/// The names that the peers of one provider are behind.
pub(super) struct Names {
    /// The provider's, for the log.
    provider: String,
    names: Vec<Name>,
}

impl Names {
    /// `places`: hosts, as names or addresses (IPv6 without brackets), and their ports.
    pub(super) fn new(provider: &str, places: impl IntoIterator<Item = (String, u16)>) -> Self {
        let names = places.into_iter().map(|(host, port)| Name::new(host, port)).collect();
        Self { provider: provider.to_owned(), names }
    }

    /// Whether all are addresses, for which no resolver is needed.
    pub(super) fn are_literal(&self) -> bool {
        self.names.iter().all(|name| name.literal.is_some())
    }

    /// The names that could not be resolved when they were last asked for, as `host:port`, and why.
    pub(super) fn troubles(&self) -> Vec<(String, String)> {
        let trouble = |name: &Name| Some((name.authority(), name.known().trouble.clone()?));
        self.names.iter().filter_map(trouble).collect()
    }

    /// Every address that is known after every name was asked for once more.
    async fn look_up(&self) -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        for name in &self.names {
            found.extend(name.look_up(&self.provider).await);
        }
        found
    }
}

/// The names as the load balancer asks for them.
pub(super) struct Discovery(pub(super) Arc<Names>);

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let found = self.0.look_up().await;
        if found.is_empty() {
            return Error::e_explain(ErrorType::Custom("no peer"), "none of the names could be resolved");
        }
        Ok((found.into_iter().map(backend).collect(), HashMap::new()))
    }
}

/// A peer as the load balancer knows it; all weigh the same.
pub(super) fn backend(addr: SocketAddr) -> Backend {
    Backend { addr: PeerAddr::Inet(addr), weight: 1, ext: Extensions::new() }
}

struct Name {
    host: String,
    port: u16,
    /// Where `host` is an address already.
    literal: Option<SocketAddr>,
    known: Mutex<Known>,
}

/// What is known of a name.
#[derive(Default)]
struct Known {
    addrs: Vec<SocketAddr>,
    /// Why the last answer was none.
    trouble: Option<String>,
}

impl Name {
    fn new(host: String, port: u16) -> Self {
        let literal = host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
        Self { host, port, literal, known: Mutex::default() }
    }

    async fn look_up(&self, provider: &str) -> Vec<SocketAddr> {
        if let Some(addr) = self.literal {
            return vec![addr];
        }
        let answer = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let answer = answer.map(|addrs| with_route(addrs.collect(), has_route));
        self.learn(answer, provider)
    }

    /// Takes what the resolver says, and gives the addresses to go on with. A failure is logged when it begins, when
    /// it becomes another one and when it ends, not every time it is met.
    fn learn(&self, answer: io::Result<Vec<SocketAddr>>, provider: &str) -> Vec<SocketAddr> {
        let mut known = self.known();
        let trouble = match answer {
            Ok(addrs) if !addrs.is_empty() => {
                known.addrs = addrs;
                None
            }
            Ok(_) => Some("it has no address".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if trouble != known.trouble {
            let host = &self.host;
            match &trouble {
                None => log::info!("{provider}: {host} is resolved again"),
                Some(why) if known.addrs.is_empty() => log::warn!("{provider}: {host} cannot be resolved: {why}"),
                Some(why) => log::warn!("{provider}: {host} cannot be resolved, its old addresses serve: {why}"),
            }
            known.trouble = trouble;
        }
        known.addrs.clone()
    }

    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves out what this machine has no route to, such as every IPv6 address where there is no IPv6: it would only
/// cost each request an attempt. All are kept if none has a route, for the error that connecting gives says more.
fn with_route(mut addrs: Vec<SocketAddr>, has_route: impl Fn(SocketAddr) -> bool) -> Vec<SocketAddr> {
    if addrs.iter().any(|addr| has_route(*addr)) {
        addrs.retain(|addr| has_route(*addr));
    }
    addrs
}

/// Connecting a datagram socket sends nothing, but asks the kernel for the route.
fn has_route(addr: SocketAddr) -> bool {
    let any = if addr.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(addr).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|addr| addr.parse().expect("an address")).collect()
    }

    fn refused() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no answer"))
    }

    #[tokio::test]
    async fn addresses_need_no_resolver() {
        let places = [("10.0.0.1", 80), ("::1", 81), ("10.0.0.1", 80)].map(|(host, port)| (host.to_owned(), port));
        let names = Names::new("local", places);
        assert!(names.are_literal());
        assert_eq!(names.look_up().await.into_iter().collect::<Vec<_>>(), addrs(&["10.0.0.1:80", "[::1]:81"]));
        assert!(!Names::new("local", [("localhost".to_owned(), 80)]).are_literal());
    }

    #[tokio::test]
    async fn a_name_that_fails_takes_no_other_with_it() {
        let places = [("no..such.host", 80), ("127.0.0.1", 81)].map(|(host, port)| (host.to_owned(), port));
        let names = Arc::new(Names::new("local", places));
        let (found, enabled) = Discovery(Arc::clone(&names)).discover().await.expect("one is there");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [backend(addrs(&["127.0.0.1:81"])[0])]);
        assert!(enabled.is_empty());
        let troubles = names.troubles();
        assert_eq!(troubles.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["no..such.host:80"]);
        let none = Discovery(Arc::new(Names::new("local", [("no..such.host".to_owned(), 80)])));
        assert!(none.discover().await.is_err(), "an empty set would replace the old one");
    }

    #[test]
    fn old_addresses_serve_until_there_are_new_ones() {
        let name = Name::new("whisper.internal".to_owned(), 80);
        let (old, new) = (addrs(&["10.0.0.1:80", "10.0.0.2:80"]), addrs(&["10.0.0.3:80"]));
        let steps = [
            ("unknown yet", refused(), vec![], Some("no answer")),
            ("found", Ok(old.clone()), old.clone(), None),
            ("the resolver fails", refused(), old.clone(), Some("no answer")),
            ("an empty answer", Ok(vec![]), old, Some("it has no address")),
            ("moved", Ok(new.clone()), new, None),
        ];
        for (label, answer, want, trouble) in steps {
            assert_eq!(name.learn(answer, "local"), want, "{label}");
            assert_eq!(name.known().trouble.as_deref(), trouble, "{label}");
        }
    }

    #[test]
    fn an_address_without_a_route_is_no_peer_unless_none_has_one() {
        let all = addrs(&["10.0.0.1:80", "[2001:db8::1]:80"]);
        let loopback = addrs(&["127.0.0.1:80"]);
        assert_eq!(with_route(all.clone(), |addr| addr.is_ipv4()), all[..1]);
        assert_eq!(with_route(all.clone(), |_| false), all);
        assert_eq!(with_route(all.clone(), |_| true), all);
        assert!(has_route(loopback[0]));
    }
}
