//! The catalogue against the documented table and against what the two LMCache releases have.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::events::TIMING_BOUNDS_NS;

const PAGE_CSV: &str = include_str!("../../../tests/vectors/metric-catalogue.csv");
const M045: &str = include_str!("../../../tests/vectors/m045.txt");
const M056: &str = include_str!("../../../tests/vectors/m056.txt");
const PROM056: &str = include_str!("../../../tests/vectors/prom056.txt");
const LIVE056: &str = include_str!("../../../tests/vectors/golden_metrics_056.txt");

/// Families of 0.5.6 that have no counterpart here; `v05.rs` says why.
fn is_not_served(family: &str) -> bool {
    ["lmcache_blend_", "lmcache_coordinator_", "lmcache_mp_key_directory_", "lmcache_mp_transfer_"]
        .iter()
        .any(|prefix| family.starts_with(prefix))
}

#[test]
fn the_page_is_the_documented_table() {
    let rows: Vec<String> = PAGE
        .iter()
        .map(|metric| {
            let name = metric.seed.unwrap();
            let attributes = metric.attributes.join(";");
            format!(
                "{},{},{},{attributes},{}",
                name.otel,
                metric.kind.name(),
                name.prometheus,
                metric.section
            )
        })
        .collect();
    let documented: Vec<&str> = PAGE_CSV.lines().skip(1).collect();
    assert_eq!(rows, documented);
}

/// Name → unit and meter, where a creation site tells them.
fn creation_sites(table: &'static str) -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let rows = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    rows.map(|columns| (columns[3], (columns[4], columns[5]))).collect()
}

#[test]
fn units_and_scopes_are_those_of_the_release_that_the_page_describes() {
    let sites = creation_sites(M045);
    for metric in &PAGE {
        let name = metric.seed.unwrap();
        let (unit, scope) = sites[name.otel];
        assert_eq!(name.unit, unit, "{}", name.otel);
        // One site names its meter in a variable; its name is in the inventory.
        let scope = if scope == "?" { "lmcache.mp_server" } else { scope };
        assert_eq!(metric.scope, scope, "{}", name.otel);
    }
}

#[test]
fn names_of_0_5_6_have_its_units_and_scopes() {
    let sites = creation_sites(M056);
    for metric in CATALOGUE.iter().filter(|metric| metric.set != Set::Own) {
        let Some(name) = metric.v05 else { continue };
        let Some((unit, scope)) = sites.get(name.otel) else { panic!("0.5.6 has no {}", name.otel) };
        assert_eq!(name.unit, *unit, "{}", name.otel);
        // Some moved to another meter between the releases: one family has one scope here.
        if metric.set == Set::V05 && *scope != "?" {
            assert_eq!(metric.scope, *scope, "{}", name.otel);
        }
    }
}

#[test]
fn every_family_of_0_5_6_is_there_or_has_a_reason_not_to_be() {
    let ours: BTreeMap<&str, &str> = CATALOGUE
        .iter()
        .filter(|metric| metric.set != Set::Own)
        .filter_map(|metric| Some((metric.v05?.prometheus, metric.kind.prometheus())))
        .collect();
    let mut theirs = BTreeMap::new();
    for line in PROM056.lines().filter(|line| !line.contains("target_info")) {
        let columns: Vec<&str> = line.split(' ').collect();
        theirs.insert(columns[2], columns[3]);
    }
    for (family, kind) in &theirs {
        match ours.get(family) {
            Some(found) => assert_eq!(found, kind, "{family}"),
            None => assert!(is_not_served(family), "{family} is not served"),
        }
    }
    for family in ours.keys() {
        assert!(theirs.contains_key(family), "0.5.6 has no {family}");
    }
}

#[test]
fn labels_of_0_5_6_are_those_of_a_live_server() {
    let mut live: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in LIVE056.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let names = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split('=').next());
        let names = names.filter(|name| !name.is_empty() && *name != "le");
        live.entry(name).or_default().extend(names);
    }
    let mut compared = 0;
    for metric in CATALOGUE.iter().filter(|metric| metric.set != Set::Own) {
        let Some(name) = metric.v05 else { continue };
        let Some(theirs) =
            live.get(name.prometheus).or(live.get(format!("{}_count", name.prometheus).as_str()))
        else {
            continue;
        };
        let mut ours: BTreeSet<&str> = metric.attributes.iter().copied().collect();
        ours.extend(name.fixed.iter().map(|(label, _)| *label));
        if metric.omit_empty {
            // The live server had no salts.
            ours.remove("cache_salt");
        }
        assert_eq!(&ours, theirs, "{}", name.prometheus);
        compared += 1;
    }
    assert!(compared >= 30, "{compared}");
}

#[test]
fn no_family_has_two_metrics() {
    for compat in [MetricsCompat::Seed, MetricsCompat::V05, MetricsCompat::Both] {
        for reader in [Reader::Scrape, Reader::Push] {
            let mut seen = BTreeSet::new();
            for metric in &CATALOGUE {
                for name in metric.names(compat, reader) {
                    let name = if reader == Reader::Scrape { name.prometheus } else { name.otel };
                    assert!(seen.insert(name), "{name} twice with {compat:?} for {reader:?}");
                }
            }
        }
    }
}

#[test]
fn histograms_have_rising_bounds_that_end_where_they_should() {
    let last = |bounds: Bounds| *bounds.values().last().unwrap();
    for bounds in [Bounds::Lifecycle, Bounds::EvictReuse, Bounds::Throughput, Bounds::Chunks, Bounds::Latency]
    {
        assert!(bounds.values().is_sorted_by(|a, b| a < b), "{bounds:?}");
    }
    assert_eq!((last(Bounds::Lifecycle), last(Bounds::EvictReuse)), (14_400.0, 300.0));
    assert_eq!(last(Bounds::Chunks), 4f64.powi(10));
    assert!(Bounds::Throughput.values().windows(2).all(|pair| (pair[1] / pair[0] - 2.0).abs() < 1e-9));
    let below_300: Vec<f64> =
        Bounds::Lifecycle.values().iter().copied().filter(|bound| *bound <= 300.0).collect();
    assert_eq!(Bounds::EvictReuse.values(), below_300);
    let timing: Vec<f64> = TIMING_BOUNDS_NS.iter().map(|bound| *bound as f64 / 1e9).collect();
    assert_eq!(Bounds::Latency.values(), timing);
}
