//! Nothing that a worker can say makes the geometry or a plan panic.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::super::format::HeadOrder;
use super::super::groups::{GeometryInput, KvGeometry};
use super::super::plan::{ChunkPlan, check_coverage, null_chunks, skipped_in_chunk};
use super::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..5,
        2 => prop::sample::select(vec![8u64, 16, 64, 132, 1 << 20, 1 << 32, 1 << 63]),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn tensor() -> impl Strategy<Value = TensorMetadata> {
    let dtype = prop::sample::select(vec!["float16", "uint8", "float64", "bogus"]);
    let shapes = prop::collection::vec(number(), 0..8);
    (dtype, shapes, prop::collection::vec(number(), 8), number(), any::<bool>(), any::<bool>()).prop_map(
        |(dtype, shape, mut stride, offset, tight, ragged)| {
            stride.truncate(if ragged { 3 } else { shape.len() });
            if tight {
                let product =
                    |at: usize| shape[at..].iter().fold(1u64, |product, dim| product.wrapping_mul(*dim));
                stride = (1..=shape.len()).map(product).collect();
            }
            metadata(dtype, &shape, &stride, offset)
        },
    )
}

fn group() -> impl Strategy<Value = EngineGroupInfo> {
    let layers = prop::collection::vec(0u32..5, 0..4);
    let window = prop_oneof![Just(-1i64), 0i64..40, any::<i64>()];
    (0u32..3, layers, prop_oneof![Just(0u64), number()], window, -1i64..3, any::<bool>()).prop_map(
        |(
            engine_group_id,
            layer_indices,
            tokens_per_block,
            sw_size_tokens,
            extra_object_group_tag,
            recurrent_state,
        )| {
            EngineGroupInfo {
                engine_group_id,
                layer_indices,
                tokens_per_block,
                sw_size_tokens,
                extra_object_group_tag,
                recurrent_state,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn nothing_panics(
        tensors in prop::collection::vec(tensor(), 0..5),
        same in any::<bool>(),
        groups in prop::collection::vec(group(), 0..3),
        chunk_tokens in prop_oneof![Just(16u64), number()],
        separate_object_groups in any::<bool>(),
        hnd in any::<bool>(),
        ids in prop::collection::vec(prop::collection::vec(number(), 0..20), 0..4),
        chunk in number(),
        skip in number(),
    ) {
        let mut views: Vec<&TensorMetadata> = tensors.iter().collect();
        if same && !views.is_empty() {
            views = vec![views[0]; views.len()];
        }
        let input = GeometryInput {
            tensors: &views,
            engine_type: "vllm",
            hints: &hints(None),
            default_order: if hnd { HeadOrder::Hnd } else { HeadOrder::Nhd },
            engine_groups: &groups,
            chunk_tokens,
            separate_object_groups,
        };
        let Ok(geometry) = KvGeometry::build(&input) else { return Ok(()) };
        let _ = skipped_in_chunk(&geometry, chunk, skip);
        if check_coverage(&geometry, &ids, chunk).is_ok() && chunk < 100 {
            let _ = null_chunks(&geometry, &ids, chunk, 0);
        }
        for group in 0..geometry.object_groups.len() {
            let Ok(plan) = ChunkPlan::new(&geometry, group, &ids, chunk, skip) else { continue };
            prop_assert!(plan.bytes() <= plan.object_bytes());
            for run in plan.runs().take(1000) {
                let view = &geometry.tensors[run.tensor].as_ref().expect("a grouped layer").view;
                let end = |begin: u64, step: u64| begin + (run.count - 1) * step + run.len;
                prop_assert!(run.tensor_offset >= view.begin && end(run.tensor_offset, run.tensor_step) <= view.end);
                prop_assert!(end(run.object_offset, run.object_step) <= plan.object_bytes());
            }
        }
    }
}
