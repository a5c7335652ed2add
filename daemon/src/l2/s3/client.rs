//! Where the bucket is and how to get in.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{DnsFuture, DnsResolver};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use serde_json::Map;

use super::super::error::Trouble;
use super::super::settings::{Settings, SettingsError, read_file};

/// Attempts after the first.
const RETRIES: usize = 3;

/// An adapter's own keys.
pub(super) struct Endpoint {
    /// With its scheme; the bucket is in it unless `path_style`.
    url: String,
    bucket: String,
    path_style: bool,
    tls: bool,
    region: String,
    http2: bool,
    express: bool,
    credentials: Option<(String, String)>,
    token: Option<String>,
    ca_path: Option<String>,
    timeout: Duration,
    connection_timeout: Duration,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url)
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn read(settings: &mut Settings, timeout: Duration) -> Result<Endpoint, SettingsError> {
        let endpoint = settings.required("s3_endpoint")?;
        let region = settings.required("s3_region")?;
        let disable_tls = settings.flag("disable_tls", false)?;
        // The peer takes `s3://` for the scheme; `http://` and `https://` say what they mean.
        let (tls, host) = match endpoint.split_once("://") {
            None | Some(("s3", _)) => (!disable_tls, endpoint.strip_prefix("s3://").unwrap_or(&endpoint)),
            Some(("https", host)) => (true, host),
            Some(("http", host)) => (false, host),
            Some(_) => {
                return Err(SettingsError(
                    "\"s3_endpoint\" must be a host, s3://, https:// or http://".into(),
                ));
            }
        };
        let host = host.trim_end_matches('/');
        let (bucket, path_style) = match settings.text("s3_bucket")? {
            Some(bucket) => (bucket, true),
            // As in the peer: the bucket is the first label of the host.
            None => match host.split_once('.') {
                Some((bucket, rest)) if !bucket.is_empty() && !rest.is_empty() => (bucket.to_owned(), false),
                _ => {
                    let line = "\"s3_endpoint\" must be <bucket>.<host>; for addresses like <host>/<bucket> set \"s3_bucket\"";
                    return Err(SettingsError(line.into()));
                }
            },
        };
        let credentials = match (settings.text("aws_access_key_id")?, settings.text("aws_secret_access_key")?)
        {
            (Some(id), Some(secret)) => Some((id, secret)),
            (None, None) => None,
            _ => {
                let line = "\"aws_access_key_id\" and \"aws_secret_access_key\" must be given together";
                return Err(SettingsError(line.into()));
            }
        };
        Ok(Endpoint {
            url: format!("{}://{host}", if tls { "https" } else { "http" }),
            bucket,
            path_style,
            tls,
            region,
            // Several connections carry large objects faster than one: only who asks for it gets HTTP/2.
            http2: settings.flag("s3_prefer_http2", false)?,
            express: settings.flag("s3_enable_s3express", false)?,
            credentials,
            token: settings.text("aws_session_token")?,
            ca_path: settings.text("tls_ca_path")?,
            timeout,
            connection_timeout: settings.seconds("connection_timeout")?.unwrap_or(timeout),
        })
    }

    /// A client; with `slashed`, for keys whose first character is a slash, which the caller takes off.
    pub(super) fn client(&self, slashed: bool) -> Result<AmazonS3, Trouble> {
        super::super::registry::install_tls();
        let mut options = ClientOptions::new()
            .with_allow_http(!self.tls)
            .with_connect_timeout(self.connection_timeout)
            // A whole transfer has no limit here, silence has: the tier's deadline knows how large an object is.
            .with_timeout_disabled()
            .with_read_timeout(self.timeout);
        if self.http2 {
            options = options.with_allow_http2();
        }
        if let Some(path) = &self.ca_path {
            let pem = read_file(path).map_err(|error| {
                Trouble::Denied(format!("the file of tls_ca_path cannot be read: {error}"))
            })?;
            for certificate in Certificate::from_pem_bundle(&pem)
                .map_err(|error| Trouble::Denied(format!("the file of tls_ca_path: {error}")))?
            {
                options = options.with_root_certificate(certificate);
            }
        }
        if self.host().ends_with(".localhost") {
            options = options.with_dns_resolver(Arc::new(Localhost));
        }
        // Static keys or, without them, what the environment offers.
        let mut builder = match &self.credentials {
            Some((id, secret)) => {
                let builder = AmazonS3Builder::new().with_access_key_id(id).with_secret_access_key(secret);
                match &self.token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
            None => AmazonS3Builder::from_env(),
        };
        let slash = if slashed { "/" } else { "" };
        builder = if self.path_style {
            builder.with_endpoint(&self.url).with_bucket_name(format!("{}{slash}", self.bucket))
        } else {
            builder.with_endpoint(format!("{}{slash}", self.url)).with_bucket_name(&self.bucket)
        };
        builder
            .with_virtual_hosted_style_request(!self.path_style)
            .with_region(&self.region)
            .with_allow_http(!self.tls)
            .with_s3_express(self.express)
            // TLS protects the bytes on the way, and our checksum beyond it: hashing them again costs more than sending.
            .with_unsigned_payload(self.tls)
            // One request for each key: the bulk request has its own idea of key names.
            .with_disable_bulk_delete(true)
            .with_client_options(options)
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_millis(50),
                    max_backoff: Duration::from_secs(1),
                    base: 2.0,
                },
                max_retries: RETRIES,
                retry_timeout: self.timeout,
            })
            .build()
            .map_err(|error| Trouble::Unexpected(format!("setting up the client: {error}")))
    }

    fn host(&self) -> &str {
        let host = self.url.split_once("://").map_or(self.url.as_str(), |(_, host)| host);
        host.split([':', '/']).next().unwrap_or(host)
    }

    pub(super) fn describe(&self) -> Map<String, serde_json::Value> {
        let mut map = Map::new();
        map.insert("s3_endpoint".into(), self.url.clone().into());
        map.insert("s3_bucket".into(), self.bucket.clone().into());
        map.insert("path_style".into(), self.path_style.into());
        map.insert("s3_region".into(), self.region.clone().into());
        map
    }
}

/// Names below `.localhost` are the loopback (RFC 6761); many resolvers do not know that.
#[derive(Debug)]
struct Localhost;

impl DnsResolver for Localhost {
    fn resolve(&self, _host: &str) -> DnsFuture {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}
