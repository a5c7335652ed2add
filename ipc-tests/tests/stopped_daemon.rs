//! A daemon that stands still for a while, and goes on: stopped by a signal here, as by a frozen container or a machine without memory.

use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::driven::Driven;
use ipc_tests::has_stopped;
use lmcache_proto::wire::Response;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a worker asked for, and gave up because its pings had no answer, is in the socket still when the daemon goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_gave_up_while_the_daemon_stood_still_is_not_copied_afterwards() {
    for waits in [false, true] {
        let daemon = Daemon::start(&[]).await;
        let mut driven = Driven::start(&daemon.endpoint()).await;
        if !waits {
            driven.beats(Duration::from_millis(100)).await;
        }
        // Else: nothing is known of its pings. It is taken that it waits for longer than this standstill takes.
        let process = Pid::from_raw(daemon.pid() as i32);
        kill(process, Signal::SIGSTOP).expect("stopped");
        has_stopped(daemon.pid()).await;
        let first = driven.worker.next();
        let (load, beat) = (driven.spell_load(30), driven.worker.spell(&[Driven::ping()]));
        driven.worker.send(&load).await;
        driven.worker.send(&beat).await;
        driven.kv.wipe();
        // More than an interval after the last answer.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        kill(process, Signal::SIGCONT).expect("goes on");
        // A ping does not wait for a copy.
        let mut answers = [driven.worker.answer().await, driven.worker.answer().await];
        answers.sort_by_key(|answer| answer.number);
        let [loaded, told] = answers;
        assert_eq!([loaded.number, told.number], [first, first + 1]);
        let refused = loaded.says(&Response::Transfer(Vec::new(), false));
        assert_eq!(refused, !waits, "{loaded:?}");
        assert_eq!(driven.is_untouched(), !waits, "its blocks are the engine's unless it waits");
        assert!(told.says(&Response::Flag(waits)), "told unless it waits: {told:?}");
        if waits {
            assert!(driven.load(30).await && driven.pings().await, "nothing has changed for it");
            continue;
        }
        assert!(!driven.load(30).await && !driven.store(1).await, "it is not served before it registers");
        assert!(driven.is_untouched());
        assert!(driven.pings().await, "an edge, on which it registers");
        driven.register().await;
        assert!(driven.load(30).await && !driven.is_untouched(), "served again");
    }
}
