//! What a worker was told, one line each, written before the worker does anything else. A file, because the worker may be
//! killed, too: what a write call has taken stays.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Content;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The daemon said that this object is readable.
    Committed(Content),
    /// The bytes of an object were right.
    Read,
    /// They were not, or an answer was none that can be.
    Wrong(String),
    /// A request had no answer within its deadline, on a connection that stood.
    Unanswered(String),
    /// It does nothing until it is told to go on.
    Halted,
    /// What was to be done after the restart is done.
    Idle,
}

/// A worker's own.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Opens or makes the journal `path`.
    ///
    /// # Panics
    /// If that is not possible.
    pub fn open(path: &Path) -> Journal {
        Journal(OpenOptions::new().create(true).append(true).open(path).expect("the journal"))
    }

    /// Writes an entry.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn write(&mut self, entry: &Entry) {
        let line = match entry {
            Entry::Committed(Content { model, salt, prompt, chunk }) => {
                format!("committed {model} {salt} {prompt} {chunk}\n")
            }
            Entry::Read => "read\n".into(),
            Entry::Wrong(what) => format!("wrong {}\n", what.replace('\n', " ")),
            Entry::Unanswered(what) => format!("unanswered {}\n", what.replace('\n', " ")),
            Entry::Halted => "halted\n".into(),
            Entry::Idle => "idle\n".into(),
        };
        // In one call: a line is there whole or not at all.
        self.0.write_all(line.as_bytes()).expect("the journal takes a line");
    }
}

fn parse(line: &str) -> Entry {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let numbers = || rest.split(' ').map(|number| number.parse().expect("a number"));
    match word {
        "committed" => {
            let [model, salt, prompt, chunk] =
                numbers().collect::<Vec<u8>>().try_into().expect("four numbers");
            Entry::Committed(Content { model, salt, prompt, chunk })
        }
        "read" => Entry::Read,
        "wrong" => Entry::Wrong(rest.into()),
        "unanswered" => Entry::Unanswered(rest.into()),
        "halted" => Entry::Halted,
        "idle" => Entry::Idle,
        _ => panic!("a line of no journal: {line:?}"),
    }
}

/// All journals of a case.
#[derive(Debug)]
pub struct Journals(PathBuf);

impl Journals {
    /// Those in the directory `dir`.
    pub fn in_dir(dir: &Path) -> Journals {
        Journals(dir.to_owned())
    }

    /// Where worker `number` writes.
    pub fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("journal-{number}"))
    }

    /// What worker `number` has written so far; nothing if it has no journal yet.
    ///
    /// # Panics
    /// If the journal says what no worker writes.
    pub fn of(&self, number: u64) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.path(number)).unwrap_or_default();
        // What follows the last newline is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(parse).collect()
    }

    /// Everything written so far by the first `workers`.
    pub fn read(&self, workers: u64) -> Vec<Entry> {
        (1..=workers).flat_map(|number| self.of(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let journals = Journals::in_dir(dir.path());
        let content = Content { model: 1, salt: 2, prompt: 3, chunk: 0 };
        let entries = [
            Entry::Committed(content),
            Entry::Read,
            Entry::Wrong("two words".into()),
            Entry::Unanswered("lookup".into()),
            Entry::Halted,
            Entry::Idle,
        ];
        let mut journal = Journal::open(&journals.path(3));
        entries.iter().for_each(|entry| journal.write(entry));
        assert_eq!(journals.read(3), entries);
    }
}
