//! Metrics, log lines and spans: everything that an operator sees of the daemon from outside.
//!
//! * `catalogue`: every metric, in one table;
//! * `series`: the numbers that subscribers make, bounded and retiring;
//! * `readings`: what is read at a scrape instead;
//! * `snapshot`, `exposition`, `otlp`: one walk over all metrics and its two readers, the scrape and the push;
//! * `subscribers`: from events to numbers, lines and spans;
//! * `resource`: who this daemon is.
//!
//! Who runs where: requests publish events; the bus's drain thread runs the subscribers, which write series under one
//! short lock for each metric; a scrape runs on the HTTP runtime, an export on the thread `lmcached-otlp`; both read the
//! same series. No request waits for any of them.
#![forbid(unsafe_code)]

pub mod catalogue;
mod daemon;
mod exposition;
mod health;
mod http;
mod otlp;
mod process;
mod pulled;
mod readings;
mod resource;
mod sample;
mod series;
mod snapshot;
mod subscribers;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_sdk::Resource;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::watch;

use crate::config::ObservabilityConfig;
use crate::events::{Bus, Subscriber};
use crate::process::behind;

pub use daemon::DaemonGauges;
pub use exposition::CONTENT_TYPE;
pub use health::Health;
pub use http::{HttpConnection, HttpCounters, HttpRefusal};
pub use otlp::{Collector, CollectorError};
use pulled::Sources;
pub use readings::{AdapterReading, Gauges, L1Readings, OperationTiming, QuotaReading, Readings};
use series::{Limits, Store};
use snapshot::{Selection, Sink};

/// How long a collector may take to get the last metrics at the end.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// How long a scrape waits for events that are still queued.
const FLUSH: Duration = Duration::from_millis(100);

/// What must exist before the first log line: the collector that may get it, and who the daemon is.
#[derive(Debug)]
pub struct Outlet {
    /// Counters of everything that leaves.
    pub health: Arc<Health>,
    /// Who the daemon is.
    pub resource: Resource,
    /// The collector, unless there is none.
    pub collector: Option<Arc<Collector>>,
}

impl Outlet {
    /// Gets everything ready; nothing is sent yet.
    ///
    /// # Errors
    /// If the collector or its variables are wrong.
    pub fn new(config: &ObservabilityConfig) -> Result<Outlet, CollectorError> {
        let health = Health::new();
        let collector = match config.otlp_endpoint.as_deref().filter(|_| config.enabled) {
            Some(endpoint) => Some(Arc::new(Collector::new(endpoint, health.clone())?)),
            None => None,
        };
        Ok(Outlet { health, resource: resource::resource(config.instance_id.as_deref()), collector })
    }
}

/// The running telemetry.
pub struct Telemetry {
    shared: Arc<Shared>,
    push: Mutex<Option<Push>>,
}

struct Push {
    collector: Arc<Collector>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

/// What a reader needs.
struct Shared {
    store: Arc<Store>,
    health: Arc<Health>,
    resource: Vec<(String, String)>,
    selection: Selection,
    started: Instant,
    sources: OnceLock<(Arc<Bus>, Arc<dyn Gauges>)>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

/// The telemetry, and the subscribers that the bus is to have.
pub struct Started {
    /// For scrapes.
    pub telemetry: Arc<Telemetry>,
    /// For the bus.
    pub subscribers: Vec<Box<dyn Subscriber>>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("subscribers", &self.subscribers.len()).finish_non_exhaustive()
    }
}

/// Why the telemetry cannot start: the operator must change what he asks for.
#[derive(Debug, Error)]
pub enum StartError {
    /// The OTLP collector, or its variables.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// The directory for lookup hashes.
    #[error("--lookup-hash-log-dir {}: {source}; name a directory that the daemon may write to", dir.display())]
    LookupHashLog {
        /// As given.
        dir: PathBuf,
        /// Of making or reading it.
        source: io::Error,
    },
}

/// Starts what `config` asks for. The numbers of the engine come with [`Telemetry::attach`], when there is one.
///
/// # Errors
/// See [`StartError`].
pub fn start(config: &ObservabilityConfig, outlet: &Outlet) -> Result<Started, StartError> {
    let limits = Limits { max_series: config.metrics_max_series.get(), ..Limits::default() };
    let store = Arc::new(Store::new(limits));
    let mut subscribers = Vec::new();
    if config.metrics {
        subscribers.extend(subscribers::metrics(&store, config.metrics_sample_rate));
    }
    if config.logging {
        subscribers.push(subscribers::logging());
    }
    // Asked for by a flag of its own: --disable-logging leaves it.
    subscribers.extend(config.extra_logging.map(subscribers::statistics));
    if let Some(log) = &config.lookup_hash_log {
        let hashes = subscribers::lookup_hashes::LookupHashes::new(log)
            .map_err(|source| StartError::LookupHashLog { dir: log.dir.clone(), source })?;
        subscribers.push(Box::new(hashes));
    }
    if let (true, Some(collector)) = (config.tracing, &outlet.collector) {
        let provider = behind(|| collector.tracer_provider(outlet.resource.clone()))?;
        let spans = subscribers::tracing_spans::Spans::new(provider, outlet.health.clone());
        subscribers.push(Box::new(spans) as Box<dyn Subscriber>);
    }
    let shared = Arc::new(Shared {
        store,
        health: outlet.health.clone(),
        resource: resource::attributes(&outlet.resource),
        selection: Selection { compat: config.metrics_compat, pushed: config.metrics },
        started: Instant::now(),
        sources: OnceLock::new(),
    });
    let push = match outlet.collector.as_ref().filter(|_| config.metrics) {
        Some(collector) => {
            let (stop, stopped) = watch::channel(false);
            let reader = shared.clone();
            let task = otlp::push(collector, move || reader.export(), stopped)?;
            Some(Push { collector: collector.clone(), stop, task })
        }
        None => None,
    };
    Ok(Started { telemetry: Arc::new(Telemetry { shared, push: Mutex::new(push) }), subscribers })
}

impl Telemetry {
    /// Tells where the bus and the engine are, whose numbers are read at every scrape. Only the first call counts.
    pub fn attach(&self, bus: Arc<Bus>, gauges: Arc<dyn Gauges>) {
        let _ = self.shared.sources.set((bus, gauges));
    }

    /// The Prometheus page.
    pub fn scrape(&self) -> String {
        let mut page = exposition::Page::new(&self.shared.resource);
        self.shared.walk(&mut page);
        page.finish()
    }

    /// The samples of that page that are wanted, without comments.
    pub fn scrape_only(&self, wanted: exposition::Wanted) -> String {
        let mut page = exposition::Page::only(wanted);
        self.shared.walk(&mut page);
        page.finish()
    }

    /// Sends the last numbers to the collector, if there is one. Call it after the bus's drain thread has ended.
    pub fn shutdown(&self) {
        if let Some(Push { collector, stop, task }) = self.push.lock().take() {
            otlp::finish(&collector, &stop, task, LAST_EXPORT);
        }
    }
}

impl Shared {
    fn walk(&self, sink: &mut impl Sink) {
        self.store.sweep(Instant::now());
        let (readings, bus) = match self.sources.get() {
            Some((bus, gauges)) => {
                // What happened before a scrape is on it, unless a subscriber is stuck.
                bus.flush(FLUSH);
                (read(&**gauges), bus.enabled().then(|| bus.status()))
            }
            None => (Readings::default(), None),
        };
        let sources = Sources {
            readings: &readings,
            bus: bus.as_ref(),
            health: &self.health,
            store: &self.store,
            uptime: self.started.elapsed(),
        };
        snapshot::walk(self.selection, sources, sink);
    }

    fn export(&self) -> ExportMetricsServiceRequest {
        let mut export = otlp::Export::default();
        self.walk(&mut export);
        export.finish(&self.resource)
    }
}

/// A panic in there must not end the export task, nor a scrape.
fn read(gauges: &dyn Gauges) -> Readings {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gauges.read())).unwrap_or_else(|_| {
        tracing::error!("reading the engine's numbers panicked; this is a bug in lmcached, please report it");
        Readings::default()
    })
}
