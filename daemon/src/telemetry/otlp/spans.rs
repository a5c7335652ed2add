//! Spans on their way to the collector.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};

use super::collector::{Collector, CollectorError};
use super::gate::{Gate, queue_size};
use crate::telemetry::health::{Health, Signal};

/// Spans that may wait; each takes about a kilobyte.
const QUEUE: usize = 16_384;
const BATCH: usize = 1024;

impl Collector {
    /// A provider whose spans go to this collector. The sampler and the limits are those of the `OTEL_*` variables.
    ///
    /// # Errors
    /// If the collector's variables are wrong.
    pub fn tracer_provider(&self, resource: Resource) -> Result<SdkTracerProvider, CollectorError> {
        let channel = self.channel(Signal::Traces)?;
        let exporter =
            OtlpExporter::builder().with_tonic().with_channel(channel).build().map_err(|error| {
                CollectorError::Exporter { signal: Signal::Traces.name(), reason: error.to_string() }
            })?;
        let queue = queue_size("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE);
        let gate = Arc::new(Gate::new(queue));
        let counted = Counted {
            exporter,
            gate: gate.clone(),
            health: self.health.clone(),
            endpoint: self.endpoint().to_owned(),
        };
        let mut batches = BatchConfigBuilder::default().with_max_queue_size(queue * 2);
        if std::env::var_os("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_none() {
            batches = batches.with_max_export_batch_size(BATCH.min(queue));
        }
        let processor = BatchSpanProcessor::builder(counted).with_batch_config(batches.build()).build();
        let gated = Gated { processor, gate, health: self.health.clone() };
        Ok(SdkTracerProvider::builder().with_span_processor(gated).with_resource(resource).build())
    }
}

#[derive(Debug)]
struct Gated {
    processor: BatchSpanProcessor,
    gate: Arc<Gate>,
    health: Arc<Health>,
}

impl SpanProcessor for Gated {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.processor.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        // The processor passes over spans that were not sampled.
        if !span.span_context.is_sampled() {
            return;
        }
        if self.gate.enter() {
            self.processor.on_end(span);
        } else {
            self.health.dropped(Signal::Traces);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

#[derive(Debug)]
struct Counted {
    exporter: OtlpExporter,
    gate: Arc<Gate>,
    health: Arc<Health>,
    endpoint: String,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.gate.leave(spans);
        if result.is_err() {
            (0..spans).for_each(|_| self.health.dropped(Signal::Traces));
        }
        let failure = result.as_ref().err().map(ToString::to_string);
        super::report(&self.health, Signal::Traces, &self.endpoint, failure);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
