//! Events: what they are, how they travel, who is told.
//!
//! * `event`: the typed events;
//! * `bus`: the bounded queue between publishers and the drain thread;
//! * `describe`: an event in JSON;
//! * `subscriber`: what a consumer looks like;
//! * `timing`: durations that are counted in place.
//!
//! Publishers are request threads: publishing costs a push into a lock-free queue, and one branch when observability is
//! off. Everything else happens on the drain thread.
#![forbid(unsafe_code)]

mod bus;
mod describe;
mod event;
mod subscriber;
mod timing;

pub use bus::{Bus, BusStatus, Drain};
pub use describe::describe;
pub use event::{
    AdapterId, CbPhase, Cell, During, Event, EvictionCause, KeyBatch, Keys, LookupEnd, PrefetchFailure,
    ReadFailure, SaltCounts, SessionId, Stamped, TraceCall, TraceRow, TransferEnd, TransferId, Worker,
};
pub use subscriber::Subscriber;
pub use timing::{TIMING_BOUNDS_NS, Timing, TimingReading};
