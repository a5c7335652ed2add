//! The OTLP collector of the cost run, in a process of its own and behind all others: on a real node it is somewhere else,
//! and must not take the time of those whose time is measured.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ipc_tests::otlp::Collector;

/// The process.
pub(crate) struct Process {
    pub(crate) endpoint: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What the process does.
pub(crate) async fn serve() {
    let collector = Collector::start().await;
    println!("{}", collector.endpoint());
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    ended.await.expect("no panic").expect("readable");
    println!("{}", collector.received(|received| received.spans.len()));
}

impl Process {
    pub(crate) fn start() -> Process {
        let mut child = Command::new("nice")
            .args(["-n", "19"])
            .arg(std::env::current_exe().expect("own path"))
            .arg("collector")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nice, of coreutils");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut endpoint = String::new();
        output.read_line(&mut endpoint).expect("an endpoint");
        Process { endpoint: endpoint.trim().to_owned(), input: child.stdin.take(), child, output }
    }

    /// Ends it; how many spans it was sent.
    pub(crate) fn end(mut self) -> String {
        self.input.take();
        let mut spans = String::new();
        self.output.read_line(&mut spans).expect("a number");
        let _ = self.child.wait();
        spans.trim().to_owned()
    }
}
