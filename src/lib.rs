//! aulos, an edge gateway for speech. A request passes
//!
//! ```text
//! listen → authenticate → inspect → route → hold → rewrite → stream → meter → settle → record
//! ```
//!
//! and the modules below follow that order: the way in, the glue that names Pingora's phases, the stages, then what
//! the stages stand on. Imports point down. (`hold` and `settle` come with the money.)

pub mod cli;
pub mod demo;
pub mod listen;

pub mod admin;
pub mod admission;
pub mod desk;
pub mod exchange;
pub mod failure;
pub mod gateway;

pub mod answer;
pub mod body;
pub mod stage;
pub mod tunnel;
pub mod upstream;

pub mod catalog;
pub mod config;
pub mod provider;
pub mod records;
pub mod state;
pub mod surface;
pub mod wire;

pub mod metrics;
pub mod refusal;
pub mod units;
