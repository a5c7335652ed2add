//! A call's arguments as LMCache's recorder writes them. Its replay calls the method of that name with them, so the names
//! are part of the format, and defaults are written out.

use lmcache_proto::layout::ObjectLayout;
use lmcache_proto::wire::Writer;

use super::operation::Operation;
use crate::config::TraceArgs;
use crate::events::{Cell, Keys, TraceCall};

/// The call's operation, and its arguments in the shapes of `release`.
pub fn encode(call: &TraceCall, release: TraceArgs) -> (Operation, Vec<u8>) {
    let mut out = Encoder { writer: Writer::with_capacity(most_bytes(call)), release };
    let old = release == TraceArgs::V045;
    let operation = match call {
        TraceCall::ReserveWrite { keys, layout } => {
            out.writer.map(if old { 3 } else { 2 }).str("keys");
            out.keys(keys);
            out.writer.str("layout_desc");
            out.layout(layout);
            if old {
                out.writer.str("mode").str("new");
            }
            Operation::ReserveWrite
        }
        TraceCall::FinishWrite { keys } => {
            out.writer.map(1).str("keys");
            out.keys(keys);
            Operation::FinishWrite
        }
        TraceCall::FinishRead { keys, read_locks } => {
            out.writer.map(2).str("keys");
            out.keys(keys);
            if old {
                out.writer.str("extra_count").uint(u64::from(read_locks.saturating_sub(1)));
            } else {
                out.writer.str("read_locks").uint(u64::from(*read_locks));
            }
            Operation::FinishRead
        }
        TraceCall::SubmitPrefetch { session, readers, .. } => {
            out.writer.map(if old { 4 } else { 3 });
            if old {
                out.flat(call);
                out.writer.str("extra_count").uint(u64::from(readers.saturating_sub(1)));
            } else {
                out.writer.str("spec");
                out.spec(call);
            }
            out.writer.str("external_request_id").str(session);
            if !old {
                out.writer.str("skip_l2").bool(false);
            }
            Operation::SubmitPrefetch
        }
    };
    (operation, out.writer.into_vec())
}

/// About how many bytes the arguments take, so that they are written without growing the buffer again and again.
fn most_bytes(call: &TraceCall) -> usize {
    let (keys, model, salt) = match call {
        TraceCall::ReserveWrite { keys, .. }
        | TraceCall::FinishWrite { keys }
        | TraceCall::FinishRead { keys, .. } => (keys.len(), keys.model(), keys.salt()),
        TraceCall::SubmitPrefetch { model, salt, hashes, rows, .. } => {
            (hashes.len() * rows.len(), model, salt)
        }
    };
    512 + keys * (160 + model.len() + salt.len())
}

/// An object's key but for its hash. The keys of a call differ in little else, and are most of what is recorded.
struct KeyForm {
    rank: u32,
    group: u32,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl KeyForm {
    fn new(release: TraceArgs, model: &str, salt: &str, rank: u32, group: u32) -> KeyForm {
        // 0.4.5 has no object groups. LMCache drops the salt, and its readers skip it; without it, the objects of two
        // tenants would be one in a replay.
        let with_group = release != TraceArgs::V045 || group != 0;
        let mut before = Writer::with_capacity(64);
        before.map(2).str("__t__").str("ObjectKey").str("v");
        before.map(3 + usize::from(with_group) + usize::from(!salt.is_empty())).str("chunk_hash");
        let mut after = Writer::with_capacity(64 + model.len() + salt.len());
        after.str("model_name").str(model).str("kv_rank").uint(u64::from(rank));
        if with_group {
            after.str("object_group_id").uint(u64::from(group));
        }
        if !salt.is_empty() {
            after.str("cache_salt").str(salt);
        }
        KeyForm { rank, group, before: before.into_vec(), after: after.into_vec() }
    }
}

struct Encoder {
    writer: Writer,
    release: TraceArgs,
}

impl Encoder {
    /// The wrapper of a value that msgpack has no type for; the value must follow.
    fn tagged(&mut self, tag: &str) -> &mut Writer {
        self.writer.map(2).str("__t__").str(tag).str("v")
    }

    /// The keys of some objects, one after the other.
    fn cells(&mut self, model: &str, salt: &str, cells: impl Iterator<Item = Cell>) {
        let mut form: Option<KeyForm> = None;
        for Cell { hash, rank, group } in cells {
            let form = match &mut form {
                Some(form) if (form.rank, form.group) == (rank, group) => form,
                other => other.insert(KeyForm::new(self.release, model, salt, rank, group)),
            };
            self.writer.raw(&form.before).bin(&hash).raw(&form.after);
        }
    }

    fn keys(&mut self, keys: &Keys) {
        self.writer.array(keys.len());
        self.cells(keys.model(), keys.salt(), keys.cells().iter().copied());
    }

    fn layout(&mut self, layout: &ObjectLayout) {
        let regions = layout.regions();
        let out = self.tagged("MemoryLayoutDesc");
        out.map(2).str("shapes").array(regions.len());
        for region in regions {
            // One plane has no axis of its own in a worker's registration.
            if region.planes == 1 {
                out.array(3);
            } else {
                out.array(4).uint(region.planes);
            }
            out.uint(region.layers).uint(region.slots).uint(region.width);
        }
        out.str("dtypes").array(regions.len());
        for region in regions {
            out.str(&format!("torch.{}", region.dtype.name()));
        }
    }

    /// 0.5.6: one group of keys for each row.
    fn spec(&mut self, call: &TraceCall) {
        let TraceCall::SubmitPrefetch { model, salt, hashes, rows, readers, .. } = call else { return };
        self.tagged("PrefetchTaskSpec").map(4).str("key_groups").array(rows.len());
        for row in rows {
            self.tagged("GroupedObjectKeys").map(4).str("keys").array(hashes.len());
            self.cells(
                model,
                salt,
                hashes.iter().map(|hash| Cell { hash: *hash, rank: row.rank, group: row.group }),
            );
            self.writer.str("object_group_id").uint(u64::from(row.group)).str("layout_desc");
            self.layout(&row.layout);
            let window = row.window.map_or(-1, |window| i64::try_from(window).unwrap_or(i64::MAX));
            self.writer.str("sliding_window_size").int(window);
        }
        self.writer.str("num_kv_readers").uint(u64::from(*readers)).str("fetching_policy").str("prefix");
        self.writer.str("lock_mode");
        self.tagged("PrefetchLockMode").str("LOCK");
    }

    /// 0.4.5: all keys in one list, chunk by chunk, and the layout of one group.
    fn flat(&mut self, call: &TraceCall) {
        let TraceCall::SubmitPrefetch { model, salt, hashes, rows, .. } = call else { return };
        self.writer.str("keys").array(hashes.len() * rows.len());
        let of_row = |hash| rows.iter().map(move |row| Cell { hash, rank: row.rank, group: row.group });
        self.cells(model, salt, hashes.iter().flat_map(|hash| of_row(*hash)));
        self.writer.str("layout_desc");
        match rows.first() {
            Some(row) => self.layout(&row.layout),
            None => drop(self.writer.nil()),
        }
    }
}
