//! A daemon that stands still for a while, and goes on: stopped by a signal here, as by a frozen container or a machine without
//! memory. What a worker asked for, and gave up because its pings had no answer, is in the socket still, or half done.

use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::driven::Driven;
use ipc_tests::has_stopped;
use lmcache_proto::wire::Response;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Distance of the worker's pings: longer than the daemon may have to wait for a core, which it would take for a standstill.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the daemon stands still: more than an interval after the worker's last answer.
const STANDSTILL: Duration = Duration::from_millis(2500);

async fn goes_on(daemon: &Daemon, after: Duration) {
    tokio::time::sleep(after).await;
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGCONT).expect("goes on");
}

/// What was given up has been refused; the worker is told, and is served again when it has registered.
async fn is_told(driven: &mut Driven) {
    assert!(!driven.pings().await, "told");
    assert!(!driven.load(30).await && !driven.store(1).await, "it is not served before it registers");
    assert!(driven.pings().await, "an edge, on which it registers");
    driven.register().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_gave_up_while_the_daemon_stood_still_is_not_copied_afterwards() {
    stands_still(4, STANDSTILL, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_that_cannot_have_given_up() {
    // It is taken that one waits for longer than this of whose pings nothing is known yet.
    stands_still(1, STANDSTILL, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_pings_goes_on() {
    stands_still(0, Duration::from_secs(9), true).await;
}

async fn stands_still(pings: u32, standstill: Duration, waits: bool) {
    let daemon = Daemon::start(&[]).await;
    let mut driven = Driven::start(&daemon.endpoint()).await;
    driven.beats(pings, INTERVAL).await;
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGSTOP).expect("stopped");
    has_stopped(daemon.pid()).await;
    let number = driven.worker.next();
    let load = driven.spell_load(30);
    driven.worker.send(&load).await;
    driven.kv.wipe();
    goes_on(&daemon, standstill).await;
    let refused = driven.worker.answer_to(number).await.says(&Response::Transfer(Vec::new(), false));
    assert_eq!(
        (refused, driven.is_untouched()),
        (!waits, !waits),
        "its blocks are the engine's unless it waits"
    );
    if waits {
        assert!(driven.pings().await && driven.load(30).await, "nothing has changed for it");
        return;
    }
    is_told(&mut driven).await;
    assert!(driven.is_untouched());
    assert!(driven.load(30).await && !driven.is_untouched(), "served again");
}

/// The daemon is stopped between the two chunks of a copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_the_middle_goes_no_further() {
    for store in [false, true] {
        // The third and fourth are those of the worker's second copy.
        let daemon = Daemon::start_in(&[("LMCACHED_FAILPOINT", "copy.part:4")], &[]).await;
        let mut driven = Driven::start(&daemon.endpoint()).await;
        driven.beats(4, INTERVAL).await;
        let number = driven.worker.next();
        let copy = if store {
            daemon.clear().await;
            driven.spell_store(1)
        } else {
            driven.kv.wipe();
            driven.spell_load(30)
        };
        driven.worker.send(&copy).await;
        has_stopped(daemon.pid()).await;
        // From here on the blocks are another request's.
        driven.kv.wipe();
        goes_on(&daemon, STANDSTILL).await;
        let answer = driven.worker.answer_to(number).await;
        assert!(answer.says(&Response::Transfer(Vec::new(), false)), "refused: {answer:?}");
        assert!(driven.is_untouched(), "no block was written after that");
        is_told(&mut driven).await;
        assert_eq!(driven.load(30).await, !store, "nothing was stored out of what is another request's");
    }
}
