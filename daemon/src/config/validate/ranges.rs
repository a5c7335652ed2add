//! Range checks, with the sentence for a value outside.

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::endpoint;
use crate::config::error::ConfigError;

/// Longest duration accepted, about 31 years. Beyond lie overflows of `Instant`, and no operator's intention.
const MAX_SECONDS: f64 = 1e9;

/// A whole number in a range.
pub(super) fn int(flag: &str, value: i64, range: RangeInclusive<i64>) -> Result<i64, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::value(
        flag,
        value,
        format!("must be a whole number from {} to {}", range.start(), range.end()),
    ))
}

/// A count from 1 to `max`.
pub(super) fn count(flag: &str, value: i64, max: i64) -> Result<NonZeroUsize, ConfigError> {
    let value = int(flag, value, 1..=max)?;
    let count = usize::try_from(value).ok().and_then(NonZeroUsize::new);
    count.ok_or_else(|| ConfigError::value(flag, value, "must be a count that fits this machine"))
}

/// A number of bytes from 1 on.
pub(super) fn bytes(flag: &str, value: i64) -> Result<NonZeroU64, ConfigError> {
    let bytes = u64::try_from(value).ok().and_then(NonZeroU64::new);
    bytes.ok_or_else(|| ConfigError::value(flag, value, "must be a number of bytes above 0"))
}

/// A TCP port; 0 asks the kernel for one.
pub(super) fn port(flag: &str, value: i64) -> Result<u16, ConfigError> {
    u16::try_from(value).map_err(|_| ConfigError::value(flag, value, "must be a port from 0 to 65535"))
}

/// A host name or address.
pub(super) fn host(flag: &str, value: &str) -> Result<String, ConfigError> {
    endpoint::parse_host(value).map_err(|allowed| ConfigError::value(flag, value, allowed))
}

/// A part of a whole, above 0 and up to 1. NaN is neither.
pub(super) fn fraction(flag: &str, value: f64) -> Result<f64, ConfigError> {
    if value > 0.0 && value <= 1.0 {
        return Ok(value);
    }
    Err(ConfigError::value(flag, value, "must be above 0 and at most 1"))
}

/// A duration of 0 or more seconds.
pub(super) fn seconds(flag: &str, value: f64) -> Result<Duration, ConfigError> {
    if (0.0..=MAX_SECONDS).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(ConfigError::value(flag, value, format!("must be from 0 to {MAX_SECONDS} seconds")))
}

/// A duration above 0 seconds. What rounds to nothing is nothing: a timer would spin on it.
pub(super) fn positive_seconds(flag: &str, value: f64) -> Result<Duration, ConfigError> {
    let duration = seconds(flag, value)?;
    if duration.is_zero() {
        return Err(ConfigError::value(flag, value, "must be above 0 seconds"));
    }
    Ok(duration)
}
