//! Metrics that only this daemon has; exposed whatever `--metrics-compat` says.

use super::{Bounds, Group, Id, Kind, Metric, Set, name};

const DAEMON: Group = Group {
    set: Set::Own,
    section: "The daemon",
    scope: "lmcached",
    check: "ipc-tests/tests/own_metrics.rs",
};

/// A metric without attributes.
macro_rules! plain {
    ($kind:ident, $id:ident, $unit:literal, $prometheus:literal, $description:literal) => {
        with!($kind, $id, $unit, $prometheus, [], $description)
    };
}

macro_rules! with {
    (Histogram, $id:ident, $unit:literal, $prometheus:literal, $attributes:expr, $description:literal) => {
        DAEMON.metric(
            Id::$id,
            Kind::ObservableHistogram(Bounds::Latency),
            name($prometheus, $unit, $prometheus),
            &$attributes,
            $description,
        )
    };
    (Pushed, $id:ident, $unit:literal, $prometheus:literal, $attributes:expr, $description:literal) => {
        DAEMON.metric(
            Id::$id,
            Kind::Counter,
            name($prometheus, $unit, $prometheus),
            &$attributes,
            $description,
        )
    };
    (Counter, $id:ident, $unit:literal, $prometheus:literal, $attributes:expr, $description:literal) => {
        DAEMON.metric(
            Id::$id,
            Kind::ObservableCounter,
            name($prometheus, $unit, $prometheus),
            &$attributes,
            $description,
        )
    };
    (Gauge, $id:ident, $unit:literal, $prometheus:literal, $attributes:expr, $description:literal) => {
        DAEMON.metric(
            Id::$id,
            Kind::ObservableGauge,
            name($prometheus, $unit, $prometheus),
            &$attributes,
            $description,
        )
    };
}

/// The table.
pub static OWN: [Metric; 56] = [
    with!(
        Counter,
        Requests,
        "",
        "lmcached_requests_total",
        ["operation", "outcome"],
        "Requests by operation and what came of them."
    ),
    with!(
        Histogram,
        RequestSeconds,
        "s",
        "lmcached_request_seconds",
        ["operation"],
        "Time from the arrival of a request to its answer."
    ),
    with!(
        Histogram,
        RequestQueueSeconds,
        "s",
        "lmcached_request_queue_seconds",
        ["operation"],
        "Time from the arrival of a request to its execution."
    ),
    plain!(Counter, StoredTokens, "", "lmcached_stored_tokens_total", "Tokens stored by workers."),
    plain!(Counter, RetrievedTokens, "", "lmcached_retrieved_tokens_total", "Tokens retrieved by workers."),
    plain!(
        Counter,
        L1EvictedBytes,
        "By",
        "lmcached_l1_evicted_bytes_total",
        "Bytes evicted by the eviction policy."
    ),
    plain!(
        Counter,
        L1ReplacedObjects,
        "",
        "lmcached_l1_replaced_objects_total",
        "Objects replaced because they had another layout."
    ),
    plain!(
        Counter,
        L1Quarantined,
        "",
        "lmcached_l1_quarantined_total",
        "Reservations taken from workers that were late, reaped or unregistered."
    ),
    plain!(
        Counter,
        L1Full,
        "",
        "lmcached_l1_full_total",
        "Allocations that failed although everything evictable was evicted."
    ),
    plain!(
        Counter,
        L1DamagedObjects,
        "",
        "lmcached_l1_damaged_objects_total",
        "Objects dropped because their bytes were not those that were committed (--l1-checksums)."
    ),
    plain!(
        Counter,
        MalformedMessages,
        "",
        "lmcached_malformed_messages_total",
        "Messages that are no LMCache request."
    ),
    plain!(
        Counter,
        UnknownOperations,
        "",
        "lmcached_unknown_operations_total",
        "Requests of operations that are not served."
    ),
    with!(
        Counter,
        PeersRefused,
        "",
        "lmcached_peers_refused_total",
        ["reason"],
        "Connections refused or ended by the daemon."
    ),
    with!(
        Counter,
        PeerPauses,
        "",
        "lmcached_peer_pauses_total",
        ["reason"],
        "Times that the daemon stopped reading from a client until some of its work was done."
    ),
    with!(
        Counter,
        CudaErrors,
        "",
        "lmcached_cuda_errors_total",
        ["call", "error"],
        "Calls of the CUDA driver that failed, by function and what it answered."
    ),
    plain!(
        Counter,
        WorkersReaped,
        "",
        "lmcached_workers_reaped_total",
        "Workers forgotten because they were silent."
    ),
    plain!(
        Counter,
        LeasesExpired,
        "",
        "lmcached_leases_expired_total",
        "Lookup leases ended because their connection was gone."
    ),
    with!(
        Counter,
        RingLostEvents,
        "",
        "lmcached_ring_lost_events_total",
        ["worker_id"],
        "Events of a worker that found its lane full or were unreadable."
    ),
    plain!(Gauge, L1CapacityBytes, "By", "lmcached_l1_capacity_bytes", "Bytes of the L1 pool."),
    plain!(
        Gauge,
        L1ReservedBytes,
        "By",
        "lmcached_l1_reserved_bytes",
        "Bytes of the L1 pool that are real memory by now."
    ),
    plain!(Gauge, L1Objects, "", "lmcached_l1_objects", "Readable objects in L1."),
    plain!(Gauge, L1WritingObjects, "", "lmcached_l1_writing_objects", "Objects that workers are writing."),
    plain!(
        Gauge,
        L1QuarantinedObjects,
        "",
        "lmcached_l1_quarantined_objects",
        "Slots kept from everybody until their worker is gone."
    ),
    plain!(Gauge, L1Leases, "", "lmcached_l1_leases", "Lookup leases."),
    plain!(Gauge, L1Pins, "", "lmcached_l1_pins", "Slots that transfers are touching."),
    plain!(Gauge, L1Names, "", "lmcached_l1_names", "Model names and cache salts that objects in L1 have."),
    with!(
        Gauge,
        QuotaLimitBytes,
        "By",
        "lmcached_quota_limit_bytes",
        ["cache_salt"],
        "Bytes that the objects of a cache salt with a quota may take, in L1 and in each tier with IsolatedLRU."
    ),
    with!(
        Gauge,
        QuotaUsageBytes,
        "By",
        "lmcached_quota_usage_bytes",
        ["cache_salt", "tier"],
        "Bytes that they take: tier is l1 or the label of an L2 tier."
    ),
    plain!(Gauge, Workers, "", "lmcached_workers", "Registered workers."),
    plain!(
        Gauge,
        RegistrationBytes,
        "By",
        "lmcached_registration_bytes",
        "Bytes that the registrations of all workers take."
    ),
    plain!(
        Gauge,
        RingLanesUsed,
        "",
        "lmcached_ring_lanes_used",
        "Lanes of the shared ring that workers have."
    ),
    plain!(Gauge, Sessions, "", "lmcached_sessions", "Requests that the daemon remembers."),
    plain!(
        Gauge,
        SessionBytes,
        "By",
        "lmcached_session_bytes",
        "Bytes that the prompts and leases of these requests take."
    ),
    plain!(
        Gauge,
        KvEventsLogBytes,
        "By",
        "lmcached_kv_events_log_bytes",
        "Bytes that the KV event records kept for subscribers take."
    ),
    plain!(Gauge, Connections, "", "lmcached_connections", "Open client connections."),
    plain!(Gauge, QueuedBytes, "By", "lmcached_queued_bytes", "Bytes queued for and from clients."),
    plain!(Gauge, HttpConnections, "", "lmcached_http_connections", "Open connections to the HTTP ports."),
    with!(
        Counter,
        HttpRefused,
        "",
        "lmcached_http_refused_total",
        ["reason"],
        "HTTP requests whose body was too large, too slow or broken off, and connections for which there was no place."
    ),
    plain!(Counter, EventsPublished, "", "lmcached_events_published_total", "Events that the bus accepted."),
    with!(
        Counter,
        SeriesOverflow,
        "",
        "lmcached_metric_series_overflow_total",
        ["metric"],
        "Measurements counted under otel_metric_overflow because --metrics-max-series were there."
    ),
    plain!(
        Counter,
        SeriesRetired,
        "",
        "lmcached_metric_series_retired_total",
        "Series dropped because their worker or salt was gone."
    ),
    with!(
        Pushed,
        UntrackedItems,
        "",
        "lmcached_metrics_untracked_total",
        ["subscriber_name"],
        "Chunks, blocks, transfers or spans not followed because too many were followed already."
    ),
    plain!(
        Counter,
        LogLinesDropped,
        "",
        "lmcached_log_lines_dropped_total",
        "Log lines dropped because standard error was too slow."
    ),
    with!(
        Counter,
        OtlpExports,
        "",
        "lmcached_otlp_exports_total",
        ["signal", "outcome"],
        "Exports to the OTLP collector."
    ),
    with!(
        Counter,
        OtlpDropped,
        "",
        "lmcached_otlp_dropped_total",
        ["signal"],
        "Spans and log records dropped because the OTLP collector was too slow or gone."
    ),
    plain!(Gauge, SpansOpen, "", "lmcached_spans_open", "Spans that have begun and not ended."),
    plain!(
        Counter,
        SpansUnfinished,
        "",
        "lmcached_spans_unfinished_total",
        "Spans ended by the daemon because their end never came."
    ),
    with!(
        Gauge,
        BuildInfo,
        "",
        "lmcached_build_info",
        ["version", "lmcache_version"],
        "1; the labels say which build runs and which LMCache release it serves."
    ),
    plain!(Gauge, UptimeSeconds, "s", "lmcached_uptime_seconds", "Time since the daemon started."),
    plain!(
        Counter,
        ProcessCpuSeconds,
        "s",
        "process_cpu_seconds_total",
        "User and system CPU time of the process."
    ),
    plain!(
        Gauge,
        ProcessResidentBytes,
        "By",
        "process_resident_memory_bytes",
        "Resident memory of the process, its share of the pool included."
    ),
    plain!(Gauge, ProcessVirtualBytes, "By", "process_virtual_memory_bytes", "Address space of the process."),
    plain!(Gauge, ProcessOpenFds, "", "process_open_fds", "Open file descriptors."),
    plain!(Gauge, ProcessMaxFds, "", "process_max_fds", "Largest number of open file descriptors."),
    plain!(Gauge, ProcessThreads, "", "process_threads", "Threads of the process."),
    plain!(
        Gauge,
        ProcessStartTime,
        "s",
        "process_start_time_seconds",
        "Start of the process, in seconds since 1970."
    ),
];
