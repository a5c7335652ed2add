use std::os::unix::fs::FileExt;
use std::time::Duration;

use lmcache_proto::shm::ring::{Kind, Published, Writer};
use proptest::prelude::*;

use super::*;
use crate::ring::RingTimer;

/// A hub of its own; its segment goes with it.
struct Ring(Arc<RingHub>);

impl Ring {
    fn new(lanes: u32, slots: u32) -> Ring {
        let name = format!("lmcached_test_ring_{}", uuid::Uuid::new_v4().simple());
        let layout = RingLayout::new(lanes, slots);
        assert!(layout.is_some());
        Ring(RingHub::open(&RingConfig { name, layout, group: None, max_bytes: 1 << 30 }).expect("a ring"))
    }

    fn memory(&self) -> &Memory {
        self.0.memory.as_ref().expect("it has one")
    }

    fn file(&self) -> std::fs::File {
        let path = format!("/dev/shm/{}", self.memory().segment().name());
        std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the segment has its name")
    }

    fn worker(&self, instance: u64) -> Worker<'_> {
        let attached = self.0.attach(instance).expect("a lane");
        let lane = self.memory().lane(attached.lane);
        Worker {
            ring: self,
            lane: attached.lane,
            writer: Writer::attach(lane, attached.epoch).expect("own epoch"),
        }
    }

    fn counters(&self, instance: u64) -> Counters {
        let status = self.0.status();
        status.workers.iter().find(|worker| worker.instance == instance).expect("attached").counters
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.0.unlink();
    }
}

struct Worker<'r> {
    ring: &'r Ring,
    lane: u32,
    writer: Writer,
}

fn nanos() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

impl Worker<'_> {
    fn publish(&mut self, record: &Record) -> Published {
        self.writer.publish(self.ring.memory().lane(self.lane), record)
    }

    fn say(&mut self, kind: Kind, transfer: u64) -> u64 {
        let nanos = nanos();
        assert_eq!(self.publish(&record(kind, transfer, nanos)), Published::Queued);
        nanos
    }
}

fn record(kind: Kind, transfer: u64, nanos: u64) -> Record {
    Record { kind, transfer, nanos, bytes: 4096, tokens: 256, count: 1, success: true, request: 5 }
}

#[test]
fn the_commit_finds_what_the_worker_said_a_moment_ago() {
    let ring = Ring::new(4, 16);
    assert!(!ring.0.has_lane(7));
    let mut worker = ring.worker(7);
    assert!(ring.0.has_lane(7));
    let before = Instant::now();
    let start = worker.say(Kind::MpStoreStart, 42);
    let end = worker.say(Kind::MpStoreEnd, 42);
    let timing = ring.0.take_timing(7, 42).expect("drained at the commit");
    assert_eq!(timing.duration(), Duration::from_nanos(end - start));
    assert!(before <= timing.start && timing.end <= Instant::now());
    assert!(timing.success);
    assert_eq!(ring.0.take_timing(7, 42), None, "found once");
    assert_eq!(ring.0.take_timing(7, 1), None);
    assert_eq!(ring.0.take_timing(8, 42), None, "another worker's");
    let counters = ring.counters(7);
    assert_eq!((counters.records, counters.matched, counters.unmatched), (2, 2, 0));
}

#[test]
fn numbers_are_checked() {
    let ring = Ring::new(1, 16);
    let mut worker = ring.worker(7);
    worker.publish(&record(Kind::MpStoreStart, 1, nanos() + 60_000_000_000));
    worker.publish(&record(Kind::MpStoreStart, 1, 0));
    worker.publish(&Record { bytes: 1 << 31, ..record(Kind::MpStoreEnd, 1, nanos()) });
    worker.publish(&Record { count: u32::MAX, ..record(Kind::MpStoreEnd, 1, nanos()) });
    ring.0.drain_instance(7);
    let counters = ring.counters(7);
    assert_eq!((counters.records, counters.bad_time, counters.bad_range), (4, 2, 2));
    assert_eq!(counters.rejected(), 4);
    assert_eq!(ring.0.take_timing(7, 1), None);
}

#[test]
fn a_full_lane_is_counted_to_its_worker_and_to_nobody_else() {
    let ring = Ring::new(2, 8);
    let (mut loud, mut quiet) = (ring.worker(1), ring.worker(2));
    for n in 0..20 {
        loud.publish(&record(Kind::MpStoreStart, n, nanos()));
    }
    quiet.say(Kind::MpStoreStart, 1);
    ring.0.drain_all();
    assert_eq!((ring.counters(1).records, ring.counters(1).lost), (8, 12));
    assert_eq!((ring.counters(2).records, ring.counters(2).lost), (1, 0));
    ring.0.detach(1);
    let status = ring.0.status();
    assert_eq!(status.workers.len(), 1);
    assert_eq!(
        (status.total.lost, status.total.records, status.total.unmatched),
        (12, 9, 8),
        "kept after its end"
    );
}

#[test]
fn lanes_come_back_under_another_epoch() {
    let ring = Ring::new(1, 8);
    let mut first = ring.worker(1);
    assert!(matches!(ring.0.attach(2), Err(AttachError::Full)));
    first.say(Kind::MpStoreStart, 1);
    ring.0.detach(1);
    let mut second = ring.worker(2);
    assert_eq!(first.lane, second.lane);
    assert_eq!(first.publish(&record(Kind::MpStoreStart, 1, nanos())), Published::Stale);
    second.say(Kind::MpStoreStart, 9);
    ring.0.drain_all();
    assert_eq!(ring.counters(2).records, 1);
    // The same worker again: a fresh lane, also when it is the only one.
    let mut again = ring.worker(2);
    assert_eq!(second.publish(&record(Kind::MpStoreStart, 1, nanos())), Published::Stale);
    again.say(Kind::MpStoreStart, 9);
    assert_eq!(ring.0.status().workers.len(), 1);
    ring.0.detach(2);
    ring.0.detach(2);
    assert!(ring.worker(3).lane == 0, "the lane was given back once");
    assert!(matches!(ring.0.attach(4), Err(AttachError::Full)));
}

#[test]
fn a_worker_that_shrinks_the_segment_breaks_the_ring_and_nothing_else() {
    let ring = Ring::new(2, 1024);
    let _worker = ring.worker(1);
    ring.file().set_len(0).expect("shrink");
    ring.0.drain_all();
    assert!(ring.0.status().broken);
    assert!(matches!(ring.0.attach(2), Err(AttachError::Broken)));
    ring.0.drain_all();
    ring.0.detach(1);
}

#[test]
fn a_daemon_without_a_ring_says_so() {
    let hub = RingHub::disabled();
    assert!(matches!(hub.attach(1), Err(AttachError::Disabled)));
    hub.drain_all();
    hub.detach(1);
    assert_eq!(hub.take_timing(1, 1), None);
    assert_eq!(hub.status().lanes, 0);
}

#[test]
fn the_timer_reads_lanes_of_workers_that_send_nothing() {
    let ring = Ring::new(2, 8);
    let timer = RingTimer::start(ring.0.clone());
    let mut worker = ring.worker(1);
    for n in 0..20 {
        while worker.publish(&record(Kind::MpStoreStart, n, nanos())) == Published::Full {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let until = Instant::now() + Duration::from_secs(60);
    while ring.counters(1).records < 20 {
        assert!(Instant::now() < until, "nobody reads the lane");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(timer);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a worker puts in its lane, the daemon goes on, and so does its neighbour.
    #[test]
    fn arbitrary_bytes_in_a_lane_harm_nobody(
        pieces in proptest::collection::vec((0usize..1400, proptest::collection::vec(any::<u8>(), 1..200)), 0..20),
        rounds in 1usize..4,
    ) {
        let ring = Ring::new(2, 16);
        let mut worker = ring.worker(1);
        let mut neighbour = ring.worker(2);
        let file = ring.file();
        let at = ring.memory().layout().lane_at(worker.lane).expect("its lane");
        for round in 0..rounds {
            for (offset, bytes) in &pieces {
                file.write_all_at(bytes, at + *offset as u64).expect("write");
            }
            worker.publish(&record(Kind::MpStoreStart, 1, nanos()));
            ring.0.drain_all();
            ring.0.take_timing(1, 1);
            let transfer = round as u64 + 100;
            neighbour.say(Kind::MpStoreStart, transfer);
            neighbour.say(Kind::MpStoreEnd, transfer);
            prop_assert!(ring.0.take_timing(2, transfer).is_some());
        }
        prop_assert_eq!(ring.counters(2).rejected(), 0);
        // The lane is good again for the next one.
        ring.0.detach(1);
        let mut next = ring.worker(3);
        next.say(Kind::MpStoreStart, 7);
        next.say(Kind::MpStoreEnd, 7);
        prop_assert!(ring.0.take_timing(3, 7).is_some());
    }
}
