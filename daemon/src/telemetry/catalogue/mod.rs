//! Every metric the daemon has: one table, from which the exposition, the OTLP export and the documentation are made.
//!
//! A metric has a name in the documented set (`seed`), a name in LMCache 0.5.6's set (`v05`), or both; the rename from one
//! to the other happens here and nowhere else. Names are written out: the rules by which exporters derive a Prometheus
//! name from a unit (`_seconds_seconds`, `_total_total`) are what this table replaces.

mod own;
mod page;
mod v05;

use crate::config::MetricsCompat;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; subscribers add to it.
    Counter,
    /// Only grows; read where it is counted, at every scrape.
    ObservableCounter,
    /// Goes up and down; read at every scrape.
    ObservableGauge,
    /// Distribution with fixed bounds; subscribers record into it.
    Histogram(Bounds),
    /// Distribution counted where it happens and read at every scrape.
    ObservableHistogram(Bounds),
}

impl Kind {
    /// The Prometheus type.
    pub fn prometheus(self) -> &'static str {
        match self {
            Kind::Counter | Kind::ObservableCounter => "counter",
            Kind::ObservableGauge => "gauge",
            Kind::Histogram(_) | Kind::ObservableHistogram(_) => "histogram",
        }
    }

    /// The word of the documented table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "Counter",
            Kind::ObservableCounter => "ObservableCounter",
            Kind::ObservableGauge => "ObservableGauge",
            Kind::Histogram(_) | Kind::ObservableHistogram(_) => "Histogram",
        }
    }

    /// Bucket bounds of a histogram.
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Kind::Histogram(bounds) | Kind::ObservableHistogram(bounds) => bounds.values(),
            Kind::Counter | Kind::ObservableCounter | Kind::ObservableGauge => &[],
        }
    }
}

/// Bucket bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Seconds in a cache: one second to four hours.
    Lifecycle,
    /// [`Bounds::Lifecycle`] up to the time an evicted chunk is waited for.
    EvictReuse,
    /// GB/s, doubling.
    Throughput,
    /// Chunks, powers of four.
    Chunks,
    /// Seconds of a request.
    Latency,
}

impl Bounds {
    /// Upper bounds; a last bucket without bound follows.
    pub fn values(self) -> &'static [f64] {
        match self {
            Bounds::Lifecycle => {
                &[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0]
            }
            Bounds::EvictReuse => &[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0],
            Bounds::Throughput => &[0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8],
            Bounds::Chunks => {
                &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0]
            }
            Bounds::Latency => &[
                1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25,
                0.5, 1.0, 2.5, 5.0, 10.0,
            ],
        }
    }
}

/// Who reads the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Prometheus.
    Scrape,
    /// An OTLP collector.
    Push,
}

/// How a metric is called in one set of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// Over OTLP.
    pub otel: &'static str,
    /// Its unit, empty for none.
    pub unit: &'static str,
    /// In the scrape.
    pub prometheus: &'static str,
    /// Labels that every series of this name has.
    pub fixed: &'static [(&'static str, &'static str)],
}

/// Which of the tables a metric belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// One of the documented page's 53.
    Page,
    /// Only LMCache 0.5.6 has it.
    V05,
    /// Only this daemon has it.
    Own,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its place in [`CATALOGUE`].
    pub id: Id,
    /// Counter, gauge, histogram.
    pub kind: Kind,
    /// OpenTelemetry scope.
    pub scope: &'static str,
    /// Names of its attributes, in the order in which values are given.
    pub attributes: &'static [&'static str],
    /// One sentence.
    pub description: &'static str,
    /// Where it is from.
    pub set: Set,
    /// Heading of the documentation.
    pub section: &'static str,
    /// Its name in the documented set; none if only 0.5.6 has it.
    pub seed: Option<Name>,
    /// Its name in 0.5.6; none if that dropped it.
    pub v05: Option<Name>,
    /// In the scrape, an attribute with an empty value is left out.
    pub omit_empty: bool,
    /// What checks it.
    pub check: &'static str,
}

impl Metric {
    /// The names to expose it under.
    pub fn names(&self, compat: MetricsCompat, reader: Reader) -> impl Iterator<Item = Name> {
        let (seed, v05) = match (compat, self.set) {
            (_, Set::Own) | (MetricsCompat::Seed, _) => (self.seed, None),
            (MetricsCompat::V05, _) => (None, self.v05),
            // Coinciding families once, with the documented labels. A collector makes the scrape's names of what is
            // pushed, so those coincide there too; and some names differ in their units only.
            (MetricsCompat::Both, _) => {
                let other = |v05: &Name| {
                    self.seed.is_none_or(|seed| {
                        seed.prometheus != v05.prometheus
                            && (reader == Reader::Scrape || seed.otel != v05.otel)
                    })
                };
                (self.seed, self.v05.filter(other))
            }
        };
        seed.into_iter().chain(v05)
    }

    /// Whether subscribers feed it.
    pub fn is_pushed(&self) -> bool {
        matches!(self.kind, Kind::Counter | Kind::Histogram(_))
    }
}

pub use own::OWN;
pub use page::PAGE;
pub use v05::V05;

/// All of them, by [`Id`].
pub static CATALOGUE: [Metric; PAGE.len() + V05.len() + OWN.len()] = {
    let mut all = [PAGE[0]; PAGE.len() + V05.len() + OWN.len()];
    let mut position = 0;
    while position < all.len() {
        all[position] = if position < PAGE.len() {
            PAGE[position]
        } else if position < PAGE.len() + V05.len() {
            V05[position - PAGE.len()]
        } else {
            OWN[position - PAGE.len() - V05.len()]
        };
        // A lookup by id is an index; an entry out of its place does not compile.
        assert!(all[position].id as usize == position, "the catalogue is in the order of Id");
        position += 1;
    }
    all
};

impl Id {
    /// The metric.
    pub fn metric(self) -> &'static Metric {
        &CATALOGUE[self as usize]
    }
}

const fn name(otel: &'static str, unit: &'static str, prometheus: &'static str) -> Name {
    Name { otel, unit, prometheus, fixed: &[] }
}

/// A group of the documented page.
#[derive(Clone, Copy)]
struct Group {
    set: Set,
    section: &'static str,
    scope: &'static str,
    check: &'static str,
}

impl Group {
    const fn metric(
        self,
        id: Id,
        kind: Kind,
        seed: Name,
        attributes: &'static [&'static str],
        description: &'static str,
    ) -> Metric {
        Metric {
            id,
            kind,
            scope: self.scope,
            attributes,
            description,
            set: self.set,
            section: self.section,
            seed: Some(seed),
            v05: None,
            omit_empty: false,
            check: self.check,
        }
    }
}

impl Metric {
    /// Also known to 0.5.6, under this name.
    const fn v05(mut self, otel: &'static str, unit: &'static str, prometheus: &'static str) -> Metric {
        self.v05 = Some(name(otel, unit, prometheus));
        self
    }

    /// Labels that 0.5.6 adds to every series.
    const fn fixed(mut self, fixed: &'static [(&'static str, &'static str)]) -> Metric {
        if let Some(mut v05) = self.v05 {
            v05.fixed = fixed;
            self.v05 = Some(v05);
        }
        self
    }

    /// Also known to 0.5.6, under the same name.
    const fn same(mut self) -> Metric {
        self.v05 = self.seed;
        self
    }

    /// Only known to 0.5.6.
    const fn only_v05(mut self) -> Metric {
        self.v05 = self.seed;
        self.seed = None;
        self
    }

    const fn omit_empty(mut self) -> Metric {
        self.omit_empty = true;
        self
    }

    const fn scope(mut self, scope: &'static str) -> Metric {
        self.scope = scope;
        self
    }
}

/// What 0.5.6 puts on L1 metrics: it can have several L1 tiers, this daemon has one.
const L1_TAG: &[(&str, &str)] = &[("l1_tag", "_default")];
const L1_BACKEND: &[(&str, &str)] = &[("backend", "dram"), ("l1_tag", "_default")];

/// Names a metric in code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the catalogue describes each")]
pub enum Id {
    SmReadRequests,
    SmReadSucceedKeys,
    SmReadFailedKeys,
    SmWriteRequests,
    SmWriteSucceedKeys,
    SmWriteFailedKeys,
    L1ReadKeys,
    L1WriteKeys,
    L1EvictedKeys,
    L1EvictionLoopTicks,
    L1EvictionLoopTriggered,
    L1ChunkLifetime,
    L1ChunkIdleBeforeEvict,
    L1ChunkReuseGap,
    L1ChunkEvictReuseGap,
    RealReuseGapSeconds,
    RealReuseGapChunks,
    L2StoreTasks,
    L2StoreKeys,
    L2StoreCompleted,
    L2StoreSucceededKeys,
    L2StoreFailedKeys,
    L2PrefetchLookups,
    L2PrefetchLookupKeys,
    L2PrefetchHitKeys,
    L2PrefetchLoadTasks,
    L2PrefetchLoadKeys,
    L2PrefetchLoadedKeys,
    L2PrefetchFailedKeys,
    L2LoadCompleted,
    L1AllocationFailure,
    L1ReadFailure,
    L2PrefetchFailure,
    LookupRequestedTokens,
    LookupHitTokens,
    L0BlockLifetime,
    L0BlockIdleBeforeEvict,
    L0BlockReuseGap,
    L0L1StoreThroughput,
    L0L1LoadThroughput,
    L2StoreThroughput,
    L2LoadThroughput,
    NumChunksLoaded,
    ActivePrefetchJobs,
    L1MemoryUsageBytes,
    L1UsageRatio,
    NumInflightL2Stores,
    NumInflightL2Loads,
    InflightLoadMemoryUsageBytes,
    BusQueueDepth,
    BusDrainLag,
    BusDroppedEvents,
    BusSubscriberExceptions,

    L1Read05,
    L1Write05,
    L1Evicted05,
    L2StoreSubmittedObjects,
    L2StoreCompletedObjects,
    L2PrefetchLookupObjects,
    L2PrefetchLoadSubmittedObjects,
    L2PrefetchLoadCompleted,
    L2EvictedObjects,
    Timeouts,
    LookupHitL1,
    LookupHitL2,
    LookupHitL1Keys,
    LookupHitL2Keys,
    Lookups,
    LookupEarlyExit,
    NumSubmittedStores,
    NumFinishedStores,
    NumSubmittedRetrieves,
    NumFinishedRetrieves,
    L1StagingBytes,
    L2StoreAdapters,
    L2PrefetchAdapters,
    L2UsageBytes,
    KvEventsLogDepth,
    ActiveP2pLookupJobs,

    Requests,
    RequestSeconds,
    RequestQueueSeconds,
    StoredTokens,
    RetrievedTokens,
    L1EvictedBytes,
    L1ReplacedObjects,
    L1Quarantined,
    L1Full,
    L1DamagedObjects,
    MalformedMessages,
    UnknownOperations,
    PeersRefused,
    PeerPauses,
    CudaErrors,
    WorkersReaped,
    LeasesExpired,
    RingLostEvents,
    L1CapacityBytes,
    L1ReservedBytes,
    L1Objects,
    L1WritingObjects,
    L1QuarantinedObjects,
    L1Leases,
    L1Pins,
    L1Names,
    QuotaLimitBytes,
    QuotaUsageBytes,
    Workers,
    RegistrationBytes,
    RingLanesUsed,
    Sessions,
    SessionBytes,
    KvEventsLogBytes,
    Connections,
    QueuedBytes,
    HttpConnections,
    HttpRefused,
    EventsPublished,
    SeriesOverflow,
    SeriesRetired,
    UntrackedItems,
    LogLinesDropped,
    OtlpExports,
    OtlpDropped,
    SpansOpen,
    SpansUnfinished,
    BuildInfo,
    UptimeSeconds,
    ProcessCpuSeconds,
    ProcessResidentBytes,
    ProcessVirtualBytes,
    ProcessOpenFds,
    ProcessMaxFds,
    ProcessThreads,
    ProcessStartTime,
}

#[cfg(test)]
mod tests;
