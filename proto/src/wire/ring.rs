//! `lmcached_attach_ring`: how a worker of ours gets its lane of the shared ring. LMCache's own clients never ask.

use serde::{Deserialize, Serialize};

use super::frame::check_name;
use super::reader::DecodeError;
use super::structs::from_frame;

/// Which process asks, in words that mean the same to both sides or nothing at all. Over a Unix socket the kernel says it;
/// over TCP this is what tells the daemon whose death to watch for.
///
/// A pid alone would not do: it is reused, and a worker in a container has another number there than the daemon sees. The
/// daemon believes it only if namespace and start time fit what it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id in its own namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// What `/proc/PID/ns/pid` points to.
    pub pid_namespace: String,
    /// `/proc/sys/kernel/random/boot_id`: namespace numbers repeat from machine to machine.
    pub boot_id: String,
}

impl ProcessIdentity {
    /// nil, or a map.
    pub(super) fn decode(frame: &[u8]) -> Result<Option<Box<ProcessIdentity>>, DecodeError> {
        let process: Option<Box<ProcessIdentity>> = from_frame(frame)?;
        if let Some(process) = &process {
            check_name(&process.pid_namespace, "length of pid_namespace")?;
            check_name(&process.boot_id, "length of boot_id")?;
        }
        Ok(process)
    }
}

/// Where the lane is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRingResponse {
    /// Name of the segment in shared memory, without the leading slash; empty: no lane.
    pub ring_name: String,
    /// Bytes of the segment.
    pub ring_bytes: u64,
    /// The worker's lane.
    pub lane: u32,
    /// Lanes of the segment.
    pub lanes: u32,
    /// Slots of a lane.
    pub slots: u32,
    /// The lane is the worker's while it says this.
    pub epoch: u64,
}

#[cfg(test)]
mod tests {
    use super::super::{OpCode, Operation, Request, Response, Secret, encode_request};
    use super::*;

    #[test]
    fn the_operation_goes_by_name_and_comes_back() {
        assert_eq!(Operation::AttachRing.id(), None);
        assert_eq!(
            OpCode::decode(b"\xb4lmcached_attach_ring").expect("a name"),
            OpCode::Known(Operation::AttachRing)
        );
        let process =
            ProcessIdentity { pid: 7, start_time: 8, pid_namespace: "pid:[1]".into(), boot_id: "b".into() };
        for process in [None, Some(Box::new(process))] {
            let request = Request::AttachRing { instance_id: 5, process };
            let frames = encode_request(&request);
            assert_eq!(Request::decode(Operation::AttachRing, &frames).expect("own frames"), request);
        }
        let request = Request::Authenticate { token: Secret("visible to nobody") };
        assert!(!format!("{request:?}").contains("visible"));
        let frames = encode_request(&request);
        assert_eq!(Operation::Authenticate.id(), None);
        assert_eq!(Request::decode(Operation::Authenticate, &frames).expect("own frames"), request);
        let attached = AttachRingResponse { ring_name: "r".into(), epoch: u64::MAX, ..Default::default() };
        let response = Response::RingAttached(attached);
        let frame = response.encode().expect("a frame");
        assert_eq!(Response::decode(Operation::AttachRing, Some(&frame)).expect("own frame"), response);
    }
}
