//! The way to a provider.

pub mod resolve;
