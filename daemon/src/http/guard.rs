//! Who may use the admin API. It can clear the cache and end the daemon, so the rule is: a loopback address, or a token.
//!
//! | listens on | token file | served |
//! |---|---|---|
//! | loopback | no | everything |
//! | any other address | no | `GET /healthcheck`, `GET /metrics`; the rest is 403 |
//! | any | yes | the probes and `/metrics` for all; the rest with the token, else 401 |
//!
//! A browser that shows another site's page could reach a loopback address, too: requests that a browser marks as coming
//! from another site are refused whatever else they carry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use warp::http::{HeaderMap, Method, StatusCode, header};
use warp::{Filter, Rejection};

use super::Admin;
use super::answer::{Answer, detail};
use crate::secret_file::{self, SecretFileError};

/// Shortest token: one that is guessed in no time is no guard.
const MIN_TOKEN: usize = 16;
/// Longest token file.
const MAX_TOKEN: u64 = 4096;

/// Served to everybody on any address: what probes and Prometheus need, and no more.
const OPEN: [&str; 2] = ["/healthcheck", "/metrics"];
/// Served without the token where there is one.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// Why a token file is of no use.
#[derive(Debug, Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("--http-token-file {}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read or change it.
    #[error(
        "--http-token-file {}: mode {mode:03o} lets others read or change the token; chmod 400 it, or 440 for a group",
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// What is in it is no token.
    #[error(
        "--http-token-file {}: must hold one line of at least 16 visible ASCII characters; openssl rand -hex 32 makes one",
        path.display()
    )]
    Token {
        /// The file.
        path: PathBuf,
    },
}

/// The token, as its hash: equal lengths make comparing it take the same time whatever was sent.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a token file.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn read(path: &Path) -> Result<Token, TokenError> {
        let text = secret_file::read(path, MAX_TOKEN).map_err(|error| match error {
            SecretFileError::Read(source) => TokenError::Read { path: path.to_owned(), source },
            SecretFileError::Mode(mode) => TokenError::Mode { path: path.to_owned(), mode },
        })?;
        let token = text.trim_end_matches(['\r', '\n']);
        let good = (MIN_TOKEN..=MAX_TOKEN as usize).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(Token::of(token)) } else { Err(TokenError::Token { path: path.to_owned() }) }
    }

    /// One that no input guesses.
    #[cfg(feature = "fuzzing")]
    pub(super) fn fuzzers() -> Token {
        Token([0x5a; 32])
    }

    fn of(token: &str) -> Token {
        Token(Sha256::digest(token).into())
    }

    fn is(&self, given: &str) -> bool {
        self.0.ct_eq(&Token::of(given).0).into()
    }
}

/// What is asked of a request before it is looked at.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Nothing: only this machine reaches the API.
    Loopback,
    /// Only the open pages are served.
    Closed,
    /// The token.
    Token(Token),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Another site's page sent it.
    Foreign,
    /// No token is configured.
    Closed,
    /// It carries no token.
    Missing,
    /// It carries another token.
    Wrong,
}

impl warp::reject::Reject for Refused {}

impl Guard {
    /// The guard of a listener.
    pub fn new(loopback: bool, token: Option<Token>) -> Guard {
        match (token, loopback) {
            (Some(token), _) => Guard::Token(token),
            (None, true) => Guard::Loopback,
            (None, false) => Guard::Closed,
        }
    }

    /// Whether a token is asked for.
    pub fn has_token(&self) -> bool {
        matches!(self, Guard::Token(_))
    }

    fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refused> {
        let read = method == Method::GET;
        if read && OPEN.contains(&path) {
            return Ok(());
        }
        // A link to the page is no request of another site's page.
        if is_foreign(headers) && !(read && path == "/") {
            return Err(Refused::Foreign);
        }
        match self {
            Guard::Loopback => Ok(()),
            Guard::Closed => Err(Refused::Closed),
            Guard::Token(_) if read && PROBES.contains(&path) => Ok(()),
            Guard::Token(token) => {
                let mut given = headers.get_all(header::AUTHORIZATION).iter();
                let (Some(value), None) = (given.next(), given.next()) else { return Err(Refused::Missing) };
                let (scheme, value) =
                    value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Refused::Missing)?;
                if !scheme.eq_ignore_ascii_case("bearer") {
                    return Err(Refused::Missing);
                }
                if token.is(value.trim()) { Ok(()) } else { Err(Refused::Wrong) }
            }
        }
    }
}

/// Whether a browser says that another site's page makes the request. Programs send neither header.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    let Some(origin) = headers.get("origin") else { return false };
    let host = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    host.is_none() || host != text("host")
}

impl Refused {
    /// The answer.
    pub(super) fn answer(self) -> Answer {
        let (status, line) = match self {
            Refused::Foreign => (StatusCode::FORBIDDEN, "the request comes from another site's page"),
            Refused::Closed => (
                StatusCode::FORBIDDEN,
                "on this address only GET /healthcheck and GET /metrics are served without a token; start lmcached with --http-token-file, or with --http-host 127.0.0.1",
            ),
            Refused::Missing => {
                (StatusCode::UNAUTHORIZED, "send Authorization: Bearer with the token of --http-token-file")
            }
            Refused::Wrong => {
                (StatusCode::UNAUTHORIZED, "the token is not the one of the daemon's --http-token-file")
            }
        };
        let mut answer = detail(status, line.into());
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                warp::http::HeaderValue::from_static("Bearer realm=\"lmcached\""),
            );
        }
        answer
    }
}

/// Stands before every route; see [`Refused::answer`] for what comes of its rejections.
pub(super) fn guard(admin: Arc<Admin>) -> impl Filter<Extract = (), Error = Rejection> + Clone + use<> {
    warp::method()
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and_then(move |method: Method, path: warp::path::FullPath, headers: HeaderMap| {
            let verdict = admin.guard.check(&method, path.as_str(), &headers);
            if verdict == Err(Refused::Wrong)
                && let Some(suppressed) = admin.wrong_tokens.pass()
            {
                tracing::warn!(target: "lmcached::audit", %method, path = path.as_str(), suppressed, "a request with a wrong token was refused");
            }
            async move { verdict.map_err(warp::reject::custom) }
        })
        .untuple_one()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value")))
            .collect()
    }

    #[test]
    fn each_guard_lets_through_what_the_table_says() {
        let token = Token::of("0123456789abcdef");
        let right = headers(&[("authorization", "bearer 0123456789abcdef")]);
        let wrong = headers(&[("authorization", "Bearer 0123456789abcdeg")]);
        let twice = headers(&[("authorization", "Bearer x"), ("authorization", "Bearer 0123456789abcdef")]);
        let basic = headers(&[("authorization", "Basic 0123456789abcdef")]);
        let none = HeaderMap::new();
        let get = |guard: &Guard, path, headers| guard.check(&Method::GET, path, headers);
        let open = Guard::new(true, None);
        assert_eq!(open.check(&Method::POST, "/cache/clear", &none), Ok(()));
        let closed = Guard::new(false, None);
        for path in OPEN {
            assert_eq!(get(&closed, path, &none), Ok(()));
            assert_eq!(closed.check(&Method::POST, path, &none), Err(Refused::Closed));
        }
        for path in ["/", "/status", "/livez", "/healthcheck/", "//healthcheck", "/metrics/reset"] {
            assert_eq!(get(&closed, path, &right), Err(Refused::Closed), "{path}");
        }
        for loopback in [true, false] {
            let guarded = Guard::new(loopback, Some(token.clone()));
            assert_eq!(get(&guarded, "/status", &right), Ok(()));
            assert_eq!(get(&guarded, "/status", &wrong), Err(Refused::Wrong));
            assert_eq!(get(&guarded, "/readyz", &none), Ok(()));
            for headers in [&none, &basic, &twice] {
                assert_eq!(get(&guarded, "/status", headers), Err(Refused::Missing));
            }
        }
    }

    #[test]
    fn another_sites_page_gets_nothing() {
        let guard = Guard::new(true, None);
        for foreign in [
            headers(&[("sec-fetch-site", "cross-site")]),
            headers(&[("sec-fetch-site", "same-site")]),
            headers(&[("origin", "http://evil.example"), ("host", "localhost:8080")]),
            headers(&[("origin", "null"), ("host", "localhost:8080")]),
        ] {
            assert_eq!(guard.check(&Method::POST, "/cache/clear", &foreign), Err(Refused::Foreign));
            assert_eq!(guard.check(&Method::GET, "/loglevel", &foreign), Err(Refused::Foreign));
            assert_eq!(guard.check(&Method::GET, "/", &foreign), Ok(()));
        }
        let own = headers(&[("origin", "http://localhost:8080"), ("host", "localhost:8080")]);
        assert_eq!(guard.check(&Method::POST, "/cache/clear", &own), Ok(()));
    }

    #[test]
    fn token_files_that_are_no_secret_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |text: &str, mode: u32| {
            let path = dir.path().join("token");
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
            Token::read(&path)
        };
        assert!(file("0123456789abcdef\n", 0o400).expect("good").is("0123456789abcdef"));
        assert!(file("0123456789abcdef", 0o440).is_ok());
        for mode in [0o404, 0o420, 0o402, 0o644] {
            assert!(matches!(file("0123456789abcdef", mode), Err(TokenError::Mode { .. })), "{mode:o}");
        }
        for text in ["", "short", "0123456789 abcdef", "0123456789abcdéf", &"x".repeat(5000)] {
            assert!(matches!(file(text, 0o400), Err(TokenError::Token { .. })), "{text}");
        }
        assert!(matches!(Token::read(dir.path()), Err(TokenError::Read { .. })));
    }
}
