//! What operators and clients ask about the daemon itself.

use serde_json::{Value, json};

use super::Engine;
use super::instances::Kind;
use super::kv_events::KvEventStatus;
use crate::device::Registration;

impl Engine {
    /// Names of optional protocol features.
    pub fn capabilities(&self) -> Vec<String> {
        if self.kv_events.enabled() { vec!["kv_event_stream".to_owned()] } else { Vec::new() }
    }

    /// Drops cached objects: all that nobody holds, or with `force` all. Returns how many.
    pub fn clear(&self, force: bool) -> u64 {
        let dropped = self.l1.clear(force, || self.flush_removed());
        tracing::info!(dropped, force, "L1 cleared");
        self.after_change();
        dropped
    }

    /// Bytes that the registrations of all workers take.
    pub fn registration_bytes(&self) -> usize {
        self.instances.bytes()
    }

    /// Requests remembered, and the bytes that their prompts and leases take.
    pub fn session_usage(&self) -> (usize, usize) {
        (self.sessions.len(), self.sessions.bytes())
    }

    /// Registered workers.
    pub fn workers(&self) -> usize {
        self.instances.len()
    }

    /// Numbers of the KV event log.
    pub fn kv_event_status(&self) -> KvEventStatus {
        self.kv_events.status()
    }

    /// `/status`: the peer's keys, with this daemon's numbers.
    pub fn status(&self) -> Value {
        let l1 = self.l1.stats();
        let events = self.kv_events.status();
        let ratio = if l1.capacity == 0 { 0.0 } else { l1.used as f64 / l1.capacity as f64 };
        let manager = json!({
            "is_healthy": true,
            "total_object_count": l1.objects,
            "write_locked_count": l1.writing,
            "read_locked_count": l1.leases,
            "temporary_count": 0,
            "staging_object_count": l1.writing,
            "staging_bytes": 0,
            "pinned_count": l1.pins,
            "quarantined_count": l1.quarantined,
            "memory_used_bytes": l1.used,
            "memory_total_bytes": l1.frontier,
            "memory_configured_bytes": l1.capacity,
            "capacity_bytes_by_backend": {"dram": l1.capacity},
            "memory_usage_ratio": ratio,
            "write_ttl_seconds": self.config.write_ttl.as_secs(),
            // Reads have no deadline here; the time that a lease outlives its connection comes nearest.
            "read_ttl_seconds": self.config.lease_grace.as_secs(),
        });
        let eviction = json!({
            "is_healthy": true,
            "thread_alive": true,
            "trigger_watermark": self.config.watermark,
            "eviction_ratio": self.config.eviction_ratio,
        });
        let adapters = self.l2.as_ref().map(|l2| l2.opened.tiers.status()).unwrap_or_default();
        let (mut device_ids, mut devices, mut engine_ids, mut engines) =
            (Vec::new(), serde_json::Map::new(), Vec::new(), serde_json::Map::new());
        for instance in self.instances.all() {
            let mut meta = json!({"model_name": &*instance.model, "world_size": instance.world_size});
            match &instance.kind {
                Kind::LmcacheDriven { registration, .. } => {
                    if let Some(registration) = registration.get() {
                        meta["kv_cache_layout"] = layout_status(registration);
                    }
                    device_ids.push(instance.id);
                    devices.insert(instance.id.to_string(), meta);
                }
                Kind::EngineDriven { block_size, single_plane } => {
                    meta["block_size"] = json!(block_size);
                    meta["use_mla"] = json!(single_plane);
                    engine_ids.push(instance.id);
                    engines.insert(instance.id.to_string(), meta);
                }
            }
        }
        json!({
            "is_healthy": true,
            "engine_type": "MPCacheServer",
            "chunk_size": self.hasher.chunk_size(),
            "active_sessions": self.sessions.len(),
            "storage_manager": {
                "is_healthy": true,
                "l1_managers": {"_default": manager.clone()},
                "l1_eviction_controllers": {"_default": eviction.clone()},
                "num_l2_adapters": adapters.len(),
                "l2_adapters": adapters,
                "l1_usage": [l1.used, l1.capacity],
                "l1_capacity_bytes_by_backend": {"dram": l1.capacity},
                "l1_manager": manager,
                "l1_eviction_controller": eviction.clone(),
                // `lmcache describe kvcache` still reads the older name.
                "eviction_controller": eviction,
            },
            "active_prefetch_jobs": self.l2.as_ref().map_or(0, |l2| l2.opened.loader.jobs()),
            "active_transfers": self.transfers.lock().len(),
            "active_p2p_lookup_jobs": 0,
            "p2p_enabled": false,
            "worker_liveness": {
                "enabled": !self.config.reap_timeout.is_zero(),
                "reap_timeout_seconds": self.config.reap_timeout.as_secs_f64(),
                "registration_grace_seconds": self.config.registration_grace.as_secs_f64(),
                "tracked_instances": device_ids.len() + engine_ids.len(),
            },
            "kv_events": {
                "enabled": events.enabled,
                "incarnation": events.incarnation,
                "log_depth": events.depth,
                "log_capacity": events.capacity,
                "log_bytes": events.bytes,
                "log_capacity_bytes": events.capacity_bytes,
                "next_seq": events.next_seq,
                "subscribers": events.subscribers,
            },
            "ring": self.ring_status(),
            "registered_gpu_ids": device_ids,
            "cache_context_meta": devices,
            "registered_non_cuda_instance_ids": engine_ids,
            "non_cuda_context_meta": engines,
        })
    }
}

impl Engine {
    /// The workers' lanes and what they lost.
    pub fn ring_status(&self) -> Value {
        self.ring.drain_all();
        let status = self.ring.status();
        let counters = |c: &crate::ring::Counters| {
            json!({
                "records": c.records,
                "matched": c.matched,
                "unmatched": c.unmatched,
                "lost": c.lost,
                "rejected": {
                    "corrupt": c.corrupt,
                    "unknown_kind": c.unknown_kind,
                    "bad_time": c.bad_time,
                    "bad_range": c.bad_range,
                },
            })
        };
        let workers: Vec<Value> = status
            .workers
            .iter()
            .map(|worker| {
                let mut row = counters(&worker.counters);
                row["instance"] = json!(worker.instance);
                row["lane"] = json!(worker.lane);
                row["epoch"] = json!(worker.epoch);
                row["open_transfers"] = json!(worker.open);
                row
            })
            .collect();
        json!({
            "lanes": status.lanes,
            "broken": status.broken,
            "workers": workers,
            "total": counters(&status.total),
        })
    }
}

fn layout_status(registration: &Registration) -> Value {
    let geometry = &registration.geometry;
    let kernel_groups: Vec<Value> = geometry
        .kernel_groups
        .iter()
        .map(|group| {
            json!({
                "num_layers": group.layers.len(),
                "engine_kv_format": format!("{:?}", group.format),
                "num_blocks": group.num_blocks,
                "block_size": group.slots_per_block,
                "tokens_per_block": group.tokens_per_block,
                "hidden_dim_size": group.width(),
                "dtype": group.dtype.name(),
            })
        })
        .collect();
    let object_bytes: Vec<u64> = geometry.object_groups.iter().map(|group| group.layout.bytes()).collect();
    json!({"device": "cpu", "kernel_groups": kernel_groups, "object_bytes": object_bytes})
}
