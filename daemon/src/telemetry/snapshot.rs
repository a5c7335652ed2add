//! The walk over all metrics that both readers, the scrape and the OTLP export, make.

use std::time::SystemTime;

use super::catalogue::{CATALOGUE, Metric, Name, Reader, Set};
use super::pulled::{Pulled, Sources};
use super::series::{Labels, Value};
use crate::config::MetricsCompat;

/// Where the points go.
pub trait Sink {
    /// Whose it is.
    const READER: Reader;

    /// A family begins; it may have no points.
    fn family(&mut self, metric: &'static Metric, name: Name);

    /// One of its points.
    fn point(
        &mut self,
        metric: &'static Metric,
        name: Name,
        labels: Labels<'_>,
        value: &Value,
        start: SystemTime,
    );
}

/// Which families are shown.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Under which names.
    pub compat: MetricsCompat,
    /// Families that subscribers feed; without them only what is read at the scrape.
    pub pushed: bool,
}

/// Shows everything to `sink`.
pub fn walk<S: Sink>(selection: Selection, sources: Sources<'_>, sink: &mut S) {
    let pulled = Pulled::new(sources);
    for metric in &CATALOGUE {
        if !selection.pushed && metric.set != Set::Own && metric.is_pushed() {
            continue;
        }
        for name in metric.names(selection.compat, S::READER) {
            sink.family(metric, name);
            if metric.is_pushed() {
                let point =
                    |labels: Labels<'_>, value: &Value, start| sink.point(metric, name, labels, value, start);
                sources.store.each(metric.id, point);
            } else {
                for (labels, value) in pulled.points(metric.id) {
                    sink.point(metric, name, Labels::Values(labels), value, sources.store.started());
                }
            }
        }
    }
}
