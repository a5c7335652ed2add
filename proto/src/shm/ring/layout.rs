//! Where everything lies, and what a record means.

use std::sync::atomic::AtomicU64;

use super::super::table::PAGE;
use super::lane::{LaneHeader, Slot};
use crate::transfer_id::TransferDirection;

/// First bytes of a ring segment.
pub const RING_MAGIC: [u8; 8] = *b"LMCDRNG\0";
/// Changes whenever a layout below, or the algorithm of a lane, changes.
pub const RING_VERSION: u32 = 1;

/// First page of the segment. Written once, before a worker hears the segment's name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHeader {
    /// [`RING_MAGIC`].
    pub magic: [u8; 8],
    /// [`RING_VERSION`].
    pub version: u32,
    /// Lanes of the segment.
    pub lanes: u32,
    /// Slots of each lane, a power of two.
    pub slots: u32,
    /// 0.
    pub reserved: u32,
}

impl RingHeader {
    /// Bytes of the header.
    pub const BYTES: usize = size_of::<RingHeader>();

    /// The header of a segment of this layout.
    pub fn new(layout: RingLayout) -> RingHeader {
        RingHeader {
            magic: RING_MAGIC,
            version: RING_VERSION,
            lanes: layout.lanes,
            slots: layout.slots,
            reserved: 0,
        }
    }

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; RingHeader::BYTES] {
        let mut bytes = [0; RingHeader::BYTES];
        bytes[..8].copy_from_slice(&self.magic);
        for (place, number) in [self.version, self.lanes, self.slots, self.reserved].into_iter().enumerate() {
            bytes[8 + place * 4..][..4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// Counts, and the offsets that follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    lanes: u32,
    slots: u32,
}

impl RingLayout {
    /// Most lanes of a segment.
    pub const MAX_LANES: u32 = 4096;
    /// Most slots of a lane.
    pub const MAX_SLOTS: u32 = 1 << 16;

    /// A layout of `lanes` lanes with `slots` slots each; `None` for counts that no segment has.
    pub fn new(lanes: u32, slots: u32) -> Option<RingLayout> {
        let fits = (1..=RingLayout::MAX_LANES).contains(&lanes)
            && (2..=RingLayout::MAX_SLOTS).contains(&slots)
            && slots.is_power_of_two();
        fits.then_some(RingLayout { lanes, slots })
    }

    /// Number of lanes.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Slots of each lane.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes of one lane: whole pages, so that a worker maps its own lane and no other.
    pub fn lane_bytes(&self) -> u64 {
        let bytes = size_of::<LaneHeader<AtomicU64>>() as u64
            + u64::from(self.slots) * size_of::<Slot<AtomicU64>>() as u64;
        bytes.next_multiple_of(PAGE)
    }

    /// First byte of a lane; `None` if there is no such lane.
    pub fn lane_at(&self, lane: u32) -> Option<u64> {
        (lane < self.lanes).then(|| PAGE + u64::from(lane) * self.lane_bytes())
    }

    /// Bytes of the whole segment.
    pub fn bytes(&self) -> u64 {
        PAGE + u64::from(self.lanes) * self.lane_bytes()
    }
}

/// What a record says. Numbers are the format's; new ones are added at the end, and an older daemon counts those that it
/// does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the peer's event names")]
pub enum Kind {
    MpStoreSubmitted = 1,
    MpStoreStart = 2,
    MpStoreEnd = 3,
    MpRetrieveSubmitted = 4,
    MpRetrieveStart = 5,
    MpRetrieveEnd = 6,
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::MpStoreSubmitted,
        Kind::MpStoreStart,
        Kind::MpStoreEnd,
        Kind::MpRetrieveSubmitted,
        Kind::MpRetrieveStart,
        Kind::MpRetrieveEnd,
    ];

    /// The kind with number `raw`.
    pub fn from_raw(raw: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == raw)
    }

    /// Which way the bytes went.
    pub fn direction(self) -> TransferDirection {
        match self {
            Kind::MpStoreSubmitted | Kind::MpStoreStart | Kind::MpStoreEnd => TransferDirection::Store,
            Kind::MpRetrieveSubmitted | Kind::MpRetrieveStart | Kind::MpRetrieveEnd => {
                TransferDirection::Retrieve
            }
        }
    }
}

/// One record: numbers only. Names (engine, device, model, salt) are the daemon's, from the registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What happened.
    pub kind: Kind,
    /// Which transfer, see [`crate::transfer_id`].
    pub transfer: u64,
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub nanos: u64,
    /// Bytes moved; of an end.
    pub bytes: u64,
    /// Tokens moved; of an end.
    pub tokens: u64,
    /// Objects moved; of an end.
    pub count: u32,
    /// Whether all of it arrived; of an end.
    pub success: bool,
    /// Hash of the request's id, see [`crate::transfer_id::request_hash`].
    pub request: u64,
}

impl Record {
    pub(super) fn to_words(self) -> [u64; 6] {
        let head = u64::from(self.kind as u8) | u64::from(self.success) << 8 | u64::from(self.count) << 32;
        [head, self.transfer, self.nanos, self.bytes, self.tokens, self.request]
    }

    pub(super) fn from_words(words: [u64; 6]) -> Option<Record> {
        let [head, transfer, nanos, bytes, tokens, request] = words;
        // Bits 9 to 31 are for later versions and are not looked at.
        let kind = Kind::from_raw(head as u8)?;
        let (success, count) = (head >> 8 & 1 == 1, (head >> 32) as u32);
        Some(Record { kind, transfer, nanos, bytes, tokens, count, success, request })
    }
}

// The layouts are a format: a change here is a new RING_VERSION.
const _: () = assert!(size_of::<RingHeader>() == 24);
const _: () = assert!(size_of::<LaneHeader<AtomicU64>>() == 384);
const _: () = assert!(size_of::<Slot<AtomicU64>>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_whole_pages_inside_the_segment() {
        let layout = RingLayout::new(256, 1024).expect("a layout");
        assert_eq!(layout.lane_bytes(), 69632);
        assert_eq!(layout.lane_at(0), Some(PAGE));
        let last = layout.lane_at(255).expect("the last lane");
        assert_eq!(last + layout.lane_bytes(), layout.bytes());
        assert_eq!(last % PAGE, 0);
        assert_eq!(layout.lane_at(256), None);
        for (lanes, slots) in
            [(0, 1024), (4097, 1024), (1, 0), (1, 1), (1, 3), (1, 1 << 17), (u32::MAX, u32::MAX)]
        {
            assert_eq!(RingLayout::new(lanes, slots), None, "{lanes} lanes of {slots} slots");
        }
    }

    #[test]
    fn records_keep_their_numbers() {
        for kind in Kind::ALL {
            let record = Record {
                kind,
                transfer: u64::MAX,
                nanos: 3,
                bytes: 1 << 60,
                tokens: 5,
                count: u32::MAX,
                success: (kind as u8).is_multiple_of(2),
                request: 7,
            };
            assert_eq!(Record::from_words(record.to_words()), Some(record));
        }
        assert_eq!(Record::from_words([0; 6]), None);
        assert_eq!(Record::from_words([7, 0, 0, 0, 0, 0]), None, "a kind of a later version");
    }
}
