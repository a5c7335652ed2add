//! Whoever makes a worker known, or forgets it, does so alone.
//!
//! What is known of a worker is in several places: the workers in force, the connection that speaks for it, the roster for the next
//! daemon. A worker that was started again registers under its old id while the death of the process before it is being noticed:
//! without turns, what the one has just written the other would take away.
#![forbid(unsafe_code)]

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

/// Workers whose numbers leave the same remainder share one; a registration may take as long as a GPU takes to open memory.
const PLACES: usize = 64;
/// For those who have something else to do meanwhile.
const MOMENT: Duration = Duration::from_millis(50);

/// The turns. Taken before any other lock of the engine, and by no thread that a registration waits for.
#[derive(Debug)]
pub(super) struct Turns([Mutex<()>; PLACES]);

impl Default for Turns {
    fn default() -> Turns {
        Turns([const { Mutex::new(()) }; PLACES])
    }
}

impl Turns {
    fn place(&self, instance: u64) -> &Mutex<()> {
        &self.0[(instance % PLACES as u64) as usize]
    }

    /// Waits for a worker's turn.
    pub(super) fn of(&self, instance: u64) -> MutexGuard<'_, ()> {
        self.place(instance).lock()
    }

    /// A worker's turn, unless somebody has it for longer than a moment.
    pub(super) fn soon(&self, instance: u64) -> Option<MutexGuard<'_, ()>> {
        self.place(instance).try_lock_for(MOMENT)
    }

    /// A worker's turn, unless somebody has it.
    pub(super) fn now(&self, instance: u64) -> Option<MutexGuard<'_, ()>> {
        self.place(instance).try_lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::alone::{CHUNK, registration};
    use super::super::{Client, Engine, Origin};
    use crate::l1::{L1, L1Config};
    use crate::process::ProcessId;

    /// The death of a process is noticed while the next one registers the same worker.
    #[test]
    fn a_worker_that_is_started_again_stays_when_its_old_process_is_found_dead() {
        let config = L1Config {
            chunk_size: CHUNK,
            fresh: true,
            ..L1Config::new(format!("turns_test_{}", std::process::id()), 1 << 20)
        };
        let (l1, _) = L1::open(&config).expect("a pool");
        let l1 = Arc::new(l1);
        let engine = Engine::alone(l1.clone(), Duration::from_secs(3600), 0);
        let processes = [1, 2].map(|start_time| ProcessId { pid: u32::MAX, start_time });
        let [old, new] = [1, 2].map(|id| {
            let origin = Origin { process: Some(processes[id as usize - 1]), ..Origin::default() };
            Client::new(id, "test".into(), origin)
        });
        for client in [&old, &new] {
            engine.client_arrived(client);
        }
        for worker in [7, 8] {
            engine.execute(&old, registration(worker)).expect("registered");
        }
        std::thread::scope(|scope| {
            // It is in the middle of its registration, as `handle` does it.
            let turn = engine.turns.of(7);
            scope.spawn(|| engine.process_died(processes[0]));
            while !engine.liveness.lock().is_dead(old.id) {
                std::thread::yield_now();
            }
            engine.execute(&new, registration(7)).expect("registered");
            drop(turn);
        });
        assert!(engine.instances.is_known(7), "the new process's");
        assert!(!engine.instances.is_known(8), "the dead one's");
        l1.discard();
    }
}
