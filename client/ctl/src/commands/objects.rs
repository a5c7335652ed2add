//! `objects`.

use serde_json::{Value, json};

use crate::cli::{Objects, Tier};
use crate::error::CtlError;
use crate::http::{Daemon, escaped};
use crate::show::{self, bytes, name, rows, table};

/// Objects of one page.
const PAGE: usize = 1000;

pub(super) fn run(daemon: &Daemon, action: Objects, json: bool) -> Result<(), CtlError> {
    match action {
        Objects::List { tier, model, limit } => {
            let wanted = Wanted { tier: &tier, model: model.as_deref(), hash: None };
            let found = list(daemon, &wanted, limit as usize)?;
            print(&found, json)
        }
        Objects::Inspect { hash } => {
            check_hash(&hash)?;
            let tier = Tier { tier: "l1".into(), adapter: None };
            let found = list(daemon, &Wanted { tier: &tier, model: None, hash: Some(&hash) }, usize::MAX)?;
            if found.entries.is_empty() {
                return Err(CtlError::Refused(format!(
                    "no object of L1 has a chunk hash that begins with {hash}"
                )));
            }
            show::document(json, &json!({"entries": found.entries}), |_| {
                found.entries.iter().map(one).collect::<Vec<_>>().join("\n")
            })
        }
        Objects::Delete { tier, hash, model, force } => {
            delete(daemon, &tier, &hash, model.as_deref(), force, json)
        }
    }
}

fn check_hash(hash: &str) -> Result<(), CtlError> {
    let good =
        !hash.is_empty() && hash.len() <= 64 && hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if good {
        Ok(())
    } else {
        Err(CtlError::Usage("a chunk hash is up to 64 hex digits, in lower case".into()))
    }
}

/// Which objects.
pub(super) struct Wanted<'a> {
    pub(super) tier: &'a Tier,
    pub(super) model: Option<&'a str>,
    pub(super) hash: Option<&'a str>,
}

/// What a listing found.
pub(super) struct Found {
    pub(super) entries: Vec<Value>,
    /// There are more.
    pub(super) more: bool,
}

/// Objects, page by page, at most `limit`.
pub(super) fn list(daemon: &Daemon, wanted: &Wanted<'_>, limit: usize) -> Result<Found, CtlError> {
    let mut found = Found { entries: Vec::new(), more: false };
    let mut token: Option<String> = None;
    loop {
        let mut path = format!(
            "/cache/objects?tier={}&page_size={}",
            wanted.tier.tier,
            PAGE.min((limit - found.entries.len()).max(1))
        );
        let mut add = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", escaped(value)));
            }
        };
        add("adapter", wanted.tier.adapter.as_deref());
        add("model_name", wanted.model);
        add("chunk_hash", wanted.hash);
        add("page_token", token.as_deref());
        let mut page = daemon.get(&path)?;
        if let Value::Array(entries) = page["entries"].take() {
            found.entries.extend(entries);
        }
        token = page["next_page_token"].as_str().map(str::to_owned);
        if token.is_none() || found.entries.len() >= limit {
            found.more = token.is_some() || found.entries.len() > limit;
            found.entries.truncate(limit);
            return Ok(found);
        }
    }
}

fn print(found: &Found, json: bool) -> Result<(), CtlError> {
    let document = json!({"entries": found.entries, "more": found.more});
    show::document(json, &document, |document| {
        let rows = rows(&document["entries"], |entry| {
            let key = &entry["key"];
            vec![
                name(&key["chunk_hash_hex"]).chars().take(16).collect(),
                name(&key["model_name"]),
                format!("{:08x}", key["kv_rank"].as_u64().unwrap_or(0)),
                name(&key["object_group_id"]),
                name(&key["cache_salt"]),
                bytes(&entry["size_bytes"]),
                entry["state"].as_str().unwrap_or("stored").to_owned(),
                format!("{}", entry["leases"].as_u64().unwrap_or(0) + entry["pins"].as_u64().unwrap_or(0)),
            ]
        });
        let mut text = table(&["CHUNK", "MODEL", "RANK", "GROUP", "SALT", "SIZE", "STATE", "HOLDS"], &rows);
        if found.more {
            text.push_str("there are more; --limit shows them\n");
        }
        text
    })
}

fn one(entry: &Value) -> String {
    let key = &entry["key"];
    show::pairs(&[
        ("chunk hash", name(&key["chunk_hash_hex"])),
        ("model", name(&key["model_name"])),
        ("cache salt", name(&key["cache_salt"])),
        ("rank", format!("{:08x}", key["kv_rank"].as_u64().unwrap_or(0))),
        ("object group", name(&key["object_group_id"])),
        ("size", bytes(&entry["size_bytes"])),
        ("state", name(&entry["state"])),
        ("leases", name(&entry["leases"])),
        ("pins", name(&entry["pins"])),
        ("goes with its last reader", name(&entry["temporary"])),
        ("gone from its key", name(&entry["detached"])),
    ])
}

fn delete(
    daemon: &Daemon,
    tier: &Tier,
    hash: &str,
    model: Option<&str>,
    force: bool,
    json: bool,
) -> Result<(), CtlError> {
    check_hash(hash)?;
    if hash.len() != 64 {
        return Err(CtlError::Usage("to delete, give the whole chunk hash: 64 hex digits".into()));
    }
    // A tier's own listing does not search by hash.
    let in_l1 = tier.tier == "l1";
    let found = list(daemon, &Wanted { tier, model, hash: in_l1.then_some(hash) }, usize::MAX)?;
    let keys: Vec<Value> = found
        .entries
        .into_iter()
        .map(|mut entry| entry["key"].take())
        .filter(|key| key["chunk_hash_hex"] == hash)
        .collect();
    if keys.is_empty() {
        return Err(CtlError::Refused(format!("{} has no object of chunk {hash}", tier.tier)));
    }
    let answer = remove(daemon, tier, &keys, force)?;
    show::document(json, &answer, |answer| {
        format!("{} deleted, {} left because requests hold them", answer["deleted"], answer["skipped"])
    })?;
    match answer["error"].as_str() {
        Some(error) => Err(CtlError::Refused(error.to_owned())),
        None if answer["deleted"] == 0 => Err(CtlError::Refused("nothing was deleted".into())),
        None => Ok(()),
    }
}

/// Deletes objects by key.
pub(super) fn remove(daemon: &Daemon, tier: &Tier, keys: &[Value], force: bool) -> Result<Value, CtlError> {
    let body = json!({"keys": keys, "tier": tier.tier, "force": force, "adapter": tier.adapter});
    daemon.send("DELETE", "/cache/objects", &body)
}
