//! `adapters`.

use serde_json::{Value, json};

use crate::cli::Adapters;
use crate::error::CtlError;
use crate::http::Daemon;
use crate::show::{self, bytes, name, table};

/// The columns of [`rows`].
pub(super) const HEAD: [&str; 8] =
    ["TIER", "NAME", "STATE", "HEALTH", "OBJECTS", "BYTES", "UNDER WAY", "LAST ERROR"];

/// The adapters of `/status`.
pub(super) fn rows(list: &Value) -> Vec<Vec<String>> {
    show::rows(list, |tier| {
        let number = |key: &str| tier[key].as_u64().unwrap_or(0);
        vec![
            name(&tier["adapter_index"]),
            name(&tier["name"]),
            name(&tier["state"]),
            if tier["is_healthy"] == true { "OK".into() } else { name(&tier["breaker"]["position"]) },
            name(&tier["usage"]["objects"]),
            bytes(&tier["usage"]["bytes"]),
            format!("{}", number("inflight_stores") + number("inflight_loads")),
            name(&tier["breaker"]["last_error"]),
        ]
    })
}

pub(super) fn run(daemon: &Daemon, action: Adapters, json: bool) -> Result<(), CtlError> {
    match action {
        Adapters::List => {
            let page = daemon.get("/lmcached/adapters")?;
            show::document(json, &page, |page| table(&HEAD, &rows(&page["adapters"])))
        }
        Adapters::Add { adapter: text } => {
            let adapter: Value = serde_json::from_str(&text)
                .map_err(|error| CtlError::Usage(format!("the adapter is no JSON: {error}")))?;
            let answer = daemon.send("POST", "/lmcached/adapters", &adapter)?;
            show::document(json, &answer, |answer| {
                format!("{} is in use as adapter {}", name(&answer["name"]), answer["index"])
            })
        }
        Adapters::Drain { index } => {
            let answer = daemon.send("POST", &format!("/lmcached/adapters/{index}/drain"), &json!({}))?;
            show::document(json, &answer, |answer| {
                let left = &answer["in_flight"];
                format!(
                    "adapter {index} drains; {} stores and {} loads are under way",
                    left["stores"], left["loads"]
                )
            })
        }
        Adapters::Remove { index } => {
            let answer = daemon.send("DELETE", &format!("/lmcached/adapters/{index}"), &json!({}))?;
            show::document(json, &answer, |answer| {
                let left = &answer["in_flight"];
                format!(
                    "adapter {index} is removed; {} stores and {} loads are still under way",
                    left["stores"], left["loads"]
                )
            })
        }
    }
}
