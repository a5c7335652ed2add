//! The number that names one transfer, computed alike by daemon and worker.
//!
//! Ring records carry numbers only, so a worker cannot send a request's id; both sides hash it. The same number stands in
//! the daemon's own events, which is how a worker's timings and the daemon's events of one transfer find each other.

use crate::fnv::Fnv;

/// Store or retrieve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransferDirection {
    /// From the worker into the pool.
    Store = 1,
    /// From the pool into the worker.
    Retrieve = 2,
}

/// FNV-1a 64 over the request id, `start` and `end` (tokens, little-endian), and the direction's byte.
pub fn transfer_id(request_id: &str, start: u64, end: u64, direction: TransferDirection) -> u64 {
    let mut hash = Fnv::new();
    hash.bytes(request_id.as_bytes());
    hash.bytes(&start.to_le_bytes());
    hash.bytes(&end.to_le_bytes());
    hash.bytes(&[direction as u8]);
    hash.finish()
}

/// FNV-1a 64 over the request id alone.
pub fn request_hash(request_id: &str) -> u64 {
    let mut hash = Fnv::new();
    hash.bytes(request_id.as_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with another implementation; `docs/client.md` has them for those who write one.
    #[test]
    fn vectors() {
        assert_eq!(request_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(request_hash("foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(transfer_id("req-1", 0, 1024, TransferDirection::Store), VECTOR_STORE);
        assert_eq!(transfer_id("req-1", 0, 1024, TransferDirection::Retrieve), VECTOR_RETRIEVE);
        assert_eq!(transfer_id("", 256, u64::MAX, TransferDirection::Store), VECTOR_EMPTY);
    }

    const VECTOR_STORE: u64 = 0x20a3_28de_340e_55f4;
    const VECTOR_RETRIEVE: u64 = 0x20a3_2bde_340e_5b0d;
    const VECTOR_EMPTY: u64 = 0xb025_43b3_704a_36f9;
}
