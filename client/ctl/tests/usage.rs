//! What needs no daemon: wrong command lines, nobody there, files.

use std::path::Path;
use std::process::Command;

/// Exit code, standard output, standard error.
fn ctl(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmcache-ctl"));
    let output = command.args(args).env_remove("LMCACHED_URL").output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("not killed"), text(output.stdout), text(output.stderr))
}

fn vector() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../daemon/tests/vectors/storage-trace.lct");
    std::fs::read(path).expect("the vector")
}

#[test]
fn each_failure_has_one_line_and_a_code_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        path.display().to_string()
    };
    let cut = file("cut.lct", &vector()[..20]);
    let other = file("other.lct", b"PNG and what not");
    let cases: [(&[&str], i32, &str); 7] = [
        (&["explode"], 2, "explode"),
        (&["--url", "http://127.0.0.1:1", "ping"], 3, "is lmcached running?"),
        (&["trace", "info", "/nowhere/run.lct"], 1, "/nowhere/run.lct"),
        (&["trace", "info", &cut], 5, "cut"),
        (&["trace", "info", &other], 5, "is not a .lct trace"),
        (&["trace", "replay", &other], 5, "is not a .lct trace"),
        (&["trace", "replay", "--speed=warp", &cut], 2, "--speed"),
    ];
    for (args, code, said) in cases {
        let (found, out, err) = ctl(args);
        assert_eq!(found, code, "{args:?}: {out}{err}");
        assert!(err.contains(said) && out.is_empty(), "{args:?}: {out}{err}");
        assert_eq!(err.trim_end().lines().count(), 1, "{args:?}: {err}");
    }
}

#[test]
fn a_recording_is_told_and_replayed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run.lct");
    std::fs::write(&path, vector()).expect("writes");
    let path = path.to_str().expect("UTF-8");
    let (code, out, err) = ctl(&["trace", "info", path]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("records"), "{out}");
    let csv = dir.path().join("times.csv");
    let replay = |more: &[&str]| {
        let args = ["trace", "replay", "--speed=fast", "--l1-size-gb=0.0625", "--json", path];
        let (code, out, err) = ctl(&[&args, more].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<serde_json::Value>(&out).expect("JSON")
    };
    let first = replay(&["--csv", csv.to_str().expect("UTF-8")]);
    let second = replay(&[]);
    assert!(!first["outcomes"].is_null());
    assert_eq!(first["outcomes"], second["outcomes"], "hits and misses are the same");
    assert!(std::fs::read_to_string(&csv).expect("written").lines().count() > 2);
}
