//! What the kernel knows about this process. What cannot be read is 0.

use crate::process::Stat;

/// Numbers from `/proc/self`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// User and system time.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Their limit.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// Since 1970.
    pub start_time_seconds: f64,
}

impl Process {
    /// The numbers of now.
    pub fn read() -> Process {
        let mut process =
            Process { open_fds: count("/proc/self/fd"), max_fds: max_fds(), ..Process::default() };
        process.read_stat();
        process
    }

    fn read_stat(&mut self) {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let Some(stat) = Stat::parse(&text) else { return };
        let field = |number: usize| stat.number(number).unwrap_or(0);
        let ticks = sysconf(nix::unistd::SysconfVar::CLK_TCK).max(1) as f64;
        self.cpu_seconds = (field(14) + field(15)) as f64 / ticks;
        self.threads = field(20);
        self.virtual_bytes = field(23);
        self.resident_bytes = field(24) * sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        self.start_time_seconds = boot_time() + field(22) as f64 / ticks;
    }
}

fn sysconf(variable: nix::unistd::SysconfVar) -> u64 {
    nix::unistd::sysconf(variable).ok().flatten().map_or(0, |value| value as u64)
}

fn count(dir: &str) -> u64 {
    std::fs::read_dir(dir).map_or(0, |entries| entries.count() as u64)
}

fn max_fds() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn boot_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_what_every_process_has() {
        let process = Process::read();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes > process.resident_bytes);
        assert!(process.open_fds >= 3 && process.max_fds >= process.open_fds);
        assert!(process.threads >= 1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(process.start_time_seconds > now - 86_400.0 * 7.0 && process.start_time_seconds < now + 60.0);
    }
}
