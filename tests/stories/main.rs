//! Stories: the real binary, on loopback ports the system chose, against fake vendors that can stall, reset and lie.

#![expect(clippy::expect_used, reason = "a story that cannot go on has failed")]

mod support;

mod bad_input;
mod clients;
mod demo;
mod failover;
mod faults;
mod passthrough;
mod process;
mod speech;
mod tls;
mod upgrades;
mod uploads;
