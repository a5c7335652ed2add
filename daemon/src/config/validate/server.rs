//! Checks of the request server, of its budgets, and of the way out.

use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::ArgMatches;
use lmcache_proto::shm::ring::RingLayout;

use super::{Environment, is_explicit, ranges, variable};
use crate::config::endpoint::{self, Endpoint};
use crate::config::error::ConfigError;
use crate::config::flags::{Flags, GpuFlags, LimitFlags, ServerFlags, ShutdownFlags};
use crate::config::types::{GpuConfig, HashAlgorithm, Limits, ServerConfig, ShutdownConfig, TransferModes};

/// Longest chunk in tokens: its KV must stay a sensible allocation.
const MAX_CHUNK_TOKENS: i64 = 65_536;

/// KV events kept at most. What they take is bounded by bytes, and by 32 more for each in the index.
const MAX_KV_EVENTS: i64 = 1 << 24;

/// Bytes of the KV event log: at least a record of the longest chunk, whose tokens may take nine bytes each, at most what its
/// index can say.
const KV_EVENT_BYTES: RangeInclusive<i64> = 1 << 20..=u32::MAX as i64;

/// Threads at most; more than any node has cores is a slip of the finger.
const MAX_THREADS: i64 = 1024;

/// Smallest message budget: a prompt of a hundred thousand tokens takes half a million bytes.
const MIN_MESSAGE_BYTES: i64 = 1 << 20;

pub(super) fn server(
    flags: &Flags,
    matches: &ArgMatches,
    environment: Environment<'_>,
) -> Result<ServerConfig, ConfigError> {
    let server = &flags.server;
    let chunk_size = ranges::int("--chunk-size", server.chunk_size, 1..=MAX_CHUNK_TOKENS)?;
    let kv_events = ranges::int("--kv-event-log-size", server.kv_event_log_size, 0..=MAX_KV_EVENTS)?;
    Ok(ServerConfig {
        endpoints: endpoints(server, matches)?,
        chunk_size: small(chunk_size).expect("1 to 65536 is a non-zero u32"),
        null_block_id: server.null_block_id,
        hash_algorithm: match server.hash_algorithm.as_str() {
            "sha256_cbor" => HashAlgorithm::Sha256Cbor,
            // clap lets three names through and the table refuses `builtin`.
            _ => HashAlgorithm::Blake3,
        },
        hash_seed: variable(environment, "PYTHONHASHSEED")?,
        transfer_modes: transfer_modes(server.supported_transfer_mode.as_deref()),
        separate_object_groups: server.separate_object_groups,
        kv_event_log_size: small(kv_events),
        compute_threads: threads(server.compute_threads)?,
        state_dir: absolute("--state-dir", server.state_dir.as_deref())?,
        limits: limits(&flags.limits)?,
        tenant_token_required: token_required(server)?,
        tenant_tokens_file: absolute("--tenant-tokens-file", server.tenant_tokens_file.as_deref())?,
        ipc_allow_uids: server
            .ipc_allow_uid
            .iter()
            // The last number stands for "no user" in system calls.
            .map(|uid| {
                ranges::int("--ipc-allow-uid", *uid, 0..=i64::from(u32::MAX) - 1).map(|uid| uid as u32)
            })
            .collect::<Result<_, _>>()?,
    })
}

pub(super) fn shutdown(flags: &ShutdownFlags) -> Result<ShutdownConfig, ConfigError> {
    Ok(ShutdownConfig {
        drain: ranges::seconds("--drain-seconds", flags.drain_seconds)?,
        discard_on_exit: flags.discard_on_exit,
    })
}

pub(super) fn gpu(flags: &GpuFlags) -> Result<GpuConfig, ConfigError> {
    Ok(GpuConfig {
        enabled: flags.cuda != "off",
        copies: flags.cuda_copies,
        event_timeout: ranges::positive_seconds(
            "--cuda-event-timeout-seconds",
            flags.cuda_event_timeout_seconds,
        )?,
    })
}

/// A number already checked against a range within `u32`; zero is `None`.
fn small(value: i64) -> Option<NonZeroU32> {
    u32::try_from(value).ok().and_then(NonZeroU32::new)
}

/// `--bind` replaces the default of `--host` and `--port`, but adds to them where they were asked for.
fn endpoints(flags: &ServerFlags, matches: &ArgMatches) -> Result<Vec<Endpoint>, ConfigError> {
    let mut endpoints = Vec::new();
    for text in &flags.bind {
        let endpoint =
            endpoint::parse(text).map_err(|allowed| ConfigError::value("--bind", text, allowed))?;
        endpoints.push(endpoint);
    }
    if endpoints.is_empty() || is_explicit(matches, "host") || is_explicit(matches, "port") {
        let host = ranges::host("--host", &flags.host)?;
        endpoints.push(Endpoint::Tcp { host, port: ranges::port("--port", flags.port)? });
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        if let Some(other) = endpoints[..index].iter().find(|other| clash(other, endpoint)) {
            return Err(ConfigError::conflict(
                "--bind, --host and --port",
                format!("{other} and {endpoint} cannot be listened on at once, drop one"),
            ));
        }
    }
    Ok(endpoints)
}

fn clash(one: &Endpoint, other: &Endpoint) -> bool {
    match (one, other) {
        (Endpoint::Tcp { host, port }, Endpoint::Tcp { host: other_host, port: other_port }) => {
            endpoint::overlap((host, *port), (other_host, *other_port))
        }
        _ => one == other,
    }
}

/// The peer offers `lmcache_driven` alone when nothing is said. Here the pool always is shared, so both ways always
/// work, and a worker configured for either finds what it needs.
fn transfer_modes(flag: Option<&str>) -> TransferModes {
    TransferModes {
        lmcache_driven: flag != Some("engine_driven"),
        engine_driven: flag != Some("lmcache_driven"),
    }
}

fn threads(flag: Option<i64>) -> Result<Option<NonZeroUsize>, ConfigError> {
    flag.map(|threads| ranges::count("--compute-threads", threads, MAX_THREADS)).transpose()
}

/// Absolute: what a supervisor takes for the current directory is anybody's guess.
pub(super) fn absolute(flag: &str, path: Option<&str>) -> Result<Option<PathBuf>, ConfigError> {
    match path {
        None => Ok(None),
        Some(path) if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        Some(path) => Err(ConfigError::value(flag, path, "must be an absolute path")),
    }
}

fn token_required(server: &ServerFlags) -> Result<bool, ConfigError> {
    if server.tenant_token_required && server.tenant_tokens_file.is_none() {
        return Err(ConfigError::Conflict {
            flags: "--tenant-token-required".into(),
            line: "there is no token that a connection could show; give --tenant-tokens-file, too".into(),
        });
    }
    Ok(server.tenant_token_required)
}

fn limits(flags: &LimitFlags) -> Result<Limits, ConfigError> {
    let max_message =
        ranges::int("--max-message-bytes", flags.max_message_bytes, MIN_MESSAGE_BYTES..=1 << 40)?;
    let bytes = |flag, value| {
        ranges::bytes(flag, value).map(|bytes| usize::try_from(bytes.get()).unwrap_or(usize::MAX))
    };
    let limits = Limits {
        max_message_bytes: max_message.unsigned_abs(),
        max_peer_bytes: ranges::bytes("--max-peer-bytes", flags.max_peer_bytes)?.get(),
        max_total_bytes: ranges::bytes("--max-total-bytes", flags.max_total_bytes)?.get(),
        max_peer_requests_per_second: ranges::int(
            "--max-peer-requests-per-second",
            flags.max_peer_requests_per_second,
            0..=1_000_000_000,
        )? as u32,
        max_connections: ranges::count("--max-connections", flags.max_connections, 1 << 20)?.get(),
        max_sessions: ranges::count("--max-sessions", flags.max_sessions, 1 << 30)?.get(),
        max_session_bytes: bytes("--max-session-bytes", flags.max_session_bytes)?,
        max_prefetch_jobs: ranges::count("--max-prefetch-jobs", flags.max_prefetch_jobs, 1 << 20)?.get(),
        max_registered_workers: ranges::count(
            "--max-registered-workers",
            flags.max_registered_workers,
            1 << 20,
        )?
        .get(),
        max_registration_bytes: bytes("--max-registration-bytes", flags.max_registration_bytes)?,
        // A request needs two, and names of objects that are on their way out stay for a moment.
        max_names: ranges::int("--max-names", flags.max_names, 4..=65_535)? as u32,
        kv_event_log_bytes: ranges::int("--kv-event-log-bytes", flags.kv_event_log_bytes, KV_EVENT_BYTES)?
            as usize,
        http_max_connections: ranges::count("--http-max-connections", flags.http_max_connections, 1 << 16)?
            .get(),
        http_max_body_bytes: ranges::int("--http-max-body-bytes", flags.http_max_body_bytes, 1024..=1 << 30)?
            as usize,
        ring: ring(flags)?,
    };
    // Otherwise the largest message could never be received.
    if limits.max_peer_bytes < limits.max_message_bytes {
        let allowed = format!("must be at least --max-message-bytes, {max_message}");
        return Err(ConfigError::value("--max-peer-bytes", limits.max_peer_bytes, allowed));
    }
    if limits.max_total_bytes < limits.max_peer_bytes {
        let allowed = format!("must be at least --max-peer-bytes, {}", limits.max_peer_bytes);
        return Err(ConfigError::value("--max-total-bytes", limits.max_total_bytes, allowed));
    }
    Ok(limits)
}

/// The slots are found by a mask, so their number is a power of two.
fn ring(flags: &LimitFlags) -> Result<Option<RingLayout>, ConfigError> {
    let lanes = ranges::int("--ring-lanes", flags.ring_lanes, 0..=i64::from(RingLayout::MAX_LANES))?;
    let slots = ranges::int("--ring-slots", flags.ring_slots, 2..=i64::from(RingLayout::MAX_SLOTS))?;
    if !slots.unsigned_abs().is_power_of_two() {
        return Err(ConfigError::value("--ring-slots", slots, "must be a power of two"));
    }
    // Both fit: the ranges above.
    Ok(RingLayout::new(lanes as u32, slots as u32))
}
