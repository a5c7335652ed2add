//! Flags of what the daemon does with GPUs. The peer has none: it needs one.

use clap::Args;

use crate::config::types::CudaCopies;

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: GPUs")]
pub(crate) struct GpuFlags {
    /// Whether workers with a KV cache in GPU memory are served: auto if the driver is there, or off, which never loads it
    #[arg(long, default_value = "auto", value_name = "WHEN", value_parser = ["auto", "off"])]
    pub(crate) cuda: String,

    /// How blocks are copied. All but auto are for drivers that misbehave, and to compare
    #[arg(long, value_enum, default_value_t = CudaCopies::Auto, value_name = "HOW")]
    pub(crate) cuda_copies: CudaCopies,

    /// How long a transfer waits for its worker's event; after that the worker has to register again
    #[arg(long, default_value_t = 120.0, value_name = "SECONDS")]
    pub(crate) cuda_event_timeout_seconds: f64,
}
