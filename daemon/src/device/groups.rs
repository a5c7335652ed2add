//! Which layers travel together.
//!
//! A *kernel group* is a set of layers with one physical identity in one engine block table; block ids of a request
//! come as one list per kernel group. They are formed exactly as LMCache 0.5.6 does (`kv_layer_groups.py`,
//! `multiprocess/group_view.py`): the client runs the same code over the same tensors and indexes its block ids by the
//! result.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use lmcache_proto::layout::{Dtype, Region};
use lmcache_proto::wire::{EngineGroupInfo, LayoutHints, TensorMetadata};

use super::format::{Blocks, Format, FormatError, HeadOrder, View};
use super::objects::{self, ObjectGroup};

/// Everything that the geometry is derived from.
#[derive(Clone, Copy, Debug)]
pub struct GeometryInput<'a> {
    /// One tensor per registered layer.
    pub tensors: &'a [&'a TensorMetadata],
    /// Engine that laid them out.
    pub engine_type: &'a str,
    /// Its hints.
    pub hints: &'a LayoutHints,
    /// Head order without a hint; differs by device.
    pub default_order: HeadOrder,
    /// KV groups in the engine's order; empty means one group of all layers.
    pub engine_groups: &'a [EngineGroupInfo],
    /// Tokens of a chunk.
    pub chunk_tokens: u64,
    /// One object group per attention window instead of one for all.
    pub separate_object_groups: bool,
}

/// Why registered tensors have no geometry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum GeometryError {
    #[error(transparent)]
    Engine(FormatError),
    #[error("layer {layer}: {source}")]
    Layer { layer: usize, source: FormatError },
    #[error("no tensor belongs to a KV group")]
    NoLayers,
    #[error("KV group names layer {layer}, but {layers} tensors were registered")]
    LayerIndex { layer: u32, layers: usize },
    #[error("{infos} KV groups were announced, but the tensors form {groups}")]
    GroupCount { infos: usize, groups: usize },
    #[error(
        "KV group {group} was announced with other layers than the tensors form (first difference: {layer})"
    )]
    GroupLayers { group: usize, layer: u32 },
    #[error("KV group {group}: layer {layer} has other block counts or strides than the group's first layer")]
    Uneven { group: usize, layer: usize },
    #[error("KV group {group}: {tokens} tokens per block are no multiple of its {slots} slots per block")]
    Slots { group: usize, tokens: u64, slots: u64 },
    #[error(
        "KV group {group}: the chunk size of {chunk} tokens is no multiple of its {tokens} tokens per block"
    )]
    Chunk { group: usize, chunk: u64, tokens: u64 },
    #[error(
        "KV group {group}: a sliding window of {window} tokens is not possible with {tokens} tokens per block"
    )]
    Window { group: usize, window: i64, tokens: u64 },
    #[error("object group {group}: the size of an object does not fit in 64 bits")]
    ObjectSize { group: usize },
}

/// One layer of a kernel group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRef {
    /// Index of the layer's tensor in the registration.
    pub tensor: usize,
    /// First byte of the layer in the tensor's storage.
    pub base: u64,
}

/// Layers that one copy routine serves: same shape, element type, format and block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelGroup {
    /// The layers in ascending order.
    pub layers: Vec<LayerRef>,
    /// Layout of each layer.
    pub format: Format,
    /// 2 for separate K and V, else 1.
    pub planes: u64,
    /// KV heads; 1 for MLA.
    pub heads: u64,
    /// Elements of a head in one slot and plane.
    pub head_width: u64,
    /// Physical slots of a block.
    pub slots_per_block: u64,
    /// Logical tokens that a block stands for; above `slots_per_block` for compressed caches.
    pub tokens_per_block: u64,
    /// Blocks of each layer.
    pub num_blocks: u64,
    /// Bytes from one block to the next.
    pub block_stride: u64,
    /// Bytes from K to V; 0 with one plane.
    pub plane_stride: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Slots of a whole chunk: what the object has room for.
    pub slots_per_chunk: u64,
    /// Slots that are copied per chunk: fewer where a sliding window is shorter than a chunk.
    pub slots_kept: u64,
    /// Engine block table that the group draws from.
    pub engine_group: u32,
    /// Sliding window in tokens; `None` for full attention.
    pub window_tokens: Option<u64>,
    /// Pages hold recurrent state.
    pub recurrent: bool,
    /// Tag of a connector's private group; 0 for regular groups.
    pub extra_tag: i64,
}

impl KernelGroup {
    /// Elements of one slot of one plane and layer.
    pub fn width(&self) -> u64 {
        self.heads * self.head_width
    }

    /// Bytes of one slot of one plane and layer.
    pub fn slot_bytes(&self) -> u64 {
        self.width() * self.dtype.size()
    }

    /// Block ids that a chunk takes in a request.
    pub fn blocks_per_chunk(&self) -> u64 {
        self.slots_per_chunk / self.slots_per_block
    }

    /// Block ids of a chunk that are copied: its last ones.
    pub fn blocks_kept(&self) -> u64 {
        self.slots_kept / self.slots_per_block
    }

    /// The group's region of an object.
    pub fn region(&self) -> Region {
        Region {
            planes: self.planes,
            layers: self.layers.len() as u64,
            slots: self.slots_per_chunk,
            width: self.width(),
            dtype: self.dtype,
        }
    }
}

/// A tensor as the checksum reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView {
    /// The physical view of a grouped layer; the engine's own view of a layer outside all groups.
    pub view: View,
    /// Dimension that counts blocks; `None` if it cannot be told.
    pub block_axis: Option<usize>,
}

/// Where a worker's KV is, and what its objects look like. Plain data: owns no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGeometry {
    /// Tokens of a chunk.
    pub chunk_tokens: u64,
    /// Kernel groups by first layer: the order of a request's block id lists.
    pub kernel_groups: Vec<KernelGroup>,
    /// Object groups: the order of object group ids.
    pub object_groups: Vec<ObjectGroup>,
    /// One entry per registered tensor; `None` for an empty or unreadable one outside all groups.
    pub tensors: Vec<Option<TensorView>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Identity {
    planes: u64,
    heads: u64,
    head_width: u64,
    slots: u64,
    engine_group: u32,
    dtype: Dtype,
    format: Format,
}

/// A layer on its way into a kernel group.
struct Member {
    layer: usize,
    base: u64,
    blocks: Blocks,
}

impl KvGeometry {
    /// Derives the geometry.
    ///
    /// # Errors
    /// [`GeometryError`] names the first layer or group that does not fit.
    pub fn build(input: &GeometryInput<'_>) -> Result<KvGeometry, GeometryError> {
        if input.engine_type != "vllm" {
            let name = input.engine_type.chars().take(32).collect();
            return Err(GeometryError::Engine(FormatError::Engine(name)));
        }
        let order = HeadOrder::resolve(input.hints, input.default_order).map_err(GeometryError::Engine)?;
        let engine_group = engine_group_per_layer(input)?;

        let mut tensors: Vec<Option<TensorView>> = Vec::with_capacity(input.tensors.len());
        let mut groups: Vec<(Identity, Vec<Member>)> = Vec::new();
        let mut position: HashMap<Identity, usize> = HashMap::new();
        for (layer, metadata) in input.tensors.iter().enumerate() {
            let Some(engine_group) = engine_group[layer] else {
                // A layer that borrows another layer's KV: nothing is stored from it.
                let raw = View::new(metadata).ok();
                tensors.push(raw.map(|view| TensorView { view, block_axis: None }));
                continue;
            };
            let located = |source| GeometryError::Layer { layer, source };
            let view = View::new(metadata).and_then(|view| view.physical()).map_err(located)?;
            let blocks = Blocks::detect(&view, order).map_err(located)?;
            let identity = || Identity {
                planes: blocks.planes,
                heads: blocks.heads,
                head_width: blocks.head_width,
                slots: blocks.slots,
                engine_group,
                dtype: view.dtype,
                format: blocks.format,
            };
            // Layers come in ascending order, so the first one decides the group's place.
            let at = *position.entry(identity()).or_insert(groups.len());
            if at == groups.len() {
                groups.push((identity(), Vec::new()));
            }
            groups[at].1.push(Member { layer, base: view.begin, blocks });
            tensors.push(Some(TensorView { block_axis: Some(blocks.format.block_axis()), view }));
        }
        if groups.is_empty() {
            return Err(GeometryError::NoLayers);
        }
        let infos = input.engine_groups;
        if !infos.is_empty() && infos.len() != groups.len() {
            return Err(GeometryError::GroupCount { infos: infos.len(), groups: groups.len() });
        }
        let kernel_groups = groups
            .iter()
            .enumerate()
            .map(|(group, (identity, members))| {
                kernel_group(group, identity, members, infos.get(group), input.chunk_tokens)
            })
            .collect::<Result<Vec<_>, _>>()?;
        adopt_block_axis(&mut tensors, &kernel_groups);
        let object_groups = objects::form(&kernel_groups, input)?;
        Ok(KvGeometry { chunk_tokens: input.chunk_tokens, kernel_groups, object_groups, tensors })
    }
}

/// Engine group of each layer; `None` for a layer that no group names. A layer named twice belongs to the last one,
/// and the comparison of layer lists then refuses the other.
fn engine_group_per_layer(input: &GeometryInput<'_>) -> Result<Vec<Option<u32>>, GeometryError> {
    let layers = input.tensors.len();
    if input.engine_groups.is_empty() {
        return Ok(vec![Some(0); layers]);
    }
    let mut of_layer = vec![None; layers];
    for info in input.engine_groups {
        for &layer in &info.layer_indices {
            let entry =
                of_layer.get_mut(layer as usize).ok_or(GeometryError::LayerIndex { layer, layers })?;
            *entry = Some(info.engine_group_id);
        }
    }
    Ok(of_layer)
}

fn kernel_group(
    group: usize,
    identity: &Identity,
    members: &[Member],
    info: Option<&EngineGroupInfo>,
    chunk: u64,
) -> Result<KernelGroup, GeometryError> {
    let first = members[0].blocks;
    // The peer takes count and stride from the first layer and would copy wrong bytes from the others.
    if let Some(member) = members.iter().find(|member| member.blocks != first) {
        return Err(GeometryError::Uneven { group, layer: member.layer });
    }
    if let Some(info) = info {
        let ours = members.iter().map(|member| member.layer as u64);
        let theirs = info.layer_indices.iter().map(|layer| u64::from(*layer));
        if !ours.clone().eq(theirs.clone()) {
            let differs = theirs.clone().zip(ours.clone()).find(|(a, b)| a != b).map(|pair| pair.0);
            let layer = differs.or_else(|| theirs.chain(ours).last()).unwrap_or(0);
            return Err(GeometryError::GroupLayers {
                group,
                layer: u32::try_from(layer).unwrap_or(u32::MAX),
            });
        }
    }
    let slots = identity.slots;
    let tokens = info.map_or(0, |info| info.tokens_per_block);
    // An engine that does not say how many tokens a block holds does not compress.
    let tokens = if tokens == 0 { slots } else { tokens };
    if !tokens.is_multiple_of(slots) {
        return Err(GeometryError::Slots { group, tokens, slots });
    }
    if chunk == 0 || !chunk.is_multiple_of(tokens) {
        return Err(GeometryError::Chunk { group, chunk, tokens });
    }
    let refused = |window| GeometryError::Window { group, window, tokens };
    let window_tokens = match info.map_or(-1, |info| info.sw_size_tokens) {
        -1 => None,
        // The peer registers a window of 0 and then fails every transfer.
        window => Some(u64::try_from(window).ok().filter(|w| *w > 0).ok_or(refused(window))?),
    };
    let kept = window_tokens.unwrap_or(chunk).min(chunk);
    if !kept.is_multiple_of(tokens) {
        return Err(refused(info.map_or(-1, |info| info.sw_size_tokens)));
    }
    // `slots` divides `tokens` divides both: neither quotient times `slots` exceeds its token count.
    let to_slots = |count: u64| count / tokens * slots;
    let size = identity.dtype.size();
    Ok(KernelGroup {
        layers: members.iter().map(|member| LayerRef { tensor: member.layer, base: member.base }).collect(),
        format: identity.format,
        planes: identity.planes,
        heads: identity.heads,
        head_width: identity.head_width,
        slots_per_block: slots,
        tokens_per_block: tokens,
        num_blocks: first.count,
        // Inside a view whose end in bytes was checked, so these products do not overflow, except for the stride of a
        // single block, which nothing steps over.
        block_stride: first.block_stride.saturating_mul(size),
        plane_stride: first.plane_stride.saturating_mul(size),
        dtype: identity.dtype,
        slots_per_chunk: to_slots(chunk),
        slots_kept: to_slots(kept),
        engine_group: identity.engine_group,
        window_tokens,
        recurrent: info.is_some_and(|info| info.recurrent_state),
        extra_tag: info.map_or(0, |info| info.extra_object_group_tag),
    })
}

/// A layer outside all groups has the block axis of the model's only format, as far as its own view has that axis.
fn adopt_block_axis(tensors: &mut [Option<TensorView>], groups: &[KernelGroup]) {
    let only = groups.iter().all(|group| group.format == groups[0].format);
    let axis = only.then(|| groups[0].format.block_axis());
    for tensor in tensors.iter_mut().flatten().filter(|tensor| tensor.block_axis.is_none()) {
        tensor.block_axis = axis.filter(|axis| *axis < tensor.view.dims.len());
    }
}
