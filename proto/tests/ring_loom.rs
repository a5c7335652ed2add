//! The lane's algorithm under every interleaving and every reordering that the memory model allows (loom).
//!
//! The code under test is the code that ships; only the cells are the checker's. One thing it cannot show: loom runs no load
//! that sees a later store, so the pair around `tail` (the reader has read before the writer writes again) is argued where it
//! stands, not found here. Weakening any other pair makes the first test fail.

use std::sync::atomic::Ordering;

use lmcache_proto::shm::ring::{
    Cell, Drained, Kind, Lane, LaneHeader, Published, Reader, Record, Slot, Writer,
};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

#[derive(Debug, Default)]
struct Checked(AtomicU64);

impl Cell for Checked {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
}

#[derive(Default)]
struct Memory {
    header: LaneHeader<Checked>,
    slots: [Slot<Checked>; 2],
}

impl Memory {
    fn lane(&self) -> Lane<'_, Checked> {
        Lane::new(&self.header, &self.slots)
    }
}

fn record(n: u64) -> Record {
    Record {
        kind: Kind::MpStoreEnd,
        transfer: n,
        nanos: n + 100,
        bytes: n + 200,
        tokens: n + 300,
        count: n as u32,
        success: true,
        request: n + 400,
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Three forced switches find all known kinds of ordering bugs, and keep the search to seconds.
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn drain(reader: &mut Reader, memory: &Memory, seen: &mut Vec<u64>) -> Drained {
    reader.drain(memory.lane(), |got| {
        assert_eq!(got, record(got.transfer), "a torn record");
        seen.push(got.transfer);
    })
}

#[test]
fn every_record_arrives_whole_and_in_order_or_is_counted() {
    model(|| {
        let memory = Arc::new(Memory::default());
        let mut reader = memory.lane().open(1, 1);
        let shared = memory.clone();
        let writer = thread::spawn(move || {
            let mut writer = Writer::attach(shared.lane(), 1).expect("open");
            let mut queued = Vec::new();
            for n in 0..3 {
                match writer.publish(shared.lane(), &record(n)) {
                    Published::Queued => queued.push(n),
                    Published::Full => {}
                    Published::Stale => panic!("nobody took the lane"),
                }
            }
            (queued, writer.dropped())
        });
        let mut seen = Vec::new();
        let mut lost = 0;
        for _ in 0..2 {
            let drained = drain(&mut reader, &memory, &mut seen);
            assert_eq!((drained.corrupt, drained.unknown), (0, 0), "an honest writer leaves no damage");
            lost += drained.lost;
        }
        let (queued, dropped) = writer.join().expect("writer");
        let last = drain(&mut reader, &memory, &mut seen);
        assert_eq!(last.corrupt, 0);
        assert_eq!(seen, queued);
        assert_eq!(lost + last.lost, dropped);
        assert_eq!(queued.len() as u64 + dropped, 3);
    });
}

#[test]
fn a_lane_that_changes_hands_yields_nothing_torn_and_nothing_of_the_old_writer() {
    model(|| {
        let memory = Arc::new(Memory::default());
        memory.lane().open(1, 1);
        let mut old = Writer::attach(memory.lane(), 1).expect("open");
        let shared = memory.clone();
        let stale = thread::spawn(move || old.publish(shared.lane(), &record(1)));
        memory.lane().close();
        let mut reader = memory.lane().open(2, 2);
        let mut seen = Vec::new();
        let mut new = Writer::attach(memory.lane(), 2).expect("open");
        assert_eq!(new.publish(memory.lane(), &record(10)), Published::Queued);
        drain(&mut reader, &memory, &mut seen);
        stale.join().expect("old writer");
        drain(&mut reader, &memory, &mut seen);
        assert!(seen == [10] || seen.is_empty(), "its own record, or a counted loss: {seen:?}");
        // And it goes on.
        new.publish(memory.lane(), &record(11));
        drain(&mut reader, &memory, &mut seen);
        new.publish(memory.lane(), &record(12));
        drain(&mut reader, &memory, &mut seen);
        assert_eq!(seen.last(), Some(&12));
    });
}
