//! A client of the mixed traffic: most of what it does is in order, the rest is what a day on the net brings.
//! What it does next is drawn from a seed, so that a run can be repeated.

use aulos_bench::client::{Connection, READ_BYTES};
use aulos_bench::speech::{CLIENT_KEY, Speech, post};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The longest anything here should take.
const VISIT_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(8);

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) healthy: u64,
    pub(crate) faulty: u64,
    /// Requests in order that were not answered in order.
    pub(crate) failed: u64,
    /// Faults that were answered as something else, or not at all.
    pub(crate) wrong: u64,
}

pub(crate) struct Visitor {
    target: SocketAddr,
    source: Ipv4Addr,
    seed: u64,
    faulty_percent: u64,
    connection: Option<Connection>,
    room: Vec<u8>,
    tally: Tally,
}

#[derive(Clone, Copy)]
enum Fault {
    BadJson,
    BadKey,
    UnknownPath,
    ProviderResets,
    ProviderBreaksOff,
    UploadAborted,
    DownloadAborted,
    HalfHead,
}

impl Fault {
    const ALL: [Self; 8] = [
        Self::BadJson,
        Self::BadKey,
        Self::UnknownPath,
        Self::ProviderResets,
        Self::ProviderBreaksOff,
        Self::UploadAborted,
        Self::DownloadAborted,
        Self::HalfHead,
    ];
}

impl Visitor {
    /// Each comes from an address of its own: connections by the thousand use up ports.
    pub(crate) fn new(target: SocketAddr, number: u8, faulty_percent: u64) -> Self {
        let source = Ipv4Addr::new(127, 0, 1, number + 1);
        let seed = (u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let (room, tally) = (vec![0; READ_BYTES], Tally::default());
        Self { target, source, seed, faulty_percent, connection: None, room, tally }
    }

    pub(crate) async fn stay(mut self, until: Instant) -> Tally {
        while Instant::now() < until {
            let drawn = self.draw();
            if drawn % 100 < self.faulty_percent {
                let fault = Fault::ALL[(drawn >> 32) as usize % Fault::ALL.len()];
                let seen = timeout(VISIT_MAX, self.misbehave(fault)).await;
                self.tally.faulty += 1;
                self.tally.wrong += u64::from(!matches!(seen, Ok(Ok(true))));
            } else {
                let speech = if (drawn >> 32).is_multiple_of(5) { Speech::Clip } else { Speech::Small };
                let heard = timeout(VISIT_MAX, self.hear(speech)).await;
                self.tally.healthy += 1;
                self.tally.failed += u64::from(!matches!(heard, Ok(Ok(true))));
            }
            sleep(PAUSE).await;
        }
        self.tally
    }

    /// Xorshift, as good as it needs to be.
    fn draw(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// On the connection kept for it. Whether all of it came.
    async fn hear(&mut self, speech: Speech) -> io::Result<bool> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let answer = connection.exchange(&speech.request(), &mut self.room).await?;
        if !answer.closes {
            self.connection = Some(connection);
        }
        Ok((answer.status, answer.body_bytes) == (200, speech.body_bytes()))
    }

    /// On a connection of its own. Whether it was answered as it deserves.
    async fn misbehave(&mut self, fault: Fault) -> io::Result<bool> {
        let json = Speech::Small.json();
        let json = json.as_bytes();
        let mut connection = self.open().await?;
        match fault {
            Fault::BadJson => self.answered(connection, &post(CLIENT_KEY, "", &json[..json.len() - 1]), 400).await,
            Fault::BadKey => self.answered(connection, &post("nobody's", "", json), 401).await,
            Fault::UnknownPath => {
                self.answered(connection, b"GET /v9/nothing HTTP/1.1\r\nHost: bench.test\r\n\r\n", 404).await
            }
            Fault::ProviderResets => self.answered(connection, &Speech::Reset.request(), 502).await,
            // It has to show: the announced length is not reached, and the connection is over.
            Fault::ProviderBreaksOff => Ok(connection.exchange(&Speech::Cut.request(), &mut self.room).await.is_err()),
            Fault::UploadAborted => {
                let whole = post(CLIENT_KEY, "", &vec![b' '; 60_000]);
                connection.send(&whole[..whole.len() / 2]).await.map(|()| true)
            }
            Fault::DownloadAborted => {
                connection.send(&Speech::Slow.request()).await?;
                connection.skip(8 * 1024, &mut self.room).await.map(|()| true)
            }
            Fault::HalfHead => connection.send(&Speech::Small.request()[..60]).await.map(|()| true),
        }
    }

    async fn answered(&mut self, mut connection: Connection, request: &[u8], status: u16) -> io::Result<bool> {
        Ok(connection.exchange(request, &mut self.room).await?.status == status)
    }

    async fn open(&self) -> io::Result<Connection> {
        Connection::open_from(self.source, self.target).await
    }
}
