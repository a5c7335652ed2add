//! `upgrade`.

use serde_json::json;

use crate::cli::Global;
use crate::error::CtlError;
use crate::http::Daemon;
use crate::show;

pub(super) fn run(global: &Global, within: f64, json: bool) -> Result<(), CtlError> {
    if !(0.0..=3600.0).contains(&within) {
        return Err(CtlError::Usage("--within must be 0 to 3600 seconds".into()));
    }
    // The answer comes when the new process serves.
    let daemon = Daemon::of(&Global { timeout: global.timeout.max(within), ..global.clone() })?;
    let answer = daemon.send("POST", "/lmcached/upgrade", &json!({}))?;
    show::document(json, &answer, |answer| {
        format!(
            "process {} serves now; requests waited {}",
            answer["pid"],
            show::seconds(&answer["waited_seconds"])
        )
    })
}
