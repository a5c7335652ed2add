//! Tenants: whose token opens which cache salts (`--tenant-tokens-file`).
//!
//! A connection that has shown a token uses the salts of that token and no others. One that has shown none uses those that
//! nobody owns, and only from this machine; with `--tenant-token-required` it uses none. The file is read at the start and
//! whenever the daemon is told to ([`Gate::reload`]).
//!
//! This keeps apart clients that reach the daemon and not the pool. A worker that has mapped the pool reads all of it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lmcache_proto::wire::validate_salt;
use parking_lot::RwLock;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use thiserror::Error;

use crate::secret_file::{self, SecretFileError};

/// Largest file.
const MAX_FILE: u64 = 1 << 20;
/// Shortest token: one that is guessed in no time is no guard.
const MIN_TOKEN: usize = 16;
/// How requests without a salt are called, here as for quotas.
const NO_SALT: &str = "_default";

/// Why the file is of no use.
#[derive(Debug, Error)]
pub enum TenantsError {
    /// It cannot be read.
    #[error("--tenant-tokens-file {}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read or change it.
    #[error(
        "--tenant-tokens-file {}: mode {mode:03o} lets others read or change the tokens; chmod 400 it, or 440 for a group",
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is too large.
    #[error("--tenant-tokens-file {}: has more than a megabyte", path.display())]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// A line is wrong. Never with the line itself: it has a token in it.
    #[error(
        "--tenant-tokens-file {}: line {line}: {what}; a line is a token of at least 16 visible characters, then one or more cache salts (_default for requests without one)",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// What a token is compared by, and all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token.
    pub fn of(token: &str) -> TokenHash {
        TokenHash(Sha256::digest(token).into())
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash")
    }
}

/// Whose something is: tokens that open the same salts are one tenant's, so a tenant keeps what is its own when its token is
/// replaced, and when the daemon is. No secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TenantId(u64);

/// Salts of one token.
#[derive(Debug)]
pub struct Tenant {
    /// Whose they are.
    pub id: TenantId,
    salts: BTreeSet<Box<str>>,
}

impl Tenant {
    fn new(salts: BTreeSet<Box<str>>) -> Tenant {
        let mut hash = Sha256::new();
        for salt in &salts {
            hash.update((salt.len() as u64).to_le_bytes());
            hash.update(salt.as_bytes());
        }
        let hash: [u8; 32] = hash.finalize().into();
        let (first, _) = hash.split_first_chunk().expect("32 bytes have 8");
        Tenant { id: TenantId(u64::from_le_bytes(*first)), salts }
    }

    /// Whether it may use a salt.
    pub fn may_use(&self, salt: &str) -> bool {
        self.salts.contains(salt)
    }
}

/// All of them, as a file names them.
#[derive(Default)]
pub struct Tenants {
    /// Hashes of the tokens: equal lengths make comparing them take the same time whatever was sent.
    tokens: Vec<(TokenHash, Arc<Tenant>)>,
    owned: FxHashSet<Box<str>>,
}

impl std::fmt::Debug for Tenants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenants").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Tenants {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`TenantsError`].
    pub fn read(path: &Path) -> Result<Tenants, TenantsError> {
        let text = secret_file::read(path, MAX_FILE).map_err(|error| match error {
            SecretFileError::Read(source) => TenantsError::Read { path: path.to_owned(), source },
            SecretFileError::Mode(mode) => TenantsError::Mode { path: path.to_owned(), mode },
        })?;
        if text.len() as u64 > MAX_FILE {
            return Err(TenantsError::Large { path: path.to_owned() });
        }
        Tenants::parse(&text).map_err(|(line, what)| TenantsError::Line { path: path.to_owned(), line, what })
    }

    fn parse(text: &str) -> Result<Tenants, (usize, &'static str)> {
        let mut tenants = Tenants::default();
        let mut known = FxHashSet::default();
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split_ascii_whitespace();
            let Some(token) = words.next().filter(|word| !word.starts_with('#')) else { continue };
            if token.len() < MIN_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err((number, "the token is too short, or has characters that are not visible"));
            }
            let mut salts = BTreeSet::new();
            for salt in words {
                let salt = if salt == NO_SALT { "" } else { salt };
                if validate_salt(salt).is_err() {
                    return Err((number, "no request can have this cache salt"));
                }
                tenants.owned.insert(salt.into());
                salts.insert(salt.into());
            }
            if salts.is_empty() {
                return Err((number, "the token has no cache salt"));
            }
            let hash = TokenHash::of(token);
            if !known.insert(hash.0) {
                return Err((number, "another line has the same token"));
            }
            tenants.tokens.push((hash, Arc::new(Tenant::new(salts))));
        }
        Ok(tenants)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whose token this is. Takes the same time for every token.
    pub fn of(&self, given: TokenHash) -> Option<Arc<Tenant>> {
        let mut found = u32::MAX;
        for (at, (hash, _)) in (0..).zip(&self.tokens) {
            let same: Choice = hash.0.ct_eq(&given.0);
            found.conditional_assign(&at, same);
        }
        self.tokens.get(found as usize).map(|(_, tenant)| tenant.clone())
    }

    /// Whether there is a token of this tenant.
    pub fn has(&self, id: TenantId) -> bool {
        self.tokens.iter().any(|(_, tenant)| tenant.id == id)
    }

    /// Whether some token owns a salt.
    pub fn is_owned(&self, salt: &str) -> bool {
        self.owned.contains(salt)
    }
}

/// The tenants of a running daemon.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    required: bool,
    now: RwLock<Arc<Tenants>>,
}

impl Gate {
    /// Reads the file. With `required`, connections of this machine have to show a token too.
    ///
    /// # Errors
    /// See [`TenantsError`].
    pub fn open(path: &Path, required: bool) -> Result<Gate, TenantsError> {
        let now = RwLock::new(Arc::new(Tenants::read(path)?));
        Ok(Gate { path: path.to_owned(), required, now })
    }

    /// Reads the file again. What it says holds from the next request on, for connections that are open as well; a file that
    /// cannot be used changes nothing.
    ///
    /// # Errors
    /// See [`TenantsError`].
    pub fn reload(&self) -> Result<Arc<Tenants>, TenantsError> {
        let new = Arc::new(Tenants::read(&self.path)?);
        *self.now.write() = new.clone();
        Ok(new)
    }

    /// The tenants now.
    pub fn now(&self) -> Arc<Tenants> {
        self.now.read().clone()
    }

    /// Whether everybody has to show a token.
    pub fn is_required(&self) -> bool {
        self.required
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "# tenants\n\n0123456789abcdef-a one two\n0123456789abcdef-b\ttwo _default \n";

    #[test]
    fn a_token_opens_its_salts_and_no_others() {
        let tenants = Tenants::parse(FILE).expect("a file");
        assert_eq!(tenants.len(), 2);
        let of = |token| tenants.of(TokenHash::of(token));
        let (a, b) = (of("0123456789abcdef-a"), of("0123456789abcdef-b"));
        let (a, b) = (a.expect("known"), b.expect("known"));
        let may = |tenant: &Tenant| ["one", "two", "", "three"].map(|salt| tenant.may_use(salt));
        assert_eq!(may(&a), [true, true, false, false]);
        assert_eq!(may(&b), [false, true, true, false]);
        assert_eq!(["one", "two", "", "three"].map(|salt| tenants.is_owned(salt)), [true, true, true, false]);
        for wrong in ["", "0123456789abcdef", "0123456789abcdef-c", "0123456789abcdef-a "] {
            assert!(of(wrong).is_none(), "{wrong}");
        }
        assert!(Tenants::parse("").expect("nobody").is_empty());
    }

    #[test]
    fn tokens_for_the_same_salts_are_one_tenant_s() {
        let text =
            "0123456789abcdef-old two one\n0123456789abcdef-new one two one\n0123456789abcdef-x onetwo\n";
        let tenants = Tenants::parse(text).expect("a file");
        let id = |token| tenants.of(TokenHash::of(token)).expect("known").id;
        assert_eq!(id("0123456789abcdef-old"), id("0123456789abcdef-new"));
        assert_ne!(id("0123456789abcdef-old"), id("0123456789abcdef-x"));
        assert!(tenants.has(id("0123456789abcdef-x")));
        assert!(!Tenants::parse("").expect("nobody").has(id("0123456789abcdef-x")));
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_wrong_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        };
        write(FILE, 0o604);
        assert!(matches!(Gate::open(&path, false), Err(TenantsError::Mode { mode: 0o604, .. })));
        write(FILE, 0o600);
        let gate = Gate::open(&path, true).expect("a file");
        assert!(gate.is_required());
        for (text, mode) in [("0123456789abcdef-c three", 0o644), ("0123456789abcdef-c", 0o600)] {
            write(text, mode);
            gate.reload().expect_err("of no use");
            assert_eq!((gate.now().len(), gate.now().is_owned("three")), (2, false));
        }
        write("0123456789abcdef-c three", 0o600);
        assert_eq!(gate.reload().expect("a file").len(), 1);
        assert!(gate.now().is_owned("three") && !gate.now().is_owned("one"));
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(gate.reload(), Err(TenantsError::Read { .. })));
        assert!(gate.now().is_owned("three"));
    }

    #[test]
    fn a_wrong_line_is_named_and_not_shown() {
        for (text, line) in [
            ("short one", 1),
            ("# fine\n0123456789abcdef", 2),
            ("0123456789abcdef a/b", 1),
            ("0123456789abcdef-ä one", 1),
            ("0123456789abcdef one\n0123456789abcdef two", 2),
        ] {
            assert_eq!(Tenants::parse(text).expect_err("refused").0, line, "{text}");
        }
        let error = TenantsError::Line { path: "/f".into(), line: 3, what: "w" }.to_string();
        assert!(error.contains("line 3") && !error.contains("0123456789abcdef"), "{error}");
    }
}
