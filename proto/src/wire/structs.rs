//! The small structs of registration and block reports. Cold path: decoded by serde.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::descriptor::DeviceDescriptor;
use super::frame::{self, check_name};
use super::limits::{BLOCK_REPORT_MAX_BYTES, DEPTH_MAX, DESCRIPTORS_MAX, GROUPS_MAX, REGISTRATION_MAX_BYTES};
use super::reader::{DecodeError, Reader};
use super::writer::Writer;

/// Decodes one frame with serde, refusing trailing bytes and deep nesting.
pub(super) fn from_frame<T: DeserializeOwned>(frame: &[u8]) -> Result<T, DecodeError> {
    // serde would reserve for announced lengths; a skip first proves that the frame really is one value.
    let mut check = Reader::new(frame);
    check.skip()?;
    check.finish()?;
    let mut de = rmp_serde::Deserializer::from_read_ref(frame);
    de.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut de)
        .map_err(|error| DecodeError::Struct(error.to_string().chars().take(200).collect()))
}

/// Encodes one struct as a map keyed by field name.
pub(super) fn to_frame<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("plain structs always encode")
}

/// Booleans travel as `true` or `1`, as in [`Reader::bool`].
mod loose_bool {
    use std::fmt;

    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    struct BoolOrInt;

    impl Visitor<'_> for BoolOrInt {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a boolean, 0 or 1")
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<bool, E> {
            match value {
                0 => Ok(false),
                1 => Ok(true),
                _ => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
            }
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<bool, E> {
            match u64::try_from(value) {
                Ok(value) => self.visit_u64(value),
                Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
            }
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<bool, D::Error> {
        de.deserialize_any(BoolOrInt)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &bool, ser: S) -> Result<S::Ok, S::Error> {
        ser.serialize_bool(*value)
    }
}

/// Payload of `register_kv_cache_engine_driven_context`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterEngineDrivenPayload {
    /// The worker's id (63 random bits).
    pub instance_id: u64,
    /// Model served by the worker.
    pub model_name: String,
    /// Ranks that share the model's KV.
    pub world_size: u32,
    /// Tokens per engine block.
    pub block_size: u64,
    /// Layers of one object.
    pub num_layers: u64,
    /// Elements per token, layer and plane.
    pub hidden_dim_size: u64,
    /// torch dtype name without prefix, for example `bfloat16`.
    pub dtype_str: String,
    /// True when K and V are one plane (MLA, or fused K/V).
    #[serde(with = "loose_bool")]
    pub use_mla: bool,
    /// Slots (tokens) of one object; absent from older clients, which mean one per token of a chunk.
    #[serde(default)]
    pub num_physical_slots: Option<u64>,
}

impl RegisterEngineDrivenPayload {
    pub(super) fn decode(frame: &[u8]) -> Result<RegisterEngineDrivenPayload, DecodeError> {
        let payload: RegisterEngineDrivenPayload = from_frame(frame)?;
        check_name(&payload.model_name, "length of model_name")?;
        check_name(&payload.dtype_str, "length of dtype_str")?;
        Ok(payload)
    }
}

/// One KV group as the engine describes it (`EngineGroupInfo`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineGroupInfo {
    /// Which engine block table the group draws its blocks from.
    pub engine_group_id: u32,
    /// Layers of the group.
    pub layer_indices: Vec<u32>,
    /// Logical tokens per block; 0 means "the block's own slot count".
    #[serde(default)]
    pub tokens_per_block: u64,
    /// Sliding window in tokens, or −1 for full attention.
    #[serde(default = "minus_one")]
    pub sw_size_tokens: i64,
    /// Above 0: a connector's private group, kept in an object of its own.
    #[serde(default)]
    pub extra_object_group_tag: i64,
    /// Pages hold recurrent state instead of per-token KV.
    #[serde(default, with = "loose_bool")]
    pub recurrent_state: bool,
}

impl EngineGroupInfo {
    fn decode_list(frame: &[u8]) -> Result<Vec<EngineGroupInfo>, DecodeError> {
        let groups: Vec<EngineGroupInfo> = from_frame(frame)?;
        if groups.len() > GROUPS_MAX {
            return Err(DecodeError::Range { what: "number of engine groups" });
        }
        // A layer is one tensor in the smallest case, and belongs to one group.
        if groups.iter().map(|group| group.layer_indices.len()).sum::<usize>() > DESCRIPTORS_MAX {
            return Err(DecodeError::Range { what: "number of layer indices" });
        }
        Ok(groups)
    }
}

fn minus_one() -> i64 {
    -1
}

/// Layout hints of the engine, all optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutHints {
    /// `NHD`, `HND`, `BLHNC` or `BLNHC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_layout: Option<String>,
    /// KV heads per rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<u64>,
    /// Logical tokens per block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_block: Option<u64>,
    /// `k_v` or `unified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_list_layout: Option<String>,
    /// Elements per head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u64>,
}

impl LayoutHints {
    fn decode(frame: &[u8]) -> Result<LayoutHints, DecodeError> {
        let hints: LayoutHints = from_frame(frame)?;
        for name in [&hints.kv_layout, &hints.kv_list_layout].into_iter().flatten() {
            check_name(name, "length of a layout hint")?;
        }
        Ok(hints)
    }
}

/// One request's new blocks, reported by the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockAllocationRecord {
    /// The engine's request id.
    pub req_id: String,
    /// Blocks that the request got.
    pub new_block_ids: Vec<i64>,
    /// Tokens that will fill them.
    pub new_token_ids: Vec<i64>,
}

impl BlockAllocationRecord {
    pub(super) fn decode_list(frame: &[u8]) -> Result<Vec<BlockAllocationRecord>, DecodeError> {
        if frame.len() > BLOCK_REPORT_MAX_BYTES {
            return Err(DecodeError::Range { what: "size of the block report" });
        }
        let records: Vec<BlockAllocationRecord> = from_frame(frame)?;
        records.iter().try_for_each(|record| check_name(&record.req_id, "length of req_id"))?;
        Ok(records)
    }
}

/// Everything that `register_kv_cache` carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterKvCache {
    /// The worker's id.
    pub instance_id: u64,
    /// One descriptor per layer tensor.
    pub kv_cache: Vec<DeviceDescriptor>,
    /// Model served by the worker.
    pub model_name: String,
    /// Ranks that share the model's KV.
    pub world_size: u32,
    /// `vllm`, `sglang`, …
    pub engine_type: String,
    /// How the engine lays out its tensors.
    pub layout_hints: LayoutHints,
    /// KV groups in the engine's order; empty means one group.
    pub engine_group_infos: Vec<EngineGroupInfo>,
}

impl RegisterKvCache {
    pub(super) fn decode(frames: &[&[u8]; 7]) -> Result<RegisterKvCache, DecodeError> {
        let [instance, tensors, model, world, engine, hints, groups] = *frames;
        if frames.iter().map(|frame| frame.len()).sum::<usize>() > REGISTRATION_MAX_BYTES {
            return Err(DecodeError::Range { what: "size of the registration" });
        }
        Ok(RegisterKvCache {
            instance_id: frame::u64(instance)?,
            kv_cache: DeviceDescriptor::decode_list(tensors)?,
            model_name: frame::name(model, "length of model_name")?.to_owned(),
            world_size: frame::u32(world, "world_size")?,
            engine_type: frame::name(engine, "length of engine_type")?.to_owned(),
            layout_hints: LayoutHints::decode(hints)?,
            engine_group_infos: EngineGroupInfo::decode_list(groups)?,
        })
    }

    pub(super) fn encode(&self) -> Vec<Vec<u8>> {
        let mut w = [const { None }; 4].map(|_: Option<()>| Writer::new());
        w[0].uint(self.instance_id);
        w[1].str(&self.model_name);
        w[2].uint(u64::from(self.world_size));
        w[3].str(&self.engine_type);
        let [instance, model, world, engine] = w.map(Writer::into_vec);
        vec![
            instance,
            DeviceDescriptor::encode_list(&self.kv_cache),
            model,
            world,
            engine,
            to_frame(&self.layout_hints),
            to_frame(&self.engine_group_infos),
        ]
    }
}
