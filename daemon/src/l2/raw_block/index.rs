//! Which slot holds what, in memory. The device's index is written from here, block by block.
//!
//! A slot goes Free → Taken (its bytes are being written) → Held → Leaving (its record is being cleared, or somebody still
//! reads it) → Free. It is given away again only when its record is gone from the device and nobody reads it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::layout::{Layout, PER_BLOCK, RECORD, Record};

#[derive(Debug, Default)]
struct Slot {
    record: Option<Record>,
    readers: u32,
    /// The record is gone from the device, the slot waits for its readers.
    leaving: bool,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: BTreeMap<String, u32>,
    sequence: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    layout: Layout,
    state: Mutex<State>,
}

/// A slot that is being read; it stays what it is until this is dropped.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    index: &'a Index,
    pub(super) slot: u32,
    pub(super) record: Record,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.index.state.lock();
        let slot = &mut state.slots[self.slot as usize];
        slot.readers -= 1;
        if slot.leaving && slot.readers == 0 {
            slot.leaving = false;
            state.free.push(self.slot);
        }
    }
}

impl Index {
    /// From the device's index: its records in the order of the slots. Also the slots whose records have to be cleared,
    /// because a newer one has the same key.
    pub(super) fn new(layout: Layout, records: impl Iterator<Item = Option<Record>>) -> (Index, Vec<u32>) {
        let mut slots: Vec<Slot> =
            records.map(|record| Slot { record, ..Slot::default() }).take(layout.slots as usize).collect();
        slots.resize_with(layout.slots as usize, Slot::default);
        let mut keys: BTreeMap<String, u32> = BTreeMap::new();
        // In the order of the slots is the order of a set.
        let mut stale = BTreeSet::new();
        let mut sequence = 0;
        for slot in 0..layout.slots {
            let Some(record) = slots[slot as usize].record.clone() else { continue };
            sequence = sequence.max(record.sequence);
            match keys.get(&record.key).copied() {
                Some(other) => {
                    let older =
                        slots[other as usize].record.as_ref().is_none_or(|o| o.sequence < record.sequence);
                    let (newer, older) = if older { (slot, other) } else { (other, slot) };
                    keys.insert(record.key, newer);
                    slots[older as usize].record = None;
                    stale.insert(older);
                }
                None => {
                    keys.insert(record.key, slot);
                }
            }
        }
        // From the front: a device that is not full stays compact.
        let free: Vec<u32> = (0..layout.slots)
            .rev()
            .filter(|slot| slots[*slot as usize].record.is_none() && !stale.contains(slot))
            .collect();
        let state = State { slots, free, keys, sequence };
        (Index { layout, state: Mutex::new(state) }, stale.into_iter().collect())
    }

    /// Bytes of a key's object.
    pub(super) fn length(&self, key: &str) -> Option<u64> {
        let state = self.state.lock();
        let slot = *state.keys.get(key)?;
        state.slots[slot as usize].record.as_ref().map(|record| record.length)
    }

    /// Starts to read a key's object.
    pub(super) fn read(&self, key: &str) -> Option<Reading<'_>> {
        let mut state = self.state.lock();
        let number = *state.keys.get(key)?;
        let slot = &mut state.slots[number as usize];
        let record = slot.record.clone()?;
        slot.readers += 1;
        Some(Reading { index: self, slot: number, record })
    }

    /// Takes a free slot.
    pub(super) fn take(&self) -> Option<u32> {
        self.state.lock().free.pop()
    }

    /// Gives a taken slot back that was not used.
    pub(super) fn put_back(&self, slot: u32) {
        self.state.lock().free.push(slot);
    }

    /// The bytes of a taken slot are written: enters its record, which the caller then writes to the device.
    pub(super) fn enter(&self, slot: u32, record: Record) {
        let mut state = self.state.lock();
        // Cannot overflow: no record counts that is above `LAST_SEQUENCE`.
        state.sequence += 1;
        let sequence = state.sequence;
        state.slots[slot as usize].record = Some(Record { sequence, ..record });
    }

    /// Takes a record back that could not be written.
    pub(super) fn forget(&self, slot: u32) {
        self.state.lock().slots[slot as usize].record = None;
    }

    /// The record is on the device: the key is this slot's now. The slot that had it before is the caller's to clear.
    pub(super) fn publish(&self, slot: u32) -> Option<u32> {
        let mut state = self.state.lock();
        let record = state.slots[slot as usize].record.as_ref()?;
        let (key, sequence) = (record.key.clone(), record.sequence);
        let before = state.keys.get(&key).copied();
        // Two stores of one key at a time: the newer record counts after a restart, so it does now.
        if let Some(other) = before
            && state.slots[other as usize].record.as_ref().is_some_and(|o| o.sequence > sequence)
        {
            state.slots[slot as usize].record = None;
            return Some(slot);
        }
        state.keys.insert(key, slot);
        let before = before?;
        state.slots[before as usize].record = None;
        Some(before)
    }

    /// Drops a key; its slot is the caller's to clear.
    pub(super) fn remove(&self, key: &str) -> Option<u32> {
        let mut state = self.state.lock();
        let slot = state.keys.remove(key)?;
        state.slots[slot as usize].record = None;
        Some(slot)
    }

    /// A slot's record is gone from the device: it is free once nobody reads it.
    pub(super) fn cleared(&self, slot: u32) {
        let mut state = self.state.lock();
        if state.slots[slot as usize].readers > 0 {
            state.slots[slot as usize].leaving = true;
        } else {
            state.free.push(slot);
        }
    }

    /// A block of the device's index, as it has to be now.
    pub(super) fn block(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; PER_BLOCK * RECORD];
        let state = self.state.lock();
        for (place, out) in bytes.chunks_exact_mut(RECORD).enumerate() {
            let slot = block * PER_BLOCK as u32 + place as u32;
            let record = state.slots.get(slot as usize).and_then(|slot| slot.record.as_ref());
            self.layout.encode(slot, record, out);
        }
        bytes
    }

    /// Up to `limit` keys from `from` on, and the key behind them.
    pub(super) fn list(&self, from: &str, limit: usize) -> (Vec<String>, Option<String>) {
        let state = self.state.lock();
        let mut keys: Vec<String> = state
            .keys
            .range(from.to_owned()..)
            .take(limit.saturating_add(1))
            .map(|(key, _)| key.clone())
            .collect();
        let next = if keys.len() > limit { keys.pop() } else { None };
        (keys, next)
    }

    /// Objects.
    pub(super) fn objects(&self) -> u64 {
        self.state.lock().keys.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::checksum::Checksum;
    use super::*;

    fn record(key: &str, sequence: u64) -> Record {
        Record { sequence, length: 1, sum: Checksum(0), key: key.into() }
    }

    fn index(records: Vec<Option<Record>>) -> (Index, Vec<u32>) {
        let layout = Layout::fit(4 * (4096 + 512) + 2 * 4096, 4096, 1).expect("fits");
        Index::new(layout, records.into_iter())
    }

    #[test]
    fn a_slot_is_given_away_when_cleared_and_unread() {
        let (index, _) = index(vec![Some(record("a", 1))]);
        let reading = index.read("a").expect("there");
        let slot = index.remove("a").expect("there");
        assert!(index.read("a").is_none());
        let others: Vec<u32> = std::iter::from_fn(|| index.take()).collect();
        assert!(!others.contains(&slot), "not cleared yet");
        index.cleared(slot);
        assert_eq!(index.take(), None, "still read");
        drop(reading);
        assert_eq!(index.take(), Some(slot));
    }

    #[test]
    fn of_two_records_with_one_key_the_newer_counts() {
        let (index, stale) =
            index(vec![Some(record("a", 2)), Some(record("a", 5)), None, Some(record("a", 3))]);
        assert_eq!(index.read("a").expect("there").slot, 1);
        assert_eq!(stale, [0, 3]);
        let free: Vec<u32> = std::iter::from_fn(|| index.take()).collect();
        assert!(!free.contains(&0) && !free.contains(&3), "their records have to be cleared first");
        let slot = free[0];
        index.enter(slot, record("b", 0));
        assert_eq!(index.publish(slot), None);
        assert_eq!(index.read("b").expect("there").record.sequence, 6, "above all that were found");
    }

    #[test]
    fn a_device_full_of_one_key_opens_in_one_pass() {
        // With a search through the stale slots for each slot this would run for minutes.
        let slots = 1 << 17;
        let layout = Layout { slot_bytes: 4096, slots, identity: 1 };
        let (index, stale) = Index::new(layout, (0..slots).map(|slot| Some(record("a", slot.into()))));
        assert_eq!(stale, (0..slots - 1).collect::<Vec<_>>());
        assert_eq!((index.objects(), index.take()), (1, None));
    }

    #[test]
    fn a_late_store_does_not_win_over_a_newer_one() {
        let (index, _) = index(vec![]);
        let (first, second) = (index.take().expect("free"), index.take().expect("free"));
        index.enter(first, record("a", 0));
        index.enter(second, record("a", 0));
        assert_eq!(index.publish(second), None);
        assert_eq!(index.publish(first), Some(first));
        assert_eq!(index.read("a").expect("there").slot, second);
    }
}
