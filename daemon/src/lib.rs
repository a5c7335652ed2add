//! The daemon's rooms; see `docs/ARCHITECTURE.md` for the map and the invariants.
#![deny(unsafe_code)]

pub mod app;
pub mod config;
pub mod device;
pub mod engine;
pub mod events;
pub mod failpoint;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod handover;
pub mod http;
pub mod journal;
pub mod keeper;
pub mod l1;
pub mod l2;
pub mod liveness_watch;
mod log_limit;
pub mod logging;
mod net;
pub mod periodic;
pub mod process;
pub mod quota;
pub mod ring;
pub mod roster;
mod secret_file;
pub mod server;
mod shm_file;
pub mod systemd;
pub mod telemetry;
pub mod tenants;
pub mod trace;
