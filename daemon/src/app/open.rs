//! The engine and the server that a configuration means.

use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::hash::{HashAlgorithm, TokenHasher};
use lmcache_proto::shm::names;

use super::AppError;
use crate::config::{self, Config};
use crate::device::cuda::{self, Cuda};
use crate::engine::{Engine, EngineConfig, L2, Parts};
use crate::events::Bus;
use crate::handover::Heir;
use crate::journal::Journal;
use crate::l1::{L1, L1Config, PolicyKind, Recovered, pool};
use crate::l2::control;
use crate::liveness_watch::DeathWatch;
use crate::quota::Quotas;
use crate::ring::{RingConfig, RingHub};
use crate::roster::{PoolFile, Roster};
use crate::server::{Access, ServerConfig};
use crate::tenants::Gate;

/// Time for a ZMTP greeting.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one whole message: the largest comes at 1 MiB/s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn open_engine(
    config: &Config,
    bus: Arc<Bus>,
    death_watch: Arc<DeathWatch>,
    tenants: Option<Arc<Gate>>,
    heir: Option<&mut Heir>,
) -> Result<(Arc<L1>, Arc<Engine>), AppError> {
    let chunk_size = config.server.chunk_size.get();
    let algorithm = hash_algorithm(config);
    let (handed_over, state) = match heir {
        Some(heir) => (heir.segments(), Some(heir.engine())),
        None => (None, None),
    };
    let quotas = Arc::new(Quotas::open(config.server.state_dir.as_deref()));
    let opening = std::time::Instant::now();
    let (l1, recovered) = L1::open(&L1Config {
        pool_name: config.l1.pool_name.clone(),
        pool_bytes: config
            .l1
            .size_bytes
            .map_or_else(|| pool::default_pool_bytes(&config.l1.pool_name), Into::into),
        chunk_size,
        algorithm,
        policy: match config.eviction.policy {
            config::EvictionPolicy::Lru => PolicyKind::Lru,
            config::EvictionPolicy::Arc => PolicyKind::Arc,
            config::EvictionPolicy::IsolatedLru => PolicyKind::IsolatedLru,
            config::EvictionPolicy::Noop => PolicyKind::Noop,
        },
        align: config.l1.align_bytes.get(),
        hugepages: config.l1.use_hugepages,
        // What is handed over is in use.
        fresh: config.l1.fresh && handed_over.is_none(),
        require_warm: config.l1.require_warm || handed_over.is_some(),
        verify_payload: config.l1.verify_payload,
        max_names: config.server.limits.max_names,
        group: config.l1.group,
        checksums: config.l1.checksums,
        quotas: quotas.clone(),
        handed_over,
    })?;
    if recovered.objects > 0 || recovered.dropped > 0 {
        let Recovered { objects, bytes, dropped, damaged, .. } = recovered;
        tracing::info!(
            objects,
            bytes,
            dropped,
            damaged,
            took_ms = opening.elapsed().as_millis() as u64,
            "took over what the earlier daemon left; dropped is what was unfinished or damaged"
        );
    }
    if !recovered.pins.is_empty() && state.is_none() {
        tracing::warn!(
            slots = recovered.pins.len(),
            "workers of the earlier daemon may still touch slots; those are nobody else's until the workers are gone"
        );
    }
    let l1 = Arc::new(l1);
    let engine_config = EngineConfig {
        reap_timeout: config.liveness.reap_timeout.unwrap_or(Duration::ZERO),
        registration_grace: config.liveness.registration_grace,
        session_ttl: config.liveness.session_ttl,
        write_ttl: config.liveness.write_ttl,
        lease_grace: config.liveness.lease_grace,
        max_sessions: config.server.limits.max_sessions,
        max_session_bytes: config.server.limits.max_session_bytes,
        max_prefetch_jobs: config.server.limits.max_prefetch_jobs,
        max_workers: config.server.limits.max_registered_workers,
        max_registration_bytes: config.server.limits.max_registration_bytes,
        kv_event_log_size: config.server.kv_event_log_size.map_or(0, |size| size.get() as usize),
        kv_event_log_bytes: config.server.limits.kv_event_log_bytes,
        watermark: config.eviction.trigger_watermark,
        eviction_ratio: config.eviction.ratio,
        null_block_id: u64::try_from(config.server.null_block_id).unwrap_or(u64::MAX),
        separate_object_groups: config.server.separate_object_groups,
        lmcache_driven: config.server.transfer_modes.lmcache_driven,
        engine_driven: config.server.transfer_modes.engine_driven,
        pool_name: config.l1.pool_name.clone(),
        publish_lookups: config.observability.lookup_hash_log.is_some(),
        publish_calls: config.observability.trace.is_some(),
    };
    let hasher = TokenHasher::new(algorithm, chunk_size as usize, config.server.hash_seed.as_deref());
    let ring = RingHub::open(&RingConfig {
        name: names::ring(&config.l1.pool_name),
        // Its only use is events.
        layout: config.server.limits.ring.filter(|_| config.observability.enabled),
        group: config.l1.group,
        max_bytes: l1.pool().segment().bytes(),
    })?;
    // Also without a tier: one may be added while the daemon runs.
    let l2 = Some(L2 {
        opened: control::open(&config.l2, &l1, &bus, &quotas)?,
        runtime: tokio::runtime::Handle::current(),
    });
    let pool = l1.pool().segment();
    let pool_file = PoolFile { inode: pool.inode(), bytes: pool.bytes() };
    let (roster, workers) = Roster::open(&names::workers(&config.l1.pool_name), pool_file);
    let journal = Journal::open(
        &names::journal(&config.l1.pool_name),
        pool.inode(),
        config.server.limits.max_connections,
        state.is_some(),
    );
    let cuda = (config.gpu.enabled && config.server.transfer_modes.lmcache_driven).then(|| {
        // Loading the driver may take seconds, and nobody waits for what it says.
        std::thread::spawn(Cuda::announce);
        Arc::new(Cuda::new(l1.clone(), cuda_settings(config)))
    });
    let engine = {
        let (l1, adopted, deaths) = (l1.clone(), recovered.pins, death_watch);
        let parts = Parts { l1, adopted, bus, ring, deaths, l2, quotas, roster, journal, tenants, cuda };
        Engine::new(engine_config, hasher, parts)
    };
    engine.expect_workers(workers, state.as_ref().map(|state| state.waiting()));
    if let Some(state) = state {
        engine.import(state);
    }
    Ok((l1, engine))
}

pub(super) fn hash_algorithm(config: &Config) -> HashAlgorithm {
    match config.server.hash_algorithm {
        config::HashAlgorithm::Blake3 => HashAlgorithm::Blake3,
        config::HashAlgorithm::Sha256Cbor => HashAlgorithm::Sha256Cbor,
    }
}

fn cuda_settings(config: &Config) -> cuda::Settings {
    let copies = match config.gpu.copies {
        config::CudaCopies::Auto => cuda::Copies::Auto,
        config::CudaCopies::Staged => cuda::Copies::Staged,
        config::CudaCopies::Plain => cuda::Copies::Plain,
    };
    cuda::Settings { copies, event_timeout: config.gpu.event_timeout }
}

pub(super) fn server_config(config: &Config) -> ServerConfig {
    let limits = &config.server.limits;
    let bytes = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    ServerConfig {
        max_message_bytes: bytes(limits.max_message_bytes),
        max_peer_bytes: bytes(limits.max_peer_bytes),
        max_total_bytes: bytes(limits.max_total_bytes),
        max_connections: limits.max_connections,
        max_peer_requests_per_second: limits.max_peer_requests_per_second,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        message_timeout: MESSAGE_TIMEOUT,
    }
}

/// Who may connect to Unix sockets.
pub(super) fn access(config: &Config) -> Access {
    Access {
        uids: config.server.ipc_allow_uids.clone(),
        groups: config.l1.group.into_iter().collect(),
        anybody: false,
    }
}
