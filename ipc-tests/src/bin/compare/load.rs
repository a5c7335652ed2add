//! The load: what a scheduler and a worker send for one request of 4,096 tokens, cold and then warm.

use std::time::{Duration, Instant};

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
