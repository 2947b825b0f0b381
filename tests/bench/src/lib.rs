//! What the bench and the soak share. Everything stays on loopback, everything started here is ended
//! here by its own process id, and every measurement is bounded in time.
//!
//! ```text
//! rig       → a scratch directory, the pinning, the fake provider
//! contender → a proxy before that provider: aulos, bare Pingora, nginx, HAProxy, or none
//! speech    → the requests everybody sends, and the answers the provider gives
//! upload    → the files everybody uploads, and the receipts the provider gives
//! websocket → the handshake and the messages of those who want an echo
//! load      → a closed loop of keep-alive connections, measured
//! ```
//!
//! Under them stand `child` (a process and its end), `client`, `head` and `framing` (HTTP/1.1 on a raw socket),
//! `procfs` (what the kernel counts), `sound` (bytes to send), `stats` and `table`.

pub mod child;
pub mod client;
pub mod contender;
pub mod framing;
pub mod head;
pub mod load;
pub mod procfs;
pub mod rig;
pub mod sound;
pub mod speech;
pub mod stats;
pub mod table;
pub mod upload;
pub mod websocket;
