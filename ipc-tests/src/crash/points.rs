//! Where the daemon is killed, and how it gets there.

/// What the workers and the flags of a case are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A pool with room for everything: what was committed stays.
    Roomy,
    /// A pool that fills up and never evicts.
    Full,
    /// A pool that evicts all the time.
    Evicting,
    /// Workers that clear the cache.
    Clearing,
    /// Workers that register again with objects of another size.
    Reshaping,
    /// Workers that hold slots beyond `--l1-write-ttl-seconds`.
    Overdue,
    /// Workers that remove the pool's name and register.
    Unlinking,
    /// With a tier of files.
    Tiered,
    /// With quotas that are changed all the time.
    Quotas,
    /// With checksums of what objects are, looked at after the restart.
    Checked,
    /// Workers that are killed.
    Deaths,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 11] = [
        Class::Roomy,
        Class::Full,
        Class::Evicting,
        Class::Clearing,
        Class::Reshaping,
        Class::Overdue,
        Class::Unlinking,
        Class::Tiered,
        Class::Quotas,
        Class::Checked,
        Class::Deaths,
    ];

    /// The class of a name, as its debug form writes it.
    pub fn named(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| format!("{class:?}") == name)
    }

    /// Flags of the daemon.
    pub fn flags(self) -> Vec<&'static str> {
        // One MiB: 64 objects, of 96 that the workers know.
        const SMALL: &str = "--l1-size-gb=0.0009765625";
        match self {
            Class::Full => vec![SMALL, "--eviction-policy=noop"],
            Class::Evicting => vec![SMALL],
            Class::Overdue => vec!["--l1-write-ttl-seconds=1"],
            Class::Tiered => vec![r#"--l2-adapter={"type":"fs","base_path":"{dir}/l2"}"#],
            Class::Checked => vec!["--l1-checksums", "--verify-payload"],
            Class::Quotas => vec!["--state-dir={dir}/state"],
            _ => vec![],
        }
    }

    /// Whether what was committed must be there for ever.
    pub fn keeps(self) -> bool {
        !matches!(self, Class::Evicting | Class::Clearing | Class::Reshaping)
    }

    /// Whether all objects have one size.
    pub fn uniform(self) -> bool {
        self != Class::Reshaping
    }
}

/// When the daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// At its first start.
    Start,
    /// While workers work.
    Work(Class),
    /// While it takes over what a daemon left that was killed in the middle of a reservation.
    Takeover,
    /// While it takes over a pool whose name is gone.
    Revival,
    /// While it gives up a pool that was made with another hash, and takes a new one.
    Replacement,
    /// While it makes the pool longer that a daemon left.
    Extension,
    /// While it stops in order.
    Stop,
    /// While it stops and removes its pool.
    Discard,
}

impl Phase {
    /// Flags, besides those of the first, of the start at which the daemon dies.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            // With this the daemon cannot take over what one without it has left; workers see no difference.
            Phase::Replacement => &["--hash-algorithm=sha256_cbor"],
            // With this the pool becomes longer, and workers have to register again.
            Phase::Extension => &["--l1-size-gb=0.125"],
            _ => &[],
        }
    }
}

/// A fail point.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Its name in the daemon.
    pub name: &'static str,
    /// How it is reached.
    pub phase: Phase,
    /// The daemon is killed when it comes there for the nth time, n up to this.
    pub most: u64,
}

const fn point(name: &'static str, phase: Phase, most: u64) -> Point {
    Point { name, phase, most }
}

const WORK: Phase = Phase::Work(Class::Roomy);
const EVICTING: Phase = Phase::Work(Class::Evicting);
const CLEARING: Phase = Phase::Work(Class::Clearing);
const OVERDUE: Phase = Phase::Work(Class::Overdue);
const UNLINKING: Phase = Phase::Work(Class::Unlinking);
const TIERED: Phase = Phase::Work(Class::Tiered);
const CHECKED: Phase = Phase::Work(Class::Checked);
const QUOTAS: Phase = Phase::Work(Class::Quotas);

/// The points of every run of the tests: of each kind of step those next to what is written.
pub const EVERY_RUN: [Point; 31] = [
    point("segment.rename.done", Phase::Extension, 1),
    point("segment.sized", Phase::Start, 3),
    point("table.header.written", Phase::Start, 1),
    point("segment.keep.removed", Phase::Start, 2),
    point("segment.restore.before", UNLINKING, 4),
    point("segment.restore.removed", UNLINKING, 4),
    point("segment.revive.linked", Phase::Revival, 1),
    point("segment.replace.unkept", Phase::Replacement, 3),
    point("l1.open.unbelieved", Phase::Replacement, 1),
    point("segment.unlink.done", Phase::Discard, 5),
    point("l1.open.both", Phase::Takeover, 1),
    point("l1.recover.record", Phase::Takeover, 8),
    point("l1.recover.dropped", Phase::Takeover, 1),
    point("l1.recover.quarantined", Phase::Takeover, 1),
    point("l1.recover.swept", Phase::Takeover, 1),
    point("table.object.counted", WORK, 40),
    point("table.object.written", WORK, 40),
    point("table.pin.written", WORK, 150),
    point("table.pin.set", WORK, 150),
    point("table.name.counted", WORK, 5),
    point("l1.commit.before", WORK, 40),
    point("l1.commit.set", WORK, 40),
    point("l1.unpin.cleared", WORK, 200),
    point("l1.quarantine.done", OVERDUE, 5),
    point("l1.evict.done", EVICTING, 300),
    point("l1.free.set", EVICTING, 300),
    point("l1.detach.held", CLEARING, 2),
    point("names.released", CLEARING, 10),
    point("quota.renamed", QUOTAS, 10),
    point("l2.fs.renamed", TIERED, 30),
    point("stop.drained", Phase::Stop, 1),
];

/// The others.
pub const FULL_RUN: &[Point] = &[
    point("segment.created", Phase::Start, 3),
    point("segment.keep.before", Phase::Start, 2),
    point("segment.keep.linked", Phase::Start, 2),
    point("table.header.magic", Phase::Start, 1),
    point("table.frontier.before", Phase::Start, 1),
    point("table.frontier.set", Phase::Start, 1),
    point("l1.open.pool", Phase::Start, 1),
    point("l1.open.table", Phase::Start, 1),
    point("segment.restore.linked", UNLINKING, 4),
    point("segment.revive.before", Phase::Revival, 1),
    point("segment.replace.before", Phase::Replacement, 3),
    point("segment.replace.unnamed", Phase::Replacement, 3),
    point("segment.unlink.before", Phase::Discard, 5),
    point("l1.extend.copied", Phase::Extension, 1),
    point("segment.rename.before", Phase::Extension, 1),
    point("segment.extended", Phase::Extension, 1),
    point("segment.found", Phase::Takeover, 3),
    point("l1.recover.names", Phase::Takeover, 1),
    point("l1.recover.pins", Phase::Takeover, 1),
    point("l1.recover.objects", Phase::Takeover, 1),
    point("names.swept", Phase::Takeover, 1),
    point("l1.open.recovered", Phase::Takeover, 1),
    point("table.backed", WORK, 3),
    point("table.object.free", WORK, 40),
    point("table.object.set", WORK, 40),
    point("table.pin.free", WORK, 150),
    point("table.pin.counted", WORK, 150),
    point("table.name.free", WORK, 5),
    point("table.payload.before", CHECKED, 40),
    point("table.payload.set", CHECKED, 40),
    point("table.name.set", WORK, 5),
    point("l1.reserve.before", WORK, 40),
    point("l1.reserve.done", Phase::Work(Class::Full), 40),
    point("l1.commit.done", Phase::Work(Class::Full), 40),
    point("l1.reserve.replaced", Phase::Work(Class::Reshaping), 5),
    point("l1.abort.before", Phase::Work(Class::Deaths), 3),
    point("l1.abort.done", Phase::Work(Class::Deaths), 3),
    point("l1.unpin.before", WORK, 200),
    point("l1.lease", WORK, 300),
    point("l1.lease.end", WORK, 300),
    point("l1.quarantine.before", OVERDUE, 5),
    point("l1.evict.before", EVICTING, 300),
    point("l1.free.before", EVICTING, 300),
    point("l1.free.done", EVICTING, 300),
    point("l1.clear.one", CLEARING, 60),
    point("engine.store.reserved", WORK, 40),
    point("engine.store.commit", WORK, 40),
    point("engine.retrieve.pinned", WORK, 150),
    point("engine.retrieve.commit", WORK, 150),
    point("engine.retrieve.done", WORK, 150),
    point("engine.end_session", WORK, 300),
    point("engine.unregister", WORK, 5),
    point("journal.created", Phase::Start, 1),
    point("journal.publish", Phase::Takeover, 1),
    point("journal.published", Phase::Takeover, 1),
    point("journal.noted", WORK, 300),
    point("journal.answered", WORK, 300),
    point("roster.created", Phase::Start, 1),
    point("roster.publish", Phase::Takeover, 1),
    point("roster.published", Phase::Takeover, 1),
    point("roster.written", WORK, 5),
    point("roster.forget", WORK, 3),
    point("roster.forgotten", WORK, 3),
    point("roster.unlinked", Phase::Discard, 1),
    point("quota.before", QUOTAS, 10),
    point("quota.created", QUOTAS, 10),
    point("quota.written", QUOTAS, 10),
    point("quota.synced", QUOTAS, 10),
    point("quota.done", QUOTAS, 10),
    point("l2.fs.created", TIERED, 30),
    point("l2.fs.written", TIERED, 30),
    point("l2.fs.sum", TIERED, 30),
    point("l2.fs.rename", TIERED, 30),
    point("l2.fs.given_up", TIERED, 1),
    point("stop.begun", Phase::Stop, 1),
    point("stop.flushed", Phase::Stop, 1),
    point("stop.told", Phase::Stop, 1),
];

/// All points.
pub fn all() -> impl Iterator<Item = Point> {
    EVERY_RUN.iter().chain(FULL_RUN).copied()
}
