//! Quotas through the real daemon: who loses what, what the routes say, and what outlives the daemon.

use std::process::Command;

use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, await_lookup, commit_store, key, prepare_store, prompt};
use ipc_tests::{eventually, http};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;
use serde_json::{Value, json};

/// Bytes of an object of [`Model::small`].
const OBJECT: f64 = (256 << 10) as f64;
const GB: f64 = (1u64 << 30) as f64;

/// GB that `objects` take.
fn gb(objects: u32) -> f64 {
    f64::from(objects) * OBJECT / GB
}

/// A worker with its connection.
struct Worker {
    client: Connection,
    pool: Pool,
    model: Model,
}

impl Worker {
    async fn start(daemon: &Daemon) -> Worker {
        let (mut client, model) = (daemon.connect().await, Model::small("m"));
        client.call(&model.registration(7)).await.expect("register");
        Worker { client, pool: Pool::open(&daemon.pool_path()), model }
    }

    /// Stores a prompt under a salt; the chunks written, or `None` if the daemon gives no slots.
    async fn store(&mut self, salt: &str, tokens: &[u32]) -> Option<usize> {
        let frame = self.model.key("store", tokens).salt(salt).frame(Some(0), 0, tokens.len() as u64);
        let context = prepare_store(&mut self.client, &frame, 7).await?;
        context.slots.iter().for_each(|slot| self.pool.fill(slot, 1));
        if !context.slots.is_empty() {
            assert!(commit_store(&mut self.client, &frame, 7).await, "commit");
        }
        Some(context.slots.len())
    }

    /// Chunks of a prompt that are there.
    async fn hits(&mut self, salt: &str, tokens: &[u32]) -> u64 {
        let frame = self.model.key("look", tokens).salt(salt).readers(1).frame(None, 0, tokens.len() as u64);
        self.client.call(&Request::Lookup { key: key(&frame), tp_size: 1 }).await.expect("lookup");
        let hits = await_lookup(&mut self.client, "look").await;
        self.client.call(&Request::EndSession { request_id: "look" }).await.expect("end");
        hits
    }
}

fn parsed(answer: Option<(u16, String)>) -> (u16, Value) {
    let (status, body) = answer.expect("an answer");
    (status, serde_json::from_str(&body).expect("JSON"))
}

async fn set(daemon: &Daemon, salt: &str, limit_gb: f64) -> (u16, Value) {
    let body = json!({"limit_gb": limit_gb}).to_string();
    parsed(http::put(daemon.http_port(), &format!("/quota/{salt}"), &body).await)
}

async fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, body) = parsed(http::get(daemon.http_port(), path).await);
    assert_eq!(status, 200);
    body
}

#[tokio::test]
async fn a_salt_over_its_quota_loses_its_own_objects_only() {
    for policy in ["LRU", "ARC", "IsolatedLRU"] {
        let daemon = Daemon::start(&[&format!("--eviction-policy={policy}")]).await;
        let mut worker = Worker::start(&daemon).await;
        let (long, short) = (prompt(1, 4), prompt(2, 2));
        assert_eq!(worker.store("", &long).await, Some(4));
        assert_eq!(worker.store("other", &long).await, Some(4));
        let answer = set(&daemon, "tenant%201", gb(4)).await;
        assert_eq!(answer, (200, json!({"cache_salt": "tenant 1", "limit_gb": gb(4), "status": "ok"})));
        assert_eq!(worker.store("tenant 1", &long).await, Some(4));
        assert_eq!(worker.store("tenant 1", &short).await, Some(2));
        // Its older prompt has lost its tail, nobody else anything.
        assert_eq!(worker.hits("tenant 1", &long).await, 2);
        assert_eq!(worker.hits("tenant 1", &short).await, 2);
        for salt in ["", "other"] {
            assert_eq!(worker.hits(salt, &long).await, 4);
        }
        let row =
            json!({"cache_salt": "tenant 1", "limit_gb": gb(4), "current_usage_gb": gb(4), "exists": true});
        assert_eq!(get(&daemon, "/quota/tenant%201").await, row);
        // More than the quota at once is refused, counted, and costs nobody anything.
        assert_eq!(worker.store("tenant 1", &prompt(3, 5)).await, None);
        assert_eq!(daemon.metric("lmcached_requests_total", &["prepare_store", "over_quota"]).await, 1.0);
        assert_eq!(worker.hits("tenant 1", &short).await, 2);
        let tenant = r#"cache_salt="tenant 1""#;
        assert_eq!(daemon.metric("lmcached_quota_limit_bytes", &[tenant]).await, 4.0 * OBJECT);
        assert_eq!(
            daemon.metric("lmcached_quota_usage_bytes", &[tenant, r#"tier="l1""#]).await,
            4.0 * OBJECT
        );
        // A smaller quota is kept at once.
        assert_eq!(set(&daemon, "tenant%201", gb(1)).await.0, 200);
        assert_eq!(get(&daemon, "/quota/tenant%201").await["current_usage_gb"], json!(gb(1)));
        assert_eq!(set(&daemon, "_default", gb(3)).await.1["cache_salt"], "_default");
        let users = json!({"users": {
            "_default": {"limit_gb": gb(3), "current_usage_gb": gb(3)},
            "tenant 1": {"limit_gb": gb(1), "current_usage_gb": gb(1)},
        }});
        assert_eq!(get(&daemon, "/quota").await, users);
        assert_eq!(worker.hits("other", &long).await, 4);
        // Log lines have a thread of their own.
        eventually("there is a line for each change", async || {
            let lines = daemon.log().into_iter().filter(|line| line.contains("quota set over HTTP")).count();
            (lines == 3).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn answers_are_those_of_0_5_6() {
    let daemon = Daemon::start(&[]).await;
    let port = daemon.http_port();
    for (body, error) in [
        ("", "invalid JSON body"),
        ("[]", "body must be {'limit_gb': <float>}"),
        (r#"{"limit_gb": "x"}"#, "limit_gb must be numeric"),
        (r#"{"limit_gb": "inf"}"#, "limit_gb must be finite"),
        (r#"{"limit_gb": -1}"#, "limit_gb must be non-negative"),
    ] {
        assert_eq!(parsed(http::put(port, "/quota/a", body).await), (400, json!({"error": error})), "{body}");
    }
    let absent = json!({"cache_salt": "a", "limit_gb": 0.0, "current_usage_gb": 0.0, "exists": false});
    assert_eq!(get(&daemon, "/quota/a").await, absent);
    assert_eq!(get(&daemon, "/quota").await, json!({"users": {}}));
    let delete = async || parsed(http::delete(port, "/quota/a").await);
    assert_eq!(delete().await, (200, json!({"cache_salt": "a", "status": "not_found"})));
    // A quota of 0 is there, and says so.
    assert_eq!(
        set(&daemon, "a", 0.0).await,
        (200, json!({"cache_salt": "a", "limit_gb": 0.0, "status": "ok"}))
    );
    assert_eq!(get(&daemon, "/quota/a").await["exists"], true);
    assert_eq!(delete().await, (200, json!({"cache_salt": "a", "status": "removed"})));
    // What no request can have.
    for path in ["/quota/a%40b", "/quota/a%2fb", &format!("/quota/{}", "x".repeat(129))] {
        let (status, body) = parsed(http::put(port, path, r#"{"limit_gb": 1}"#).await);
        assert!(status == 400 && body["error"].is_string(), "{path}: {status} {body}");
    }
    let not_text = parsed(http::put(port, "/quota/%ff", r#"{"limit_gb": 1}"#).await);
    assert_eq!(not_text, (400, json!({"detail": "the path is not UTF-8"})));
}

#[tokio::test]
async fn quotas_outlive_the_daemon_and_a_damaged_file_does_not_stop_it() {
    let mut daemon = Daemon::start(&["--state-dir={dir}/state"]).await;
    let mut worker = Worker::start(&daemon).await;
    let tokens = prompt(1, 6);
    assert_eq!(worker.store("a", &tokens).await, Some(6));
    assert_eq!(worker.store("b", &tokens).await, Some(6));
    set(&daemon, "a", gb(6)).await;
    set(&daemon, "gone", 1.0).await;
    http::delete(daemon.http_port(), "/quota/gone").await.expect("deleted");
    daemon.crash_and_restart().await;
    let users = json!({"users": {"a": {"limit_gb": gb(6), "current_usage_gb": gb(6)}}});
    assert_eq!(get(&daemon, "/quota").await, users);
    let mut worker = Worker::start(&daemon).await;
    // The order of use is not kept: a lookup makes one.
    assert_eq!(worker.hits("a", &tokens).await, 6);
    assert_eq!(worker.store("a", &prompt(2, 2)).await, Some(2));
    assert_eq!((worker.hits("a", &tokens).await, worker.hits("b", &tokens).await), (4, 6));

    let file = daemon.dir().join("state/quotas.json");
    std::fs::write(&file, "{\"version\": 1, \"quo").expect("written");
    daemon.crash_and_restart().await;
    assert_eq!(get(&daemon, "/quota").await, json!({"users": {}}));
    daemon.says("the quotas cannot be read").await;
    let kept = std::fs::read_to_string(file.with_extension("json.damaged")).expect("kept aside");
    assert_eq!(kept, "{\"version\": 1, \"quo");
    assert_eq!(set(&daemon, "b", gb(2)).await.0, 200);
    daemon.crash_and_restart().await;
    let users = json!({"users": {"b": {"limit_gb": gb(2), "current_usage_gb": gb(2)}}});
    assert_eq!(get(&daemon, "/quota").await, users);

    // A directory that cannot be written: no change, and a line that says why.
    std::fs::create_dir(file.with_extension("json.new")).expect("made");
    let (status, body) = set(&daemon, "b", gb(3)).await;
    assert!(status == 500 && body["error"].as_str().expect("a line").contains("--state-dir"), "{body}");
    assert_eq!(get(&daemon, "/quota").await, users);
}

#[tokio::test]
async fn a_tier_with_isolated_lru_keeps_salts_within_their_quotas() {
    let tier =
        r#"--l2-adapter={"type":"fs","base_path":"{dir}/l2","eviction":{"eviction_policy":"IsolatedLRU"}}"#;
    let daemon = Daemon::start(&[tier]).await;
    let mut worker = Worker::start(&daemon).await;
    let tier = daemon.dir().join("l2");
    // Objects of a salt in the tier; the salt is the last part of the name.
    let files = |salt: &str| {
        let end = format!("@{salt}.data");
        let names = std::fs::read_dir(&tier).expect("the tier").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().ends_with(&end)).count()
    };
    let become_ = async |salt: &str, count: usize| {
        eventually("the tier has them", async || (files(salt) == count).then_some(())).await;
    };
    assert_eq!(worker.store("a", &prompt(1, 10)).await, Some(10));
    assert_eq!(worker.store("b", &prompt(1, 5)).await, Some(5));
    let counted = async || {
        let status = daemon.status().await;
        (status["storage_manager"]["l2_adapters"][0]["usage"]["objects"] == 15).then_some(())
    };
    eventually("the tier has counted them", counted).await;
    assert_eq!((files("a"), files("b")), (10, 5));
    // b has no quota from here on, and a is above 0.8 of its own: below the mark of 6.4 it ends.
    set(&daemon, "a", gb(8)).await;
    become_("a", 6).await;
    become_("b", 0).await;
    assert_eq!(get(&daemon, "/quota/b").await["current_usage_gb"], json!(gb(5)), "L1 has them all the same");
    assert_eq!(get(&daemon, "/quota/a").await["current_usage_gb"], json!(gb(8)), "L1 has 8");
    assert_eq!(
        daemon.metric("lmcached_quota_usage_bytes", &[r#"cache_salt="a""#, "fs#1"]).await,
        6.0 * OBJECT
    );
    daemon.says("IsolatedLRU without quotas").await;
    daemon.says("has no quota, or one of 0").await;
}

/// The peer's own command against this daemon. `LMCACHED_PEER_PYTHON` names a Python that has `lmcache`; without it the test
/// says so and returns.
#[tokio::test]
async fn the_peers_command_line_sets_and_reads_quotas() {
    let Ok(python) = std::env::var("LMCACHED_PEER_PYTHON") else {
        eprintln!("SKIPPED: LMCACHED_PEER_PYTHON names no Python with lmcache");
        return;
    };
    let daemon = Daemon::start(&["--state-dir={dir}/state"]).await;
    let mut worker = Worker::start(&daemon).await;
    assert_eq!(worker.store("tenant-1", &prompt(1, 4)).await, Some(4));
    let url = format!("http://127.0.0.1:{}", daemon.http_port());
    let quota = |words: &[&str]| {
        let run = "import sys; from lmcache.cli.main import main; sys.exit(main())";
        let output = Command::new(&python)
            .args(["-B", "-c", run, "quota"])
            .args(words)
            .args(["--url", &url])
            .env("LMCACHE_LOG_LEVEL", "WARNING")
            .output()
            .expect("Python runs");
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    };
    let says = |words: &[&str], wanted: &[&str]| {
        let (success, text) = quota(words);
        assert!(success && wanted.iter().all(|part| text.contains(part)), "{words:?}: {text}");
    };
    says(&["list"], &["No quotas configured"]);
    says(&["set", "tenant-1", "--limit-gb", "2.5"], &["tenant-1", "2.5", "ok"]);
    says(&["set", "_default", "--limit-gb", "1"], &["_default", "ok"]);
    // Four objects of 256 KiB.
    says(&["get", "tenant-1"], &["2.5", "0.00", "True"]);
    says(&["list"], &["Salt: tenant-1", "Salt: _default"]);
    says(&["delete", "tenant-1"], &["removed"]);
    says(&["delete", "tenant-1"], &["not_found"]);
    let (success, text) = quota(&["set", "tenant-1", "--limit-gb", "-1"]);
    assert!(!success && text.contains("limit_gb must be non-negative"), "{text}");
}
