//! One request on its way to a handler, and how handlers are run.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use warp::Reply;
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use super::Admin;
use super::answer::{Answer, detail};

/// A request whose route is known.
pub(super) struct Call {
    pub(super) admin: Arc<Admin>,
    /// What stands in the places of the route's path, decoded.
    pub(super) args: Vec<String>,
    /// The last value of each name.
    pub(super) query: HashMap<String, String>,
    pub(super) accept: Option<String>,
    pub(super) body: Bytes,
}

/// What a handler that answers later returns.
pub(super) type Later = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Boxes a handler's future.
pub(super) fn later<R: Reply + 'static>(work: impl Future<Output = R> + Send + 'static) -> Later {
    Box::pin(async move { work.await.into_response() })
}

/// How a handler runs.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// At once.
    Quick(fn(&Call) -> Answer),
    /// Not on an I/O thread: it copies tables or makes long texts.
    Blocking(fn(&Call) -> Answer),
    /// The same, and one at a time: it walks the cache or reads megabytes, and the admin API must never take the compute
    /// threads from workers.
    InTurn(fn(&Call) -> Answer),
    /// It waits for something, or streams.
    Later(fn(Call) -> Later),
}

/// A route.
pub(super) struct Route {
    pub(super) method: Method,
    /// Its path; `{name}` stands for one segment.
    pub(super) path: &'static str,
    pub(super) work: Work,
}

impl Route {
    /// The segments that stand in the places of its path; `None`: it is another path, or not UTF-8.
    pub(super) fn matches(&self, path: &str) -> Option<Vec<String>> {
        let mut args = Vec::new();
        let (mut wanted, mut given) = (self.path.split('/'), path.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return Some(args),
                (Some(place), Some(segment)) if place.starts_with('{') && !segment.is_empty() => {
                    args.push(percent_encoding::percent_decode_str(segment).decode_utf8().ok()?.into_owned());
                }
                (Some(wanted), Some(given)) if wanted == given => {}
                _ => return None,
            }
        }
    }
}

impl Call {
    /// One without anything.
    pub(super) fn new(admin: Arc<Admin>) -> Call {
        Call { admin, args: Vec::new(), query: HashMap::new(), accept: None, body: Bytes::new() }
    }

    /// A number of the query within bounds.
    pub(super) fn number(
        &self,
        name: &str,
        default: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<usize, Answer> {
        let Some(text) = self.query.get(name) else { return Ok(default) };
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            let (first, last) = range.into_inner();
            detail(StatusCode::BAD_REQUEST, format!("{name} must be a whole number from {first} to {last}"))
        })
    }

    /// The body as JSON; an absent one is `{}`.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| detail(StatusCode::BAD_REQUEST, error.to_string()))
    }
}

impl Work {
    /// Runs it.
    pub(super) async fn run(self, call: Call) -> Response {
        let admin = call.admin.clone();
        match self {
            Work::Quick(work) => work(&call).into_response(),
            Work::Blocking(work) => off_thread(work, call).await.into_response(),
            Work::InTurn(work) => {
                let _turn = admin.turn.lock().await;
                off_thread(work, call).await.into_response()
            }
            Work::Later(work) => work(call).await,
        }
    }
}

async fn off_thread(work: fn(&Call) -> Answer, call: Call) -> Answer {
    let work = tokio::task::spawn_blocking(move || work(&call));
    work.await.unwrap_or_else(|error| detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_their_places() {
        let route = |path| Route { method: Method::GET, path, work: Work::Quick(|_| unreachable!()) };
        let one = route("/a/{x}/b");
        assert_eq!(one.matches("/a/c%2Fd/b"), Some(vec!["c/d".to_owned()]));
        for other in ["/a//b", "/a/c", "/a/c/b/", "/a/%ff/b", "a/c/b", ""] {
            assert_eq!(one.matches(other), None, "{other}");
        }
        assert_eq!(route("/").matches("/"), Some(Vec::new()));
        assert_eq!(route("/").matches("//"), None);
    }
}
