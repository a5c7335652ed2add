//! The end of a daemon that leaves everything to another process; see [`crate::handover`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::AppError;
use super::stop::flush_tiers;
use crate::config::Config;
use crate::engine::Engine;
use crate::handover::{Estate, Hello, Program, SocketRole, Successor, SuccessorError};
use crate::http::{Admin, UpgradeReply, Upgraded};
use crate::server::{Listener, Parted, Server};
use crate::systemd::Supervisor;

/// Time for the requests that have begun. Clients wait meanwhile, so a busy daemon refuses rather than keep them waiting.
const REST: Duration = Duration::from_secs(10);
/// Time for lookups that wait for a tier, and then for stores on their way to one. What is not done by then is a miss, or is
/// not in the tier.
const TIERS: Duration = Duration::from_secs(2);
/// Time for the answer to whoever ordered the upgrade, before this process ends.
const ANSWER: Duration = Duration::from_secs(1);

/// Where people come in: copies of the sockets, and who accepts on them.
#[derive(Debug, Default)]
pub(super) struct Entrances {
    sockets: Vec<(SocketRole, OwnedFd)>,
    pub(super) accepting: Vec<JoinHandle<()>>,
    pub(super) http: Vec<JoinHandle<()>>,
}

impl Entrances {
    /// Of what is listened on. A socket of which there is no copy (no descriptor is left) is bound anew by the successor.
    pub(super) fn of(
        listeners: &[Listener],
        admin: &TcpListener,
        metrics: Option<&TcpListener>,
    ) -> Entrances {
        let clients = listeners.iter().filter_map(|listener| {
            let (socket, own_file) = listener.hand_over().ok()?;
            Some((SocketRole::Clients { endpoint: listener.configured().clone(), own_file }, socket))
        });
        let http = [(SocketRole::Admin, Some(admin)), (SocketRole::Metrics, metrics)];
        let http = http
            .into_iter()
            .filter_map(|(role, listener)| Some((role, listener?.as_fd().try_clone_to_owned().ok()?)));
        Entrances { sockets: clients.chain(http).collect(), ..Entrances::default() }
    }
}

/// Connections at rest, and who is to have them.
#[derive(Debug)]
pub(super) struct Parting {
    successor: Successor,
    connections: Vec<Parted>,
    hello: Hello,
    program: Program,
    reply: UpgradeReply,
    began: Instant,
}

/// Starts the successor and brings the connections to rest. `None`: this daemon goes on, and whoever ordered it knows why.
pub(super) async fn begin(
    config: &Config,
    program: &Program,
    engine: &Engine,
    server: &Arc<Server>,
    reply: UpgradeReply,
) -> Option<Parting> {
    if std::process::id() == 1 {
        return refuse(
            reply,
            "the daemon is the first process of its container, which ends with it; run it under lmcached-keeper, or replace the container (the pool is kept if its /dev/shm is)",
        );
    }
    let hello = Hello::new(config);
    let (ours, new) = (hello.clone(), program.clone());
    let successor = tokio::task::spawn_blocking(move || Successor::start(&new, &ours)).await;
    let successor = match successor {
        Ok(Ok(successor)) => successor,
        Ok(Err(error)) => return refuse(reply, &error.to_string()),
        Err(error) => return refuse(reply, &error.to_string()),
    };
    let began = Instant::now();
    engine.pauses();
    match server.part(REST).await {
        Ok(connections) => {
            let program = program.clone();
            Some(Parting { successor, connections, hello, program, reply, began })
        }
        Err(busy) => {
            engine.goes_on();
            let limit = REST.as_secs();
            refuse(
                reply,
                &format!("{busy} connections had requests that did not end within {limit} s; try again"),
            )
        }
    }
}

fn refuse(reply: UpgradeReply, why: &str) -> Option<Parting> {
    tracing::error!(why, "no upgrade; this daemon goes on");
    reply.say(Err(why.to_owned()));
    None
}

/// Leaves everything to the successor, or to another process of this program if that one fails, and waits until it serves.
pub(super) async fn finish(
    parting: Parting,
    engine: &Arc<Engine>,
    server: &Arc<Server>,
    entrances: Entrances,
    (supervisor, admin): (&Supervisor, &Admin),
    told: impl Future<Output = ()>,
) -> Result<(), AppError> {
    let Parting { successor, connections, hello, program, reply, began } = parting;
    entrances.http.iter().for_each(JoinHandle::abort);
    engine.lookups_done(TIERS).await;
    if let Some(l2) = engine.l2() {
        flush_tiers(l2, TIERS).await;
    }
    engine.ring().detach_all();
    // Its segment is made anew; of this one's name, the successor must not find anything.
    engine.ring().unlink();
    let (estate, descriptors) = match gather(engine, server, entrances.sockets, connections) {
        Ok(gathered) => gathered,
        Err(error) => return Err(AppError::Runtime(error)),
    };
    // The recording is whole and the last numbers are out before somebody else begins.
    told.await;
    let taken =
        tokio::task::spawn_blocking(move || bequeath(successor, &estate, &descriptors, &program, &hello));
    let taken = taken.await.map_err(|error| AppError::Runtime(error.into()))?;
    match taken {
        Ok((pid, failed)) => {
            server.leave();
            join_all(entrances.accepting).await;
            supervisor.succeeded_by(pid).await;
            let waited = began.elapsed();
            tracing::info!(
                pid,
                waited_ms = waited.as_millis() as u64,
                "the successor serves; this process ends"
            );
            reply.say(match failed {
                None => Ok(Upgraded { pid, waited }),
                Some(why) => Err(format!("{why}; a new process of the old release serves (pid {pid})")),
            });
            admin.last_answers(ANSWER).await;
            Ok(())
        }
        Err(error) => {
            reply.say(Err(error.to_string()));
            admin.last_answers(ANSWER).await;
            Err(AppError::Upgrade(error))
        }
    }
}

/// What is left behind, and the descriptors in the order of their roles.
fn gather(
    engine: &Engine,
    server: &Server,
    sockets: Vec<(SocketRole, OwnedFd)>,
    connections: Vec<Parted>,
) -> std::io::Result<(Estate, Vec<OwnedFd>)> {
    let [pool, table] = engine.l1().hand_over()?;
    let segments = [(SocketRole::Pool, pool), (SocketRole::Table, table)];
    let (roles, mut descriptors): (_, Vec<OwnedFd>) = segments.into_iter().chain(sockets).unzip();
    let mut states = Vec::with_capacity(connections.len());
    for Parted { socket, state } in connections {
        descriptors.push(socket);
        states.push(state);
    }
    let next_connection = server.next_number();
    Ok((Estate { roles, connections: states, next_connection, engine: engine.export() }, descriptors))
}

/// The pid of the process that serves, and why the first one does not, if it does not.
fn bequeath(
    successor: Successor,
    estate: &Estate,
    descriptors: &[OwnedFd],
    program: &Program,
    hello: &Hello,
) -> Result<(u32, Option<String>), SuccessorError> {
    let error = match successor.take_over(estate, descriptors) {
        Ok(pid) => return Ok((pid, None)),
        Err(error) => error.to_string(),
    };
    tracing::error!(error, "the successor has failed; starting the running release again in its place");
    let again = Successor::start(&program.running(), hello)?;
    Ok((again.take_over(estate, descriptors)?, Some(error)))
}
