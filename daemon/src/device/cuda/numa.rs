//! NUMA nodes: on which one a page of the pool lies, and which CPUs are near it. Memory is pinned fastest from there, because
//! pinning writes to the kernel's records of each page, which lie beside it.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the kernel says what nodes there are.
pub(super) const NODES: &str = "/sys/devices/system/node";
/// `MPOL_F_NODE | MPOL_F_ADDR` of get_mempolicy(2): the node of the page at an address.
const NODE_OF_PAGE: libc::c_ulong = 1 | 2;

/// A node with CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    number: u32,
    cpus: Vec<usize>,
}

/// The nodes of this machine that have CPUs, if there are several: otherwise all is near, or the kernel does not say.
pub(super) fn nodes(root: &Path) -> Vec<Node> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut nodes: Vec<Node> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cpus = cpu_list(fs::read_to_string(entry.path().join("cpulist")).ok()?.trim())?;
            (!cpus.is_empty()).then_some(Node { number, cpus })
        })
        .collect();
    if nodes.len() < 2 {
        nodes.clear();
    }
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// CPUs as the kernel lists them: `0-3,8,10-11`. `None`: it is no such list.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend((first..=last).take_while(|cpu| *cpu < CpuSet::MAX_CPU));
    }
    Some(cpus)
}

/// The node on which the page at `address` lies; `None` if the kernel does not say, or a sandbox forbids to ask.
///
/// # Safety
/// The address is in a mapping, and its page is real memory.
pub(super) unsafe fn node_of(address: u64) -> Option<u32> {
    let mut node: libc::c_int = -1;
    let nothing = std::ptr::null_mut::<libc::c_ulong>();
    // SAFETY: a pointer to our own number, no mask, and an address that the caller vouches for; the call reads a policy and changes
    // nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut node,
            nothing,
            0 as libc::c_ulong,
            address,
            NODE_OF_PAGE,
        )
    };
    (answer == 0).then(|| u32::try_from(node).ok())?
}

/// Keeps the calling thread on a node, as far as the process may run there.
pub(super) fn stay_on(node: &Node) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut near = CpuSet::new();
    node.cpus.iter().filter(|cpu| allowed.is_set(**cpu)).for_each(|cpu| near.set(*cpu));
    if near.count() > 0
        && let Err(error) = sched_setaffinity(None, &near)
    {
        tracing::debug!(node = node.number, %error, "cannot keep a thread on a NUMA node");
    }
}

/// Work by the node that it is near to.
#[derive(Debug)]
pub(super) struct Shares(Mutex<Vec<VecDeque<usize>>>);

impl Shares {
    /// Items with the numbers of their nodes; what is near to none is shared out evenly.
    pub(super) fn new(nodes: &[Node], items: impl Iterator<Item = (usize, Option<u32>)>) -> Shares {
        let mut shares = vec![VecDeque::new(); nodes.len().max(1)];
        for (at, (item, number)) in items.enumerate() {
            let near = number.and_then(|number| nodes.iter().position(|node| node.number == number));
            let share = near.unwrap_or(at % shares.len());
            shares[share].push_back(item);
        }
        Shares(Mutex::new(shares))
    }

    /// The next item for a thread on the node at `home`: one that is near, or else the last of the longest share.
    pub(super) fn next(&self, home: usize) -> Option<usize> {
        let mut shares = self.0.lock();
        if let Some(near) = shares.get_mut(home).and_then(VecDeque::pop_front) {
            return Some(near);
        }
        shares.iter_mut().max_by_key(|share| share.len())?.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!(cpu_list("0-3,8,10-11"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(cpu_list("5"), Some(vec![5]));
        assert_eq!(cpu_list(""), Some(Vec::new()));
        for wrong in ["x", "1-", "-1", "1-x"] {
            assert_eq!(cpu_list(wrong), None, "{wrong}");
        }
        assert!(cpu_list("0-99999999999").expect("a list").len() <= CpuSet::MAX_CPU);
    }

    #[test]
    fn nodes_without_cpus_and_other_files_are_none() {
        let root = tempfile::tempdir().expect("directory");
        for (name, cpus) in [("node1", "4-7\n"), ("node0", "0-3\n"), ("node2", "\n"), ("power", "1\n")] {
            fs::create_dir(root.path().join(name)).expect("made");
            fs::write(root.path().join(name).join("cpulist"), cpus).expect("written");
        }
        fs::write(root.path().join("online"), "0-2").expect("written");
        let found = nodes(root.path());
        let expected = [(0, vec![0, 1, 2, 3]), (1, vec![4, 5, 6, 7])];
        assert_eq!(found, expected.map(|(number, cpus)| Node { number, cpus }));
        assert_eq!(nodes(&root.path().join("none")), []);
    }

    #[test]
    fn what_is_near_comes_first_and_nothing_is_left() {
        let nodes = [0, 1].map(|number| Node { number, cpus: vec![number as usize] });
        let near = [Some(1), Some(1), Some(0), None, Some(7), Some(1)];
        let shares = Shares::new(&nodes, near.into_iter().enumerate());
        assert_eq!(shares.next(0), Some(2), "its own");
        assert_eq!(shares.next(0), Some(4), "of no node that is known");
        assert_eq!(shares.next(0), Some(5), "helps the other from behind");
        let rest: Vec<usize> = std::iter::from_fn(|| shares.next(1)).collect();
        assert_eq!(rest, [0, 1, 3]);
        // A machine that says nothing of nodes.
        let shares = Shares::new(&[], [(0, None), (1, Some(3))].into_iter());
        assert_eq!([shares.next(0), shares.next(5), shares.next(0)], [Some(0), Some(1), None]);
    }

    #[test]
    fn this_machine_is_asked() {
        let page = vec![1u8; 4096];
        // SAFETY: our own memory, which has been written.
        let node = unsafe { node_of(page.as_ptr() as u64) };
        // A sandbox may forbid to ask.
        if let Some(number) = node {
            let known = nodes(Path::new(NODES));
            assert!(
                known.is_empty() || known.iter().any(|node| node.number == number),
                "{number} of {known:?}"
            );
        }
    }
}
