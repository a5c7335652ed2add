//! Who may connect to a Unix socket. The socket file's mode is the first door and the kernel watches it; this is the second,
//! for the day on which the file, or a directory above it, has been opened wider than was meant.
//!
//! Admitted are the daemon's own user, root, the users of `--ipc-allow-uid`, the members of `--shm-group`, and on a socket that
//! the service manager has made those whom its file's mode lets in: there the administrator has said so.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use tokio::net::UnixStream;

use crate::process::ProcessId;

/// Who may connect besides the daemon's own user and root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// These users.
    pub uids: Vec<u32>,
    /// Members of these groups.
    pub groups: Vec<u32>,
    /// Everybody: the file's mode says so.
    pub anybody: bool,
}

/// Who is at the other end of a Unix socket, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    gid: u32,
    pid: i32,
}

impl Credentials {
    /// Of whoever connected. `None`: the kernel does not say.
    pub(super) fn of(stream: &UnixStream) -> Option<Credentials> {
        let peer = getsockopt(stream, PeerCredentials).ok()?;
        Some(Credentials { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
    }

    /// Its process, if it is visible from here.
    pub(super) fn process(&self) -> Option<ProcessId> {
        ProcessId::of(self.pid)
    }

    /// For log lines.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Access {
    /// The same, and those whom the mode of a socket file that is not ours lets in.
    pub(super) fn and_mode_of(&self, path: &Path) -> Access {
        let mut access = self.clone();
        // A file that cannot be looked at adds nobody.
        if let Ok(meta) = fs::symlink_metadata(path) {
            access.uids.push(meta.uid());
            if meta.mode() & 0o020 != 0 {
                access.groups.push(meta.gid());
            }
            access.anybody |= meta.mode() & 0o002 != 0;
        }
        access
    }

    /// Whether a peer is let in.
    pub(super) fn admits(&self, peer: &Credentials) -> bool {
        let user = peer.uid == 0 || peer.uid == geteuid().as_raw() || self.uids.contains(&peer.uid);
        user || self.anybody || (!self.groups.is_empty() && self.is_member(peer))
    }

    fn is_member(&self, peer: &Credentials) -> bool {
        self.groups.contains(&peer.gid) || supplementary(peer).iter().any(|group| self.groups.contains(group))
    }
}

/// The other groups of a peer's process. The kernel's answer about the socket names only the first one.
///
/// The pid may be another process's by now. If that one belongs to the same user, its groups are groups that this user can
/// have; if not, they say nothing.
fn supplementary(peer: &Credentials) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid)).unwrap_or_default();
    let numbers = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    // Real, effective, saved, file system.
    let same_user = numbers("Uid:").get(1) == Some(&peer.uid);
    if same_user { numbers("Groups:") } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A user that this process is not.
    const STRANGER: u32 = 54_321;

    fn peer(uid: u32, gid: u32) -> Credentials {
        // No process has this pid.
        Credentials { uid, gid, pid: i32::MAX }
    }

    #[test]
    fn strangers_are_let_in_by_name_or_group_only() {
        let nobody_else = Access::default();
        assert!(nobody_else.admits(&peer(geteuid().as_raw(), 1)));
        assert!(nobody_else.admits(&peer(0, 1)));
        assert!(!nobody_else.admits(&peer(STRANGER, 0)), "root's group is not root");
        assert!(Access { uids: vec![STRANGER], ..Access::default() }.admits(&peer(STRANGER, 1)));
        let group = Access { groups: vec![77], ..Access::default() };
        assert!(group.admits(&peer(STRANGER, 77)));
        assert!(!group.admits(&peer(STRANGER, 78)));
    }

    #[test]
    fn the_groups_of_a_process_are_its_users() {
        let own = std::process::id() as i32;
        let me = Credentials { uid: geteuid().as_raw(), gid: 1, pid: own };
        let groups = nix::unistd::getgroups().expect("groups");
        assert_eq!(supplementary(&me).len(), groups.len());
        let other = Credentials { uid: STRANGER, ..me };
        assert!(supplementary(&other).is_empty(), "that process is another user's");
    }

    #[test]
    fn a_managers_socket_says_who_may_connect() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let chmod = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).expect("chmod");
        let gid = fs::metadata(file.path()).expect("a file").gid();
        chmod(0o600);
        let access = Access::default().and_mode_of(file.path());
        assert!(access.groups.is_empty() && !access.anybody);
        chmod(0o660);
        let access = Access::default().and_mode_of(file.path());
        assert!(access.admits(&peer(STRANGER, gid)) && !access.admits(&peer(STRANGER, gid + 1)));
        chmod(0o666);
        assert!(Access::default().and_mode_of(file.path()).admits(&peer(STRANGER, gid + 1)));
        let gone = Access::default().and_mode_of(Path::new("/nowhere/at/all"));
        assert!(!gone.admits(&peer(STRANGER, gid)));
    }
}
