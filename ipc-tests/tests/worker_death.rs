//! Workers of ours that are killed or stopped, and what they leave to the others.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use ipc_tests::daemon::{Daemon, binary};
use ipc_tests::worker::prompt;
use ipc_tests::{eventually, http};
use lmcache_client::{Client, Options, Prompt, Registration};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

struct Worker(Child);

impl Worker {
    /// Starts a worker and waits until it holds what it is going to hold.
    fn start(endpoint: &str, instance: u64, what: &str) -> Worker {
        let mut child = Command::new(binary().with_file_name("ring-worker"))
            .args([endpoint, &instance.to_string(), what])
            .stdout(Stdio::piped())
            .spawn()
            .expect("worker starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "ready");
        Worker(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("signal");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing here goes by time: what is freed is freed because somebody noticed.
const PATIENT: [&str; 5] = [
    "--bind=ipc://{dir}/sock",
    "--lease-grace-seconds=3600",
    "--l1-write-ttl-seconds=3600",
    "--worker-reap-timeout-seconds=0",
    "--session-ttl-seconds=3600",
];

async fn status(daemon: &Daemon) -> Value {
    let (code, page) = http::get(daemon.http_port(), "/status").await.expect("status page");
    assert_eq!(code, 200);
    serde_json::from_str(&page).expect("JSON")
}

async fn ring_row(daemon: &Daemon, instance: u64) -> Option<Value> {
    let status = status(daemon).await;
    let rows = status["ring"]["workers"].as_array().expect("rows").clone();
    rows.into_iter().find(|row| row["instance"] == instance)
}

async fn dies(ipc: bool) {
    let daemon = Daemon::start(&PATIENT).await;
    let endpoint = if ipc { format!("ipc://{}/sock", daemon.dir().display()) } else { daemon.endpoint() };
    let worker = Worker::start(&endpoint, 42, "hold");
    // A neighbour whose things must stay.
    let _neighbour = Worker::start(&endpoint, 43, "hold");
    let before = status(&daemon).await;
    assert_eq!(before["registered_non_cuda_instance_ids"], serde_json::json!([42, 43]));
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 6.0);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 8.0);
    assert!(ring_row(&daemon, 42).await.is_some());

    worker.signal(Signal::SIGKILL);
    // Not waited for: a dead process that its parent has not asked about yet is dead all the same.
    eventually("the dead worker has left nothing", async || {
        let status = status(&daemon).await;
        let gone = status["registered_non_cuda_instance_ids"] == serde_json::json!([43])
            && ring_row(&daemon, 42).await.is_none()
            && daemon.metric("lmcached_l1_leases", &[]).await == 3.0
            && daemon.metric("lmcached_l1_pins", &[]).await == 4.0;
        gone.then_some(())
    })
    .await;
    assert!(ring_row(&daemon, 43).await.is_some());
    assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 1.0, "the neighbour's");
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 6.0, "what was committed stays");
    drop(worker);
}

#[tokio::test]
async fn a_killed_worker_is_noticed_at_once_over_ipc() {
    dies(true).await;
}

#[tokio::test]
async fn a_killed_worker_is_noticed_at_once_over_tcp() {
    dies(false).await;
}

/// A transfer of a healthy worker, whose own times must be found.
async fn transfer(client: &Client, seed: u32) {
    let tokens = prompt(seed, 1);
    let id = format!("healthy {seed}");
    let mut store = client.prepare_store(&Prompt::new(&id, &tokens), 0..256).await.expect("slots");
    store.slots_mut().for_each(|(_, bytes)| bytes.fill(3));
    store.commit().await.expect("commit");
}

async fn healthy(daemon: &Daemon) -> Client {
    let client = Client::connect(&daemon.endpoint(), Options::default()).await.expect("connect");
    client.register(Registration::new(7, "m").geometry(2, 128, "float16")).await.expect("register");
    client
}

#[tokio::test]
async fn workers_killed_while_they_write_damage_nothing() {
    let daemon = Daemon::start(&PATIENT).await;
    let client = healthy(&daemon).await;
    for round in 0..12u32 {
        let instance = 1000 + u64::from(round);
        let worker = Worker::start(&daemon.endpoint(), instance, "flood");
        eventually("it writes", async || {
            let row = ring_row(&daemon, instance).await?;
            (row["records"].as_u64()? > 1000 * u64::from(round % 4)).then_some(())
        })
        .await;
        worker.signal(Signal::SIGKILL);
        transfer(&client, 5000 + round).await;
        eventually("its lane is free", async || ring_row(&daemon, instance).await.is_none().then_some(()))
            .await;
    }
    let status = status(&daemon).await;
    let total = &status["ring"]["total"];
    assert_eq!(total["rejected"]["corrupt"], 0, "a record is whole or not there: {total}");
    assert!(total["lost"].as_u64() > Some(0), "full lanes were counted: {total}");
    let row = ring_row(&daemon, 7).await.expect("the healthy worker has its lane");
    assert_eq!((&row["matched"], &row["lost"]), (&Value::from(36), &Value::from(0)), "{row}");
}

#[tokio::test]
async fn a_stopped_worker_delays_nobody() {
    let daemon = Daemon::start(&PATIENT).await;
    let client = healthy(&daemon).await;
    let worker = Worker::start(&daemon.endpoint(), 42, "flood");
    eventually("it writes", async || (ring_row(&daemon, 42).await?["records"].as_u64()? > 0).then_some(()))
        .await;
    worker.signal(Signal::SIGSTOP);
    for seed in 0..20 {
        transfer(&client, 6000 + seed).await;
    }
    let row = ring_row(&daemon, 7).await.expect("lane");
    assert_eq!(row["matched"], 60);
    let stopped = ring_row(&daemon, 42).await.expect("it keeps its lane: it may go on");
    assert_eq!(stopped["rejected"]["corrupt"], 0);
    worker.signal(Signal::SIGCONT);
    eventually("it goes on", async || {
        let records = ring_row(&daemon, 42).await?["records"].as_u64()?;
        (Some(records) > stopped["records"].as_u64()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_scribbles_into_its_lane_harms_itself_only() {
    use std::os::unix::fs::FileExt;
    let daemon = Daemon::start(&["--ring-lanes=2", "--ring-slots=64"]).await;
    let client = healthy(&daemon).await;
    let hostile = Client::connect(&daemon.endpoint(), Options::default()).await.expect("connect");
    hostile.register(Registration::new(666, "m").geometry(2, 128, "float16")).await.expect("register");
    let row = ring_row(&daemon, 666).await.expect("a lane");
    let path = daemon.ring_path();
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the ring");
    let layout = lmcache_proto::shm::ring::RingLayout::new(2, 64).expect("layout");
    let lane = row["lane"].as_u64().expect("a number") as u32;
    let (at, bytes) = (layout.lane_at(lane).expect("a lane"), layout.lane_bytes() as usize);
    let mut state = 88172645463325252u64;
    for round in 0..200u32 {
        // xorshift: any bytes, all of the lane, each round others.
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if round % 3 == 0 { 0xff } else { state as u8 }
        })
        .take(bytes)
        .collect();
        file.write_all_at(&noise, at).expect("scribble");
        transfer(&client, 7000 + round % 40).await;
        // Its own requests drain its lane.
        hostile.ping().await.expect("the daemon answers");
    }
    let row = ring_row(&daemon, 7).await.expect("lane");
    assert_eq!((&row["rejected"]["corrupt"], &row["lost"]), (&Value::from(0), &Value::from(0)), "{row}");
    let row = ring_row(&daemon, 666).await.expect("lane");
    assert!(row["rejected"]["corrupt"].as_u64() > Some(0), "{row}");
    assert_eq!(row["records"], 0, "nothing of it was believed: {row}");
}

#[tokio::test]
async fn a_restarted_daemon_gets_new_lanes_and_the_old_ones_are_nobodys() {
    let mut daemon = Daemon::start(&[]).await;
    let client = healthy(&daemon).await;
    transfer(&client, 1).await;
    let before = ring_row(&daemon, 7).await.expect("lane");
    assert_eq!(before["matched"], 3);
    daemon.crash_and_restart().await;
    assert!(ring_row(&daemon, 7).await.is_none());
    // Into the old mapping: goes nowhere, harms nobody.
    let record = lmcache_client::Record {
        kind: lmcache_client::Kind::MpStoreStart,
        transfer: 1,
        nanos: lmcache_client::monotonic_nanos(),
        bytes: 0,
        tokens: 0,
        count: 0,
        success: true,
        request: 0,
    };
    for _ in 0..5000 {
        client.publisher().publish(&record);
    }
    transfer(&client, 2).await;
    let after = ring_row(&daemon, 7).await.expect("a lane again");
    assert_ne!(before["epoch"], after["epoch"]);
    assert_eq!((&after["records"], &after["matched"]), (&Value::from(3), &Value::from(3)), "{after}");
    assert_eq!(client.publisher().publish(&record), lmcache_client::Publication::Queued);
    client.unregister().await.expect("unregister");
    assert!(ring_row(&daemon, 7).await.is_none());
    assert_eq!(client.publisher().publish(&record), lmcache_client::Publication::NoLane);
}
