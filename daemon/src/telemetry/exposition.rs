//! The Prometheus text page.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use super::catalogue::{Metric, Name, Reader};
use super::series::{Labels, Value};
use super::snapshot::Sink;

/// Content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label of the series that stands for all that had no place; the OpenTelemetry SDKs have the same.
const OVERFLOW: (&str, &str) = ("otel_metric_overflow", "true");

/// Writes the page.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// A page that begins with the resource's attributes, which Prometheus has on a series of its own.
    pub fn new(resource: &[(String, String)]) -> Page {
        let mut page = Page { text: String::with_capacity(64 << 10) };
        page.head("target_info", "Attributes of this daemon.", "gauge");
        page.text.push_str("target_info");
        let names: Vec<String> = resource.iter().map(|(name, _)| sanitize(name)).collect();
        let values = resource.iter().map(|(_, value)| value.as_str());
        page.labels(names.iter().map(String::as_str).zip(values));
        page.text.push_str(" 1\n");
        page
    }

    /// The page.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn labels<'a>(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut separator = '{';
        for (name, value) in labels {
            self.text.push(separator);
            separator = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            self.text.push_str(&escape(value));
            self.text.push('"');
        }
        if separator == ',' {
            self.text.push('}');
        }
    }

    fn series(
        &mut self,
        metric: &Metric,
        name: &Name,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
    ) {
        self.text.push_str(name.prometheus);
        self.text.push_str(suffix);
        let (values, overflow): (&[Arc<str>], _) = match labels {
            Labels::Values(values) => (values, None),
            Labels::Overflow => (&[], Some(OVERFLOW)),
        };
        let attributes = metric.attributes.iter().copied().zip(values.iter().map(AsRef::as_ref));
        let attributes = attributes.filter(|(_, value)| !(metric.omit_empty && value.is_empty()));
        let bound = bound.map(|bound| ("le", bound));
        self.labels(attributes.chain(overflow).chain(name.fixed.iter().copied()).chain(bound));
    }
}

impl Sink for Page {
    const READER: Reader = Reader::Scrape;

    fn family(&mut self, metric: &'static Metric, name: Name) {
        self.head(name.prometheus, metric.description, metric.kind.prometheus());
    }

    fn point(
        &mut self,
        metric: &'static Metric,
        name: Name,
        labels: Labels<'_>,
        value: &Value,
        _start: std::time::SystemTime,
    ) {
        match value {
            Value::Count(count) => {
                self.series(metric, &name, "", labels, None);
                let _ = writeln!(self.text, " {count}");
            }
            Value::Number(number) => {
                self.series(metric, &name, "", labels, None);
                let _ = writeln!(self.text, " {number}");
            }
            Value::Histogram(histogram) => {
                let mut below = 0;
                for (position, count) in histogram.buckets.iter().enumerate() {
                    below += count;
                    let bound = match metric.kind.bounds().get(position) {
                        // `1.0` rather than `1`, as the peer writes it: the label is part of a series' identity.
                        Some(bound) => Cow::Owned(format!("{bound:?}")),
                        None => Cow::Borrowed("+Inf"),
                    };
                    self.series(metric, &name, "_bucket", labels, Some(&bound));
                    let _ = writeln!(self.text, " {below}");
                }
                self.series(metric, &name, "_sum", labels, None);
                let _ = writeln!(self.text, " {}", histogram.sum);
                self.series(metric, &name, "_count", labels, None);
                let _ = writeln!(self.text, " {below}");
            }
        }
    }
}

fn escape(value: &str) -> Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    } else {
        Cow::Borrowed(value)
    }
}

/// An attribute name as a label name.
fn sanitize(name: &str) -> String {
    let mut label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if label.starts_with(|c: char| c.is_ascii_digit()) {
        label.insert(0, '_');
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped_and_names_made_valid() {
        let resource = [("a.b".to_owned(), "x\"y\\z\nw".to_owned()), ("9".to_owned(), String::new())];
        let page = Page::new(&resource).finish();
        let last = page.lines().last().unwrap();
        assert_eq!(last, r#"target_info{a_b="x\"y\\z\nw",_9=""} 1"#);
    }
}
