//! `quota`: the peer's routes.

use serde_json::json;

use crate::cli::Quota;
use crate::error::CtlError;
use crate::http::{Daemon, escaped};
use crate::show::{self, name, pairs, table};

/// How a path names the empty salt.
const DEFAULT: &str = "_default";

fn path(salt: &str) -> String {
    format!("/quota/{}", escaped(if salt.is_empty() { DEFAULT } else { salt }))
}

pub(super) fn run(daemon: &Daemon, action: Quota, json: bool) -> Result<(), CtlError> {
    match action {
        Quota::Set { salt, limit_gb } => {
            if !(limit_gb.is_finite() && limit_gb >= 0.0) {
                return Err(CtlError::Usage("--limit-gb must be a number that is not negative".into()));
            }
            let answer = daemon.send("PUT", &path(&salt), &json!({"limit_gb": limit_gb}))?;
            show::document(json, &answer, |answer| {
                format!("{}: {} GB", name(&answer["cache_salt"]), answer["limit_gb"])
            })
        }
        Quota::Get { salt } => {
            let answer = daemon.get(&path(&salt))?;
            show::document(json, &answer, |answer| {
                pairs(&[
                    ("cache salt", name(&answer["cache_salt"])),
                    ("limit", format!("{} GB", name(&answer["limit_gb"]))),
                    ("used", format!("{} GB", name(&answer["current_usage_gb"]))),
                    ("set", name(&answer["exists"])),
                ])
            })
        }
        Quota::List => {
            let answer = daemon.get("/quota")?;
            show::document(json, &answer, |answer| {
                let users = answer["users"].as_object();
                let rows: Vec<Vec<String>> = users
                    .into_iter()
                    .flatten()
                    .map(|(salt, user)| {
                        vec![name(&json!(salt)), name(&user["limit_gb"]), name(&user["current_usage_gb"])]
                    })
                    .collect();
                table(&["SALT", "LIMIT GB", "USED GB"], &rows)
            })
        }
        Quota::Delete { salt } => {
            let answer = daemon.send("DELETE", &path(&salt), &json!({}))?;
            show::document(json, &answer, |answer| {
                format!("{}: {}", name(&answer["cache_salt"]), name(&answer["status"]))
            })
        }
    }
}
