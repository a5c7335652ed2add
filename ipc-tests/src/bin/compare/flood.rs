//! What a flood costs a client that behaves: its p99, quiet and under each kind, in alternating rounds. The flood comes from
//! a process of its own behind all others: on a real node it is another worker, and must not take the time of those whose time
//! is measured.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipc_tests::flood::{Flood, Kind};

use super::cost::start;
use super::load;
use super::target::Target;

/// Peers of a flood.
const PEERS: usize = 64;
/// Until it is in full swing.
const RISE: Duration = Duration::from_millis(500);

/// The flood itself, until the process is killed.
pub(crate) async fn serve(kind: Kind, port: u16) {
    let _flood = Flood::start(kind, port, PEERS);
    std::future::pending::<()>().await;
}

struct Flooder(Child);

impl Flooder {
    fn start(kind: Kind, target: &Target) -> Flooder {
        let port = target.endpoint.rsplit_once(':').expect("a port").1;
        let child = Command::new("nice")
            .args(["-n", "19"])
            .arg(std::env::current_exe().expect("own path"))
            .args(["flooder", kind.name(), port])
            .stdin(Stdio::null())
            .spawn()
            .expect("nice, of coreutils");
        Flooder(child)
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was measured under one kind of flood, or none.
struct Row {
    kind: Option<Kind>,
    /// p50 and p99 of each round, in µs.
    rounds: Vec<(f64, f64)>,
}

/// Prints the well-behaved client's p99, alone and beside each kind of flood, and their ratios.
pub(crate) async fn run(daemon: &Path, rounds: usize, cycles: usize) {
    let mut rows = vec![Row { kind: None, rounds: Vec::new() }];
    rows.extend(Kind::ALL.map(|kind| Row { kind: Some(kind), rounds: Vec::new() }));
    for round in 0..rounds {
        for row in &mut rows {
            // A daemon for each: what one flood leaves behind is not the next one's.
            let target = start(daemon, &[]).await;
            load::cycles(&target, 1, cycles / 10 + 1, 10_000 + round).await;
            let flooder = row.kind.map(|kind| Flooder::start(kind, &target));
            tokio::time::sleep(RISE).await;
            let samples = load::cycles(&target, 1, cycles, round).await;
            drop(flooder);
            let mut times: Vec<f64> = samples.iter().map(|sample| sample.time.as_secs_f64() * 1e6).collect();
            times.sort_by(f64::total_cmp);
            row.rounds.push((times[times.len() / 2], times[times.len() * 99 / 100]));
        }
    }
    println!(
        "{rounds} rounds of {cycles} cycles each; {PEERS} peers flood.\n\n| flood | p50, µs | p99, µs | p50 ÷ quiet, median of rounds | p99 ÷ quiet, median of rounds |\n|---|---|---|---|---|"
    );
    let quiet = rows[0].rounds.clone();
    for row in &rows {
        let ratio = |of: fn(&(f64, f64)) -> f64| {
            super::cost::median(
                row.rounds.iter().zip(&quiet).map(|(mine, quiet)| of(mine) / of(quiet)).collect(),
            )
        };
        let own = |of: fn(&(f64, f64)) -> f64| super::cost::median(row.rounds.iter().map(of).collect());
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {:.2} |",
            row.kind.map_or("quiet", Kind::name),
            own(|round| round.0),
            own(|round| round.1),
            ratio(|round| round.0),
            ratio(|round| round.1)
        );
    }
}
