//! What workers stored and retrieved.

use std::sync::Arc;

use crate::events::{Event, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::series::Store;

pub(super) struct TransferMetrics {
    store: Arc<Store>,
}

impl TransferMetrics {
    pub(super) fn new(store: Arc<Store>) -> TransferMetrics {
        TransferMetrics { store }
    }
}

impl Subscriber for TransferMetrics {
    fn name(&self) -> &'static str {
        "TransferMetrics"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::MpStoreSubmitted { worker, .. } => {
                self.store.add(Id::NumSubmittedStores, &[&worker.device], 1);
            }
            Event::MpStoreEnd { worker, .. } => self.store.add(Id::NumFinishedStores, &[&worker.device], 1),
            Event::MpRetrieveSubmitted { worker, .. } => {
                self.store.add(Id::NumSubmittedRetrieves, &[&worker.device], 1);
            }
            Event::MpRetrieveEnd { worker, end, .. } => {
                self.store.add(Id::NumFinishedRetrieves, &[&worker.device], 1);
                let labels: &[&str] = &[&worker.engine_id.to_string(), &worker.model, &end.salt];
                self.store.add(Id::NumChunksLoaded, labels, end.count);
            }
            _ => {}
        }
    }
}
