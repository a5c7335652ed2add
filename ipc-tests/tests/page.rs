//! The live page as a program sees it; `ipc-tests/page` looks at it with a browser.

use std::io::{Read, Write};
use std::net::TcpStream;

use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, lookup, prompt, store};
use ipc_tests::{eventually, http};

/// Head and body of a GET with this `Accept`.
fn get(port: u16, path: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept}\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn browsers_get_the_page_and_others_the_peers_answer() {
    let daemon = Daemon::start(&[]).await;
    let port = daemon.http_port();
    let (head, body) = get(port, "/", "text/html,application/xhtml+xml,*/*;q=0.8");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
    assert!(body.starts_with("<!doctype html>") && body.trim_end().ends_with("</html>"));
    for accept in ["*/*", "application/json"] {
        let (head, body) = get(port, "/", accept);
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body, serde_json::json!({"status": "ok", "service": "LMCache HTTP API"}));
    }
    assert_eq!(http::get(port, "/page/data?since=yesterday").await.expect("answer").0, 400);
}

#[tokio::test]
async fn the_data_is_what_metrics_says() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(1, 4);
    store(&mut client, &pool, &model, "a", &tokens, 7, 1).await;
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 4);
    let wanted = daemon.metric("lmcache_mp_lookup_hit_tokens_total", &[]).await;
    assert_eq!(wanted, 1024.0);
    let data = async |since: Option<u64>| {
        let query = since.map(|since| format!("?since={since}")).unwrap_or_default();
        let (_, body) = http::get(daemon.http_port(), &format!("/page/data{query}")).await.expect("data");
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")
    };
    let newest = eventually("the page has it", async || {
        let data = data(None).await;
        let hits = data["series"].as_array()?.iter().filter(|series| series["key"] == "hit_tokens");
        let sum: f64 = hits.filter_map(|series| series["values"].as_array()?.last()?.as_f64()).sum();
        let newest = data["times"].as_array()?.last()?.as_u64()?;
        (sum == wanted).then_some(newest)
    })
    .await;
    let later = eventually("there is a newer point", async || {
        let times = data(Some(newest)).await["times"].as_array()?.clone();
        (!times.is_empty()).then_some(times)
    })
    .await;
    assert!(later.iter().all(|time| time.as_u64().is_some_and(|time| time > newest)), "{later:?}");
}
