//! A Prometheus text page, taken apart.

use std::collections::BTreeMap;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name, with `_bucket` and the like.
    pub name: String,
    /// Labels as written between the braces.
    pub labels: String,
    /// Value.
    pub value: f64,
}

/// A page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Family → type.
    pub types: BTreeMap<String, String>,
    /// Families with a HELP line.
    pub helped: Vec<String>,
    /// All samples.
    pub samples: Vec<Sample>,
}

impl Page {
    /// Takes a page apart.
    ///
    /// # Panics
    /// If it is none.
    pub fn parse(text: &str) -> Page {
        let mut page = Page::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (family, kind) = rest.split_once(' ').expect("a type");
                assert!(page.types.insert(family.into(), kind.into()).is_none(), "{family} has two types");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (family, help) = rest.split_once(' ').expect("a help text");
                assert!(!help.is_empty(), "{family} has no help");
                page.helped.push(family.into());
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| {
                    (name, rest.strip_suffix('}').expect("a closed brace"))
                });
                let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
                page.samples.push(Sample { name: name.into(), labels: labels.into(), value });
            }
        }
        page
    }

    /// The value of exactly this series, labels as written.
    pub fn value(&self, name: &str, labels: &str) -> Option<f64> {
        self.samples.iter().find(|sample| sample.name == name && sample.labels == labels).map(|s| s.value)
    }

    /// Series of a name.
    pub fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}
