//! Reading the table's records on all cores: what needs no knowledge of other records.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::mpsc::SyncSender;

use lmcache_proto::shm::ObjectState;

use crate::l1::pool::{ObjectFields, Pool, Table};
use crate::l1::verify::payload_checksum;

/// Records that are read before those read are taken over: bounds the memory that reading takes, to some 10 MB for each of the
/// three batches that there are at once.
pub(super) const BATCH: u32 = 1 << 16;
/// Fewer records than this are not worth a thread.
const WORTH_A_THREAD: u32 = 4096;

/// A record as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) generation: u32,
    /// Whether it said anything at all, intact or not.
    pub(super) used: bool,
    /// What it said, if it was intact.
    pub(super) record: Option<(ObjectState, ObjectFields)>,
    /// Whether the bytes are not those that were committed.
    pub(super) damaged: bool,
}

/// Records in a row.
pub(super) struct Batch {
    /// Number of the first.
    pub(super) first: u32,
    /// As they were read, one after the other.
    pub(super) found: Vec<Vec<Found>>,
}

/// Reads the records below `used` in their order, until nobody wants them any more.
pub(super) fn scan_all(table: &Table, payloads: Option<&Pool>, used: u32, read: &SyncSender<Batch>) {
    for first in (0..used).step_by(BATCH as usize) {
        let found = scan(table, payloads, first..first.saturating_add(BATCH).min(used));
        if read.send(Batch { first, found }).is_err() {
            return;
        }
    }
}

/// Reads the records `range`, in their order. With `payloads`, the bytes of committed objects that have a checksum are held
/// against it.
fn scan(table: &Table, payloads: Option<&Pool>, range: Range<u32>) -> Vec<Vec<Found>> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32).min(16);
    let each = (range.len() as u32).div_ceil(cores).max(WORTH_A_THREAD);
    let parts: Vec<Range<u32>> =
        range.clone().step_by(each as usize).map(|start| start..(start + each).min(range.end)).collect();
    if let [part] = &parts[..] {
        return vec![read(table, payloads, part.clone())];
    }
    let read_parts = std::thread::scope(|scope| {
        let threads: Vec<_> =
            parts.into_iter().map(|part| scope.spawn(move || read(table, payloads, part))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let panicked = |panic| std::panic::resume_unwind(panic);
    read_parts.into_iter().map(|part| part.unwrap_or_else(panicked)).collect()
}

fn read(table: &Table, payloads: Option<&Pool>, part: Range<u32>) -> Vec<Found> {
    part.map(|index| {
        let record = table.read_object(index).map(|(state, _, fields)| (state, fields));
        let damaged = match (payloads, &record) {
            (Some(pool), Some((ObjectState::Committed, fields))) => {
                let committed = table.payload(index);
                committed != 0 && now(pool, fields) != Some(committed)
            }
            _ => false,
        };
        Found { generation: table.read_generation(index), used: table.is_used(index), record, damaged }
    })
    .collect()
}

/// The checksum of what an object's bytes are now; `None` outside the pool's real memory, where reading could be a SIGBUS.
fn now(pool: &Pool, fields: &ObjectFields) -> Option<u64> {
    let end = fields.offset.checked_add(fields.length)?;
    let slot = (end <= pool.frontier()).then(|| pool.slot_ref(fields.offset, fields.length))??;
    Some(payload_checksum(&slot, &fields.chunk_hash, fields.kv_rank, fields.group))
}
