//! A lookup under a replay: what the engine does, with the same parts of L1 and L2.

use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use tokio::time::{Instant, timeout_at};

use super::super::decode::Prefetch;
use super::store::{Problem, Store};
use crate::l1::{L1, LeasedCell, ObjectId, Row, first_needed, longest_prefix};
use crate::l2::control::{Attached, Landed, Opened, Want};

/// Leases on cells, chunk-major.
struct Held {
    cells: Vec<Option<ObjectId>>,
    from_l1: Vec<bool>,
}

impl Store {
    pub(super) async fn prefetch(&mut self, call: Prefetch) -> Result<(), Problem> {
        let Some(first) = call.rows.first().filter(|row| !row.keys.is_empty()) else { return Ok(()) };
        let hashes: Vec<ChunkHash> = first.keys.iter().map(|key| key.hash).collect();
        let (model, salt) = (first.keys[0].model.clone(), first.keys[0].salt.clone());
        let rows: Vec<Row> = call
            .rows
            .iter()
            .map(|row| Row {
                rank: row.keys[0].rank,
                group: row.keys[0].group,
                window: row.window.filter(|_| call.prefix),
                layouts: [row.layout.fingerprint()].into(),
            })
            .collect();
        for row in &call.rows {
            self.learn(&row.keys, &row.layout);
        }
        let hit =
            if call.prefix { self.l1.lookup(&model, &salt, &hashes, &rows) } else { Default::default() };
        let asks_l2 = !call.skip_l2 && self.l2.as_ref().is_some_and(|l2| l2.tiers.any_usable());
        let (chunks, from_l1, cells) = if call.prefix && (hit.chunks == hashes.len() as u64 || !asks_l2) {
            (hit.chunks, hit.cells.len(), hit.cells)
        } else {
            let present = self.l1.lease_present(&model, &salt, &hashes, &rows);
            // The search for objects that are there, whatever lies between them, has leases of its own.
            self.l1.end_leases(hit.cells.iter().rev().map(|cell| cell.object));
            let from_l1 = present.iter().map(Option::is_some).collect();
            let mut held = Held { cells: present, from_l1 };
            if let Some(l2) = self.l2.as_ref().filter(|_| asks_l2) {
                let want = |at: usize| {
                    let row = &call.rows[at % rows.len()];
                    Want {
                        hash: hashes[at / rows.len()],
                        model: model.clone(),
                        salt: salt.clone(),
                        rank: rows[at % rows.len()].rank,
                        group: rows[at % rows.len()].group,
                        layout: row.layout.fingerprint(),
                        bytes: row.layout.bytes(),
                    }
                };
                let deadline = Instant::now() + l2.deadline;
                let loading = load(l2, &self.session, &rows, hashes.len(), call.prefix, &want, &mut held);
                if timeout_at(deadline, loading).await.is_err() {
                    self.outcomes.late_lookups += 1;
                }
            }
            found(&self.l1, &rows, hashes.len(), call.prefix, held)
        };
        let total = (hashes.len() * rows.len()) as u64;
        self.outcomes.lookups += 1;
        self.outcomes.requested_chunks += hashes.len() as u64;
        self.outcomes.hit_chunks += chunks;
        self.outcomes.requested_keys += total;
        self.outcomes.hit_keys += cells.len() as u64;
        self.outcomes.l1_hit_keys += from_l1 as u64;
        self.outcomes.l2_hit_keys += (cells.len() - from_l1) as u64;
        let had = if call.prefix { chunks * rows.len() as u64 } else { cells.len() as u64 };
        self.outcomes.missed_keys += total.saturating_sub(had);
        if call.lock {
            for cell in cells {
                let key = call.rows[cell.row as usize].keys[cell.chunk as usize].clone();
                self.leased(key, cell.object, call.readers);
            }
        } else {
            self.l1.end_leases(cells.iter().rev().map(|cell| cell.object));
        }
        Ok(())
    }
}

/// Brings what the tiers have and the hit needs.
async fn load(
    l2: &Opened,
    session: &Arc<str>,
    rows: &[Row],
    chunks: usize,
    prefix: bool,
    want: &impl Fn(usize) -> Want,
    held: &mut Held,
) {
    let _turn = l2.loader.turn().await;
    let missing: Vec<usize> = (0..held.cells.len()).filter(|at| held.cells[*at].is_none()).collect();
    let keys: Vec<_> = missing.iter().map(|at| want(*at).key()).collect();
    let mut in_tiers: Vec<Option<Arc<Attached>>> = vec![None; held.cells.len()];
    for (at, tier) in missing.iter().zip(l2.loader.presence(&keys).await) {
        in_tiers[*at] = tier;
    }
    drop(keys);
    let best = if prefix {
        longest_prefix(rows, chunks as u64, |chunk, row| {
            let at = chunk as usize * rows.len() + row;
            held.cells[at].is_some() || in_tiers[at].is_some()
        })
    } else {
        chunks as u64
    };
    let (mut cells, mut wants) = (Vec::new(), Vec::new());
    for at in missing {
        let (chunk, row) = ((at / rows.len()) as u64, at % rows.len());
        if chunk < best
            && chunk >= first_needed(rows[row].window, best)
            && let Some(tier) = in_tiers[at].take()
        {
            cells.push(at);
            wants.push((want(at), tier));
        }
    }
    let landed = |position: usize, landed: Landed| {
        if let Landed::Here(leased, _) = landed {
            held.cells[cells[position]] = leased.take();
        }
    };
    l2.loader.load(session, &wants, landed).await;
}

/// The hit in chunks, how much of it was in L1 from the start, and its leases; the others end.
fn found(l1: &L1, rows: &[Row], chunks: usize, prefix: bool, held: Held) -> (u64, usize, Vec<LeasedCell>) {
    let Held { mut cells, from_l1 } = held;
    let best =
        longest_prefix(rows, chunks as u64, |chunk, row| cells[chunk as usize * rows.len() + row].is_some());
    let (mut hit, mut of_l1) = (Vec::new(), 0);
    for at in 0..cells.len() {
        let (chunk, row) = ((at / rows.len()) as u64, at % rows.len());
        let needed = chunk < best && chunk >= first_needed(rows[row].window, best);
        if (needed || !prefix)
            && let Some(object) = cells[at].take()
        {
            of_l1 += usize::from(from_l1[at]);
            hit.push(LeasedCell { row: row as u32, chunk: chunk as u32, object });
        }
    }
    l1.end_leases(cells.into_iter().rev().flatten());
    (best, of_l1, hit)
}
