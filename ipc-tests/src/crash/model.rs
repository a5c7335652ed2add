//! What must be true of a daemon that has taken over: nothing committed is lost, nothing wrong is served, and when the workers
//! have gone nothing is held and no byte is missing.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use lmcache_proto::shm::names;

use super::journal::Entry;
use super::link::{Link, Lost};
use super::points::Class;
use super::{CHUNKS, Content, MODELS, OBJECT, frame, model};
use crate::daemon::Daemon;
use crate::worker::{CHUNK, Model, prompt};
use crate::{http, in_time};

/// What was seen to be right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Objects that were served, each with its own bytes.
    pub served: u64,
    /// Objects that had to be served and were.
    pub kept: u64,
}

/// Objects that workers were told of.
pub fn committed(told: &[Entry]) -> BTreeSet<Content> {
    told.iter()
        .filter_map(|entry| match entry {
            Entry::Committed(content) => Some(*content),
            _ => None,
        })
        .collect()
}

fn failed(what: &str) -> impl Fn(Lost) -> String + use<'_> {
    move |lost| format!("{what}: {lost:?}")
}

/// Where workers of the machine connect.
pub fn endpoint(daemon: &Daemon) -> String {
    format!("ipc://{}/sock", daemon.dir().display())
}

/// Asks for everything that there may be. `lost` are not missed if they are not there.
///
/// # Errors
/// What is lost or wrong.
pub async fn look(
    daemon: &Daemon,
    must: &BTreeSet<Content>,
    class: Class,
    request: &str,
) -> Result<Seen, String> {
    let mut seen = Seen::default();
    for number in 0..MODELS {
        let id = 9000 + u64::from(number);
        let mut link = Link::open(&endpoint(daemon)).await.map_err(failed("connect"))?;
        let pool = link
            .register(&model(number, false), id, &daemon.pool_path())
            .await
            .map_err(failed("register"))?;
        for first in Content::all().filter(|content| content.model == number && content.chunk == 0) {
            let request = format!("{request}-{}-{}-{}", number, first.salt, first.prompt);
            let found = link.lookup(first, &request, CHUNKS).await.map_err(failed("lookup"))?;
            let mut there = Vec::new();
            for chunk in 0..CHUNKS {
                let content = Content { chunk, ..first };
                let key = frame(content, &request, Some(0), chunk, chunk + 1);
                let slots = link.prepare_retrieve(&key, id).await.map_err(failed("prepare_retrieve"))?;
                if let Some(slots) = &slots {
                    if slots.len() != 1 || !pool.holds(&slots[0], content.pattern()) {
                        return Err(format!("WRONG: other bytes are served for {content:?}: {slots:?}"));
                    }
                    seen.served += 1;
                    if !link.commit_retrieve(&key, id).await.map_err(failed("commit_retrieve"))? {
                        return Err(format!("a retrieve of {content:?} that was prepared is not known"));
                    }
                }
                if must.contains(&content) {
                    if slots.is_none() {
                        return Err(format!("LOST: {content:?} was committed and is not served"));
                    }
                    seen.kept += 1;
                }
                there.push(slots.is_some());
            }
            let prefix = there.iter().take_while(|there| **there).count();
            // Where objects may go at any moment, the lookup is only good for what it holds.
            // With two sizes of objects it finds those of workers of the other size, too.
            if (class.uniform() && usize::from(found) > prefix)
                || (class.keeps() && usize::from(found) < prefix)
            {
                return Err(format!("a lookup of {first:?} found {found} chunks, and {there:?} are served"));
            }
            link.end_session(&request).await.map_err(failed("end_session"))?;
        }
        link.call(&lmcache_proto::wire::Request::UnregisterEngineDriven { instance_id: id })
            .await
            .map_err(failed("unregister"))?;
    }
    Ok(seen)
}

/// Numbers of the daemon's page.
async fn numbers<const N: usize>(daemon: &Daemon, names: [&str; N]) -> Option<[u64; N]> {
    let (_, page) = http::get(daemon.http_port(), "/metrics").await?;
    let value = |name: &str| {
        let line = page
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        line?.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let values: Option<Vec<u64>> = names.iter().map(|name| value(name).map(|value| value as u64)).collect();
    values?.try_into().ok()
}

/// With all workers gone: nothing is held, every byte in use is an object's, and without objects the whole pool is one piece.
///
/// # Errors
/// What is left over.
pub async fn nothing_left(daemon: &Daemon, class: Class) -> Result<(), String> {
    const HELD: [&str; 4] = [
        "lmcached_l1_leases",
        "lmcached_l1_pins",
        "lmcached_l1_writing_objects",
        "lmcached_l1_quarantined_objects",
    ];
    let mut last = None;
    let free = in_time(async || {
        last = numbers(daemon, HELD).await;
        (last == Some([0; 4])).then_some(())
    });
    if free.await.is_none() {
        return Err(format!("LEAKED: {HELD:?} are {last:?} with no worker alive"));
    }
    const SIZES: [&str; 4] = [
        "lmcached_l1_objects",
        "lmcache_mp_l1_memory_usage_bytes",
        "lmcached_l1_capacity_bytes",
        "lmcached_l1_reserved_bytes",
    ];
    let reserved = in_time(async || numbers(daemon, SIZES).await.filter(|sizes| sizes[2] == sizes[3])).await;
    let [objects, used, capacity, _] = reserved.ok_or("the pool is never reserved")?;
    if class.uniform() && used != objects * OBJECT {
        return Err(format!("LEAKED: {objects} objects of {OBJECT} bytes take {used} bytes"));
    }
    daemon.clear().await;
    if class == Class::Tiered {
        // From the tier this time.
        look(daemon, &BTreeSet::new(), class, "tier").await?;
        daemon.clear().await;
    }
    let empty = in_time(async || numbers(daemon, SIZES).await.filter(|sizes| sizes[..2] == [0, 0])).await;
    empty.ok_or("LEAKED: bytes are in use by no object")?;
    let layers = (capacity >> 20).max(1);
    let whole = Model { name: "whole".into(), world_size: 1, layers, width: capacity / 1024 / layers };
    let mut link = Link::open(&endpoint(daemon)).await.map_err(failed("connect"))?;
    link.register(&whole, 9999, &daemon.pool_path()).await.map_err(failed("register"))?;
    let key = whole.key("whole", &prompt(1, 1)).frame(Some(0), 0, CHUNK as u64);
    let context = link.prepare_store(&key, 9999).await.map_err(failed("prepare_store"))?;
    match context.as_ref().map(|context| &context.slots[..]) {
        Some([slot]) if slot.length == capacity => {}
        other => {
            return Err(format!("LEAKED: the empty pool does not hold one object of its size: {other:?}"));
        }
    }
    names_agree(daemon)
}

fn names_agree(daemon: &Daemon) -> Result<(), String> {
    let path = daemon.pool_path();
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("a name")?;
    let inode = |name: &str| std::fs::metadata(path.with_file_name(name)).map(|meta| meta.ino()).ok();
    let (pool, keeper) = (inode(name), inode(&names::keeper(name)));
    if pool.is_none() || pool != keeper {
        return Err(format!("LEAKED: the pool's names are inodes {pool:?} and {keeper:?}"));
    }
    Ok(())
}
