//! Spans: one tree for each request.
//!
//! `request` (or `cb.request` for blending) is the root; `mp.lookup_prefetch`, `mp.store`, `mp.retrieve` and `cb.*` are
//! its children. A root ends with its request, or with the last transfer that was under way then. Nothing stays open for
//! ever: what is not heard of for [`PATIENCE`] is ended and marked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::trace::{Span as _, SpanBuilder, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::pending::{PATIENCE, Pending};
use super::span_parts::{Carrier, Clock, local, number, of_end, of_worker, rate};
use crate::events::{CbPhase, Event, LookupEnd, SessionId, Stamped, Subscriber, TransferId};
use crate::telemetry::health::Health;

/// Requests with an open root.
const ROOTS: usize = 20_000;
/// Open children of all requests.
const CHILDREN: usize = 50_000;
/// Why a span has an end that is not its own.
const UNFINISHED: &str = "its end was not heard of";

/// What a child is about.
#[derive(Clone, PartialEq, Eq, Hash)]
enum ChildKey {
    Lookup(SessionId),
    Transfer(TransferId),
    Blend(SessionId, CbPhase, Option<u32>),
}

/// A child becomes a span when it ends: until then it is what the span will be made of.
struct Child {
    name: &'static str,
    start: SystemTime,
    attributes: Vec<KeyValue>,
    parent: Context,
    session: SessionId,
    root: RootKind,
    at: Instant,
}

/// A request may have both roots.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum RootKind {
    Request,
    Blend,
}

struct Root {
    span: Span,
    context: Context,
    /// Children that have begun and not ended, transfers that were announced included.
    open: usize,
    /// Announced transfers that have not begun.
    announced: Vec<TransferId>,
    /// The request has ended; the root waits for its children.
    ended: Option<Instant>,
    at: Instant,
}

/// Makes them.
pub struct Spans {
    tracer: SdkTracer,
    timeouts: SdkTracer,
    provider: SdkTracerProvider,
    propagator: TraceContextPropagator,
    health: Arc<Health>,
    roots: Pending<(SessionId, RootKind), Root>,
    children: Pending<ChildKey, Child>,
    clock: Clock,
}

impl Spans {
    /// Spans of `provider`.
    pub fn new(provider: SdkTracerProvider, health: Arc<Health>) -> Spans {
        Spans {
            tracer: provider.tracer("lmcache_mp.server"),
            timeouts: provider.tracer("lmcache_mp.timeout"),
            provider,
            propagator: TraceContextPropagator::new(),
            health,
            roots: Pending::new(ROOTS),
            children: Pending::new(CHILDREN),
            clock: Clock::now(),
        }
    }

    fn begin_root(&mut self, session: &SessionId, kind: RootKind, traceparent: Option<&str>, at: Instant) {
        let key = (session.clone(), kind);
        if let Some(root) = self.roots.touch(&key) {
            // A second start of the same request; a transfer may also have come before the request's own event.
            root.at = at;
            return;
        }
        let parent = match traceparent {
            Some(header) => self.propagator.extract(&Carrier(header)),
            None => Context::new(),
        };
        let name = match kind {
            RootKind::Request => "request",
            RootKind::Blend => "cb.request",
        };
        let builder = SpanBuilder::from_name(name)
            .with_start_time(self.clock.time(at))
            .with_attributes([KeyValue::new("session_id", Value::from(session.clone()))]);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = Context::new().with_remote_span_context(local(span.span_context()));
        let root = Root { span, context, open: 0, announced: Vec::new(), ended: None, at };
        if let Some((_, displaced)) = self.roots.begin(key, root) {
            self.give_up_root(displaced, at);
        }
    }

    /// The root, which comes into being with its first child if the request's own event was not heard.
    fn root(&mut self, session: &SessionId, kind: RootKind, at: Instant) -> Option<&mut Root> {
        if !self.roots.contains(&(session.clone(), kind)) {
            self.begin_root(session, kind, None, at);
        }
        let root = self.roots.touch(&(session.clone(), kind))?;
        root.at = at;
        Some(root)
    }

    fn end_request(&mut self, session: &SessionId, kind: RootKind, at: Instant) {
        let key = (session.clone(), kind);
        let Some(root) = self.roots.get_mut(&key) else { return };
        if root.open > 0 {
            root.ended = Some(at);
            root.at = at;
        } else if let Some(mut root) = self.roots.end(&key) {
            root.span.end_with_timestamp(self.clock.time(at));
        }
    }

    fn announced(&mut self, session: &SessionId, transfer: TransferId, at: Instant) {
        // A hostile peer can announce for ever.
        if let Some(root) = self.root(session, RootKind::Request, at)
            && root.announced.len() < 1024
        {
            root.announced.push(transfer);
            root.open += 1;
        }
    }

    fn begin(
        &mut self,
        key: ChildKey,
        name: &'static str,
        session: &SessionId,
        kind: RootKind,
        at: Instant,
        attributes: Vec<KeyValue>,
    ) {
        let time = self.clock.time(at);
        // The second of two starts: a worker's own clock is nearer to the truth than the daemon's guess before it.
        if let Some(child) = self.children.touch(&key) {
            child.start = time;
            child.attributes = attributes;
            child.at = at;
            return;
        }
        let Some(root) = self.root(session, kind, at) else { return };
        let mut announced = false;
        if let ChildKey::Transfer(transfer) = &key {
            let before = root.announced.len();
            root.announced.retain(|other| other != transfer);
            announced = root.announced.len() < before;
        }
        if !announced {
            root.open += 1;
        }
        let parent = root.context.clone();
        let child = Child { name, start: time, attributes, parent, session: session.clone(), root: kind, at };
        if let Some((_, displaced)) = self.children.begin(key, child) {
            self.give_up_child(displaced, at);
        }
    }

    /// The span of a child.
    fn span(&self, child: Child, more: Vec<KeyValue>) -> Span {
        let mut attributes = child.attributes;
        attributes.push(KeyValue::new("session_id", Value::from(child.session)));
        attributes.extend(more);
        let builder =
            SpanBuilder::from_name(child.name).with_start_time(child.start).with_attributes(attributes);
        self.tracer.build_with_context(builder, &child.parent)
    }

    fn end(&mut self, key: &ChildKey, session: &SessionId, at: Instant, attributes: Vec<KeyValue>) {
        let (kind, session) = match self.children.end(key) {
            Some(child) => {
                let of = (child.root, child.session.clone());
                // Clocks of workers are not the daemon's: an end before its start would be nonsense to every reader.
                let end = self.clock.time(at).max(child.start);
                self.span(child, attributes).end_with_timestamp(end);
                of
            }
            // Its start was dropped, or nobody announced it.
            None => {
                let ChildKey::Transfer(transfer) = key else { return };
                let Some(root) = self.roots.get_mut(&(session.clone(), RootKind::Request)) else { return };
                let before = root.announced.len();
                root.announced.retain(|other| other != transfer);
                if root.announced.len() == before {
                    return;
                }
                (RootKind::Request, session.clone())
            }
        };
        self.child_ended(session, kind, at);
    }

    fn child_ended(&mut self, session: SessionId, kind: RootKind, at: Instant) {
        let key = (session, kind);
        let Some(root) = self.roots.touch(&key) else { return };
        root.open = root.open.saturating_sub(1);
        root.at = at;
        if root.open == 0
            && let Some(ended) = root.ended
            && let Some(mut root) = self.roots.end(&key)
        {
            root.span.end_with_timestamp(self.clock.time(at.max(ended)));
        }
    }

    /// The three numbers that trace stores cannot compute from others at query time.
    fn annotate(
        &mut self,
        session: &SessionId,
        kind: RootKind,
        hit: u64,
        requested: u64,
        more: Vec<KeyValue>,
    ) {
        let Some(root) = self.roots.get_mut(&(session.clone(), kind)) else { return };
        root.span.set_attribute(number("hit_tokens", hit));
        root.span.set_attribute(number("requested_tokens", requested));
        root.span.set_attribute(KeyValue::new("hit_rate", rate(hit, requested)));
        root.span.set_attributes(more);
    }

    fn lookup_ended(&mut self, session: &SessionId, end: &LookupEnd, at: Instant) {
        let attributes = vec![
            number("found_count", end.found_count),
            number("requested_tokens", end.requested_tokens),
            number("hit_tokens", end.hit_tokens),
            number("l1_hit_tokens", end.l1_hit_tokens),
            number("l2_hit_tokens", end.l2_hit_tokens),
            number("l1_hit_keys", end.l1_hit_keys),
            number("l2_hit_keys", end.l2_hit_keys),
            KeyValue::new("early_exit_reason", end.early_exit_reason),
            KeyValue::new("model_name", Value::from(end.model.clone())),
            KeyValue::new("cache_salt", Value::from(end.salt.clone())),
        ];
        let by_tier = vec![
            number("l1_hit_tokens", end.l1_hit_tokens),
            number("l2_hit_tokens", end.l2_hit_tokens),
            KeyValue::new("l1_hit_rate", rate(end.l1_hit_tokens, end.requested_tokens)),
            KeyValue::new("l2_hit_rate", rate(end.l2_hit_tokens, end.requested_tokens)),
        ];
        // Before the child ends: that may end the root too.
        self.annotate(session, RootKind::Request, end.hit_tokens, end.requested_tokens, by_tier);
        self.end(&ChildKey::Lookup(session.clone()), session, at, attributes);
    }

    fn timeout(&mut self, session: &SessionId, message: &Arc<str>, kind: &'static str, at: Instant) {
        let time = self.clock.time(at);
        let parent = self
            .roots
            .get_mut(&(session.clone(), RootKind::Request))
            .map_or_else(Context::new, |root| root.context.clone());
        let builder = SpanBuilder::from_name("timeout")
            .with_start_time(time)
            .with_attributes([KeyValue::new("session_id", Value::from(session.clone()))]);
        let mut span = self.timeouts.build_with_context(builder, &parent);
        let exception = vec![
            KeyValue::new("exception.type", kind),
            KeyValue::new("exception.message", Value::from(message.clone())),
        ];
        span.add_event_with_timestamp("exception", time, exception);
        span.set_status(Status::error(message.to_string()));
        span.end_with_timestamp(time);
    }

    fn give_up(&mut self, mut span: Span, at: Instant) {
        span.set_status(Status::error(UNFINISHED));
        span.end_with_timestamp(self.clock.time(at));
        self.health.spans_unfinished.fetch_add(1, Ordering::Relaxed);
    }

    fn give_up_root(&mut self, root: Root, at: Instant) {
        self.give_up(root.span, at);
    }

    fn give_up_child(&mut self, child: Child, at: Instant) {
        let (session, root) = (child.session.clone(), child.root);
        let span = self.span(child, Vec::new());
        self.give_up(span, at);
        self.child_ended(session, root, at);
    }

    /// Ends what is not heard of any more; the least recently heard of are first in line.
    fn impatient(&mut self, now: Instant) {
        let late = |at: Instant| now.saturating_duration_since(at) >= PATIENCE;
        while let Some((_, child)) = self.children.oldest_if(|child| late(child.at)) {
            self.give_up_child(child, now);
        }
        while let Some((_, root)) = self.roots.oldest_if(|root| late(root.at)) {
            self.give_up_root(root, now);
        }
    }
}

impl Subscriber for Spans {
    fn name(&self) -> &'static str {
        "Spans"
    }

    fn on_event(&mut self, event: &Stamped) {
        let at = event.at;
        match &event.event {
            Event::MpRequestStart { session, traceparent } => {
                self.begin_root(session, RootKind::Request, traceparent.as_deref(), at);
            }
            Event::MpRequestEnd { session } => self.end_request(session, RootKind::Request, at),
            Event::MpLookupPrefetchStart { session } => {
                let key = ChildKey::Lookup(session.clone());
                self.begin(key, "mp.lookup_prefetch", session, RootKind::Request, at, Vec::new());
            }
            Event::MpLookupPrefetchEnd { session, end } => self.lookup_ended(session, end, at),
            Event::MpStoreSubmitted { session, transfer, .. }
            | Event::MpRetrieveSubmitted { session, transfer, .. } => {
                self.announced(session, *transfer, at);
            }
            Event::MpStoreStart { session, transfer, worker } => {
                let key = ChildKey::Transfer(*transfer);
                self.begin(key, "mp.store", session, RootKind::Request, at, of_worker(worker));
            }
            Event::MpRetrieveStart { session, transfer, worker } => {
                let key = ChildKey::Transfer(*transfer);
                self.begin(key, "mp.retrieve", session, RootKind::Request, at, of_worker(worker));
            }
            Event::MpStoreEnd { session, transfer, end, .. } => {
                self.end(&ChildKey::Transfer(*transfer), session, at, of_end("stored_count", end));
            }
            Event::MpRetrieveEnd { session, transfer, end, .. } => {
                self.end(&ChildKey::Transfer(*transfer), session, at, of_end("retrieved_count", end));
            }
            Event::TimeoutRaised { session, message, kind } => self.timeout(session, message, kind, at),
            Event::CbRequestStart { session } => self.begin_root(session, RootKind::Blend, None, at),
            Event::CbRequestEnd { session } => self.end_request(session, RootKind::Blend, at),
            Event::CbPhaseStart { session, phase, worker } => {
                let key = ChildKey::Blend(session.clone(), *phase, *worker);
                let attributes = worker.map(|worker| number("worker", u64::from(worker)));
                self.begin(
                    key,
                    phase.span_name(),
                    session,
                    RootKind::Blend,
                    at,
                    attributes.into_iter().collect(),
                );
            }
            Event::CbPhaseEnd { session, phase, worker, success } => {
                let key = ChildKey::Blend(session.clone(), *phase, *worker);
                self.end(&key, session, at, vec![KeyValue::new("success", *success)]);
            }
            Event::CbLookupEnd { session, requested_tokens, hit_tokens } => {
                self.annotate(session, RootKind::Blend, *hit_tokens, *requested_tokens, Vec::new());
            }
            _ => return,
        }
        self.health.spans_open.store((self.roots.len() + self.children.len()) as u64, Ordering::Relaxed);
    }

    fn on_idle(&mut self, now: Instant) {
        self.impatient(now);
        self.health.spans_open.store((self.roots.len() + self.children.len()) as u64, Ordering::Relaxed);
    }

    fn shutdown(&mut self) {
        let now = Instant::now();
        let children: Vec<_> = self.children.drain().collect();
        for (_, child) in children {
            self.give_up_child(child, now);
        }
        let roots: Vec<_> = self.roots.drain().collect();
        for (_, root) in roots {
            self.give_up_root(root, now);
        }
        self.health.spans_open.store(0, Ordering::Relaxed);
        // Bounded: a collector that is gone must not hold the shutdown up.
        let _ = self.provider.shutdown_with_timeout(Duration::from_secs(5));
    }
}
