use super::*;

fn subject(index: u32, salt: u32, reused: bool) -> Subject {
    Subject { index, bytes: 10, salt: NameId(salt), quota: false, key_hash: u64::from(index) + 1000, reused }
}

fn drain(policy: &mut Policy, subjects: &[Subject]) -> Vec<u32> {
    let mut order = Vec::new();
    while let Some(index) = policy.victim() {
        policy.evicted(subjects.iter().find(|s| s.index == index).expect("known"));
        order.push(index);
    }
    order
}

#[test]
fn lru_evicts_the_oldest_and_a_touch_saves() {
    let subjects: Vec<Subject> = (0..4).map(|i| subject(i, 0, false)).collect();
    let mut policy = Policy::new(PolicyKind::Lru, 1000);
    subjects.iter().for_each(|s| policy.insert(s));
    policy.remove(&subjects[0]);
    policy.insert(&subjects[0]);
    assert_eq!(drain(&mut policy, &subjects), [1, 2, 3, 0]);
}

#[test]
fn isolated_lru_takes_from_the_largest_salt() {
    let subjects: Vec<Subject> = (0..6).map(|i| subject(i, u32::from(i >= 2) + 1, false)).collect();
    let mut policy = Policy::new(PolicyKind::IsolatedLru, 1000);
    subjects.iter().for_each(|s| policy.insert(s));
    // salt 2 has 4 objects, salt 1 has 2: the first two victims come from salt 2.
    let order = drain(&mut policy, &subjects);
    assert_eq!(order[..2], [2, 3]);
    assert_eq!(order.len(), 6);
}

#[test]
fn arc_keeps_what_was_used_twice() {
    let subjects: Vec<Subject> = (0..4).map(|i| subject(i, 0, i < 2)).collect();
    let mut policy = Policy::new(PolicyKind::Arc, 1000);
    subjects.iter().for_each(|s| policy.insert(s));
    assert_eq!(drain(&mut policy, &subjects), [2, 3, 0, 1]);
    // Back from the ghosts of T1: goes to T2 and T1's target grows.
    policy.insert(&subjects[2]);
    assert!(policy.target > 0);
}

#[test]
fn noop_has_no_victims() {
    let mut policy = Policy::new(PolicyKind::Noop, 1000);
    policy.insert(&subject(0, 0, false));
    assert_eq!(policy.victim(), None);
}

#[test]
fn ghost_memory_is_bounded() {
    let mut policy = Policy::new(PolicyKind::Arc, 100);
    for i in 0..10_000 {
        let s = subject(i, 0, false);
        policy.insert(&s);
        policy.evicted(&s);
    }
    assert!(policy.ghosts[0].bytes() <= 100);
    assert!(policy.ghosts[0].queued() < 200);
}

#[test]
fn the_order_is_global_however_many_salts_there_are() {
    let subjects: Vec<Subject> = (0..30).map(|i| subject(i, i % 7, false)).collect();
    let mut policy = Policy::new(PolicyKind::Lru, 1000);
    subjects.iter().for_each(|s| policy.insert(s));
    for touched in [3, 17, 0] {
        policy.remove(&subjects[touched]);
        policy.insert(&subjects[touched]);
    }
    let mut expected: Vec<u32> = (0..30).filter(|i| ![3, 17, 0].contains(i)).collect();
    expected.extend([3, 17, 0]);
    assert_eq!(drain(&mut policy, &subjects), expected);
    assert_eq!((policy.evictable(), policy.salts.len(), policy.order[0].len()), (0, 0, 0));
}

#[test]
fn a_salt_s_own_victim_is_its_oldest_in_every_policy() {
    for kind in [PolicyKind::Lru, PolicyKind::Arc, PolicyKind::IsolatedLru] {
        let subjects: Vec<Subject> = (0..9).map(|i| subject(i, i % 3, i % 2 == 0)).collect();
        let mut policy = Policy::new(kind, 1000);
        subjects.iter().for_each(|s| policy.insert(s));
        let mut order = Vec::new();
        while let Some(index) = policy.victim_of(NameId(1)) {
            policy.evicted(&subjects[index as usize]);
            order.push(index);
        }
        assert_eq!(order, [1, 4, 7], "{kind:?}");
        assert_eq!(
            (policy.evictable(), policy.evictable_of(NameId(1)), policy.evictable_of(NameId(2))),
            (60, 0, 30)
        );
    }
}

#[test]
fn isolated_lru_spares_salts_with_a_quota() {
    let quota = |s: Subject| Subject { quota: s.salt == NameId(1), ..s };
    // Salt 1 has six objects and a quota, salt 2 has two.
    let subjects: Vec<Subject> = (0..8).map(|i| quota(subject(i, 1 + u32::from(i >= 6), false))).collect();
    let mut policy = Policy::new(PolicyKind::IsolatedLru, 1000);
    subjects.iter().for_each(|s| policy.insert(s));
    assert_eq!(drain(&mut policy, &subjects), [6, 7, 0, 1, 2, 3, 4, 5]);
    subjects.iter().for_each(|s| policy.insert(s));
    policy.set_quota(NameId(1), false);
    policy.set_quota(NameId(2), true);
    policy.set_quota(NameId(3), true);
    assert_eq!(drain(&mut policy, &subjects), [0, 1, 2, 3, 4, 5, 6, 7]);
}
