//! `docs/INSTRUMENTATION.md` against the code: its catalogue is made from the code's, its event table names every event.
//! `UPDATE_DOCS=1 cargo test -p lmcached --test instrumentation` writes the catalogue anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use lmcached::telemetry::catalogue::{CATALOGUE, Metric, Set};

const BEGIN: &str = "<!-- catalogue: begin -->\n";
const END: &str = "<!-- catalogue: end -->\n";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/INSTRUMENTATION.md")
}

/// The catalogue as tables, one for each section.
fn tables() -> String {
    let mut text = String::new();
    let mut section = "";
    for metric in &CATALOGUE {
        if metric.section != section {
            section = metric.section;
            let _ = write!(
                text,
                "\n### {section}\n\nChecked by `{}`.\n\n| OTLP name | scrape | kind | unit | attributes | scope | 0.5.6's name in the scrape | what |\n|---|---|---|---|---|---|---|---|\n",
                metric.check
            );
        }
        text.push_str(&line(metric));
    }
    text
}

fn line(metric: &Metric) -> String {
    let name = metric.seed.or(metric.v05).expect("a metric has a name");
    let v05 = match (metric.set, metric.v05) {
        (Set::Own, _) => "",
        (_, None) => "dropped",
        (_, Some(v05)) if v05.prometheus == name.prometheus => "same",
        (_, Some(v05)) => v05.prometheus,
    };
    let quoted = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let v05 = if v05.starts_with("lmcache") { quoted(v05) } else { v05.to_owned() };
    let attributes: Vec<_> = metric.attributes.iter().map(|attribute| quoted(attribute)).collect();
    format!(
        "| `{}` | `{}` | {} | {} | {} | {} | {v05} | {} |\n",
        name.otel,
        name.prometheus,
        metric.kind.name(),
        quoted(name.unit),
        attributes.join(", "),
        quoted(metric.scope),
        metric.description
    )
}

fn split(document: &str) -> (&str, &str, &str) {
    let (before, rest) = document.split_once(BEGIN).expect("the catalogue's begin");
    let (catalogue, after) = rest.split_once(END).expect("the catalogue's end");
    (before, catalogue, after)
}

#[test]
fn the_documented_catalogue_is_the_code_s() {
    let document = std::fs::read_to_string(path()).expect("the document");
    let (before, catalogue, after) = split(&document);
    let wanted = tables();
    if catalogue == wanted {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "docs/INSTRUMENTATION.md is not the catalogue any more: UPDATE_DOCS=1 cargo test -p lmcached --test instrumentation"
    );
    // In one step: the other tests read it meanwhile.
    let new = path().with_extension("new");
    std::fs::write(&new, format!("{before}{BEGIN}{wanted}{END}{after}")).expect("written");
    std::fs::rename(new, path()).expect("renamed");
}

#[test]
fn the_event_table_names_every_event_and_no_other() {
    let source = include_str!("../src/events/event.rs");
    let (_, variants) = source.split_once("pub enum Event {").expect("the enum");
    let (variants, _) = variants.split_once("\n}\n").expect("its end");
    let events: BTreeSet<&str> = variants
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.trim_end_matches([' ', '{', ',']))
        .collect();
    let document = std::fs::read_to_string(path()).expect("the document");
    let (before, ..) = split(&document);
    let named: BTreeSet<&str> = before
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(event, _)| event)
        .filter(|event| event.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect();
    assert_eq!(named, events);
}

#[test]
fn every_metric_has_a_check_that_exists() {
    for metric in &CATALOGUE {
        let check = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(metric.check);
        assert!(check.is_file(), "{}: {}", metric.description, metric.check);
    }
}
