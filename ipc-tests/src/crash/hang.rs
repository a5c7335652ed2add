//! What a daemon does that does not answer: asked before it is killed, because afterwards nobody knows.

use std::fs;
use std::process::{Command, Stdio};

/// The stacks of all threads of a process, by gdb where there is one, and what the kernel says of them.
pub fn threads(pid: u32) -> String {
    let mut said = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, waits) = (read("comm"), read("wchan"));
        let state = read("status").lines().find(|line| line.starts_with("State")).map(str::to_owned);
        said += &format!(
            "{} {} waits in {waits:?}, {}\n",
            task.file_name().to_string_lossy(),
            name.trim(),
            state.unwrap_or_default()
        );
    }
    let pid = pid.to_string();
    // Bounded, and with no terminal to wait for: this is told about a case that has failed already.
    let stacks = Command::new("timeout")
        .args(["60", "gdb", "-p", &pid, "-batch", "-ex", "thread apply all bt 30"])
        .stdin(Stdio::null())
        .output();
    match stacks {
        Ok(stacks) => said += &String::from_utf8_lossy(&stacks.stdout),
        Err(error) => said += &format!("no stacks: gdb: {error}\n"),
    }
    said
}
