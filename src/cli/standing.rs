//! How the service that runs with a config sees its providers now: what `/readyz?verbose` of its admin listener says.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// It is on this machine, and answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(1);
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What is said of one provider, line by line: what the line is about, and what is known of it.
pub(super) type Said = Vec<(&'static str, String)>;

/// What a running service says of its providers.
#[derive(Debug)]
pub(super) enum Standings {
    Known(Value),
    /// Nobody says anything, for this reason.
    Unknown(String),
}

impl Standings {
    /// Asks the admin listener of a config.
    pub(super) fn ask(admin: Option<SocketAddr>) -> Self {
        let Some(admin) = admin else { return Self::Unknown("the config has no admin listener".to_owned()) };
        match fetch(admin) {
            Ok(said) => Self::Known(said),
            Err(error) => Self::Unknown(format!("no service answers at {admin}: {error}")),
        }
    }

    /// What is known of a provider.
    pub(super) fn of(&self, provider: &str) -> Said {
        let said = match self {
            Self::Unknown(why) => return vec![("health", format!("not known, {why}"))],
            Self::Known(said) => &said["providers"][provider],
        };
        if said.is_null() {
            return vec![("health", "not known, the service runs with a config without this provider".to_owned())];
        }
        let list = |name: &str| said[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let peers = list("peers").iter().map(|said| ("peer", peer(said)));
        let keys = list("keys").iter().filter_map(|said| Some(("key", key(said)?)));
        let mut lines: Said = peers.chain(keys).collect();
        if lines.is_empty() {
            lines.push(("health", "not known, its name has not been asked for yet".to_owned()));
        }
        lines
    }
}

fn peer(said: &Value) -> String {
    let text = |name: &str| said[name].as_str().unwrap_or_default();
    let health = match (said["healthy"] == true, text("why")) {
        (true, "") => "healthy".to_owned(),
        (true, why) => format!("healthy, but its last probe failed: {why}"),
        (false, why) => format!("ill for {} s: {why}", said["since_s"]),
    };
    format!("{} is {health}; its breaker is {}", text("peer"), text("breaker").replace('_', "-"))
}

/// A key that is set aside.
fn key(said: &Value) -> Option<String> {
    Some(format!("{} is set aside: {}", said["key"], said["set_aside"].as_str()?))
}

fn fetch(admin: SocketAddr) -> io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Of a version without chunks, and the last one: the answer ends with the connection.
    write!(stream, "GET /readyz?verbose HTTP/1.0\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let body = memchr::memmem::find(&answer, b"\r\n\r\n").and_then(|end| answer.get(end + 4..)).unwrap_or_default();
    serde_json::from_slice(body).map_err(|_| io::Error::other("that is not an admin listener of aulos"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_service_says_is_said_in_words() {
        let peers = json!([
            { "peer": "10.0.0.1:80", "healthy": true, "since_s": 9, "why": null, "breaker": "half_open" },
            { "peer": "10.0.0.2:80", "healthy": false, "since_s": 7, "why": "refused", "breaker": "closed" },
            { "peer": "10.0.0.3:80", "healthy": true, "since_s": 7, "why": "late", "breaker": "open" },
        ]);
        let keys = json!([{ "key": 1, "set_aside": null }, { "key": 2, "set_aside": "limited" }]);
        let known = Standings::Known(json!({ "providers": {
            "pool": { "peers": peers, "keys": keys },
            "fresh": { "peers": [], "keys": [{ "key": 1, "set_aside": null }] },
        } }));
        let said = |provider: &str| {
            known.of(provider).into_iter().map(|(step, what)| format!("{step} {what}")).collect::<Vec<_>>()
        };
        let want = [
            "peer 10.0.0.1:80 is healthy; its breaker is half-open",
            "peer 10.0.0.2:80 is ill for 7 s: refused; its breaker is closed",
            "peer 10.0.0.3:80 is healthy, but its last probe failed: late; its breaker is open",
            "key 2 is set aside: limited",
        ];
        assert_eq!(said("pool"), want);
        assert!(said("fresh")[0].contains("has not been asked for yet"));
        assert!(said("another")[0].contains("without this provider"));
    }

    #[test]
    fn nobody_to_ask_is_said_too() {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        for (admin, why) in [(None, "has no admin listener"), (Some(free), "no service answers at 127.0.0.1")] {
            let said = Standings::ask(admin).of("pool");
            assert!(said[0].1.contains(why), "{said:?}");
        }
    }

    #[test]
    fn another_listener_is_not_believed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let admin = listener.local_addr().expect("an address");
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                asked.extend(byte);
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n<html>").expect("answered");
            asked
        });
        let said = Standings::ask(Some(admin)).of("pool");
        assert!(said[0].1.contains("not an admin listener"), "{said:?}");
        assert!(other.join().expect("served").starts_with(b"GET /readyz?verbose HTTP/1.0\r\n"));
    }
}
