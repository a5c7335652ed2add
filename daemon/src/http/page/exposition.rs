//! Reads the text of `/metrics`.
//!
//! The page takes its numbers from the same text that a scraper gets, so the two cannot tell different stories.

use std::borrow::Cow;

/// One line of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// Name of the sample, with `_bucket`, `_sum` or `_count` for histograms.
    pub name: &'a str,
    /// Labels in the order of the text, still escaped.
    labels: &'a str,
    /// Value.
    pub value: f64,
}

impl<'a> Line<'a> {
    /// Value of a label, unescaped; `None` if the line has no such label.
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        self.labels().find(|(label, _)| *label == name).map(|(_, value)| value)
    }

    /// Labels and their values, unescaped. Ends at the first thing that is no label.
    pub fn labels(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.labels;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_once("=\"")?;
            let end = closing_quote(after)?;
            rest = after[end + 1..].trim_start_matches([',', ' ']);
            Some((name.trim(), unescape(&after[..end])))
        })
    }
}

/// Lines that are samples; comments and what does not parse are left out.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(line)
}

fn line(text: &str) -> Option<Line<'_>> {
    if text.starts_with('#') {
        return None;
    }
    let end_of_name = text.find(['{', ' '])?;
    let (name, rest) = text.split_at(end_of_name);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(labels) => {
            let end = closing_brace(labels)?;
            (&labels[..end], &labels[end + 1..])
        }
        None => ("", rest),
    };
    // A timestamp may follow the value; the daemon writes none.
    let value = match rest.split_ascii_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Line { name, labels, value })
}

/// Position of the first quote that is not escaped.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// Position of the brace that ends the labels: braces inside quotes do not count.
fn closing_brace(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        let closes = byte == b'}' && !quoted;
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            (c, false) => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scrapers_read_is_read_the_same() {
        let text = "# HELP a Help.\n# TYPE a counter\na 1\na_total{x=\"1\",y=\"q\\\"}\\\\,\\nz\"} 2.5e3 1700000000\n\
                    b{le=\"+Inf\"} +Inf\n\nbroken{x=\"1\" 3\nnothing\nc{} -1\n";
        let found: Vec<_> = lines(text).collect();
        let names: Vec<_> = found.iter().map(|line| (line.name, line.value)).collect();
        assert_eq!(names, [("a", 1.0), ("a_total", 2500.0), ("b", f64::INFINITY), ("c", -1.0)]);
        assert_eq!(found[1].label("x").as_deref(), Some("1"));
        assert_eq!(found[1].label("y").as_deref(), Some("q\"}\\,\nz"));
        assert_eq!(found[1].label("z"), None);
        assert_eq!(found[3].labels().count(), 0);
    }

    #[test]
    fn any_text_is_survived() {
        proptest::proptest!(|(text in ".*")| {
            for line in lines(&text) {
                let _ = line.labels().count();
            }
        });
    }
}
