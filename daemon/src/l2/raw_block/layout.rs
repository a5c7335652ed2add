//! What is where on the device.
//!
//! ```text
//! block 0        superblock
//! block 1 …      index: one record of 512 bytes for each slot
//! data offset …  slots
//! ```
//!
//! Every record carries a checksum over itself and its place, so a block that was torn by a power failure costs the records
//! that were being changed and no others, and what an earlier format left behind is no record. Numbers are little-endian.
#![forbid(unsafe_code)]

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::checksum::Checksum;

/// Unit of all I/O.
pub(super) const BLOCK: u64 = 4096;
/// Bytes of an index record.
pub(super) const RECORD: usize = 512;
/// Records of a block.
pub(super) const PER_BLOCK: usize = BLOCK as usize / RECORD;
/// Longest key of a record.
pub(super) const LONGEST_KEY: usize = SUM_AT - KEY_AT;

const MAGIC: &[u8; 8] = b"LMCDRAW1";
const RECORD_MAGIC: &[u8; 8] = b"LMCDSLOT";
/// Above this no record counts: no device is written so often, and the numbers that follow must have room.
const LAST_SEQUENCE: u64 = u64::MAX >> 1;
const KEY_AT: usize = 34;
const SUM_AT: usize = RECORD - 8;

/// The shape of a device, fixed when it is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Their number.
    pub slots: u32,
    /// Drawn when it was formatted: records of an earlier life do not count.
    pub identity: u64,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Of two records with one key, the larger counts.
    pub sequence: u64,
    /// Bytes of the object.
    pub length: u64,
    /// Of the object.
    pub sum: Checksum,
    /// The native key.
    pub key: String,
}

impl Layout {
    /// The layout that fills `capacity` bytes. `None`: not even one slot fits.
    pub(super) fn fit(capacity: u64, slot_bytes: u64, identity: u64) -> Option<Layout> {
        let mut slots = capacity.checked_sub(BLOCK)? / (slot_bytes + RECORD as u64);
        // The index is made of whole blocks.
        while slots > 0 && data_offset(slots) + slots * slot_bytes > capacity {
            slots -= 1;
        }
        let slots = u32::try_from(slots).ok().filter(|slots| *slots > 0)?;
        Some(Layout { slot_bytes, slots, identity })
    }

    /// First byte of a slot.
    pub(super) fn slot_offset(&self, slot: u32) -> u64 {
        data_offset(self.slots.into()) + u64::from(slot) * self.slot_bytes
    }

    /// Blocks of the index.
    pub(super) fn index_blocks(&self) -> u32 {
        self.slots.div_ceil(PER_BLOCK as u32)
    }

    /// First byte of a block of the index.
    pub(super) fn index_offset(block: u32) -> u64 {
        BLOCK + u64::from(block) * BLOCK
    }

    /// Bytes from the first to the last.
    pub(super) fn bytes(&self) -> u64 {
        self.slot_offset(self.slots)
    }

    /// Block 0.
    pub(super) fn superblock(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        block[..8].copy_from_slice(MAGIC);
        block[8..16].copy_from_slice(&self.slot_bytes.to_le_bytes());
        block[16..20].copy_from_slice(&self.slots.to_le_bytes());
        block[24..32].copy_from_slice(&self.identity.to_le_bytes());
        let sum = xxh3_64_with_seed(&block[..32], 0);
        block[32..40].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// Reads block 0; `None`: not ours, or of a shape that no device has.
    pub(super) fn parse(block: &[u8]) -> Option<Layout> {
        if block.get(..8)? != MAGIC || number(block, 32)? != xxh3_64_with_seed(&block[..32], 0) {
            return None;
        }
        let slots = u32::from_le_bytes(block[16..20].try_into().ok()?);
        let layout = Layout { slot_bytes: number(block, 8)?, slots, identity: number(block, 24)? };
        // A checksum proves no sense: what every other number here is computed from must not overflow.
        let sensible = slots > 0
            && layout.slot_bytes > 0
            && layout.slot_bytes.is_multiple_of(BLOCK)
            && layout
                .slot_bytes
                .checked_mul(slots.into())
                .is_some_and(|bytes| bytes.checked_add(data_offset(slots.into())).is_some());
        sensible.then_some(layout)
    }

    fn seed(&self, slot: u32) -> u64 {
        self.identity ^ u64::from(slot)
    }

    /// A record as bytes; `None` is a free slot.
    pub(super) fn encode(&self, slot: u32, record: Option<&Record>, out: &mut [u8]) {
        out.fill(0);
        let Some(record) = record else { return };
        let key = record.key.as_bytes();
        out[..8].copy_from_slice(RECORD_MAGIC);
        out[8..16].copy_from_slice(&record.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&record.length.to_le_bytes());
        out[24..32].copy_from_slice(&record.sum.0.to_le_bytes());
        out[32..34].copy_from_slice(&(key.len() as u16).to_le_bytes());
        out[KEY_AT..KEY_AT + key.len()].copy_from_slice(key);
        let sum = xxh3_64_with_seed(&out[..SUM_AT], self.seed(slot));
        out[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads a record; `None`: the slot is free, or the record does not count.
    pub(super) fn decode(&self, slot: u32, bytes: &[u8]) -> Option<Record> {
        if bytes.get(..8)? != RECORD_MAGIC
            || number(bytes, SUM_AT)? != xxh3_64_with_seed(&bytes[..SUM_AT], self.seed(slot))
        {
            return None;
        }
        let key_len = usize::from(u16::from_le_bytes(bytes[32..34].try_into().ok()?));
        let key = bytes.get(KEY_AT..KEY_AT + key_len).filter(|_| key_len <= LONGEST_KEY)?;
        let length = number(bytes, 16).filter(|length| *length <= self.slot_bytes)?;
        Some(Record {
            sequence: number(bytes, 8).filter(|sequence| *sequence <= LAST_SEQUENCE)?,
            length,
            sum: Checksum(number(bytes, 24)?),
            key: String::from_utf8(key.to_vec()).ok()?,
        })
    }
}

fn data_offset(slots: u64) -> u64 {
    BLOCK + (slots * RECORD as u64).next_multiple_of(BLOCK)
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_fits_and_fills() {
        for capacity in [20_000, 100_000, 1 << 20, (1 << 20) + 1, 1 << 30] {
            for slot in [4096, 8192, 65_536] {
                let Some(layout) = Layout::fit(capacity, slot, 7) else {
                    assert!(capacity < 2 * BLOCK + slot);
                    continue;
                };
                assert!(layout.bytes() <= capacity);
                assert!(capacity - layout.bytes() < slot + RECORD as u64 + BLOCK, "{capacity} {slot}");
                assert!(layout.slot_offset(0).is_multiple_of(BLOCK));
                assert_eq!(Layout::parse(&layout.superblock()), Some(layout));
            }
        }
        assert_eq!(Layout::fit(100, 4096, 0), None);
        assert_eq!(Layout::parse(&[0; 4096]), None);
        let mut torn = Layout::fit(1 << 20, 4096, 7).expect("fits").superblock();
        torn[9] ^= 1;
        assert_eq!(Layout::parse(&torn), None);
    }

    #[test]
    fn a_superblock_that_no_device_has_is_nobodys() {
        let good = Layout { slot_bytes: 8192, slots: 3, identity: 7 };
        assert_eq!(Layout::parse(&good.superblock()), Some(good));
        for (slot_bytes, slots) in
            [(0, 3), (4097, 3), (8192, 0), (!4095, 1), (1 << 52, 1 << 13), (1 << 33, u32::MAX)]
        {
            let bad = Layout { slot_bytes, slots, identity: 7 };
            assert_eq!(Layout::parse(&bad.superblock()), None, "{slots} slots of {slot_bytes}");
        }
    }

    #[test]
    fn a_record_counts_only_whole_and_in_its_place() {
        let layout = Layout::fit(1 << 20, 4096, 7).expect("fits");
        let record = Record { sequence: 3, length: 4000, sum: Checksum(9), key: "k".repeat(LONGEST_KEY) };
        let mut bytes = [0xff; RECORD];
        layout.encode(5, Some(&record), &mut bytes);
        assert_eq!(layout.decode(5, &bytes), Some(record.clone()));
        assert_eq!(layout.decode(6, &bytes), None, "another slot");
        assert_eq!(Layout { identity: 8, ..layout }.decode(5, &bytes), None, "another format");
        for at in [0, 9, 20, 33, 40, 500, 511] {
            let mut torn = bytes;
            torn[at] ^= 0x40;
            assert_eq!(layout.decode(5, &torn), None, "{at}");
        }
        layout.encode(5, None, &mut bytes);
        assert_eq!((layout.decode(5, &bytes), bytes), (None, [0; RECORD]));
        let last = Record { sequence: LAST_SEQUENCE, ..record.clone() };
        layout.encode(5, Some(&last), &mut bytes);
        assert_eq!(layout.decode(5, &bytes), Some(last));
        for (bad, why) in [
            (Record { length: 4097, ..record.clone() }, "longer than a slot"),
            (Record { sequence: LAST_SEQUENCE + 1, ..record }, "no room for the next"),
        ] {
            layout.encode(5, Some(&bad), &mut bytes);
            assert_eq!(layout.decode(5, &bytes), None, "{why}");
        }
    }
}
