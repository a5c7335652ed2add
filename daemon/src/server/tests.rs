//! The listening side over real sockets, with budgets and deadlines small enough to meet.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lmcache_proto::wire::{KeyBuilder, Operation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::budget::PEER_FLOOR;
use super::queue::MAX_QUEUED;
use super::zmtp;
use super::*;
use crate::config::Endpoint;
use crate::engine::alone::CHUNK;
use crate::engine::{Client, Origin, Outcome};
use crate::l1::{L1, L1Config};

mod door;

/// Ends a hang; nothing is measured by it.
const HANG: Duration = Duration::from_secs(60);

struct Running {
    server: Arc<Server>,
    port: u16,
    l1: Arc<L1>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.l1.discard();
    }
}

fn engine() -> (Arc<L1>, Arc<Engine>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (l1, _) = L1::open(&L1Config {
        chunk_size: CHUNK,
        fresh: true,
        ..L1Config::new(format!("server_test_{}_{number}", std::process::id()), 1 << 20)
    })
    .expect("a pool");
    let l1 = Arc::new(l1);
    let engine = Engine::alone(l1.clone(), HANG, 100);
    (l1, engine)
}

async fn start(change: impl FnOnce(&mut ServerConfig)) -> Running {
    start_on(Threads::here(), change).await
}

async fn start_on(threads: Threads, change: impl FnOnce(&mut ServerConfig)) -> Running {
    let (l1, engine) = engine();
    let mut config = ServerConfig {
        max_message_bytes: 1 << 20,
        max_peer_bytes: 2 << 20,
        max_total_bytes: 64 << 20,
        max_connections: 100,
        max_peer_requests_per_second: 0,
        handshake_timeout: HANG,
        message_timeout: HANG,
    };
    change(&mut config);
    let server = Server::new(engine, config, crate::systemd::Supervisor::nobody(), threads);
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(endpoint, &Access::default()).await.expect("bind");
    let Endpoint::Tcp { port, .. } = listener.endpoint() else { unreachable!("bound to TCP") };
    server.open(listener.moved_to(&server.threads.door).expect("a descriptor"));
    Running { server, port, l1 }
}

/// A ZMTP client by hand.
struct Peer(TcpStream);

impl Peer {
    async fn connect(running: &Running) -> Peer {
        Peer::greet(TcpStream::connect(("127.0.0.1", running.port)).await.expect("connect")).await
    }

    async fn greet(mut stream: TcpStream) -> Peer {
        stream.write_all(&zmtp::greeting()).await.expect("greeting");
        stream.write_all(&zmtp::ready()).await.expect("ready");
        let mut hello = vec![0; zmtp::GREETING_LEN + zmtp::ready().len()];
        stream.read_exact(&mut hello).await.expect("greeted");
        Peer(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("send");
    }

    async fn noop(&mut self) {
        self.send(&request(1, Operation::Noop, &[])).await;
        let mut answer = [0; 2 + 1 + 2 + 1 + 2 + 3];
        tokio::time::timeout(HANG, self.0.read_exact(&mut answer))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(answer.ends_with(b"\xa2OK"), "{answer:?}");
    }

    async fn closed(&mut self) {
        let mut sink = [0; 4096];
        let end = async { while self.0.read(&mut sink).await.is_ok_and(|n| n > 0) {} };
        tokio::time::timeout(HANG, end).await.expect("the connection is closed");
    }
}

/// A request as bytes on the wire.
fn request(uid: u8, operation: Operation, payload: &[&[u8]]) -> Vec<u8> {
    let op = [operation.id().expect("has an id") as u8];
    let mut frames: Vec<&[u8]> = vec![std::slice::from_ref(&uid), &op];
    frames.extend(payload);
    let mut out = bytes::BytesMut::new();
    zmtp::encode(&mut out, &frames);
    out.to_vec()
}

/// A lookup that takes the compute threads.
fn heavy(uid: u8, request_id: &str) -> Vec<u8> {
    let tokens: Vec<u32> = (0..200_000).collect();
    let key = KeyBuilder::new("m", 1, request_id, &tokens).frame(None, 0, tokens.len() as u64);
    request(uid, Operation::Lookup, &[&key, &[1]])
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + HANG;
    while !is() {
        assert!(tokio::time::Instant::now() < end, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn count<R: PartialEq>(counters: impl Iterator<Item = (R, u64)>, reason: R) -> u64 {
    counters.filter(|(r, _)| *r == reason).map(|(_, count)| count).sum()
}

fn done(running: &Running, operation: Operation) -> u64 {
    running
        .server
        .engine
        .stats()
        .requests()
        .filter(|(op, ..)| *op == operation)
        .map(|(.., count)| count)
        .sum()
}

#[tokio::test]
async fn a_message_that_trickles_is_ended_at_its_deadline() {
    let running = start(|config| config.message_timeout = Duration::from_millis(300)).await;
    let mut good = Peer::connect(&running).await;
    let mut slow = Peer::connect(&running).await;
    // Each byte comes long before any idle timeout would strike; the whole never comes.
    let trickle = async {
        let message = request(1, Operation::EndSession, &[&[0xa0; 200]]);
        for byte in message {
            if slow.0.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        slow.closed().await;
    };
    trickle.await;
    until("it is counted", || count(running.server.stats().ended(), Ended::Slow) == 1).await;
    // A peer that is merely quiet between messages is nobody's harm.
    good.noop().await;
    assert_eq!(done(&running, Operation::EndSession), 0);
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_ended() {
    let running = start(|config| config.message_timeout = Duration::from_millis(300)).await;
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    // Small, so that its kernel does not take them for it.
    socket.set_recv_buffer_size(4096).expect("buffer size");
    let address = ([127, 0, 0, 1], running.port).into();
    let mut deaf = Peer::greet(socket.connect(address).await.expect("connect")).await;
    let requests = request(1, Operation::GetExperimental, &[]).repeat(10_000);
    let sending = async { while deaf.0.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(HANG, sending).await.expect("the daemon hangs up");
    until("it is counted", || count(running.server.stats().ended(), Ended::NotTaken) == 1).await;
    until("everything is given back", || running.server.queued_bytes() == 0).await;
    Peer::connect(&running).await.noop().await;
}

#[tokio::test]
async fn a_used_up_total_budget_pauses_and_resumes() {
    let limit = 4 << 20;
    let running = start(|config| {
        config.max_total_bytes = limit;
        config.max_peer_bytes = limit;
        config.max_message_bytes = limit - 4096;
    })
    .await;
    let body = vec![0xa0; limit - 5000];
    let message = request(1, Operation::EndSession, &[&body]);
    // One peer stops in the middle of a message, with all there is. Nothing of it is on the way any more.
    let mut big = Peer::connect(&running).await;
    let part = message.len() - 50;
    big.send(&message[..part]).await;
    let mut little = Peer::connect(&running).await;
    little.send(&message[..8000]).await;
    until("the budget is used up", || running.server.queued_bytes() >= part + 8000).await;
    assert!(running.server.queued_bytes() >= limit);
    let mut second = Peer::connect(&running).await;
    let sender = tokio::spawn(async move {
        second.send(&message).await;
        second
    });
    until("the second peer has its floor", || running.server.queued_bytes() >= part + 8000 + PEER_FLOOR)
        .await;
    assert!(count(running.server.stats().paused(), Paused::Total) >= 1);
    // A third one has its own.
    let mut third = Peer::connect(&running).await;
    third.noop().await;
    assert!(running.server.queued_bytes() <= limit + 2 * PEER_FLOOR, "the second one is not read");
    assert_eq!(done(&running, Operation::EndSession), 0);
    // The first one goes, although it is not being read, and the second one is read on.
    drop(big);
    let mut second = tokio::time::timeout(HANG, sender).await.expect("it is read on").expect("sent");
    let mut answer = [0; 6];
    second.0.read_exact(&mut answer).await.expect("its answer");
    assert_eq!(
        running.server.stats().ended().map(|(_, count)| count).sum::<u64>(),
        0,
        "nobody is thrown out"
    );
    drop((second, third, little));
    until("everything is given back", || running.server.queued_bytes() == 0).await;
}

#[tokio::test]
async fn a_peer_with_too_many_requests_waiting_is_not_read() {
    let running = start(|config| config.max_peer_bytes = 64 << 20).await;
    let mut peer = Peer::connect(&running).await;
    let lookups = 8;
    let mut bytes = Vec::new();
    for n in 0..lookups {
        bytes.extend(heavy(n, "long"));
    }
    let ends = 3 * MAX_QUEUED as u64;
    for _ in 0..ends {
        bytes.extend(request(9, Operation::EndSession, &[b"\xa1x"]));
    }
    bytes.extend(request(1, Operation::EndSession, &[b"\xa4last"]));
    let (mut read, mut write) = peer.0.split();
    let sender = async { write.write_all(&bytes).await.expect("send") };
    let reader = async {
        let mut answers = 0;
        let mut sink = [0; 4096];
        // Every answer is six bytes: two frames of one byte each.
        while answers < (u64::from(lookups) + ends + 1) as usize * 6 {
            let n = tokio::time::timeout(HANG, read.read(&mut sink)).await.expect("in time").expect("read");
            assert!(n > 0, "closed");
            answers += n;
        }
    };
    tokio::join!(sender, reader);
    assert!(count(running.server.stats().paused(), Paused::Peer) >= 1);
    assert_eq!(done(&running, Operation::EndSession), ends + 1);
}

#[tokio::test]
async fn what_a_peer_sent_before_it_went_is_done() {
    let running = start(|_| {}).await;
    let mut peer = Peer::connect(&running).await;
    let mut bytes = heavy(1, "long");
    for _ in 0..200 {
        bytes.extend(request(2, Operation::EndSession, &[b"\xa1x"]));
    }
    // Half a message at the end is nobody's request.
    bytes.extend(&request(3, Operation::Clear, &[&[0xc2]])[..5]);
    peer.send(&bytes).await;
    drop(peer);
    until("all are done", || done(&running, Operation::EndSession) == 200).await;
    until("the connection is gone", || running.server.connections() == 0).await;
    assert_eq!(done(&running, Operation::Lookup), 1);
    assert_eq!(done(&running, Operation::Clear), 0);
    until("everything is given back", || running.server.queued_bytes() == 0).await;
}

#[tokio::test]
async fn executing_and_remembered_bytes_are_counted() {
    let running = start(|_| {}).await;
    let mut peer = Peer::connect(&running).await;
    peer.noop().await;
    until("nothing is held", || running.server.queued_bytes() == 0).await;
    // 40 k tokens: above what is executed in place, below what is remembered.
    let tokens: Vec<u32> = (0..40_000).collect();
    let key = KeyBuilder::new("m", 1, "r", &tokens).frame(None, 0, tokens.len() as u64);
    peer.send(&request(1, Operation::Lookup, &[&key, &[1]])).await;
    let mut answer = [0; 6];
    peer.0.read_exact(&mut answer).await.expect("acknowledged");
    // Idle again, and what is left is the remembered key.
    let left = running.server.queued_bytes();
    assert!(left > 100_000 && left <= key.len(), "{left}");
    drop(peer);
    until("it goes with the peer", || running.server.queued_bytes() == 0).await;
}

#[tokio::test]
async fn bad_messages_are_counted_by_reason() {
    let running = start(|_| {}).await;
    let mut peer = Peer::connect(&running).await;
    let mut out = bytes::BytesMut::new();
    let named = b"\xb2server_module_call";
    for frames in [
        &[&b"x"[..]][..],
        &[&[7; 65], &[22]],
        &[b"\x01", b"\xc0"],
        &[b"\x01", b"", b"?"],
        &[b"\x01", named],
        &[b"\x01", b"\x63"],
        // get_chunk_size of 0.4.5, a retired id here.
        &[b"\x01", b"\x0b"],
    ] {
        zmtp::encode(&mut out, frames);
    }
    peer.send(&out).await;
    peer.noop().await;
    let counts: Vec<_> = running.server.stats().bad_messages().map(|(_, count)| count).collect();
    assert_eq!(counts, [1, 1, 1, 1, 2, 1, 1], "{:?}", BadMessage::ALL);
}

#[tokio::test]
async fn a_port_check_is_no_bad_peer() {
    let running = start(|_| {}).await;
    drop(TcpStream::connect(("127.0.0.1", running.port)).await.expect("connect"));
    let mut other = TcpStream::connect(("127.0.0.1", running.port)).await.expect("connect");
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("send");
    Peer(other).closed().await;
    until("both are gone", || running.server.connections() == 0).await;
    assert_eq!(count(running.server.stats().ended(), Ended::Handshake), 1);
}

#[test]
fn a_ping_does_not_wait_for_a_key_that_is_being_decoded() {
    let (l1, engine) = engine();
    let client = Arc::new(Client::new(1, "test".into(), Origin::default()));
    let (tell, told) = std::sync::mpsc::channel();
    let answered = client.while_decoding(|| {
        let client = client.clone();
        std::thread::spawn(move || {
            for operation in [Operation::Ping, Operation::Noop, Operation::GetChunkSize] {
                let payload: &[&[u8]] = if operation == Operation::Ping { &[&[0xc0]] } else { &[] };
                assert!(matches!(engine.handle(&client, operation, payload), Outcome::Reply(_)));
            }
            let status: &[&[u8]] = &[b"\xa1r", &[0]];
            assert!(matches!(
                engine.handle(&client, Operation::WaitPrefetchStatus, status),
                Outcome::Reply(_)
            ));
            tell.send(()).expect("somebody waits");
        });
        told.recv_timeout(HANG)
    });
    l1.discard();
    answered.expect("answered while the key is being decoded");
}
