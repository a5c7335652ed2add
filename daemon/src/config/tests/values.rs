//! Values: ranges, pairs that must agree, names, endpoints, and what reaches the configuration.

use std::time::Duration;

use super::{assert_errors, config, error_of, run, run_in};
use crate::config::{
    Endpoint, EvictionPolicy, HashAlgorithm, L2PrefetchPolicy, L2StorePolicy, LogFormat, LogLevel,
    MetricsCompat, TraceArgs, TraceLevel, TransferModes,
};

#[test]
fn bad_values_are_turned_down_by_flag() {
    assert_errors(&[
        (&["--chunk-size", "0"], &["--chunk-size 0", "1 to 65536"]),
        (&["--chunk-size", "65537"], &["--chunk-size"]),
        (&["--chunk-size", "-4"], &["--chunk-size -4", "1 to 65536"]),
        (&["--chunk-size", "many"], &["--chunk-size many", "whole number"]),
        (&["--chunk-size", "99999999999999999999"], &["--chunk-size", "too large"]),
        (&["--eviction-ratio", "x"], &["--eviction-ratio x", "must be a number"]),
        (&["--chunk-size"], &["--chunk-size needs a value"]),
        (&["--port", "65536"], &["--port 65536", "65535"]),
        (&["--port", "-1"], &["--port -1"]),
        (&["--port", "0"], &["--port 0", "--shm-name"]),
        (&["--http-port", "70000"], &["--http-port"]),
        (&["--prometheus-port", "70000"], &["--prometheus-port"]),
        (&["--host", "tcp://localhost"], &["--host", "without tcp://"]),
        (&["--ipc-allow-uid", "-1"], &["--ipc-allow-uid -1"]),
        (&["--ipc-allow-uid", "4294967295"], &["--ipc-allow-uid"]),
        (&["--host", ""], &["--host \"\""]),
        (&["--http-host", "a b"], &["--http-host"]),
        (&["--prometheus-host", "h:1"], &["--prometheus-host"]),
        (&["--kv-event-log-size", "-1"], &["--kv-event-log-size"]),
        (&["--kv-event-log-bytes", "1000"], &["--kv-event-log-bytes"]),
        (&["--compute-threads", "0"], &["--compute-threads"]),
        (&["--state-dir", "relative"], &["--state-dir", "absolute"]),
        (&["--supported-transfer-mode", "both"], &["--supported-transfer-mode", "auto"]),
        (&["--transport", "tcp"], &["--transport", "zmq"]),
        (&["--hash-algorithm", "md5"], &["--hash-algorithm", "blake3"]),
        (&["--max-workers", "x"], &["--max-workers"]),
        (&["--l1-size-gb", "0"], &["--l1-size-gb"]),
        (&["--l1-size-gb", "-3"], &["--l1-size-gb -3"]),
        (&["--l1-size-gb", "nan"], &["--l1-size-gb"]),
        (&["--l1-size-gb", "inf"], &["--l1-size-gb"]),
        (&["--l1-size-gb", "0.000001"], &["--l1-size-gb", "--l1-align-bytes"]),
        (&["--l1-align-bytes", "3000"], &["--l1-align-bytes", "power of two"]),
        (&["--l1-align-bytes", "0"], &["--l1-align-bytes"]),
        (&["--shm-name", "a/b"], &["--shm-name a/b"]),
        (&["--shm-name", "/"], &["--shm-name"]),
        (&["--shm-name", "lmcache_l1_pool_"], &["--shm-name"]),
        (&["--shm-name", "naïve"], &["--shm-name"]),
        (&["--shm-group", "no such group"], &["--shm-group", "getent group"]),
        (&["--shm-group", "4294967295"], &["--shm-group"]),
        (&["--eviction-policy", "lru"], &["--eviction-policy", "LRU"]),
        (&["--eviction-trigger-watermark", "0"], &["--eviction-trigger-watermark"]),
        (&["--eviction-trigger-watermark", "1.1"], &["--eviction-trigger-watermark"]),
        (&["--eviction-ratio", "nan"], &["--eviction-ratio"]),
        (&["--eviction-ratio", "-0.1"], &["--eviction-ratio"]),
        (&["--worker-reap-timeout-seconds", "29.9"], &["--worker-reap-timeout-seconds", "30"]),
        (&["--worker-reap-timeout-seconds", "-1"], &["--worker-reap-timeout-seconds", "30"]),
        (&["--worker-reap-timeout-seconds", "nan"], &["--worker-reap-timeout-seconds"]),
        (&["--worker-reap-timeout-seconds", "inf"], &["--worker-reap-timeout-seconds"]),
        (
            &["--worker-registration-grace-seconds", "60"],
            &["--worker-registration-grace-seconds 60", "--worker-reap-timeout-seconds, 120"],
        ),
        (&["--session-ttl-seconds", "0"], &["--session-ttl-seconds"]),
        (&["--session-ttl-seconds", "1e-12"], &["--session-ttl-seconds"]),
        (&["--l1-write-ttl-seconds", "0"], &["--l1-write-ttl-seconds"]),
        (&["--lease-grace-seconds", "-1"], &["--lease-grace-seconds"]),
        (&["--drain-seconds", "1e10"], &["--drain-seconds"]),
        (&["--max-message-bytes", "0"], &["--max-message-bytes"]),
        (&["--max-message-bytes", "268435456"], &["--max-peer-bytes", "--max-message-bytes"]),
        (&["--max-peer-bytes", "1073741824"], &["--max-total-bytes", "--max-peer-bytes"]),
        (&["--max-connections", "0"], &["--max-connections"]),
        (&["--max-sessions", "0"], &["--max-sessions"]),
        (&["--ring-lanes", "-1"], &["--ring-lanes -1", "4096"]),
        (&["--ring-lanes", "4097"], &["--ring-lanes 4097"]),
        (&["--ring-slots", "1000"], &["--ring-slots 1000", "power of two"]),
        (&["--ring-slots", "1"], &["--ring-slots 1"]),
        (&["--event-bus-queue-size", "0"], &["--event-bus-queue-size"]),
        (&["--metrics-sample-rate", "0"], &["--metrics-sample-rate"]),
        (&["--metrics-sample-rate", "1.5"], &["--metrics-sample-rate"]),
        (&["--extra-logging-interval", "0"], &["--extra-logging-interval"]),
        (&["--enable-extra-logging", "--disable-observability"], &["--enable-extra-logging"]),
        (
            &["--enable-tracing", "--otlp-endpoint", "c:1", "--disable-observability"],
            &["--enable-tracing", "--disable-observability"],
        ),
        (&["--trace-level", "storage", "--disable-observability"], &["--trace-level"]),
        (&["--metrics-compat", "0.4"], &["--metrics-compat", "seed"]),
        (&["--metrics-max-series", "0"], &["--metrics-max-series"]),
        (&["--log-format", "xml"], &["--log-format", "json"]),
        (&["--enable-tracing"], &["--enable-tracing", "--otlp-endpoint"]),
        (&["--enable-tracing", "--otlp-endpoint", ""], &["--enable-tracing", "--otlp-endpoint"]),
        (&["--otlp-endpoint", "ftp://h:1"], &["--otlp-endpoint"]),
        (&["--otlp-endpoint", "http://"], &["--otlp-endpoint"]),
        (&["--trace-level", "mq"], &["--trace-level", "storage"]),
        (&["--trace-level", "storage", "--trace-args", "0.4"], &["--trace-args", "0.4.5"]),
        (&["--lookup-hash-log-max-files", "0"], &["--lookup-hash-log-max-files"]),
        (&["--lookup-hash-log-rotation-interval", "0"], &["--lookup-hash-log-rotation-interval"]),
        (&["--lookup-hash-log-rotation-max-size", "0"], &["--lookup-hash-log-rotation-max-size"]),
        (&["--l2-prefetch-max-in-flight", "0"], &["--l2-prefetch-max-in-flight"]),
        (&["--l2-store-policy", "all"], &["--l2-store-policy", "skip_l1"]),
        (&["--l2-adapter", r#"{"path":"/"}"#], &["--l2-adapter number 1", "type"]),
        (
            &["--l2-adapter", r#"{"type":"fs","base_path":"/x"}"#, "--l2-adapter", r#"{"type":"disk"}"#],
            &["number 2", "resp"],
        ),
        (&["--l2-adapter", r#"{"type":"fs","persist_enabled":1}"#], &["persist_enabled"]),
        (&["--l2-adapter", r#"{"type":"fs","eviction":{}}"#], &["eviction_policy"]),
        (
            &["--l2-adapter", r#"{"type":"fs","eviction":{"eviction_policy":"LRU","eviction_ratio":2}}"#],
            &["eviction_ratio"],
        ),
        (&["--fresh=yes"], &["--fresh"]),
        (&["--no-such-flag"], &["unknown flag --no-such-flag", "--help"]),
        (&["--chunk-sise", "3"], &["--chunk-sise", "did you mean --chunk-size"]),
        (&["--shm-name", "two\nlines"], &["--shm-name"]),
    ]);
    let long = "x".repeat(185);
    assert!(error_of(run(&["--shm-name", &long]), "long name").contains("200 bytes"));
    assert!(run(&["--shm-name", &long[1..]]).is_ok(), "200 bytes with the prefix are allowed");
}

#[test]
fn endpoints_follow_bind_and_explicit_host_or_port() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["tcp://localhost:5555"]),
        (&["--host", "*", "--port", "6000"], &["tcp://0.0.0.0:6000"]),
        (&["--host", "::1"], &["tcp://[::1]:5555"]),
        (&["--bind", "tcp://127.0.0.1:7000"], &["tcp://127.0.0.1:7000"]),
        (
            &["--bind", "ipc:///run/l.sock", "--bind", "tcp://[::]:7000"],
            &["ipc:///run/l.sock", "tcp://[::]:7000"],
        ),
        (&["--bind", "ipc:///run/l.sock", "--port", "6000"], &["ipc:///run/l.sock", "tcp://localhost:6000"]),
        (&["--bind", "ipc:///run/l.sock", "--host", "h"], &["ipc:///run/l.sock", "tcp://h:5555"]),
    ];
    for (args, expected) in cases {
        let endpoints: Vec<_> = config(args).server.endpoints.iter().map(Endpoint::to_string).collect();
        assert_eq!(&endpoints, expected, "{args:?}");
    }
    let long = format!("ipc:///{}", "s".repeat(107));
    for bad in [
        "localhost:5555",
        "udp://h:1",
        "tcp://h",
        "tcp://:5555",
        "tcp://h:",
        "tcp://h:+5",
        "tcp://h:99999",
        "tcp://::1:5555",
        "ipc://relative",
        "ipc://@abstract",
        "ipc:///",
        &long,
    ] {
        assert!(error_of(run(&["--bind", bad]), bad).contains("--bind"), "{bad}");
    }
    assert_errors(&[
        (&["--bind", "tcp://h:1", "--bind", "tcp://h:1"], &["tcp://h:1", "--bind"]),
        (&["--bind", "ipc:///s", "--bind", "ipc:///s"], &["ipc:///s"]),
        (
            &["--bind", "tcp://0.0.0.0:5555", "--host", "localhost"],
            &["tcp://0.0.0.0:5555", "tcp://localhost:5555"],
        ),
    ]);
}

#[test]
fn pool_name_is_the_peers() {
    let cases: &[(&[&str], &str)] = &[
        (&["--port", "6000"], "lmcache_l1_pool_6000"),
        (&["--shm-name", ""], "lmcache_l1_pool_5555"),
        (&["--shm-name", "e2e"], "lmcache_l1_pool_e2e"),
        (&["--shm-name", "/e2e"], "lmcache_l1_pool_e2e"),
        (&["--shm-name", "lmcache_l1_pool_e2e"], "lmcache_l1_pool_e2e"),
        (&["--port", "0", "--shm-name", "e2e"], "lmcache_l1_pool_e2e"),
        (&["--bind", "ipc:///run/a b.sock"], "lmcache_l1_pool_run_a_b.sock"),
        (&["--bind", "ipc:///run/a.sock", "--bind", "tcp://h:7000"], "lmcache_l1_pool_7000"),
    ];
    for (args, name) in cases {
        assert_eq!(config(args).l1.pool_name, *name, "{args:?}");
    }
    assert_eq!(run(&["--shm-name", ""]).expect("allowed").notices.len(), 1);
}

#[test]
fn busy_defaults_can_be_told_from_busy_choices() {
    let quiet = config(&[]);
    assert!(!quiet.http.listen.port_is_explicit);
    assert!(!quiet.observability.prometheus.expect("on by default").port_is_explicit);
    // The default value, given: still a choice.
    let chosen = config(&["--http-port", "8080", "--prometheus-port", "9090"]);
    assert!(chosen.http.listen.port_is_explicit);
    assert!(chosen.observability.prometheus.expect("on").port_is_explicit);
}

#[test]
fn ports_may_not_be_used_twice() {
    assert_errors(&[
        (&["--port", "8080"], &["--http-port 8080", "tcp://localhost:8080"]),
        (&["--bind", "tcp://0.0.0.0:9090"], &["--prometheus-port 9090"]),
        (
            &["--prometheus-port", "8080", "--prometheus-host", "0.0.0.0"],
            &["--prometheus-port and --http-port"],
        ),
    ]);
    assert!(run(&["--port", "8080", "--http-host", "10.0.0.1"]).is_ok());
    for args in
        [&["--prometheus-port", "8080"] as &[&str], &["--prometheus-port", "8080", "--http-host", "0.0.0.0"]]
    {
        let parsed = run(args).expect("the admin API serves the page");
        assert_eq!(parsed.config.observability.prometheus, None);
        assert_eq!(parsed.notices.len(), 1);
    }
}

#[test]
fn switches_of_the_bus_reach_everything_behind_it() {
    let off = config(&["--disable-observability"]).observability;
    assert!(!off.enabled && !off.metrics && !off.logging && !off.tracing && off.prometheus.is_none());
    let no_metrics = config(&["--disable-metrics"]).observability;
    assert!(
        no_metrics.enabled && !no_metrics.metrics && no_metrics.logging && no_metrics.prometheus.is_none()
    );
    assert!(!config(&["--disable-logging"]).observability.logging);
    let extra = config(&["--enable-extra-logging", "--extra-logging-interval", "2.5"]).observability;
    assert_eq!(extra.extra_logging, Some(Duration::from_millis(2500)));
    assert_eq!(config(&["--extra-logging-interval", "2.5"]).observability.extra_logging, None);
}

#[test]
fn log_level_takes_five_names_in_any_case() {
    for (name, level) in [
        ("debug", LogLevel::Debug),
        ("Info", LogLevel::Info),
        ("WARNING", LogLevel::Warning),
        ("ERROR", LogLevel::Error),
        ("critical", LogLevel::Critical),
        ("", LogLevel::Info),
    ] {
        let parsed = run_in(&[("LMCACHE_LOG_LEVEL", name)], &[]).expect(name);
        assert_eq!(parsed.config.observability.log_level, level);
    }
    for bad in ["WARN", "trace", "10"] {
        let line = error_of(run_in(&[("LMCACHE_LOG_LEVEL", bad)], &[]), bad);
        assert!(
            line.contains("LMCACHE_LOG_LEVEL") && line.contains("WARNING") && line.contains(bad),
            "{line}"
        );
    }
}

#[test]
fn honoured_values_reach_the_configuration() {
    let both = TransferModes { lmcache_driven: true, engine_driven: true };
    assert_eq!(config(&[]).server.transfer_modes, both);
    assert_eq!(config(&["--supported-transfer-mode", "auto"]).server.transfer_modes, both);
    let one = config(&["--supported-transfer-mode", "engine_driven"]).server.transfer_modes;
    assert_eq!(one, TransferModes { lmcache_driven: false, engine_driven: true });
    let other = config(&["--supported-transfer-mode", "lmcache_driven"]).server.transfer_modes;
    assert_eq!(other, TransferModes { lmcache_driven: true, engine_driven: false });

    assert_eq!(config(&["--null-block-id", "-1"]).server.null_block_id, -1);
    assert_eq!(config(&["--kv-event-log-size", "0"]).server.kv_event_log_size, None);
    assert_eq!(config(&["--kv-event-log-bytes", "1048576"]).server.limits.kv_event_log_bytes, 1 << 20);
    assert_eq!(config(&["--l1-size-gb", "0.25"]).l1.size_bytes.map(|n| n.get()), Some(1 << 28));
    assert_eq!(config(&["--eviction-policy", "IsolatedLRU"]).eviction.policy, EvictionPolicy::IsolatedLru);
    assert_eq!(config(&["--worker-reap-timeout-seconds", "0"]).liveness.reap_timeout, None);
    assert!(config(&["--fresh"]).l1.fresh);
    assert_eq!(config(&["--shm-group=root"]).l1.group, Some(0));
    assert_eq!(config(&["--shm-group=4711"]).l1.group, Some(4711));
    assert_eq!(config(&["--ipc-allow-uid=7", "--ipc-allow-uid=9"]).server.ipc_allow_uids, [7, 9]);
    let end = config(&["--discard-on-exit", "--drain-seconds", "0"]).shutdown;
    assert!(end.discard_on_exit && end.drain.is_zero());

    let seeded =
        run_in(&[("PYTHONHASHSEED", "0")], &["--hash-algorithm", "sha256_cbor"]).expect("allowed").config;
    assert_eq!(seeded.server.hash_algorithm, HashAlgorithm::Sha256Cbor);
    assert_eq!(seeded.server.hash_seed.as_deref(), Some("0"));
}

#[test]
fn unbuilt_values_reach_the_configuration_all_the_same() {
    let l2 = config(&[
        "--l2-adapter",
        r#"{"type":"fs","base_path":"/data","shared":true,"eviction":{"eviction_policy":"LRU","eviction_ratio":0.5}}"#,
        "--l2-adapter",
        r#"{"type":"resp","host":"h","port":1,"persist_enabled":false,"eviction":null}"#,
        "--l2-store-policy",
        "skip_l1",
        "--l2-prefetch-policy",
        "retain",
    ])
    .l2;
    assert_eq!((l2.store_policy, l2.prefetch_policy), (L2StorePolicy::SkipL1, L2PrefetchPolicy::Retain));
    let [fs, resp] = l2.adapters.as_slice() else { panic!("two tiers") };
    assert!(fs.kind == "fs" && fs.shared && fs.persist && fs.affinity_tag == "_default");
    assert_eq!(fs.settings.get("base_path").and_then(|path| path.as_str()), Some("/data"));
    assert_eq!(fs.settings.len(), 1, "what all types share is taken out");
    let eviction = fs.eviction.expect("given");
    assert_eq!((eviction.trigger_watermark, eviction.ratio), (0.8, 0.5));
    assert!(resp.kind == "resp" && !resp.persist && resp.eviction.is_none());

    let observability = config(&[
        "--enable-tracing",
        "--otlp-endpoint",
        "collector:4317",
        "--trace-level",
        "storage",
        "--trace-output",
        "/tmp/run.lct",
        "--trace-args",
        "0.4.5",
        "--lookup-hash-log-dir",
        "/logs",
    ])
    .observability;
    assert!(observability.tracing);
    assert_eq!(observability.metrics_compat, MetricsCompat::Seed);
    assert_eq!((observability.metrics_max_series.get(), observability.log_format), (2000, LogFormat::Human));
    let other = config(&["--metrics-compat", "0.5", "--log-format", "json", "--metrics-max-series", "9"]);
    let other = other.observability;
    assert_eq!((other.metrics_compat, other.log_format), (MetricsCompat::V05, LogFormat::Json));
    assert_eq!(other.metrics_max_series.get(), 9);
    assert_eq!(observability.otlp_endpoint.as_deref(), Some("http://collector:4317"));
    let trace = observability.trace.expect("given");
    assert_eq!((trace.level, trace.args), (TraceLevel::Storage, TraceArgs::V045));
    assert_eq!(trace.output.as_deref(), Some(std::path::Path::new("/tmp/run.lct")));
    let log = observability.lookup_hash_log.expect("given");
    assert_eq!((log.rotation_interval, log.max_files.get()), (Duration::from_secs(21_600), 100));
}
