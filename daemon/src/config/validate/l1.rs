//! Checks of the pool, of eviction, and of how long silence is tolerated.

use std::num::NonZeroU64;

use nix::unistd::Group;

use super::ranges;
use crate::config::Notice;
use crate::config::endpoint::Endpoint;
use crate::config::error::ConfigError;
use crate::config::flags::{EvictionFlags, L1Flags, LivenessFlags};
use crate::config::pool_name::pool_name;
use crate::config::types::{EvictionConfig, L1Config, LivenessConfig};

const GIB: f64 = (1u64 << 30) as f64;

/// Largest pool, 1 PiB: whole bytes up to there are exact in `f64`, and no node has more.
const MAX_POOL_GIB: f64 = (1u64 << 20) as f64;

/// Smallest alignment, a cache line: what the copy loops assume.
const MIN_ALIGN: i64 = 64;

/// Largest alignment: one step of the background reservation, which ends on multiples of it.
const MAX_ALIGN: i64 = 64 << 20;

/// Shortest reap timeout: three of the engine adapter's pings, which come every 10 s.
const MIN_REAP_SECONDS: f64 = 30.0;

pub(super) fn l1(
    flags: &L1Flags,
    endpoints: &[Endpoint],
    notices: &mut Vec<Notice>,
) -> Result<L1Config, ConfigError> {
    let align = flags.l1_align_bytes;
    let align_bytes = Some(align)
        .filter(|align| (MIN_ALIGN..=MAX_ALIGN).contains(align))
        .and_then(|align| NonZeroU64::new(align.unsigned_abs()))
        .filter(|align| align.is_power_of_two())
        .ok_or_else(|| {
            let allowed = format!("must be a power of two from {MIN_ALIGN} to {MAX_ALIGN}");
            ConfigError::value("--l1-align-bytes", align, allowed)
        })?;
    let pool_name = pool_name(flags.shm_name.as_deref(), endpoints)?;
    if flags.shm_name.as_deref() == Some("") {
        notices.push(Notice {
            flag: "--shm-name",
            line: format!(
                "--shm-name \"\" switches nothing off: the pool always is shared memory, {pool_name}"
            ),
        });
    }
    Ok(L1Config {
        size_bytes: flags.l1_size_gb.map(|gib| pool_bytes(gib, align_bytes)).transpose()?,
        align_bytes,
        pool_name,
        use_hugepages: flags.l1_use_hugepages,
        group: flags.shm_group.as_deref().map(group).transpose()?,
        fresh: flags.fresh,
        require_warm: flags.require_warm,
        verify_payload: flags.verify_payload,
        checksums: flags.l1_checksums,
    })
}

/// A group of this machine, by name or number.
fn group(text: &str) -> Result<u32, ConfigError> {
    // The last number stands for "no group" in system calls.
    if let Some(gid) = text.parse().ok().filter(|gid| *gid != u32::MAX) {
        return Ok(gid);
    }
    let found = Group::from_name(text).ok().flatten();
    found.map(|group| group.gid.as_raw()).ok_or_else(|| {
        ConfigError::value(
            "--shm-group",
            text,
            "must be a group of this machine, by name or number (getent group)",
        )
    })
}

/// The flag says GB and means GiB, as in the peer.
fn pool_bytes(gib: f64, align_bytes: NonZeroU64) -> Result<NonZeroU64, ConfigError> {
    const FLAG: &str = "--l1-size-gb";
    if !(gib > 0.0 && gib <= MAX_POOL_GIB) {
        return Err(ConfigError::value(FLAG, gib, format!("must be above 0 and at most {MAX_POOL_GIB} GiB")));
    }
    // In range by the check above; a fraction of a byte is dropped.
    let bytes = (gib * GIB) as u64;
    NonZeroU64::new(bytes).filter(|bytes| *bytes >= align_bytes).ok_or_else(|| {
        ConfigError::value(FLAG, gib, format!("must hold at least --l1-align-bytes, {align_bytes} bytes"))
    })
}

pub(super) fn eviction(flags: &EvictionFlags) -> Result<EvictionConfig, ConfigError> {
    Ok(EvictionConfig {
        policy: flags.eviction_policy,
        trigger_watermark: ranges::fraction(
            "--eviction-trigger-watermark",
            flags.eviction_trigger_watermark,
        )?,
        ratio: ranges::fraction("--eviction-ratio", flags.eviction_ratio)?,
    })
}

pub(super) fn liveness(flags: &LivenessFlags) -> Result<LivenessConfig, ConfigError> {
    let reap = flags.worker_reap_timeout_seconds;
    if reap != 0.0 && reap < MIN_REAP_SECONDS {
        let allowed = "must be 0 (never) or at least 30 seconds, three pings of a worker";
        return Err(ConfigError::value("--worker-reap-timeout-seconds", reap, allowed));
    }
    let reap_timeout = ranges::seconds("--worker-reap-timeout-seconds", reap)?;
    let grace = flags.worker_registration_grace_seconds;
    let registration_grace = ranges::seconds("--worker-registration-grace-seconds", grace)?;
    if registration_grace < reap_timeout {
        let allowed = format!("must be at least --worker-reap-timeout-seconds, {reap}");
        return Err(ConfigError::value("--worker-registration-grace-seconds", grace, allowed));
    }
    let hold = |flag, seconds: i64| ranges::positive_seconds(flag, seconds as f64);
    Ok(LivenessConfig {
        reap_timeout: Some(reap_timeout).filter(|timeout| !timeout.is_zero()),
        registration_grace,
        session_ttl: ranges::positive_seconds("--session-ttl-seconds", flags.session_ttl_seconds)?,
        write_ttl: hold("--l1-write-ttl-seconds", flags.l1_write_ttl_seconds)?,
        lease_grace: ranges::seconds("--lease-grace-seconds", flags.lease_grace_seconds)?,
    })
}
