//! Redis and Valkey, single and as a cluster of three.

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use super::{Process, find};
use crate::daemon::free_port;
use crate::eventually;

/// Which server.
#[derive(Clone, Copy, Debug)]
pub enum Flavor {
    /// Debian's `redis-server`.
    Redis,
    /// `valkey-server`.
    Valkey,
}

/// A reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A status.
    Status(String),
    /// An error.
    Error(String),
    /// A number.
    Int(i64),
    /// A value.
    Bulk(Option<Vec<u8>>),
}

/// Sends one command on a connection of its own.
pub async fn command(port: u16, words: &[&[u8]]) -> Reply {
    let mut stream = BufStream::new(TcpStream::connect(("127.0.0.1", port)).await.expect("connects"));
    stream.write_all(format!("*{}\r\n", words.len()).as_bytes()).await.expect("sends");
    for word in words {
        stream.write_all(format!("${}\r\n", word.len()).as_bytes()).await.expect("sends");
        stream.write_all(word).await.expect("sends");
        stream.write_all(b"\r\n").await.expect("sends");
    }
    stream.flush().await.expect("sends");
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("answers");
    let (kind, rest) = line.trim_end().split_at(1);
    match kind {
        "+" => Reply::Status(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Int(rest.parse().expect("a number")),
        "$" if rest == "-1" => Reply::Bulk(None),
        "$" => {
            let mut value = vec![0; rest.parse().expect("a length")];
            stream.read_exact(&mut value).await.expect("a value");
            Reply::Bulk(Some(value))
        }
        _ => panic!("not expected here: {line}"),
    }
}

/// One server.
#[derive(Debug)]
pub struct RedisServer {
    /// Its process.
    pub process: Process,
    port: u16,
    _dir: TempDir,
}

impl RedisServer {
    /// Starts one that keeps its data over a restart; `extra` are arguments. `None`: not installed.
    pub async fn start(flavor: Flavor, extra: &[&str]) -> Option<RedisServer> {
        let program = find(match flavor {
            Flavor::Redis => "redis-server",
            Flavor::Valkey => "valkey-server",
        })?;
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let mut args: Vec<String> =
            ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "no"]
                .map(str::to_owned)
                .to_vec();
        args.extend(["--port".to_owned(), port.to_string()]);
        args.extend(["--dir".to_owned(), dir.path().display().to_string()]);
        args.extend(extra.iter().map(|arg| (*arg).to_owned()));
        let process = Process::start(program, args, port).await;
        let server = RedisServer { process, port, _dir: dir };
        server.loaded().await;
        Some(server)
    }

    /// Waits until it has read its data.
    pub async fn loaded(&self) {
        eventually("the server has read its data", async || match command(self.port, &[b"PING"]).await {
            Reply::Error(error) if error.starts_with("LOADING") => None,
            _ => Some(()),
        })
        .await;
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Three primaries.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts one; `None`: not installed.
    pub async fn start(flavor: Flavor) -> Option<Cluster> {
        let mut nodes = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..3 {
            let bus = free_port();
            let bus_text = bus.to_string();
            let extra =
                ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus_text];
            nodes.push(RedisServer::start(flavor, &extra).await?);
            buses.push(bus.to_string());
        }
        for (i, node) in nodes.iter().enumerate() {
            let (first, last) = (i * 16384 / 3, (i + 1) * 16384 / 3 - 1);
            let slots =
                [b"CLUSTER".as_slice(), b"ADDSLOTSRANGE", &text(first), &text(last)].map(<[u8]>::to_vec);
            expect_ok(node.port, &slots).await;
            let meet = [
                b"CLUSTER".to_vec(),
                b"MEET".to_vec(),
                b"127.0.0.1".to_vec(),
                text(nodes[0].port as usize),
                buses[0].clone().into_bytes(),
            ];
            if i > 0 {
                expect_ok(node.port, &meet).await;
            }
        }
        let cluster = Cluster { nodes };
        cluster.up().await;
        Some(cluster)
    }

    /// Waits until every node says that the cluster is whole.
    pub async fn up(&self) {
        for node in &self.nodes {
            eventually("the cluster is up", async || {
                match command(node.port, &[b"CLUSTER", b"INFO"]).await {
                    Reply::Bulk(Some(info)) => {
                        let info = String::from_utf8_lossy(&info);
                        (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3"))
                            .then_some(())
                    }
                    _ => None,
                }
            })
            .await;
        }
    }

    /// The node that has `key`, by asking each.
    pub async fn owner(&self, key: &[u8]) -> u16 {
        for node in &self.nodes {
            if !matches!(command(node.port, &[b"EXISTS", key]).await, Reply::Error(_)) {
                return node.port;
            }
        }
        panic!("no node has the key's slot");
    }
}

fn text(number: usize) -> Vec<u8> {
    number.to_string().into_bytes()
}

async fn expect_ok(port: u16, words: &[Vec<u8>]) {
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    assert_eq!(command(port, &words).await, Reply::Status("OK".into()));
}
