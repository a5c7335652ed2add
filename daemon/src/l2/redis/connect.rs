//! Connections to a server or a cluster. None is made at the start: a store that is down must not keep the daemon down.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisFuture, RedisResult, TlsCertificates, Value,
};
use serde_json::Map;
use tokio::sync::OnceCell;

use super::super::error::Trouble;
use super::super::settings::read_file;
use super::trouble;

/// Attempts of the cluster client to follow a slot that moves, per request.
const REDIRECTS: u32 = 3;

/// Where the store is and how to get in.
pub(super) struct Address {
    pub nodes: Vec<(String, u16)>,
    pub cluster: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    pub tls: bool,
    /// Certificates to trust instead of the system's.
    pub ca_path: Option<String>,
    pub database: Option<u64>,
    pub connection_timeout: Duration,
    pub timeout: Duration,
}

enum Slot {
    Single(ConnectionManager),
    /// Made at first use.
    Cluster(Box<OnceCell<ClusterConnection>>),
}

/// Several connections, used in turn: one connection carries one large value at a time.
pub(super) struct Connections {
    address: Address,
    cluster: Option<ClusterClient>,
    slots: Vec<Slot>,
    turn: AtomicUsize,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("nodes", &self.address.nodes).finish_non_exhaustive()
    }
}

impl Address {
    fn infos(&self) -> RedisResult<Vec<ConnectionInfo>> {
        let mut login = RedisConnectionInfo::default();
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        if let Some(database) = self.database {
            login = login.set_db(database as i64);
        }
        // A peer that has vanished without a word (host down, cable out) is given up by the kernel; otherwise the
        // connection would stay, and so would everything sent on it.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(self.timeout * 2);
        self.nodes
            .iter()
            .map(|(host, port)| {
                let address = if self.tls {
                    ConnectionAddr::TcpTls {
                        host: host.clone(),
                        port: *port,
                        insecure: false,
                        tls_params: None,
                    }
                } else {
                    ConnectionAddr::Tcp(host.clone(), *port)
                };
                Ok(address
                    .into_connection_info()?
                    .set_redis_settings(login.clone())
                    .set_tcp_settings(tcp.clone()))
            })
            .collect()
    }

    fn certificates(&self) -> Result<TlsCertificates, Trouble> {
        let root_cert = match &self.ca_path {
            None => None,
            Some(path) => Some(read_file(path).map_err(|error| {
                Trouble::Denied(format!("the file of tls_ca_path cannot be read: {error}"))
            })?),
        };
        Ok(TlsCertificates { client_tls: None, root_cert })
    }
}

impl Connections {
    pub(super) fn open(address: Address, workers: usize) -> Result<Connections, Trouble> {
        if address.tls {
            super::super::registry::install_tls();
        }
        let setting_up = |error: ::redis::RedisError| trouble("setting up the client", &error);
        let infos = address.infos().map_err(setting_up)?;
        if !address.cluster && infos.len() > 1 {
            tracing::warn!("startup_nodes names several nodes without cluster_mode: only the first is used");
        }
        let mut slots = Vec::with_capacity(workers);
        let cluster = if address.cluster {
            let mut builder = ClusterClientBuilder::new(infos)
                .retries(REDIRECTS)
                .connection_timeout(address.connection_timeout)
                .response_timeout(address.timeout * 4)
                .tcp_settings(TcpSettings::default().set_nodelay(true).set_user_timeout(address.timeout * 2));
            if address.tls {
                builder = builder.certs(address.certificates()?);
            }
            slots.extend((0..workers).map(|_| Slot::Cluster(Box::default())));
            Some(builder.build().map_err(setting_up)?)
        } else {
            let info = infos.into_iter().next().expect("at least one node was configured");
            let client = if address.tls {
                Client::build_with_tls(info, address.certificates()?)
            } else {
                Client::open(info)
            };
            let client = client.map_err(setting_up)?;
            for _ in 0..workers {
                // The tier's deadlines are shorter, and know how long a value is; this one ends what they gave up on.
                let config = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(address.connection_timeout))
                    .set_response_timeout(Some(address.timeout * 4 + Duration::from_secs(30)))
                    .set_number_of_retries(1)
                    .set_min_delay(Duration::from_millis(50))
                    .set_max_delay(Duration::from_secs(1));
                let manager = ConnectionManager::new_lazy_with_config(client.clone(), config);
                slots.push(Slot::Single(manager.map_err(setting_up)?));
            }
            None
        };
        Ok(Connections { address, cluster, slots, turn: AtomicUsize::new(0) })
    }

    /// The next connection.
    pub(super) async fn next(&self) -> Result<Link, Trouble> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        match &self.slots[turn] {
            Slot::Single(manager) => Ok(Link::Single(manager.clone())),
            Slot::Cluster(cell) => {
                let client = self.cluster.as_ref().expect("made with the slots");
                let connect = || client.get_async_connection();
                let connection = cell.get_or_try_init(connect).await;
                connection.cloned().map(Link::Cluster).map_err(|error| trouble("connecting", &error))
            }
        }
    }

    pub(super) fn describe(&self) -> Map<String, serde_json::Value> {
        let nodes: Vec<String> =
            self.address.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let mut map = Map::new();
        map.insert("startup_nodes".into(), nodes.into());
        map.insert("cluster_mode".into(), self.address.cluster.into());
        map.insert("tls_enable".into(), self.address.tls.into());
        map.insert("num_workers".into(), self.slots.len().into());
        map
    }
}

/// One connection to a server or to a cluster.
#[derive(Clone)]
pub(super) enum Link {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Link::Single(connection) => connection.req_packed_command(cmd),
            Link::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Link::Single(connection) => connection.req_packed_commands(cmd, offset, count),
            Link::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Link::Single(connection) => connection.get_db(),
            Link::Cluster(connection) => connection.get_db(),
        }
    }
}
