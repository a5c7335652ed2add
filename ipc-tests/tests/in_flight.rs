//! Requests that were under way when the daemon was killed: LMCache's client never asks again, so the next daemon answers
//! them, as soon as the client is back.

use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::dealer::{Answer, Dealer};
use ipc_tests::driven::Driven;
use ipc_tests::worker::{Model, key, prompt};
use lmcache_proto::wire::{Operation, PrepareRetrieveResponse, PrepareStoreResponse, Request, Response};

fn at(point: &str, count: u64) -> String {
    format!("{point}:{count}")
}

/// A daemon that kills itself at a point of its first life.
async fn mortal(point: &str) -> Daemon {
    Daemon::start_in(&[("LMCACHED_FAILPOINT", point)], &["--bind=ipc://{dir}/sock"]).await
}

fn endpoints(daemon: &Daemon) -> [String; 2] {
    [format!("ipc://{}/sock", daemon.dir().display()), daemon.endpoint()]
}

async fn next_life(daemon: &mut Daemon) {
    daemon.ends().await;
    daemon.relaunch(&[("LMCACHED_FAILPOINT", "")], &[]);
    daemon.ready().await;
}

fn ping(instance: u64) -> Request<'static> {
    Request::Ping { instance_id: Some(instance) }
}

/// The answers to the next `count` requests, in the order of their numbers.
async fn answers(dealer: &mut Dealer, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(dealer.answer().await);
    }
    answers.sort_by_key(|answer| answer.number);
    answers
}

#[tokio::test]
async fn what_a_worker_asked_before_the_kill_is_answered_when_it_is_heard() {
    for transport in 0..2 {
        let mut daemon = mortal("engine.store.reserved:1").await;
        let endpoint = endpoints(&daemon)[transport].clone();
        let model = Model::small("m");
        let frame = model.key("r", &prompt(1, 2)).frame(Some(0), 0, 512);
        let mut worker = Dealer::connect(&endpoint).await;
        worker.ask(&[model.registration(7)]).await;
        assert_eq!(worker.answer().await.operation, Operation::RegisterEngineDriven);
        // The daemon dies of the first; the others have come with it.
        let first = worker
            .ask(&[
                Request::PrepareStore { key: key(&frame), instance_id: 7 },
                Request::CommitStore { key: key(&frame), instance_id: 7, data: b"" },
                Request::PrepareRetrieve { key: key(&frame), instance_id: 7 },
                Request::QueryPrefetchStatus { request_id: "r" },
            ])
            .await;
        worker.ends().await;
        next_life(&mut daemon).await;

        worker.reconnect(&endpoint).await;
        worker.ask(&[ping(7)]).await;
        let answers = answers(&mut worker, 5).await;
        let numbers: Vec<u64> = answers.iter().map(|answer| answer.number).collect();
        assert_eq!(numbers, (first..first + 5).collect::<Vec<_>>(), "{endpoint}");
        let negative = [
            Response::PrepareStore(PrepareStoreResponse { context: None }),
            Response::Flag(false),
            Response::PrepareRetrieve(PrepareRetrieveResponse { slots: None }),
            Response::Count(0),
            Response::Flag(true),
        ];
        for (answer, response) in answers.iter().zip(&negative) {
            assert!(answer.says(response), "{answer:?}");
        }
        let labels = ["operation=\"prepare_store\"", "outcome=\"restarted\""];
        assert_eq!(daemon.metric("lmcached_requests_total", &labels).await, 1.0);
        // Once, and what it asks now is served.
        worker.ask(&[Request::PrepareStore { key: key(&frame), instance_id: 7 }]).await;
        let answer = worker.answer().await;
        assert_eq!((answer.number, answer.operation), (first + 5, Operation::PrepareStore));
        assert!(!answer.says(&negative[0]), "slots");
    }
}

#[tokio::test]
async fn a_scheduler_has_the_answers_to_its_lookups() {
    for transport in 0..2 {
        // The third that is read: the lookups come as one piece.
        let mut daemon = mortal(&at("journal.noted", 4)).await;
        let endpoint = endpoints(&daemon)[transport].clone();
        let model = Model::small("m");
        let frames = ["a", "b"].map(|request| model.key(request, &prompt(1, 2)).frame(None, 0, 512));
        let lookup = |frame| Request::Lookup { key: key(frame), tp_size: 1 };
        let mut scheduler = Dealer::connect(&endpoint).await;
        scheduler.ask(&[Request::GetChunkSize]).await;
        scheduler.answer().await;
        scheduler
            .ask(&[lookup(&frames[0]), lookup(&frames[1]), Request::QueryPrefetchStatus { request_id: "a" }])
            .await;
        scheduler.ends().await;
        next_life(&mut daemon).await;

        scheduler.reconnect(&endpoint).await;
        scheduler.ask(&[lookup(&frames[0])]).await;
        let answers = answers(&mut scheduler, 4).await;
        let expected = [Response::Nothing, Response::Nothing, Response::Count(0), Response::Nothing];
        for (number, (answer, response)) in (1..).zip(answers.iter().zip(&expected)) {
            assert!(answer.number == number && answer.says(response), "{answer:?}");
        }
    }
}

/// A worker whose load was under way need not register again if nothing was lost unread and it certainly waits still; LMCache
/// waits for the answer to a load without a deadline, so it must have one.
#[tokio::test]
async fn a_load_under_way_is_answered_and_the_worker_goes_on() {
    for lost in [false, true] {
        // Pings, so that the daemon knows that this worker waits for longer than a restart takes.
        let pings = if lost { 0 } else { 4u32 };
        let mut daemon = mortal(&at("journal.noted", 3 + u64::from(pings))).await;
        let endpoint = endpoints(&daemon)[1].clone();
        let mut driven = Driven::start(&endpoint).await;
        driven.beats(pings, Duration::from_secs(4)).await;
        let load = driven.worker.next();
        let request = driven.spell_load(30);
        driven.worker.send(&request).await;
        driven.worker.ends().await;
        next_life(&mut daemon).await;

        if lost {
            driven.worker.skip();
        }
        driven.worker.reconnect(&endpoint).await;
        driven.worker.ask(&[Driven::ping()]).await;
        let answers = answers(&mut driven.worker, 2).await;
        assert!(answers[0].number == load && answers[0].says(&Response::Transfer(Vec::new(), false)));
        assert!(answers[1].says(&Response::Flag(!lost)), "{:?}", answers[1]);
        let refused = !driven.load(30).await;
        assert_eq!(refused, lost, "told of the restart, it must register before it is served");
    }
}
