//! A real Prometheus scrapes the page with the documented configuration and answers the documented queries.
//!
//! The binary is that of `LMCACHED_TEST_PROMETHEUS`, or the one in `PATH`. Where there is none the tests say so and pass,
//! unless `LMCACHED_TEST_PROMETHEUS` is set: the gate sets it.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use common::{Rig, session, text};
use ipc_tests::daemon::free_port;
use ipc_tests::{eventually, http};
use lmcached::events::{Event, LookupEnd};
use lmcached::telemetry::{Readings, Telemetry};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The documented scrape configuration; only the target, and the interval for a test's sake, are put in.
const CONFIGURATION: &str = r#"
global:
  scrape_interval: 200ms
scrape_configs:
  - job_name: "lmcache-mp"
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"#;

/// The documented queries.
const AGGREGATE: &str =
    "rate(lmcache_mp_lookup_hit_tokens_total[5m]) / rate(lmcache_mp_lookup_requested_tokens_total[5m])";
const PER_MODEL: &str = "sum(rate(lmcache_mp_lookup_hit_tokens_total[5m])) by (model_name) / sum(rate(lmcache_mp_lookup_requested_tokens_total[5m])) by (model_name)";

fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LMCACHED_TEST_PROMETHEUS") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "LMCACHED_TEST_PROMETHEUS names no file: {}", path.display());
        return Some(path);
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("prometheus")).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("no prometheus in PATH and no LMCACHED_TEST_PROMETHEUS: not tested");
    }
    found
}

/// A running Prometheus; ends when dropped.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    async fn start(binary: PathBuf, target: u16) -> Prometheus {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, CONFIGURATION.replace("{port}", &target.to_string())).expect("written");
        let port = free_port();
        let child = Command::new(binary)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus starts");
        let prometheus = Prometheus { child, port, _dir: dir };
        eventually("prometheus is ready", async || {
            http::get(port, "/-/ready").await.filter(|answer| answer.0 == 200)
        })
        .await;
        prometheus
    }

    /// Labels and value of every series of an instant query.
    async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let path = format!("/api/v1/query?query={}", encode(query));
        let (status, body) = http::get(self.port, &path).await.expect("an answer");
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).expect("json");
        let series = answer["data"]["result"].as_array().expect("a vector").clone();
        series
            .into_iter()
            .map(|series| {
                let value = series["value"][1].as_str().and_then(|value| value.parse().ok());
                (series["metric"].clone(), value.expect("a number"))
            })
            .collect()
    }

    /// Waits until a query's only series has this value.
    async fn until(&self, query: &str, wanted: f64) {
        eventually(query, async || {
            let series = self.query(query).await;
            (series.len() == 1 && series[0].1 == wanted).then_some(())
        })
        .await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

/// Serves the page of a telemetry as the daemon's HTTP side does.
async fn serve(telemetry: Arc<Telemetry>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let telemetry = telemetry.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let page = tokio::task::spawn_blocking(move || telemetry.scrape()).await.expect("a page");
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    lmcached::telemetry::CONTENT_TYPE,
                    page.len()
                );
                let _ = stream.write_all((head + &page).as_bytes()).await;
            });
        }
    });
    port
}

fn lookup(model: &str, requested: u64, hit: u64) -> Event {
    let end = LookupEnd {
        found_count: hit / 256,
        requested_tokens: requested,
        hit_tokens: hit,
        l1_hit_tokens: hit,
        l2_hit_tokens: 0,
        l1_hit_keys: hit / 256,
        l2_hit_keys: 0,
        early_exit_reason: "",
        model: text(model),
        salt: text(""),
    };
    Event::MpLookupPrefetchEnd { session: session("r"), end }
}

async fn hit_rates(compat: &str) {
    let Some(binary) = binary() else { return };
    let rig = Rig::start(&["--metrics-compat", compat], Readings::default(), vec![]).await;
    let prometheus = Prometheus::start(binary, serve(rig.telemetry.clone()).await).await;
    let ratios = [("llama", 0.25), ("qwen", 0.75)];
    let mut total = 0;
    // A rate needs a first sample: what happens before it cannot be in the rate.
    for round in 0..4u64 {
        for (model, ratio) in ratios {
            rig.publish(lookup(model, 1024, (1024.0 * ratio) as u64));
        }
        total += 2048;
        prometheus.until("sum(lmcache_mp_lookup_requested_tokens_total)", total as f64).await;
        if round == 0 {
            prometheus.until("count(lmcache_mp_lookup_requested_tokens_total)", 2.0).await;
        }
    }
    prometheus.until("up", 1.0).await;
    let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-9, "{value} is not {wanted}");
    // Series by series, as the aggregate query divides them; its labels match one to one.
    let aggregate = prometheus.query(AGGREGATE).await;
    let by_model = prometheus.query(PER_MODEL).await;
    for series in [&aggregate, &by_model] {
        assert_eq!(series.len(), 2, "{series:?}");
        for (labels, value) in series {
            let (_, ratio) =
                ratios.iter().find(|(model, _)| labels["model_name"] == *model).expect("a model");
            near(*value, *ratio);
        }
    }
    // Everything on the page is a series, under the job of the documented configuration.
    let families = prometheus.query(r#"count by (job) ({__name__=~"lmcache_mp_.*"})"#).await;
    assert_eq!(families[0].0["job"], "lmcache-mp");
    assert_eq!(prometheus.query("target_info").await[0].0["service_instance_id"], "rig");
    if compat == "both" {
        prometheus.until("sum(lmcache_mp_lookups_requests_total)", 8.0).await;
    } else {
        assert!(prometheus.query("lmcache_mp_lookups_requests_total").await.is_empty());
    }
    drop(prometheus);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_answers_the_documented_queries() {
    hit_rates("seed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_answers_them_with_both_sets_of_names() {
    hit_rates("both").await;
}
