//! Log records on their way to the collector.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{LogExporter as OtlpExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord,
    SdkLoggerProvider,
};

use super::collector::{Collector, CollectorError};
use super::gate::{Gate, queue_size};
use crate::telemetry::health::{Health, Signal};

/// Records that may wait; each takes about a kilobyte.
const QUEUE: usize = 8192;
const BATCH: usize = 1024;

impl Collector {
    /// A provider whose log records go to this collector.
    ///
    /// # Errors
    /// If the collector's variables are wrong.
    pub fn logger_provider(&self, resource: Resource) -> Result<SdkLoggerProvider, CollectorError> {
        let channel = self.channel(Signal::Logs)?;
        let exporter =
            OtlpExporter::builder().with_tonic().with_channel(channel).build().map_err(|error| {
                CollectorError::Exporter { signal: Signal::Logs.name(), reason: error.to_string() }
            })?;
        let queue = queue_size("OTEL_BLRP_MAX_QUEUE_SIZE", QUEUE);
        let gate = Arc::new(Gate::new(queue));
        let counted = Counted {
            exporter,
            gate: gate.clone(),
            health: self.health.clone(),
            endpoint: self.endpoint().to_owned(),
        };
        let mut batches = BatchConfigBuilder::default().with_max_queue_size(queue * 2);
        if std::env::var_os("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE").is_none() {
            batches = batches.with_max_export_batch_size(BATCH.min(queue));
        }
        let processor = BatchLogProcessor::builder(counted).with_batch_config(batches.build()).build();
        let gated = Gated { processor, gate, health: self.health.clone() };
        Ok(SdkLoggerProvider::builder().with_log_processor(gated).with_resource(resource).build())
    }
}

#[derive(Debug)]
struct Gated {
    processor: BatchLogProcessor,
    gate: Arc<Gate>,
    health: Arc<Health>,
}

impl LogProcessor for Gated {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.gate.enter() {
            self.processor.emit(record, scope);
        } else {
            self.health.dropped(Signal::Logs);
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

impl LogExporter for Counted {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count();
        let result = self.exporter.export(batch).await;
        self.gate.leave(records);
        if result.is_err() {
            (0..records).for_each(|_| self.health.dropped(Signal::Logs));
        }
        let failure = result.as_ref().err().map(ToString::to_string);
        super::report(&self.health, Signal::Logs, &self.endpoint, failure);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
