//! How `ipc-tests/gpu/run.sh` ends: whoever runs it on a GPU must not take for a success what was not run, or failed. Cargo, Python
//! and the GPU are stand-ins here.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = include_str!("../gpu/run.sh");
const PARTS: [&str; 5] = [
    "the device suite, workers by the driver's own calls",
    "two processes that register, store, look up and retrieve, and their checksums, by the driver's own calls",
    "the device suite, workers by torch",
    "two processes that register, store, look up and retrieve, and their checksums, by torch",
    "GB/s; to reach: 92 % of a raw copy each way for 2 MiB chunks, 80 % paged, 90 % both ways",
];
/// What the script looks for, besides the driver, and what stands in for it.
const DEVICES: &str = "/dev/nvidia[0-9]*";
const THERE: &str = "/dev/null";
/// Fails for the worker and the test that `FAIL` says.
const CARGO: &str = r#"worker=driver; [ -z "${LMCACHED_GPU_WORKER:-}" ] || worker=torch
for word; do [ "$worker $word" != "${FAIL:-}" ] || exit 101; done"#;
const PYTHON: &str =
    r#"[ -z "${NO_TORCH:-}" ] || { printf 'Traceback\nModuleNotFoundError: none\n' >&2; exit 1; }"#;

fn program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
}

/// Runs it with these variables; how it ended, and its summary.
fn run(devices: &str, environment: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let (gpu, bin) = (dir.path().join("ipc-tests/gpu"), dir.path().join("bin"));
    for directory in [&gpu, &bin] {
        std::fs::create_dir_all(directory).expect("a directory");
    }
    assert!(SCRIPT.contains(DEVICES), "it looks for devices");
    program(&bin.join("cargo"), CARGO);
    program(&bin.join("python3"), PYTHON);
    program(&bin.join("ldconfig"), "echo 'libcuda.so.1 => /a/libcuda.so.1'");
    program(&bin.join("nvidia-smi"), "exit 9");
    std::fs::write(gpu.join("run.sh"), SCRIPT.replace(DEVICES, devices)).expect("written");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a PATH"));
    let mut command = Command::new("bash");
    command.arg(gpu.join("run.sh")).env("PATH", path).envs(environment.iter().copied());
    for inherited in ["PYTHON", "PROFILE"] {
        command.env_remove(inherited);
    }
    // Somebody's worker is not taken for the driver's own.
    command.env("LMCACHED_GPU_WORKER", "/no/such/worker");
    let output = command.output().expect("bash runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let summary =
        text.split_once("== summary\n").map(|(_, lines)| lines.lines().map(str::to_owned).collect());
    (output.status.code(), summary.unwrap_or_default())
}

fn all_but(which: &[(usize, &str)]) -> Vec<String> {
    let line = |(at, name): (usize, &&str)| {
        let other = which.iter().find(|(part, _)| *part == at);
        format!("{}{name}", other.map_or("passed   ", |(_, word)| word))
    };
    PARTS.iter().enumerate().map(line).collect()
}

#[test]
fn all_that_was_run_and_passed_is_a_success() {
    assert_eq!(run(THERE, &[]), (Some(0), all_but(&[])));
}

#[test]
fn without_a_gpu_nothing_is_run() {
    assert_eq!(run("/dev/no-such-gpu", &[]), (Some(3), Vec::new()));
}

#[test]
fn one_part_that_fails_keeps_none_from_being_run() {
    let tests = [
        "driver device_suite",
        "driver gpu_workers",
        "torch device_suite",
        "torch gpu_workers",
        "driver gpu_speed",
    ];
    for (part, fail) in tests.into_iter().enumerate() {
        assert_eq!(run(THERE, &[("FAIL", fail)]), (Some(1), all_but(&[(part, "FAILED   ")])), "{fail}");
    }
}

#[test]
fn without_torch_it_is_no_success_and_no_failure() {
    let missing = || {
        let mut lines = all_but(&[(2, "NOT RUN  "), (3, "NOT RUN  ")]);
        for line in &mut lines[2..4] {
            line.push_str(": python3: ModuleNotFoundError: none (PYTHON names another)");
        }
        lines
    };
    assert_eq!(run(THERE, &[("NO_TORCH", "1")]), (Some(4), missing()));
    let mut wanted = missing();
    wanted[4] = format!("FAILED   {}", PARTS[4]);
    assert_eq!(run(THERE, &[("NO_TORCH", "1"), ("FAIL", "driver gpu_speed")]), (Some(1), wanted));
}
