//! Byte formats. A scanner here is fed slices: it owns no socket, clock or task, has a limit, and gives the same
//! result however the network cuts its input. Nothing of ours is imported.

pub mod frames;
pub mod glob;
pub mod head;
pub mod json;
pub mod line;
pub mod mask;
pub mod multipart;
pub mod path;
pub mod splice;
pub mod sse;
#[cfg(test)]
pub(crate) mod testing;
