//! One look at the daemon's numbers, for `top`.

use std::time::Instant;

use serde_json::{Value, json};

use crate::error::CtlError;
use crate::http::Daemon;

/// Numbers of one moment. Counters are sums over all labels.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) requested: f64,
    pub(super) hit: f64,
    pub(super) stored: f64,
    pub(super) retrieved: f64,
    pub(super) requests: f64,
    pub(super) evicted_bytes: f64,
    pub(super) status: Value,
    pub(super) queue: Value,
    pub(super) workers: Value,
    /// By worker: GB/s of its stores and of its loads, as sum and number.
    pub(super) throughput: Vec<(String, [f64; 4])>,
    pub(super) log_lines_dropped: f64,
}

/// Sum of the samples of a metric.
fn sum(page: &str, metric: &str) -> f64 {
    series(page, metric).map(|(_, value)| value).sum()
}

/// Labels and value of each sample of a metric.
fn series<'a>(page: &'a str, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = match rest.as_bytes().first()? {
            b' ' => ("", rest.trim()),
            b'{' => rest.get(1..)?.rsplit_once("} ")?,
            _ => return None,
        };
        Some((labels, value.split(' ').next()?.parse().ok()?))
    })
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
    labels.get(start..)?.split('"').next()
}

impl Sample {
    /// Looks.
    pub(super) fn take(daemon: &Daemon) -> Result<Sample, CtlError> {
        let page = daemon.get_text("/metrics")?;
        let mut throughput: Vec<(String, [f64; 4])> = Vec::new();
        let histograms = ["lmcache_mp_l0_l1_store_throughput_gbs", "lmcache_mp_l0_l1_load_throughput_gbs"];
        for (at, metric) in histograms.iter().enumerate() {
            for (part, suffix) in ["_sum", "_count"].iter().enumerate() {
                for (labels, value) in series(&page, &format!("{metric}{suffix}")) {
                    let Some(worker) = label(labels, "engine_id") else { continue };
                    let row = match throughput.iter().position(|(id, _)| id == worker) {
                        Some(row) => row,
                        None => {
                            throughput.push((worker.to_owned(), [0.0; 4]));
                            throughput.len() - 1
                        }
                    };
                    throughput[row].1[at * 2 + part] += value;
                }
            }
        }
        Ok(Sample {
            at: Instant::now(),
            requested: sum(&page, "lmcache_mp_lookup_requested_tokens_total"),
            hit: sum(&page, "lmcache_mp_lookup_hit_tokens_total"),
            stored: sum(&page, "lmcached_stored_tokens_total"),
            retrieved: sum(&page, "lmcached_retrieved_tokens_total"),
            requests: sum(&page, "lmcached_requests_total"),
            evicted_bytes: sum(&page, "lmcached_l1_evicted_bytes_total"),
            log_lines_dropped: sum(&page, "lmcached_log_lines_dropped_total"),
            status: daemon.get("/status")?,
            queue: daemon.get("/lmcached/queue")?,
            workers: daemon.get("/lmcached/workers")?,
            throughput,
        })
    }

    /// What `--json` shows: rates since `before`, and the numbers of now.
    pub(super) fn document(&self, before: &Sample) -> Value {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let rate = |now: f64, then: f64| (now - then).max(0.0) / seconds;
        let (requested, hit) = (self.requested - before.requested, self.hit - before.hit);
        let l1 = &self.status["storage_manager"]["l1_manager"];
        let workers: Vec<Value> = self.workers["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|worker| {
                let id = worker["instance"].to_string();
                let of = |sample: &Sample| {
                    sample.throughput.iter().find(|(other, _)| *other == id).map_or([0.0; 4], |(_, row)| *row)
                };
                let (now, then) = (of(self), of(before));
                let mean = |at: usize| {
                    let count = now[at + 1] - then[at + 1];
                    (count > 0.0).then(|| (now[at] - then[at]) / count)
                };
                json!({
                    "instance": worker["instance"],
                    "model": worker["model"],
                    "silent_seconds": worker["silent_seconds"],
                    "transfers": worker["transfers"],
                    "store_gb_per_second": mean(0),
                    "load_gb_per_second": mean(2),
                })
            })
            .collect();
        let (bus, ring) = (&self.queue["event_bus"], &self.queue["ring"]);
        json!({
            "seconds": seconds,
            "hit_rate": (requested > 0.0).then(|| hit / requested),
            "hit_rate_since_start": (self.requested > 0.0).then(|| self.hit / self.requested),
            "requests_per_second": rate(self.requests, before.requests),
            "stored_tokens_per_second": rate(self.stored, before.stored),
            "retrieved_tokens_per_second": rate(self.retrieved, before.retrieved),
            "evicted_bytes_per_second": rate(self.evicted_bytes, before.evicted_bytes),
            "l1_used_bytes": l1["memory_used_bytes"],
            "l1_capacity_bytes": l1["memory_configured_bytes"],
            "objects": l1["total_object_count"],
            "leases": l1["read_locked_count"],
            "pins": l1["pinned_count"],
            "sessions": self.status["active_sessions"],
            "event_bus_depth": bus["depth"],
            "event_bus_lag_seconds": bus["lag_seconds"],
            "wire_queued_bytes": self.queue["wire"]["queued_bytes"],
            "l2_waiting_store_objects": self.queue["l2"]["waiting_store_objects"],
            "l2_prefetch_jobs": self.queue["l2"]["prefetch_jobs"],
            "dropped": {
                "events": bus["dropped"],
                "ring_records": ring["total"]["lost"],
                "log_lines": self.log_lines_dropped,
                "event_streams": self.queue["event_streams"]["cut_off"],
            },
            "workers": workers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_page() {
        let page = "# HELP a_total x\na_total{engine_id=\"7\",b=\"} 1\"} 2.5\na_total{engine_id=\"8\"} 1\na_total_more 9\nb 3\n";
        assert_eq!(sum(page, "a_total"), 3.5);
        assert_eq!(sum(page, "b"), 3.0);
        let first = series(page, "a_total").next().expect("a sample");
        assert_eq!(label(first.0, "engine_id"), Some("7"));
    }
}
