//! L2 counters.

use std::sync::Arc;

use crate::events::{Event, SaltCounts, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::series::Store;

pub(super) struct L2Metrics {
    store: Arc<Store>,
}

impl L2Metrics {
    pub(super) fn new(store: Arc<Store>) -> L2Metrics {
        L2Metrics { store }
    }

    fn add(&self, id: Id, count: u64) {
        self.store.add(id, &[], count);
    }

    fn by_salt(&self, id: Id, counts: &SaltCounts) {
        for (salt, count) in counts.iter() {
            self.store.add(id, &[salt], *count);
        }
    }
}

impl Subscriber for L2Metrics {
    fn name(&self) -> &'static str {
        "L2Metrics"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::L2StoreSubmitted { keys, by_salt, .. } => {
                self.add(Id::L2StoreTasks, 1);
                self.add(Id::L2StoreKeys, *keys);
                self.by_salt(Id::L2StoreSubmittedObjects, by_salt);
            }
            Event::L2StoreCompleted { adapter, succeeded, failed, by_salt, .. } => {
                self.store.add(Id::L2StoreCompleted, &[&adapter.name], 1);
                self.add(Id::L2StoreSucceededKeys, *succeeded);
                self.add(Id::L2StoreFailedKeys, *failed);
                self.by_salt(Id::L2StoreCompletedObjects, by_salt);
            }
            Event::L2PrefetchLookupSubmitted { keys, by_salt, .. } => {
                self.add(Id::L2PrefetchLookups, 1);
                self.add(Id::L2PrefetchLookupKeys, *keys);
                self.by_salt(Id::L2PrefetchLookupObjects, by_salt);
            }
            Event::L2PrefetchLookupCompleted { prefix_hits, .. } => {
                self.add(Id::L2PrefetchHitKeys, *prefix_hits)
            }
            Event::L2PrefetchLoadSubmitted { keys, adapters, by_salt, .. } => {
                self.add(Id::L2PrefetchLoadTasks, u64::from(*adapters));
                self.add(Id::L2PrefetchLoadKeys, *keys);
                self.by_salt(Id::L2PrefetchLoadSubmittedObjects, by_salt);
            }
            Event::L2PrefetchLoadCompleted { loaded, failed, by_salt, .. } => {
                self.add(Id::L2PrefetchLoadedKeys, *loaded);
                self.add(Id::L2PrefetchFailedKeys, *failed);
                self.by_salt(Id::L2PrefetchLoadCompleted, by_salt);
            }
            Event::L2LoadTaskCompleted { adapter, .. } => {
                self.store.add(Id::L2LoadCompleted, &[&adapter.name], 1);
            }
            Event::L2KeysEvicted { by_salt, .. } => self.by_salt(Id::L2EvictedObjects, by_salt),
            _ => {}
        }
    }
}
