//! The client of the torch workers (`ipc-tests/gpu/dealer.py`), which is plain Python and needs neither GPU nor torch: it says the
//! same to the daemon as ours, and reads the same out of its answers.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::worker::{Model, key, prompt};
use ipc_tests::{call, eventually};
use lmcache_client::Connection;
use lmcache_proto::wire::{RegisterKvCache, Request};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu").join(name)
}

fn has_python() -> bool {
    let there = Command::new("python3").arg("--version").output();
    if there.is_ok_and(|output| output.status.success()) {
        return true;
    }
    assert!(std::env::var_os("LMCACHED_REQUIRE_PYTHON").is_none(), "python3 is required here");
    println!("no python3 on this machine; the client of the torch workers is not run");
    false
}

/// `commands.py`: the loop of a torch worker without its memory.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Worker {
    fn start() -> Worker {
        let mut command = Command::new("python3");
        command.arg(script("commands.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let dir = tempfile::tempdir().expect("a directory");
        let mut worker = Worker { child, input, output: BufReader::new(output), dir };
        assert_eq!(worker.line(), "ready");
        worker
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert!(line.ends_with('\n'), "the worker has ended");
        line.trim_end_matches('\n').to_owned()
    }

    fn call(&mut self, endpoint: &str, request: &Request<'_>) -> String {
        let path = self.dir.path().join("request");
        call::write(&path, request);
        let operation = request.operation().name();
        writeln!(self.input, "call {endpoint} {operation} {}", path.display()).expect("it listens");
        self.line()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests that change nothing, with every kind of answer that a line has: by a number, a verdict, a text, none, and others.
fn harmless<'a>(frame: &'a [u8], many: &'a [u8], model: &Model) -> Vec<Request<'a>> {
    vec![
        Request::Ping { instance_id: Some(1) },
        Request::Ping { instance_id: None },
        Request::GetChunkSize,
        Request::Noop,
        Request::GetExperimental,
        Request::EndSession { request_id: "nobody" },
        // A frame longer than 255 bytes, and one longer than a read.
        Request::Lookup { key: key(frame), tp_size: 1 },
        Request::Lookup { key: key(many), tp_size: 1 },
        Request::WaitPrefetchStatus { request_id: "few", timeout: 10.0 },
        Request::WaitPrefetchStatus { request_id: "many", timeout: 10.0 },
        Request::Retrieve {
            key: key(frame),
            instance_id: 1,
            block_ids: vec![(0..32).collect()],
            event: b"ev",
            skip_first_n_tokens: 0,
        },
        // Its answer is a map, which is shown as it came.
        model.registration(9),
    ]
}

async fn ours(connection: &mut Connection, request: &Request<'_>) -> String {
    call::line(&connection.call(request).await.expect("an answer"))
}

#[tokio::test]
async fn it_reads_the_same_answers_as_ours() {
    if !has_python() {
        return;
    }
    let daemon = Daemon::start(&["--bind=ipc://{dir}/sock"]).await;
    let model = Model::small("m");
    let frame = model.key("few", &prompt(1, 2)).frame(None, 0, 512);
    let many = model.key("many", &prompt(2, 400)).frame(None, 0, 400 * 256);
    assert!(many.len() > 1 << 17, "{} bytes", many.len());
    let mut kinds = std::collections::BTreeSet::new();
    for endpoint in [daemon.endpoint(), format!("ipc://{}/sock", daemon.dir().display())] {
        let mut worker = Worker::start();
        let mut client = Connection::connect(&endpoint, Duration::from_secs(30)).await.expect("it listens");
        for request in harmless(&frame, &many, &model) {
            let answer = worker.call(&endpoint, &request);
            assert_eq!(answer, ours(&mut client, &request).await, "{}", request.operation());
            kinds.insert(answer.split(' ').next().expect("a word").to_owned());
        }
    }
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["count", "flag", "frame", "nothing", "text", "transfer"]
    );
}

#[tokio::test]
async fn one_request_can_be_sent_by_hand() {
    if !has_python() {
        return;
    }
    let daemon = Daemon::start(&[]).await;
    let path = daemon.dir().join("request");
    let mut client = daemon.connect().await;
    for request in [Request::GetChunkSize, Request::Ping { instance_id: Some(1) }, Request::Noop] {
        call::write(&path, &request);
        let mut command = Command::new("python3");
        command.arg(script("dealer.py")).args([&daemon.endpoint(), request.operation().name()]).arg(&path);
        let output = command.output().expect("it runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(answer.trim_end_matches('\n'), ours(&mut client, &request).await, "{err}");
    }
}

/// A worker of CPU memory, whose requests all leave from Python.
struct Engine<'a> {
    worker: Worker,
    endpoint: &'a str,
    model: Model,
}

impl Engine<'_> {
    fn call(&mut self, request: &Request<'_>) -> String {
        self.worker.call(self.endpoint, request)
    }

    fn register(&mut self, registration: RegisterKvCache) {
        assert_eq!(self.call(&Request::RegisterKvCache(Box::new(registration))), "nothing");
    }

    fn store(&mut self, tokens: &[u32], from: u64) -> String {
        let frame = self.model.key("s", tokens).frame(Some(0), 0, 512);
        let (key, block_ids) = (key(&frame), vec![(from..from + 32).collect()]);
        self.call(&Request::Store { key, instance_id: 1, block_ids, event: b"ev" })
    }

    async fn retrieve(&mut self, request: &str, tokens: &[u32], to: u64) -> String {
        let frame = self.model.key(request, tokens).frame(None, 0, 512);
        assert_eq!(self.call(&Request::Lookup { key: key(&frame), tp_size: 1 }), "nothing");
        let status = Request::QueryPrefetchStatus { request_id: request };
        let found = eventually("the lookup is done", async || {
            Some(self.call(&status)).filter(|answer| answer != "nothing")
        });
        assert_eq!(found.await, "count 2");
        let frame = self.model.key(request, tokens).frame(Some(0), 0, 512);
        let (key, block_ids) = (key(&frame), vec![(to..to + 32).collect()]);
        self.call(&Request::Retrieve { key, instance_id: 1, block_ids, event: b"ev", skip_first_n_tokens: 0 })
    }
}

#[tokio::test]
async fn a_worker_that_speaks_python_stores_and_retrieves() {
    if !has_python() {
        return;
    }
    let mut daemon = Daemon::start(&["--bind=ipc://{dir}/sock"]).await;
    let endpoint = format!("ipc://{}/sock", daemon.dir().display());
    let kv = KvCache::new("python", Shape::SMALL);
    kv.fill();
    let before: Vec<_> = (0..32).map(|block| kv.block(block)).collect();
    let mut engine = Engine { worker: Worker::start(), endpoint: &endpoint, model: Shape::SMALL.model("m") };
    let tokens = prompt(1, 2);
    // What memory on a CPU has for an event.
    let stub = format!("transfer true {}", call::hex(b"stub_ipc_handle"));
    engine.register(kv.registration(1, "m"));
    assert_eq!(engine.call(&Request::Ping { instance_id: Some(1) }), "flag true");
    assert_eq!(engine.store(&tokens, 0), stub);
    assert_eq!(engine.retrieve("r", &tokens, 32).await, stub);
    let after: Vec<_> = (32..64).map(|block| kv.block(block)).collect();
    assert!(after == before, "the blocks are those that were stored");

    // The daemon goes while it is connected, and it finds the next.
    daemon.crash_and_restart().await;
    let answer = engine.store(&tokens, 0);
    assert!(answer.starts_with("error "), "the old connection is gone: {answer}");
    engine.register(kv.registration(1, "m"));
    assert_eq!(engine.store(&prompt(2, 2), 0), stub);
}
