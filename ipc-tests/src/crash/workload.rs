//! One worker process: stores and retrieves what its seed says, until it is told otherwise or killed.
//!
//! It is told through its standard input: `halt` when the next daemon is up, `go` after that (connect, register, do a little more,
//! be idle), `end` to leave. A connection that breaks makes it wait for `go`, and so does `halt`: a process that was started so late
//! that it knows no other daemon would go on working while the harness looks at what there is. What it has prepared and not
//! committed it keeps and may finish after the restart, as a worker would that was stopped meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::wire::{Request, Response, Slot};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::journal::{Entry, Journal};
use super::link::{Link, Lost};
use super::points::Class;
use super::{CHUNKS, Content, MODELS, PROMPTS, Random, SALTS, frame, model};
use crate::pool::Pool;
use crate::worker::{CHUNK, prompt};

/// What a worker does after a restart before it is idle.
const AFTERWARDS: u32 = 40;
/// Longest time without a word from the harness.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who a worker is.
#[derive(Debug)]
pub struct Plan {
    /// Where the daemon listens.
    pub endpoint: String,
    /// The pool in the file system.
    pub pool: PathBuf,
    /// Where to write what it was told.
    pub journal: PathBuf,
    /// Seed of the case.
    pub seed: u64,
    /// Number among the case's workers.
    pub number: u64,
    /// What it does besides.
    pub class: Class,
    /// Whether the daemon must know it again after a restart: it takes the pool over.
    pub known: bool,
}

/// Prepared and not committed.
struct Open {
    pool: Arc<Pool>,
    frame: Vec<u8>,
    slots: Vec<(Slot, Content)>,
    store: bool,
}

struct Worker {
    plan: Plan,
    journal: Journal,
    random: Random,
    open: Vec<Open>,
    requests: u64,
    wide: bool,
    /// The pool as it was when the daemon said that the worker is registered, until the worker asked for the opposite.
    registered: Option<Arc<Pool>>,
    /// It was told to go on.
    go: bool,
}

/// Works until the harness says `end`, goes away, or kills the process.
pub async fn run(plan: Plan, mut words: UnboundedReceiver<String>) {
    let journal = Journal::open(&plan.journal);
    let random = Random::new(plan.seed, plan.number + 1);
    let mut worker = Worker {
        plan,
        journal,
        random,
        open: Vec::new(),
        requests: 0,
        wide: false,
        registered: None,
        go: false,
    };
    let mut steps = u32::MAX;
    loop {
        match worker.serve(steps, &mut words).await {
            // The harness has said `end`.
            Ok(()) => return,
            Err(Lost::Gone) => {}
            Err(Lost::Unanswered(what)) => worker.journal.write(&Entry::Unanswered(what)),
            Err(Lost::Wrong(what)) => worker.journal.write(&Entry::Wrong(what)),
        }
        while !std::mem::take(&mut worker.go) {
            match tokio::time::timeout(PATIENCE, words.recv()).await.ok().flatten().as_deref() {
                Some("halt") => worker.journal.write(&Entry::Halted),
                Some("go") => worker.go = true,
                _ => return,
            }
        }
        steps = AFTERWARDS;
    }
}

impl Worker {
    fn id(&self) -> u64 {
        100 + self.plan.number
    }

    fn model(&self) -> u8 {
        (self.plan.number % u64::from(MODELS)) as u8
    }

    async fn serve(&mut self, mut steps: u32, words: &mut UnboundedReceiver<String>) -> Result<(), Lost> {
        let mut link = Link::open(&self.plan.endpoint).await?;
        let mut pool = match self.registered.clone() {
            // A daemon that was restarted knows it still.
            Some(pool) if self.random.one_in(2) && self.is_known(&mut link).await? => pool,
            _ => self.register(&mut link).await?,
        };
        if self.plan.endpoint.starts_with("tcp:") {
            link.declare(self.id()).await?;
        }
        let mut done = 0;
        loop {
            if done == steps {
                // Of what it has prepared, even before the restart, most is finished now at the latest: others have had the time
                // to be given what is no longer its own.
                while self.open.len() > 1 || (!self.open.is_empty() && self.random.one_in(2)) {
                    let open = self.open.swap_remove(0);
                    self.finish(&mut link, open).await?;
                }
                self.journal.write(&Entry::Idle);
                // Connected and idle: what it holds it goes on holding.
                let _ = tokio::time::timeout(PATIENCE, words.recv()).await;
                return Ok(());
            }
            match words.try_recv() {
                Err(TryRecvError::Empty) => {}
                // Before it has seen that the connection is broken; or it was started so late that it knows no other daemon.
                Ok(word) if word == "go" => {
                    self.go = true;
                    steps = done + AFTERWARDS;
                }
                Ok(word) if word == "halt" => {
                    self.journal.write(&Entry::Halted);
                    return Err(Lost::Gone);
                }
                _ => return Ok(()),
            }
            self.step(&mut link, &mut pool).await?;
            done += 1;
        }
    }

    async fn register(&mut self, link: &mut Link) -> Result<Arc<Pool>, Lost> {
        let (id, shape) = (self.id(), model(self.model(), self.wide));
        let pool = link.register(&shape, id, &self.plan.pool).await.map(Arc::new)?;
        self.registered = Some(pool.clone());
        Ok(pool)
    }

    async fn is_known(&mut self, link: &mut Link) -> Result<bool, Lost> {
        let known = link.call(&Request::Ping { instance_id: Some(self.id()) }).await? == Response::Flag(true);
        if self.plan.known && !known {
            return Err(Lost::Wrong(format!("the registration of worker {} is lost", self.id())));
        }
        Ok(known)
    }

    async fn step(&mut self, link: &mut Link, pool: &mut Arc<Pool>) -> Result<(), Lost> {
        let kept = if self.plan.class == Class::Overdue { 6 } else { 3 };
        if self.open.len() > kept || (!self.open.is_empty() && self.random.one_in(16)) {
            let at = self.random.below(self.open.len() as u64) as usize;
            let open = self.open.swap_remove(at);
            return self.finish(link, open).await;
        }
        match self.random.below(100) {
            0..50 => self.store(link, pool).await,
            50..80 => self.retrieve(link, pool).await,
            80..88 => self.look(link).await,
            88..92 => {
                if self.random.one_in(2) {
                    self.registered = None;
                    // What it has reserved goes into quarantine, and is written all the same.
                    link.call(&Request::UnregisterEngineDriven { instance_id: self.id() }).await?;
                }
                *pool = self.register(link).await?;
                Ok(())
            }
            92..95 => link.call(&Request::Ping { instance_id: Some(self.id()) }).await.map(|_| ()),
            _ => self.extra(link, pool).await,
        }
    }

    /// What only workers of this class do.
    async fn extra(&mut self, link: &mut Link, pool: &mut Arc<Pool>) -> Result<(), Lost> {
        match self.plan.class {
            Class::Clearing if self.random.one_in(2) => self.store_once(link, true).await?,
            // What it is writing when it is killed, or its time is over: also when all there is has been stored already.
            Class::Deaths | Class::Overdue => self.store_once(link, false).await?,
            Class::Clearing => {
                let force = self.random.one_in(2);
                link.call(&Request::Clear { force }).await?;
            }
            Class::Unlinking => {
                let _ = std::fs::remove_file(&self.plan.pool);
                *pool = self.register(link).await?;
            }
            Class::Reshaping => {
                self.wide = !self.wide;
                *pool = self.register(link).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// An object under a salt that is nobody else's: the salt's name goes with it.
    async fn store_once(&mut self, link: &mut Link, commit: bool) -> Result<(), Lost> {
        let (request, tokens) = (self.request(), prompt(1, 1));
        let key = model(self.model(), self.wide).key(&request, &tokens).salt(&request);
        let frame = key.frame(Some(0), 0, CHUNK as u64);
        if link.prepare_store(&frame, self.id()).await?.is_some() && commit {
            link.commit_store(&frame, self.id()).await?;
        }
        Ok(())
    }

    fn request(&mut self) -> String {
        self.requests += 1;
        // Never twice, not by another process of the same number either.
        format!("{}-{}-{}", self.id(), std::process::id(), self.requests)
    }

    fn any_prompt(&mut self) -> Content {
        let (salt, prompt) = (self.random.small(SALTS), self.random.small(PROMPTS));
        Content { model: self.model(), salt, prompt, chunk: 0 }
    }

    async fn store(&mut self, link: &mut Link, pool: &Arc<Pool>) -> Result<(), Lost> {
        let (of, request) = (self.any_prompt(), self.request());
        let to = 1 + self.random.small(CHUNKS);
        let frame = frame(of, &request, Some(0), 0, to);
        let Some(context) = link.prepare_store(&frame, self.id()).await? else { return Ok(()) };
        let contents = context
            .chunk_indices
            .iter()
            .map(|chunk| Content { chunk: *chunk as u8, ..of })
            .collect::<Vec<_>>();
        if context.slots.is_empty() {
            return Ok(());
        }
        let slots = context.slots.into_iter().zip(contents).collect();
        self.take(link, Open { pool: pool.clone(), frame, slots, store: true }).await
    }

    async fn retrieve(&mut self, link: &mut Link, pool: &Arc<Pool>) -> Result<(), Lost> {
        let (of, request) = (self.any_prompt(), self.request());
        let found = link.lookup(of, &request, CHUNKS).await?;
        if found > CHUNKS {
            return Err(Lost::Wrong(format!("{found} chunks of {CHUNKS} were found")));
        }
        if found > 0 {
            let frame = frame(of, &request, Some(0), 0, found);
            let Some(slots) = link.prepare_retrieve(&frame, self.id()).await? else { return Ok(()) };
            let slots = slots.into_iter().zip(0..).map(|(slot, chunk)| (slot, Content { chunk, ..of }));
            let open = Open { pool: pool.clone(), frame, slots: slots.collect(), store: false };
            self.take(link, open).await?;
        }
        // The request may end before its transfer does; or its end is never told.
        if self.random.one_in(8) { Ok(()) } else { link.end_session(&request).await }
    }

    async fn look(&mut self, link: &mut Link) -> Result<(), Lost> {
        let (of, request, chunks) = (self.any_prompt(), self.request(), 1 + self.random.small(CHUNKS));
        link.lookup(of, &request, chunks).await?;
        link.end_session(&request).await
    }

    /// Transfers at once, later, or never.
    async fn take(&mut self, link: &mut Link, open: Open) -> Result<(), Lost> {
        if self.random.one_in(4) {
            self.open.push(open);
            return Ok(());
        }
        self.finish(link, open).await
    }

    async fn finish(&mut self, link: &mut Link, open: Open) -> Result<(), Lost> {
        let Open { pool, frame, slots, store } = open;
        for (slot, content) in &slots {
            if store {
                pool.fill(slot, content.pattern());
            } else if pool.holds(slot, content.pattern()) {
                self.journal.write(&Entry::Read);
            } else {
                let what = format!("worker {} read other bytes for {content:?} at {slot:?}", self.id());
                self.journal.write(&Entry::Wrong(what));
            }
        }
        if self.random.one_in(12) {
            // It never says that it is done.
            return Ok(());
        }
        if !store {
            return link.commit_retrieve(&frame, self.id()).await.map(|_| ());
        }
        if link.commit_store(&frame, self.id()).await? {
            for (_, content) in &slots {
                self.journal.write(&Entry::Committed(*content));
            }
        }
        Ok(())
    }
}
