//! The client library against the real daemon, and against daemons that lie.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipc_tests::daemon::Daemon;
use ipc_tests::worker::prompt;
use lmcache_client::{Client, ClientError, Options, PoolError, Prompt, Registration, SlotError, blocking};
use lmcache_proto::wire::{
    AttachRingResponse, OpCode, Operation, PrepareRetrieveResponse, PrepareStoreResponse,
    RegisterEngineDrivenResponse, Response, Slot, StoreContext, Writer,
};
use lmcache_proto::zmtp::{self, Decoder, Item};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Objects of 256 KiB.
fn registration(instance: u64) -> Registration {
    Registration::new(instance, "m").geometry(2, 128, "float16")
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_prompt_goes_in_and_comes_out() {
    let daemon = Daemon::start(&["--bind=ipc://{dir}/sock"]).await;
    for (round, endpoint) in
        [daemon.endpoint(), format!("ipc://{}/sock", daemon.dir().display())].into_iter().enumerate()
    {
        let client = Client::connect(&endpoint, Options::default()).await.expect("connect");
        assert!(matches!(
            client.prepare_store(&Prompt::new("x", &[1]), 0..256).await,
            Err(ClientError::NotRegistered)
        ));
        client.register(registration(7)).await.expect("register");
        client.ping().await.expect("ping");
        let tokens = prompt(round as u32, 4);
        let cold = Prompt::new("cold", &tokens);
        assert_eq!(client.lookup(&cold, LONG).await.expect("lookup"), Some(0));
        let mut store = client.prepare_store(&cold, 0..1024).await.expect("slots");
        assert_eq!(store.len(), 4);
        for (chunk, bytes) in store.slots_mut() {
            assert_eq!(bytes.len(), 256 << 10);
            bytes.fill(chunk as u8 + 1);
        }
        store.commit().await.expect("commit");
        let again = client.prepare_store(&cold, 0..1024).await.expect("cached");
        assert!(again.is_empty());
        again.commit().await.expect("free");
        client.end_session("cold").await.expect("end");

        let warm = Prompt::new("warm", &tokens);
        assert_eq!(client.lookup(&warm, LONG).await.expect("lookup"), Some(4));
        let retrieve = client.prepare_retrieve(&warm, 256..1024).await.expect("slots");
        for (chunk, bytes) in retrieve.slots().enumerate() {
            assert!(bytes.iter().all(|byte| *byte == chunk as u8 + 2));
        }
        // Two readers of the same bytes at once.
        let other = client.prepare_retrieve(&Prompt::new("other", &tokens), 256..512).await.expect("slots");
        assert_eq!(other.slot(0).expect("slot")[0], 2);
        retrieve.commit().await.expect("commit");
        // Dropped: its pins end with the next call.
        drop(other);
        client.end_session("warm").await.expect("end");
        assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0);
        assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0);
        assert!(matches!(
            client.prepare_retrieve(&Prompt::new("none", &prompt(99, 1)), 0..256).await,
            Err(ClientError::Refused(Operation::PrepareRetrieve))
        ));
        client.unregister().await.expect("unregister");
    }
}

#[tokio::test]
async fn a_dropped_store_is_prepared_again() {
    let daemon = Daemon::start(&[]).await;
    let client = Client::connect(&daemon.endpoint(), Options::default()).await.expect("connect");
    client.register(registration(7)).await.expect("register");
    let tokens = prompt(1, 2);
    let request = Prompt::new("r", &tokens);
    let mut first = client.prepare_store(&request, 0..512).await.expect("slots");
    // The same slots again, while the first still has them: two writers of the same bytes are refused.
    assert!(matches!(
        client.prepare_store(&request, 0..512).await,
        Err(ClientError::Slots { source: SlotError::Overlap { .. }, .. })
    ));
    let address = first.slot_mut(0).expect("slot").as_ptr() as usize;
    drop(first);
    let mut second = client.prepare_store(&request, 0..512).await.expect("slots");
    assert_eq!(second.slot_mut(0).expect("slot").as_ptr() as usize, address);
    second.commit().await.expect("commit");
}

#[tokio::test]
async fn ranges_and_names_are_checked_before_they_are_sent() {
    let daemon = Daemon::start(&[]).await;
    let client = Client::connect(&daemon.endpoint(), Options::default()).await.expect("connect");
    client.register(registration(7)).await.expect("register");
    let tokens = prompt(1, 2);
    for (start, end) in [(0, 0), (0, 100), (1, 257), (0, 768), (512, 256), (256, u64::MAX)] {
        let range = start..end;
        let outcome = client.prepare_store(&Prompt::new("r", &tokens), range.clone()).await;
        assert!(matches!(outcome, Err(ClientError::Range { .. })), "{range:?}: {outcome:?}");
    }
    let salted = Prompt::new("r", &tokens).salt("a/b");
    assert!(matches!(client.prepare_store(&salted, 0..256).await, Err(ClientError::Request(_))));
    let strange = registration(8).geometry(2, 128, "float3");
    assert!(matches!(client.register(strange).await, Err(ClientError::Refused(_))));
    for endpoint in ["", "nonsense", "udp://x:1", "ipc://relative"] {
        let outcome = Client::connect(endpoint, Options::default()).await;
        assert!(matches!(outcome, Err(ClientError::Endpoint(_))), "{endpoint:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_restart_is_survived_and_what_was_under_way_is_refused() {
    let mut daemon = Daemon::start(&[]).await;
    let client = Client::connect(&daemon.endpoint(), Options::default()).await.expect("connect");
    client.register(registration(7)).await.expect("register");
    let tokens = prompt(1, 4);
    let mut store = client.prepare_store(&Prompt::new("a", &tokens), 0..512).await.expect("slots");
    store.slots_mut().for_each(|(_, bytes)| bytes.fill(9));
    store.commit().await.expect("commit");
    let under_way = client.prepare_store(&Prompt::new("b", &tokens), 512..1024).await.expect("slots");
    daemon.crash_and_restart().await;
    let refused = under_way.commit().await;
    assert!(
        matches!(&refused, Err(error) if error.is_retryable()),
        "nobody knows of it any more: {refused:?}"
    );
    // The next call connects, registers and finds what was committed.
    let warm = Prompt::new("warm", &tokens);
    assert_eq!(client.lookup(&warm, LONG).await.expect("lookup"), Some(2));
    let retrieve = client.prepare_retrieve(&warm, 0..512).await.expect("slots");
    assert!(retrieve.slots().all(|bytes| bytes.iter().all(|byte| *byte == 9)));
    retrieve.commit().await.expect("commit");
    // Another pool altogether.
    daemon.restart_with(&["--l1-size-gb=0.125", "--fresh"]).await;
    let mut store = client.prepare_store(&Prompt::new("c", &tokens), 0..1024).await.expect("slots");
    assert_eq!(store.len(), 4);
    store.slots_mut().for_each(|(_, bytes)| bytes.fill(1));
    store.commit().await.expect("commit");
}

#[test]
fn threads_share_a_blocking_client() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let daemon = runtime.block_on(Daemon::start(&[]));
    let client = blocking::Client::connect(&daemon.endpoint(), Options::default()).expect("connect");
    client.register(registration(7)).expect("register");
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..5u32 {
                    let tokens = prompt(100 + thread * 10 + round, 1);
                    let id = format!("{thread} {round}");
                    let request = Prompt::new(&id, &tokens);
                    let mut store = client.prepare_store(&request, 0..256).expect("slots");
                    store.slots_mut().for_each(|(_, bytes)| bytes.fill(thread as u8));
                    store.commit().expect("commit");
                    assert_eq!(client.lookup(&request, LONG).expect("lookup"), Some(1));
                    let retrieve = client.prepare_retrieve(&request, 0..256).expect("slots");
                    assert!(retrieve.slots().all(|bytes| bytes.iter().all(|byte| *byte == thread as u8)));
                    retrieve.commit().expect("commit");
                    client.end_session(&id).expect("end");
                }
            });
        }
    });
    // On a thread that runs tasks it would stop them all: an error, not a panic.
    let inside = runtime.block_on(async { client.ping() });
    assert!(matches!(inside, Err(ClientError::InsideRuntime)));
    runtime.block_on(async move { drop(client) });
}

/// What a lying daemon does with a request.
enum Lie {
    /// Answers this.
    Say(Response),
    /// Answers these bytes.
    Bytes(&'static [u8]),
    /// Answers under another operation's name.
    As(Operation),
    Silence,
    /// Sends these bytes to the stream and nothing more.
    Stream(&'static [u8]),
    Close,
}

/// A daemon that speaks the framing and answers what it is told to. `None`: like an honest one.
async fn liar(lie: impl Fn(Operation) -> Option<Lie> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        'connection: loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut hello = zmtp::greeting().to_vec();
            hello.extend_from_slice(&zmtp::ready());
            stream.write_all(&hello).await.expect("hello");
            let mut buf = BytesMut::new();
            let mut greeted = false;
            let mut decoder = Decoder::new(1 << 26);
            loop {
                if !greeted && buf.len() >= zmtp::GREETING_LEN {
                    let _ = buf.split_to(zmtp::GREETING_LEN);
                    greeted = true;
                }
                let item = if greeted { decoder.next(&mut buf).expect("own client") } else { None };
                let Some(item) = item else {
                    match stream.read_buf(&mut buf).await {
                        Ok(0) | Err(_) => continue 'connection,
                        Ok(_) => continue,
                    }
                };
                let Item::Message(frames) = item else { continue };
                let Ok(OpCode::Known(operation)) = OpCode::decode(&frames[1]) else { panic!("known") };
                let mut op_frame = frames[1].clone();
                let body = match lie(operation) {
                    Some(Lie::Say(response)) => response.encode(),
                    Some(Lie::Bytes(bytes)) => Some(bytes.to_vec()),
                    Some(Lie::As(other)) => {
                        op_frame = lmcache_client::operation_frame(other);
                        None
                    }
                    Some(Lie::Silence) => continue,
                    Some(Lie::Stream(bytes)) => {
                        let _ = stream.write_all(bytes).await;
                        continue;
                    }
                    Some(Lie::Close) => continue 'connection,
                    None => match operation {
                        Operation::GetChunkSize => Response::Count(256).encode(),
                        Operation::AttachRing => {
                            Response::RingAttached(AttachRingResponse::default()).encode()
                        }
                        Operation::Ping | Operation::CommitStore | Operation::CommitRetrieve => {
                            Response::Flag(true).encode()
                        }
                        Operation::WaitPrefetchStatus => Response::Count(u64::MAX).encode(),
                        _ => None,
                    },
                };
                let mut out = BytesMut::new();
                let mut reply: Vec<&[u8]> = vec![&frames[0], &op_frame];
                if let Some(body) = &body {
                    reply.push(body);
                }
                zmtp::encode(&mut out, &reply);
                if stream.write_all(&out).await.is_err() {
                    continue 'connection;
                }
            }
        }
    });
    endpoint
}

fn quick() -> Options {
    Options::default().timeouts(Duration::from_millis(500), Duration::from_millis(500))
}

/// A pool of 1 MiB: four objects.
struct FakePool(String);

impl FakePool {
    fn new() -> FakePool {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("ipc_tests_fake_pool_{}_{number}", std::process::id());
        std::fs::File::create(format!("/dev/shm/{name}"))
            .and_then(|file| file.set_len(1 << 20))
            .expect("pool");
        FakePool(name)
    }
}

/// The honest answer of a daemon that has the fake pool `name`.
fn registered(name: &str) -> Lie {
    let response = RegisterEngineDrivenResponse { shm_name: name.to_owned(), pool_size: 1 << 20 };
    Lie::Say(Response::Registered(response))
}

impl Drop for FakePool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(format!("/dev/shm/{}", self.0));
    }
}

#[tokio::test]
async fn lies_about_the_pool_are_errors() {
    for (name, bytes) in
        [("", 0), ("", 1 << 30), ("../etc/passwd", 4096), ("no_such_segment_anywhere", 4096), ("..", 1)]
    {
        let endpoint = liar(move |operation| {
            let response = RegisterEngineDrivenResponse { shm_name: name.into(), pool_size: bytes };
            (operation == Operation::RegisterEngineDriven).then_some(Lie::Say(Response::Registered(response)))
        })
        .await;
        let client = Client::connect(&endpoint, quick()).await.expect("connect");
        let outcome = client.register(registration(7)).await;
        assert!(matches!(outcome, Err(ClientError::Pool(_))), "{name:?}: {outcome:?}");
    }
    let pool = FakePool::new();
    let name = pool.0.clone();
    let endpoint = liar(move |operation| {
        let response = RegisterEngineDrivenResponse { shm_name: name.clone(), pool_size: 1 << 50 };
        (operation == Operation::RegisterEngineDriven).then_some(Lie::Say(Response::Registered(response)))
    })
    .await;
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    let outcome = client.register(registration(7)).await;
    assert!(matches!(outcome, Err(ClientError::Pool(PoolError::Size { .. }))), "{outcome:?}");
}

#[tokio::test]
async fn lies_about_slots_are_errors_and_nothing_is_touched() {
    const OBJECT: u64 = 256 << 10;
    let slot = |offset, length| Slot { offset, length, shape: vec![], dtype: "float16".into() };
    let cases: Vec<(Vec<Slot>, Vec<u64>)> = vec![
        (vec![slot(1 << 20, OBJECT)], vec![0]),
        (vec![slot(u64::MAX, OBJECT)], vec![0]),
        (vec![slot((1 << 20) - 1, OBJECT)], vec![0]),
        (vec![slot(0, u64::MAX)], vec![0]),
        (vec![slot(0, 0)], vec![0]),
        (vec![slot(0, OBJECT - 1)], vec![0]),
        (vec![slot(0, OBJECT), slot(0, OBJECT)], vec![0, 1]),
        (vec![slot(0, OBJECT), slot(OBJECT / 2, OBJECT)], vec![0, 1]),
        (vec![slot(0, OBJECT), slot(OBJECT, OBJECT)], vec![0]),
        (vec![slot(0, OBJECT)], vec![2]),
        (vec![slot(0, OBJECT), slot(OBJECT, OBJECT)], vec![1, 0]),
        (vec![slot(0, OBJECT), slot(OBJECT, OBJECT)], vec![1, 1]),
        (vec![], vec![0]),
        ((0..3).map(|n| slot(n * OBJECT, OBJECT)).collect(), vec![0, 1, 2]),
        ((0..100_000).map(|_| slot(0, OBJECT)).collect(), (0..100_000).collect()),
    ];
    let tokens = prompt(1, 2);
    for (number, (slots, chunk_indices)) in cases.into_iter().enumerate() {
        let pool = FakePool::new();
        let name = pool.0.clone();
        let named = slots.clone();
        let endpoint = liar(move |operation| match operation {
            Operation::RegisterEngineDriven => Some(registered(&name)),
            Operation::PrepareStore => {
                let context = StoreContext { slots: slots.clone(), chunk_indices: chunk_indices.clone() };
                let response = PrepareStoreResponse { context: Some(context) };
                Some(Lie::Say(Response::PrepareStore(response)))
            }
            Operation::PrepareRetrieve => {
                let response = PrepareRetrieveResponse { slots: Some(slots.clone()) };
                Some(Lie::Say(Response::PrepareRetrieve(response)))
            }
            _ => None,
        })
        .await;
        let client = Client::connect(&endpoint, Options::default()).await.expect("connect");
        client.register(registration(7)).await.expect("register");
        let request = Prompt::new("r", &tokens);
        let outcome = client.prepare_store(&request, 0..512).await;
        assert!(matches!(outcome, Err(ClientError::Slots { .. })), "case {number}: {outcome:?}");
        let outcome = client.prepare_retrieve(&request, 0..512).await;
        let sound = named.len() == 2 && named.iter().all(|s| s.length == OBJECT && s.offset % OBJECT == 0);
        // Two readers may share an object; the order of chunks is not said of a retrieve.
        assert!(
            matches!(outcome, Err(ClientError::Slots { .. })) || (sound && outcome.is_ok()),
            "case {number}: {outcome:?}"
        );
        drop(outcome);
        // What was lent before the lie was noticed has been given back: all of it can be lent again.
        assert!(client.ping().await.is_ok());
    }
}

#[tokio::test]
async fn malformed_and_wrong_answers_are_errors() {
    type Make = fn() -> Lie;
    let lies: [(&str, Make); 8] = [
        ("not msgpack", || Lie::Bytes(&[0xc1])),
        ("empty", || Lie::Bytes(&[])),
        ("cut off", || Lie::Bytes(&[0x93, 1])),
        ("too long", || Lie::Bytes(&[1, 2, 3])),
        ("a giant array", || Lie::Bytes(&[0xdd, 0xff, 0xff, 0xff, 0xff])),
        ("a map", || Lie::Bytes(&[0x80])),
        ("another operation", || Lie::As(Operation::Noop)),
        ("no answer frame", || Lie::Say(Response::Nothing)),
    ];
    for (what, lie) in lies {
        let endpoint = liar(move |operation| {
            (!matches!(operation, Operation::GetChunkSize | Operation::AttachRing)).then(lie)
        })
        .await;
        let client = Client::connect(&endpoint, quick()).await.expect("connect");
        let outcome = client.ping().await;
        assert!(
            matches!(outcome, Err(ClientError::Malformed { .. } | ClientError::WrongKind(_))),
            "{what}: {outcome:?}"
        );
        let outcome = client.register(registration(7)).await;
        assert!(
            matches!(outcome, Err(ClientError::Malformed { .. } | ClientError::WrongKind(_))),
            "{what}: {outcome:?}"
        );
    }
    // A chunk size that cannot be.
    for size in [0, 65_537, u64::MAX] {
        let endpoint = liar(move |operation| {
            (operation == Operation::GetChunkSize).then_some(Lie::Say(Response::Count(size)))
        })
        .await;
        let outcome = Client::connect(&endpoint, quick()).await;
        assert!(matches!(outcome, Err(ClientError::WrongKind(_))), "{size}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_lookup_never_finds_more_than_there_is() {
    let pool = FakePool::new();
    let name = pool.0.clone();
    let endpoint = liar(move |operation| match operation {
        Operation::RegisterEngineDriven => Some(registered(&name)),
        _ => None,
    })
    .await;
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    client.register(registration(7)).await.expect("register");
    let tokens = prompt(1, 2);
    assert_eq!(client.lookup(&Prompt::new("r", &tokens), LONG).await.expect("lookup"), Some(2));
}

#[tokio::test]
async fn silence_ends_at_the_deadline_and_hang_ups_at_once() {
    let endpoint = liar(|operation| (operation == Operation::Ping).then_some(Lie::Silence)).await;
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    for _ in 0..4 {
        assert!(matches!(client.ping().await, Err(ClientError::Deadline(Operation::Ping))));
    }
    // Other calls still work.
    client.end_session("r").await.expect("answered");

    let endpoint = liar(|operation| (operation == Operation::Ping).then_some(Lie::Close)).await;
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    assert!(matches!(client.ping().await, Err(ClientError::Closed | ClientError::Transport(_))));
    client.end_session("r").await.expect("connected again");

    // A frame of 2^62 bytes: nothing is reserved for it.
    let endpoint = liar(|operation| {
        (operation == Operation::Ping).then_some(Lie::Stream(&[2, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]))
    })
    .await;
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    assert!(matches!(client.ping().await, Err(ClientError::Frame(_))));
    client.end_session("r").await.expect("connected again");

    // Nobody, and somebody else.
    let nobody = Client::connect("tcp://127.0.0.1:1", quick()).await;
    assert!(
        matches!(&nobody, Err(error @ ClientError::Connect { .. }) if error.is_retryable()),
        "{nobody:?}"
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("address"));
    let mute = Client::connect(&endpoint, quick()).await;
    assert!(matches!(mute, Err(ClientError::Connect { .. })), "{mute:?}");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let other = Client::connect(&endpoint, quick()).await;
    assert!(matches!(other, Err(ClientError::Handshake(_))), "{other:?}");
}

#[tokio::test]
async fn lies_about_the_ring_leave_a_worker_without_one() {
    let lanes = |lane, lanes, slots, bytes, name: &str| AttachRingResponse {
        ring_name: name.to_owned(),
        ring_bytes: bytes,
        lane,
        lanes,
        slots,
        epoch: 7,
    };
    let pool = FakePool::new();
    let one_lane = 4096 + 12288;
    for response in [
        lanes(0, 0, 0, 0, "x"),
        lanes(0, 1, 1024, u64::MAX, "x"),
        lanes(1, 1, 128, one_lane, &pool.0),
        lanes(u32::MAX, u32::MAX, u32::MAX, u64::MAX, "x"),
        lanes(0, 1, 128, one_lane, "no_such_segment_anywhere"),
        lanes(0, 1, 128, one_lane, "../shm/x"),
        // A segment that is no ring.
        lanes(0, 1, 128, one_lane, &pool.0),
    ] {
        let (name, answer) = (pool.0.clone(), response.clone());
        let endpoint = liar(move |operation| match operation {
            Operation::RegisterEngineDriven => Some(registered(&name)),
            Operation::AttachRing => Some(Lie::Say(Response::RingAttached(answer.clone()))),
            _ => None,
        })
        .await;
        let client = Client::connect(&endpoint, quick()).await.expect("connect");
        client.register(registration(7)).await.expect("a worker works without a lane");
        assert!(!client.publisher().is_attached());
        assert!(client.ring_error().is_some(), "{response:?}");
    }
}

#[tokio::test]
async fn a_server_without_our_operation_is_a_server() {
    // LMCache's own server says nothing to operations that it does not know.
    let pool = FakePool::new();
    let name = pool.0.clone();
    let endpoint = liar(move |operation| match operation {
        Operation::RegisterEngineDriven => Some(registered(&name)),
        Operation::AttachRing => Some(Lie::Silence),
        _ => None,
    })
    .await;
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    client.register(registration(7)).await.expect("register");
    assert!(!client.publisher().is_attached());
    client.ping().await.expect("ping");
}

/// Answers are matched by their id: a late one is nobody's.
#[tokio::test]
async fn late_answers_are_ignored() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut hello = zmtp::greeting().to_vec();
        hello.extend_from_slice(&zmtp::ready());
        stream.write_all(&hello).await.expect("hello");
        let mut buf = BytesMut::new();
        while buf.len() < zmtp::GREETING_LEN {
            stream.read_buf(&mut buf).await.expect("read");
        }
        let _ = buf.split_to(zmtp::GREETING_LEN);
        let mut decoder = Decoder::new(1 << 20);
        loop {
            match decoder.next(&mut buf).expect("own client") {
                Some(Item::Message(frames)) => {
                    let mut out = BytesMut::new();
                    // First under ids that nobody has asked with, then the real one.
                    for id in [0, 77] {
                        let mut uid = Writer::new();
                        uid.uint(id);
                        zmtp::encode(&mut out, &[&uid.into_vec(), &frames[1], &[0xc2]]);
                    }
                    zmtp::encode(&mut out, &[]);
                    let body: Bytes = Response::Count(256).encode().expect("a frame").into();
                    zmtp::encode(&mut out, &[&frames[0], &frames[1], &body]);
                    stream.write_all(&out).await.expect("write");
                }
                Some(Item::Command(_)) => {}
                None => {
                    if stream.read_buf(&mut buf).await.expect("read") == 0 {
                        return;
                    }
                }
            }
        }
    });
    let client = Client::connect(&endpoint, quick()).await.expect("connect");
    assert_eq!(client.chunk_size().await.expect("the right answer"), 256);
}
