//! Tables that no daemon of ours would have written.

use std::os::unix::fs::MetadataExt;

use lmcache_proto::shm::{self, ObjectState, TableLayout};

use super::super::pool::{ObjectFields, SHM_DIR, Segment, Table, TableIdentity};
use super::super::{L1, L1Config, Pin, Row};

const OBJECT: u64 = 64 << 10;

/// Removes the names when the test is over, whatever comes of it.
struct Discard(L1Config);

impl Discard {
    fn new(name: &str, pool_bytes: u64) -> Discard {
        Discard(L1Config {
            align: OBJECT,
            ..L1Config::new(format!("lmcached_test_recover_{name}_{}", std::process::id()), pool_bytes)
        })
    }

    fn open(&self) -> (L1, super::Recovered) {
        let (l1, recovered) = L1::open(&self.0).expect("memory for a small pool");
        l1.reserve_memory().expect("memory for a small pool");
        (l1, recovered)
    }

    /// The table that the last daemon left, for somebody to scribble in.
    fn table(&self) -> Table {
        let layout = TableLayout::for_pool(self.0.pool_bytes);
        let name = shm::names::table(&self.0.pool_name);
        let segment = Segment::open(&name, layout.bytes(), true, None).expect("the table is there");
        let pool = std::fs::metadata(format!("{SHM_DIR}/{}", self.0.pool_name)).expect("the pool is there");
        let identity = TableIdentity {
            chunk_size: self.0.chunk_size,
            algorithm: self.0.algorithm,
            pool_bytes: self.0.pool_bytes,
            pool_inode: pool.ino(),
            align: self.0.align,
        };
        let (table, believed) = Table::open(segment, layout, identity).expect("memory for its header");
        assert!(believed);
        table
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        for name in shm::names::all(&self.0.pool_name) {
            let _ = std::fs::remove_file(format!("{SHM_DIR}/{name}"));
        }
    }
}

fn put(l1: &L1, hashes: impl Iterator<Item = u8> + Clone) -> usize {
    let cells = hashes.map(|number| ([number; 32], 0, 0));
    let Ok(reserved) = l1.reserve("m", "s", cells, 7, OBJECT, None) else { return 0 };
    for object in &reserved {
        assert!(l1.slot_mut(object).is_some(), "an object behind the pool, at {}", object.offset);
    }
    let pins: Vec<Pin> = reserved.iter().map(|object| object.pin).collect();
    l1.commit(&pins).into_iter().filter(|done| *done).count()
}

fn hits(l1: &L1, hash: u8) -> u64 {
    let row = Row { rank: 0, group: 0, window: None, layouts: [7].into() };
    let hit = l1.lookup("m", "s", &[[hash; 32]], &[row]);
    l1.end_leases(hit.cells.iter().map(|cell| cell.object));
    hit.chunks
}

#[test]
fn a_name_that_is_there_twice_takes_no_object_away() {
    let pool = Discard::new("twice", 1 << 20);
    let (l1, _) = pool.open();
    assert_eq!(put(&l1, 0..4), 4);
    drop(l1);
    let table = pool.table();
    for id in [7, 9] {
        assert!(table.back_name(id));
        table.write_name(id, "m");
    }
    assert!(table.back_name(8));
    table.write_name(8, "s");
    drop(table);
    let (l1, recovered) = pool.open();
    assert_eq!((recovered.objects, hits(&l1, 3)), (4, 1));
    // And the names are given up once, by the last object that has them.
    assert_eq!(l1.clear(true, || {}), 4);
    assert_eq!(put(&l1, 10..12), 2);
    assert_eq!(hits(&l1, 11), 1);
}

#[test]
fn an_object_whose_last_page_is_behind_the_pool_is_dropped() {
    // A page more than sixteen objects.
    let pool = Discard::new("behind", (1 << 20) + shm::PAGE);
    drop(pool.open());
    let table = pool.table();
    assert!(table.back_object(0));
    let fields = ObjectFields {
        chunk_hash: [1; 32],
        model: 0,
        salt: 0,
        kv_rank: 0,
        group: 0,
        offset: 1 << 20,
        length: shm::PAGE,
        layout: 7,
    };
    table.write_object(0, 1, &fields, ObjectState::Committed);
    drop(table);
    let (l1, recovered) = pool.open();
    assert_eq!((recovered.objects, recovered.dropped), (0, 1));
    assert_eq!(put(&l1, 0..16), 16);
    assert_eq!(put(&l1, 16..32), 16, "in the place of the others");
    assert_eq!(l1.stats().used, 1 << 20);
}
