//! Recovery from a table that holds anything, and L1's life after it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU32, AtomicU64};

use lmcache_proto::fuzzing::Input;
use lmcache_proto::shm::{
    self, NAME_BYTES, NameRecord, ObjectRecord, ObjectState, PAGE, PinRecord, TABLE_MAGIC, TABLE_VERSION,
    TableHeader, TableLayout,
};

use super::lock::Lock;
use super::pool::SHM_DIR;
use super::{L1, L1Config, Owner, Pin, Row};

/// Sixty-four pages: records overlap soon.
const POOL: u64 = 64 * PAGE;
/// Object and pin records that the input may describe.
const RECORDS: u64 = 48;

/// Removes the names when the run is over, whatever comes of it.
struct Discard(String);

impl Drop for Discard {
    fn drop(&mut self) {
        for name in shm::names::all(&self.0) {
            let _ = std::fs::remove_file(format!("{SHM_DIR}/{name}"));
        }
    }
}

/// Where a record's fields go in its bytes.
struct Image<'a>(&'a mut [u8]);

impl Image<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether the next record is to look whole: most of what is wrong with a table is found only behind its checksums.
fn plausible(input: &mut Input<'_>) -> bool {
    !input.byte().is_multiple_of(4)
}

fn object(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<ObjectRecord>()];
    if !plausible(input) {
        let raw = input.bytes(bytes.len());
        bytes[..raw.len()].copy_from_slice(raw);
        return bytes;
    }
    let state = u32::from(input.byte() % 6);
    let (offset, length) = match input.byte() {
        0..=199 => (input.number(1) % 70 * PAGE, input.number(2)),
        200..=229 => (input.number(3), input.number(3)),
        _ => (input.number(8), input.number(8)),
    };
    let record = ObjectRecord {
        state: AtomicU32::new(state),
        generation: input.number(1) as u32,
        chunk_hash: [input.byte() % 16; 32],
        model: u32::from(input.byte() % 8),
        salt: u32::from(input.byte() % 8),
        kv_rank: u32::from(input.byte() % 2),
        group: u32::from(input.byte() % 2),
        offset,
        length,
        layout: input.number(1),
        checksum: 0,
        payload: AtomicU64::new(input.number(1)),
        reserved: [0; 4],
    };
    let seal = record.seal();
    let mut image = Image(&mut bytes);
    image.put(offset_of!(ObjectRecord, state), &state.to_ne_bytes());
    image.put(offset_of!(ObjectRecord, chunk_hash), &record.chunk_hash);
    for (at, number) in [
        (offset_of!(ObjectRecord, generation), record.generation),
        (offset_of!(ObjectRecord, model), record.model),
        (offset_of!(ObjectRecord, salt), record.salt),
        (offset_of!(ObjectRecord, kv_rank), record.kv_rank),
        (offset_of!(ObjectRecord, group), record.group),
    ] {
        image.put(at, &number.to_ne_bytes());
    }
    for (at, number) in [
        (offset_of!(ObjectRecord, offset), record.offset),
        (offset_of!(ObjectRecord, length), record.length),
        (offset_of!(ObjectRecord, layout), record.layout),
        (offset_of!(ObjectRecord, checksum), seal),
        (offset_of!(ObjectRecord, payload), record.payload.into_inner()),
    ] {
        image.put(at, &number.to_ne_bytes());
    }
    bytes
}

fn pin(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<PinRecord>()];
    if !plausible(input) {
        let raw = input.bytes(bytes.len());
        bytes[..raw.len()].copy_from_slice(raw);
        return bytes;
    }
    let mut image = Image(&mut bytes);
    for (at, number) in [
        (offset_of!(PinRecord, kind), u32::from(input.byte() % 4)),
        (offset_of!(PinRecord, object), u32::from(input.byte())),
        (offset_of!(PinRecord, generation), u32::from(input.byte())),
        (offset_of!(PinRecord, pid), u32::from(input.byte())),
    ] {
        image.put(at, &number.to_ne_bytes());
    }
    for (at, number) in [
        (offset_of!(PinRecord, instance), input.number(1)),
        (offset_of!(PinRecord, offset), input.number(1) * PAGE),
        (offset_of!(PinRecord, length), input.number(2)),
    ] {
        image.put(at, &number.to_ne_bytes());
    }
    bytes
}

fn name(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<NameRecord>()];
    let length = if plausible(input) { u32::from(input.byte() % 8) } else { input.number(4) as u32 };
    let text = input.bytes((length as usize).min(NAME_BYTES));
    let mut image = Image(&mut bytes);
    image.put(offset_of!(NameRecord, length), &length.to_ne_bytes());
    image.put(offset_of!(NameRecord, bytes), text);
    bytes
}

/// Writes the table that an earlier daemon might have left, were it not ours.
fn scribble(config: &L1Config, input: &mut Input<'_>) -> std::io::Result<()> {
    let layout = TableLayout::for_pool(config.pool_bytes);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(format!("{SHM_DIR}/{name}"));
    let table = open(&shm::names::table(&config.pool_name))?;
    let pool = open(&config.pool_name)?.metadata()?;
    let mut bytes = vec![0; size_of::<TableHeader>()];
    let mut header = Image(&mut bytes);
    header.put(offset_of!(TableHeader, magic), &TABLE_MAGIC);
    for (at, number) in [
        (offset_of!(TableHeader, version), TABLE_VERSION),
        (offset_of!(TableHeader, chunk_size), config.chunk_size),
        (offset_of!(TableHeader, hash_algorithm), config.algorithm as u32),
        (offset_of!(TableHeader, align_shift), config.align.ilog2()),
    ] {
        header.put(at, &number.to_ne_bytes());
    }
    let (objects, pins, names) = (input.number(1) % RECORDS, input.number(1) % RECORDS, input.number(1) % 9);
    let frontier = input.number(2) * (PAGE / 2);
    for (at, number) in [
        (offset_of!(TableHeader, objects), layout.objects),
        (offset_of!(TableHeader, pins), layout.pins),
        (offset_of!(TableHeader, names), layout.names),
        (offset_of!(TableHeader, pool_bytes), config.pool_bytes),
        (offset_of!(TableHeader, pool_inode), pool.ino()),
        (offset_of!(TableHeader, objects_used), objects),
        (offset_of!(TableHeader, pins_used), pins),
        (offset_of!(TableHeader, names_used), names),
        (offset_of!(TableHeader, frontier), frontier),
    ] {
        header.put(at, &number.to_ne_bytes());
    }
    // Rarely something else in the header, which is then mostly no table of ours.
    if input.byte() == 0xff {
        let at = usize::from(input.byte()) % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&input.number(8).to_ne_bytes());
    }
    table.write_all_at(&bytes, 0)?;
    for id in 0..names {
        table.write_all_at(&name(input), layout.names_at() + id * size_of::<NameRecord>() as u64)?;
    }
    for index in 0..objects {
        table.write_all_at(&object(input), layout.objects_at() + index * size_of::<ObjectRecord>() as u64)?;
    }
    for index in 0..pins {
        table.write_all_at(&pin(input), layout.pins_at() + index * size_of::<PinRecord>() as u64)?;
    }
    Ok(())
}

/// No two objects share a byte, and none leaves the pool. Returns how many there are.
fn check(l1: &L1, align: u64) -> usize {
    let index = l1.index.lock();
    let mut ranges: BTreeMap<u64, u64> = BTreeMap::new();
    let mut used = 0;
    for entry in (0..index.records()).filter_map(|record| index.record(record)) {
        if entry.state != ObjectState::Free {
            let footprint = index.allocator.footprint(entry.length);
            assert!(entry.offset.is_multiple_of(align) && entry.length > 0);
            assert!(entry.offset + footprint <= POOL, "{entry:?} leaves the pool");
            assert!(
                ranges.insert(entry.offset, entry.offset + footprint).is_none(),
                "two objects at one place"
            );
            used += footprint;
        }
    }
    let ends: Vec<(u64, u64)> = ranges.into_iter().collect();
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two objects share bytes: {ends:?}");
    assert_eq!(index.allocator.used(), used, "bytes that are nobody's, or counted twice");
    ends.len()
}

/// A table of the input's making: opened, used, given back, and opened again.
pub fn object_table(data: &[u8]) {
    let mut input = Input::new(data);
    let name = format!("lmcached_fuzz_table_{}", std::process::id());
    let align = PAGE << (input.byte() % 3);
    let checks = input.byte();
    let config = L1Config {
        align,
        verify_payload: checks & 2 == 2,
        checksums: checks & 1 == 1,
        ..L1Config::new(name.clone(), POOL)
    };
    let _discard = Discard(name);
    drop(L1::open(&config).expect("memory for a small pool"));
    scribble(&config, &mut input).expect("the table is there");
    let (l1, recovered) = L1::open(&config).expect("anything can be opened");
    // It comes in the background: what is given up meanwhile may lie behind what is there.
    let late = checks & 4 == 4;
    if !late {
        l1.reserve_memory().expect("memory for a small pool");
    }
    check(&l1, align);
    let stats = l1.stats();
    assert_eq!(recovered.objects, stats.objects);
    assert_eq!(recovered.pins.len() as u64, stats.pins);
    assert!(stats.quarantined <= stats.pins, "a range in quarantine without a holder");
    let mut held: Vec<Pin> = recovered.pins.into_iter().map(|(_, pin)| pin).collect();
    live(&l1, &mut input, &mut held, align);
    if late {
        l1.reserve_memory().expect("memory for a small pool");
    }
    // Gives up what is being written, and ends what is read.
    l1.abort(held.iter());
    l1.clear(true, || {});
    assert_eq!(check(&l1, align), 0, "nobody holds it and nobody can find it");
    assert_eq!((l1.stats().used, l1.stats().pins, l1.stats().leases), (0, 0, 0));
    let whole = POOL / align * align;
    let all = l1.reserve("m", "", std::iter::once(([9; 32], 0, 0)), 1, whole, None);
    let all = all.expect("all memory is back");
    assert_eq!(l1.commit(&[all[0].pin]), [true]);
    drop(l1);
    // What we have written ourselves is taken over as it was.
    let (l1, recovered) = L1::open(&config).expect("our own table");
    assert_eq!((recovered.objects, recovered.bytes, recovered.pins.len()), (1, whole, 0));
    assert_eq!(recovered.dropped, 0);
    check(&l1, align);
}

/// Workers come and go.
fn live(l1: &L1, input: &mut Input<'_>, held: &mut Vec<Pin>, align: u64) {
    let mut leases = Vec::new();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (what, hash) = (input.byte(), [input.byte() % 16; 32]);
        let owner = Some(Owner { instance: 1, pid: 1, start_time: u64::from(what) });
        let cell = std::iter::once((hash, u32::from(what & 1), 0));
        match what % 6 {
            0 | 1 => {
                let length = input.number(2).max(1);
                if let Ok(reserved) = l1.reserve("m", "s", cell, 1, length, owner) {
                    for object in &reserved {
                        assert!(l1.slot_mut(object).is_some(), "a slot outside the pool");
                        held.push(object.pin);
                    }
                }
            }
            2 => {
                let pin = (!held.is_empty()).then(|| held.swap_remove(usize::from(hash[0]) % held.len()));
                l1.seal(pin.as_slice());
                l1.commit(pin.as_slice());
            }
            3 => {
                let row = Row { rank: u32::from(what & 1), group: 0, window: None, layouts: [1].into() };
                let hit = l1.lookup("m", "s", &[hash], &[row]);
                leases.extend(hit.cells.iter().map(|cell| cell.object));
            }
            4 => {
                if let Ok(pinned) = l1.pin_read("m", "s", cell, 1, owner) {
                    assert!(pinned.iter().all(|object| l1.slot_ref(object).is_some()));
                    // What was committed before us may be of any bytes; what it is not, leaves its key.
                    for object in &pinned {
                        let _ = l1.verify(object);
                    }
                    held.extend(pinned.iter().map(|object| object.pin));
                }
            }
            _ => {
                if let Some(pin) = held.get(usize::from(hash[0]) % held.len().max(1)) {
                    l1.quarantine([pin].into_iter());
                }
            }
        }
        check(l1, align);
    }
    l1.end_leases(leases.into_iter());
}
