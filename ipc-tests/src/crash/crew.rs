//! The worker processes of a case.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::journal::{Entry, Journals};
use super::model::endpoint;
use super::points::Class;
use crate::daemon::{Daemon, binary};

/// Workers of a case.
pub const WORKERS: u64 = 4;

/// The processes; killed when dropped.
#[derive(Debug)]
pub struct Crew {
    /// A Unix socket for workers 0 and 1, TCP for 2 and 3: each model has both.
    endpoints: [String; 2],
    pool: PathBuf,
    journals: Journals,
    seed: u64,
    class: Class,
    known: bool,
    workers: Vec<Worker>,
    /// Processes started so far; each has a journal and a seed of its own.
    started: u64,
}

#[derive(Debug)]
struct Worker {
    number: u64,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Crew {
    /// No process yet. `known`: the daemon must know its workers again after a restart.
    pub fn new(daemon: &Daemon, seed: u64, class: Class, known: bool) -> Crew {
        let (endpoints, pool) = ([endpoint(daemon), daemon.endpoint()], daemon.pool_path());
        let journals = Journals::in_dir(daemon.dir());
        Crew { endpoints, pool, journals, seed, class, known, workers: Vec::new(), started: 0 }
    }

    /// Starts the workers that are missing.
    pub fn complete(&mut self) {
        for number in 0..WORKERS {
            if !self.workers.iter().any(|worker| worker.number == number) {
                let worker = self.start(number);
                self.workers.push(worker);
            }
        }
    }

    fn start(&mut self, number: u64) -> Worker {
        self.started += 1;
        let seed = self.seed.wrapping_add(self.started << 32);
        let mut child = Command::new(binary().with_file_name("crash-worker"))
            .arg(&self.endpoints[(number / 2 % 2) as usize])
            .arg(&self.pool)
            .arg(self.journals.path(self.started))
            .args([seed.to_string(), number.to_string(), format!("{:?}", self.class), self.known.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("worker starts");
        let stdin = child.stdin.take();
        Worker { number, child, stdin }
    }

    /// Kills the worker at `place` and starts another in its stead.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn replace(&mut self, place: usize) {
        let old = &mut self.workers[place];
        old.child.kill().expect("kill");
        old.child.wait().expect("wait");
        let number = old.number;
        self.workers[place] = self.start(number);
    }

    /// Says a word to all.
    pub fn say(&mut self, word: &str) {
        for worker in &mut self.workers {
            if let Some(stdin) = &mut worker.stdin {
                // One that has ended has nothing to hear.
                let _ = writeln!(stdin, "{word}");
            }
        }
    }

    /// Waits until all have ended, which they have been told to.
    ///
    /// # Errors
    /// Not all do, or one panicked.
    pub async fn ended(&mut self) -> Result<(), String> {
        for worker in &mut self.workers {
            drop(worker.stdin.take());
            let child = &mut worker.child;
            let status = crate::in_time(async || child.try_wait().expect("wait")).await;
            let status = status.ok_or_else(|| format!("worker {} does not end", worker.number))?;
            if !status.success() {
                return Err(format!("worker {} ended with {status}", worker.number));
            }
        }
        self.workers.clear();
        Ok(())
    }

    /// Workers that were started and not replaced.
    pub fn living(&self) -> usize {
        self.workers.len()
    }

    /// Whether all workers were started.
    pub fn is_complete(&self) -> bool {
        self.living() as u64 == WORKERS
    }

    /// What its workers are.
    pub fn class(&self) -> Class {
        self.class
    }

    /// How much each process was told, and what last.
    pub fn told_each(&self) -> String {
        let each = (1..=self.started).map(|number| {
            let told = self.journals.of(number);
            format!("  {} entries, last {:?}", told.len(), told.last())
        });
        each.collect::<Vec<_>>().join("\n")
    }

    /// What they were told so far.
    pub fn told(&self) -> Vec<Entry> {
        self.journals.read(self.started)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}
