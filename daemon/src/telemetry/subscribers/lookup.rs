//! The hit rate: tokens asked for and tokens found, of lookups whose result was consumed.

use std::sync::Arc;

use crate::events::{Event, LookupEnd, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::series::Store;

pub(super) struct LookupMetrics {
    store: Arc<Store>,
}

impl LookupMetrics {
    pub(super) fn new(store: Arc<Store>) -> LookupMetrics {
        LookupMetrics { store }
    }

    fn ended(&self, end: &LookupEnd) {
        let labels: &[&str] = &[&end.model, &end.salt];
        // A lookup that ended early asked the cache for nothing.
        let early = !end.early_exit_reason.is_empty();
        let of = |count: u64| if early { 0 } else { count };
        for (id, count) in [
            (Id::LookupRequestedTokens, end.requested_tokens),
            (Id::LookupHitTokens, end.hit_tokens),
            (Id::LookupHitL1, end.l1_hit_tokens),
            (Id::LookupHitL2, end.l2_hit_tokens),
            (Id::LookupHitL1Keys, end.l1_hit_keys),
            (Id::LookupHitL2Keys, end.l2_hit_keys),
        ] {
            self.store.add(id, labels, of(count));
        }
        self.store.add(Id::Lookups, labels, 1);
        if early {
            self.store.add(Id::LookupEarlyExit, &[&end.model, &end.salt, end.early_exit_reason], 1);
        }
    }
}

impl Subscriber for LookupMetrics {
    fn name(&self) -> &'static str {
        "LookupMetrics"
    }

    fn on_event(&mut self, event: &Stamped) {
        if let Event::MpLookupPrefetchEnd { end, .. } = &event.event {
            self.ended(end);
        }
    }
}
