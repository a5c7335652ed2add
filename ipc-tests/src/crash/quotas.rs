//! Quotas that are changed while the daemon dies: each is the last one that was acknowledged, or the one under way.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Random;
use crate::daemon::Daemon;
use crate::http;

/// What was set, in GB; none of it limits anybody.
#[derive(Debug, Default)]
pub struct Quotas {
    acknowledged: BTreeMap<String, u64>,
    under_way: Option<(String, u64)>,
}

impl Quotas {
    /// Sets one. A daemon that has died meanwhile leaves it open whether it did.
    pub async fn change(&mut self, daemon: &Daemon, random: &mut Random) {
        if self.under_way.is_some() {
            // The daemon is dead, and has not been found so yet.
            return;
        }
        let (salt, limit) = (format!("quota-{}", random.below(4)), 1 + random.below(1000));
        self.under_way = Some((salt.clone(), limit));
        let body = format!("{{\"limit_gb\": {limit}}}");
        if let Some((200, _)) = http::put(daemon.http_port(), &format!("/quota/{salt}"), &body).await {
            self.acknowledged.insert(salt, limit);
            self.under_way = None;
        }
    }

    /// Compares what is in force.
    ///
    /// # Errors
    /// A quota that is neither.
    pub async fn check(&mut self, daemon: &Daemon) -> Result<(), String> {
        let (_, page) = http::get(daemon.http_port(), "/quota").await.ok_or("no answer to /quota")?;
        let page: Value = serde_json::from_str(&page).map_err(|error| error.to_string())?;
        let in_force: BTreeMap<String, u64> = page["users"]
            .as_object()
            .ok_or("no users")?
            .iter()
            .map(|(salt, row)| (salt.clone(), row["limit_gb"].as_f64().unwrap_or_default() as u64))
            .collect();
        let mut other = self.acknowledged.clone();
        other.extend(self.under_way.take());
        if in_force != self.acknowledged && in_force != other {
            return Err(format!(
                "LOST: quotas {in_force:?} are in force, not {:?} or {other:?}",
                self.acknowledged
            ));
        }
        self.acknowledged = in_force;
        Ok(())
    }
}
