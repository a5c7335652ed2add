//! The numbers that subscribers make: one table of series for each metric.
//!
//! Subscribers write, on the drain thread; scrapes and exports read. Both hold one metric's lock for as long as they touch
//! that metric, and no request ever takes one. A metric has at most `max_series` series: what comes later is counted
//! under `otel.metric.overflow`, so that sums stay right. A series goes when its worker or its salt is gone.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashTable;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;

use super::catalogue::{CATALOGUE, Id, Kind, Metric};

/// How many series there may be, and how long they stay.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Series of one metric (`--metrics-max-series`).
    pub max_series: usize,
    /// How long the series of a worker stay after it is gone: scrapers and collectors want its last numbers.
    pub worker_grace: Duration,
    /// How long the series of a salt stay unused.
    pub salt_idle: Duration,
    /// How long the series of a worker stay unused whose end was not heard of.
    pub worker_idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_series: 2000,
            worker_grace: Duration::from_secs(300),
            salt_idle: Duration::from_secs(3600),
            worker_idle: Duration::from_secs(24 * 3600),
        }
    }
}

/// Time between two looks for series that may go; also the precision of a series' last use.
const SWEEP: Duration = Duration::from_secs(10);

/// Attributes whose values come and go with workers.
const WORKER_ATTRIBUTES: &[&str] = &["worker_id", "engine_id", "instance_id"];
/// Attributes whose values come and go with tenants.
const SALT_ATTRIBUTE: &str = "cache_salt";

/// A distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Measurements at or below each bound and above the one before; the last are those above all bounds.
    pub buckets: Box<[u64]>,
    /// Sum of all.
    pub sum: f64,
    /// How many.
    pub count: u64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Histogram {
        Histogram { buckets: vec![0; bounds.len() + 1].into(), sum: 0.0, count: 0 }
    }

    fn record(&mut self, bounds: &[f64], value: f64) {
        let bucket = bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket] += 1;
        self.sum += value;
        self.count += 1;
    }
}

/// The value of a series.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a gauge, or of a counter that is no whole number.
    Number(f64),
    /// Of a histogram.
    Histogram(Histogram),
}

/// Which series of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels<'a> {
    /// The values of the metric's attributes.
    Values(&'a [Arc<str>]),
    /// The one that stands for all that had no place.
    Overflow,
}

#[derive(Debug)]
struct Series {
    labels: Box<[Arc<str>]>,
    value: Value,
    start: SystemTime,
    /// Sweeps so far when it was last written.
    used: u32,
}

#[derive(Debug, Default)]
struct Table {
    series: HashTable<Series>,
    overflow: Option<Series>,
    /// Measurements in `overflow`.
    overflowed: u64,
}

#[derive(Debug)]
struct Sweeps {
    last: Instant,
    /// Workers that are gone and since when.
    gone: Vec<(String, Instant)>,
}

/// All series.
#[derive(Debug)]
pub struct Store {
    tables: Box<[Mutex<Table>]>,
    limits: Limits,
    started: SystemTime,
    sweep: AtomicU64,
    sweeps: Mutex<Sweeps>,
    retired: AtomicU64,
}

impl Store {
    /// No series but those that always exist: counters without attributes, at 0.
    pub fn new(limits: Limits) -> Store {
        let store = Store {
            tables: CATALOGUE.iter().map(|_| Mutex::default()).collect(),
            limits,
            started: SystemTime::now(),
            sweep: AtomicU64::new(0),
            sweeps: Mutex::new(Sweeps { last: Instant::now(), gone: Vec::new() }),
            retired: AtomicU64::new(0),
        };
        for metric in &CATALOGUE {
            if metric.kind == Kind::Counter && metric.attributes.is_empty() {
                store.add(metric.id, &[], 0);
            }
        }
        store
    }

    /// Adds to a counter.
    pub fn add(&self, id: Id, labels: &[&str], count: u64) {
        self.with(id, labels, |value, _| match value {
            Value::Count(total) => *total += count,
            Value::Number(_) | Value::Histogram(_) => debug_assert!(false, "{id:?} is no counter"),
        });
    }

    /// Records into a histogram. What is no number, or negative, is no measurement.
    pub fn record(&self, id: Id, labels: &[&str], measurement: f64) {
        if !measurement.is_finite() || measurement < 0.0 {
            return;
        }
        self.with(id, labels, |value, bounds| match value {
            Value::Histogram(histogram) => histogram.record(bounds, measurement),
            Value::Count(_) | Value::Number(_) => debug_assert!(false, "{id:?} is no histogram"),
        });
    }

    fn with(&self, id: Id, labels: &[&str], change: impl FnOnce(&mut Value, &[f64])) {
        let metric = id.metric();
        debug_assert!(metric.is_pushed() && labels.len() == metric.attributes.len(), "{id:?}{labels:?}");
        let used = self.sweep.load(Ordering::Relaxed) as u32;
        let hash = hash(labels.iter().copied());
        let bounds = metric.kind.bounds();
        let mut table = self.tables[id as usize].lock();
        let same = |series: &Series| series.labels.iter().map(AsRef::as_ref).eq(labels.iter().copied());
        if let Some(series) = table.series.find_mut(hash, same) {
            series.used = used;
            return change(&mut series.value, bounds);
        }
        let make = |labels| Series { labels, value: zero(metric), start: SystemTime::now(), used };
        if table.series.len() < self.limits.max_series || labels.is_empty() {
            let labels = labels.iter().map(|label| Arc::from(*label)).collect();
            let rehash = |series: &Series| self::hash(series.labels.iter().map(AsRef::as_ref));
            let mut entry = table.series.insert_unique(hash, make(labels), rehash);
            return change(&mut entry.get_mut().value, bounds);
        }
        let first = table.overflow.is_none();
        table.overflowed += 1;
        change(&mut table.overflow.get_or_insert_with(|| make(Box::default())).value, bounds);
        drop(table);
        if first {
            tracing::warn!(
                metric = metric.seed.or(metric.v05).map_or("", |name| name.prometheus),
                max_series = self.limits.max_series,
                "too many series of this metric; more are counted together under otel_metric_overflow until some retire: raise --metrics-max-series if all of them are wanted"
            );
        }
    }

    /// A worker is gone: its series go after a while, unless it comes back.
    pub fn worker_gone(&self, instance: u64, now: Instant) {
        let mut sweeps = self.sweeps.lock();
        // A hostile peer can register and leave for ever; what is left out here goes when it is idle.
        if sweeps.gone.len() < self.limits.max_series {
            sweeps.gone.push((instance.to_string(), now));
        }
    }

    /// Lets series go whose worker or salt is gone. Cheap: does something only every few seconds.
    pub fn sweep(&self, now: Instant) {
        let mut sweeps = self.sweeps.lock();
        let sweep_due = now.saturating_duration_since(sweeps.last) >= SWEEP;
        if !sweep_due {
            return;
        }
        // As many as have passed, so that idle time is right on a daemon that nobody scrapes.
        let passed = now.saturating_duration_since(sweeps.last).as_secs() / SWEEP.as_secs();
        sweeps.last = now;
        let sweep = self.sweep.fetch_add(passed, Ordering::Relaxed) + passed;
        let grace = self.limits.worker_grace;
        let (due, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut sweeps.gone)
            .into_iter()
            .partition(|(_, since)| now.saturating_duration_since(*since) >= grace);
        sweeps.gone = waiting;
        drop(sweeps);
        let sweeps_in = |time: Duration| time.as_secs() / SWEEP.as_secs();
        for metric in CATALOGUE.iter().filter(|metric| metric.is_pushed()) {
            let salt = metric.attributes.iter().position(|name| *name == SALT_ATTRIBUTE);
            let worker = metric.attributes.iter().position(|name| WORKER_ATTRIBUTES.contains(name));
            if salt.is_none() && worker.is_none() {
                continue;
            }
            let mut table = self.tables[metric.id as usize].lock();
            let before = table.series.len();
            table.series.retain(|series| {
                let unused = sweep.saturating_sub(u64::from(series.used));
                // Written to since it left: it came back.
                let gone = worker.is_some_and(|worker| {
                    unused + 1 >= sweeps_in(grace) && due.iter().any(|(id, _)| **id == *series.labels[worker])
                });
                // The shared domain is nobody's, it stays.
                let of_a_salt = salt.is_some_and(|salt| !series.labels[salt].is_empty());
                let idle = (of_a_salt && unused > sweeps_in(self.limits.salt_idle))
                    || (worker.is_some() && unused > sweeps_in(self.limits.worker_idle));
                !(gone || idle)
            });
            let retired = before - table.series.len();
            self.retired.fetch_add(retired as u64, Ordering::Relaxed);
        }
    }

    /// Series dropped so far.
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::Relaxed)
    }

    /// Metrics that had too many series, and the measurements that were counted together.
    pub fn overflows(&self) -> impl Iterator<Item = (&'static Metric, u64)> {
        CATALOGUE.iter().filter_map(|metric| {
            let overflowed = self.tables[metric.id as usize].lock().overflowed;
            (overflowed > 0).then_some((metric, overflowed))
        })
    }

    /// Shows every series of a metric.
    pub fn each(&self, id: Id, mut show: impl FnMut(Labels<'_>, &Value, SystemTime)) {
        let table = self.tables[id as usize].lock();
        for series in &table.series {
            show(Labels::Values(&series.labels), &series.value, series.start);
        }
        if let Some(series) = &table.overflow {
            show(Labels::Overflow, &series.value, series.start);
        }
    }

    /// When counting began.
    pub fn started(&self) -> SystemTime {
        self.started
    }
}

fn zero(metric: &Metric) -> Value {
    match metric.kind {
        Kind::Histogram(bounds) => Value::Histogram(Histogram::new(bounds.values())),
        _ => Value::Count(0),
    }
}

fn hash<'a>(labels: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = FxBuildHasher.build_hasher();
    for label in labels {
        label.hash(&mut hasher);
    }
    // The table looks at the upper bits, which the hash above leaves poor.
    super::sample::spread(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(store: &Store, id: Id, wanted: &[&str]) -> Option<u64> {
        let mut found = None;
        store.each(id, |labels, value, _| {
            let same = match labels {
                Labels::Values(values) => values.iter().map(AsRef::as_ref).eq(wanted.iter().copied()),
                Labels::Overflow => wanted == ["overflow"],
            };
            if same {
                found = match value {
                    Value::Count(count) => Some(*count),
                    Value::Histogram(histogram) => Some(histogram.count),
                    Value::Number(_) => None,
                };
            }
        });
        found
    }

    fn limits() -> Limits {
        Limits {
            max_series: 3,
            worker_grace: Duration::from_secs(300),
            salt_idle: Duration::from_secs(3600),
            worker_idle: Duration::from_secs(24 * 3600),
        }
    }

    #[test]
    fn counters_without_attributes_start_at_zero_and_others_do_not_exist() {
        let store = Store::new(limits());
        assert_eq!(count(&store, Id::SmReadRequests, &[]), Some(0));
        assert_eq!(count(&store, Id::LookupHitTokens, &["m", ""]), None);
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let store = Store::new(limits());
        for value in [0.0, 1.0, 1.1, 1e9, f64::NAN, f64::INFINITY, -1.0] {
            store.record(Id::L1ChunkLifetime, &[], value);
        }
        store.each(Id::L1ChunkLifetime, |_, value, _| {
            let Value::Histogram(histogram) = value else { panic!("a histogram") };
            assert_eq!((histogram.buckets[0], histogram.buckets[1]), (2, 1));
            assert_eq!(histogram.buckets.last(), Some(&1));
            assert_eq!(histogram.count, 4);
        });
    }

    #[test]
    fn series_beyond_the_limit_are_counted_together() {
        let store = Store::new(limits());
        for salt in 0..10_000 {
            store.add(Id::LookupHitTokens, &["m", &salt.to_string()], 2);
        }
        let mut series = 0;
        store.each(Id::LookupHitTokens, |_, _, _| series += 1);
        assert_eq!(series, 4);
        assert_eq!(count(&store, Id::LookupHitTokens, &["overflow"]), Some(2 * 9997));
        let overflows: Vec<_> = store.overflows().map(|(metric, count)| (metric.id, count)).collect();
        assert_eq!(overflows, [(Id::LookupHitTokens, 9997)]);
    }

    #[test]
    fn a_workers_series_go_after_it_and_not_before() {
        let store = Store::new(limits());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        store.add(Id::NumChunksLoaded, &["7", "m", ""], 1);
        store.add(Id::NumChunksLoaded, &["8", "m", ""], 1);
        store.worker_gone(7, at(20));
        store.sweep(at(20));
        store.sweep(at(300));
        assert_eq!(count(&store, Id::NumChunksLoaded, &["7", "m", ""]), Some(1), "still wanted by scrapers");
        store.sweep(at(330));
        assert_eq!(count(&store, Id::NumChunksLoaded, &["7", "m", ""]), None);
        assert_eq!(count(&store, Id::NumChunksLoaded, &["8", "m", ""]), Some(1));
        assert_eq!(store.retired(), 1);
    }

    #[test]
    fn a_worker_that_comes_back_keeps_its_series() {
        let store = Store::new(limits());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        store.add(Id::NumChunksLoaded, &["7", "m", ""], 1);
        store.worker_gone(7, at(0));
        store.sweep(at(200));
        store.add(Id::NumChunksLoaded, &["7", "m", ""], 1);
        store.sweep(at(310));
        assert_eq!(count(&store, Id::NumChunksLoaded, &["7", "m", ""]), Some(2));
    }

    #[test]
    fn an_idle_salt_goes_and_the_shared_domain_stays() {
        let store = Store::new(limits());
        let start = Instant::now();
        store.add(Id::LookupHitTokens, &["m", "tenant"], 1);
        store.add(Id::LookupHitTokens, &["m", ""], 1);
        store.sweep(start + Duration::from_secs(1800));
        assert_eq!(count(&store, Id::LookupHitTokens, &["m", "tenant"]), Some(1));
        store.sweep(start + Duration::from_secs(5410));
        assert_eq!(count(&store, Id::LookupHitTokens, &["m", "tenant"]), None);
        assert_eq!(count(&store, Id::LookupHitTokens, &["m", ""]), Some(1));
    }
}
