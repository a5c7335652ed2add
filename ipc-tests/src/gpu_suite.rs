//! What the tests of workers with GPU memory share: small workers, one chunk at a time.

use std::sync::Arc;

use lmcache_client::Connection;
use lmcache_proto::wire::Request;

use crate::daemon::Daemon;
use crate::device_suite::{Announce, GpuMemory, Layout, Subject, layer_bytes, model};
use crate::eventually;
use crate::gpu::{GpuWorker, Gpus};
use crate::worker::{ping, prompt};

/// Layers of a worker.
pub const LAYERS: usize = 2;
/// Their layout: whole blocks, which batches copy.
pub const LAYOUT: Layout = Layout::KvFirst;

/// A worker's KV cache.
pub fn memory(worker: &Arc<GpuWorker>, announce: Announce) -> GpuMemory {
    GpuMemory::new(worker.clone(), announce, LAYERS, layer_bytes(LAYOUT))
}

/// A worker with that KV cache.
pub fn subject(memory: &GpuMemory, instance: u64) -> Subject<'_> {
    Subject { backing: memory, layout: LAYOUT, layers: LAYERS, instance }
}

/// Blocks of one chunk.
pub fn blocks() -> Vec<u64> {
    (1..17).collect()
}

/// One chunk's key frame.
pub fn frame(name: &str, request: &str, seed: u32) -> Vec<u8> {
    model(name).key(request, &prompt(seed, 1)).frame(Some(0), 0, 256)
}

/// Unregisters a worker.
///
/// # Panics
/// Without an answer.
pub async fn unregister(client: &mut Connection, instance: u64) {
    client.call(&Request::UnregisterKvCache { instance_id: instance }).await.expect("unregister");
}

/// Allocations that the daemon has open become this many.
pub async fn open_become(gpus: &Gpus, daemon: &Daemon, count: usize) {
    let is = async || (gpus.mapped_by(daemon.pid()) == count).then_some(());
    eventually(&format!("{count} allocations are open"), is).await;
}

/// The daemon's contexts become those of these devices.
pub async fn contexts_become(gpus: &Gpus, daemon: &Daemon, devices: &[u32]) {
    let is = async || (gpus.contexts_of(daemon.pid()) == devices).then_some(());
    eventually(&format!("there are contexts of {devices:?}"), is).await;
}

/// A worker registers and stores a prompt, at the first try.
///
/// # Panics
/// If it is not served.
pub async fn is_served(client: &mut Connection, worker: &Subject<'_>, seed: u32) {
    worker.register(client, "m").await;
    assert!(worker.store(client, &frame("m", "served", seed), blocks()).await.1, "{}", worker.instance);
}

/// A worker is told by one of its pings to register again.
pub async fn is_told(client: &mut Connection, instance: u64) {
    eventually("a ping is answered `false`", async || (!ping(client, instance).await).then_some(())).await;
}
