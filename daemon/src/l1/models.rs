//! L1 under every order in which its threads can take turns (loom).
//!
//! The code under test is the code that ships, on real shared memory; only its lock is the checker's. Every critical section is
//! a step, and a thread can be interrupted between any two. What a test thread does with bytes it holds is another step, so
//! two holders of the same bytes meet in some order that is tried.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lmcache_proto::shm::PAGE;
use loom::thread;

use super::index::Index;
use super::lock::Lock;
use super::{L1, L1Config, ObjectId, Owner, Pin, Recovered, Row, pool};

struct Checked {
    value: loom::sync::Mutex<Index>,
    changed: loom::sync::Condvar,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checked")
    }
}

impl Lock<Index> for Checked {
    type Held<'a> = loom::sync::MutexGuard<'a, Index>;

    fn new(value: Index) -> Checked {
        Checked { value: loom::sync::Mutex::new(value), changed: loom::sync::Condvar::new() }
    }

    fn lock(&self) -> Self::Held<'_> {
        self.value.lock().expect("loom has no poison")
    }

    fn tell(&self) {
        self.changed.notify_all();
    }

    /// The checker has no clock: the time never comes, and who is not told waits for ever, which it reports.
    fn wait_while(&self, _: Instant, still: impl Fn(&Index) -> bool) -> bool {
        let mut value = self.value.lock().expect("loom has no poison");
        while still(&value) {
            value = self.changed.wait(value).expect("loom has no poison");
        }
        true
    }
}

type Checkable = L1<Checked>;

const OBJECT: u64 = 2 * PAGE;

fn config(name: &str, objects: u64) -> L1Config {
    L1Config {
        fresh: true,
        ..L1Config::new(format!("lmcached_test_model_{name}_{}", std::process::id()), objects * OBJECT)
    }
}

/// Removes the names when the model is done, whatever comes of it.
struct Discard(String);

impl Drop for Discard {
    fn drop(&mut self) {
        for name in lmcache_proto::shm::names::all(&self.0) {
            let _ = std::fs::remove_file(format!("{}/{name}", pool::SHM_DIR));
        }
    }
}

fn model(name: &'static str, objects: u64, check: impl Fn(World) + Sync + Send + 'static) {
    let config = config(name, objects);
    let _discard = Discard(config.pool_name.clone());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let (l1, _): (Checkable, Recovered) = L1::open_with(&config).expect("memory for a small pool");
        l1.reserve_memory().expect("memory for a small pool");
        check(World { l1: Arc::new(l1), held: Arc::default() });
    });
}

/// Who uses which bytes, as the threads themselves see it. No lock of the checker: it is no step of its own.
#[derive(Debug, Default)]
#[expect(
    clippy::disallowed_types,
    reason = "the model is told what is held by a lock that loom does not see"
)]
struct Held(std::sync::Mutex<BTreeMap<u64, Use>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Written(u8),
    Read(u8, u32),
}

#[derive(Clone)]
struct World {
    l1: Arc<Checkable>,
    held: Arc<Held>,
}

fn owner(instance: u64) -> Option<Owner> {
    Some(Owner { instance, pid: 1, start_time: 1 })
}

fn cell(key: u8) -> impl super::Cells {
    std::iter::once(([key; 32], 0, 0))
}

impl World {
    fn spawn(&self, work: impl FnOnce(World) + 'static) -> thread::JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || work(world))
    }

    /// Reserves an object; from now on its bytes are this thread's alone.
    fn begin_write(&self, key: u8, instance: u64) -> Option<(Pin, u64)> {
        let reserved = self.l1.reserve("m", "s", cell(key), 7, OBJECT, owner(instance)).ok()?;
        let object = reserved.first()?;
        let before = self.held.0.lock().expect("no panic").insert(object.offset, Use::Written(key));
        assert_eq!(before, None, "{key} was given bytes that somebody uses");
        Some((object.pin, object.offset))
    }

    /// The bytes are complete, or given up: they are not this thread's any more.
    fn end_write(&self, key: u8, offset: u64) {
        let before = self.held.0.lock().expect("no panic").remove(&offset);
        assert_eq!(before, Some(Use::Written(key)), "somebody else used what {key} was writing");
    }

    fn store(&self, key: u8, instance: u64) -> bool {
        let Some((pin, offset)) = self.begin_write(key, instance) else { return false };
        self.end_write(key, offset);
        self.l1.commit(&[pin])[0]
    }

    fn lease(&self, key: u8) -> Option<ObjectId> {
        let row = Row { rank: 0, group: 0, window: None, layouts: [7].into() };
        let hit = self.l1.lookup("m", "s", &[[key; 32]], &[row]);
        hit.cells.first().map(|cell| cell.object)
    }

    /// Reads an object as a worker does. Whether it was there.
    fn read(&self, key: u8, instance: u64) -> bool {
        let Ok(pinned) = self.l1.pin_read("m", "s", cell(key), 7, owner(instance)) else { return false };
        let offset = pinned[0].offset;
        let change = |by: i32| {
            let mut held = self.held.0.lock().expect("no panic");
            let readers = match held.remove(&offset) {
                None => 0,
                Some(Use::Read(other, readers)) if other == key => readers as i32,
                Some(other) => panic!("{key} is read where {other:?}"),
            } + by;
            if readers > 0 {
                held.insert(offset, Use::Read(key, readers as u32));
            }
        };
        change(1);
        // Others have their turn while the bytes are read.
        thread::yield_now();
        change(-1);
        self.l1.unpin(std::iter::once(&pinned[0].pin));
        true
    }

    /// Everybody is done: nothing is held, and what is used is what can be found.
    fn check_at_rest(&self) {
        let stats = self.l1.stats();
        assert_eq!((stats.leases, stats.pins, stats.writing, stats.quarantined), (0, 0, 0, 0));
        assert_eq!(stats.used, stats.objects * OBJECT, "bytes that nobody can find");
        self.l1.clear(true, || {});
        assert_eq!(self.l1.stats().used, 0);
    }
}

#[test]
#[ignore = "its scheduler takes the process's SIGBUS handler, which other unit tests need: run alone"]
fn pinned_bytes_are_nobody_elses() {
    // Room for one object: whoever stores must wait for nobody and take from nobody who holds.
    model("pins", 1, |world| {
        assert!(world.store(1, 1));
        let reader = world.spawn(|world| {
            world.read(1, 2);
        });
        let writer = world.spawn(|world| {
            world.store(2, 3);
        });
        world.store(3, 1);
        reader.join().expect("reader");
        writer.join().expect("writer");
        world.check_at_rest();
    });
}

#[test]
#[ignore = "its scheduler takes the process's SIGBUS handler, which other unit tests need: run alone"]
fn a_reservation_whose_time_is_over_keeps_its_bytes_until_its_holder_ends_it() {
    model("quarantine", 2, |world| {
        let (pin, offset) = world.begin_write(1, 1).expect("an empty pool");
        // The reaper, the holder that commits late, and somebody who wants the key and the bytes.
        let reaper = {
            let l1 = world.l1.clone();
            thread::spawn(move || l1.quarantine(std::iter::once(&pin)))
        };
        let other = world.spawn(|world| {
            world.store(1, 2);
            world.store(2, 2);
        });
        world.end_write(1, offset);
        let committed = world.l1.commit(&[pin])[0];
        reaper.join().expect("reaper");
        other.join().expect("other");
        // In time it is readable; too late it is nobody's. Twice is never an error.
        assert!(!world.l1.commit(&[pin])[0], "committed twice ({committed})");
        world.check_at_rest();
    });
}

#[test]
#[ignore = "its scheduler takes the process's SIGBUS handler, which other unit tests need: run alone"]
fn a_leased_object_stays_until_its_last_lease_ends() {
    model("leases", 1, |world| {
        assert!(world.store(1, 1));
        let writer = world.spawn(|world| {
            world.store(2, 3);
        });
        let clearer = world.spawn(|world| {
            world.l1.clear(false, || {});
        });
        if let Some(object) = world.lease(1) {
            assert!(world.read(1, 2), "what was looked up is there to be retrieved");
            assert!(world.l1.attached(std::iter::once(object))[0]);
            world.l1.end_leases(std::iter::once(object));
            // A lease ends once, however often it is said.
            world.l1.end_leases(std::iter::once(object));
        }
        writer.join().expect("writer");
        clearer.join().expect("clearer");
        world.check_at_rest();
    });
}

#[test]
#[ignore = "its scheduler takes the process's SIGBUS handler, which other unit tests need: run alone"]
fn what_is_cleared_by_force_while_held_is_freed_by_its_last_holder() {
    model("force", 1, |world| {
        assert!(world.store(1, 1));
        let clearer = world.spawn(|world| {
            world.l1.clear(true, || {});
            world.store(2, 3);
        });
        let reader = world.spawn(|world| {
            world.read(1, 4);
        });
        let object = world.lease(1);
        world.l1.end_leases(object.into_iter());
        clearer.join().expect("clearer");
        reader.join().expect("reader");
        world.check_at_rest();
    });
}

#[test]
#[ignore = "its scheduler takes the process's SIGBUS handler, which other unit tests need: run alone"]
fn what_was_loaded_for_two_requests_goes_with_the_last_of_them() {
    model("temporary", 1, |world| {
        let reserved = world.l1.reserve("m", "s", cell(1), 7, OBJECT, None).expect("an empty pool");
        let object = world.l1.commit_leased(&reserved[0].pin, 2, true).expect("reserved");
        let ends = move |world: World| world.l1.end_leases(std::iter::once(object));
        let (first, second) = (world.spawn(ends), world.spawn(ends));
        // A third finds it, or does not.
        let third = world.lease(1);
        first.join().expect("first");
        second.join().expect("second");
        assert_eq!(world.l1.stats().objects, u64::from(third.is_some()));
        world.l1.end_leases(third.into_iter());
        assert_eq!((world.l1.stats().objects, world.l1.stats().used), (0, 0));
        world.check_at_rest();
    });
}

#[test]
#[ignore = "its scheduler takes the process's SIGBUS handler, which other unit tests need: run alone"]
fn who_waits_for_the_last_holder_is_woken() {
    model("unheld", 2, |world| {
        assert!(world.store(1, 1));
        let object = world.lease(1).expect("stored a moment ago");
        let (pin, offset) = world.begin_write(2, 1).expect("room for it");
        let lease = world.spawn(move |world| world.l1.end_leases(std::iter::once(object)));
        let write = world.spawn(move |world| {
            world.end_write(2, offset);
            world.l1.abort(std::iter::once(&pin));
        });
        // A word that is lost is a wait without end, which the checker reports.
        assert!(world.l1.wait_unheld(Instant::now()));
        lease.join().expect("lease");
        write.join().expect("write");
        world.check_at_rest();
    });
}
