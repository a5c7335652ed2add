//! The push reader: the same series as the scrape's, as OTLP messages, every few seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::sync::watch;

use super::collector::{self, Collector, CollectorError};
use crate::telemetry::catalogue::{Kind, Metric as Described, Name, Reader};
use crate::telemetry::health::Signal;
use crate::telemetry::series::{Labels, Value};
use crate::telemetry::snapshot::Sink;

/// Time between two exports, unless `OTEL_METRIC_EXPORT_INTERVAL` says otherwise.
const INTERVAL: Duration = Duration::from_secs(10);
/// Attribute of the series that stands for all that had no place, as the OpenTelemetry SDKs have it.
const OVERFLOW: &str = "otel.metric.overflow";

/// Builds one export.
#[derive(Debug)]
pub struct Export {
    now: u64,
    scopes: Vec<ScopeMetrics>,
    current: Option<(&'static str, Metric)>,
}

impl Default for Export {
    fn default() -> Export {
        Export { now: nanoseconds(SystemTime::now()), scopes: Vec::new(), current: None }
    }
}

impl Export {
    /// The request, with the resource's attributes.
    pub fn finish(mut self, resource: &[(String, String)]) -> ExportMetricsServiceRequest {
        self.close();
        let attributes = resource.iter().map(|(name, value)| attribute(name, value)).collect();
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_metrics: self.scopes,
                schema_url: String::new(),
            }],
        }
    }

    /// Puts the family under way to its scope. A family without points is not sent: OTLP has no empty metrics.
    fn close(&mut self) {
        let Some((scope, metric)) = self.current.take() else { return };
        let points = match &metric.data {
            Some(Data::Gauge(gauge)) => gauge.data_points.len(),
            Some(Data::Sum(sum)) => sum.data_points.len(),
            Some(Data::Histogram(histogram)) => histogram.data_points.len(),
            _ => 0,
        };
        if points == 0 {
            return;
        }
        let named = |metrics: &&mut ScopeMetrics| metrics.scope.as_ref().is_some_and(|s| s.name == scope);
        match self.scopes.iter_mut().find(named) {
            Some(metrics) => metrics.metrics.push(metric),
            None => self.scopes.push(ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: scope.to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics: vec![metric],
                schema_url: String::new(),
            }),
        }
    }
}

impl Sink for Export {
    const READER: Reader = Reader::Push;

    fn family(&mut self, metric: &'static Described, name: Name) {
        self.close();
        let cumulative = AggregationTemporality::Cumulative as i32;
        let data = match metric.kind {
            Kind::Counter | Kind::ObservableCounter => Data::Sum(Sum {
                data_points: Vec::new(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            Kind::ObservableGauge => Data::Gauge(Gauge { data_points: Vec::new() }),
            Kind::Histogram(_) | Kind::ObservableHistogram(_) => {
                Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality: cumulative })
            }
        };
        let message = Metric {
            name: name.otel.to_owned(),
            description: metric.description.to_owned(),
            unit: name.unit.to_owned(),
            metadata: Vec::new(),
            data: Some(data),
        };
        self.current = Some((metric.scope, message));
    }

    fn point(
        &mut self,
        metric: &'static Described,
        name: Name,
        labels: Labels<'_>,
        value: &Value,
        start: SystemTime,
    ) {
        let Some((_, Metric { data: Some(data), .. })) = &mut self.current else { return };
        let mut attributes: Vec<KeyValue> = match labels {
            Labels::Values(values) => metric
                .attributes
                .iter()
                .zip(values)
                .filter(|(_, value)| !(metric.omit_empty && value.is_empty()))
                .map(|(name, value)| attribute(name, value))
                .collect(),
            Labels::Overflow => vec![KeyValue {
                key: OVERFLOW.to_owned(),
                value: Some(AnyValue { value: Some(any_value::Value::BoolValue(true)) }),
                ..KeyValue::default()
            }],
        };
        attributes.extend(name.fixed.iter().map(|(name, value)| attribute(name, value)));
        let start_time_unix_nano = nanoseconds(start);
        let number = |value| NumberDataPoint {
            attributes: attributes.clone(),
            start_time_unix_nano,
            time_unix_nano: self.now,
            value: Some(value),
            ..NumberDataPoint::default()
        };
        let number = match value {
            Value::Count(count) => {
                number(number_data_point::Value::AsInt(i64::try_from(*count).unwrap_or(i64::MAX)))
            }
            Value::Number(value) => number(number_data_point::Value::AsDouble(*value)),
            Value::Histogram(histogram) => {
                if let Data::Histogram(message) = data {
                    message.data_points.push(HistogramDataPoint {
                        attributes,
                        start_time_unix_nano,
                        time_unix_nano: self.now,
                        count: histogram.count,
                        sum: Some(histogram.sum),
                        bucket_counts: histogram.buckets.to_vec(),
                        explicit_bounds: metric.kind.bounds().to_vec(),
                        ..HistogramDataPoint::default()
                    });
                }
                return;
            }
        };
        match data {
            Data::Sum(sum) => sum.data_points.push(number),
            Data::Gauge(gauge) => gauge.data_points.push(number),
            _ => {}
        }
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Exports what `request` makes, at intervals and once more at the end. One export at a time: a slow collector gets
/// fewer, never a queue of them.
///
/// The task ends after `stop` says so.
///
/// # Errors
/// If the collector's variables are wrong.
pub fn push(
    collector: &Arc<Collector>,
    request: impl Fn() -> ExportMetricsServiceRequest + Send + 'static,
    mut stop: watch::Receiver<bool>,
) -> Result<tokio::task::JoinHandle<()>, CollectorError> {
    let headers = collector::headers(Signal::Metrics)?;
    let add_headers = move |mut request: tonic::Request<()>| {
        for entry in headers.iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(name, value) = entry {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        Ok(request)
    };
    let mut client = MetricsServiceClient::with_interceptor(collector.channel(Signal::Metrics)?, add_headers);
    if let Some(compression) = collector::compression(Signal::Metrics) {
        client = client.send_compressed(compression);
    }
    let health = collector.health.clone();
    let endpoint = collector.endpoint().to_owned();
    let milliseconds = std::env::var("OTEL_METRIC_EXPORT_INTERVAL").ok().and_then(|value| value.parse().ok());
    let interval = milliseconds.map_or(INTERVAL, Duration::from_millis).max(Duration::from_millis(10));
    Ok(collector.runtime().spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick comes at once, when there is nothing to tell.
        ticks.tick().await;
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            let export = tokio::time::timeout(collector::timeout(Signal::Metrics), client.export(request()));
            let failure = match export.await {
                Ok(Ok(_)) => None,
                Ok(Err(status)) => Some(status.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            super::report(&health, Signal::Metrics, &endpoint, failure);
            if last {
                break;
            }
        }
    }))
}
