//! Log lines and log records of the real daemon.

use std::process::{Command, Stdio};
use std::time::Duration;

use ipc_tests::daemon::{Daemon, binary, free_port};
use ipc_tests::otlp::Collector;
use ipc_tests::{eventually, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_is_one_of_five_names_in_any_case() {
    for (level, info) in [("Info", true), ("wARNing", false), ("CRITICAL", false)] {
        let mut daemon = Daemon::start_in(&[("LMCACHE_LOG_LEVEL", level)], &[]).await;
        daemon.terminate();
        let log = daemon.log();
        assert_eq!(log.iter().any(|line| line.contains(" INFO ")), info, "{level}: {log:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_one_object_a_line() {
    let mut daemon = Daemon::start(&["--log-format=json"]).await;
    daemon.terminate();
    let log = daemon.log();
    let objects: Vec<serde_json::Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let start = objects.iter().find(|object| object["endpoint"].is_string()).expect("the endpoint's line");
    assert_eq!(start["level"], "INFO");
    assert!(start["message"].as_str().is_some_and(|message| message.contains("listening")), "{start}");
    assert!(start["timestamp"].is_string() && start["target"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_go_to_the_collector_and_those_about_sending_do_not() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let environment = [
        ("RUST_LOG", "trace"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "50"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue%20one"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment=test"),
        ("OTEL_SERVICE_NAME", "kv"),
    ];
    let mut daemon = Daemon::start_in(&environment, &["--otlp-endpoint", &endpoint]).await;
    eventually("its first record and its first numbers arrive", async || {
        let arrived = collector.received(|received| {
            received.records.iter().any(|record| record.body.contains("listening for LMCache"))
                && received.metric_exports > 3
        });
        arrived.then_some(())
    })
    .await;
    daemon.terminate();
    assert!(daemon.log().iter().any(|line| line.contains("h2::")), "the exporter does talk at this level");
    collector.received(|received| {
        let record = received.records.iter().find(|record| record.body.contains("listening for LMCache"));
        assert_eq!(record.expect("arrived").severity, "INFO");
        for record in &received.records {
            let scope = record.scope.split(':').next().unwrap_or_default();
            assert!(!["h2", "tonic", "hyper", "hyper_util", "tower"].contains(&scope), "{record:?}");
        }
        // The last lines too: what is left is sent at the end.
        assert!(received.records.iter().any(|record| record.body.contains("stopping")));
        assert_eq!(received.headers.get("x-tenant").map(String::as_str), Some("blue one"));
        let attribute = |name: &str| received.resource.get(name).map(String::as_str);
        assert_eq!((attribute("deployment"), attribute("service.name")), (Some("test"), Some("kv")));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standard_error_that_nobody_reads_stops_nothing() {
    // h2 at TRACE talks enough to fill every buffer within seconds.
    let collector = Collector::start().await;
    let name = format!("test{}_mute", std::process::id());
    let http_port = free_port();
    let mut child = Command::new(binary())
        .args([
            format!("--port={}", free_port()),
            format!("--http-port={http_port}"),
            format!("--prometheus-port={}", free_port()),
            format!("--shm-name={name}"),
            "--l1-size-gb=0.0625".into(),
            "--discard-on-exit".into(),
            format!("--otlp-endpoint={}", collector.endpoint()),
        ])
        .env("RUST_LOG", "trace")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "10")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    eventually("lines are dropped, and the page still comes", async || {
        let (_, page) = http::get(http_port, "/metrics").await?;
        let line = page.lines().find(|line| line.starts_with("lmcached_log_lines_dropped_total "))?;
        line.rsplit_once(' ')?.1.parse::<f64>().ok().filter(|dropped| *dropped > 0.0)
    })
    .await;
    assert_eq!(http::get(http_port, "/healthcheck").await.map(|answer| answer.0), Some(200));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
    let mut exited = None;
    eventually("it stops although nobody reads", async || {
        exited = child.try_wait().expect("wait");
        exited.map(|_| ())
    })
    .await;
    assert_eq!(exited.and_then(|status| status.code()), Some(0));
    // Whatever a failed test leaves goes too.
    ipc_tests::pool::remove(&name);
    tokio::time::sleep(Duration::ZERO).await;
}

#[test]
fn a_certificate_that_is_not_there_is_one_line() {
    let output = Command::new(binary())
        .args(["--l1-size-gb=0.0625", "--otlp-endpoint=https://127.0.0.1:1"])
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && text.lines().count() == 1, "{text}");
}
