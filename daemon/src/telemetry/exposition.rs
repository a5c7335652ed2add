//! The Prometheus text page.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use super::catalogue::{Metric, Name, Reader};
use super::series::{Histogram, Labels, Value};
use super::snapshot::Sink;

/// Content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label of the series that stands for all that had no place; the OpenTelemetry SDKs have the same.
const OVERFLOW: (&str, &str) = ("otel_metric_overflow", "true");

/// Says of the name of a family and the suffix of a sample in it whether a reader wants it.
pub type Wanted = fn(name: &str, suffix: &str) -> bool;

/// Writes the page.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    wanted: Option<Wanted>,
    /// What is wanted of the family under way.
    parts: Parts,
}

/// Which samples of a family are written.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    plain: bool,
    buckets: bool,
    sum: bool,
    count: bool,
}

impl Page {
    /// A page without comments, and with nothing but what is wanted: buckets of histograms are most of the text.
    pub fn only(wanted: Wanted) -> Page {
        Page { wanted: Some(wanted), ..Page::default() }
    }

    /// A page that begins with the resource's attributes, which Prometheus has on a series of its own.
    pub fn new(resource: &[(String, String)]) -> Page {
        let mut page = Page { text: String::with_capacity(64 << 10), ..Page::default() };
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

    fn buckets(&mut self, metric: &Metric, name: &Name, labels: Labels<'_>, histogram: &Histogram) {
        let mut below = 0;
        for (position, count) in histogram.buckets.iter().enumerate() {
            below += count;
            let bound = match metric.kind.bounds().get(position) {
                // `1.0` rather than `1`, as the peer writes it: the label is part of a series' identity.
                Some(bound) => Cow::Owned(format!("{bound:?}")),
                None => Cow::Borrowed("+Inf"),
            };
            self.series(metric, name, "_bucket", labels, Some(&bound));
            let _ = writeln!(self.text, " {below}");
        }
    }
}

impl Sink for Page {
    const READER: Reader = Reader::Scrape;

    fn family(&mut self, metric: &'static Metric, name: Name) {
        let Some(wanted) = self.wanted else {
            self.parts = Parts { plain: true, buckets: true, sum: true, count: true };
            return self.head(name.prometheus, metric.description, metric.kind.prometheus());
        };
        let part = |suffix| wanted(name.prometheus, suffix);
        self.parts =
            Parts { plain: part(""), buckets: part("_bucket"), sum: part("_sum"), count: part("_count") };
    }

    fn point(
        &mut self,
        metric: &'static Metric,
        name: Name,
        labels: Labels<'_>,
        value: &Value,
        _start: std::time::SystemTime,
    ) {
        let parts = self.parts;
        match value {
            Value::Count(count) if parts.plain => {
                self.series(metric, &name, "", labels, None);
                let _ = writeln!(self.text, " {count}");
            }
            Value::Number(number) if parts.plain => {
                self.series(metric, &name, "", labels, None);
                let _ = writeln!(self.text, " {number}");
            }
            Value::Count(_) | Value::Number(_) => {}
            Value::Histogram(histogram) => {
                if parts.buckets {
                    self.buckets(metric, &name, labels, histogram);
                }
                if parts.sum {
                    self.series(metric, &name, "_sum", labels, None);
                    let _ = writeln!(self.text, " {}", histogram.sum);
                }
                if parts.count {
                    self.series(metric, &name, "_count", labels, None);
                    let _ = writeln!(self.text, " {}", histogram.buckets.iter().sum::<u64>());
                }
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
    use crate::config::MetricsCompat;
    use crate::telemetry::catalogue::Id;
    use crate::telemetry::series::{Limits, Store};

    /// Of the families that are fed: all lines, and those that a reader wants.
    fn pages(wanted: Wanted) -> (String, String) {
        let store = Store::new(Limits::default());
        store.add(Id::NumChunksLoaded, &["7", "m", ""], 3);
        store.record(Id::L1ChunkLifetime, &[], 2.5);
        store.record(Id::L1ChunkReuseGap, &[], 0.5);
        let (mut all, mut some) = (Page::new(&[]), Page::only(wanted));
        for id in [Id::NumChunksLoaded, Id::L1ChunkLifetime, Id::L1ChunkReuseGap] {
            let metric = id.metric();
            for name in metric.names(MetricsCompat::Seed, Reader::Scrape) {
                all.family(metric, name);
                some.family(metric, name);
                store.each(id, |labels, value, start| {
                    all.point(metric, name, labels, value, start);
                    some.point(metric, name, labels, value, start);
                });
            }
        }
        (all.finish(), some.finish())
    }

    #[test]
    fn a_reader_gets_the_samples_that_it_wants_as_they_are_on_the_page() {
        let (all, some) = pages(|_, _| true);
        let samples: Vec<_> =
            all.lines().filter(|line| !line.starts_with(['#']) && !line.starts_with("target_info")).collect();
        assert_eq!(some.lines().collect::<Vec<_>>(), samples);
        assert!(samples.len() > 20);
        for (suffix, wanted) in [
            ("", (|_, suffix| suffix.is_empty()) as Wanted),
            ("_sum", |_, suffix| suffix == "_sum"),
            ("_count", |_, suffix| suffix == "_count"),
            ("_bucket", |_, suffix| suffix == "_bucket"),
        ] {
            let of_kind = |line: &&&str| {
                let name = line.split(['{', ' ']).next().unwrap();
                let kind = ["_sum", "_count", "_bucket"].into_iter().find(|suffix| name.ends_with(suffix));
                kind.unwrap_or("") == suffix
            };
            let expected: Vec<_> = samples.iter().filter(of_kind).copied().collect();
            assert!(!expected.is_empty());
            assert_eq!(pages(wanted).1.lines().collect::<Vec<_>>(), expected, "{suffix}");
        }
        let (_, lifetime) = pages(|name, _| name.contains("lifetime"));
        assert!(lifetime.lines().all(|line| line.contains("lifetime")) && lifetime.contains("_sum 2.5"));
    }

    #[test]
    fn label_values_are_escaped_and_names_made_valid() {
        let resource = [("a.b".to_owned(), "x\"y\\z\nw".to_owned()), ("9".to_owned(), String::new())];
        let page = Page::new(&resource).finish();
        let last = page.lines().last().unwrap();
        assert_eq!(last, r#"target_info{a_b="x\"y\\z\nw",_9=""} 1"#);
    }
}
