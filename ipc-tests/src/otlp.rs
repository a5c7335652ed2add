//! An OTLP collector: takes what a daemon sends over gRPC and keeps it for the tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Attributes by name, as text.
pub type Attributes = BTreeMap<String, String>;

/// A point of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Scope.
    pub scope: String,
    /// Unit of the metric.
    pub unit: String,
    /// `sum`, `gauge` or `histogram`; a sum is monotonic and cumulative.
    pub kind: &'static str,
    /// Attributes.
    pub attributes: Attributes,
    /// The number; the sum of a histogram.
    pub value: f64,
    /// Counts of a histogram's buckets.
    pub buckets: Vec<u64>,
    /// Bounds of a histogram's buckets.
    pub bounds: Vec<f64>,
    /// When counting began, and when it was read; nanoseconds since 1970.
    pub times: (u64, u64),
}

impl Point {
    /// Records of a histogram.
    pub fn count(&self) -> f64 {
        self.buckets.iter().sum::<u64>() as f64
    }
}

/// A span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Name.
    pub name: String,
    /// Scope.
    pub scope: String,
    /// Ids of its trace, itself and its parent, in hex; an empty parent is none.
    pub trace: String,
    /// See `trace`.
    pub id: String,
    /// See `trace`.
    pub parent: String,
    /// Attributes.
    pub attributes: Attributes,
    /// Names of its events.
    pub events: Vec<String>,
    /// Whether its status is an error.
    pub failed: bool,
    /// Start and end in nanoseconds since 1970.
    pub times: (u64, u64),
}

/// A log record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Text.
    pub body: String,
    /// `INFO`, …
    pub severity: String,
    /// Module that wrote it.
    pub scope: String,
    /// Attributes.
    pub attributes: Attributes,
}

/// Everything received.
#[derive(Debug, Default)]
pub struct Received {
    /// Points of the last export, by metric.
    pub metrics: BTreeMap<String, Vec<Point>>,
    /// Exports of metrics.
    pub metric_exports: u64,
    /// All spans.
    pub spans: Vec<Span>,
    /// All log records.
    pub records: Vec<Record>,
    /// Resource attributes of the last export.
    pub resource: Attributes,
    /// Headers of the last export.
    pub headers: Attributes,
}

/// How a collector treats its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// Takes everything at once.
    Good,
    /// Takes so long that clients give up.
    Slow,
    /// Refuses.
    Refusing,
}

/// The collector; ends when dropped.
#[derive(Debug)]
pub struct Collector {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    received: Mutex<Received>,
    manners: Mutex<Manners>,
}

impl Collector {
    /// A collector on a free port.
    ///
    /// # Panics
    /// If there is none.
    pub async fn start() -> Collector {
        Collector::listen("127.0.0.1:0".parse().expect("an address")).await
    }

    /// A collector at `address`.
    ///
    /// # Panics
    /// If somebody else is there.
    pub async fn listen(address: SocketAddr) -> Collector {
        let listener = TcpListener::bind(address).await.expect("a port of our own");
        let address = listener.local_addr().expect("bound");
        let received = Mutex::new(Received::default());
        let shared = Arc::new(Shared { received, manners: Mutex::new(Manners::Good) });
        let service = || Service(shared.clone());
        let server = Server::builder()
            .add_service(MetricsServiceServer::new(service()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(TraceServiceServer::new(service()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(LogsServiceServer::new(service()).accept_compressed(CompressionEncoding::Gzip));
        let task = tokio::spawn(async move {
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        Collector { shared, address, task }
    }

    /// For `--otlp-endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn behave(&self, manners: Manners) {
        *self.shared.manners.lock() = manners;
    }

    /// Looks at what was received.
    pub fn received<T>(&self, look: impl FnOnce(&Received) -> T) -> T {
        look(&self.shared.received.lock())
    }

    /// Points of a metric in the last export.
    pub fn points(&self, metric: &str) -> Vec<Point> {
        self.received(|received| received.metrics.get(metric).cloned().unwrap_or_default())
    }

    /// Spans of a name.
    pub fn spans(&self, name: &str) -> Vec<Span> {
        self.received(|received| received.spans.iter().filter(|span| span.name == name).cloned().collect())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Service(Arc<Shared>);

impl Service {
    async fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let manners = *self.0.manners.lock();
        match manners {
            Manners::Good => {}
            Manners::Slow => tokio::time::sleep(Duration::from_secs(3600)).await,
            Manners::Refusing => return Err(Status::unavailable("on purpose")),
        }
        let headers = request.metadata().clone().into_headers();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        self.0.received.lock().headers = headers.collect();
        Ok(())
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.admit(&request).await?;
        let mut metrics: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        let mut resource = Attributes::new();
        for resource_metrics in request.into_inner().resource_metrics {
            resource = attributes(&resource_metrics.resource.unwrap_or_default().attributes);
            for scope in resource_metrics.scope_metrics {
                let name = scope.scope.unwrap_or_default().name;
                for metric in scope.metrics {
                    let points = points(&name, &metric.unit, metric.data);
                    metrics.entry(metric.name).or_default().extend(points);
                }
            }
        }
        let mut received = self.0.received.lock();
        received.metrics = metrics;
        received.resource = resource;
        received.metric_exports += 1;
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.admit(&request).await?;
        let mut received = self.0.received.lock();
        for resource_spans in request.into_inner().resource_spans {
            received.resource = attributes(&resource_spans.resource.unwrap_or_default().attributes);
            for scope in resource_spans.scope_spans {
                let name = scope.scope.unwrap_or_default().name;
                received.spans.extend(scope.spans.into_iter().map(|span| Span {
                    scope: name.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: attributes(&span.attributes),
                    events: span.events.into_iter().map(|event| event.name).collect(),
                    failed: span.status.is_some_and(|status| status.code == 2),
                    times: (span.start_time_unix_nano, span.end_time_unix_nano),
                    name: span.name,
                }));
            }
        }
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.admit(&request).await?;
        let mut received = self.0.received.lock();
        for resource_logs in request.into_inner().resource_logs {
            for scope in resource_logs.scope_logs {
                let name = scope.scope.unwrap_or_default().name;
                received.records.extend(scope.log_records.into_iter().map(|record| Record {
                    body: text(record.body.as_ref()),
                    severity: record.severity_text,
                    scope: name.clone(),
                    attributes: attributes(&record.attributes),
                }));
            }
        }
        Ok(Response::new(Default::default()))
    }
}

fn points(scope: &str, unit: &str, data: Option<Data>) -> Vec<Point> {
    let point = |kind, attributes: &[KeyValue], value, times| Point {
        scope: scope.to_owned(),
        unit: unit.to_owned(),
        kind,
        attributes: self::attributes(attributes),
        value,
        buckets: Vec::new(),
        bounds: Vec::new(),
        times,
    };
    let (kind, numbers) = match data {
        Some(Data::Sum(sum)) if sum.is_monotonic && sum.aggregation_temporality == 2 => {
            ("sum", sum.data_points)
        }
        Some(Data::Sum(sum)) => ("odd sum", sum.data_points),
        Some(Data::Gauge(gauge)) => ("gauge", gauge.data_points),
        Some(Data::Histogram(histogram)) => {
            let kind = if histogram.aggregation_temporality == 2 { "histogram" } else { "odd histogram" };
            let points = histogram.data_points.into_iter().map(|data| Point {
                buckets: data.bucket_counts,
                bounds: data.explicit_bounds,
                ..point(
                    kind,
                    &data.attributes,
                    data.sum.unwrap_or(f64::NAN),
                    (data.start_time_unix_nano, data.time_unix_nano),
                )
            });
            return points.collect();
        }
        _ => return Vec::new(),
    };
    let numbers = numbers.into_iter().map(|data| {
        let value = match data.value {
            Some(number_data_point::Value::AsInt(value)) => value as f64,
            Some(number_data_point::Value::AsDouble(value)) => value,
            None => f64::NAN,
        };
        point(kind, &data.attributes, value, (data.start_time_unix_nano, data.time_unix_nano))
    });
    numbers.collect()
}

fn attributes(pairs: &[KeyValue]) -> Attributes {
    pairs.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

/// Integers and floats can be told apart: floats have a point.
fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => format!("{value:?}"),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
