//! One worker's transfers: a thread that hands them to the driver and hears when they are over.
//!
//! For each direction there are two streams. The *gate* waits for the worker's event and tells us; only then is anything
//! enqueued in the stream that copies. So a copy that was given up never runs later, an event that never fires holds no
//! memory of the pool, and nothing but its own worker's gate. The thread blocks for nothing but copies with memory that is not
//! pinned, which the driver makes itself.
//!
//! The driver tells nothing after an error that it does not recover from. While slices are under way they are looked at once a
//! second for that reason, and so are gates while transfers wait behind them. Whoever finds the context lost wakes the lanes of all its workers ([`Context::watch`]): each ends, as the
//! context is of no use to anybody before the last has let it go.
#![allow(unsafe_code)]

mod copying;
mod ending;

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::asked::{Command, Owner, Told};
use super::context::{Context, Mapping, Watch};
use super::driver::cuda;
use super::enqueue::Enqueuer;
use super::error::CudaError;
use super::events::{Exporter, Form, Imported, Importer};
use super::job::{Job, Tensor};
use super::pieces::Piece;
use super::pin::{Pin, PinUser};
use super::stream::{Event, Stream};
use super::{Copies, Settings};
use crate::device::copy::CopyError;
use crate::device::transfer::{Direction, Transfer};

/// Slices of a direction that are under way at once.
const AHEAD: usize = 2;
/// Between two looks at slices whose end is not told, and at gates.
const LOOK: Duration = Duration::from_secs(1);

/// One direction.
struct Way {
    copies: Stream,
    gate: Stream,
    enqueuer: Enqueuer,
    exporter: Exporter,
    /// Jobs with something left to enqueue.
    ready: VecDeque<u64>,
    under_way: usize,
}

/// A gate that waits for a worker's event.
struct Waiting {
    /// What is to be done then; nothing any more if the worker has gone meanwhile.
    job: Option<Job>,
    way: usize,
    event: Imported,
    /// When it is overdue; `None` when that has been said.
    until: Option<Instant>,
    /// Nobody tells when it has fired: the gate is looked at.
    untold: bool,
}

struct Slice {
    job: u64,
    direction: Direction,
    start: Event,
    end: Event,
    bytes: u64,
    /// What it copies with stays pinned.
    pin: Arc<Pin>,
}

/// The thread's state. What is first is dropped first: streams before the memory that they use, that before the context.
pub(super) struct Lane {
    ways: [Way; 2],
    waiting: HashMap<u64, Waiting>,
    jobs: HashMap<u64, Job>,
    slices: HashMap<u64, Slice>,
    clocks: Vec<(Event, Event)>,
    pieces: Vec<Piece>,
    importer: Importer,
    tensors: Vec<Option<Tensor>>,
    mappings: Vec<Mapping>,
    next: u64,
    /// Why it takes nothing any more; whoever asks from outside finds that it is so in `is_lost`.
    lost: Option<String>,
    is_lost: Arc<AtomicBool>,
    closing: bool,
    closed: bool,
    /// Its worker will not write its words any more.
    dead: bool,
    /// Memory of words that are being written for it.
    written: Vec<Arc<Mapping>>,
    /// Whether it has ended as it should.
    ended: bool,
    event_timeout: Duration,
    sender: Sender<Command>,
    told: Sender<Told>,
    pins: PinUser,
    _watch: Watch,
    context: Arc<Context>,
}

/// What a lane works with.
pub(super) struct LaneParts {
    pub(super) context: Arc<Context>,
    /// By which it is told that the context is lost.
    pub(super) watch: Watch,
    pub(super) pins: PinUser,
    pub(super) mappings: Vec<Mapping>,
    pub(super) tensors: Vec<Option<Tensor>>,
    pub(super) settings: Settings,
    pub(super) sender: Sender<Command>,
    pub(super) told: Sender<Told>,
    pub(super) is_lost: Arc<AtomicBool>,
}

fn way_of(direction: Direction) -> usize {
    match direction {
        Direction::Store => 0,
        Direction::Retrieve => 1,
    }
}

impl Way {
    fn new(context: &Arc<Context>, direction: Direction, copies: Copies) -> Result<Way, CudaError> {
        Ok(Way {
            copies: Stream::new(context)?,
            gate: Stream::new(context)?,
            enqueuer: Enqueuer::new(context, direction, copies),
            exporter: Exporter::default(),
            ready: VecDeque::new(),
            under_way: 0,
        })
    }
}

impl Lane {
    /// The context is current.
    pub(super) fn new(parts: LaneParts) -> Result<Lane, CudaError> {
        let LaneParts { context, watch, pins, mappings, tensors, settings, sender, told, is_lost } = parts;
        let way = |direction| Way::new(&context, direction, settings.copies);
        Ok(Lane {
            ways: [way(Direction::Store)?, way(Direction::Retrieve)?],
            waiting: HashMap::new(),
            jobs: HashMap::new(),
            slices: HashMap::new(),
            clocks: Vec::new(),
            pieces: Vec::new(),
            importer: Importer::default(),
            tensors,
            mappings,
            next: 0,
            lost: None,
            is_lost,
            closing: false,
            closed: false,
            dead: false,
            written: Vec::new(),
            ended: false,
            event_timeout: settings.event_timeout,
            sender,
            told,
            pins,
            _watch: watch,
            context,
        })
    }

    /// Runs until the worker has gone and nothing of it is under way.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let context = self.context.clone();
        let entered = context.enter();
        if let Err(error) = &entered {
            self.lose(&error.to_string());
        }
        // A panic is a bug, and costs this worker alone: what is under way is waited for, and all else goes its usual way.
        let mut panics = 0;
        while panics < 2 {
            match catch_unwind(AssertUnwindSafe(|| self.step(commands))) {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => {
                    panics += 1;
                    self.panicked();
                }
            }
        }
        // What was asked meanwhile is refused, and told behind the rest.
        for command in commands.try_iter() {
            if let Command::Transfer(transfer, owner) = command {
                self.admit(transfer, owner);
            }
        }
        self.ended = panics < 2;
        // After an error something may still be under way.
        if !context.has_failed() {
            self.ways.iter_mut().for_each(|way| way.enqueuer.finish(&context));
        }
        // Streams and memory while the context is current; itself last.
        drop(self);
        drop(entered);
    }

    /// Does what is next. Whether it was the last.
    fn step(&mut self, commands: &Receiver<Command>) -> bool {
        match self.receive(commands) {
            Some(command) => self.execute(command),
            None => self.look(),
        }
        self.pump();
        if !self.closing || !self.jobs.is_empty() {
            return false;
        }
        // At once, also if a gate still waits for an event of a worker that is dead.
        self.close();
        self.waiting.is_empty() && self.written.is_empty()
    }

    /// The next command, or `None` when it is time to look around.
    fn receive(&self, commands: &Receiver<Command>) -> Option<Command> {
        let events = self.waiting.values().filter_map(|waiting| waiting.until).min();
        let is_looked_at = |waiting: &Waiting| {
            waiting.job.is_some() || waiting.untold || self.dead && waiting.event.word().is_some()
        };
        let awaited =
            !self.slices.is_empty() || !self.written.is_empty() || self.waiting.values().any(is_looked_at);
        let look = awaited.then(|| Instant::now() + LOOK);
        let received = match [events, look].into_iter().flatten().min() {
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => commands.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match received {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            // We have a sender ourselves; if not, nobody can want anything.
            Err(RecvTimeoutError::Disconnected) => Some(Command::Close { dead: false }),
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Transfer(transfer, owner) => self.admit(transfer, owner),
            Command::Fired(id) => {
                if let Some(Waiting { job: Some(job), .. }) = self.waiting.remove(&id) {
                    self.ready(id, job);
                }
            }
            Command::Over(id) => self.over(id),
            Command::Lost => self.lose("another worker's transfer on this GPU has failed beyond recovery"),
            Command::Read { tensor, offset, bytes, answer } => {
                // Nobody waits any more if it fails.
                let _ = answer.send(self.read(tensor, offset, bytes));
            }
            Command::Close { dead } => {
                self.closing = true;
                self.dead |= dead;
                self.give_up_waiting(&CopyError::Closed);
            }
        }
    }

    /// Takes a transfer, behind its worker's event.
    fn admit(&mut self, transfer: Transfer, owner: Owner) {
        if let Some(why) = &self.lost {
            return self.refuse(transfer, owner, CopyError::Lost(why.clone()));
        }
        if self.closing {
            return self.refuse(transfer, owner, CopyError::Closed);
        }
        let form = match Form::read(&transfer.event) {
            Ok(form) => form,
            Err(error) => return self.refuse(transfer, owner, error),
        };
        let (id, direction) = (self.next, transfer.direction);
        self.next += 1;
        let until = Some(Instant::now() + self.event_timeout);
        let way = way_of(direction);
        match self.importer.open(&self.context, form) {
            Ok(None) => self.ready(id, Job::new(transfer, owner, form)),
            Ok(Some(event)) => match self.order(id, way, &event) {
                Ok(()) => {
                    let job = Some(Job::new(transfer, owner, form));
                    self.waiting.insert(id, Waiting { job, way, event, until, untold: false });
                }
                Err(error) => {
                    // The gate may wait all the same, and the event is kept until it does not.
                    self.waiting.insert(id, Waiting { job: None, way, event, until: None, untold: true });
                    self.not_ordered(transfer, owner, error);
                }
            },
            Err(error) => self.not_ordered(transfer, owner, error),
        }
    }

    /// Has a way's gate wait for an event, and tell.
    fn order(&self, id: u64, way: usize, event: &Imported) -> Result<(), CudaError> {
        let (gate, sender) = (&self.ways[way].gate, self.sender.clone());
        event.order(gate)?;
        gate.tell(move || drop(sender.send(Command::Fired(id))))
    }

    fn not_ordered(&mut self, transfer: Transfer, owner: Owner, error: CudaError) {
        if self.context.note(error) {
            self.lose(&error.to_string());
        }
        self.refuse(transfer, owner, error.into());
    }

    fn refuse(&self, transfer: Transfer, owner: Owner, error: CopyError) {
        let mut job = Job::new(transfer, owner, Form::Handle([0; 64]));
        job.error = Some(error);
        self.finish(job);
    }

    fn finish(&self, job: Job) {
        self.tell(Told::Finished(job.finish()));
    }

    fn tell(&self, told: Told) {
        // Its receiver lives as long as we send.
        let _ = self.told.send(told);
    }

    fn ready(&mut self, id: u64, job: Job) {
        self.ways[way_of(job.direction())].ready.push_back(id);
        self.jobs.insert(id, job);
    }

    fn read(&self, tensor: usize, offset: u64, bytes: usize) -> Result<Vec<u8>, CopyError> {
        let Tensor { address, bytes: len } =
            self.tensors.get(tensor).copied().flatten().ok_or(CopyError::Unmapped(tensor))?;
        let end = offset.saturating_add(bytes as u64);
        if end > len {
            return Err(CopyError::TensorBounds { tensor, begin: offset, end, len });
        }
        let mut into = vec![0u8; bytes];
        let to = into.as_mut_ptr().cast::<c_void>();
        // SAFETY: private memory of that length, and bytes of a storage that is open.
        unsafe { cuda!(self.context.driver, cuMemcpyDtoH_v2(to, address + offset, bytes)) }.inspect_err(
            |error| {
                self.context.note(*error);
            },
        )?;
        Ok(into)
    }
}
