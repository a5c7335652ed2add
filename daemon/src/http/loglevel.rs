//! `GET /loglevel`: shows the levels of the log and sets them. The peer sets with GET, so this does, too.

use warp::http::StatusCode;

use super::answer::{Answer, answer};
use super::call::Call;
use crate::config::LogLevel;

/// The names under which callers mean everything.
const ALL: [&str; 3] = ["lmcached", "lmcache", "root"];

pub(super) fn get_or_set(call: &Call) -> Answer {
    let given = |name: &str| call.query.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let (logger, level) = (given("logger_name"), given("level"));
    let levels = &call.admin.levels;
    let Some(level) = level else {
        let (all, modules) = levels.now();
        let Some(logger) = logger else {
            let mut text = format!("=== Loggers and Levels ===\nlmcached: {}\n", all.name());
            for (module, level) in modules {
                text.push_str(&format!("{module}: {}\n", level.name()));
            }
            return plain(StatusCode::OK, text);
        };
        let level = modules.get(logger).copied().unwrap_or(all);
        return plain(StatusCode::OK, format!("{}: {}", shown(logger), level.name()));
    };
    // The log of the daemon itself says WARN, and Python's logging knows both short names.
    let long = match level.to_ascii_uppercase().as_str() {
        "WARN" => "WARNING",
        "FATAL" => "CRITICAL",
        _ => level,
    };
    let Some(wanted) = LogLevel::from_name(long) else {
        return plain(StatusCode::BAD_REQUEST, format!("Invalid log level: {}", shown(level)));
    };
    let module = logger.filter(|logger| !ALL.contains(logger));
    if let Err(line) = levels.set(module, wanted) {
        return plain(StatusCode::BAD_REQUEST, line);
    }
    let name = logger.unwrap_or("lmcached");
    tracing::warn!(target: "lmcached::audit", logger = name, level = wanted.name(), "log level set over HTTP");
    plain(StatusCode::OK, format!("Set {name} level to {} (including all handlers)", wanted.name()))
}

/// What a client sent, as it may stand in an answer.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn plain(status: StatusCode, text: String) -> Answer {
    answer(status, "text/plain; charset=utf-8", text)
}
