//! Real stores for the L2 tests, each on its own port and directory, killed when dropped.
//!
//! `ipc-tests/servers.sh` installs them. Where a binary is missing, a test says so and returns, unless
//! `LMCACHED_REQUIRE_SERVERS` is set, as it is in the gate.

mod redis;
mod s3;

pub use redis::{Cluster, Flavor, RedisServer, Reply, command};
pub use s3::S3Server;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// A server's binary. `None`: not installed, and that is allowed here.
///
/// # Panics
/// It is not installed and `LMCACHED_REQUIRE_SERVERS` is set.
pub fn find(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers/bin");
    let given = std::env::var_os("LMCACHED_SERVERS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = given
        .into_iter()
        .chain([own])
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|p| p.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("LMCACHED_REQUIRE_SERVERS").is_none(),
            "{name} is missing: run ipc-tests/servers.sh"
        );
        eprintln!("SKIPPED: no {name} on this machine (ipc-tests/servers.sh installs it)");
    }
    found
}

/// A running server process.
#[derive(Debug)]
pub struct Process {
    program: PathBuf,
    args: Vec<String>,
    port: u16,
    child: Child,
}

impl Process {
    /// Starts it and waits until it accepts connections on `port`.
    async fn start(program: PathBuf, args: Vec<String>, port: u16) -> Process {
        let child = spawn(&program, &args);
        let mut process = Process { program, args, port, child };
        process.ready().await;
        process
    }

    async fn ready(&mut self) {
        let port = self.port;
        eventually("the server accepts connections", async || {
            let gone = self.child.try_wait().expect("wait");
            assert!(gone.is_none(), "{} ended at its start: {gone:?}", self.program.display());
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Starts it again, on the same port, with the same arguments.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.program, &self.args);
        self.ready().await;
    }

    /// Stops it, so that it accepts connections and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signals its child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, args: &[String]) -> Child {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{} starts: {error}", program.display()))
}
