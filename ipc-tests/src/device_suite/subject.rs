//! A worker of the suite, and what it asks of the daemon.

use lmcache_client::Connection;
use lmcache_proto::wire::{EngineGroupInfo, LayoutHints, RegisterKvCache, Request, Response};

use super::layout::{BLOCKS, Layout, SLOTS};
use super::memory::Backing;
use crate::worker::key;

/// What is between blocks after a wipe.
const PADDING: u8 = 0xa5;

/// A registered worker of the suite.
pub struct Subject<'b> {
    /// Its memory.
    pub backing: &'b dyn Backing,
    /// Its layout.
    pub layout: Layout,
    /// Layers.
    pub layers: usize,
    /// Its id.
    pub instance: u64,
}

impl Subject<'_> {
    /// What it registers as a worker of `model`.
    pub fn registration(&self, model: &str) -> RegisterKvCache {
        let metadata = || self.layout.metadata(self.backing.uuid(), 0);
        RegisterKvCache {
            instance_id: self.instance,
            kv_cache: (0..self.layers).map(|layer| self.backing.descriptor(layer, metadata())).collect(),
            model_name: model.to_owned(),
            world_size: 1,
            engine_type: "vllm".into(),
            layout_hints: LayoutHints {
                kv_layout: Some(self.layout.hint().into()),
                ..LayoutHints::default()
            },
            engine_group_infos: vec![EngineGroupInfo {
                engine_group_id: 0,
                layer_indices: (0..self.layers as u32).collect(),
                tokens_per_block: SLOTS,
                sw_size_tokens: -1,
                extra_object_group_tag: 0,
                recurrent_state: false,
            }],
        }
    }

    /// Registers it.
    ///
    /// # Panics
    /// If the daemon does not acknowledge it.
    pub async fn register(&self, client: &mut Connection, model: &str) {
        let request = Request::RegisterKvCache(Box::new(self.registration(model)));
        assert_eq!(client.call(&request).await.expect("register"), Response::Nothing);
    }

    /// Writes every byte as a function of its place.
    pub fn fill(&self, seed: u64) {
        let layer = |layer: usize| {
            let byte = |at: u64| {
                ((at * 7 + (at >> 9) + layer as u64 * 13 + seed).wrapping_mul(2_654_435_761) >> 16) as u8
            };
            (0..self.layout.layer_bytes()).map(byte).collect()
        };
        self.backing.write(&(0..self.layers).map(layer).collect::<Vec<_>>());
    }

    /// Zeroes all blocks. What is between them gets bytes of its own, by which it is known to be left alone.
    pub fn wipe(&self) {
        self.backing.write(&self.wiped());
    }

    /// What [`Subject::wipe`] writes.
    pub(super) fn wiped(&self) -> Vec<Vec<u8>> {
        let mut layer = vec![0; self.layout.layer_bytes() as usize];
        for gap in self.layout.gaps() {
            layer[gap].fill(PADDING);
        }
        vec![layer; self.layers]
    }

    /// Whether the padding is as [`Subject::wipe`] has left it.
    pub fn padding_is_intact(&self) -> bool {
        let intact =
            |layer: &Vec<u8>| self.layout.gaps().all(|gap| layer[gap].iter().all(|byte| *byte == PADDING));
        self.backing.read().iter().all(intact)
    }

    /// All blocks: by number, the bytes of all layers and planes.
    pub fn blocks(&self) -> Vec<Vec<u8>> {
        let layers = self.backing.read();
        let block = |block: u64| {
            let of_layer = |layer: &Vec<u8>| {
                let plane = |plane| {
                    let at = self.layout.at(plane, block);
                    layer[at..at + self.layout.block_bytes()].to_vec()
                };
                (0..self.layout.planes()).flat_map(plane).collect::<Vec<u8>>()
            };
            layers.iter().flat_map(of_layer).collect()
        };
        (0..BLOCKS).map(block).collect()
    }

    /// A store behind an event, with one list of blocks for each engine group.
    pub fn store_request<'r>(
        &self,
        frame: &'r [u8],
        block_ids: Vec<Vec<u64>>,
        event: &'r [u8],
    ) -> Request<'r> {
        Request::Store { key: key(frame), instance_id: self.instance, block_ids, event }
    }

    /// A retrieve behind an event, without the first `skip` tokens.
    pub fn retrieve_request<'r>(
        &self,
        frame: &'r [u8],
        block_ids: Vec<Vec<u64>>,
        event: &'r [u8],
        skip: u64,
    ) -> Request<'r> {
        let instance_id = self.instance;
        Request::Retrieve { key: key(frame), instance_id, block_ids, event, skip_first_n_tokens: skip }
    }

    /// Stores; the answer's event, and whether it was done.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn store(&self, client: &mut Connection, frame: &[u8], blocks: Vec<u64>) -> (Vec<u8>, bool) {
        self.store_groups(client, frame, vec![blocks]).await
    }

    /// [`Subject::store`] with one list of blocks for each engine group.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn store_groups(
        &self,
        client: &mut Connection,
        frame: &[u8],
        block_ids: Vec<Vec<u64>>,
    ) -> (Vec<u8>, bool) {
        let event = self.backing.event();
        let request = self.store_request(frame, block_ids, &event);
        transfer(client.call(&request).await.expect("store"))
    }

    /// Retrieves.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn retrieve(
        &self,
        client: &mut Connection,
        frame: &[u8],
        blocks: Vec<u64>,
        skip: u64,
    ) -> (Vec<u8>, bool) {
        self.retrieve_groups(client, frame, vec![blocks], skip).await
    }

    /// [`Subject::retrieve`] with one list of blocks for each engine group.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn retrieve_groups(
        &self,
        client: &mut Connection,
        frame: &[u8],
        block_ids: Vec<Vec<u64>>,
        skip: u64,
    ) -> (Vec<u8>, bool) {
        let event = self.backing.event();
        let request = self.retrieve_request(frame, block_ids, &event, skip);
        transfer(client.call(&request).await.expect("retrieve"))
    }
}

fn transfer(response: Response) -> (Vec<u8>, bool) {
    match response {
        Response::Transfer(event, done) => (event, done),
        other => panic!("a transfer answered {other:?}"),
    }
}
