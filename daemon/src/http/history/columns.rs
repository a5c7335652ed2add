//! The series of the live page: a column of points for each number and label set.

use rustc_hash::{FxHashMap, FxHashSet};

use super::MAX_POINTS;
use crate::http::page::sample::Series;
use crate::http::page::wanted::{MAX_LABEL_SETS, OTHERS, WANTED};

/// All columns. Numbers that are kept by the same labels have the same label sets: what a worker stores and what it loads, what
/// of a model is looked up and what is found, are all under its name or all among the others, and can be held against each other.
#[derive(Debug, Default)]
pub(super) struct Columns {
    columns: Vec<Column>,
    /// Places of the series among the columns.
    ids: FxHashMap<Series, usize>,
    /// What columns that are gone had their values in, for those that come: as long as workers come and go, memory neither grows nor
    /// wanders from one thread's heap to another's.
    spare: Vec<Box<[f64]>>,
}

/// A series, with room for all points, of which number `n` is at `n % MAX_POINTS`; NaN where there is nothing. All of it is there
/// from its label set's first point on, so that the daemon's memory does not grow for a quarter of an hour.
#[derive(Debug)]
struct Column {
    series: Series,
    values: Box<[f64]>,
    /// Whether it ever had a point. It may be there because another number has its labels.
    filled: bool,
}

/// A value of a column.
fn there(value: f64) -> Option<f64> {
    Some(value).filter(|value| !value.is_nan())
}

impl Columns {
    /// The place of a series. Those that are known keep theirs; when there are too many, new ones share one.
    fn admit(&mut self, series: Series) -> usize {
        if let Some(id) = self.ids.get(&series) {
            return *id;
        }
        let (wanted, by) = (series.wanted, WANTED[series.wanted].by);
        let sets = self.columns.iter().filter(|other| other.series.wanted == wanted).count();
        let labels = match sets < MAX_LABEL_SETS {
            true => series.labels,
            false => by.iter().map(|_| OTHERS.to_owned()).collect(),
        };
        let series = Series { wanted, labels };
        if let Some(id) = self.ids.get(&series) {
            return *id;
        }
        for other in (0..WANTED.len()).filter(|other| WANTED[*other].by == by) {
            // Numbers without labels have nothing to do with each other.
            if other == wanted || !by.is_empty() {
                self.insert(Series { wanted: other, labels: series.labels.clone() });
            }
        }
        self.ids[&series]
    }

    fn insert(&mut self, series: Series) {
        self.ids.insert(series.clone(), self.columns.len());
        let values = match self.spare.pop() {
            Some(mut values) => {
                values.fill(f64::NAN);
                values
            }
            None => vec![f64::NAN; MAX_POINTS].into(),
        };
        self.columns.push(Column { series, values, filled: false });
    }

    /// Empties a slot for the next point.
    pub(super) fn begin(&mut self, slot: usize) {
        self.columns.iter_mut().for_each(|column| column.values[slot] = f64::NAN);
    }

    /// Adds to a series' value in a slot.
    pub(super) fn add(&mut self, slot: usize, series: Series, value: f64) {
        let id = self.admit(series);
        let column = &mut self.columns[id];
        let place = &mut column.values[slot];
        *place = if place.is_nan() { value } else { *place + value };
        column.filled = true;
    }

    /// Workers and salts come and go: a label set without a point in any of its columns gives its place to the next. `slots` are
    /// those of the points that are kept.
    pub(super) fn forget_dead(&mut self, slots: &[usize]) {
        let labels = |column: &Column| (WANTED[column.series.wanted].by, column.series.labels.clone());
        let alive = |column: &&Column| slots.iter().any(|slot| there(column.values[*slot]).is_some());
        let alive: FxHashSet<_> = self.columns.iter().filter(alive).map(labels).collect();
        let dead: Vec<Column> =
            self.columns.extract_if(.., |column| !alive.contains(&labels(column))).collect();
        if !dead.is_empty() {
            self.spare.extend(dead.into_iter().map(|column| column.values));
            self.ids.clear();
            let places = self.columns.iter().map(|column| column.series.clone()).enumerate();
            self.ids.extend(places.map(|(id, series)| (series, id)));
        }
    }

    /// The series that ever had a point, and their places.
    pub(super) fn filled(&self) -> impl Iterator<Item = (usize, &Series)> {
        let filled = self.columns.iter().enumerate().filter(|(_, column)| column.filled);
        filled.map(|(id, column)| (id, &column.series))
    }

    /// Places of all series of a number.
    pub(super) fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = usize> + 'a {
        (0..self.columns.len()).filter(move |id| WANTED[self.columns[*id].series.wanted].key == key)
    }

    /// What a series has in a slot.
    pub(super) fn get(&self, id: usize, slot: usize) -> Option<f64> {
        there(self.columns[id].values[slot])
    }
}
