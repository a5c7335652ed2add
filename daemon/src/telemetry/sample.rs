//! Which chunks, requests and tasks a histogram looks at: decided by their names, so that the same one always gets the
//! same answer and nothing has to be remembered.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use crate::events::Cell;

/// Takes part of everything.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// `None`: all of it.
    threshold: Option<u64>,
}

impl Sampler {
    /// Takes `rate` of everything, 0 to 1.
    pub fn new(rate: f64) -> Sampler {
        Sampler { threshold: (rate < 1.0).then_some((rate * u64::MAX as f64) as u64) }
    }

    /// Whether `hash` is taken.
    pub fn takes_hash(self, hash: u64) -> bool {
        self.threshold.is_none_or(|threshold| spread(hash) < threshold)
    }

    /// Whether something is taken.
    pub fn takes(self, what: &(impl Hash + ?Sized)) -> bool {
        self.threshold.is_none() || self.takes_hash(hash_of(what))
    }

    /// Whether an object is taken.
    pub fn takes_cell(self, cell: &Cell) -> bool {
        self.threshold.is_none() || self.takes(cell)
    }
}

/// A hash of anything.
pub fn hash_of(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = FxHasher::default();
    what.hash(&mut hasher);
    spread(hasher.finish())
}

/// Spreads the entropy of a hash over all its bits (the finisher of MurmurHash3).
pub fn spread(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_takes_its_part_and_always_the_same() {
        let sampler = Sampler::new(0.1);
        let taken: Vec<bool> = (0..100_000).map(|i| sampler.takes(format!("request-{i}").as_str())).collect();
        let count = taken.iter().filter(|taken| **taken).count();
        // Six standard deviations around 10,000.
        assert!((9_430..=10_570).contains(&count), "{count}");
        let again = (0..100_000).map(|i| sampler.takes(format!("request-{i}").as_str()));
        assert!(again.eq(taken));
    }

    #[test]
    fn rate_one_takes_all() {
        assert!((0..10_000u64).all(|i| Sampler::new(1.0).takes(&i)));
    }
}
