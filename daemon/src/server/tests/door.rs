//! Who comes in, and the threads on which that happens.

use std::sync::mpsc;

use bytes::BytesMut;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};

use super::super::endpoint::Stream;
use super::super::socket;
use super::super::stats::Ended;
use super::super::{ServerConfig, Threads};
use super::{HANG, Peer, count, start_on, until};

/// A runtime of one thread.
fn thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Keeps the thread of `runtime` busy until the sender is dropped.
fn occupy(runtime: &Runtime) -> mpsc::Sender<()> {
    let (held, release) = mpsc::channel::<()>();
    let (begins, begun) = mpsc::channel();
    runtime.spawn(async move {
        begins.send(()).expect("the test waits");
        // An error: it was dropped.
        let _ = release.recv();
    });
    begun.recv().expect("the thread runs it");
    held
}

#[tokio::test]
async fn who_has_asked_needs_no_thread_of_those_who_come_in_nor_they_one_of_theirs() {
    let (all, door) = (thread(), thread());
    let threads = Threads { all: all.handle().clone(), door: door.handle().clone(), ..Threads::here() };
    let running = start_on(threads, |_| {}).await;
    let mut worker = Peer::connect(&running).await;
    worker.noop().await;
    let coming = occupy(&door);
    for _ in 0..3 {
        worker.noop().await;
    }
    drop(coming);
    let serving = occupy(&all);
    let mut new = tokio::time::timeout(HANG, Peer::connect(&running)).await.expect("it is greeted");
    drop(serving);
    new.noop().await;
    worker.noop().await;
    all.shutdown_background();
    door.shutdown_background();
}

#[tokio::test]
async fn all_who_come_at_once_are_let_in_while_there_are_some_who_give_way() {
    let door = thread();
    let threads = Threads { door: door.handle().clone(), ..Threads::here() };
    let running = start_on(threads, |config: &mut ServerConfig| config.max_connections = 4).await;
    let busy = occupy(&door);
    // More than one turn of the task that accepts takes, and fewer than the kernel keeps waiting.
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(("127.0.0.1", running.port)).await.expect("the kernel takes it"));
    }
    drop(busy);
    Peer::connect(&running).await.noop().await;
    let ended = |reason| count(running.server.stats().ended(), reason);
    until("those before it have left", || ended(Ended::Displaced) >= 397).await;
    assert_eq!(ended(Ended::TooMany), 0);
    door.shutdown_background();
}

/// An answer that waits, though the socket would take it, leaves the stream at a place that the next daemon does not know.
#[tokio::test]
async fn a_socket_that_has_moved_takes_an_answer_at_once() {
    let (ours, _theirs) = UnixStream::pair().expect("sockets");
    let (reader, writer, _) = socket::meet(1, Stream::Ipc(ours, None));
    let (_reader, writer) = socket::moved_here(reader, writer).expect("moved");
    let mut answer = BytesMut::from(&b"answer"[..]);
    writer.flush_now(&mut answer).expect("it is there");
    assert!(answer.is_empty());
}
