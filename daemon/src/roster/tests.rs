use std::fs;

use serde_bytes::ByteBuf;

use super::log::parse;
use super::{Kept, MemoryFile, Mode, PoolFile, Roster};

const POOL: PoolFile = PoolFile { inode: 5, bytes: 1 << 20 };

/// A name that is removed with it.
struct Name(String);

impl Name {
    fn new(tag: &str) -> Name {
        Name(format!("lmcached_roster_test_{}_{tag}", std::process::id()))
    }

    fn path(&self) -> String {
        format!("/dev/shm/{}", self.0)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path());
        let _ = fs::remove_file(format!("{}.new", self.path()));
    }
}

fn kept(instance: u64, bytes: usize) -> Kept {
    Kept {
        instance,
        mode: Mode::LmcacheDriven,
        process: Some((7, 99)),
        memory: vec![MemoryFile { device: 1, inode: instance, size: 4096 }],
        owner: None,
        payload: vec![ByteBuf::from(vec![instance as u8; bytes]), ByteBuf::new()],
    }
}

fn sorted(mut all: Vec<Kept>) -> Vec<Kept> {
    all.sort_by_key(|kept| kept.instance);
    all
}

#[test]
fn what_is_kept_is_there_again_for_the_same_pool_only() {
    let name = Name::new("again");
    let (roster, found) = Roster::open(&name.0, POOL);
    assert!(found.is_empty());
    for instance in 1..=3 {
        roster.keep(&kept(instance, 100));
    }
    roster.keep(&Kept { process: None, ..kept(2, 10) });
    roster.forget(1, Mode::LmcacheDriven);
    roster.forget(3, Mode::EngineDriven);
    drop(roster);
    let (roster, found) = Roster::open(&name.0, POOL);
    assert_eq!(sorted(found), [Kept { process: None, ..kept(2, 10) }, kept(3, 100)]);
    drop(roster);
    assert!(
        Roster::open(&name.0, PoolFile { inode: 6, ..POOL }).1.is_empty(),
        "another pool's workers mapped another pool"
    );
    assert!(Roster::open(&name.0, POOL).1.is_empty(), "and the file is that pool's now");
}

#[test]
fn who_has_mapped_a_pool_that_became_longer_registers_again() {
    let name = Name::new("longer");
    let (roster, _) = Roster::open(&name.0, POOL);
    roster.keep(&Kept { mode: Mode::EngineDriven, ..kept(1, 100) });
    roster.keep(&kept(2, 100));
    drop(roster);
    let longer = PoolFile { bytes: 2 << 20, ..POOL };
    assert_eq!(Roster::open(&name.0, longer).1, [kept(2, 100)], "the daemon copies for this one");
    assert_eq!(Roster::open(&name.0, POOL).1, [kept(2, 100)], "and the first is forgotten for good");
}

#[test]
fn a_daemon_killed_at_any_byte_leaves_the_whole_entries() {
    let name = Name::new("torn");
    let (roster, _) = Roster::open(&name.0, POOL);
    let mut whole = vec![fs::metadata(name.path()).expect("file").len()];
    for instance in 1..=3 {
        roster.keep(&kept(instance, 20));
        whole.push(fs::metadata(name.path()).expect("file").len());
    }
    let bytes = fs::read(name.path()).expect("file");
    for cut in 0..=bytes.len() {
        let entries = whole.iter().filter(|end| **end <= cut as u64).count().saturating_sub(1);
        assert_eq!(parse(&bytes[..cut], POOL).len(), entries, "cut at {cut}");
    }
    // A byte that is not what was written ends the file there, and is never believed.
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        for found in parse(&damaged, POOL) {
            assert_eq!(found, kept(found.instance, 20), "damaged at {at}");
        }
    }
}

#[test]
fn the_file_does_not_grow_with_what_is_gone() {
    let name = Name::new("tidy");
    let (roster, _) = Roster::open(&name.0, POOL);
    roster.keep(&kept(1, 1000));
    for round in 0..1000 {
        roster.keep(&kept(2 + round % 3, 1000));
        roster.forget(2 + (round + 1) % 3, Mode::LmcacheDriven);
    }
    let bytes = fs::metadata(name.path()).expect("file").len();
    assert!(bytes < 100 << 10, "{bytes} bytes");
    drop(roster);
    let (_, found) = Roster::open(&name.0, POOL);
    assert!(found.contains(&kept(1, 1000)));
}

#[test]
fn a_file_of_others_is_neither_believed_nor_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let name = Name::new("foreign");
    drop(Roster::open(&name.0, POOL));
    fs::set_permissions(name.path(), fs::Permissions::from_mode(0o666)).expect("mode");
    let (roster, found) = Roster::open(&name.0, POOL);
    assert!(found.is_empty());
    let before = fs::read(name.path()).expect("file");
    roster.keep(&kept(1, 10));
    assert_eq!(fs::read(name.path()).expect("file"), before);
}
