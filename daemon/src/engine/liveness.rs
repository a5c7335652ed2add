//! Who is alive: connections, workers, processes; and what happens to what the dead have left.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::instances::{Instances, Mode};
use super::{Client, Engine};
use crate::process::ProcessId;

/// Most unknown workers whose pings are remembered.
const MAX_UNKNOWN: usize = 4096;

/// Connections and the workers heard on them.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    connected: rustc_hash::FxHashSet<u64>,
    /// When a connection ended; kept as long as something may be waiting for it.
    left: FxHashMap<u64, Instant>,
    /// Newest connection of each worker.
    heard_on: FxHashMap<u64, u64>,
    /// Connection on which each worker registered: its process is the worker's. Others may speak for a worker, a tool that
    /// pings for one, say; their end is not its end.
    registered_on: FxHashMap<u64, u64>,
    /// Process of each connection, where it is known; kept as long as `connected` and `left` know the connection.
    processes: FxHashMap<u64, ProcessId>,
    /// Answer to the next ping of a worker that is not registered.
    unknown: FxHashMap<u64, bool>,
}

impl Liveness {
    pub(super) fn is_connected(&self, client: u64) -> bool {
        self.connected.contains(&client)
    }

    /// Whether a connection has been gone for `timeout`. Connection 0 is "before this daemon".
    fn gone_for(&self, client: u64, timeout: Duration, started: Instant) -> bool {
        if self.connected.contains(&client) {
            return false;
        }
        self.left.get(&client).map_or(started.elapsed(), Instant::elapsed) >= timeout
    }
}

impl Engine {
    /// A client has connected.
    pub fn client_arrived(&self, client: &Client) {
        self.liveness.lock().connected.insert(client.id);
        self.process_of(client);
        tracing::debug!(client = client.id, peer = %client.peer, "client connected");
    }

    /// The process of a connection is known: from now on its death is noticed.
    pub(super) fn process_of(&self, client: &Client) {
        if let Some(process) = client.process() {
            self.liveness.lock().processes.insert(client.id, process);
            self.deaths.watch(process);
        }
    }

    /// A client's connection has ended. Its leases end after a grace period, in which it may finish its transfers
    /// over another connection; at once if its process is dead.
    pub fn client_left(self: &Arc<Engine>, client: &Client) {
        {
            let mut live = self.liveness.lock();
            live.connected.remove(&client.id);
            live.left.insert(client.id, Instant::now());
        }
        tracing::debug!(client = client.id, peer = %client.peer, "client disconnected");
        let (engine, id, process) = (self.clone(), client.id, client.process());
        tokio::spawn(async move {
            // Its last requests may have been executed after its death was noticed.
            if let Some(process) = process.filter(|process| !process.alive()) {
                let work = tokio::task::spawn_blocking(move || engine.process_died(process));
                return drop(work.await);
            }
            tokio::time::sleep(engine.config.lease_grace).await;
            engine.end_leases_of(id, "connection gone beyond --lease-grace-seconds");
        });
    }

    /// The daemon has ended a peer's connection.
    pub fn refuse_peer(&self, client: &Client, why: impl std::fmt::Display) {
        self.stats.peer_refused(client, why);
    }

    /// A process is dead: its workers, their lanes and pins, and the leases of its connections go at once.
    ///
    /// Nothing here can belong to somebody who lives: a connection has one process, and a process that has ended touches no
    /// memory and sends no request.
    pub fn process_died(&self, process: ProcessId) {
        let (clients, workers) = {
            let live = self.liveness.lock();
            let clients: Vec<u64> =
                live.processes.iter().filter(|(_, p)| **p == process).map(|(client, _)| *client).collect();
            let theirs = |client: &u64| clients.contains(client);
            let workers: Vec<u64> = live
                .registered_on
                .iter()
                .filter(|(_, client)| theirs(client))
                .map(|(worker, _)| *worker)
                .collect();
            (clients, workers)
        };
        for worker in workers {
            let removed = [Mode::EngineDriven, Mode::LmcacheDriven]
                .into_iter()
                .filter_map(|mode| self.instances.remove(worker, mode))
                .count();
            self.worker_gone(worker);
            if removed > 0 {
                self.stats.reaped.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    instance = worker,
                    pid = process.pid,
                    "worker is dead; its slots, leases and lane are free again, and what it had not committed is dropped"
                );
            }
        }
        for client in clients {
            self.end_leases_of(client, "its process is dead");
        }
        self.sweep();
    }

    /// A worker has unregistered, was reaped or is dead: its lane is free, unless it is registered in the other mode still.
    pub(super) fn worker_gone(&self, instance: u64) {
        if !self.instances.is_known(instance) {
            self.ring.detach(instance);
        }
    }

    fn end_leases_of(&self, client: u64, why: &str) {
        let mut expired = 0;
        for (id, session) in self.sessions.snapshot() {
            let mut ended = Vec::new();
            session.lock().lookups.retain_mut(|lookup| {
                let theirs = lookup.client == client;
                if theirs {
                    ended.append(&mut lookup.end_leases(0..u64::MAX));
                }
                !theirs
            });
            if !ended.is_empty() {
                tracing::warn!(request = &*id, leases = ended.len(), "the leases of a connection end: {why}");
                expired += ended.len() as u64;
                self.l1.end_leases(ended.into_iter());
            }
        }
        self.stats.leases_expired.fetch_add(expired, Ordering::Relaxed);
    }

    /// A request has named a worker.
    pub(super) fn heard(&self, client: &Client, instance: u64) {
        self.instances.touch(instance, Instances::now(self.started), false);
        self.ring.drain_instance(instance);
        let mut live = self.liveness.lock();
        // Only registered workers and workers with pins matter; the map is swept with them.
        live.heard_on.insert(instance, client.id);
    }

    /// A worker registers over this connection.
    pub(super) fn speaks_for(&self, client: &Client, instance: u64) {
        self.liveness.lock().registered_on.insert(instance, client.id);
    }

    /// A worker has registered: its pings are answered `true` from now on.
    pub(super) fn registered(&self, instance: u64) {
        self.liveness.lock().unknown.remove(&instance);
    }

    /// The answer to a ping.
    ///
    /// A worker re-registers when its view of us turns from unhealthy to healthy. One that we do not know (we were
    /// restarted faster than it noticed) is therefore answered `false`, `true`, `false` … until it registers. A known
    /// one never gets `false`: it would report its pending loads as failed.
    pub(super) fn ping(&self, instance: Option<u64>) -> bool {
        let Some(id) = instance else { return true };
        if self.instances.is_known(id) {
            self.instances.touch(id, Instances::now(self.started), true);
            return true;
        }
        let mut live = self.liveness.lock();
        if live.unknown.len() >= MAX_UNKNOWN && !live.unknown.contains_key(&id) {
            live.unknown.clear();
        }
        let next = live.unknown.entry(id).or_insert(false);
        let answer = *next;
        *next = !answer;
        answer
    }

    /// Reaps silent workers, quarantines overdue reservations, frees what the dead have left, forgets idle sessions.
    pub fn sweep(&self) {
        let now = Instances::now(self.started);
        let reap_timeout = self.config.reap_timeout;
        for (instance, silence) in self.instances.reap(now, reap_timeout, self.config.registration_grace) {
            self.stats.reaped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                instance = instance.id,
                model = instance.model,
                silent_s = silence.as_secs(),
                "worker reaped: not heard for longer than --worker-reap-timeout-seconds; if it lives, its next ping makes it register again"
            );
            self.forget_reservations(instance.id);
            self.worker_gone(instance.id);
        }
        self.sessions.expire(self.config.session_ttl);
        // Without reaping there is still a time after which a connection that is gone counts as dead.
        let dead_after = if reap_timeout.is_zero() { Duration::from_secs(120) } else { reap_timeout };
        let sweep = {
            let live = self.liveness.lock();
            self.transfers.lock().sweep(self.config.write_ttl, |instance, client, process| match process {
                Some(process) => !process.alive(),
                None => {
                    let newest = live.heard_on.get(&instance).copied().unwrap_or(client);
                    live.gone_for(client, dead_after, self.started)
                        && live.gone_for(newest, dead_after, self.started)
                }
            })
        };
        if !sweep.quarantine.is_empty() {
            tracing::warn!(
                slots = sweep.quarantine.len(),
                "workers have not committed within --l1-write-ttl-seconds; their slots are in quarantine"
            );
            self.l1.quarantine(sweep.quarantine.iter());
        }
        if !sweep.abort.is_empty() || !sweep.unpin.is_empty() {
            tracing::info!(
                writes = sweep.abort.len(),
                reads = sweep.unpin.len(),
                "freed slots of dead workers"
            );
            self.l1.abort(sweep.abort.iter());
            self.l1.unpin(sweep.unpin.iter());
        }
        let mut live = self.liveness.lock();
        live.left.retain(|_, left| left.elapsed() < dead_after * 2);
        let Liveness { connected, left, heard_on, registered_on, processes, .. } = &mut *live;
        registered_on.retain(|_, client| connected.contains(client) || left.contains_key(client));
        heard_on.retain(|_, client| connected.contains(client) || left.contains_key(client));
        processes.retain(|client, _| connected.contains(client) || left.contains_key(client));
        drop(live);
        self.after_change();
    }
}
