//! L1 as a whole, on real shared memory.

use std::os::unix::fs::{FileExt, MetadataExt};

use lmcache_proto::hash::{ChunkHash, HashAlgorithm};

use super::*;

const OBJECT: u64 = 64 << 10;

fn config(name: &str) -> L1Config {
    L1Config::new(format!("lmcached_test_{name}_{}", std::process::id()), 1 << 20)
}

fn open(config: &L1Config) -> (L1, Recovered) {
    let (l1, recovered) = L1::open(config).expect("memory for a small pool");
    l1.reserve_memory().expect("memory for a small pool");
    (l1, recovered)
}

/// Removes the names when the test is over, whatever comes of it.
struct Discard(L1Config);

impl Drop for Discard {
    fn drop(&mut self) {
        let name = &self.0.pool_name;
        for path in lmcache_proto::shm::names::all(name) {
            let _ = std::fs::remove_file(format!("{}/{path}", pool::SHM_DIR));
        }
    }
}

fn hash(number: u8) -> ChunkHash {
    [number; 32]
}

fn cells(numbers: std::ops::Range<u8>) -> impl Cells {
    numbers.map(|number| (hash(number), 0, 0))
}

fn put(l1: &L1, salt: &str, numbers: std::ops::Range<u8>) -> Result<usize, ReserveError> {
    let reserved = l1.reserve("m", salt, cells(numbers), 7, OBJECT, None)?;
    let pins: Vec<Pin> = reserved.iter().map(|object| object.pin).collect();
    Ok(l1.commit(&pins).into_iter().filter(|done| *done).count())
}

fn row(window: Option<u64>, group: u32) -> Row {
    Row { rank: 0, group, window, layouts: [7].into() }
}

fn hashes(count: u8) -> Vec<ChunkHash> {
    (0..count).map(hash).collect()
}

#[test]
fn a_request_larger_than_the_pool_evicts_nothing() {
    let config = config("large");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    assert_eq!(put(&l1, "", 0..10), Ok(10));
    assert_eq!(put(&l1, "", 100..120), Err(ReserveError::Full), "20 of 16 slots");
    assert_eq!(l1.stats().objects, 10, "what was cached still is");
    assert_eq!(put(&l1, "", 100..112), Ok(12), "12 fit when the oldest go");
    assert_eq!(l1.stats().totals.evicted, 6);
    let removed = l1.take_removed();
    assert_eq!(removed.len(), 6);
    assert!(removed.iter().all(|gone| gone.cause == RemovalCause::Policy && &*gone.model == "m"));
    assert_eq!(removed[0].hash, hash(9), "a batch is committed tail first: the head is the most recent");
}

#[test]
fn leases_keep_objects_and_windows_lease_only_what_they_need() {
    let config = config("windows");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    put(&l1, "", 0..4).expect("room");
    let hit = l1.lookup("m", "", &hashes(6), &[row(None, 0)]);
    assert_eq!((hit.chunks, hit.cells.len(), l1.stats().leases), (4, 4, 4));
    l1.end_leases(hit.cells.iter().rev().map(|cell| cell.object));
    let hit = l1.lookup("m", "", &hashes(6), &[row(Some(2), 0)]);
    assert_eq!((hit.chunks, hit.cells.len(), l1.stats().leases), (4, 2, 2));
    assert_eq!(hit.cells[0].chunk, 2);
    // A row that nobody has stored: no hit, and nothing stays leased.
    let none = l1.lookup("m", "", &hashes(6), &[row(Some(2), 0), row(None, 1)]);
    assert_eq!((none.chunks, none.cells.len(), l1.stats().leases), (0, 0, 2));
    assert_eq!(l1.lookup("m", "other", &hashes(4), &[row(None, 0)]).chunks, 0, "salts do not mix");
}

#[test]
fn clearing_keeps_what_is_held_unless_forced() {
    let config = config("clear");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    put(&l1, "", 0..4).expect("room");
    let hit = l1.lookup("m", "", &hashes(1), &[row(None, 0)]);
    assert_eq!(l1.clear(false, || {}), 3);
    assert_eq!(l1.clear(true, || {}), 1);
    let used = l1.stats().used;
    assert_eq!(used, OBJECT, "its bytes stay until the lease ends");
    l1.end_leases(hit.cells.iter().map(|cell| cell.object));
    assert_eq!(l1.stats().used, 0);
    assert!(l1.take_removed().iter().all(|gone| gone.cause == RemovalCause::Cleared));
}

#[test]
fn a_pool_whose_table_is_not_believed_is_not_written_into() {
    let config = config("identity");
    let _discard = Discard(config.clone());
    let inode = |config: &L1Config| {
        std::fs::metadata(format!("{}/{}", pool::SHM_DIR, config.pool_name)).expect("the pool is there").ino()
    };
    let (l1, _) = open(&config);
    put(&l1, "", 0..4).expect("room");
    drop(l1);
    let first = inode(&config);
    let (l1, recovered) = open(&config);
    assert_eq!((recovered.objects, inode(&config)), (4, first), "the same configuration takes over");
    drop(l1);
    for other in [
        L1Config { align: 8192, ..config.clone() },
        L1Config { chunk_size: 128, ..config.clone() },
        L1Config { algorithm: HashAlgorithm::Sha256Cbor, ..config.clone() },
    ] {
        let before = inode(&config);
        let (l1, recovered) = open(&other);
        assert_eq!(recovered.objects, 0);
        assert_ne!(inode(&config), before, "an old worker may still write into the old memory");
        assert_eq!(put(&l1, "", 0..1), Ok(1));
    }
}

#[test]
fn a_longer_pool_keeps_what_is_in_it_and_uses_the_rest() {
    let config = config("longer");
    let _discard = Discard(config.clone());
    let inode = || std::fs::metadata(format!("{}/{}", pool::SHM_DIR, config.pool_name)).expect("there").ino();
    let (l1, _) = open(&config);
    assert_eq!(put(&l1, "salt", 0..16), Ok(16), "full");
    let owner = Owner { instance: 1, pid: 0, start_time: 0 };
    let pinned = l1.pin_read("m", "salt", cells(3..4), 7, Some(owner)).expect("it is there");
    assert_eq!(pinned.len(), 1);
    let before = inode();
    drop(l1);
    // More records of every kind, and a length that is no multiple of a reservation step.
    let larger = L1Config { pool_bytes: (200 << 20) + 4096, require_warm: true, ..config.clone() };
    let (l1, recovered) = open(&larger);
    assert_eq!((recovered.objects, recovered.dropped, recovered.pins.len()), (16, 0, 1));
    assert_eq!(inode(), before, "workers have it mapped");
    assert_eq!(hits(&l1, "salt", 16), 16);
    assert_eq!(l1.stats().frontier, larger.pool_bytes);
    for tenant in 0..12 {
        let salt = format!("tenant-{tenant}");
        assert_eq!(put(&l1, &salt, 0..200), Ok(200));
        assert_eq!(hits(&l1, &salt, 200), 200);
    }
    assert_eq!(l1.stats().totals.evicted, 0, "16 + 2400 objects of 64 KiB in 200 MiB");
    drop(l1);
    let (l1, recovered) = open(&larger);
    assert_eq!(recovered.objects, 2416);
    drop(l1);
    // Shorter than what is there is another pool.
    assert_eq!(open(&config).1.objects, 0);
}

/// An extension that ends between its steps: the table says more than there is, and the next start may want even more.
#[test]
fn an_extension_goes_on_where_it_was_left() {
    for bytes in [4 << 20, 6 << 20] {
        let config = config("halfway");
        let _discard = Discard(config.clone());
        let (l1, _) = open(&config);
        assert_eq!(put(&l1, "", 0..16), Ok(16));
        drop(l1);
        let (l1, _) = open(&L1Config { pool_bytes: 4 << 20, ..config.clone() });
        drop(l1);
        let path = format!("{}/{}", pool::SHM_DIR, config.pool_name);
        let pool = std::fs::File::options().write(true).open(path).expect("the pool is there");
        pool.set_len(config.pool_bytes).expect("as it was before");
        let (l1, recovered) = open(&L1Config { pool_bytes: bytes, require_warm: true, ..config.clone() });
        assert_eq!(recovered.objects, 16, "{bytes}");
        assert_eq!(put(&l1, "", 16..60), Ok(44), "{bytes}");
    }
}

/// A start that gives the pool up may die before it has taken a new one: then the old pool and its table must be as they were.
#[test]
fn a_table_that_is_not_believed_is_not_written_into_either() {
    let config = config("unwritten");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    put(&l1, "", 0..4).expect("room");
    drop(l1);
    let path = format!("{}/{}", pool::SHM_DIR, lmcache_proto::shm::names::table(&config.pool_name));
    let old = std::fs::File::open(path).expect("the table is there");
    let header = || {
        let mut bytes = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&old, &mut bytes, 0).expect("reads");
        bytes
    };
    let before = header();
    let (l1, recovered) = open(&L1Config { chunk_size: 128, ..config.clone() });
    assert_eq!(recovered.objects, 0);
    put(&l1, "", 0..1).expect("room");
    assert!(header() == before, "the old table still says what it said");
}

#[test]
fn a_pool_that_lost_its_name_before_the_daemon_died_is_found_again() {
    let config = config("revived");
    let _discard = Discard(config.clone());
    let path = format!("{}/{}", pool::SHM_DIR, config.pool_name);
    let (l1, _) = open(&config);
    put(&l1, "", 0..4).expect("room");
    std::fs::remove_file(&path).expect("a client removes it");
    let error = L1::open(&config).map(|_| ()).expect_err("its daemon lives");
    assert!(error.to_string().contains("running daemon"), "{error}");
    std::fs::remove_file(&path).expect("the name is there again, and goes again");
    assert_eq!(pool::default_pool_bytes(&config.pool_name), config.pool_bytes, "the size is still known");
    drop(l1);
    let (l1, recovered) = open(&config);
    assert_eq!(recovered.objects, 4);
    assert_eq!(hits(&l1, "", 4), 4);
    drop(l1);
    // Fresh is fresh, whatever name there is.
    std::fs::remove_file(&path).expect("gone");
    let (l1, recovered) = open(&L1Config { fresh: true, ..config.clone() });
    assert_eq!((recovered.objects, l1.stats().objects), (0, 0));
}

#[test]
fn others_files_are_refused() {
    let config = config("mode");
    let _discard = Discard(config.clone());
    drop(open(&config));
    let path = format!("{}/{}", pool::SHM_DIR, config.pool_name);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    let error = L1::open(&config).map(|_| ()).expect_err("others can write into it");
    assert!(error.to_string().contains("mode 666"), "{error}");
}

#[test]
fn a_name_is_found_again_when_all_are_taken() {
    let config = config("names");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    l1.index.lock().names.limit_to(4);
    for tenant in 0..20 {
        // Model, this salt and the empty name: the table has no room for more than two salts at once.
        assert_eq!(put(&l1, &format!("tenant-{tenant}"), 0..1), Ok(1), "tenant {tenant}");
    }
    assert!(l1.stats().totals.evicted >= 18);
}

#[test]
fn what_was_loaded_for_a_request_goes_with_it() {
    let config = config("temporary");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    put(&l1, "", 0..1).expect("room");
    let rows = [row(None, 0)];
    let held = l1.lease_present("m", "", &hashes(3), &rows);
    assert_eq!(held.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);
    let reserved = l1.reserve("m", "", cells(1..3), 7, OBJECT, None).expect("room");
    // The second chunk is wanted by two requests, the third by one and for good.
    let second = l1.commit_leased(&reserved[0].pin, 2, true).expect("reserved");
    let third = l1.commit_leased(&reserved[1].pin, 1, false).expect("reserved");
    assert_eq!(l1.lookup("m", "", &hashes(3), &rows).chunks, 3);
    l1.end_leases([second, third, second, second].into_iter());
    assert_eq!(l1.stats().objects, 2, "the last lease took the temporary one away");
    assert_eq!(l1.take_removed().last().map(|gone| gone.cause), Some(RemovalCause::Temporary));
    // A worker that stores it makes it stay.
    let reserved = l1.reserve("m", "", cells(1..2), 7, OBJECT, None).expect("room");
    let again = l1.commit_leased(&reserved[0].pin, 1, true).expect("reserved");
    assert_eq!(put(&l1, "", 1..2), Ok(0), "it is there");
    l1.end_leases([again].into_iter());
    assert_eq!(l1.stats().objects, 3);
    assert_eq!(l1.give_up([again].into_iter()), 1);
    assert_eq!(l1.give_up([again].into_iter()), 0);
}

#[test]
fn what_is_given_up_while_it_is_held_goes_with_its_last_holder() {
    let config = config("given_up");
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    put(&l1, "", 0..2).expect("room");
    let hit = l1.lookup("m", "", &hashes(2), &[row(None, 0)]);
    let leased: Vec<ObjectId> = hit.cells.iter().map(|cell| cell.object).collect();
    let read = l1.pin_read("m", "", cells(0..1), 7, None).expect("there");
    assert_eq!(l1.give_up(leased.iter().copied()), 0, "both are held");
    assert_eq!(hits(&l1, "", 2), 2, "and found");
    l1.end_leases(leased.into_iter());
    assert_eq!(l1.stats().objects, 1, "a reader has the first");
    l1.unpin(read.iter().map(|pinned| &pinned.pin));
    assert_eq!(l1.stats().objects, 0);
}

#[test]
fn the_prefix_rule_agrees_with_the_lookup() {
    let rows = [row(None, 0), row(Some(2), 1)];
    let present = |holes: &'static [(u64, usize)]| move |chunk, row| !holes.contains(&(chunk, row));
    assert_eq!(longest_prefix(&rows, 5, present(&[])), 5);
    assert_eq!(longest_prefix(&rows, 5, present(&[(3, 0)])), 3);
    // A hole in the windowed row only matters while the window reaches it.
    assert_eq!(longest_prefix(&rows, 5, present(&[(1, 1)])), 5);
    assert_eq!(longest_prefix(&rows, 5, present(&[(3, 1)])), 3);
    assert_eq!(longest_prefix(&rows, 0, present(&[])), 0);
}

fn quota(l1: &L1, salt: &str, objects: u64) {
    l1.quotas.set(salt, objects * OBJECT).expect("nothing is written");
    l1.trim_to_quota(salt);
}

fn hits(l1: &L1, salt: &str, count: u8) -> u64 {
    let hit = l1.lookup("m", salt, &hashes(count), &[row(None, 0)]);
    l1.end_leases(hit.cells.iter().rev().map(|cell| cell.object));
    hit.chunks
}

#[test]
fn a_salt_at_its_quota_gives_up_its_own_oldest_and_nothing_of_others() {
    for policy in [PolicyKind::Lru, PolicyKind::Arc, PolicyKind::IsolatedLru] {
        let config = L1Config { policy, quotas: Arc::default(), ..config(&format!("quota_{policy:?}")) };
        let _discard = Discard(config.clone());
        let (l1, _) = open(&config);
        put(&l1, "other", 0..4).expect("room");
        quota(&l1, "a", 4);
        put(&l1, "a", 0..3).expect("room");
        assert_eq!((l1.bytes_of_salt("a"), l1.bytes_of_salt("other")), (3 * OBJECT, 4 * OBJECT));
        // A longer prompt with the same head: the head stays, and its tail takes the last place.
        assert_eq!(put(&l1, "a", 0..4), Ok(1));
        assert_eq!(hits(&l1, "a", 4), 4);
        // Another prompt: two of the old one go, its tail first.
        assert_eq!(put(&l1, "a", 100..102), Ok(2));
        assert_eq!((hits(&l1, "a", 4), l1.bytes_of_salt("a")), (2, 4 * OBJECT));
        // More than the quota: refused, and nothing goes.
        assert_eq!(put(&l1, "a", 0..5), Err(ReserveError::OverQuota));
        assert_eq!(put(&l1, "a", 200..205), Err(ReserveError::OverQuota));
        assert_eq!((hits(&l1, "a", 4), l1.bytes_of_salt("a"), hits(&l1, "other", 4)), (2, 4 * OBJECT, 4));
        let removed = l1.take_removed();
        assert!(removed.iter().all(|gone| &*gone.salt == "a" && gone.cause == RemovalCause::Policy));
        // Salts without a quota are as free as ever.
        assert_eq!(put(&l1, "free", 0..6), Ok(6));
    }
}

#[test]
fn what_is_being_written_or_held_counts() {
    let config = L1Config { quotas: Arc::default(), ..config("quota_held") };
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    quota(&l1, "a", 2);
    let reserve = |numbers| l1.reserve("m", "a", cells(numbers), 7, OBJECT, None);
    let writing = reserve(0..2).expect("room");
    assert_eq!(l1.bytes_of_salt("a"), 2 * OBJECT);
    assert_eq!(reserve(2..3).map(|_| ()), Err(ReserveError::OverQuota), "nothing can be evicted yet");
    l1.abort(writing.iter().map(|object| &object.pin));
    assert_eq!(l1.bytes_of_salt("a"), 0);
    put(&l1, "a", 0..2).expect("room");
    let held = l1.lookup("m", "a", &hashes(1), &[row(None, 0)]);
    quota(&l1, "a", 0);
    assert_eq!(l1.bytes_of_salt("a"), OBJECT, "a lease keeps what it holds");
    l1.end_leases(held.cells.iter().map(|cell| cell.object));
    assert_eq!(l1.trim_to_quotas(), OBJECT);
    assert_eq!(put(&l1, "a", 0..1), Err(ReserveError::OverQuota), "0 is none");
    l1.quotas.remove("a").expect("nothing is written");
    l1.trim_to_quota("a");
    assert_eq!(put(&l1, "a", 0..10), Ok(10));
    assert_eq!(l1.clear(true, || {}), 10);
    assert_eq!(l1.bytes_of_salt("a"), 0);
}

#[test]
fn with_isolated_lru_those_without_a_quota_share_what_is_left() {
    let config = L1Config { policy: PolicyKind::IsolatedLru, quotas: Arc::default(), ..config("quota_left") };
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    quota(&l1, "a", 10);
    put(&l1, "a", 0..10).expect("room");
    for seed in 0..4 {
        put(&l1, "one", 10 * seed..10 * seed + 3).expect("room");
        put(&l1, "two", 10 * seed..10 * seed + 3).expect("room");
    }
    assert_eq!((hits(&l1, "a", 10), l1.bytes_of_salt("a")), (10, 10 * OBJECT), "never touched by the others");
    assert_eq!(l1.bytes_of_salt("one") + l1.bytes_of_salt("two"), 6 * OBJECT);
    // Recovered objects count too, and a quota that was cut meanwhile is kept at the first look.
    drop(l1);
    config.quotas.set("a", 3 * OBJECT).expect("nothing is written");
    let (l1, recovered) = open(&config);
    assert_eq!((recovered.objects, l1.bytes_of_salt("a")), (16, 10 * OBJECT));
    assert_eq!(l1.trim_to_quotas(), 7 * OBJECT);
    assert_eq!(l1.bytes_of_salt("a"), 3 * OBJECT);
}

#[test]
fn without_eviction_a_quota_is_a_wall() {
    let config = L1Config { policy: PolicyKind::Noop, quotas: Arc::default(), ..config("quota_noop") };
    let _discard = Discard(config.clone());
    let (l1, _) = open(&config);
    quota(&l1, "a", 2);
    put(&l1, "a", 0..2).expect("room");
    assert_eq!(put(&l1, "a", 2..3), Err(ReserveError::OverQuota));
    assert_eq!(hits(&l1, "a", 2), 2);
}

#[test]
fn bytes_that_have_changed_are_served_to_nobody() {
    let config = L1Config { checksums: true, ..config("checksums") };
    let _discard = Discard(config.clone());
    let file = |config: &L1Config| {
        let path = format!("{}/{}", pool::SHM_DIR, config.pool_name);
        std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the pool is there")
    };
    let (l1, _) = open(&config);
    let reserved = l1.reserve("m", "", cells(0..3), 7, OBJECT, None).expect("room");
    let places: Vec<u64> = reserved.iter().map(|object| object.offset).collect();
    for (number, place) in (1u8..).zip(&places) {
        file(&config).write_all_at(&vec![number; OBJECT as usize], *place).expect("a worker writes");
    }
    let pins: Vec<Pin> = reserved.iter().map(|object| object.pin).collect();
    l1.seal(&pins);
    assert_eq!(l1.commit(&pins), [true; 3]);
    let verified = |l1: &L1| -> Vec<Option<bool>> {
        let one = |number: u8| {
            let pinned = l1.pin_read("m", "", cells(number..number + 1), 7, None).ok()?;
            let intact = l1.verify(&pinned[0]);
            l1.unpin(pinned.iter().map(|object| &object.pin));
            Some(intact)
        };
        (0..3).map(one).collect()
    };
    assert_eq!(verified(&l1), [Some(true); 3]);
    // One bit of the second; and the third gets the first one's bytes, which are somebody's good bytes.
    file(&config).write_all_at(&[3], places[1] + OBJECT - 1).expect("a stray write");
    file(&config).write_all_at(&vec![1; OBJECT as usize], places[2]).expect("a stray copy");
    assert_eq!(verified(&l1), [Some(true), Some(false), Some(false)]);
    assert_eq!(verified(&l1), [Some(true), None, None], "they are gone");
    let stats = l1.stats();
    assert_eq!((stats.totals.damaged, stats.objects, stats.pins, stats.used), (2, 1, 0, OBJECT));
    assert!(l1.take_removed().iter().all(|gone| gone.cause == RemovalCause::Damaged));
    // The next daemon knows what was committed, whether or not it asks for checksums of its own objects.
    drop(l1);
    let (l1, recovered) = open(&config);
    assert_eq!(recovered.objects, 1);
    assert_eq!(verified(&l1), [Some(true), None, None]);
    // What has no checksum is believed.
    drop(l1);
    let (l1, _) = open(&L1Config { checksums: false, ..config.clone() });
    file(&config).write_all_at(&[9], places[0]).expect("a stray write");
    assert_eq!(put(&l1, "", 1..3), Ok(2));
    assert_eq!(verified(&l1), [Some(true); 3], "nobody asked");
    drop(l1);
    let (l1, _) = open(&config);
    assert_eq!(verified(&l1), [Some(false), Some(true), Some(true)]);
}
