//! The comparison benchmark: the same load on lmcached, on LMCache's own server, and on a bare ROUTER echo as the floor.
//!
//! Timings of these machines are noisy, so everything that is compared is measured in one run, in alternating rounds.
#![deny(unsafe_code)]

mod collector;
mod cost;
mod flood;
mod l2;
mod load;
mod report;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ipc_tests::flood::Kind;

#[derive(Parser)]
#[command(about = "Compares lmcached with `lmcache server` 0.5.6 and with a bare ROUTER echo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A bare ROUTER that sends every message back.
    Echo {
        /// Port on the loopback address.
        port: u16,
    },
    /// An OTLP collector that prints its endpoint, and, when its input ends, how many spans it was sent.
    Collector,
    /// The comparison.
    Run(Run),
    /// What observability costs.
    Cost(Cost),
    /// What a tier costs lookups.
    L2(L2),
    /// What floods cost a client that behaves.
    Flood(Flood),
    /// One kind of flood against a port of the loopback address, until it is killed.
    Flooder {
        /// Its name, as the table has it.
        #[arg(value_parser = flood_kind)]
        kind: Kind,
        /// Where.
        port: u16,
    },
}

#[derive(clap::Args)]
struct L2 {
    /// lmcached's binary.
    #[arg(long)]
    daemon: PathBuf,
    /// Alternating rounds.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
}

#[derive(clap::Args)]
struct Flood {
    /// lmcached's binary.
    #[arg(long)]
    daemon: PathBuf,
    /// Alternating rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Cycles of each round.
    #[arg(long, default_value_t = 300)]
    cycles: usize,
}

fn flood_kind(name: &str) -> Result<Kind, String> {
    Kind::of(name).ok_or_else(|| format!("one of {}", Kind::ALL.map(Kind::name).join(", ")))
}

#[derive(clap::Args)]
struct Cost {
    /// lmcached's binary.
    #[arg(long)]
    daemon: PathBuf,
    /// Alternating rounds.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Cycles of each round.
    #[arg(long, default_value_t = 500)]
    cycles: usize,
}

#[derive(clap::Args)]
struct Run {
    /// lmcached's binary.
    #[arg(long)]
    daemon: PathBuf,
    /// LMCache's command; without it only the echo is compared with.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Where the tables are kept.
    #[arg(long)]
    docs: PathBuf,
    /// Writes the tables there.
    #[arg(long)]
    write: bool,
    /// Alternating rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Cycles of one client and round.
    #[arg(long, default_value_t = 200)]
    cycles: usize,
}

fn main() {
    let cli = Cli::parse();
    // As many threads as the daemon itself would take; the load is measured from the client's side.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    match cli.command {
        Command::Echo { port } => runtime.block_on(target::echo(port)),
        Command::Collector => runtime.block_on(collector::serve()),
        Command::Run(run) => runtime.block_on(compare(&run)),
        Command::L2(l2) => runtime.block_on(l2::run(&l2.daemon, l2.rounds)),
        Command::Flood(flood) => runtime.block_on(flood::run(&flood.daemon, flood.rounds, flood.cycles)),
        Command::Flooder { kind, port } => runtime.block_on(flood::serve(kind, port)),
        Command::Cost(cost) => runtime.block_on(cost::run(&cost.daemon, cost.rounds, cost.cycles)),
    }
}

async fn compare(run: &Run) {
    let mut targets =
        vec![target::Target::start_echo().await, target::Target::start_daemon(&run.daemon, &[]).await];
    if let Some(peer) = &run.peer {
        targets.push(target::Target::start_peer(peer).await);
    }
    let mut results: Vec<report::Results> = targets.iter().map(|t| report::Results::new(t.kind)).collect();
    for (target, result) in targets.iter().zip(&mut results) {
        result.first_ping = target.first_ping;
        result.anonymous_kib = target.anonymous_kib();
    }
    for round in 0..run.rounds {
        for (target, result) in targets.iter().zip(&mut results) {
            for clients in [1usize, 4] {
                let cpu = target.cpu();
                let cycles = run.cycles.div_ceil(if target.kind == target::Kind::Peer { 4 } else { 1 });
                let samples = load::cycles(target, clients, cycles, round).await;
                let spent = target.cpu() - cpu;
                result.add(clients, &samples, spent, clients * cycles);
            }
            result.pings.push(load::pings(target, Duration::from_millis(700)).await);
            if target.kind == target::Kind::Echo {
                result.add_copies(&load::plain_copies(60));
            } else {
                // A store of the peer takes most of a second.
                let count = if target.kind == target::Kind::Peer { 6 } else { 60 };
                result.add(1, &load::server_driven(target, count, round).await, Duration::ZERO, 0);
            }
        }
    }
    let text = report::tables(&results, run.rounds, run.cycles);
    println!("{text}");
    if run.write {
        report::write(&run.docs, &text).expect("docs/benchmarks.md is writable");
    }
}
