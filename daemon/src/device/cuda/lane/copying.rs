//! Jobs are enqueued slice by slice, and end with their last.
#![allow(unsafe_code)]

use std::time::Duration;

use super::{AHEAD, Lane, Slice, Way, way_of};
use crate::device::copy::CopyError;
use crate::device::cuda::asked::Command;
use crate::device::cuda::pieces::Piece;
use crate::device::cuda::stream::Event;
use crate::failpoint;

impl Lane {
    /// Enqueues what may be, a slice of each job in turn.
    pub(super) fn pump(&mut self) {
        for way in 0..2 {
            while self.ways[way].under_way < AHEAD
                && let Some(id) = self.ways[way].ready.pop_front()
            {
                if let Err(error) = self.enqueue(way, id) {
                    self.failed(id, error);
                }
                if self.jobs.get(&id).is_some_and(|job| !job.is_enqueued()) {
                    self.ways[way].ready.push_back(id);
                }
                self.settle(id);
            }
        }
    }

    /// Ends a job of which nothing is left.
    fn settle(&mut self, id: u64) {
        if self.jobs.get(&id).is_some_and(|job| job.outstanding == 0 && job.is_enqueued())
            && let Some(job) = self.jobs.remove(&id)
        {
            self.finish(job);
        }
    }

    fn failed(&mut self, id: u64, error: CopyError) {
        if let CopyError::Cuda(error) = &error
            && self.context.note(*error)
        {
            self.lose(&error.to_string());
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.error.get_or_insert(error);
        }
    }

    /// Enqueues the next slice of a job, which stays where it is: whatever happens here, its objects are held.
    fn enqueue(&mut self, way: usize, id: u64) -> Result<(), CopyError> {
        let Lane { ways, context, pins, jobs, slices, clocks, pieces, tensors, next, sender, .. } = self;
        let Some(job) = jobs.get_mut(&id) else { return Ok(()) };
        let pin = pins.pin(context);
        job.slice(tensors, pin.borders(), pieces)?;
        if pieces.is_empty() {
            return Ok(());
        }
        let (start, end) = match clocks.pop() {
            Some(clocks) => clocks,
            None => (Event::timing(context)?, Event::timing(context)?),
        };
        let (number, sender) = (*next, sender.clone());
        *next += 1;
        let Way { copies, enqueuer, exporter, under_way, .. } = &mut ways[way];
        start.record(copies)?;
        // SAFETY: the tensors' memory is open as long as this lane, and its streams are drained before; the objects are held by
        // the job, which is kept until all its slices are over, or else buried with the context.
        let enqueued = unsafe { enqueuer.enqueue(context, copies, &pin, pieces) };
        failpoint::panic("lane.enqueued");
        // Also behind a part of a slice: what was enqueued must be over before the objects are let go.
        let told = end.record(copies).and_then(|()| {
            if job.is_enqueued() && enqueued.is_ok() {
                job.event = exporter.record(context, copies, job.form);
            }
            copies.tell(move || drop(sender.send(Command::Over(number))))
        });
        // If nobody will tell, it is waited for here.
        let untold = told.err().map(|error| copies.synchronize().map(|()| error));
        let bytes = pieces.iter().map(Piece::total).sum();
        let slice = Slice { job: id, direction: job.direction(), start, end, bytes, pin };
        match untold {
            None => {
                *under_way += 1;
                job.outstanding += 1;
                slices.insert(number, slice);
                Ok(enqueued?)
            }
            Some(Ok(error)) => Err(error.into()),
            Some(Err(error)) => {
                // It may be under way for ever: the context is given up, and the objects are buried with it.
                job.outstanding += 1;
                slices.insert(number, slice);
                context.give_up(error);
                self.lose(&error.to_string());
                Err(error.into())
            }
        }
    }

    /// A slice is over.
    pub(super) fn over(&mut self, number: u64) {
        failpoint::panic("lane.over");
        let Some(Slice { job: id, direction, start, end, bytes, .. }) = self.slices.remove(&number) else {
            return;
        };
        self.ways[way_of(direction)].under_way -= 1;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.outstanding -= 1;
        match end.fired().and_then(|fired| if fired { end.since(&start) } else { Ok(Duration::ZERO) }) {
            Ok(took) => {
                job.moved += bytes;
                job.time += took;
                self.clocks.push((start, end));
            }
            Err(error) => self.failed(id, error.into()),
        }
        self.settle(id);
    }
}
