//! A larger `--l1-size-gb`: the pool that an earlier daemon left becomes longer, and everything in it stays.
//!
//! First a table for the larger pool is made beside the old one, then it takes that one's name, then the pool's file is
//! extended. A start that dies in between leaves the old pool with its old table, or with one that says more than there is;
//! the next start goes on from either. Workers have the pool mapped as long as it was: those that get slots of it must register
//! again, which the roster sees to (it knows how long the pool was when they registered).
#![forbid(unsafe_code)]

use std::sync::Arc;

use lmcache_proto::shm::{TableLayout, names};
use rustc_hash::FxHashSet;

use super::open::{HandedOver, L1Config, OpenError, differs, no_table};
use super::pool::{Difference, Segment, SegmentError, Table, copy_records, left_behind};
use crate::failpoint;

/// What became of a pool that was to be extended.
pub(super) enum Extended {
    /// It is as long as it should be. With the locks: nobody else may come in between.
    Done(HandedOver),
    /// It is not as it must be to be taken over, and is what it was.
    Not(Difference),
}

/// Extends the pool that was left with `found` bytes to those of the configuration.
///
/// # Errors
/// No memory, or a living daemon owns the segments.
pub(super) fn extend(config: &L1Config, found: u64, align: u64) -> Result<Extended, OpenError> {
    let wanted = config.pool_bytes;
    let table_name = names::table(&config.pool_name);
    let Some(table_bytes) = left_behind(&table_name).map(|meta| meta.len()).filter(|bytes| *bytes > 0) else {
        return Ok(Extended::Not(Difference::no_table()));
    };
    let sizes = TableLayout::for_pool(found).bytes()..=TableLayout::for_pool(wanted).bytes();
    if !sizes.contains(&table_bytes) {
        return Ok(Extended::Not(Difference::size("table size in bytes", table_bytes, *sizes.start())));
    }
    let pool = Segment::open(&config.pool_name, found, true, config.group)?;
    let table = Segment::open(&table_name, table_bytes, true, None)?;
    // What the table says counts: an extension may have ended between its two steps.
    let said = Table::pool_bytes(&table).map_err(|source| no_table(config, source))?;
    let from = said.filter(|bytes| (found..=wanted).contains(bytes)).unwrap_or(found);
    let (old, new) = (TableLayout::for_pool(from), TableLayout::for_pool(wanted));
    let as_it_was = L1Config { pool_bytes: from, ..config.clone() };
    if let Some(difference) = differs(&table, &as_it_was, &pool, align)? {
        return Ok(Extended::Not(difference));
    }
    if table_bytes != old.bytes() {
        return Ok(Extended::Not(Difference::size("table size in bytes", table_bytes, old.bytes())));
    }
    let table = if from == wanted {
        table
    } else {
        let larger = Segment::open(&names::larger_table(&config.pool_name), new.bytes(), false, None)?;
        copy_records((&table, old), (&larger, new), wanted).map_err(|source| no_table(config, source))?;
        failpoint::hit("l1.extend.copied");
        larger.renamed(&table_name)?
    };
    let pool = pool.extended(wanted)?;
    tracing::info!(
        pool = config.pool_name,
        from_bytes = found,
        to_bytes = wanted,
        "extended the pool that the earlier daemon left; its objects stay, and workers that have it mapped register again"
    );
    let own = |segment: &Segment| match segment.hand_over() {
        Ok(descriptor) => Ok(Arc::new(descriptor)),
        Err(source) => Err(SegmentError::Os { action: "keep", name: segment.name().to_owned(), source }),
    };
    Ok(Extended::Done(HandedOver { pool: own(&pool)?, table: own(&table)?, writing: FxHashSet::default() }))
}
