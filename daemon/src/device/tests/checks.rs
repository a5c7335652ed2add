//! Formats and groups by example: what is taken, and what is refused with which reason.
#![forbid(unsafe_code)]

use super::super::format::{Blocks, Format, FormatError, HeadOrder, View};
use super::super::groups::{GeometryError, GeometryInput, KvGeometry};
use super::super::plan::{ChunkPlan, PlanError, check_coverage, null_chunks, skipped_in_chunk};
use super::super::{RegisterError, RegisterReason};
use super::*;

fn detect(tensor: &TensorMetadata, order: HeadOrder) -> Result<Blocks, FormatError> {
    Blocks::detect(&View::new(tensor)?.physical()?, order)
}

fn format(shape: &[u64], order: HeadOrder) -> Result<Format, FormatError> {
    detect(&metadata("float16", shape, &dense(shape), 0), order).map(|blocks| blocks.format)
}

#[test]
fn rank_and_the_place_of_the_plane_axis_name_the_format() {
    use HeadOrder::{Hnd, Nhd};
    assert_eq!(format(&[2, 9, 16, 8, 64], Nhd), Ok(Format::KvFirstNhd));
    assert_eq!(format(&[2, 9, 8, 16, 64], Hnd), Ok(Format::KvFirstHnd));
    assert_eq!(format(&[9, 2, 16, 8, 64], Nhd), Ok(Format::BlocksFirstNhd));
    assert_eq!(format(&[9, 2, 8, 16, 64], Hnd), Ok(Format::BlocksFirstHnd));
    // Two blocks are taken for two planes, as in the peer.
    assert_eq!(format(&[2, 2, 16, 8, 64], Nhd), Ok(Format::KvFirstNhd));
    assert_eq!(format(&[9, 16, 8, 128], Nhd), Ok(Format::FusedNhd));
    assert_eq!(format(&[9, 8, 16, 128], Hnd), Ok(Format::FusedHnd));
    assert_eq!(format(&[9, 16, 576], Hnd), Ok(Format::Mla));
    for shape in [&[9, 16][..], &[9], &[9, 3, 16, 8, 64], &[3, 9, 2, 4, 1, 8], &[1, 2, 3, 4, 5, 6, 7]] {
        assert!(matches!(format(shape, Nhd), Err(FormatError::Unknown(_))), "{shape:?}");
    }
    assert!(
        matches!(format(&[2, 9, 8, 1, 16, 64], Nhd), Err(FormatError::Unsupported(name)) if name.contains("ONE"))
    );
}

#[test]
fn the_indexer_plane_is_refused_by_name() {
    let plane = |shape: &[u64], order| detect(&metadata("uint8", shape, &dense(shape), 0), order);
    let refused = |result: Result<Blocks, FormatError>| {
        let Err(FormatError::Unsupported(name)) = result else { return false };
        name.contains("NL_X_NB_BSV_BSS")
    };
    assert!(refused(plane(&[9, 64, 132], HeadOrder::Nhd)));
    assert!(refused(plane(&[9, 64, 1, 132], HeadOrder::Nhd)));
    assert!(refused(plane(&[9, 1, 64, 132], HeadOrder::Hnd)));
    // Several heads of 132 bytes are fused K/V.
    assert!(plane(&[9, 64, 2, 132], HeadOrder::Nhd).is_ok());
    assert!(plane(&[9, 64, 128], HeadOrder::Nhd).is_ok());
}

#[test]
fn padding_is_taken_where_the_outer_axis_counts_blocks() {
    let fused = metadata("float16", &[9, 16, 8, 64], &[10_000, 512, 64, 1], 3);
    let blocks = detect(&fused, HeadOrder::Nhd).expect("padded blocks");
    assert_eq!((blocks.block_stride, blocks.count, blocks.slots), (10_000, 9, 16));
    let view = View::new(&fused).expect("view");
    assert_eq!((view.begin, view.end), (6, 2 * (3 + 8 * 10_000 + 16 * 512)));
    for shape in [[2, 9, 16, 8, 64], [9, 2, 16, 8, 64]] {
        let mut stride = dense(&shape);
        stride[0] += 64;
        let refused = detect(&metadata("float16", &shape, &stride, 0), HeadOrder::Nhd);
        assert!(matches!(refused, Err(FormatError::Padded { .. })), "{refused:?}");
    }
    // Overlapping blocks, padded slots, padded elements.
    for stride in [
        [8191, 512, 64, 1],
        [10_000, 600, 64, 1],
        [20_000, 1024, 128, 2],
        [0, 512, 64, 1],
        [8192, 512, 64, 0],
    ] {
        let refused = detect(&metadata("float16", &[9, 16, 8, 64], &stride, 0), HeadOrder::Nhd);
        assert!(matches!(refused, Err(FormatError::Strides { .. })), "{stride:?} {refused:?}");
    }
}

#[test]
fn dimensions_of_size_one_hide_no_gaps() {
    // vLLM's BLNHC with one head: head and slot strides tie, and the head goes inside.
    let view = View::new(&metadata("float16", &[9, 1, 16, 64], &[4096, 64, 64, 1], 0)).expect("view");
    assert_eq!(view.physical().expect("padded").dims, [9, 16, 1, 64]);
    // A stride that is never stepped over, but that the implied shape cannot keep.
    let odd = View::new(&metadata("float16", &[4, 1, 8], &[8, 1000, 1], 0)).expect("view");
    assert!(matches!(odd.physical(), Err(FormatError::Strides { .. })));
}

#[test]
fn hints_choose_the_order_and_unknown_ones_are_refused() {
    for (hint, order) in [
        ("NHD", HeadOrder::Nhd),
        ("BLNHC", HeadOrder::Nhd),
        ("HND", HeadOrder::Hnd),
        ("BLHNC", HeadOrder::Hnd),
    ] {
        for default in [HeadOrder::Nhd, HeadOrder::Hnd] {
            assert_eq!(HeadOrder::resolve(&hints(Some(hint)), default), Ok(order));
            assert_eq!(HeadOrder::resolve(&hints(None), default), Ok(default));
        }
    }
    assert_eq!(
        HeadOrder::resolve(&hints(Some("hnd")), HeadOrder::Nhd),
        Err(FormatError::Hint("hnd".to_owned()))
    );
}

/// Two engine groups of two layers each, and a layer in none.
fn build(
    change: impl FnOnce(&mut Vec<TensorMetadata>, &mut Vec<EngineGroupInfo>),
    chunk: u64,
) -> Result<KvGeometry, GeometryError> {
    let shape = [2, 9, 4, 2, 8];
    let mut tensors = vec![metadata("float16", &shape, &dense(&shape), 0); 5];
    let mut infos =
        vec![info(&[0, 2]), EngineGroupInfo { engine_group_id: 1, sw_size_tokens: 8, ..info(&[1, 3]) }];
    change(&mut tensors, &mut infos);
    KvGeometry::build(&GeometryInput {
        tensors: &tensors.iter().collect::<Vec<_>>(),
        engine_type: "vllm",
        hints: &hints(None),
        default_order: HeadOrder::Nhd,
        engine_groups: &infos,
        chunk_tokens: chunk,
        separate_object_groups: true,
    })
}

#[test]
fn announced_groups_must_be_the_groups_of_the_tensors() {
    let geometry = build(|_, _| {}, 16).expect("fits");
    assert_eq!(geometry.kernel_groups.len(), 2);
    assert!(geometry.tensors[4].as_ref().is_some_and(|tensor| tensor.block_axis == Some(1)));
    assert_eq!(geometry.object_groups[1].first_chunk(5), 4);
    assert_eq!(geometry.object_groups[0].first_chunk(5), 0);

    let split = build(
        |tensors, _| tensors[2] = metadata("bfloat16", &[2, 9, 4, 2, 8], &dense(&[2, 9, 4, 2, 8]), 0),
        16,
    );
    assert_eq!(split, Err(GeometryError::GroupCount { infos: 2, groups: 3 }));
    let swapped = build(|_, infos| infos[0].layer_indices = vec![2, 0], 16);
    assert_eq!(swapped, Err(GeometryError::GroupLayers { group: 0, layer: 2 }));
    let twice = build(|_, infos| infos[1].layer_indices = vec![1, 2, 3], 16);
    assert!(matches!(twice, Err(GeometryError::GroupLayers { group: 0, .. })), "{twice:?}");
    let beyond = build(|_, infos| infos[1].layer_indices = vec![1, 5], 16);
    assert_eq!(beyond, Err(GeometryError::LayerIndex { layer: 5, layers: 5 }));
    let none = build(|_, infos| infos.iter_mut().for_each(|info| info.layer_indices.clear()), 16);
    assert_eq!(none, Err(GeometryError::NoLayers));
    let uneven = build(
        |tensors, _| tensors[3] = metadata("float16", &[2, 8, 4, 2, 8], &dense(&[2, 8, 4, 2, 8]), 0),
        16,
    );
    assert_eq!(uneven, Err(GeometryError::Uneven { group: 1, layer: 3 }));
    let bad = build(|tensors, _| tensors[1].dtype = "float7".to_owned(), 16);
    assert_eq!(bad, Err(GeometryError::Layer { layer: 1, source: FormatError::Dtype("float7".to_owned()) }));
    // A layer outside all groups may be empty.
    let empty = build(|tensors, _| tensors[4] = metadata("float16", &[0], &[1], 0), 16).expect("not needed");
    assert_eq!(empty.tensors[4], None);
}

#[test]
fn blocks_windows_and_chunks_must_divide() {
    assert_eq!(
        build(|_, infos| infos[0].tokens_per_block = 6, 16),
        Err(GeometryError::Slots { group: 0, tokens: 6, slots: 4 })
    );
    assert_eq!(
        build(|_, infos| infos[0].tokens_per_block = 3, 16),
        Err(GeometryError::Slots { group: 0, tokens: 3, slots: 4 })
    );
    assert_eq!(
        build(|_, infos| infos[1].tokens_per_block = 12, 16),
        Err(GeometryError::Chunk { group: 1, chunk: 16, tokens: 12 })
    );
    assert_eq!(build(|_, _| {}, 0), Err(GeometryError::Chunk { group: 0, chunk: 0, tokens: 4 }));
    for window in [0, -2, i64::MIN, 6] {
        let refused = build(|_, infos| infos[1].sw_size_tokens = window, 16);
        assert_eq!(refused, Err(GeometryError::Window { group: 1, window, tokens: 4 }));
    }
    // A window beyond the chunk need not divide: chunks are kept whole.
    let geometry = build(|_, infos| infos[1].sw_size_tokens = 17, 16).expect("fits");
    assert_eq!((geometry.object_groups[1].window_chunks, geometry.kernel_groups[1].slots_kept), (2, 16));
    let huge = build(|_, infos| infos[1].sw_size_tokens = i64::MAX, 16).expect("fits");
    assert_eq!(huge.object_groups[1].window_chunks, i64::MAX / 16 + 1);
}

#[test]
fn block_ids_are_checked_before_a_copy() {
    let geometry = build(|_, _| {}, 16).expect("fits");
    let ids = vec![vec![0, 1, 2, 3, 4, 5, 6, 7, 8], vec![99, 99, 2, 3, 4, 5, 9, 7]];
    check_coverage(&geometry, &ids, 2).expect("covered");
    let short = check_coverage(&geometry, &ids, 3);
    assert_eq!(short, Err(PlanError::TooFewBlocks { group: 0, have: 9, need: 12 }));
    assert_eq!(
        check_coverage(&geometry, &ids, u64::MAX),
        Err(PlanError::TooFewBlocks { group: 0, have: 9, need: u64::MAX })
    );
    assert_eq!(check_coverage(&geometry, &ids[..1], 1), Err(PlanError::Lists { lists: 1, groups: 2 }));
    // Blocks before the window are not looked at, blocks in it are.
    assert_eq!(ChunkPlan::new(&geometry, 1, &ids, 0, 0).expect("in range").bytes(), 2 * 2 * 8 * 32);
    let range = ChunkPlan::new(&geometry, 1, &ids, 1, 0).map(|plan| plan.bytes());
    assert_eq!(range, Err(PlanError::BlockRange { group: 1, block: 9, blocks: 9 }));
    // Unless they are skipped.
    assert!(ChunkPlan::new(&geometry, 1, &ids, 1, 12).is_ok());
    assert_eq!(ChunkPlan::new(&geometry, 0, &ids, 1, 16).expect("skipped").bytes(), 0);
    for chunk in [2, u64::MAX] {
        assert!(matches!(ChunkPlan::new(&geometry, 0, &ids, chunk, 0), Err(PlanError::TooFewBlocks { .. })));
    }
    assert!(matches!(ChunkPlan::new(&geometry, 2, &ids, 0, 0), Err(PlanError::ObjectGroup(2))));
    assert!(matches!(ChunkPlan::new(&geometry, 0, &[], 0, 0), Err(PlanError::Lists { .. })));
}

#[test]
fn skips_are_counted_from_the_first_chunk() {
    let geometry = build(|_, _| {}, 16).expect("fits");
    let skips: Vec<_> = (0..3).map(|chunk| skipped_in_chunk(&geometry, chunk, 20)).collect();
    assert_eq!(skips, [None, Some(4), Some(0)]);
    assert_eq!(skipped_in_chunk(&geometry, u64::MAX, u64::MAX), Some(0));
}

#[test]
fn a_chunk_is_null_when_all_its_blocks_are() {
    let geometry = build(|_, _| {}, 16).expect("fits");
    let ids = vec![vec![9, 9, 9, 9, 9, 9, 9, 1], vec![9; 8]];
    assert_eq!(null_chunks(&geometry, &ids, 2, 9), [[true, false], [true, true]]);
    assert_eq!(null_chunks(&geometry, &ids, 2, 0), [[false, false], [false, false]]);
}

#[test]
fn neighbouring_blocks_merge_into_one_run() {
    let geometry = build(|_, _| {}, 16).expect("fits");
    let ids = vec![vec![3, 4, 5, 1], vec![0; 4]];
    let plan = ChunkPlan::new(&geometry, 0, &ids, 0, 0).expect("plan");
    let lengths: Vec<u64> = plan.runs().map(|run| run.len * run.count).collect();
    let block = 4 * 2 * 8 * 2;
    assert_eq!(lengths, [3 * block, block].repeat(4));
}

#[test]
fn other_devices_and_engines_are_refused_in_one_line() {
    let worker = Worker::new(4096);
    let tensor = metadata("float16", &[2, 8, 4, 2, 8], &dense(&[2, 8, 4, 2, 8]), 0);
    let refuse = |kv_cache: Vec<DeviceDescriptor>, engine: &str| -> RegisterError {
        let mut request = request(kv_cache, hints(None));
        request.engine_type = engine.to_owned();
        let error = Registration::new(&request, &options(16)).expect_err("refused");
        let text = error.to_string();
        assert!(
            text.starts_with("worker 7 of model \"model\" cannot register: ") && !text.contains('\n'),
            "{text}"
        );
        error
    };
    let cuda = DeviceDescriptor::Cuda { handle: vec![0x90], version: 1, metadata: tensor.clone() };
    let musa = DeviceDescriptor::Unsupported { kind: "musa".to_owned() };
    let error = refuse(vec![worker.tensor(4096, tensor.clone()), musa], "vllm");
    assert!(
        matches!(error.reason, RegisterReason::Device { tensor: 1, ref kind } if kind == "musa"),
        "{error}"
    );
    let error = refuse(vec![worker.tensor(4096, tensor.clone()), cuda], "vllm");
    assert!(error.to_string().contains("partly in cpu_shm memory and partly in cuda memory"), "{error}");
    assert!(matches!(refuse(Vec::new(), "vllm").reason, RegisterReason::NoTensors));
    let error = refuse(vec![worker.tensor(4096, tensor)], "sglang");
    assert!(error.to_string().contains("engine type \"sglang\" is not served"), "{error}");
}

#[test]
fn registrations_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Registration>();
    shared::<RegisterError>();
}
