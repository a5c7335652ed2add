//! The routes of the admin API: what they show and what they do, with workers that store and hold.

use ipc_tests::daemon::Daemon;
use ipc_tests::eventually;
use ipc_tests::http::{get, post, request, request_with};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_store, lookup, prepare_store, prompt, store};
use lmcache_proto::wire::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

async fn page(daemon: &Daemon, path: &str) -> Value {
    let (status, body) = get(daemon.http_port(), path).await.expect("answer");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

async fn sent(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, body) = request(daemon.http_port(), method, path, &body.to_string()).await.expect("answer");
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

async fn audit(daemon: &Daemon, what: &str) {
    daemon.says(&format!("lmcached::audit: {what}")).await;
}

/// Keys of the peer's page that must be in ours, for features that are here.
fn has_keys(ours: &Value, peers: &Value, path: &str, missing: &mut Vec<String>) {
    if let (Value::Object(ours), Value::Object(peers)) = (ours, peers) {
        for (key, value) in peers {
            match ours.get(key) {
                Some(present) => has_keys(present, value, &format!("{path}.{key}"), missing),
                None => missing.push(format!("{path}.{key}")),
            }
        }
    }
}

#[tokio::test]
async fn the_peers_small_pages() {
    let daemon = Daemon::start(&["--eviction-policy=ARC", "--state-dir={dir}"]).await;
    assert_eq!(page(&daemon, "/lmc_version").await, "0.5.6");
    assert!(page(&daemon, "/version").await.as_str().expect("text").starts_with("0.5.6-lmcached"));
    assert!(page(&daemon, "/commit_id").await.is_string());
    assert_eq!(page(&daemon, "/config/adapters").await, json!({"adapters": []}));
    let config = page(&daemon, "/config").await;
    assert_eq!(config["storage_manager"]["eviction_config"]["eviction_policy"], "ARC");
    assert_eq!(config["mp"]["port"], daemon.port());
    assert_eq!(config["http"]["http_port"], daemon.http_port());
    assert_eq!(page(&daemon, "/livez").await["status"], "alive");
    assert_eq!(page(&daemon, "/readyz").await["status"], "ready");
    let (_, threads) = get(daemon.http_port(), "/threads").await.expect("threads");
    for text in ["Thread: lmcached-events", "Thread: lmcached-io", "=== Thread Summary ===", "state=sleeping"]
    {
        assert!(threads.contains(text), "{text} in {threads}");
    }
    let (_, one) = get(daemon.http_port(), "/threads?name=EVENTS").await.expect("threads");
    assert!(one.contains("Total threads: 1"), "{one}");
    eventually("the evictor has looked", async || {
        let health = page(&daemon, "/periodic-threads").await;
        (health["summary"]["active_count"] == health["summary"]["total_count"]).then_some(())
    })
    .await;
    assert_eq!(page(&daemon, "/periodic-threads-health").await["healthy"], true);
    assert_eq!(page(&daemon, "/periodic-threads/eviction").await["level"], "critical");
    assert_eq!(get(daemon.http_port(), "/periodic-threads/none").await.expect("answer").0, 404);
    assert_eq!(
        get(daemon.http_port(), "/env").await.expect("answer").0,
        404,
        "no page prints the environment"
    );
    let scripts = post(daemon.http_port(), "/run_script", "{}").await.expect("answer");
    assert_eq!(scripts.0, 404, "no route runs code");
    let wrong = request(daemon.http_port(), "PUT", "/status", "").await.expect("answer");
    assert_eq!(wrong.0, 405);
}

#[tokio::test]
async fn the_configuration_has_the_peers_keys() {
    let daemon = Daemon::start(&[]).await;
    let ours = page(&daemon, "/config").await;
    let peers: Value =
        serde_json::from_str(include_str!("vectors/golden_config_056.json")).expect("vectors parse");
    let mut missing = Vec::new();
    has_keys(&ours, &peers, "", &mut missing);
    // Features that are not here: their flags are refused, or have no meaning.
    let absent = [
        "max_workers",
        "max_gpu_workers",
        "max_cpu_workers",
        "grpc_server_workers",
        "enable_segmented_prefix",
        "enable_dedup_content",
        "enable_blend_reorder",
        "runtime_plugin_config",
        "p2p_config",
        "script_allowed_imports",
        "enable",
        "read_ttl_seconds",
        "init_size_in_bytes",
        "extra_logging_enabled",
        "extra_logging_interval",
        "periodic_notifier_interval_ms",
        "gc_monitor",
        "rotation_interval_sec",
        "rotation_max_size",
        "max_files",
        "advertise_ip",
        "heartbeat_interval",
        "event_reporting",
        "event_flush_interval",
        "event_sink_config",
        "blend_timeout",
        "blend_match_concurrency",
    ];
    missing.retain(|path| !absent.iter().any(|key| path.ends_with(&format!(".{key}"))));
    assert_eq!(missing, Vec::<String>::new());
}

#[tokio::test]
async fn the_log_level_changes_while_the_daemon_runs() {
    let daemon = Daemon::start_in(&[("LMCACHE_LOG_LEVEL", "INFO")], &[]).await;
    let ask =
        async |query: &str| get(daemon.http_port(), &format!("/loglevel{query}")).await.expect("answer");
    assert!(ask("").await.1.contains("=== Loggers and Levels ===\nlmcached: INFO"));
    let debug =
        |daemon: &Daemon| daemon.log().iter().filter(|line| line.contains("client connected")).count();
    // Who has an answer has passed the place at which it would be logged.
    daemon.connect().await.call(&Request::Ping { instance_id: None }).await.expect("ping");
    assert_eq!(debug(&daemon), 0);
    let (status, text) = ask("?logger_name=lmcached&level=debug").await;
    assert_eq!((status, text.as_str()), (200, "Set lmcached level to DEBUG (including all handlers)"));
    drop(daemon.connect().await);
    eventually("the connection is logged", async || (debug(&daemon) > 0).then_some(())).await;
    assert_eq!(ask("?logger_name=lmcached&level=WARNING").await.0, 200);
    assert_eq!(ask("?logger_name=lmcached::engine&level=DEBUG").await.0, 200);
    assert_eq!(ask("?logger_name=lmcached::engine").await.1, "lmcached::engine: DEBUG");
    for wrong in [
        "?logger_name=lmcached&level=LOUD",
        "?logger_name=a%20b&level=INFO",
        "?logger_name=x=trace&level=INFO",
    ] {
        assert_eq!(ask(wrong).await.0, 400, "{wrong}");
    }
    audit(&daemon, "log level set over HTTP").await;
}

#[tokio::test]
async fn who_is_here_and_who_holds_what() {
    let daemon = Daemon::start(&[]).await;
    let (model, pool) = (Model::small("page/model"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    let tokens = prompt(1, 2);
    store(&mut client, &pool, &model, "first", &tokens, 7, 0).await;
    assert_eq!(lookup(&mut client, &model, "holder", &tokens, 1).await, 2);
    let other = prompt(2, 3);
    let frame = model.key("writer", &other).frame(Some(0), 0, other.len() as u64);
    prepare_store(&mut client, &frame, 7).await.expect("slots");

    let workers = page(&daemon, "/lmcached/workers").await;
    let worker = &workers["workers"][0];
    assert_eq!(
        (&workers["total"], &worker["instance"], &worker["model"]),
        (&json!(1), &json!(7), &json!("page/model"))
    );
    assert_eq!((&worker["mode"], &worker["transfers"]), (&json!("engine_driven"), &json!(1)));

    let sessions = page(&daemon, "/lmcached/sessions?limit=10").await;
    let ids: Vec<&str> = sessions["sessions"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|s| s["request_id"].as_str())
        .collect();
    assert!(ids.contains(&"holder"), "{sessions}");

    let locks = page(&daemon, "/lmcached/locks").await;
    assert_eq!((&locks["leases_total"], &locks["pins_total"]), (&json!(2), &json!(3)));
    let lease = &locks["leases"][0];
    assert_eq!(
        (&lease["request_id"], &lease["objects"], &lease["connected"]),
        (&json!("holder"), &json!(2), &json!(true))
    );
    let pin = &locks["pins"][0];
    assert_eq!(
        (&pin["instance"], &pin["direction"], &pin["request_id"]),
        (&json!(7), &json!("store"), &json!("writer"))
    );
    assert_eq!(pin["bytes"], 3 << 18);
    assert!(lease["age_seconds"].as_f64().expect("a number") >= 0.0);

    let queue = page(&daemon, "/lmcached/queue").await;
    assert_eq!((&queue["wire"]["connections"], &queue["event_bus"]["capacity"]), (&json!(1), &json!(10_000)));

    assert!(commit_store(&mut client, &frame, 7).await);
    client.call(&Request::EndSession { request_id: "holder" }).await.expect("end");
    let locks = page(&daemon, "/lmcached/locks").await;
    assert_eq!((&locks["leases_total"], &locks["pins_total"]), (&json!(0), &json!(0)));
    assert_eq!(get(daemon.http_port(), "/lmcached/sessions?limit=0").await.expect("answer").0, 400);
}

/// Every object of a tier, page by page.
async fn objects(daemon: &Daemon, query: &str) -> Vec<Value> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = page(daemon, &format!("/cache/objects?page_size=2{query}{token}")).await;
        all.extend(page["entries"].as_array().expect("entries").clone());
        match page["next_page_token"].as_str() {
            Some(next) => token = format!("&page_token={next}"),
            None => return all,
        }
    }
}

#[tokio::test]
async fn objects_are_listed_and_deleted_in_both_tiers() {
    let fs = r#"--l2-adapter={"type":"fs","base_path":"{dir}/l2"}"#;
    let daemon = Daemon::start(&[fs]).await;
    let (model, pool) = (Model::small("m/1"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    let tokens = prompt(3, 5);
    assert_eq!(store(&mut client, &pool, &model, "s", &tokens, 1, 0).await, 5);
    let in_l1 = objects(&daemon, "&tier=l1").await;
    assert_eq!(in_l1.len(), 5);
    let in_l2 = eventually("L2 has all", async || {
        let all = objects(&daemon, "").await;
        (all.len() == 5).then_some(all)
    })
    .await;
    let keys = |entries: &[Value]| {
        let mut keys: Vec<Value> = entries.iter().map(|entry| entry["key"].clone()).collect();
        keys.sort_by_key(ToString::to_string);
        keys
    };
    assert_eq!(keys(&in_l1), keys(&in_l2), "the same names in both");
    assert!(in_l1.iter().all(|entry| entry["size_bytes"] == 1 << 18 && entry["state"] == "committed"));
    assert_eq!(objects(&daemon, "&tier=l1&model_name=other").await.len(), 0);
    let hash = in_l1[0]["key"]["chunk_hash_hex"].as_str().expect("hex").to_owned();
    assert_eq!(objects(&daemon, &format!("&tier=l1&chunk_hash={}", &hash[..12])).await.len(), 1);

    // A held object stays, unless forced.
    assert_eq!(lookup(&mut client, &model, "holder", &tokens, 1).await, 5);
    let body = |tier: &str, force: bool| json!({"keys": [in_l1[0]["key"]], "tier": tier, "force": force});
    let (status, answer) = sent(&daemon, "DELETE", "/cache/objects", &body("l1", false)).await;
    assert_eq!((status, &answer), (200, &json!({"deleted": 0, "skipped": 1, "ok": true})));
    let (_, answer) = sent(&daemon, "DELETE", "/cache/objects", &body("all", true)).await;
    assert_eq!(answer, json!({"deleted": 2, "skipped": 0, "ok": true}));
    assert_eq!(objects(&daemon, "&adapter=fs").await.len(), 4);
    let committed = objects(&daemon, "&tier=l1").await.iter().filter(|e| e["detached"] == false).count();
    assert_eq!(committed, 4);
    audit(&daemon, "objects deleted over HTTP").await;

    let short = json!({"keys": [{"chunk_hash_hex": "ab", "model_name": "m", "kv_rank": 1}]});
    assert_eq!(sent(&daemon, "DELETE", "/cache/objects", &short).await.0, 400);
    assert_eq!(get(daemon.http_port(), "/cache/objects?adapter=none").await.expect("answer").0, 404);
    for query in ["tier=l3", "page_size=0", "page_size=5001", "tier=l1&page_token=x"] {
        assert_eq!(
            get(daemon.http_port(), &format!("/cache/objects?{query}")).await.expect("answer").0,
            400,
            "{query}"
        );
    }
}

#[tokio::test]
async fn without_adapters_l2_has_no_objects_to_list() {
    let daemon = Daemon::start(&[]).await;
    let (status, body) = get(daemon.http_port(), "/cache/objects").await.expect("answer");
    assert_eq!((status, body.contains("no L2 adapters configured")), (503, true));
}

#[tokio::test]
async fn a_prompt_is_warmed_from_l2_and_stays() {
    let fs = r#"--l2-adapter={"type":"fs","base_path":"{dir}/l2"}"#;
    let daemon = Daemon::start(&[fs]).await;
    let (model, pool) = (Model::small("warm"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    let tokens = prompt(4, 3);
    store(&mut client, &pool, &model, "s", &tokens, 1, 0).await;
    eventually("L2 has all", async || (objects(&daemon, "").await.len() == 3).then_some(())).await;
    daemon.clear().await;
    assert_eq!(objects(&daemon, "&tier=l1").await.len(), 0);
    let body =
        |model: &str, tokens: &[u32]| json!({"model_name": model, "world_size": 1, "token_ids": tokens});
    let (status, begun) = sent(&daemon, "POST", "/cache/prefetches", &body("warm", &tokens)).await;
    assert_eq!((status, &begun["chunks"], &begun["status"]), (202, &json!(3), &json!("submitted")));
    let id = begun["request_id"].as_str().expect("an id");
    let path = format!("/cache/prefetches/{id}");
    let done = eventually("it is done", async || {
        let state = page(&daemon, &path).await;
        (state["status"] == "completed").then_some(state)
    })
    .await;
    assert_eq!((&done["found_keys"], &done["total_keys"]), (&json!(3), &json!(3)));
    assert_eq!(get(daemon.http_port(), &path).await.expect("answer").0, 404, "told once");
    let kept = objects(&daemon, "&tier=l1").await;
    assert_eq!(kept.len(), 3, "they stay, though the default prefetch policy lets a request's objects go");
    assert!(kept.iter().all(|entry| entry["leases"] == 0 && entry["temporary"] == false), "{kept:?}");

    let (status, noop) = sent(&daemon, "POST", "/cache/prefetches", &body("warm", &tokens[..5])).await;
    assert_eq!((status, &noop), (202, &json!({"chunks": 0, "status": "noop"})));
    assert_eq!(sent(&daemon, "POST", "/cache/prefetches", &body("none", &tokens)).await.0, 404);
    assert_eq!(sent(&daemon, "POST", "/cache/prefetches", &json!({"model_name": "m"})).await.0, 400);
}

#[tokio::test]
async fn events_are_streamed_as_they_happen() {
    let daemon = Daemon::start(&[]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.http_port())).await.expect("connect");
    stream
        .write_all(b"GET /lmcached/events?prefix=l1_write HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("send");
    let mut lines = BufReader::new(stream).lines();
    let mut head = String::new();
    let wait = std::time::Duration::from_secs(60);
    loop {
        let line = tokio::time::timeout(wait, lines.next_line())
            .await
            .expect("in time")
            .expect("read")
            .expect("head");
        if line.is_empty() {
            break;
        }
        head.push_str(&line);
    }
    assert!(head.contains("200 OK") && head.contains("text/event-stream"), "{head}");
    eventually("the reader is known", async || {
        (page(&daemon, "/lmcached/queue").await["event_streams"]["open"] == 1).then_some(())
    })
    .await;
    let (model, pool) = (Model::small("m"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    store(&mut client, &pool, &model, "s", &prompt(5, 2), 1, 0).await;
    let mut names = Vec::new();
    while names.len() < 2 {
        let line = tokio::time::timeout(wait, lines.next_line())
            .await
            .expect("in time")
            .expect("read")
            .expect("more");
        let Some(data) = line.strip_prefix("data:") else { continue };
        let event: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(event["fields"]["keys"]["count"], 2, "{event}");
        names.push(event["event"].as_str().expect("a name").to_owned());
    }
    assert_eq!(names, ["l1_write_reserved", "l1_write_finished"]);
    drop(lines);
    eventually("the reader has left", async || {
        // A closed reader is noticed with the next event.
        drop(daemon.connect().await);
        store(&mut client, &pool, &model, "t", &prompt(6, 1), 1, 0).await;
        let streams = page(&daemon, "/lmcached/queue").await["event_streams"].clone();
        (streams["open"] == 0 && streams["cut_off"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn adapters_come_and_go_while_requests_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    std::fs::write(&token, "0123456789abcdef").expect("written");
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o400)).expect("mode");
    let daemon = Daemon::start(&[&format!("--http-token-file={}", token.display())]).await;
    let headers = [("Authorization", "Bearer 0123456789abcdef")];
    let ask = async |method: &str, path: &str, body: &str| {
        let (status, body) =
            request_with(daemon.http_port(), method, path, &headers, body).await.expect("answer");
        (status, serde_json::from_str::<Value>(&body).unwrap_or(Value::Null))
    };
    let (model, pool) = (Model::small("m"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    store(&mut client, &pool, &model, "a", &prompt(7, 1), 1, 0).await;
    let place = dir.path().join("l2");
    let adapter = json!({"type": "fs", "base_path": place, "shared": true}).to_string();
    let (status, added) = ask("POST", "/lmcached/adapters", &adapter).await;
    assert_eq!((status, &added["index"]), (201, &json!(0)), "{added}");
    store(&mut client, &pool, &model, "b", &prompt(8, 2), 1, 0).await;
    let listed = eventually("what came after it is in it", async || {
        let (_, page) = ask("GET", "/cache/objects", "").await;
        (page["entries"].as_array()?.len() == 2).then_some(page)
    })
    .await;
    assert_eq!(listed["shared"], true);
    let (_, rows) = ask("GET", "/config/adapters", "").await;
    assert_eq!(
        (&rows["adapters"][0]["type_name"], &rows["adapters"][0]["primary"]),
        (&json!("fs"), &json!(true))
    );
    let (status, drained) = ask("POST", "/lmcached/adapters/0/drain", "").await;
    assert_eq!((status, &drained["state"]), (200, &json!("draining")));
    let (_, rows) = ask("GET", "/lmcached/adapters", "").await;
    assert_eq!(rows["adapters"][0]["state"], "draining");
    let (status, removed) = ask("DELETE", "/lmcached/adapters/0", "").await;
    assert_eq!((status, &removed["in_flight"]), (200, &json!({"stores": 0, "loads": 0})));
    assert_eq!(ask("GET", "/lmcached/adapters", "").await.1, json!({"adapters": []}));
    assert_eq!(ask("DELETE", "/lmcached/adapters/0", "").await.0, 404);
    assert_eq!(ask("POST", "/lmcached/adapters/x/drain", "").await.0, 404);
    for wrong in
        ["{", "[]", r#"{"type":"p2p"}"#, r#"{"type":"fs"}"#, r#"{"type":"resp","host":"hunter2","port":0}"#]
    {
        let (status, answer) = ask("POST", "/lmcached/adapters", wrong).await;
        assert_eq!(status, 400, "{wrong}");
        assert!(!answer.to_string().contains("hunter2"));
    }
    for what in ["L2 adapter added", "L2 adapter drains", "L2 adapter removed"] {
        audit(&daemon, what).await;
    }
}

#[tokio::test]
async fn an_adapter_is_not_added_without_a_token() {
    let daemon = Daemon::start(&[]).await;
    let (status, answer) = sent(&daemon, "POST", "/lmcached/adapters", &json!({"type": "mock"})).await;
    assert!(
        status == 403 && answer["detail"].as_str().expect("text").contains("--http-token-file"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_drain_stores_nothing_new_waits_for_leases_and_ends() {
    let fs = r#"--l2-adapter={"type":"fs","base_path":"{dir}/l2"}"#;
    let mut daemon = Daemon::start(&[fs]).await;
    let (model, pool) = (Model::small("m"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    let tokens = prompt(9, 4);
    store(&mut client, &pool, &model, "s", &tokens, 1, 0).await;
    assert_eq!(lookup(&mut client, &model, "holder", &tokens, 1).await, 4);
    assert_eq!(sent(&daemon, "POST", "/lmcached/drain", &json!({"timeout_seconds": -1})).await.0, 400);
    let (status, answer) = sent(&daemon, "POST", "/lmcached/drain", &json!({"timeout_seconds": 600})).await;
    assert_eq!((status, &answer["status"]), (202, &json!("draining")));
    for path in ["/healthcheck", "/readyz"] {
        let (status, body) = get(daemon.http_port(), path).await.expect("answer");
        assert!(status == 503 && body.contains("draining"), "{path}: {status} {body}");
    }
    assert_eq!(page(&daemon, "/livez").await["status"], "alive");
    let late = prompt(10, 1);
    let frame = model.key("late", &late).frame(Some(0), 0, late.len() as u64);
    assert!(prepare_store(&mut client, &frame, 1).await.is_none(), "nothing new is stored");
    assert_eq!(daemon.metric("lmcached_requests_total", &["outcome=\"draining\""]).await, 1.0);
    let stored = || std::fs::read_dir(daemon.dir().join("l2")).map_or(0, Iterator::count);
    eventually("what was stored is in L2", async || (stored() >= 4).then_some(())).await;
    assert!(daemon.alive(), "the lease is waited for");
    client.call(&Request::EndSession { request_id: "holder" }).await.expect("end");
    assert_eq!(daemon.ends().await, Some(0));
    audit(&daemon, "drain ordered over HTTP").await;
    daemon.says("nobody holds anything any more").await;
}

#[tokio::test]
async fn a_signal_ends_a_drain_that_waits() {
    let mut daemon = Daemon::start(&[]).await;
    let (model, pool) = (Model::small("m"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    let tokens = prompt(11, 1);
    store(&mut client, &pool, &model, "s", &tokens, 1, 0).await;
    assert_eq!(lookup(&mut client, &model, "holder", &tokens, 1).await, 1);
    let order = json!({"timeout_seconds": 3600});
    assert_eq!(sent(&daemon, "POST", "/lmcached/drain", &order).await.0, 202);
    assert_eq!(daemon.terminate(), Some(0));
}

#[tokio::test]
async fn the_document_is_served() {
    let daemon = Daemon::start(&[]).await;
    let document = page(&daemon, "/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    // Every GET without a place in its path answers; what it answers with is its own test's.
    for (path, item) in document["paths"].as_object().expect("paths") {
        if item.get("get").is_some() && !path.contains('{') && path != "/lmcached/events" {
            let (status, _) = get(daemon.http_port(), path).await.expect("answer");
            assert!(item["get"]["responses"].get(status.to_string()).is_some(), "{path} answers {status}");
        }
    }
}
