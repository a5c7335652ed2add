//! What time alone causes.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::periodic::{Periodic, TaskId};

/// Everything that time alone causes: TTLs, reaping, the evictor; and whether time goes on at all.
pub(super) async fn maintain(engine: Arc<Engine>, periodic: Arc<Periodic>) {
    tokio::join!(sweep_and_evict(engine.clone(), periodic), stay_awake(engine));
}

/// Notices times in which the daemon stood still. Beside the other work, which may take longer than such a time.
async fn stay_awake(engine: Arc<Engine>) {
    let mut looks = tokio::time::interval(Engine::LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        engine.looks_at_the_clock();
    }
}

async fn sweep_and_evict(engine: Arc<Engine>, periodic: Arc<Periodic>) {
    let config = engine.config();
    // A quarter of the shortest deadline, so that nothing is late by more than a quarter of its time.
    let shortest = [config.reap_timeout, config.session_ttl, config.write_ttl, config.lease_grace]
        .into_iter()
        .filter(|timeout| !timeout.is_zero())
        .min()
        .unwrap_or(Duration::from_secs(60));
    let period = (shortest / 4).clamp(Duration::from_millis(250), Duration::from_secs(15));
    let second = Duration::from_secs(1);
    let (sweep, eviction) =
        (periodic.add("sweep", "high", period), periodic.add("eviction", "critical", second));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seconds = tokio::time::interval(second);
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (task, work): (Option<TaskId>, fn(&Engine)) = tokio::select! {
            _ = ticks.tick() => (Some(sweep), Engine::sweep),
            _ = seconds.tick() => (Some(eviction), Engine::eviction_tick),
            () = engine.evict.notified() => (None, Engine::eviction_tick),
        };
        let (engine, began) = (engine.clone(), std::time::Instant::now());
        let outcome = tokio::task::spawn_blocking(move || work(&engine)).await;
        if let Some(task) = task {
            periodic.ran(task, began, outcome.is_ok());
        }
        if let Err(error) = outcome {
            tracing::error!(%error, "maintenance panicked; this is a bug in lmcached, please report it");
        }
    }
}
