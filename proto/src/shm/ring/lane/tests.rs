use proptest::prelude::*;

use super::super::layout::Kind;
use super::*;

struct Memory {
    header: LaneHeader<AtomicU64>,
    slots: Vec<Slot<AtomicU64>>,
}

impl Memory {
    fn new(slots: usize) -> Memory {
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Memory { header: LaneHeader::default(), slots }
    }

    fn lane(&self) -> Lane<'_, AtomicU64> {
        Lane::new(&self.header, &self.slots)
    }
}

fn record(n: u64) -> Record {
    Record {
        kind: Kind::MpStoreStart,
        transfer: n,
        nanos: n * 3,
        bytes: n * 5,
        tokens: n * 7,
        count: n as u32,
        success: n.is_multiple_of(2),
        request: n * 11,
    }
}

fn drain(reader: &mut Reader, memory: &Memory) -> (Vec<u64>, Drained) {
    let mut seen = Vec::new();
    let drained = reader.drain(memory.lane(), |got| {
        assert_eq!(got, record(got.transfer), "not torn");
        seen.push(got.transfer);
    });
    (seen, drained)
}

#[test]
fn records_come_out_in_order_and_round_after_round() {
    let memory = Memory::new(8);
    let mut reader = memory.lane().open(7, 1);
    let mut writer = Writer::attach(memory.lane(), 7).expect("own epoch");
    for round in 0..10 {
        for n in 0..5 {
            assert_eq!(writer.publish(memory.lane(), &record(round * 5 + n)), Published::Queued);
        }
        let (seen, drained) = drain(&mut reader, &memory);
        assert_eq!(seen, (round * 5..round * 5 + 5).collect::<Vec<_>>());
        assert_eq!(drained, Drained { taken: 5, ..Drained::default() });
    }
}

#[test]
fn a_full_lane_loses_the_newest_and_counts_exactly() {
    let memory = Memory::new(4);
    let mut reader = memory.lane().open(7, 1);
    let mut writer = Writer::attach(memory.lane(), 7).expect("own epoch");
    for n in 0..10 {
        let expected = if n < 4 { Published::Queued } else { Published::Full };
        assert_eq!(writer.publish(memory.lane(), &record(n)), expected);
    }
    let (seen, drained) = drain(&mut reader, &memory);
    assert_eq!(seen, [0, 1, 2, 3]);
    assert_eq!(drained, Drained { taken: 4, lost: 6, ..Drained::default() });
    assert_eq!(writer.dropped(), 6);
    writer.publish(memory.lane(), &record(10));
    let (seen, drained) = drain(&mut reader, &memory);
    assert_eq!((seen, drained.lost), (vec![10], 0));
}

#[test]
fn a_writer_killed_in_the_middle_is_not_seen_and_not_waited_for() {
    let memory = Memory::new(4);
    let mut reader = memory.lane().open(7, 1);
    let mut writer = Writer::attach(memory.lane(), 7).expect("own epoch");
    writer.publish(memory.lane(), &record(1));
    // Killed with all words written but the first.
    let slot = memory.lane().slot(writer.head);
    slot.words[1..].iter().for_each(|cell| cell.store(u64::MAX, Ordering::Relaxed));
    let (seen, drained) = drain(&mut reader, &memory);
    assert_eq!((seen, drained.corrupt), (vec![1], 0));
    // Killed between the first word and the head: complete, and taken.
    writer.publish(memory.lane(), &record(2));
    memory.header.writer.head.store(writer.head.wrapping_sub(1), Ordering::Relaxed);
    let (seen, drained) = drain(&mut reader, &memory);
    assert_eq!((seen, drained.corrupt), (vec![2], 0));
}

#[test]
fn an_old_writer_that_wakes_up_writes_nothing_or_one_slot() {
    let memory = Memory::new(4);
    memory.lane().open(7, 1);
    let mut old = Writer::attach(memory.lane(), 7).expect("own epoch");
    memory.lane().close();
    assert_eq!(old.publish(memory.lane(), &record(1)), Published::Stale);
    assert!(Writer::attach(memory.lane(), 7).is_none());
    let mut reader = memory.lane().open(8, 2);
    assert_eq!(old.publish(memory.lane(), &record(1)), Published::Stale);
    // It was stopped right after its look at the epoch.
    let mut new = Writer::attach(memory.lane(), 8).expect("own epoch");
    new.publish(memory.lane(), &record(20));
    memory.header.owner.epoch.store(7, Ordering::Relaxed);
    old.publish(memory.lane(), &record(1));
    memory.header.owner.epoch.store(8, Ordering::Relaxed);
    for n in 21..25 {
        new.publish(memory.lane(), &record(n));
        let (seen, _) = drain(&mut reader, &memory);
        assert!(seen.iter().all(|n| *n >= 20), "nothing of the old one: {seen:?}");
        assert!(n == 21 || seen == [n], "it goes on: {seen:?}");
    }
}

#[test]
fn nonsense_in_head_and_counters_is_counted_once_and_heals() {
    let memory = Memory::new(4);
    let mut reader = memory.lane().open(7, 1);
    let mut writer = Writer::attach(memory.lane(), 7).expect("own epoch");
    memory.header.writer.head.store(12345, Ordering::Relaxed);
    memory.header.writer.dropped.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(drain(&mut reader, &memory).1, Drained { corrupt: 2, ..Drained::default() });
    assert_eq!(drain(&mut reader, &memory).1, Drained::default());
    writer.publish(memory.lane(), &record(1));
    assert_eq!(drain(&mut reader, &memory).0, [1]);
    // A head that claims what was never written.
    memory.header.writer.head.store(reader.tail.wrapping_add(2), Ordering::Relaxed);
    assert_eq!(drain(&mut reader, &memory).1, Drained { corrupt: 2, ..Drained::default() });
    // A tail that the reader never wrote: full, not out of bounds.
    memory.header.reader.tail.store(writer.head.wrapping_add(99), Ordering::Relaxed);
    writer.head = writer.head.wrapping_add(4);
    assert_eq!(writer.publish(memory.lane(), &record(2)), Published::Full);
}

proptest! {
    #[test]
    fn arbitrary_lanes_are_drained_within_bounds(
        words in proptest::collection::vec(any::<u64>(), 8 * 8),
        near in proptest::collection::vec(0u64..20, 8),
        head in prop_oneof![any::<u64>(), 0u64..20],
        dropped in any::<u64>(),
    ) {
        let memory = Memory::new(8);
        let mut reader = memory.lane().open(7, 1);
        for (i, word) in words.iter().enumerate() {
            memory.slots[i / 8].words[i % 8].store(*word, Ordering::Relaxed);
        }
        // First words that the reader may be waiting for, so that the rest is looked at.
        for (slot, near) in near.iter().enumerate() {
            memory.slots[slot].words[0].store(reader.tail.wrapping_add(*near), Ordering::Relaxed);
        }
        memory.header.writer.head.store(reader.tail.wrapping_add(head), Ordering::Relaxed);
        memory.header.writer.dropped.store(dropped, Ordering::Relaxed);
        let mut taken = 0;
        for _ in 0..3 {
            let drained = reader.drain(memory.lane(), |_| taken += 1);
            prop_assert!(drained.taken + drained.corrupt + drained.unknown <= 10);
        }
        prop_assert_eq!(taken, 0, "no seal is right by chance");
    }
}
