use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use lmcache_proto::wire::Writer;

use super::*;

/// A journal's name that goes when the test does.
struct Name(String);

impl Name {
    fn new() -> Name {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Name(format!("lmcached_test{}_{number}_journal", std::process::id()))
    }

    fn open(&self, pool: u64) -> Journal {
        Journal::try_open(&self.0, pool, 4, false).expect("opens")
    }

    fn path(&self) -> PathBuf {
        Path::new(SHM_DIR).join(&self.0)
    }

    fn past(&self) -> Vec<Past> {
        past::read(&self.path(), POOL).expect("reads")
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        Journal::discard(&self.0);
    }
}

const POOL: u64 = 7;

fn uid(number: u64) -> Vec<u8> {
    let mut uid = Writer::new();
    uid.uint(number);
    uid.into_vec()
}

fn op(name: &str) -> Vec<u8> {
    let mut op = Writer::new();
    op.str(name);
    op.into_vec()
}

fn us() -> ProcessId {
    ProcessId::of(std::process::id() as i32).expect("we live")
}

/// Somebody who is dead.
fn dead() -> ProcessId {
    ProcessId { start_time: us().start_time + 1, ..us() }
}

fn here(process: Option<ProcessId>) -> Peer {
    Peer { process, host: 0 }
}

const THERE: Peer = Peer { process: None, host: 99 };

fn retrieve(lane: &Arc<Lane>, number: u64) -> Option<Ticket> {
    lane.note(Operation::Retrieve, &uid(number), &op("retrieve"))
}

/// Until when a worker waits that waits for ever.
const LATER: Duration = Duration::from_secs(1 << 30);

/// What is owed, as numbers.
fn numbers(claim: &Claim) -> Vec<u64> {
    claim.owed.iter().filter_map(|owed| uid_number(&owed.uid)).collect()
}

#[test]
fn what_has_no_answer_is_owed_to_the_worker_that_comes_back() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, here(Some(us()))).expect("a lane");
    lane.speaks_for(42);
    lane.waits_until(LATER);
    let answered = retrieve(&lane, 300);
    let kept = [retrieve(&lane, 301), lane.note(Operation::Store, &uid(302), &[6])];
    assert!(kept.iter().all(Option::is_some));
    drop(answered);
    journal.keep();
    drop((kept, lane, journal));

    let next = name.open(POOL);
    assert!(next.is_waiting());
    let claim = next.claim(Some(42), here(Some(us())), 303);
    assert_eq!(numbers(&claim), [301, 302]);
    assert_eq!(claim.waits_until, LATER, "303 follows 302");
    assert_eq!(claim.owed[0].op_frame, op("retrieve"), "as it came");
    assert_eq!((&claim.owed[1].op_frame[..], claim.owed[1].operation), (&[6][..], Operation::Store));
    assert!(!next.is_waiting());
    assert_eq!(name.past()[0].requests.len(), 2, "still noted: the daemon may die before they are answered");
    drop(claim);
    assert_eq!(name.past(), [], "answered");
}

#[test]
fn a_second_crash_before_the_answer_loses_nothing() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, THERE).expect("a lane");
    lane.speaks_for(42);
    let _ticket = retrieve(&lane, 8);
    for _ in 0..3 {
        // Nothing of the one before is dropped: it was killed.
        std::mem::forget(name.open(POOL));
    }
    assert_eq!(numbers(&name.open(POOL).claim(Some(42), THERE, 9)), [8]);
}

/// How long a worker waits is known only if none of its requests was lost, and no ping was in vain.
#[test]
fn how_long_a_worker_waits_outlives_the_daemon() {
    let until = |owed: Option<Operation>, kept: bool| {
        let name = Name::new();
        let journal = name.open(POOL);
        let lane = journal.lane(1, THERE).expect("a lane");
        lane.speaks_for(42);
        lane.waits_until(LATER);
        let ticket = lane.note(Operation::Retrieve, &uid(7), &op("retrieve"));
        let owed = owed.map(|operation| lane.note(operation, &uid(8), &op(operation.name())));
        // The one between was killed before it heard anything.
        std::mem::forget(name.open(POOL));
        let next = name.open(POOL);
        let found = if kept {
            let survivor = next.survivor(1).expect("a survivor");
            let lane = next.lane(1, THERE).expect("a lane");
            survivor.goes_on_in(&lane);
            drop(survivor.owed);
            let after = name.open(POOL);
            assert_eq!(
                after.survivor(1).expect("a survivor").waits_until(),
                survivor.past.certainly_waits_until(true)
            );
            survivor.past.certainly_waits_until(true)
        } else {
            next.claim(Some(42), THERE, 9).waits_until
        };
        drop((ticket, owed));
        found
    };
    for kept in [true, false] {
        assert_eq!(until(Some(Operation::Store), kept), LATER);
        assert_eq!(until(Some(Operation::Ping), kept), Duration::ZERO, "that ping has no answer");
    }
    assert_eq!(until(None, false), Duration::ZERO, "request 8 was lost");
}

#[test]
fn a_gap_in_the_numbers_is_a_request_that_was_lost_unread() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, THERE).expect("a lane");
    lane.speaks_for(42);
    lane.waits_until(LATER);
    let ticket = retrieve(&lane, 8);
    let claim = name.open(POOL).claim(Some(42), THERE, 10);
    assert_eq!((numbers(&claim), claim.waits_until), (vec![8], Duration::ZERO));
    drop((ticket, lane, journal));

    // One that had no entry is lost, too.
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, THERE).expect("a lane");
    lane.speaks_for(42);
    lane.waits_until(LATER);
    let ticket = retrieve(&lane, 8);
    assert!(lane.note(Operation::Retrieve, &uid(9), &[0; 100]).is_none());
    let claim = name.open(POOL).claim(Some(42), THERE, 10);
    assert_eq!((numbers(&claim), claim.waits_until), (vec![8], Duration::ZERO));
    drop(ticket);
}

#[test]
fn another_socket_or_process_is_not_owed() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, here(Some(us()))).expect("a lane");
    lane.speaks_for(42);
    let _ticket = retrieve(&lane, 300);
    let next = name.open(POOL);
    assert_eq!(numbers(&next.claim(Some(42), here(Some(us())), 1)), [0; 0], "its numbers begin anew");
    assert_eq!(numbers(&next.claim(Some(43), here(Some(us())), 301)), [0; 0], "another worker");
    assert_eq!(numbers(&next.claim(Some(42), here(Some(dead())), 301)), [0; 0], "another process");
    assert_eq!(numbers(&next.claim(None, here(Some(us())), 301)), [0; 0], "no scheduler");
    assert_eq!(numbers(&next.claim(Some(42), here(Some(us())), 301)), [300]);
    assert_eq!(numbers(&next.claim(Some(42), here(Some(us())), 302)), [0; 0], "once");
}

#[test]
fn a_scheduler_is_known_by_its_process_or_by_its_numbers() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lookup = |lane: &Arc<Lane>, number| lane.note(Operation::Lookup, &uid(number), &op("lookup"));
    let local = journal.lane(1, here(Some(us()))).expect("a lane");
    let remote = [2, 3].map(|id| journal.lane(id, THERE).expect("a lane"));
    let _tickets = [lookup(&local, 5), lookup(&remote[0], 50), lookup(&remote[1], 60)];
    let next = name.open(POOL);
    assert_eq!(numbers(&next.claim(None, here(Some(us())), 9)), [5], "a gap does not matter");
    assert_eq!(numbers(&next.claim(None, THERE, 52)), [0; 0], "51 would follow 50");
    assert_eq!(numbers(&next.claim(None, THERE, 61)), [60]);
    assert_eq!(numbers(&next.claim(None, Peer { process: None, host: 98 }, 51)), [0; 0], "another machine");
    assert_eq!(numbers(&next.claim(None, THERE, 51)), [50]);
}

#[test]
fn two_schedulers_with_the_same_numbers_are_nobody() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lanes = [1, 2].map(|id| journal.lane(id, THERE).expect("a lane"));
    let _tickets = lanes.each_ref().map(|lane| lane.note(Operation::Lookup, &uid(5), &op("lookup")));
    assert_eq!(numbers(&name.open(POOL).claim(None, THERE, 6)), [0; 0]);
}

#[test]
fn the_dead_are_not_waited_for() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, here(Some(dead()))).expect("a lane");
    lane.speaks_for(42);
    let _ticket = retrieve(&lane, 8);
    assert!(!name.open(POOL).is_waiting());

    let name = Name::new();
    let journal = name.open(POOL);
    let stranger = journal.lane(2, THERE).expect("a lane");
    let _ticket = retrieve(&stranger, 8);
    let next = name.open(POOL);
    assert!(next.is_waiting());
    next.expire(Instant::now());
    assert!(next.is_waiting(), "it may come yet");
    next.expire(Instant::now().checked_sub(KEPT * 2).expect("uptime"));
    assert!(!next.is_waiting());
}

#[test]
fn lanes_and_entries_run_out_and_come_back() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lanes: Vec<_> = (1..=8).map(|id| journal.lane(id, THERE).expect("a lane")).collect();
    assert!(journal.lane(9, THERE).is_none(), "twice the connections");
    let mut tickets: Vec<_> = (0..62).map(|n| retrieve(&lanes[0], n).expect("an entry")).collect();
    assert!(retrieve(&lanes[0], 62).is_none());
    assert_eq!(name.past()[0].unnoted, 1);
    tickets.swap_remove(31);
    let again = retrieve(&lanes[0], 64).expect("one is free");
    assert_eq!(name.past()[0].requests.len(), 62);
    drop((again, tickets, lanes));
    assert_eq!(name.past(), []);
    assert!(journal.lane(10, THERE).is_some());
}

#[test]
fn another_pools_journal_and_damaged_ones_say_nothing() {
    let name = Name::new();
    let journal = name.open(POOL);
    let lane = journal.lane(1, THERE).expect("a lane");
    let _ticket = retrieve(&lane, 8);
    let bytes = std::fs::read(name.path()).expect("a file");
    assert_eq!(past::parse(&bytes, POOL).len(), 1);
    assert_eq!(past::parse(&bytes, POOL + 1), []);
    for at in 0..16 {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(past::parse(&bytes, POOL), [], "byte {at}");
    }
    for len in [0, 1, 4095, 4096, 8191] {
        assert_eq!(past::parse(&bytes[..len], POOL), [], "{len} bytes");
    }
    // Lengths that no entry has, and an operation that is none.
    let page = 4096 * bytes.as_chunks::<4096>().0.iter().rposition(|page| page[0] != 0).expect("a page");
    for (at, value) in [(128, 41), (129, 17), (135, 0), (128 + 8 + 16, 0xc0)] {
        let mut bytes = bytes.clone();
        bytes[page + at] = value;
        assert_eq!(past::parse(&bytes, POOL)[0].requests, [], "byte {at}");
    }
}
