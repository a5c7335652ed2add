//! The last fifteen minutes of the daemon's numbers, for the live page.
//!
//! A timer reads the text of `/metrics` once a second and keeps what the page shows. When that would cost more than a
//! two-hundredth of one core, because thousands of salts make the text long, the timer slows down. Nobody's request
//! waits for any of it, and a reader of the page costs no look at the metrics: it gets what the timer has kept.

mod columns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::page::alerts::{self, Alert, Numbers};
use super::page::latency::Latencies;
use super::page::sample;
use super::page::wanted::WANTED;
use columns::Columns;

/// How far back the page looks.
pub const WINDOW: Duration = Duration::from_secs(15 * 60);

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Time between two looks at most, however long the text is.
const MAX_PERIOD: Duration = Duration::from_secs(15);

/// CPU time of a look, as a part of the time between two.
const SHARE: u32 = 200;

/// Points kept at most.
const MAX_POINTS: usize = 901;

/// Points between two searches for series that nobody feeds any more.
const SWEEP: usize = 64;

/// Whoever knows the daemon's numbers of now.
pub trait Source: Send + Sync + 'static {
    /// The text of `/metrics`, or of it what [`is_wanted`](super::page::wanted::is_wanted); the error says why there is none.
    ///
    /// # Errors
    /// A line for the operator.
    fn exposition(&self) -> Result<String, String>;

    /// What is no number.
    fn state(&self) -> State;
}

/// What the daemon is doing, apart from numbers.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Why it should get no traffic now.
    pub not_ready: Option<String>,
    /// It is about to end.
    pub draining: bool,
    /// Why its L2 tiers that are down are down, by name.
    pub tiers_down: Vec<(String, String)>,
}

/// The numbers kept.
#[derive(Debug)]
pub struct History {
    started: Instant,
    /// Tells the page that the daemon is another one, and its points are not to be mixed with the old one's.
    boot: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    columns: Columns,
    /// Of the points that are kept: milliseconds since the start of the history; a clock that jumps does not matter.
    times: VecDeque<u64>,
    /// Number of the oldest point.
    first: usize,
    latencies: Latencies,
    broken: Option<String>,
}

impl Default for History {
    fn default() -> History {
        History::new()
    }
}

impl History {
    /// No points.
    pub fn new() -> History {
        History { started: Instant::now(), boot: uuid::Uuid::new_v4().to_string(), inner: Mutex::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes one look.
    pub fn look(&self, source: &dyn Source) {
        let text = source.exposition();
        let at = self.now();
        match text {
            Ok(text) => {
                let sample = sample::read(&text);
                self.inner.lock().push(at, sample);
            }
            Err(error) => self.inner.lock().broken = Some(error),
        }
    }

    /// What the page draws: everything after `since`, which is a time of an earlier answer.
    pub fn data(&self, source: &dyn Source, since: Option<u64>) -> Value {
        let state = source.state();
        let now = self.now();
        let inner = self.inner.lock();
        let known = since.map_or(0, |since| inner.times.partition_point(|at| *at <= since));
        let times: Vec<u64> = inner.times.iter().skip(known).copied().collect();
        let series: Vec<Value> = inner
            .columns
            .filled()
            .map(|(id, series)| {
                let wanted = &WANTED[series.wanted];
                let values: Vec<Option<f64>> =
                    (known..inner.times.len()).map(|point| inner.get(point, id)).collect();
                let labels: serde_json::Map<String, Value> = wanted
                    .by
                    .iter()
                    .map(|by| (*by).to_owned())
                    .zip(series.labels.iter().map(|l| json!(l)))
                    .collect();
                json!({"key": wanted.key, "counter": wanted.counter, "labels": labels, "values": values})
            })
            .collect();
        let alerts: Vec<Alert> = alerts::alerts(&state, &*inner, inner.broken.as_deref());
        json!({
            "boot": self.boot,
            "version": env!("CARGO_PKG_VERSION"),
            "now": now,
            "window": WINDOW.as_millis() as u64,
            "ready": state.not_ready.is_none(),
            "reason": state.not_ready,
            "draining": state.draining,
            "alerts": alerts,
            "times": times,
            "series": series,
            "latency": inner.latencies.json(),
        })
    }
}

impl Inner {
    /// Where a kept point is in the columns; the oldest is number 0.
    fn slot(&self, point: usize) -> usize {
        (self.first + point) % MAX_POINTS
    }

    fn get(&self, point: usize, id: usize) -> Option<f64> {
        self.columns.get(id, self.slot(point))
    }

    /// The newest point.
    fn last(&self) -> Option<usize> {
        self.times.len().checked_sub(1)
    }

    fn push(&mut self, at: u64, sample: sample::Sample) {
        self.broken = None;
        let oldest = at.saturating_sub(WINDOW.as_millis() as u64);
        while self.times.len() >= MAX_POINTS || self.times.front().is_some_and(|at| *at < oldest) {
            self.times.pop_front();
            self.first += 1;
        }
        let slot = self.slot(self.times.len());
        self.times.push_back(at);
        self.columns.begin(slot);
        for (series, value) in sample.values {
            self.columns.add(slot, series, value);
        }
        self.latencies.push(at, sample.latency);
        if (self.first + self.times.len()).is_multiple_of(SWEEP) {
            let slots: Vec<usize> = (0..self.times.len()).rev().map(|point| self.slot(point)).collect();
            self.columns.forget_dead(&slots);
        }
    }
}

impl Numbers for Inner {
    fn now(&self, key: &str) -> Option<f64> {
        let last = self.last()?;
        self.columns.of(key).filter_map(|id| self.get(last, id)).reduce(|sum, value| sum + value)
    }

    fn increase(&self, key: &str, within: Duration) -> f64 {
        let Some(last) = self.last() else { return 0.0 };
        let from = self.times[last].saturating_sub(within.as_millis() as u64);
        // The last point before the window: what came between it and the next one came in the window.
        let before = self.times.partition_point(|at| *at <= from).saturating_sub(1);
        // A counter that was not there yet was 0: it lives as long as the daemon.
        let base = |id| self.get(before, id).unwrap_or(0.0);
        self.columns.of(key).filter_map(|id| Some((self.get(last, id)? - base(id)).max(0.0))).sum()
    }
}

/// Looks once a period, for ever.
pub async fn keep(history: Arc<History>, source: Arc<dyn Source>) {
    loop {
        let began = tokio::time::Instant::now();
        let (history, source) = (history.clone(), source.clone());
        // A scrape waits for the event bus: not on an I/O thread.
        let look = tokio::task::spawn_blocking(move || {
            let before = cpu_time();
            history.look(&*source);
            cpu_time().saturating_sub(before)
        });
        let period = match look.await {
            Ok(cost) => period(cost),
            Err(error) => {
                tracing::error!(%error, "the live page cannot read the metrics; this is a bug in lmcached, please report it");
                MAX_PERIOD
            }
        };
        tokio::time::sleep_until(began + period).await;
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Time from one look to the next, if a look costs that much CPU time.
fn period(cost: Duration) -> Duration {
    (cost * SHARE).clamp(PERIOD, MAX_PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::page::wanted::{MAX_LABEL_SETS, OTHERS};

    struct Text(Mutex<Result<String, String>>);

    impl Text {
        fn new(text: &str) -> Text {
            Text(Mutex::new(Ok(text.to_owned())))
        }

        fn set(&self, text: impl Into<String>) {
            *self.0.lock() = Ok(text.into());
        }
    }

    impl Source for Text {
        fn exposition(&self) -> Result<String, String> {
            self.0.lock().clone()
        }

        fn state(&self) -> State {
            State::default()
        }
    }

    fn push(history: &History, at: u64, text: &str) {
        history.inner.lock().push(at, sample::read(text));
    }

    #[test]
    fn points_have_what_the_text_had() {
        let (history, source) = (History::new(), Text::new("lmcached_connections 3\n"));
        history.look(&source);
        source.set("lmcached_connections 4\nlmcached_workers 1\n");
        history.look(&source);
        let data = history.data(&source, None);
        let of = |key: &str| {
            let series = data["series"].as_array().expect("array").iter().find(|series| series["key"] == key);
            series.expect("a series")["values"].clone()
        };
        assert_eq!(of("connections"), json!([3.0, 4.0]));
        assert_eq!(of("workers"), json!([null, 1.0]));
        assert_eq!(data["times"].as_array().map(Vec::len), Some(2));
        assert_eq!(data["ready"], true);
        let last = data["times"][1].as_u64();
        assert_eq!(history.data(&source, last)["times"], json!([]));
    }

    #[test]
    fn a_text_that_cannot_be_had_is_an_alert() {
        let (history, source) = (History::new(), Text::new(""));
        *source.0.lock() = Err("out of ink".into());
        history.look(&source);
        let alerts = history.data(&source, None)["alerts"].to_string();
        assert!(alerts.contains("out of ink"), "{alerts}");
    }

    #[test]
    fn points_series_and_time_are_bounded() {
        let history = History::new();
        for at in 0..2_000_u64 {
            let worker = at / 10;
            push(
                &history,
                at * 1_000,
                &format!("lmcached_ring_lost_events_total{{worker_id=\"{worker}\"}} 1\n"),
            );
        }
        let inner = history.inner.lock();
        assert_eq!(inner.times.len(), MAX_POINTS);
        assert!(inner.times[MAX_POINTS - 1] - inner.times[0] <= 900_000);
        let labels: Vec<&str> = inner.columns.filled().map(|(_, series)| &*series.labels[0]).collect();
        assert!(labels.len() <= MAX_LABEL_SETS + 1, "{}", labels.len());
        assert!(labels.contains(&OTHERS));
        assert!(!labels.contains(&"0"), "dead series give up their place");
        let last = inner.last().expect("points");
        assert_eq!(inner.columns.of("ring_lost").filter_map(|id| inner.get(last, id)).sum::<f64>(), 1.0);
    }

    /// What is looked up of a tenant and what is found have one name, whoever of the two came first.
    #[test]
    fn numbers_with_the_same_labels_have_the_same_label_sets() {
        let (history, source) = (History::new(), Text::new(""));
        let line = |of: &str, salt: usize| {
            format!("lmcache_mp_lookup_{of}_tokens_total{{model_name=\"m\",cache_salt=\"{salt}\"}} 1\n")
        };
        let asked: String = (0..60).map(|salt| line("requested", salt)).collect();
        push(&history, 0, &line("requested", 7));
        let series = |key: &str| {
            let data = history.data(&source, None);
            let all = data["series"].as_array().expect("array").iter().filter(|one| one["key"] == key);
            all.map(|one| one["labels"]["cache_salt"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!((series("requested_tokens"), series("hit_tokens")), (vec!["7".to_owned()], vec![]));
        let found: String = (0..60).rev().map(|salt| line("hit", salt)).collect();
        push(&history, 1_000, &asked);
        push(&history, 2_000, &(asked + &found));
        let (mut asked, mut found) = (series("requested_tokens"), series("hit_tokens"));
        asked.sort();
        found.sort();
        assert_eq!(asked.len(), MAX_LABEL_SETS + 1);
        assert_eq!(asked, found);
        // Both go together, too.
        for at in 3..2_000 {
            push(&history, at * 1_000, &line("hit", 7));
        }
        assert_eq!((series("hit_tokens"), series("requested_tokens")), (vec!["7".into()], vec!["7".into()]));
    }

    #[test]
    fn increases_are_those_of_the_window() {
        let history = History::new();
        push(&history, 0, "lmcached_l1_full_total 5\n");
        push(
            &history,
            100_000,
            "lmcached_l1_full_total 7\nlmcached_ring_lost_events_total{worker_id=\"1\"} 2\n",
        );
        push(
            &history,
            150_000,
            "lmcached_l1_full_total 8\nlmcached_ring_lost_events_total{worker_id=\"1\"} 2\n",
        );
        let inner = history.inner.lock();
        let minute = Duration::from_secs(60);
        assert_eq!(inner.increase("l1_full", minute), 3.0, "from the last point before the window");
        assert_eq!(inner.increase("l1_full", Duration::from_secs(40)), 1.0);
        assert_eq!(inner.increase("l1_full", WINDOW), 3.0);
        assert_eq!(inner.increase("ring_lost", WINDOW), 2.0, "a counter begins at 0");
        assert_eq!(inner.increase("ring_lost", Duration::from_secs(40)), 0.0);
        assert_eq!(inner.now("l1_full"), Some(8.0));
        assert_eq!(inner.now("workers"), None);
    }

    #[test]
    fn a_dear_look_is_taken_more_rarely() {
        assert_eq!(period(Duration::ZERO), PERIOD);
        assert_eq!(period(Duration::from_millis(4)), PERIOD);
        assert_eq!(period(Duration::from_millis(10)), Duration::from_secs(2));
        assert_eq!(period(Duration::from_secs(1)), MAX_PERIOD);
    }
}
