//! Registrations: descriptors as they come from the wire, the geometry that is made of them, and the copies that follow.

use lmcache_proto::fuzzing::Input;
use lmcache_proto::wire::limits::{DESCRIPTORS_MAX, RANK_MAX};
use lmcache_proto::wire::{
    DeviceDescriptor, Operation, RegisterKvCache, Request, SharedStorage, TensorMetadata, encode_request,
};

use super::format::HeadOrder;
use super::groups::{GeometryInput, KvGeometry};
use super::plan::{ChunkPlan, CopyRun, check_coverage, null_chunks};

/// Blocks of a request: enough for all that can go wrong between two of them.
const BLOCKS: u64 = 64;
/// Pieces of one run that are looked at one by one.
const PIECES: u64 = 1 << 12;

/// What `register_kv_cache` carries, each frame from the input.
pub fn descriptors(data: &[u8]) {
    let mut input = Input::new(data);
    let (separate, chunk_tokens) = (input.byte() & 1 == 1, 1 << (input.byte() % 12));
    let (blocks, list) = (input.number(8), input.block());
    let (hints, groups) = (input.block(), input.block());
    let frames: [&[u8]; 7] = [&[1], list, b"\xa1m", &[1], b"\xa4vllm", hints, groups];
    let Ok(request) = Request::decode(Operation::RegisterKvCache, &frames) else { return };
    let Request::RegisterKvCache(register) = &request else { panic!("another operation") };
    assert!(register.kv_cache.len() <= DESCRIPTORS_MAX);
    let ranks = register.kv_cache.iter().filter_map(DeviceDescriptor::metadata);
    assert!(ranks.clone().all(|view| view.shape.len() <= RANK_MAX && view.shape.len() == view.stride.len()));
    // With the version that was left out a descriptor of the largest kind may have a field too many.
    if !register.kv_cache.iter().any(|one| matches!(one, DeviceDescriptor::CudaVmm { .. })) {
        let back = encode_request(&request);
        assert_eq!(Request::decode(Operation::RegisterKvCache, &back).as_ref(), Ok(&request));
    }
    for descriptor in &register.kv_cache {
        if let DeviceDescriptor::Cuda { handle, .. } = descriptor
            && let Ok(storage) = SharedStorage::decode(handle)
        {
            assert_eq!(SharedStorage::decode(&storage.encode()), Ok(storage));
        }
    }
    super::cuda::fuzzed(&register.kv_cache, input.block());
    let tensors: Vec<&TensorMetadata> = ranks.collect();
    if tensors.len() == register.kv_cache.len() {
        geometry(register, &tensors, chunk_tokens, separate, blocks);
    }
}

fn geometry(
    register: &RegisterKvCache,
    tensors: &[&TensorMetadata],
    chunk_tokens: u64,
    separate_object_groups: bool,
    seed: u64,
) {
    for default_order in [HeadOrder::Hnd, HeadOrder::Nhd] {
        let built = KvGeometry::build(&GeometryInput {
            tensors,
            engine_type: &register.engine_type,
            hints: &register.layout_hints,
            default_order,
            engine_groups: &register.engine_group_infos,
            chunk_tokens,
            separate_object_groups,
        });
        let Ok(geometry) = built else { continue };
        assert_eq!(geometry.tensors.len(), tensors.len());
        // Block ids that exist, and some that do not.
        let ids: Vec<Vec<u64>> = geometry
            .kernel_groups
            .iter()
            .map(|group| {
                let few = group.num_blocks.saturating_add(seed & 1).max(1);
                (0..BLOCKS).map(|at| seed.rotate_left(at as u32).wrapping_add(at) % few).collect()
            })
            .collect();
        let chunks = (0..4).take_while(|chunks| check_coverage(&geometry, &ids, chunks + 1).is_ok()).count();
        let null = null_chunks(&geometry, &ids, chunks as u64, 0);
        assert!(null.len() == geometry.object_groups.len() && null.iter().all(|group| group.len() == chunks));
        for group in 0..geometry.object_groups.len() {
            for chunk in 0..4 {
                for skip in [0, seed % (chunk_tokens + 1)] {
                    if let Ok(plan) = ChunkPlan::new(&geometry, group, &ids, chunk, skip) {
                        check(&geometry, &plan, skip == 0);
                    }
                }
            }
        }
    }
}

/// No copy leaves its tensor or its object, and no byte of the object is written twice.
fn check(geometry: &KvGeometry, plan: &ChunkPlan<'_>, whole: bool) {
    let (mut moved, mut pieces) = (0u64, Vec::new());
    let mut all = true;
    for run in plan.runs().take(PIECES as usize) {
        let CopyRun { tensor, tensor_offset, object_offset, len, count, tensor_step, object_step } = run;
        let view = geometry.tensors[tensor].as_ref().expect("a tensor of a group has a view");
        assert!(len > 0 && count > 0, "a copy of nothing");
        let last = |offset: u64, step: u64| {
            step.checked_mul(count - 1).and_then(|all| all.checked_add(offset)?.checked_add(len))
        };
        assert!(
            last(tensor_offset, tensor_step).is_some_and(|end| end <= view.view.end),
            "{run:?} of {view:?}"
        );
        assert!(last(object_offset, object_step).is_some_and(|end| end <= plan.object_bytes()), "{run:?}");
        moved = moved.saturating_add(len * count);
        all &= count <= PIECES;
        pieces.extend(
            (0..count.min(PIECES)).map(|piece| {
                (object_offset + piece * object_step, object_offset + piece * object_step + len)
            }),
        );
    }
    if pieces.len() < PIECES as usize && all {
        assert_eq!(moved, plan.bytes());
        if whole {
            pieces.extend(plan.untouched().map(|gap| (gap.start, gap.end)));
        }
        pieces.sort_unstable();
        assert!(pieces.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two copies to one byte of an object");
    }
}
