//! Engines and requests by chance, and what is to be done for them: found element by element and token by token, with the engine's
//! own strides.

use proptest::prelude::*;

use super::super::super::format::HeadOrder;
use super::super::super::groups::{GeometryInput, KvGeometry};
use super::super::*;

/// Tokens of a chunk.
pub(super) const CHUNK: u64 = 48;
/// Chunks of a request.
pub(super) const CHUNKS: u64 = 2;
/// A block that no engine of these has.
pub(super) const NOWHERE: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    KvFirst,
    BlocksFirst,
    Fused,
    Mla,
}

/// One engine group of equal layers, as an engine would hand it out: dimensions always in NHD order, strides physical.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    kind: Kind,
    dtype: (&'static str, u64),
    layers: usize,
    blocks: u64,
    slots: u64,
    heads: u64,
    width: u64,
    padding: u64,
    blocks_per_chunk: u64,
    /// In blocks.
    window: Option<u64>,
}

/// Which blocks of a chunk are there.
#[derive(Clone, Copy, Debug)]
enum Present {
    All,
    None,
    /// As an engine has it that frees what a window has left behind.
    Window,
    /// Each with an even chance.
    Some,
    /// One alone.
    One,
}

/// A request to an engine with these groups.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) specs: Vec<Spec>,
    pub(super) order: HeadOrder,
    separate: bool,
    /// Elements before each layer.
    offset: u64,
    /// One list for each group, with more at its end than is needed.
    pub(super) ids: Vec<Vec<u64>>,
    /// The null block.
    pub(super) null: u64,
    /// Tokens that a retrieve leaves alone.
    pub(super) skip: u64,
}

fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![Just(Kind::KvFirst), Just(Kind::BlocksFirst), Just(Kind::Fused), Just(Kind::Mla)];
    let dtype = prop_oneof![Just(("float16", 2u64)), Just(("uint8", 1)), Just(("float32", 4))];
    let sizes = (1usize..4, 3u64..9, 1u64..5, 1u64..4, 1u64..6);
    let padding = prop_oneof![Just(0u64), 1u64..7];
    let window = prop_oneof![Just(None), (1u64..4).prop_map(Some), (1u64..10).prop_map(Some)];
    let chunk = (prop_oneof![Just(1u64), Just(2), Just(3), Just(4)], window);
    (kind, dtype, sizes, padding, chunk).prop_map(
        |(kind, dtype, (layers, blocks, slots, heads, width), padding, (blocks_per_chunk, window))| {
            let heads = if kind == Kind::Mla { 1 } else { heads };
            let padding = if matches!(kind, Kind::Fused | Kind::Mla) { padding } else { 0 };
            // A block of `CHUNK / blocks_per_chunk` tokens needs a slot count that divides it.
            let slots = if (CHUNK / blocks_per_chunk).is_multiple_of(slots) { slots } else { 1 };
            Spec { kind, dtype, layers, blocks, slots, heads, width, padding, blocks_per_chunk, window }
        },
    )
}

/// The list of a group: runs of neighbours as well as scattered blocks, and null blocks where some are missing.
fn list(spec: &Spec, null: u64, (present, seeds, surplus): &([Present; 2], Vec<u64>, usize)) -> Vec<u64> {
    let per_chunk = spec.blocks_per_chunk;
    let id = |at: u64| {
        let (position, seed) = (at % per_chunk, seeds[at as usize]);
        let is_there = match present[(at / per_chunk) as usize] {
            Present::All => true,
            Present::None => false,
            Present::Window => spec.kept_from() <= position,
            Present::Some => seed & 4 == 0,
            Present::One => position == seeds[0] % per_chunk,
        };
        match (is_there, seed % 2) {
            (false, _) => null,
            (true, 0) => (seeds[0] % 9 + at) % spec.blocks,
            (true, _) => seed % spec.blocks,
        }
    };
    (0..CHUNKS * per_chunk).map(id).chain(std::iter::repeat_n(NOWHERE, *surplus)).collect()
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let present = prop_oneof![
        2 => Just(Present::All),
        2 => Just(Present::None),
        1 => Just(Present::Window),
        1 => Just(Present::Some),
        1 => Just(Present::One),
    ];
    let chunks = [present.clone(), present];
    let seeds = prop::collection::vec(any::<u64>(), 8);
    let group = (spec(), (chunks, seeds, 0usize..3));
    // The peer's own, others that exist, one that does not, and none at all.
    let null = prop_oneof![3 => Just(0u64), 2 => 1u64..3, 2 => Just(NOWHERE), 1 => Just(u64::MAX)];
    let skip = prop_oneof![1 => Just(0u64), 4 => 0u64..CHUNKS * CHUNK + 5];
    let request = (any::<bool>(), any::<bool>(), 0u64..50, null, skip);
    (prop::collection::vec(group, 1..4), request).prop_map(|(groups, (hnd, separate, offset, null, skip))| {
        // Without a null block, what is not there is some block all the same.
        let filler = if null == u64::MAX { 0 } else { null };
        let ids = groups.iter().map(|(spec, chance)| list(spec, filler, chance)).collect();
        let specs = groups.into_iter().map(|(spec, _)| spec).collect();
        let order = if hnd { HeadOrder::Hnd } else { HeadOrder::Nhd };
        Case { specs, order, separate, offset, ids, null, skip }
    })
}

impl Spec {
    pub(super) fn tokens_per_block(&self) -> u64 {
        CHUNK / self.blocks_per_chunk
    }

    /// The first block of a chunk that is copied.
    pub(super) fn kept_from(&self) -> u64 {
        self.blocks_per_chunk - self.window.unwrap_or(u64::MAX).min(self.blocks_per_chunk)
    }

    /// Whether the window is shorter than a chunk; nothing without one.
    pub(super) fn window_is_short(&self) -> Option<bool> {
        self.window.map(|window| window < self.blocks_per_chunk)
    }

    pub(super) fn is_padded(&self) -> bool {
        self.padding > 0
    }

    fn planes(&self) -> u64 {
        if matches!(self.kind, Kind::KvFirst | Kind::BlocksFirst) { 2 } else { 1 }
    }

    /// Strides of (plane, block, slot, head, element) in elements.
    fn steps(&self, order: HeadOrder) -> [u64; 5] {
        let tile = self.slots * self.heads * self.width;
        let (slot, head) = match order {
            HeadOrder::Nhd => (self.heads * self.width, self.width),
            HeadOrder::Hnd => (self.width, self.slots * self.width),
        };
        let (plane, block) = match self.kind {
            Kind::KvFirst => (self.blocks * tile, tile),
            Kind::BlocksFirst => (tile, 2 * tile),
            Kind::Fused | Kind::Mla => (0, tile + self.padding),
        };
        [plane, block, slot, head, 1]
    }

    fn metadata(&self, order: HeadOrder, offset: u64) -> TensorMetadata {
        let [plane, block, slot, head, element] = self.steps(order);
        let Spec { blocks, slots, heads, width, .. } = *self;
        let (shape, stride) = match self.kind {
            Kind::KvFirst => (vec![2, blocks, slots, heads, width], vec![plane, block, slot, head, element]),
            Kind::BlocksFirst => {
                (vec![blocks, 2, slots, heads, width], vec![block, plane, slot, head, element])
            }
            Kind::Fused => (vec![blocks, slots, heads, width], vec![block, slot, head, element]),
            Kind::Mla => (vec![blocks, slots, width], vec![block, slot, element]),
        };
        metadata(self.dtype.0, &shape, &stride, offset)
    }
}

/// A byte of a tensor and its place in an object: `(tensor, byte there, byte here)`.
pub(super) type Pair = (usize, usize, usize);

impl Case {
    /// What the daemon makes of the engine's registration.
    pub(super) fn geometry(&self) -> KvGeometry {
        let mut tensors = Vec::new();
        let mut infos = Vec::new();
        for (group, spec) in self.specs.iter().enumerate() {
            let layers = tensors.len() as u32..(tensors.len() + spec.layers) as u32;
            tensors.extend((0..spec.layers).map(|_| spec.metadata(self.order, self.offset)));
            let tokens = spec.tokens_per_block();
            infos.push(EngineGroupInfo {
                engine_group_id: group as u32,
                tokens_per_block: tokens,
                sw_size_tokens: spec.window.map_or(-1, |blocks| (blocks * tokens) as i64),
                ..info(&layers.collect::<Vec<u32>>())
            });
        }
        KvGeometry::build(&GeometryInput {
            tensors: &tensors.iter().collect::<Vec<_>>(),
            engine_type: "vllm",
            hints: &hints(None),
            default_order: self.order,
            engine_groups: &infos,
            chunk_tokens: CHUNK,
            separate_object_groups: self.separate,
        })
        .expect("a sane engine")
    }

    /// Whether a list has a block for each of the tokens of so many chunks.
    pub(super) fn covers(&self, chunks: u64) -> bool {
        let lists = self.specs.iter().zip(&self.ids);
        lists.into_iter().all(|(spec, ids)| ids.len() as u64 * spec.tokens_per_block() >= chunks * CHUNK)
    }

    /// Whether no token of a chunk has a block in a group.
    pub(super) fn is_null(&self, group: usize, chunk: u64) -> bool {
        let block = |token: u64| self.ids[group][(token / self.specs[group].tokens_per_block()) as usize];
        (chunk * CHUNK..(chunk + 1) * CHUNK).all(|token| block(token) == self.null)
    }

    /// A group's blocks of a chunk that are copied, by their position in it.
    pub(super) fn copied(&self, group: usize, chunk: u64, skip: u64) -> impl Iterator<Item = (u64, u64)> {
        let spec = &self.specs[group];
        (spec.kept_from()..spec.blocks_per_chunk).filter_map(move |position| {
            let at = chunk * spec.blocks_per_chunk + position;
            // A block is skipped when all its tokens are.
            let is_wanted = (at + 1) * spec.tokens_per_block() > skip;
            is_wanted.then(|| (position, self.ids[group][at as usize]))
        })
    }

    /// Every byte that is copied of a chunk between the engine and an object of these groups, and the bytes of the object.
    /// Nothing for a request with a block that the engine has not.
    pub(super) fn element_wise(&self, groups: &[usize], chunk: u64, skip: u64) -> Option<(Vec<Pair>, usize)> {
        let (mut pairs, mut region) = (Vec::new(), 0);
        for &group in groups {
            let spec = &self.specs[group];
            let Spec { blocks, slots, heads, width, dtype: (_, size), .. } = *spec;
            let [plane_step, block_step, slot_step, head_step, _] = spec.steps(self.order);
            let first_tensor: usize = self.specs[..group].iter().map(|spec| spec.layers).sum();
            let slots_kept = (spec.blocks_per_chunk - spec.kept_from()) * slots;
            for (position, block) in self.copied(group, chunk, skip) {
                if block >= blocks {
                    return None;
                }
                for (plane, layer) in
                    (0..spec.planes()).flat_map(|plane| (0..spec.layers).map(move |l| (plane, l)))
                {
                    for (slot, head) in (0..slots).flat_map(|slot| (0..heads).map(move |head| (slot, head))) {
                        let from = self.offset
                            + plane * plane_step
                            + block * block_step
                            + slot * slot_step
                            + head * head_step;
                        let row = (plane * spec.layers as u64 + layer as u64) * slots_kept
                            + (position - spec.kept_from()) * slots
                            + slot;
                        let to = (row * heads + head) * width;
                        pairs.extend((0..width * size).map(|byte| {
                            let (from, to) = (from * size + byte, region + to * size + byte);
                            (first_tensor + layer, from as usize, to as usize)
                        }));
                    }
                }
            }
            // Room for the whole chunk, whatever the window.
            region +=
                spec.planes() * spec.layers as u64 * spec.blocks_per_chunk * slots * heads * width * size;
        }
        Some((pairs, region as usize))
    }
}
