//! Listing by SCAN, node after node.
#![forbid(unsafe_code)]

use ::redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use ::redis::{Cmd, FromRedisValue, Pipeline, Value, cmd};
use lmcache_proto::object_key::ObjectKey;

use super::super::adapter::{ListPage, Listed};
use super::super::error::Trouble;
use super::connect::{Connections, Link};
use super::trouble;

/// Keys that one SCAN looks at: more would keep a single-threaded server busy for too long.
const SCAN: usize = 1000;

/// Where a listing stands: a node (empty without a cluster) and its cursor.
struct Place {
    node: String,
    cursor: u64,
}

impl Place {
    fn parse(text: &str) -> Option<Place> {
        let (node, cursor) = text.rsplit_once('|')?;
        Some(Place { node: node.to_owned(), cursor: cursor.parse().ok()? })
    }

    fn text(&self) -> String {
        format!("{}|{}", self.node, self.cursor)
    }
}

pub(super) async fn page(
    connections: &Connections,
    prefix: &str,
    from: Option<&str>,
    limit: usize,
) -> Result<ListPage, Trouble> {
    let mut link = connections.next().await?;
    let nodes = primaries(&mut link).await?;
    let mut place = match from {
        None => Place { node: nodes[0].clone(), cursor: 0 },
        Some(text) => Place::parse(text).ok_or_else(|| Trouble::Unexpected("a listing's place".into()))?,
    };
    let mut page = ListPage::default();
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(place.cursor).arg("MATCH").arg(format!("{}*", escape(prefix)));
        scan.arg("COUNT").arg(limit.clamp(1, SCAN)).arg("TYPE").arg("string");
        let (cursor, keys): (u64, Vec<Vec<u8>>) = ask(&mut link, scan, &place.node).await?;
        add(&mut link, prefix, keys, &mut page).await?;
        let next = if cursor != 0 {
            Some(Place { node: place.node, cursor })
        } else {
            // A node that has left the cluster meanwhile took its keys elsewhere: on with the first that comes after it.
            nodes.iter().find(|node| **node > place.node).map(|node| Place { node: node.clone(), cursor: 0 })
        };
        match next {
            Some(next) if page.objects.len() < limit => place = next,
            next => {
                page.next = next.map(|place| place.text());
                return Ok(page);
            }
        }
    }
}

async fn add(link: &mut Link, prefix: &str, keys: Vec<Vec<u8>>, page: &mut ListPage) -> Result<(), Trouble> {
    let named = keys.into_iter().filter_map(|key| {
        let name = String::from_utf8(key).ok()?;
        let key = ObjectKey::from_native_key(name.strip_prefix(prefix)?)?;
        Some((name, key))
    });
    let named: Vec<(String, ObjectKey)> = named.collect();
    let sizes = futures_util::future::try_join_all(named.iter().map(|(name, _)| {
        let mut link = link.clone();
        async move {
            // Without a cluster these share a write; in one, each goes to its node.
            let mut strlen = Pipeline::new();
            strlen.cmd("STRLEN").arg(name);
            let (bytes,): (u64,) =
                strlen.query_async(&mut link).await.map_err(|error| trouble("STRLEN", &error))?;
            Ok::<u64, Trouble>(bytes)
        }
    }));
    let sizes = sizes.await?;
    page.objects.extend(named.into_iter().zip(sizes).map(|((_, key), bytes)| Listed {
        key,
        bytes,
        modified: None,
    }));
    Ok(())
}

/// The primaries of a cluster as `host:port`, sorted; one empty name without a cluster.
async fn primaries(link: &mut Link) -> Result<Vec<String>, Trouble> {
    if matches!(link, Link::Single(_)) {
        return Ok(vec![String::new()]);
    }
    let mut slots = cmd("CLUSTER");
    slots.arg("SLOTS");
    // Rows of [first slot, last slot, [host, port, …], replicas…].
    let rows: Vec<Vec<Value>> =
        slots.query_async(link).await.map_err(|error| trouble("CLUSTER SLOTS", &error))?;
    let mut nodes: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let Value::Array(primary) = row.get(2)? else { return None };
            let host = String::from_redis_value(primary.first()?.clone()).ok()?;
            let port = u16::from_redis_value(primary.get(1)?.clone()).ok()?;
            Some(format!("{host}:{port}"))
        })
        .collect();
    nodes.sort();
    nodes.dedup();
    if nodes.is_empty() { Err(Trouble::Unexpected("CLUSTER SLOTS names no node".into())) } else { Ok(nodes) }
}

async fn ask<T: FromRedisValue>(link: &mut Link, command: Cmd, node: &str) -> Result<T, Trouble> {
    let doing = |error: ::redis::RedisError| trouble("SCAN", &error);
    match link {
        Link::Single(connection) => command.query_async(connection).await.map_err(doing),
        Link::Cluster(connection) => {
            let (host, port) = node.rsplit_once(':').unwrap_or((node, "0"));
            let route = SingleNodeRoutingInfo::ByAddress {
                host: host.to_owned(),
                port: port.parse().unwrap_or_default(),
            };
            let value = connection.route_command(command, RoutingInfo::SingleNode(route)).await;
            T::from_redis_value(value.map_err(doing)?)
                .map_err(|error| Trouble::Unexpected(format!("SCAN: {error}")))
        }
    }
}

/// A prefix as a pattern that matches nothing else.
fn escape(prefix: &str) -> String {
    prefix.chars().fold(String::new(), |mut pattern, c| {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
        pattern
    })
}
