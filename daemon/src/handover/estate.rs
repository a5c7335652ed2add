//! What the two processes tell each other.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::config::{Config, Endpoint};
use crate::engine::EngineState;
use crate::server::ConnectionState;

/// The successor's first word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the messages say.
    pub format: u32,
    /// Its release.
    pub version: String,
    /// What it will use.
    pub pool: PoolFacts,
}

impl Hello {
    /// That of this process.
    pub fn new(config: &Config) -> Hello {
        Hello { format: FORMAT, version: env!("CARGO_PKG_VERSION").into(), pool: PoolFacts::of(config) }
    }
}

/// What must be the same, or the objects would be of no use to the successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFacts {
    name: String,
    bytes: Option<u64>,
    chunk_size: u32,
    hash: String,
    align: u64,
    fresh: bool,
}

impl PoolFacts {
    fn of(config: &Config) -> PoolFacts {
        PoolFacts {
            name: config.l1.pool_name.clone(),
            bytes: config.l1.size_bytes.map(Into::into),
            chunk_size: config.server.chunk_size.get(),
            hash: format!("{:?}", config.server.hash_algorithm),
            align: config.l1.align_bytes.get(),
            fresh: config.l1.fresh,
        }
    }

    /// The flag in which `other` differs, with both values.
    pub fn difference(&self, other: &PoolFacts) -> Option<(&'static str, String, String)> {
        let size = |bytes: Option<u64>| bytes.map_or("automatic".into(), |bytes| format!("{bytes} bytes"));
        let fields = [
            ("--shm-name", self.name.clone(), other.name.clone()),
            ("--l1-size-gb", size(self.bytes), size(other.bytes)),
            ("--chunk-size", self.chunk_size.to_string(), other.chunk_size.to_string()),
            ("--hash-algorithm", self.hash.clone(), other.hash.clone()),
            ("--l1-align-bytes", self.align.to_string(), other.align.to_string()),
            ("--fresh", self.fresh.to_string(), other.fresh.to_string()),
        ];
        fields.into_iter().find(|(_, here, there)| here != there)
    }
}

/// What a descriptor that is handed over is, but for the connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketRole {
    /// The pool's file.
    Pool,
    /// The table's file.
    Table,
    /// Clients connect to it.
    Clients {
        /// As configured.
        endpoint: Endpoint,
        /// The daemon has made the file, if it is a Unix socket.
        own_file: bool,
    },
    /// The admin API.
    Admin,
    /// `--prometheus-port`.
    Metrics,
}

/// Everything that is left to the successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Estate {
    /// What the first descriptors are, in their order.
    pub roles: Vec<SocketRole>,
    /// The connections whose sockets the others are.
    pub connections: Vec<ConnectionState>,
    /// Number of the next connection.
    pub next_connection: u64,
    /// Requests under way.
    pub engine: EngineState,
}
