//! How a worker's transfers end before their time: its event does not fire, its GPU's context is lost, or it goes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Lane, Slice, Waiting};
use crate::device::copy::CopyError;
use crate::device::cuda::asked::Told;
use crate::device::cuda::events::Importer;
use crate::device::cuda::job::Job;

impl Lane {
    /// Nothing was told for a while: are there slices whose end nobody tells, or events that are overdue?
    pub(super) fn look(&mut self) {
        let slices = self.slices.values().filter_map(|slice| slice.end.fired().err());
        let gates = self.waiting.values().filter_map(|waiting| self.ways[waiting.way].gate.is_idle().err());
        let writing = (!self.written.is_empty()).then(|| self.ways[0].copies.is_idle().err()).flatten();
        if let Some(error) = slices.chain(gates).chain(writing).find(|error| self.context.note(*error)) {
            return self.lose(&error.to_string());
        }
        let ways = &self.ways;
        let is_through = |way: usize| ways[way].gate.is_idle() == Ok(true);
        self.waiting.retain(|_, waiting| !(waiting.untold && is_through(waiting.way)));
        if !self.written.is_empty() && self.ways[0].copies.is_idle() == Ok(true) {
            self.written.clear();
        }
        self.write_words();
        let now = Instant::now();
        let is_overdue = |waiting: &&mut Waiting| waiting.until.is_some_and(|until| until <= now);
        let (mut overdue, mut of_nobody) = (false, 0);
        for waiting in self.waiting.values_mut().filter(is_overdue) {
            waiting.until = None;
            overdue |= waiting.job.is_some();
            of_nobody += usize::from(waiting.job.is_none());
        }
        let (device, seconds) = (&self.context.device.label, self.event_timeout.as_secs_f64());
        if of_nobody > 0 {
            tracing::warn!(
                device,
                events = of_nobody,
                "a worker has gone, and events that it had recorded have not fired since: a thread waits for them, and the GPU context stays until they fire or this daemon ends"
            );
        }
        if overdue {
            let why = format!("its event did not fire within {seconds} s (--cuda-event-timeout-seconds)");
            tracing::error!(
                device,
                why,
                "a worker's transfers are refused until it has registered again; has its engine crashed in a kernel?"
            );
            self.take_nothing_more(&why);
        }
    }

    /// The worker has to register again.
    pub(super) fn take_nothing_more(&mut self, why: &str) {
        self.closing = true;
        if self.lost.is_none() {
            self.lost = Some(why.to_owned());
            self.is_lost.store(true, Ordering::Release);
            // First: whoever hears that a transfer has failed finds the worker forgotten.
            self.tell(Told::Lost);
        }
        self.give_up_waiting(&CopyError::Lost(why.to_owned()));
    }

    /// The context is of no use any more. What is under way may still be touched until it is destroyed.
    pub(super) fn lose(&mut self, why: &str) {
        // Also if it takes nothing any more already: what was under way then is now over.
        self.take_nothing_more(why);
        self.waiting.clear();
        self.written.clear();
        for (_, job) in std::mem::take(&mut self.jobs) {
            self.abandon(job);
        }
        // A pool that was pinned in another context would be let go before this one is destroyed.
        for (_, Slice { pin, .. }) in std::mem::take(&mut self.slices) {
            if !pin.is_of(&self.context) {
                self.context.bury(Box::new(pin));
            }
        }
        for way in &mut self.ways {
            way.ready.clear();
            way.under_way = 0;
        }
        self.pins.drop_lost();
    }

    pub(super) fn abandon(&self, job: Job) {
        let why = self.lost.clone().unwrap_or_default();
        let (finished, held) = job.abandon(CopyError::Lost(why));
        self.context.bury(held);
        self.tell(Told::Finished(finished));
    }

    /// What waits for its event is not done any more. The gates still wait.
    pub(super) fn give_up_waiting(&mut self, error: &CopyError) {
        let jobs: Vec<Job> = self.waiting.values_mut().filter_map(|waiting| waiting.job.take()).collect();
        for mut job in jobs {
            job.error = Some(error.clone());
            self.finish(job);
        }
    }

    /// Nothing is under way any more: the worker gets its memory back. What is waited for may stay.
    pub(super) fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            let allocations = self.mappings.len();
            self.tensors.clear();
            self.importer = Importer::default();
            self.mappings.clear();
            // With the context the memory is still open, and goes with it.
            if !self.context.has_failed() {
                tracing::info!(
                    device = self.context.device.label,
                    allocations,
                    "GPU memory of a worker is closed"
                );
            }
        }
        // Its death may be heard later than that it takes nothing more, or that it has gone.
        self.write_words();
    }

    /// Writes the words that the gates wait for, as their worker is dead and never will. Nothing else can make a stream go on, and
    /// while it waits its context stays, and the words' memory with it. (What a worker knows a handle of, it can write itself.)
    ///
    /// Once a second, as long as there are any: a process may have several lanes, and one with a lower value may be the last to write.
    /// That one is through then, and writes no more.
    fn write_words(&mut self) {
        if !self.dead || !self.closed || !self.written.is_empty() {
            return;
        }
        // A word's value must not fall, and events of one worker share one.
        let mut words: BTreeMap<u64, u64> = BTreeMap::new();
        for (memory, address, value) in self.waiting.values().filter_map(|waiting| waiting.event.word()) {
            let highest = words.entry(address).or_default();
            *highest = value.max(*highest);
            // What waits for a word may let it go before this stream has written it.
            self.written.push(memory.clone());
        }
        // Nothing else is under way in this stream.
        let copies = &self.ways[0].copies;
        let written = words.into_iter().try_for_each(|(address, value)| copies.write_value(address, value));
        if let Err(error) = written
            && !self.context.note(error)
        {
            // Said once.
            self.dead = false;
            tracing::warn!(
                device = self.context.device.label,
                %error,
                "cannot write the words of a dead worker: a thread waits for them, and the GPU context stays until this daemon ends"
            );
        }
    }

    /// After a panic nothing may be let go that a copy still touches. The rest goes the usual way.
    pub(super) fn panicked(&mut self) {
        let over = self.ways.iter().try_for_each(|way| way.copies.synchronize());
        if let Err(error) = over {
            self.context.give_up(error);
        }
        let why = "its thread has panicked; this is a bug in lmcached, please report it";
        if self.context.has_failed() {
            return self.lose(why);
        }
        self.take_nothing_more(why);
        self.slices.clear();
        for way in &mut self.ways {
            way.ready.clear();
            way.under_way = 0;
        }
        for (_, mut job) in std::mem::take(&mut self.jobs) {
            job.error = Some(CopyError::Lost(why.to_owned()));
            self.finish(job);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It could not be started, or has panicked twice.
        let context = self.context.clone();
        let current = context.enter();
        if let Err(error) = &current {
            context.note(*error);
        }
        self.panicked();
        // A gate may look at them. It is a bug by now, and without them the others on this GPU would be lost, too.
        std::mem::forget(std::mem::take(&mut self.waiting));
    }
}
