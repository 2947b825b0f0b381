//! From a config to open sockets, and from a signal to their end.

pub mod front;
pub mod live;
pub mod run;
pub mod signals;
pub mod sockets;
pub mod tls;
