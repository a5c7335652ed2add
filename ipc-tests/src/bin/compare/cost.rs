//! What observability costs: the same load on daemons that observe nothing, count, and tell everything.

use std::path::Path;
use std::time::{Duration, Instant};

use ipc_tests::http;
use ipc_tests::worker::{Model, commit_store, prepare_store};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;

use super::collector::Process;
use super::load;
use super::target::Target;

/// One way to run the daemon.
struct Step {
    name: &'static str,
    target: Target,
    /// CPU per cycle of each round, in µs.
    cpu: Vec<f64>,
    times: Vec<Duration>,
}

/// Prints µs of server CPU per cycle for each step, against the first.
pub(crate) async fn run(daemon: &Path, rounds: usize, cycles: usize) {
    let collector = Process::start();
    let endpoint = format!("--otlp-endpoint={}", collector.endpoint);
    let dir = tempfile::tempdir().expect("a directory");
    let recording = format!("--trace-output={}/cost.lct", dir.path().display());
    let configurations: [(&'static str, Vec<&str>); 4] = [
        ("nothing (--disable-observability)", vec!["--disable-observability"]),
        ("metrics", vec!["--disable-logging"]),
        ("metrics, recorded", vec!["--disable-logging", "--trace-level=storage", &recording]),
        ("metrics, INFO lines, every request traced", vec!["--enable-tracing", &endpoint]),
    ];
    let mut steps = Vec::new();
    for (name, flags) in &configurations {
        let target = start(daemon, flags).await;
        steps.push(Step { name, target, cpu: Vec::new(), times: Vec::new() });
    }
    for round in 0..rounds {
        for step in &mut steps {
            let before = step.target.cpu_ns();
            let samples = load::cycles(&step.target, 1, cycles, round).await;
            // What the load has caused is told a moment later.
            tokio::time::sleep(Duration::from_millis(200)).await;
            step.cpu.push((step.target.cpu_ns() - before) as f64 / 1e3 / cycles as f64);
            step.times.extend(samples.iter().map(|sample| sample.time));
        }
    }
    println!(
        "| observed | µs of CPU per cycle, median | ÷ nothing, median of rounds | ÷ metrics | p99 of all operations, µs | events dropped |"
    );
    println!("|---|---|---|---|---|---|");
    let (nothing, metrics) = (steps[0].cpu.clone(), steps[1].cpu.clone());
    for step in &mut steps {
        let cpu = &step.cpu;
        let against =
            |others: &[f64]| median(cpu.iter().zip(others).map(|(mine, other)| mine / other).collect());
        step.times.sort_unstable();
        let p99 = step.times[step.times.len() * 99 / 100].as_secs_f64() * 1e6;
        println!(
            "| {} | {:.0} | {:.2} | {:.2} | {p99:.0} | {} |",
            step.name,
            median(step.cpu.clone()),
            against(&nothing),
            against(&metrics),
            dropped(&step.target).await.unwrap_or_else(|| "–".into())
        );
    }
    drop(steps);
    println!("\nSpans received: {}", collector.end());
    scrape(daemon).await;
}

/// A daemon whose pool is reserved: until then it refuses stores, and uses CPU for itself.
pub(super) async fn start(daemon: &Path, flags: &[&str]) -> Target {
    let target = Target::start_daemon(daemon, flags).await;
    ipc_tests::eventually("the pool is reserved", async || {
        http::get(target.http_port, "/healthcheck").await.filter(|(status, _)| *status == 200)
    })
    .await;
    target
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn dropped(target: &Target) -> Option<String> {
    let (_, page) = http::get(target.http_port, "/metrics").await?;
    let line = page.lines().find(|line| line.starts_with("lmcache_mp_event_bus_dropped_events_total"))?;
    Some(line.rsplit(' ').next()?.to_owned())
}

/// How long a scrape of a daemon with 100,000 objects takes, and what a ping meanwhile waits.
async fn scrape(daemon: &Path) {
    const PROMPTS: u32 = 6250;
    let target = start(daemon, &[]).await;
    let mut client = Connection::connect(&target.endpoint, Duration::from_secs(60)).await.expect("connect");
    // 1 KiB an object, which takes a page.
    let model = Model { name: "small".into(), world_size: 1, layers: 1, width: 1 };
    client.call(&model.registration(1)).await.expect("register");
    for prompt in 0..PROMPTS {
        let mut tokens: Vec<u32> = (0..16 * 256).map(|i| i * 31 % 120_000).collect();
        tokens[0] = prompt;
        let frame = model.key(&format!("s{prompt}"), &tokens).frame(Some(0), 0, 4096);
        prepare_store(&mut client, &frame, 1).await.expect("slots");
        assert!(commit_store(&mut client, &frame, 1).await);
    }
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..50 {
        let started = Instant::now();
        let (_, page) = http::get(target.http_port, "/metrics").await.expect("a page");
        times.push(started.elapsed().as_secs_f64() * 1e3);
        bytes = page.len();
        client.call(&Request::Noop).await.expect("answered");
    }
    times.sort_by(f64::total_cmp);
    println!(
        "\nA scrape with {} objects in L1: median {:.1} ms, slowest of 50 {:.1} ms, {bytes} bytes",
        PROMPTS * 16,
        times[25],
        times[49]
    );
}
