//! `GET /status`: what the engine says, with the peer's keys for what does not exist here.

use serde_json::{Value, json};

use super::Admin;

/// The page.
pub(super) fn page(admin: &Admin) -> Value {
    let mut status = admin.engine.status();
    status["hash_algorithm"] = json!(admin.hash_algorithm);
    status["connections"] = json!(admin.server.connections());
    let storage = &mut status["storage_manager"];
    for controller in ["l1_eviction_controller", "eviction_controller"] {
        storage[controller]["eviction_policy"] = json!(admin.eviction_policy);
    }
    storage["l1_eviction_controllers"]["_default"]["eviction_policy"] = json!(admin.eviction_policy);
    fill(&mut status, absent());
    status
}

/// The peer's keys for features that are not here, with the values of a feature that is switched off: no thread runs, and
/// nothing is wrong with that. Readers of the peer's page find every key that they know.
fn absent() -> Value {
    let adapters = json!({"num_l2_adapters": 0, "num_active_adapters": 0, "num_draining_adapters": 0});
    let with = |mut controller: Value| {
        controller["is_healthy"] = json!(true);
        controller["thread_alive"] = json!(false);
        controller
    };
    let on_adapters = |mut controller: Value| {
        fill(&mut controller, adapters.clone());
        with(controller)
    };
    let store = on_adapters(json!({"pending_keys_count": 0, "in_flight_task_count": 0}));
    let prefetch = on_adapters(json!({
        "max_in_flight": 0,
        "submission_queue_size": 0,
        "pending_queue_size": 0,
        "in_flight_request_count": 0,
        "lookup_phase_count": 0,
        "load_phase_count": 0,
        "completed_results_count": 0,
    }));
    json!({
        "storage_manager": {
            "store_controllers": {"_default": store.clone()},
            "store_controller": store,
            "prefetch_controller": prefetch,
            "l2_eviction_controller": with(json!({"adapters": []})),
            "l2_adapters": [],
            "num_l2_adapters": 0,
        },
        "p2p_enabled": false,
        "p2p_state": "unregistered",
        "p2p_peer_count": 0,
        "p2p_peers": [],
        // Here a store is logged in one step with its tokens, and no queue lies between the cache and the log: neither can
        // happen.
        "kv_events": {"lost_markers": 0, "unbound_stores": 0},
    })
}

/// Adds what `page` lacks; what it has stays.
fn fill(page: &mut Value, more: Value) {
    let (Value::Object(page), Value::Object(more)) = (page, more) else { return };
    for (key, value) in more {
        match page.get_mut(&key) {
            Some(present) => fill(present, value),
            None => drop(page.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays() {
        let mut page = json!({"a": {"x": 1}, "b": [1]});
        fill(&mut page, json!({"a": {"x": 2, "y": 2}, "b": [], "c": null}));
        assert_eq!(page, json!({"a": {"x": 1, "y": 2}, "b": [1], "c": null}));
    }
}
