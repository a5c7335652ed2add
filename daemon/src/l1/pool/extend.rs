//! The records of a table, in a larger one.
#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use lmcache_proto::shm::{NameRecord, ObjectRecord, PAGE, PinRecord, TableHeader, TableLayout};

use super::segment::Segment;

/// Makes `to` the table that `from` is, for a pool of `pool_bytes`. Indices of records stay what they are.
///
/// Nobody may look at `to` under a table's name before this has returned, as its header comes first.
///
/// # Errors
/// No memory for the records.
pub(in crate::l1) fn copy_records(
    (from, old): (&Segment, TableLayout),
    (to, new): (&Segment, TableLayout),
    pool_bytes: u64,
) -> io::Result<()> {
    assert!(from.bytes() >= old.bytes() && to.bytes() >= new.bytes(), "segments of the layouts' sizes");
    let no_fewer = old.names <= new.names && old.objects <= new.objects && old.pins <= new.pins;
    assert!(no_fewer, "a larger pool has no fewer records");
    // SAFETY: page aligned and larger than the header; any bit pattern is a valid one; the lock on the segment is ours.
    let mut header = unsafe { ptr::read(from.base().as_ptr().cast::<TableHeader>()) };
    (header.names, header.objects, header.pins) = (new.names, new.objects, new.pins);
    // No more is real memory than there was.
    header.frontier = AtomicU64::new(header.frontier.load(Ordering::Relaxed).min(header.pool_bytes));
    header.pool_bytes = pool_bytes;
    let used = |count: &AtomicU64, most: u64| count.load(Ordering::Relaxed).min(most);
    let parts = [
        (old.names_at(), new.names_at(), used(&header.names_used, old.names), size_of::<NameRecord>()),
        (
            old.objects_at(),
            new.objects_at(),
            used(&header.objects_used, old.objects),
            size_of::<ObjectRecord>(),
        ),
        (old.pins_at(), new.pins_at(), used(&header.pins_used, old.pins), size_of::<PinRecord>()),
    ];
    to.back(0, PAGE)?;
    // SAFETY: as above, for the other segment.
    unsafe { ptr::write(to.base().as_ptr().cast::<TableHeader>(), header) };
    for (at, new_at, count, size) in parts {
        let bytes = count * size as u64;
        if bytes == 0 {
            continue;
        }
        // What a count says to be there need not be.
        from.back(at, bytes)?;
        to.back(new_at, bytes)?;
        // SAFETY: `count` records of a part lie inside the segment by its layout (asserted above), the same in the other one;
        // two mappings of two files do not overlap, and both are ours alone.
        unsafe {
            let (at, new_at) =
                (from.base().as_ptr().add(at as usize), to.base().as_ptr().add(new_at as usize));
            ptr::copy_nonoverlapping(at, new_at, bytes as usize);
        }
    }
    Ok(())
}
