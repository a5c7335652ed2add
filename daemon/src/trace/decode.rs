//! A call's arguments, read from a file that may hold anything. Both releases' shapes are taken; which one it is follows
//! from the arguments' names. No length is believed before the bytes are there, and nothing recurses.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::layout::{Dtype, ObjectLayout, Region};
use lmcache_proto::wire::limits::{GROUPS_MAX, RANK_MAX};
use lmcache_proto::wire::{DecodeError, Reader, validate_model, validate_salt};
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use super::operation::Operation;

/// Most rows of one lookup: ranks are a byte, and models have a handful of groups.
const ROWS_MAX: usize = 4096;
/// Elements that room is made for before they are seen.
const AHEAD: usize = 1024;

/// An object's name in a recording.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceKey {
    /// Chunk hash; one of another length than ours stands as its SHA-256.
    pub hash: ChunkHash,
    /// Model.
    pub model: Arc<str>,
    /// Salt; always empty in LMCache's own recordings.
    pub salt: Arc<str>,
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
}

/// One recorded call.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Memory for objects of one layout.
    ReserveWrite {
        /// The objects.
        keys: Vec<TraceKey>,
        /// What each is.
        layout: ObjectLayout,
    },
    /// Written objects become readable.
    FinishWrite {
        /// The objects.
        keys: Vec<TraceKey>,
    },
    /// A lookup.
    SubmitPrefetch(Prefetch),
    /// Leases end.
    FinishRead {
        /// The objects.
        keys: Vec<TraceKey>,
        /// Readers that are done with each.
        read_locks: u32,
    },
    /// Leased objects are about to be read.
    EnterRead {
        /// The objects.
        keys: Vec<TraceKey>,
    },
    /// They were read.
    ExitRead {
        /// The objects.
        keys: Vec<TraceKey>,
    },
}

/// What a lookup asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefetch {
    /// One for each object group and rank, all with the same chunks.
    pub rows: Vec<PrefetchRow>,
    /// Readers that each object is leased for, at least 1.
    pub readers: u32,
    /// Only the longest prefix is wanted; otherwise everything that is there.
    pub prefix: bool,
    /// What is found is leased.
    pub lock: bool,
    /// The request.
    pub request_id: String,
    /// L1 alone is asked.
    pub skip_l2: bool,
}

/// One row of a lookup.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefetchRow {
    /// The objects, chunk by chunk.
    pub keys: Vec<TraceKey>,
    /// What each is.
    pub layout: ObjectLayout,
    /// Chunks at the end of a hit that must be there; `None` for all.
    pub window: Option<u64>,
}

/// Decodes calls; names that repeat are made once.
#[derive(Debug)]
pub struct Decoder {
    model: Arc<str>,
    salt: Arc<str>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { model: "".into(), salt: "".into() }
    }
}

/// The arguments that are there.
#[derive(Default)]
struct Args {
    keys: Option<Vec<TraceKey>>,
    layout: Option<ObjectLayout>,
    spec: Option<Prefetch>,
    request_id: String,
    skip_l2: bool,
    locks: Option<u32>,
}

/// Names of one kind are short runs of the same: compares with the last one.
fn shared(last: &mut Arc<str>, name: &str) -> Arc<str> {
    if **last != *name {
        *last = name.into();
    }
    last.clone()
}

/// The fields of a map; those that `on` does not want are skipped.
fn fields<'a>(
    reader: &mut Reader<'a>,
    mut on: impl FnMut(&str, &mut Reader<'a>) -> Result<bool, DecodeError>,
) -> Result<(), DecodeError> {
    for _ in 0..reader.map()? {
        let name = reader.str()?;
        if !on(name, reader)? {
            reader.skip()?;
        }
    }
    Ok(())
}

/// The wrapper of a value that msgpack has no type for; the value follows.
fn tagged(reader: &mut Reader<'_>, tags: &[&str]) -> Result<(), DecodeError> {
    const WRONG: DecodeError = DecodeError::Invalid("not the type that the call has here");
    if reader.map()? != 2
        || reader.str()? != "__t__"
        || !tags.contains(&reader.str()?)
        || reader.str()? != "v"
    {
        return Err(WRONG);
    }
    Ok(())
}

/// Elements of a list, a tuple or a set; they follow.
fn list(reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
    if matches!(reader.peek()?, 0x80..=0x8f | 0xde | 0xdf) {
        tagged(reader, &["tuple", "set"])?;
    }
    reader.array()
}

fn missing<T>(value: Option<T>, what: &'static str) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Missing(what))
}

impl Decoder {
    /// The call whose arguments `args` is.
    ///
    /// # Errors
    /// Arguments that the call cannot have.
    pub fn decode(&mut self, operation: Operation, args: &[u8]) -> Result<Call, DecodeError> {
        let mut reader = Reader::new(args);
        let mut found = Args::default();
        fields(&mut reader, |name, reader| {
            match name {
                "keys" => found.keys = Some(self.keys(reader)?),
                "layout_desc" => found.layout = Some(layout(reader)?),
                "spec" => found.spec = Some(self.spec(reader)?),
                "external_request_id" => found.request_id = reader.name("external_request_id")?.to_owned(),
                "skip_l2" => found.skip_l2 = reader.bool()?,
                "read_locks" => found.locks = Some(reader.u32("read_locks")?),
                "extra_count" => found.locks = Some(reader.u32("extra_count")?.saturating_add(1)),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        reader.finish()?;
        let keys = |keys: Option<Vec<TraceKey>>| missing(keys, "keys");
        Ok(match operation {
            Operation::ReserveWrite => {
                Call::ReserveWrite { keys: keys(found.keys)?, layout: missing(found.layout, "layout_desc")? }
            }
            Operation::FinishWrite => Call::FinishWrite { keys: keys(found.keys)? },
            Operation::FinishRead => {
                Call::FinishRead { keys: keys(found.keys)?, read_locks: found.locks.unwrap_or(1) }
            }
            Operation::EnterRead => Call::EnterRead { keys: keys(found.keys)? },
            Operation::ExitRead => Call::ExitRead { keys: keys(found.keys)? },
            Operation::SubmitPrefetch => {
                let prefetch = match found.spec {
                    Some(spec) => spec,
                    None => {
                        let layout = missing(found.layout, "layout_desc")?;
                        unflatten(keys(found.keys)?, &layout, found.locks.unwrap_or(1))?
                    }
                };
                check(&prefetch)?;
                let (request_id, skip_l2) = (found.request_id, found.skip_l2);
                Call::SubmitPrefetch(Prefetch { request_id, skip_l2, ..prefetch })
            }
        })
    }

    fn keys(&mut self, reader: &mut Reader<'_>) -> Result<Vec<TraceKey>, DecodeError> {
        let count = list(reader)?;
        let mut keys = Vec::with_capacity(count.min(AHEAD));
        for _ in 0..count {
            keys.push(self.key(reader)?);
        }
        Ok(keys)
    }

    fn key(&mut self, reader: &mut Reader<'_>) -> Result<TraceKey, DecodeError> {
        tagged(reader, &["ObjectKey"])?;
        let (mut hash, mut model, mut rank) = (None, None, None);
        let (mut salt, mut group) = ("", 0);
        fields(reader, |name, reader| {
            match name {
                "chunk_hash" => hash = Some(reader.bin()?),
                "model_name" => model = Some(reader.name("model_name")?),
                "kv_rank" => rank = Some(reader.u32("kv_rank")?),
                "object_group_id" => group = reader.u32("object_group_id")?,
                "cache_salt" => salt = reader.name("cache_salt")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        // The names end in those of a tier, so they are held to the wire's rules.
        validate_salt(salt)?;
        let model = missing(model, "model_name")?;
        validate_model(model)?;
        let hash = missing(hash, "chunk_hash")?;
        Ok(TraceKey {
            hash: ChunkHash::try_from(hash).unwrap_or_else(|_| Sha256::digest(hash).into()),
            model: shared(&mut self.model, model),
            salt: shared(&mut self.salt, salt),
            rank: missing(rank, "kv_rank")?,
            group,
        })
    }

    fn spec(&mut self, reader: &mut Reader<'_>) -> Result<Prefetch, DecodeError> {
        tagged(reader, &["PrefetchTaskSpec"])?;
        let mut spec = Prefetch {
            rows: Vec::new(),
            readers: 1,
            prefix: true,
            lock: true,
            request_id: String::new(),
            skip_l2: false,
        };
        fields(reader, |name, reader| {
            match name {
                "key_groups" => {
                    let count = list(reader)?;
                    if count > ROWS_MAX {
                        return Err(DecodeError::Range { what: "key_groups" });
                    }
                    for _ in 0..count {
                        spec.rows.push(self.row(reader)?);
                    }
                }
                "num_kv_readers" => spec.readers = reader.u32("num_kv_readers")?,
                "fetching_policy" => spec.prefix = reader.str()? == "prefix",
                "lock_mode" => {
                    tagged(reader, &["PrefetchLockMode"])?;
                    spec.lock = reader.str()? == "LOCK";
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(spec)
    }

    fn row(&mut self, reader: &mut Reader<'_>) -> Result<PrefetchRow, DecodeError> {
        tagged(reader, &["GroupedObjectKeys"])?;
        let (mut keys, mut object, mut window) = (None, None, -1);
        fields(reader, |name, reader| {
            match name {
                "keys" => keys = Some(self.keys(reader)?),
                "layout_desc" => object = Some(layout(reader)?),
                "sliding_window_size" => window = reader.i128()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let window = match window {
            -1 => None,
            window => {
                let chunks = u64::try_from(window).ok().filter(|chunks| *chunks > 0);
                Some(chunks.ok_or(DecodeError::Range { what: "sliding_window_size" })?)
            }
        };
        Ok(PrefetchRow { keys: missing(keys, "keys")?, layout: missing(object, "layout_desc")?, window })
    }
}

/// A layout: shapes and element types, one of each for each region.
fn layout(reader: &mut Reader<'_>) -> Result<ObjectLayout, DecodeError> {
    tagged(reader, &["MemoryLayoutDesc"])?;
    let (mut shapes, mut dtypes) = (Vec::new(), Vec::new());
    fields(reader, |name, reader| {
        if !matches!(name, "shapes" | "dtypes") {
            return Ok(false);
        }
        let count = list(reader)?;
        if count > GROUPS_MAX {
            return Err(DecodeError::Range { what: "layout_desc" });
        }
        for _ in 0..count {
            if name == "shapes" {
                shapes.push(shape(reader)?);
            } else {
                let name = reader.str()?;
                let dtype = Dtype::from_name(name.strip_prefix("torch.").unwrap_or(name));
                dtypes.push(dtype.ok_or(DecodeError::Invalid("an element type that is not known here"))?);
            }
        }
        Ok(true)
    })?;
    let regions = shapes.iter().zip(&dtypes).map(|(&[planes, layers, slots, width], dtype)| Region {
        planes,
        layers,
        slots,
        width,
        dtype: *dtype,
    });
    let layout = if shapes.len() == dtypes.len() { ObjectLayout::new(regions.collect()) } else { None };
    layout.ok_or(DecodeError::Invalid("a layout of nothing, or larger than memory"))
}

/// Four axes as they are; fewer have ones in front, more are one axis in front.
fn shape(reader: &mut Reader<'_>) -> Result<[u64; 4], DecodeError> {
    let rank = list(reader)?;
    if rank > RANK_MAX {
        return Err(DecodeError::Range { what: "shape" });
    }
    let mut shape = [1u64; 4];
    for _ in 0..rank {
        let size = reader.u64()?;
        let front = shape[0].checked_mul(shape[1]).ok_or(DecodeError::Range { what: "shape" })?;
        shape = [front, shape[2], shape[3], size];
    }
    Ok(shape)
}

/// 0.4.5 has one list of keys, chunk by chunk.
fn unflatten(keys: Vec<TraceKey>, layout: &ObjectLayout, readers: u32) -> Result<Prefetch, DecodeError> {
    let mut rows: Vec<PrefetchRow> = Vec::new();
    let mut at: FxHashMap<(u32, u32), usize> = FxHashMap::default();
    for key in keys {
        match at.entry((key.rank, key.group)) {
            Entry::Occupied(row) => rows[*row.get()].keys.push(key),
            Entry::Vacant(_) if rows.len() == ROWS_MAX => return Err(DecodeError::Range { what: "keys" }),
            Entry::Vacant(row) => {
                row.insert(rows.len());
                rows.push(PrefetchRow { keys: vec![key], layout: layout.clone(), window: None });
            }
        }
    }
    let (request_id, skip_l2) = (String::new(), false);
    Ok(Prefetch { rows, readers, prefix: true, lock: true, request_id, skip_l2 })
}

/// All rows have the same chunks, each row is of one rank and group, and all is of one model and salt.
fn check(prefetch: &Prefetch) -> Result<(), DecodeError> {
    let Some(first) = prefetch.rows.first() else { return Ok(()) };
    let of_row = |row: &PrefetchRow| {
        let head = row.keys.first()?;
        let alike = row.keys.len() == first.keys.len()
            && row.keys.iter().zip(&first.keys).all(|(key, same)| {
                (key.rank, key.group) == (head.rank, head.group)
                    && (key.hash, &key.model, &key.salt)
                        == (same.hash, &first.keys[0].model, &first.keys[0].salt)
            });
        alike.then_some(())
    };
    let empty = prefetch.rows.iter().all(|row| row.keys.is_empty());
    if prefetch.readers == 0 {
        return Err(DecodeError::Range { what: "num_kv_readers" });
    }
    if empty || prefetch.rows.iter().all(|row| of_row(row).is_some()) {
        Ok(())
    } else {
        Err(DecodeError::Invalid("the rows of a lookup are not of the same chunks"))
    }
}
