//! Spans at a real OTLP receiver: names, parents, attributes, times.

mod common;

use common::*;
use ipc_tests::otlp::{Collector, Span};
use lmcached::events::{CbPhase, Event, LookupEnd, SessionId};
use lmcached::telemetry::Readings;

async fn rig() -> Rig {
    Rig::start(&["--enable-tracing"], Readings::default(), vec![]).await
}

fn request(session: &SessionId) -> Event {
    Event::MpRequestStart { session: session.clone(), traceparent: None }
}

fn lookup_end(requested: u64, hit: u64) -> LookupEnd {
    LookupEnd {
        found_count: hit / 256,
        requested_tokens: requested,
        hit_tokens: hit,
        l1_hit_tokens: hit,
        l2_hit_tokens: 0,
        l1_hit_keys: hit / 256,
        l2_hit_keys: 0,
        early_exit_reason: "",
        model: text("m"),
        salt: text(""),
    }
}

fn only(collector: &Collector, name: &str) -> Span {
    let spans = collector.spans(name);
    let [span] = &spans[..] else { panic!("one {name} but {spans:?}") };
    span.clone()
}

fn seconds(span: &Span) -> f64 {
    (span.times.1 - span.times.0) as f64 / 1e9
}

fn attribute<'a>(span: &'a Span, name: &str) -> &'a str {
    span.attributes.get(name).map_or("", String::as_str)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_a_tree_with_its_hit_rate_on_the_root() {
    let rig = rig().await;
    let s = session("req-1");
    rig.at(0.0, request(&s));
    rig.at(0.1, Event::MpLookupPrefetchStart { session: s.clone() });
    rig.at(0.3, Event::MpLookupPrefetchEnd { session: s.clone(), end: lookup_end(1024, 256) });
    // Two ranks retrieve at once, and each has a span of its own. One was announced before the request ended.
    let (first, second) = (worker(1, "cuda:0"), worker(2, "cuda:1"));
    for (number, worker) in [(1, &first), (2, &second)] {
        let (session, transfer, worker) = (s.clone(), transfer(number), worker.clone());
        rig.at(
            0.4,
            Event::MpRetrieveSubmitted { session: session.clone(), transfer, worker: worker.clone() },
        );
        rig.at(0.5, Event::MpRetrieveStart { session, transfer, worker });
    }
    rig.at(0.6, Event::MpStoreSubmitted { session: s.clone(), transfer: transfer(3), worker: first.clone() });
    rig.at(0.7, Event::MpRequestEnd { session: s.clone() });
    for (number, worker, ended) in [(2, &second, 0.8), (1, &first, 1.5)] {
        let (session, transfer, worker) = (s.clone(), transfer(number), worker.clone());
        rig.at(ended, Event::MpRetrieveEnd { session, transfer, worker, end: end(number, 512, 64) });
    }
    let store = |at, event: fn(SessionId) -> Event| rig.at(at, event(s.clone()));
    store(1.6, |session| Event::MpStoreStart { session, transfer: transfer(3), worker: worker(1, "cuda:0") });
    store(2.0, |session| Event::MpStoreEnd {
        session,
        transfer: transfer(3),
        worker: worker(1, "cuda:0"),
        end: end(4, 4096, 1024),
    });
    let (page, collector) = rig.finish().await;

    let root = only(&collector, "request");
    assert_eq!((root.parent.as_str(), root.scope.as_str()), ("", "lmcache_mp.server"));
    assert_eq!(attribute(&root, "session_id"), "req-1");
    assert_eq!(attribute(&root, "hit_tokens"), "256");
    assert_eq!(attribute(&root, "requested_tokens"), "1024");
    assert_eq!(attribute(&root, "hit_rate"), "0.25");
    assert!((seconds(&root) - 2.0).abs() < 1e-6, "it ends with its last transfer: {}", seconds(&root));

    let lookup = only(&collector, "mp.lookup_prefetch");
    assert!((seconds(&lookup) - 0.2).abs() < 1e-6);
    assert_eq!((attribute(&lookup, "found_count"), attribute(&lookup, "model_name")), ("1", "m"));
    let mut retrieves = collector.spans("mp.retrieve");
    retrieves.sort_by_key(|span| span.times.1);
    let devices: Vec<_> = retrieves.iter().map(|span| attribute(span, "device")).collect();
    assert_eq!(devices, ["cuda:1", "cuda:0"]);
    assert_eq!(attribute(&retrieves[0], "retrieved_count"), "2");
    let store = only(&collector, "mp.store");
    assert_eq!((attribute(&store, "stored_count"), attribute(&store, "total_bytes")), ("4", "4096"));
    assert_eq!((attribute(&store, "engine_id"), attribute(&store, "session_id")), ("1", "req-1"));
    for child in retrieves.iter().chain([&lookup, &store]) {
        assert_eq!((&child.trace, &child.parent), (&root.trace, &root.id), "{}", child.name);
        assert!(child.times.0 >= root.times.0 && child.times.1 <= root.times.1, "{}", child.name);
        assert!(!child.failed);
    }
    assert_eq!(page.value("lmcached_spans_unfinished_total", ""), Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_lookup_has_no_hit_rate() {
    let rig = rig().await;
    let s = session("store-only");
    let store = (transfer(1), worker(1, "cpu"));
    rig.at(0.0, Event::MpStoreStart { session: s.clone(), transfer: store.0, worker: store.1.clone() });
    rig.at(
        1.0,
        Event::MpStoreEnd { session: s.clone(), transfer: store.0, worker: store.1, end: end(1, 1, 1) },
    );
    rig.at(2.0, Event::MpRequestEnd { session: s });
    let (_, collector) = rig.finish().await;
    let root = only(&collector, "request");
    assert!(!root.attributes.contains_key("hit_rate") && !root.attributes.contains_key("hit_tokens"));
    assert_eq!(only(&collector, "mp.store").parent, root.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_s_own_times_replace_the_daemon_s_and_make_no_second_span() {
    let rig = rig().await;
    let s = session("ring");
    let w = || worker(1, "cuda:0");
    rig.at(0.0, request(&s));
    for at in [1.0, 1.4] {
        rig.at(at, Event::MpStoreStart { session: s.clone(), transfer: transfer(9), worker: w() });
    }
    for at in [2.0, 5.0] {
        let (session, transfer, worker) = (s.clone(), transfer(9), w());
        rig.at(at, Event::MpStoreEnd { session, transfer, worker, end: end(1, 1, 1) });
    }
    rig.at(6.0, Event::MpRequestEnd { session: s });
    let (_, collector) = rig.finish().await;
    let store = only(&collector, "mp.store");
    assert!((seconds(&store) - 0.6).abs() < 1e-6, "{}", seconds(&store));
    assert!((seconds(&only(&collector, "request")) - 6.0).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_traceparent_becomes_the_parent() {
    let rig = rig().await;
    let (s, bad) = (session("traced"), session("untraced"));
    let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    rig.publish(Event::MpRequestStart { session: s.clone(), traceparent: Some(text(header)) });
    rig.publish(Event::MpRequestStart { session: bad.clone(), traceparent: Some(text("00-junk-01")) });
    rig.at(1.0, Event::MpRequestEnd { session: s });
    rig.at(1.0, Event::MpRequestEnd { session: bad });
    let (_, collector) = rig.finish().await;
    let roots = collector.spans("request");
    let of = |name: &str| roots.iter().find(|span| attribute(span, "session_id") == name).expect("a root");
    let traced = of("traced");
    assert_eq!(traced.trace, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(traced.parent, "00f067aa0ba902b7");
    assert_eq!(of("untraced").parent, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_open_for_ever() {
    let rig = rig().await;
    // The end of the transfer, and of the second request, never come.
    let (s, t) = (session("lost-transfer"), session("lost-request"));
    rig.at(0.0, request(&s));
    rig.at(0.0, Event::MpStoreStart { session: s.clone(), transfer: transfer(1), worker: worker(1, "cpu") });
    rig.at(1.0, Event::MpRequestEnd { session: s });
    rig.at(1.0, request(&t));
    let (page, collector) = rig.finish().await;
    let store = only(&collector, "mp.store");
    assert!(store.failed);
    assert_eq!(collector.spans("request").len(), 2);
    let open =
        collector.spans("request").into_iter().find(|span| attribute(span, "session_id") == "lost-request");
    assert!(open.expect("ended at shutdown").failed);
    assert_eq!(page.value("lmcached_spans_open", ""), Some(0.0));
    assert_eq!(page.value("lmcached_spans_unfinished_total", ""), Some(2.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blend_requests_have_a_root_of_their_own() {
    let rig = rig().await;
    let s = session("blend");
    rig.at(0.0, Event::CbRequestStart { session: s.clone() });
    let phase = |phase, worker| (s.clone(), phase, worker);
    for (at, (session, phase, worker), start) in [
        (0.1, phase(CbPhase::Lookup, None), true),
        (0.2, phase(CbPhase::Lookup, None), false),
        (0.3, phase(CbPhase::Scatter, Some(0)), true),
        (0.3, phase(CbPhase::Scatter, Some(1)), true),
        (0.5, phase(CbPhase::Scatter, Some(0)), false),
    ] {
        rig.at(
            at,
            if start {
                Event::CbPhaseStart { session, phase, worker }
            } else {
                Event::CbPhaseEnd { session, phase, worker, success: true }
            },
        );
    }
    rig.at(0.55, Event::CbLookupEnd { session: s.clone(), requested_tokens: 200, hit_tokens: 100 });
    rig.at(0.6, Event::CbRequestEnd { session: s.clone() });
    let (session, phase) = (s, CbPhase::Scatter);
    rig.at(0.9, Event::CbPhaseEnd { session, phase, worker: Some(1), success: false });
    let (_, collector) = rig.finish().await;
    let root = only(&collector, "cb.request");
    assert_eq!((attribute(&root, "hit_rate"), attribute(&root, "requested_tokens")), ("0.5", "200"));
    assert!((seconds(&root) - 0.9).abs() < 1e-6);
    let scatters = collector.spans("cb.scatter");
    assert_eq!(scatters.len(), 2);
    assert!(scatters.iter().all(|span| span.parent == root.id && span.trace == root.trace));
    assert_eq!(only(&collector, "cb.lookup").parent, root.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_is_a_failed_span_of_its_request() {
    let rig = rig().await;
    let s = session("slow");
    rig.at(0.0, request(&s));
    rig.at(
        1.0,
        Event::TimeoutRaised { session: s.clone(), message: text("no answer"), kind: "TimeoutError" },
    );
    rig.at(2.0, Event::MpRequestEnd { session: s });
    let (_, collector) = rig.finish().await;
    let timeout = only(&collector, "timeout");
    assert_eq!((timeout.scope.as_str(), timeout.failed), ("lmcache_mp.timeout", true));
    assert_eq!(timeout.events, ["exception"]);
    assert_eq!(timeout.parent, only(&collector, "request").id);
}
