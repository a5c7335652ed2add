//! Which bytes of a worker's tensors are which bytes of an object. Pure: no memory is touched here.
//!
//! Inside a region an object is `[planes, layers, slots, width]`, slots before heads whatever the engine's order
//! (`csrc/cuda/mp_mem_kernels.cu`, `calculate_lmcache_*_offset`). Where a sliding window is shorter than a chunk, only
//! the chunk's last blocks are copied, and the region is compact at its start: its slot count is then
//! [`KernelGroup::slots_kept`], while the next region still begins after room for a whole chunk.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::groups::{KernelGroup, KvGeometry, LayerRef};
use super::objects::ObjectGroup;

/// `count` pieces of `len` bytes that lie at regular steps on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRun {
    /// Index of the tensor in the registration.
    pub tensor: usize,
    /// First byte in the tensor's storage.
    pub tensor_offset: u64,
    /// First byte in the object.
    pub object_offset: u64,
    /// Bytes of a piece.
    pub len: u64,
    /// Pieces; at least 1.
    pub count: u64,
    /// Bytes from one piece to the next in the tensor.
    pub tensor_step: u64,
    /// Bytes from one piece to the next in the object.
    pub object_step: u64,
}

/// Why block ids do not fit a geometry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PlanError {
    #[error("object group {0} does not exist")]
    ObjectGroup(usize),
    #[error("{lists} lists of block ids came for {groups} KV groups")]
    Lists { lists: usize, groups: usize },
    #[error("KV group {group}: {have} block ids came, {need} are needed")]
    TooFewBlocks { group: usize, have: usize, need: u64 },
    #[error("KV group {group}: block {block} does not exist, the worker registered {blocks}")]
    BlockRange { group: usize, block: u64, blocks: u64 },
}

/// Checks that every KV group's list covers `chunks` chunks: the peer's first check of a store or retrieve, made on
/// all groups before anything is reserved or copied. Surplus ids at the end are allowed and never read.
///
/// # Errors
/// [`PlanError::Lists`] or [`PlanError::TooFewBlocks`].
pub fn check_coverage(geometry: &KvGeometry, block_ids: &[Vec<u64>], chunks: u64) -> Result<(), PlanError> {
    let groups = geometry.kernel_groups.len();
    if block_ids.len() != groups {
        return Err(PlanError::Lists { lists: block_ids.len(), groups });
    }
    for (group, (kernel_group, ids)) in geometry.kernel_groups.iter().zip(block_ids).enumerate() {
        let need = chunks.saturating_mul(kernel_group.blocks_per_chunk());
        if (ids.len() as u64) < need {
            return Err(PlanError::TooFewBlocks { group, have: ids.len(), need });
        }
    }
    Ok(())
}

/// Tokens of chunk `chunk` that a request which skips its first `skip_first` tokens skips; `None` if that is all of it.
///
/// Blocks that the engine shares between requests may be read while we write: the engine says how many to leave alone.
pub fn skipped_in_chunk(geometry: &KvGeometry, chunk: u64, skip_first: u64) -> Option<u64> {
    let skipped = skip_first.saturating_sub(chunk.saturating_mul(geometry.chunk_tokens));
    (skipped < geometry.chunk_tokens).then_some(skipped)
}

/// Marks, per object group, the chunks whose blocks are all the engine's null block. Such a chunk holds no KV and must
/// not be stored under its hash: recurrent layers keep only the block of the last state. A group is null where all its
/// kernel groups are. Ids that are missing count as null, so call [`check_coverage`] first.
pub fn null_chunks(geometry: &KvGeometry, block_ids: &[Vec<u64>], chunks: u64, null: u64) -> Vec<Vec<bool>> {
    let is_null = |group: &ObjectGroup, chunk: u64| {
        group.kernel_groups.iter().all(|&index| {
            let per_chunk = geometry.kernel_groups[index].blocks_per_chunk();
            let ids =
                block_ids.get(index).map_or(&[][..], |ids| chunk_slice(ids, chunk, per_chunk).unwrap_or(&[]));
            ids.iter().all(|&id| id == null)
        })
    };
    geometry
        .object_groups
        .iter()
        .map(|group| (0..chunks).map(|chunk| is_null(group, chunk)).collect())
        .collect()
}

/// Bytes of an object of `group` that no plan ever touches: the room behind a compact window. They would otherwise hold
/// whatever the pool's slot held before, so a store clears them.
pub fn untouched<'a>(
    geometry: &'a KvGeometry,
    group: &'a ObjectGroup,
) -> impl Iterator<Item = Range<u64>> + 'a {
    let members = group.kernel_groups.iter().zip(&group.offsets);
    members.filter_map(|(&index, &offset)| {
        let kernel_group = &geometry.kernel_groups[index];
        let per_slot = kernel_group.planes * kernel_group.layers.len() as u64 * kernel_group.slot_bytes();
        let (kept, room) = (kernel_group.slots_kept, kernel_group.slots_per_chunk);
        (kept < room).then(|| offset + per_slot * kept..offset + per_slot * room)
    })
}

/// What to copy between one object and the blocks of one chunk, in either direction. All block ids are checked.
#[derive(Clone, Debug)]
pub struct ChunkPlan<'a> {
    geometry: &'a KvGeometry,
    group: &'a ObjectGroup,
    parts: Vec<Part<'a>>,
}

/// The share of one kernel group.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    kernel_group: &'a KernelGroup,
    region: u64,
    /// Blocks to copy.
    blocks: &'a [u64],
    /// Slot of the region where the first of them goes.
    first_slot: u64,
}

impl<'a> ChunkPlan<'a> {
    /// Plans chunk number `chunk` of a request whose block ids are `block_ids`, one list per KV group.
    ///
    /// `skip_tokens` at the chunk's start are left alone, rounded down to whole blocks of each KV group; a chunk that
    /// is skipped whole gives an empty plan. Block ids that nothing is copied from or to are not looked at: before a
    /// window they may be placeholders.
    ///
    /// # Errors
    /// [`PlanError`]; nothing has been copied then.
    pub fn new(
        geometry: &'a KvGeometry,
        object_group: usize,
        block_ids: &'a [Vec<u64>],
        chunk: u64,
        skip_tokens: u64,
    ) -> Result<ChunkPlan<'a>, PlanError> {
        let group = geometry.object_groups.get(object_group).ok_or(PlanError::ObjectGroup(object_group))?;
        if block_ids.len() != geometry.kernel_groups.len() {
            return Err(PlanError::Lists { lists: block_ids.len(), groups: geometry.kernel_groups.len() });
        }
        let mut parts = Vec::with_capacity(group.kernel_groups.len());
        for (&index, &region) in group.kernel_groups.iter().zip(&group.offsets) {
            let kernel_group = &geometry.kernel_groups[index];
            let per_chunk = kernel_group.blocks_per_chunk();
            let ids = chunk_slice(&block_ids[index], chunk, per_chunk).ok_or_else(|| {
                let need = chunk.saturating_add(1).saturating_mul(per_chunk);
                PlanError::TooFewBlocks { group: index, have: block_ids[index].len(), need }
            })?;
            if skip_tokens >= geometry.chunk_tokens {
                continue;
            }
            let dropped = per_chunk - kernel_group.blocks_kept();
            // Blocks before the window are gone already; only what is skipped beyond them shortens the window.
            let skipped = (skip_tokens / kernel_group.tokens_per_block).saturating_sub(dropped);
            // Both counts are below `per_chunk`, the length of `ids`.
            let blocks = &ids[(dropped + skipped) as usize..];
            if let Some(&block) = blocks.iter().find(|block| **block >= kernel_group.num_blocks) {
                return Err(PlanError::BlockRange { group: index, block, blocks: kernel_group.num_blocks });
            }
            let first_slot = skipped * kernel_group.slots_per_block;
            parts.push(Part { kernel_group, region, blocks, first_slot });
        }
        Ok(ChunkPlan { geometry, group, parts })
    }

    /// Bytes that the runs move.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// Bytes of an object of the plan's group.
    pub fn object_bytes(&self) -> u64 {
        self.group.layout.bytes()
    }

    /// The parts of the object that no plan touches; see [`untouched`].
    pub fn untouched(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        untouched(self.geometry, self.group)
    }

    /// The copies, ordered by the object's offsets as far as the head order allows.
    pub fn runs(&self) -> impl Iterator<Item = CopyRun> + '_ {
        self.parts.iter().flat_map(|part| {
            let layers = &part.kernel_group.layers;
            (0..part.kernel_group.planes).flat_map(move |plane| {
                layers
                    .iter()
                    .enumerate()
                    .flat_map(move |(at, layer)| part.layer_runs(plane, at as u64, layer))
            })
        })
    }
}

// A geometry's products are checked when it is built: every block's end is inside its tensor's view and every region
// inside the object layout, so the sums and products below stay below those ends.
impl<'a> Part<'a> {
    fn bytes(&self) -> u64 {
        let group = self.kernel_group;
        let slots = self.blocks.len() as u64 * group.slots_per_block;
        group.planes * group.layers.len() as u64 * slots * group.slot_bytes()
    }

    /// The runs of one plane of one layer; `at` is the layer's position in its group.
    fn layer_runs(&self, plane: u64, at: u64, layer: &LayerRef) -> impl Iterator<Item = CopyRun> + use<'a> {
        let group = self.kernel_group;
        let block_bytes = group.slots_per_block * group.slot_bytes();
        let row = (plane * group.layers.len() as u64 + at) * group.slots_kept + self.first_slot;
        let object = self.region + row * group.slot_bytes();
        let tensor_plane = layer.base + plane * group.plane_stride;
        // One head or one slot per block: both head orders are the same bytes.
        let token_major = !group.format.is_hnd() || group.heads == 1 || group.slots_per_block == 1;
        let (nhd, hnd) = if token_major { (self.blocks, &[][..]) } else { (&[][..], self.blocks) };

        let tensor = layer.tensor;
        let mut next = object;
        let adjacent = |a: &u64, b: &u64| a.checked_add(1) == Some(*b);
        let whole_blocks = nhd.chunk_by(adjacent).map(move |blocks| {
            let count = blocks.len() as u64;
            let (tensor_offset, object_offset) = (tensor_plane + blocks[0] * group.block_stride, next);
            next += count * block_bytes;
            // Neighbours without a gap are one piece; with one (K and V interleaved, padding) they are a stride.
            let dense = group.block_stride == block_bytes;
            let (len, count) = if dense { (count * block_bytes, 1) } else { (block_bytes, count) };
            let (tensor_step, object_step) = (group.block_stride, block_bytes);
            CopyRun { tensor, tensor_offset, object_offset, len, count, tensor_step, object_step }
        });

        let head_bytes = group.head_width * group.dtype.size();
        let transposed = hnd.iter().enumerate().flat_map(move |(at, &block)| {
            let (from, to) = (tensor_plane + block * group.block_stride, object + at as u64 * block_bytes);
            (0..group.heads).map(move |head| CopyRun {
                tensor,
                tensor_offset: from + head * group.slots_per_block * head_bytes,
                object_offset: to + head * head_bytes,
                len: head_bytes,
                count: group.slots_per_block,
                tensor_step: head_bytes,
                object_step: group.slot_bytes(),
            })
        });
        whole_blocks.chain(transposed)
    }
}

/// The ids of one chunk, or `None` if the list is too short.
fn chunk_slice(ids: &[u64], chunk: u64, per_chunk: u64) -> Option<&[u64]> {
    let begin = usize::try_from(chunk.checked_mul(per_chunk)?).ok()?;
    let end = begin.checked_add(usize::try_from(per_chunk).ok()?)?;
    ids.get(begin..end)
}
