//! Reading an adapter's keys out of its JSON, with lines that never repeat a value: it may be a password.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};
use thiserror::Error;

/// A key that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

/// An adapter's own keys. What is read is taken out; what is left at the end is unknown.
#[derive(Debug)]
pub struct Settings(Map<String, Value>);

impl Settings {
    /// Of a configuration.
    pub fn new(values: Map<String, Value>) -> Settings {
        Settings(values)
    }

    /// `null` stands for an absent key, as in the peer.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    /// A string; an empty one counts as absent.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, SettingsError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
            Some(_) => Err(SettingsError(format!("{key:?} must be a string"))),
        }
    }

    /// A string that must be there.
    pub fn required(&mut self, key: &str) -> Result<String, SettingsError> {
        self.text(key)?.ok_or_else(|| SettingsError(format!("needs {key:?}, a string that is not empty")))
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> Result<bool, SettingsError> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(SettingsError(format!("{key:?} must be true or false"))),
        }
    }

    /// A whole number within bounds.
    pub fn count(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, SettingsError> {
        self.take(key)
            .map(|value| {
                value.as_u64().filter(|n| range.contains(n)).ok_or_else(|| {
                    SettingsError(format!(
                        "{key:?} must be a whole number from {} to {}",
                        range.start(),
                        range.end()
                    ))
                })
            })
            .transpose()
    }

    /// A number that is not negative.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>, SettingsError> {
        self.take(key)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|n| n.is_finite() && *n >= 0.0)
                    .ok_or_else(|| SettingsError(format!("{key:?} must be a number that is not negative")))
            })
            .transpose()
    }

    /// Seconds, above 0 and at most an hour.
    pub fn seconds(&mut self, key: &str) -> Result<Option<Duration>, SettingsError> {
        match self.number(key)? {
            None => Ok(None),
            Some(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(Some(Duration::from_secs_f64(seconds))),
            Some(_) => Err(SettingsError(format!("{key:?} must be above 0 and at most 3600 seconds"))),
        }
    }

    /// An object of its own keys.
    pub fn object(&mut self, key: &str) -> Result<Option<Settings>, SettingsError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Settings(values))),
            Some(_) => Err(SettingsError(format!("{key:?} must be an object"))),
        }
    }

    /// A list of numbers that are not negative.
    pub fn numbers(&mut self, key: &str) -> Result<Vec<f64>, SettingsError> {
        let wrong = || SettingsError(format!("{key:?} must be a list of numbers that are not negative"));
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values
                .iter()
                .map(|value| value.as_f64().filter(|n| n.is_finite() && *n >= 0.0).ok_or_else(wrong))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Takes keys that mean nothing here.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.0.remove(*key);
        }
    }

    /// Refuses a key that asks for something this daemon does not do. A `false`, 0 or empty value asks for nothing.
    pub fn refuse(&mut self, key: &str, instead: &str) -> Result<(), SettingsError> {
        let asks = match self.take(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty() && text != "none",
            Some(_) => true,
        };
        if asks { Err(SettingsError(format!("{key:?} is not served: {instead}"))) } else { Ok(()) }
    }

    /// The keys that nobody has read.
    pub fn left(self) -> Vec<String> {
        self.0.into_iter().map(|(key, _)| key).collect()
    }
}

/// Largest key or certificate file: a bundle of all public authorities has a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// Reads a key or certificate file whole. A path may be a device without an end or a pipe that nobody writes; neither may
/// hold a start up or take the machine's memory.
///
/// # Errors
/// What the system said, or that it is no regular file of at most a megabyte.
pub fn read_file(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than a megabyte"));
    }
    Ok(bytes)
}

/// GiB, as the peer means its `_gb`, to bytes.
pub fn gib(number: f64) -> u64 {
    (number * (1u64 << 30) as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_an_end_are_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        std::fs::write(&path, b"secret").expect("written");
        assert_eq!(read_file(&path).expect("a small file"), b"secret");
        for path in [Path::new("/dev/zero"), dir.path()] {
            assert!(read_file(path).is_err(), "{}", path.display());
        }
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(read_file(&pipe).is_err(), "a pipe that nobody writes");
        // Sparse: the size is what counts.
        std::fs::File::create(&path).and_then(|file| file.set_len(MAX_FILE + 1)).expect("grown");
        assert_eq!(read_file(&path).expect_err("too large").kind(), io::ErrorKind::FileTooLarge);
        std::fs::File::create(&path).and_then(|file| file.set_len(MAX_FILE)).expect("cut");
        assert_eq!(read_file(&path).map(|bytes| bytes.len() as u64).ok(), Some(MAX_FILE));
    }

    #[test]
    fn wrong_values_are_refused_without_being_repeated() {
        let mut settings = Settings::new(
            serde_json::json!({"a": "hunter2", "b": 3, "c": -1, "d": [1, "hunter2"], "e": null, "f": "", "g": 1})
                .as_object()
                .cloned()
                .expect("an object"),
        );
        assert_eq!(settings.text("e"), Ok(None));
        assert_eq!(settings.text("f"), Ok(None));
        for error in [
            settings.flag("a", false).map(drop),
            settings.text("b").map(drop),
            settings.seconds("c").map(drop),
            settings.numbers("d").map(drop),
            settings.required("zz").map(drop),
            settings.refuse("g", "use h"),
        ] {
            let line = error.expect_err("wrong").to_string();
            assert!(!line.contains("hunter2"), "{line}");
        }
        assert!(settings.left().is_empty());
    }
}
