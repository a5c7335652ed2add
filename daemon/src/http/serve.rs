//! Serves a filter over HTTP/1, with a bound on connections and on the time that one may be silent.
//!
//! warp's own loop has neither: a few thousand idle connections to a page that scrapers must reach would take the
//! process's descriptors, and with them the workers' connections.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use warp::http::{Request, Uri};
use warp::{Filter, Rejection, Reply};

use super::places::{Asks, Places};
use crate::log_limit::LogLimit;
use crate::telemetry::HttpCounters;

/// Time for a request's head, from the accept or from the answer before it. A scraper with a longer period connects anew.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for one connection. A client that takes no answer would hold its place for ever; one that is served meanwhile is
/// told to connect anew.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause after a failed accept; see `server::accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `ending` says so. Its sender is closed when the last answer is out.
pub(super) async fn serve<F>(
    listener: TcpListener,
    filter: F,
    most: usize,
    counters: Arc<HttpCounters>,
    ending: watch::Receiver<bool>,
) where
    F: Filter<Error = Rejection> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
{
    serve_within(listener, filter, most, HEAD_TIMEOUT, counters, ending).await;
}

async fn serve_within<F>(
    listener: TcpListener,
    filter: F,
    most: usize,
    head_timeout: Duration,
    counters: Arc<HttpCounters>,
    mut ending: watch::Receiver<bool>,
) where
    F: Filter<Error = Rejection> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
{
    let places = Places::new(most, counters);
    let (errors, full) = (LogLimit::default(), LogLimit::default());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(_) = ending.wait_for(|ending| *ending) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(suppressed) = errors.pass() {
                    tracing::error!(%error, suppressed, "cannot accept an HTTP connection; raise LimitNOFILE if descriptors ran out");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take().await else {
            if let Some(suppressed) = full.pass() {
                tracing::warn!(suppressed, "HTTP connection turned away: --http-max-connections are open");
            }
            places.turn_away(stream);
            continue;
        };
        let inner = WithPath(TowerToHyperService::new(warp::service(filter.clone())));
        let service = Asks { inner, place: place.clone() };
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let mut ending = ending.clone();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let served = tokio::select! {
                served = tokio::time::timeout(CONNECTION_TIMEOUT, connection.as_mut()) => Some(served),
                () = place.given_away() => return,
                // What has been asked is answered; one that has asked for nothing ends.
                Ok(_) = ending.wait_for(|ending| *ending) => None,
            };
            let Some(served) = served else {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
                return;
            };
            let ended = match served {
                Ok(ended) => ended,
                Err(_) => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(head_timeout, connection).await.unwrap_or(Ok(()))
                }
            };
            // Broken and silent clients are their own problem; what they asked for is in the answer's status.
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP connection ended");
            }
            drop(place);
        });
    }
}

/// Gives every request a path. One for a proxy has none (`CONNECT host:port`, `GET host`), and warp panics when it is asked
/// for it; with `*`, which is no route of ours, it gets an answer.
#[derive(Clone, Debug)]
pub(super) struct WithPath<S>(pub(super) S);

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithPath<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<B>) -> S::Future {
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("*");
        }
        self.0.call(request)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::telemetry::HttpRefusal;

    #[tokio::test]
    async fn requests_for_a_proxy_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        // Like the routes' filters, one that may refuse.
        let filter = warp::path::full()
            .and(warp::header::optional::<String>("x-unused"))
            .map(|path: warp::path::FullPath, _: Option<String>| format!("path {}\n", path.as_str()));
        tokio::spawn(serve_within(
            listener,
            filter,
            2,
            Duration::from_secs(60),
            Arc::default(),
            watch::channel(false).1,
        ));
        for (line, path) in
            [("GET host", "*"), ("CONNECT host:1", "*"), ("OPTIONS *", "*"), ("GET /a?b", "/a")]
        {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("send");
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            tokio::time::timeout(Duration::from_secs(60), read).await.expect("answered").expect("read");
            assert!(answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
            // What follows a CONNECT is no body.
            assert!(
                answer.ends_with(&format!("path {path}\n")) || line.starts_with("CONNECT"),
                "{line}: {answer}"
            );
        }
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut some = [0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut some)).await;
        String::from_utf8_lossy(&some[..read.expect("answered").expect("read")]).into_owned()
    }

    #[tokio::test]
    async fn who_has_asked_keeps_its_place_and_who_has_not_gives_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let filter = warp::path::end().map(|| "here");
        let counters = Arc::new(HttpCounters::default());
        tokio::spawn(serve_within(
            listener,
            filter,
            2,
            Duration::from_secs(600),
            counters.clone(),
            watch::channel(false).1,
        ));
        let ask = async || {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
            let said = answer(&mut stream).await;
            (stream, said)
        };
        let (_first, said) = ask().await;
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        let mut silent = TcpStream::connect(address).await.expect("connect");
        let (_second, said) = ask().await;
        assert!(said.starts_with("HTTP/1.1 200"), "the silent one gives way: {said}");
        assert_eq!(answer(&mut silent).await, "", "closed");
        let (mut third, said) = ask().await;
        assert!(said.starts_with("HTTP/1.1 503") && said.contains("--http-max-connections"), "{said}");
        assert_eq!(answer(&mut third).await, "", "closed");
        let refused: Vec<_> = counters.refused().filter(|(_, count)| *count > 0).collect();
        assert_eq!(refused, [(HttpRefusal::Displaced, 1), (HttpRefusal::TooMany, 1)]);
        assert_eq!(counters.connections(), 2);
    }

    #[tokio::test]
    async fn silent_connections_end_and_leave_their_places() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let filter = warp::path::end().map(|| "here");
        tokio::spawn(serve_within(
            listener,
            filter,
            2,
            Duration::from_millis(300),
            Arc::default(),
            watch::channel(false).1,
        ));
        let mut silent = Vec::new();
        for head in ["", "GET / HTTP/1.1\r\nHost: x\r\n", "", ""] {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            stream.write_all(head.as_bytes()).await.expect("send");
            silent.push(stream);
        }
        let mut good = TcpStream::connect(address).await.expect("connect");
        good.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("send");
        let mut answer = String::new();
        let read = good.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(60), read).await.expect("served").expect("read");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        for mut stream in silent {
            let mut rest = Vec::new();
            let end = stream.read_to_end(&mut rest);
            tokio::time::timeout(Duration::from_secs(60), end).await.expect("closed").expect("read");
        }
    }
}
