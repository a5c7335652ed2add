//! Another user, for tests that run as root.

use std::path::Path;
use std::process::Command;

/// uid and gid of `nobody`.
pub const NOBODY: u32 = 65534;

/// Who tries.
#[derive(Clone, Copy, Debug)]
pub struct User<'a> {
    /// User.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// The other groups.
    pub groups: &'a [u32],
}

impl User<'_> {
    /// `nobody`, alone in its group.
    pub const NOBODY: User<'static> = User { uid: NOBODY, gid: NOBODY, groups: &[] };
}

/// Whether this process may become another user. A test that needs it says so and ends where it may not; the gate runs as
/// root.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: a test that becomes another user is left out");
    }
    root
}

/// Runs the program `other-user` (given as `exe`: only a test knows where it is) and returns its lines.
///
/// # Panics
/// If it fails.
pub fn run(exe: &str, user: User<'_>, endpoint: &str, steps: &[&str]) -> Vec<String> {
    let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
    let groups = if groups.is_empty() { "-".to_owned() } else { groups.join(",") };
    let mut command = Command::new(exe);
    command.args([&user.uid.to_string(), &user.gid.to_string(), &groups, endpoint]).args(steps);
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// Opens a path, and the folder it is in, to everybody.
///
/// # Panics
/// If that is not allowed.
pub fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    chmod(path.parent().expect("a folder"), 0o755);
    chmod(path, 0o666);
}
