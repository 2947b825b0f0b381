//! The stages of a request, in the order it passes them. Each is free functions over plain types: it takes what
//! the stage before gave, and knows nothing of sockets.

pub mod authenticate;
pub mod edit;
pub mod failover;
pub mod form;
pub mod h2;
pub mod hops;
pub mod inspect;
pub mod meter;
pub mod passthrough;
pub mod record;
pub mod rewrite;
pub mod route;
pub mod stream;

#[cfg(test)]
pub(crate) mod testing;
