//! The flags this daemon acts on, or will act on, as clap sees them: syntax and defaults, nothing checked.
//!
//! Names and defaults are those of `lmcache server` 0.5.6, so that its unit files and charts work unchanged.
//! Flags that never do anything here are rows of [`super::table`], not fields: a field nobody reads would lie.
//! Whole numbers are `i64` and durations `f64`, so that a value out of range reaches [`super::validate`], which
//! knows what to say about it, and not clap's integer parser, which does not.

mod gpu;
mod l1;
mod l2;
mod limits;
mod observability;
mod server;

pub(crate) use gpu::GpuFlags;
pub(crate) use l1::{EvictionFlags, L1Flags, LivenessFlags};
pub(crate) use l2::L2Flags;
pub(crate) use limits::{LimitFlags, ShutdownFlags};
pub(crate) use observability::{LookupHashLogFlags, ObservabilityFlags, TraceFlags};
pub(crate) use server::{HttpFlags, ServerFlags};

use super::file::FileFlags;

/// The whole command line.
///
/// `args_override_self`: the last of two equal flags wins, and `infer_long_args`: an unambiguous beginning of a
/// flag is enough. Python's argparse does both, and existing start scripts lean on it.
#[derive(Debug, clap::Parser)]
#[command(
    name = "lmcached",
    bin_name = "lmcached",
    version,
    args_override_self = true,
    infer_long_args = true
)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) file: FileFlags,
    #[command(flatten)]
    pub(crate) server: ServerFlags,
    #[command(flatten)]
    pub(crate) http: HttpFlags,
    #[command(flatten)]
    pub(crate) l1: L1Flags,
    #[command(flatten)]
    pub(crate) eviction: EvictionFlags,
    #[command(flatten)]
    pub(crate) liveness: LivenessFlags,
    #[command(flatten)]
    pub(crate) gpu: GpuFlags,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    #[command(flatten)]
    pub(crate) shutdown: ShutdownFlags,
    #[command(flatten)]
    pub(crate) observability: ObservabilityFlags,
    #[command(flatten)]
    pub(crate) lookup_hash_log: LookupHashLogFlags,
    #[command(flatten)]
    pub(crate) trace: TraceFlags,
    #[command(flatten)]
    pub(crate) l2: L2Flags,
}
