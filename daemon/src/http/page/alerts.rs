//! What is wrong, in plain words: what happened, what it means, what to do.

use std::time::Duration;

use serde::Serialize;

use crate::http::history::{State, WINDOW};

/// How long ago counts as "now" for things that happen again and again.
const RECENT: Duration = Duration::from_secs(60);

/// A bus that is this far behind makes late metrics.
const LATE_SECONDS: f64 = 5.0;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The cache does not do its work.
    Critical,
    /// It works, with less than it should have.
    Warning,
    /// Good to know.
    Info,
}

/// A line on the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// How bad.
    pub level: Level,
    /// Which one; stable.
    pub name: &'static str,
    /// What happened.
    pub what: String,
    /// What it means and what to do.
    pub advice: String,
}

/// Numbers by their key on the page.
pub trait Numbers {
    /// The last value, added up over labels.
    fn now(&self, key: &str) -> Option<f64>;

    /// How much a counter has grown.
    fn increase(&self, key: &str, within: Duration) -> f64;
}

/// A counter that should not grow.
struct Growth {
    name: &'static str,
    key: &'static str,
    level: Level,
    within: Duration,
    /// Follows the number.
    what: &'static str,
    advice: &'static str,
}

const GROWTHS: &[Growth] = &[
    Growth {
        name: "l1_full",
        key: "l1_full",
        level: Level::Critical,
        within: RECENT,
        what: "stores were refused in the last minute: the pool is full and nothing in it can be evicted",
        advice: "New chunks are not cached until something is let go. Slots in use are listed below (leases, pins, \
                 quarantine). Raise --l1-size-gb; with --eviction-policy noop, nothing is ever evicted.",
    },
    Growth {
        name: "events_dropped",
        key: "events_dropped",
        level: Level::Warning,
        within: WINDOW,
        what: "events were dropped in the last 15 minutes",
        advice: "Metrics, spans and recordings that are made from events miss these. Requests were not affected. \
                 Raise --event-bus-queue-size.",
    },
    Growth {
        name: "ring_lost",
        key: "ring_lost",
        level: Level::Warning,
        within: WINDOW,
        what: "events of workers were lost in the last 15 minutes",
        advice: "A worker was faster than the daemon reads its lane; its throughput histograms miss these transfers.",
    },
    Growth {
        name: "subscriber_exceptions",
        key: "subscriber_exceptions",
        level: Level::Warning,
        within: WINDOW,
        what: "events could not be processed in the last 15 minutes",
        advice: "This is a bug in lmcached, please report it with the log. The cache itself is not affected.",
    },
    Growth {
        name: "l2_store_failed",
        key: "l2_store_failed",
        level: Level::Warning,
        within: WINDOW,
        what: "chunks could not be stored in L2 in the last 15 minutes",
        advice: "They are lost once L1 evicts them. The log names the tier and the reason.",
    },
    Growth {
        name: "l2_load_failed",
        key: "l2_load_failed",
        level: Level::Warning,
        within: WINDOW,
        what: "chunks that L2 should have had could not be loaded in the last 15 minutes",
        advice: "They were computed again. The log names the tier and the reason.",
    },
    Growth {
        name: "reaped",
        key: "reaped",
        level: Level::Warning,
        within: WINDOW,
        what: "workers were silent for too long and forgotten in the last 15 minutes",
        advice: "A worker that still runs registers again by itself. See --worker-reap-timeout-seconds.",
    },
    Growth {
        name: "peers_refused",
        key: "peers_refused",
        level: Level::Warning,
        within: WINDOW,
        what: "connections were refused or ended by the daemon in the last 15 minutes",
        advice: "The log says why: not the protocol, over a limit, or too slow to greet.",
    },
    Growth {
        name: "malformed",
        key: "malformed",
        level: Level::Warning,
        within: WINDOW,
        what: "messages that are no LMCache request came in the last 15 minutes",
        advice: "A client of another LMCache release, or not an LMCache client at all. The log names the peer.",
    },
    Growth {
        name: "unknown_operations",
        key: "unknown_operations",
        level: Level::Warning,
        within: WINDOW,
        what: "requests of operations that this daemon does not serve came in the last 15 minutes",
        advice: "Probably a client of another LMCache release. The log names the operation and the peer.",
    },
    Growth {
        name: "log_lines_dropped",
        key: "log_lines_dropped",
        level: Level::Warning,
        within: WINDOW,
        what: "log lines were dropped in the last 15 minutes",
        advice: "Whatever reads the log of the daemon is too slow.",
    },
    Growth {
        name: "otlp_dropped",
        key: "otlp_dropped",
        level: Level::Warning,
        within: WINDOW,
        what: "spans or log records were not delivered in the last 15 minutes",
        advice: "The OTLP collector is down or too slow. See --otlp-endpoint.",
    },
];

/// Everything that is wrong now, worst first.
pub fn alerts(state: &State, numbers: &dyn Numbers, broken: Option<&str>) -> Vec<Alert> {
    let mut alerts = Vec::new();
    let mut add = |level, name, what: String, advice: &str| {
        alerts.push(Alert { level, name, what, advice: advice.to_owned() });
    };
    if let Some(reason) = broken {
        let advice = "The numbers below are old. This is a bug in lmcached, please report it.";
        add(Level::Critical, "metrics", format!("The metrics cannot be read: {reason}"), advice);
    }
    for (tier, reason) in &state.tiers_down {
        let advice = "Chunks that only this tier has are computed again. It is asked from time to time and comes back \
                      by itself.";
        add(Level::Critical, "l2_down", format!("L2 tier {tier} is down: {reason}"), advice);
    }
    if state.draining {
        let advice = "It takes no new connections and ends when what is in flight is done.";
        add(Level::Warning, "draining", "The daemon is stopping".into(), advice);
    } else if let Some(reason) = &state.not_ready {
        let advice = "Requests are answered meanwhile; stores are refused when they need memory that is not there yet.";
        add(Level::Info, "not_ready", format!("The daemon is not ready yet: {reason}"), advice);
    }
    for growth in GROWTHS {
        let count = numbers.increase(growth.key, growth.within);
        if count > 0.0 {
            add(growth.level, growth.name, format!("{count} {}", growth.what), growth.advice);
        }
    }
    let quarantined = numbers.now("l1_quarantined").unwrap_or(0.0);
    if quarantined > 0.0 {
        let advice = "Their workers were late or have gone without a word and may still write to them. The memory comes \
                      back when the workers' processes end. See --l1-write-ttl-seconds.";
        add(Level::Warning, "quarantined", format!("{quarantined} slots are in quarantine"), advice);
    }
    let lag = numbers.now("drain_lag").unwrap_or(0.0);
    if lag > LATE_SECONDS {
        let advice = "Metrics come late. If this lasts, events will be dropped.";
        add(Level::Warning, "drain_lag", format!("The event bus is {lag:.0} s behind"), advice);
    }
    alerts.sort_by_key(|alert| alert.level as u8);
    alerts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::http::page::wanted::WANTED;

    struct Fixed(BTreeMap<&'static str, f64>);

    impl Numbers for Fixed {
        fn now(&self, key: &str) -> Option<f64> {
            self.0.get(key).copied()
        }

        fn increase(&self, key: &str, _within: Duration) -> f64 {
            self.0.get(key).copied().unwrap_or(0.0)
        }
    }

    fn names(state: &State, numbers: &[(&'static str, f64)], broken: Option<&str>) -> Vec<&'static str> {
        let numbers = Fixed(numbers.iter().copied().collect());
        alerts(state, &numbers, broken).iter().map(|alert| alert.name).collect()
    }

    #[test]
    fn a_healthy_daemon_has_none() {
        assert!(names(&State::default(), &[("l1_full", 0.0), ("l1_ratio", 1.0)], None).is_empty());
    }

    #[test]
    fn each_growth_is_a_line_and_its_key_is_kept() {
        for growth in GROWTHS {
            assert!(WANTED.iter().any(|wanted| wanted.key == growth.key && wanted.counter), "{}", growth.key);
            assert_eq!(names(&State::default(), &[(growth.key, 3.0)], None), [growth.name]);
        }
        for key in ["l1_quarantined", "drain_lag"] {
            assert!(WANTED.iter().any(|wanted| wanted.key == key && !wanted.counter));
        }
    }

    #[test]
    fn the_worst_comes_first() {
        let state = State {
            not_ready: Some("draining".into()),
            draining: true,
            tiers_down: vec![("fs-0".into(), "connection refused".into())],
        };
        let found = names(&state, &[("l1_quarantined", 1.0), ("drain_lag", 9.0), ("l1_full", 2.0)], None);
        assert_eq!(found, ["l2_down", "l1_full", "draining", "quarantined", "drain_lag"]);
        let reserving = State { not_ready: Some("reserving memory".into()), ..State::default() };
        assert_eq!(names(&reserving, &[], None), ["not_ready"]);
        assert_eq!(names(&reserving, &[("reaped", 1.0)], Some("why")), ["metrics", "reaped", "not_ready"]);
    }
}
