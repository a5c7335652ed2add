//! Percentiles of request times from histogram buckets.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

/// Time between two snapshots, in milliseconds. Buckets are many numbers: one snapshot a second would be megabytes.
pub const STEP_MS: u64 = 15_000;

/// Snapshots kept: fifteen minutes.
const MAX_SNAPSHOTS: usize = 61;

/// A cumulative histogram: how many values were at most each bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// Adds a bucket. Buckets of the same bound are added up.
    pub fn add(&mut self, bound: f64, count: f64) {
        match self.buckets.binary_search_by(|(other, _)| other.total_cmp(&bound)) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bound, count)),
        }
    }

    /// How many values there are.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    fn bounds(&self) -> impl Iterator<Item = f64> {
        self.buckets.iter().map(|(bound, _)| *bound)
    }

    /// What has come since `earlier`.
    fn since(&self, earlier: Option<&Histogram>) -> Histogram {
        let before = |bound: f64| {
            let found = earlier?.buckets.iter().find(|(other, _)| *other == bound)?;
            Some(found.1)
        };
        let buckets = self
            .buckets
            .iter()
            .map(|(bound, count)| (*bound, (count - before(*bound).unwrap_or(0.0)).max(0.0)));
        Histogram { buckets: buckets.collect() }
    }

    /// The value that a part `q` of the values does not exceed, as Prometheus' `histogram_quantile` has it: linear inside
    /// a bucket, and the last finite bound for what lies beyond it.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.count();
        if total <= 0.0 {
            return None;
        }
        let rank = q * total;
        let at = self.buckets.iter().position(|(_, count)| *count >= rank)?;
        let (below, lower) = match at.checked_sub(1).map(|previous| self.buckets[previous]) {
            Some((bound, count)) => (count, bound),
            None => (0.0, 0.0),
        };
        let (upper, count) = self.buckets[at];
        if upper.is_infinite() {
            return Some(lower);
        }
        let inside = count - below;
        Some(if inside <= 0.0 { upper } else { lower + (upper - lower) * (rank - below) / inside })
    }
}

/// Snapshots of the histograms of all operations.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Of the snapshots that are kept.
    times: VecDeque<u64>,
    /// Number of the oldest snapshot.
    first: usize,
    operations: BTreeMap<String, Operation>,
}

/// The histograms of an operation. Room for all snapshots is there from the first one on, so that the daemon's memory does not grow
/// for a quarter of an hour.
#[derive(Debug)]
struct Operation {
    latest: Histogram,
    /// Counts of the latest histogram's buckets, a row for each snapshot, of which number `n` is at `n % MAX_SNAPSHOTS`; NaN where
    /// there is none.
    rows: Box<[f64]>,
}

impl Operation {
    fn new(latest: Histogram) -> Operation {
        let rows = vec![f64::NAN; latest.buckets.len() * MAX_SNAPSHOTS].into();
        Operation { latest, rows }
    }

    /// Keeps the latest histogram as a snapshot.
    fn keep(&mut self, slot: usize) {
        let width = self.latest.buckets.len();
        let counts = self.latest.buckets.iter().map(|(_, count)| *count);
        self.rows[slot * width..][..width].iter_mut().zip(counts).for_each(|(kept, count)| *kept = count);
    }

    /// The histogram of a snapshot.
    fn at(&self, slot: usize) -> Option<Histogram> {
        let width = self.latest.buckets.len();
        let row = &self.rows[slot * width..][..width];
        let bounds = self.latest.bounds();
        row.first()
            .is_some_and(|count| !count.is_nan())
            .then(|| Histogram { buckets: bounds.zip(row.iter().copied()).collect() })
    }
}

impl Latencies {
    fn slot(&self, snapshot: usize) -> usize {
        (self.first + snapshot) % MAX_SNAPSHOTS
    }

    /// Takes a sample of time `at`.
    pub fn push(&mut self, at: u64, latency: BTreeMap<String, Histogram>) {
        let due = self.times.back().is_none_or(|last| at >= last + STEP_MS);
        if due {
            if self.times.len() == MAX_SNAPSHOTS {
                self.times.pop_front();
                self.first += 1;
            }
            self.times.push_back(at);
        }
        let slot = self.slot(self.times.len() - 1);
        self.operations.retain(|operation, _| latency.contains_key(operation));
        for (operation, histogram) in latency {
            let kept = match self.operations.entry(operation) {
                Entry::Vacant(entry) => entry.insert(Operation::new(histogram)),
                Entry::Occupied(entry) => {
                    let kept = entry.into_mut();
                    // The bounds are those of the daemon's code; whatever else the text says begins anew.
                    match kept.latest.bounds().eq(histogram.bounds()) {
                        true => kept.latest = histogram,
                        false => *kept = Operation::new(histogram),
                    }
                    kept
                }
            };
            if due {
                kept.keep(slot);
            }
        }
    }

    /// Percentiles: over all that is kept, and for each step.
    pub fn json(&self) -> Value {
        let operations = self.operations.iter().map(|(operation, kept)| {
            let window = kept.latest.since(kept.at(self.slot(0)).as_ref());
            let steps = self.steps(kept);
            let line = |q| steps.iter().map(|step| step.quantile(q)).collect::<Vec<_>>();
            json!({
                "operation": operation,
                "count": window.count(),
                "p50": window.quantile(0.5),
                "p90": window.quantile(0.9),
                "p99": window.quantile(0.99),
                "p50_steps": line(0.5),
                "p99_steps": line(0.99),
            })
        });
        let operations: Vec<_> = operations.collect();
        let times: Vec<_> = self.times.iter().skip(1).copied().collect();
        json!({"times": times, "operations": operations})
    }

    fn steps(&self, kept: &Operation) -> Vec<Histogram> {
        let at = |snapshot| kept.at(self.slot(snapshot));
        (1..self.times.len())
            .map(|snapshot| at(snapshot).unwrap_or_default().since(at(snapshot - 1).as_ref()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(buckets: &[(f64, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        for (bound, count) in buckets {
            histogram.add(*bound, *count);
        }
        histogram
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let some = histogram(&[(1.0, 10.0), (2.0, 30.0), (f64::INFINITY, 40.0)]);
        assert_eq!(some.quantile(0.25), Some(1.0));
        assert_eq!(some.quantile(0.5), Some(1.5));
        assert_eq!(some.quantile(0.99), Some(2.0), "nothing is known beyond the last bound");
        assert_eq!(histogram(&[(1.0, 4.0), (f64::INFINITY, 4.0)]).quantile(0.5), Some(0.5));
        assert_eq!(histogram(&[(1.0, 0.0), (f64::INFINITY, 0.0)]).quantile(0.5), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_window_counts_only_what_came_in_it() {
        let mut latencies = Latencies::default();
        let at = |fast: f64, slow: f64| {
            BTreeMap::from([(
                "lookup".to_owned(),
                histogram(&[(1.0, fast), (2.0, fast + slow), (f64::INFINITY, fast + slow)]),
            )])
        };
        latencies.push(0, at(100.0, 0.0));
        latencies.push(1_000, at(100.0, 1.0));
        latencies.push(STEP_MS, at(100.0, 10.0));
        latencies.push(STEP_MS + 1_000, at(100.0, 20.0));
        let json = latencies.json();
        let operation = &json["operations"][0];
        assert_eq!(operation["count"], 20.0);
        assert_eq!(operation["p50"], 1.5);
        assert_eq!(json["times"], json!([STEP_MS]));
        assert_eq!(operation["p50_steps"], json!([1.5]));
        // An operation that comes later has nothing in the steps before it, and all in the one in which it comes.
        let mut both = at(100.0, 20.0);
        both.insert("store".to_owned(), histogram(&[(1.0, 3.0), (f64::INFINITY, 3.0)]));
        latencies.push(2 * STEP_MS, both);
        let json = latencies.json();
        let store = &json["operations"][1];
        assert_eq!((&store["operation"], &store["count"]), (&json!("store"), &json!(3.0)));
        assert_eq!(store["p50_steps"], json!([null, 0.5]));
        for step in 0..200 {
            latencies.push(step * STEP_MS, at(0.0, 0.0));
        }
        assert_eq!(latencies.json()["times"].as_array().map(Vec::len), Some(MAX_SNAPSHOTS - 1));
    }
}
