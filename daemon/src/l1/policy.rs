//! Which objects go when memory is wanted.
//!
//! A policy only ever holds objects that may go: an object leaves its list while it is leased or pinned and comes
//! back, as a touch, when the last holder lets go. Picking a victim therefore never has to skip: O(1), and O(log salts)
//! for IsolatedLRU.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::names::NameId;

const NIL: u32 = u32::MAX;

/// The flag's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used.
    Lru,
    /// Adaptive replacement: recency against frequency, balanced by what was evicted too early.
    Arc,
    /// LRU per salt, taking from the salt that holds most bytes.
    IsolatedLru,
    /// Nothing is ever evicted.
    Noop,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
    list: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    bytes: u64,
}

const EMPTY: List = List { head: NIL, tail: NIL, bytes: 0 };

/// ARC's lists: seen once, seen again.
const T1: u32 = 0;
const T2: u32 = 1;

/// What ARC remembers of evicted objects: a queue of key hashes with sizes.
#[derive(Debug, Default)]
struct Ghosts {
    sizes: FxHashMap<u64, (u64, u64)>,
    queue: std::collections::VecDeque<(u64, u64)>,
    bytes: u64,
    stamp: u64,
}

impl Ghosts {
    fn insert(&mut self, key: u64, bytes: u64, limit: u64) {
        self.remove(key);
        self.stamp += 1;
        self.sizes.insert(key, (self.stamp, bytes));
        self.queue.push_back((key, self.stamp));
        self.bytes += bytes;
        while self.bytes > limit {
            let Some((old, stamp)) = self.queue.pop_front() else { break };
            if self.sizes.get(&old).is_some_and(|entry| entry.0 == stamp) {
                self.remove(old);
            }
        }
    }

    fn remove(&mut self, key: u64) -> Option<u64> {
        let (_, bytes) = self.sizes.remove(&key)?;
        self.bytes -= bytes;
        // Stale queue entries are skipped when they reach the front; keep them from piling up.
        if self.queue.len() > 2 * self.sizes.len() + 64 {
            let sizes = &self.sizes;
            self.queue.retain(|(key, stamp)| sizes.get(key).is_some_and(|entry| entry.0 == *stamp));
        }
        Some(bytes)
    }
}

/// What a policy needs to know of an object.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Record index.
    pub index: u32,
    /// Bytes that its eviction frees.
    pub bytes: u64,
    /// Its salt.
    pub salt: NameId,
    /// A hash of its key, for the memory of what was evicted.
    pub key_hash: u64,
    /// Whether it has been used since it was stored.
    pub reused: bool,
}

/// The eviction order.
#[derive(Debug)]
pub struct Policy {
    kind: PolicyKind,
    links: Vec<Link>,
    lists: Vec<List>,
    /// IsolatedLRU: list of each salt.
    by_salt: FxHashMap<NameId, u32>,
    unused_lists: Vec<u32>,
    /// ARC: ghosts of T1 and T2, and the bytes that T1 should have.
    ghosts: [Ghosts; 2],
    target: u64,
    capacity: u64,
    /// Bytes in all lists.
    evictable: u64,
    /// IsolatedLRU: the salts' lists by their bytes, so that the largest is found without a walk.
    by_bytes: BTreeSet<(u64, u32)>,
}

impl Policy {
    /// A policy for a pool of `capacity` bytes.
    pub fn new(kind: PolicyKind, capacity: u64) -> Policy {
        Policy {
            kind,
            links: Vec::new(),
            lists: vec![EMPTY; 2],
            by_salt: FxHashMap::default(),
            unused_lists: Vec::new(),
            ghosts: [Ghosts::default(), Ghosts::default()],
            target: 0,
            capacity,
            evictable: 0,
            by_bytes: BTreeSet::new(),
        }
    }

    /// Makes an object evictable, as the most recently used one.
    pub fn insert(&mut self, subject: &Subject) {
        let list = match self.kind {
            PolicyKind::Noop => return,
            PolicyKind::Lru => T1,
            PolicyKind::IsolatedLru => self.salt_list(subject.salt),
            PolicyKind::Arc => self.arc_list(subject),
        };
        let index = subject.index as usize;
        if self.links.len() <= index {
            self.links.resize(index + 1, Link { prev: NIL, next: NIL, list: NIL });
        }
        debug_assert_eq!(self.links[index].list, NIL, "inserted twice");
        let old = self.lists[list as usize].head;
        self.links[index] = Link { prev: NIL, next: old, list };
        if old == NIL {
            self.lists[list as usize].tail = subject.index;
        } else {
            self.links[old as usize].prev = subject.index;
        }
        self.lists[list as usize].head = subject.index;
        self.weigh(list, |bytes| bytes + subject.bytes);
        self.evictable += subject.bytes;
    }

    /// Bytes that evicting everything that may go would free.
    pub fn evictable(&self) -> u64 {
        self.evictable
    }

    /// Changes the bytes of a list, and its place among the salts.
    fn weigh(&mut self, list: u32, change: impl FnOnce(u64) -> u64) {
        let bytes = &mut self.lists[list as usize].bytes;
        let (old, new) = (*bytes, change(*bytes));
        *bytes = new;
        if self.kind == PolicyKind::IsolatedLru {
            self.by_bytes.remove(&(old, list));
            if new > 0 {
                self.by_bytes.insert((new, list));
            }
        }
    }

    /// Takes an object out of the order (it is held, or gone). Harmless if it is in none.
    pub fn remove(&mut self, subject: &Subject) {
        let Some(&Link { prev, next, list }) = self.links.get(subject.index as usize) else { return };
        if list == NIL {
            return;
        }
        if prev == NIL {
            self.lists[list as usize].head = next;
        } else {
            self.links[prev as usize].next = next;
        }
        if next == NIL {
            self.lists[list as usize].tail = prev;
        } else {
            self.links[next as usize].prev = prev;
        }
        self.weigh(list, |bytes| bytes - subject.bytes);
        self.evictable -= subject.bytes;
        self.links[subject.index as usize].list = NIL;
        if self.kind == PolicyKind::IsolatedLru && self.lists[list as usize].head == NIL {
            self.by_salt.remove(&subject.salt);
            self.unused_lists.push(list);
        }
    }

    /// The object to evict next; the caller evicts it and calls [`Policy::evicted`].
    pub fn victim(&self) -> Option<u32> {
        let tail = |list: u32| Some(self.lists[list as usize].tail).filter(|index| *index != NIL);
        match self.kind {
            PolicyKind::Noop => None,
            PolicyKind::Lru => tail(T1),
            // The salt with most evictable bytes.
            PolicyKind::IsolatedLru => self.by_bytes.last().and_then(|(_, list)| tail(*list)),
            PolicyKind::Arc => {
                let seen_once = self.lists[T1 as usize].bytes;
                if seen_once > self.target {
                    tail(T1).or_else(|| tail(T2))
                } else {
                    tail(T2).or_else(|| tail(T1))
                }
            }
        }
    }

    /// Takes a victim out and remembers it where the policy learns from its mistakes.
    pub fn evicted(&mut self, subject: &Subject) {
        let list = self.links.get(subject.index as usize).map_or(NIL, |link| link.list);
        self.remove(subject);
        if self.kind == PolicyKind::Arc && list != NIL {
            self.ghosts[list as usize].insert(subject.key_hash, subject.bytes, self.capacity);
        }
    }

    /// ARC: an object that comes back soon after its eviction says which list was too short.
    fn arc_list(&mut self, subject: &Subject) -> u32 {
        // The weights are those of the ghosts as they were when this one was still among them.
        let [once, again] = [self.ghosts[0].bytes.max(1), self.ghosts[1].bytes.max(1)];
        if self.ghosts[0].remove(subject.key_hash).is_some() {
            let step = (again / once).max(1).saturating_mul(subject.bytes);
            self.target = self.target.saturating_add(step).min(self.capacity);
            return T2;
        }
        if self.ghosts[1].remove(subject.key_hash).is_some() {
            let step = (once / again).max(1).saturating_mul(subject.bytes);
            self.target = self.target.saturating_sub(step);
            return T2;
        }
        if subject.reused { T2 } else { T1 }
    }

    fn salt_list(&mut self, salt: NameId) -> u32 {
        if let Some(list) = self.by_salt.get(&salt) {
            return *list;
        }
        let list = self.unused_lists.pop().unwrap_or_else(|| {
            self.lists.push(EMPTY);
            (self.lists.len() - 1) as u32
        });
        self.by_salt.insert(salt, list);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(index: u32, salt: u32, reused: bool) -> Subject {
        Subject { index, bytes: 10, salt: NameId(salt), key_hash: u64::from(index) + 1000, reused }
    }

    fn drain(policy: &mut Policy, subjects: &[Subject]) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(index) = policy.victim() {
            policy.evicted(subjects.iter().find(|s| s.index == index).expect("known"));
            order.push(index);
        }
        order
    }

    #[test]
    fn lru_evicts_the_oldest_and_a_touch_saves() {
        let subjects: Vec<Subject> = (0..4).map(|i| subject(i, 0, false)).collect();
        let mut policy = Policy::new(PolicyKind::Lru, 1000);
        subjects.iter().for_each(|s| policy.insert(s));
        policy.remove(&subjects[0]);
        policy.insert(&subjects[0]);
        assert_eq!(drain(&mut policy, &subjects), [1, 2, 3, 0]);
    }

    #[test]
    fn isolated_lru_takes_from_the_largest_salt() {
        let subjects: Vec<Subject> = (0..6).map(|i| subject(i, u32::from(i >= 2) + 1, false)).collect();
        let mut policy = Policy::new(PolicyKind::IsolatedLru, 1000);
        subjects.iter().for_each(|s| policy.insert(s));
        // salt 2 has 4 objects, salt 1 has 2: the first two victims come from salt 2.
        let order = drain(&mut policy, &subjects);
        assert_eq!(order[..2], [2, 3]);
        assert_eq!(order.len(), 6);
    }

    #[test]
    fn arc_keeps_what_was_used_twice() {
        let subjects: Vec<Subject> = (0..4).map(|i| subject(i, 0, i < 2)).collect();
        let mut policy = Policy::new(PolicyKind::Arc, 1000);
        subjects.iter().for_each(|s| policy.insert(s));
        assert_eq!(drain(&mut policy, &subjects), [2, 3, 0, 1]);
        // Back from the ghosts of T1: goes to T2 and T1's target grows.
        policy.insert(&subjects[2]);
        assert!(policy.target > 0);
    }

    #[test]
    fn noop_has_no_victims() {
        let mut policy = Policy::new(PolicyKind::Noop, 1000);
        policy.insert(&subject(0, 0, false));
        assert_eq!(policy.victim(), None);
    }

    #[test]
    fn ghost_memory_is_bounded() {
        let mut policy = Policy::new(PolicyKind::Arc, 100);
        for i in 0..10_000 {
            let s = subject(i, 0, false);
            policy.insert(&s);
            policy.evicted(&s);
        }
        assert!(policy.ghosts[0].bytes <= 100);
        assert!(policy.ghosts[0].queue.len() < 200);
    }
}
