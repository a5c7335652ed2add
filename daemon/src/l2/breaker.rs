//! The circuit breaker: a store that is down or slow is not asked until a probe says that it is back.
//!
//! ```text
//! Closed ──(failures in a row)──▶ Open ──(timer)──▶ HalfOpen ──(ping answered)──▶ Closed
//!                                  ▲                    │
//!                                  └──(ping failed)─────┘
//! ```
//!
//! This file decides; the guard next door runs the timer and the probe. Times come from the caller, so that tests need no
//! clock.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::settings::{Settings, SettingsError};

/// When to open and when to probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerConfig {
    /// Failed or slow calls in a row that open it.
    pub failures: u32,
    /// A call that takes longer is slow, successful or not. Bytes have their own allowance on top.
    pub slow: Duration,
    /// From opening to the first probe.
    pub first_probe: Duration,
    /// Longest time between two probes; it doubles from the first.
    pub max_probe: Duration,
}

impl BreakerConfig {
    /// Reads the `breaker` object of an adapter.
    pub fn read(
        settings: Option<Settings>,
        request_timeout: Duration,
    ) -> Result<BreakerConfig, SettingsError> {
        let mut settings = settings.unwrap_or_else(|| Settings::new(serde_json::Map::new()));
        let config = BreakerConfig {
            failures: settings.count("failures", 1..=1_000_000)?.unwrap_or(5) as u32,
            slow: settings.seconds("slow_seconds")?.unwrap_or(request_timeout / 2),
            first_probe: settings.seconds("first_probe_seconds")?.unwrap_or(Duration::from_secs(1)),
            max_probe: settings.seconds("max_probe_seconds")?.unwrap_or(Duration::from_secs(30)),
        };
        match settings.left().first() {
            Some(key) => Err(SettingsError(format!("\"breaker\" has no key {key:?}"))),
            None => Ok(config),
        }
    }
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Requests go through.
    Closed,
    /// Requests are refused at once.
    Open,
    /// Refused still; a probe is out.
    HalfOpen,
}

impl Position {
    /// For `/status`.
    pub fn name(self) -> &'static str {
        match self {
            Position::Closed => "closed",
            Position::Open => "open",
            Position::HalfOpen => "half_open",
        }
    }
}

/// A snapshot for status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerStatus {
    /// Where it stands.
    pub position: Position,
    /// Failed or slow calls since the last good one.
    pub failures_in_a_row: u32,
    /// Times it opened.
    pub opened: u64,
    /// Requests refused while it was open.
    pub refused: u64,
    /// Probes sent.
    pub probes: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

#[derive(Debug)]
struct State {
    position: Position,
    failures: u32,
    /// The wait before the next probe, or the last one before it closed.
    delay: Duration,
    closed_at: Instant,
    opened: u64,
    refused: u64,
    probes: u64,
    last_error: Option<String>,
}

/// The breaker of one adapter.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    /// Copy of "not closed", so that a request of a closed breaker takes no lock. Relaxed: a request that slips through
    /// on either edge does no harm.
    shut: AtomicBool,
    state: Mutex<State>,
}

impl Breaker {
    /// Whether calls are refused now.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }

    /// A closed one.
    pub fn new(config: BreakerConfig, now: Instant) -> Breaker {
        Breaker {
            config,
            shut: AtomicBool::new(false),
            state: Mutex::new(State {
                position: Position::Closed,
                failures: 0,
                delay: Duration::ZERO,
                closed_at: now,
                opened: 0,
                refused: 0,
                probes: 0,
                last_error: None,
            }),
        }
    }

    /// When to open and when to probe.
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    /// Whether a request may go through. A refusal costs one lock and says why.
    pub fn admit(&self) -> Result<(), String> {
        if !self.shut.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.refused += 1;
        Err(match &state.last_error {
            Some(error) => format!("the breaker is open, last error: {error}"),
            None => "the breaker is open".to_owned(),
        })
    }

    /// A good call.
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        // Only the probe closes it: this call may have been sent before the store went down.
        if state.position == Position::Closed {
            state.failures = 0;
        }
    }

    /// A failed or slow call. `Some`: the breaker has just opened; the caller has to probe after that time.
    #[must_use]
    pub fn failed(&self, error: String, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock();
        state.last_error = Some(error);
        if state.position != Position::Closed {
            return None;
        }
        state.failures += 1;
        if state.failures < self.config.failures {
            return None;
        }
        // A store that answers pings and nothing else would open and close for ever at the first probe's pace.
        let relapse = now.duration_since(state.closed_at) < state.delay * 10;
        state.delay = if relapse { self.longer(state.delay) } else { self.config.first_probe };
        state.position = Position::Open;
        state.opened += 1;
        self.shut.store(true, Ordering::Relaxed);
        Some(state.delay)
    }

    /// A probe goes out.
    pub fn probing(&self) {
        let mut state = self.state.lock();
        state.position = Position::HalfOpen;
        state.probes += 1;
    }

    /// The probe was answered.
    pub fn close(&self, now: Instant) {
        let mut state = self.state.lock();
        state.position = Position::Closed;
        state.failures = 0;
        state.closed_at = now;
        self.shut.store(false, Ordering::Relaxed);
    }

    /// The probe failed; the time until the next.
    pub fn reopen(&self, error: String) -> Duration {
        let mut state = self.state.lock();
        state.position = Position::Open;
        state.last_error = Some(error);
        state.delay = self.longer(state.delay);
        state.delay
    }

    /// A snapshot.
    pub fn status(&self) -> BreakerStatus {
        let state = self.state.lock();
        BreakerStatus {
            position: state.position,
            failures_in_a_row: state.failures,
            opened: state.opened,
            refused: state.refused,
            probes: state.probes,
            last_error: state.last_error.clone(),
        }
    }

    fn longer(&self, delay: Duration) -> Duration {
        (delay * 2).clamp(self.config.first_probe, self.config.max_probe.max(self.config.first_probe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> (Breaker, Instant) {
        let config = BreakerConfig {
            failures: 3,
            slow: Duration::from_secs(1),
            first_probe: Duration::from_secs(1),
            max_probe: Duration::from_secs(4),
        };
        let now = Instant::now();
        (Breaker::new(config, now), now)
    }

    fn fail(breaker: &Breaker, now: Instant) -> Option<Duration> {
        breaker.failed("down".into(), now)
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let (breaker, now) = breaker();
        for _ in 0..10 {
            assert_eq!(fail(&breaker, now), None);
            assert_eq!(fail(&breaker, now), None);
            breaker.succeeded();
        }
        assert_eq!(breaker.admit(), Ok(()));
        fail(&breaker, now);
        fail(&breaker, now);
        assert_eq!(fail(&breaker, now), Some(Duration::from_secs(1)));
        assert!(breaker.admit().expect_err("open").contains("down"));
        assert_eq!(fail(&breaker, now), None, "opens once");
        breaker.succeeded();
        assert!(breaker.admit().is_err(), "a late answer does not close it");
    }

    #[test]
    fn probes_back_off_and_one_answer_closes_it() {
        let (breaker, now) = breaker();
        for _ in 0..3 {
            let _ = fail(&breaker, now);
        }
        let mut waits = Vec::new();
        for _ in 0..4 {
            breaker.probing();
            assert_eq!(breaker.status().position, Position::HalfOpen);
            assert!(breaker.admit().is_err(), "half open lets nobody through but the probe");
            waits.push(breaker.reopen("still down".into()).as_secs());
        }
        assert_eq!(waits, [2, 4, 4, 4]);
        breaker.probing();
        breaker.close(now);
        assert_eq!(breaker.admit(), Ok(()));
        let status = breaker.status();
        assert_eq!((status.opened, status.probes, status.refused), (1, 5, 4));
    }

    #[test]
    fn a_relapse_waits_longer_and_a_long_peace_forgives() {
        let (breaker, mut now) = breaker();
        let open = |now| {
            let _ = fail(&breaker, now);
            let _ = fail(&breaker, now);
            let wait = fail(&breaker, now).expect("opens");
            breaker.close(now);
            wait.as_secs()
        };
        let first = open(now);
        now += Duration::from_secs(1);
        assert_eq!((first, open(now)), (1, 2));
        now += Duration::from_secs(20);
        assert_eq!(open(now), 1);
    }
}
