//! What a lookup holds, and who has read what of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::handover::begun;
use super::prefetch::{Found, Job};
use super::tenancy::Caller;
use crate::l1::{Hit, LeasedCell, ObjectId, Row};

/// Most readers that a lookup may announce per object; the wire's ranks are a byte, and real deployments have a handful.
pub(super) const MAX_READERS: u32 = 128;

/// Estimated memory of one leased cell.
pub(super) const CELL_BYTES: usize = size_of::<Cell>() + 16;

/// One lookup of a request, and the leases it holds.
#[derive(Debug)]
pub(super) struct Lookup {
    /// Who looked up.
    pub(super) caller: Caller,
    pub(super) model: Arc<str>,
    pub(super) salt: Arc<str>,
    pub(super) rows: Vec<Row>,
    /// Whole chunks of the prompt.
    pub(super) requested_chunks: u64,
    pub(super) hit_chunks: u64,
    /// Why nothing was looked up; empty normally.
    pub(super) early_exit: &'static str,
    /// Of these, what L1 alone could serve.
    pub(super) l1_chunks: u64,
    /// Objects that came from L2.
    pub(super) l2_objects: u64,
    /// When it was made.
    pub(super) since: Instant,
    /// Whether the client has been told.
    pub(super) consumed: bool,
    /// What it still waits for; the hit is unknown until then.
    pub(super) job: Option<Job>,
    cells: Vec<Cell>,
}

#[derive(Debug)]
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
                (true, _) => "no_gpu_context",
                (false, 0) => "empty_chunk_hashes",
                (false, _) => "",
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

/// A [`Lookup`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LookupState {
    caller: Caller,
    model: String,
    salt: String,
    rows: Vec<RowState>,
    requested_chunks: u64,
    hit_chunks: u64,
    l1_chunks: u64,
    l2_objects: u64,
    age: Duration,
    consumed: bool,
    cells: Vec<CellState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RowState {
    rank: u32,
    group: u32,
    window: Option<u64>,
    layouts: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CellState {
    row: u32,
    chunk: u32,
    object: (u32, u32),
    left: u32,
    taken_by: Vec<u64>,
}

impl LookupState {
    /// One that still waits for a tier has found nothing: nobody waits for it where it goes.
    pub(super) fn of(lookup: &Lookup) -> LookupState {
        let row = |row: &Row| RowState {
            rank: row.rank,
            group: row.group,
            window: row.window,
            layouts: row.layouts.to_vec(),
        };
        let cell = |cell: &Cell| CellState {
            row: cell.row,
            chunk: cell.chunk,
            object: (cell.object.index, cell.object.generation),
            left: cell.left,
            taken_by: cell.taken_by.clone(),
        };
        let found = lookup.job.is_none();
        LookupState {
            caller: lookup.caller,
            model: (*lookup.model).to_owned(),
            salt: (*lookup.salt).to_owned(),
            rows: lookup.rows.iter().map(row).collect(),
            requested_chunks: lookup.requested_chunks,
            hit_chunks: if found { lookup.hit_chunks } else { 0 },
            l1_chunks: if found { lookup.l1_chunks } else { 0 },
            l2_objects: lookup.l2_objects,
            age: lookup.since.elapsed(),
            consumed: lookup.consumed,
            cells: if found { lookup.cells.iter().map(cell).collect() } else { Vec::new() },
        }
    }

    /// The lookup again, with the leases that `lease` could take; a cell without its object has no lease left.
    pub(super) fn restore(self, lease: impl FnOnce(std::vec::IntoIter<ObjectId>) -> Vec<bool>) -> Lookup {
        let row = |row: RowState| Row {
            rank: row.rank,
            group: row.group,
            window: row.window,
            layouts: row.layouts.into(),
        };
        let object = |cell: &CellState| ObjectId { index: cell.object.0, generation: cell.object.1 };
        let held: Vec<_> = self.cells.iter().filter(|cell| cell.left > 0).map(object).collect();
        let mut leased = lease(held.into_iter()).into_iter();
        let rows: Vec<Row> = self.rows.into_iter().map(row).collect();
        let cells = self.cells.into_iter().map(|cell| Cell {
            row: cell.row,
            chunk: cell.chunk,
            object: object(&cell),
            left: if cell.left > 0 && leased.next() == Some(true) { cell.left } else { 0 },
            taken_by: cell.taken_by,
        });
        let mut lookup = Lookup::new(
            self.caller,
            (self.model.into(), self.salt.into()),
            rows,
            self.requested_chunks,
            &Hit::default(),
            1,
        );
        lookup.cells = cells.collect();
        lookup.hit_chunks = self.hit_chunks;
        lookup.l1_chunks = self.l1_chunks;
        lookup.l2_objects = self.l2_objects;
        lookup.since = begun(self.age);
        lookup.consumed = self.consumed;
        lookup
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
