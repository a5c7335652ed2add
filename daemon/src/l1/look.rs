//! What operators see of the objects, and what they may do to single ones.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::object_key::ObjectKey;
use lmcache_proto::shm::ObjectState;

use super::index::{Index, Key, RemovalCause};
use super::lock::Lock;
use super::{L1, ObjectId, SLICE};

/// Records that one listing looks at: a tenth of a second of short locks. A page may be empty and not the last.
const MAX_LOOK: usize = 1 << 20;

/// One object as a listing shows it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Chunk hash.
    pub hash: ChunkHash,
    /// Model.
    pub model: Arc<str>,
    /// Salt.
    pub salt: Arc<str>,
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
    /// Payload bytes.
    pub bytes: u64,
    /// `committed`, `writing` or `quarantined`.
    pub state: &'static str,
    /// Lookups that hold it.
    pub leases: u32,
    /// Transfers that touch its bytes.
    pub pins: u32,
    /// It goes with its last reader.
    pub temporary: bool,
    /// Taken from its key while held: freed by its last holder.
    pub detached: bool,
}

/// Which objects a listing wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this model.
    pub model: Option<String>,
    /// Whose hash begins so, in hex.
    pub hash: Option<String>,
}

/// What came of a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Objects that are gone from their keys.
    pub deleted: u64,
    /// Objects left because somebody holds them.
    pub held: u64,
}

impl<K: Lock<Index>> L1<K> {
    /// About `limit` objects from record `from` on, and where the next page starts. Records move only when objects come and
    /// go: an object that is there all the time is listed once.
    pub fn list(&self, wanted: &Wanted, from: usize, limit: usize) -> (Vec<Seen>, Option<usize>) {
        let (mut seen, mut at) = (Vec::new(), from);
        while seen.len() < limit && at < from.saturating_add(MAX_LOOK) {
            let index = self.index.lock();
            if at >= index.records() {
                return (seen, None);
            }
            let first = at;
            for record in first..first + SLICE {
                at = record + 1;
                let Some(entry) = index.record(record) else { continue };
                let state = match entry.state {
                    ObjectState::Free => continue,
                    ObjectState::Writing => "writing",
                    ObjectState::Committed => "committed",
                    ObjectState::Quarantined => "quarantined",
                };
                // What recovery put into quarantine has no names.
                let model = index.names.name(entry.key.model);
                let hit = |hex: &str| starts_with(&entry.key.hash, hex);
                let fits = wanted.model.as_deref().is_none_or(|wanted| wanted == &*model)
                    && wanted.hash.as_deref().is_none_or(hit);
                if fits {
                    seen.push(Seen {
                        hash: entry.key.hash,
                        model,
                        salt: index.names.name(entry.key.salt),
                        rank: entry.key.rank,
                        group: entry.key.group,
                        bytes: entry.length,
                        state,
                        leases: entry.leases,
                        pins: entry.pins,
                        temporary: entry.temporary,
                        detached: entry.detached,
                    });
                }
                if seen.len() == limit {
                    break;
                }
            }
        }
        (seen, Some(at))
    }

    /// Drops the objects of `keys`; with `force` also those that are held (their bytes stay until they are let go). Keys
    /// that are not there are neither deleted nor held.
    pub fn delete(&self, keys: &[ObjectKey], force: bool) -> Deleted {
        let mut outcome = Deleted::default();
        for slice in keys.chunks(SLICE) {
            let mut index = self.index.lock();
            for key in slice {
                let names = index.names.find(&key.model_name).zip(index.names.find(&key.cache_salt));
                let Some((model, salt)) = names else { continue };
                let key =
                    Key { hash: key.chunk_hash, model, salt, rank: key.kv_rank, group: key.object_group_id };
                match index.remove_key(&key, force, RemovalCause::Cleared, &self.table) {
                    Some(true) => outcome.deleted += 1,
                    Some(false) => outcome.held += 1,
                    None => {}
                }
            }
        }
        outcome
    }

    /// Keeps leased objects after their last reader: they were loaded because somebody asked for them to stay.
    pub fn retain(&self, objects: impl Iterator<Item = ObjectId>) {
        let mut index = self.index.lock();
        for object in objects {
            index.retain(object);
        }
    }

    /// For each object whether its key still leads to it.
    pub fn attached(&self, objects: impl Iterator<Item = ObjectId>) -> Vec<bool> {
        let index = self.index.lock();
        objects.map(|object| index.entry(object).is_some_and(|entry| !entry.detached)).collect()
    }

    /// Waits until nobody holds anything, at most until `until`. Says whether that came.
    pub fn wait_unheld(&self, until: Instant) -> bool {
        self.index.wait_while(until, |index| index.leased_now > 0 || index.pins_now > 0)
    }
}

/// Whether a hash begins with these hex digits.
fn starts_with(hash: &ChunkHash, hex: &str) -> bool {
    hex.len() <= 2 * hash.len()
        && hex.bytes().enumerate().all(|(at, digit)| {
            let nibble = if at % 2 == 0 { hash[at / 2] >> 4 } else { hash[at / 2] & 15 };
            (digit as char).to_digit(16) == Some(u32::from(nibble))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_found_by_how_it_begins() {
        let mut hash = [0; 32];
        (hash[0], hash[1]) = (0xab, 0xc4);
        for (hex, fits) in [("", true), ("a", true), ("ABc", true), ("abd", false), ("xy", false)] {
            assert_eq!(starts_with(&hash, hex), fits, "{hex}");
        }
        assert!(!starts_with(&hash, &"0".repeat(65)));
    }
}
