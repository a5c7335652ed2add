//! Takes over what an earlier daemon left in the pool: the table says what is where, and who may still touch it.
//!
//! A record is believed only if it is intact (its seal), lies on pages inside the pool, overlaps no other, and its names
//! are there. What was being written when the daemon died is not complete and is dropped; if a worker may still be
//! writing it, its bytes are kept from everybody until that worker is gone.
#![forbid(unsafe_code)]

mod scan;

use lmcache_proto::shm::{ObjectState, PAGE, PinKind};
use rustc_hash::{FxHashMap, FxHashSet};

use super::index::{Entry, Index, Key};
use super::names::NameId;
use super::pool::{ObjectFields, PinFields, Pool, Table};
use super::{ObjectId, Owner, Pin};
use crate::failpoint;
use scan::Found;

/// What was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Readable objects taken over.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records that were dropped: unfinished, or not what they should be.
    pub dropped: u64,
    /// Of these, objects whose bytes were not those that were committed.
    pub damaged: u64,
    /// Pins that processes of the earlier daemon's time may still use.
    pub pins: Vec<(Owner, Pin)>,
}

impl Index {
    /// Rebuilds the index from the table; with `payloads`, objects whose bytes have changed are dropped. What is in `writing`
    /// stays reserved: its writers are known. Must run before the allocator is given any memory.
    pub(super) fn recover(
        &mut self,
        table: &Table,
        pool_bytes: u64,
        payloads: Option<&Pool>,
        writing: Option<&FxHashSet<ObjectId>>,
    ) -> Recovered {
        let recovered = Recovered::default();
        for id in 1..table.names_used() as u32 {
            if let Some(name) = table.read_name(id)
                && !self.names.restore(NameId(id), &name)
            {
                table.clear_name(id);
            }
        }
        failpoint::hit("l1.recover.names");
        let pins = read_pins(table, pool_bytes);
        failpoint::hit("l1.recover.pins");
        let mut pinned: FxHashMap<(u32, u32), Vec<(u32, PinFields)>> = FxHashMap::default();
        for (record, fields) in pins {
            pinned.entry((fields.object, fields.generation)).or_default().push((record, fields));
        }
        let mut takeover = Takeover { table, pool_bytes, writing, pinned, held: Vec::new(), recovered };
        // What is read waits for nothing but its turn: reading goes on meanwhile.
        std::thread::scope(|scope| {
            let (read, batches) = std::sync::mpsc::sync_channel(1);
            let used = table.objects_used() as u32;
            scope.spawn(move || scan::scan_all(table, payloads, used, &read));
            for scan::Batch { first, found } in batches {
                if first == 0 {
                    self.expect(guess(&found, used, pool_bytes));
                }
                for (index, found) in (first..).zip(found.into_iter().flatten()) {
                    takeover.record(self, index, found);
                }
            }
        });
        let Takeover { pinned, held, mut recovered, .. } = takeover;
        // Pins of records beyond the used ones cannot be: the mark is written first.
        pinned.into_values().flatten().for_each(|(record, _)| table.clear_pin(record));
        self.restore_pins(table.pins_used() as u32, held.iter().map(|(record, ..)| *record));
        recovered.pins = held
            .into_iter()
            .map(|(record, owner, object)| (owner, Pin { object, record: Some(record) }))
            .collect();
        self.totals.damaged += recovered.damaged;
        failpoint::hit("l1.recover.objects");
        self.names.sweep(table);
        failpoint::hit("l1.recover.swept");
        recovered
    }

    /// What becomes of a record: a readable object, one whose writer is known, a range in quarantine, or nothing.
    fn judge(
        &mut self,
        state: ObjectState,
        fields: &ObjectFields,
        (pinned, known): (bool, bool),
        pool_bytes: u64,
    ) -> Option<(Key, ObjectState, ObjectFields)> {
        // With its last page: what is freed goes to others, and behind the pool there is nothing to give.
        let inside = fields.offset.checked_add(fields.length).is_some_and(|end| end <= pool_bytes)
            && fields.offset + self.allocator.footprint(fields.length) <= pool_bytes;
        if !inside || fields.length == 0 || !fields.offset.is_multiple_of(PAGE) {
            return None;
        }
        let key = Key {
            hash: fields.chunk_hash,
            model: NameId(fields.model),
            salt: NameId(fields.salt),
            rank: fields.kv_rank,
            group: fields.group,
        };
        let reserved = state == ObjectState::Writing && pinned && known;
        let whole = (state == ObjectState::Committed || reserved)
            && self.names.exists(key.model)
            && self.names.exists(key.salt);
        if self.adopt(whole.then_some(key), (fields.offset, fields.length), pinned)? {
            return Some((key, state, *fields));
        }
        // Nobody's any more, but somebody may be writing there.
        let nobody = Key { hash: [0; 32], model: NameId::EMPTY, salt: NameId::EMPTY, rank: 0, group: 0 };
        Some((nobody, ObjectState::Quarantined, *fields))
    }
}

/// Records becoming objects again.
struct Takeover<'t> {
    table: &'t Table,
    pool_bytes: u64,
    writing: Option<&'t FxHashSet<ObjectId>>,
    /// Pins of records that have not been looked at yet, by record and generation.
    pinned: FxHashMap<(u32, u32), Vec<(u32, PinFields)>>,
    /// Those that hold.
    held: Vec<(u32, Owner, ObjectId)>,
    recovered: Recovered,
}

impl Takeover<'_> {
    fn record(&mut self, into: &mut Index, index: u32, found: Found) {
        let Found { generation, used, record, damaged } = found;
        failpoint::hit("l1.recover.record");
        let pins = if self.pinned.is_empty() { None } else { self.pinned.remove(&(index, generation)) };
        let pins = pins.unwrap_or_default();
        self.recovered.damaged += u64::from(damaged);
        let entry = record.and_then(|(state, fields)| {
            // Damaged bytes are nobody's any more, but somebody may be touching them.
            let state = if damaged { ObjectState::Writing } else { state };
            let known = !damaged
                && self.writing.is_some_and(|writing| writing.contains(&ObjectId { index, generation }));
            into.judge(state, &fields, (!pins.is_empty(), known), self.pool_bytes)
        });
        let Some((key, state, fields)) = entry else {
            if used {
                self.recovered.dropped += 1;
                self.table.set_object_state(index, ObjectState::Free);
                failpoint::hit("l1.recover.dropped");
            }
            into.push_free(generation.wrapping_add(1).max(1));
            // Pins of a record that is gone say nothing any more: no bytes are theirs.
            pins.iter().for_each(|(record, _)| self.table.clear_pin(*record));
            return;
        };
        if state == ObjectState::Committed {
            self.recovered.objects += 1;
            self.recovered.bytes += fields.length;
        } else if state == ObjectState::Quarantined {
            self.table.set_object_state(index, ObjectState::Quarantined);
            failpoint::hit("l1.recover.quarantined");
        }
        into.push_recovered(Entry {
            key,
            state,
            generation,
            offset: fields.offset,
            length: fields.length,
            layout: fields.layout,
            leases: 0,
            pins: pins.len() as u32,
            reused: false,
            temporary: false,
            detached: state == ObjectState::Quarantined,
            nobodys: state == ObjectState::Quarantined,
        });
        let object = ObjectId { index, generation };
        self.held.extend(pins.into_iter().map(|(record, fields)| (record, fields.owner, object)));
    }
}

/// How many objects there will be, by those of the first batch: no more than fit into the pool, whatever was used at once.
fn guess(first: &[Vec<Found>], used: u32, pool_bytes: u64) -> usize {
    let (mut objects, mut bytes) = (0u64, 0u64);
    for (_, fields) in first.iter().flatten().filter_map(|found| found.record) {
        objects += 1;
        bytes = bytes.saturating_add(fields.length.max(PAGE));
    }
    let by_use = objects * u64::from(used.div_ceil(scan::BATCH));
    let by_size = u128::from(objects) * u128::from(pool_bytes) / u128::from(bytes.max(1));
    by_use.min(u64::try_from(by_size).unwrap_or(u64::MAX)) as usize
}

fn read_pins(table: &Table, pool_bytes: u64) -> Vec<(u32, PinFields)> {
    let mut pins = Vec::new();
    for record in 0..table.pins_used() as u32 {
        let Some(fields) = table.read_pin(record) else { continue };
        let inside = fields.offset.checked_add(fields.length).is_some_and(|end| end <= pool_bytes);
        if inside && matches!(fields.kind, PinKind::Read | PinKind::Write) {
            pins.push((record, fields));
        } else {
            table.clear_pin(record);
        }
    }
    pins
}

#[cfg(test)]
mod tests;
