//! Devices that may hold anything.

use std::collections::BTreeSet;

use lmcache_proto::fuzzing::Input;

use super::super::checksum::Checksum;
use super::index::Index;
use super::layout::{BLOCK, LONGEST_KEY, Layout, PER_BLOCK, RECORD, Record};

/// Slots of the device whose index is read.
const SLOTS: u32 = 24;

/// A superblock of the input's, then an index.
pub(in crate::l2) fn device(input: &mut Input<'_>) {
    superblock(input);
    let layout = Layout { slot_bytes: BLOCK, slots: SLOTS, identity: u64::from(input.byte()) };
    let records: Vec<Option<Record>> = (0..SLOTS).map(|slot| record(&layout, slot, input)).collect();
    let (index, stale) = Index::new(layout, records.iter().cloned());
    let keys: BTreeSet<&str> = records.iter().flatten().map(|record| record.key.as_str()).collect();
    assert_eq!(index.objects(), keys.len() as u64, "one object for each key");
    assert_eq!(stale.len(), records.iter().flatten().count() - keys.len());
    for key in &keys {
        let newest =
            records.iter().flatten().filter(|record| record.key == **key).map(|record| record.sequence).max();
        let reading = index.read(key).expect("it has a slot");
        assert_eq!(Some(reading.record.sequence), newest, "the newest record counts");
    }
    use_it(&layout, &index, stale, input);
}

/// Block 0 as it came, and with a checksum that fits.
fn superblock(input: &mut Input<'_>) {
    let mut block = vec![0; BLOCK as usize];
    let shape =
        Layout { slot_bytes: input.number(8), slots: input.number(4) as u32, identity: input.number(8) };
    if input.byte() & 1 == 0 {
        block = shape.superblock();
    } else {
        let raw = input.bytes(64);
        block[..raw.len()].copy_from_slice(raw);
    }
    if let Some(layout) = Layout::parse(&block) {
        let slots = u64::from(layout.slots);
        assert!(
            layout.bytes() >= layout.slot_offset(0) && layout.slot_offset(0) >= BLOCK + slots * RECORD as u64
        );
        assert_eq!(layout.bytes() - layout.slot_offset(0), slots * layout.slot_bytes);
        assert!(Layout::index_offset(layout.index_blocks() - 1) + BLOCK <= layout.slot_offset(0));
        assert_eq!(Layout::parse(&layout.superblock()), Some(layout));
        // A sparse file of this size is no reason to take memory before the device is known to be as large.
        assert_eq!(Layout::parse(&block[..block.len().min(40)]), Some(layout));
    }
    for short in [0, 7, 8, 31, 39] {
        assert_eq!(Layout::parse(&block[..short]), None);
    }
    let fitted = Layout::fit(input.number(5), (u64::from(input.byte()) + 1) * BLOCK, 0);
    if let Some(layout) = fitted {
        assert_eq!(Layout::parse(&layout.superblock()), Some(layout));
    }
}

fn record(layout: &Layout, slot: u32, input: &mut Input<'_>) -> Option<Record> {
    let mut bytes = vec![0; RECORD];
    match input.byte() % 4 {
        0 => {
            let raw = input.bytes(RECORD);
            bytes[..raw.len()].copy_from_slice(raw);
        }
        1 => return None,
        _ => {
            let sequence = match input.byte() {
                255 => input.number(8),
                small => small.into(),
            };
            let (length, sum) = (input.number(2), Checksum(input.number(1)));
            let key = String::from_utf8_lossy(input.short());
            let key = key.chars().take(LONGEST_KEY / 4).collect();
            layout.encode(slot, Some(&Record { sequence, length, sum, key }), &mut bytes);
        }
    }
    let record = layout.decode(slot, &bytes)?;
    assert!(record.length <= layout.slot_bytes && record.key.len() <= LONGEST_KEY);
    let mut again = vec![0; RECORD];
    layout.encode(slot, Some(&record), &mut again);
    assert_eq!(layout.decode(slot, &again).as_ref(), Some(&record));
    Some(record)
}

/// Stores and removals: no slot is ever given to two.
fn use_it(layout: &Layout, index: &Index, stale: Vec<u32>, input: &mut Input<'_>) {
    for slot in stale {
        index.cleared(slot);
    }
    let mut taken = BTreeSet::new();
    while !input.is_empty() {
        let key = format!("k{}", input.byte() % 8);
        match input.byte() % 4 {
            0 | 1 => {
                let Some(slot) = index.take() else { continue };
                assert!(slot < layout.slots && taken.insert(slot), "slot {slot} is somebody's");
                index.enter(slot, Record { sequence: 0, length: 1, sum: Checksum(0), key: key.clone() });
                if let Some(before) = index.publish(slot) {
                    assert!(before != slot, "the newest record lost");
                    taken.remove(&before);
                    index.cleared(before);
                }
                assert_eq!(index.read(&key).expect("stored").slot, slot);
            }
            2 => {
                if let Some(slot) = index.remove(&key) {
                    taken.remove(&slot);
                    index.cleared(slot);
                }
                assert!(index.read(&key).is_none());
            }
            _ => {
                let (listed, next) = index.list(&key, usize::from(input.byte() % 4));
                assert!(
                    listed.iter().all(|one| *one >= key)
                        && next.is_none_or(|next| next > key || listed.is_empty())
                );
            }
        }
    }
    assert!(index.objects() <= layout.slots.into());
    for block in 0..layout.index_blocks() {
        assert_eq!(index.block(block).len(), PER_BLOCK * RECORD);
    }
}
