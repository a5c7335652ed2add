//! `GET /config`: what the daemon was told, under the peer's keys, and without secrets.

use serde_json::{Map, Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, answer, json_answer};
use super::call::Call;
use crate::config::{
    Config, CudaCopies, EvictionConfig, HashAlgorithm, L2Adapter, L2PrefetchPolicy, L2StorePolicy, LogFormat,
    MetricsCompat, TraceLevel,
};

/// Keys of adapters whose text is no secret. Everything else that is text is hidden: what a new adapter's keys mean is not
/// known here.
const SHOWN: [&str; 16] = [
    "type",
    "affinity_tag",
    "base_path",
    "relative_tmp_dir",
    "device_path",
    "io_engine",
    "host",
    "startup_nodes",
    "key_prefix",
    "s3_endpoint",
    "s3_region",
    "s3_bucket",
    "eviction_policy",
    "master_key_path",
    "meta_magic",
    "cluster_mode",
];

/// The page, made once: the configuration does not change.
pub(super) fn page(config: &Config) -> Value {
    let (l1, limits) = (&config.l1, &config.server.limits);
    let eviction = eviction(&config.eviction);
    let manager = json!({
        "memory_config": {
            "size_in_bytes": l1.size_bytes,
            "use_lazy": true,
            "align_bytes": l1.align_bytes,
            "shm_name": l1.pool_name,
            "shm_group": l1.group,
            "use_hugepages": l1.use_hugepages,
            "devdax_path": null,
            "devdax_size_in_bytes": 0,
        },
        "gds_l1_config": null,
        "write_ttl_seconds": config.liveness.write_ttl.as_secs(),
        "lease_grace_seconds": config.liveness.lease_grace.as_secs_f64(),
        "tag": "_default",
        "fresh": l1.fresh,
        "require_warm": l1.require_warm,
        "verify_payload": l1.verify_payload,
        "checksums": l1.checksums,
        "eviction": eviction,
    });
    json!({
        "mp": mp(config),
        "storage_manager": {
            "l1_manager_config": manager,
            "eviction_config": eviction,
            "l2_adapter_config": {"adapters": config.l2.adapters.iter().map(adapter).collect::<Vec<_>>()},
            "store_policy": match config.l2.store_policy {
                L2StorePolicy::Default => "default",
                L2StorePolicy::SkipL1 => "skip_l1",
            },
            "prefetch_policy": match config.l2.prefetch_policy {
                L2PrefetchPolicy::Default => "default",
                L2PrefetchPolicy::Retain => "retain",
            },
            "prefetch_max_in_flight": config.l2.prefetch_max_in_flight,
            "prefetch_deadline_seconds": config.l2.prefetch_deadline.as_secs_f64(),
            "store_max_bytes_in_flight": config.l2.store_max_bytes_in_flight,
            "l1_manager_configs": [manager],
        },
        "observability": observability(config),
        "http": {
            "http_host": config.http.listen.host,
            "http_port": config.http.listen.port,
            "http_token_file": config.http.token_file,
        },
        "coordinator": {"url": ""},
        "lmcached": {
            "limits": {
                "max_message_bytes": limits.max_message_bytes,
                "max_peer_bytes": limits.max_peer_bytes,
                "max_total_bytes": limits.max_total_bytes,
                "max_peer_requests_per_second": limits.max_peer_requests_per_second,
                "max_connections": limits.max_connections,
                "max_sessions": limits.max_sessions,
                "max_session_bytes": limits.max_session_bytes,
                "max_prefetch_jobs": limits.max_prefetch_jobs,
                "max_registered_workers": limits.max_registered_workers,
                "max_registration_bytes": limits.max_registration_bytes,
                "max_names": limits.max_names,
                "kv_event_log_bytes": limits.kv_event_log_bytes,
                "http_max_connections": limits.http_max_connections,
                "http_max_body_bytes": limits.http_max_body_bytes,
                "ring_lanes": limits.ring.map_or(0, |ring| ring.lanes()),
                "ring_slots": limits.ring.map_or(0, |ring| ring.slots()),
            },
            "gpu": {
                "cuda": if config.gpu.enabled { "auto" } else { "off" },
                "cuda_copies": match config.gpu.copies {
                    CudaCopies::Auto => "auto",
                    CudaCopies::Staged => "staged",
                    CudaCopies::Plain => "plain",
                },
                "cuda_event_timeout_seconds": config.gpu.event_timeout.as_secs_f64(),
            },
            "shutdown": {
                "drain_seconds": config.shutdown.drain.as_secs_f64(),
                "discard_on_exit": config.shutdown.discard_on_exit,
            },
        },
    })
}

fn observability(config: &Config) -> Value {
    let observability = &config.observability;
    json!({
        "enabled": observability.enabled,
        "max_queue_size": observability.event_bus_queue_size,
        "metrics_enabled": observability.metrics,
        "grpc_metrics_enabled": false,
        "logging_enabled": observability.logging,
        "tracing_enabled": observability.tracing,
        "otlp_endpoint": observability.otlp_endpoint.as_deref().map(without_user),
        "prometheus_host": observability.prometheus.as_ref().map(|listen| &listen.host),
        "prometheus_port": observability.prometheus.as_ref().map(|listen| listen.port),
        "metrics_sample_rate": observability.metrics_sample_rate,
        "metrics_compat": match observability.metrics_compat {
            MetricsCompat::Seed => "seed",
            MetricsCompat::V05 => "0.5",
            MetricsCompat::Both => "both",
        },
        "metrics_max_series": observability.metrics_max_series,
        "log_level": observability.log_level.name(),
        "log_format": match observability.log_format {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        },
        "lookup_hash_log": {
            "output_dir": observability.lookup_hash_log.as_ref().map(|log| &log.dir),
        },
        "extra_logging_enabled": observability.extra_logging.is_some(),
        "extra_logging_interval": observability.extra_logging.map(|every| every.as_secs_f64()),
        "trace_level": observability.trace.as_ref().map(|trace| match trace.level {
            TraceLevel::Storage => "storage",
            TraceLevel::Events => "events",
        }),
        "trace_output": observability.trace.as_ref().and_then(|trace| trace.output.as_ref()),
        "service_instance_id": observability.instance_id,
    })
}

fn mp(config: &Config) -> Value {
    let (server, l1, observability) = (&config.server, &config.l1, &config.observability);
    let first_tcp = server.endpoints.iter().find_map(|endpoint| match endpoint {
        crate::config::Endpoint::Tcp { host, port } => Some((host.clone(), *port)),
        crate::config::Endpoint::Ipc { .. } => None,
    });
    json!({
        "transport": "zmq",
        "host": first_tcp.as_ref().map(|(host, _)| host),
        "port": first_tcp.as_ref().map(|(_, port)| port),
        "bind": server.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "chunk_size": server.chunk_size,
        "hash_algorithm": match server.hash_algorithm {
            HashAlgorithm::Blake3 => "blake3",
            HashAlgorithm::Sha256Cbor => "sha256_cbor",
        },
        "engine_type": "default",
        "separate_object_groups": server.separate_object_groups,
        "supported_transfer_mode": match (server.transfer_modes.lmcache_driven, server.transfer_modes.engine_driven) {
            (true, true) => "auto",
            (true, false) => "lmcache_driven",
            _ => "engine_driven",
        },
        "isolated_ipc": false,
        "shm_name": l1.pool_name,
        "run_script_api_enabled": false,
        "instance_id": observability.instance_id,
        "worker_reap_timeout_seconds": config.liveness.reap_timeout.map_or(0.0, |limit| limit.as_secs_f64()),
        "session_ttl_seconds": config.liveness.session_ttl.as_secs_f64(),
        "worker_registration_grace_seconds": config.liveness.registration_grace.as_secs_f64(),
        "kv_event_log_size": server.kv_event_log_size.map_or(0, u32::from),
        "null_block_id": server.null_block_id,
        "server_modules": [],
        "compute_threads": server.compute_threads,
        "state_dir": server.state_dir,
        "ipc_allow_uid": server.ipc_allow_uids,
        "tenant_tokens_file": server.tenant_tokens_file,
        "tenant_token_required": server.tenant_token_required,
    })
}

fn eviction(config: &EvictionConfig) -> Value {
    json!({
        "eviction_policy": config.policy.name(),
        "trigger_watermark": config.trigger_watermark,
        "eviction_ratio": config.ratio,
    })
}

/// A URL without the name and password that may stand in it.
fn without_user(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, host)) => format!("{scheme}://{host}"),
        None => url.to_owned(),
    }
}

/// An adapter's configuration.
pub(super) fn adapter(config: &L2Adapter) -> Value {
    let mut map: Map<String, Value> =
        config.settings.iter().map(|(key, value)| (key.clone(), shown(key, value))).collect();
    map.insert("type".into(), json!(config.kind));
    map.insert("affinity_tag".into(), json!(config.affinity_tag));
    map.insert("shared".into(), json!(config.shared));
    map.insert("persist_enabled".into(), json!(config.persist));
    map.insert("eviction".into(), config.eviction.as_ref().map_or(Value::Null, eviction));
    Value::Object(map)
}

fn shown(key: &str, value: &Value) -> Value {
    match value {
        Value::String(text) if !SHOWN.contains(&key) || text.contains('@') => Value::from("***"),
        Value::Array(values) => values.iter().map(|value| shown(key, value)).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), shown(key, value))).collect())
        }
        other => other.clone(),
    }
}

/// `GET /config`, indented as the peer has it.
pub(super) fn config(call: &Call) -> Answer {
    answer(StatusCode::OK, "application/json", format!("{:#}", call.admin.config))
}

/// `GET /config/adapters`: the tiers in use. `reconfigurable` is about the peer's `/reconfigure` routes, which are not here;
/// see `/lmcached/adapters`.
pub(super) fn adapters(call: &Call) -> Answer {
    let tiers = call.admin.engine.l2().map(|l2| l2.opened.tiers.all());
    let rows: Vec<Value> = tiers
        .iter()
        .flat_map(|tiers| tiers.iter())
        .enumerate()
        .map(|(at, attached)| {
            json!({
                "index": attached.id.index,
                "type_name": &*attached.id.name,
                "tier": "l2",
                "primary": at == 0,
                "reconfigurable": false,
            })
        })
        .collect();
    json_answer(StatusCode::OK, &json!({"adapters": rows}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let args = [
            "lmcached",
            "--l1-size-gb=1",
            "--otlp-endpoint=http://user:hunter2@collector:4317",
            r#"--l2-adapter={"type":"resp","host":"h","port":1,"username":"hunter2","password":"hunter2"}"#,
            r#"--l2-adapter={"type":"fault_inject","inner":{"type":"resp","host":"hunter2@h","port":1,"password":"hunter2"}}"#,
        ];
        let parsed = crate::config::parse(args.map(std::ffi::OsString::from)).expect("a command line");
        let text = page(&parsed.config).to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains(r#""host":"h""#) && text.contains("http://collector:4317"), "{text}");
    }
}
