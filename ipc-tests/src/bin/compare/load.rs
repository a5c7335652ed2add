//! The load: what a scheduler and a worker send for one request of 4,096 tokens, cold and then warm.

use std::time::{Duration, Instant};

use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::worker::{CHUNK, Model, key};
use lmcache_client::Connection;
use lmcache_proto::wire::{Operation, Request, Response};

use super::target::{Kind, Target};

/// Chunks of a prompt.
const CHUNKS: usize = 16;

/// One measured operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) operation: Operation,
    pub(crate) time: Duration,
}

/// Runs `cycles` cycles on each of `clients` connections at once.
pub(crate) async fn cycles(target: &Target, clients: usize, cycles: usize, round: usize) -> Vec<Sample> {
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (endpoint, kind) = (target.endpoint.clone(), target.kind);
            tokio::spawn(async move { one_client(&endpoint, kind, client, clients, cycles, round).await })
        })
        .collect();
    let mut samples = Vec::new();
    for task in tasks {
        samples.append(&mut task.await.expect("client"));
    }
    samples
}

async fn one_client(
    endpoint: &str,
    kind: Kind,
    client: usize,
    clients: usize,
    cycles: usize,
    round: usize,
) -> Vec<Sample> {
    let mut connection = Connection::connect(endpoint, Duration::from_secs(60)).await.expect("connect");
    // 64 KiB an object: the index and the wire are measured here, not the worker's copies.
    let model = Model { name: "bench".into(), world_size: 1, layers: 1, width: 64 };
    let instance = 1000 + (round * 100 + clients * 10 + client) as u64;
    let mut samples = Vec::with_capacity(cycles * 8);
    if kind != Kind::Echo {
        connection.call(&model.registration(instance)).await.expect("register");
    }
    for cycle in 0..cycles {
        // Fresh tokens each cycle, of the size that real token ids have (2 and 4 bytes of msgpack).
        let seed = ((round * 10 + clients) * 10 + client) * 100_000 + cycle;
        let mut tokens: Vec<u32> = (0..(CHUNKS * CHUNK) as u32).map(|i| i * 31 % 120_000).collect();
        // The first chunk's hash goes into all others: two tokens make every cycle's prompt its own.
        (tokens[0], tokens[1]) = ((seed % 120_000) as u32, (seed / 120_000) as u32);
        let end = tokens.len() as u64;
        let ids = [format!("c{seed}"), format!("w{seed}")];
        for (warm, id) in ids.iter().enumerate() {
            let all = model.key(id, &tokens).frame(None, 0, end);
            let own = model.key(id, &tokens).frame(Some(0), 0, end);
            let mut run =
                async |request: &Request<'_>| timed(&mut connection, kind, request, &mut samples).await;
            run(&Request::Lookup { key: key(&all), tp_size: 1 }).await;
            let found = run(&Request::QueryPrefetchStatus { request_id: id }).await;
            if kind != Kind::Echo {
                assert_eq!(found, Some(Response::Count((warm * CHUNKS) as u64)), "{}: {id}", kind.name());
            }
            if warm == 0 {
                let prepared = run(&Request::PrepareStore { key: key(&own), instance_id: instance }).await;
                if let Some(Response::PrepareStore(response)) = prepared {
                    assert_eq!(response.context.map(|c| c.slots.len()), Some(CHUNKS), "{}", kind.name());
                }
                run(&Request::CommitStore { key: key(&own), instance_id: instance, data: b"" }).await;
            } else {
                let prepared = run(&Request::PrepareRetrieve { key: key(&own), instance_id: instance }).await;
                if let Some(Response::PrepareRetrieve(response)) = prepared {
                    assert_eq!(response.slots.map(|s| s.len()), Some(CHUNKS), "{}", kind.name());
                }
                run(&Request::CommitRetrieve { key: key(&own), instance_id: instance }).await;
            }
            run(&Request::EndSession { request_id: id }).await;
        }
    }
    if kind != Kind::Echo {
        connection
            .call(&Request::UnregisterEngineDriven { instance_id: instance })
            .await
            .expect("unregister");
    }
    samples
}

/// One request; the encoding is outside the measurement.
async fn timed(
    connection: &mut Connection,
    kind: Kind,
    request: &Request<'_>,
    samples: &mut Vec<Sample>,
) -> Option<Response> {
    let operation = request.operation();
    let op_frame = lmcache_client::operation_frame(operation);
    let payload: Vec<bytes::Bytes> =
        lmcache_proto::wire::encode_request(request).into_iter().map(bytes::Bytes::from).collect();
    let started = Instant::now();
    let uid = connection.send_raw(op_frame, payload.into_iter()).await.expect("send");
    let frames = connection.receive().await.expect("answer");
    let time = started.elapsed();
    assert_eq!(frames[0], uid, "one request at a time");
    samples.push(Sample { operation, time });
    if kind == Kind::Echo {
        return None;
    }
    Some(Response::decode(operation, frames.get(2).map(|frame| &frame[..])).expect("answer of the protocol"))
}

/// Shape of the server-driven worker: a chunk has 4 MiB in blocks of 32 KiB.
const SHAPE: Shape = Shape { layers: 4, blocks: 256, block: 16, heads: 8, head: 128 };

/// Server-driven stores and retrieves of one chunk each, over the wire, `count` times.
pub(crate) async fn server_driven(target: &Target, count: usize, round: usize) -> Vec<Sample> {
    let cache = KvCache::new(&format!("compare{round}"), SHAPE);
    cache.fill();
    let mut connection =
        Connection::connect(&target.endpoint, Duration::from_secs(60)).await.expect("connect");
    let model = Model { name: "driven".into(), world_size: 1, layers: 4, width: 1024 };
    let instance = 5000 + round as u64;
    let registration = Box::new(cache.registration(instance, &model.name));
    connection.call(&Request::RegisterKvCache(registration)).await.expect("register");
    let mut samples = Vec::new();
    for i in 0..count {
        let mut tokens: Vec<u32> = (0..CHUNK as u32).collect();
        (tokens[0], tokens[1]) = (i as u32, 1000 + round as u32);
        let id = format!("d{round}x{i}");
        let frame = model.key(&id, &tokens).frame(Some(0), 0, CHUNK as u64);
        let all = model.key(&id, &tokens).frame(None, 0, CHUNK as u64);
        // Scattered over the cache, in an order of its own each time.
        let blocks: Vec<u64> = (0..16).map(|b| (b * 37 + i as u64 * 16) % SHAPE.blocks).collect();
        let block_ids = vec![blocks];
        let mut unmeasured = Vec::new();
        let request = Request::Store {
            key: key(&frame),
            instance_id: instance,
            block_ids: block_ids.clone(),
            event: b"e",
        };
        let stored = timed(&mut connection, target.kind, &request, &mut samples).await;
        assert!(matches!(stored, Some(Response::Transfer(_, true))), "{}: {stored:?}", target.kind.name());
        // The peer answers a store before it has committed it: ask until the chunk is there.
        loop {
            let lookup = Request::Lookup { key: key(&all), tp_size: 1 };
            timed(&mut connection, target.kind, &lookup, &mut unmeasured).await;
            let status = Request::QueryPrefetchStatus { request_id: &id };
            if timed(&mut connection, target.kind, &status, &mut unmeasured).await == Some(Response::Count(1))
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let request = Request::Retrieve {
            key: key(&frame),
            instance_id: instance,
            block_ids,
            event: b"e",
            skip_first_n_tokens: 0,
        };
        let retrieved = timed(&mut connection, target.kind, &request, &mut samples).await;
        assert!(
            matches!(retrieved, Some(Response::Transfer(_, true))),
            "{}: {retrieved:?}",
            target.kind.name()
        );
        let end = Request::EndSession { request_id: &id };
        timed(&mut connection, target.kind, &end, &mut unmeasured).await;
    }
    connection.call(&Request::UnregisterKvCache { instance_id: instance }).await.expect("unregister");
    samples
}

/// The floor of [`server_driven`]: a plain copy of the same bytes in the same blocks, `count` times into fresh places.
pub(crate) fn plain_copies(count: usize) -> Vec<Duration> {
    let block = SHAPE.block_bytes() as usize;
    let source = vec![1u8; SHAPE.layers * SHAPE.layer_bytes() as usize];
    // Larger than any cache, and touched before: as the pool is.
    let mut places = vec![2u8; 256 << 20];
    let chunk = 16 * 2 * SHAPE.layers * block;
    (0..count)
        .map(|i| {
            let to = &mut places[(i * chunk) % (256 << 20)..][..chunk];
            let started = Instant::now();
            for (position, piece) in to.chunks_exact_mut(block).enumerate() {
                let from = (position * 37 + i * 16) % (source.len() / block) * block;
                piece.copy_from_slice(&source[from..from + block]);
            }
            let time = started.elapsed();
            std::hint::black_box(&to);
            time
        })
        .collect()
}

/// Pipelined pings per second of one client.
pub(crate) async fn pings(target: &Target, length: Duration) -> f64 {
    const WINDOW: usize = 64;
    let mut connection =
        Connection::connect(&target.endpoint, Duration::from_secs(60)).await.expect("connect");
    let ping = Request::Ping { instance_id: None };
    let started = Instant::now();
    let mut answered = 0u64;
    for _ in 0..WINDOW {
        connection.send(&ping).await.expect("send");
    }
    while started.elapsed() < length {
        connection.receive().await.expect("answer");
        answered += 1;
        connection.send(&ping).await.expect("send");
    }
    answered as f64 / started.elapsed().as_secs_f64()
}
