//! Workers of ours: their lane of the shared ring, and the process behind them.

use std::sync::Arc;

use lmcache_proto::wire::{ProcessIdentity, Response};

use super::{Client, Engine, Refusal};
use crate::process::ProcessId;
use crate::ring::RingHub;

impl Engine {
    /// Gives a registered worker a lane, and learns which process it is where the transport does not say.
    pub(super) fn attach_ring(
        &self,
        client: &Client,
        instance: u64,
        process: Option<&ProcessIdentity>,
    ) -> Result<Response, (Refusal, String)> {
        if !self.instances.is_known(instance) {
            return Err((Refusal::UnknownInstance, format!("instance {instance}")));
        }
        if let Some(process) = process.and_then(ProcessId::declared)
            && client.set_process(process)
        {
            self.process_of(client);
        }
        let attached = self.ring.attach(instance).map_err(|error| (Refusal::Disabled, error.to_string()))?;
        tracing::info!(
            instance,
            lane = attached.lane,
            pid = client.process().map(|process| process.pid),
            "worker publishes its own timings"
        );
        Ok(Response::RingAttached(attached))
    }

    /// The shared ring.
    pub fn ring(&self) -> &Arc<RingHub> {
        &self.ring
    }
}
