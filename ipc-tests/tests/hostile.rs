//! Peers that mean no good, on raw sockets. After each of them the next good client is served, and the daemon has
//! neither died nor grown.

use std::time::Duration;

use bytes::Bytes;
use ipc_tests::daemon::Daemon;
use ipc_tests::worker::{Model, lookup, store};
use ipc_tests::{eventually, pool::Pool};
use lmcache_client::{Connection, operation_frame};
use lmcache_proto::wire::{Operation, Request, Response, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Frames of the bulk test; split over this many connections.
const FRAMES: u64 = 120_000;
const CONNECTIONS: u64 = 6;

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
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).await.expect("connect");
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

fn anonymous_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("number")
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
}

#[tokio::test]
async fn a_hundred_thousand_bad_frames() {
    let mut daemon = Daemon::start(&[]).await;
    served(&mut daemon).await;
    let before = anonymous_kib(daemon.pid());
    let senders = (0..CONNECTIONS).map(|connection| {
        let endpoint = daemon.endpoint();
        tokio::spawn(async move {
            let mut client = Connection::connect(&endpoint, Duration::from_secs(60)).await.expect("connect");
            let mut random = 0x2545_f491_4f6c_dd1du64 ^ (connection + 1);
            let mut next = move || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let mut sent = 0;
            while sent < FRAMES / CONNECTIONS {
                let operation = Operation::all().nth(next() as usize % Operation::COUNT).expect("in range");
                // A stream would stay open; everything else is answered or dropped at once.
                let op = if next().is_multiple_of(8) || operation == Operation::SubscribeKvEvents {
                    Bytes::from((0..next() % 9).map(|_| next() as u8).collect::<Vec<_>>())
                } else {
                    operation_frame(operation)
                };
                let count = next() % 8;
                let payload: Vec<Bytes> = (0..count).map(|_| bad_frame(&mut next)).collect();
                sent += count + 2;
                client
                    .send_raw(op, payload.into_iter())
                    .await
                    .expect("the daemon does not hang up on bad requests");
            }
            // Whatever the daemon answers to all that: the last request gets its answer.
            let uid = client.send(&Request::Noop).await.expect("send");
            assert_eq!(client.wait(Operation::Noop, &uid).await.expect("noop"), Response::Text("OK"));
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.expect("sender");
    }
    served(&mut daemon).await;
    let after = anonymous_kib(daemon.pid());
    assert!(after < before + 64 * 1024, "grew from {before} to {after} KiB");
}

/// A frame that is wrong in one of many ways.
fn bad_frame(next: &mut impl FnMut() -> u64) -> Bytes {
    let mut w = Writer::new();
    match next() % 12 {
        0 => return Bytes::new(),
        1 => return Bytes::from((0..next() % 300).map(|_| next() as u8).collect::<Vec<_>>()),
        2 => return Bytes::from(vec![0x91; 1 + next() as usize % 5000]),
        3 => return Bytes::from_static(&[0xdd, 0xff, 0xff, 0xff, 0xff]),
        4 => return Bytes::from_static(&[0xdf, 0x7f, 0xff, 0xff, 0xff, 0xc0]),
        5 => return Bytes::from_static(&[0xc9, 0xff, 0xff, 0xff, 0xff, 1]),
        6 => {
            w.uint(next());
        }
        7 => {
            w.int(-(next() as i64 >> 2).abs());
        }
        8 => {
            w.str("../../etc/passwd");
        }
        9 => {
            w.nil();
        }
        10 => {
            // A key with one field broken.
            let tokens: Vec<u32> = (0..next() % 600).map(|i| i as u32).collect();
            let model = if next().is_multiple_of(2) { "m" } else { "a@b" };
            let builder = lmcache_proto::wire::KeyBuilder::new(model, (next() % 300) as u32, "r", &tokens);
            let worker = next().is_multiple_of(2).then_some((next() % 300) as u32);
            let mut frame =
                builder.readers((next() % 3) as u32).frame(worker, next() % 1000, next() >> (next() % 64));
            let at = next() as usize % frame.len();
            frame[at] = next() as u8;
            return Bytes::from(frame);
        }
        _ => {
            w.bool(true);
        }
    }
    Bytes::from(w.into_vec())
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
}
