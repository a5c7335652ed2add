use super::super::adapter::Listed;
use super::super::fault_inject::{Fault, FaultInject};
use super::super::mock::Mock;
use super::*;

fn key(n: u32, salt: &str) -> ObjectKey {
    let mut chunk_hash = [0; 32];
    chunk_hash[..4].copy_from_slice(&n.to_be_bytes());
    ObjectKey { chunk_hash, model_name: "m".into(), kv_rank: 1, object_group_id: 0, cache_salt: salt.into() }
}

fn bounds(capacity: u64, policy: Option<EvictionPolicy>) -> Bounds {
    let eviction = policy.map(|policy| EvictionConfig { policy, trigger_watermark: 0.8, ratio: 0.2 });
    Bounds { capacity: Some(capacity), eviction }
}

async fn put(ledger: &Ledger, n: u32) -> Result<Stored, StoreError> {
    ledger.store(&key(n, ""), SourceBuf::copy_of(&[n as u8; 100])).await
}

async fn get(ledger: &Ledger, n: u32) -> bool {
    ledger.load(&key(n, ""), TargetBuf::with_len(100)).await.result.is_ok()
}

/// Lets background tasks run to their end: with the clock paused, the sleep returns when nothing else can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_leave_when_it_fills() {
    let ledger = Ledger::open(
        "t".into(),
        Arc::new(Mock::default()),
        bounds(1000, Some(EvictionPolicy::Lru)),
        Arc::default(),
    );
    settle().await;
    for n in 0..7 {
        put(&ledger, n).await.expect("fits");
    }
    assert!(get(&ledger, 0).await);
    // The eighth reaches the mark of 800: a fifth of that goes, the two least recently used.
    put(&ledger, 7).await.expect("fits");
    settle().await;
    let there: Vec<bool> = {
        let mut there = Vec::new();
        for n in 0..8 {
            there.push(get(&ledger, n).await);
        }
        there
    };
    assert_eq!(there, [true, false, false, true, true, true, true, true]);
    assert_eq!(ledger.usage(), Usage { bytes: 600, objects: 6, capacity: Some(1000), counted: true });
}

#[tokio::test(start_paused = true)]
async fn the_limit_holds_without_eviction() {
    for policy in [None, Some(EvictionPolicy::Noop)] {
        let ledger = Ledger::open("t".into(), Arc::new(Mock::default()), bounds(350, policy), Arc::default());
        settle().await;
        for n in 0..3 {
            put(&ledger, n).await.expect("fits");
        }
        assert!(matches!(put(&ledger, 3).await, Err(StoreError::Full(_))));
        ledger.delete(&key(0, "")).await.expect("deletes");
        put(&ledger, 3).await.expect("fits again");
        put(&ledger, 3).await.expect_err("an overwrite needs room for both while it is written");
        assert_eq!(ledger.usage().bytes, 300);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_store_gives_its_room_back() {
    let faults = FaultInject::new(Arc::new(Mock::default()));
    let ledger = Ledger::open("t".into(), Arc::new(faults.clone()), bounds(150, None), Arc::default());
    settle().await;
    faults.set(Fault::Hang);
    assert!(tokio::time::timeout(Duration::from_secs(1), put(&ledger, 1)).await.is_err());
    faults.set(Fault::None);
    put(&ledger, 2).await.expect("fits");
}

#[tokio::test(start_paused = true)]
async fn what_was_there_is_counted_behind_what_is_used() {
    let mock = Arc::new(Mock::default());
    for n in 0..50 {
        mock.plant(&key(n, if n < 10 { "a" } else { "" }), &[0; 10]);
    }
    let faults = FaultInject::new(mock);
    faults.set(Fault::Fail(Trouble::Unavailable("not up yet".into())));
    let ledger = Ledger::open(
        "t".into(),
        Arc::new(faults.clone()),
        bounds(100_000, Some(EvictionPolicy::Lru)),
        Arc::default(),
    );
    settle().await;
    assert!(!ledger.usage().counted);
    faults.set(Fault::None);
    // Before the count: 49 goes, 100 comes.
    ledger.delete(&key(49, "")).await.expect("deletes");
    put(&ledger, 100).await.expect("fits");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ledger.usage(), Usage { bytes: 590, objects: 50, capacity: Some(100_000), counted: true });
    assert_eq!((ledger.bytes_of_salt(""), ledger.bytes_of_salt("a")), (490, 100));
    assert_ne!(ledger.book.lock().order_of("").last(), Some(&key(100, "")));
}

#[test]
fn the_newest_of_the_old_leave_last() {
    let mut book = Book::new(false);
    book.count_is_done();
    book.stored(&key(9, ""), 1);
    for n in [3, 2, 1] {
        book.counted(&key(n, ""), 1);
    }
    assert_eq!(book.order_of(""), [key(9, ""), key(3, ""), key(2, ""), key(1, "")]);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_still_shows_what_was_deleted_does_not_bring_it_back() {
    /// Lists one object, whatever happens.
    #[derive(Debug)]
    struct Stale(Mock);
    impl L2Adapter for Stale {
        fn kind(&self) -> &'static str {
            "stale"
        }
        fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
            self.0.lookup(keys)
        }
        fn load<'a>(&'a self, key: &'a ObjectKey, target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
            self.0.load(key, target)
        }
        fn store<'a>(
            &'a self,
            key: &'a ObjectKey,
            source: SourceBuf,
        ) -> BoxFuture<'a, Result<Stored, StoreError>> {
            self.0.store(key, source)
        }
        fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
            self.0.delete(key)
        }
        fn list<'a>(&'a self, _: Option<&'a str>, _: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let objects = vec![Listed { key: key(1, ""), bytes: 100, modified: None }];
                Ok(ListPage { objects, next: None })
            })
        }
        fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
            self.0.ping()
        }
    }
    let ledger =
        Ledger::open("t".into(), Arc::new(Stale(Mock::default())), bounds(1000, None), Arc::default());
    settle().await;
    ledger.delete(&key(1, "")).await.expect("answers");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ledger.usage(), Usage { bytes: 0, objects: 0, capacity: Some(1000), counted: true });
}

fn isolated(capacity: Option<u64>) -> Bounds {
    let policy = EvictionPolicy::IsolatedLru;
    Bounds { capacity, eviction: Some(EvictionConfig { policy, trigger_watermark: 0.8, ratio: 0.2 }) }
}

async fn put_salted(ledger: &Ledger, salt: &str, numbers: std::ops::Range<u32>) {
    for n in numbers {
        ledger.store(&key(n, salt), SourceBuf::copy_of(&[0; 100])).await.expect("fits");
    }
    settle().await;
}

/// Which of the first objects of a salt are there.
async fn there(ledger: &Ledger, salt: &str, count: u32) -> Vec<u32> {
    let mut there = Vec::new();
    for n in 0..count {
        if ledger.load(&key(n, salt), TargetBuf::with_len(100)).await.result.is_ok() {
            there.push(n);
        }
    }
    there
}

#[tokio::test(start_paused = true)]
async fn a_salt_above_its_mark_gives_up_its_own_oldest() {
    let quotas = Arc::new(Quotas::default());
    quotas.set("a", 1000).expect("set");
    quotas.set("b", 10_000).expect("set");
    let ledger = Ledger::open("t".into(), Arc::new(Mock::default()), isolated(None), quotas.clone());
    settle().await;
    put_salted(&ledger, "b", 0..10).await;
    put_salted(&ledger, "a", 0..7).await;
    assert!(ledger.load(&key(0, "a"), TargetBuf::with_len(100)).await.result.is_ok());
    // The eighth reaches 0.8 of 1000: a fifth goes.
    put_salted(&ledger, "a", 7..8).await;
    assert_eq!(there(&ledger, "a", 8).await, [0, 3, 4, 5, 6, 7]);
    assert_eq!((ledger.bytes_of_salt("a"), ledger.bytes_of_salt("b")), (600, 1000));
    // A smaller quota is kept at once: below 0.8 of 300.
    quotas.set("a", 300).expect("set");
    ledger.quotas_changed();
    settle().await;
    assert_eq!(there(&ledger, "a", 8).await, [6, 7]);
    assert_eq!(there(&ledger, "b", 10).await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn salts_without_a_quota_are_dropped_from_the_first_quota_on() {
    let quotas = Arc::new(Quotas::default());
    let ledger = Ledger::open("t".into(), Arc::new(Mock::default()), isolated(None), quotas.clone());
    settle().await;
    put_salted(&ledger, "", 0..5).await;
    put_salted(&ledger, "a", 0..5).await;
    assert_eq!(ledger.usage().objects, 10, "no quotas: nobody is limited");
    quotas.set("a", 10_000).expect("set");
    ledger.quotas_changed();
    settle().await;
    assert_eq!((ledger.bytes_of_salt(""), ledger.bytes_of_salt("a")), (0, 500));
    put_salted(&ledger, "new", 0..3).await;
    assert_eq!(ledger.bytes_of_salt("new"), 0);
    quotas.set("a", 0).expect("set");
    ledger.quotas_changed();
    settle().await;
    assert_eq!(ledger.usage().bytes, 0, "a quota of 0 keeps nothing");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_takes_from_those_without_limit_first_and_from_the_largest() {
    let quotas = Arc::new(Quotas::default());
    let ledger = Ledger::open("t".into(), Arc::new(Mock::default()), isolated(Some(2000)), quotas.clone());
    settle().await;
    put_salted(&ledger, "small", 0..4).await;
    put_salted(&ledger, "large", 0..12).await;
    // 0.8 of 2000 are reached: a fifth goes, all of it from the largest.
    assert_eq!((ledger.bytes_of_salt("small"), ledger.bytes_of_salt("large")), (400, 800));
    let book = &ledger.book;
    let marks = Marks { capacity: Some(0), watermark: 1.0, ratio: 1.0 };
    let some = |salt: &str| (salt == "large").then_some(100_000);
    let victims = book.lock().victims(&marks, 6, some).keys;
    let salts: Vec<&str> = victims.iter().map(|key| key.cache_salt.as_str()).collect();
    assert_eq!(salts, ["small", "small", "small", "small", "large", "large"]);
}

#[tokio::test(start_paused = true)]
async fn a_round_has_a_bound_and_the_next_goes_on() {
    let quotas = Arc::new(Quotas::default());
    let ledger = Ledger::open("t".into(), Arc::new(Mock::default()), isolated(None), quotas.clone());
    settle().await;
    for n in 0..ROUND as u32 + 50 {
        ledger.store(&key(n, "x"), SourceBuf::copy_of(&[0; 1])).await.expect("fits");
    }
    let marks = isolated(None).marks().expect("evicts");
    assert_eq!(ledger.book.lock().victims(&marks, ROUND, |_| Some(0)).keys.len(), ROUND);
    quotas.set("a", 1).expect("set");
    ledger.quotas_changed();
    settle().await;
    assert_eq!(ledger.usage().objects, 0);
}
