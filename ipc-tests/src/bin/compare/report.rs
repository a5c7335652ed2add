//! Numbers into tables.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use lmcache_proto::wire::Operation;

use super::load::Sample;
use super::target::Kind;

/// Everything measured on one server.
pub(crate) struct Results {
    kind: Kind,
    pub(crate) first_ping: Duration,
    pub(crate) anonymous_kib: u64,
    pub(crate) pings: Vec<f64>,
    times: BTreeMap<(usize, usize), Vec<Duration>>,
    cpu: BTreeMap<usize, (Duration, usize)>,
}

impl Results {
    pub(crate) fn new(kind: Kind) -> Results {
        Results {
            kind,
            first_ping: Duration::ZERO,
            anonymous_kib: 0,
            pings: Vec::new(),
            times: BTreeMap::new(),
            cpu: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, clients: usize, samples: &[Sample], cpu: Duration, cycles: usize) {
        for sample in samples {
            self.times.entry((clients, sample.operation.index())).or_default().push(sample.time);
        }
        let entry = self.cpu.entry(clients).or_default();
        entry.0 += cpu;
        entry.1 += cycles;
    }

    /// The floor of server-driven transfers: a plain copy, in the columns of both.
    pub(crate) fn add_copies(&mut self, times: &[Duration]) {
        for operation in [Operation::Store, Operation::Retrieve] {
            self.times.entry((1, operation.index())).or_default().extend_from_slice(times);
        }
    }

    /// Microseconds at quantile `q` of an operation.
    fn quantile(&self, clients: usize, operation: Operation, q: f64) -> f64 {
        let mut times = self.times.get(&(clients, operation.index())).cloned().unwrap_or_default();
        times.sort_unstable();
        let at = ((times.len() as f64 * q) as usize).min(times.len().saturating_sub(1));
        times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    fn cpu_per_cycle_us(&self, clients: usize) -> f64 {
        let (cpu, cycles) = self.cpu.get(&clients).copied().unwrap_or_default();
        cpu.as_secs_f64() * 1e6 / cycles as f64
    }

    fn pings_per_second(&self) -> f64 {
        let mut pings = self.pings.clone();
        pings.sort_by(f64::total_cmp);
        pings.get(pings.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

const OPERATIONS: [Operation; 7] = [
    Operation::Lookup,
    Operation::QueryPrefetchStatus,
    Operation::PrepareStore,
    Operation::CommitStore,
    Operation::PrepareRetrieve,
    Operation::CommitRetrieve,
    Operation::EndSession,
];

/// The tables as Markdown.
pub(crate) fn tables(results: &[Results], rounds: usize, cycles: usize) -> String {
    let find = |kind| results.iter().find(|result| result.kind == kind);
    let (echo, ours, peer) = (find(Kind::Echo), find(Kind::Lmcached), find(Kind::Peer));
    let mut out = String::new();
    let _ =
        writeln!(out, "{rounds} alternating rounds of {cycles} cycles (a quarter of that for the peer).\n");
    for (clients, q, what) in
        [(1, 0.5, "median, one client"), (4, 0.5, "median, four clients"), (4, 0.99, "p99, four clients")]
    {
        let _ = writeln!(out, "### µs per operation, {what}\n");
        let _ =
            writeln!(out, "| operation | bare echo | lmcached | lmcache 0.5.6 | ours ÷ echo | peer ÷ ours |");
        let _ = writeln!(out, "|---|---|---|---|---|---|");
        for operation in OPERATIONS {
            let value = |r: Option<&Results>| r.map_or(f64::NAN, |r| r.quantile(clients, operation, q));
            let (e, o, p) = (value(echo), value(ours), value(peer));
            let _ = writeln!(out, "| {operation} | {e:.0} | {o:.0} | {p:.0} | {:.2} | {:.1} |", o / e, p / o);
        }
        let _ = writeln!(out);
    }
    let _ =
        writeln!(out, "### Server-driven transfer of one chunk of 4 MiB in blocks of 32 KiB, median µs\n");
    let _ =
        writeln!(out, "| operation | plain copy | lmcached | lmcache 0.5.6 | ours ÷ copy | peer ÷ ours |");
    let _ = writeln!(out, "|---|---|---|---|---|---|");
    for operation in [Operation::Store, Operation::Retrieve] {
        let value = |r: Option<&Results>| r.map_or(f64::NAN, |r| r.quantile(1, operation, 0.5));
        let (e, o, p) = (value(echo), value(ours), value(peer));
        let _ = writeln!(out, "| {operation} | {e:.0} | {o:.0} | {p:.0} | {:.2} | {:.1} |", o / e, p / o);
    }
    let _ = writeln!(out);
    let _ = writeln!(
        out,
        "### The process\n\n| | bare echo | lmcached | lmcache 0.5.6 | peer ÷ ours |\n|---|---|---|---|---|"
    );
    let mut row = |name: &str, f: &dyn Fn(&Results) -> f64, digits: usize| {
        let value = |r: Option<&Results>| r.map_or(f64::NAN, f);
        let (e, o, p) = (value(echo), value(ours), value(peer));
        let _ = writeln!(out, "| {name} | {e:.digits$} | {o:.digits$} | {p:.digits$} | {:.2} |", p / o);
    };
    row("server CPU per cycle, one client (µs)", &|r| r.cpu_per_cycle_us(1), 0);
    row("server CPU per cycle, four clients (µs)", &|r| r.cpu_per_cycle_us(4), 0);
    row("pings per second, pipelined", &Results::pings_per_second, 0);
    row("first answered ping after start (ms)", &|r| r.first_ping.as_secs_f64() * 1e3, 0);
    row("anonymous memory at start (MiB)", &|r| r.anonymous_kib as f64 / 1024.0, 1);
    out
}

const BEGIN: &str = "<!-- compare:begin -->";
const END: &str = "<!-- compare:end -->";

/// Replaces the tables between the markers of the document.
pub(crate) fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let old = std::fs::read_to_string(path)?;
    let (Some(begin), Some(end)) = (old.find(BEGIN), old.find(END)) else {
        return Err(std::io::Error::other(format!("no {BEGIN} … {END} in the document")));
    };
    std::fs::write(path, format!("{}{BEGIN}\n{text}\n{}", &old[..begin], &old[end..]))
}
