//! Mapping, copying, and workers that take their memory away.

use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::super::RegisterReason;
use super::super::copy::{CopyError, ObjectMut, ObjectRef};
use super::super::cpu_shm::MapError;
use super::super::plan::ChunkPlan;
use super::super::sigbus::Guard;
use super::*;

const SHAPE: [u64; 5] = [2, 8, 4, 2, 8];
const BYTES: u64 = 2 * 8 * 4 * 2 * 8 * 2;

fn one(descriptor: DeviceDescriptor, options: &Options<'_>) -> Result<Registration, MapError> {
    match Registration::new(&request(vec![descriptor], hints(Some("NHD"))), options) {
        Ok(registration) => Ok(registration),
        Err(error) => match error.reason {
            RegisterReason::Map(error) => Err(error),
            other => panic!("{other}"),
        },
    }
}

fn layer(offset: u64) -> TensorMetadata {
    metadata("float16", &SHAPE, &dense(&SHAPE), offset)
}

fn store(registration: &Registration, ids: &[Vec<u64>]) -> Result<Vec<u8>, CopyError> {
    let plan = registration.plan(0, ids, 0, 0).expect("plan");
    let mut object = vec![0; plan.object_bytes() as usize];
    // SAFETY: a private buffer of that length.
    let mut slot = unsafe { ObjectMut::new(object.as_mut_ptr(), object.len()) };
    registration.store(&plan, &mut slot).map(|_| object)
}

#[test]
fn tensors_of_one_segment_share_a_mapping() {
    let worker = Worker::filled(3 * BYTES);
    let registration = small(&worker, 3);
    let shm = registration.shm();
    let [segment] = shm.segments() else { panic!("one segment") };
    assert_eq!((segment.name(), segment.bytes()), (&worker.name[..], 3 * BYTES));
    let file = worker.file.metadata().expect("stat");
    assert_eq!(segment.identity().inode, std::os::unix::fs::MetadataExt::ino(&file));
    assert_eq!(segment.identity().size, 3 * BYTES);
    assert!(!segment.poisoned());
}

#[test]
fn what_a_worker_says_of_its_segment_is_checked() {
    let worker = Worker::new(BYTES);
    let allowed = options(16);
    assert!(one(worker.tensor(BYTES, layer(0)), &allowed).is_ok());
    let longer = one(worker.tensor(BYTES + 1, layer(0)), &allowed);
    assert!(matches!(longer, Err(MapError::Size { size: BYTES, .. })), "{longer:?}");
    let outside = one(worker.tensor(BYTES, layer(1)), &allowed);
    assert!(matches!(outside, Err(MapError::View { end, .. }) if end == BYTES + 2), "{outside:?}");
    let empty = one(worker.tensor(0, layer(0)), &allowed);
    assert!(matches!(empty, Err(MapError::Announced { nbytes: 0, .. })), "{empty:?}");
    let mut tight = allowed;
    tight.limits.max_bytes = BYTES - 1;
    assert!(matches!(one(worker.tensor(BYTES, layer(0)), &tight), Err(MapError::Announced { .. })));
    let mut foreign = allowed;
    foreign.limits.owner = Some(u32::MAX - 7);
    assert!(matches!(one(worker.tensor(BYTES, layer(0)), &foreign), Err(MapError::Owner { .. })));
}

#[test]
fn the_limit_holds_for_all_segments_together() {
    let (a, b) = (Worker::new(BYTES), Worker::new(BYTES));
    let tensors = vec![a.tensor(BYTES, layer(0)), b.tensor(BYTES, layer(0))];
    let mut tight = options(16);
    tight.limits.max_bytes = 2 * BYTES - 1;
    let error = Registration::new(&request(tensors, hints(Some("NHD"))), &tight).expect_err("too much");
    assert!(matches!(error.reason, RegisterReason::Map(MapError::Announced { .. })), "{error}");
}

#[test]
fn only_plain_files_under_a_kv_name_are_mapped() {
    let worker = Worker::new(BYTES);
    let alias = format!("{}.alias", worker.name);
    let descriptor = |name: &str| DeviceDescriptor::CpuShm {
        shm_name: name.to_owned(),
        nbytes: BYTES,
        version: 1,
        metadata: layer(0),
    };
    symlink(Worker::path(&worker.name), Worker::path(&alias)).expect("symlink");
    let linked = one(descriptor(&alias), &options(16));
    std::fs::remove_file(Worker::path(&alias)).expect("remove");
    assert!(matches!(linked, Err(MapError::Os { call: "shm_open", .. })), "{linked:?}");

    std::fs::hard_link(Worker::path(&worker.name), Worker::path(&alias)).expect("link");
    let hard = one(descriptor(&alias), &options(16));
    std::fs::remove_file(Worker::path(&alias)).expect("remove");
    assert!(matches!(hard, Err(MapError::Kind(_))), "{hard:?}");

    nix::unistd::mkfifo(Worker::path(&alias).as_str(), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let pipe = one(descriptor(&alias), &options(16));
    std::fs::remove_file(Worker::path(&alias)).expect("remove");
    assert!(matches!(pipe, Err(MapError::Kind(_))), "{pipe:?}");

    let gone = one(descriptor(&alias), &options(16));
    assert!(matches!(gone, Err(MapError::Os { errno: nix::errno::Errno::ENOENT, .. })), "{gone:?}");
    let foreign = one(descriptor("/lmcache_l1_pool_x"), &options(16));
    assert!(matches!(foreign, Err(MapError::Name { .. })), "{foreign:?}");
}

#[test]
fn a_copy_is_bounded_by_both_sides() {
    let worker = Worker::filled(BYTES);
    let registration = small(&worker, 1);
    let ids = vec![vec![0, 1, 2, 3]];
    let plan = registration.plan(0, &ids, 0, 0).expect("plan");
    let mut short = vec![0; plan.object_bytes() as usize - 1];
    // SAFETY: a private buffer of that length.
    let mut slot = unsafe { ObjectMut::new(short.as_mut_ptr(), short.len()) };
    assert!(matches!(registration.store(&plan, &mut slot), Err(CopyError::ObjectSize { .. })));
    // SAFETY: as above.
    let slot = unsafe { ObjectRef::new(short.as_ptr(), short.len()) };
    assert!(matches!(registration.retrieve(&plan, slot), Err(CopyError::ObjectSize { .. })));

    // A plan of another worker, whose tensors are elsewhere.
    let larger = Worker::new(2 * BYTES);
    let other = small(&larger, 2);
    let plan = ChunkPlan::new(&other.geometry, 0, &ids, 0, 0).expect("plan");
    let object = vec![0; plan.object_bytes() as usize];
    // SAFETY: a private buffer of that length.
    let slot = unsafe { ObjectRef::new(object.as_ptr(), object.len()) };
    assert_eq!(registration.retrieve(&plan, slot), Err(CopyError::Unmapped(1)));
}

#[test]
fn a_truncated_segment_fails_the_copy_and_nothing_else() {
    let (worker, bystander) = (Worker::filled(BYTES), Worker::filled(BYTES));
    let (registration, healthy) = (small(&worker, 1), small(&bystander, 1));
    let ids = vec![vec![4, 5, 6, 7]];
    assert_eq!(store(&registration, &ids), store(&healthy, &ids));
    // Another process does it, between map and copy.
    let status = Command::new("truncate").args(["-s", "0", &Worker::path(&worker.name)]).status();
    assert!(status.expect("coreutils").success());
    let truncated = Err(CopyError::Truncated(worker.name.clone()));
    assert_eq!(store(&registration, &ids), truncated);
    // Growing it again brings nothing back.
    worker.file.set_len(BYTES).expect("grow");
    assert_eq!(store(&registration, &ids), truncated);
    assert!(registration.checksums(&[1], 1, false).is_err());
    assert!(store(&healthy, &ids).is_ok());
    // The slot of the dead registration is clean for the next one.
    drop(registration);
    assert!(store(&small(&worker, 1), &ids).is_ok());
}

#[test]
fn threads_survive_a_truncation_under_their_hands() {
    for round in 0..20 {
        let worker = Worker::filled(64 * BYTES);
        let registration = small(&worker, 64);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (registration, name) = (&registration, &worker.name);
                scope.spawn(move || {
                    let ids = vec![(0..4).map(|at| (at + thread) % 8).collect()];
                    let error = loop {
                        if let Err(error) = store(registration, &ids) {
                            break error;
                        }
                    };
                    assert_eq!(error, CopyError::Truncated(name.clone()));
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(round % 4));
            worker.file.set_len(round * 4096).expect("truncate");
        });
    }
}

/// Runs one of the tests below alone in a process of its own, and returns how that ended.
fn alone(test: &str) -> std::process::ExitStatus {
    let exe = std::env::current_exe().expect("the test binary");
    let module = module_path!().split_once("::").expect("inside a crate").1;
    let mut command = Command::new(exe);
    command.args(["--exact", &format!("{module}::{test}"), "--include-ignored", "--test-threads=1"]);
    command.output().expect("runs").status
}

/// Touches a page that its file does not have, in memory that no guard knows.
fn foreign_fault() {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let worker = Worker::new(4096);
    let guarded = Worker::new(BYTES);
    let _registration = small(&guarded, 1);
    let len = std::num::NonZeroUsize::new(4096).expect("positive");
    // SAFETY: a new mapping; dies with the process.
    let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &worker.file, 0) };
    worker.file.set_len(0).expect("truncate");
    for segment in [&worker, &guarded] {
        let _ = std::fs::remove_file(Worker::path(&segment.name));
    }
    // SAFETY: mapped; raises SIGBUS, which ends the process.
    unsafe { start.expect("map").cast::<u8>().as_ptr().read_volatile() };
}

extern "C" fn leave(_: i32) {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(42) }
}

#[test]
#[ignore = "ends its process; run by faults_of_others_keep_their_action"]
fn fault_with_the_default_action() {
    foreign_fault();
}

#[test]
#[ignore = "ends its process; run by faults_of_others_keep_their_action"]
fn fault_with_an_older_handler() {
    // SAFETY: plain values; the handler is async-signal-safe.
    unsafe { libc::signal(libc::SIGBUS, leave as *const () as usize) };
    foreign_fault();
}

#[test]
#[ignore = "ends its process; run by faults_of_others_keep_their_action"]
fn signal_from_another_process() {
    let guarded = Worker::new(BYTES);
    let _registration = small(&guarded, 1);
    let _ = std::fs::remove_file(Worker::path(&guarded.name));
    // SAFETY: plain values.
    unsafe { libc::kill(libc::getpid(), libc::SIGBUS) };
    std::thread::sleep(std::time::Duration::from_secs(5));
}

#[test]
fn faults_of_others_keep_their_action() {
    assert_eq!(alone("fault_with_the_default_action").signal(), Some(libc::SIGBUS));
    assert_eq!(alone("fault_with_an_older_handler").code(), Some(42));
    assert_eq!(alone("signal_from_another_process").signal(), Some(libc::SIGBUS));
}

#[test]
#[ignore = "takes every slot; run by guards_are_bounded_and_reused"]
fn take_all_guards() {
    let mut memory = [0u8; 1];
    let mut guards = Vec::new();
    // SAFETY: an empty region, in which no fault can be.
    while let Ok(guard) = unsafe { Guard::new(memory.as_mut_ptr(), 0) } {
        guards.push(guard);
    }
    assert_eq!(guards.len(), 4096);
    guards.remove(17);
    // SAFETY: as above.
    assert!(unsafe { Guard::new(memory.as_mut_ptr(), 0) }.is_ok());
}

#[test]
fn guards_are_bounded_and_reused() {
    assert!(alone("take_all_guards").success());
}
