//! Request bodies: read before the provider is known, then presented to it as if nothing had been read.

pub mod intake;
pub mod read;
pub mod replay;
pub mod spool;
