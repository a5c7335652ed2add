//! What a lookup holds, and who has read what of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::handover::age;
use super::prefetch::{Found, Job};
use super::tenancy::Caller;
use crate::l1::{Hit, LeasedCell, ObjectId, Row};

/// Most readers that a lookup may announce per object; the wire's ranks are a byte, and real deployments have a handful.
pub(super) const MAX_READERS: u32 = 128;

/// Estimated memory of one leased cell.
pub(super) const CELL_BYTES: usize = size_of::<Cell>() + 16;

/// Why nothing was looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EarlyExit {
    /// Something was.
    #[default]
    None,
    /// No worker of the model is registered.
    NoGpuContext,
    /// The prompt has no whole chunk.
    EmptyChunkHashes,
}

impl EarlyExit {
    /// The label; empty normally.
    pub(super) fn name(self) -> &'static str {
        match self {
            EarlyExit::None => "",
            EarlyExit::NoGpuContext => "no_gpu_context",
            EarlyExit::EmptyChunkHashes => "empty_chunk_hashes",
        }
    }
}

/// One lookup of a request, and the leases it holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lookup {
    /// Who looked up.
    pub(super) caller: Caller,
    pub(super) model: Arc<str>,
    pub(super) salt: Arc<str>,
    pub(super) rows: Vec<Row>,
    /// Whole chunks of the prompt.
    pub(super) requested_chunks: u64,
    pub(super) hit_chunks: u64,
    pub(super) early_exit: EarlyExit,
    /// Of these, what L1 alone could serve.
    pub(super) l1_chunks: u64,
    /// Objects that came from L2.
    pub(super) l2_objects: u64,
    /// When it was made.
    #[serde(with = "age")]
    pub(super) since: Instant,
    /// Whether the client has been told.
    pub(super) consumed: bool,
    /// What it still waits for; the hit is unknown until then, and nothing in another process, where nobody waits.
    #[serde(skip)]
    pub(super) job: Option<Job>,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cell {
    row: u32,
    chunk: u32,
    object: ObjectId,
    /// Readers that have not retrieved yet; at 0 the lease has ended.
    left: u32,
    taken_by: Vec<u64>,
}

impl Cell {
    fn new(cell: &LeasedCell, readers: u32) -> Cell {
        Cell {
            row: cell.row,
            chunk: cell.chunk,
            object: cell.object,
            left: readers.clamp(1, MAX_READERS),
            taken_by: Vec::new(),
        }
    }
}

impl Lookup {
    /// A lookup that holds the cells of `hit` for `readers` readers each.
    pub(super) fn new(
        caller: Caller,
        (model, salt): (Arc<str>, Arc<str>),
        rows: Vec<Row>,
        requested_chunks: u64,
        hit: &Hit,
        readers: u32,
    ) -> Lookup {
        Lookup {
            caller,
            model,
            salt,
            early_exit: match (rows.is_empty(), requested_chunks) {
                (true, _) => EarlyExit::NoGpuContext,
                (false, 0) => EarlyExit::EmptyChunkHashes,
                (false, _) => EarlyExit::None,
            },
            rows,
            requested_chunks,
            hit_chunks: hit.chunks,
            l1_chunks: hit.chunks,
            l2_objects: 0,
            since: Instant::now(),
            consumed: false,
            job: None,
            cells: hit.cells.iter().map(|cell| Cell::new(cell, readers)).collect(),
        }
    }

    /// Takes its leases again, as it had them in another process: `lease` says of each object whether it is still there.
    pub(super) fn lease_again(&mut self, lease: impl FnOnce(&[ObjectId]) -> Vec<bool>) {
        let held = || self.cells.iter().filter(|cell| cell.left > 0);
        let leased = lease(&held().map(|cell| cell.object).collect::<Vec<_>>());
        let gone =
            self.cells.iter_mut().filter(|cell| cell.left > 0).zip(leased).filter(|(_, leased)| !leased);
        gone.for_each(|(cell, _)| cell.left = 0);
    }

    /// The job is done: this is what it found.
    pub(super) fn resolve(&mut self, found: Found, readers: u32) {
        self.hit_chunks = found.hit.chunks;
        self.l1_chunks = found.l1_chunks;
        self.l2_objects = found.l2_objects();
        self.cells = found.hit.cells.iter().map(|cell| Cell::new(cell, readers)).collect();
        self.job = None;
    }

    /// Objects found.
    pub(super) fn hit_objects(&self) -> u64 {
        self.cells.len() as u64
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let cells = self.job.as_ref().map_or(self.cells.len() * CELL_BYTES, |job| job.bytes);
        size_of::<Lookup>() + size_of_val(&*self.rows) + cells
    }

    /// Objects that it still holds.
    pub(super) fn leases_left(&self) -> usize {
        self.cells.iter().filter(|cell| cell.left > 0).count()
    }

    /// Whether it still holds anything, or will.
    pub(super) fn holds(&self) -> bool {
        self.job.is_some() || self.cells.iter().any(|cell| cell.left > 0)
    }

    /// Ends the leases of `chunks`, tail first; all rows, whatever readers are left.
    pub(super) fn end_leases(&mut self, chunks: Range<u64>) -> Vec<Ended> {
        let mut ended = Vec::new();
        for cell in self.cells.iter_mut().rev().filter(|cell| chunks.contains(&u64::from(cell.chunk))) {
            if cell.left > 0 {
                let readers = std::mem::take(&mut cell.left);
                let cell = LeasedCell { row: cell.row, chunk: cell.chunk, object: cell.object };
                ended.push(Ended { cell, readers });
            }
        }
        ended
    }

    /// Notes that `instance` has read the object of `chunk`.
    fn read(&mut self, instance: u64, chunk: u32, object: ObjectId) -> Read {
        let first = self.cells.partition_point(|cell| cell.chunk < chunk);
        let of_chunk = self.cells[first..].iter_mut().take_while(|cell| cell.chunk == chunk);
        for cell in of_chunk.filter(|cell| cell.object == object) {
            if cell.taken_by.contains(&instance) {
                return Read::Again;
            }
            if cell.left > 0 {
                cell.left -= 1;
                cell.taken_by.push(instance);
                return if cell.left == 0 { Read::Last } else { Read::First };
            }
        }
        Read::NotHere
    }
}

/// A lease that has ended before its last reader came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// What was leased.
    pub(super) cell: LeasedCell,
    /// Readers that have not come.
    pub(super) readers: u32,
}

enum Read {
    /// Others will read it too.
    First,
    /// The last reader: its lease ends.
    Last,
    /// This instance has read it before.
    Again,
    /// The lookup has no lease of it left.
    NotHere,
}

/// Notes that `instance` has read `objects` (chunk, object). Returns the leases that end with that.
///
/// One retrieve is one reader of one lookup, and each instance counts once per object: a repeated retrieve changes nothing.
pub(super) fn retrieved(
    lookups: &mut [Lookup],
    instance: u64,
    objects: impl Iterator<Item = (u32, ObjectId)>,
) -> Vec<ObjectId> {
    let mut ended = Vec::new();
    for (chunk, object) in objects {
        for lookup in lookups.iter_mut() {
            match lookup.read(instance, chunk, object) {
                Read::NotHere => continue,
                Read::First | Read::Again => {}
                Read::Last => ended.push(object),
            }
            break;
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(index: u32) -> ObjectId {
        ObjectId { index, generation: 1 }
    }

    fn lookup(client: u64, readers: u32) -> Lookup {
        let row = |rank| Row { rank, group: 0, window: None, layouts: [1].into() };
        let cells = (0..4)
            .map(|position| LeasedCell { row: position % 2, chunk: position / 2, object: object(position) })
            .collect();
        let hit = Hit { chunks: 2, cells };
        Lookup::new(
            Caller { client, tenant: None },
            ("m".into(), "".into()),
            vec![row(0), row(1)],
            2,
            &hit,
            readers,
        )
    }

    #[test]
    fn each_instance_counts_once_and_the_last_reader_ends_the_lease() {
        let mut lookups = [lookup(1, 2)];
        let mine = || [(0, object(0)), (1, object(2))].into_iter();
        assert_eq!(retrieved(&mut lookups, 7, mine()), []);
        assert_eq!(retrieved(&mut lookups, 7, mine()), [], "repeated");
        assert_eq!(retrieved(&mut lookups, 8, mine()), [object(0), object(2)]);
        assert_eq!(retrieved(&mut lookups, 9, mine()), [], "nothing left");
        assert!(lookups[0].holds(), "the other rank's objects");
    }

    #[test]
    fn a_repeated_retrieve_takes_nothing_of_another_lookup() {
        let mut lookups = [lookup(1, 1), lookup(2, 1)];
        let mine = || [(0, object(0))].into_iter();
        assert_eq!(retrieved(&mut lookups, 7, mine()), [object(0)]);
        assert_eq!(retrieved(&mut lookups, 7, mine()), [], "the second lookup's lease is for its own reader");
        assert_eq!(retrieved(&mut lookups, 8, mine()), [object(0)]);
    }

    #[test]
    fn an_absurd_number_of_readers_is_clamped() {
        let mut lookups = [lookup(1, u32::MAX)];
        let ended = (0..u64::from(MAX_READERS))
            .flat_map(|instance| retrieved(&mut lookups, instance, [(0, object(0))].into_iter()))
            .count();
        assert_eq!(ended, 1);
    }
}
