//! The daemon's side of the shared ring: workers say what they did and when, the daemon believes numbers and nothing else.
//!
//! * `memory` (unsafe room): the segment and its lanes;
//! * `stamp`: from a record of a worker to times and counts that are plausible, or to a reject with its reason;
//! * `timings`: what is known of the transfers of one worker, until their commit asks;
//! * `hub`: who has which lane; draining; numbers;
//! * `timer`: a thread that drains while any lane is attached, and sleeps otherwise.
//!
//! A worker publishes a transfer's end before it sends the commit, so the engine finds the worker's own times by draining
//! its lane at the commit ([`RingHub::take_timing`]) and publishes those instead of its own: one transfer, one pair of
//! events. A record that no commit asks for (a transfer of another daemon, a measurement that the worker made for itself)
//! is counted as unmatched and becomes no event: the daemon knows neither its request nor its salt, and a worker that
//! writes what it likes must not be able to fill the event queue.

mod hub;
mod memory;
mod stamp;
mod timer;
mod timings;

pub use hub::{AttachError, Counters, LaneStatus, RingConfig, RingError, RingHub, RingStatus};
pub use timer::RingTimer;
pub use timings::Timing;
