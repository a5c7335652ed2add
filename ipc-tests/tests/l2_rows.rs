//! The metrics of L2, on real tiers and on both sinks: each row moves by what the workload makes of it.

use std::path::Path;

use ipc_tests::daemon::Daemon;
use ipc_tests::otlp::Collector;
use ipc_tests::pool::Pool;
use ipc_tests::scrape::Page;
use ipc_tests::worker::{Model, lookup, prepare_store, prompt, start_lookup, store};
use ipc_tests::{eventually, http};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;

/// A daemon with one tier, and everybody who looks at it.
struct Rig {
    daemon: Daemon,
    collector: Collector,
    client: Connection,
    pool: Pool,
    model: Model,
}

impl Rig {
    async fn start(flags: &[&str]) -> Rig {
        let collector = Collector::start().await;
        let endpoint = collector.endpoint();
        let mut all = vec!["--otlp-endpoint", &endpoint, "--metrics-sample-rate=1.0"];
        all.extend(flags);
        let daemon = Daemon::start_in(&[("OTEL_METRIC_EXPORT_INTERVAL", "100")], &all).await;
        let mut client = daemon.connect().await;
        let model = Model::small("m");
        client.call(&model.registration(7)).await.expect("register");
        let pool = Pool::open(&daemon.pool_path());
        Rig { daemon, collector, client, pool, model }
    }

    async fn store(&mut self, request: &str, tokens: &[u32]) {
        store(&mut self.client, &self.pool, &self.model, request, tokens, 7, 0).await;
        self.end(request).await;
    }

    async fn lookup(&mut self, request: &str, tokens: &[u32]) -> u64 {
        let hit = lookup(&mut self.client, &self.model, request, tokens, 1).await;
        self.end(request).await;
        hit
    }

    async fn end(&mut self, request: &str) {
        self.client.call(&Request::EndSession { request_id: request }).await.expect("end");
    }

    async fn page(&self) -> Page {
        Page::parse(&http::get(self.daemon.http_port(), "/metrics").await.expect("a page").1)
    }

    /// Each `(row, labels, value)` on the page, then at the collector. Rows are named as at the collector; of a histogram
    /// it is the count.
    async fn rows(&self, rows: &[(&str, &str, f64)]) {
        for (row, labels, value) in rows {
            let name = format!("lmcache_mp_{}", row.replace(' ', "_"));
            let mut seen = Vec::new();
            let found = async || {
                let page = self.page().await;
                seen.extend(page.series(&name).cloned());
                seen.dedup();
                (page.value(&name, labels) == Some(*value)).then_some(())
            };
            let what = format!("{name}{{{labels}}} is {value}");
            if ipc_tests::in_time(found).await.is_none() {
                panic!("{what}; the page has {seen:?}");
            }
            let otel = format!("lmcache_mp.{}", row.trim_end_matches("_total").trim_end_matches("_count"));
            eventually(&format!("{otel} is {value} at the collector"), async || {
                self.collector.points(&otel).iter().any(|point| point.count() == *value).then_some(())
            })
            .await;
        }
    }
}

fn fs_tier(dir: &Path) -> String {
    format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.display())
}

fn objects(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the tier's directory").flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "data")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_and_loads_of_files_move_their_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::start(&[&fs_tier(dir.path())]).await;
    let tokens = prompt(1, 4);
    rig.store("a", &tokens).await;
    let fs = r#"l2_name="fs""#;
    rig.rows(&[
        ("l2_store_tasks_total", "", 1.0),
        ("l2_store_keys_total", "", 4.0),
        ("l2_store_completed_total", fs, 1.0),
        ("l2_store_succeeded_keys_total", "", 4.0),
        ("l2_store_throughput_gbs_count", fs, 1.0),
        ("l2_store_failed_keys_total", "", 0.0),
    ])
    .await;
    rig.daemon.clear().await;
    assert_eq!(rig.lookup("b", &tokens).await, 4);
    rig.rows(&[
        ("l2_prefetch_lookups_total", "", 1.0),
        ("l2_prefetch_lookup_keys_total", "", 4.0),
        ("l2_prefetch_hit_keys_total", "", 4.0),
        ("l2_prefetch_load_tasks_total", "", 1.0),
        ("l2_prefetch_load_keys_total", "", 4.0),
        ("l2_prefetch_loaded_keys_total", "", 4.0),
        ("l2_prefetch_failed_keys_total", "", 0.0),
        ("l2_load_completed_total", fs, 1.0),
        ("l2_load_throughput_gbs_count", fs, 1.0),
    ])
    .await;
    // One value is cut short: a counted miss.
    std::fs::write(&objects(dir.path())[0], b"short").expect("cut short");
    assert!(rig.lookup("c", &tokens).await < 4);
    rig.rows(&[
        ("l2_prefetch_failed_keys_total", "", 1.0),
        ("l2_prefetch_failure_total", r#"reason="serde_failure",model_name="m""#, 1.0),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_room_is_told_as_the_prefetchs() {
    let dir = tempfile::tempdir().expect("a directory");
    // Room for 64 objects.
    let mut rig = Rig::start(&[&fs_tier(dir.path()), "--l1-size-gb=0.015625"]).await;
    let wanted = prompt(1, 8);
    rig.store("a", &wanted).await;
    eventually("the tier has them", async || (objects(dir.path()).len() == 8).then_some(())).await;
    rig.daemon.clear().await;
    // A worker holds everything but four slots.
    let other = prompt(2, 60);
    let frame = rig.model.key("hold", &other).frame(Some(0), 0, other.len() as u64);
    assert!(prepare_store(&mut rig.client, &frame, 7).await.is_some());
    assert_eq!(rig.lookup("b", &wanted).await, 4);
    let model = r#"during="l2_prefetch",model_name="m""#;
    rig.rows(&[
        ("l1_allocation_failure_total", model, 4.0),
        ("l2_prefetch_failure_total", r#"reason="l1_oom",model_name="m""#, 4.0),
        ("l2_prefetch_loaded_keys_total", "", 4.0),
        ("l2_prefetch_failed_keys_total", "", 4.0),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_are_gone_before_their_turn_are_told_as_the_stores() {
    let dir = tempfile::tempdir().expect("a directory");
    let slow = format!(
        r#"--l2-adapter={{"type":"fault_inject","inner":{{"type":"fs","base_path":"{}"}},"delay_seconds":1}}"#,
        dir.path().display()
    );
    // One object in flight at a time.
    let mut rig = Rig::start(&[&slow, "--l2-store-max-bytes-in-flight=262144"]).await;
    rig.store("a", &prompt(1, 3)).await;
    // One after the other, a second each.
    rig.rows(&[("num_inflight_l2_stores", r#"l2_name="fs",adapter_index="0""#, 1.0)]).await;
    // The one that is being stored is pinned, and stays.
    let cleared = http::post(rig.daemon.http_port(), "/cache/clear", "").await;
    assert_eq!(cleared.expect("an answer").0, 200);
    let labels = r#"during="l2_store",reason="not_found",model_name="m""#;
    rig.rows(&[("l1_read_failure_total", labels, 2.0), ("l2_store_succeeded_keys_total", "", 1.0)]).await;
    assert_eq!(objects(dir.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_on_the_gauges() {
    let dir = tempfile::tempdir().expect("a directory");
    let fast = fs_tier(dir.path());
    let tokens = prompt(1, 4);
    {
        let mut rig = Rig::start(&[&fast]).await;
        rig.store("a", &tokens).await;
        eventually("the tier has them", async || (objects(dir.path()).len() == 4).then_some(())).await;
    }
    let slow = format!(
        r#"--l2-adapter={{"type":"fault_inject","inner":{{"type":"fs","base_path":"{}"}},"delay_seconds":2}}"#,
        dir.path().display()
    );
    let mut rig = Rig::start(&[&slow]).await;
    start_lookup(&mut rig.client, &rig.model, "b", &tokens, 1).await;
    let tier = r#"l2_name="fs",adapter_index="0""#;
    rig.rows(&[
        ("active_prefetch_jobs", "", 1.0),
        ("num_inflight_l2_loads", tier, 1.0),
        ("inflight_load_memory_usage_bytes", tier, f64::from(4 << 18)),
    ])
    .await;
    assert_eq!(ipc_tests::worker::await_lookup(&mut rig.client, "b").await, 4);
    rig.rows(&[("active_prefetch_jobs", "", 0.0)]).await;
    // A tier without work has no series, as documented.
    eventually("nothing is in flight", async || {
        let page = rig.page().await;
        let gone = |row: &str| page.series(&format!("lmcache_mp_{row}")).next().is_none();
        (gone("num_inflight_l2_loads") && gone("inflight_load_memory_usage_bytes")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_refuses_costs_failed_keys() {
    let refuses = r#"--l2-adapter={"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100},"fault":"denied"}"#;
    let mut rig = Rig::start(&[refuses]).await;
    rig.store("a", &prompt(1, 3)).await;
    rig.rows(&[("l2_store_failed_keys_total", "", 3.0), ("l2_store_succeeded_keys_total", "", 0.0)]).await;
}
