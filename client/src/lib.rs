//! The thin client of lmcached: what an inference worker links.
//!
//! * [`Client`]: connects (TCP or Unix socket), reconnects, registers, looks up, stores and retrieves; every wait has a
//!   deadline. [`blocking::Client`] is the same for threads without an async runtime.
//! * [`Store`] and [`Retrieve`]: a transfer under way. They lend slices of the mapped pool, so the caller copies once,
//!   between its own memory and the pool, and this library not at all.
//! * [`Publisher`]: the worker's lane of the shared ring. The client publishes its transfers by itself.
//! * [`Connection`]: one connection and one request at a time, for tests and tools.
//!
//! The daemon is not trusted with the worker's life: every offset and length that it sends is checked against the mapping
//! and against what is lent out already, counts are checked against the request, and silence ends at a deadline.
//!
//! ```no_run
//! use std::time::Duration;
//! use lmcache_client::{Options, Prompt, Registration, blocking::Client};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("tcp://127.0.0.1:5555", Options::default())?;
//! client.register(Registration::new(7, "model").geometry(32, 4096, "bfloat16"))?;
//! let tokens: Vec<u32> = (0..1024).collect();
//! let prompt = Prompt::new("request-1", &tokens);
//! let mut store = client.prepare_store(&prompt, 0..1024)?;
//! for (chunk, bytes) in store.slots_mut() {
//!     bytes.fill(chunk as u8); // the worker's copy
//! }
//! store.commit()?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod blocking;
mod client;
mod connection;
mod error;
mod identity;
mod pool;
mod registration;
mod ring;
mod transfer;

pub use client::{Client, Options, Token};
pub use connection::{Connection, operation_frame};
pub use error::{ClientError, PoolError, RingError, SlotError};
pub use identity::{monotonic_nanos, own_process};
pub use lmcache_proto::shm::ring::{Kind, Record};
pub use lmcache_proto::transfer_id::{TransferDirection, request_hash, transfer_id};
pub use registration::{Prompt, Registration};
pub use ring::{Publication, Publisher};
pub use transfer::{Retrieve, Store};
