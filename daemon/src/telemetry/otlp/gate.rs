//! A count of what waits for a collector, so that what finds no room is dropped by us and counted.
//!
//! The SDK's batch processors drop too, but keep the number to themselves.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for so many items.
#[derive(Debug)]
pub struct Gate {
    waiting: AtomicUsize,
    room: usize,
}

impl Gate {
    /// Room for `room` items.
    pub fn new(room: usize) -> Gate {
        Gate { waiting: AtomicUsize::new(0), room }
    }

    /// Takes a place, if there is one.
    pub fn enter(&self) -> bool {
        // One too many for a moment does no harm: the processor's queue has room for more.
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Gives places back.
    pub fn leave(&self, items: usize) {
        let _ = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            Some(waiting.saturating_sub(items))
        });
    }
}

/// The size of a processor's queue: the variable of the OpenTelemetry specification, or a default.
pub fn queue_size(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .filter(|size| *size > 0)
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_has_its_room_and_no_more() {
        let gate = Gate::new(2);
        assert!(gate.enter() && gate.enter() && !gate.enter());
        gate.leave(1);
        assert!(gate.enter() && !gate.enter());
        gate.leave(100);
        assert!(gate.enter() && gate.enter() && !gate.enter());
    }
}
