//! How many messages a peer may send in a second (`--max-peer-requests-per-second`): a bucket of tokens that fills evenly.
//!
//! A peer that has none is not read until it has one: its messages wait in its own socket, and nothing of it is refused.
#![forbid(unsafe_code)]

use std::time::Duration;

use tokio::time::Instant;

/// One peer's bucket.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    /// At most a second's worth. Below 0 never.
    tokens: f64,
    counted: Instant,
}

impl Rate {
    /// A full bucket; `None` if nothing is to be limited.
    pub(super) fn new(per_second: u32, now: Instant) -> Option<Rate> {
        let tokens = f64::from(per_second);
        (per_second > 0).then_some(Rate { per_second: tokens, tokens, counted: now })
    }

    /// Whether there is a token; if not, when there will be one.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Instant> {
        let since = now.saturating_duration_since(self.counted).as_secs_f64();
        self.tokens = (self.tokens + since * self.per_second).min(self.per_second);
        self.counted = now;
        let lacks = 1.0 - self.tokens;
        // A nanosecond more, so that rounding leaves nothing to wait for.
        let wait = || now + Duration::from_secs_f64(lacks / self.per_second) + Duration::from_nanos(1);
        (lacks > 0.0).then(wait)
    }

    /// Uses a token up, after [`Rate::wait`] has said that there is one.
    pub(super) fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rate: &mut Rate, now: Instant, most: usize) -> usize {
        (0..most)
            .take_while(|_| {
                let may = rate.wait(now).is_none();
                if may {
                    rate.spend();
                }
                may
            })
            .count()
    }

    #[test]
    fn a_second_s_worth_at_once_and_then_evenly() {
        let start = Instant::now();
        assert!(Rate::new(0, start).is_none());
        let mut rate = Rate::new(10, start).expect("a limit");
        assert_eq!(taken(&mut rate, start, 100), 10);
        let next = rate.wait(start).expect("empty");
        assert_eq!((next - start).as_millis(), 100);
        assert_eq!(taken(&mut rate, next, 100), 1);
        // What is not used is not saved up beyond a second.
        assert_eq!(taken(&mut rate, next + Duration::from_secs(60), 100), 10);
    }

    #[test]
    fn rates_below_and_far_above_the_clock_s_grain() {
        let start = Instant::now();
        let mut slow = Rate::new(1, start).expect("a limit");
        assert_eq!(taken(&mut slow, start, 100), 1);
        let next = slow.wait(start).expect("empty");
        assert_eq!(taken(&mut slow, next - Duration::from_millis(1), 100), 0);
        assert_eq!(taken(&mut slow, next, 100), 1);
        let mut fast = Rate::new(u32::MAX, start).expect("a limit");
        assert_eq!(taken(&mut fast, start, 100_000), 100_000);
    }
}
