//! Every bound on what comes from outside, reached: what is over it is refused with an answer, its metric says so, and what is
//! below it is served as before. (Rate, answers that are not taken and connections: `flood.rs`. Lengths and counts of a single
//! request: `hostile.rs`. Records of a lane: `worker_death.rs`.)

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, commit_store, key, lookup, prepare_retrieve, prepare_store, prompt, start_lookup, store,
};
use ipc_tests::{eventually, http};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn limited(daemon: &Daemon, operation: &str) -> f64 {
    let operation = format!("operation=\"{operation}\"");
    daemon.metric("lmcached_requests_total", &[&operation, "outcome=\"limit\""]).await
}

async fn end(client: &mut Connection, request: &str) {
    client.call(&Request::EndSession { request_id: request }).await.expect("end");
}

/// A daemon with a worker and a prompt of `chunks` that is stored, under one request that has ended.
async fn served(flags: &[&str], chunks: usize) -> (Daemon, Connection, Model, Vec<u32>) {
    let daemon = Daemon::start(flags).await;
    let mut client = daemon.connect().await;
    let (model, tokens) = (Model::small("m"), prompt(1, chunks));
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    assert_eq!(store(&mut client, &pool, &model, "stored", &tokens, 7, 1).await, chunks);
    end(&mut client, "stored").await;
    (daemon, client, model, tokens)
}

#[tokio::test]
async fn a_message_has_at_most_so_many_bytes() {
    let (daemon, mut client, model, tokens) = served(&["--max-message-bytes=1048576"], 2).await;
    let mut other = daemon.connect().await;
    let long: Vec<u32> = (100_000..500_000).collect();
    let frame = model.key("long", &long).frame(None, 0, long.len() as u64);
    other
        .call(&Request::Lookup { key: key(&frame), tp_size: 1 })
        .await
        .expect_err("the connection is closed");
    daemon.says("--max-message-bytes").await;
    assert_eq!(daemon.metric("lmcached_peers_refused_total", &["oversized_message"]).await, 1.0);
    assert_eq!(lookup(&mut client, &model, "r", &tokens, 1).await, 2);
}

#[tokio::test]
async fn so_many_requests_are_remembered() {
    let (daemon, mut client, model, tokens) = served(&["--max-sessions=2"], 2).await;
    for (request, found) in [("a", 2), ("b", 2), ("c", 0)] {
        assert_eq!(lookup(&mut client, &model, request, &tokens, 1).await, found, "{request}");
    }
    assert_eq!((limited(&daemon, "lookup").await, daemon.metric("lmcached_sessions", &[]).await), (1.0, 2.0));
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 4.0, "the refused one holds nothing");
    daemon.says("--max-sessions").await;
    end(&mut client, "a").await;
    assert_eq!(lookup(&mut client, &model, "c", &tokens, 1).await, 2);
}

#[tokio::test]
async fn requests_take_so_many_bytes_together() {
    let (daemon, mut client, model, tokens) = served(&["--max-session-bytes=8192"], 200).await;
    assert_eq!(lookup(&mut client, &model, "long", &tokens, 1).await, 0);
    assert_eq!(limited(&daemon, "lookup").await, 1.0);
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0, "the refused one holds nothing");
    daemon.says("--max-session-bytes").await;
    end(&mut client, "long").await;
    assert_eq!(lookup(&mut client, &model, "short", &tokens[..512], 1).await, 2);
    let bytes = daemon.metric("lmcached_session_bytes", &[]).await;
    assert!((1.0..=8192.0).contains(&bytes), "{bytes}");
    end(&mut client, "short").await;
    assert_eq!(daemon.metric("lmcached_session_bytes", &[]).await, 0.0);
}

#[tokio::test]
async fn so_many_connections_look_up_one_request() {
    let (daemon, mut client, model, tokens) = served(&[], 1).await;
    let mut others = Vec::new();
    for _ in 0..64 {
        let mut other = daemon.connect().await;
        assert_eq!(lookup(&mut other, &model, "r", &tokens, 1).await, 1);
        others.push(other);
    }
    assert_eq!(lookup(&mut client, &model, "r", &tokens, 1).await, 0);
    assert_eq!(limited(&daemon, "lookup").await, 1.0);
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 64.0, "the refused one holds nothing");
    end(&mut others[0], "r").await;
    assert_eq!(lookup(&mut client, &model, "r", &tokens, 1).await, 1);
}

#[tokio::test]
async fn so_many_lookups_wait_for_the_tiers() {
    const HANGS: &str = r#"--l2-adapter={"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100},"fault":"hang","request_timeout":600}"#;
    let (daemon, mut client, model, tokens) =
        served(&[HANGS, "--max-prefetch-jobs=2", "--l2-prefetch-deadline-seconds=600"], 2).await;
    // Two chunks are here; for the third it asks the tier.
    let longer: Vec<u32> = tokens.iter().copied().chain(prompt(99, 1)).collect();
    for request in ["a", "b"] {
        start_lookup(&mut client, &model, request, &longer, 1).await;
        let status = client.call(&Request::QueryPrefetchStatus { request_id: request }).await;
        assert_eq!(status.expect("status"), Response::Nothing, "{request} waits");
    }
    daemon.metric_becomes("lmcache_mp_active_prefetch_jobs", &[], 2.0).await;
    let waiting = daemon.metric("lmcached_session_bytes", &[]).await;
    assert_eq!(lookup(&mut client, &model, "c", &longer, 1).await, 2, "L1 alone answers");
    assert_eq!(limited(&daemon, "lookup").await, 1.0);
    daemon.says("--max-prefetch-jobs").await;
    assert!(daemon.metric("lmcached_session_bytes", &[]).await > waiting);
    // The admin API's prefetches are of the same number.
    let body = serde_json::json!({"model_name": "m", "world_size": 1, "token_ids": longer});
    let (status, answer) =
        http::post(daemon.http_port(), "/cache/prefetches", &body.to_string()).await.expect("an answer");
    assert_eq!(status, 503, "{answer}");
    assert!(answer.contains("--max-prefetch-jobs"), "{answer}");
    end(&mut client, "a").await;
    daemon.metric_becomes("lmcache_mp_active_prefetch_jobs", &[], 1.0).await;
    start_lookup(&mut client, &model, "d", &longer, 1).await;
    daemon.metric_becomes("lmcache_mp_active_prefetch_jobs", &[], 2.0).await;
}

#[tokio::test]
async fn what_a_waiting_lookup_holds_is_of_the_requests_bytes() {
    const HANGS: &str = r#"--l2-adapter={"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100},"fault":"hang","request_timeout":600}"#;
    let (daemon, mut client, model, tokens) =
        served(&[HANGS, "--max-session-bytes=16384", "--l2-prefetch-deadline-seconds=600"], 2).await;
    let longer: Vec<u32> = tokens.iter().copied().chain(prompt(99, 300)).collect();
    assert_eq!(lookup(&mut client, &model, "a", &longer, 1).await, 2, "L1 alone answers");
    assert_eq!(limited(&daemon, "lookup").await, 1.0);
    assert_eq!(daemon.metric("lmcache_mp_active_prefetch_jobs", &[]).await, 0.0);
}

#[tokio::test]
async fn so_many_workers_are_registered() {
    let daemon = Daemon::start(&["--max-registered-workers=2"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    let mut register = async |instance| match client.call(&model.registration(instance)).await {
        Ok(Response::Registered(response)) => response.pool_size > 0,
        other => panic!("{other:?}"),
    };
    assert!(register(1).await && register(2).await && !register(3).await && register(2).await);
    assert_eq!(daemon.metric("lmcached_workers", &[]).await, 2.0);
    assert_eq!(limited(&daemon, "register_kv_cache_engine_driven_context").await, 1.0);
    daemon.says("--max-registered-workers").await;
    let frame = model.key("r", &prompt(1, 1)).frame(Some(0), 0, 256);
    assert_eq!(prepare_store(&mut client, &frame, 3).await, None);
    assert!(prepare_store(&mut client, &frame, 2).await.is_some());
    client.call(&Request::UnregisterEngineDriven { instance_id: 1 }).await.expect("unregister");
    assert!(matches!(
        client.call(&model.registration(3)).await,
        Ok(Response::Registered(response)) if response.pool_size > 0
    ));
}

#[tokio::test]
async fn registrations_take_so_many_bytes_together() {
    let daemon = Daemon::start(&["--max-registration-bytes=65536"]).await;
    let mut client = daemon.connect().await;
    let layers = |layers| Shape { layers, blocks: 4, block: 16, heads: 1, head: 8 };
    let (few, many) = (KvCache::new("few", layers(2)), KvCache::new("many", layers(300)));
    for (kv, instance) in [(&few, 1), (&many, 2)] {
        let payload = Box::new(kv.registration(instance, "m"));
        let ack = client.call(&Request::RegisterKvCache(payload)).await.expect("acknowledged");
        assert_eq!(ack, Response::Nothing);
    }
    assert_eq!(daemon.metric("lmcached_workers", &[]).await, 1.0);
    assert_eq!(limited(&daemon, "register_kv_cache").await, 1.0);
    let bytes = daemon.metric("lmcached_registration_bytes", &[]).await;
    assert!((1.0..=65536.0).contains(&bytes), "{bytes}");
    daemon.says("--max-registration-bytes").await;
    client.call(&Request::UnregisterKvCache { instance_id: 1 }).await.expect("unregister");
    assert_eq!(daemon.metric("lmcached_registration_bytes", &[]).await, 0.0);
}

#[tokio::test]
async fn objects_have_so_many_names() {
    let daemon = Daemon::start(&["--max-names=4"]).await;
    let mut client = daemon.connect().await;
    let (model, tokens) = (Model::small("m"), prompt(1, 1));
    client.call(&model.registration(7)).await.expect("register");
    let frame = |salt: &str| model.key(salt, &tokens).salt(salt).frame(Some(0), 0, 256);
    for n in 0..12 {
        let frame = frame(&format!("salt-{n}"));
        assert!(prepare_store(&mut client, &frame, 7).await.is_some(), "{n}");
        assert!(commit_store(&mut client, &frame, 7).await, "{n}");
        assert!(daemon.metric("lmcached_l1_names", &[]).await <= 4.0, "{n}");
    }
    // The newest are there, the oldest gave way.
    assert!(prepare_retrieve(&mut client, &frame("salt-11"), 7).await.is_some());
    assert!(prepare_retrieve(&mut client, &frame("salt-0"), 7).await.is_none());
    // What is being read gives no name back: then a store is refused.
    assert!(prepare_retrieve(&mut client, &frame("salt-10"), 7).await.is_some());
    assert!(prepare_retrieve(&mut client, &frame("salt-9"), 7).await.is_some());
    assert!(prepare_store(&mut client, &frame("one-more"), 7).await.is_none());
    let full = ["operation=\"prepare_store\"", "outcome=\"table_full\""];
    assert_eq!(daemon.metric("lmcached_requests_total", &full).await, 1.0);
}

#[tokio::test]
async fn so_many_workers_have_a_lane() {
    let daemon = Daemon::start(&["--ring-lanes=1"]).await;
    let mut client = daemon.connect().await;
    let mut lane = async |instance| {
        client.call(&Model::small("m").registration(instance)).await.expect("register");
        let attach = Request::AttachRing { instance_id: instance, process: None };
        match client.call(&attach).await.expect("an answer") {
            Response::RingAttached(attached) => !attached.ring_name.is_empty(),
            other => panic!("{other:?}"),
        }
    };
    assert!(lane(1).await && !lane(2).await);
    assert_eq!(daemon.metric("lmcached_ring_lanes_used", &[]).await, 1.0);
    let refused = ["operation=\"lmcached_attach_ring\"", "outcome=\"disabled\""];
    assert_eq!(daemon.metric("lmcached_requests_total", &refused).await, 1.0);
    daemon.says("--ring-lanes").await;
    client.call(&Request::UnregisterEngineDriven { instance_id: 1 }).await.expect("unregister");
    assert_eq!(daemon.metric("lmcached_ring_lanes_used", &[]).await, 0.0);
}

#[tokio::test]
async fn an_http_body_has_at_most_so_many_bytes() {
    let daemon = Daemon::start(&["--http-max-body-bytes=2048"]).await;
    let port = daemon.http_port();
    let body = |bytes| format!("{{\"user_id\":\"{}\"}}", "x".repeat(bytes));
    let (status, answer) = http::post(port, "/cache/prefetches", &body(4096)).await.expect("an answer");
    assert_eq!(status, 413, "{answer}");
    let (status, _) = http::post(port, "/cache/prefetches", &body(1024)).await.expect("an answer");
    assert_ne!(status, 413);
    // In pieces, of which none says how many there are.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    let head = "POST /cache/prefetches HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let pieces = format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(3);
    stream.write_all(format!("{head}{pieces}").as_bytes()).await.expect("send");
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer[..read]));
    assert_eq!(daemon.metric("lmcached_http_refused_total", &["body_too_large"]).await, 2.0);
}

#[tokio::test]
async fn an_http_port_has_so_many_connections() {
    let daemon = Daemon::start(&["--http-max-connections=2"]).await;
    let ask = async || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.http_port())).await.expect("connect");
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.expect("an answer");
        (stream, String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    // One that says nothing keeps nobody out.
    let _silent = TcpStream::connect(("127.0.0.1", daemon.http_port())).await.expect("connect");
    let ((first, one), (second, two)) = (ask().await, ask().await);
    assert!(one.starts_with("HTTP/1.1 200") && two.starts_with("HTTP/1.1 200"), "{one} {two}");
    let (_third, three) = ask().await;
    assert!(three.starts_with("HTTP/1.1 503") && three.contains("--http-max-connections"), "{three}");
    // The other port has places of its own.
    let page = eventually("the page", async || http::get(daemon.prometheus_port(), "/metrics").await).await.1;
    for line in [
        r#"lmcached_http_refused_total{reason="too_many_connections"} 1"#,
        r#"lmcached_http_refused_total{reason="displaced"} 1"#,
        "lmcached_http_connections 3",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}");
    }
    drop((first, second));
    eventually("there are places again", async || ask().await.1.starts_with("HTTP/1.1 200").then_some(()))
        .await;
}
