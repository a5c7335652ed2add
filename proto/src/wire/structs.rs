//! The small structs of registration and block reports. Cold path: decoded by serde.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::descriptor::DeviceDescriptor;
use super::reader::{DecodeError, Reader};
use super::writer::Writer;

/// Deepest nesting that a cold-path struct may have; the real ones have 3.
const MAX_DEPTH: usize = 32;

/// Decodes one frame with serde, refusing trailing bytes and deep nesting.
pub(super) fn from_frame<T: DeserializeOwned>(frame: &[u8]) -> Result<T, DecodeError> {
    // serde would reserve for announced lengths; a skip first proves that the frame really is one value.
    let mut check = Reader::new(frame);
    check.skip()?;
    check.finish()?;
    let mut de = rmp_serde::Deserializer::from_read_ref(frame);
    de.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut de)
        .map_err(|error| DecodeError::Struct(error.to_string().chars().take(200).collect()))
}

/// Encodes one struct as a map keyed by field name.
pub(super) fn to_frame<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("plain structs always encode")
}

/// Booleans travel as `true` or `1`.
mod loose_bool {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Bool(bool),
        Int(i64),
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<bool, D::Error> {
        Ok(match Either::deserialize(de)? {
            Either::Bool(value) => value,
            Either::Int(value) => value != 0,
        })
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
        let mut model = Reader::new(frames[2]);
        let mut engine = Reader::new(frames[4]);
        Ok(RegisterKvCache {
            instance_id: scalar_u64(frames[0])?,
            kv_cache: DeviceDescriptor::decode_list(frames[1])?,
            model_name: model.str()?.to_owned(),
            world_size: u32::try_from(scalar_u64(frames[3])?)
                .map_err(|_| DecodeError::Range { what: "world_size" })?,
            engine_type: engine.str()?.to_owned(),
            layout_hints: from_frame(frames[5])?,
            engine_group_infos: from_frame(frames[6])?,
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

pub(super) fn scalar_u64(frame: &[u8]) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(frame);
    let value = reader.u64()?;
    reader.finish()?;
    Ok(value)
}
