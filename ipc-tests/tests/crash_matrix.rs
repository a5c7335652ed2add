//! The daemon is killed at every step between two states of what outlives it, in the middle of work; so are workers.
//!
//! A run of the tests takes [`EVERY_RUN`] points with five seeds each; `ipc-tests/crash/run.sh` takes all. What failed is
//! printed with the command that runs it again:
//!
//! * `CRASH_POINTS`: names of points with commas between, or `all`;
//! * `CRASH_SEEDS`: seeds of each point (5);
//! * `CRASH_SEED`: the first of them (1);
//! * `CRASH_JOBS`: cases at the same time (twice the processors).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ipc_tests::crash::case::{Killed, Report, run};
use ipc_tests::crash::points::{Class, EVERY_RUN, Point, all};
use ipc_tests::daemon::{binary, cargo};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Runs cases side by side and panics with all that failed.
async fn run_all(what: &str, cases: Vec<(Killed, u64)>) {
    let before = std::time::Instant::now();
    // Before the first case: it may take minutes.
    tokio::task::spawn_blocking(binary).await.expect("the daemon builds");
    let processors = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let turns = Arc::new(Semaphore::new(number("CRASH_JOBS", 2 * processors) as usize));
    let (count, mut running) = (cases.len(), JoinSet::new());
    for (killed, seed) in cases {
        let turns = turns.clone();
        running.spawn(async move {
            let _turn = turns.acquire_owned().await.expect("never closed");
            let case = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(run(killed, seed))
            };
            // On a thread of its own: a panic is this case's failure.
            match tokio::task::spawn_blocking(case).await {
                Ok(result) => result,
                Err(panic) => Err(format!("{killed:?}, seed {seed}: {panic}")),
            }
        });
    }
    let (mut total, mut failures) = (Report::default(), Vec::new());
    while let Some(done) = running.join_next().await {
        match done.expect("no panic out here") {
            Ok(report) => total.add(&report),
            Err(failure) => {
                eprintln!("FAILED {failure}");
                failures.push(failure);
            }
        }
    }
    let Report { kills, committed, read, seen } = total;
    println!(
        "{what}: {count} cases, {} failed; {kills} processes killed, {committed} commits acknowledged, {read} objects read by \
         workers; looked at afterwards: {} objects served right, {} of them had to be there; {:.0} s",
        failures.len(),
        seen.served,
        seen.kept,
        before.elapsed().as_secs_f64()
    );
    assert!(
        failures.is_empty(),
        "{} of {count} cases failed; again: CRASH_POINTS=<point> CRASH_SEED=<seed> CRASH_SEEDS=1 cargo test --workspace --test \
         crash_matrix -- --nocapture\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn seeds() -> std::ops::Range<u64> {
    let first = number("CRASH_SEED", 1);
    first..first + number("CRASH_SEEDS", 5)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_nothing_is_lost_wrong_or_leaked() {
    let points: Vec<Point> = match std::env::var("CRASH_POINTS") {
        Err(_) => EVERY_RUN.to_vec(),
        Ok(names) if names == "all" => all().collect(),
        Ok(names) => {
            let named = |name| all().find(|point| point.name == name);
            names.split(',').map(|name| named(name).unwrap_or_else(|| panic!("no point {name}"))).collect()
        }
    };
    let cases = points.iter().flat_map(|point| seeds().map(|seed| (Killed::At(*point), seed)));
    run_all("killed at a step", cases.collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_nothing_is_lost_wrong_or_leaked() {
    let cases = Class::ALL.iter().flat_map(|class| {
        let seeds = seeds().take(number("CRASH_SEEDS", 1) as usize);
        seeds.map(|seed| (Killed::AnyMoment(*class), seed))
    });
    run_all("killed at any moment", cases.collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_lose_corrupt_and_keep_nothing() {
    run_all("killed workers", seeds().map(|seed| (Killed::Workers, seed)).collect()).await;
}

fn sources(dir: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in std::fs::read_dir(dir).expect("the daemon's sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source");
            for rest in text.split("failpoint::hit(\"").skip(1) {
                let name = rest.split('"').next().unwrap_or_default();
                *found.entry(name.to_owned()).or_default() += 1;
            }
        }
    }
}

#[test]
fn every_step_has_a_case() {
    let mut found = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src"), &mut found);
    let cases: BTreeSet<String> = all().map(|point| point.name.to_owned()).collect();
    let steps: BTreeSet<String> = found.keys().cloned().collect();
    assert_eq!(steps, cases, "the points of the sources, and those of ipc_tests::crash::points");
    assert_eq!(all().count(), cases.len(), "each once");
    assert!(found.values().all(|count| *count == 1), "one name for one place: {found:?}");
}

/// Cargo's own answer: who the daemon is built for decides its features.
#[test]
fn a_release_has_no_fail_points() {
    let features = |edges: &str| {
        let args = [
            "tree",
            "--workspace",
            "--edges",
            edges,
            "--format",
            "{p} [{f}]",
            "--prefix",
            "none",
            "--offline",
        ];
        let mut tree: Command = cargo();
        let tree = tree.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let text = String::from_utf8(tree.stdout).expect("text");
        text.lines().find(|line| line.starts_with("lmcached v")).expect("the daemon").to_owned()
    };
    assert!(features("normal,build,dev").contains("failpoints"), "the tests' daemon has them");
    let release = features("normal,build");
    assert!(release.contains("l2-redis") && !release.contains("failpoints"), "{release}");
}
