//! Things that have begun and wait for their end: a map with a bound.

use std::collections::VecDeque;
use std::hash::Hash;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

/// Silence after which an end is not awaited any more: whoever began has gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

/// At most so many starts. The oldest make room: their end is the least likely to come.
pub(super) struct Pending<K, V> {
    started: FxHashMap<K, (u64, V)>,
    /// In the order of their start, with numbers that tell a restarted key from its first start.
    order: VecDeque<(K, u64)>,
    next: u64,
    room: usize,
}

impl<K: Clone + Eq + Hash, V> Pending<K, V> {
    pub(super) fn new(room: usize) -> Pending<K, V> {
        Pending { started: FxHashMap::default(), order: VecDeque::new(), next: 0, room }
    }

    /// Remembers a start; a second one of the same key replaces the first. Returns what had to make room.
    pub(super) fn begin(&mut self, key: K, value: V) -> Option<(K, V)> {
        let number = self.queue(&key);
        self.started.insert(key, (number, value));
        if self.started.len() > self.room { self.oldest() } else { None }
    }

    /// Puts a key last in the order.
    fn queue(&mut self, key: &K) -> u64 {
        // Ends and touches leave their places in the order behind: once in a while they are cleared away.
        if self.order.len() > 2 * self.started.len() + 64 {
            let started = &self.started;
            self.order.retain(|(key, number)| started.get(key).is_some_and(|(current, _)| current == number));
        }
        let number = self.next;
        self.next += 1;
        self.order.push_back((key.clone(), number));
        number
    }

    /// Something was heard of it: it is the youngest now.
    pub(super) fn touch(&mut self, key: &K) -> Option<&mut V> {
        if !self.started.contains_key(key) {
            return None;
        }
        let number = self.queue(key);
        let (current, value) = self.started.get_mut(key)?;
        *current = number;
        Some(value)
    }

    /// The end: forgets the start and returns what was remembered with it.
    pub(super) fn end(&mut self, key: &K) -> Option<V> {
        self.started.remove(key).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.started.get_mut(key).map(|(_, value)| value)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.started.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.started.len()
    }

    /// Takes out the oldest for which `which` holds, if it is the oldest of all.
    pub(super) fn oldest_if(&mut self, which: impl Fn(&V) -> bool) -> Option<(K, V)> {
        loop {
            let (key, number) = self.order.front()?;
            match self.started.get(key) {
                Some((current, value)) if current == number => {
                    if !which(value) {
                        return None;
                    }
                }
                _ => {
                    self.order.pop_front();
                    continue;
                }
            }
            let (key, _) = self.order.pop_front()?;
            let (_, value) = self.started.remove(&key)?;
            return Some((key, value));
        }
    }

    fn oldest(&mut self) -> Option<(K, V)> {
        self.oldest_if(|_| true)
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (K, V)> {
        self.order.clear();
        std::mem::take(&mut self.started).into_iter().map(|(key, (_, value))| (key, value))
    }
}

impl<K: Clone + Eq + Hash> Pending<K, Instant> {
    /// Remembers that something began `at` that time, and forgets what began more than [`PATIENCE`] before. Returns what had to
    /// make room.
    pub(super) fn begin_at(&mut self, key: K, at: Instant) -> Option<(K, Instant)> {
        while self.oldest_if(|start| at.saturating_duration_since(*start) > PATIENCE).is_some() {}
        self.begin(key, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_ends_is_forgotten() {
        let start = Instant::now();
        let mut pending = Pending::new(10);
        for (key, seconds) in [("first", 0), ("second", 10), ("third", 905), ("fourth", 906)] {
            assert_eq!(pending.begin_at(key, start + Duration::from_secs(seconds)), None);
        }
        assert!(!pending.contains(&"first") && pending.contains(&"second") && pending.len() == 3);
        assert_eq!(pending.end(&"second"), Some(start + Duration::from_secs(10)));
    }

    #[test]
    fn the_oldest_make_room_and_the_order_stays_short() {
        let mut pending = Pending::new(3);
        for key in 0..4 {
            assert_eq!(pending.begin(key, key * 10), (key == 3).then_some((0, 0)));
        }
        assert_eq!((pending.end(&0), pending.end(&2)), (None, Some(20)));
        for round in 0..10_000 {
            pending.begin(round, round);
            pending.end(&round);
        }
        assert!(pending.order.len() < 100 && pending.len() <= 3);
    }

    #[test]
    fn a_second_start_replaces_the_first_and_is_as_young_as_it_is() {
        let mut pending = Pending::new(2);
        pending.begin("a", 1);
        pending.begin("b", 2);
        pending.begin("a", 3);
        assert_eq!(pending.begin("c", 4), Some(("b", 2)));
        assert_eq!(pending.end(&"a"), Some(3));
    }

    #[test]
    fn only_those_at_the_front_go_by_condition() {
        let mut pending = Pending::new(10);
        pending.begin("old", 1);
        pending.begin("young", 5);
        pending.begin("touched", 2);
        assert_eq!(pending.oldest_if(|value| *value < 3), Some(("old", 1)));
        pending.begin("old", 1);
        pending.touch(&"young");
        pending.touch(&"touched");
        assert_eq!(pending.oldest_if(|value| *value < 3), Some(("old", 1)));
        assert_eq!(pending.oldest_if(|value| *value < 3), None);
        assert_eq!(pending.drain().count(), 2);
    }
}
