//! `resp` and `valkey`: one key for each object in Redis or Valkey, single or cluster, under the peer's names.
//!
//! A value holds the object's bytes and nothing else. The checksum is a second key, `lmcached@sum@{<key>}`: the braces put
//! it into the cluster slot of the first, so both are written in one transaction and read in one command. An LMCache
//! server that overwrites a value leaves the old checksum behind; the value then counts as damaged, once, and is deleted:
//! a miss, never wrong bytes.
#![forbid(unsafe_code)]

mod connect;
mod direct;
mod list;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{
    Cmd, Pipeline, RedisError, RedisWrite, ServerErrorKind, ToRedisArgs, ToSingleRedisArg, Value, cmd,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use lmcache_proto::object_key::ObjectKey;
use serde_json::Map;

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored};
use super::checksum::Checksum;
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use super::registry::{Counting, Recipe};
use super::settings::{Settings, SettingsError};
use connect::{Address, Connections, Link};
use direct::Direct;
#[cfg(feature = "fuzzing")]
pub(super) use direct::fuzzing::reply as fuzz_reply;

/// Transfers in flight on each connection: one on the wire, one being copied, one waiting. Each holds a whole value.
const IN_FLIGHT: usize = 3;
/// Keys of one lookup that are asked for at the same time.
const LOOKUPS: usize = 256;
/// Largest value of Redis and Valkey (`proto-max-bulk-len`).
const MOST: u64 = 512 << 20;
/// Two fields more than any object's key has, so that nobody takes a checksum for an object.
const SUM_PREFIX: &str = "lmcached@sum@";

/// The adapter.
#[derive(Debug)]
pub struct Redis {
    kind: &'static str,
    connections: Connections,
    /// For loads, where there is one server and no TLS.
    direct: Option<Direct>,
    /// With its `@`, or empty.
    prefix: String,
    ttl_seconds: Option<u64>,
}

/// Reads `{"type":"resp","host":…,"port":…}`. The valkey keys that have no other meaning here work too.
pub(super) fn recipe_resp(settings: &mut Settings, timeout: Duration) -> Result<Recipe, SettingsError> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = match settings.text("host")?.or_else(|| environment("LMCACHE_RESP_HOST")) {
        Some(host) => host,
        None => settings.required("host")?,
    };
    let port = settings.count("port", 1..=65535)?;
    let port = port.or_else(|| environment("LMCACHE_RESP_PORT")?.parse().ok());
    let port = port.ok_or_else(|| SettingsError("needs \"port\", a number from 1 to 65535".into()))?;
    let nodes = vec![(host, port as u16)];
    let user = settings.text("username")?.or_else(|| environment("LMCACHE_RESP_USERNAME"));
    let password = settings.text("password")?.or_else(|| environment("LMCACHE_RESP_PASSWORD"));
    recipe("resp", settings, timeout, nodes, user, password)
}

/// Reads `{"type":"valkey","startup_nodes":"host:port,host:port",…}`.
pub(super) fn recipe_valkey(settings: &mut Settings, timeout: Duration) -> Result<Recipe, SettingsError> {
    let nodes = startup_nodes(&settings.required("startup_nodes")?)?;
    let user = settings.text("username")?;
    let password = settings.text("password")?;
    recipe("valkey", settings, timeout, nodes, user, password)
}

fn startup_nodes(text: &str) -> Result<Vec<(String, u16)>, SettingsError> {
    let wrong = || SettingsError("\"startup_nodes\" must be host:port, or several with commas".into());
    text.split(',')
        .map(str::trim)
        .filter(|node| !node.is_empty())
        .map(|node| {
            let (host, port) =
                node.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or_else(wrong)?;
            let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
            Ok((host.trim_matches(['[', ']']).to_owned(), port))
        })
        .collect::<Result<Vec<_>, _>>()
        .and_then(|nodes| if nodes.is_empty() { Err(wrong()) } else { Ok(nodes) })
}

fn recipe(
    kind: &'static str,
    settings: &mut Settings,
    timeout: Duration,
    nodes: Vec<(String, u16)>,
    user: Option<String>,
    password: Option<String>,
) -> Result<Recipe, SettingsError> {
    let cluster = settings.flag("cluster_mode", false)?;
    let prefix = settings.text("key_prefix")?.unwrap_or_default();
    if prefix.contains('@') {
        return Err(SettingsError(
            "\"key_prefix\" must not contain @: it separates the fields of a key".into(),
        ));
    }
    let workers = settings.count("num_workers", 1..=256)?.unwrap_or(8) as usize;
    let tls = settings.flag("tls_enable", false)?;
    let ca_path = settings.text("tls_ca_path")?;
    let database = settings.count("database_id", 0..=1_000_000)?.filter(|_| !cluster);
    let connection_timeout = settings.seconds("connection_timeout")?.unwrap_or(Duration::from_secs(10));
    let ttl_seconds = settings.count("ttl_seconds", 1..=u64::from(u32::MAX))?;
    let address =
        Address { nodes, cluster, user, password, tls, ca_path, database, connection_timeout, timeout };
    let open = move || {
        let redis = Redis {
            kind,
            direct: Direct::new(&address, workers),
            connections: Connections::open(address, workers)?,
            prefix: if prefix.is_empty() { prefix } else { prefix + "@" },
            ttl_seconds,
        };
        Ok(Arc::new(redis) as Arc<dyn L2Adapter>)
    };
    Ok(Recipe::new(Counting::WithCapacity, workers * IN_FLIGHT, Box::new(open)))
}

impl Redis {
    fn key(&self, key: &ObjectKey) -> String {
        format!("{}{}", self.prefix, key.native_key())
    }

    /// The key of the checksum. `None`: the key's own braces decide its cluster slot, so no second key can follow it.
    fn sum_key(key: &str) -> Option<String> {
        (!key.contains('{')).then(|| format!("{SUM_PREFIX}{{{key}}}"))
    }

    fn set(&self, key: &str, value: impl ToSingleRedisArg) -> Cmd {
        let mut set = cmd("SET");
        set.arg(key).arg(value);
        if let Some(seconds) = self.ttl_seconds {
            set.arg("EX").arg(seconds);
        }
        set
    }
}

/// Sorts an error of the client.
fn trouble(doing: &str, error: &RedisError) -> Trouble {
    let text = format!("{doing}: {error}");
    match error.kind() {
        ::redis::ErrorKind::AuthenticationFailed => Trouble::Denied(text),
        ::redis::ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ReadOnly) => {
            Trouble::Denied(text)
        }
        ::redis::ErrorKind::Server(ServerErrorKind::ResponseError) => Trouble::Unexpected(text),
        _ => match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Trouble::Denied(text),
            Some("WRONGTYPE") => Trouble::Unexpected(text),
            _ => Trouble::Unavailable(text),
        },
    }
}

fn store_error(error: &RedisError) -> StoreError {
    // In a transaction the refusal of the SET is inside the error of the EXEC.
    let text = error.to_string();
    if error.code() == Some("OOM") || text.contains("OOM") {
        return StoreError::Full(format!("SET: {text}"));
    }
    StoreError::Store(trouble("SET", error))
}

/// The object's bytes as an argument, copied once, straight into the command.
struct Payload<'a>(&'a SourceBuf);

impl ToRedisArgs for Payload<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        self.0.append_to(&mut out.bufmut_for_next_arg(self.0.len()));
    }
}

impl ToSingleRedisArg for Payload<'_> {}

/// What a load found.
fn take_value(key: &ObjectKey, value: Value, sum: Value, mut target: TargetBuf) -> LoadOutcome {
    let bytes = match value {
        Value::BulkString(bytes) => bytes,
        Value::Nil => return LoadOutcome::failed(LoadError::NotFound, target),
        other => {
            let error = Trouble::Unexpected(format!("GET was answered with {}", name_of(&other)));
            return LoadOutcome::failed(error, target);
        }
    };
    if bytes.len() != target.len() {
        let error = LoadError::WrongSize { expected: target.len() as u64, found: bytes.len() as u64 };
        return LoadOutcome::failed(error, target);
    }
    if let Value::BulkString(text) = sum
        && let Some(expected) = Checksum::parse(&text)
    {
        let found = Checksum::of_bytes(key, &bytes);
        if found != expected {
            return LoadOutcome::failed(LoadError::checksum(expected, found), target);
        }
    }
    target.write_at(0, &bytes);
    LoadOutcome::loaded(target)
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Int(_) => "a number",
        Value::Array(_) => "an array",
        Value::SimpleString(_) | Value::Okay => "a status",
        _ => "something else",
    }
}

async fn exists(mut link: Link, key: String) -> Result<Presence, Trouble> {
    // Both in one round trip: STRLEN alone cannot tell a missing value from an empty one.
    let mut both = Pipeline::new();
    both.cmd("EXISTS").arg(&key).cmd("STRLEN").arg(&key);
    let (there, bytes): (bool, u64) =
        both.query_async(&mut link).await.map_err(|error| trouble("EXISTS", &error))?;
    Ok(if there { Presence::Present { bytes: Some(bytes) } } else { Presence::Absent })
}

impl L2Adapter for Redis {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        // One pipeline for each key and not one for all: in a cluster they go to different nodes. The client writes what
        // is ready at once.
        let asks: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        Box::pin(
            stream::iter(asks)
                .map(move |key| async move { exists(self.connections.next().await?, key).await })
                .buffered(LOOKUPS)
                .try_collect(),
        )
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, mut target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            if let Some(direct) = &self.direct {
                let name = self.key(key);
                let sum = Redis::sum_key(&name);
                return match direct.load(key, &name, sum.as_deref(), &mut target).await {
                    Ok(()) => LoadOutcome::loaded(target),
                    Err(error) => LoadOutcome::failed(error, target),
                };
            }
            let mut link = match self.connections.next().await {
                Ok(link) => link,
                Err(trouble) => return LoadOutcome::failed(trouble, target),
            };
            let name = self.key(key);
            let answer = match Redis::sum_key(&name) {
                Some(sum) => cmd("MGET").arg(&name).arg(sum).query_async(&mut link).await,
                None => cmd("GET").arg(&name).query_async(&mut link).await.map(|value| (value, Value::Nil)),
            };
            match answer {
                Ok((value, sum)) => {
                    let key = key.clone();
                    // Megabytes are hashed and copied: not on a thread that serves requests.
                    let take = move || take_value(&key, value, sum, target);
                    tokio::task::spawn_blocking(take).await.unwrap_or_else(|_| {
                        LoadOutcome::abandoned(Trouble::Unavailable("the daemon is shutting down".into()))
                    })
                }
                Err(error) => LoadOutcome::failed(trouble("GET", &error), target),
            }
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
            let name = self.key(key);
            let mut link = self.connections.next().await?;
            let sum = Checksum::of_source(key, &source);
            let set = self.set(&name, Payload(&source));
            drop(source);
            match Redis::sum_key(&name) {
                Some(sum_name) => {
                    let mut both = Pipeline::new();
                    both.atomic().add_command(set).ignore();
                    both.add_command(self.set(&sum_name, sum.to_string())).ignore();
                    both.exec_async(&mut link).await
                }
                None => set.exec_async(&mut link).await,
            }
            .map_err(|error| store_error(&error))?;
            Ok(Stored { bytes, written: true })
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        Box::pin(async move {
            let name = self.key(key);
            let mut link = self.connections.next().await?;
            let mut both = Pipeline::new();
            both.cmd("DEL").arg(&name);
            if let Some(sum) = Redis::sum_key(&name) {
                both.cmd("DEL").arg(sum);
            }
            let removed: Vec<u64> =
                both.query_async(&mut link).await.map_err(|error| trouble("DEL", &error))?;
            Ok(removed.first().is_some_and(|count| *count > 0))
        })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        Box::pin(list::page(&self.connections, &self.prefix, from, limit))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async move {
            let mut link = self.connections.next().await?;
            // In a cluster: of every primary.
            cmd("PING").exec_async(&mut link).await.map_err(|error| trouble("PING", &error))
        })
    }

    fn describe(&self) -> Map<String, serde_json::Value> {
        let mut map = self.connections.describe();
        map.insert("key_prefix".into(), self.prefix.trim_end_matches('@').into());
        map.insert("ttl_seconds".into(), self.ttl_seconds.into());
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_wrong_ones_refused() {
        let nodes = startup_nodes("a:1, b.c:6379,[::1]:7,").expect("three");
        assert_eq!(nodes, [("a".into(), 1), ("b.c".into(), 6379), ("::1".into(), 7)]);
        for text in ["", "a", "a:", ":1", "a:0", "a:65536", "a:x", ","] {
            assert!(startup_nodes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_checksum_lives_in_the_slot_of_its_value() {
        // The tag of a key is what stands between its first { and the } behind it.
        let key = "m/n@01000100@0@00";
        let sum = Redis::sum_key(key).expect("one");
        assert_eq!(
            sum.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag),
            Some(key)
        );
        assert_eq!(Redis::sum_key("m{x}@01000100@0@00"), None);
        for salt in ["", "@salt"] {
            let key = format!("m@01000100@0@{}{salt}", "0f".repeat(32));
            assert!(ObjectKey::from_native_key(&key).is_some());
            assert_eq!(ObjectKey::from_native_key(&Redis::sum_key(&key).expect("one")), None);
        }
    }
}
