//! What can go wrong in a store, one type per operation, and what to do about it.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::checksum::Checksum;

/// The store could not be used. All that a lookup, a delete, a listing or a ping can fail with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// No connection, or it broke, or the device failed. May pass.
    #[error("not reachable: {0}")]
    Unavailable(String),
    /// Credentials or permissions. Passes when somebody changes them.
    #[error("permission denied: {0}")]
    Denied(String),
    /// No answer in time. May pass.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The store answered what its protocol does not allow here.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

impl Trouble {
    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        matches!(self, Trouble::Unavailable(_) | Trouble::Timeout(_))
    }

    /// What the operator can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Trouble::Unavailable(_) => "check that the store runs and that this host reaches it",
            Trouble::Denied(_) => {
                "check the user, password or key of the adapter, or the owner of its directory"
            }
            Trouble::Timeout(_) => "the store is too slow or hangs: check its load, or raise request_timeout",
            Trouble::Unexpected(_) => "check that the address is that of such a store, and its version",
        }
    }

    /// Sorts an error of a file system, with what was being done.
    pub fn from_io(doing: &str, error: &io::Error) -> Trouble {
        let text = format!("{doing}: {error}");
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Trouble::Denied(text),
            _ => Trouble::Unavailable(text),
        }
    }
}

/// Why an object was not loaded. Whatever it is, the request sees a miss.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoadError {
    /// The store does not have it.
    #[error("not there")]
    NotFound,
    /// The value is shorter or longer than the object.
    #[error("{found} bytes where {expected} belong")]
    WrongSize {
        /// Bytes of the object.
        expected: u64,
        /// Bytes of the value, or more than that.
        found: u64,
    },
    /// The bytes are not those that were stored under this key.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The store could not be used.
    #[error(transparent)]
    Store(#[from] Trouble),
}

impl LoadError {
    /// The value can never be loaded and should be deleted.
    pub fn condemns_value(&self) -> bool {
        matches!(self, LoadError::WrongSize { .. } | LoadError::Damaged(_))
    }

    /// A checksum that does not match.
    pub fn checksum(expected: Checksum, found: Checksum) -> LoadError {
        LoadError::Damaged(format!("checksum {found}, stored as {expected}"))
    }

    /// Whether the same load may succeed a little later.
    pub fn retryable(&self) -> bool {
        matches!(self, LoadError::Store(trouble) if trouble.retryable())
    }

    /// What the operator can do.
    pub fn advice(&self) -> &'static str {
        match self {
            LoadError::NotFound => "nothing: somebody else may have evicted it",
            LoadError::WrongSize { .. } => {
                "the value is deleted; if it comes back, another server with another dtype or layout shares the store"
            }
            LoadError::Damaged(_) => {
                "the value is deleted; if it comes back, check the disk or memory of the store"
            }
            LoadError::Store(trouble) => trouble.advice(),
        }
    }
}

/// Why an object was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// No room.
    #[error("full: {0}")]
    Full(String),
    /// The object does not fit into the store's largest value.
    #[error("{bytes} bytes are more than the {limit} that one value may have")]
    TooLarge {
        /// Bytes of the object.
        bytes: u64,
        /// Largest value.
        limit: u64,
    },
    /// The store cannot spell the key: it is too long, or its characters are not allowed.
    #[error("the store cannot hold such a key: {0}")]
    BadKey(String),
    /// The store could not be used.
    #[error(transparent)]
    Store(#[from] Trouble),
}

impl StoreError {
    /// Whether the same store may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            StoreError::Full(_) => true,
            StoreError::TooLarge { .. } | StoreError::BadKey(_) => false,
            StoreError::Store(trouble) => trouble.retryable(),
        }
    }

    /// What the operator can do.
    pub fn advice(&self) -> &'static str {
        match self {
            StoreError::Full(_) => "free space, or set max_capacity_gb and an eviction block",
            StoreError::TooLarge { .. } => "raise the store's limit (slot_bytes), or lower the chunk size",
            StoreError::BadKey(_) => {
                "serve the model under a shorter or plainer name, or use shorter cache salts"
            }
            StoreError::Store(trouble) => trouble.advice(),
        }
    }

    /// Sorts an error of a file system, with what was being done.
    pub fn from_io(doing: &str, error: &io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::Full(format!("{doing}: {error}"))
            }
            io::ErrorKind::InvalidFilename => StoreError::BadKey(format!("{doing}: {error}")),
            _ => StoreError::Store(Trouble::from_io(doing, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operating_system_errors_are_sorted() {
        let sort = |code| StoreError::from_io("writing x", &io::Error::from_raw_os_error(code));
        for code in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert!(matches!(sort(code), StoreError::Full(_)), "{code}");
        }
        for code in [libc::EACCES, libc::EPERM, libc::EROFS] {
            assert!(matches!(sort(code), StoreError::Store(Trouble::Denied(_))), "{code}");
        }
        assert!(matches!(sort(libc::ENAMETOOLONG), StoreError::BadKey(_)));
        let io = sort(libc::EIO);
        assert!(io.retryable() && io.to_string().contains("writing x"), "{io}");
        assert!(!sort(libc::EACCES).retryable());
    }
}
