//! Every flag of `lmcache server` 0.5.6, both boolean forms, the manual's spellings, and what help and version say.

use super::{config, error_of, run};
use crate::config::command::command;
use crate::config::table::TABLE;
use crate::config::{EvictionPolicy, Exit};

/// Each flag with a value that the peer takes.
const PEER: &[&[&str]] = &[
    &["--instance-id", "node-1"],
    &["--transport", "zmq"],
    &["--transport", "grpc"],
    &["--host", "0.0.0.0"],
    &["--port", "6555"],
    &["--chunk-size", "128"],
    &["--null-block-id", "-1"],
    &["--max-workers", "4"],
    &["--max-gpu-workers", "2"],
    &["--max-cpu-workers", "2"],
    &["--grpc-server-workers", "32"],
    &["--hash-algorithm", "blake3"],
    &["--hash-algorithm", "sha256_cbor"],
    &["--hash-algorithm", "builtin"],
    &["--engine-type", "default"],
    &["--engine-type", "blend"],
    &["--supported-transfer-mode", "lmcache_driven"],
    &["--supported-transfer-mode", "engine_driven"],
    &["--supported-transfer-mode", "auto"],
    &["--isolated-ipc"],
    &["--no-isolated-ipc"],
    &["--runtime-plugin-locations"],
    &["--runtime-plugin-locations", "/a.py", "/b.sh"],
    &["--runtime-plugin-config", "{}"],
    &["--shm-name", "pool"],
    &["--script-allowed-imports", "numpy", "pandas"],
    &["--run-script-api-enabled"],
    &["--no-run-script-api-enabled"],
    &["--separate-object-groups"],
    &["--no-separate-object-groups"],
    &["--worker-reap-timeout-seconds", "60"],
    &["--session-ttl-seconds", "900.5"],
    &["--worker-registration-grace-seconds", "7200"],
    &["--enable-segmented-prefix"],
    &["--enable-dedup-content"],
    &["--enable-blend-reorder"],
    &["--enable"],
    &["--enable", "transfer_query"],
    &["--kv-event-log-size", "0"],
    &["--server-module", r#"{"module_path":"m","factory_name":"f"}"#],
    &["--p2p-advertise-url", "10.0.0.1:7000"],
    &["--p2p-listen-url", "0.0.0.0:7000"],
    &["--p2p-lookup-timeout", "30"],
    &["--p2p-load-timeout", "30"],
    &["--p2p-transfer-engine", "nixl"],
    &["--l1-manager", r#"{"type":"DRAM","tag":"_default","size_gb":1}"#],
    &["--l1-size-gb", "0.5"],
    &["--l1-use-lazy"],
    &["--no-l1-use-lazy"],
    &["--l1-init-size-gb", "20"],
    &["--l1-align-bytes", "16777216"],
    &["--l1-use-hugepages"],
    &["--no-l1-use-hugepages"],
    &["--l1-devdax-path", "/dev/dax0.0"],
    &["--gds-l1-path", "/nvme"],
    &["--gds-l1-use-direct-io"],
    &["--no-gds-l1-use-direct-io"],
    &["--gds-l1-backend", "cufile"],
    &["--l1-write-ttl-seconds", "600"],
    &["--l1-read-ttl-seconds", "300"],
    &["--eviction-policy", "LRU"],
    &["--eviction-policy", "ARC"],
    &["--eviction-policy", "IsolatedLRU"],
    &["--eviction-policy", "noop"],
    &["--eviction-trigger-watermark", "0.9"],
    &["--eviction-ratio", "0.1"],
    &["--l2-store-policy", "skip_l1"],
    &["--l2-prefetch-policy", "retain"],
    &["--l2-prefetch-max-in-flight", "16"],
    &["--periodic-notifier-interval-ms", "5"],
    &["--l2-adapter", r#"{"type":"fs","base_path":"/data"}"#],
    &["--http-host", "0.0.0.0"],
    &["--http-port", "8081"],
    &["--disable-observability"],
    &["--disable-metrics"],
    &["--disable-grpc-metrics"],
    &["--disable-logging"],
    &["--enable-tracing", "--otlp-endpoint", "http://localhost:4317"],
    &["--otlp-endpoint", "http://localhost:4317"],
    &["--event-bus-queue-size", "500"],
    &["--prometheus-port", "9091"],
    &["--metrics-sample-rate", "1.0"],
    &["--lookup-hash-log-dir", "/logs"],
    &["--lookup-hash-log-rotation-interval", "60"],
    &["--lookup-hash-log-rotation-max-size", "1024"],
    &["--lookup-hash-log-max-files", "3"],
    &["--enable-gc-monitor"],
    &["--gc-monitor-min-pause-ms", "0.5"],
    &["--gc-monitor-top-objects", "5"],
    &["--enable-extra-logging"],
    &["--extra-logging-interval", "5"],
    &["--trace-level", "storage"],
    &["--trace-level", "events"],
    &["--trace-output", "/tmp/run.lct"],
    &["--coordinator-url", "http://coordinator:9300"],
    &["--coordinator-advertise-ip", "10.0.0.1"],
    &["--coordinator-heartbeat-interval", "5"],
    &["--coordinator-event-reporting"],
    &["--coordinator-event-flush-interval", "1"],
    &["--coordinator-event-transport", "kafka"],
    &["--coordinator-kafka-bootstrap-servers", "k:9092"],
    &["--coordinator-kafka-topic", "t"],
    &["--coordinator-kafka-delivery-timeout", "300"],
    &["--coordinator-blend-timeout", "1"],
    &["--coordinator-blend-match-concurrency", "8"],
    // Hidden in the peer's help.
    &["--coordinator-l2-event-reporting"],
    &["--coordinator-l2-event-flush-interval", "1"],
    &["--format", "json"],
    &["--output", "/tmp/metrics"],
    &["-q"],
    &["--quiet"],
    // The 0.4.5 manual's spelling.
    &["--service-instance-id", "node-1"],
];

/// A flag of the peer is accepted, or turned down for what it asks; it never is an unknown flag or a bad value.
#[test]
fn every_flag_of_the_peer_is_known() {
    for args in PEER {
        match run(args) {
            Ok(parsed) => assert!(
                parsed.notices.iter().all(|notice| notice.line.contains(notice.flag)),
                "{args:?}: {:?}",
                parsed.notices
            ),
            Err(exit) => {
                let line = error_of(Err(exit), args[0]);
                assert!(line.contains("is refused") && line.contains(args[0]), "{line}");
            }
        }
    }
}

#[test]
fn clap_finds_no_contradiction_in_the_command() {
    command().debug_assert();
}

#[test]
fn no_flags_at_all_works_and_says_nothing() {
    let parsed = run(&[]).expect("defaults are in order");
    assert_eq!(parsed.notices, Vec::new());
    assert_eq!(parsed.config.eviction.policy, EvictionPolicy::Lru);
    assert_eq!(parsed.config.l1.size_bytes, None);
    assert_eq!(parsed.config.l1.pool_name, "lmcache_l1_pool_5555");
}

#[test]
fn leading_word_server_is_dropped_and_only_there() {
    assert_eq!(config(&["server", "--port", "6000"]), config(&["--port", "6000"]));
    assert_eq!(config(&["server"]), config(&[]));
    for args in [&["--fresh", "server"], &["server", "server"], &["serve", "--fresh"]] {
        assert!(error_of(run(args), "a word").contains("unexpected word"), "{args:?}");
    }
}

#[test]
fn the_last_of_two_equal_or_opposite_flags_wins() {
    assert_eq!(config(&["--chunk-size", "16", "--chunk-size", "32"]).server.chunk_size.get(), 32);
    assert!(
        config(&["--no-separate-object-groups", "--separate-object-groups"]).server.separate_object_groups
    );
    assert!(
        !config(&["--separate-object-groups", "--no-separate-object-groups"]).server.separate_object_groups
    );
    // The one that lost is not held against the operator.
    let parsed = run(&["--isolated-ipc", "--no-isolated-ipc"]).expect("the last one is harmless");
    assert_eq!(parsed.notices.len(), 1);
    assert!(run(&["--no-isolated-ipc", "--isolated-ipc"]).is_err());
    let bound = config(&["--bind", "tcp://h:1", "--bind", "tcp://h:2"]);
    assert_eq!(bound.server.endpoints.len(), 2, "a repeatable flag adds up");
}

#[test]
fn an_unambiguous_beginning_of_a_flag_is_enough() {
    assert_eq!(config(&["--chunk", "16"]).server.chunk_size.get(), 16);
    assert!(run(&["--l1-s", "2"]).is_ok());
    assert!(run(&["--l1"]).is_err());
}

#[test]
fn instance_id_has_two_spellings_and_stays_empty_when_asked() {
    for (args, id) in [
        (&["--instance-id", "a"] as &[&str], Some("a")),
        (&["--service-instance-id", "a"], Some("a")),
        (&["--service-instance-id="], Some("")),
        (&["--instance-id", ""], Some("")),
        (&[], None),
    ] {
        assert_eq!(config(args).observability.instance_id.as_deref(), id, "{args:?}");
    }
}

#[test]
fn help_lists_the_classes_and_every_flag_under_one() {
    for flag in ["-h", "--help"] {
        let exit = run(&[flag]).expect_err("help ends the process");
        assert_eq!(exit.code(), 0);
        let text = exit.to_string();
        assert!(text.starts_with("One node's KV cache"), "{flag}: notes on the code are not help");
        for heading in ["Honoured: request server:", "Accepted, no meaning here", "Refused ("] {
            assert!(text.contains(heading), "{heading} is missing");
        }
        for row in TABLE {
            assert!(text.contains(row.flag), "{} is missing", row.flag);
        }
    }
    assert!(matches!(run(&["--version"]), Err(Exit::Text(text)) if text.starts_with("lmcached ")));
}
