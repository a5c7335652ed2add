//! Flags that are refused, not built yet, or accepted with a line.

use super::{assert_errors, error_of, run, run_in};
use crate::config::class::{Class, Takes};
use crate::config::table::TABLE;

const REFUSED: &[&[&str]] = &[
    &["--transport", "grpc"],
    &["--hash-algorithm", "builtin"],
    &["--engine-type", "blend"],
    &["--isolated-ipc"],
    &["--runtime-plugin-locations", "/plugin.py"],
    &["--runtime-plugin-config", r#"{"a":1}"#],
    &["--run-script-api-enabled"],
    &["--enable-segmented-prefix"],
    &["--enable-dedup-content"],
    &["--enable-blend-reorder"],
    &["--enable", "transfer_query"],
    &["--server-module", "{}"],
    &["--p2p-advertise-url", "h:1"],
    &["--p2p-listen-url", "h:1"],
    &["--p2p-lookup-timeout", "5"],
    &["--p2p-load-timeout", "5"],
    &["--p2p-transfer-engine", "other"],
    &["--l1-manager", "{}"],
    &["--l1-devdax-path", "/dev/dax0.0"],
    &["--gds-l1-path", "/nvme"],
    &["--trace-level", "events"],
    &["--coordinator-url", "http://c:9300"],
    &["--coordinator-advertise-ip", "10.0.0.1"],
    &["--coordinator-heartbeat-interval", "9"],
    &["--coordinator-event-reporting"],
    &["--coordinator-event-flush-interval", "9"],
    &["--coordinator-event-transport", "kafka"],
    &["--coordinator-kafka-bootstrap-servers", "k:9092"],
    &["--coordinator-kafka-topic", "t"],
    &["--coordinator-kafka-delivery-timeout", "9"],
    &["--coordinator-blend-timeout", "9"],
    &["--coordinator-blend-match-concurrency", "9"],
    &["--coordinator-l2-event-reporting"],
    &["--coordinator-l2-event-flush-interval", "9"],
];

/// The flags of a class, in the table and in the cases of a test, must be the same.
fn assert_covers(cases: &[&[&str]], class: Class) {
    for row in TABLE.iter().filter(|row| row.class == class) {
        assert!(cases.iter().any(|args| args[0] == row.flag), "no case for {}", row.flag);
    }
}

#[test]
fn each_refused_flag_is_named_in_the_line() {
    assert_covers(REFUSED, Class::Refused);
    for args in REFUSED {
        let line = error_of(run(args), args[0]);
        assert!(line.contains("is refused: ") && line.contains(args[0]), "{line}");
        assert!(line.len() < 240, "{line}");
    }
}

#[test]
fn defaults_spelt_out_are_harmless() {
    for row in TABLE {
        for value in row.harmless {
            let parsed =
                run(&[row.flag, value]).unwrap_or_else(|exit| panic!("{} {value}: {exit}", row.flag));
            let notices = if row.takes == Takes::Field { 0 } else { 1 };
            assert_eq!(parsed.notices.len(), notices, "{} {value}: {:?}", row.flag, parsed.notices);
        }
    }
}

#[test]
fn each_neutral_flag_gives_one_line_and_only_when_given() {
    for row in TABLE.iter().filter(|row| row.class == Class::Neutral) {
        let args: &[&str] = match row.takes {
            Takes::Nothing | Takes::Short(_) | Takes::Opposite(_) | Takes::Words => &[row.flag],
            Takes::OneOf(values) => &[row.flag, values[0]],
            _ => &[row.flag, "7"],
        };
        let parsed = run(args).unwrap_or_else(|exit| panic!("{args:?}: {exit}"));
        assert_eq!(parsed.notices.len(), 1, "{args:?}");
        let notice = &parsed.notices[0];
        assert_eq!(notice.flag, row.flag);
        assert!(notice.line.contains(row.flag) && notice.line.lines().count() == 1, "{notice:?}");
    }
}

#[test]
fn advice_names_the_way_out() {
    assert_errors(&[
        (&["--l1-manager", "{}"], &["--l1-size-gb"]),
        (&["--hash-algorithm", "builtin"], &["blake3", "interpreter"]),
        // A refusal beats other mistakes: fixing those would be wasted work.
        (&["--chunk-size", "0", "--engine-type", "blend"], &["--engine-type"]),
    ]);
}

#[test]
fn a_coordinator_in_the_environment_is_refused_like_the_flag() {
    let variable = [("LMCACHE_COORDINATOR_URL", "http://c:9300")];
    let line = error_of(run_in(&variable, &[]), "variable");
    assert!(line.contains("LMCACHE_COORDINATOR_URL"), "{line}");
    assert!(run_in(&variable, &["--coordinator-url", ""]).is_ok(), "the flag overrides the variable");
    assert!(run_in(&[("LMCACHE_COORDINATOR_URL", "")], &[]).is_ok());
}

#[test]
fn secrets_in_json_are_never_repeated() {
    for json in [
        r#"{"type":"resp","password":"hunter2""#,
        r#"{"type":"hunter2"}"#,
        r#"{"type":"fs","affinity_tag":["hunter2"]}"#,
        r#"["hunter2"]"#,
        r#"{"type":"fs","serde":"hunter2"}"#,
    ] {
        let line = error_of(run(&["--l2-adapter", json]), json);
        assert!(line.contains("--l2-adapter number 1") && !line.contains("hunter2"), "{line}");
    }
    let line = error_of(run(&["--runtime-plugin-config", r#"{"token":"hunter2"}"#]), "plugin");
    assert!(line.contains("--runtime-plugin-config") && !line.contains("hunter2"), "{line}");
    let parsed = run(&["--l2-adapter", r#"{"type":"resp","host":"h","port":6379,"password":"hunter2"}"#])
        .expect("well-formed");
    let debug = format!("{:?}", parsed.config);
    assert!(debug.contains("password") && !debug.contains("hunter2"), "{debug}");
}
