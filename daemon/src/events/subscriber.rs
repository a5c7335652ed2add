//! A consumer of events.

use std::time::Instant;

use super::event::Stamped;

/// Told of every event, in order, on the drain thread.
///
/// A subscriber owns its state, sees nothing but events, and must not block: what it does for long delays all others. A
/// panic is counted under its name; it is told of the next event all the same.
pub trait Subscriber: Send {
    /// Label of its exception counter.
    fn name(&self) -> &'static str;

    /// Something happened.
    fn on_event(&mut self, event: &Stamped);

    /// The queue is empty: a place for what is cheaper in bulk, such as flushing a file.
    fn on_idle(&mut self, _now: Instant) {}

    /// The bus is stopping; no event follows.
    fn shutdown(&mut self) {}
}
