//! torch's `UntypedStorage._share_cuda_()` tuple, the `handle` of a `cuda` descriptor.

use super::reader::{DecodeError, Reader};
use super::writer::Writer;

/// What of the tuple says where the storage is. The rest (torch's counter of references and its event) belongs to torch's own
/// protocol between processes: a worker keeps its KV cache as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedStorage<'a> {
    /// The sender's number of the device; another process may count them differently.
    pub device: i64,
    /// What torch's allocator exports: version, type and the driver's handle. Empty without memory.
    pub handle: &'a [u8],
    /// Bytes of the storage.
    pub bytes: u64,
    /// First byte of the storage in its allocation.
    pub offset: u64,
}

impl<'a> SharedStorage<'a> {
    /// Decodes the tuple.
    ///
    /// # Errors
    /// Anything but eight fields of their types.
    pub fn decode(tuple: &'a [u8]) -> Result<SharedStorage<'a>, DecodeError> {
        let mut reader = Reader::new(tuple);
        if reader.array()? != 8 {
            return Err(DecodeError::Invalid("the shared storage has not eight fields"));
        }
        let device =
            i64::try_from(reader.i128()?).map_err(|_| DecodeError::Range { what: "device number" })?;
        let handle = if reader.nil() { &[][..] } else { reader.bin()? };
        let (bytes, offset) = (reader.u64()?, reader.u64()?);
        let optional = |reader: &mut Reader<'a>| if reader.nil() { Ok(()) } else { reader.bin().map(drop) };
        optional(&mut reader)?;
        reader.u64()?;
        optional(&mut reader)?;
        reader.bool()?;
        reader.finish()?;
        Ok(SharedStorage { device, handle, bytes, offset })
    }

    /// Encodes it, with nothing in torch's own fields.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.array(8).int(self.device).bin(self.handle).uint(self.bytes).uint(self.offset);
        w.bin(b"").uint(0).bin(b"").raw(&[0xc2]);
        w.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the real client.
    const TUPLE: &[u8] = b"\x98\x00\xc4\x01h\x10\x00\xc4\x01r\x00\xc4\x01e\xc3";

    #[test]
    fn the_tuple_of_the_real_client_is_read() {
        let read = SharedStorage::decode(TUPLE).expect("eight fields");
        assert_eq!(read, SharedStorage { device: 0, handle: b"h", bytes: 16, offset: 0 });
        let nothing = SharedStorage::decode(b"\x98\xff\xc0\x10\x00\xc0\x00\xc0\xc2").expect("nils");
        assert_eq!((nothing.device, nothing.handle), (-1, &b""[..]));
        let again = read.encode();
        assert_eq!(SharedStorage::decode(&again), Ok(read));
    }

    #[test]
    fn anything_else_is_refused() {
        for end in 0..TUPLE.len() {
            assert!(SharedStorage::decode(&TUPLE[..end]).is_err(), "{end}");
        }
        assert!(SharedStorage::decode(&[TUPLE, b"\x00"].concat()).is_err());
        assert!(SharedStorage::decode(b"\x97\x00\xc0\x10\x00\xc0\x00\xc0").is_err());
    }
}
