//! Recordings of the real daemon, read back and replayed.

use std::path::{Path, PathBuf};

use ipc_tests::daemon::{Daemon, binary};
use ipc_tests::eventually;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prompt, store};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;
use lmcached::trace::{self, Operation, Outcomes, ReplayOptions, Report, Speed};

const RECORD: &[&str] = &["--trace-level=storage", "--trace-output={dir}/run.lct"];

fn trace_of(daemon: &Daemon) -> PathBuf {
    daemon.dir().join("run.lct")
}

/// Three prompts of four chunks: looked up cold, stored, looked up warm, retrieved, ended. And one lookup that is not
/// retrieved.
async fn workload(daemon: &Daemon, client: &mut Connection) {
    let model = Model::small("org/model");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    for seed in 0..3 {
        let tokens = prompt(seed, 4);
        let (cold, warm) = (format!("cold-{seed}"), format!("warm-{seed}"));
        assert_eq!(lookup(client, &model, &cold, &tokens, 1).await, 0);
        assert_eq!(store(client, &pool, &model, &cold, &tokens, 7, 100).await, 4);
        client.call(&Request::EndSession { request_id: &cold }).await.expect("end");
        assert_eq!(lookup(client, &model, &warm, &tokens, 1).await, 4);
        let frame = model.key(&warm, &tokens).frame(Some(0), 0, 1024);
        assert!(prepare_retrieve(client, &frame, 7).await.is_some());
        assert!(commit_retrieve(client, &frame, 7).await);
        client.call(&Request::EndSession { request_id: &warm }).await.expect("end");
    }
    assert_eq!(lookup(client, &model, "unread", &prompt(0, 4), 2).await, 4);
    client.call(&Request::EndSession { request_id: "unread" }).await.expect("end");
}

async fn replayed(path: &Path) -> Report {
    let (path, options) = (
        path.to_owned(),
        ReplayOptions {
            speed: Speed::AsFastAsPossible,
            l1_bytes: Some(64 << 20),
            ..ReplayOptions::default()
        },
    );
    let report = tokio::task::spawn_blocking(move || trace::replay(&path, &options, |_, _| {})).await;
    report.expect("no panic").expect("replays")
}

fn same_as_live(outcomes: &Outcomes) {
    assert_eq!((outcomes.lookups, outcomes.requested_keys), (7, 28));
    assert_eq!((outcomes.hit_keys, outcomes.missed_keys), (16, 12));
    assert_eq!((outcomes.reserved, outcomes.written, outcomes.released), (12, 12, 16));
    assert_eq!((outcomes.not_leased, outcomes.not_reserved, outcomes.left_open), (0, 0, 0));
}

#[tokio::test]
async fn a_recording_replays_with_the_hits_it_had() {
    let mut daemon = Daemon::start(RECORD).await;
    let mut client = daemon.connect().await;
    workload(&daemon, &mut client).await;
    assert_eq!(daemon.terminate(), Some(0));
    let path = trace_of(&daemon);
    let info = trace::info(&path).expect("readable");
    assert_eq!((info.gaps(), info.closed(), info.lost_events()), (Vec::new(), Some(true), Some(0)));
    assert!(info.digest_fits && !info.header.config_digest.is_empty());
    let count = |operation: Operation| info.names.get(&operation.qualname()).copied().unwrap_or(0);
    assert_eq!(count(Operation::SubmitPrefetch), 7);
    assert_eq!((count(Operation::ReserveWrite), count(Operation::FinishWrite)), (3, 3));
    assert_eq!(count(Operation::FinishRead), 4, "three retrieves, and the leases that were not read");
    let log = daemon.log().join("\n");
    assert!(log.contains(&format!("trace recorder closed cleanly: {}", path.display())), "{log}");

    let (first, second) = (replayed(&path).await, replayed(&path).await);
    assert_eq!((first.failed, first.skipped, first.malformed), (0, 0, 0), "{}", first.table());
    same_as_live(&first.outcomes);
    assert_eq!(first.outcomes, second.outcomes);
}

#[tokio::test]
async fn the_page_s_argument_shapes_replay_alike() {
    let mut daemon = Daemon::start(&[RECORD, &["--trace-args=0.4.5"]].concat()).await;
    let mut client = daemon.connect().await;
    workload(&daemon, &mut client).await;
    assert_eq!(daemon.terminate(), Some(0));
    let path = trace_of(&daemon);
    let bytes = std::fs::read(&path).expect("the file");
    let has = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("extra_count") && has("mode") && !has("read_locks") && !has("PrefetchTaskSpec"));
    same_as_live(&replayed(&path).await.outcomes);
}

#[tokio::test]
async fn a_killed_daemon_leaves_whole_records_and_the_next_keeps_them() {
    let mut daemon = Daemon::start(RECORD).await;
    let mut client = daemon.connect().await;
    workload(&daemon, &mut client).await;
    let path = trace_of(&daemon);
    // What is older than a second is in the file, whatever happens to the daemon.
    let records = eventually("all calls are in the file", async || {
        trace::info(&path).ok().map(|info| info.records).filter(|records| *records == 17)
    })
    .await;
    daemon.crash_and_restart().await;
    let kept = daemon.dir().join("run.lct.previous");
    let info = trace::info(&kept).expect("readable");
    assert_eq!((info.records, info.closed(), info.malformed), (records, Some(false), 0));
    assert!(info.gaps().iter().any(|gap| gap.contains("has not closed it")), "{:?}", info.gaps());
    same_as_live(&replayed(&kept).await.outcomes);
    // The daemon that came after records into a file of its own.
    let mut client = daemon.connect().await;
    client.call(&Request::Noop).await.expect("alive");
    assert_eq!(daemon.terminate(), Some(0));
    let info = trace::info(&path).expect("readable");
    assert_eq!((info.records, info.closed()), (0, Some(true)));
}

#[tokio::test]
async fn without_a_name_the_file_is_where_the_page_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let tmp = dir.path().display().to_string();
    let mut daemon = Daemon::start_in(&[("TMPDIR", &tmp)], &["--trace-level=storage"]).await;
    let pid = daemon.pid();
    assert_eq!(daemon.terminate(), Some(0));
    let names: Vec<String> = std::fs::read_dir(dir.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let [name] = &names[..] else { panic!("{names:?}") };
    let stamp =
        name.strip_prefix(&format!("lmcache-trace-{pid}-")).and_then(|rest| rest.strip_suffix(".lct"));
    let stamp = stamp.unwrap_or_else(|| panic!("{name}"));
    assert!(stamp.len() == 15 && stamp.as_bytes()[8] == b'-', "{stamp}");
    let line =
        format!("trace recording enabled (level=storage); no --trace-output given, writing to {tmp}/{name}");
    assert!(daemon.log().iter().any(|logged| logged.contains(&line)), "{:?}", daemon.log());
}

#[test]
fn what_cannot_be_recorded_is_one_line_and_an_exit_code() {
    let run = |args: &[&str]| {
        let name = format!("--shm-name=trace{}", std::process::id());
        let fixed = ["--port=0", "--http-port=0", "--prometheus-port=0", "--l1-size-gb=0.01", &name];
        let output = std::process::Command::new(binary()).args(fixed).args(args).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&["--trace-level=storage", "--disable-observability"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--trace-level") && text.contains("--disable-observability"), "{text}");
    let (code, text) = run(&["--trace-level=events"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--trace-level events is refused"), "{text}");
    let (code, text) = run(&["--trace-level=storage", "--trace-output=/nowhere/at/all.lct"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("cannot write the trace to /nowhere/at/all.lct"), "{text}");
}
