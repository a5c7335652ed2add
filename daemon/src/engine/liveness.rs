//! Who is alive: connections, workers, processes; and what happens to what the dead have left.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::instances::{Instances, Mode};
use super::transfers::Preparer;
use super::{Client, Engine};
use crate::events::Event;
use crate::process::ProcessId;

/// Most unknown workers whose pings are remembered.
const MAX_UNKNOWN: usize = 4096;

/// Connections and the workers heard on them.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    connected: FxHashSet<u64>,
    /// When a connection ended; kept as long as something may be waiting for it.
    left: FxHashMap<u64, Instant>,
    /// Newest connection of each worker.
    heard_on: FxHashMap<u64, u64>,
    /// Connection on which each worker registered: its process is the worker's. Others may speak for a worker, a tool that
    /// pings for one, say; their end is not its end.
    registered_on: FxHashMap<u64, u64>,
    /// Process of each connection, where it is known; kept as long as `connected` and `left` know the connection.
    processes: FxHashMap<u64, ProcessId>,
    /// Connections whose process is dead: gone for ever, however lately.
    dead: FxHashSet<u64>,
    /// Pings of workers that are not registered.
    unknown: UnknownPings,
}

/// Workers that ping and are not registered; the one not heard for longest goes when there are too many.
#[derive(Debug, Default)]
struct UnknownPings {
    /// By connection and worker: the answer to the next ping, and the number of the last one. Who else pings for a worker must
    /// not take its `false` away.
    workers: FxHashMap<(u64, u64), (bool, u64)>,
    pings: u64,
}

impl UnknownPings {
    /// `false`, `true`, `false` … for each worker.
    fn answer(&mut self, id: (u64, u64)) -> bool {
        if self.workers.len() >= MAX_UNKNOWN && !self.workers.contains_key(&id) {
            // A walk over 4096 entries, microseconds, and only while somebody floods.
            let oldest = self.workers.iter().min_by_key(|(_, (_, ping))| *ping).map(|(id, _)| *id);
            oldest.map(|id| self.workers.remove(&id));
        }
        self.pings += 1;
        let (next, ping) = self.workers.entry(id).or_insert((false, 0));
        *ping = self.pings;
        let answer = *next;
        *next = !answer;
        answer
    }
}

impl Liveness {
    pub(super) fn is_connected(&self, client: u64) -> bool {
        self.connected.contains(&client)
    }

    /// Whether the process of a connection is dead.
    #[cfg(test)]
    pub(super) fn is_dead(&self, client: u64) -> bool {
        self.dead.contains(&client)
    }

    /// The connection on which a worker was heard last, and the process of the one on which it registered.
    pub(super) fn of_worker(&self, instance: u64) -> (Option<u64>, Option<ProcessId>) {
        let process = self.registered_on.get(&instance).and_then(|client| self.processes.get(client));
        (self.heard_on.get(&instance).copied(), process.copied())
    }

    /// Whether a connection has been gone for `timeout`. Connection 0 is "before this daemon".
    fn gone_for(&self, client: u64, timeout: Duration, started: Instant) -> bool {
        if self.dead.contains(&client) {
            return true;
        }
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
    }

    /// The process of a connection is known: from now on its death is noticed.
    pub(super) fn process_of(&self, client: &Client) {
        if let Some(process) = client.process() {
            self.liveness.lock().processes.insert(client.id, process);
            self.deaths.watch(process);
        }
    }

    /// A client's connection has ended. Its leases end after a grace period (the sweep sees to it), in which it may finish
    /// its transfers over another connection.
    pub fn client_left(&self, client: &Client) {
        {
            let mut live = self.liveness.lock();
            live.connected.remove(&client.id);
            live.left.insert(client.id, Instant::now());
        }
        tracing::debug!(client = client.id, peer = %client.peer, "client disconnected");
        // Its last requests may have been executed after its death was noticed: once more.
        if let Some(process) = client.process().filter(|process| !process.alive()) {
            self.deaths.watch(process);
        }
    }

    /// A process is dead: its workers, their lanes and pins, and the leases of its connections go at once.
    ///
    /// Nothing here can belong to somebody who lives: a connection has one process, and a process that has ended touches no
    /// memory and sends no request.
    pub fn process_died(&self, process: ProcessId) {
        let workers: Vec<u64> = {
            let mut live = self.liveness.lock();
            let Liveness { processes, registered_on, dead, .. } = &mut *live;
            dead.extend(processes.iter().filter(|(_, p)| **p == process).map(|(client, _)| *client));
            let theirs = registered_on.iter().filter(|(_, client)| processes.get(client) == Some(&process));
            theirs.map(|(worker, _)| *worker).collect()
        };
        for worker in workers.into_iter().chain(self.will_not_return(process)) {
            let _turn = self.turns.of(worker);
            if self.has_another_process(worker, process) {
                continue;
            }
            let removed = [Mode::EngineDriven, Mode::LmcacheDriven]
                .into_iter()
                .filter_map(|mode| {
                    self.forget_registration(worker, mode);
                    self.instances.remove_dead(worker, mode)
                })
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
        // Also of workers that are none any more.
        if let Some(cuda) = &self.cuda {
            cuda.process_died(process);
        }
        self.sweep();
    }

    /// Whether a worker has registered from another process than this one.
    fn has_another_process(&self, worker: u64, process: ProcessId) -> bool {
        let live = self.liveness.lock();
        let registered = live.registered_on.get(&worker);
        registered.is_some_and(|client| live.processes.get(client) != Some(&process))
    }

    /// A worker has unregistered, was reaped or is dead: its lane is free and its series may retire, unless it is registered in the other mode still.
    pub(super) fn worker_gone(&self, instance: u64) {
        if !self.instances.is_known(instance) {
            self.heartbeats.forget(instance);
            self.ring.detach(instance);
            self.bus.publish(|| Event::WorkerGone { instance });
        }
    }

    /// Ends the leases of connections that have been gone beyond the grace period.
    fn end_orphaned_leases(&self) {
        let mut expired = 0;
        for session in self.sessions.snapshot() {
            let mut ended = Vec::new();
            {
                // Sessions before liveness, as everywhere.
                let session = &mut *session.lock();
                let live = self.liveness.lock();
                let (lookups, hashes) = session.lookups_and_hashes();
                lookups.retain_mut(|lookup| {
                    let gone = live.gone_for(lookup.caller.client, self.config.lease_grace, self.started);
                    if gone {
                        let leases = lookup.end_leases(0..u64::MAX);
                        self.call_released(lookup, hashes, &leases);
                        ended.extend(leases.iter().map(|ended| ended.cell.object));
                    }
                    !gone
                });
                drop(live);
                if !ended.is_empty() {
                    self.sessions.charge(session);
                    tracing::warn!(
                        request = &*session.id,
                        leases = ended.len(),
                        "connection gone beyond --lease-grace-seconds, or its process dead; its leases end"
                    );
                }
            }
            expired += ended.len() as u64;
            self.l1.end_leases(ended.into_iter());
        }
        self.stats.leases_expired.fetch_add(expired, Ordering::Relaxed);
    }

    /// A request has named a worker.
    pub(super) fn heard(&self, client: &Client, instance: u64) {
        if let Some(lane) = &client.lane {
            lane.speaks_for(instance);
        }
        self.instances.touch(instance, Instances::now(self.started), false);
        self.ring.drain_instance(instance);
        // Only registered workers and those with slots matter: an id from the wire must not grow a map.
        if self.instances.is_known(instance) || self.transfers.lock().has(instance) {
            self.liveness.lock().heard_on.insert(instance, client.id);
        }
    }

    /// Whether a connection is the one over which a worker registered, or another one of its process.
    pub(super) fn is_workers_own(&self, client: &Client, instance: u64) -> bool {
        let live = self.liveness.lock();
        let Some(registered) = live.registered_on.get(&instance) else { return false };
        *registered == client.id
            || client.process().is_some_and(|process| live.processes.get(registered) == Some(&process))
    }

    /// A worker registers over this connection.
    pub(super) fn speaks_for(&self, client: &Client, instance: u64) {
        self.liveness.lock().registered_on.insert(instance, client.id);
    }

    /// A worker has registered over this connection: its pings are answered `true` from now on.
    pub(super) fn registered(&self, client: &Client, instance: u64) {
        let pinged = self.liveness.lock().unknown.workers.remove(&(client.id, instance));
        if pinged.is_some() {
            self.heartbeats.begin(instance);
        }
    }

    /// The answer to a ping.
    ///
    /// A worker re-registers when its view of us turns from unhealthy to healthy. One that we do not know (we were
    /// restarted faster than it noticed) is therefore answered `false`, `true`, `false` … until it registers. A known
    /// one never gets `false`: it would report its pending loads as failed.
    ///
    /// Another tenant's worker under the same id is none that it knows.
    pub(super) fn ping(&self, client: &Client, instance: Option<u64>) -> bool {
        let Some(id) = instance else { return true };
        if !self.may_speak_for(client, id) {
            return self.liveness.lock().unknown.answer((client.id, id));
        }
        self.tell_of_restart(id);
        if self.instances.is_known(id) {
            self.instances.touch(id, Instances::now(self.started), true);
            self.answers_ping(client, id);
            return true;
        }
        self.liveness.lock().unknown.answer((client.id, id))
    }

    /// Reaps silent workers, quarantines overdue reservations, frees what the dead have left, forgets idle sessions.
    pub fn sweep(&self) {
        let now = Instances::now(self.started);
        let reap_timeout = self.config.reap_timeout;
        for (instance, silence) in self.instances.reap(now, reap_timeout, self.config.registration_grace) {
            self.stats.reaped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                instance = instance.id,
                model = &*instance.model,
                silent_s = silence.as_secs(),
                "worker reaped: not heard for longer than --worker-reap-timeout-seconds; if it lives, its next ping makes it register again"
            );
            let _turn = self.turns.of(instance.id);
            // It may have registered anew meanwhile.
            if self.instances.get(instance.id, instance.mode()).is_none() {
                self.forget_registration(instance.id, instance.mode());
                self.forget_reservations(instance.id);
                self.worker_gone(instance.id);
            }
        }
        self.end_orphaned_leases();
        self.journal.expire(self.started);
        self.sessions.expire(self.config.session_ttl);
        // Without reaping there is still a time after which a connection that is gone counts as dead.
        let dead_after = if reap_timeout.is_zero() { Duration::from_secs(120) } else { reap_timeout };
        let dead = self.dead_preparers(dead_after);
        let sweep = self.transfers.lock().sweep(self.config.write_ttl, &dead);
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
        for (_, transfer) in &sweep.lost {
            if let Some(told) = &transfer.told {
                self.transfer_ended(told, 0, 0, 0);
            }
        }
        let mut live = self.liveness.lock();
        let remember = dead_after.max(self.config.lease_grace) * 2;
        live.left.retain(|_, left| left.elapsed() < remember);
        let Liveness { connected, left, heard_on, registered_on, processes, dead, .. } = &mut *live;
        let known = |client: &u64| connected.contains(client) || left.contains_key(client);
        heard_on.retain(|_, client| known(client));
        registered_on.retain(|_, client| known(client));
        processes.retain(|client, _| known(client));
        dead.retain(known);
        drop(live);
        self.after_change();
    }

    /// Those who prepared transfers and are certainly gone. Processes are asked for without any lock.
    fn dead_preparers(&self, dead_after: Duration) -> FxHashSet<Preparer> {
        let mut suspects = self.transfers.lock().preparers();
        let is_gone = |live: &Liveness, suspect: &Preparer| {
            let newest = live.heard_on.get(&suspect.instance).copied().unwrap_or(suspect.client);
            live.gone_for(suspect.client, dead_after, self.started)
                && live.gone_for(newest, dead_after, self.started)
        };
        suspects.retain(|suspect| match suspect.process {
            Some(process) => !process.alive(),
            None => is_gone(&self.liveness.lock(), suspect),
        });
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_unknown_workers_does_not_reset_those_still_pinging() {
        let mut pings = UnknownPings::default();
        assert!(!pings.answer((1, 0)));
        for id in 1..2 * MAX_UNKNOWN as u64 {
            assert!(!pings.answer((1, id)), "first ping of {id}");
            if id % 1000 == 0 {
                // Worker 0 pings on, and sees its edge each time.
                assert!(pings.answer((1, 0)));
                assert!(!pings.answer((1, 0)));
            }
        }
        assert_eq!(pings.workers.len(), MAX_UNKNOWN);
        assert!(!pings.answer((1, 1)), "forgotten as the oldest");
    }

    #[test]
    fn who_pings_for_an_unknown_worker_does_not_take_its_edge_away() {
        let mut pings = UnknownPings::default();
        for answer in [false, true, false] {
            assert_eq!((pings.answer((1, 7)), pings.answer((2, 7))), (answer, answer));
        }
    }
}
