//! The connection to the collector, from `--otlp-endpoint` and the `OTEL_EXPORTER_OTLP_*` variables.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tonic::codec::CompressionEncoding;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::l2::settings::read_file;
use crate::process;
use crate::telemetry::health::{Health, Signal};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a collector cannot be used. Each is one line.
#[derive(Debug, Error)]
pub enum CollectorError {
    /// The URL.
    #[error("--otlp-endpoint {endpoint:?}: {source}; give a URL such as http://localhost:4317")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A certificate or key.
    #[error("{variable}: cannot read {path:?}: {source}")]
    Certificate {
        /// Which variable names it.
        variable: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A header.
    #[error("{variable}: {entry:?} is no header, write NAME=VALUE and separate headers by commas")]
    Header {
        /// Which variable has it.
        variable: String,
        /// What is wrong. The value is left out: it may be a password.
        entry: String,
    },
    /// An exporter.
    #[error("the exporter of {signal} cannot be made: {reason}; look at the OTEL_EXPORTER_OTLP_* variables")]
    Exporter {
        /// Of what.
        signal: &'static str,
        /// Why.
        reason: String,
    },
    /// The thread.
    #[error("cannot start the export thread: {0}")]
    Thread(std::io::Error),
}

/// A collector. Connections are made when there is something to send, and again when they are lost.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    pub(super) health: Arc<Health>,
    /// `None` only while it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Collector {
    /// A collector at `endpoint`, whose variables are in order. Nothing is sent yet.
    ///
    /// # Errors
    /// See [`CollectorError`].
    pub fn new(endpoint: &str, health: Arc<Health>) -> Result<Collector, CollectorError> {
        let runtime = process::behind(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .max_blocking_threads(2)
                .thread_name("lmcached-otlp")
                .enable_all()
                .build()
        });
        let runtime = runtime.map_err(CollectorError::Thread)?;
        let collector = Collector { endpoint: endpoint.to_owned(), health, runtime: Some(runtime) };
        for signal in Signal::ALL {
            collector.channel(signal)?;
            headers(signal)?;
        }
        Ok(collector)
    }

    /// Where it is.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The runtime of everything that talks to it.
    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.as_ref().expect("it is taken only by drop").handle()
    }

    /// A channel for one signal.
    pub(super) fn channel(&self, signal: Signal) -> Result<Channel, CollectorError> {
        // Channels spawn their work where they are made.
        let _runtime = self.runtime().enter();
        let wrong = |source| CollectorError::Endpoint { endpoint: self.endpoint.clone(), source };
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(wrong)?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout(signal))
            .user_agent(concat!("lmcached/", env!("CARGO_PKG_VERSION")))
            .map_err(wrong)?;
        if self.endpoint.starts_with("https://") {
            endpoint = endpoint.tls_config(tls(signal)?).map_err(wrong)?;
        }
        Ok(endpoint.connect_lazy())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What is under way is lost, as it would be in a crash; flushing is done before, with a limit.
            runtime.shutdown_background();
        }
    }
}

/// A variable of this signal, or the one for all.
fn variable(signal: Signal, suffix: &str) -> Option<(String, String)> {
    let names = [
        format!("OTEL_EXPORTER_OTLP_{}_{suffix}", signal.name().to_ascii_uppercase()),
        format!("OTEL_EXPORTER_OTLP_{suffix}"),
    ];
    names.into_iter().find_map(|name| {
        let value = std::env::var(&name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    })
}

/// How long one export may take.
pub(super) fn timeout(signal: Signal) -> Duration {
    let milliseconds = variable(signal, "TIMEOUT").and_then(|(_, value)| value.parse().ok());
    milliseconds.map_or(EXPORT_TIMEOUT, Duration::from_millis)
}

/// How requests are compressed.
pub(super) fn compression(signal: Signal) -> Option<CompressionEncoding> {
    let (_, value) = variable(signal, "COMPRESSION")?;
    value.eq_ignore_ascii_case("gzip").then_some(CompressionEncoding::Gzip)
}

fn tls(signal: Signal) -> Result<ClientTlsConfig, CollectorError> {
    let read = |suffix| match variable(signal, suffix) {
        None => Ok(None),
        Some((variable, path)) => match read_file(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(source) => Err(CollectorError::Certificate { variable, path: path.into(), source }),
        },
    };
    let config = match read("CERTIFICATE")? {
        Some(authority) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    match (read("CLIENT_CERTIFICATE")?, read("CLIENT_KEY")?) {
        (Some(certificate), Some(key)) => Ok(config.identity(Identity::from_pem(certificate, key))),
        _ => Ok(config),
    }
}

/// Headers of every request of a signal: `NAME=VALUE,NAME=VALUE`, values percent-encoded.
pub(super) fn headers(signal: Signal) -> Result<MetadataMap, CollectorError> {
    let mut headers = MetadataMap::new();
    let Some((variable, value)) = variable(signal, "HEADERS") else { return Ok(headers) };
    for entry in value.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let name = entry.split('=').next().unwrap_or_default().trim();
        let wrong = || CollectorError::Header { variable: variable.clone(), entry: name.to_owned() };
        let (_, value) = entry.split_once('=').ok_or_else(wrong)?;
        let key: MetadataKey<_> = name.to_ascii_lowercase().parse().map_err(|_| wrong())?;
        let value: MetadataValue<_> = decode(value.trim()).parse().map_err(|_| wrong())?;
        headers.insert(key, value);
    }
    Ok(headers)
}

/// Undoes percent-encoding; what is none stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits =
            tail.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_undone_where_they_are_encoding() {
        assert_eq!(decode("Bearer%20a%2Cb"), "Bearer a,b");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    #[test]
    fn a_url_that_is_none_is_refused_in_one_line() {
        let error = Collector::new("http://[", Health::new()).expect_err("no URL").to_string();
        assert!(error.contains("--otlp-endpoint") && error.lines().count() == 1, "{error}");
    }
}
