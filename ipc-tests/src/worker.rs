//! What a vLLM worker and its scheduler do, in the engine-driven mode.

use lmcache_client::Connection;
use lmcache_proto::wire::{
    CacheKey, KeyBuilder, RegisterEngineDrivenPayload, Request, Response, Slot, StoreContext,
};

/// Tokens of a chunk in these tests (the daemon's default).
pub const CHUNK: usize = 256;

/// A prompt of `chunks` whole chunks; different seeds share no chunk.
pub fn prompt(seed: u32, chunks: usize) -> Vec<u32> {
    (0..(chunks * CHUNK) as u32).map(|i| seed.wrapping_mul(7919).wrapping_add(i * 3) % 50_000).collect()
}

/// One worker of a model with `layers` × `width` float16 objects.
#[derive(Clone, Debug)]
pub struct Model {
    /// Name.
    pub name: String,
    /// Ranks.
    pub world_size: u32,
    /// Layers.
    pub layers: u64,
    /// Elements per token and layer.
    pub width: u64,
}

impl Model {
    /// A model whose objects have 256 KiB: 2 planes × 2 layers × 256 slots × 128 × 2 bytes.
    pub fn small(name: &str) -> Model {
        Model { name: name.into(), world_size: 1, layers: 2, width: 128 }
    }

    /// The registration of worker `instance`.
    pub fn registration(&self, instance: u64) -> Request<'static> {
        Request::RegisterEngineDriven(Box::new(RegisterEngineDrivenPayload {
            instance_id: instance,
            model_name: self.name.clone(),
            world_size: self.world_size,
            block_size: 16,
            num_layers: self.layers,
            hidden_dim_size: self.width,
            dtype_str: "float16".into(),
            use_mla: false,
            num_physical_slots: Some(CHUNK as u64),
        }))
    }

    /// Key frames of a request of this model.
    pub fn key(&self, request: &str, tokens: &[u32]) -> KeyBuilder {
        KeyBuilder::new(&self.name, self.world_size, request, tokens)
    }
}

/// Decodes an own key frame.
pub fn key(frame: &[u8]) -> CacheKey<'_> {
    CacheKey::decode(frame).expect("own key")
}

/// Looks a prompt up and returns the chunks found, as soon as that is known.
///
/// # Panics
/// If the daemon does not answer as the protocol says.
pub async fn lookup(
    client: &mut Connection,
    model: &Model,
    request: &str,
    tokens: &[u32],
    readers: u32,
) -> u64 {
    start_lookup(client, model, request, tokens, readers).await;
    await_lookup(client, request).await
}

/// Sends a lookup.
///
/// # Panics
/// If the daemon does not acknowledge it.
pub async fn start_lookup(
    client: &mut Connection,
    model: &Model,
    request: &str,
    tokens: &[u32],
    readers: u32,
) {
    let frame = model.key(request, tokens).readers(readers).frame(None, 0, tokens.len() as u64);
    let ack = client.call(&Request::Lookup { key: key(&frame), tp_size: 1 }).await.expect("lookup");
    assert_eq!(ack, Response::Nothing);
}

/// Asks for a lookup's result until it is known, as the engine's scheduler does.
///
/// # Panics
/// If the daemon does not answer as the protocol says.
pub async fn await_lookup(client: &mut Connection, request: &str) -> u64 {
    crate::eventually("the lookup is done", async || {
        match client.call(&Request::QueryPrefetchStatus { request_id: request }).await.expect("status") {
            Response::Count(chunks) => Some(chunks),
            Response::Nothing => None,
            other => panic!("status answered {other:?}"),
        }
    })
    .await
}

/// Pings for a worker; whether it is known.
///
/// # Panics
/// If there is no answer.
pub async fn ping(client: &mut Connection, instance: u64) -> bool {
    client.call(&Request::Ping { instance_id: Some(instance) }).await.expect("ping") == Response::Flag(true)
}

/// Prepares a store; `None` is the daemon's "could not".
///
/// # Panics
/// If the daemon does not answer as the protocol says.
pub async fn prepare_store(client: &mut Connection, frame: &[u8], instance: u64) -> Option<StoreContext> {
    match client
        .call(&Request::PrepareStore { key: key(frame), instance_id: instance })
        .await
        .expect("prepare_store")
    {
        Response::PrepareStore(response) => response.context,
        other => panic!("prepare_store answered {other:?}"),
    }
}

/// Commits a store.
///
/// # Panics
/// If the daemon does not answer as the protocol says.
pub async fn commit_store(client: &mut Connection, frame: &[u8], instance: u64) -> bool {
    let request = Request::CommitStore { key: key(frame), instance_id: instance, data: b"" };
    client.call(&request).await.expect("commit_store") == Response::Flag(true)
}

/// Prepares a retrieve.
///
/// # Panics
/// If the daemon does not answer as the protocol says.
pub async fn prepare_retrieve(client: &mut Connection, frame: &[u8], instance: u64) -> Option<Vec<Slot>> {
    let request = Request::PrepareRetrieve { key: key(frame), instance_id: instance };
    match client.call(&request).await.expect("prepare_retrieve") {
        Response::PrepareRetrieve(response) => response.slots,
        other => panic!("prepare_retrieve answered {other:?}"),
    }
}

/// Commits a retrieve.
///
/// # Panics
/// If the daemon does not answer as the protocol says.
pub async fn commit_retrieve(client: &mut Connection, frame: &[u8], instance: u64) -> bool {
    let request = Request::CommitRetrieve { key: key(frame), instance_id: instance };
    client.call(&request).await.expect("commit_retrieve") == Response::Flag(true)
}

/// Stores a whole prompt, each chunk filled with the pattern of `seed + chunk`. Returns the chunks written.
///
/// # Panics
/// If the daemon refuses.
pub async fn store(
    client: &mut Connection,
    pool: &crate::pool::Pool,
    model: &Model,
    request: &str,
    tokens: &[u32],
    instance: u64,
    seed: u64,
) -> usize {
    let frame = model.key(request, tokens).frame(Some(0), 0, tokens.len() as u64);
    let context = prepare_store(client, &frame, instance).await.expect("slots");
    for (slot, chunk) in context.slots.iter().zip(&context.chunk_indices) {
        pool.fill(slot, seed + chunk);
    }
    if !context.slots.is_empty() {
        assert!(commit_store(client, &frame, instance).await, "commit");
    }
    context.slots.len()
}
