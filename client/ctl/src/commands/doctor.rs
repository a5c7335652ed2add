//! `doctor`: what on this machine would keep lmcached from working, and what to do about it.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lmcache_proto::wire::LMCACHE_RELEASE;
use serde_json::{Value, json};

use super::pool;
use crate::cli::Doctor;
use crate::error::CtlError;
use crate::http::Daemon;
use crate::show::{self, bytes, name};

/// How long Python may take to say a version.
const PYTHON: Duration = Duration::from_secs(60);
/// Ports of the daemon's defaults: workers, admin API, Prometheus.
const PORTS: [(u16, &str); 3] = [(5555, "--port"), (8080, "--http-port"), (9090, "--prometheus-port")];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works, and not as well as it could; or nobody knows.
    Note,
    Bad,
}

struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    advice: String,
}

fn check(what: &'static str, verdict: Verdict, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { what, verdict, found: found.into(), advice: advice.into() }
}

pub(super) fn run(daemon: &Daemon, options: &Doctor, json: bool) -> Result<(), CtlError> {
    let health = daemon.probe("/healthcheck").ok();
    let running = health.is_some();
    let pid = daemon_pid();
    let mut checks = vec![reachable(daemon, health.as_ref()), shared_memory(), cgroup(pid)];
    checks.extend(limits(pid));
    checks.push(huge_pages(daemon, running));
    checks.push(gpu());
    checks.extend(ports(running));
    checks.push(skew(daemon, running, &options.python));
    let bad = checks.iter().filter(|check| check.verdict == Verdict::Bad).count();
    let word = |verdict| match verdict {
        Verdict::Good => "ok",
        Verdict::Note => "note",
        Verdict::Bad => "bad",
    };
    let rows: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({"check": check.what, "verdict": word(check.verdict), "found": check.found, "advice": check.advice})
        })
        .collect();
    show::document(json, &json!({"bad": bad, "checks": rows}), |_| {
        let line = |check: &Check| {
            let advice =
                if check.advice.is_empty() { String::new() } else { format!("\n      -> {}", check.advice) };
            format!("{:<5} {:<16} {}{advice}\n", word(check.verdict), check.what, check.found)
        };
        checks.iter().map(line).collect()
    })?;
    if bad == 0 { Ok(()) } else { Err(CtlError::Refused(format!("{bad} checks are bad"))) }
}

fn reachable(daemon: &Daemon, health: Option<&(u16, Value)>) -> Check {
    match health {
        Some((200, _)) => check("daemon", Verdict::Good, format!("ready at {}", daemon.url()), ""),
        Some((_, answer)) => {
            let why = name(&answer["reason"]);
            check("daemon", Verdict::Note, format!("not ready: {why}"), "wait, or see its log")
        }
        None => check(
            "daemon",
            Verdict::Note,
            format!("nobody answers at {}", daemon.url()),
            "start lmcached, or say where it is with --url",
        ),
    }
}

/// A process called lmcached.
fn daemon_pid() -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == "lmcached").then_some(pid)
    })
}

fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(if line.ends_with("kB") { number << 10 } else { number })
}

fn shared_memory() -> Check {
    let Some((size, free)) = pool::room() else {
        return check(
            "/dev/shm",
            Verdict::Bad,
            "not there",
            "mount a tmpfs on /dev/shm; in a pod, an emptyDir with medium: Memory",
        );
    };
    let found = format!("{} of {} free", bytes(&json!(free)), bytes(&json!(size)));
    // Docker's default, which is too small for any model.
    if size <= 64 << 20 {
        let advice =
            "64 MiB is a container's default: raise it with --shm-size, or an emptyDir of medium Memory";
        return check("/dev/shm", Verdict::Bad, found, advice);
    }
    let idle: u64 = pool::pools()
        .iter()
        .filter(|pool| pool["used_by_pid"].is_null())
        .filter_map(|pool| pool["real_bytes"].as_u64())
        .sum();
    if idle > 0 {
        let advice = format!(
            "{} of it belong to pools that no daemon uses; lmcache-ctl pool show, pool rm",
            bytes(&json!(idle))
        );
        return check("/dev/shm", Verdict::Note, found, advice);
    }
    let memory = available_memory().unwrap_or(u64::MAX);
    if free > memory {
        let advice =
            format!("only {} of memory are available: take less with --l1-size-gb", bytes(&json!(memory)));
        return check("/dev/shm", Verdict::Note, found, advice);
    }
    check("/dev/shm", Verdict::Good, found, "")
}

/// The limit of the cgroup that pays for the pool: the daemon's, or ours when there is none.
fn cgroup(pid: Option<u32>) -> Check {
    let of = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let whose = if pid.is_some() { "the daemon's cgroup" } else { "this shell's cgroup" };
    let Some(path) = std::fs::read_to_string(format!("/proc/{of}/cgroup"))
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)))
    else {
        return check(
            "cgroup",
            Verdict::Note,
            "no cgroup v2",
            "the pool's memory is not limited, or not visibly",
        );
    };
    let mut dir = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let mut limit: Option<u64> = None;
    // Each level may limit those below.
    loop {
        let own =
            std::fs::read_to_string(dir.join("memory.max")).ok().and_then(|text| text.trim().parse().ok());
        limit = limit.into_iter().chain(own).min();
        if dir == Path::new("/sys/fs/cgroup") || !dir.pop() {
            break;
        }
    }
    match limit {
        None => check("cgroup", Verdict::Good, format!("{whose} has no memory limit"), ""),
        Some(limit) => {
            let pools: u64 = pool::pools().iter().filter_map(|pool| pool["bytes"].as_u64()).sum();
            let found = format!("{whose} may use {}", bytes(&json!(limit)));
            if pools + pools / 20 > limit {
                let advice = format!(
                    "the pools have {}: raise MemoryMax= (or the pod's limit) above it, or lower --l1-size-gb",
                    bytes(&json!(pools))
                );
                return check("cgroup", Verdict::Bad, found, advice);
            }
            let advice = "the pool counts against it: leave room for the daemon beside --l1-size-gb";
            check("cgroup", Verdict::Note, found, advice)
        }
    }
}

/// Open files and locked memory, of the daemon or of this shell.
fn limits(pid: Option<u32>) -> Vec<Check> {
    let of = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let text = std::fs::read_to_string(format!("/proc/{of}/limits")).unwrap_or_default();
    let hard = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        let value = line.get(key.len()..)?.split_whitespace().nth(1)?.to_owned();
        Some((value.parse::<u64>().unwrap_or(u64::MAX), value))
    };
    let mut checks = Vec::new();
    match hard("Max open files") {
        Some((files, shown)) => {
            let enough = files >= 4096 + 256;
            checks.push(check(
                "open files",
                if enough { Verdict::Good } else { Verdict::Note },
                format!("at most {shown}"),
                if enough { "" } else { "below --max-connections: LimitNOFILE= (systemd), ulimit -n" },
            ));
        }
        None => checks.push(check("open files", Verdict::Note, "unknown", "/proc cannot be read")),
    }
    if let Some((locked, shown)) = hard("Max locked memory") {
        let enough = locked == u64::MAX;
        checks.push(check(
            "locked memory",
            if enough { Verdict::Good } else { Verdict::Note },
            if enough { "unlimited".into() } else { format!("at most {shown} bytes") },
            if enough {
                ""
            } else {
                "pinning the pool for a GPU needs LimitMEMLOCK=infinity; nothing else does"
            },
        ));
    }
    checks
}

fn huge_pages(daemon: &Daemon, running: bool) -> Check {
    let (total, free) = (meminfo("HugePages_Total:").unwrap_or(0), meminfo("HugePages_Free:").unwrap_or(0));
    let wanted = running
        && daemon.get("/config").is_ok_and(|config| {
            config["storage_manager"]["l1_manager_config"]["memory_config"]["use_hugepages"] == true
        });
    let found = format!("{free} of {total} reserved ones are free");
    match (total, wanted) {
        (0, true) => check("huge pages", Verdict::Bad, found, "--l1-use-hugepages needs vm.nr_hugepages"),
        (0, false) => check("huge pages", Verdict::Good, "none reserved, none asked for", ""),
        (_, true) => check("huge pages", Verdict::Good, found, ""),
        (_, false) => {
            check("huge pages", Verdict::Note, found, "reserved and not used; --l1-use-hugepages takes them")
        }
    }
}

fn gpu() -> Check {
    let devices = std::fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
            rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|c| c.is_ascii_digit()))
        })
        .count();
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    match (devices, driver) {
        (0, None) => check("GPU", Verdict::Note, "no NVIDIA driver", "workers with CPU memory are served"),
        (0, Some(_)) => check(
            "GPU",
            Verdict::Bad,
            "a driver, and no /dev/nvidia* here",
            "give the container its devices (nvidia-container-toolkit), and set no PrivateDevices=",
        ),
        (count, driver) => {
            let version = driver.and_then(|text| {
                let line = text.lines().next()?.to_owned();
                line.split_whitespace().find(|word| word.split('.').count() == 3).map(str::to_owned)
            });
            let version = version.unwrap_or_else(|| "of unknown version".into());
            check("GPU", Verdict::Good, format!("{count} devices, driver {version}"), "")
        }
    }
}

fn listens(port: u16) -> bool {
    let addresses: Vec<SocketAddr> =
        ("localhost", port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    addresses.iter().any(|address| TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok())
}

/// Without a daemon, a port of its defaults that somebody has is in its way.
fn ports(running: bool) -> Vec<Check> {
    if running {
        return Vec::new();
    }
    PORTS
        .iter()
        .filter(|(port, _)| listens(*port))
        .map(|(port, flag)| {
            let advice =
                format!("choose another with {flag}, or stop what has it: ss -ltnp 'sport = :{port}'");
            check(
                "ports",
                Verdict::Bad,
                format!("{port} is in use, and not by a daemon that answers"),
                advice,
            )
        })
        .collect()
}

/// The lmcache package of the engine's Python must be of the release that the daemon speaks.
fn skew(daemon: &Daemon, running: bool, python: &str) -> Check {
    let spoken = if running { daemon.get("/lmc_version").ok() } else { None };
    let spoken = spoken.as_ref().and_then(Value::as_str).unwrap_or(LMCACHE_RELEASE).to_owned();
    match installed(python) {
        Err(why) => check(
            "lmcache",
            Verdict::Note,
            format!("{python}: {why}"),
            format!("where the engine runs, install lmcache=={spoken}; --python names its interpreter"),
        ),
        Ok(version) if version.split(['+', '-']).next() == Some(&spoken) => {
            check("lmcache", Verdict::Good, format!("{python} has {version}, the daemon speaks {spoken}"), "")
        }
        Ok(version) => check(
            "lmcache",
            Verdict::Bad,
            format!("{python} has {version}, the daemon speaks {spoken}"),
            format!("{python} -m pip install lmcache=={spoken}"),
        ),
    }
}

fn installed(python: &str) -> Result<String, String> {
    let mut child = Command::new(python)
        .args(["-c", "import importlib.metadata as m; print(m.version('lmcache'))"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let until = Instant::now() + PYTHON;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("it does not end".into());
            }
        }
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !version.is_empty() { Ok(version) } else { Err("has no lmcache".into()) }
}
