//! Tokens that bind connections to cache salts: who may use what, and that there is no way round.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::eventually;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, key, prepare_retrieve, prepare_store, prompt};
use lmcache_client::{Client, ClientError, Connection, Options, Prompt, Registration};
use lmcache_proto::wire::{Operation, Request, Response, Secret};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const A: &str = "0123456789abcdef-a";
const B: &str = "0123456789abcdef-b";
const TOKENS: &str = "# tenants\n0123456789abcdef-a one shared\n0123456789abcdef-b two shared\n";

/// A file of tokens, as an operator makes and changes it.
struct File {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> File {
        let dir = tempfile::tempdir().expect("a directory");
        let file = File { path: dir.path().join("tokens"), _dir: dir };
        file.becomes(text, 0o400);
        file
    }

    /// Whole at every moment, so that the daemon reads the one or the other.
    fn becomes(&self, text: &str, mode: u32) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).expect("written");
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).expect("chmod");
        std::fs::rename(&new, &self.path).expect("renamed");
    }

    fn flag(&self) -> String {
        format!("--tenant-tokens-file={}", self.path.display())
    }
}

async fn shows(client: &mut Connection, token: &str) -> bool {
    let answer = client.call(&Request::Authenticate { token: Secret(token) }).await;
    answer.expect("an answer") == Response::Flag(true)
}

/// A connection that has shown a token.
async fn of(daemon: &Daemon, token: &str) -> Connection {
    let mut client = daemon.connect().await;
    assert!(shows(&mut client, token).await);
    client
}

async fn pings(client: &mut Connection, instance: u64) -> bool {
    client.call(&Request::Ping { instance_id: Some(instance) }).await.expect("ping") == Response::Flag(true)
}

async fn wrong_tenant(daemon: &Daemon) -> f64 {
    daemon.metric("lmcached_requests_total", &["outcome=\"wrong_tenant\""]).await
}

/// SIGHUP, and what the daemon says of it.
async fn reload(daemon: &Daemon, says: &str) {
    let count = || daemon.log().iter().filter(|line| line.contains(says)).count();
    let before = count();
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP).expect("signal");
    eventually("the file is read", async || (count() > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_binds_a_connection_to_its_salts() {
    let file = File::new(TOKENS);
    let daemon = Daemon::start(&[&file.flag()]).await;
    let connect = async |token: Option<&str>, instance| {
        let options = token.map_or_else(Options::default, |token| Options::default().token(token));
        let client = Client::connect(&daemon.endpoint(), options).await?;
        client.register(Registration::new(instance, "m").geometry(2, 128, "float16")).await?;
        Ok::<Client, ClientError>(client)
    };
    let (a, b) = (connect(Some(A), 1).await, connect(Some(B), 2).await);
    let (a, b, nobody) = (a.expect("a"), b.expect("b"), connect(None, 3).await.expect("of this machine"));
    let unknown = connect(Some("0123456789abcdef-c"), 4).await;
    assert!(matches!(unknown, Err(ClientError::Refused(Operation::Authenticate))), "{unknown:?}");

    let tokens = prompt(1, 2);
    let stores = async |client: &Client, salt: &str| {
        let prompt = Prompt::new(salt, &tokens).salt(salt);
        let mut store = client.prepare_store(&prompt, 0..512).await?;
        store.slots_mut().for_each(|(_, bytes)| bytes.fill(7));
        store.commit().await
    };
    let finds = async |client: &Client, salt: &str| {
        let request = format!("find-{salt}");
        let prompt = Prompt::new(&request, &tokens).salt(salt);
        let found = client.lookup(&prompt, Duration::from_secs(60)).await.expect("an answer");
        let read = client.prepare_retrieve(&prompt, 0..512).await.map(drop);
        client.end_session(&request).await.expect("an answer");
        (found, read.is_ok())
    };
    for (client, salt) in [(&a, "one"), (&b, "two"), (&a, "shared"), (&nobody, "free")] {
        stores(client, salt).await.expect(salt);
        assert_eq!(finds(client, salt).await, (Some(2), true), "{salt}");
    }
    assert_eq!(finds(&b, "shared").await, (Some(2), true));
    for (client, salt) in [(&a, "two"), (&b, "one"), (&a, "free"), (&nobody, "one"), (&nobody, "shared")] {
        assert!(matches!(stores(client, salt).await, Err(ClientError::Refused(_))), "{salt}");
        assert_eq!(finds(client, salt).await, (Some(0), false), "{salt}");
    }
    let mut raw = daemon.connect().await;
    let objects = daemon.metric("lmcached_l1_objects", &[]).await;
    assert_eq!(raw.call(&Request::Clear { force: true }).await.expect("an answer"), Response::Nothing);
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, objects, "not everybody's to clear");
    assert!(daemon.metric("lmcached_requests_total", &["outcome=\"wrong_tenant\""]).await >= 16.0);
    // One connection is one tenant's.
    assert!(shows(&mut raw, A).await && !shows(&mut raw, B).await && shows(&mut raw, A).await);
    let shown = daemon.log().into_iter().filter(|line| line.contains("0123456789abcdef")).count();
    assert_eq!(shown, 0, "no log line has a token");
}

#[tokio::test]
async fn without_tenants_a_token_opens_nothing() {
    let daemon = Daemon::start(&[]).await;
    let answer = Client::connect(&daemon.endpoint(), Options::default().token("0123456789abcdef")).await;
    assert!(matches!(answer, Err(ClientError::Refused(Operation::Authenticate))), "{answer:?}");
    daemon.says("--tenant-tokens-file").await;
}

#[tokio::test]
async fn a_client_shows_its_token_again_when_it_connects_again() {
    let file = File::new(TOKENS);
    let mut daemon = Daemon::start(&[&file.flag()]).await;
    let client = Client::connect(&daemon.endpoint(), Options::default().token(A)).await.expect("connect");
    assert!(!format!("{client:?}").contains(A) && !format!("{:?}", Options::default().token(A)).contains(A));
    client.register(Registration::new(1, "m").geometry(2, 128, "float16")).await.expect("register");
    let stores = async |seed| {
        let tokens = prompt(seed, 1);
        let store = client.prepare_store(&Prompt::new("r", &tokens).salt("one"), 0..256).await?;
        store.commit().await
    };
    stores(1).await.expect("stored");
    daemon.crash_and_restart().await;
    // A call may find that the old connection is broken; the next one connects, shows the token and is served.
    eventually("stored again", async || stores(2).await.ok()).await;
    file.becomes("0123456789abcdef-b two\n", 0o400);
    daemon.crash_and_restart().await;
    let refused = eventually("it is told", async || match stores(3).await {
        Err(error @ ClientError::Refused(_)) => Some(error),
        _ => None,
    })
    .await;
    assert!(matches!(refused, ClientError::Refused(Operation::Authenticate)), "{refused}");
}

#[tokio::test]
async fn a_token_that_is_required_is_required_of_this_machine_too() {
    let file = File::new(TOKENS);
    let daemon = Daemon::start(&[&file.flag(), "--tenant-token-required", "--bind=ipc://{dir}/s.sock"]).await;
    let model = Model::small("m");
    let socket = format!("ipc://{}", daemon.dir().join("s.sock").display());
    for endpoint in [daemon.endpoint(), socket] {
        let mut nobody = Connection::connect(&endpoint, Duration::from_secs(30)).await.expect("connect");
        assert_eq!(nobody.call(&Request::Noop).await.expect("an answer"), Response::Text("OK"));
        let registered = nobody.call(&model.registration(1)).await.expect("an answer");
        assert!(
            matches!(registered, Response::Registered(response) if response.pool_size == 0),
            "{endpoint}"
        );
        let frame = model.key("r", &prompt(1, 1)).salt("free").frame(Some(0), 0, 256);
        assert_eq!(prepare_store(&mut nobody, &frame, 1).await, None);
        assert!(shows(&mut nobody, A).await);
        let registered = nobody.call(&model.registration(1)).await.expect("an answer");
        assert!(matches!(registered, Response::Registered(response) if response.pool_size > 0), "{endpoint}");
        nobody.call(&Request::UnregisterEngineDriven { instance_id: 1 }).await.expect("an answer");
    }
    daemon.says("--tenant-token-required").await;
    assert_eq!(wrong_tenant(&daemon).await, 4.0);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_ends_the_start_with_a_line() {
    let file = File::new(TOKENS);
    for (text, mode, says) in [
        (TOKENS, 0o404, "mode 404 lets others read or change the tokens"),
        (TOKENS, 0o420, "mode 420 lets others read or change the tokens"),
        ("0123456789abcdef-a one\nshort two\n", 0o400, "line 2"),
        ("0123456789abcdef-a\n", 0o400, "line 1: the token has no cache salt"),
    ] {
        file.becomes(text, mode);
        let mut daemon = Daemon::launch(&[], &[&file.flag()]);
        assert_eq!(daemon.ends().await, Some(1), "{says}");
        daemon.says(says).await;
        assert!(!daemon.log().iter().any(|line| line.contains("0123456789abcdef")), "no line has a token");
    }
    let missing = format!("--tenant-tokens-file={}", Path::new("/nowhere/tokens").display());
    let mut daemon = Daemon::launch(&[], &[&missing]);
    assert_eq!(daemon.ends().await, Some(1));
    daemon.says("/nowhere/tokens: cannot be read").await;
    let mut daemon = Daemon::launch(&[], &["--tenant-token-required"]);
    assert_eq!(daemon.ends().await, Some(2));
    daemon.says("give --tenant-tokens-file").await;
}

#[tokio::test]
async fn the_file_is_read_again_when_the_daemon_is_told_to() {
    const READ: &str = "the tokens of the tenants were read again";
    const KEPT: &str = "the tokens of the tenants stay as they were";
    let file = File::new(TOKENS);
    let mut daemon = Daemon::start(&[&file.flag()]).await;
    let model = Model::small("m");
    let frame = |n| model.key("r", &prompt(n, 1)).salt("one").frame(Some(0), 0, 256);
    let mut a = of(&daemon, A).await;
    a.call(&model.registration(1)).await.expect("register");
    assert!(prepare_store(&mut a, &frame(1), 1).await.is_some());
    // What cannot be used changes nothing.
    for (n, text, mode) in [(10, "", 0o444), (11, "short one\n", 0o400)] {
        file.becomes(text, mode);
        reload(&daemon, KEPT).await;
        assert!(prepare_store(&mut a, &frame(n), 1).await.is_some());
    }
    // The token of the same salts is another: the old one is refused at once, also where it was shown before.
    const NEW: &str = "0123456789abcdef-new";
    file.becomes(&format!("{NEW} shared one\n{B} two\n"), 0o400);
    reload(&daemon, READ).await;
    assert_eq!(prepare_store(&mut a, &frame(3), 1).await, None);
    daemon.says("its token is not in the file any more").await;
    assert!(!shows(&mut daemon.connect().await, A).await);
    assert!(!shows(&mut a, NEW).await, "a connection stays what it was");
    // The worker is the tenant's, whose token has changed: it need not register again.
    let mut new = of(&daemon, NEW).await;
    assert!(pings(&mut new, 1).await);
    assert!(prepare_store(&mut new, &frame(4), 1).await.is_some());
    // And what a salt is taken from is refused too.
    let mut b = of(&daemon, B).await;
    b.call(&model.registration(2)).await.expect("register");
    let shared = model.key("r", &prompt(1, 1)).salt("shared").frame(Some(0), 0, 256);
    assert_eq!(prepare_store(&mut b, &shared, 2).await, None);
    assert!(daemon.alive());
    let shown = daemon.log().into_iter().filter(|line| line.contains("0123456789abcdef")).count();
    assert_eq!(shown, 0, "no log line has a token");
}

#[tokio::test]
async fn a_request_of_another_tenant_is_neither_asked_for_nor_ended() {
    let file = File::new(TOKENS);
    let daemon = Daemon::start(&[&file.flag(), "--lease-grace-seconds=600"]).await;
    let (model, tokens) = (Model::small("m"), prompt(1, 2));
    let pool = Pool::open(&daemon.pool_path());
    let mut a = of(&daemon, A).await;
    a.call(&model.registration(1)).await.expect("register");
    let frame = model.key("s", &tokens).salt("one").frame(Some(0), 0, 512);
    let context = prepare_store(&mut a, &frame, 1).await.expect("slots");
    context.slots.iter().for_each(|slot| pool.fill(slot, 5));
    assert!(ipc_tests::worker::commit_store(&mut a, &frame, 1).await);
    let mut scheduler = of(&daemon, A).await;
    let lookup = model.key("r", &tokens).salt("one").readers(1).frame(None, 0, 512);
    scheduler.call(&Request::Lookup { key: key(&lookup), tp_size: 1 }).await.expect("lookup");
    drop(scheduler);
    daemon.metric_becomes("lmcached_connections", &[], 1.0).await;
    // The connection is gone, its leases wait for it to come back. Who else knows the request's id gets nothing of it.
    let (mut b, mut nobody) = (of(&daemon, B).await, daemon.connect().await);
    for other in [&mut b, &mut nobody] {
        let status = other.call(&Request::QueryPrefetchStatus { request_id: "r" }).await;
        assert_eq!(status.expect("status"), Response::Count(0));
        let status = other.call(&Request::WaitPrefetchStatus { request_id: "r", timeout: 0.1 }).await;
        assert_eq!(status.expect("status"), Response::Count(0));
        other.call(&Request::EndSession { request_id: "r" }).await.expect("end");
        let free = model.key("r", &tokens).salt("two").frame(None, 0, 512);
        other.call(&Request::FreeLookupLocks { key: key(&free), tp_size: 1 }).await.expect("free");
        assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 2.0);
    }
    let status = a.call(&Request::QueryPrefetchStatus { request_id: "r" }).await.expect("status");
    assert_eq!(status, Response::Count(2), "the tenant itself has come back");
    a.call(&Request::EndSession { request_id: "r" }).await.expect("end");
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0);
}

#[tokio::test]
async fn the_memory_of_another_tenant_s_worker_is_neither_read_nor_written() {
    const SHAPE: Shape = Shape::SMALL;
    let file = File::new(TOKENS);
    let mut daemon = Daemon::start(&[&file.flag()]).await;
    let (victim, thief) = (KvCache::new("victim", SHAPE), KvCache::new("thief", SHAPE));
    victim.fill();
    let before = victim.block(1);
    let blocks = || vec![(1..17).collect::<Vec<u64>>()];
    let tokens = prompt(1, 1);
    let model = Model::small("m");
    let frame = |salt: &str| model.key("r", &tokens).salt(salt).frame(Some(0), 0, 256);
    let store = async |client: &mut Connection, instance, frame: &[u8]| {
        let request =
            Request::Store { key: key(frame), instance_id: instance, block_ids: blocks(), event: b"ev" };
        matches!(client.call(&request).await.expect("store"), Response::Transfer(_, true))
    };
    let retrieve = async |client: &mut Connection, instance, frame: &[u8]| {
        let request = Request::Retrieve {
            key: key(frame),
            instance_id: instance,
            block_ids: blocks(),
            event: b"ev",
            skip_first_n_tokens: 0,
        };
        matches!(client.call(&request).await.expect("retrieve"), Response::Transfer(_, true))
    };
    let register = async |client: &mut Connection, kv: &KvCache, instance| {
        let payload = Box::new(kv.registration(instance, "m"));
        client.call(&Request::RegisterKvCache(payload)).await.expect("acknowledged");
    };
    let mut a = of(&daemon, A).await;
    register(&mut a, &victim, 1).await;
    assert!(store(&mut a, 1, &frame("one")).await);
    // The same before and after a restart, which knows the workers from the earlier daemon.
    for round in 0..2 {
        let (mut b, mut nobody) = (of(&daemon, B).await, daemon.connect().await);
        register(&mut b, &thief, 2).await;
        assert!(store(&mut b, 2, &frame("two")).await, "round {round}");
        for (other, salt) in [(&mut b, "two"), (&mut nobody, "free")] {
            // The other's blocks into one's own salt, one's own objects into the other's blocks, and the other's id.
            assert!(!store(other, 1, &frame(salt)).await);
            assert!(!retrieve(other, 1, &frame(salt)).await);
            register(other, &thief, 1).await;
            other.call(&Request::UnregisterKvCache { instance_id: 1 }).await.expect("acknowledged");
            let attach = Request::AttachRing { instance_id: 1, process: None };
            let lane = other.call(&attach).await.expect("an answer");
            assert!(matches!(lane, Response::RingAttached(lane) if lane.ring_name.is_empty()));
            assert!(!retrieve(other, 2, &frame("one")).await, "nor a salt that is not its own");
        }
        assert!(!pings(&mut b, 1).await, "to others it is not there");
        assert_eq!(victim.block(1), before);
        if round == 0 {
            daemon.crash_and_restart().await;
        }
    }
    // Known from the earlier daemon, and still its tenant's: that one is told of the restart, and registers again.
    let mut a = of(&daemon, A).await;
    assert!(!pings(&mut a, 1).await && pings(&mut a, 1).await);
    register(&mut a, &victim, 1).await;
    assert!(retrieve(&mut a, 1, &frame("one")).await);
    assert_eq!(victim.block(1), before);
}

#[tokio::test]
async fn an_admin_api_without_a_token_is_said_to_stand_beside_the_gate() {
    const SAYS: &str = "but the admin API serves every process of this machine";
    let file = File::new(TOKENS);
    let daemon = Daemon::start(&[&file.flag()]).await;
    daemon.says(SAYS).await;
    let secret = File::new("0123456789abcdef0123456789abcdef\n");
    let guarded = format!("--http-token-file={}", secret.path.display());
    let daemon = Daemon::start(&[&file.flag(), &guarded]).await;
    daemon.says("connections are bound to cache salts by token").await;
    assert!(!daemon.log().iter().any(|line| line.contains(SAYS)));
}

/// An address of this machine by which it is reached as from another one: the one that it would send from. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

#[tokio::test]
async fn who_comes_over_the_network_has_to_show_a_token() {
    // Without any network there is no such connection; `every_operation_is_behind_the_gate` stands for it everywhere.
    let Some(address) = own_address() else { return };
    let file = File::new(TOKENS);
    let daemon = Daemon::start(&[&file.flag(), "--host=0.0.0.0"]).await;
    daemon.says("requests for the cache need a token").await;
    let model = Model::small("m");
    let endpoint = format!("tcp://{address}:{}", daemon.port());
    let mut remote = Connection::connect(&endpoint, Duration::from_secs(30)).await.expect("connect");
    assert!(matches!(remote.call(&Request::GetChunkSize).await, Ok(Response::Count(256))));
    let refused = remote.call(&model.registration(1)).await.expect("an answer");
    assert!(matches!(refused, Response::Registered(response) if response.pool_size == 0));
    let frame = model.key("r", &prompt(1, 1)).salt("free").frame(Some(0), 0, 256);
    assert_eq!(prepare_retrieve(&mut remote, &frame, 1).await, None);
    assert_eq!(wrong_tenant(&daemon).await, 2.0);
    daemon.says("from another machine, without a token").await;
    assert!(shows(&mut remote, A).await);
    let served = remote.call(&model.registration(1)).await.expect("an answer");
    assert!(matches!(served, Response::Registered(response) if response.pool_size > 0));
}
