//! Every flag that is not simply honoured: its class and the line an operator reads about it.
//!
//! When a build starts to honour a flag, its row goes. A row without a field in `flags` declares the flag, too.

use super::class::Takes::{Field, Int, Nothing, Number, OneOf, Opposite, Repeated, Short, Text, Words};
use super::class::{Class, Row, Takes};

const fn neutral(flag: &'static str, takes: Takes, line: &'static str) -> Row {
    Row { flag, takes, class: Class::Neutral, harmless: &[], line }
}

const fn refused(
    flag: &'static str,
    takes: Takes,
    harmless: &'static [&'static str],
    line: &'static str,
) -> Row {
    Row { flag, takes, class: Class::Refused, harmless, line }
}

const THREADS: &str = "threads follow the cores; --compute-threads sets them";
const GC: &str = "there is no garbage collector to watch";
const OUTPUT: &str = "a daemon prints no result; its log goes to standard error";
const LAZY: &str = "the pool is reserved in the background while requests are answered";
const GDS: &str = "it only tunes --gds-l1-path, and the pool lives in memory";
const SCRIPTS: &str = "there is no Python interpreter to run scripts in; drop the flag";
const PLUGINS: &str = "plugins are Python programs of the peer's process; run them as services of their own";
const BLEND: &str = "only prefix caching exists here; serve blending models with the Python server";
const P2P: &str = "pools are not shared between daemons; use an L2 tier that all of them reach";
pub(super) const COORDINATOR: &str = "this daemon joins no coordinator; drop the flag or variable";

/// In the order of the peer's help.
pub(super) const TABLE: &[Row] = &[
    refused(
        "--transport",
        OneOf(&["zmq", "grpc"]),
        &["zmq"],
        "workers connect over ZeroMQ only; drop the flag",
    ),
    neutral("--max-workers", Int, THREADS),
    neutral("--max-gpu-workers", Int, THREADS),
    neutral("--max-cpu-workers", Int, THREADS),
    neutral("--grpc-server-workers", Int, "there is no gRPC transport"),
    refused(
        "--hash-algorithm",
        Field,
        &["blake3", "sha256_cbor"],
        "Python's hash() depends on the interpreter and its seed; use blake3 or sha256_cbor",
    ),
    refused("--engine-type", OneOf(&["default", "blend"]), &["default"], BLEND),
    refused(
        "--isolated-ipc",
        Opposite("no-isolated-ipc"),
        &[],
        "it needs CUDA timeline semaphores, which this build lacks; share /dev/shm and the IPC namespace instead",
    ),
    neutral("--no-isolated-ipc", Opposite("isolated-ipc"), "workers always share /dev/shm with the daemon"),
    refused("--runtime-plugin-locations", Words, &[""], PLUGINS),
    refused("--runtime-plugin-config", Text, &["", "{}"], PLUGINS),
    neutral("--script-allowed-imports", Words, "there is no script endpoint"),
    refused("--run-script-api-enabled", Opposite("no-run-script-api-enabled"), &[], SCRIPTS),
    neutral("--no-run-script-api-enabled", Opposite("run-script-api-enabled"), "there is no script endpoint"),
    refused("--enable-segmented-prefix", Nothing, &[], BLEND),
    refused("--enable-dedup-content", Nothing, &[], BLEND),
    refused("--enable-blend-reorder", Nothing, &[], BLEND),
    refused("--enable", Words, &[""], "the peer's experimental modules do not exist here; drop the flag"),
    refused(
        "--server-module",
        Repeated,
        &[],
        "modules are Python code; drop the flag or run the Python server",
    ),
    refused("--p2p-advertise-url", Text, &[""], P2P),
    refused("--p2p-listen-url", Text, &[""], P2P),
    refused("--p2p-lookup-timeout", Number, &["30", "30.0"], P2P),
    refused("--p2p-load-timeout", Number, &["30", "30.0"], P2P),
    refused("--p2p-transfer-engine", Text, &["nixl"], P2P),
    refused(
        "--l1-manager",
        Repeated,
        &[],
        "there is one pool, in memory; use --l1-size-gb and the eviction flags",
    ),
    neutral("--l1-use-lazy", Opposite("no-l1-use-lazy"), LAZY),
    neutral("--no-l1-use-lazy", Opposite("l1-use-lazy"), LAZY),
    neutral("--l1-init-size-gb", Int, LAZY),
    neutral(
        "--l1-read-ttl-seconds",
        Int,
        "a lease lasts as long as its request and its connection; see --lease-grace-seconds",
    ),
    refused("--l1-devdax-path", Text, &[""], "the pool lives in memory; use --l1-size-gb"),
    refused("--gds-l1-path", Text, &[""], "the pool lives in memory, not on NVMe; use --l1-size-gb"),
    neutral("--gds-l1-use-direct-io", Opposite("no-gds-l1-use-direct-io"), GDS),
    neutral("--no-gds-l1-use-direct-io", Opposite("gds-l1-use-direct-io"), GDS),
    neutral("--gds-l1-backend", OneOf(&["auto", "cufile", "hipfile", "mufile", "phx", "ugds"]), GDS),
    neutral("--periodic-notifier-interval-ms", Int, "controllers are woken by events, not by a timer"),
    neutral("--disable-grpc-metrics", Nothing, "there is no gRPC transport to measure"),
    neutral("--enable-gc-monitor", Nothing, GC),
    neutral("--gc-monitor-min-pause-ms", Number, GC),
    neutral("--gc-monitor-top-objects", Int, GC),
    refused(
        "--trace-level",
        Field,
        &["storage"],
        "cache events are recorded for a coordinator, and this daemon joins none; use storage",
    ),
    refused("--coordinator-url", Text, &[""], COORDINATOR),
    refused("--coordinator-advertise-ip", Text, &[""], COORDINATOR),
    refused("--coordinator-heartbeat-interval", Number, &["5", "5.0"], COORDINATOR),
    refused("--coordinator-event-reporting", Nothing, &[], COORDINATOR),
    refused("--coordinator-event-flush-interval", Number, &["1", "1.0"], COORDINATOR),
    refused("--coordinator-event-transport", OneOf(&["http", "kafka"]), &["http"], COORDINATOR),
    refused("--coordinator-kafka-bootstrap-servers", Text, &[""], COORDINATOR),
    refused("--coordinator-kafka-topic", Text, &["lmcache-cache-events"], COORDINATOR),
    refused("--coordinator-kafka-delivery-timeout", Number, &["300", "300.0"], COORDINATOR),
    refused("--coordinator-blend-timeout", Number, &["1", "1.0"], COORDINATOR),
    refused("--coordinator-blend-match-concurrency", Int, &["8"], COORDINATOR),
    // Spellings from before 0.5.3, which the peer still takes from old operators without showing them in its help.
    refused("--coordinator-l2-event-reporting", Nothing, &[], COORDINATOR),
    refused("--coordinator-l2-event-flush-interval", Number, &["1", "1.0"], COORDINATOR),
    neutral("--format", Text, OUTPUT),
    neutral("--output", Text, OUTPUT),
    neutral("--quiet", Short('q'), OUTPUT),
];
