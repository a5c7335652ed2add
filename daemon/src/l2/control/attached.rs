//! The tiers in use: added, drained and removed while requests go on.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::super::adapter::L2Adapter;
use super::super::tier::Tier;
use crate::events::AdapterId;

/// A tier in use, and what is under way with it.
#[derive(Debug)]
pub struct Attached {
    /// As events and metrics name it.
    pub id: AdapterId,
    /// The store behind its deadlines and its breaker.
    pub tier: Arc<Tier>,
    draining: AtomicBool,
    stores: AtomicU64,
    loads: AtomicU64,
    load_bytes: AtomicU64,
    tasks: AtomicU64,
    /// Woken when a task ends.
    ended: Notify,
}

/// What is under way with a tier; numbers for gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Store tasks.
    pub stores: u64,
    /// Load tasks.
    pub loads: u64,
    /// Bytes of L1 that loads are filling.
    pub load_bytes: u64,
}

/// One more task while it lives.
#[derive(Debug)]
pub struct Task {
    attached: Arc<Attached>,
    load_bytes: Option<u64>,
    /// Unique for the tier.
    pub number: u64,
}

impl Attached {
    /// Whether new work may be given to it: not draining, and its breaker lets calls through.
    pub fn usable(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && !self.tier.breaker().is_shut()
    }

    /// Whether it gets no new work.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What is under way.
    pub fn in_flight(&self) -> InFlight {
        InFlight {
            stores: self.stores.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
            load_bytes: self.load_bytes.load(Ordering::Relaxed),
        }
    }

    /// Waits until nothing is under way, at most `limit`. Returns what still is. Only once it is draining is that for good.
    pub async fn quiet(&self, limit: Duration) -> InFlight {
        let all_ended = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                // Before the look: what ends from here on wakes us.
                ended.as_mut().enable();
                if self.in_flight() == InFlight::default() {
                    return;
                }
                ended.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_ended).await;
        self.in_flight()
    }

    /// Begins a store task.
    pub fn begin_store(self: &Arc<Attached>) -> Task {
        self.stores.fetch_add(1, Ordering::Relaxed);
        self.begin(None)
    }

    /// Begins a load task of `bytes`.
    pub fn begin_load(self: &Arc<Attached>, bytes: u64) -> Task {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.load_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.begin(Some(bytes))
    }

    fn begin(self: &Arc<Attached>, load_bytes: Option<u64>) -> Task {
        Task { attached: self.clone(), load_bytes, number: self.tasks.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        match self.load_bytes {
            None => self.attached.stores.fetch_sub(1, Ordering::Relaxed),
            Some(bytes) => {
                self.attached.load_bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.attached.loads.fetch_sub(1, Ordering::Relaxed)
            }
        };
        self.attached.ended.notify_waiters();
    }
}

/// The tiers, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Tiers {
    list: RwLock<Arc<[Arc<Attached>]>>,
    next: AtomicU32,
}

impl Tiers {
    /// The tiers now. A snapshot: what is under way with a tier that is removed meanwhile ends by itself.
    pub fn all(&self) -> Arc<[Arc<Attached>]> {
        self.list.read().clone()
    }

    /// Those that new work may be given to.
    pub fn usable(&self) -> Vec<Arc<Attached>> {
        self.all().iter().filter(|attached| attached.usable()).cloned().collect()
    }

    /// Whether a lookup could find anything in them.
    pub fn any_usable(&self) -> bool {
        self.list.read().iter().any(|attached| attached.usable())
    }

    /// Adds a tier after the others.
    pub fn add(&self, tier: Arc<Tier>) -> Arc<Attached> {
        let attached = Arc::new(Attached {
            id: AdapterId { index: self.next.fetch_add(1, Ordering::Relaxed), name: tier.kind().into() },
            tier,
            draining: AtomicBool::new(false),
            stores: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            load_bytes: AtomicU64::new(0),
            tasks: AtomicU64::new(1),
            ended: Notify::new(),
        });
        let mut list = self.list.write();
        *list = list.iter().cloned().chain([attached.clone()]).collect();
        attached
    }

    /// The tier of that index.
    pub fn get(&self, index: u32) -> Option<Arc<Attached>> {
        self.list.read().iter().find(|attached| attached.id.index == index).cloned()
    }

    /// Gives a tier no new work. `false` if there is none of that index.
    pub fn drain(&self, index: u32) -> bool {
        let all = self.all();
        let found = all.iter().find(|attached| attached.id.index == index);
        found.inspect(|attached| attached.draining.store(true, Ordering::Relaxed)).is_some()
    }

    /// Takes a tier out; what is under way with it ends by itself.
    pub fn remove(&self, index: u32) -> Option<Arc<Attached>> {
        let mut list = self.list.write();
        let removed = list.iter().find(|attached| attached.id.index == index).cloned()?;
        removed.draining.store(true, Ordering::Relaxed);
        *list = list.iter().filter(|attached| attached.id.index != index).cloned().collect();
        Some(removed)
    }

    /// For `/status`.
    pub fn status(&self) -> Vec<Value> {
        let row = |attached: &Arc<Attached>| {
            let in_flight = attached.in_flight();
            let mut row = attached.tier.status();
            row["adapter_index"] = json!(attached.id.index);
            row["state"] =
                json!(if attached.draining.load(Ordering::Relaxed) { "draining" } else { "active" });
            row["inflight_stores"] = json!(in_flight.stores);
            row["inflight_loads"] = json!(in_flight.loads);
            row["inflight_load_bytes"] = json!(in_flight.load_bytes);
            row
        };
        self.all().iter().map(row).collect()
    }
}
