//! A worker of the crash matrix; see `ipc_tests::crash::workload`.
//!
//! Arguments: endpoint, path of the pool, journal, seed, number, class, whether the daemon must know it after a restart.
#![forbid(unsafe_code)]

use std::io::BufRead;

use ipc_tests::crash::points::Class;
use ipc_tests::crash::workload::{Plan, run};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let plan = Plan {
        endpoint: args[1].clone(),
        pool: args[2].clone().into(),
        journal: args[3].clone().into(),
        seed: args[4].parse().expect("a number"),
        number: args[5].parse().expect("a number"),
        class: Class::named(&args[6]).expect("a class"),
        known: args[7].parse().expect("true or false"),
    };
    let (send, words) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    run(plan, words).await;
}
