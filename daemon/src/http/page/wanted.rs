//! Which samples of `/metrics` the page keeps, and under which short names.

/// Label sets kept of one number; what comes later is added up under [`OTHERS`].
pub const MAX_LABEL_SETS: usize = 48;

/// Label value of everything beyond [`MAX_LABEL_SETS`].
pub const OTHERS: &str = "(others)";

/// Longest label value kept: names come from the wire.
pub const MAX_LABEL_CHARS: usize = 120;

/// A number the page wants.
#[derive(Debug)]
pub struct Wanted {
    /// Its name in the page's data.
    pub key: &'static str,
    /// Names of the sample. The first one that the text has is taken: the second is LMCache 0.5.6's.
    pub names: &'static [&'static str],
    /// Labels to keep; samples that differ in others only are added up.
    pub by: &'static [&'static str],
    /// Whether it only grows.
    pub counter: bool,
}

const fn counter(key: &'static str, names: &'static [&'static str], by: &'static [&'static str]) -> Wanted {
    Wanted { key, names, by, counter: true }
}

const fn gauge(key: &'static str, names: &'static [&'static str], by: &'static [&'static str]) -> Wanted {
    Wanted { key, names, by, counter: false }
}

const MODEL: &[&str] = &["model_name", "cache_salt"];
const WORKER: &[&str] = &["engine_id", "device"];
const TIER: &[&str] = &["l2_name"];
const ADAPTER: &[&str] = &["l2_name", "adapter_index"];

/// Histogram of request times, by operation.
pub const LATENCY: &str = "lmcached_request_seconds_bucket";

/// Everything but [`LATENCY`].
pub const WANTED: &[Wanted] = &[
    counter("requested_tokens", &["lmcache_mp_lookup_requested_tokens_total"], MODEL),
    counter("hit_tokens", &["lmcache_mp_lookup_hit_tokens_total"], MODEL),
    counter("stored_tokens", &["lmcached_stored_tokens_total"], &[]),
    counter("retrieved_tokens", &["lmcached_retrieved_tokens_total"], &[]),
    counter("requests", &["lmcached_requests_total"], &["operation", "outcome"]),
    gauge("l1_used", &["lmcache_mp_l1_memory_usage_bytes"], &[]),
    gauge("l1_ratio", &["lmcache_mp_l1_usage_ratio"], &[]),
    gauge("l1_capacity", &["lmcached_l1_capacity_bytes"], &[]),
    gauge("l1_reserved", &["lmcached_l1_reserved_bytes"], &[]),
    gauge("l1_objects", &["lmcached_l1_objects"], &[]),
    gauge("l1_writing", &["lmcached_l1_writing_objects"], &[]),
    gauge("l1_quarantined", &["lmcached_l1_quarantined_objects"], &[]),
    gauge("l1_leases", &["lmcached_l1_leases"], &[]),
    gauge("l1_pins", &["lmcached_l1_pins"], &[]),
    counter("l1_full", &["lmcached_l1_full_total"], &[]),
    counter("l1_evicted", &["lmcache_mp_l1_evicted_keys_total", "lmcache_mp_l1_evicted_chunks_total"], &[]),
    counter("l1_evicted_bytes", &["lmcached_l1_evicted_bytes_total"], &[]),
    gauge("l2_used", &["lmcached_l2_usage_bytes", "lmcache_mp_l2_usage_bytes"], TIER),
    gauge("l2_stores", &["lmcache_mp_num_inflight_l2_stores"], ADAPTER),
    gauge("l2_loads", &["lmcache_mp_num_inflight_l2_loads"], ADAPTER),
    counter(
        "l2_stored",
        &["lmcache_mp_l2_store_completed_total", "lmcache_mp_l2_store_completed_requests_total"],
        TIER,
    ),
    counter(
        "l2_loaded",
        &["lmcache_mp_l2_load_completed_total", "lmcache_mp_l2_load_completed_requests_total"],
        TIER,
    ),
    counter("l2_store_failed", &["lmcache_mp_l2_store_failed_keys_total"], &[]),
    counter("l2_load_failed", &["lmcache_mp_l2_prefetch_failed_keys_total"], &[]),
    counter(
        "store_gbs_sum",
        &["lmcache_mp_l0_l1_store_throughput_gbs_sum", "lmcache_mp_l0_l1_store_throughput_GB_per_second_sum"],
        WORKER,
    ),
    counter(
        "store_gbs_count",
        &[
            "lmcache_mp_l0_l1_store_throughput_gbs_count",
            "lmcache_mp_l0_l1_store_throughput_GB_per_second_count",
        ],
        WORKER,
    ),
    counter(
        "load_gbs_sum",
        &["lmcache_mp_l0_l1_load_throughput_gbs_sum", "lmcache_mp_l0_l1_load_throughput_GB_per_second_sum"],
        WORKER,
    ),
    counter(
        "load_gbs_count",
        &[
            "lmcache_mp_l0_l1_load_throughput_gbs_count",
            "lmcache_mp_l0_l1_load_throughput_GB_per_second_count",
        ],
        WORKER,
    ),
    counter(
        "l2_store_gbs_sum",
        &["lmcache_mp_l2_store_throughput_gbs_sum", "lmcache_mp_l2_store_throughput_GB_per_second_sum"],
        TIER,
    ),
    counter(
        "l2_store_gbs_count",
        &["lmcache_mp_l2_store_throughput_gbs_count", "lmcache_mp_l2_store_throughput_GB_per_second_count"],
        TIER,
    ),
    counter(
        "l2_load_gbs_sum",
        &["lmcache_mp_l2_load_throughput_gbs_sum", "lmcache_mp_l2_load_throughput_GB_per_second_sum"],
        TIER,
    ),
    counter(
        "l2_load_gbs_count",
        &["lmcache_mp_l2_load_throughput_gbs_count", "lmcache_mp_l2_load_throughput_GB_per_second_count"],
        TIER,
    ),
    gauge("queue_depth", &["lmcache_mp_event_bus_queue_depth"], &[]),
    gauge("drain_lag", &["lmcache_mp_event_bus_drain_lag_seconds"], &[]),
    counter("events_dropped", &["lmcache_mp_event_bus_dropped_events_total"], &[]),
    counter("subscriber_exceptions", &["lmcache_mp_event_bus_subscriber_exceptions_total"], &[]),
    counter("ring_lost", &["lmcached_ring_lost_events_total"], &["worker_id"]),
    counter("log_lines_dropped", &["lmcached_log_lines_dropped_total"], &[]),
    counter("otlp_dropped", &["lmcached_otlp_dropped_total"], &[]),
    counter("malformed", &["lmcached_malformed_messages_total"], &[]),
    counter("unknown_operations", &["lmcached_unknown_operations_total"], &[]),
    counter("peers_refused", &["lmcached_peers_refused_total"], &[]),
    counter("reaped", &["lmcached_workers_reaped_total"], &[]),
    gauge("connections", &["lmcached_connections"], &[]),
    gauge("workers", &["lmcached_workers"], &[]),
    gauge("queued_bytes", &["lmcached_queued_bytes"], &[]),
];

/// Whether a sample is one of these, by the name of its family and what a histogram's sample has behind it.
pub fn is_wanted(family: &str, suffix: &str) -> bool {
    let is = |name: &str| name.strip_prefix(family) == Some(suffix);
    is(LATENCY) || WANTED.iter().flat_map(|wanted| wanted.names).any(|name| is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_are_unique() {
        let mut keys: Vec<_> = WANTED.iter().map(|wanted| wanted.key).collect();
        let mut names: Vec<_> = WANTED.iter().flat_map(|wanted| wanted.names).collect();
        let (all_keys, all_names) = (keys.len(), names.len());
        keys.sort_unstable();
        keys.dedup();
        names.sort_unstable();
        names.dedup();
        assert_eq!((keys.len(), names.len()), (all_keys, all_names));
    }

    #[test]
    fn what_is_a_counter_is_called_one() {
        for wanted in WANTED {
            for name in wanted.names {
                let counter = ["_total", "_sum", "_count"].iter().any(|suffix| name.ends_with(suffix));
                assert_eq!(counter, wanted.counter, "{name}");
            }
        }
    }
}
