//! What becomes of a client's requests: executed here or on the compute threads, parked, or turned into a stream.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lmcache_proto::wire::{Operation, Response};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::InFlight;
use super::connection::Connection;
use super::queue::{Call, Message};
use super::stats::ServerStats;
use super::zmtp;
use crate::engine::{Client, Engine, Outcome, Refusal};
use crate::journal::{Owed, Ticket};

/// Requests of one client that may wait for an event (a prefetch) at once.
const MAX_PARKED: usize = 1024;
/// Streams of one client at once. A worker has one; each may have one batch of up to 1024 events under way.
const MAX_STREAMS: usize = 8;

/// What other tasks tell the connection. There is at most one for the request on the compute threads, and one for each
/// parked request and each stream, so the channel is bounded by what is admitted.
pub(super) enum Event {
    /// The ordered request on the compute threads is done.
    Done { call: Call, asked: Asked, outcome: Outcome, guard: InFlight },
    /// A copy of the daemon's is over.
    Copied { call: Call, response: Response, guard: InFlight },
    /// A parked request has its answer.
    Woken { call: Call, response: Response },
    /// A stream has a batch, or has ended (`None`).
    Stream { number: u64, uid: Bytes, op_frame: Bytes, batch: Option<Response> },
}

/// What was asked, and when it had come.
pub(super) type Asked = (Operation, Instant);

/// An open stream.
pub(super) struct Subscription {
    /// Tells it from an earlier one under the same id.
    number: u64,
    /// Until the stream has ended.
    _ticket: Option<Ticket>,
    credit: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Subscription {
    /// Ends the stream; its last word is in the connection's inbox when this returns.
    pub(super) async fn end(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// The client has taken a batch.
    pub(super) fn grant(&self) {
        self.credit.notify_one();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends what is left in it when it goes: the answer of a task that was dropped or panicked.
struct LastWord {
    events: mpsc::UnboundedSender<Event>,
    event: Option<Event>,
}

impl LastWord {
    /// Sends now. `false` if the connection has gone.
    fn say(&self, event: Event) -> bool {
        self.events.send(event).is_ok()
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            // Fails when the connection has gone: then nobody waits for the answer.
            self.say(event);
        }
    }
}

impl Connection<'_> {
    /// Starts an ordered request: here if it is short, on the compute threads if it is not.
    pub(super) fn start(&mut self, message: Message) {
        if !message.is_heavy() {
            return self.execute_here(message);
        }
        self.executing = Some(message.cost());
        let guard = self.server.begin();
        let (engine, client, events) = (self.server.engine.clone(), self.client.clone(), self.events.clone());
        let stats = self.server.stats.clone();
        self.server.threads.all.spawn_blocking(move || {
            let outcome = guarded(&engine, &client, &message, &stats);
            let Message { call, operation, arrived, .. } = message;
            // Fails when the connection has gone: then nobody waits for the answer.
            let _ = events.send(Event::Done { call, asked: (operation, arrived), outcome, guard });
        });
    }

    pub(super) fn execute_here(&mut self, message: Message) {
        let guard = self.server.begin();
        let outcome = guarded(&self.server.engine, &self.client, &message, &self.server.stats);
        let Message { call, operation, arrived, .. } = message;
        self.finish(call, (operation, arrived), outcome, guard);
    }

    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Done { call, asked, outcome, guard } => {
                self.executing = None;
                self.finish(call, asked, outcome, guard);
            }
            Event::Copied { call, response, guard } => {
                self.copying -= 1;
                self.answer(call, &response);
                self.unflushed.push(guard);
            }
            Event::Woken { call, response } => {
                while self.parked.try_join_next().is_some() {}
                self.answer(call, &response);
            }
            Event::Stream { number, uid, op_frame, batch } => {
                if self.streams.get(&uid).is_some_and(|stream| stream.number == number) {
                    match batch {
                        Some(batch) => self.reply(&uid, &op_frame, &batch),
                        None => {
                            self.streams.remove(&uid);
                            self.reply(&uid, &op_frame, &Response::Nothing);
                        }
                    }
                }
            }
        }
    }

    fn finish(&mut self, mut call: Call, asked: Asked, outcome: Outcome, guard: InFlight) {
        self.make_good();
        match outcome {
            Outcome::Pending(pending) => return self.await_copy(call, asked, pending, guard),
            Outcome::Reply(response) => self.answer(call, &response),
            // Nobody is there to be told.
            Outcome::Later { .. } | Outcome::Stream(_) if self.deaf => {}
            Outcome::Later { otherwise, .. } if self.parked.len() >= MAX_PARKED => {
                self.answer(call, &otherwise);
            }
            Outcome::Later { wait, otherwise } => {
                call.own();
                let event = Event::Woken { call, response: otherwise };
                let mut word = LastWord { events: self.events.clone(), event: Some(event) };
                self.parked.spawn(async move {
                    let answer = wait.await;
                    if let Some(Event::Woken { response, .. }) = &mut word.event {
                        *response = answer;
                    }
                });
            }
            Outcome::Stream(_) if self.streams.len() >= MAX_STREAMS => self.answer(call, &Response::Nothing),
            Outcome::Stream(mut source) => {
                self.next_stream += 1;
                let number = self.next_stream;
                let credit = Arc::new(Notify::new());
                call.own();
                let Call { uid, op_frame, ticket } = call;
                let (events, permit, key) = (self.events.clone(), credit.clone(), uid.clone());
                let task = tokio::spawn(async move {
                    let tell =
                        |batch| Event::Stream { number, uid: uid.clone(), op_frame: op_frame.clone(), batch };
                    let word = LastWord { events, event: Some(tell(None)) };
                    // One batch per credit; the first credit is implicit.
                    while let Some(batch) = source.next().await {
                        if !word.say(tell(Some(Response::KvEvents(batch)))) {
                            return;
                        }
                        permit.notified().await;
                    }
                });
                self.streams.insert(key, Subscription { number, _ticket: ticket, credit, task });
            }
        }
        self.unflushed.push(guard);
    }

    /// Waits for the end of a copy, beside the connection: it goes on when the peer has gone, and the daemon does not stop before
    /// it is over, as far as it waits for requests at all.
    fn await_copy(
        &mut self,
        mut call: Call,
        (operation, arrived): Asked,
        pending: oneshot::Receiver<Response>,
        guard: InFlight,
    ) {
        call.own();
        self.copying += 1;
        let (server, events) = (self.server.clone(), self.events.clone());
        tokio::spawn(async move {
            // Without an answer, which only a bug can leave us with, the copy has failed.
            let response = pending.await.unwrap_or_else(|_| server.engine.negative(operation));
            server.stats.timing(operation).total.record(arrived.elapsed());
            // Fails when the connection has gone: then nobody waits for the answer.
            let _ = events.send(Event::Copied { call, response, guard });
        });
    }

    /// Answers, and keeps the request noted until the answer is with the kernel.
    fn answer(&mut self, call: Call, response: &Response) {
        self.reply(&call.uid, &call.op_frame, response);
        self.unanswered.extend(call.ticket);
    }

    /// The peer was found to be one that an earlier daemon owes answers: nobody will ever have better ones.
    fn make_good(&mut self) {
        let owed = self.client.take_owed();
        self.answer_owed(owed);
    }

    /// Answers what an earlier daemon has not.
    pub(super) fn answer_owed(&mut self, owed: Vec<Owed>) {
        for Owed { uid, op_frame, operation, ticket } in owed {
            if let Outcome::Reply(response) = self.server.engine.refuse(operation, Refusal::Restarted) {
                self.answer(Call { uid, op_frame, ticket }, &response);
            }
        }
    }

    fn reply(&mut self, uid: &[u8], op_frame: &[u8], response: &Response) {
        if self.deaf {
            return;
        }
        match response.encode() {
            Some(frame) => zmtp::encode(&mut self.out, &[uid, op_frame, &frame]),
            None => zmtp::encode(&mut self.out, &[uid, op_frame]),
        }
    }
}

/// Runs a request; a panic in it is a failed request, not a dead daemon and not a client that waits for ever.
fn guarded(engine: &Engine, client: &Client, message: &Message, stats: &ServerStats) -> Outcome {
    let timing = stats.timing(message.operation);
    timing.queued.record(message.arrived.elapsed());
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        engine.handle(client, message.operation, &message.payload)
    }))
    .unwrap_or_else(|_| {
        tracing::error!(
            operation = message.operation.name(),
            peer = client.peer,
            "request handler panicked; this is a bug in lmcached, please report it with the lines above"
        );
        engine.refuse(message.operation, Refusal::Internal)
    });
    if !matches!(outcome, Outcome::Pending(_)) {
        timing.total.record(message.arrived.elapsed());
    }
    outcome
}
