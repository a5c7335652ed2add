//! The harness: starts the real daemon, talks to it as a worker does, and looks at it from outside.
#![deny(unsafe_code)]

pub mod call;
pub mod crash;
pub mod daemon;
pub mod dealer;
pub mod device_suite;
pub mod driven;
pub mod flood;
pub mod fs_tier;
pub mod gpu;
pub mod gpu_suite;
pub mod http;
pub mod kv_cache;
pub mod l2_suite;
pub mod other_user;
pub mod otlp;
pub mod pool;
pub mod scrape;
pub mod servers;
pub mod worker;

/// A value that comes in time; panics with `what` otherwise. The bound is generous: it is there to end a hang, not to
/// measure.
///
/// # Panics
/// After 60 seconds.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    let found = in_time(probe).await;
    found.unwrap_or_else(|| panic!("timed out waiting until {what}"))
}

/// [`eventually`] for callers that have more to say than what they waited for.
pub async fn in_time<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(value) = probe().await {
            return Some(value);
        }
        if std::time::Instant::now() > until {
            return None;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until a process that was told to stop has stopped: none of its threads does anything more.
///
/// # Panics
/// If it goes on.
pub async fn has_stopped(pid: u32) {
    eventually("all threads have stopped", async || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let states = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("stat")));
        let stopped =
            |stat: String| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'));
        // A thread may have ended meanwhile.
        states.flatten().all(stopped).then_some(())
    })
    .await;
}

/// Memory of a process that is its own and nobody else's, in KiB: without the pool and other segments.
///
/// # Panics
/// If there is no such process.
pub fn anonymous_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("number")
}
