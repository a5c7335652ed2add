//! The daemon's admin API, from the client's side.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::config::ConfigBuilder;
use ureq::http::{Request, Response, StatusCode};
use ureq::typestate::AgentScope;
use ureq::{Agent, AsSendBody, Body};

use crate::cli::Global;
use crate::error::CtlError;

/// Largest answer that is read.
const MAX_ANSWER: u64 = 256 << 20;
/// Longest token file.
const MAX_TOKEN: u64 = 4096;
/// Longest line of the event stream.
const MAX_LINE: u64 = 1 << 20;

/// One daemon.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    url: String,
    token: Option<String>,
    agent: Agent,
}

/// A query value or a path segment.
pub(crate) fn escaped(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// What is asked of every agent.
fn agent() -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        // A proxy is for other machines' pages.
        .proxy(None)
        .max_redirects(0)
}

impl Daemon {
    /// The daemon of a command line.
    ///
    /// # Errors
    /// A token file that cannot be used, a URL that is none.
    pub(crate) fn of(global: &Global) -> Result<Daemon, CtlError> {
        let url = global.url.trim_end_matches('/');
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !url.starts_with("http://") {
            return Err(CtlError::Usage(format!(
                "--url {url}: the daemon speaks plain HTTP; use http://, through a tunnel if it is far away"
            )));
        }
        let token = global.token_file.as_deref().map(read_token).transpose()?;
        let limit = Duration::from_secs_f64(global.timeout);
        let config = agent()
            .timeout_connect(Some(limit.min(Duration::from_secs(10))))
            .timeout_global(Some(limit))
            .build();
        Ok(Daemon { url, token, agent: config.into() })
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn request(&self, method: &str, path: &str) -> ureq::http::request::Builder {
        let builder = Request::builder().method(method).uri(format!("{}{path}", self.url));
        match &self.token {
            Some(token) => builder.header("authorization", format!("Bearer {token}")),
            None => builder,
        }
    }

    fn run<B: AsSendBody>(
        &self,
        agent: &Agent,
        request: Result<Request<B>, ureq::http::Error>,
    ) -> Result<Response<Body>, CtlError> {
        let request = request.map_err(|error| CtlError::Usage(format!("--url {}: {error}", self.url)))?;
        agent.run(request).map_err(|error| self.unreachable(error.to_string()))
    }

    fn unreachable(&self, why: String) -> CtlError {
        CtlError::Unreachable { url: self.url.clone(), why }
    }

    fn text(&self, response: &mut Response<Body>) -> Result<String, CtlError> {
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        body.map_err(|error| self.unreachable(error.to_string()))
    }

    /// Status and text of an answer.
    fn answer(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
    ) -> Result<(StatusCode, String), CtlError> {
        let mut response = match body {
            Some(body) => {
                let request =
                    self.request(method, path).header("content-type", "application/json").body(body);
                self.run(&self.agent, request)?
            }
            None => self.run(&self.agent, self.request(method, path).body(()))?,
        };
        let text = self.text(&mut response)?;
        Ok((response.status(), text))
    }

    fn good(&self, (status, text): (StatusCode, String)) -> Result<String, CtlError> {
        if status.is_success() {
            return Ok(text);
        }
        let told: Option<String> = serde_json::from_str::<Value>(&text).ok().and_then(|answer| {
            ["detail", "error", "reason", "message"]
                .iter()
                .find_map(|key| answer[*key].as_str().map(str::to_owned))
        });
        let line = told.unwrap_or_else(|| {
            let first = text.lines().next().unwrap_or_default();
            let shown: String = first.chars().take(200).collect();
            format!("HTTP {status} {shown}")
        });
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CtlError::Token(line),
            _ => CtlError::Refused(line),
        })
    }

    fn json(&self, text: &str) -> Result<Value, CtlError> {
        serde_json::from_str(text)
            .map_err(|_| self.unreachable("what answers there is no lmcached: it sends no JSON".into()))
    }

    /// GET; JSON.
    pub(crate) fn get(&self, path: &str) -> Result<Value, CtlError> {
        self.json(&self.get_text(path)?)
    }

    /// GET; text.
    pub(crate) fn get_text(&self, path: &str) -> Result<String, CtlError> {
        self.good(self.answer("GET", path, None)?)
    }

    /// GET; the status, whatever it is, and the JSON if there is any.
    pub(crate) fn probe(&self, path: &str) -> Result<(u16, Value), CtlError> {
        let (status, text) = self.answer("GET", path, None)?;
        Ok((status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Another method with a JSON body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value, CtlError> {
        self.json(&self.good(self.answer(method, path, Some(body.to_string()))?)?)
    }

    /// The events of the stream, one after the other. `each` says whether to go on. Returns when it says no, or when the
    /// daemon ends the stream; `true` if it was the daemon.
    pub(crate) fn stream(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> Result<bool, CtlError>,
    ) -> Result<bool, CtlError> {
        let config = agent()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .build();
        let agent: Agent = config.into();
        let mut response = self.run(&agent, self.request("GET", path).body(()))?;
        if !response.status().is_success() {
            let text = self.text(&mut response)?;
            self.good((response.status(), text))?;
        }
        let mut lines = BufReader::new(response.body_mut().as_reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            // A daemon that ends or is killed breaks the stream off: that is the stream's end, not an error.
            let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).unwrap_or(0);
            if read == 0 {
                return Ok(true);
            }
            let text = String::from_utf8_lossy(&line);
            if let Some(data) = text.trim_end().strip_prefix("data:")
                && !each(data)?
            {
                return Ok(false);
            }
        }
    }
}

fn read_token(path: &std::path::Path) -> Result<String, CtlError> {
    let failed = |why: String| CtlError::Token(format!("{}: {why}", path.display()));
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text))
        .map_err(|error| failed(error.to_string()))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(failed("holds no token: one line of visible ASCII".into()));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_wire_stay_one_segment() {
        assert_eq!(escaped("a/b?c#d é"), "a%2Fb%3Fc%23d%20%C3%A9");
        assert_eq!(escaped("A-Z_0.9~"), "A-Z_0.9~");
    }
}
