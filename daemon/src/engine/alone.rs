//! An engine over its L1 and nothing else, for the tests and fuzzers of the rooms around it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::hash::{HashAlgorithm, TokenHasher};
#[cfg(test)]
use lmcache_proto::wire::{RegisterEngineDrivenPayload, Request};

use super::{Engine, EngineConfig, Parts};
use crate::events::Bus;
use crate::journal::Journal;
use crate::l1::L1;
use crate::liveness_watch::DeathWatch;
use crate::ring::RingHub;
use crate::roster::Roster;
use crate::tenants::Gate;

/// Tokens of a chunk: short prompts have many.
pub(crate) const CHUNK: u32 = 16;

/// The registration of a worker that copies by itself.
#[cfg(test)]
pub(super) fn registration(instance_id: u64) -> Request<'static> {
    Request::RegisterEngineDriven(Box::new(RegisterEngineDrivenPayload {
        instance_id,
        model_name: "m".into(),
        world_size: 1,
        block_size: 16,
        num_layers: 1,
        hidden_dim_size: 8,
        dtype_str: "float16".into(),
        use_mla: false,
        num_physical_slots: None,
    }))
}

impl Engine {
    /// No events, ring, tiers or earlier daemon; nothing runs out before `patience` is over.
    pub(crate) fn alone(l1: Arc<L1>, patience: Duration, kv_event_log_size: usize) -> Arc<Engine> {
        Engine::alone_with(l1, patience, kv_event_log_size, None)
    }

    /// The same, where salts have tenants.
    pub(crate) fn alone_with(
        l1: Arc<L1>,
        patience: Duration,
        kv_event_log_size: usize,
        tenants: Option<Arc<Gate>>,
    ) -> Arc<Engine> {
        let config = EngineConfig {
            reap_timeout: patience,
            registration_grace: patience,
            session_ttl: patience,
            write_ttl: patience,
            lease_grace: patience,
            max_sessions: 100,
            max_session_bytes: 1 << 20,
            max_prefetch_jobs: 16,
            max_workers: 16,
            max_registration_bytes: 1 << 20,
            kv_event_log_size,
            kv_event_log_bytes: 1 << 20,
            watermark: 0.9,
            eviction_ratio: 0.2,
            null_block_id: 0,
            separate_object_groups: false,
            lmcache_driven: true,
            engine_driven: true,
            pool_name: "unused".into(),
            publish_lookups: false,
            publish_calls: false,
        };
        let parts = Parts {
            l1,
            adopted: Vec::new(),
            bus: Bus::disabled(),
            ring: RingHub::disabled(),
            deaths: DeathWatch::new().0,
            l2: None,
            quotas: Arc::default(),
            tenants,
            roster: Roster::none(),
            journal: Journal::none(),
            cuda: None,
        };
        Engine::new(config, TokenHasher::new(HashAlgorithm::Blake3, CHUNK as usize, None), parts)
    }
}
