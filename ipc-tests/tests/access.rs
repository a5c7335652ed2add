//! Who may use the cache: users, groups, and what belongs to them.

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::other_user::{self, NOBODY, User, open_to_all};

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
