//! `#[repr(C)]` layouts of the segments that processes share.
//!
//! Three segments, all 0600 and owned by the daemon:
//! * the **pool**: payload bytes and nothing else; the only name that is handed to workers;
//! * the **table**: [`TableHeader`], then names, object records and pins, at the offsets of [`TableLayout`];
//! * the **ring**: lanes of records that workers write and the daemon reads; new at every start.
//!
//! Only the daemon writes the table, and while it runs its heap holds the truth: the table is written through so
//! that the next daemon finds every committed object and every pin after a `kill -9` at any instruction. The rule
//! for that is in [`ObjectRecord`].

pub mod names;
pub mod ring;
mod table;

pub use table::{
    NAME_BYTES, NameRecord, ObjectRecord, ObjectState, PAGE, PinKind, PinRecord, TABLE_MAGIC, TABLE_VERSION,
    TableHeader, TableLayout,
};
