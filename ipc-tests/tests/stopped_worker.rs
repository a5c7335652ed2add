//! A worker that is stopped over its slots, and what others see when it goes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use ipc_tests::daemon::{Daemon, binary};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prompt, store};
use ipc_tests::{eventually, has_stopped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Worker {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Worker {
    fn start(endpoint: &str, daemon: &Daemon, what: &str) -> Worker {
        let program = binary().with_file_name("stopping-worker");
        let mut child = Command::new(program)
            .arg(endpoint)
            .arg(daemon.pool_path())
            .arg(what)
            .stdout(Stdio::piped())
            .spawn()
            .expect("worker starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Worker { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("worker's line");
        line.trim().to_owned()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    async fn stopped(&self) {
        has_stopped(self.child.id()).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fills the pool several times over; returns the prompts that must still be right.
async fn fill(daemon: &Daemon, pool: &Pool, model: &Model) -> Vec<u32> {
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    let seeds: Vec<u32> = (100..130).collect();
    for seed in &seeds {
        let request = format!("r{seed}");
        store(&mut client, pool, model, &request, &prompt(*seed, 4), 1, u64::from(*seed) << 8).await;
    }
    seeds
}

/// Everything that is served is what its owner wrote. Returns the chunks checked.
async fn check(daemon: &Daemon, pool: &Pool, model: &Model, seeds: &[u32]) -> u64 {
    let mut client = daemon.connect().await;
    let mut checked = 0;
    for seed in seeds {
        let (tokens, request) = (prompt(*seed, 4), format!("check{seed}"));
        let hit = lookup(&mut client, model, &request, &tokens, 1).await;
        if hit > 0 {
            let frame = model.key(&request, &tokens).frame(Some(0), 0, hit * 256);
            let slots = prepare_retrieve(&mut client, &frame, 1).await.expect("leased");
            for (chunk, slot) in slots.iter().enumerate() {
                assert!(
                    pool.holds(slot, (u64::from(*seed) << 8) + chunk as u64),
                    "prompt {seed}, chunk {chunk}"
                );
                checked += 1;
            }
            assert!(commit_retrieve(&mut client, &frame, 1).await);
        }
    }
    checked
}

async fn scenario(ipc: bool) {
    let daemon = Daemon::start(&[
        // About 32 objects of 256 KiB.
        "--l1-size-gb=0.008",
        "--l1-write-ttl-seconds=1",
        "--bind=ipc://{dir}/sock",
    ])
    .await;
    let pool = Pool::open(&daemon.pool_path());
    let model = Model::small("m");
    let endpoint = if ipc { format!("ipc://{}/sock", daemon.dir().display()) } else { daemon.endpoint() };
    let mut worker = Worker::start(&endpoint, &daemon, "store");
    assert_eq!(worker.line(), "prepared 4");
    worker.stopped().await;
    eventually("its time is over", async || {
        (daemon.metric("lmcached_l1_quarantined_objects", &[]).await == 4.0).then_some(())
    })
    .await;
    let seeds = fill(&daemon, &pool, &model).await;
    assert!(
        daemon.metric("lmcache_mp_l1_evicted_keys_total", &[]).await > 60.0,
        "the pool was filled over and over"
    );
    assert!(check(&daemon, &pool, &model, &seeds).await > 0);

    kill(worker.pid(), Signal::SIGCONT).expect("continue");
    assert_eq!(worker.line(), "committed false", "its reservation is gone");
    assert!(check(&daemon, &pool, &model, &seeds).await > 0, "nobody's bytes have changed");
    let mut client = daemon.connect().await;
    assert_eq!(lookup(&mut client, &model, "late", &prompt(77, 4), 1).await, 0, "nothing of it is served");
    // Its slots are free again.
    assert_eq!(daemon.metric("lmcached_l1_quarantined_objects", &[]).await, 0.0);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0);
}

#[tokio::test]
async fn a_stopped_worker_scribbles_on_nobody_over_tcp() {
    scenario(false).await;
}

#[tokio::test]
async fn a_stopped_worker_scribbles_on_nobody_over_ipc() {
    scenario(true).await;
}

#[tokio::test]
async fn a_restarted_daemon_honours_the_slots_of_a_stopped_worker() {
    let mut daemon = Daemon::start(&["--l1-size-gb=0.008", "--bind=ipc://{dir}/sock"]).await;
    let pool = Pool::open(&daemon.pool_path());
    let model = Model::small("m");
    let endpoint = format!("ipc://{}/sock", daemon.dir().display());
    let mut worker = Worker::start(&endpoint, &daemon, "store");
    assert_eq!(worker.line(), "prepared 4");
    worker.stopped().await;
    daemon.crash_and_restart().await;
    assert_eq!(daemon.metric("lmcached_l1_quarantined_objects", &[]).await, 4.0, "the pins were found");
    let seeds = fill(&daemon, &pool, &model).await;
    kill(worker.pid(), Signal::SIGCONT).expect("continue");
    // It writes its slots; its commit has no connection any more, so it dies of that.
    let _ = worker.child.wait();
    assert!(check(&daemon, &pool, &model, &seeds).await > 0, "nobody's bytes have changed");
    eventually("the slots of the dead worker are free", async || {
        (daemon.metric("lmcached_l1_quarantined_objects", &[]).await == 0.0).then_some(())
    })
    .await;
}

/// Stopped between its prepare and its copy, its time past, the daemon killed and restarted, the pool refilled by others, and
/// then continued: no byte of another object changes, and nothing wrong is read.
async fn outlives_the_daemon(what: &str, ipc: bool) {
    let mut daemon = Daemon::start(&[
        "--l1-size-gb=0.008",
        "--l1-write-ttl-seconds=1",
        "--lease-grace-seconds=1",
        "--bind=ipc://{dir}/sock",
    ])
    .await;
    let pool = Pool::open(&daemon.pool_path());
    let model = Model::small("m");
    let endpoint = if ipc { format!("ipc://{}/sock", daemon.dir().display()) } else { daemon.endpoint() };
    let mut worker = Worker::start(&endpoint, &daemon, what);
    assert_eq!(worker.line(), "prepared 4");
    worker.stopped().await;
    if what == "store" {
        daemon.metric_becomes("lmcached_l1_quarantined_objects", &[], 4.0).await;
    }
    daemon.crash_and_restart().await;
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 4.0, "the pins were found");
    let seeds = fill(&daemon, &pool, &model).await;
    assert!(daemon.metric("lmcache_mp_l1_evicted_keys_total", &[]).await > 60.0, "filled over and over");
    kill(worker.pid(), Signal::SIGCONT).expect("continue");
    if what == "retrieve" {
        assert_eq!(worker.line(), "read true");
    }
    // Its commit has no connection any more; it dies of that.
    let _ = worker.child.wait();
    assert!(check(&daemon, &pool, &model, &seeds).await > 0, "nobody's bytes have changed");
    if what == "store" {
        let mut client = daemon.connect().await;
        assert_eq!(
            lookup(&mut client, &model, "late", &prompt(77, 4), 1).await,
            0,
            "nothing of it is served"
        );
    }
    if ipc {
        daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_write_that_outlives_its_daemon_scribbles_on_nobody_over_ipc() {
    outlives_the_daemon("store", true).await;
}

#[tokio::test]
async fn a_write_that_outlives_its_daemon_scribbles_on_nobody_over_tcp() {
    outlives_the_daemon("store", false).await;
}

#[tokio::test]
async fn a_read_that_outlives_its_daemon_reads_what_it_was_promised_over_ipc() {
    outlives_the_daemon("retrieve", true).await;
}

#[tokio::test]
async fn a_read_that_outlives_its_daemon_reads_what_it_was_promised_over_tcp() {
    outlives_the_daemon("retrieve", false).await;
}

#[tokio::test]
async fn a_killed_worker_gives_its_slots_back() {
    let daemon = Daemon::start(&["--bind=ipc://{dir}/sock", "--l1-write-ttl-seconds=4"]).await;
    let endpoint = format!("ipc://{}/sock", daemon.dir().display());
    let mut worker = Worker::start(&endpoint, &daemon, "store");
    assert_eq!(worker.line(), "prepared 4");
    worker.stopped().await;
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 4.0);
    worker.child.kill().expect("kill");
    worker.child.wait().expect("wait");
    eventually("its slots are free", async || {
        (daemon.metric("lmcached_l1_pins", &[]).await == 0.0).then_some(())
    })
    .await;
    let mut client = daemon.connect().await;
    assert_eq!(lookup(&mut client, &Model::small("m"), "r", &prompt(77, 4), 1).await, 0);
}
