//! One kill, from the first start to the last look.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::crew::{Crew, WORKERS};
use super::journal::Entry;
use super::model::{self, Seen};
use super::points::{Class, Phase, Point};
use super::quotas::Quotas;
use super::{Random, hang};
use crate::daemon::Daemon;

/// Longest wait for anything. A bound on hangs.
const PATIENCE: Duration = Duration::from_secs(90);
/// Commits before a restart that has nothing to wait for.
const ENOUGH: usize = 20;
/// Workers killed in a case that kills workers.
const WORKER_KILLS: u64 = 8;
/// The environment of a daemon that is to live; the one of its first start may say otherwise.
const UNARMED: [(&str, &str); 1] = [("LMCACHED_FAILPOINT", "")];

/// What is killed, and when.
#[derive(Clone, Copy, Debug)]
pub enum Killed {
    /// The daemon, at a step.
    At(Point),
    /// The daemon, whatever it does.
    AnyMoment(Class),
    /// Workers, one after the other.
    Workers,
}

impl Killed {
    fn class(self) -> Class {
        match self {
            Killed::At(Point { phase: Phase::Work(class), .. }) | Killed::AnyMoment(class) => class,
            Killed::At(_) => Class::Roomy,
            Killed::Workers => Class::Deaths,
        }
    }

    /// Whether the case may lose what was committed: the pool was given up.
    fn gives_up(self) -> bool {
        matches!(self, Killed::At(Point { phase: Phase::Replacement | Phase::Discard, .. }))
    }

    /// Whether the workers must be known afterwards.
    fn keeps_workers(self) -> bool {
        !self.gives_up() && !matches!(self, Killed::At(Point { phase: Phase::Extension, .. }))
    }

    fn name(self) -> String {
        match self {
            Killed::At(point) => point.name.into(),
            other => format!("{other:?}"),
        }
    }
}

/// What a case has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Processes killed.
    pub kills: u64,
    /// Commits that workers were told of.
    pub committed: u64,
    /// Objects that workers read.
    pub read: u64,
    /// What the model saw.
    pub seen: Seen,
}

impl Report {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Report) {
        self.kills += other.kills;
        self.committed += other.committed;
        self.read += other.read;
        self.seen.served += other.seen.served;
        self.seen.kept += other.seen.kept;
    }
}

struct Case {
    daemon: Daemon,
    crew: Crew,
    random: Random,
    quotas: Quotas,
    report: Report,
}

/// Runs the case of `seed`.
///
/// # Errors
/// What is lost, wrong, left over, or never happened; with the end of the daemon's log.
pub async fn run(killed: Killed, seed: u64) -> Result<Report, String> {
    let name = killed.name();
    let stream = name.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut random = Random::new(seed, stream);
    let armed = match killed {
        Killed::At(point) => format!("{}:{}", point.name, 1 + random.below(point.most)),
        _ => String::new(),
    };
    let mut flags = vec!["--bind=ipc://{dir}/sock", "--lease-grace-seconds=1", "--drain-seconds=2"];
    flags.extend(killed.class().flags());
    if matches!(killed, Killed::At(Point { phase: Phase::Discard, .. })) {
        flags.push("--discard-on-exit");
    }
    let first = match killed {
        Killed::At(Point { phase: Phase::Start | Phase::Work(_) | Phase::Stop | Phase::Discard, .. }) => {
            armed.clone()
        }
        // A name of nobody, unfinished objects that may still be written, and one that may not.
        Killed::At(Point { phase: Phase::Takeover, name: "names.swept", .. }) => {
            format!("table.name.set:{}", 2 + random.below(3))
        }
        Killed::At(Point { phase: Phase::Takeover, name: "l1.recover.quarantined", .. }) => {
            format!("engine.store.reserved:{}", 5 + random.below(10))
        }
        Killed::At(Point { phase: Phase::Takeover, .. }) => {
            format!("table.object.set:{}", 12 + random.below(20))
        }
        _ => String::new(),
    };
    let daemon = Daemon::launch(&[("LMCACHED_FAILPOINT", &first)], &flags);
    let crew = Crew::new(&daemon, seed.wrapping_add(stream), killed.class(), killed.keeps_workers());
    let mut case = Case { daemon, crew, random, quotas: Quotas::default(), report: Report::default() };
    let result = case.go(killed, &armed).await;
    result.map(|()| case.report).map_err(|what| {
        // Without the line of each transfer and lookup.
        let mut log = case.daemon.log();
        log.retain(|line| !line.contains(" INFO lmcached::events") && !line.contains("Prefetch request"));
        let tail = log[log.len().saturating_sub(40)..].join("\n");
        format!("{name} (armed {first:?} {armed:?}), seed {seed}: {what}\n{tail}")
    })
}

impl Case {
    async fn go(&mut self, killed: Killed, armed: &str) -> Result<(), String> {
        let class = killed.class();
        match killed {
            Killed::At(point) => self.die_at(point, armed).await?,
            Killed::AnyMoment(_) => {
                self.work_until_enough().await?;
                tokio::time::sleep(Duration::from_millis(self.random.below(300))).await;
                self.kill();
            }
            Killed::Workers => {
                self.work_until_enough().await?;
                for _ in 0..WORKER_KILLS {
                    tokio::time::sleep(Duration::from_millis(self.random.below(60))).await;
                    self.replace_worker();
                }
                return self.close(class, true).await;
            }
        }
        let flags = match killed {
            // A pool that was being given up is given up by the next start, too, or taken over after all.
            Killed::At(Point { phase: Phase::Replacement, .. }) if !self.random.one_in(2) => &[],
            Killed::At(Point { phase, .. }) => phase.flags(),
            _ => &[],
        };
        self.daemon.relaunch(&UNARMED, flags);
        self.up().await?;
        self.crew.say("halt");
        self.wait("the workers halt", |case| {
            let told = case.crew.told();
            let halted = told.iter().filter(|entry| **entry == Entry::Halted).count();
            Ok((halted >= case.crew.living()).then_some(()))
        })
        .await?;
        self.look(class, !killed.gives_up(), "restarted").await?;
        self.crew.complete();
        self.crew.say("go");
        self.wait("the workers go on", |case| {
            let told = case.crew.told();
            let idle = told.iter().filter(|entry| **entry == Entry::Idle).count();
            Ok((idle >= WORKERS as usize).then_some(()))
        })
        .await?;
        self.close(class, !killed.gives_up()).await
    }

    /// Ends the workers and looks at what is there.
    async fn close(&mut self, class: Class, keeps: bool) -> Result<(), String> {
        self.crew.say("end");
        self.crew.ended().await?;
        self.look(class, keeps, "ended").await?;
        model::nothing_left(&self.daemon, class).await?;
        let told = self.crew.told();
        self.report.committed =
            told.iter().filter(|entry| matches!(entry, Entry::Committed(_))).count() as u64;
        self.report.read = told.iter().filter(|entry| **entry == Entry::Read).count() as u64;
        Ok(())
    }

    async fn look(&mut self, class: Class, keeps: bool, when: &str) -> Result<(), String> {
        let told = self.crew.told();
        self.check(&told)?;
        let must = if keeps && class.keeps() { model::committed(&told) } else { Default::default() };
        let seen = model::look(&self.daemon, &must, class, when).await;
        let seen = seen.map_err(|what| self.with_threads(format!("{when}: {what}")))?;
        self.report.seen.served += seen.served;
        self.report.seen.kept += seen.kept;
        self.quotas.check(&self.daemon).await
    }

    /// The daemon dies at a point, or at the start after it was killed.
    async fn die_at(&mut self, point: Point, armed: &str) -> Result<(), String> {
        let armed = [("LMCACHED_FAILPOINT", armed)];
        match point.phase {
            Phase::Start => self.dies().await,
            Phase::Work(_) => {
                if self.daemon.comes_up().await.is_none() {
                    self.crew.complete();
                }
                self.dies().await
            }
            Phase::Takeover => {
                self.up().await?;
                self.crew.complete();
                self.dies().await?;
                self.daemon.relaunch(&armed, &[]);
                self.dies().await
            }
            Phase::Revival => {
                self.work_until_enough().await?;
                std::fs::remove_file(self.daemon.pool_path()).map_err(|error| error.to_string())?;
                self.kill();
                self.daemon.relaunch(&armed, &[]);
                self.dies().await
            }
            Phase::Replacement | Phase::Extension => {
                self.work_until_enough().await?;
                self.kill();
                self.daemon.relaunch(&armed, point.phase.flags());
                self.dies().await
            }
            Phase::Stop | Phase::Discard => {
                self.work_until_enough().await?;
                let pid = Pid::from_raw(self.daemon.pid() as i32);
                kill(pid, Signal::SIGTERM).map_err(|error| error.to_string())?;
                self.dies().await
            }
        }
    }

    async fn work_until_enough(&mut self) -> Result<(), String> {
        self.up().await?;
        self.crew.complete();
        let enough =
            |case: &mut Case| Ok((model::committed(&case.crew.told()).len() >= ENOUGH).then_some(()));
        self.wait("enough is committed", enough).await
    }

    async fn up(&mut self) -> Result<(), String> {
        match self.daemon.comes_up().await {
            None => Ok(()),
            Some(status) => Err(format!("the daemon ended at its start: {status}")),
        }
    }

    fn kill(&mut self) {
        self.daemon.kill();
        self.report.kills += 1;
    }

    fn replace_worker(&mut self) {
        let place = self.random.below(WORKERS) as usize;
        self.crew.replace(place);
        self.report.kills += 1;
    }

    /// Waits until the daemon has killed itself.
    async fn dies(&mut self) -> Result<(), String> {
        let deaths = self.crew.class() == Class::Deaths;
        let quotas = self.crew.class() == Class::Quotas;
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.daemon.ended() {
                self.report.kills += 1;
                return match status.signal() {
                    Some(signal) if signal == Signal::SIGKILL as i32 => Ok(()),
                    _ => Err(format!("the daemon ended by itself: {status}")),
                };
            }
            self.check(&self.crew.told())?;
            if Instant::now() > until {
                return Err(self.with_threads("the daemon never comes to the point".into()));
            }
            tokio::time::sleep(Duration::from_millis(5 + self.random.below(30))).await;
            if deaths && self.crew.is_complete() {
                self.replace_worker();
            }
            if quotas {
                self.quotas.change(&self.daemon, &mut self.random).await;
            }
        }
    }

    async fn wait(
        &mut self,
        what: &str,
        mut probe: impl FnMut(&mut Case) -> Result<Option<()>, String>,
    ) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            if probe(self)?.is_some() {
                return Ok(());
            }
            self.check(&self.crew.told())?;
            if let Some(status) = self.daemon.ended() {
                return Err(format!("the daemon ended while {what}: {status}"));
            }
            if Instant::now() > until {
                return Err(self.with_threads(format!("timed out while {what}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What no worker may ever be told.
    fn check(&self, told: &[Entry]) -> Result<(), String> {
        for entry in told {
            match entry {
                Entry::Wrong(what) => return Err(format!("WRONG: {what}")),
                Entry::Unanswered(what) => {
                    return Err(self.with_threads(format!("UNANSWERED: {what}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn with_threads(&self, what: String) -> String {
        let (workers, threads) = (self.crew.told_each(), hang::threads(self.daemon.pid()));
        format!(
            "{what}\nworkers, in the order of their starts:\n{workers}\nthreads of the daemon:\n{threads}"
        )
    }
}
