//! From the shape and strides of one registered tensor to where its blocks, planes, heads and slots lie.
//!
//! Engines hand out *logical* views: vLLM's `HND` cache is allocated `[2, NB, NH, BS, HS]` and exposed permuted as
//! `[2, NB, BS, NH, HS]`. Sorting the dimensions by stride gives the physical order back; only then does the rank
//! and the position of the size-2 axis say which layout it is. The rules are those of LMCache 0.5.6
//! (`gpu_connector/kv_format/{contiguity,detection}.py`, `detectors/vllm.py`): client and server derive the same
//! grouping from the same tensors, so a different answer here is a different wire.
//!
//! Dimension names: `NB` blocks, `BS` slots of a block, `NH` heads, `HS` elements of a head, `CS` elements of a head
//! with K and V side by side.
#![forbid(unsafe_code)]

use lmcache_proto::layout::Dtype;
use lmcache_proto::wire::{LayoutHints, TensorMetadata};

/// Why a tensor's layout cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum FormatError {
    #[error("engine type {0:?} is not served; only \"vllm\" is")]
    Engine(String),
    #[error("kv_layout hint {0:?} is unknown; expected NHD, HND, BLHNC or BLNHC")]
    Hint(String),
    #[error("element type {0:?} is unknown")]
    Dtype(String),
    #[error("the tensor has no dimensions, or shape and stride differ in rank")]
    Rank,
    #[error("the tensor is empty (shape {0:?})")]
    Empty(Vec<u64>),
    #[error("shape {0:?} with strides {1:?} does not fit in 64 bits")]
    Overflow(Vec<u64>, Vec<u64>),
    #[error(
        "shape {shape:?} with strides {stride:?} is neither dense nor padded on its outermost dimension only"
    )]
    Strides { shape: Vec<u64>, stride: Vec<u64> },
    #[error("{format} with padded blocks (shape {shape:?}, strides {stride:?}) is not served")]
    Padded { format: &'static str, shape: Vec<u64>, stride: Vec<u64> },
    #[error("KV format {0} is not served")]
    Unsupported(&'static str),
    #[error("physical shape {0:?} is no KV format of vLLM")]
    Unknown(Vec<u64>),
}

/// Order of heads and slots inside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// Slots before heads: one slot's heads are adjacent.
    Nhd,
    /// Heads before slots: one head's slots are adjacent.
    Hnd,
}

impl HeadOrder {
    /// The order that the engine's hint names, or `default` without a hint.
    ///
    /// The default differs by device: registrations that predate the hint relied on `HND` for vLLM's CPU attention and
    /// on `NHD` elsewhere (`detectors/vllm.py`, `resolve_vllm_kv_layout`).
    ///
    /// # Errors
    /// [`FormatError::Hint`] for a hint that LMCache does not define.
    pub fn resolve(hints: &LayoutHints, default: HeadOrder) -> Result<HeadOrder, FormatError> {
        match hints.kv_layout.as_deref() {
            None => Ok(default),
            // The `BL…` layouts put blocks outermost and pack all layers into one; per layer that is a block stride.
            Some("NHD" | "BLNHC") => Ok(HeadOrder::Nhd),
            Some("HND" | "BLHNC") => Ok(HeadOrder::Hnd),
            Some(other) => Err(FormatError::Hint(other.chars().take(32).collect())),
        }
    }
}

/// Layout of one layer's tensor. The comments give the physical shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `[2, NB, BS, NH, HS]`: flash attention.
    KvFirstNhd,
    /// `[2, NB, NH, BS, HS]`.
    KvFirstHnd,
    /// `[NB, 2, BS, NH, HS]`: flash-infer.
    BlocksFirstNhd,
    /// `[NB, 2, NH, BS, HS]`.
    BlocksFirstHnd,
    /// `[NB, BS, NH, CS]`: K and V side by side in every head.
    FusedNhd,
    /// `[NB, NH, BS, CS]`.
    FusedHnd,
    /// `[NB, BS, HS]`: multi-head latent attention, one latent per slot.
    Mla,
}

impl Format {
    /// LMCache's name of the format (`EngineKVFormat`), as its status pages and logs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Format::KvFirstNhd => "NL_X_TWO_NB_BS_NH_HS",
            Format::KvFirstHnd => "NL_X_TWO_NB_NH_BS_HS",
            Format::BlocksFirstNhd => "NL_X_NB_TWO_BS_NH_HS",
            Format::BlocksFirstHnd => "NL_X_NB_TWO_NH_BS_HS",
            Format::FusedNhd => "NL_X_NB_BS_NH_CS",
            Format::FusedHnd => "NL_X_NB_NH_BS_CS",
            Format::Mla => "NL_X_NB_BS_HS",
        }
    }

    /// Dimension of the physical shape that counts blocks.
    pub fn block_axis(self) -> usize {
        match self {
            Format::KvFirstNhd | Format::KvFirstHnd => 1,
            _ => 0,
        }
    }

    /// Heads come before slots inside a block.
    pub fn is_hnd(self) -> bool {
        matches!(self, Format::KvFirstHnd | Format::BlocksFirstHnd | Format::FusedHnd)
    }

    /// Blocks may be further apart than they are long. For [`Format::BlocksFirstNhd`] nobody has defined which side of
    /// the K/V axis the padding is on, so the peer refuses it (`gpu_connector/utils.py`, `_BLOCK_AXIS_FORMATS`).
    fn may_pad_blocks(self) -> bool {
        matches!(self, Format::FusedNhd | Format::FusedHnd | Format::Mla)
    }
}

/// A strided view of a tensor's storage, checked not to overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Elements per dimension, none zero.
    pub dims: Vec<u64>,
    /// Elements to step per dimension.
    pub strides: Vec<u64>,
    /// Element type.
    pub dtype: Dtype,
    /// First byte of the view in its storage.
    pub begin: u64,
    /// One past the last byte of the view in its storage.
    pub end: u64,
}

impl View {
    /// The view exactly as the engine describes it.
    ///
    /// # Errors
    /// Unknown element type, rank 0, a dimension of 0, or a view that ends beyond 2^64 bytes.
    pub fn new(metadata: &TensorMetadata) -> Result<View, FormatError> {
        let TensorMetadata { shape, stride, .. } = metadata;
        let name = || metadata.dtype.chars().take(32).collect();
        let dtype = Dtype::from_name(&metadata.dtype).ok_or_else(|| FormatError::Dtype(name()))?;
        if shape.is_empty() || shape.len() != stride.len() {
            return Err(FormatError::Rank);
        }
        if shape.contains(&0) {
            return Err(FormatError::Empty(shape.clone()));
        }
        let extent = || {
            let reach = shape
                .iter()
                .zip(stride)
                .try_fold(0u64, |sum, (dim, step)| sum.checked_add((dim - 1).checked_mul(*step)?))?;
            let begin = metadata.storage_offset.checked_mul(dtype.size())?;
            let end =
                metadata.storage_offset.checked_add(reach)?.checked_add(1)?.checked_mul(dtype.size())?;
            product(shape)?.checked_mul(dtype.size())?;
            Some((begin, end))
        };
        let (begin, end) = extent().ok_or_else(|| FormatError::Overflow(shape.clone(), stride.clone()))?;
        Ok(View { dims: shape.clone(), strides: stride.clone(), dtype, begin, end })
    }

    /// The same bytes with the dimensions in the order in which they lie in memory.
    ///
    /// A dense view gets the shape that its strides imply, which may merge what dimensions of size 1 split. A view
    /// that is dense but for its outermost stride keeps its shape and that stride: blocks of a shared pool are padded
    /// to the widest group (`_validate_dim0_padded_layout`).
    ///
    /// # Errors
    /// [`FormatError::Strides`] for everything else: no copy plan could honour such gaps.
    pub fn physical(&self) -> Result<View, FormatError> {
        let refused = || FormatError::Strides { shape: self.dims.clone(), stride: self.strides.clone() };
        let mut order: Vec<usize> = (0..self.dims.len()).collect();
        // Descending and stable. Of equal strides the dimension of size 1 goes inside, as in the peer.
        order.sort_by_key(|&i| std::cmp::Reverse((self.strides[i], self.dims[i] != 1)));
        let dims: Vec<u64> = order.iter().map(|&i| self.dims[i]).collect();
        let strides: Vec<u64> = order.iter().map(|&i| self.strides[i]).collect();
        let tight = tight_strides(&dims).ok_or_else(refused)?;

        // A dimension of size 1 is never stepped over, so its stride says nothing about density.
        let dense = (0..dims.len()).all(|i| dims[i] == 1 || strides[i] == tight[i]);
        if dense {
            let dims = implied_shape(&dims, &strides).ok_or_else(refused)?;
            let strides = tight_strides(&dims).ok_or_else(refused)?;
            return Ok(View { dims, strides, ..*self });
        }
        // Here strides of size-1 dimensions count as well: the peer checks them, and would refuse.
        let padded = dims.len() >= 2 && strides[1..] == tight[1..] && strides[0] >= tight[0];
        if padded { Ok(View { dims, strides, ..*self }) } else { Err(refused()) }
    }
}

/// Blocks of one layer in elements, whatever the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Layout.
    pub format: Format,
    /// 2 for separate K and V, else 1.
    pub planes: u64,
    /// KV heads; 1 for MLA.
    pub heads: u64,
    /// Elements of one head in one slot and plane.
    pub head_width: u64,
    /// Slots of a block.
    pub slots: u64,
    /// Blocks of the layer.
    pub count: u64,
    /// Elements from one block to the next.
    pub block_stride: u64,
    /// Elements from K to V.
    pub plane_stride: u64,
}

impl Blocks {
    /// Tells which format a physical view has and where its blocks are.
    ///
    /// # Errors
    /// Formats that are known but not served are named; other shapes are [`FormatError::Unknown`].
    pub fn detect(view: &View, order: HeadOrder) -> Result<Blocks, FormatError> {
        let hnd = order == HeadOrder::Hnd;
        let (dims, strides) = (&view.dims[..], &view.strides[..]);
        // 128 values of one byte and their f32 scale: the plane is paged as values, then scales, not as rows of 132.
        let indexer = view.dtype == Dtype::Uint8 && dims.last() == Some(&132);
        let (format, planes, heads, head_width, slots) = match *dims {
            [_, a, b, _] if indexer && (if hnd { a } else { b }) == 1 => {
                return Err(FormatError::Unsupported(
                    "NL_X_NB_BSV_BSS (fp8 indexer plane of 132 bytes a slot)",
                ));
            }
            [_, _, _] if indexer => {
                return Err(FormatError::Unsupported(
                    "NL_X_NB_BSV_BSS (fp8 indexer plane of 132 bytes a slot)",
                ));
            }
            [2, _, _, 1, _, _] => return Err(FormatError::Unsupported("NL_X_TWO_NB_NH_ONE_BS_HS (RBLN)")),
            [2, _, heads, slots, width] if hnd => (Format::KvFirstHnd, 2, heads, width, slots),
            [2, _, slots, heads, width] => (Format::KvFirstNhd, 2, heads, width, slots),
            [_, 2, heads, slots, width] if hnd => (Format::BlocksFirstHnd, 2, heads, width, slots),
            [_, 2, slots, heads, width] => (Format::BlocksFirstNhd, 2, heads, width, slots),
            [_, heads, slots, width] if hnd => (Format::FusedHnd, 1, heads, width, slots),
            [_, slots, heads, width] => (Format::FusedNhd, 1, heads, width, slots),
            [_, slots, width] => (Format::Mla, 1, 1, width, slots),
            _ => return Err(FormatError::Unknown(dims.to_vec())),
        };
        if Some(strides) != tight_strides(dims).as_deref() && !format.may_pad_blocks() {
            return Err(FormatError::Padded {
                format: format.name(),
                shape: dims.to_vec(),
                stride: strides.to_vec(),
            });
        }
        let axis = format.block_axis();
        let plane_stride = if planes == 2 { strides[1 - axis] } else { 0 };
        Ok(Blocks {
            format,
            planes,
            heads,
            head_width,
            slots,
            count: dims[axis],
            block_stride: strides[axis],
            plane_stride,
        })
    }
}

fn product(dims: &[u64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))
}

/// Strides of a dense tensor of this shape; `None` if its size overflows.
fn tight_strides(dims: &[u64]) -> Option<Vec<u64>> {
    let mut step = 1u64;
    let mut strides = vec![1; dims.len()];
    for (stride, dim) in strides.iter_mut().zip(dims).rev() {
        *stride = step;
        step = step.checked_mul(*dim)?;
    }
    Some(strides)
}

/// The shape that sorted strides imply: each dimension is the quotient of two neighbouring strides. `None` where that
/// is not a shape of the same number of elements, which happens when a dimension of size 1 carries an odd stride.
fn implied_shape(dims: &[u64], strides: &[u64]) -> Option<Vec<u64>> {
    let elements = product(dims)?;
    let mut outer = elements;
    let mut shape = Vec::with_capacity(dims.len());
    for &stride in strides {
        shape.push(outer.checked_div(stride)?);
        outer = stride;
    }
    (product(&shape) == Some(elements)).then_some(shape)
}
