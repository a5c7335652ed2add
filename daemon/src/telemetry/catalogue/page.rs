//! The 53 metrics of the documented page, in its order.

use super::{Bounds, Group, Id, Kind, L1_BACKEND, L1_TAG, Metric, Set, name};

const ROWS: &str = "ipc-tests/tests/metric_rows.rs";

const fn group(section: &'static str, scope: &'static str) -> Group {
    Group { set: Set::Page, section, scope, check: ROWS }
}

const SM: Group = group("StorageManager Metrics", "lmcache.sm");
const L1: Group = group("L1 Metrics", "lmcache.l1");
const LIFE: Group = group("L1 Chunk Lifecycle Histograms", "lmcache.l1");
const REUSE: Group = group("StorageManager Real-Reuse Metrics", "lmcache.sm");
const L2: Group = group("L2 Metrics", "lmcache.l2");
const HEALTH: Group = group("Failure & Health Counters", "lmcache_mp.health");
const LOOKUP: Group = group("Lookup Hit-Rate Metrics", "lmcache.lookup");
const L0: Group = group("L0 (GPU) Block Lifecycle Histograms", "lmcache.l0");
const L0L1: Group = group("L0 ↔ L1 Throughput Histograms", "lmcache_mp.perf");
const L1L2: Group = group("L1 ↔ L2 Throughput Histograms", "lmcache_mp.perf");
const ENGINE: Group = group("Engine Counters", "lmcache_mp.engine");
const GAUGES: Group = group("Observable Gauges", "lmcache.l1_manager");
const BUS: Group = group("EventBus Self-Monitoring", "lmcache.event_bus");

const LIFECYCLE: Kind = Kind::Histogram(Bounds::Lifecycle);
const GBS: Kind = Kind::Histogram(Bounds::Throughput);

const NONE: &[&str] = &[];
const SALT: &[&str] = &["cache_salt"];
const L2_NAME: &[&str] = &["l2_name"];
const ADAPTER: &[&str] = &["l2_name", "adapter_index"];
const BLOCK: &[&str] = &["instance_id", "model_name"];
const TRANSFER: &[&str] = &["engine_id", "device", "model_name"];

/// The table.
pub static PAGE: [Metric; 53] = [
    SM.metric(
        Id::SmReadRequests,
        Kind::Counter,
        name("lmcache_mp.sm_read_requests", "", "lmcache_mp_sm_read_requests_total"),
        NONE,
        "Prefetches that have ended.",
    ),
    SM.metric(
        Id::SmReadSucceedKeys,
        Kind::Counter,
        name("lmcache_mp.sm_read_succeed_keys", "", "lmcache_mp_sm_read_succeed_keys_total"),
        NONE,
        "Keys that prefetches retained, from L1 and L2.",
    ),
    SM.metric(
        Id::SmReadFailedKeys,
        Kind::Counter,
        name("lmcache_mp.sm_read_failed_keys", "", "lmcache_mp_sm_read_failed_keys_total"),
        NONE,
        "Keys that prefetches asked for and did not retain.",
    ),
    SM.metric(
        Id::SmWriteRequests,
        Kind::Counter,
        name("lmcache_mp.sm_write_requests", "", "lmcache_mp_sm_write_requests_total"),
        NONE,
        "Requests to reserve memory for writing.",
    ),
    SM.metric(
        Id::SmWriteSucceedKeys,
        Kind::Counter,
        name("lmcache_mp.sm_write_succeed_keys", "", "lmcache_mp_sm_write_succeed_keys_total"),
        NONE,
        "Keys that got memory for writing.",
    ),
    SM.metric(
        Id::SmWriteFailedKeys,
        Kind::Counter,
        name("lmcache_mp.sm_write_failed_keys", "", "lmcache_mp_sm_write_failed_keys_total"),
        NONE,
        "Keys that got no memory: L1 is full, or somebody else is writing them.",
    ),
    L1.metric(
        Id::L1ReadKeys,
        Kind::Counter,
        name("lmcache_mp.l1_read_keys", "", "lmcache_mp_l1_read_keys_total"),
        NONE,
        "Keys read from L1.",
    ),
    L1.metric(
        Id::L1WriteKeys,
        Kind::Counter,
        name("lmcache_mp.l1_write_keys", "", "lmcache_mp_l1_write_keys_total"),
        NONE,
        "Keys written to L1.",
    ),
    L1.metric(
        Id::L1EvictedKeys,
        Kind::Counter,
        name("lmcache_mp.l1_evicted_keys", "", "lmcache_mp_l1_evicted_keys_total"),
        NONE,
        "Keys that the eviction policy removed from L1.",
    ),
    L1.metric(
        Id::L1EvictionLoopTicks,
        Kind::Counter,
        name("lmcache_mp.l1_eviction_loop_ticks", "", "lmcache_mp_l1_eviction_loop_ticks_total"),
        NONE,
        "Times the eviction loop looked at L1.",
    )
    .same(),
    L1.metric(
        Id::L1EvictionLoopTriggered,
        Kind::Counter,
        name("lmcache_mp.l1_eviction_loop_triggered", "", "lmcache_mp_l1_eviction_loop_triggered_total"),
        NONE,
        "Times the eviction loop found L1 above the watermark and evicted.",
    )
    .same(),
    LIFE.metric(
        Id::L1ChunkLifetime,
        LIFECYCLE,
        name("lmcache_mp.l1_chunk_lifetime_seconds", "s", "lmcache_mp_l1_chunk_lifetime_seconds"),
        NONE,
        "Time from the write of a chunk to its removal from L1.",
    )
    .v05("lmcache_mp.l1_chunk_lifetime", "s", "lmcache_mp_l1_chunk_lifetime_seconds")
    .fixed(L1_TAG),
    LIFE.metric(
        Id::L1ChunkIdleBeforeEvict,
        LIFECYCLE,
        name(
            "lmcache_mp.l1_chunk_idle_before_evict_seconds",
            "s",
            "lmcache_mp_l1_chunk_idle_before_evict_seconds",
        ),
        NONE,
        "Time from the last use of a chunk to its removal from L1.",
    )
    .v05("lmcache_mp.l1_chunk_idle_before_evict", "s", "lmcache_mp_l1_chunk_idle_before_evict_seconds")
    .fixed(L1_TAG),
    LIFE.metric(
        Id::L1ChunkReuseGap,
        LIFECYCLE,
        name("lmcache_mp.l1_chunk_reuse_gap_seconds", "s", "lmcache_mp_l1_chunk_reuse_gap_seconds"),
        NONE,
        "Time between two uses of a chunk, reads and writes alike.",
    )
    .v05("lmcache_mp.l1_chunk_reuse_gap", "s", "lmcache_mp_l1_chunk_reuse_gap_seconds")
    .fixed(L1_TAG),
    LIFE.metric(
        Id::L1ChunkEvictReuseGap,
        Kind::Histogram(Bounds::EvictReuse),
        name(
            "lmcache_mp.l1_chunk_evict_reuse_gap_seconds",
            "s",
            "lmcache_mp_l1_chunk_evict_reuse_gap_seconds",
        ),
        NONE,
        "Time from the removal of a chunk to its next write; 300 s stands for later or never.",
    )
    .v05("lmcache_mp.l1_chunk_evict_reuse_gap", "s", "lmcache_mp_l1_chunk_evict_reuse_gap_seconds")
    .fixed(L1_TAG),
    REUSE
        .metric(
            Id::RealReuseGapSeconds,
            LIFECYCLE,
            name("lmcache_mp.real_reuse_gap_seconds", "s", "lmcache_mp_real_reuse_gap_seconds"),
            SALT,
            "Time from the last access of a chunk to a read of it: how long it was kept for that.",
        )
        .v05("lmcache_mp.real_reuse_gap", "s", "lmcache_mp_real_reuse_gap_seconds"),
    REUSE
        .metric(
            Id::RealReuseGapChunks,
            Kind::Histogram(Bounds::Chunks),
            name("lmcache_mp.real_reuse_gap_chunks", "{chunks}", "lmcache_mp_real_reuse_gap_chunks"),
            SALT,
            "Chunk accesses of the same salt between the last access of a chunk and a read of it: how much storage that took.",
        )
        .v05("lmcache_mp.real_reuse_gap_objects", "{chunks}", "lmcache_mp_real_reuse_gap_objects"),
    L2.metric(
        Id::L2StoreTasks,
        Kind::Counter,
        name("lmcache_mp.l2_store_tasks", "", "lmcache_mp_l2_store_tasks_total"),
        NONE,
        "Stores handed to L2 adapters.",
    )
    .v05("lmcache_mp.l2_store_submitted", "requests", "lmcache_mp_l2_store_submitted_requests_total"),
    L2.metric(
        Id::L2StoreKeys,
        Kind::Counter,
        name("lmcache_mp.l2_store_keys", "", "lmcache_mp_l2_store_keys_total"),
        NONE,
        "Keys in these stores.",
    ),
    L2.metric(
        Id::L2StoreCompleted,
        Kind::Counter,
        name("lmcache_mp.l2_store_completed", "", "lmcache_mp_l2_store_completed_total"),
        L2_NAME,
        "Stores that L2 adapters have ended, by adapter type.",
    )
    .v05("lmcache_mp.l2_store_completed", "requests", "lmcache_mp_l2_store_completed_requests_total"),
    L2.metric(
        Id::L2StoreSucceededKeys,
        Kind::Counter,
        name("lmcache_mp.l2_store_succeeded_keys", "", "lmcache_mp_l2_store_succeeded_keys_total"),
        NONE,
        "Keys that are in L2 now.",
    ),
    L2.metric(
        Id::L2StoreFailedKeys,
        Kind::Counter,
        name("lmcache_mp.l2_store_failed_keys", "", "lmcache_mp_l2_store_failed_keys_total"),
        NONE,
        "Keys that could not be stored in L2.",
    ),
    L2.metric(
        Id::L2PrefetchLookups,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_lookups", "", "lmcache_mp_l2_prefetch_lookups_total"),
        NONE,
        "Lookups handed to L2.",
    )
    .v05("lmcache_mp.l2_prefetch_lookup", "requests", "lmcache_mp_l2_prefetch_lookup_requests_total"),
    L2.metric(
        Id::L2PrefetchLookupKeys,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_lookup_keys", "", "lmcache_mp_l2_prefetch_lookup_keys_total"),
        NONE,
        "Keys in these lookups.",
    ),
    L2.metric(
        Id::L2PrefetchHitKeys,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_hit_keys", "", "lmcache_mp_l2_prefetch_hit_keys_total"),
        NONE,
        "Keys of the prefix that L2 has.",
    ),
    L2.metric(
        Id::L2PrefetchLoadTasks,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_load_tasks", "", "lmcache_mp_l2_prefetch_load_tasks_total"),
        NONE,
        "Loads handed to L2 adapters, one for each adapter of a request.",
    )
    .v05(
        "lmcache_mp.l2_prefetch_load_submitted",
        "requests",
        "lmcache_mp_l2_prefetch_load_submitted_requests_total",
    ),
    L2.metric(
        Id::L2PrefetchLoadKeys,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_load_keys", "", "lmcache_mp_l2_prefetch_load_keys_total"),
        NONE,
        "Keys in these loads.",
    ),
    L2.metric(
        Id::L2PrefetchLoadedKeys,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_loaded_keys", "", "lmcache_mp_l2_prefetch_loaded_keys_total"),
        NONE,
        "Keys loaded from L2.",
    ),
    L2.metric(
        Id::L2PrefetchFailedKeys,
        Kind::Counter,
        name("lmcache_mp.l2_prefetch_failed_keys", "", "lmcache_mp_l2_prefetch_failed_keys_total"),
        NONE,
        "Keys that could not be loaded from L2.",
    ),
    L2.metric(
        Id::L2LoadCompleted,
        Kind::Counter,
        name("lmcache_mp.l2_load_completed", "", "lmcache_mp_l2_load_completed_total"),
        L2_NAME,
        "Loads that L2 adapters have ended, by adapter type.",
    )
    .v05("lmcache_mp.l2_load_completed", "requests", "lmcache_mp_l2_load_completed_requests_total"),
    HEALTH
        .metric(
            Id::L1AllocationFailure,
            Kind::Counter,
            name("lmcache_mp.l1_allocation_failure", "", "lmcache_mp_l1_allocation_failure_total"),
            &["during", "model_name"],
            "Keys for which L1 had no memory.",
        )
        .v05("lmcache_mp.l1_allocation_failure", "chunks", "lmcache_mp_l1_allocation_failure_chunks_total"),
    HEALTH
        .metric(
            Id::L1ReadFailure,
            Kind::Counter,
            name("lmcache_mp.l1_read_failure", "", "lmcache_mp_l1_read_failure_total"),
            &["during", "reason", "model_name"],
            "Keys that a lookup had announced and that could not be read; not a miss counter.",
        )
        .v05("lmcache_mp.l1_read_failure", "chunks", "lmcache_mp_l1_read_failure_chunks_total"),
    HEALTH
        .metric(
            Id::L2PrefetchFailure,
            Kind::Counter,
            name("lmcache_mp.l2_prefetch_failure", "", "lmcache_mp_l2_prefetch_failure_total"),
            &["reason", "model_name"],
            "Keys that L2 had announced and that did not reach L1.",
        )
        .v05("lmcache_mp.l2_prefetch_failure", "chunks", "lmcache_mp_l2_prefetch_failure_chunks_total"),
    LOOKUP
        .metric(
            Id::LookupRequestedTokens,
            Kind::Counter,
            name("lmcache_mp.lookup_requested_tokens", "tokens", "lmcache_mp_lookup_requested_tokens_total"),
            &["model_name", "cache_salt"],
            "Tokens that lookups asked for, whole chunks only: below the line of the hit rate.",
        )
        .v05("lmcache_mp.lookup_requested", "tokens", "lmcache_mp_lookup_requested_tokens_total"),
    LOOKUP
        .metric(
            Id::LookupHitTokens,
            Kind::Counter,
            name("lmcache_mp.lookup_hit_tokens", "tokens", "lmcache_mp_lookup_hit_tokens_total"),
            &["model_name", "cache_salt"],
            "Tokens of the prefix that lookups found in L1 or L2: above the line of the hit rate.",
        )
        .v05("lmcache_mp.lookup_hit", "tokens", "lmcache_mp_lookup_hit_tokens_total"),
    L0.metric(
        Id::L0BlockLifetime,
        LIFECYCLE,
        name("lmcache_mp.l0_block_lifetime_seconds", "s", "lmcache_mp_l0_block_lifetime_seconds"),
        BLOCK,
        "Time from the allocation of an engine's block to its use for other tokens.",
    )
    .v05("lmcache_mp.l0_block_lifetime", "s", "lmcache_mp_l0_block_lifetime_seconds"),
    L0.metric(
        Id::L0BlockIdleBeforeEvict,
        LIFECYCLE,
        name(
            "lmcache_mp.l0_block_idle_before_evict_seconds",
            "s",
            "lmcache_mp_l0_block_idle_before_evict_seconds",
        ),
        BLOCK,
        "Time from the last use of an engine's block to its use for other tokens.",
    )
    .v05("lmcache_mp.l0_block_idle_before_evict", "s", "lmcache_mp_l0_block_idle_before_evict_seconds"),
    L0.metric(
        Id::L0BlockReuseGap,
        LIFECYCLE,
        name("lmcache_mp.l0_block_reuse_gap_seconds", "s", "lmcache_mp_l0_block_reuse_gap_seconds"),
        BLOCK,
        "Time between two uses of an engine's block for the same tokens.",
    )
    .v05("lmcache_mp.l0_block_reuse_gap", "s", "lmcache_mp_l0_block_reuse_gap_seconds"),
    L0L1.metric(
        Id::L0L1StoreThroughput,
        GBS,
        name("lmcache_mp.l0_l1_store_throughput_gbs", "GB/s", "lmcache_mp_l0_l1_store_throughput_gbs"),
        TRANSFER,
        "Speed of the copy from a worker to L1, for each request.",
    )
    .v05(
        "lmcache_mp.l0_l1_store_throughput",
        "GB/s",
        "lmcache_mp_l0_l1_store_throughput_GB_per_second",
    ),
    L0L1.metric(
        Id::L0L1LoadThroughput,
        GBS,
        name("lmcache_mp.l0_l1_load_throughput_gbs", "GB/s", "lmcache_mp_l0_l1_load_throughput_gbs"),
        TRANSFER,
        "Speed of the copy from L1 to a worker, for each request.",
    )
    .v05("lmcache_mp.l0_l1_load_throughput", "GB/s", "lmcache_mp_l0_l1_load_throughput_GB_per_second"),
    L1L2.metric(
        Id::L2StoreThroughput,
        GBS,
        name("lmcache_mp.l2_store_throughput_gbs", "GB/s", "lmcache_mp_l2_store_throughput_gbs"),
        L2_NAME,
        "Speed of a store to L2 from hand-over to end, its waiting included.",
    )
    .v05("lmcache_mp.l2_store_throughput", "GB/s", "lmcache_mp_l2_store_throughput_GB_per_second"),
    L1L2.metric(
        Id::L2LoadThroughput,
        GBS,
        name("lmcache_mp.l2_load_throughput_gbs", "GB/s", "lmcache_mp_l2_load_throughput_gbs"),
        L2_NAME,
        "Speed of a load from L2 from hand-over to end, its waiting included.",
    )
    .v05("lmcache_mp.l2_load_throughput", "GB/s", "lmcache_mp_l2_load_throughput_GB_per_second"),
    ENGINE
        .metric(
            Id::NumChunksLoaded,
            Kind::Counter,
            name("lmcache_mp.num_chunks_loaded", "", "lmcache_mp_num_chunks_loaded_total"),
            &["worker_id", "model_name", "cache_salt"],
            "Chunks that workers have retrieved.",
        )
        .same(),
    GAUGES
        .metric(
            Id::ActivePrefetchJobs,
            Kind::ObservableGauge,
            name("lmcache_mp.active_prefetch_jobs", "", "lmcache_mp_active_prefetch_jobs"),
            NONE,
            "Prefetches under way.",
        )
        .scope("lmcache.mp_server")
        .same(),
    GAUGES
        .metric(
            Id::L1MemoryUsageBytes,
            Kind::ObservableGauge,
            name("lmcache_mp.l1_memory_usage_bytes", "", "lmcache_mp_l1_memory_usage_bytes"),
            NONE,
            "Bytes that objects take in L1.",
        )
        .same()
        .fixed(L1_BACKEND),
    GAUGES
        .metric(
            Id::L1UsageRatio,
            Kind::ObservableGauge,
            name("lmcache_mp.l1_usage_ratio", "", "lmcache_mp_l1_usage_ratio"),
            NONE,
            "Share of L1 that objects take, 0 to 1.",
        )
        .same()
        .fixed(L1_BACKEND),
    GAUGES
        .metric(
            Id::NumInflightL2Stores,
            Kind::ObservableGauge,
            name("lmcache_mp.num_inflight_l2_stores", "", "lmcache_mp_num_inflight_l2_stores"),
            ADAPTER,
            "Stores that an L2 adapter is executing.",
        )
        .scope("lmcache.l2_store")
        .same()
        .fixed(L1_TAG),
    GAUGES
        .metric(
            Id::NumInflightL2Loads,
            Kind::ObservableGauge,
            name("lmcache_mp.num_inflight_l2_loads", "", "lmcache_mp_num_inflight_l2_loads"),
            ADAPTER,
            "Loads that an L2 adapter is executing.",
        )
        .scope("lmcache.l2_prefetch")
        .same(),
    GAUGES
        .metric(
            Id::InflightLoadMemoryUsageBytes,
            Kind::ObservableGauge,
            name(
                "lmcache_mp.inflight_load_memory_usage_bytes",
                "",
                "lmcache_mp_inflight_load_memory_usage_bytes",
            ),
            ADAPTER,
            "L1 bytes reserved for loads that an L2 adapter is executing.",
        )
        .scope("lmcache.l2_prefetch")
        .same(),
    BUS.metric(
        Id::BusQueueDepth,
        Kind::ObservableGauge,
        name("lmcache_mp.event_bus.queue_depth", "", "lmcache_mp_event_bus_queue_depth"),
        NONE,
        "Events that wait in the bus.",
    )
    .same(),
    BUS.metric(
        Id::BusDrainLag,
        Kind::ObservableGauge,
        name("lmcache_mp.event_bus.drain_lag_seconds", "", "lmcache_mp_event_bus_drain_lag_seconds"),
        NONE,
        "Age of the oldest event that waits; 0 when none does.",
    )
    .same(),
    BUS.metric(
        Id::BusDroppedEvents,
        Kind::ObservableCounter,
        name(
            "lmcache_mp.event_bus.dropped_events_total",
            "",
            "lmcache_mp_event_bus_dropped_events_total",
        ),
        NONE,
        "Events dropped because --event-bus-queue-size of them were waiting.",
    )
    .same(),
    BUS.metric(
        Id::BusSubscriberExceptions,
        Kind::ObservableCounter,
        name(
            "lmcache_mp.event_bus.subscriber_exceptions",
            "",
            "lmcache_mp_event_bus_subscriber_exceptions_total",
        ),
        &["subscriber_name"],
        "Panics of an event subscriber; its numbers are incomplete.",
    )
    .same(),
];
