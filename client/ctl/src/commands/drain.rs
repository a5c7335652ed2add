//! `drain`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::CtlError;
use crate::http::Daemon;
use crate::show;

/// Time between two looks whether the daemon is still there. Its end is no event for us: it is another machine's, maybe.
const LOOK: Duration = Duration::from_millis(200);
/// What the daemon may take on top for what is executing (`--drain-seconds`) and for its last exports.
const END: Duration = Duration::from_secs(60);

pub(super) fn run(daemon: &Daemon, within: f64, no_wait: bool, json: bool) -> Result<(), CtlError> {
    if !(0.0..=3600.0).contains(&within) {
        return Err(CtlError::Usage("--within must be 0 to 3600 seconds".into()));
    }
    let mut answer = daemon.send("POST", "/lmcached/drain", &json!({"timeout_seconds": within}))?;
    if no_wait {
        return show::document(json, &answer, |_| "the daemon drains and then ends".into());
    }
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(within) + END;
    while Instant::now() < until {
        if matches!(daemon.probe("/livez"), Err(CtlError::Unreachable { .. })) {
            answer["status"] = json!("ended");
            answer["took_seconds"] = json!(began.elapsed().as_secs_f64());
            return show::document(json, &answer, |answer| {
                format!("the daemon has ended after {}", show::seconds(&answer["took_seconds"]))
            });
        }
        std::thread::sleep(LOOK);
    }
    Err(CtlError::Refused("the daemon has not ended in time; its log says what it waits for".into()))
}
