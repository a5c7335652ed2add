//! One look at `/metrics`, reduced to what the page keeps.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::exposition;
use super::latency::Histogram;
use super::wanted::{LATENCY, MAX_LABEL_CHARS, WANTED};

/// Operations whose times are kept. There are fewer than twenty; the bound is for a text that lies.
const MAX_OPERATIONS: usize = 64;

/// One line of a chart: a wanted number, and the values of the labels it is kept by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// Its place in [`WANTED`].
    pub wanted: usize,
    /// Values of the labels in `by`, in that order.
    pub labels: Box<[String]>,
}

/// What one look found.
#[derive(Debug, Default)]
pub struct Sample {
    /// Numbers, in no order.
    pub values: FxHashMap<Series, f64>,
    /// Request times by operation, since the start of the daemon.
    pub latency: BTreeMap<String, Histogram>,
}

/// Reads the text of `/metrics`.
pub fn read(text: &str) -> Sample {
    let mut names: FxHashMap<&str, (usize, usize)> = FxHashMap::default();
    for (wanted, entry) in WANTED.iter().enumerate() {
        names.extend(entry.names.iter().enumerate().map(|(rank, name)| (*name, (wanted, rank))));
    }
    // Of two names for one number, the text's best: both would count everything twice.
    let mut best = [usize::MAX; WANTED.len()];
    let mut sample = Sample::default();
    for line in exposition::lines(text) {
        if line.name == LATENCY {
            bucket(&mut sample.latency, &line);
            continue;
        }
        let Some(&(wanted, rank)) = names.get(line.name) else { continue };
        if rank > best[wanted] || !line.value.is_finite() {
            continue;
        }
        if rank < best[wanted] {
            best[wanted] = rank;
            sample.values.retain(|series, _| series.wanted != wanted);
        }
        let labels = WANTED[wanted].by.iter().map(|by| shortened(line.label(by).unwrap_or_default()));
        let series = Series { wanted, labels: labels.collect() };
        *sample.values.entry(series).or_default() += line.value;
    }
    sample
}

fn bucket(latency: &mut BTreeMap<String, Histogram>, line: &exposition::Line<'_>) {
    let Some(operation) = line.label("operation") else { return };
    let Some(bound) = line.label("le") else { return };
    let Some(bound) = (if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() }) else {
        return;
    };
    if latency.len() >= MAX_OPERATIONS && !latency.contains_key(operation.as_ref()) {
        return;
    }
    latency.entry(shortened(operation)).or_default().add(bound, line.value);
}

fn shortened(value: Cow<'_, str>) -> String {
    match value.char_indices().nth(MAX_LABEL_CHARS) {
        None => value.into_owned(),
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(sample: &Sample, key: &str, labels: &[&str]) -> Option<f64> {
        let wanted = WANTED.iter().position(|wanted| wanted.key == key).expect("a key");
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        sample.values.get(&Series { wanted, labels }).copied()
    }

    #[test]
    fn labels_that_are_not_kept_are_added_up() {
        let sample = read(
            "lmcached_otlp_dropped_total{signal=\"traces\"} 2\nlmcached_otlp_dropped_total{signal=\"logs\"} 3\n\
             lmcached_requests_total{operation=\"ping\",outcome=\"ok\"} 7\nunknown_total 9\n",
        );
        assert_eq!(value(&sample, "otlp_dropped", &[]), Some(5.0));
        assert_eq!(value(&sample, "requests", &["ping", "ok"]), Some(7.0));
        assert_eq!(sample.values.len(), 2);
    }

    #[test]
    fn of_two_names_for_a_number_one_is_taken() {
        let both = "lmcache_mp_l1_evicted_chunks_total{cache_salt=\"a\"} 5\n\
                    lmcache_mp_l1_evicted_keys_total 6\n\
                    lmcache_mp_l1_evicted_chunks_total 7\n";
        assert_eq!(value(&read(both), "l1_evicted", &[]), Some(6.0));
        let newer = "lmcache_mp_l1_evicted_chunks_total{cache_salt=\"a\"} 5\n\
                     lmcache_mp_l1_evicted_chunks_total 7\n";
        assert_eq!(value(&read(newer), "l1_evicted", &[]), Some(12.0));
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let name = "ä".repeat(500);
        let sample = read(&format!("lmcache_mp_lookup_hit_tokens_total{{model_name=\"{name}\"}} 1\n"));
        let label = &sample.values.keys().next().expect("one").labels[0];
        assert_eq!(label.chars().count(), MAX_LABEL_CHARS + 1);
    }

    #[test]
    fn buckets_make_histograms() {
        let sample = read(
            "lmcached_request_seconds_bucket{operation=\"lookup\",le=\"0.001\"} 1\n\
             lmcached_request_seconds_bucket{operation=\"lookup\",le=\"+Inf\"} 4\n\
             lmcached_request_seconds_sum{operation=\"lookup\"} 1\n",
        );
        assert_eq!(sample.latency["lookup"].count(), 4.0);
    }
}
