//! How a worker says where its KV memory is: msgpack extension 1 around a tagged map (`WireIPCData`).
//!
//! Older LMCache releases put a Python pickle into the extension. Unpickling runs code, so anything that is not
//! the data-only map is refused.

use super::limits::{DESCRIPTOR_MAX_PAIRS, DESCRIPTORS_MAX, RANK_MAX};
use super::reader::{DecodeError, Reader};
use super::writer::Writer;

/// Extension code of a device descriptor.
const EXT_DEVICE: i8 = 1;

/// Shape of the view that a descriptor stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMetadata {
    /// torch dtype name without prefix.
    pub dtype: String,
    /// Elements per dimension.
    pub shape: Vec<u64>,
    /// Elements to step per dimension.
    pub stride: Vec<u64>,
    /// First element of the view inside the storage.
    pub storage_offset: u64,
    /// `cpu`, or the GPU's uuid.
    pub device_uuid: String,
}

/// Where one tensor lives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "field names are the protocol's; the variants say what they mean")]
pub enum DeviceDescriptor {
    /// POSIX shared memory of the worker; an empty name stands for an empty tensor.
    CpuShm { shm_name: String, nbytes: u64, version: u64, metadata: TensorMetadata },
    /// torch's `UntypedStorage._share_cuda_()` tuple, kept as encoded bytes until the CUDA room reads it.
    Cuda { handle: Vec<u8>, version: u64, metadata: TensorMetadata },
    /// A bare `cudaIpcMemHandle_t` of 64 bytes.
    CudaRaw { ipc_handle: Vec<u8>, alloc_offset: u64, nbytes: u64, version: u64, metadata: TensorMetadata },
    /// Memory of the virtual memory API; its file descriptor has no way to reach us.
    CudaVmm { fields: Vec<(String, Vec<u8>)>, version: u64, metadata: TensorMetadata },
    /// A device kind that this daemon does not serve (`musa`, `npu`, …).
    Unsupported { kind: String },
}

impl DeviceDescriptor {
    /// The descriptor's tag.
    pub fn kind(&self) -> &str {
        match self {
            DeviceDescriptor::CpuShm { .. } => "cpu_shm",
            DeviceDescriptor::Cuda { .. } => "cuda",
            DeviceDescriptor::CudaRaw { .. } => "cuda_raw",
            DeviceDescriptor::CudaVmm { .. } => "cuda_vmm",
            DeviceDescriptor::Unsupported { kind } => kind,
        }
    }

    /// Shape of the tensor, if the kind is served.
    pub fn metadata(&self) -> Option<&TensorMetadata> {
        match self {
            DeviceDescriptor::CpuShm { metadata, .. }
            | DeviceDescriptor::Cuda { metadata, .. }
            | DeviceDescriptor::CudaRaw { metadata, .. }
            | DeviceDescriptor::CudaVmm { metadata, .. } => Some(metadata),
            DeviceDescriptor::Unsupported { .. } => None,
        }
    }

    pub(super) fn decode_list(frame: &[u8]) -> Result<Vec<DeviceDescriptor>, DecodeError> {
        let mut reader = Reader::new(frame);
        let count = reader.array()?;
        if count > DESCRIPTORS_MAX {
            return Err(DecodeError::Range { what: "number of tensors" });
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            let (code, body) = reader.ext()?;
            if code != EXT_DEVICE {
                return Err(DecodeError::Invalid("extension code is not 1"));
            }
            list.push(DeviceDescriptor::decode(body)?);
        }
        reader.finish()?;
        Ok(list)
    }

    fn decode(body: &[u8]) -> Result<DeviceDescriptor, DecodeError> {
        if !matches!(body.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
            return Err(DecodeError::Invalid(
                "device descriptor is not a map (a pickle of an older LMCache? pickles are refused: they run code)",
            ));
        }
        let mut reader = Reader::new(body);
        let pairs = reader.map()?;
        if pairs > DESCRIPTOR_MAX_PAIRS {
            return Err(DecodeError::Range { what: "number of descriptor fields" });
        }
        let mut fields: Vec<(&str, &[u8])> = Vec::with_capacity(pairs);
        for _ in 0..pairs {
            let name = reader.str()?;
            // Of two fields with one name a peer may believe the other one.
            if fields.iter().any(|(other, _)| *other == name) {
                return Err(DecodeError::Invalid("a field of the descriptor is there twice"));
            }
            fields.push((name, reader.skip()?));
        }
        reader.finish()?;
        let mut fields = Fields { fields };
        let kind = Reader::new(fields.take("type")?).str()?.to_owned();
        let descriptor = match kind.as_str() {
            "cpu_shm" => DeviceDescriptor::CpuShm {
                shm_name: Reader::new(fields.take("shm_name")?).name("length of shm_name")?.to_owned(),
                nbytes: Reader::new(fields.take("nbytes")?).u64()?,
                version: fields.version()?,
                metadata: fields.metadata()?,
            },
            "cuda" => DeviceDescriptor::Cuda {
                handle: fields.take("handle")?.to_vec(),
                version: fields.version()?,
                metadata: fields.metadata()?,
            },
            "cuda_raw" => DeviceDescriptor::CudaRaw {
                ipc_handle: Reader::new(fields.take("ipc_handle")?).bin()?.to_vec(),
                alloc_offset: Reader::new(fields.take("alloc_offset")?).u64()?,
                nbytes: Reader::new(fields.take("nbytes")?).u64()?,
                version: fields.version()?,
                metadata: fields.metadata()?,
            },
            "cuda_vmm" => {
                let version = fields.version()?;
                let metadata = fields.metadata()?;
                let rest = fields.fields.drain(..).map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
                DeviceDescriptor::CudaVmm { fields: rest, version, metadata }
            }
            _ => {
                fields.fields.clear();
                DeviceDescriptor::Unsupported { kind: kind.chars().take(32).collect() }
            }
        };
        // The peer refuses unknown fields here, and so do we: a field we do not know may change what the bytes mean.
        if fields.fields.is_empty() {
            Ok(descriptor)
        } else {
            Err(DecodeError::Invalid("unknown field in descriptor"))
        }
    }

    pub(super) fn encode_list(list: &[DeviceDescriptor]) -> Vec<u8> {
        let mut w = Writer::new();
        w.array(list.len());
        for descriptor in list {
            w.ext(EXT_DEVICE, &descriptor.encode());
        }
        w.into_vec()
    }

    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        let mut head = |pairs: usize| {
            w.map(pairs).str("type").str(self.kind());
        };
        let (version, metadata) = match self {
            DeviceDescriptor::CpuShm { shm_name, nbytes, version, metadata } => {
                head(5);
                w.str("shm_name").str(shm_name).str("nbytes").uint(*nbytes);
                (version, metadata)
            }
            DeviceDescriptor::Cuda { handle, version, metadata } => {
                head(4);
                w.str("handle").raw(handle);
                (version, metadata)
            }
            DeviceDescriptor::CudaRaw { ipc_handle, alloc_offset, nbytes, version, metadata } => {
                head(6);
                w.str("ipc_handle").bin(ipc_handle).str("alloc_offset").uint(*alloc_offset);
                w.str("nbytes").uint(*nbytes);
                (version, metadata)
            }
            DeviceDescriptor::CudaVmm { fields, version, metadata } => {
                head(3 + fields.len());
                for (name, value) in fields {
                    w.str(name).raw(value);
                }
                (version, metadata)
            }
            DeviceDescriptor::Unsupported { .. } => {
                head(1);
                return w.into_vec();
            }
        };
        w.str("version").uint(*version).str("metadata");
        metadata.encode(&mut w);
        w.into_vec()
    }
}

impl TensorMetadata {
    fn decode(value: &[u8]) -> Result<TensorMetadata, DecodeError> {
        let mut reader = Reader::new(value);
        let (mut dtype, mut shape, mut stride, mut offset, mut uuid) = (None, None, None, None, None);
        for _ in 0..reader.map()? {
            let name = reader.str()?;
            let again = match name {
                "dtype" => dtype.is_some(),
                "shape" => shape.is_some(),
                "stride" => stride.is_some(),
                "storage_offset" => offset.is_some(),
                _ => uuid.is_some() && name == "device_uuid",
            };
            if again {
                return Err(DecodeError::Invalid("a field of the tensor metadata is there twice"));
            }
            match name {
                "dtype" => dtype = Some(reader.name("length of dtype")?.to_owned()),
                "shape" => shape = Some(dims(&mut reader)?),
                "stride" => stride = Some(dims(&mut reader)?),
                "storage_offset" => offset = Some(reader.u64()?),
                "device_uuid" => uuid = Some(reader.name("length of device_uuid")?.to_owned()),
                _ => return Err(DecodeError::Invalid("unknown field in tensor metadata")),
            }
        }
        let metadata = TensorMetadata {
            dtype: dtype.ok_or(DecodeError::Missing("dtype"))?,
            shape: shape.ok_or(DecodeError::Missing("shape"))?,
            stride: stride.ok_or(DecodeError::Missing("stride"))?,
            storage_offset: offset.ok_or(DecodeError::Missing("storage_offset"))?,
            device_uuid: uuid.ok_or(DecodeError::Missing("device_uuid"))?,
        };
        if metadata.shape.len() != metadata.stride.len() {
            return Err(DecodeError::Invalid("shape and stride differ in rank"));
        }
        Ok(metadata)
    }

    fn encode(&self, w: &mut Writer) {
        w.map(5).str("dtype").str(&self.dtype).str("shape").array(self.shape.len());
        for dim in &self.shape {
            w.uint(*dim);
        }
        w.str("stride").array(self.stride.len());
        for step in &self.stride {
            w.uint(*step);
        }
        w.str("storage_offset").uint(self.storage_offset).str("device_uuid").str(&self.device_uuid);
    }
}

fn dims(reader: &mut Reader<'_>) -> Result<Vec<u64>, DecodeError> {
    let rank = reader.array()?;
    if rank > RANK_MAX {
        return Err(DecodeError::Range { what: "tensor rank" });
    }
    (0..rank).map(|_| reader.u64()).collect()
}

struct Fields<'a> {
    fields: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &'static str) -> Result<&'a [u8], DecodeError> {
        let at = self.fields.iter().position(|(n, _)| *n == name).ok_or(DecodeError::Missing(name))?;
        Ok(self.fields.remove(at).1)
    }

    /// Descriptors carry a format version with default 1; another version means another layout of the fields.
    fn version(&mut self) -> Result<u64, DecodeError> {
        let version = match self.take("version") {
            Ok(value) => Reader::new(value).u64()?,
            Err(_) => 1,
        };
        if version == 1 { Ok(version) } else { Err(DecodeError::Invalid("descriptor version is not 1")) }
    }

    fn metadata(&mut self) -> Result<TensorMetadata, DecodeError> {
        TensorMetadata::decode(self.take("metadata")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> TensorMetadata {
        TensorMetadata {
            dtype: "bfloat16".into(),
            shape: vec![2, 16],
            stride: vec![16, 1],
            storage_offset: 0,
            device_uuid: "cpu".into(),
        }
    }

    /// A `cpu_shm` descriptor whose outer map has `extra` behind its fields, in a list of one.
    fn with_extra(extra: &[(&str, u64)], metadata: &[u8]) -> Vec<u8> {
        let mut w = Writer::new();
        w.map(4 + extra.len()).str("type").str("cpu_shm").str("shm_name").str("a").str("nbytes").uint(64);
        w.str("metadata").raw(metadata);
        for (name, value) in extra {
            w.str(name).uint(*value);
        }
        let mut list = Writer::new();
        list.array(1).ext(EXT_DEVICE, &w.into_vec());
        list.into_vec()
    }

    #[test]
    fn a_field_that_is_there_twice_is_refused() {
        let mut w = Writer::new();
        metadata().encode(&mut w);
        let encoded = w.into_vec();
        assert!(DeviceDescriptor::decode_list(&with_extra(&[("version", 1)], &encoded)).is_ok());
        for twice in ["type", "nbytes", "metadata"] {
            let error = DeviceDescriptor::decode_list(&with_extra(&[(twice, 1)], &encoded));
            assert_eq!(
                error,
                Err(DecodeError::Invalid("a field of the descriptor is there twice")),
                "{twice}"
            );
        }
        let mut doubled = encoded.clone();
        doubled[0] += 1;
        let mut w = Writer::new();
        w.str("storage_offset").uint(1 << 40);
        doubled.extend(w.into_vec());
        assert_eq!(
            DeviceDescriptor::decode_list(&with_extra(&[], &doubled)),
            Err(DecodeError::Invalid("a field of the tensor metadata is there twice"))
        );
    }
}
