//! The fuzzers' kept inputs, through the bodies of their targets: what was once found stays found, without libFuzzer.
//!
//! With `WRITE_FUZZ_SEEDS` set the seeds are written into the corpus too, for a new target or a new shape of input; then
//! `ipc-tests/fuzz/run.sh merge` keeps those that are of use.

mod seeds;

use std::path::{Path, PathBuf};

type Target = fn(&[u8]);

/// By the names of `ipc-tests/fuzz`.
const TARGETS: &[(&str, Target)] = &[
    ("zmtp", lmcache_proto::fuzzing::zmtp),
    ("requests", lmcache_proto::fuzzing::requests),
    ("keys", lmcache_proto::fuzzing::keys),
    ("descriptors", lmcached::fuzzing::descriptors),
    ("trace_file", lmcached::fuzzing::trace_file),
    ("ring_lanes", lmcache_proto::fuzzing::ring_lanes),
    ("object_table", lmcached::fuzzing::object_table),
    ("l2_values", lmcached::fuzzing::l2_values),
    ("http", lmcached::fuzzing::http),
];

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The kept inputs of a target, in an order that does not change.
fn kept(target: &str) -> Vec<PathBuf> {
    let dir = fuzz_dir().join("corpus").join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Runs one input and says which it was if that fails.
fn run(name: &str, target: Target, input: &str, data: &[u8]) {
    let result = std::panic::catch_unwind(|| target(data));
    assert!(result.is_ok(), "target {name} fails with {input}; the panic above says how");
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(other, _)| *other == name).expect("a target of that name");
    for (number, seed) in seeds::of(name).iter().enumerate() {
        run(name, *target, &format!("seed {number}"), seed);
        if std::env::var_os("WRITE_FUZZ_SEEDS").is_some() {
            let dir = fuzz_dir().join("corpus").join(name);
            std::fs::create_dir_all(&dir).expect("a directory");
            std::fs::write(dir.join(format!("seed-{number}")), seed).expect("written");
        }
    }
    let kept = kept(name);
    assert!(!kept.is_empty(), "the corpus of {name} is gone");
    for path in &kept {
        let data = std::fs::read(path).expect("readable");
        run(name, *target, &path.display().to_string(), &data);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed_and_built() {
            let replayed = [$(stringify!($name)),*];
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(replayed[..], names[..]);
            let manifest = std::fs::read_to_string(fuzz_dir().join("Cargo.toml")).expect("its manifest");
            let script = std::fs::read_to_string(fuzz_dir().join("run.sh")).expect("its script");
            assert!(script.contains(&format!("ALL=({})", names.join(" "))));
            for name in &names {
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
                assert!(fuzz_dir().join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
            }
            assert_eq!(manifest.matches("[[bin]]").count(), names.len());
        }
    };
}

replays! { zmtp requests keys descriptors trace_file ring_lanes object_table l2_values http }
