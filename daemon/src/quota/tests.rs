use std::fs;

use super::*;

fn quota(salt: &str, limit: u64) -> Quota {
    Quota { salt: salt.into(), limit }
}

#[test]
fn what_was_set_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    // Made when it is needed.
    let dir = dir.path().join("state");
    let quotas = Quotas::open(Some(&dir));
    assert_eq!((quotas.all(), quotas.limit("a")), (vec![], None));
    assert_eq!(quotas.set("a", 5).expect("written"), None);
    assert_eq!(quotas.set("a", 7).expect("written"), Some(5));
    quotas.set("", u64::MAX).expect("written");
    quotas.set("gone", 1).expect("written");
    assert_eq!(quotas.remove("gone").expect("written"), Some(1));
    assert_eq!(quotas.remove("gone").expect("nothing to write"), None);
    let again = Quotas::open(Some(&dir));
    assert_eq!(again.all(), [quota("", u64::MAX), quota("a", 7)]);
    assert_eq!(again.limit("gone"), None);
    let names: Vec<_> =
        fs::read_dir(&dir).expect("listed").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["quotas.json"], "nothing is left of the writing");
}

#[test]
fn a_file_that_cannot_be_believed_is_kept_aside_and_nothing_is_dropped_for_it() {
    let row = r#"{"cache_salt": "a", "limit_bytes": 1}"#;
    for text in [
        "",
        "{\"version\": 1, \"quotas\": [",
        "[]",
        r#"{"version": 2, "quotas": []}"#,
        r#"{"version": 1, "quotas": [{"cache_salt": "a/b", "limit_bytes": 1}]}"#,
        r#"{"version": 1, "quotas": [{"cache_salt": "a", "limit_bytes": -1}]}"#,
        &format!(r#"{{"version": 1, "quotas": [{row}, {row}]}}"#),
        &" ".repeat(3 << 20),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("quotas.json"), text).expect("written");
        let quotas = Quotas::open(Some(dir.path()));
        assert_eq!(quotas.all(), []);
        let kept = fs::read_to_string(dir.path().join("quotas.json.damaged")).expect("kept");
        assert_eq!(kept, text);
        // The others' quotas are lost: a tier must not take them for salts that were never allowed.
        quotas.set("a", 9).expect("written");
        assert_eq!((quotas.tier_limit("a"), quotas.tier_limit("b")), (Some(9), None));
        let next = Quotas::open(Some(dir.path()));
        assert_eq!((next.tier_limit("a"), next.tier_limit("b")), (Some(9), Some(0)));
    }
}

#[test]
fn a_tier_is_only_for_those_with_a_quota_once_there_are_quotas() {
    let quotas = Quotas::default();
    assert_eq!(quotas.tier_limit("a"), None);
    quotas.set("a", 3).expect("set");
    assert_eq!((quotas.tier_limit("a"), quotas.tier_limit("")), (Some(3), Some(0)));
    assert_eq!(quotas.limit(""), None, "elsewhere a salt without a quota has no limit");
    quotas.remove("a").expect("removed");
    assert_eq!(quotas.tier_limit("a"), None);
}

#[test]
fn the_table_is_bounded_and_takes_only_salts_that_can_be() {
    let quotas = Quotas::default();
    for salt in ["a/b", "a@b", "a\\b", "\0", &"x".repeat(129)] {
        assert!(matches!(quotas.set(salt, 1), Err(QuotaError::Salt)), "{salt:?}");
    }
    for n in 0..MAX_QUOTAS {
        quotas.set(&n.to_string(), 1).expect("room");
    }
    assert!(matches!(quotas.set("one more", 1), Err(QuotaError::TooMany)));
    quotas.set("0", 2).expect("it is there already");
    quotas.remove("1").expect("removed");
    quotas.set("one more", 1).expect("room");
}

#[test]
fn a_change_that_cannot_be_written_is_not_in_force() {
    let dir = tempfile::tempdir().expect("a directory");
    let quotas = Quotas::open(Some(dir.path()));
    quotas.set("a", 1).expect("written");
    // A directory in the way of the new file stops everybody, root included.
    fs::create_dir(dir.path().join("quotas.json.new")).expect("made");
    let line = quotas.set("a", 2).expect_err("not written").to_string();
    assert!(line.contains("quotas.json") && line.contains("--state-dir"), "{line}");
    assert!(quotas.remove("a").is_err());
    assert_eq!(quotas.limit("a"), Some(1));
    assert_eq!(Quotas::open(Some(dir.path())).limit("a"), Some(1));
}
