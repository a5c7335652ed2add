//! `events tail`.

use std::time::Duration;

use serde_json::Value;

use crate::cli::Events;
use crate::error::CtlError;
use crate::http::{Daemon, escaped};
use crate::show;

/// Pause before a broken stream is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints events until `count` have come. A stream that the daemon ends (it ends each after ten minutes, and those that do
/// not keep up) is opened again; a daemon that is gone is an error.
pub(super) fn run(daemon: &Daemon, action: Events, json: bool) -> Result<(), CtlError> {
    let Events::Tail { prefix, count } = action;
    let path = format!("/lmcached/events?prefix={}", escaped(&prefix));
    let mut left = count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    loop {
        let ended = daemon.stream(&path, |data| {
            show::print(&if json { data.to_owned() } else { line(data) });
            left -= 1;
            Ok(left > 0)
        })?;
        if !ended {
            return Ok(());
        }
        eprintln!("lmcache-ctl: the daemon has ended the stream; events may be missing here");
        std::thread::sleep(PAUSE);
    }
}

/// `time name field=value …`
fn line(data: &str) -> String {
    let Ok(event) = serde_json::from_str::<Value>(data) else { return data.to_owned() };
    let seconds = event["time"].as_f64().unwrap_or(0.0);
    let of_day = seconds.rem_euclid(86_400.0);
    let (hours, minutes, rest) = (of_day as u64 / 3600, of_day as u64 / 60 % 60, of_day % 60.0);
    let mut line = format!("{hours:02}:{minutes:02}:{rest:06.3}Z {}", show::name(&event["event"]));
    for (field, value) in event["fields"].as_object().into_iter().flatten() {
        line.push_str(&format!(" {field}={}", show::name(value)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let data = r#"{"event":"l2_keys_stored","time":3661.5,"fields":{"keys":3,"model":"a\nb"}}"#;
        assert_eq!(line(data), "01:01:01.500Z l2_keys_stored keys=3 model=a?b");
        assert_eq!(line("no json"), "no json");
    }
}
