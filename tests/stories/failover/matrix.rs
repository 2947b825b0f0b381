//! Every fault there is, under everything that can be asked for: the next provider serves it, and is asked once.

use std::any::Any;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{GOOD_KEY, Kind, NO, SHORT, ask, attempts, good, is_served, key_of, nobody, provider, saying, two};
use crate::support::client::find;
use crate::support::vendor::Received;
use crate::support::{Client, Conf, Gateway, PROVIDER_KEY, Vendor, Wire};

/// What is known of an attempt that failed.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// There was an answer, and nobody wanted it.
    Status(u16),
    /// There was none.
    Error,
    /// There was the beginning of one.
    Both(u16),
}

use Known::{Both, Error, Status};

/// What goes wrong at once.
const FAULTS: [(&str, Known); 26] = [
    ("refuses", Error),
    ("resets at accept", Error),
    ("closes at accept", Error),
    ("resets at the head", Error),
    ("closes at the head", Error),
    ("resets", Error),
    ("closes", Error),
    ("closes in half a head", Error),
    ("401", Status(401)),
    ("402", Status(402)),
    ("403", Status(403)),
    ("404", Status(404)),
    ("408", Status(408)),
    ("429", Status(429)),
    ("500", Status(500)),
    ("502", Status(502)),
    ("503", Status(503)),
    ("529", Status(529)),
    ("garbage", Error),
    ("two lengths", Error),
    ("endless 1xx", Error),
    ("an upgrade", Error),
    ("429 at the head", Status(429)),
    ("503 at the head, and closes", Status(503)),
    ("429 at the head, and stalls", Status(429)),
    ("200, and closes", Both(200)),
];

/// What is found out by waiting.
const STALLS: [(&str, Known); 7] = [
    ("stalls at accept", Error),
    ("stalls at the head", Error),
    ("stalls", Error),
    ("stalls in half a head", Error),
    ("100, and stalls", Error),
    ("200 at the head, and stalls", Both(200)),
    ("200, and stalls", Both(200)),
];

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

/// A provider that fails in its own way.
pub(super) struct Bad {
    pub(super) port: u16,
    /// Whatever stands at its port.
    there: Box<dyn Any + Send>,
}

impl Bad {
    /// `fault`: one of those above.
    pub(super) async fn start(fault: &'static str) -> Self {
        if fault == "refuses" {
            let (socket, port) = nobody();
            return Self { port, there: Box::new(socket) };
        }
        if let Some(how) = fault.strip_suffix(" at accept") {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let port = listener.local_addr().expect("bound").port();
            let accepting = tokio::spawn(accept(listener, how));
            return Self { port, there: Box::new(accepting) };
        }
        let vendor = Vendor::early(move |head, wire| spoil(fault, head, wire)).await;
        Self { port: vendor.port, there: Box::new(vendor) }
    }

    /// How often it was asked. `None`: it does not read that far.
    pub(super) fn asked(&self) -> Option<usize> {
        self.there.downcast_ref::<Vendor>().map(|vendor| vendor.heads().len())
    }
}

async fn accept(listener: TcpListener, how: &'static str) {
    let mut kept: Vec<TcpStream> = Vec::new();
    while let Ok((stream, _)) = listener.accept().await {
        match how {
            "resets" => stream.set_zero_linger().expect("set"),
            "closes" => {}
            _ => kept.push(stream),
        }
    }
}

/// What happens before the body is read.
async fn spoil(fault: &'static str, head: Received, mut wire: Wire) -> Option<Wire> {
    let Some((what, how)) = fault.split_once(" at the head") else {
        wire.whole(head).await?;
        return spoil_read(fault, wire).await;
    };
    match what {
        "resets" => wire.reset(),
        "closes" => {}
        "stalls" => std::future::pending().await,
        "200" => wire.write(format!("{OK}Content-Length: 9\r\n\r\n")).await.gone().await,
        _ if how == ", and stalls" => {
            wire.write(format!("HTTP/1.1 {what} Odd\r\nContent-Length: 9\r\n\r\n")).await;
            // What stands unread keeps the connection as it is.
            std::future::pending::<()>().await;
        }
        _ => {
            wire.answer(&format!("{what} Odd"), "application/json", NO).await;
            if how.is_empty() {
                wire.whole(head).await?;
                return Some(wire);
            }
            wire.linger().await;
        }
    }
    None
}

/// What happens to a request that was read whole.
async fn spoil_read(fault: &'static str, mut wire: Wire) -> Option<Wire> {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    match fault {
        "resets" => wire.reset(),
        "closes" => {}
        "closes in half a head" => _ = wire.write("HTTP/1.1 200 OK\r\nContent-Le").await,
        "garbage" => _ = wire.write(b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n").await,
        "two lengths" => _ = wire.write(format!("{OK}Content-Length: 6\r\nContent-Length: 5\r\n\r\nSOUND")).await,
        "endless 1xx" => while wire.stream.write_all(interim.as_bytes()).await.is_ok() {},
        "an upgrade" => {
            wire.write("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
        }
        "200, and closes" => _ = wire.write(format!("{OK}Content-Length: 9\r\n\r\n")).await,
        "stalls" => wire.gone().await,
        "stalls in half a head" => wire.write("HTTP/1.1 200 OK\r\nContent-Le").await.gone().await,
        "100, and stalls" => wire.write("HTTP/1.1 100 Continue\r\n\r\n").await.gone().await,
        "200, and stalls" => wire.write(format!("{OK}Content-Length: 9\r\n\r\n")).await.gone().await,
        status => {
            wire.answer(&format!("{status} Odd"), "application/json", NO).await;
            return Some(wire);
        }
    }
    None
}

/// A gateway with a provider of its own for each kind of request: none of them knows what the others have seen.
async fn gateway(fault: &str, bad: u16, good: u16) -> Gateway {
    let mut conf = Conf::new().env("GOOD_KEY", GOOD_KEY).with(&provider("good", good, &["GOOD_KEY"]));
    if STALLS.iter().any(|(stall, _)| *stall == fault) {
        conf = conf.with(SHORT);
    }
    for kind in Kind::ALL {
        let name = format!("{kind:?}").to_lowercase();
        let hold = if fault.starts_with("200") { "hold_200 = true" } else { "" };
        conf = conf.with(&provider(&name, bad, &["PROVIDER_KEY"])).with(hold);
        conf = conf.with(&format!("[models.house-{name}]\nroutes = [\"{name}/m1\", \"good/their/m2\"]"));
    }
    Gateway::spawn(conf).await
}

/// What the attempt at the provider that fails is told by in the audit record.
fn is_known(line: &str, known: Known, label: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |status: u16| status.to_string();
    let (status, has_error) = match known {
        Status(status) => (number(status), false),
        Error => ("-".to_owned(), true),
        Both(status) => (number(status), true),
    };
    assert_eq!((words[2], words[3] != "-"), (status.as_str(), has_error), "{label}: {line}");
}

/// The provider that serves was asked once for what has this tag, byte for byte and with its own key.
pub(super) fn is_asked_once(good: &Vendor, kind: Kind, tag: &str) {
    // It stands before the sound, which would take long to search.
    let is_tagged = |request: &Received| find(&request.body[..request.body.len().min(1024)], tag.as_bytes()).is_some();
    let asked: Vec<Received> = good.requests().into_iter().filter(is_tagged).collect();
    assert_eq!(asked.len(), 1, "{tag}: asked once");
    asked[0].is_exactly(&kind.body("their/m2", tag), tag);
    assert_eq!(key_of(&asked[0]), GOOD_KEY, "{tag}");
}

/// The client's connection goes on behind an answer.
pub(super) async fn goes_on(gateway: &Gateway, client: &mut Client, label: &str) {
    let kind = Kind::Speech;
    client.send(kind.request("good/m3", "healthy")).await;
    let answer = client.answer().await;
    is_served(&answer, kind, &format!("behind {label}"));
    gateway.record_of("usage", &answer).await;
}

/// The fault meets one request of each kind, and every one is served.
async fn is_survived(fault: &'static str, known: Known) {
    let (bad, good) = (Bad::start(fault).await, good().await);
    let gateway = gateway(fault, bad.port, good.port).await;
    for kind in Kind::ALL {
        let (label, name) = (format!("{fault}, {kind:?}"), format!("{kind:?}").to_lowercase());
        let mut client = gateway.client().await;
        client.send(kind.request(&format!("house-{name}"), &label)).await;
        let answer = client.answer().await;
        is_served(&answer, kind, &label);
        let told = ["provider", "model"].map(|what| answer.header(&format!("x-aulos-{what}")));
        assert_eq!(told, [Some("good"), Some("their/m2")], "{label}");
        let attempts = attempts(&gateway, &answer).await;
        assert_eq!(attempts.len(), 2, "{label}: {attempts:?}");
        assert!(attempts[0].starts_with(&format!("{name}/m1 1 ")), "{label}: {attempts:?}");
        is_known(&attempts[0], known, &label);
        assert_eq!(attempts[1], "good/their/m2 1 200 -", "{label}");
        let usage = gateway.record_of("usage", &answer).await;
        let of = [&usage["provider"], &usage["provider_model"], &usage["end"]];
        assert_eq!(of, [&json!("good"), &json!("their/m2"), &json!("complete")], "{label}: {usage}");
        is_asked_once(&good, kind, &label);
        if answer.header("connection") != Some("close") {
            goes_on(&gateway, &mut client, &label).await;
        }
    }
    assert_eq!(good.heads().len(), good.requests().len(), "{fault}: nothing was begun in vain");
    gateway.metric_is("aulos_spool_bytes", 0).await;
    gateway.metric_is("aulos_requests_in_flight", 0).await;
    assert!(!gateway.log().contains(PROVIDER_KEY), "{fault}");
}

#[tokio::test]
async fn whatever_a_provider_does_the_next_one_serves() {
    for (fault, known) in FAULTS {
        is_survived(fault, known).await;
    }
}

#[tokio::test]
async fn wherever_a_provider_stalls_the_next_one_serves() {
    // Side by side: each of them is waited for.
    let mut waiting = JoinSet::new();
    for (fault, known) in STALLS {
        waiting.spawn(is_survived(fault, known));
    }
    waiting.join_all().await;
}

/// What is wrong with the request is wrong everywhere.
#[tokio::test]
async fn what_is_the_clients_fault_is_not_asked_of_another() {
    for status in ["400 Bad Request", "409 Conflict", "413 Content Too Large", "415 Media", "422 Content"] {
        let (bad, good) = (saying(status).await, good().await);
        let gateway = Gateway::spawn(two(bad.port, good.port)).await;
        for (n, kind) in (1..).zip(Kind::ALL) {
            let label = format!("{status}, {kind:?}");
            let answer = ask(&gateway, kind, "house", &label).await;
            assert_eq!((answer.status.to_string().as_str(), answer.body.as_slice()), (&status[..3], NO), "{label}");
            assert_eq!(attempts(&gateway, &answer).await, [format!("bad/m1 1 {} -", &status[..3])], "{label}");
            assert_eq!(bad.requests().len(), n, "{label}");
        }
        assert_eq!(good.connections(), 0, "{status}");
    }
}
