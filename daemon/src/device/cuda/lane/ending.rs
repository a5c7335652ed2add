//! How a worker's transfers end before their time: its event does not fire, its GPU's context is lost, or it goes.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Lane, Waiting};
use crate::device::copy::CopyError;
use crate::device::cuda::asked::Told;
use crate::device::cuda::events::Importer;
use crate::device::cuda::job::Job;

impl Lane {
    /// Nothing was told for a while: are there slices whose end nobody tells, or events that are overdue?
    pub(super) fn look(&mut self) {
        let slices = self.slices.values().filter_map(|slice| slice.end.fired().err());
        let gates = self.waiting.values().filter_map(|waiting| self.ways[waiting.way].gate.is_idle().err());
        let broken = slices.chain(gates).next();
        if let Some(error) = broken.filter(|error| self.context.note(*error)) {
            return self.lose(&error.to_string());
        }
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

    /// Nothing is under way any more: the worker gets its memory back. Once; what is waited for may stay.
    pub(super) fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
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
        for Waiting { way, event, .. } in self.waiting.values() {
            if let Err(error) = event.release(&self.ways[*way].copies) {
                self.context.note(error);
            }
        }
    }
}
