//! Work that comes round by itself: when it ran last, for those who ask whether the daemon is alive inside.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Periods without a run after which a task counts as stuck. A busy machine misses one or two.
const MISSED: u32 = 5;

/// One task.
#[derive(Clone, Debug)]
pub struct Task {
    /// What it does.
    pub name: &'static str,
    /// How bad it is when it stops: `critical`, `high`, `medium` or `low`, as LMCache has them.
    pub level: &'static str,
    /// Time between two runs.
    pub interval: Duration,
    /// When the last one ended.
    pub last: Option<Instant>,
    /// How long it took.
    pub took: Duration,
    /// Runs.
    pub runs: u64,
    /// Runs that panicked.
    pub failed: u64,
}

impl Task {
    /// Whether it has run lately.
    pub fn is_active(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() <= self.interval * MISSED)
    }
}

/// The tasks.
#[derive(Debug, Default)]
pub struct Periodic {
    tasks: Mutex<Vec<Task>>,
}

/// A task, for whoever runs it.
#[derive(Clone, Copy, Debug)]
pub struct TaskId(usize);

impl Periodic {
    /// Adds a task.
    pub fn add(&self, name: &'static str, level: &'static str, interval: Duration) -> TaskId {
        let mut tasks = self.tasks.lock();
        tasks.push(Task { name, level, interval, last: None, took: Duration::ZERO, runs: 0, failed: 0 });
        TaskId(tasks.len() - 1)
    }

    /// Notes a run that began at `began`.
    pub fn ran(&self, id: TaskId, began: Instant, ok: bool) {
        let mut tasks = self.tasks.lock();
        let Some(task) = tasks.get_mut(id.0) else { return };
        (task.last, task.took) = (Some(Instant::now()), began.elapsed());
        task.runs += 1;
        task.failed += u64::from(!ok);
    }

    /// All tasks.
    pub fn all(&self) -> Vec<Task> {
        self.tasks.lock().clone()
    }
}
