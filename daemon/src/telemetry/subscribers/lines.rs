//! The documented log lines, made from events.

use std::time::Instant;

use tracing::Level;

use super::pending::Pending;
use crate::events::{Event, SessionId, Stamped, Subscriber, TransferEnd, TransferId, Worker};

/// Transfers whose end is awaited.
const ROOM: usize = 16_384;

/// Writes them.
pub(super) struct Lines {
    transfers: Pending<TransferId, Instant>,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines { transfers: Pending::new(ROOM) }
    }
}

impl Lines {
    fn seconds(&mut self, transfer: TransferId, at: Instant) -> Option<f64> {
        let start = self.transfers.end(&transfer)?;
        Some(at.saturating_duration_since(start).as_secs_f64())
    }

    fn stored(
        &mut self,
        session: &SessionId,
        transfer: TransferId,
        worker: &Worker,
        end: &TransferEnd,
        at: Instant,
    ) {
        let seconds = self.seconds(transfer, at);
        if let (Some(seconds), 1..) = (seconds, end.num_tokens) {
            tracing::info!(target: "lmcached::events", %session, engine_id = worker.engine_id, "Stored {} tokens in {seconds:.3} seconds", end.num_tokens);
        }
        tracing::debug!(target: "lmcached::events", "MP store end: session={session} device={} stored_count={} total_bytes={}", worker.device, end.count, end.total_bytes);
    }

    fn retrieved(
        &mut self,
        session: &SessionId,
        transfer: TransferId,
        worker: &Worker,
        end: &TransferEnd,
        at: Instant,
    ) {
        let seconds = self.seconds(transfer, at);
        if let (Some(seconds), 1..) = (seconds, end.num_tokens) {
            tracing::info!(target: "lmcached::events", %session, engine_id = worker.engine_id, "Retrieved {} tokens in {seconds:.3} seconds", end.num_tokens);
        }
        tracing::debug!(target: "lmcached::events", "MP retrieve end: session={session} device={} retrieved_count={} total_bytes={}", worker.device, end.count, end.total_bytes);
    }
}

impl Subscriber for Lines {
    fn name(&self) -> &'static str {
        "Lines"
    }

    fn on_event(&mut self, event: &Stamped) {
        if !tracing::enabled!(target: "lmcached::events", Level::INFO) {
            return;
        }
        match &event.event {
            Event::MpStoreStart { session, transfer, worker } => {
                self.transfers.begin_at(*transfer, event.at);
                tracing::debug!(target: "lmcached::events", "MP store start: session={session} device={}", worker.device);
            }
            Event::MpRetrieveStart { session, transfer, worker } => {
                self.transfers.begin_at(*transfer, event.at);
                tracing::debug!(target: "lmcached::events", "MP retrieve start: session={session} device={}", worker.device);
            }
            Event::MpStoreEnd { session, transfer, worker, end } => {
                self.stored(session, *transfer, worker, end, event.at);
            }
            Event::MpRetrieveEnd { session, transfer, worker, end } => {
                self.retrieved(session, *transfer, worker, end, event.at);
            }
            Event::SmReadPrefetched { succeeded, failed } => {
                let found = succeeded.len();
                let all = found as u64 + failed;
                tracing::info!(target: "lmcached::events", model = &**succeeded.model(), "Prefetch request completed (L1+L2): {found}/{all} prefix hits");
            }
            Event::L1EvictionLoopTick { usage, watermark, triggered: true } => {
                tracing::info!(target: "lmcached::events", "L1 memory usage {usage:.2} above watermark {watermark:.2}; triggering eviction.");
            }
            Event::TimeoutRaised { session, message, kind } => {
                tracing::warn!(target: "lmcached::events", %session, kind, "{message}");
            }
            _ if tracing::enabled!(target: "lmcached::events", Level::DEBUG) => debug(&event.event),
            _ => {}
        }
    }
}

/// What only somebody who looks for a fault wants to read.
fn debug(event: &Event) {
    match event {
        Event::MpLookupPrefetchStart { session } => {
            tracing::debug!(target: "lmcached::events", "MP lookup start: session={session}");
        }
        Event::MpLookupPrefetchEnd { session, end } => {
            tracing::debug!(target: "lmcached::events", "MP lookup end: session={session} found_count={} hit_tokens={} requested_tokens={}", end.found_count, end.hit_tokens, end.requested_tokens);
        }
        Event::MpRequestStart { session, .. } => {
            tracing::debug!(target: "lmcached::events", "MP request start: session={session}");
        }
        Event::MpRequestEnd { session } => {
            tracing::debug!(target: "lmcached::events", "MP request end: session={session}");
        }
        Event::L1ReadReserved { keys } => keys_line("L1 read reserved", keys.len()),
        Event::L1ReadFinished { keys } => keys_line("L1 read finished", keys.len()),
        Event::L1WriteReserved { keys } => keys_line("L1 write reserved", keys.len()),
        Event::L1WriteFinished { keys } => keys_line("L1 write finished", keys.len()),
        Event::L1WriteFinishedAndReadReserved { keys } => {
            keys_line("L1 write finished and read reserved", keys.len())
        }
        Event::L1KeysEvicted { keys, cause } => {
            tracing::debug!(target: "lmcached::events", "L1 keys evicted: keys={} cause={cause:?}", keys.len());
        }
        Event::SmReadPrefetchedFinished { succeeded, failed } => {
            tracing::debug!(target: "lmcached::events", "SM read prefetched finished: succeeded={} failed={failed}", succeeded.len());
        }
        Event::SmWriteReserved { succeeded, failed } => {
            tracing::debug!(target: "lmcached::events", "SM write reserved: succeeded={succeeded} failed={failed}");
        }
        Event::SmWriteFinished { succeeded, failed } => {
            tracing::debug!(target: "lmcached::events", "SM write finished: succeeded={} failed={failed}", succeeded.len());
        }
        Event::L2StoreSubmitted { adapter, task, keys, bytes, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 store submitted: adapter={} task={task} keys={keys} bytes={bytes}", adapter.name);
        }
        Event::L2StoreCompleted { adapter, task, succeeded, failed, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 store completed: adapter={} task={task} succeeded={succeeded} failed={failed}", adapter.name);
        }
        Event::L2PrefetchLookupSubmitted { session, keys, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 prefetch lookup submitted: session={session} keys={keys}");
        }
        Event::L2PrefetchLoadSubmitted { session, keys, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 prefetch load submitted: session={session} keys={keys}");
        }
        Event::L2PrefetchLoadCompleted { session, loaded, failed, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 prefetch load completed: session={session} loaded={loaded} failed={failed}");
        }
        Event::L2KeysEvicted { keys, .. } => keys_line("L2 keys evicted", *keys as usize),
        Event::MpVllmBlockAllocation { instance, records, .. } => {
            tracing::debug!(target: "lmcached::events", "Block allocation: instance={instance} records={}", records.len());
        }
        _ => {}
    }
}

fn keys_line(what: &str, keys: usize) {
    tracing::debug!(target: "lmcached::events", "{what}: keys={keys}");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::events::Keys;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Buffer {
        type Writer = Buffer;

        fn make_writer(&self) -> Buffer {
            self.clone()
        }
    }

    fn events() -> Vec<(f64, Event)> {
        let session: SessionId = "r".into();
        let worker = Arc::new(Worker { engine_id: 7, device: "cpu".into(), model: "m".into() });
        let end = TransferEnd { count: 2, total_bytes: 64, num_tokens: 512, salt: "".into() };
        let failed = TransferEnd { num_tokens: 0, ..end.clone() };
        let keys = Keys::new("m".into(), "".into(), Box::default());
        let (first, second) = (TransferId(1), TransferId(2));
        let w = || worker.clone();
        let s = || session.clone();
        vec![
            (0.0, Event::MpStoreStart { session: s(), transfer: first, worker: w() }),
            (1.5, Event::MpStoreEnd { session: s(), transfer: first, worker: w(), end: end.clone() }),
            (2.0, Event::MpRetrieveStart { session: s(), transfer: second, worker: w() }),
            (2.25, Event::MpRetrieveEnd { session: s(), transfer: second, worker: w(), end }),
            (3.0, Event::MpStoreStart { session: s(), transfer: first, worker: w() }),
            (4.0, Event::MpStoreEnd { session: s(), transfer: first, worker: w(), end: failed }),
            (5.0, Event::SmReadPrefetched { succeeded: keys, failed: 3 }),
            (6.0, Event::L1EvictionLoopTick { usage: 0.91, watermark: 0.8, triggered: true }),
            (7.0, Event::L1EvictionLoopTick { usage: 0.1, watermark: 0.8, triggered: false }),
        ]
    }

    fn run(level: Level, mut subscriber: impl Subscriber) -> Vec<String> {
        let buffer = Buffer::default();
        let lines = tracing_subscriber::fmt()
            .with_writer(buffer.clone())
            .with_max_level(level)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .finish();
        let start = Instant::now();
        tracing::subscriber::with_default(lines, || {
            for (seconds, event) in events() {
                subscriber.on_event(&Stamped { at: start + Duration::from_secs_f64(seconds), event });
            }
        });
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        text.lines().map(|line| line.trim_start().to_owned()).collect()
    }

    #[test]
    fn the_documented_lines_come_at_their_levels() {
        let info = run(Level::INFO, Lines::default());
        assert_eq!(
            info,
            [
                "INFO Stored 512 tokens in 1.500 seconds session=r engine_id=7",
                "INFO Retrieved 512 tokens in 0.250 seconds session=r engine_id=7",
                "INFO Prefetch request completed (L1+L2): 0/3 prefix hits model=\"m\"",
                "INFO L1 memory usage 0.91 above watermark 0.80; triggering eviction.",
            ]
        );
        let debug = run(Level::DEBUG, Lines::default());
        for line in [
            "DEBUG MP store start: session=r device=cpu",
            "DEBUG MP retrieve end: session=r device=cpu retrieved_count=2 total_bytes=64",
        ] {
            assert!(debug.iter().any(|found| found == line), "{line} in {debug:?}");
        }
        assert!(run(Level::WARN, Lines::default()).is_empty());
    }

    #[test]
    fn statistics_come_at_their_interval_and_name_the_device() {
        let lines = run(Level::INFO, super::super::statistics::Statistics::new(Duration::from_secs(6)));
        assert_eq!(
            lines,
            [
                "INFO L0<->L1 stats [cpu] last 6.0s: store ops=2 tokens=512 bytes=128 0.00 GB/s; retrieve ops=1 tokens=512 bytes=64 0.00 GB/s",
                "INFO L1 memory usage: 91.0%",
            ]
        );
    }
}
