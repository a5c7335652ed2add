//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::error::CODES;

/// Looks at a running lmcached and tells it what to do.
#[derive(Debug, Parser)]
#[command(name = "lmcache-ctl", version, after_help = CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every subcommand takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The daemon's admin API
    #[arg(long, global = true, env = "LMCACHED_URL", default_value = "http://localhost:8080")]
    pub(crate) url: String,

    /// File with the token that the daemon asks for (its --http-token-file)
    #[arg(long, global = true, env = "LMCACHED_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How long the daemon may take to answer
    #[arg(long, global = true, default_value_t = 30.0, value_name = "SECONDS")]
    pub(crate) timeout: f64,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Whether the daemon should get traffic, and how long its answer takes
    Ping,
    /// The daemon in a few lines
    Status,
    /// What the daemon was told
    Config,
    /// A live view; q ends it
    Top(Top),
    /// What waits where, and what was lost
    Queue,
    /// The registered workers
    Workers,
    /// The requests that the daemon remembers, the longest idle first
    Sessions {
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Who holds objects, and how long
    Locks,
    /// The objects of a tier
    #[command(subcommand)]
    Objects(Objects),
    /// Bytes that each cache salt may use
    #[command(subcommand)]
    Quota(Quota),
    /// The L2 adapters
    #[command(subcommand)]
    Adapters(Adapters),
    /// Pools in this machine's /dev/shm, with or without a daemon
    #[command(subcommand)]
    Pool(Pool),
    /// Drop the objects of L1
    Clear {
        /// Also those that requests hold
        #[arg(long)]
        force: bool,
    },
    /// End the daemon without losing anything: no new stores, flush to L2, wait for leases, exit
    Drain {
        /// How long the flush and the leases may take
        #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
        within: f64,
        /// Return at once instead of waiting for the end
        #[arg(long)]
        no_wait: bool,
    },
    /// Let a new process of the installed program take over: sockets, connections, pool; clients notice nothing
    Upgrade {
        /// How long to wait for the new process
        #[arg(long, default_value_t = 300.0, value_name = "SECONDS")]
        within: f64,
    },
    /// The daemon's events
    #[command(subcommand)]
    Events(Events),
    /// Look at this machine: what would keep lmcached from working, and what to do
    Doctor(Doctor),
    /// Put load on the daemon and show how long its answers take
    Bench(Bench),
    /// Recordings of the storage layer; needs no daemon
    #[command(subcommand)]
    Trace(Trace),
    /// Print completions for a shell
    Completions {
        /// Which
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// `trace`.
#[derive(Debug, Subcommand)]
pub(crate) enum Trace {
    /// What a recording holds, and whether it is whole
    Info {
        /// The .lct file
        file: PathBuf,
    },
    /// Drive this release's storage code with a recording
    Replay(Replay),
}

/// `trace replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The .lct file
    pub(crate) file: PathBuf,
    /// recorded, fast, or a factor: 10 is ten times as fast as recorded
    #[arg(long, default_value = "recorded", value_name = "SPEED")]
    pub(crate) speed: String,
    /// Size of the pool, which is real memory; without it that of the recording daemon
    #[arg(long, value_name = "GIB")]
    pub(crate) l1_size_gb: Option<f64>,
    /// What leaves a full pool, as for the daemon
    #[arg(long, value_name = "POLICY")]
    pub(crate) eviction_policy: Option<String>,
    /// A tier, as for the daemon; empty at the start, if two replays are to be the same. Repeat for more
    #[arg(long, value_name = "JSON")]
    pub(crate) l2_adapter: Vec<String>,
    /// Write the times of each operation there
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write the whole report there
    #[arg(long, value_name = "FILE")]
    pub(crate) json_file: Option<PathBuf>,
}

/// `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Time between two looks
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub(crate) interval: f64,
    /// Look this often and end; without it, until q is pressed
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

/// `objects`.
#[derive(Debug, Subcommand)]
pub(crate) enum Objects {
    /// List them
    List {
        #[command(flatten)]
        tier: Tier,
        /// Only this model's
        #[arg(long)]
        model: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Show the objects of L1 whose chunk hash begins so
    Inspect {
        /// Hex digits, lower case
        hash: String,
    },
    /// Delete one object, or all of a chunk
    Delete {
        #[command(flatten)]
        tier: Tier,
        /// The whole chunk hash in hex
        hash: String,
        /// Only this model's
        #[arg(long)]
        model: Option<String>,
        /// Also if requests hold it
        #[arg(long)]
        force: bool,
    },
}

/// Which tier.
#[derive(Clone, Debug, Args)]
pub(crate) struct Tier {
    /// l1, or l2
    #[arg(long, default_value = "l1", value_parser = ["l1", "l2"])]
    pub(crate) tier: String,
    /// Type or index of the L2 adapter; the first one if absent
    #[arg(long)]
    pub(crate) adapter: Option<String>,
}

/// `quota`.
#[derive(Debug, Subcommand)]
pub(crate) enum Quota {
    /// Set a limit
    Set {
        /// The cache salt; _default is the empty one
        salt: String,
        /// GiB, not negative
        #[arg(long, value_name = "GB")]
        limit_gb: f64,
    },
    /// Show a limit and what is used
    Get {
        /// The cache salt; _default is the empty one
        salt: String,
    },
    /// Show all limits
    List,
    /// Take a limit away
    Delete {
        /// The cache salt; _default is the empty one
        salt: String,
    },
}

/// `adapters`.
#[derive(Debug, Subcommand)]
pub(crate) enum Adapters {
    /// List them
    List,
    /// Add one until the daemon ends; needs a token
    Add {
        /// As --l2-adapter takes it, such as {"type":"fs","base_path":"/data/kv"}
        #[arg(value_name = "JSON")]
        adapter: String,
    },
    /// Give one nothing new
    Drain {
        /// Its index
        index: u32,
    },
    /// Drain one, wait for what is under way, and let it go; what it stored stays
    Remove {
        /// Its index
        index: u32,
    },
}

/// `pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Show them, and whether a process uses them
    Show,
    /// Remove one that no process uses
    Rm {
        /// Its name, such as lmcache_l1_pool_5555
        name: String,
    },
}

/// `events`.
#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// Print them as they happen
    Tail {
        /// Only those whose name begins so, such as l2_
        #[arg(long, default_value = "")]
        prefix: String,
        /// End after so many
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The Python that runs the engine: its lmcache package must fit the daemon
    #[arg(long, default_value = "python3", value_name = "COMMAND")]
    pub(crate) python: String,
}

/// `bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// Where workers connect
    #[arg(long, env = "LMCACHED_ENDPOINT", default_value = "tcp://127.0.0.1:5555")]
    pub(crate) endpoint: String,
    /// Workers at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,
    /// Cycles of each worker: a store and a retrieve
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) cycles: u32,
    /// Chunks of a prompt
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) chunks: u32,
    /// Layers of the model
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) layers: u32,
    /// Elements per token and layer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) width: u32,
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Text that was asked for.
    Text(String),
    /// One line about what is wrong.
    Wrong(String),
}

/// Reads a command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let cli = Cli::try_parse_from(args).map_err(|error| {
        use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
        let text = error.render().to_string();
        match error.kind() {
            DisplayHelp | DisplayVersion => Stop::Text(text),
            DisplayHelpOnMissingArgumentOrSubcommand => {
                Stop::Wrong("a subcommand is missing (lmcache-ctl --help lists them)".into())
            }
            // clap says it over several lines; the first one says what, the tip what was meant.
            _ => {
                let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
                let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
                let tip = tip.map_or_else(String::new, |tip| format!("; {tip}"));
                Stop::Wrong(format!("{first}{tip} (see lmcache-ctl --help)"))
            }
        }
    })?;
    if !(cli.global.timeout > 0.0 && cli.global.timeout <= 3600.0) {
        return Err(Stop::Wrong("--timeout must be above 0 and at most 3600 seconds".into()));
    }
    Ok(cli)
}

/// The command, for completions and the manual.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Cli, Stop> {
        parse(std::iter::once("lmcache-ctl").chain(words.iter().copied()).map(OsString::from))
    }

    #[test]
    fn the_command_is_sound_and_errors_are_one_line() {
        command().debug_assert();
        for words in [
            &["stauts"][..],
            &[],
            &["objects"],
            &["ping", "--nonsense"],
            &["sessions", "--limit", "0"],
            &["ping", "--timeout", "-1"],
            &["quota", "set", "s"],
        ] {
            let Err(Stop::Wrong(line)) = of(words) else { panic!("{words:?}") };
            assert!(!line.is_empty() && !line.contains('\n'), "{words:?}: {line}");
        }
        let Err(Stop::Wrong(line)) = of(&["stauts"]) else { panic!("no such subcommand") };
        assert!(line.contains("status"), "{line}");
        assert!(matches!(of(&["--help"]), Err(Stop::Text(text)) if text.contains("Exit codes:")));
        assert!(of(&["ping", "--json"]).is_ok_and(|cli| cli.global.json));
    }
}
