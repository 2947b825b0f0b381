//! One HTTP/1.1 connection of a client, on a raw socket: what a load generator can afford.

use crate::framing::Body;
use crate::head;
use crate::websocket;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Room for one read: a clip comes in one or two.
pub const READ_BYTES: usize = 128 * 1024;

/// An answer that was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body_bytes: usize,
    pub closes: bool,
}

pub struct Connection {
    pub stream: TcpStream,
}

impl Connection {
    pub async fn open(target: SocketAddr) -> io::Result<Self> {
        Self::open_from(Ipv4Addr::LOCALHOST, target).await
    }

    /// From another address of the loopback net: each has its own ports to run out of.
    pub async fn open_from(source: Ipv4Addr, target: SocketAddr) -> io::Result<Self> {
        Self::connect(TcpSocket::new_v4()?, source, target).await
    }

    /// With a small window, so that what is not read stays with the proxy and not in this socket.
    pub async fn open_narrow(target: SocketAddr, window_bytes: u32) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(window_bytes)?;
        Self::connect(socket, Ipv4Addr::LOCALHOST, target).await
    }

    async fn connect(socket: TcpSocket, source: Ipv4Addr, target: SocketAddr) -> io::Result<Self> {
        if source != Ipv4Addr::LOCALHOST {
            socket.bind((source, 0).into())?;
        }
        let stream = socket.connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends a request and reads its answer; the body is counted, not kept.
    pub async fn exchange(&mut self, request: &[u8], room: &mut [u8]) -> io::Result<Answer> {
        self.send(request).await?;
        self.answer(room).await
    }

    /// Reads one answer; its head has to fit into the room.
    pub async fn answer(&mut self, room: &mut [u8]) -> io::Result<Answer> {
        let (body_at, filled) = self.head(room).await?;
        let head = &room[..body_at];
        let status = head::status(head).ok_or_else(|| malformed("an answer without a status"))?;
        let body_bytes = head::content_length(head).ok_or_else(|| malformed("an answer without a length"))?;
        let closes = head::field(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let mut seen = filled - body_at;
        while seen < body_bytes {
            seen += self.some(room).await?;
        }
        if seen > body_bytes {
            return Err(malformed("more than the length announced"));
        }
        Ok(Answer { status, body_bytes, closes })
    }

    /// Sends a request and keeps the body of the answer.
    pub async fn fetch(&mut self, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let mut body = Vec::new();
        let status = self.listen(request, |piece| body.extend_from_slice(piece)).await?;
        Ok((status, body))
    }

    /// Sends a request and hands on the body of the answer while it comes, whether it has a length or chunks.
    pub async fn listen(&mut self, request: &[u8], mut found: impl FnMut(&[u8])) -> io::Result<u16> {
        self.send(request).await?;
        let mut room = vec![0; READ_BYTES];
        let (body_at, filled) = self.head(&mut room).await?;
        let head = &room[..body_at];
        let status = head::status(head).ok_or_else(|| malformed("an answer without a status"))?;
        let mut body = Body::of(head);
        let (mut read, mut used) = (filled - body_at, body.push(&room[body_at..filled], &mut found)?);
        while !body.is_done() {
            read = self.some(&mut room).await?;
            used = body.push(&room[..read], &mut found)?;
        }
        if read > used { Err(malformed("more than an answer")) } else { Ok(status) }
    }

    /// Speaks WebSocket from here on.
    pub async fn upgrade(&mut self) -> io::Result<()> {
        self.send(&websocket::handshake()).await?;
        let mut room = vec![0; READ_BYTES];
        let (body_at, filled) = self.head(&mut room).await?;
        if websocket::agreed(&room[..body_at]) && filled == body_at {
            return Ok(());
        }
        Err(malformed(&format!("a handshake was answered {}", String::from_utf8_lossy(&room[..filled.min(400)]))))
    }

    /// Sends a message and waits until it has come back.
    pub async fn echo(&mut self, message: &[u8], room: &mut [u8]) -> io::Result<()> {
        self.send(message).await?;
        let mut filled = 0;
        while filled < message.len() {
            filled += self.some(&mut room[filled..]).await?;
        }
        if &room[..filled] == message { Ok(()) } else { Err(malformed("a message that is not the one sent")) }
    }

    /// Reads and drops so many bytes, of head and body alike.
    pub async fn skip(&mut self, bytes: usize, room: &mut [u8]) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let most = left.min(room.len());
            left -= self.some(&mut room[..most]).await?;
        }
        Ok(())
    }

    /// Where the body begins, and how much is there.
    async fn head(&mut self, room: &mut [u8]) -> io::Result<(usize, usize)> {
        let mut filled = 0;
        loop {
            if filled == room.len() {
                return Err(malformed("a head without end"));
            }
            filled += self.some(&mut room[filled..]).await?;
            if let Some(body_at) = head::end(&room[..filled]) {
                return Ok((body_at, filled));
            }
        }
    }

    async fn some(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(room).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
