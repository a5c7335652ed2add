//! Peers that want too much, on raw sockets, for as long as they are let.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use lmcache_client::operation_frame;
use lmcache_proto::wire::Operation;
use lmcache_proto::zmtp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connects and says nothing; comes back as soon as it is thrown out.
    Silent,
    /// Connects, says nothing, half a greeting, or one whole request, and goes; without end.
    Churn,
    /// Asks without end and takes its answers a few bytes at a time.
    SlowReader,
    /// Asks without end and takes no answer.
    NeverReads,
    /// Asks without end and takes every answer.
    Asks,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 5] = [Kind::Silent, Kind::Churn, Kind::SlowReader, Kind::NeverReads, Kind::Asks];

    /// For tables and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Silent => "silent-connections",
            Kind::Churn => "connects-and-disconnects",
            Kind::SlowReader => "slow-readers",
            Kind::NeverReads => "peers-that-never-read",
            Kind::Asks => "endless-requests",
        }
    }

    /// The kind of this name.
    pub fn of(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What the peers of a flood have done so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that came about.
    pub connects: AtomicU64,
    /// Connections that the daemon has ended.
    pub ended: AtomicU64,
}

/// A flood; it stops when it is told to, or dropped.
#[derive(Debug)]
pub struct Flood {
    /// What has been done.
    pub counts: Arc<Counts>,
    stop: watch::Sender<bool>,
    peers: JoinSet<()>,
}

impl Flood {
    /// `peers` peers of one kind, on the current runtime, against a port of the loopback address.
    pub fn start(kind: Kind, port: u16, peers: usize) -> Flood {
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        for _ in 0..peers {
            tasks.spawn(peer(kind, port, counts.clone(), stopped.clone()));
        }
        Flood { counts, stop, peers: tasks }
    }

    /// Connections that came about so far.
    pub fn connects(&self) -> u64 {
        self.counts.connects.load(Ordering::Relaxed)
    }

    /// Connections that the daemon has ended so far.
    pub fn ended(&self) -> u64 {
        self.counts.ended.load(Ordering::Relaxed)
    }

    /// Ends it: every connection is closed when this returns.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.peers.join_next().await.is_some() {}
    }
}

async fn peer(kind: Kind, port: u16, counts: Arc<Counts>, mut stopped: watch::Receiver<bool>) {
    let flood = async {
        loop {
            match one(kind, port, &counts).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    counts.ended.fetch_add(1, Ordering::Relaxed);
                }
                // Refused, reset, or no port left: not as fast as it can.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::select! {
        () = flood => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

/// The connection's life. `UnexpectedEof`: the daemon has ended it.
async fn one(kind: Kind, port: u16, counts: &Counts) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    // A port that was closed in order is out of use for a minute, and a flood would run out of them.
    stream.set_zero_linger()?;
    let number = counts.connects.fetch_add(1, Ordering::Relaxed);
    match kind {
        Kind::Silent => until_closed(&mut stream).await,
        Kind::Churn => match number % 4 {
            0 => Ok(()),
            1 => stream.write_all(&zmtp::greeting()[..20]).await,
            2 => greet(&mut stream).await,
            _ => {
                greet(&mut stream).await?;
                stream.write_all(&requests(1)).await
            }
        },
        Kind::SlowReader => {
            greet(&mut stream).await?;
            let (mut read, mut write) = stream.split();
            tokio::try_join!(ask(&mut write), async {
                let mut few = [0; 64];
                loop {
                    if read.read(&mut few).await? == 0 {
                        return Err::<(), _>(io::ErrorKind::UnexpectedEof.into());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .map(|_| ())
        }
        Kind::NeverReads => {
            greet(&mut stream).await?;
            ask(&mut stream).await.map_err(|_| io::ErrorKind::UnexpectedEof.into())
        }
        Kind::Asks => {
            greet(&mut stream).await?;
            let (mut read, mut write) = stream.split();
            tokio::try_join!(ask(&mut write), async {
                let mut much = vec![0; 64 << 10];
                while read.read(&mut much).await? > 0 {}
                Err::<(), io::Error>(io::ErrorKind::UnexpectedEof.into())
            })
            .map(|_| ())
        }
    }
}

async fn greet(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&zmtp::greeting()).await?;
    stream.write_all(&zmtp::ready_dealer()).await
}

async fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    let mut some = [0; 256];
    while stream.read(&mut some).await? > 0 {}
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Requests without end.
async fn ask(write: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
    let many = requests(1000);
    loop {
        write.write_all(&many).await?;
    }
}

/// Small requests of which each has an answer.
fn requests(count: usize) -> BytesMut {
    let mut out = BytesMut::new();
    for _ in 0..count {
        zmtp::encode(&mut out, &[b"\x01", &operation_frame(Operation::Noop)]);
    }
    out
}
