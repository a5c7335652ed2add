//! `s3`: one object of a bucket for each object, under the peer's names.
//!
//! The client is `object_store`: it is small next to the AWS SDK (which asks for a newer compiler and brings its own
//! runtime of retries, signing and HTTP), belongs to Apache Arrow, and its retries, signing and credentials (static,
//! environment, web identity, container, instance) are what a cache needs. The checksum is in the object's metadata, so it
//! is replaced together with the bytes.
#![forbid(unsafe_code)]

mod client;
mod list;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use lmcache_proto::object_key::ObjectKey;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, GetResult, ObjectStore, ObjectStoreExt, PutOptions, PutPayload,
};
use serde_json::Map;

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored};
use super::checksum::Checksum;
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use super::registry::{Counting, Recipe};
use super::settings::{Settings, SettingsError};
use client::Endpoint;

/// Name of the checksum in an object's metadata.
const SUM: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("lmcached-sum"));
/// Largest object of one request.
const MOST: u64 = 5 << 30;

/// The adapter.
#[derive(Debug)]
pub struct S3 {
    endpoint: Endpoint,
    bucket: AmazonS3,
    /// The same bucket for keys that start with a slash (models served from a local path): the client's paths cannot, so
    /// the slash is the end of this one's base address.
    slashed: AmazonS3,
    concurrency: usize,
}

/// Reads `{"type":"s3","s3_endpoint":…,"s3_region":…}`.
pub(super) fn recipe(settings: &mut Settings, timeout: Duration) -> Result<Recipe, SettingsError> {
    let endpoint = Endpoint::read(settings, timeout)?;
    let concurrency = settings.count("s3_num_io_threads", 1..=4096)?.unwrap_or(64) as usize;
    let open = move || {
        let bucket = endpoint.client(false)?;
        let slashed = endpoint.client(true)?;
        Ok(Arc::new(S3 { endpoint, bucket, slashed, concurrency }) as Arc<dyn L2Adapter>)
    };
    Ok(Recipe::new(Counting::WithCapacity, concurrency, Box::new(open)))
}

/// Sorts an error of the client.
fn trouble(doing: &str, error: &Error) -> Trouble {
    let text = format!("{doing}: {error}");
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Trouble::Denied(text),
        Error::NotFound { .. } => Trouble::Unexpected(format!("{text} (is there such a bucket?)")),
        Error::Generic { .. } | Error::JoinError { .. } => Trouble::Unavailable(text),
        _ => Trouble::Unexpected(text),
    }
}

impl S3 {
    /// Where an object is. `None`: the client cannot spell such a key.
    fn place(&self, key: &ObjectKey) -> Option<(&AmazonS3, Path)> {
        let name = key.native_key();
        let (client, rest) = match name.strip_prefix('/') {
            Some(rest) => (&self.slashed, rest),
            None => (&self.bucket, name.as_str()),
        };
        let path = Path::parse(rest).ok()?;
        (path.as_ref() == rest).then_some((client, path))
    }

    async fn look(&self, key: &ObjectKey) -> Result<Presence, Trouble> {
        let Some((client, path)) = self.place(key) else { return Ok(Presence::Absent) };
        match client.head(&path).await {
            Ok(meta) => Ok(Presence::Present { bytes: Some(meta.size) }),
            Err(Error::NotFound { .. }) => Ok(Presence::Absent),
            Err(error) => Err(trouble("HEAD", &error)),
        }
    }
}

/// Reads the body into `target`.
async fn receive(got: GetResult, target: &mut TargetBuf) -> Result<(), LoadError> {
    let expected = target.len() as u64;
    if got.meta.size != expected {
        return Err(LoadError::WrongSize { expected, found: got.meta.size });
    }
    let mut body = got.into_stream();
    let mut at = 0;
    while let Some(piece) = body.try_next().await.map_err(|error| trouble("GET", &error))? {
        if piece.len() > target.len() - at {
            return Err(LoadError::WrongSize { expected, found: (at + piece.len()) as u64 });
        }
        target.write_at(at, &piece);
        at += piece.len();
    }
    if at < target.len() {
        // A connection that broke is the client's error; this is a server that lied about the length.
        return Err(LoadError::WrongSize { expected, found: at as u64 });
    }
    Ok(())
}

impl L2Adapter for S3 {
    fn kind(&self) -> &'static str {
        "s3"
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        let asks: Vec<_> = keys.iter().map(|key| self.look(key)).collect();
        Box::pin(stream::iter(asks).buffered(self.concurrency).try_collect())
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, mut target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let Some((client, path)) = self.place(key) else {
                return LoadOutcome::failed(LoadError::NotFound, target);
            };
            let got = match client.get(&path).await {
                Ok(got) => got,
                Err(Error::NotFound { .. }) => return LoadOutcome::failed(LoadError::NotFound, target),
                Err(error) => return LoadOutcome::failed(trouble("GET", &error), target),
            };
            let sum = got.attributes.get(&SUM).and_then(|text| Checksum::parse(text.as_bytes()));
            if let Err(error) = receive(got, &mut target).await {
                return LoadOutcome::failed(error, target);
            }
            let Some(expected) = sum else { return LoadOutcome::loaded(target) };
            let key = key.clone();
            // Megabytes are hashed: not on a thread that serves requests.
            let check = tokio::task::spawn_blocking(move || {
                let found = Checksum::of_target(&key, &target);
                if found == expected {
                    LoadOutcome::loaded(target)
                } else {
                    LoadOutcome::failed(LoadError::checksum(expected, found), target)
                }
            });
            check.await.unwrap_or_else(|_| {
                LoadOutcome::abandoned(Trouble::Unavailable("the daemon is shutting down".into()))
            })
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            let bytes = source.len() as u64;
            if bytes > MOST {
                return Err(StoreError::TooLarge { bytes, limit: MOST });
            }
            let Some((client, path)) = self.place(key) else {
                let line =
                    format!("{}: S3 paths here have no empty, \".\" or \"..\" segment", key.native_key());
                return Err(StoreError::BadKey(line));
            };
            let owned = key.clone();
            let copy = tokio::task::spawn_blocking(move || {
                let sum = Checksum::of_source(&owned, &source);
                (sum, Bytes::from(source.to_vec()))
            });
            let Ok((sum, body)) = copy.await else {
                return Err(Trouble::Unavailable("the daemon is shutting down".into()).into());
            };
            let attributes = Attributes::from_iter([(SUM, sum.to_string())]);
            let options = PutOptions { attributes, ..PutOptions::default() };
            match client.put_opts(&path, PutPayload::from_bytes(body), options).await {
                Ok(_) => Ok(Stored { bytes, written: true }),
                Err(error) => Err(trouble("PUT", &error).into()),
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        Box::pin(async move {
            let Some((client, path)) = self.place(key) else { return Ok(false) };
            // A delete is answered alike whether there was something or not.
            let existed = self.look(key).await?.is_present();
            match client.delete(&path).await {
                Ok(()) => Ok(existed),
                Err(Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(trouble("DELETE", &error)),
            }
        })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        Box::pin(list::page(&self.bucket, from, limit))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async move { list::page(&self.bucket, None, 1).await.map(drop) })
    }

    fn describe(&self) -> Map<String, serde_json::Value> {
        self.endpoint.describe()
    }
}
