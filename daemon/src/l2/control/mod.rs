//! What goes to the tiers and what comes from them.
//!
//! * `attached`: the tiers in use;
//! * `loader`: from the tiers into L1, for lookups;
//! * `store`: from L1 to the tiers, after commits;
//! * `open`: all of it, as configured.
//!
//! This is the part of L2 that knows L1 and events. It knows no requests: the engine says what is wanted.
#![forbid(unsafe_code)]

mod attached;
mod loader;
mod open;
mod store;

pub use attached::{Attached, InFlight, Tiers};
pub use loader::{Landed, Loader, Want};
pub use open::{Opened, TierError, open};
pub use store::{Batch, StoreConfig, StoreController};

use std::sync::Arc;

use crate::l1::{L1, ObjectId, Pin};

/// A lease on an object of L1 that ends when the value goes, unless it is taken.
#[derive(Debug)]
pub struct Leased {
    l1: Arc<L1>,
    object: Option<ObjectId>,
}

impl Leased {
    fn new(l1: &Arc<L1>, object: ObjectId) -> Leased {
        Leased { l1: l1.clone(), object: Some(object) }
    }

    /// The object; whoever takes it ends the lease.
    pub fn take(mut self) -> Option<ObjectId> {
        self.object.take()
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            self.l1.end_leases(std::iter::once(object));
        }
    }
}

/// A pin of the daemon's own that ends when the value goes.
#[derive(Debug)]
struct Pinned {
    l1: Arc<L1>,
    pin: Pin,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.l1.unpin(std::iter::once(&self.pin));
    }
}
