//! What spans are made of: times of day, attributes, and the parent from a request's `traceparent`.

use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::SpanContext;
use opentelemetry::{KeyValue, Value};

use crate::events::{TransferEnd, Worker};

/// Turns the events' monotonic times into times of day.
pub(super) struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    pub(super) fn now() -> Clock {
        Clock { instant: Instant::now(), time: SystemTime::now() }
    }

    pub(super) fn time(&mut self, at: Instant) -> SystemTime {
        // The time of day may be set; children and parents a moment apart must agree, hours apart need not.
        if at.saturating_duration_since(self.instant) > Duration::from_secs(60) {
            *self = Clock::now();
        }
        match at.checked_duration_since(self.instant) {
            Some(since) => self.time + since,
            None => self.time.checked_sub(self.instant - at).unwrap_or(self.time),
        }
    }
}

/// The only header of a request that travels as text.
pub(super) struct Carrier<'a>(pub(super) &'a str);

impl opentelemetry::propagation::Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        key.eq_ignore_ascii_case("traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// A parent of this process: the flag "remote" would be wrong.
pub(super) fn local(context: &SpanContext) -> SpanContext {
    SpanContext::new(
        context.trace_id(),
        context.span_id(),
        context.trace_flags(),
        false,
        context.trace_state().clone(),
    )
}

pub(super) fn number(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

pub(super) fn rate(hit: u64, requested: u64) -> f64 {
    if requested == 0 { 0.0 } else { hit as f64 / requested as f64 }
}

pub(super) fn of_worker(worker: &Worker) -> Vec<KeyValue> {
    vec![
        KeyValue::new("device", Value::from(worker.device.clone())),
        KeyValue::new("engine_id", worker.engine_id.to_string()),
        KeyValue::new("model_name", Value::from(worker.model.clone())),
    ]
}

pub(super) fn of_end(count: &'static str, end: &TransferEnd) -> Vec<KeyValue> {
    vec![
        number(count, end.count),
        number("total_bytes", end.total_bytes),
        number("num_tokens", end.num_tokens),
        KeyValue::new("cache_salt", Value::from(end.salt.clone())),
    ]
}
