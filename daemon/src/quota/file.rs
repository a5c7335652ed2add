//! The quotas on disk: one JSON file, replaced in one step.
//!
//! Crash rule: the new file is written beside the old one and synced, then renamed over it, then the directory is synced. At
//! any instant the old or the new table is there whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lmcache_proto::wire::validate_salt;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Limits, MAX_QUOTAS};
use crate::failpoint;

const NAME: &str = "quotas.json";
const VERSION: u32 = 1;
/// A full table of the longest salts, each character escaped, is less.
const MAX_BYTES: u64 = 2 << 20;

/// Why a file is not believed.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it has more than {MAX_BYTES} bytes")]
    Large,
    #[error("not the JSON that it should be ({0})")]
    Json(#[from] serde_json::Error),
    #[error("it is of version {0}, this daemon knows {VERSION}")]
    Version(u32),
    #[error("a salt is there twice or cannot be, or there are more than {MAX_QUOTAS}")]
    Salts,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    quotas: Vec<Row>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Row {
    cache_salt: String,
    limit_bytes: u64,
}

/// The file of a state directory. One daemon writes it.
#[derive(Debug)]
pub(super) struct StateFile {
    dir: PathBuf,
    path: PathBuf,
}

impl StateFile {
    pub(super) fn in_dir(dir: &Path) -> StateFile {
        StateFile { dir: dir.to_owned(), path: dir.join(NAME) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; nothing if it is not there.
    pub(super) fn read(&self) -> Result<Limits, ReadError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Limits::default()),
            Err(error) => return Err(error.into()),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(ReadError::Large);
        }
        let document: Document = serde_json::from_slice(&text)?;
        if document.version != VERSION {
            return Err(ReadError::Version(document.version));
        }
        let rows = document.quotas.len();
        let rows_of = document.quotas.into_iter().filter(|row| validate_salt(&row.cache_salt).is_ok());
        let limits: Limits = rows_of.map(|row| (row.cache_salt.into(), row.limit_bytes)).collect();
        if limits.len() == rows && rows <= MAX_QUOTAS { Ok(limits) } else { Err(ReadError::Salts) }
    }

    /// Replaces it.
    pub(super) fn write(&self, limits: &Limits) -> io::Result<()> {
        let row = |(salt, limit): (&std::sync::Arc<str>, &u64)| Row {
            cache_salt: salt.as_ref().to_owned(),
            limit_bytes: *limit,
        };
        let mut quotas: Vec<Row> = limits.iter().map(row).collect();
        quotas.sort_unstable_by(|one, other| one.cache_salt.cmp(&other.cache_salt));
        let mut text = serde_json::to_vec_pretty(&Document { version: VERSION, quotas })?;
        text.push(b'\n');
        failpoint::hit("quota.before");
        fs::create_dir_all(&self.dir)?;
        let new = self.path.with_extension("json.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        failpoint::hit("quota.created");
        file.write_all(&text)?;
        failpoint::hit("quota.written");
        file.sync_all()?;
        failpoint::hit("quota.synced");
        fs::rename(&new, &self.path)?;
        failpoint::hit("quota.renamed");
        File::open(&self.dir)?.sync_all()?;
        failpoint::hit("quota.done");
        Ok(())
    }

    /// Renames a file that is not believed; an earlier one of its kind goes.
    pub(super) fn put_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.with_extension("json.damaged");
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }
}
