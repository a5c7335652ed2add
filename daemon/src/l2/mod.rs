//! L2: what does not fit in memory lives on disks and in the cluster's own store.
//!
//! * [`adapter`]: what every store can do; `fs`, `redis`, `s3`, `raw_block`, [`mock`]: the stores;
//! * [`memory`]: the caller's bytes (unsafe room); `io`: file I/O into and out of them (unsafe room);
//! * [`checksum`], [`aesgcm`]: what protects the bytes;
//! * [`ledger`]: what a store holds, and what leaves it when it or a salt fills;
//! * [`breaker`], [`tier`]: what protects requests from a store that is down, slow or wrong;
//! * [`control`]: what goes to the tiers and what comes from them; the only part that knows L1;
//! * [`registry`]: from the JSON of `--l2-adapter` to a tier; [`settings`], [`error`], [`fault_inject`].
//!
//! A tier is a stack, outermost first: [`tier::Tier`] → [`aesgcm::AesGcm`] → [`ledger::Ledger`] → the adapter. But for
//! [`control`], nothing here knows of requests, sockets or L1: bytes come and go through the buffers of [`memory`], which pin whatever they
//! point to. See `docs/l2.md`.
#![deny(unsafe_code)]

pub mod adapter;
pub mod aesgcm;
pub mod breaker;
pub mod checksum;
pub mod control;
pub mod error;
pub mod fault_inject;
mod fs;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod io;
pub mod ledger;
pub mod memory;
pub mod mock;
mod raw_block;
#[cfg(feature = "l2-redis")]
mod redis;
pub mod registry;
#[cfg(feature = "l2-s3")]
mod s3;
pub mod settings;
pub mod tier;
