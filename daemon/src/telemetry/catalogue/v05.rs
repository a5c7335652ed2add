//! Metrics that only LMCache 0.5.6 has, for dashboards made for it (`--metrics-compat 0.5` and `both`).
//!
//! Not served, as there is nothing here to count: blending (`lmcache_blend_*`), the coordinator
//! (`lmcache_coordinator_*`, `lmcache_mp_key_directory_*`), and the phases inside a GPU copy (`lmcache_mp_transfer_*`).

use super::{Group, Id, Kind, L1_BACKEND, L1_TAG, Metric, Set, name};

const fn group(scope: &'static str) -> Group {
    Group {
        set: Set::V05,
        section: "Only in LMCache 0.5.6",
        scope,
        check: "ipc-tests/tests/metric_compat.rs",
    }
}

const L1: Group = group("lmcache.l1");
const L2: Group = group("lmcache.l2");
const HEALTH: Group = group("lmcache_mp.health");
const LOOKUP: Group = group("lmcache.lookup");
const TRANSFER: Group = group("lmcache_mp.transfer");

const NONE: &[&str] = &[];
const SALT: &[&str] = &["cache_salt"];
const MODEL_SALT: &[&str] = &["model_name", "cache_salt"];
const DEVICE: &[&str] = &["device"];

const fn l1(id: Id, otel: &'static str, prometheus: &'static str, description: &'static str) -> Metric {
    L1.metric(id, Kind::Counter, name(otel, "chunks", prometheus), SALT, description)
        .only_v05()
        .fixed(L1_TAG)
        .omit_empty()
}

const fn l2(id: Id, otel: &'static str, prometheus: &'static str, description: &'static str) -> Metric {
    L2.metric(id, Kind::Counter, name(otel, "chunks", prometheus), SALT, description).only_v05().omit_empty()
}

const fn lookup(
    id: Id,
    otel: &'static str,
    unit: &'static str,
    prometheus: &'static str,
    description: &'static str,
) -> Metric {
    LOOKUP.metric(id, Kind::Counter, name(otel, unit, prometheus), MODEL_SALT, description).only_v05()
}

const fn transfers(
    id: Id,
    otel: &'static str,
    prometheus: &'static str,
    description: &'static str,
) -> Metric {
    TRANSFER.metric(id, Kind::Counter, name(otel, "", prometheus), DEVICE, description).only_v05()
}

const fn gauge(
    scope: &'static str,
    id: Id,
    otel: &'static str,
    prometheus: &'static str,
    attributes: &'static [&'static str],
    description: &'static str,
) -> Metric {
    group(scope)
        .metric(id, Kind::ObservableGauge, name(otel, "", prometheus), attributes, description)
        .only_v05()
}

/// The table.
pub static V05: [Metric; 26] = [
    l1(Id::L1Read05, "lmcache_mp.l1_read", "lmcache_mp_l1_read_chunks_total", "Keys read from L1."),
    l1(Id::L1Write05, "lmcache_mp.l1_write", "lmcache_mp_l1_write_chunks_total", "Keys written to L1."),
    l1(
        Id::L1Evicted05,
        "lmcache_mp.l1_evicted",
        "lmcache_mp_l1_evicted_chunks_total",
        "Keys that left L1, for whatever reason.",
    ),
    l2(
        Id::L2StoreSubmittedObjects,
        "lmcache_mp.l2_store_submitted_objects",
        "lmcache_mp_l2_store_submitted_objects_chunks_total",
        "Keys in stores handed to L2 adapters.",
    ),
    l2(
        Id::L2StoreCompletedObjects,
        "lmcache_mp.l2_store_completed_objects",
        "lmcache_mp_l2_store_completed_objects_chunks_total",
        "Keys that are in L2 now.",
    ),
    l2(
        Id::L2PrefetchLookupObjects,
        "lmcache_mp.l2_prefetch_lookup_objects",
        "lmcache_mp_l2_prefetch_lookup_objects_chunks_total",
        "Keys in lookups handed to L2.",
    ),
    l2(
        Id::L2PrefetchLoadSubmittedObjects,
        "lmcache_mp.l2_prefetch_load_submitted_objects",
        "lmcache_mp_l2_prefetch_load_submitted_objects_chunks_total",
        "Keys in loads handed to L2 adapters.",
    ),
    l2(
        Id::L2PrefetchLoadCompleted,
        "lmcache_mp.l2_prefetch_load_completed",
        "lmcache_mp_l2_prefetch_load_completed_chunks_total",
        "Keys loaded from L2.",
    ),
    l2(
        Id::L2EvictedObjects,
        "lmcache_mp.l2_evicted_objects",
        "lmcache_mp_l2_evicted_objects_chunks_total",
        "Keys evicted from L2.",
    ),
    HEALTH
        .metric(
            Id::Timeouts,
            Kind::Counter,
            name("lmcache_mp.timeouts", "", "lmcache_mp_timeouts_total"),
            &["exception_type"],
            "Waits that ended without their result.",
        )
        .only_v05(),
    lookup(
        Id::LookupHitL1,
        "lmcache_mp.lookup_hit_l1",
        "tokens",
        "lmcache_mp_lookup_hit_l1_tokens_total",
        "Tokens of lookup hits that L1 alone could serve.",
    ),
    lookup(
        Id::LookupHitL2,
        "lmcache_mp.lookup_hit_l2",
        "tokens",
        "lmcache_mp_lookup_hit_l2_tokens_total",
        "Tokens of lookup hits that L2 added.",
    ),
    lookup(
        Id::LookupHitL1Keys,
        "lmcache_mp.lookup_hit_l1_keys",
        "keys",
        "lmcache_mp_lookup_hit_l1_keys_total",
        "Keys of lookup hits that L1 held.",
    ),
    lookup(
        Id::LookupHitL2Keys,
        "lmcache_mp.lookup_hit_l2_keys",
        "keys",
        "lmcache_mp_lookup_hit_l2_keys_total",
        "Keys of lookup hits that L2 loaded.",
    ),
    lookup(
        Id::Lookups,
        "lmcache_mp.lookups",
        "requests",
        "lmcache_mp_lookups_requests_total",
        "Lookups whose result was consumed.",
    ),
    LOOKUP
        .metric(
            Id::LookupEarlyExit,
            Kind::Counter,
            name("lmcache_mp.lookup_early_exit", "requests", "lmcache_mp_lookup_early_exit_requests_total"),
            &["model_name", "cache_salt", "reason"],
            "Lookups that ended before the cache was asked, by reason.",
        )
        .only_v05(),
    transfers(
        Id::NumSubmittedStores,
        "lmcache_mp.num_submitted_stores",
        "lmcache_mp_num_submitted_stores_total",
        "Stores that workers have begun.",
    ),
    transfers(
        Id::NumFinishedStores,
        "lmcache_mp.num_finished_stores",
        "lmcache_mp_num_finished_stores_total",
        "Stores that have ended.",
    ),
    transfers(
        Id::NumSubmittedRetrieves,
        "lmcache_mp.num_submitted_retrieves",
        "lmcache_mp_num_submitted_retrieves_total",
        "Retrieves that workers have begun.",
    ),
    transfers(
        Id::NumFinishedRetrieves,
        "lmcache_mp.num_finished_retrieves",
        "lmcache_mp_num_finished_retrieves_total",
        "Retrieves that have ended.",
    ),
    gauge(
        "lmcache.l1_manager",
        Id::L1StagingBytes,
        "lmcache_mp.l1_staging_bytes",
        "lmcache_mp_l1_staging_bytes",
        NONE,
        "Bytes reserved for objects that are being written.",
    )
    .fixed(L1_BACKEND),
    gauge(
        "lmcache.l2_store",
        Id::L2StoreAdapters,
        "lmcache_mp.l2_store_adapters",
        "lmcache_mp_l2_store_adapters",
        &["state"],
        "L2 adapters that stores go to.",
    )
    .fixed(L1_TAG),
    gauge(
        "lmcache.l2_prefetch",
        Id::L2PrefetchAdapters,
        "lmcache_mp.l2_prefetch_adapters",
        "lmcache_mp_l2_prefetch_adapters",
        &["state"],
        "L2 adapters that loads come from.",
    ),
    gauge(
        "lmcache.l2",
        Id::L2UsageBytes,
        "lmcache_mp.l2_usage_bytes",
        "lmcache_mp_l2_usage_bytes",
        &["l2_name"],
        "Bytes that this daemon's objects take in an L2 tier.",
    ),
    gauge(
        "lmcache.kv_events",
        Id::KvEventsLogDepth,
        "lmcache_mp.kv_events.log_depth",
        "lmcache_mp_kv_events_log_depth",
        NONE,
        "KV event records kept for subscribers.",
    ),
    gauge(
        "lmcache.mp_server",
        Id::ActiveP2pLookupJobs,
        "lmcache_mp.active_p2p_lookup_jobs",
        "lmcache_mp_active_p2p_lookup_jobs",
        NONE,
        "Always 0: pools are not shared between daemons.",
    ),
];
