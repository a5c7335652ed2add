//! L1 counters.

use std::sync::Arc;

use crate::events::{Event, EvictionCause, Keys, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::series::Store;

pub(super) struct L1Metrics {
    store: Arc<Store>,
}

impl L1Metrics {
    pub(super) fn new(store: Arc<Store>) -> L1Metrics {
        L1Metrics { store }
    }

    fn count(&self, id: Id, by_salt: Id, keys: &Keys) {
        self.store.add(id, &[], keys.len() as u64);
        self.store.add(by_salt, &[keys.salt()], keys.len() as u64);
    }
}

impl Subscriber for L1Metrics {
    fn name(&self) -> &'static str {
        "L1Metrics"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::L1ReadFinished { keys } => self.count(Id::L1ReadKeys, Id::L1Read05, keys),
            Event::L1WriteFinished { keys } | Event::L1WriteFinishedAndReadReserved { keys } => {
                self.count(Id::L1WriteKeys, Id::L1Write05, keys);
            }
            Event::L1KeysEvicted { keys, cause } => {
                // 0.5.6 counts every removal, the documented metric those by the policy only.
                self.store.add(Id::L1Evicted05, &[keys.salt()], keys.len() as u64);
                if *cause == EvictionCause::Policy {
                    self.store.add(Id::L1EvictedKeys, &[], keys.len() as u64);
                }
            }
            Event::L1EvictionLoopTick { triggered, .. } => {
                self.store.add(Id::L1EvictionLoopTicks, &[], 1);
                self.store.add(Id::L1EvictionLoopTriggered, &[], u64::from(*triggered));
            }
            _ => {}
        }
    }
}
