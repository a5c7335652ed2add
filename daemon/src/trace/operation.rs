//! The recorded calls, by LMCache's names.

/// What all their names begin with.
const PREFIX: &str = "lmcache.v1.distributed.storage_manager.StorageManager.";

/// A recorded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Memory for objects.
    ReserveWrite,
    /// Written objects become readable.
    FinishWrite,
    /// A lookup: leases what is there, loads the rest.
    SubmitPrefetch,
    /// Leases end.
    FinishRead,
    /// Leased objects are about to be read. LMCache's pickle transport makes this call, this daemon has no such transport.
    EnterRead,
    /// They were read.
    ExitRead,
}

use Operation as O;

const NAMES: [(Operation, &str, &str); 6] = [
    (O::ReserveWrite, "reserve_write", "reserve_write"),
    (O::FinishWrite, "finish_write", "finish_write"),
    (O::SubmitPrefetch, "submit_prefetch_task", "submit_prefetch_task"),
    (O::FinishRead, "finish_read_prefetched", "finish_read_prefetched"),
    (O::EnterRead, "read_prefetched_results.__enter__", "read_prefetched_results.enter"),
    (O::ExitRead, "read_prefetched_results.__exit__", "read_prefetched_results.exit"),
];

impl Operation {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Operation> {
        NAMES.iter().map(|row| row.0)
    }

    /// The call with this qualified name.
    pub fn from_qualname(name: &str) -> Option<Operation> {
        let method = name.strip_prefix(PREFIX)?;
        NAMES.iter().find(|row| row.1 == method).map(|row| row.0)
    }

    /// The qualified name.
    pub fn qualname(self) -> String {
        format!("{PREFIX}{}", NAMES[self as usize].1)
    }

    /// The name in tables.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_enum_order_and_find_their_call() {
        for (position, operation) in Operation::all().enumerate() {
            assert_eq!(operation as usize, position);
            assert_eq!(Operation::from_qualname(&operation.qualname()), Some(operation));
        }
        assert_eq!(Operation::from_qualname("StorageManager.clear"), None);
        assert_eq!(Operation::from_qualname(""), None);
    }
}
