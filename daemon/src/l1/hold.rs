//! Reservations and pins: who may touch which bytes, and until when.
#![forbid(unsafe_code)]

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::shm::PinKind;

use super::index::{Index, Key, ReserveError, Reserved};
use super::lock::Lock;
use super::names::NameId;
use super::pool::{SlotMut, SlotRef};
use super::{L1, ObjectId, Owner, Pin, Pinned, SLICE};

/// Objects of one model and salt that are to be reserved or pinned.
pub trait Cells: Iterator<Item = (ChunkHash, u32, u32)> + Clone {}

impl<I: Iterator<Item = (ChunkHash, u32, u32)> + Clone> Cells for I {}

impl<K: Lock<Index>> L1<K> {
    /// Reserves memory for the objects of `cells` (hash, rank, group) that are not there yet: all of them or none.
    ///
    /// With an `owner` the pins are in the shared table and survive the daemon; without, they are the daemon's own.
    ///
    /// # Errors
    /// `Full` when eviction cannot make room, `OverQuota` when the salt's quota does not leave it (nothing is evicted if that
    /// is plain beforehand), `TableFull` when a bound of the table is reached.
    pub fn reserve(
        &self,
        model: &str,
        salt: &str,
        cells: impl Cells,
        layout: u64,
        length: u64,
        owner: Option<Owner>,
    ) -> Result<Vec<Reserved>, ReserveError> {
        let index = &mut *self.index.lock();
        let table = &self.table;
        // Under the index lock: a quota that is changed now is applied after us.
        let limit = self.quotas.limit(salt);
        let model = index.acquire_name(model, table).ok_or(ReserveError::TableFull)?;
        let Some(salt) = index.acquire_name(salt, table) else {
            index.names.release(model, table);
            return Err(ReserveError::TableFull);
        };
        index.set_quota(salt, limit.is_some());
        let keys = cells.map(|(hash, rank, group)| Key { hash, model, salt, rank, group });
        let reserved = self.reserve_keys(index, keys, layout, length, (owner, salt, limit));
        // The objects hold the names now.
        index.names.release(model, table);
        index.names.release(salt, table);
        reserved
    }

    fn reserve_keys(
        &self,
        index: &mut Index,
        keys: impl Iterator<Item = Key> + Clone,
        layout: u64,
        length: u64,
        (owner, salt, limit): (Option<Owner>, NameId, Option<u64>),
    ) -> Result<Vec<Reserved>, ReserveError> {
        let wanted = keys.clone().filter(|key| index.is_wanted(key, layout, length)).count() as u64;
        let bytes = wanted.saturating_mul(index.footprint(length));
        if !index.could_hold(bytes) {
            index.refused_full();
            return Err(ReserveError::Full);
        }
        if let Some(limit) = limit.filter(|_| wanted > 0) {
            index.fit_into_quota((salt, limit), bytes, keys.clone(), (layout, length), &self.table)?;
        }
        let mut reserved: Vec<Reserved> = Vec::with_capacity(wanted as usize);
        for (position, key) in keys.enumerate() {
            match index.reserve(key, layout, length, owner, &self.table) {
                Ok(Some((pin, offset))) => reserved.push(Reserved { position, pin, offset }),
                Ok(None) => {}
                Err(error) => {
                    for object in &reserved {
                        index.abort(&object.pin, &self.table);
                    }
                    return Err(error);
                }
            }
        }
        Ok(reserved)
    }

    /// Makes written objects readable, tail first. Says of each pin, in the order given, whether it was still reserved.
    pub fn commit(&self, pins: &[Pin]) -> Vec<bool> {
        let mut committed = vec![false; pins.len()];
        let mut index = self.index.lock();
        for (pin, done) in pins.iter().zip(&mut committed).rev() {
            *done = index.commit(pin, &self.table);
        }
        self.tell_unheld(&index);
        committed
    }

    /// Makes a loaded object readable with `leases` leases, for those who wait for it; see [`L1::reserve`] without owner. A
    /// `temporary` object goes when the last lease or pin on it ends. `None` if the reservation was lost.
    pub fn commit_leased(&self, pin: &Pin, leases: u32, temporary: bool) -> Option<ObjectId> {
        self.index.lock().commit_leased(pin, leases, temporary, &self.table)
    }

    /// Gives objects up, which live elsewhere from now on: those that are held go with their last holder, unless a worker
    /// stores them again before. Returns how many are gone.
    pub fn give_up(&self, objects: impl Iterator<Item = ObjectId>) -> usize {
        let mut index = self.index.lock();
        objects.filter(|object| index.give_up(*object, &self.table)).count()
    }

    /// Gives up reservations that nobody writes to any more.
    pub fn abort<'a>(&self, pins: impl Iterator<Item = &'a Pin>) {
        let mut index = self.index.lock();
        for pin in pins {
            index.abort(pin, &self.table);
        }
        self.tell_unheld(&index);
    }

    /// Takes the keys of reservations away while their owner may still write.
    pub fn quarantine<'a>(&self, pins: impl Iterator<Item = &'a Pin>) {
        let mut index = self.index.lock();
        for pin in pins {
            index.quarantine(pin, &self.table);
        }
    }

    /// Pins the objects of all `cells` for reading.
    ///
    /// # Errors
    /// How many of them are there, when one is missing or has another layout; then nothing is pinned.
    pub fn pin_read(
        &self,
        model: &str,
        salt: &str,
        cells: impl Cells,
        layout: u64,
        owner: Option<Owner>,
    ) -> Result<Vec<Pinned>, usize> {
        let index = &mut *self.index.lock();
        let (Some(model), Some(salt)) = (index.names.find(model), index.names.find(salt)) else {
            return Err(0);
        };
        let mut pinned: Vec<Pinned> = Vec::new();
        for (hash, rank, group) in cells {
            let Some(object) = self.pin_one(index, Key { hash, model, salt, rank, group }, layout, owner)
            else {
                for done in &pinned {
                    index.unpin(&done.pin, &self.table);
                }
                return Err(pinned.len());
            };
            pinned.push(object);
        }
        Ok(pinned)
    }

    fn pin_one(&self, index: &mut Index, key: Key, layout: u64, owner: Option<Owner>) -> Option<Pinned> {
        let object = index.find(&key, &[layout])?;
        let pin = match owner {
            None => index.pin_internal(object),
            Some(owner) => index.pin_shared(object, PinKind::Read, owner, &self.table)?,
        };
        let entry = index.entry(object)?;
        Some(Pinned { pin, offset: entry.offset, length: entry.length })
    }

    /// Ends pins, tail first.
    pub fn unpin<'a>(&self, pins: impl DoubleEndedIterator<Item = &'a Pin>) {
        let mut index = self.index.lock();
        for pin in pins.rev() {
            index.unpin(pin, &self.table);
        }
        self.tell_unheld(&index);
    }

    /// Marks objects as used now; give them tail first.
    pub fn touch(&self, model: &str, salt: &str, cells: impl Iterator<Item = (ChunkHash, u32, u32)>) {
        let mut cells = cells.peekable();
        while cells.peek().is_some() {
            let index = &mut *self.index.lock();
            let names: Option<(NameId, NameId)> = index.names.find(model).zip(index.names.find(salt));
            let Some((model, salt)) = names else { return };
            for (hash, rank, group) in cells.by_ref().take(SLICE) {
                index.touch(&Key { hash, model, salt, rank, group });
            }
        }
    }

    /// The bytes of an object that the daemon itself has reserved, to fill them. `None` if it is gone.
    pub fn slot_mut(&self, reserved: &Reserved) -> Option<SlotMut<'_>> {
        let length = self.index.lock().entry(reserved.pin.object)?.length;
        self.pool.slot_mut(reserved.offset, length)
    }

    /// The bytes of a pinned object.
    pub fn slot_ref(&self, pinned: &Pinned) -> Option<SlotRef<'_>> {
        self.pool.slot_ref(pinned.offset, pinned.length)
    }
}
