//! The book itself: which objects, in which order, and who leaves when a mark is passed.
//!
//! With one order for all, the least recently used leave when the store is above its mark. With an order for each salt
//! (`IsolatedLRU`), first each salt that is above the same share of its limit gives up its own oldest; if the store itself
//! is above its mark, the salts without a limit give first, each time the one that holds most, then the others.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::object_key::ObjectKey;
use lru::LruCache;

/// Names in use beyond which unused ones are dropped.
const NAMES: usize = 1024;

/// A key with its names shared: a third of the memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Slim {
    hash: ChunkHash,
    rank: u32,
    group: u32,
    model: Arc<str>,
    salt: Arc<str>,
}

impl Slim {
    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey {
            chunk_hash: self.hash,
            model_name: self.model.to_string(),
            kv_rank: self.rank,
            object_group_id: self.group,
            cache_salt: self.salt.to_string(),
        }
    }
}

/// When to evict, and how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// Bytes that the store may hold.
    pub(super) capacity: Option<u64>,
    /// Share of a limit from which on objects leave.
    pub(super) watermark: f64,
    /// Share of the bytes that leaves then, or more if that does not take it below the mark.
    pub(super) ratio: f64,
}

impl Marks {
    /// Bytes that must leave of `bytes` under `limit`; `None`: it is below its mark.
    fn surplus(&self, bytes: u64, limit: u64) -> Option<u64> {
        let mark = (limit as f64 * self.watermark) as u64;
        if bytes == 0 || bytes < mark {
            return None;
        }
        Some(if limit == 0 { bytes } else { ((bytes as f64 * self.ratio) as u64).max(bytes - mark + 1) })
    }
}

/// Who leaves.
#[derive(Debug, Default)]
pub(super) struct Victims {
    pub(super) keys: Vec<ObjectKey>,
    /// A salt of which everything leaves, because its limit is 0.
    pub(super) dropped: Option<Arc<str>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Book {
    /// Bytes of each object, least recently used last: one order for all, under the empty name, or one for each salt.
    orders: HashMap<Arc<str>, LruCache<Slim, u64>>,
    isolated: bool,
    empty: Arc<str>,
    bytes: u64,
    bytes_by_salt: HashMap<Arc<str>, u64>,
    /// Bytes being written.
    pub(super) reserved: u64,
    names: HashSet<Arc<str>>,
    /// Deleted while the first count runs: its listing may still show them. `None` afterwards.
    deleted: Option<HashSet<Slim>>,
}

impl Book {
    /// Nothing counted yet.
    pub(super) fn new(isolated: bool) -> Book {
        Book {
            orders: HashMap::new(),
            isolated,
            empty: "".into(),
            bytes: 0,
            bytes_by_salt: HashMap::new(),
            reserved: 0,
            names: HashSet::new(),
            deleted: Some(HashSet::new()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn objects(&self) -> u64 {
        self.orders.values().map(|order| order.len() as u64).sum()
    }

    pub(super) fn bytes_of_salt(&self, salt: &str) -> u64 {
        self.bytes_by_salt.get(salt).copied().unwrap_or(0)
    }

    pub(super) fn is_counted(&self) -> bool {
        self.deleted.is_none()
    }

    pub(super) fn count_is_done(&mut self) {
        self.deleted = None;
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= NAMES {
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }

    pub(super) fn slim(&mut self, key: &ObjectKey) -> Slim {
        Slim {
            hash: key.chunk_hash,
            rank: key.kv_rank,
            group: key.object_group_id,
            model: self.name(&key.model_name),
            salt: self.name(&key.cache_salt),
        }
    }

    fn order_name(&self, slim: &Slim) -> Arc<str> {
        if self.isolated { slim.salt.clone() } else { self.empty.clone() }
    }

    fn order(&mut self, slim: &Slim) -> &mut LruCache<Slim, u64> {
        let name = self.order_name(slim);
        self.orders.entry(name).or_insert_with(LruCache::unbounded)
    }

    fn credit(&mut self, slim: &Slim, bytes: u64) {
        self.bytes += bytes;
        *self.bytes_by_salt.entry(slim.salt.clone()).or_default() += bytes;
    }

    fn debit(&mut self, slim: &Slim, bytes: u64) {
        self.bytes -= bytes;
        if let Some(sum) = self.bytes_by_salt.get_mut(&slim.salt) {
            *sum -= bytes;
            if *sum == 0 {
                self.bytes_by_salt.remove(&slim.salt);
            }
        }
    }

    pub(super) fn stored(&mut self, key: &ObjectKey, bytes: u64) {
        let slim = self.slim(key);
        if let Some(deleted) = &mut self.deleted {
            deleted.remove(&slim);
        }
        if let Some(before) = self.order(&slim).put(slim.clone(), bytes) {
            self.debit(&slim, before);
        }
        self.credit(&slim, bytes);
    }

    /// An object was read.
    pub(super) fn used(&mut self, slim: &Slim) {
        let name = self.order_name(slim);
        if let Some(order) = self.orders.get_mut(&name) {
            order.promote(slim);
        }
    }

    pub(super) fn gone(&mut self, key: &ObjectKey) {
        let slim = self.slim(key);
        let name = self.order_name(&slim);
        if let Some(order) = self.orders.get_mut(&name) {
            let before = order.pop(&slim);
            if order.is_empty() {
                self.orders.remove(&name);
            }
            if let Some(before) = before {
                self.debit(&slim, before);
            }
        }
        if let Some(deleted) = &mut self.deleted {
            deleted.insert(slim);
        }
    }

    /// An object that was there at the start. It was used before all that is known already.
    pub(super) fn counted(&mut self, key: &ObjectKey, bytes: u64) {
        let slim = self.slim(key);
        if self.deleted.as_ref().is_some_and(|deleted| deleted.contains(&slim)) {
            return;
        }
        let order = self.order(&slim);
        if order.contains(&slim) {
            return;
        }
        order.put(slim.clone(), bytes);
        order.demote(&slim);
        self.credit(&slim, bytes);
    }

    /// Whether anything has to leave: of the store as a whole, or of `salt`, or of any salt. Never before all is counted.
    pub(super) fn is_above(
        &self,
        marks: &Marks,
        salt: Option<&str>,
        limit: impl Fn(&str) -> Option<u64>,
    ) -> bool {
        if self.deleted.is_some() {
            return false;
        }
        let salt_is_above =
            |salt: &str, bytes: u64| limit(salt).is_some_and(|limit| marks.surplus(bytes, limit).is_some());
        let one_is_above = || match salt {
            Some(salt) => salt_is_above(salt, self.bytes_of_salt(salt)),
            None => self.bytes_by_salt.iter().any(|(salt, bytes)| salt_is_above(salt, *bytes)),
        };
        self.surplus(marks).is_some() || self.isolated && one_is_above()
    }

    fn surplus(&self, marks: &Marks) -> Option<u64> {
        marks.surplus(self.bytes, marks.capacity?)
    }

    /// Who leaves in one round, at most `most` objects.
    pub(super) fn victims(&self, marks: &Marks, most: usize, limit: impl Fn(&str) -> Option<u64>) -> Victims {
        if !self.isolated {
            let (name, want) = (&self.empty, self.surplus(marks).unwrap_or(0));
            return Victims { keys: self.oldest([(name, want)].into_iter(), most), dropped: None };
        }
        let mut dropped = None;
        let mut wanted = Vec::new();
        for (salt, bytes) in &self.bytes_by_salt {
            let Some(limit) = limit(salt) else { continue };
            let Some(want) = marks.surplus(*bytes, limit) else { continue };
            if limit == 0 {
                dropped = Some(salt.clone());
            }
            wanted.push((salt, want));
        }
        let keys = if wanted.is_empty() {
            self.levelled(self.surplus(marks).unwrap_or(0), most, |salt| limit(salt).is_some())
        } else {
            self.oldest(wanted.into_iter(), most)
        };
        Victims { keys, dropped }
    }

    /// The oldest of each order, as many bytes as are wanted of it.
    fn oldest<'a>(&self, wanted: impl Iterator<Item = (&'a Arc<str>, u64)>, most: usize) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        for (name, mut want) in wanted {
            let Some(order) = self.orders.get(name) else { continue };
            for (slim, bytes) in order.iter().rev() {
                if want == 0 || keys.len() >= most {
                    break;
                }
                // At least 1, so that empty objects do not go on for ever.
                want = want.saturating_sub((*bytes).max(1));
                keys.push(slim.key());
            }
        }
        keys
    }

    /// `want` bytes, one object at a time from the salt that holds most then; salts without limit first.
    fn levelled(&self, mut want: u64, most: usize, has_limit: impl Fn(&str) -> bool) -> Vec<ObjectKey> {
        let mut orders: Vec<_> = self.orders.values().map(|order| order.iter().rev()).collect();
        let mut heap: BinaryHeap<(Reverse<bool>, u64, usize)> = self
            .orders
            .keys()
            .enumerate()
            .map(|(at, salt)| (Reverse(has_limit(salt)), self.bytes_of_salt(salt), at))
            .collect();
        let mut keys = Vec::new();
        while want > 0 && keys.len() < most {
            let Some((limited, left, at)) = heap.pop() else { break };
            let Some((slim, bytes)) = orders[at].next() else { continue };
            want = want.saturating_sub((*bytes).max(1));
            keys.push(slim.key());
            heap.push((limited, left.saturating_sub(*bytes), at));
        }
        keys
    }
}

#[cfg(test)]
impl Book {
    /// The order of one name, most recently used first.
    pub(super) fn order_of(&self, name: &str) -> Vec<ObjectKey> {
        self.orders
            .get(name)
            .map(|order| order.iter().map(|(slim, _)| slim.key()).collect())
            .unwrap_or_default()
    }
}
