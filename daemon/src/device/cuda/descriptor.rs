//! What a worker says of its GPU memory. Nothing of it is believed beyond what is checked here and when it is opened.
#![forbid(unsafe_code)]

use lmcache_proto::wire::{DeviceDescriptor, SharedStorage};

use super::error::OpenError;
use crate::device::groups::KvGeometry;

/// Newest serialization of torch's allocator whose handles of plain allocations are known: version 3 is torch 2.13's.
const NEWEST_VERSION: u8 = 3;
/// Type byte of a plain allocation.
const PLAIN: u8 = b'c';
/// Type byte of an expandable segment.
const EXPANDABLE: u8 = b'e';

/// An IPC handle of the driver: names an allocation.
pub(super) type Handle = [u8; 64];

/// Where a tensor's storage is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) handle: Handle,
    /// First byte of the storage in the allocation.
    pub(super) offset: u64,
    /// Bytes of the storage.
    pub(super) bytes: u64,
}

/// The memory of one worker, as it was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) uuid: Uuid,
    /// By tensor; `None` for one that is not needed.
    pub(super) places: Vec<Option<Place>>,
}

/// Names a GPU on every process's list, whatever its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Uuid(pub(super) [u8; 16]);

impl Uuid {
    /// `d6ee3a1b-…`, with or without `GPU-` before it.
    pub(super) fn parse(text: &str) -> Option<Uuid> {
        let text = text.strip_prefix("GPU-").unwrap_or(text);
        let uuid = uuid::Uuid::try_parse(text).ok()?;
        Some(Uuid(uuid.into_bytes()))
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GPU-{}", uuid::Uuid::from_bytes(self.0).hyphenated())
    }
}

/// Checks all descriptors that the geometry needs.
pub(super) fn read(descriptors: &[DeviceDescriptor], geometry: &KvGeometry) -> Result<Announced, OpenError> {
    let mut uuid: Option<(Uuid, &str)> = None;
    let mut places = Vec::with_capacity(descriptors.len());
    for (tensor, (descriptor, view)) in descriptors.iter().zip(&geometry.tensors).enumerate() {
        let Some(view) = view else {
            places.push(None);
            continue;
        };
        let refused = |what: &str| OpenError::Descriptor { tensor, what: what.to_owned() };
        let (place, metadata) = match descriptor {
            DeviceDescriptor::Cuda { handle, metadata, .. } => {
                let shared = SharedStorage::decode(handle).map_err(|error| refused(&error.to_string()))?;
                let handle = torch_handle(tensor, shared.handle)?;
                (Place { handle, offset: shared.offset, bytes: shared.bytes }, metadata)
            }
            DeviceDescriptor::CudaRaw { ipc_handle, alloc_offset, nbytes, metadata, .. } => {
                let handle = ipc_handle
                    .as_slice()
                    .try_into()
                    .map_err(|_| refused("its IPC handle has no 64 bytes"))?;
                (Place { handle, offset: *alloc_offset, bytes: *nbytes }, metadata)
            }
            DeviceDescriptor::CudaVmm { .. } => return Err(OpenError::Vmm(tensor)),
            other => return Err(refused(&format!("kind {:?} among GPU memory", other.kind()))),
        };
        let (end, bytes) = (view.view.end, place.bytes);
        if end > bytes {
            return Err(OpenError::View { tensor, end, bytes });
        }
        if place.offset.checked_add(bytes).is_none() {
            return Err(refused("it ends beyond all memory"));
        }
        let name = metadata.device_uuid.as_str();
        let device = Uuid::parse(name).ok_or_else(|| refused("its device_uuid is no UUID"))?;
        match uuid {
            Some((first, first_name)) if first != device => {
                return Err(OpenError::Devices(first_name.to_owned(), name.to_owned()));
            }
            Some(_) => {}
            None => uuid = Some((device, name)),
        }
        places.push(Some(place));
    }
    let (uuid, _) =
        uuid.ok_or(OpenError::Descriptor { tensor: 0, what: "no tensor has memory".to_owned() })?;
    Ok(Announced { uuid, places })
}

/// The driver's handle in what torch hands out: version, type, handle.
fn torch_handle(tensor: usize, bytes: &[u8]) -> Result<Handle, OpenError> {
    let refused = |what: String| OpenError::Descriptor { tensor, what };
    match bytes {
        // Before the handles had a version.
        plain if plain.len() == 64 => plain.try_into().map_err(|_| refused(String::new())),
        [_, EXPANDABLE, ..] => Err(OpenError::Expandable(tensor)),
        [version, PLAIN, handle @ ..] if *version <= NEWEST_VERSION => handle
            .try_into()
            .map_err(|_| refused(format!("torch's handle has {} bytes, not 66", bytes.len()))),
        [version, kind, ..] => {
            Err(refused(format!("torch's handle is of version {version} and type {:?}", char::from(*kind))))
        }
        _ => Err(refused(format!("torch's handle has {} bytes, not 66", bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_every_known_torch_are_read_and_no_other() {
        let handle: Vec<u8> = (0..64).collect();
        let of = |head: &[u8]| torch_handle(3, &[head, &handle].concat());
        for version in 0..=3 {
            assert_eq!(of(&[version, b'c']).expect("known").to_vec(), handle);
        }
        assert_eq!(of(&[]).expect("without a head").to_vec(), handle);
        assert!(matches!(of(&[4, b'c']), Err(OpenError::Descriptor { tensor: 3, .. })));
        assert!(matches!(of(&[2, b'x']), Err(OpenError::Descriptor { .. })));
        assert_eq!(of(&[2, b'e']), Err(OpenError::Expandable(3)));
        assert!(torch_handle(0, &handle[..63]).is_err());
        assert!(torch_handle(0, &[]).is_err());
    }

    #[test]
    fn a_gpu_has_one_name_however_it_is_written() {
        let plain = Uuid::parse("d6ee3a1b-0000-4000-8000-00000000001f").expect("a UUID");
        assert_eq!(Uuid::parse("GPU-D6EE3A1B-0000-4000-8000-00000000001F"), Some(plain));
        assert_eq!(plain.to_string(), "GPU-d6ee3a1b-0000-4000-8000-00000000001f");
        assert_eq!(Uuid::parse("cpu"), None);
    }
}
