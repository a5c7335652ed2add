//! `sm_*` counters: what callers asked of the storage, and got.

use std::sync::Arc;

use crate::events::{Event, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::series::Store;

pub(super) struct StorageMetrics {
    store: Arc<Store>,
}

impl StorageMetrics {
    pub(super) fn new(store: Arc<Store>) -> StorageMetrics {
        StorageMetrics { store }
    }
}

impl Subscriber for StorageMetrics {
    fn name(&self) -> &'static str {
        "StorageMetrics"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::SmReadPrefetched { succeeded, failed } => {
                self.store.add(Id::SmReadRequests, &[], 1);
                self.store.add(Id::SmReadSucceedKeys, &[], succeeded.len() as u64);
                self.store.add(Id::SmReadFailedKeys, &[], *failed);
            }
            Event::SmWriteReserved { succeeded, failed } => {
                self.store.add(Id::SmWriteRequests, &[], 1);
                self.store.add(Id::SmWriteSucceedKeys, &[], *succeeded);
                self.store.add(Id::SmWriteFailedKeys, &[], *failed);
            }
            _ => {}
        }
    }
}
