//! Who may use the cache: users, groups, and what belongs to them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::other_user::{self, NOBODY, User, open_to_all};
use lmcache_proto::shm::names;

const OTHER_USER: &str = env!("CARGO_BIN_EXE_other-user");

fn socket(daemon: &Daemon) -> (std::path::PathBuf, String) {
    let path = daemon.dir().join("s.sock");
    let endpoint = format!("ipc://{}", path.display());
    (path, endpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_not_served_even_if_the_socket_file_lets_it_in() {
    if !other_user::is_root() {
        return;
    }
    let daemon = Daemon::start(&["--bind=ipc://{dir}/s.sock"]).await;
    let (path, endpoint) = socket(&daemon);
    open_to_all(&path);
    let root = User { uid: 0, gid: 0, groups: &[] };
    assert_eq!(other_user::run(OTHER_USER, root, &endpoint, &["noop"]), ["noop served"]);
    // root's group does not make a root.
    let stranger = User { gid: 0, ..User::NOBODY };
    assert_eq!(other_user::run(OTHER_USER, stranger, &endpoint, &["noop"]), ["noop refused"]);
    daemon.says(&format!("--ipc-allow-uid {NOBODY}")).await;
    assert!(daemon.metric("lmcached_peers_refused_total", &[]).await >= 1.0);
    assert_eq!(other_user::run(OTHER_USER, root, &endpoint, &["noop"]), ["noop served"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_is_named_is_served() {
    if !other_user::is_root() {
        return;
    }
    let allowed = format!("--ipc-allow-uid={NOBODY}");
    let daemon = Daemon::start(&["--bind=ipc://{dir}/s.sock", "--ipc-allow-uid=4711", &allowed]).await;
    let (path, endpoint) = socket(&daemon);
    open_to_all(&path);
    assert_eq!(other_user::run(OTHER_USER, User::NOBODY, &endpoint, &["noop"]), ["noop served"]);
    let stranger = User { uid: NOBODY - 1, gid: NOBODY, groups: &[] };
    assert_eq!(other_user::run(OTHER_USER, stranger, &endpoint, &["noop"]), ["noop refused"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_registers_its_own_memory_and_nobody_elses() {
    if !other_user::is_root() {
        return;
    }
    let allowed = format!("--ipc-allow-uid={NOBODY}");
    let daemon = Daemon::start(&["--bind=ipc://{dir}/s.sock", &allowed]).await;
    let (path, endpoint) = socket(&daemon);
    open_to_all(&path);
    let name = format!("owner{}", std::process::id());
    let shape = Shape { layers: 1, blocks: 32, block: 16, heads: 2, head: 32 };
    let roots = KvCache::named(&name, shape);
    roots.fill();
    // Only the daemon can open it, and it does not do so for others.
    assert_eq!(other_user::run(OTHER_USER, User::NOBODY, &endpoint, &["kv", &name]), ["kv refused"]);
    daemon
        .says(&format!("belongs to user 0, and this connection may only register segments of user {NOBODY}"))
        .await;
    let root = User { uid: 0, gid: 0, groups: &[] };
    assert_eq!(other_user::run(OTHER_USER, root, &endpoint, &["kv", &name]), ["kv served"]);
    drop(roots);
    // The same names, made by the worker itself.
    daemon.clear().await;
    assert_eq!(other_user::run(OTHER_USER, User::NOBODY, &endpoint, &["kv", &name]), ["kv served"]);
}

/// Mode and group of a file.
fn mode(path: &Path) -> (u32, u32) {
    let meta = std::fs::metadata(path).expect("it is there");
    (meta.mode() & 0o777, meta.gid())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_group_map_the_pool_and_others_do_not() {
    const GROUP: u32 = 54_321;
    if !other_user::is_root() {
        return;
    }
    let mut daemon = Daemon::start(&["--bind=ipc://{dir}/s.sock"]).await;
    let (path, endpoint) = socket(&daemon);
    let open_folder = || {
        let permissions = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(daemon.dir(), permissions).expect("chmod");
    };
    open_folder();
    let (pool, ring) = (daemon.pool_path(), daemon.ring_path());
    let table =
        format!("/dev/shm/{}", names::table(pool.file_name().expect("a name").to_str().expect("text")));
    let inode = || std::fs::metadata(&pool).expect("the pool").ino();
    let before = inode();
    for file in [&pool, &ring, Path::new(&table), &path] {
        assert_eq!(mode(file).0, 0o600, "{}", file.display());
    }
    let member = User { groups: &[7, GROUP], ..User::NOBODY };
    let pool_path = pool.to_str().expect("text");
    let steps = ["noop", "pool", pool_path, "pool", &table];
    let kept_out = ["noop refused", "pool permission denied", "pool permission denied"];
    assert_eq!(other_user::run(OTHER_USER, member, &endpoint, &steps), kept_out);

    let group = format!("--shm-group={GROUP}");
    daemon.restart_with(&[&group]).await;
    assert_eq!(inode(), before, "the pool is taken over");
    for file in [&pool, &ring, &path] {
        assert_eq!(mode(file), (0o660, GROUP), "{}", file.display());
    }
    assert_eq!(mode(Path::new(&table)).0, 0o600);
    let served = ["noop served", "pool served", "pool permission denied", "store served with a lane"];
    let steps = [&steps[..], &["store"]].concat();
    assert_eq!(other_user::run(OTHER_USER, member, &endpoint, &steps), served);
    assert_eq!(other_user::run(OTHER_USER, User::NOBODY, &endpoint, &steps[..5]), kept_out);
    // The file lets everybody in, the daemon does not.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    assert_eq!(other_user::run(OTHER_USER, User::NOBODY, &endpoint, &["noop"]), ["noop refused"]);
    assert_eq!(
        other_user::run(OTHER_USER, User { gid: GROUP, ..User::NOBODY }, &endpoint, &["noop"]),
        ["noop served"]
    );

    daemon.crash_and_restart().await;
    assert_eq!((inode(), mode(&pool)), (before, (0o660, GROUP)), "its own pool, also with the group");
    daemon
        .says("took over what the earlier daemon left; dropped is what was unfinished or damaged objects=1")
        .await;

    // Another group: those of the first one may still have the old memory mapped.
    daemon.restart_with(&["--shm-group=54322"]).await;
    assert_ne!(inode(), before);
    assert_eq!(mode(&pool), (0o660, 54_322));
    daemon.says("field=\"group\"").await;
}

#[tokio::test]
async fn tcp_off_loopback_is_asked_for_and_said_loudly() {
    let remote = "can be reached from other machines";
    let daemon = Daemon::start(&[]).await;
    assert!(!daemon.log().iter().any(|line| line.contains(remote)), "the default is for this machine");
    let daemon = Daemon::start(&["--host=0.0.0.0"]).await;
    daemon.says(remote).await;
    assert!(daemon.log().iter().any(|line| line.contains("WARN") && line.contains(remote)));
}
