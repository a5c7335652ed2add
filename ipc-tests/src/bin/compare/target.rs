//! The three servers under load, each a process of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipc_tests::daemon::free_port;
use lmcache_client::Connection;
use lmcache_proto::wire::Request;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend};

/// Bytes of the pool in both caches.
const POOL_GIB: &str = "2";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bare ROUTER that sends everything back.
    Echo,
    /// lmcached.
    Lmcached,
    /// LMCache's own server.
    Peer,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Echo => "bare echo",
            Kind::Lmcached => "lmcached",
            Kind::Peer => "lmcache 0.5.6",
        }
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) endpoint: String,
    /// Port of its admin API, where it has one.
    pub(crate) http_port: u16,
    /// From process start to the first answer.
    pub(crate) first_ping: Duration,
    child: Child,
    pool: Option<String>,
}

impl Target {
    pub(crate) async fn start_echo() -> Target {
        let port = free_port();
        let exe = std::env::current_exe().expect("own path");
        let mut command = Command::new(exe);
        command.args(["echo", &port.to_string()]);
        Target::start(Kind::Echo, command, (port, 0), None).await
    }

    pub(crate) async fn start_daemon(binary: &Path, extra: &[&str]) -> Target {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (port, name) = (free_port(), format!("compare{}_{number}", std::process::id()));
        let mut command = Command::new(binary);
        let http_port = free_port();
        command
            .args(common(port, http_port, &name))
            .arg(format!("--prometheus-port={}", free_port()))
            .args(extra);
        // Both log to nowhere at their default levels.
        Target::start(Kind::Lmcached, command, (port, http_port), Some(name)).await
    }

    pub(crate) async fn start_peer(binary: &Path) -> Target {
        let (port, name) = (free_port(), format!("comparepeer{}", std::process::id()));
        let mut command = Command::new(binary);
        let http_port = free_port();
        command.arg("server").args(common(port, http_port, &name)).args([
            "--supported-transfer-mode",
            "auto",
            "--no-l1-use-lazy",
        ]);
        Target::start(Kind::Peer, command, (port, http_port), Some(name)).await
    }

    async fn start(
        kind: Kind,
        mut command: Command,
        (port, http_port): (u16, u16),
        pool: Option<String>,
    ) -> Target {
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", kind.name()));
        let endpoint = format!("tcp://127.0.0.1:{port}");
        loop {
            assert!(started.elapsed() < Duration::from_secs(120), "{} does not answer", kind.name());
            // Not through the client's own connect: it would wait and retry with a back-off of its own.
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            }
            let mut client = Connection::connect(&endpoint, Duration::from_secs(60)).await.expect("connect");
            let ping = Request::Ping { instance_id: None };
            let uid = client.send(&ping).await.expect("send");
            // The echo answers with the request itself, which is no ping response: only its arrival counts.
            let answer = client.receive().await.expect("answer");
            assert_eq!(answer[0], uid);
            break;
        }
        Target { kind, endpoint, http_port, first_ping: started.elapsed(), child, pool }
    }

    /// CPU time that the process has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("command name").1.split_whitespace().collect();
        let ticks: u64 = [11, 12].iter().map(|field| fields[*field].parse::<u64>().expect("ticks")).sum();
        // USER_HZ is 100 on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// The same in nanoseconds, of the threads that live.
    pub(crate) fn cpu_ns(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("threads");
        let of_task = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
        };
        tasks.flatten().map(of_task).sum()
    }

    /// Anonymous memory.
    pub(crate) fn anonymous_kib(&self) -> u64 {
        ipc_tests::anonymous_kib(self.child.id())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
        if let Some(name) = &self.pool {
            ipc_tests::pool::remove(name);
        }
    }
}

fn common(port: u16, http_port: u16, name: &str) -> Vec<String> {
    vec![
        "--host=127.0.0.1".into(),
        format!("--port={port}"),
        format!("--http-port={http_port}"),
        format!("--l1-size-gb={POOL_GIB}"),
        "--eviction-policy=LRU".into(),
        format!("--shm-name={name}"),
    ]
}

/// The floor: receive, send back.
pub(crate) async fn echo(port: u16) {
    let mut router = RouterSocket::new();
    router.bind(&format!("tcp://127.0.0.1:{port}")).await.expect("bind");
    while let Ok(message) = router.recv().await {
        let _ = router.send(message).await;
    }
}
