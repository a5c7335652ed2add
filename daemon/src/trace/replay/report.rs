//! What came of a replay: per-operation latency, hits and misses, and what could not be replayed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use lmcache_proto::wire::DecodeError;
use serde_json::{Value, json};

use super::super::info::Info;
use super::super::operation::Operation;
use super::super::text::{csv, line, plain};
use super::store::{Problem, Store};
use super::{ReplayOptions, Speed};

/// Latency that is told apart: up to an hour, in nanoseconds, to three digits.
const MAX_NS: u64 = 3_600_000_000_000;
/// Problems that are told in words.
const MAX_PROBLEMS: usize = 10;
/// Unknown calls that are counted by name.
const MAX_NAMES: usize = 64;

/// What the storage layer did. Two replays of one recording against the same storage are equal in all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Lookups.
    pub lookups: u64,
    /// Chunks they asked for.
    pub requested_chunks: u64,
    /// Chunks they found.
    pub hit_chunks: u64,
    /// Objects they asked for.
    pub requested_keys: u64,
    /// Objects they leased; where attention has windows, fewer than the chunks found would take.
    pub hit_keys: u64,
    /// Of these, what L1 held.
    pub l1_hit_keys: u64,
    /// Of these, what L2 brought.
    pub l2_hit_keys: u64,
    /// Objects of the chunks that were not found.
    pub missed_keys: u64,
    /// Lookups whose loads took longer than the deadline.
    pub late_lookups: u64,
    /// Objects that got memory.
    pub reserved: u64,
    /// Objects that were there when memory was asked for them.
    pub already_there: u64,
    /// Objects that got none: the pool was full.
    pub refused: u64,
    /// Objects made readable.
    pub written: u64,
    /// Objects that were to be made readable and had no memory.
    pub not_reserved: u64,
    /// Objects of which a lease, or a part of one, ended.
    pub released: u64,
    /// Objects that a caller let go and that were not leased.
    pub not_leased: u64,
    /// Objects read.
    pub read: u64,
    /// Objects that were to be read and were not there.
    pub unreadable: u64,
    /// Objects that left L1.
    pub removed: u64,
    /// Leases and reservations that nobody ended in time.
    pub expired: u64,
    /// Leases and reservations that were open at the end.
    pub left_open: u64,
    /// Objects that were not in L2 after a minute.
    pub unsettled: u64,
}

impl Outcomes {
    /// Their names and numbers, in the order of the fields.
    pub fn rows(&self) -> [(&'static str, u64); 22] {
        [
            ("lookups", self.lookups),
            ("requested_chunks", self.requested_chunks),
            ("hit_chunks", self.hit_chunks),
            ("requested_keys", self.requested_keys),
            ("hit_keys", self.hit_keys),
            ("l1_hit_keys", self.l1_hit_keys),
            ("l2_hit_keys", self.l2_hit_keys),
            ("missed_keys", self.missed_keys),
            ("late_lookups", self.late_lookups),
            ("reserved", self.reserved),
            ("already_there", self.already_there),
            ("refused", self.refused),
            ("written", self.written),
            ("not_reserved", self.not_reserved),
            ("released", self.released),
            ("not_leased", self.not_leased),
            ("read", self.read),
            ("unreadable", self.unreadable),
            ("removed", self.removed),
            ("expired", self.expired),
            ("left_open", self.left_open),
            ("unsettled", self.unsettled),
        ]
    }
}

/// Latency of one kind of call, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "LMCache's names, which say it")]
pub struct OpStats {
    pub operation: Operation,
    pub count: u64,
    pub errors: u64,
    pub total_s: f64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
}

/// What came of a replay.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// How fast it was replayed.
    pub speed: Speed,
    /// Bytes of the pool.
    pub l1_bytes: u64,
    /// Time from the first record to the last in the recording, in seconds.
    pub recorded_s: f64,
    /// Time the replay took, in seconds.
    pub duration_s: f64,
    /// Of these, waiting for the evictor and for stores to L2.
    pub settling_s: f64,
    /// Records replayed.
    pub replayed: u64,
    /// Records of calls that are not known here.
    pub skipped: u64,
    /// Records that could not be replayed.
    pub failed: u64,
    /// Frames that are no records.
    pub malformed: u64,
    /// The first of them, in words.
    pub problems: Vec<String>,
    /// Calls that are not known here, by name.
    pub unknown: BTreeMap<String, u64>,
    /// What is missing from the recording: the replay is of the rest.
    pub gaps: Vec<String>,
    /// Latency of each kind of call.
    pub ops: Vec<OpStats>,
    /// What the storage layer did.
    pub outcomes: Outcomes,
}

/// Collects while the replay runs.
pub(super) struct Collector {
    started: Instant,
    settling: Duration,
    ops: BTreeMap<Operation, Op>,
    replayed: u64,
    skipped: u64,
    failed: u64,
    malformed: u64,
    problems: Vec<String>,
    unknown: BTreeMap<String, u64>,
}

struct Op {
    times: Histogram<u64>,
    total: Duration,
    errors: u64,
}

impl Op {
    fn new() -> Op {
        let times = Histogram::new_with_bounds(1, MAX_NS, 3).expect("bounds and digits are in their range");
        Op { times, total: Duration::ZERO, errors: 0 }
    }
}

impl Collector {
    pub(super) fn new() -> Collector {
        Collector {
            started: Instant::now(),
            settling: Duration::ZERO,
            ops: BTreeMap::new(),
            replayed: 0,
            skipped: 0,
            failed: 0,
            malformed: 0,
            problems: Vec::new(),
            unknown: BTreeMap::new(),
        }
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    fn problem(&mut self, line: impl FnOnce() -> String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(line());
        }
    }

    pub(super) fn malformed(&mut self, at: u64, error: &DecodeError) {
        self.malformed += 1;
        self.problem(|| format!("the record at byte {at} is damaged: {error}"));
    }

    pub(super) fn skipped(&mut self, name: &str) {
        self.skipped += 1;
        if let Some(count) = self.unknown.get_mut(name) {
            *count += 1;
        } else {
            let name = if self.unknown.len() < MAX_NAMES { name } else { "(others)" };
            *self.unknown.entry(name.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn failed(&mut self, operation: Operation, why: &str) {
        self.failed += 1;
        self.ops.entry(operation).or_insert_with(Op::new).errors += 1;
        self.problem(|| format!("{}: {why}", operation.name()));
    }

    pub(super) fn called(&mut self, operation: Operation, took: Duration, result: Result<(), Problem>) {
        match result {
            Ok(()) => {
                self.replayed += 1;
                let op = self.ops.entry(operation).or_insert_with(Op::new);
                op.total += took;
                op.times.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(MAX_NS).max(1));
            }
            Err(why) => self.failed(operation, why),
        }
    }

    pub(super) fn settled(&mut self, took: Duration) {
        self.settling += took;
    }

    pub(super) fn finish(
        self,
        trace: &Info,
        options: &ReplayOptions,
        l1_bytes: u64,
        store: &Store,
    ) -> Report {
        let stats = |(operation, op): (&Operation, &Op)| {
            let ms = |ns: u64| ns as f64 / 1e6;
            let at = |quantile: f64| {
                if op.times.is_empty() { 0.0 } else { ms(op.times.value_at_quantile(quantile)) }
            };
            OpStats {
                operation: *operation,
                count: op.times.len(),
                errors: op.errors,
                total_s: op.total.as_secs_f64(),
                mean_ms: if op.times.is_empty() {
                    0.0
                } else {
                    op.total.as_secs_f64() * 1e3 / op.times.len() as f64
                },
                p50_ms: at(0.5),
                p90_ms: at(0.9),
                p99_ms: at(0.99),
                min_ms: if op.times.is_empty() { 0.0 } else { ms(op.times.min()) },
                max_ms: ms(op.times.max()),
            }
        };
        Report {
            path: trace.path.clone(),
            speed: options.speed,
            l1_bytes,
            recorded_s: trace.duration,
            duration_s: self.started.elapsed().as_secs_f64(),
            settling_s: self.settling.as_secs_f64(),
            replayed: self.replayed,
            skipped: self.skipped,
            failed: self.failed,
            malformed: self.malformed,
            ops: self.ops.iter().map(stats).collect(),
            problems: self.problems,
            unknown: self.unknown,
            gaps: trace.gaps(),
            outcomes: store.outcomes,
        }
    }
}

impl OpStats {
    fn times(&self) -> [(&'static str, f64); 6] {
        [
            ("mean_ms", self.mean_ms),
            ("p50_ms", self.p50_ms),
            ("p90_ms", self.p90_ms),
            ("p99_ms", self.p99_ms),
            ("min_ms", self.min_ms),
            ("max_ms", self.max_ms),
        ]
    }
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("Replay of {}\n", plain(&self.path.display().to_string()));
        text += &line("replayed", self.replayed);
        text += &line("skipped", self.skipped);
        text += &line("failed", self.failed + self.malformed);
        text += &line("recorded", format!("{:.3}s", self.recorded_s));
        text +=
            &line("duration", format!("{:.3}s ({:.3}s of it settling)", self.duration_s, self.settling_s));
        text += &line("pool", format!("{} bytes", self.l1_bytes));
        text += &format!("\n  {:<30}{:>9}{:>8}", "latency in ms", "count", "errors");
        for name in ["mean", "p50", "p90", "p99", "max"] {
            text += &format!("{name:>11}");
        }
        text.push('\n');
        for op in &self.ops {
            text += &format!("  {:<30}{:>9}{:>8}", op.operation.name(), op.count, op.errors);
            for value in [op.mean_ms, op.p50_ms, op.p90_ms, op.p99_ms, op.max_ms] {
                text += &format!("{value:>11.4}");
            }
            text.push('\n');
        }
        text.push('\n');
        // What did not happen is left out, but for hits and misses.
        let shown =
            |(name, count): &(&str, u64)| *count > 0 || name.ends_with("hit_keys") || *name == "missed_keys";
        for (name, count) in self.outcomes.rows().iter().filter(|row| shown(row)) {
            text += &line(name, count);
        }
        for (name, count) in &self.unknown {
            text += &line("unknown call", format!("{} ({count})", plain(name)));
        }
        for problem in &self.problems {
            text += &line("problem", plain(problem));
        }
        for gap in &self.gaps {
            text += &line("NOT WHOLE", gap);
        }
        text
    }

    /// Latency of each kind of call, in the columns of LMCache's export.
    pub fn csv(&self) -> String {
        let mut text = String::from("qualname,count,errors,mean_ms,p50_ms,p90_ms,p99_ms,min_ms,max_ms\n");
        for op in &self.ops {
            text += &format!("{},{},{}", csv(&op.operation.qualname()), op.count, op.errors);
            for (_, value) in op.times() {
                text += &format!(",{value:.6}");
            }
            text.push('\n');
        }
        text
    }

    /// For programs: `duration_s` and `ops` as in LMCache's export, and the rest.
    pub fn json(&self) -> Value {
        let op = |op: &OpStats| {
            let mut stats = json!({"count": op.count, "errors": op.errors, "total_s": op.total_s});
            for (name, value) in op.times() {
                stats[name] = json!(value);
            }
            (op.operation.qualname(), stats)
        };
        let speed = match self.speed {
            Speed::Recorded => json!(1.0),
            Speed::Scaled(factor) => json!(factor),
            Speed::AsFastAsPossible => Value::Null,
        };
        json!({
            "path": self.path.display().to_string(),
            "speed": speed,
            "l1_bytes": self.l1_bytes,
            "recorded_s": self.recorded_s,
            "duration_s": self.duration_s,
            "settling_s": self.settling_s,
            "records": {
                "replayed": self.replayed,
                "skipped": self.skipped,
                "failed": self.failed,
                "malformed": self.malformed,
            },
            "whole": self.gaps.is_empty(),
            "gaps": self.gaps,
            "problems": self.problems,
            "unknown_calls": self.unknown,
            "ops": self.ops.iter().map(op).collect::<serde_json::Map<_, _>>(),
            "outcomes": self.outcomes.rows().iter().map(|(n, v)| ((*n).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>(),
        })
    }
}
