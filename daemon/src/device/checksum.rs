//! MD5 of engine blocks, as `POST /cache/checksums` of LMCache 0.5.6 computes it (`http_apis/cache_api.py`).
//!
//! Block ids are taken `chunk_size` at a time. One chunk of one layer is hashed in the order of its physical shape with
//! the block dimension cut down to the chunk's ids, so for `[2, NB, …]` all K blocks come before all V blocks.
//! `bfloat16` is widened to `float32` first, because numpy does not know it.
//!
//! The peer answers 501 for fused K/V; its rule extends to that format, so we compute it.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use lmcache_proto::layout::Dtype;
use md5::{Digest, Md5};

use super::copy::CopyError;
use super::format::View;
use super::groups::KvGeometry;
use super::transfer::Device;

/// Bytes read from a worker's memory at once; a multiple of every element size.
const BUFFER: usize = 64 << 10;

/// Why there is no checksum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ChecksumError {
    #[error("block_ids is empty")]
    NoBlocks,
    #[error("chunk_size must be positive")]
    ChunkSize,
    #[error("layer {0} is outside all KV groups and its block dimension cannot be told")]
    BlockAxis(usize),
    #[error("layer {layer}: block {block} does not exist, the worker registered {blocks}")]
    BlockRange { layer: usize, block: u64, blocks: u64 },
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// Digests of the requested blocks in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// One digest per chunk over all layers.
    Aggregated(Vec<String>),
    /// Per layer one digest per chunk.
    Layerwise(Vec<Vec<String>>),
}

/// Hashes blocks of every registered layer. Slow (it reads all of them): not for the request path.
///
/// # Errors
/// [`ChecksumError`]; block ids are checked before anything is read.
pub fn checksums(
    geometry: &KvGeometry,
    memory: &dyn Device,
    block_ids: &[u64],
    chunk_size: usize,
    layerwise: bool,
) -> Result<Checksums, ChecksumError> {
    if block_ids.is_empty() {
        return Err(ChecksumError::NoBlocks);
    }
    if chunk_size == 0 {
        return Err(ChecksumError::ChunkSize);
    }
    let mut layers = Vec::with_capacity(geometry.tensors.len());
    for (layer, tensor) in geometry.tensors.iter().enumerate() {
        let axis = tensor.as_ref().and_then(|tensor| Some((&tensor.view, tensor.block_axis?)));
        let (view, axis) = axis.ok_or(ChecksumError::BlockAxis(layer))?;
        let blocks = view.dims[axis];
        if let Some(&block) = block_ids.iter().find(|block| **block >= blocks) {
            return Err(ChecksumError::BlockRange { layer, block, blocks });
        }
        layers.push(Layer { tensor: layer, view, axis });
    }
    let mut buffer = vec![0; BUFFER];
    let mut digest = |layers: &[Layer<'_>], ids: &[u64]| -> Result<String, ChecksumError> {
        let mut md5 = Md5::new();
        for layer in layers {
            layer.hash(memory, ids, &mut md5, &mut buffer)?;
        }
        let mut hex = String::with_capacity(32);
        for byte in md5.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Ok(hex)
    };
    if layerwise {
        let of_layer = |layer: &Layer<'_>| {
            block_ids.chunks(chunk_size).map(|ids| digest(std::slice::from_ref(layer), ids)).collect()
        };
        Ok(Checksums::Layerwise(layers.iter().map(of_layer).collect::<Result<_, _>>()?))
    } else {
        let digests = block_ids.chunks(chunk_size).map(|ids| digest(&layers, ids));
        Ok(Checksums::Aggregated(digests.collect::<Result<_, _>>()?))
    }
}

struct Layer<'a> {
    tensor: usize,
    view: &'a View,
    axis: usize,
}

impl Layer<'_> {
    /// Feeds the chosen blocks to `md5` in row-major order.
    fn hash(
        &self,
        memory: &dyn Device,
        ids: &[u64],
        md5: &mut Md5,
        buffer: &mut [u8],
    ) -> Result<(), ChecksumError> {
        let View { dims, strides, dtype, begin, .. } = self.view;
        // Dimensions behind the block axis that are dense are read as one piece.
        let (mut inner, mut piece) = (dims.len(), 1u64);
        while inner > self.axis + 1 && (strides[inner - 1] == piece || dims[inner - 1] == 1) {
            inner -= 1;
            piece *= dims[inner];
        }
        let outer: Vec<u64> =
            (0..inner).map(|dim| if dim == self.axis { ids.len() as u64 } else { dims[dim] }).collect();
        let mut index = vec![0u64; inner];
        loop {
            // Inside the view, whose end in bytes was checked.
            let element: u64 = (0..inner)
                .map(|dim| {
                    let at = if dim == self.axis { ids[index[dim] as usize] } else { index[dim] };
                    at * strides[dim]
                })
                .sum();
            self.piece(memory, begin + element * dtype.size(), piece * dtype.size(), md5, buffer)?;
            let Some(dim) = (0..inner).rev().find(|&dim| index[dim] + 1 < outer[dim]) else { return Ok(()) };
            index[dim] += 1;
            index[dim + 1..].fill(0);
        }
    }

    fn piece(
        &self,
        memory: &dyn Device,
        mut offset: u64,
        mut len: u64,
        md5: &mut Md5,
        buffer: &mut [u8],
    ) -> Result<(), ChecksumError> {
        while len > 0 {
            let part = len.min(buffer.len() as u64);
            let bytes = &mut buffer[..part as usize];
            memory.read(self.tensor, offset, bytes)?;
            if self.view.dtype == Dtype::Bfloat16 {
                // The value's bits are the upper half of the float's, as torch converts; `half` would quieten NaNs.
                let wide: Vec<u8> = bytes.chunks_exact(2).flat_map(|pair| [0, 0, pair[0], pair[1]]).collect();
                md5.update(&wide);
            } else {
                md5.update(bytes);
            }
            offset += part;
            len -= part;
        }
        Ok(())
    }
}
