//! What the bench and the soak share. Everything stays on loopback, everything started here is ended
//! here by its own process id, and every measurement is bounded in time.
//!
//! ```text
//! rig       → a scratch directory, the pinning, the fake provider
//! contender → a proxy before that provider: aulos, bare Pingora, nginx, HAProxy, or none
//! speech    → the requests everybody sends, and the answers the provider gives
//! upload    → the forms everybody uploads, and the receipts the provider gives
//! load      → a closed loop of keep-alive connections, measured
//! ```
//!
//! Under them stand `child` (a process and its end), `client`, `head` and `framing` (HTTP/1.1 on a raw socket),
//! `procfs` (what the kernel counts), `stats` and `table`.

pub mod child;
pub mod client;
pub mod contender;
pub mod framing;
pub mod head;
pub mod load;
pub mod procfs;
pub mod rig;
pub mod speech;
pub mod stats;
pub mod table;
pub mod upload;
