//! Start-up and shutdown: the order in which things come to life and go.
//!
//! * `listen`: where it is reached;
//! * `open`: the engine and the server that a configuration means;
//! * `maintain`: what time alone causes;
//! * `stop`: what an orderly end waits for;
//! * `upgrade`: an end that leaves everything to another process.
#![forbid(unsafe_code)]

mod listen;
mod maintain;
mod open;
mod stop;
mod tenancy;
mod upgrade;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lmcache_proto::shm::names;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Notice};
use crate::engine::Engine;
use crate::events::Bus;
use crate::failpoint;
use crate::handover::{Heir, HeirError, Program, SuccessorError};
use crate::http::history;
use crate::http::{self, Admin, AdminParts, EventStreams, Guard, Token, TokenError};
use crate::l1::{L1, OpenError};
use crate::l2::control;
use crate::liveness_watch::DeathWatch;
use crate::logging::Levels;
use crate::periodic::Periodic;
use crate::process::{self, ProcessId};
use crate::ring::{RingError, RingTimer};
use crate::server::{BindError, Server, Threads};
use crate::systemd::{self, Sockets, Supervisor};
use crate::telemetry::{self, DaemonGauges, HttpCounters, Outlet};
use crate::tenants::TenantsError;
use crate::trace::{self, RecordError, Recorder};
use listen::{Doors, announce};
use maintain::maintain;
use open::{hash_algorithm, open_engine, server_config};
use stop::{empty, flush_tiers, last_words};
use upgrade::Entrances;

/// Why the daemon could not start or go on. Each is one line, and exit code 1.
#[derive(Debug, Error)]
pub enum AppError {
    /// Memory.
    #[error(transparent)]
    L1(#[from] OpenError),
    /// The shared ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// An L2 tier.
    #[error(transparent)]
    Tier(#[from] control::TierError),
    /// A client endpoint.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// An HTTP port.
    #[error(
        "cannot listen on {host}:{port} ({flag}): {source}; stop the other process or choose another port"
    )]
    Http {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Its flag.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The tokens of the tenants.
    #[error(transparent)]
    Tenants(#[from] TenantsError),
    /// The token of the admin API.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Metrics, logs or spans.
    #[error(transparent)]
    Telemetry(#[from] telemetry::StartError),
    /// The recording.
    #[error(transparent)]
    Trace(#[from] RecordError),
    /// The runtime or signals.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// Nothing was handed over.
    #[error(transparent)]
    Heir(#[from] HeirError),
    /// The sockets and the pool were left to a successor, and there is none.
    #[error(
        "no successor took over: {0}; this daemon has given its sockets away and ends, the pool is kept for the next start"
    )]
    Upgrade(SuccessorError),
    /// The background reservation failed.
    #[error(
        "the pool's memory ran out while reserving it ({0}); lower --l1-size-gb or raise the limit of /dev/shm or the cgroup"
    )]
    Reserve(io::Error),
}

/// Time for the last answers over HTTP, and for the listening sockets to be closed.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why the daemon ends.
enum Stop {
    /// It was told to, by this.
    Ordered(&'static str),
    /// Another process takes over.
    Upgrade(Box<upgrade::Parting>),
}

/// How the daemon was started.
#[derive(Debug)]
pub struct Start<'l> {
    /// Listening sockets of the service manager.
    pub sockets: Sockets,
    /// What a running daemon has left to this process.
    pub heir: Option<Heir>,
    /// What to start for an upgrade.
    pub program: Program,
    /// The levels of the log.
    pub levels: &'l Levels,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// See [`AppError`].
pub fn run(config: &Config, notices: &[Notice], outlet: &Outlet, start: Start<'_>) -> Result<(), AppError> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let io_threads = cores.clamp(2, 8);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name("lmcached-io").worker_threads(io_threads);
    builder.max_blocking_threads(config.server.compute_threads.map_or(cores.max(4), usize::from));
    let runtime = builder.build().map_err(AppError::Runtime)?;
    let busy = behind("lmcached-busy", io_threads / 2)?;
    let door = behind("lmcached-door", 1)?;
    let threads =
        Threads { all: runtime.handle().clone(), busy: busy.handle().clone(), door: door.handle().clone() };
    let result = runtime.block_on(serve(config, notices, outlet, start, threads));
    // Copies that are still running belong to peers that get no answer any more; the process ends with them. Not shut down one
    // after the other: connections that have moved wait for timers of several.
    std::mem::forget((runtime, busy, door));
    result
}

/// A runtime whose threads run behind those that serve everybody.
fn behind(name: &str, threads: usize) -> Result<Runtime, AppError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name(name).worker_threads(threads).max_blocking_threads(1);
    process::behind(|| builder.build()).map_err(AppError::Runtime)
}

async fn serve(
    config: &Config,
    notices: &[Notice],
    outlet: &Outlet,
    Start { mut sockets, mut heir, program, levels }: Start<'_>,
    threads: Threads,
) -> Result<(), AppError> {
    for notice in notices {
        tracing::info!(flag = notice.flag, "{}", notice.line);
    }
    match process::raise_descriptor_limit() {
        // Every worker takes one, and its segments one each.
        Ok(limit) if limit < config.server.limits.max_connections as u64 + 256 => tracing::warn!(
            limit,
            "the limit of open files is below --max-connections; raise LimitNOFILE= (systemd) or ulimit -n"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let mut term = signal(SignalKind::terminate()).map_err(AppError::Runtime)?;
    let mut int = signal(SignalKind::interrupt()).map_err(AppError::Runtime)?;
    let hangup = tenancy::hangup(config).map_err(AppError::Runtime)?;

    // Endpoints first: a second daemon by mistake must not touch the first one's pool.
    let Doors { clients: listeners, admin: admin_listener, metrics: metrics_listener } =
        Doors::open(config, &mut sockets, heir.as_mut()).await?;
    // While an earlier daemon still serves if this fails.
    let listeners = listeners.into_iter().map(|listener| listener.moved_to(&threads.door));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;

    let token = config.http.token_file.as_deref().map(Token::read).transpose()?;
    let gate = tenancy::open(config)?;
    let loopback = admin_listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let guard = Guard::new(loopback, token);
    let streams = Arc::new(EventStreams::default());

    let telemetry::Started { telemetry, mut subscribers } = telemetry::start(&config.observability, outlet)?;
    subscribers.push(streams.subscriber());
    let mut recording = None;
    if let Some(trace) = &config.observability.trace {
        let (recorder, started) = Recorder::create(trace)?;
        subscribers.push(Box::new(recorder));
        recording = Some(started);
    }
    let (bus, events) = if config.observability.enabled {
        let (bus, drain) = Bus::start(config.observability.event_bus_queue_size.get(), subscribers);
        (bus, Some(drain))
    } else {
        (Bus::disabled(), None)
    };
    let (death_watch, deaths) = DeathWatch::new();
    let (l1, engine) = open_engine(config, bus.clone(), death_watch, gate.clone(), heir.as_mut())?;
    if let Some(recording) = recording {
        recording.begin(bus.clone(), trace::storage_config(config, l1.stats().capacity))?;
    }
    tokio::spawn(deaths.run(on_death(engine.clone())));
    let ring_timer = RingTimer::start(engine.ring().clone());
    let supervisor = Supervisor::from_env();
    let server = Server::new(engine.clone(), server_config(config), supervisor.clone(), threads);
    server.number_from(engine.journal().next_connection());
    let http_counters = Arc::new(HttpCounters::default());
    let gauges = DaemonGauges { engine: engine.clone(), server: server.clone(), http: http_counters.clone() };
    telemetry.attach(bus.clone(), Arc::new(gauges));
    announce(config, &l1, &listeners, &admin_listener, metrics_listener.as_ref());
    if let Some(gate) = gate {
        tenancy::announce(&gate, &guard);
        tokio::spawn(tenancy::reload(gate, hangup));
    }
    if let Guard::Closed = guard {
        tracing::warn!(
            host = config.http.listen.host,
            "the admin API can be reached from other machines and has no token: it serves only /healthcheck and /metrics; set --http-token-file, or --http-host 127.0.0.1"
        );
    }
    let periodic = Arc::new(Periodic::default());
    let admin = Arc::new(Admin::new(
        config,
        AdminParts {
            engine: engine.clone(),
            server: server.clone(),
            telemetry: telemetry.clone(),
            bus,
            events: streams,
            periodic: periodic.clone(),
            levels: levels.clone(),
            guard,
            hash_algorithm: hash_algorithm(config).name(),
            http: http_counters,
        },
    ));
    let mut entrances = Entrances::of(&listeners, &admin_listener, metrics_listener.as_ref());
    if let Some(mut heir) = heir {
        server.number_from(heir.next_connection());
        let connections = heir.connections();
        // Before the first request of theirs: until this is said, the other process would leave them to a third one, which
        // would execute again what this one has.
        match heir.serves() {
            Ok(()) => {
                tracing::info!("took over from the running daemon: its sockets, connections and pool");
                // That one says it, too; if it dies before, somebody must.
                supervisor.succeeded_by(std::process::id()).await;
            }
            Err(error) => tracing::warn!(%error, "took over, and the other daemon was not told"),
        }
        server.take_up(connections);
    }
    server.revive(sockets.connections());
    for listener in listeners {
        entrances.accepting.push(server.open(listener));
    }
    entrances.http.push(tokio::spawn(http::serve_admin(admin_listener, admin.clone())));
    if let Some(listener) = metrics_listener {
        entrances.http.push(tokio::spawn(http::serve_metrics(listener, admin.clone())));
    }
    tokio::spawn(history::keep(admin.history.clone(), admin.clone()));
    tokio::spawn(supervisor.clone().watch(systemd::probe(&l1)));
    let pool = l1.clone();
    tokio::spawn(
        supervisor.clone().follow_start(move || (pool.pool().frontier(), pool.pool().segment().bytes())),
    );
    let reserved = reserve(&l1);
    let maintenance = tokio::spawn(maintain(engine.clone(), periodic));

    let stopped = async {
        loop {
            tokio::select! {
                _ = term.recv() => return Stop::Ordered("SIGTERM"),
                _ = int.recv() => return Stop::Ordered("SIGINT"),
                limit = admin.drain_order.given() => {
                    // A signal ends the wait.
                    return Stop::Ordered(tokio::select! {
                        () = empty(&engine, limit) => "drain over HTTP",
                        _ = term.recv() => "SIGTERM",
                        _ = int.recv() => "SIGINT",
                    });
                }
                order = admin.upgrade_order.given() => {
                    if let Some(parting) = upgrade::begin(config, &program, &engine, &server, order).await {
                        return Stop::Upgrade(Box::new(parting));
                    }
                }
            }
        }
    };
    tokio::pin!(stopped, reserved);
    let stop = tokio::select! {
        stop = &mut stopped => stop,
        result = &mut reserved => {
            if let Err(error) = result {
                if !l1.pool().segment().reused() {
                    // Half a pool is of no use to the next start, and its memory is what was short.
                    l1.discard();
                }
                return Err(AppError::Reserve(error));
            }
            tracing::info!(bytes = l1.stats().frontier, "pool reserved; ready");
            supervisor.ready();
            stopped.await
        }
    };
    let signal = match stop {
        Stop::Ordered(signal) => signal,
        Stop::Upgrade(parting) => {
            tracing::info!("upgrade: the successor is there; leaving it the sockets and the pool");
            admin.drain();
            l1.pool().stop_reserving();
            maintenance.abort();
            let _ = maintenance.await;
            drop(ring_timer);
            let told = last_words(events, telemetry);
            return upgrade::finish(*parting, &engine, &server, entrances, (&supervisor, &admin), told).await;
        }
    };
    tracing::info!(
        signal,
        drain_s = config.shutdown.drain.as_secs_f64(),
        "stopping: no new connections, finishing what is in flight"
    );
    supervisor.stopping().await;
    failpoint::hit("stop.begun");
    admin.drain();
    l1.pool().stop_reserving();
    let draining = std::time::Instant::now();
    let left = server.drain(config.shutdown.drain).await;
    if left > 0 {
        tracing::warn!(
            requests = left,
            "requests were still executing at the end of --drain-seconds; their clients get no answer"
        );
    }
    // Their threads give way to others: not at once if the machine is busy.
    let _ = tokio::time::timeout(LAST_ANSWERS, join_all(entrances.accepting)).await;
    engine.journal().keep();
    failpoint::hit("stop.drained");
    maintenance.abort();
    if let Some(l2) = engine.l2() {
        flush_tiers(l2, config.shutdown.drain.saturating_sub(draining.elapsed())).await;
    }
    failpoint::hit("stop.flushed");
    drop(ring_timer);
    engine.ring().unlink();
    last_words(events, telemetry).await;
    failpoint::hit("stop.told");
    admin.last_answers(LAST_ANSWERS).await;
    let name = &config.l1.pool_name;
    if config.shutdown.discard_on_exit {
        l1.discard();
        engine.discard_registrations();
        tracing::info!(pool = name, "pool removed (--discard-on-exit)");
    } else {
        tracing::info!(
            pool = name,
            bytes = l1.stats().capacity,
            "pool kept for the next start; to free its memory: rm /dev/shm/{name} /dev/shm/{} /dev/shm/{} /dev/shm/{} /dev/shm/{}",
            names::keeper(name),
            names::table(name),
            names::workers(name),
            names::journal(name)
        );
    }
    Ok(())
}

/// What is done about a dead process; it takes locks and may free much, so not on an I/O thread.
fn on_death(engine: Arc<Engine>) -> impl Fn(ProcessId) {
    move |process| {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || engine.process_died(process));
    }
}

/// Makes the pool's memory real on all cores; resolves when it is done. On threads of its own: it takes minutes for a large
/// pool, and the runtime's are for requests.
async fn reserve(l1: &Arc<L1>) -> io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let (done, mut results) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..threads {
        let (l1, done) = (l1.clone(), done.clone());
        std::thread::Builder::new().name("lmcached-reserve".into()).spawn(move || {
            let _ = done.send(l1.reserve_memory());
        })?;
    }
    drop(done);
    while let Some(result) = results.recv().await {
        result?;
    }
    Ok(())
}
