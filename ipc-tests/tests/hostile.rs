//! Peers that mean no good, on raw sockets. After each of them the next good client is served, and the daemon has
//! neither died nor grown.

use std::time::Duration;

use bytes::Bytes;
use ipc_tests::anonymous_kib;
use ipc_tests::daemon::Daemon;
use ipc_tests::worker::{Model, lookup, prepare_store, store};
use ipc_tests::{eventually, pool::Pool};
use lmcache_client::operation_frame;
use lmcache_proto::wire::{KeyBuilder, Operation, Request, Response, Writer, encode_request};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Frames that the bulk test must have sent, and the connections that it takes for them: some 600 frames each.
const FRAMES: usize = 100_000;
const CASES: u32 = 220;

fn greeting() -> Vec<u8> {
    let mut greeting = vec![0u8; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

const READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER";

/// A ZMTP client by hand, past its handshake.
async fn raw(daemon: &Daemon) -> TcpStream {
    raw_on(daemon.port()).await
}

async fn raw_on(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    stream.write_all(&greeting()).await.expect("greeting");
    stream.write_all(READY).await.expect("ready");
    stream
}

fn message(frames: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for (position, frame) in frames.iter().enumerate() {
        let more = u8::from(position + 1 < frames.len());
        if frame.len() < 256 {
            out.extend_from_slice(&[more, frame.len() as u8]);
        } else {
            out.push(more | 2);
            out.extend_from_slice(&(frame.len() as u64).to_be_bytes());
        }
        out.extend_from_slice(frame);
    }
    out
}

/// The peer is closed by the daemon (what it sent before that is read and dropped).
async fn closed(stream: &mut TcpStream) {
    let mut sink = [0u8; 4096];
    let end = async {
        while let Ok(n) = stream.read(&mut sink).await {
            if n == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), end).await.expect("the daemon closes the connection");
}

async fn served(daemon: &mut Daemon) {
    assert!(daemon.alive(), "the daemon died");
    let mut client = daemon.connect().await;
    assert_eq!(client.call(&Request::Noop).await.expect("noop"), Response::Text("OK"));
}

/// The daemon stops in order, and nothing in it has panicked, not even where the panic was caught.
async fn ends_well(mut daemon: Daemon) {
    assert_eq!(daemon.terminate(), Some(0));
    eventually("the last line is logged", async || {
        daemon.log().iter().any(|line| line.contains("pool kept")).then_some(())
    })
    .await;
    let panics: Vec<_> = daemon.log().into_iter().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:#?}");
}

#[tokio::test]
async fn announced_giants_close_their_own_connection() {
    let mut daemon = Daemon::start(&[]).await;
    let mut giant = raw(&daemon).await;
    giant.write_all(&[2, 0x40, 0, 0, 0, 0, 0, 0, 0]).await.expect("header");
    closed(&mut giant).await;
    let mut first = TcpStream::connect(("127.0.0.1", daemon.port())).await.expect("connect");
    first.write_all(&greeting()).await.expect("greeting");
    // As a command, before READY.
    first.write_all(&[6, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).await.expect("header");
    closed(&mut first).await;
    served(&mut daemon).await;
    ends_well(daemon).await;
}

#[tokio::test]
async fn other_protocols_are_turned_away() {
    let mut daemon = Daemon::start(&[]).await;
    for hello in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00", &[0xff; 64], &[0; 64]] {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).await.expect("connect");
        stream.write_all(hello).await.expect("hello");
        closed(&mut stream).await;
    }
    let mut subscriber = TcpStream::connect(("127.0.0.1", daemon.port())).await.expect("connect");
    subscriber.write_all(&greeting()).await.expect("greeting");
    subscriber.write_all(b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB").await.expect("ready");
    closed(&mut subscriber).await;
    served(&mut daemon).await;
    ends_well(daemon).await;
}

#[tokio::test]
async fn short_messages_do_not_deafen_the_daemon() {
    let mut daemon = Daemon::start(&[]).await;
    let mut stream = raw(&daemon).await;
    for frames in
        [&[&b""[..]][..], &[b"x"], &[b"", b""], &[b"", b"", b"ack"], &[b"\x01", b""], &[b"\x01", b"", b"?"]]
    {
        stream.write_all(&message(frames)).await.expect("message");
    }
    // The same connection still works.
    stream.write_all(&message(&[b"\x01", &[Operation::Noop.id().expect("id") as u8]])).await.expect("noop");
    let mut answer = Vec::new();
    let until = async {
        while !answer.ends_with(b"\xa2OK") {
            let mut buf = [0; 256];
            let n = stream.read(&mut buf).await.expect("read");
            assert!(n > 0, "closed");
            answer.extend_from_slice(&buf[..n]);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), until).await.expect("an answer");
    served(&mut daemon).await;
    ends_well(daemon).await;
}

/// An operation frame: mostly one that the daemon serves, by id or name.
fn operation() -> impl Strategy<Value = Vec<u8>> {
    let known = (0..Operation::COUNT).prop_map(|at| Operation::all().nth(at).expect("in range"));
    prop_oneof![
        7 => known.clone().prop_map(|operation| operation_frame(operation).to_vec()),
        1 => known.prop_map(|operation| {
            let mut name = Writer::new();
            name.str(operation.name());
            name.into_vec()
        }),
        1 => vec(any::<u8>(), 0..9),
    ]
}

/// A frame that is right or wrong in one of many ways.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => value_frame(), 1 => key_frame()]
}

fn value_frame() -> impl Strategy<Value = Vec<u8>> {
    fn one(write: impl FnOnce(&mut Writer) -> &mut Writer) -> Vec<u8> {
        let mut w = Writer::new();
        write(&mut w);
        w.into_vec()
    }
    prop_oneof![
        vec(any::<u8>(), 0..300),
        (1usize..5000).prop_map(|depth| vec![0x91; depth]),
        // Announced lengths of 4 G elements, 2 G pairs, 4 G bytes.
        Just(vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xdf, 0x7f, 0xff, 0xff, 0xff, 0xc0]),
        Just(vec![0xc9, 0xff, 0xff, 0xff, 0xff, 1]),
        any::<u64>().prop_map(move |number| one(|w| w.uint(number))),
        any::<i64>().prop_map(move |number| one(|w| w.int(number))),
        (0u64..2000).prop_map(move |number| one(|w| w.uint(number))),
        any::<f64>().prop_map(move |number| one(|w| w.f64(number))),
        Just(one(|w| w.str("../../etc/passwd"))),
        "\\PC{0,40}".prop_map(move |text| one(|w| w.str(&text))),
        Just(one(|w| w.nil())),
        any::<bool>().prop_map(move |value| one(|w| w.bool(value))),
        vec(vec(0u64..100, 0..20), 0..4).prop_map(move |lists| one(|w| {
            w.array(lists.len());
            for list in &lists {
                w.array(list.len());
                for id in list {
                    w.uint(*id);
                }
            }
            w
        })),
    ]
}

/// A key, some with a byte broken.
fn key_frame() -> impl Strategy<Value = Vec<u8>> {
    let names = (prop_oneof![Just("m"), Just("a@b")], 0u32..300, proptest::option::of(0u32..300));
    let numbers = (0u32..600, 0u32..3, 0u64..1000, any::<u64>(), 0u32..64);
    let broken = proptest::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (names, numbers, broken).prop_map(
        |((model, world, worker), (count, readers, start, end, shift), broken)| {
            let tokens: Vec<u32> = (0..count).collect();
            let builder = KeyBuilder::new(model, world, "r", &tokens).readers(readers);
            let mut frame = builder.frame(worker, start, end >> shift);
            if let Some((at, byte)) = broken {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            frame
        },
    )
}

/// Sends the messages on a connection of their own, then a noop, whose answer shows that all of them have been handled.
async fn survives(port: u16, messages: &[(Vec<u8>, Vec<Vec<u8>>)]) {
    const LAST: &[u8] = b"the last one";
    let mut stream = raw_on(port).await;
    let (mut read, mut write) = stream.split();
    let sender = async {
        for (number, (operation, payload)) in messages.iter().enumerate() {
            // Ids come back after 100 requests: an open stream may meet its id again.
            let uid = [(number % 100) as u8];
            let mut frames: Vec<&[u8]> = vec![&uid, operation];
            frames.extend(payload.iter().map(Vec::as_slice));
            write.write_all(&message(&frames)).await.expect("the daemon does not hang up on bad requests");
        }
        let noop = operation_frame(Operation::Noop);
        write.write_all(&message(&[LAST, &noop])).await.expect("send");
    };
    let reader = async {
        let mut tail = Vec::new();
        let mut buf = vec![0; 64 << 10];
        while !tail.windows(LAST.len()).any(|window| window == LAST) {
            tail.drain(..tail.len().saturating_sub(LAST.len()));
            let n = read.read(&mut buf).await.expect("read");
            assert!(n > 0, "the daemon closed the connection");
            tail.extend_from_slice(&buf[..n]);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(sender, reader) })
        .await
        .expect("the last request is answered");
}

#[test]
fn a_hundred_thousand_bad_frames() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut daemon = runtime.block_on(Daemon::start(&[]));
    runtime.block_on(served(&mut daemon));
    let before = anonymous_kib(daemon.pid());
    let port = daemon.port();
    // A failure is shrunk on the same daemon, within bounds; the counter is of everything that was sent.
    let config =
        Config { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let sent = std::cell::Cell::new(0);
    let messages = vec((operation(), vec(frame(), 0..8)), 80..160);
    let result = runner.run(&messages, |messages| {
        sent.set(sent.get() + messages.iter().map(|(_, payload)| payload.len() + 2).sum::<usize>());
        let one = std::panic::AssertUnwindSafe(|| runtime.block_on(survives(port, &messages)));
        std::panic::catch_unwind(one).map_err(|panic| {
            let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            TestCaseError::fail(why)
        })
    });
    result.unwrap_or_else(|error| panic!("{error}\n{}", daemon.log().join("\n")));
    assert!(sent.get() >= FRAMES, "{} frames", sent.get());
    runtime.block_on(async {
        served(&mut daemon).await;
        let after = anonymous_kib(daemon.pid());
        assert!(after < before + 64 * 1024, "grew from {before} to {after} KiB");
        ends_well(daemon).await;
    });
}

proptest! {
    #![proptest_config(Config { cases: 4, max_shrink_iters: 50, failure_persistence: None, ..Config::default() })]

    #[test]
    fn bytes_that_are_no_frames_close_their_own_connection(
        streams in vec((any::<bool>(), vec(any::<u8>(), 1..200)), 50),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let mut daemon = Daemon::start(&[]).await;
            for (greeted, bytes) in streams {
                let mut stream = if greeted {
                    raw(&daemon).await
                } else {
                    TcpStream::connect(("127.0.0.1", daemon.port())).await.expect("connect")
                };
                // The daemon may have closed it after the first of the bytes.
                let _ = stream.write_all(&bytes).await;
            }
            served(&mut daemon).await;
            ends_well(daemon).await;
        });
    }
}

#[tokio::test]
async fn keys_of_ten_million_tokens_are_served() {
    let mut daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens: Vec<u32> = (0..10_000_000u32).map(|i| i % 30_000).collect();
    store(&mut client, &pool, &model, "head", &tokens[..512], 7, 1).await;
    assert_eq!(lookup(&mut client, &model, "long", &tokens, 1).await, 2);
    client.call(&Request::EndSession { request_id: "long" }).await.expect("end");
    served(&mut daemon).await;
    ends_well(daemon).await;
}

#[tokio::test]
async fn idle_connections_cost_little_and_others_are_served() {
    let mut daemon = Daemon::start(&[]).await;
    served(&mut daemon).await;
    let before = anonymous_kib(daemon.pid());
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(raw(&daemon).await);
    }
    eventually("all are connected", async || {
        (daemon.metric("lmcached_connections", &[]).await >= 300.0).then_some(())
    })
    .await;
    served(&mut daemon).await;
    let after = anonymous_kib(daemon.pid());
    assert!(after < before + 300 * 64, "grew from {before} to {after} KiB for 300 idle connections");
    ends_well(daemon).await;
}

#[tokio::test]
async fn a_long_request_does_not_delay_anothers_ping() {
    let daemon = Daemon::start(&[]).await;
    let (mut busy, mut other) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    busy.call(&model.registration(7)).await.expect("register");
    let tokens: Vec<u32> = (0..5_000_000u32).collect();
    let frame = model.key("long", &tokens).frame(None, 0, tokens.len() as u64);
    // Several seconds of decoding and hashing are queued before the ping is sent, and the ping's answer comes first.
    let key = ipc_tests::worker::key(&frame);
    let mut last = Bytes::new();
    for _ in 0..4 {
        last = busy.send(&Request::Lookup { key: key.clone(), tp_size: 1 }).await.expect("send");
    }
    let own_ping = busy.send(&Request::Ping { instance_id: None }).await.expect("send");
    assert_eq!(other.call(&Request::Ping { instance_id: None }).await.expect("ping"), Response::Flag(true));
    // The busy client's own ping overtakes its lookups too.
    assert_eq!(busy.wait(Operation::Ping, &own_ping).await.expect("ping"), Response::Flag(true));
    assert_eq!(busy.wait(Operation::Lookup, &last).await.expect("lookup"), Response::Nothing);
    ends_well(daemon).await;
}

#[tokio::test]
async fn unknown_operations_and_other_releases_are_named_in_the_log() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    // get_chunk_size of 0.4.5.
    client.send_raw(Bytes::from_static(&[11]), std::iter::empty()).await.expect("send");
    eventually("the log names the release", async || {
        daemon.log().iter().any(|line| line.contains("client looks like lmcache 0.4.5")).then_some(())
    })
    .await;
    assert_eq!(client.call(&Request::Noop).await.expect("noop"), Response::Text("OK"));
    ends_well(daemon).await;
}

#[tokio::test]
async fn a_commit_of_a_worker_that_has_gone_is_kept() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let tokens: Vec<u32> = (0..512).collect();
    let frame = model.key("short", &tokens).frame(Some(0), 0, 512);
    prepare_store(&mut client, &frame, 7).await.expect("slots");
    // The commit waits behind a request of some tenths of a second when its connection closes.
    let long: Vec<u32> = (0..5_000_000).collect();
    let long = model.key("long", &long).frame(None, 0, 5_000_000);
    let lookup_long = Request::Lookup { key: ipc_tests::worker::key(&long), tp_size: 1 };
    let commit = Request::CommitStore { key: ipc_tests::worker::key(&frame), instance_id: 7, data: b"" };
    let mut worker = raw(&daemon).await;
    // The daemon's greeting and READY, read so that the close below is no reset, which would take back what was sent.
    let mut hello = [0; 64 + 2];
    worker.read_exact(&mut hello).await.expect("greeting");
    let mut ready = vec![0; usize::from(hello[65])];
    worker.read_exact(&mut ready).await.expect("ready");
    for request in [&lookup_long, &commit] {
        let (operation, payload) = (operation_frame(request.operation()), encode_request(request));
        let mut frames: Vec<&[u8]> = vec![b"\x01", &operation];
        frames.extend(payload.iter().map(Vec::as_slice));
        worker.write_all(&message(&frames)).await.expect("send");
    }
    drop(worker);
    eventually("the commit is done", async || {
        (daemon.metric("lmcached_requests_total", &["commit_store", "ok"]).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(lookup(&mut client, &model, "again", &tokens, 1).await, 2);
    ends_well(daemon).await;
}
