//! From flags to [`Config`]: every range and every pair of flags that must agree.

mod l1;
mod l2;
mod observability;
mod ranges;
mod server;

pub(super) use l2::one_adapter;

use std::ffi::OsString;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::Notice;
use super::endpoint::{Endpoint, overlap};
use super::error::ConfigError;
use super::flags::Flags;
use super::table;
use super::types::{Config, HttpConfig, Listen};

/// Looks a variable up.
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Checks everything; the first thing that is wrong ends it.
pub(super) fn validate(
    flags: &Flags,
    matches: &ArgMatches,
    environment: Environment<'_>,
    notices: &mut Vec<Notice>,
) -> Result<Config, ConfigError> {
    refuse_coordinator_variable(matches, environment)?;
    let server = server::server(flags, matches, environment)?;
    let http = HttpConfig {
        listen: Listen {
            host: ranges::host("--http-host", &flags.http.http_host)?,
            port: ranges::port("--http-port", flags.http.http_port)?,
            port_is_explicit: is_explicit(matches, "http_port"),
        },
        token_file: server::absolute("--http-token-file", flags.http.http_token_file.as_deref())?,
    };
    let observability = observability::observability(flags, matches, environment, &http.listen, notices)?;
    let config = Config {
        l1: l1::l1(&flags.l1, &server.endpoints, notices)?,
        eviction: l1::eviction(&flags.eviction)?,
        liveness: l1::liveness(&flags.liveness)?,
        l2: l2::l2(&flags.l2)?,
        gpu: server::gpu(&flags.gpu)?,
        shutdown: server::shutdown(&flags.shutdown)?,
        server,
        http,
        observability,
    };
    ports_differ(&config)?;
    Ok(config)
}

/// Whether the flag was given rather than left at its default.
fn is_explicit(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// A variable, where it is set, not empty, and text.
fn variable(environment: Environment<'_>, name: &'static str) -> Result<Option<String>, ConfigError> {
    match environment(name).filter(|value| !value.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(bytes)) => Err(ConfigError::Environment {
            name,
            value: bytes.to_string_lossy().into_owned(),
            allowed: "must be UTF-8 text".to_owned(),
        }),
    }
}

/// The peer joins a coordinator by variable alone. `--coordinator-url ""` overrides it, there as here.
fn refuse_coordinator_variable(
    matches: &ArgMatches,
    environment: Environment<'_>,
) -> Result<(), ConfigError> {
    const NAME: &str = "LMCACHE_COORDINATOR_URL";
    if is_explicit(matches, "coordinator-url") || variable(environment, NAME)?.is_none() {
        return Ok(());
    }
    Err(ConfigError::Refused { what: format!("{NAME} in the environment"), line: table::COORDINATOR })
}

/// Finds ports used twice before the sockets do: "address in use" would name neither flag.
fn ports_differ(config: &Config) -> Result<(), ConfigError> {
    let http = ("--http-port", &config.http.listen);
    let prometheus = config.observability.prometheus.as_ref().map(|listen| ("--prometheus-port", listen));
    for (flag, listen) in std::iter::once(http).chain(prometheus) {
        for endpoint in &config.server.endpoints {
            let Endpoint::Tcp { host, port } = endpoint else { continue };
            if overlap((host, *port), (&listen.host, listen.port)) {
                return Err(ConfigError::value(
                    flag,
                    listen.port,
                    format!("workers already connect there ({endpoint}), take another port"),
                ));
            }
        }
    }
    Ok(())
}
