//! The process's threads, and the work that comes round by itself.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, answer, json_answer};
use super::call::Call;
use crate::periodic::Task;
use crate::process::Stat;

/// Levels of importance, as the peer has them.
const LEVELS: [&str; 4] = ["critical", "high", "medium", "low"];

/// One thread as the kernel sees it.
struct Thread {
    id: u64,
    name: String,
    state: String,
    /// User and system time in clock ticks.
    ticks: u64,
}

/// A thread from its `/proc/self/task/<id>/stat`.
fn parse(id: u64, stat: &str) -> Option<Thread> {
    let stat = Stat::parse(stat)?;
    let state = match stat.state() {
        "R" => "running",
        "S" => "sleeping",
        "D" => "waiting for a device",
        "T" | "t" => "stopped",
        "Z" | "X" => "dead",
        other => other,
    };
    // User and system time.
    let ticks = stat.number(14)? + stat.number(15)?;
    Some(Thread { id, name: stat.name.to_owned(), state: state.to_owned(), ticks })
}

fn all() -> Vec<Thread> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut threads: Vec<Thread> = tasks
        .flatten()
        .filter_map(|task| {
            let id = task.file_name().to_str()?.parse().ok()?;
            // One that has ended meanwhile is not there any more.
            parse(id, &std::fs::read_to_string(task.path().join("stat")).ok()?)
        })
        .collect();
    threads.sort_by_key(|thread| thread.id);
    threads
}

/// Names, states and times; there are no stacks to show.
pub(super) fn threads(call: &Call) -> Answer {
    let name = call.query.get("name").map(|name| name.to_lowercase());
    let id = match call.query.get("thread_id").filter(|id| !id.is_empty()).map(|id| id.parse::<u64>()) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => {
            let line = json!({"detail": "thread_id must be a number"});
            return json_answer(StatusCode::BAD_REQUEST, &line);
        }
    };
    let wanted = |thread: &Thread| {
        name.as_deref().is_none_or(|name| thread.name.to_lowercase().contains(name))
            && id.is_none_or(|id| thread.id == id)
    };
    let threads: Vec<Thread> = all().into_iter().filter(wanted).collect();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let mut text = String::new();
    for thread in &threads {
        let seconds = thread.ticks as f64 / per_second as f64;
        let _ = writeln!(
            text,
            "Thread: {} id={} state={} cpu_seconds={seconds:.2}",
            thread.name, thread.id, thread.state
        );
    }
    let _ = write!(text, "\n\n=== Thread Summary ===\nTotal threads: {}\n", threads.len());
    answer(StatusCode::OK, "text/plain; charset=utf-8", text)
}

fn status(task: &Task) -> Value {
    let ago = task.last.map(|last| last.elapsed().as_secs_f64());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let done = task.runs - task.failed;
    json!({
        "name": task.name,
        "level": task.level,
        "interval": task.interval.as_secs_f64(),
        "init_wait": 0.0,
        "is_running": true,
        "is_active": task.is_active(),
        "last_run_time": ago.map_or(0.0, |ago| now - ago),
        "last_run_ago": ago,
        "total_runs": task.runs,
        "failed_runs": task.failed,
        "success_rate": if task.runs == 0 { 100.0 } else { done as f64 / task.runs as f64 * 100.0 },
        "last_summary": task.last.map(|_: Instant| json!({
            "timestamp": ago.map_or(0.0, |ago| now - ago),
            "duration_ms": task.took.as_secs_f64() * 1e3,
            "success": task.failed == 0,
            "message": "",
            "extra_info": {},
        })),
    })
}

/// Work that comes round.
pub(super) fn periodic(call: &Call) -> Answer {
    let flag = |name: &str| call.query.get(name).is_some_and(|text| matches!(text.as_str(), "true" | "1"));
    let level = call.query.get("level").map(|level| level.to_lowercase());
    if let Some(level) = &level
        && !LEVELS.contains(&level.as_str())
    {
        let line = format!("Invalid level. Valid values: {}", LEVELS.join(", "));
        return json_answer(StatusCode::BAD_REQUEST, &json!({"error": line}));
    }
    let all = call.admin.periodic.all();
    let active = all.iter().filter(|task| task.is_active()).count();
    let by_level: BTreeMap<&str, Value> = LEVELS
        .into_iter()
        .map(|level| {
            let of = || all.iter().filter(move |task| task.level == level);
            let active = of().filter(|task| task.is_active()).count();
            (level, json!({"total": of().count(), "running": of().count(), "active": active}))
        })
        .collect();
    let shown: Vec<Value> = all
        .iter()
        .filter(|task| level.as_deref().is_none_or(|level| task.level == level))
        .filter(|task| !flag("active_only") || task.is_active())
        .map(status)
        .collect();
    let page = json!({
        "summary": {
            "total_count": all.len(),
            "running_count": all.len(),
            "active_count": active,
            "by_level": by_level,
        },
        "threads": shown,
    });
    json_answer(StatusCode::OK, &page)
}

/// One of them.
pub(super) fn periodic_one(call: &Call) -> Answer {
    let name = call.args.first().map_or("", String::as_str);
    match call.admin.periodic.all().iter().find(|task| task.name == name) {
        Some(task) => json_answer(StatusCode::OK, &status(task)),
        None => json_answer(StatusCode::NOT_FOUND, &json!({"error": format!("Thread not found: {name}")})),
    }
}

/// Whether those that matter come round.
pub(super) fn periodic_health(call: &Call) -> Answer {
    let all = call.admin.periodic.all();
    let stuck: Vec<Value> = all
        .iter()
        .filter(|task| matches!(task.level, "critical" | "high") && task.last.is_some() && !task.is_active())
        .map(|task| {
            json!({
                "name": task.name,
                "level": task.level,
                "last_run_ago": task.last.map(|last| last.elapsed().as_secs_f64()),
                "interval": task.interval.as_secs_f64(),
            })
        })
        .collect();
    let page =
        json!({"healthy": stuck.is_empty(), "unhealthy_count": stuck.len(), "unhealthy_threads": stuck});
    json_answer(StatusCode::OK, &page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_read_whole() {
        let stat = "7 (a) (b) S 1 2 3 4 5 6 7 8 9 10 40 2 0 0";
        let thread = parse(7, stat).expect("parsed");
        assert_eq!((thread.name.as_str(), thread.state.as_str(), thread.ticks), ("a) (b", "sleeping", 42));
        assert!(parse(7, "7 (x").is_none());
        assert!(all().iter().any(|thread| thread.id == u64::from(std::process::id())));
    }
}
