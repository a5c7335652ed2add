//! `POST /lmcached/upgrade`: another process of the installed program takes over.

use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use warp::http::StatusCode;

use super::answer::{detail, json_answer};
use super::call::{Call, Later, later};

/// The order to upgrade, from the route to the part that runs the daemon.
#[derive(Debug)]
pub struct UpgradeOrder {
    give: mpsc::Sender<UpgradeReply>,
    /// One at a time, and only the part that runs the daemon takes them.
    take: tokio::sync::Mutex<mpsc::Receiver<UpgradeReply>>,
}

impl Default for UpgradeOrder {
    fn default() -> UpgradeOrder {
        let (give, take) = mpsc::channel(1);
        UpgradeOrder { give, take: tokio::sync::Mutex::new(take) }
    }
}

impl UpgradeOrder {
    /// Resolves when the order comes.
    pub async fn given(&self) -> UpgradeReply {
        self.take.lock().await.recv().await.expect("the sender lives in self")
    }
}

/// What came of an upgrade.
#[derive(Clone, Copy, Debug)]
pub struct Upgraded {
    /// The process that serves now.
    pub pid: u32,
    /// How long requests waited.
    pub waited: Duration,
}

/// Where the outcome is told.
#[derive(Debug)]
pub struct UpgradeReply(oneshot::Sender<Result<Upgraded, String>>);

impl UpgradeReply {
    /// Tells it. Nobody may be there any more.
    pub fn say(self, outcome: Result<Upgraded, String>) {
        let _ = self.0.send(outcome);
    }
}

pub(super) fn begin(call: Call) -> Later {
    later(async move {
        let admin = &call.admin;
        if let Some(reason) = admin.not_ready() {
            return Err(detail(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{reason}; upgrade when the daemon is ready"),
            ));
        }
        tracing::warn!(target: "lmcached::audit", "upgrade ordered over HTTP: another process of the installed program takes over");
        let (say, outcome) = oneshot::channel();
        if admin.upgrade_order.give.try_send(UpgradeReply(say)).is_err() {
            return Err(detail(StatusCode::CONFLICT, "an upgrade is under way".into()));
        }
        match outcome.await {
            Ok(Ok(Upgraded { pid, waited })) => Ok(json_answer(
                StatusCode::OK,
                &json!({"status": "upgraded", "pid": pid, "waited_seconds": waited.as_secs_f64()}),
            )),
            Ok(Err(why)) => Err(detail(StatusCode::CONFLICT, why)),
            Err(_) => Err(detail(StatusCode::SERVICE_UNAVAILABLE, "the daemon ends".into())),
        }
    })
}
