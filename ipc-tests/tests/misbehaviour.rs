//! Workers that misbehave: what they do to the others is nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, commit_retrieve, commit_store, key, lookup, prepare_retrieve, prepare_store, prompt, store,
};
use lmcache_client::Connection;
use lmcache_proto::wire::{DeviceDescriptor, RegisterKvCache, Request, Response, TensorMetadata};
use lmcached::events::Bus;
use lmcached::l1::{L1, L1Config};
use lmcached::l2::control::{self, Batch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SHAPE: Shape = Shape::SMALL;

fn ids(from: u64, count: u64) -> Vec<Vec<u64>> {
    vec![(from..from + count).collect()]
}

async fn server_driven_store(client: &mut Connection, frame: &[u8], blocks: Vec<Vec<u64>>) -> bool {
    let request = Request::Store { key: key(frame), instance_id: 7, block_ids: blocks, event: b"ev" };
    matches!(client.call(&request).await.expect("store"), Response::Transfer(_, true))
}

async fn server_driven_retrieve(client: &mut Connection, frame: &[u8], blocks: Vec<Vec<u64>>) -> bool {
    let request = Request::Retrieve {
        key: key(frame),
        instance_id: 7,
        block_ids: blocks,
        event: b"ev",
        skip_first_n_tokens: 0,
    };
    matches!(client.call(&request).await.expect("retrieve"), Response::Transfer(_, true))
}

#[tokio::test]
async fn a_scribbled_object_is_a_miss_where_checksums_are_on() {
    let daemon = Daemon::start(&["--l1-checksums"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(1, 4);
    assert_eq!(store(&mut client, &pool, &model, "a", &tokens, 7, 100).await, 4);
    // Found and read as ever.
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 4);
    let frame = model.key("b", &tokens).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!((0..4).all(|chunk| pool.holds(&slots[chunk], 100 + chunk as u64)));
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    // Another worker, which has mapped the pool as all have, writes over the third chunk.
    let scribbled = File::options().write(true).open(daemon.pool_path()).expect("pool");
    scribbled.write_all_at(b"!", slots[2].offset + slots[2].length / 2).expect("write");
    assert_eq!(lookup(&mut client, &model, "c", &tokens, 1).await, 4, "a lookup reads no bytes");
    let frame = model.key("c", &tokens).frame(Some(0), 0, 1024);
    assert_eq!(prepare_retrieve(&mut client, &frame, 7).await, None, "nobody is told where it is");
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
    let refused = ["operation=\"prepare_retrieve\"", "outcome=\"damaged\""];
    assert_eq!(daemon.metric("lmcached_requests_total", &refused).await, 1.0);
    daemon
        .metric_becomes(
            "lmcache_mp_l1_read_failure_total",
            &["reason=\"damaged\"", "during=\"l1_retrieve\""],
            1.0,
        )
        .await;
    daemon.says("an object's bytes in the pool are not those that were committed").await;
    client.call(&Request::EndSession { request_id: "c" }).await.expect("end");
    // What is before it is served, and what is stored again is whole again.
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 2);
    client.call(&Request::EndSession { request_id: "d" }).await.expect("end");
    assert_eq!(store(&mut client, &pool, &model, "e", &tokens, 7, 100).await, 1);
    let frame = model.key("e", &tokens).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!((0..4).all(|chunk| pool.holds(&slots[chunk], 100 + chunk as u64)));
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    for gauge in ["lmcached_l1_leases", "lmcached_l1_pins"] {
        assert_eq!(daemon.metric(gauge, &[]).await, 0.0, "{gauge}");
    }
}

#[tokio::test]
async fn a_scribbled_object_is_not_copied_by_the_daemon_and_survives_no_restart() {
    let mut daemon = Daemon::start(&["--l1-checksums"]).await;
    let kv = KvCache::new("scribble", SHAPE);
    kv.fill();
    let model = SHAPE.model("m");
    let tokens = prompt(2, 2);
    let frame = |request: &str| model.key(request, &tokens).frame(Some(0), 0, 512);
    {
        let mut client = daemon.connect().await;
        let payload = Box::new(kv.registration(7, "m"));
        client.call(&Request::RegisterKvCache(payload)).await.expect("register");
        assert!(server_driven_store(&mut client, &frame("a"), ids(1, 32)).await);
        assert!(server_driven_retrieve(&mut client, &frame("b"), ids(1, 32)).await);
    }
    // Between two daemons: the second has its checksums from the first.
    daemon.crash_and_restart().await;
    let mut client = daemon.connect().await;
    let payload = Box::new(kv.registration(7, "m"));
    client.call(&Request::RegisterKvCache(payload)).await.expect("register");
    assert!(server_driven_retrieve(&mut client, &frame("c"), ids(1, 32)).await);
    // Where the second chunk is, as a worker of the other mode is told.
    client.call(&model.registration(8)).await.expect("register");
    let slots = prepare_retrieve(&mut client, &frame("other"), 8).await.expect("slots");
    assert!(commit_retrieve(&mut client, &frame("other"), 8).await);
    let pool = File::options().write(true).open(daemon.pool_path()).expect("pool");
    pool.write_all_at(b"scribble", slots[1].offset).expect("write");
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 2);
    assert!(!server_driven_retrieve(&mut client, &frame("d"), ids(1, 32)).await);
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
    client.call(&Request::EndSession { request_id: "d" }).await.expect("end");
    assert_eq!(lookup(&mut client, &model, "e", &tokens, 1).await, 1);
    client.call(&Request::EndSession { request_id: "e" }).await.expect("end");
    for gauge in ["lmcached_l1_leases", "lmcached_l1_pins"] {
        assert_eq!(daemon.metric(gauge, &[]).await, 0.0, "{gauge}");
    }
}

/// The storage layer alone: in the daemon nobody can tell when a tier takes an object.
#[tokio::test]
async fn a_scribbled_object_does_not_go_to_a_tier() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = format!("lmcache_l1_pool_tier{}", std::process::id());
    let tier = format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.path().display());
    let args = ["lmcached", "--l1-size-gb=1", &tier].map(std::ffi::OsString::from);
    let config = lmcached::config::parse(args).expect("a command line").config;
    let (l1, _) =
        L1::open(&L1Config { fresh: true, checksums: true, ..L1Config::new(name.clone(), 1 << 20) })
            .expect("memory for a small pool");
    let l1 = Arc::new(l1);
    l1.reserve_memory().expect("memory for a small pool");
    let l2 = control::open(&config.l2, &l1, &Bus::disabled(), &Arc::default()).expect("a directory");
    let cells: Vec<_> = (0..4).map(|number| ([number; 32], 0, 0)).collect();
    let reserved = l1.reserve("m", "", cells.iter().copied(), 7, 8192, None).expect("room");
    let pins: Vec<_> = reserved.iter().map(|object| object.pin).collect();
    l1.seal(&pins);
    assert_eq!(l1.commit(&pins), [true; 4]);
    let pool = File::options().write(true).open(format!("/dev/shm/{name}")).expect("pool");
    pool.write_all_at(b"scribble", reserved[1].offset + 4096).expect("write");
    l2.stores.submit(Batch { model: "m".into(), salt: "".into(), cells, layout: 7, object_bytes: 8192 });
    assert_eq!(l2.stores.flush(Duration::from_secs(60)).await, 0);
    let files = std::fs::read_dir(dir.path()).expect("the tier").flatten();
    let stored = files.filter(|file| file.file_name().to_string_lossy().ends_with(".data")).count();
    assert_eq!((stored, l1.stats().totals.damaged), (3, 1));
    // The task that stored lets go of them after it has told that it is done.
    ipc_tests::eventually("nothing is held", async || (l1.stats().pins == 0).then_some(())).await;
    l1.discard();
    ipc_tests::pool::remove(name.trim_start_matches("lmcache_l1_pool_"));
}

#[tokio::test]
async fn what_came_from_a_tier_has_a_checksum_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let tier = format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.path().display());
    let daemon = Daemon::start(&["--l1-checksums", "--l2-prefetch-policy=retain", &tier]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(3, 2);
    store(&mut client, &pool, &model, "a", &tokens, 7, 100).await;
    client.call(&Request::EndSession { request_id: "a" }).await.expect("end");
    daemon.metric_becomes("lmcache_mp_l2_store_succeeded_keys_total", &[], 2.0).await;
    daemon.clear().await;
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 2, "from the tier");
    let frame = model.key("b", &tokens).frame(Some(0), 0, 512);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!(pool.holds(&slots[1], 101));
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    let scribbled = File::options().write(true).open(daemon.pool_path()).expect("pool");
    scribbled.write_all_at(b"!", slots[1].offset).expect("write");
    assert_eq!(prepare_retrieve(&mut client, &frame, 7).await, None);
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
}

/// A worker that behaves, and is to notice nothing.
struct Bystander {
    client: Connection,
    pool: Pool,
    model: Model,
    cycles: u32,
}

impl Bystander {
    const INSTANCE: u64 = 1;

    async fn new(daemon: &Daemon) -> Bystander {
        let mut client = daemon.connect().await;
        let model = Model { name: "bystander".into(), world_size: 1, layers: 1, width: 64 };
        client.call(&model.registration(Self::INSTANCE)).await.expect("register");
        let mut bystander = Bystander { client, pool: Pool::open(&daemon.pool_path()), model, cycles: 0 };
        bystander.works().await;
        bystander
    }

    /// Stores a prompt; finds and reads that one and the first one.
    async fn works(&mut self) {
        self.cycles += 1;
        let (n, client) = (self.cycles, &mut self.client);
        let known = client.call(&Request::Ping { instance_id: Some(Self::INSTANCE) }).await.expect("ping");
        assert_eq!(known, Response::Flag(true));
        let request = format!("s{n}");
        let stored =
            store(client, &self.pool, &self.model, &request, &prompt(1000 + n, 2), Self::INSTANCE, n.into())
                .await;
        assert_eq!(stored, 2);
        client.call(&Request::EndSession { request_id: &request }).await.expect("end");
        for which in [n, 1] {
            let (request, tokens) = (format!("r{n}-{which}"), prompt(1000 + which, 2));
            assert_eq!(lookup(client, &self.model, &request, &tokens, 1).await, 2);
            let frame = self.model.key(&request, &tokens).frame(Some(0), 0, 512);
            let slots = prepare_retrieve(client, &frame, Self::INSTANCE).await.expect("slots");
            assert!((0..2).all(|chunk| self.pool.holds(&slots[chunk], u64::from(which) + chunk as u64)));
            assert!(commit_retrieve(client, &frame, Self::INSTANCE).await);
            client.call(&Request::EndSession { request_id: &request }).await.expect("end");
        }
    }
}

fn signal(worker: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(worker.id() as i32), signal).expect("signal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_stopped_and_killed_with_all_it_holds() {
    let daemon = Daemon::start(&[]).await;
    let mut bystander = Bystander::new(&daemon).await;
    let mut worker = std::process::Command::new(env!("CARGO_BIN_EXE_ring-worker"))
        .args([&daemon.endpoint(), "42", "hold"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(worker.stdout.take().expect("piped")),
        &mut line,
    )
    .expect("a line");
    assert_eq!(line.trim(), "ready");
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 4.0);
    signal(&worker, Signal::SIGSTOP);
    for _ in 0..10 {
        bystander.works().await;
    }
    // Stopped is not dead: nobody gets what it may go on writing to.
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 4.0);
    assert_eq!(daemon.metric("lmcached_ring_lanes_used", &[]).await, 1.0);
    signal(&worker, Signal::SIGKILL);
    worker.wait().expect("wait");
    for (gauge, value) in
        [("lmcached_l1_pins", 0.0), ("lmcached_l1_leases", 0.0), ("lmcached_ring_lanes_used", 0.0)]
    {
        daemon.metric_becomes(gauge, &[], value).await;
        bystander.works().await;
    }
}

#[tokio::test]
async fn a_worker_disconnects_in_the_middle_of_everything() {
    let daemon = Daemon::start(&["--lease-grace-seconds=0"]).await;
    let mut bystander = Bystander::new(&daemon).await;
    let model = Model::small("m");
    let tokens = prompt(5, 8);
    for round in 0..5u32 {
        let mut client = daemon.connect().await;
        client.call(&model.registration(42)).await.expect("register");
        let pool = Pool::open(&daemon.pool_path());
        store(&mut client, &pool, &model, "s", &tokens[..512], 42, 9).await;
        assert_eq!(lookup(&mut client, &model, &format!("l{round}"), &tokens, 1).await, 2);
        let frame = model.key(&format!("l{round}"), &tokens).frame(Some(0), 0, 512);
        prepare_retrieve(&mut client, &frame, 42).await.expect("slots");
        // A store that is never committed, of another chunk each time; and a request whose answer nobody takes.
        let from = 512 + 256 * u64::from(round);
        let frame = model.key("p", &tokens).frame(Some(0), from, from + 256);
        assert_eq!(prepare_store(&mut client, &frame, 42).await.expect("slots").slots.len(), 1);
        client.send(&Request::Lookup { key: key(&frame), tp_size: 1 }).await.expect("send");
        drop(client);
        bystander.works().await;
    }
    daemon.metric_becomes("lmcached_l1_leases", &[], 0.0).await;
    // Over TCP nobody says that the process is dead, so its slots stay its own: one of each prepare.
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 5.0 * 3.0);
    bystander.works().await;
}

#[tokio::test]
async fn two_workers_register_under_one_id() {
    let daemon = Daemon::start(&[]).await;
    let mut bystander = Bystander::new(&daemon).await;
    let (mut first, mut second) = (daemon.connect().await, daemon.connect().await);
    let pool = Pool::open(&daemon.pool_path());
    let (small, other) = (Model::small("m"), Model { width: 64, ..Model::small("m") });
    let tokens = prompt(6, 2);
    first.call(&small.registration(42)).await.expect("register");
    let frame = small.key("first", &tokens).frame(Some(0), 0, 512);
    let slots = prepare_store(&mut first, &frame, 42).await.expect("slots").slots;
    // The second takes the id with another shape. What the first one has reserved was of the old shape.
    second.call(&other.registration(42)).await.expect("register");
    assert_eq!(daemon.metric("lmcached_l1_quarantined_objects", &[]).await, 2.0);
    assert_eq!(store(&mut second, &pool, &other, "second", &tokens, 42, 50).await, 2);
    bystander.works().await;
    // The first writes on, and commits: its bytes are nobody's, and nobody's bytes are touched.
    for slot in &slots {
        pool.fill(slot, 0xdead);
    }
    assert!(!commit_store(&mut first, &frame, 42).await);
    assert_eq!(daemon.metric("lmcached_l1_quarantined_objects", &[]).await, 0.0);
    let frame = other.key("third", &tokens).frame(Some(0), 0, 512);
    let slots = prepare_retrieve(&mut second, &frame, 42).await.expect("slots");
    assert!(pool.holds(&slots[0], 50) && pool.holds(&slots[1], 51));
    assert!(commit_retrieve(&mut second, &frame, 42).await);
    bystander.works().await;
    assert_eq!(daemon.metric("lmcached_workers", &[]).await, 2.0);
}

#[tokio::test]
async fn a_worker_lies_about_its_layout() {
    let mut daemon = Daemon::start(&[]).await;
    let mut bystander = Bystander::new(&daemon).await;
    let mut client = daemon.connect().await;
    let kv = KvCache::new("lies", SHAPE);
    kv.fill();
    let honest = kv.registration(7, "m");
    let bytes = SHAPE.layer_bytes();
    let model = SHAPE.model("m");
    let frame = model.key("r", &prompt(7, 1)).frame(Some(0), 0, 256);
    let lie = |change: &dyn Fn(&mut u64, &mut TensorMetadata)| {
        let mut payload = honest.clone();
        for descriptor in &mut payload.kv_cache {
            let DeviceDescriptor::CpuShm { nbytes, metadata, .. } = descriptor else { unreachable!("ours") };
            change(nbytes, metadata);
        }
        payload
    };
    let lies: [(&str, RegisterKvCache); 8] = [
        ("the segment is smaller than announced", lie(&|nbytes, _| *nbytes = 2 * bytes)),
        ("more than there is memory", lie(&|nbytes, _| *nbytes = u64::MAX)),
        ("the layout is larger than the segment", lie(&|_, metadata| metadata.shape[1] *= 2)),
        ("sizes that overflow", lie(&|_, metadata| metadata.shape[1] = u64::MAX / 3)),
        ("strides that overflow", lie(&|_, metadata| metadata.stride[0] = u64::MAX / 2)),
        ("strides that leave the segment", lie(&|_, metadata| metadata.stride[1] *= 3)),
        ("an offset behind the end", lie(&|_, metadata| metadata.storage_offset = bytes)),
        ("an offset that overflows", lie(&|_, metadata| metadata.storage_offset = u64::MAX - 1)),
    ];
    for (what, payload) in lies {
        let ack = client.call(&Request::RegisterKvCache(Box::new(payload))).await.expect("acknowledged");
        assert_eq!(ack, Response::Nothing, "{what}");
        assert!(!server_driven_store(&mut client, &frame, ids(1, 16)).await, "{what}");
        assert!(!server_driven_retrieve(&mut client, &frame, ids(1, 16)).await, "{what}");
        bystander.works().await;
    }
    assert_eq!(daemon.metric("lmcached_workers", &[]).await, 1.0, "no lie is kept");
    // The truth is served, and the segment shrunk afterwards: a failed copy, not a SIGBUS.
    client.call(&Request::RegisterKvCache(Box::new(honest))).await.expect("register");
    assert!(server_driven_store(&mut client, &frame, ids(1, 16)).await);
    assert!(server_driven_retrieve(&mut client, &frame, ids(1, 16)).await);
    kv.file(0).set_len(4096).expect("shrink");
    assert!(!server_driven_retrieve(&mut client, &frame, ids(1, 16)).await);
    bystander.works().await;
    assert!(daemon.alive());
}

#[tokio::test]
async fn a_worker_scribbles_over_the_whole_pool() {
    let daemon = Daemon::start(&["--l1-checksums"]).await;
    let mut bystander = Bystander::new(&daemon).await;
    let pool = File::options().write(true).open(daemon.pool_path()).expect("pool");
    let noise: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for at in 0..64 {
        pool.write_all_at(&noise, at << 20).expect("write");
    }
    // Every read of what was there is a miss, and what is stored from now on is right.
    let (client, model) = (&mut bystander.client, &bystander.model);
    let tokens = prompt(1001, 2);
    let frame = model.key("lost", &tokens).frame(Some(0), 0, 512);
    assert_eq!(prepare_retrieve(client, &frame, Bystander::INSTANCE).await, None);
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 2.0);
    assert_eq!(store(client, &bystander.pool, model, "again", &tokens, Bystander::INSTANCE, 1).await, 2);
    bystander.works().await;
}
