//! One worker's transfers: a thread that hands them to the driver and hears when they are over.
//!
//! For each direction there are two streams. The *gate* waits for the worker's event and tells us; only then is anything
//! enqueued in the stream that copies. So a copy that was given up never runs later, an event that never fires holds no
//! memory of the pool, and nothing but its own worker's gate. The thread blocks for nothing but copies with memory that is not
//! pinned, which the driver makes itself.
//!
//! The driver tells nothing after an error that it does not recover from. While slices are under way they are looked at once a
//! second for that reason.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::context::{Context, Mapping};
use super::driver::cuda;
use super::enqueue::Enqueuer;
use super::error::CudaError;
use super::events::{Exporter, Form, Imported, Importer};
use super::job::{Finished, Job, Tensor};
use super::pieces::Piece;
use super::pin::{Pin, PinUser};
use super::stream::{Event, Stream};
use super::{Copies, Settings};
use crate::device::copy::CopyError;
use crate::device::transfer::{Direction, Done, Transfer};

/// Slices of a direction that are under way at once.
const AHEAD: usize = 2;
/// Between two looks at slices whose end is not told.
const LOOK: Duration = Duration::from_secs(1);

/// What the thread is asked and told.
pub(super) enum Command {
    Transfer(Transfer, Done),
    /// The worker's event of this job has fired.
    Fired(u64),
    /// This slice is over.
    Over(u64),
    /// Bytes of a tensor's storage.
    Read {
        tensor: usize,
        offset: u64,
        bytes: usize,
        answer: Sender<Result<Vec<u8>, CopyError>>,
    },
    /// The worker has gone.
    Close,
}

/// One direction.
struct Way {
    copies: Stream,
    /// Forgotten when it waits for something that never comes.
    gate: Option<Stream>,
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
    until: Instant,
}

struct Slice {
    job: u64,
    direction: Direction,
    start: Event,
    end: Event,
    bytes: u64,
    /// What it copies with stays pinned.
    _pin: Arc<Pin>,
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
    /// Why it takes nothing any more.
    lost: Option<String>,
    closing: bool,
    event_timeout: Duration,
    sender: Sender<Command>,
    finished: Sender<Finished>,
    pins: PinUser,
    context: Arc<Context>,
}

/// What a lane works with.
pub(super) struct LaneParts {
    pub(super) context: Arc<Context>,
    pub(super) pins: PinUser,
    pub(super) mappings: Vec<Mapping>,
    pub(super) tensors: Vec<Option<Tensor>>,
    pub(super) settings: Settings,
    pub(super) sender: Sender<Command>,
    pub(super) finished: Sender<Finished>,
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
            gate: Some(Stream::new(context)?),
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
        let LaneParts { context, pins, mappings, tensors, settings, sender, finished } = parts;
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
            closing: false,
            event_timeout: settings.event_timeout,
            sender,
            finished,
            pins,
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
        loop {
            match self.receive(commands) {
                Some(command) => self.execute(command),
                None => self.look(),
            }
            self.pump();
            if self.closing && self.jobs.is_empty() {
                // At once, also if a gate still waits for an event of a worker that is dead.
                self.close();
                if self.waiting.is_empty() {
                    break;
                }
            }
        }
        for command in commands.try_iter() {
            if let Command::Transfer(transfer, done) = command {
                self.refuse(transfer, done, CopyError::Closed);
            }
        }
        // After an error something may still be under way.
        if !context.has_failed() {
            self.ways.iter_mut().for_each(|way| way.enqueuer.finish(&context));
        }
        // Streams and memory while the context is current; itself last.
        drop(self);
        drop(entered);
    }

    /// The next command, or `None` when it is time to look around.
    fn receive(&self, commands: &Receiver<Command>) -> Option<Command> {
        let events = self.waiting.values().map(|waiting| waiting.until).min();
        let slices = (!self.slices.is_empty()).then(|| Instant::now() + LOOK);
        let received = match [events, slices].into_iter().flatten().min() {
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => commands.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match received {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            // We have a sender ourselves; if not, nobody can want anything.
            Err(RecvTimeoutError::Disconnected) => Some(Command::Close),
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Transfer(transfer, done) => self.admit(transfer, done),
            Command::Fired(id) => {
                if let Some(Waiting { job: Some(job), .. }) = self.waiting.remove(&id) {
                    self.ready(id, job);
                }
            }
            Command::Over(id) => self.over(id),
            Command::Read { tensor, offset, bytes, answer } => {
                // Nobody waits any more if it fails.
                let _ = answer.send(self.read(tensor, offset, bytes));
            }
            Command::Close => {
                self.closing = true;
                let jobs: Vec<Job> =
                    self.waiting.values_mut().filter_map(|waiting| waiting.job.take()).collect();
                for mut job in jobs {
                    job.error = Some(CopyError::Closed);
                    self.finish(job);
                }
            }
        }
    }

    /// Takes a transfer, behind its worker's event.
    fn admit(&mut self, transfer: Transfer, done: Done) {
        if self.closing {
            return self.refuse(transfer, done, CopyError::Closed);
        }
        let form = match Form::read(&transfer.event) {
            Ok(form) => form,
            Err(error) => return self.refuse(transfer, done, error),
        };
        if let Some(why) = &self.lost {
            return self.refuse(transfer, done, CopyError::Lost(why.clone()));
        }
        let (id, direction) = (self.next, transfer.direction);
        self.next += 1;
        let ordered = self.importer.open(&self.context, form).and_then(|imported| {
            let Some(event) = imported else { return Ok(None) };
            if let Some(gate) = &self.ways[way_of(direction)].gate {
                let sender = self.sender.clone();
                event.order(gate)?;
                gate.tell(move || drop(sender.send(Command::Fired(id))))?;
            }
            Ok(Some(event))
        });
        match ordered {
            Ok(None) => self.ready(id, Job::new(transfer, done, form)),
            Ok(Some(event)) => {
                let (job, way) = (Some(Job::new(transfer, done, form)), way_of(direction));
                self.waiting
                    .insert(id, Waiting { job, way, event, until: Instant::now() + self.event_timeout });
            }
            Err(error) => {
                self.refuse(transfer, done, error.into());
                if self.context.note(error) {
                    self.lose(&error.to_string());
                }
            }
        }
    }

    fn refuse(&self, transfer: Transfer, done: Done, error: CopyError) {
        let mut job = Job::new(transfer, done, Form::Handle([0; 64]));
        job.error = Some(error);
        self.finish(job);
    }

    fn finish(&self, job: Job) {
        // Its receiver lives as long as we send.
        let _ = self.finished.send(job.finish());
    }

    fn ready(&mut self, id: u64, job: Job) {
        self.ways[way_of(job.direction())].ready.push_back(id);
        self.jobs.insert(id, job);
    }

    /// Enqueues what may be, a slice of each job in turn.
    fn pump(&mut self) {
        for way in 0..2 {
            while self.ways[way].under_way < AHEAD
                && let Some(id) = self.ways[way].ready.pop_front()
                && let Some(mut job) = self.jobs.remove(&id)
            {
                if let Err(error) = self.enqueue(way, id, &mut job) {
                    self.failed(&mut job, error);
                }
                if !job.is_enqueued() {
                    self.ways[way].ready.push_back(id);
                }
                self.settle(id, job);
            }
        }
    }

    /// Keeps a job, or ends it if nothing of it is left.
    fn settle(&mut self, id: u64, job: Job) {
        if self.context.has_failed() && job.error.is_some() && job.outstanding > 0 {
            self.abandon(job);
        } else if job.outstanding == 0 && job.is_enqueued() {
            self.finish(job);
        } else {
            self.jobs.insert(id, job);
        }
    }

    fn failed(&mut self, job: &mut Job, error: CopyError) {
        if let CopyError::Cuda(error) = &error
            && self.context.note(*error)
        {
            self.lose(&error.to_string());
        }
        job.error.get_or_insert(error);
    }

    /// Enqueues the next slice of a job.
    fn enqueue(&mut self, way: usize, id: u64, job: &mut Job) -> Result<(), CopyError> {
        let pin = self.pins.pin(&self.context);
        job.slice(&self.tensors, pin.borders(), &mut self.pieces)?;
        if self.pieces.is_empty() {
            return Ok(());
        }
        let (start, end) = match self.clocks.pop() {
            Some(clocks) => clocks,
            None => (Event::timing(&self.context)?, Event::timing(&self.context)?),
        };
        let (number, sender) = (self.next, self.sender.clone());
        self.next += 1;
        let Lane { ways, context, pieces, .. } = self;
        let Way { copies, enqueuer, exporter, under_way, .. } = &mut ways[way];
        start.record(copies)?;
        // SAFETY: the tensors' memory is open as long as this lane, and its streams are drained before; the objects are held by
        // the job, which is kept until all its slices are over, or else buried with the context.
        let enqueued = unsafe { enqueuer.enqueue(context, copies, &pin, pieces) };
        // Also behind a part of a slice: what was enqueued must be over before the objects are let go.
        let told = end.record(copies).and_then(|()| {
            if job.is_enqueued() && enqueued.is_ok() {
                job.event = exporter.record(context, copies, job.form);
            }
            copies.tell(move || drop(sender.send(Command::Over(number))))
        });
        if let Err(error) = told {
            // Nobody would tell. If waiting fails too the context is given up, and the objects are buried with it.
            if let Err(error) = copies.synchronize() {
                job.outstanding += 1;
                context.give_up(error);
                let why = error.to_string();
                self.lose(&why);
                return Err(error.into());
            }
            return Err(error.into());
        }
        *under_way += 1;
        job.outstanding += 1;
        let bytes = pieces.iter().map(Piece::total).sum();
        self.slices
            .insert(number, Slice { job: id, direction: job.direction(), start, end, bytes, _pin: pin });
        Ok(enqueued?)
    }

    /// A slice is over.
    fn over(&mut self, id: u64) {
        let Some(Slice { job: job_id, direction, start, end, bytes, .. }) = self.slices.remove(&id) else {
            return;
        };
        self.ways[way_of(direction)].under_way -= 1;
        let Some(mut job) = self.jobs.remove(&job_id) else { return };
        job.outstanding -= 1;
        match end.fired().and_then(|fired| if fired { end.since(&start) } else { Ok(Duration::ZERO) }) {
            Ok(took) => {
                job.moved += bytes;
                job.time += took;
                self.clocks.push((start, end));
            }
            Err(error) => self.failed(&mut job, error.into()),
        }
        self.settle(job_id, job);
    }

    /// Nothing was told for a while: are there slices whose end nobody tells, or events that are overdue?
    fn look(&mut self) {
        let broken = self.slices.values().find_map(|slice| slice.end.fired().err());
        if let Some(error) = broken.filter(|error| self.context.note(*error)) {
            self.lose(&error.to_string());
        } else if self.context.has_failed() && self.lost.is_none() {
            self.lose("another worker's transfer on this GPU has failed beyond recovery");
        }
        let now = Instant::now();
        let overdue: Vec<u64> =
            self.waiting.iter().filter(|(_, waiting)| waiting.until <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            let Some(Waiting { job, way, event, .. }) = self.waiting.remove(&id) else { continue };
            let seconds = self.event_timeout.as_secs_f64();
            let why = format!("its event did not fire within {seconds} s (--cuda-event-timeout-seconds)");
            if let Some(mut job) = job {
                if self.lost.is_none() {
                    tracing::error!(
                        device = self.context.device.label,
                        why,
                        "a worker's transfers are refused until it has registered again; has its engine crashed in a kernel?"
                    );
                    self.lost = Some(why.clone());
                }
                job.error = Some(CopyError::Lost(why));
                self.finish(job);
            }
            if let Some(gate) = self.ways[way].gate.take() {
                // Destroying it, or its context, might wait for ever.
                std::mem::forget(gate);
                self.context.keep();
            }
            // A word must stay where the gate looks at it.
            std::mem::forget(event);
        }
    }

    /// The context is of no use any more. What is under way may still be touched until it is destroyed.
    fn lose(&mut self, why: &str) {
        // Also if it takes nothing any more already: what was under way then is now over.
        self.lost.get_or_insert_with(|| why.to_owned());
        for (_, Waiting { job, .. }) in std::mem::take(&mut self.waiting) {
            if let Some(mut job) = job {
                job.error = Some(CopyError::Lost(why.to_owned()));
                self.finish(job);
            }
        }
        for (_, job) in std::mem::take(&mut self.jobs) {
            self.abandon(job);
        }
        self.slices.clear();
        for way in &mut self.ways {
            way.ready.clear();
            way.under_way = 0;
        }
        self.pins.drop_lost();
    }

    fn abandon(&self, job: Job) {
        let why = self.lost.clone().unwrap_or_default();
        let (finished, held) = job.abandon(CopyError::Lost(why));
        self.context.bury(held);
        // Its receiver lives as long as we send.
        let _ = self.finished.send(finished);
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
        unsafe { cuda!(self.context.driver, cuMemcpyDtoH_v2(to, address + offset, bytes)) }?;
        Ok(into)
    }

    /// Nothing is under way any more: the worker gets its memory back.
    fn close(&mut self) {
        if !self.mappings.is_empty() {
            let allocations = self.mappings.len();
            self.tensors.clear();
            self.importer = Importer::default();
            self.mappings.clear();
            tracing::info!(
                device = self.context.device.label,
                allocations,
                "GPU memory of a worker is closed"
            );
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // None are left but after a panic: then the objects must stay until nothing can touch them.
        for (_, job) in self.jobs.drain().filter(|(_, job)| job.outstanding > 0) {
            self.context.bury(job.abandon(CopyError::Closed).1);
        }
    }
}
