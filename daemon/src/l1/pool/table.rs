//! Write-through access to the object table segment.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use lmcache_proto::shm::{
    NAME_BYTES, NameRecord, ObjectRecord, ObjectState, PAGE, PinKind, PinRecord, TABLE_MAGIC, TABLE_VERSION,
    TableHeader, TableLayout,
};

use super::records::{Difference, ObjectFields, PinFields, TableIdentity};
use super::segment::Segment;
use crate::failpoint;

/// Records that are made real memory at a time, so that writing one can never be a SIGBUS on a full tmpfs.
const BACKING_STEP: u64 = 8192;

/// The table. Callers serialise writes to the same record (the index lock does).
#[derive(Debug)]
pub struct Table {
    segment: Segment,
    layout: TableLayout,
    /// Records below these are real memory, whoever wrote them.
    objects_backed: AtomicU64,
    pins_backed: AtomicU64,
    names_backed: AtomicU64,
}

impl Table {
    /// In what `segment` is not a table of `identity`; `None` if it is one. Changes nothing.
    ///
    /// # Errors
    /// No memory for the header.
    pub fn differs(
        segment: &Segment,
        layout: TableLayout,
        identity: &TableIdentity,
    ) -> std::io::Result<Option<Difference>> {
        let Some(found) = Table::read_header(segment)? else {
            return Ok(Some(Difference::no_table()));
        };
        let pairs = [
            ("table version", found.version.into(), TABLE_VERSION.into()),
            ("chunk size", found.chunk_size.into(), identity.chunk_size.into()),
            ("hash algorithm", found.hash_algorithm.into(), identity.algorithm as u64),
            ("alignment, as a power of two", found.align_shift.into(), identity.align.ilog2().into()),
            ("pool size in bytes", found.pool_bytes, identity.pool_bytes),
            ("inode of the pool", found.pool_inode, identity.pool_inode),
            ("object records", found.objects, layout.objects),
            ("pin records", found.pins, layout.pins),
            ("name records", found.names, layout.names),
        ];
        let different = pairs.into_iter().find(|(_, found, wanted)| found != wanted);
        Ok(different.map(|(field, found, wanted): (_, u64, u64)| Difference {
            field,
            found: found.to_string(),
            wanted: wanted.to_string(),
        }))
    }

    /// Bytes of the pool that `segment` says it is the table of; `None` if it says nothing.
    ///
    /// # Errors
    /// No memory for the header.
    pub fn pool_bytes(segment: &Segment) -> std::io::Result<Option<u64>> {
        Ok(Table::read_header(segment)?.map(|header| header.pool_bytes))
    }

    /// The header, if it is one.
    fn read_header(segment: &Segment) -> std::io::Result<Option<TableHeader>> {
        // Reading what is not there yet takes memory, too.
        segment.back(0, PAGE)?;
        // SAFETY: the mapping is page aligned and larger than the header; any bit pattern is a valid header; we are the
        // only process that writes it (flock).
        let found = unsafe { ptr::read(segment.base().as_ptr().cast::<TableHeader>()) };
        Ok((found.magic == TABLE_MAGIC).then_some(found))
    }

    /// Takes over `segment`. Returns the table and whether its contents are those of `identity`; if not, it is a table
    /// without records now. So a table that says something about another pool, which its workers may still use, must not come
    /// here.
    ///
    /// # Errors
    /// No memory for the header.
    pub fn open(
        segment: Segment,
        layout: TableLayout,
        identity: TableIdentity,
    ) -> std::io::Result<(Table, bool)> {
        assert!(segment.bytes() >= layout.bytes(), "segment was opened with the layout's size");
        let matches = Table::differs(&segment, layout, &identity)?.is_none();
        let header = segment.base().as_ptr().cast::<TableHeader>();
        let want = TableHeader {
            magic: [0; 8],
            version: TABLE_VERSION,
            chunk_size: identity.chunk_size,
            hash_algorithm: identity.algorithm as u32,
            align_shift: identity.align.ilog2(),
            objects: layout.objects,
            pins: layout.pins,
            names: layout.names,
            pool_bytes: identity.pool_bytes,
            pool_inode: identity.pool_inode,
            objects_used: AtomicU64::new(0),
            pins_used: AtomicU64::new(0),
            names_used: AtomicU64::new(0),
            frontier: AtomicU64::new(0),
        };
        if !matches {
            // SAFETY: as in `read_header`.
            unsafe { ptr::write(header, want) };
            failpoint::hit("table.header.written");
            // The magic last: who dies in between leaves a table that nobody believes.
            fence(Ordering::Release);
            // SAFETY: as above.
            unsafe { ptr::write_volatile(&raw mut (*header).magic, TABLE_MAGIC) };
            failpoint::hit("table.header.magic");
        }
        let table = Table {
            segment,
            layout,
            objects_backed: AtomicU64::new(0),
            pins_backed: AtomicU64::new(0),
            names_backed: AtomicU64::new(0),
        };
        // What is in use is real memory, because it was written.
        table.objects_backed.store(table.objects_used(), Ordering::Relaxed);
        table.pins_backed.store(table.pins_used(), Ordering::Relaxed);
        table.names_backed.store(table.names_used(), Ordering::Relaxed);
        Ok((table, matches))
    }

    /// Whether object record `index` may be written: it is in the table and its memory is real, now if not before.
    /// `false`: the table ends there, or the tmpfs is full.
    pub fn back_object(&self, index: u32) -> bool {
        let (at, count) = (self.layout.objects_at(), self.layout.objects);
        self.back(&self.objects_backed, index, at, size_of::<ObjectRecord>(), count)
    }

    /// The same for a pin.
    pub fn back_pin(&self, index: u32) -> bool {
        let (at, count) = (self.layout.pins_at(), self.layout.pins);
        self.back(&self.pins_backed, index, at, size_of::<PinRecord>(), count)
    }

    /// The same for a name.
    pub fn back_name(&self, id: u32) -> bool {
        let (at, count) = (self.layout.names_at(), self.layout.names);
        self.back(&self.names_backed, id, at, size_of::<NameRecord>(), count)
    }

    fn back(&self, backed: &AtomicU64, index: u32, at: u64, size: usize, count: u64) -> bool {
        let index = u64::from(index);
        // Relaxed: the caller's lock orders these; the numbers say nothing about other memory.
        let have = backed.load(Ordering::Relaxed);
        if index < have {
            return true;
        }
        if index >= count {
            return false;
        }
        let (size, upto) = (size as u64, (index + BACKING_STEP).min(count));
        let step = |upto: u64| self.segment.back(at + have * size, (upto - have) * size);
        // Where there is no memory for the whole step there may be some for this record.
        let upto = match step(upto) {
            Ok(()) => upto,
            Err(_) if step(index + 1).is_ok() => index + 1,
            Err(_) => return false,
        };
        backed.store(upto, Ordering::Relaxed);
        failpoint::hit("table.backed");
        true
    }

    /// The segment underneath.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Counts and offsets.
    pub fn layout(&self) -> TableLayout {
        self.layout
    }

    fn header(&self) -> &TableHeader {
        // SAFETY: the mapping is page aligned, larger than the header and lives as long as `self`; after `open` only the
        // atomic fields are written.
        unsafe { &*self.segment.base().as_ptr().cast::<TableHeader>() }
    }

    /// Bytes of the pool that are known to be real memory.
    pub fn frontier(&self) -> u64 {
        self.header().frontier.load(Ordering::Acquire)
    }

    /// Notes that the pool is real memory up to `frontier`.
    pub fn set_frontier(&self, frontier: u64) {
        failpoint::hit("table.frontier.before");
        self.header().frontier.fetch_max(frontier, Ordering::Release);
        failpoint::hit("table.frontier.set");
    }

    /// Pins that may be in use: those below this number.
    pub fn pins_used(&self) -> u64 {
        self.header().pins_used.load(Ordering::Acquire).min(self.layout.pins)
    }

    /// Object records that may be in use: those below this number.
    pub fn objects_used(&self) -> u64 {
        self.header().objects_used.load(Ordering::Acquire).min(self.layout.objects)
    }

    /// Names that may be in use: those below this number.
    pub fn names_used(&self) -> u64 {
        self.header().names_used.load(Ordering::Acquire).min(self.layout.names)
    }

    fn object(&self, index: u32) -> *mut ObjectRecord {
        assert!(u64::from(index) < self.layout.objects, "record index in the table");
        // SAFETY: inside the mapping by the assertion and the layout's arithmetic; page-aligned base, 128-byte records.
        unsafe {
            self.segment
                .base()
                .as_ptr()
                .add(self.layout.objects_at() as usize)
                .cast::<ObjectRecord>()
                .add(index as usize)
        }
    }

    fn pin(&self, index: u32) -> *mut PinRecord {
        assert!(u64::from(index) < self.layout.pins, "pin index in the table");
        // SAFETY: as `object`.
        unsafe {
            self.segment
                .base()
                .as_ptr()
                .add(self.layout.pins_at() as usize)
                .cast::<PinRecord>()
                .add(index as usize)
        }
    }

    fn name(&self, id: u32) -> *mut NameRecord {
        assert!(u64::from(id) < self.layout.names, "name id in the table");
        // SAFETY: as `object`.
        unsafe {
            self.segment
                .base()
                .as_ptr()
                .add(self.layout.names_at() as usize)
                .cast::<NameRecord>()
                .add(id as usize)
        }
    }

    /// Describes an object; the record must be free.
    pub fn write_object(&self, index: u32, generation: u32, fields: &ObjectFields, state: ObjectState) {
        // Free before it counts as used: a table that was discarded still has its old records, and one of those must not
        // come back between the two lines.
        self.set_object_state(index, ObjectState::Free);
        failpoint::hit("table.object.free");
        self.header().objects_used.fetch_max(u64::from(index) + 1, Ordering::Release);
        failpoint::hit("table.object.counted");
        let record = self.object(index);
        let mut value = ObjectRecord {
            state: AtomicU32::new(ObjectState::Free as u32),
            generation,
            chunk_hash: fields.chunk_hash,
            model: fields.model,
            salt: fields.salt,
            kv_rank: fields.kv_rank,
            group: fields.group,
            offset: fields.offset,
            length: fields.length,
            layout: fields.layout,
            checksum: 0,
            payload: AtomicU64::new(0),
            reserved: [0; 4],
        };
        value.checksum = value.seal();
        // SAFETY: `record` is in the mapping and ours alone while its state is Free (caller's lock).
        unsafe { ptr::write(record, value) };
        failpoint::hit("table.object.written");
        self.set_object_state(index, state);
        failpoint::hit("table.object.set");
    }

    /// Moves an object to another state.
    pub fn set_object_state(&self, index: u32, state: ObjectState) {
        // SAFETY: in the mapping; the field is only accessed as an atomic.
        let cell = unsafe { &(*self.object(index)).state };
        // Release: partner is the Acquire load of the next daemon's recovery (`read_object`). Across a process death the
        // kernel orders everything; within the process it keeps the fields before the state.
        cell.store(state as u32, Ordering::Release);
    }

    /// Notes the checksum of an object's bytes, before it is committed; 0 is none.
    pub fn set_payload(&self, index: u32, checksum: u64) {
        // SAFETY: in the mapping; the field is only accessed as an atomic.
        let cell = unsafe { &(*self.object(index)).payload };
        // Relaxed: the state that makes it count is stored with Release afterwards (`set_object_state`).
        failpoint::hit("table.payload.before");
        cell.store(checksum, Ordering::Relaxed);
        failpoint::hit("table.payload.set");
    }

    /// The checksum of an object's bytes; 0 is none.
    pub fn payload(&self, index: u32) -> u64 {
        // SAFETY: as `set_payload`.
        unsafe { (*self.object(index)).payload.load(Ordering::Relaxed) }
    }

    /// Reads a record back; `None` if it is free or not intact.
    pub fn read_object(&self, index: u32) -> Option<(ObjectState, u32, ObjectFields)> {
        // SAFETY: in the mapping; any bit pattern is a valid record.
        let record = unsafe { &*self.object(index) };
        // Acquire: partner is `set_object_state`.
        let state = ObjectState::from_raw(record.state.load(Ordering::Acquire))?;
        if state == ObjectState::Free || record.checksum != record.seal() {
            return None;
        }
        let fields = ObjectFields {
            chunk_hash: record.chunk_hash,
            model: record.model,
            salt: record.salt,
            kv_rank: record.kv_rank,
            group: record.group,
            offset: record.offset,
            length: record.length,
            layout: record.layout,
        };
        Some((state, record.generation, fields))
    }

    /// Whether a record says anything at all, intact or not.
    pub fn is_used(&self, index: u32) -> bool {
        // SAFETY: in the mapping; only accessed as an atomic.
        unsafe { (*self.object(index)).state.load(Ordering::Acquire) != ObjectState::Free as u32 }
    }

    /// Generation of a record, free or not.
    pub fn read_generation(&self, index: u32) -> u32 {
        // SAFETY: in the mapping; any bit pattern is a valid number.
        unsafe { (*self.object(index)).generation }
    }

    /// Writes a pin; the record must be free.
    pub fn write_pin(&self, index: u32, fields: &PinFields) {
        let value = PinRecord {
            kind: AtomicU32::new(PinKind::Free as u32),
            object: fields.object,
            generation: fields.generation,
            instance: fields.owner.instance,
            start_time: fields.owner.start_time,
            pid: fields.owner.pid,
            reserved: 0,
            reserved2: 0,
            offset: fields.offset,
            length: fields.length,
        };
        self.clear_pin(index);
        failpoint::hit("table.pin.free");
        self.header().pins_used.fetch_max(u64::from(index) + 1, Ordering::Release);
        failpoint::hit("table.pin.counted");
        let record = self.pin(index);
        // SAFETY: in the mapping and ours alone while free (caller's lock).
        unsafe { ptr::write(record, value) };
        failpoint::hit("table.pin.written");
        // SAFETY: as above. Release: the fields are complete before the kind says so; partner `read_pin`.
        unsafe { (*record).kind.store(fields.kind as u32, Ordering::Release) };
        failpoint::hit("table.pin.set");
    }

    /// Ends a pin.
    pub fn clear_pin(&self, index: u32) {
        // SAFETY: in the mapping; only accessed as an atomic.
        unsafe { (*self.pin(index)).kind.store(PinKind::Free as u32, Ordering::Release) };
    }

    /// Reads a pin back; `None` if it is free or its kind is none.
    pub fn read_pin(&self, index: u32) -> Option<PinFields> {
        // SAFETY: in the mapping; any bit pattern is a valid record.
        let record = unsafe { &*self.pin(index) };
        // Acquire: partner is `write_pin`.
        let kind = match record.kind.load(Ordering::Acquire) {
            1 => PinKind::Write,
            2 => PinKind::Read,
            _ => return None,
        };
        Some(PinFields {
            kind,
            object: record.object,
            generation: record.generation,
            owner: super::super::Owner {
                instance: record.instance,
                pid: record.pid,
                start_time: record.start_time,
            },
            offset: record.offset,
            length: record.length,
        })
    }

    /// Stores a name (at most [`NAME_BYTES`]).
    pub fn write_name(&self, id: u32, name: &str) {
        assert!(name.len() <= NAME_BYTES, "names are bounded where they are decoded");
        self.clear_name(id);
        failpoint::hit("table.name.free");
        self.header().names_used.fetch_max(u64::from(id) + 1, Ordering::Release);
        failpoint::hit("table.name.counted");
        let record = self.name(id);
        // SAFETY: in the mapping; the bytes are ours alone while the length is 0 (caller's lock).
        unsafe {
            ptr::copy_nonoverlapping(name.as_ptr(), (&raw mut (*record).bytes).cast(), name.len());
            // Release: bytes before length; partner `read_name`.
            (*record).length.store(name.len() as u32, Ordering::Release);
        }
        failpoint::hit("table.name.set");
    }

    /// Frees a name.
    pub fn clear_name(&self, id: u32) {
        // SAFETY: in the mapping; only accessed as an atomic.
        unsafe { (*self.name(id)).length.store(0, Ordering::Release) };
    }

    /// Reads a name back.
    pub fn read_name(&self, id: u32) -> Option<String> {
        // SAFETY: in the mapping; any bit pattern is a valid record.
        let record = unsafe { &*self.name(id) };
        // Acquire: partner `write_name`.
        let length = record.length.load(Ordering::Acquire) as usize;
        if length == 0 {
            return None;
        }
        std::str::from_utf8(record.bytes.get(..length)?).ok().map(str::to_owned)
    }
}
