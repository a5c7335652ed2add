//! Failure counters; each should stay near zero.

use std::sync::Arc;

use crate::events::{Event, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::series::Store;

pub(super) struct FailureMetrics {
    store: Arc<Store>,
}

impl FailureMetrics {
    pub(super) fn new(store: Arc<Store>) -> FailureMetrics {
        FailureMetrics { store }
    }
}

impl Subscriber for FailureMetrics {
    fn name(&self) -> &'static str {
        "FailureMetrics"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::L1AllocationFailed { during, model, keys } => {
                self.store.add(Id::L1AllocationFailure, &[during.name(), model], *keys);
            }
            Event::L1ReadFailed { during, reason, model, keys } => {
                self.store.add(Id::L1ReadFailure, &[during.name(), reason.name(), model], *keys);
            }
            Event::L2PrefetchFailed { reason, model, keys } => {
                self.store.add(Id::L2PrefetchFailure, &[reason.name(), model], *keys);
            }
            Event::TimeoutRaised { kind, .. } => self.store.add(Id::Timeouts, &[kind], 1),
            _ => {}
        }
    }
}
