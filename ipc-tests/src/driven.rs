//! A worker whose memory the daemon copies, down to the requests that it has under way.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lmcache_proto::wire::{Request, Response};

use crate::dealer::Dealer;
use crate::kv_cache::{KvCache, Shape};
use crate::worker::{key, prompt};

/// Its number.
pub const INSTANCE: u64 = 8;
/// Blocks of its prompt.
const BLOCKS: u64 = 32;

/// The worker; it has stored a prompt of two chunks.
pub struct Driven {
    /// Its memory, 64 blocks.
    pub kv: KvCache,
    /// Its socket.
    pub worker: Dealer,
    frame: Vec<u8>,
}

impl Driven {
    /// Registers and stores.
    ///
    /// # Panics
    /// If the daemon does not do it.
    pub async fn start(endpoint: &str) -> Driven {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let kv = KvCache::new(&format!("driven{}", NEXT.fetch_add(1, Ordering::Relaxed)), Shape::SMALL);
        kv.fill();
        let frame = Shape::SMALL.model("driven").key("a", &prompt(2, 2)).frame(Some(0), 0, 512);
        let mut driven = Driven { kv, worker: Dealer::connect(endpoint).await, frame };
        driven.register().await;
        assert!(driven.store(1).await);
        driven
    }

    /// Registers, or registers again.
    pub async fn register(&mut self) {
        let registration = Box::new(self.kv.registration(INSTANCE, "driven"));
        let number = self.worker.ask(&[Request::RegisterKvCache(registration)]).await;
        self.worker.answer_to(number).await;
    }

    /// Its ping.
    pub fn ping() -> Request<'static> {
        Request::Ping { instance_id: Some(INSTANCE) }
    }

    /// Pings; whether the answer is that it is known.
    pub async fn pings(&mut self) -> bool {
        let number = self.worker.ask(&[Driven::ping()]).await;
        self.worker.answer_to(number).await.says(&Response::Flag(true))
    }

    /// Pings `count` times; after four the daemon knows the interval.
    ///
    /// # Panics
    /// If it is not known.
    pub async fn beats(&mut self, count: u32, interval: Duration) {
        for beat in 0..count {
            if beat > 0 {
                tokio::time::sleep(interval).await;
            }
            assert!(self.pings().await);
        }
    }

    /// Stores the prompt out of the blocks from `from` on; whether that was done.
    pub async fn store(&mut self, from: u64) -> bool {
        let store = self.spell_store(from);
        self.worker.send(&store).await;
        let number = self.worker.next() - 1;
        self.is_done(number).await
    }

    /// The request to store the prompt out of the blocks from `from` on, as bytes.
    pub fn spell_store(&mut self, from: u64) -> bytes::BytesMut {
        let frame = self.frame.clone();
        let block_ids = vec![(from..from + BLOCKS).collect()];
        let request = Request::Store { key: key(&frame), instance_id: INSTANCE, block_ids, event: b"ev" };
        self.worker.spell(&[request])
    }

    /// Loads the prompt into the blocks from `from` on; whether that was done.
    pub async fn load(&mut self, from: u64) -> bool {
        let load = self.spell_load(from);
        self.worker.send(&load).await;
        let number = self.worker.next() - 1;
        self.is_done(number).await
    }

    /// The request to load the prompt into the blocks from `from` on, as bytes, to be sent whenever it suits.
    pub fn spell_load(&mut self, from: u64) -> bytes::BytesMut {
        let frame = self.frame.clone();
        let request = Request::Retrieve {
            key: key(&frame),
            instance_id: INSTANCE,
            block_ids: vec![(from..from + BLOCKS).collect()],
            event: b"ev",
            skip_first_n_tokens: 0,
        };
        self.worker.spell(&[request])
    }

    async fn is_done(&mut self, number: u64) -> bool {
        !self.worker.answer_to(number).await.says(&Response::Transfer(Vec::new(), false))
    }

    /// Whether nothing was written into any block since it was wiped.
    pub fn is_untouched(&self) -> bool {
        (0..Shape::SMALL.blocks).all(|block| self.kv.block(block).iter().all(|byte| *byte == 0))
    }
}
