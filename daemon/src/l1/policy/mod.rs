//! Which objects go when memory is wanted.
//!
//! A policy only ever holds objects that may go: an object leaves its list while it is leased or pinned and comes
//! back, as a touch, when the last holder lets go. Picking a victim therefore never has to skip.
//!
//! Every salt has lists of its own, whatever the policy, so that a salt at its quota can give up its own oldest objects. What
//! is global is the order of the lists: each has a rank, which is the age of its oldest object, or for IsolatedLRU its size.
//! A victim is the oldest object of the list that ranks first: O(log salts), and nothing at all changes in the order of the
//! lists while objects other than their oldest come and go.
//!
//! * `lists`: the lists;
//! * `ghosts`: what ARC remembers.
#![forbid(unsafe_code)]

mod ghosts;
mod lists;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::names::NameId;
use ghosts::Ghosts;
use lists::{ListId, Lists};

/// The flag's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used.
    Lru,
    /// Adaptive replacement: recency against frequency, balanced by what was evicted too early.
    Arc,
    /// LRU per salt. Salts with a quota keep what they have while others have anything; among equals the salt that holds most
    /// bytes gives.
    IsolatedLru,
    /// Nothing is ever evicted.
    Noop,
}

/// ARC's halves: seen once, seen again. The other policies use the first alone.
const T1: usize = 0;
const T2: usize = 1;

/// What a policy needs to know of an object.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Record index.
    pub index: u32,
    /// Bytes that its eviction frees.
    pub bytes: u64,
    /// Its salt.
    pub salt: NameId,
    /// Whether that has a quota.
    pub quota: bool,
    /// A hash of its key, for the memory of what was evicted.
    pub key_hash: u64,
    /// Whether it has been used since it was stored.
    pub reused: bool,
}

/// The lists of one salt that are not empty.
#[derive(Clone, Copy, Debug, Default)]
struct Salt {
    lists: [Option<ListId>; 2],
    quota: bool,
}

/// Where a list stands: the first gives the next victim. With IsolatedLRU salts without quota come first.
type Rank = (bool, u64, ListId);

/// The eviction order.
#[derive(Debug)]
pub struct Policy {
    kind: PolicyKind,
    lists: Lists,
    salts: FxHashMap<NameId, Salt>,
    /// The lists that are not empty, for each of ARC's halves.
    order: [BTreeSet<Rank>; 2],
    /// Bytes in each of the halves.
    bytes: [u64; 2],
    /// ARC: ghosts of T1 and T2, and the bytes that T1 should have.
    ghosts: [Ghosts; 2],
    target: u64,
    capacity: u64,
}

impl Policy {
    /// A policy for a pool of `capacity` bytes.
    pub fn new(kind: PolicyKind, capacity: u64) -> Policy {
        Policy {
            kind,
            lists: Lists::default(),
            salts: FxHashMap::default(),
            order: [BTreeSet::new(), BTreeSet::new()],
            bytes: [0; 2],
            ghosts: [Ghosts::default(), Ghosts::default()],
            target: 0,
            capacity,
        }
    }

    /// Makes room for `objects`.
    pub fn expect(&mut self, objects: usize) {
        if self.kind != PolicyKind::Noop {
            self.lists.expect(objects);
        }
    }

    /// Makes an object evictable, as the most recently used one.
    pub fn insert(&mut self, subject: &Subject) {
        let half = match self.kind {
            PolicyKind::Noop => return,
            PolicyKind::Lru | PolicyKind::IsolatedLru => T1,
            PolicyKind::Arc => self.arc_half(subject),
        };
        let salt = self.salts.entry(subject.salt).or_insert(Salt { quota: subject.quota, ..Salt::default() });
        let quota = salt.quota;
        let list = *salt.lists[half].get_or_insert_with(|| self.lists.open());
        let before = self.rank(list, quota);
        self.lists.push(list, subject.index, subject.bytes);
        self.bytes[half] += subject.bytes;
        self.rerank(half, before, list, quota);
    }

    /// Takes an object out of the order (it is held, or gone). Harmless if it is in none.
    pub fn remove(&mut self, subject: &Subject) {
        let Some(list) = self.lists.list_of(subject.index) else { return };
        let Some(salt) = self.salts.get(&subject.salt).copied() else { return };
        let half = if salt.lists[T2] == Some(list) { T2 } else { T1 };
        let before = self.rank(list, salt.quota);
        self.lists.take(subject.index, subject.bytes);
        self.bytes[half] -= subject.bytes;
        self.rerank(half, before, list, salt.quota);
        if self.lists.oldest(list).is_none() {
            self.lists.close(list);
            if salt.lists[T1 + T2 - half].is_none() {
                self.salts.remove(&subject.salt);
            } else if let Some(salt) = self.salts.get_mut(&subject.salt) {
                salt.lists[half] = None;
            }
        }
    }

    /// Says whether a salt has a quota from now on.
    pub fn set_quota(&mut self, salt: NameId, quota: bool) {
        let Some(entry) = self.salts.get_mut(&salt) else { return };
        let Salt { lists, quota: before } = *entry;
        entry.quota = quota;
        for half in [T1, T2] {
            if let Some(list) = lists[half] {
                self.rerank(half, self.rank(list, before), list, quota);
            }
        }
    }

    /// Bytes that evicting everything that may go would free.
    pub fn evictable(&self) -> u64 {
        self.bytes[T1] + self.bytes[T2]
    }

    /// Bytes that evicting everything of a salt that may go would free.
    pub fn evictable_of(&self, salt: NameId) -> u64 {
        let lists = self.salts.get(&salt).map(|salt| salt.lists).unwrap_or_default();
        lists.into_iter().flatten().map(|list| self.lists.bytes(list)).sum()
    }

    /// The object to evict next; the caller evicts it and calls [`Policy::evicted`].
    pub fn victim(&self) -> Option<u32> {
        let first = |half: usize| {
            let (_, _, list) = self.order[half].first()?;
            self.lists.oldest(*list).map(|(_, index)| index)
        };
        match self.kind {
            PolicyKind::Noop => None,
            PolicyKind::Lru | PolicyKind::IsolatedLru => first(T1),
            PolicyKind::Arc if self.bytes[T1] > self.target => first(T1).or_else(|| first(T2)),
            PolicyKind::Arc => first(T2).or_else(|| first(T1)),
        }
    }

    /// The least recently used object of a salt, as [`Policy::victim`].
    pub fn victim_of(&self, salt: NameId) -> Option<u32> {
        let lists = self.salts.get(&salt)?.lists;
        lists.into_iter().flatten().filter_map(|list| self.lists.oldest(list)).min().map(|(_, index)| index)
    }

    /// Takes a victim out and remembers it where the policy learns from its mistakes.
    pub fn evicted(&mut self, subject: &Subject) {
        let list = self.lists.list_of(subject.index);
        let salt = self.salts.get(&subject.salt).copied().unwrap_or_default();
        self.remove(subject);
        if self.kind == PolicyKind::Arc && list.is_some() {
            let half = if salt.lists[T2] == list { T2 } else { T1 };
            self.ghosts[half].insert(subject.key_hash, subject.bytes, self.capacity);
        }
    }

    /// `None` for an empty list.
    fn rank(&self, list: ListId, quota: bool) -> Option<Rank> {
        let (stamp, _) = self.lists.oldest(list)?;
        Some(match self.kind {
            PolicyKind::IsolatedLru => (quota, u64::MAX - self.lists.bytes(list), list),
            _ => (false, stamp, list),
        })
    }

    fn rerank(&mut self, half: usize, before: Option<Rank>, list: ListId, quota: bool) {
        let now = self.rank(list, quota);
        if before == now {
            return;
        }
        if let Some(rank) = before {
            self.order[half].remove(&rank);
        }
        self.order[half].extend(now);
    }

    /// ARC: an object that comes back soon after its eviction says which half was too short.
    fn arc_half(&mut self, subject: &Subject) -> usize {
        // The weights are those of the ghosts as they were when this one was still among them.
        let [once, again] = [self.ghosts[T1].bytes().max(1), self.ghosts[T2].bytes().max(1)];
        if self.ghosts[T1].remove(subject.key_hash).is_some() {
            let step = (again / once).max(1).saturating_mul(subject.bytes);
            self.target = self.target.saturating_add(step).min(self.capacity);
            return T2;
        }
        if self.ghosts[T2].remove(subject.key_hash).is_some() {
            let step = (once / again).max(1).saturating_mul(subject.bytes);
            self.target = self.target.saturating_sub(step);
            return T2;
        }
        if subject.reused { T2 } else { T1 }
    }
}
