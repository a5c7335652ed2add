//! `POST /lmcached/drain`: an orderly end that loses nothing.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use warp::http::StatusCode;

use super::answer::{Answer, detail, json_answer};
use super::call::Call;

/// How long leases and the flush may take if nobody says otherwise.
const DEFAULT: f64 = 60.0;
/// The longest that may be asked for.
const MAX: f64 = 3600.0;

/// The order to drain, from the route to the part that ends the daemon.
#[derive(Debug)]
pub struct DrainOrder(watch::Sender<Option<Duration>>);

impl Default for DrainOrder {
    fn default() -> DrainOrder {
        DrainOrder(watch::Sender::new(None))
    }
}

impl DrainOrder {
    /// Resolves when the order comes, with the time that it may take.
    pub async fn given(&self) -> Duration {
        let mut order = self.0.subscribe();
        let given = order.wait_for(Option::is_some).await.expect("the sender lives in self");
        (*given).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Body {
    timeout_seconds: Option<f64>,
}

pub(super) fn begin(call: &Call) -> Answer {
    let body: Body = match call.json() {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let seconds = body.timeout_seconds.unwrap_or(DEFAULT);
    if !(0.0..=MAX).contains(&seconds) {
        return detail(StatusCode::BAD_REQUEST, format!("timeout_seconds must be 0 to {MAX}"));
    }
    let admin = &call.admin;
    // From this moment: a load balancer that asks right after the answer must see it.
    admin.drain();
    admin.engine.stop_stores();
    let first = admin.drain_order.0.send_if_modified(|order| {
        let first = order.is_none();
        if first {
            *order = Some(Duration::from_secs_f64(seconds));
        }
        first
    });
    tracing::warn!(target: "lmcached::audit", timeout_s = seconds, first, "drain ordered over HTTP: no new stores; then L2 is flushed, leases are waited for, and the daemon ends");
    json_answer(
        StatusCode::ACCEPTED,
        &json!({"status": "draining", "timeout_seconds": seconds, "first": first}),
    )
}
