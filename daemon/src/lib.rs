//! The daemon's rooms; see `docs/ARCHITECTURE.md` for the map and the invariants.
#![deny(unsafe_code)]

pub mod engine;
pub mod l1;
pub mod process;
pub mod server;
