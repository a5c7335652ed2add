//! Plans against a copy made element by element with the engine's own strides.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::super::format::HeadOrder;
use super::super::groups::{GeometryInput, KvGeometry};
use super::super::plan::{ChunkPlan, CopyRun};
use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    KvFirst,
    BlocksFirst,
    Fused,
    Mla,
}

/// One engine group of equal layers, as an engine would hand it out: dimensions always in NHD order, strides physical.
#[derive(Clone, Debug)]
struct Spec {
    kind: Kind,
    layers: usize,
    blocks: u64,
    slots: u64,
    heads: u64,
    width: u64,
    padding: u64,
    blocks_per_chunk: u64,
    blocks_kept: u64,
}

const CHUNK: u64 = 48;

fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![Just(Kind::KvFirst), Just(Kind::BlocksFirst), Just(Kind::Fused), Just(Kind::Mla)];
    let sizes = (1usize..4, 3u64..9, 1u64..5, 1u64..4, 1u64..6, 0u64..7);
    let chunk = (prop_oneof![Just(1u64), Just(2), Just(3), Just(4)], 1u64..5);
    (kind, sizes, chunk).prop_map(|(kind, sizes, (blocks_per_chunk, kept))| {
        let (layers, blocks, slots, heads, width, padding) = sizes;
        let heads = if kind == Kind::Mla { 1 } else { heads };
        let padded = matches!(kind, Kind::Fused | Kind::Mla);
        let padding = if padded { padding } else { 0 };
        // A block of `CHUNK / blocks_per_chunk` tokens needs a slot count that divides it.
        let slots = if (CHUNK / blocks_per_chunk).is_multiple_of(slots) { slots } else { 1 };
        let blocks_kept = kept.min(blocks_per_chunk);
        Spec { kind, layers, blocks, slots, heads, width, padding, blocks_per_chunk, blocks_kept }
    })
}

impl Spec {
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
        metadata("float16", &shape, &stride, offset)
    }
}

fn moved(run: CopyRun) -> impl Iterator<Item = (usize, usize)> {
    let CopyRun { tensor_offset, object_offset, len, count, tensor_step, object_step, .. } = run;
    (0..count).flat_map(move |piece| {
        (0..len).map(move |byte| {
            let (tensor, object) = (tensor_offset + piece * tensor_step, object_offset + piece * object_step);
            ((tensor + byte) as usize, (object + byte) as usize)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn plans_move_the_bytes_of_an_element_wise_copy(
        specs in prop::collection::vec(spec(), 1..4),
        hnd in any::<bool>(),
        separate in any::<bool>(),
        offset in 0u64..50,
        seeds in prop::collection::vec(any::<u64>(), 24),
        chunk in 0u64..2,
        skip in 0u64..CHUNK,
    ) {
        let order = if hnd { HeadOrder::Hnd } else { HeadOrder::Nhd };
        let mut tensors = Vec::new();
        let mut infos = Vec::new();
        for (group, spec) in specs.iter().enumerate() {
            let layers = tensors.len() as u32..(tensors.len() + spec.layers) as u32;
            tensors.extend((0..spec.layers).map(|_| spec.metadata(order, offset)));
            let tokens = CHUNK / spec.blocks_per_chunk;
            infos.push(EngineGroupInfo {
                engine_group_id: group as u32,
                tokens_per_block: tokens,
                sw_size_tokens: match spec.blocks_kept {
                    kept if kept == spec.blocks_per_chunk => -1,
                    kept => (kept * tokens) as i64,
                },
                ..info(&layers.collect::<Vec<u32>>())
            });
        }
        let views: Vec<&TensorMetadata> = tensors.iter().collect();
        let input = GeometryInput {
            tensors: &views,
            engine_type: "vllm",
            hints: &hints(None),
            default_order: order,
            engine_groups: &infos,
            chunk_tokens: CHUNK,
            separate_object_groups: separate,
        };
        let geometry = KvGeometry::build(&input).expect("a sane engine");
        // Runs of neighbours as well as scattered blocks.
        let ids: Vec<Vec<u64>> = specs.iter().map(|spec| {
            (0..2 * spec.blocks_per_chunk as usize)
                .map(|at| {
                    let seed = seeds[at];
                    if seed % 2 == 0 { (seeds[0] % 9 + at as u64) % spec.blocks } else { seed % spec.blocks }
                })
                .collect()
        }).collect();

        let mut first_tensor = vec![0];
        first_tensor.extend(specs.iter().scan(0, |sum, spec| { *sum += spec.layers; Some(*sum) }));
        for (number, object_group) in geometry.object_groups.iter().enumerate() {
            let mut expected = Vec::new();
            for (&index, &region) in object_group.kernel_groups.iter().zip(&object_group.offsets) {
                let spec = &specs[index];
                let [plane_step, block_step, slot_step, head_step, _] = spec.steps(order);
                let dropped = spec.blocks_per_chunk - spec.blocks_kept;
                let slots_kept = spec.blocks_kept * spec.slots;
                for plane in 0..spec.planes() {
                    for layer in 0..spec.layers as u64 {
                        for slot in 0..slots_kept {
                            let position = dropped + slot / spec.slots;
                            // A block is skipped when all its tokens are.
                            if (position + 1) * (CHUNK / spec.blocks_per_chunk) <= skip { continue; }
                            let block = ids[index][(chunk * spec.blocks_per_chunk + position) as usize];
                            for head in 0..spec.heads {
                                for element in 0..spec.width {
                                    let from = offset + plane * plane_step + block * block_step
                                        + slot % spec.slots * slot_step + head * head_step + element;
                                    let row = (plane * spec.layers as u64 + layer) * slots_kept + slot;
                                    let to = (row * spec.heads + head) * spec.width + element;
                                    let tensor = first_tensor[index] + layer as usize;
                                    for byte in 0..2 {
                                        let (from, to) = (2 * from + byte, region + 2 * to + byte);
                                        expected.push((tensor, from as usize, to as usize));
                                    }
                                }
                            }
                        }
                    }
                }
            }
            let plan = ChunkPlan::new(&geometry, number, &ids, chunk, skip).expect("valid blocks");
            let pairs = |run: CopyRun| moved(run).map(move |(from, to)| (run.tensor, from, to));
            let mut planned: Vec<_> = plan.runs().flat_map(pairs).collect();
            prop_assert_eq!(planned.len() as u64, plan.bytes());
            // Every moved byte once, nothing in the room that a store clears.
            planned.sort_unstable_by_key(|(_, _, to)| *to);
            expected.sort_unstable_by_key(|(_, _, to)| *to);
            let cleared = |to: usize| plan.untouched().any(|room| room.contains(&(to as u64)));
            prop_assert!(!planned.iter().any(|(_, _, to)| cleared(*to)));
            prop_assert_eq!(planned, expected);
        }
    }
}
