//! `/cache/objects`: what a tier holds, and deletions by key. `tier=l2` as the peer has it, `tier=l1` besides.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use lmcache_proto::hash;
use lmcache_proto::object_key::ObjectKey;
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, detail, json_answer};
use super::call::{Call, Later, later};
use super::{Admin, adapters};
use crate::l1::{Seen, Wanted};
use crate::l2::adapter::L2Adapter;
use crate::l2::control::Attached;

/// Objects of one page.
const PAGE: usize = 500;
const MAX_PAGE: usize = 5000;
/// Keys of one deletion.
const MAX_KEYS: usize = 10_000;
/// Deletions of one request at the same time.
const DELETES: usize = 32;

/// A key as the peer writes it.
#[derive(Deserialize)]
struct EncodedKey {
    chunk_hash_hex: String,
    model_name: String,
    kv_rank: u32,
    #[serde(default)]
    object_group_id: u32,
    #[serde(default)]
    cache_salt: String,
}

impl EncodedKey {
    fn key(&self) -> Option<ObjectKey> {
        let key = ObjectKey {
            chunk_hash: hash::from_hex(&self.chunk_hash_hex)?,
            model_name: self.model_name.clone(),
            kv_rank: self.kv_rank,
            object_group_id: self.object_group_id,
            cache_salt: self.cache_salt.clone(),
        };
        // A salt with a slash in it would be a path below, or beside, a store's directory.
        key.is_valid().then_some(key)
    }
}

fn encoded(key: &ObjectKey) -> Value {
    json!({
        "chunk_hash_hex": key.hash_hex(),
        "model_name": key.model_name,
        "kv_rank": key.kv_rank,
        "object_group_id": key.object_group_id,
        "cache_salt": key.cache_salt,
    })
}

/// `GET /cache/objects`.
pub(super) fn list(call: Call) -> Later {
    later(async move {
        let page_size = match call.number("page_size", PAGE, 1..=MAX_PAGE) {
            Ok(size) => size,
            Err(answer) => return answer,
        };
        match call.query.get("tier").map_or("l2", String::as_str) {
            "l1" => list_l1(&call, page_size).await,
            "l2" => list_l2(&call, page_size).await,
            _ => detail(StatusCode::BAD_REQUEST, "tier must be l1 or l2".into()),
        }
    })
}

async fn list_l1(call: &Call, page_size: usize) -> Answer {
    let from = match call.number("page_token", 0, 0..=u32::MAX as usize) {
        Ok(from) => from,
        Err(answer) => return answer,
    };
    let wanted =
        Wanted { model: call.query.get("model_name").cloned(), hash: call.query.get("chunk_hash").cloned() };
    let _turn = call.admin.turn.lock().await;
    let engine = call.admin.engine.clone();
    let walk = tokio::task::spawn_blocking(move || engine.l1().list(&wanted, from, page_size));
    let (seen, next) = match walk.await {
        Ok(page) => page,
        Err(error) => return detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let entry = |seen: &Seen| {
        let key = ObjectKey {
            chunk_hash: seen.hash,
            model_name: seen.model.to_string(),
            kv_rank: seen.rank,
            object_group_id: seen.group,
            cache_salt: seen.salt.to_string(),
        };
        json!({
            "key": encoded(&key),
            "size_bytes": seen.bytes,
            "state": seen.state,
            "leases": seen.leases,
            "pins": seen.pins,
            "temporary": seen.temporary,
            "detached": seen.detached,
        })
    };
    let page = json!({
        "adapter": "l1",
        "shared": false,
        "entries": seen.iter().map(entry).collect::<Vec<_>>(),
        "next_page_token": next.map(|next| next.to_string()),
    });
    json_answer(StatusCode::OK, &page)
}

async fn list_l2(call: &Call, page_size: usize) -> Answer {
    let tier = match find(&call.admin, call.query.get("adapter").map(String::as_str)) {
        Ok(tier) => tier,
        Err(answer) => return answer,
    };
    let from = call.query.get("page_token").map(String::as_str);
    let page = match tier.tier.list(from, page_size).await {
        Ok(page) => page,
        Err(trouble) => return detail(StatusCode::SERVICE_UNAVAILABLE, trouble.to_string()),
    };
    let model = call.query.get("model_name");
    let entries: Vec<Value> = page
        .objects
        .iter()
        .filter(|object| model.is_none_or(|model| *model == object.key.model_name))
        .map(|object| json!({"key": encoded(&object.key), "size_bytes": object.bytes}))
        .collect();
    let page = json!({
        "adapter": &*tier.id.name,
        "shared": adapters::is_shared(&call.admin, tier.id.index),
        "entries": entries,
        "next_page_token": page.next,
    });
    json_answer(StatusCode::OK, &page)
}

/// The tier of that type or index; the first one if nobody says.
fn find(admin: &Admin, selector: Option<&str>) -> Result<Arc<Attached>, Answer> {
    let tiers = admin.engine.l2().map(|l2| l2.opened.tiers.all());
    let none = || detail(StatusCode::SERVICE_UNAVAILABLE, "no L2 adapters configured".into());
    let tiers = tiers.filter(|tiers| !tiers.is_empty()).ok_or_else(none)?;
    let is_it = |tier: &&Arc<Attached>| {
        selector.is_none_or(|name| name == &*tier.id.name || name == tier.id.index.to_string())
    };
    let unknown = || detail(StatusCode::NOT_FOUND, "no L2 adapter of that type or index".into());
    tiers.iter().find(is_it).cloned().ok_or_else(unknown)
}

#[derive(Deserialize)]
struct DeleteBody {
    keys: Vec<EncodedKey>,
    #[serde(default = "l2")]
    tier: String,
    #[serde(default)]
    force: bool,
    adapter: Option<String>,
}

fn l2() -> String {
    "l2".into()
}

/// `DELETE /cache/objects`.
pub(super) fn delete(call: Call) -> Later {
    later(async move {
        let body: DeleteBody = match call.json() {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let (in_l1, in_l2) = match body.tier.as_str() {
            "l1" => (true, false),
            "l2" => (false, true),
            "all" => (true, true),
            _ => return detail(StatusCode::BAD_REQUEST, "tier must be l1, l2 or all".into()),
        };
        if body.keys.len() > MAX_KEYS {
            return detail(StatusCode::BAD_REQUEST, format!("more than {MAX_KEYS} keys"));
        }
        let mut keys = Vec::with_capacity(body.keys.len());
        for (at, key) in body.keys.iter().enumerate() {
            match key.key() {
                Some(key) => keys.push(key),
                None => {
                    let line = format!(
                        "keys[{at}]: chunk_hash_hex has 64 hex digits, model_name is not empty, and neither it nor cache_salt has an @"
                    );
                    return detail(StatusCode::BAD_REQUEST, line);
                }
            }
        }
        let tier = if in_l2 {
            match find(&call.admin, body.adapter.as_deref()) {
                Ok(tier) => Some(tier),
                Err(answer) => return answer,
            }
        } else {
            None
        };
        let keys = Arc::new(keys);
        let (mut deleted, mut skipped, mut error) = (0, 0, None);
        if in_l1 {
            let _turn = call.admin.turn.lock().await;
            let (engine, keys, force) = (call.admin.engine.clone(), keys.clone(), body.force);
            match tokio::task::spawn_blocking(move || engine.delete(&keys, force)).await {
                Ok(outcome) => (deleted, skipped) = (outcome.deleted, outcome.held),
                Err(panic) => return detail(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()),
            }
        }
        if let Some(tier) = &tier {
            // Owned in each future: one that borrows would not be Send for every lifetime.
            let deletes = stream::iter(0..keys.len()).map(|at| {
                let (tier, keys) = (tier.clone(), keys.clone());
                async move { tier.tier.delete(&keys[at]).await }
            });
            let mut outcomes = deletes.buffer_unordered(DELETES);
            while let Some(outcome) = outcomes.next().await {
                match outcome {
                    Ok(was_there) => deleted += u64::from(was_there),
                    Err(trouble) => error = Some(trouble.to_string()),
                }
            }
        }
        tracing::warn!(target: "lmcached::audit", tier = body.tier, keys = keys.len(), deleted, skipped, force = body.force, "objects deleted over HTTP");
        let mut answer = json!({"deleted": deleted, "skipped": skipped, "ok": error.is_none()});
        if let Some(error) = error {
            answer["error"] = json!(error);
        }
        json_answer(StatusCode::OK, &answer)
    })
}
