//! GPUs for tests: the tests' own `libcuda.so.1` over shared memory, or with `LMCACHED_GPU=real` the one of the machine; and
//! worker processes with memory on them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use lmcache_proto::wire::Request;
use parking_lot::Mutex;

use crate::call::{self, hex, unhex};
use crate::daemon::{binary, cargo};

/// Whether the machine's own GPU is to be used.
pub fn real() -> bool {
    std::env::var("LMCACHED_GPU").is_ok_and(|which| which == "real")
}

/// The tests' driver, built once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = binary().parent().expect("target/<profile>").to_owned();
        let mut build = cargo();
        build.args(["build", "--quiet", "--package", "fake-cuda"]);
        if directory.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the library builds");
        directory.join("libfake_cuda.so")
    })
}

/// GPUs that the processes of one test see.
#[derive(Debug)]
pub struct Gpus {
    name: String,
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
    faults: String,
}

impl Gpus {
    /// This many, with further variables for the tests' driver.
    ///
    /// # Panics
    /// If the driver cannot be built.
    pub fn new(devices: u32, more: &[(&str, &str)]) -> Gpus {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fakecuda{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut environment = Vec::new();
        if !real() {
            for file in ["libcuda.so", "libcuda.so.1"] {
                std::os::unix::fs::symlink(library(), dir.path().join(file)).expect("link");
            }
            let text = |path: &Path| path.display().to_string();
            environment.push(("LD_LIBRARY_PATH".to_owned(), text(dir.path())));
            environment.push(("FAKE_CUDA_NAME".to_owned(), name.clone()));
            environment.push(("FAKE_CUDA_DEVICES".to_owned(), devices.to_string()));
            environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        }
        let faults = dir.path().join("faults");
        std::fs::write(&faults, "").expect("a file");
        Gpus { name, faults: faults.display().to_string(), dir, environment }
    }

    /// What a process must have in its environment to see them.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// The same for a daemon, in which the driver's calls fail as [`Gpus::faults`] says.
    pub fn of_daemon(&self) -> Vec<(&str, &str)> {
        let mut environment = self.environment();
        if !real() {
            environment.push(("FAKE_CUDA_FAULTS", &self.faults));
        }
        environment
    }

    /// Makes calls of the driver fail in the daemon from now on; see `fake-cuda/src/inject.rs`.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn faults(&self, lines: &str) {
        let (new, file) = (self.dir.path().join("faults.new"), self.dir.path().join("faults"));
        std::fs::write(&new, lines).and_then(|()| std::fs::rename(new, file)).expect("a file");
    }

    /// Allocations of the tests' driver that a process has mapped.
    pub fn mapped_by(&self, pid: u32) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let prefix = format!("/dev/shm/{}_mem_", self.name);
        maps.lines().filter(|line| line.contains(&prefix)).count()
    }

    /// Devices of which a process has a context.
    pub fn contexts_of(&self, pid: u32) -> Vec<u32> {
        let prefix = format!("{}_context_{pid}_", self.name);
        let names =
            std::fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut devices: Vec<u32> =
            names.filter_map(|name| name.to_string_lossy().strip_prefix(&prefix)?.parse().ok()).collect();
        devices.sort_unstable();
        devices
    }

    /// Starts a worker on a device, as it is numbered among those that `visible` shows it.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn worker(&self, ordinal: u32, visible: Option<&str>) -> GpuWorker {
        // Another program may stand in for it, one that takes its memory from torch: `ipc-tests/gpu/torch_worker.py`.
        let mut command = match std::env::var("LMCACHED_GPU_WORKER") {
            Ok(words) => {
                let mut words = words.split_whitespace();
                let mut command = Command::new(words.next().expect("a program"));
                command.args(words);
                command
            }
            Err(_) => Command::new(binary().with_file_name("gpu-worker")),
        };
        command.arg(ordinal.to_string()).envs(self.environment());
        if let Some(visible) = visible {
            command.env("CUDA_VISIBLE_DEVICES", visible);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the worker starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let talk = Mutex::new((input, BufReader::new(output)));
        let mut worker =
            GpuWorker { child, talk, uuid: String::new(), dir: tempfile::tempdir().expect("a directory") };
        assert_eq!(worker.answer(), "ready");
        let uuid = worker.ask("uuid");
        worker.uuid =
            [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| &uuid[from..to]).join("-");
        worker
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{}_", self.name)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Memory of a worker's.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// By which the worker knows it.
    pub number: u64,
    /// The driver's handle.
    pub handle: Vec<u8>,
    /// Where it is in what the handle names.
    pub offset: u64,
    /// What torch would export.
    pub torch: Vec<u8>,
}

/// A worker process; killed when dropped.
#[derive(Debug)]
pub struct GpuWorker {
    child: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    /// Of its device.
    pub uuid: String,
    dir: tempfile::TempDir,
}

impl GpuWorker {
    fn answer(&self) -> String {
        let mut line = String::new();
        self.talk.lock().1.read_line(&mut line).expect("the worker answers");
        assert!(line.ends_with('\n'), "the worker has ended");
        line.trim_end().to_owned()
    }

    /// Has a command done; see `bin/gpu-worker.rs`.
    ///
    /// # Panics
    /// If the worker has ended.
    pub fn ask(&self, command: &str) -> String {
        let mut talk = self.talk.lock();
        writeln!(talk.0, "{command}").expect("the worker listens");
        let mut line = String::new();
        talk.1.read_line(&mut line).expect("the worker answers");
        assert!(line.ends_with('\n'), "the worker has ended after {command:?}");
        line.trim_end().to_owned()
    }

    /// Has the worker send a request itself, on a connection of its own process; the answer as [`call::line`] has it, or what went
    /// wrong behind `error`.
    pub fn call(&self, endpoint: &str, request: &Request<'_>) -> String {
        let path = self.dir.path().join("request");
        call::write(&path, request);
        self.ask(&format!("call {endpoint} {} {}", request.operation().name(), path.display()))
    }

    /// Allocates GPU memory.
    pub fn alloc(&self, bytes: u64) -> Allocation {
        let answer = self.ask(&format!("alloc {bytes}"));
        let words: Vec<&str> = answer.split(' ').collect();
        let [number, handle, offset, torch] = words[..] else { panic!("an allocation is {answer:?}") };
        Allocation {
            number: number.parse().expect("a number"),
            handle: unhex(handle),
            offset: offset.parse().expect("an offset"),
            torch: unhex(torch),
        }
    }

    /// Writes all of an allocation.
    pub fn load(&self, memory: u64, data: &[u8]) {
        let path = self.dir.path().join("load");
        std::fs::write(&path, data).expect("a file");
        assert_eq!(self.ask(&format!("load {memory} {}", path.display())), "ok");
    }

    /// Reads all of an allocation.
    pub fn dump(&self, memory: u64) -> Vec<u8> {
        let path = self.dir.path().join("dump");
        assert_eq!(self.ask(&format!("dump {memory} {}", path.display())), "ok");
        std::fs::read(path).expect("a file")
    }

    /// A recorded event of the driver's, exported.
    pub fn event(&self) -> Vec<u8> {
        unhex(&self.ask("event"))
    }

    /// A recorded event of the kind for isolated containers.
    pub fn word(&self) -> Vec<u8> {
        unhex(&self.ask("word"))
    }

    /// Waits for an event of the daemon's; says whether it had fired before.
    pub fn wait(&self, event: &[u8]) -> bool {
        self.ask(&format!("wait {}", hex(event))) == "true"
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and nobody waits for its end.
    ///
    /// # Panics
    /// If it has been waited for.
    pub fn sigkill(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("signal");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for GpuWorker {
    fn drop(&mut self) {
        self.kill();
    }
}
