//! Lets series go whose worker or salt is gone.

use std::sync::Arc;
use std::time::Instant;

use crate::events::{Event, Stamped, Subscriber};
use crate::telemetry::series::Store;

pub(super) struct Housekeeping {
    store: Arc<Store>,
}

impl Housekeeping {
    pub(super) fn new(store: Arc<Store>) -> Housekeeping {
        Housekeeping { store }
    }
}

impl Subscriber for Housekeeping {
    fn name(&self) -> &'static str {
        "Housekeeping"
    }

    fn on_event(&mut self, event: &Stamped) {
        if let Event::WorkerGone { instance } = event.event {
            self.store.worker_gone(instance, event.at);
        }
    }

    fn on_idle(&mut self, now: Instant) {
        self.store.sweep(now);
    }
}
