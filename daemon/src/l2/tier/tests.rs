use super::super::fault_inject::{Fault, FaultInject};
use super::super::mock::Mock;
use super::*;

fn key(n: u8) -> ObjectKey {
    ObjectKey {
        chunk_hash: [n; 32],
        model_name: "m".into(),
        kv_rank: 1,
        object_group_id: 0,
        cache_salt: String::new(),
    }
}

fn tier() -> (Arc<Tier>, FaultInject, Arc<Mock>) {
    tier_with(64)
}

fn tier_with(transfers: usize) -> (Arc<Tier>, FaultInject, Arc<Mock>) {
    let mock = Arc::new(Mock::default());
    let faults = FaultInject::new(mock.clone());
    let request_timeout = Duration::from_secs(2);
    let breaker = BreakerConfig::read(None, request_timeout).expect("the defaults");
    let limits = Limits { request_timeout, transfers, breaker };
    (Tier::new("mock#1".into(), Arc::new(faults.clone()), limits), faults, mock)
}

async fn load(tier: &Tier, n: u8, len: usize) -> Result<(), LoadError> {
    tier.load(&key(n), TargetBuf::with_len(len)).await.result
}

fn position(tier: &Tier) -> Position {
    tier.breaker().status().position
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_costs_nothing_and_comes_back() {
    let (tier, faults, _) = tier();
    tier.store(&key(1), SourceBuf::copy_of(&[1; 10])).await.expect("stores");
    faults.set(Fault::Fail(Trouble::Unavailable("gone".into())));
    for _ in 0..5 {
        assert!(load(&tier, 1, 10).await.is_err());
    }
    assert_eq!(position(&tier), Position::Open);
    // The store would hang now; an open breaker does not ask it.
    faults.set(Fault::Hang);
    let before = Instant::now();
    assert!(load(&tier, 1, 10).await.expect_err("open").to_string().contains("gone"));
    assert!(tier.lookup(&[key(1)]).await.is_err());
    assert!(tier.store(&key(2), SourceBuf::copy_of(&[1])).await.is_err());
    assert_eq!(before.elapsed(), Duration::ZERO);
    // The first probe after 1 s hangs for its 2 s, the second goes 2 s later and is answered.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(position(&tier), Position::HalfOpen);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(position(&tier), Position::Open);
    faults.set(Fault::None);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(position(&tier), Position::Closed);
    assert_eq!(load(&tier, 1, 10).await, Ok(()));
    let status = tier.status();
    assert_eq!(status["breaker"]["opened"], 1);
    assert_eq!(status["breaker"]["refused"], 3);
    assert_eq!(status["breaker"]["probes"], 2);
    assert_eq!(status["is_healthy"], true);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_runs_into_the_deadline_and_keeps_the_memory() {
    let (tier, faults, _) = tier();
    faults.set(Fault::Hang);
    let before = Instant::now();
    let outcome = tier.load(&key(1), TargetBuf::with_len(16 << 20)).await;
    assert!(matches!(outcome.result, Err(LoadError::Store(Trouble::Timeout(_)))));
    assert!(outcome.target.is_none());
    // Two seconds, and one for 16 MiB at the slowest pace.
    assert_eq!(before.elapsed(), Duration::from_secs(3));
    assert_eq!(tier.status()["timeouts"], 1);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it_although_they_succeed() {
    let (tier, faults, _) = tier();
    faults.set(Fault::Delay(Duration::from_millis(1500)));
    for _ in 0..5 {
        assert!(tier.lookup(&[key(1)]).await.is_ok());
    }
    assert_eq!(position(&tier), Position::Open);
    assert!(tier.breaker().status().last_error.expect("said").contains("slow"));
}

#[tokio::test(start_paused = true)]
async fn misses_and_bad_values_are_no_failures_of_the_store() {
    let (tier, faults, mock) = tier();
    for n in 0..20 {
        assert_eq!(load(&tier, n, 10).await, Err(LoadError::NotFound));
    }
    for n in 0..20 {
        mock.plant(&key(n), &[0; 9]);
        assert_eq!(load(&tier, n, 10).await, Err(LoadError::WrongSize { expected: 10, found: 9 }));
        assert_eq!(load(&tier, n, 10).await, Err(LoadError::NotFound), "the bad value is deleted");
    }
    tier.store(&key(1), SourceBuf::copy_of(&[3; 10])).await.expect("stores");
    mock.damage(&key(1), |bytes| bytes[4] ^= 8);
    assert!(matches!(load(&tier, 1, 10).await, Err(LoadError::Damaged(_))));
    assert_eq!(load(&tier, 1, 10).await, Err(LoadError::NotFound), "the bad value is deleted");
    faults.set(Fault::Full);
    for _ in 0..20 {
        assert!(matches!(tier.store(&key(1), SourceBuf::copy_of(&[1])).await, Err(StoreError::Full(_))));
    }
    assert_eq!(position(&tier), Position::Closed);
    let status = tier.status();
    assert_eq!((&status["wrong_size"], &status["damaged"]), (&json!(20), &json!(1)));
    assert_eq!(status["load_failures"], 0);
    assert_eq!(status["store_failures"], 20);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_may_not_be_written_is_still_read() {
    let (tier, faults, _) = tier();
    tier.store(&key(1), SourceBuf::copy_of(&[1; 10])).await.expect("stores");
    faults.set(Fault::Fail(Trouble::Denied("read-only".into())));
    for _ in 0..20 {
        assert!(tier.store(&key(2), SourceBuf::copy_of(&[1])).await.is_err());
        assert!(tier.delete(&key(2)).await.is_err());
    }
    assert_eq!(position(&tier), Position::Closed);
    for _ in 0..5 {
        assert!(load(&tier, 1, 10).await.is_err());
    }
    assert_eq!(position(&tier), Position::Open, "what may not be read is of no use");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_tier_ends_its_probes() {
    let (tier, faults, _) = tier();
    faults.set(Fault::Fail(Trouble::Unavailable("gone".into())));
    for _ in 0..5 {
        let _ = load(&tier, 1, 10).await;
    }
    let weak = Arc::downgrade(&tier);
    drop(tier);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(weak.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_no_hang() {
    let (tier, faults, _) = tier_with(2);
    tier.store(&key(1), SourceBuf::copy_of(&[1; 10])).await.expect("stores");
    faults.set(Fault::Delay(Duration::from_millis(900)));
    // The last of these is served after 9 s, each within its second.
    let loads = (0..20).map(|_| super::super::adapter::Load { key: key(1), target: TargetBuf::with_len(10) });
    let mut loads = tier.load_many(loads.collect());
    let mut good = 0;
    while let Some((_, outcome)) = futures_util::StreamExt::next(&mut loads).await {
        assert_eq!(outcome.result, Ok(()));
        good += 1;
    }
    assert_eq!((good, position(&tier)), (20, Position::Closed));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_refused_when_the_breaker_opens() {
    let (tier, faults, _) = tier_with(1);
    faults.set(Fault::Hang);
    let loads = (0..8).map(|_| super::super::adapter::Load { key: key(1), target: TargetBuf::with_len(10) });
    let mut loads = tier.load_many(loads.collect());
    let before = Instant::now();
    let mut kept = 0;
    while let Some((_, outcome)) = futures_util::StreamExt::next(&mut loads).await {
        kept += u32::from(outcome.target.is_some());
    }
    // Five run into their deadline one after the other and open it; the other three get their memory back at once.
    assert_eq!(kept, 3);
    assert!(before.elapsed() < Duration::from_secs(11), "{:?}", before.elapsed());
}
