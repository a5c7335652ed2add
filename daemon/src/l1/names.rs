//! Interned model names and salts: objects carry a 4-byte id instead of two strings.
#![forbid(unsafe_code)]

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::pool::Table;
use crate::failpoint;

/// Id of an interned name. Id 0 is the empty name, which needs no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameId(pub u32);

impl NameId {
    /// The empty name.
    pub const EMPTY: NameId = NameId(0);
}

/// The names in use, with how many objects use each.
#[derive(Debug)]
pub struct Names {
    by_name: FxHashMap<Box<str>, NameId>,
    entries: Vec<(Arc<str>, u64)>,
    unused: Vec<u32>,
    limit: u32,
}

impl Names {
    /// Room for `limit` names.
    pub fn new(limit: u64) -> Names {
        Names {
            by_name: FxHashMap::default(),
            entries: vec![("".into(), 1)],
            unused: Vec::new(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        }
    }

    /// The id of a name that some object uses. A name without id has no objects.
    pub fn find(&self, name: &str) -> Option<NameId> {
        if name.is_empty() { Some(NameId::EMPTY) } else { self.by_name.get(name).copied() }
    }

    /// The name of an id.
    pub fn name(&self, id: NameId) -> Arc<str> {
        self.entries.get(id.0 as usize).map_or_else(|| Arc::from(""), |entry| entry.0.clone())
    }

    /// The id of `name`, new if need be, held until [`Names::release`]. `None` when too many names are in use: tenants
    /// come from the wire, so their number has a bound.
    pub fn acquire(&mut self, name: &str, table: &Table) -> Option<NameId> {
        if let Some(id) = self.find(name) {
            self.hold(id);
            return Some(id);
        }
        let index = match self.unused.pop() {
            Some(index) => index,
            None if (self.entries.len() as u32) < self.limit
                && table.back_name(self.entries.len() as u32) =>
            {
                self.entries.push(("".into(), 0));
                (self.entries.len() - 1) as u32
            }
            None => return None,
        };
        self.entries[index as usize] = (name.into(), 1);
        self.by_name.insert(name.into(), NameId(index));
        table.write_name(index, name);
        Some(NameId(index))
    }

    /// Puts a name of an earlier daemon back under its id, used by nobody yet. `false`: another id has it, so this one stands
    /// for nothing; whoever swept one of the two would take the name from the other's objects.
    pub(super) fn restore(&mut self, id: NameId, name: &str) -> bool {
        if self.by_name.contains_key(name) {
            return false;
        }
        while self.entries.len() <= id.0 as usize {
            self.entries.push((Arc::from(""), 0));
        }
        self.entries[id.0 as usize].0 = name.into();
        self.by_name.insert(name.into(), id);
        true
    }

    /// Whether `id` stands for a name.
    pub(super) fn exists(&self, id: NameId) -> bool {
        id == NameId::EMPTY || self.entries.get(id.0 as usize).is_some_and(|entry| !entry.0.is_empty())
    }

    /// Frees restored names that nobody uses.
    pub(super) fn sweep(&mut self, table: &Table) {
        for index in 1..self.entries.len() {
            if self.entries[index].1 == 0 {
                let name = std::mem::replace(&mut self.entries[index].0, Arc::from(""));
                self.by_name.remove(&*name);
                table.clear_name(index as u32);
                failpoint::hit("names.swept");
                self.unused.push(index as u32);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn limit_to(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Names in use.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// One more user of `id`.
    pub fn hold(&mut self, id: NameId) {
        self.entries[id.0 as usize].1 += 1;
    }

    /// One user less; the last one frees the id.
    pub fn release(&mut self, id: NameId, table: &Table) {
        if id == NameId::EMPTY {
            return;
        }
        let entry = &mut self.entries[id.0 as usize];
        entry.1 -= 1;
        if entry.1 == 0 {
            let name = std::mem::replace(&mut entry.0, Arc::from(""));
            self.by_name.remove(&*name);
            table.clear_name(id.0);
            failpoint::hit("names.released");
            self.unused.push(id.0);
        }
    }
}
