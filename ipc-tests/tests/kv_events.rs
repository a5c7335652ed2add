//! The stream of cache changes.

use bytes::Bytes;
use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, lookup, prompt, store};
use lmcache_client::Connection;
use lmcache_proto::wire::{KvEventBatch, Operation, Request, Response};

/// A stream by hand: one batch a credit.
struct Stream {
    client: Connection,
    uid: Bytes,
}

impl Stream {
    async fn open(daemon: &Daemon, instance: u64, model: &str, cursor: i64) -> Stream {
        let mut client = daemon.connect().await;
        let request =
            Request::SubscribeKvEvents { instance_id: instance, model_name: model, cursor, max_events: 1024 };
        let uid = client.send(&request).await.expect("subscribe");
        Stream { client, uid }
    }

    /// The next batch, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<KvEventBatch> {
        match self.client.wait(Operation::SubscribeKvEvents, &self.uid).await.expect("batch") {
            Response::KvEvents(batch) => Some(batch),
            Response::Nothing => None,
            other => panic!("stream sent {other:?}"),
        }
    }

    async fn control(&mut self, word: &'static [u8]) {
        self.client.send_control(&self.uid, word).await.expect("control");
    }
}

#[tokio::test]
async fn stored_and_removed_chunks_are_reported_with_their_tokens() {
    let daemon = Daemon::start(&[]).await;
    let mut worker = daemon.connect().await;
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let mut stream = Stream::open(&daemon, 7, "m", 0).await;
    let first = stream.next().await.expect("status batch");
    assert!(first.enabled && !first.lost && first.events.is_empty());
    let tokens = prompt(1, 3);
    store(&mut worker, &pool, &model, "a", &tokens, 7, 0).await;
    stream.control(b"ack").await;
    let batch = stream.next().await.expect("batch");
    assert_eq!(batch.events.len(), 3);
    for (chunk, event) in batch.events.iter().enumerate() {
        assert_eq!(
            (event.kind.as_str(), event.medium.as_str(), event.seq),
            ("stored", "CPU", chunk as u64 + 1)
        );
        assert_eq!(event.token_ids, tokens[chunk * 256..(chunk + 1) * 256]);
        let parent = chunk.checked_sub(1).map(|previous| &batch.events[previous].block_hashes[0]);
        assert_eq!(event.parent_block_hash.as_ref(), parent);
    }
    worker.call(&Request::Clear { force: false }).await.expect("clear");
    stream.control(b"ack").await;
    let gone = stream.next().await.expect("batch");
    assert_eq!(gone.events.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["removed"]);
    assert_eq!(gone.events[0].block_hashes.len(), 3);
    // A late subscriber reads it all again; one of another model reads nothing but moves on.
    let mut late = Stream::open(&daemon, 8, "m", 0).await;
    assert_eq!(late.next().await.expect("replay").events.len(), 4);
    let mut other = Stream::open(&daemon, 9, "other", 0).await;
    let batch = other.next().await.expect("status");
    assert!(batch.events.is_empty());
    assert_eq!(batch.next_cursor, 4);
}

/// What comes back from L2 and stays is told of; what goes with its reader is not.
#[tokio::test]
async fn chunks_that_a_tier_brings_back_for_good_are_reported_as_stored() {
    for (policy, reported) in [("retain", 2), ("default", 0)] {
        let dir = tempfile::tempdir().expect("a directory");
        let tier = format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.path().display());
        let daemon = Daemon::start(&[&tier, &format!("--l2-prefetch-policy={policy}")]).await;
        let mut worker = daemon.connect().await;
        let model = Model::small("m");
        worker.call(&model.registration(7)).await.expect("register");
        let pool = Pool::open(&daemon.pool_path());
        let tokens = prompt(1, 3);
        store(&mut worker, &pool, &model, "a", &tokens, 7, 0).await;
        ipc_tests::eventually("the tier has them", async || {
            let status = daemon.status().await;
            (status["storage_manager"]["l2_adapters"][0]["stores"] == 3).then_some(())
        })
        .await;
        worker.call(&Request::EndSession { request_id: "a" }).await.expect("end");
        daemon.clear().await;
        // One of the three is stored anew: L1 has it when the others come from the tier.
        store(&mut worker, &pool, &model, "b", &tokens[..256], 7, 0).await;
        assert_eq!(lookup(&mut worker, &model, "c", &tokens, 1).await, 3);
        let mut stream = Stream::open(&daemon, 7, "m", 0).await;
        let events = stream.next().await.expect("all of it").events;
        let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds[..5], ["stored", "stored", "stored", "removed", "stored"], "{policy}");
        assert_eq!(kinds[5..], vec!["stored"; reported], "{policy}");
        for (event, chunk) in events[5..].iter().zip([1, 2]) {
            assert_eq!(event.token_ids, tokens[chunk * 256..(chunk + 1) * 256]);
            assert_eq!(event.block_hashes, events[chunk].block_hashes);
            assert_eq!(event.parent_block_hash.as_ref(), Some(&events[chunk - 1].block_hashes[0]));
        }
    }
}

#[tokio::test]
async fn no_batch_without_credit_and_none_after_cancel() {
    let daemon = Daemon::start(&[]).await;
    let mut worker = daemon.connect().await;
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let mut stream = Stream::open(&daemon, 7, "m", 0).await;
    stream.next().await.expect("status batch");
    store(&mut worker, &pool, &model, "a", &prompt(1, 1), 7, 0).await;
    // Without an ack nothing comes; the connection's next message is the answer to this.
    let uid = stream.client.send(&Request::Noop).await.expect("send");
    assert_eq!(stream.client.receive().await.expect("noop")[0], uid);
    stream.control(b"cancel").await;
    store(&mut worker, &pool, &model, "b", &prompt(2, 1), 7, 0).await;
    let uid = stream.client.send(&Request::Noop).await.expect("send");
    assert_eq!(stream.client.receive().await.expect("noop")[0], uid);
}

#[tokio::test]
async fn a_new_subscription_of_a_worker_ends_the_old_one() {
    let daemon = Daemon::start(&[]).await;
    let mut old = Stream::open(&daemon, 7, "m", 0).await;
    old.next().await.expect("status batch");
    old.control(b"ack").await;
    let mut new = Stream::open(&daemon, 7, "m", 0).await;
    new.next().await.expect("status batch");
    assert_eq!(old.next().await, None);
}

#[tokio::test]
async fn a_lost_record_is_said_and_bad_values_end_the_stream() {
    let daemon = Daemon::start(&["--kv-event-log-size=2"]).await;
    let mut worker = daemon.connect().await;
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    store(&mut worker, &pool, &model, "a", &prompt(1, 4), 7, 0).await;
    let batch = Stream::open(&daemon, 7, "m", 1).await.next().await.expect("batch");
    assert!(batch.lost);
    assert_eq!(batch.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(Stream::open(&daemon, 7, "m", -1).await.next().await, None);
}

/// The log's bytes have a bound of their own: the tokens of long chunks are many.
#[tokio::test]
async fn the_log_takes_so_many_bytes() {
    let size = 1 << 20;
    let daemon = Daemon::start(&[&format!("--kv-event-log-bytes={size}")]).await;
    let mut worker = daemon.connect().await;
    let model = Model { layers: 1, width: 8, ..Model::small("m") };
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let (prompts, chunks) = (50, 32);
    for seed in 0..prompts {
        store(&mut worker, &pool, &model, &format!("r{seed}"), &prompt(seed, chunks), 7, 0).await;
    }
    let depth = daemon.status().await["kv_events"]["log_depth"].as_f64().expect("a number");
    let bytes = daemon.metric("lmcached_kv_events_log_bytes", &[]).await;
    // Full but for what the next record needed: two hashes, and 256 tokens of at most five bytes.
    let record = f64::from(2 * 32 + 256 * 5);
    assert!((f64::from(size) - 2.0 * record..=f64::from(size)).contains(&bytes), "{bytes}");
    assert!(bytes / record <= depth && depth < f64::from(prompts) * chunks as f64, "{depth}");
    let mut stream = Stream::open(&daemon, 7, "m", 0).await;
    let (mut read, mut next) = (0, 0);
    while f64::from(read) < depth {
        let batch = stream.next().await.expect("batch");
        assert_eq!(batch.lost, read == 0);
        for event in &batch.events {
            assert!(next == 0 || event.seq == next, "{} after {next}", event.seq);
            assert_eq!(event.token_ids.len(), 256);
            (read, next) = (read + 1, event.seq + 1);
        }
        stream.control(b"ack").await;
    }
    assert_eq!(next, u64::from(prompts) * chunks as u64 + 1);
}

#[tokio::test]
async fn a_daemon_without_the_log_says_so() {
    let off = Daemon::start(&["--kv-event-log-size=0"]).await;
    let mut client = off.connect().await;
    assert_eq!(client.call(&Request::GetExperimental).await.expect("names"), Response::Names(vec![]));
    let batch = Stream::open(&off, 7, "m", 0).await.next().await.expect("status");
    assert!(!batch.enabled);
}
