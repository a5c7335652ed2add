//! `queue`, `workers`, `sessions`, `locks`.

use serde_json::Value;

use crate::error::CtlError;
use crate::http::Daemon;
use crate::show::{self, bytes, name, pairs, rows, seconds, table};

/// What waits where, and what was lost.
pub(super) fn queue(daemon: &Daemon, json: bool) -> Result<(), CtlError> {
    let page = daemon.get("/lmcached/queue")?;
    show::document(json, &page, |page| {
        let (bus, wire, ring, l2) = (&page["event_bus"], &page["wire"], &page["ring"], &page["l2"]);
        let total = |list: &Value| -> u64 {
            list.as_array().into_iter().flatten().filter_map(|row| row["count"].as_u64()).sum()
        };
        let mut text = pairs(&[
            ("event bus", format!("{} of {} waiting", bus["depth"], bus["capacity"])),
            ("  lag", seconds(&bus["lag_seconds"])),
            ("  dropped", format!("{} of {} published", bus["dropped"], bus["published"])),
            ("wire", format!("{} queued, {} executing", bytes(&wire["queued_bytes"]), wire["executing"])),
            ("  connections", name(&wire["connections"])),
            ("  no requests", total(&wire["bad_messages"]).to_string()),
            ("  ended by us", total(&wire["connections_ended"]).to_string()),
            ("L2 stores waiting", name(&l2["waiting_store_objects"])),
            ("L2 prefetch jobs", name(&l2["prefetch_jobs"])),
            ("ring lanes", name(&ring["lanes"])),
            ("  lost records", name(&ring["total"]["lost"])),
            (
                "event streams",
                format!(
                    "{} open, {} cut off",
                    page["event_streams"]["open"], page["event_streams"]["cut_off"]
                ),
            ),
        ]);
        let tiers = rows(&l2["tiers"], |tier| {
            vec![
                name(&tier["index"]),
                name(&tier["name"]),
                name(&tier["stores"]),
                name(&tier["loads"]),
                bytes(&tier["load_bytes"]),
            ]
        });
        if !tiers.is_empty() {
            text.push('\n');
            text.push_str(&table(&["TIER", "NAME", "STORES", "LOADS", "LOAD BYTES"], &tiers));
        }
        let lanes = rows(&ring["workers"], |lane| {
            vec![
                name(&lane["instance"]),
                name(&lane["lane"]),
                name(&lane["records"]),
                name(&lane["unmatched"]),
                name(&lane["lost"]),
            ]
        });
        if !lanes.is_empty() {
            text.push('\n');
            text.push_str(&table(&["WORKER", "LANE", "RECORDS", "UNMATCHED", "LOST"], &lanes));
        }
        text
    })
}

/// The registered workers.
pub(super) fn workers(daemon: &Daemon, json: bool) -> Result<(), CtlError> {
    let page = daemon.get("/lmcached/workers")?;
    show::document(json, &page, |page| {
        let rows = rows(&page["workers"], |worker| {
            vec![
                name(&worker["instance"]),
                name(&worker["model"]),
                name(&worker["world_size"]),
                name(&worker["mode"]),
                name(&worker["device"]),
                name(&worker["pid"]),
                seconds(&worker["silent_seconds"]),
                name(&worker["transfers"]),
                name(&worker["lane"]),
            ]
        });
        let head = ["WORKER", "MODEL", "RANKS", "MODE", "DEVICE", "PID", "SILENT", "TRANSFERS", "LANE"];
        table(&head, &rows)
    })
}

/// The requests that are remembered.
pub(super) fn sessions(daemon: &Daemon, limit: u32, json: bool) -> Result<(), CtlError> {
    let page = daemon.get(&format!("/lmcached/sessions?limit={limit}"))?;
    show::document(json, &page, |page| {
        let rows = rows(&page["sessions"], |session| {
            let sum = |key: &str| -> u64 {
                session["lookups"].as_array().into_iter().flatten().filter_map(|l| l[key].as_u64()).sum()
            };
            let waits =
                session["lookups"].as_array().into_iter().flatten().any(|l| l["waits_for_l2"] == true);
            vec![
                name(&session["request_id"]),
                seconds(&session["idle_seconds"]),
                format!("{}/{}", sum("hit_chunks"), sum("requested_chunks")),
                sum("leases").to_string(),
                if waits { "yes".into() } else { "no".into() },
            ]
        });
        let shown = rows.len();
        let mut text = table(&["REQUEST", "IDLE", "HIT CHUNKS", "LEASES", "WAITS FOR L2"], &rows);
        if page["total"].as_u64().is_some_and(|total| total > shown as u64) {
            text.push_str(&format!("{shown} of {}; --limit shows more\n", page["total"]));
        }
        text
    })
}

/// Who holds objects.
pub(super) fn locks(daemon: &Daemon, json: bool) -> Result<(), CtlError> {
    let page = daemon.get("/lmcached/locks")?;
    show::document(json, &page, |page| {
        let leases = rows(&page["leases"], |lease| {
            vec![
                name(&lease["request_id"]),
                if lease["connected"] == true { "connected".into() } else { "gone".into() },
                name(&lease["objects"]),
                seconds(&lease["age_seconds"]),
                name(&lease["model"]),
            ]
        });
        let pins = rows(&page["pins"], |pin| {
            vec![
                name(&pin["instance"]),
                name(&pin["direction"]),
                name(&pin["request_id"]),
                name(&pin["pid"]),
                name(&pin["objects"]),
                bytes(&pin["bytes"]),
                seconds(&pin["age_seconds"]),
                if pin["quarantined"] == true { "overdue".into() } else { String::new() },
            ]
        });
        let mut text = format!("Leases of lookups: {} objects\n", page["leases_total"]);
        text.push_str(&table(&["REQUEST", "CLIENT", "OBJECTS", "AGE", "MODEL"], &leases));
        text.push_str(&format!("\nPins of transfers: {} objects\n", page["pins_total"]));
        let head = ["WORKER", "DIRECTION", "REQUEST", "PID", "OBJECTS", "BYTES", "AGE", ""];
        text.push_str(&table(&head, &pins));
        let adopted = rows(&page["pins_of_earlier_workers"], |pin| {
            vec![name(&pin["instance"]), name(&pin["pid"]), name(&pin["objects"])]
        });
        if !adopted.is_empty() {
            text.push_str("\nPins of workers that an earlier daemon served\n");
            text.push_str(&table(&["WORKER", "PID", "OBJECTS"], &adopted));
        }
        text
    })
}
