//! What one request may carry. LMCache names no bounds; these keep a hostile peer from making the daemon hold, or
//! work on, much more than real clients need. Each is far above what has been seen of LMCache and vLLM.

/// Longest model name, request id, dtype, device id or other name, in bytes. Names end in the intern table of the
/// shared segment, in maps and in log lines.
pub const NAME_MAX_BYTES: usize = 1024;

/// Longest cache salt, in characters. The protocol's own bound.
pub const SALT_MAX_CHARS: usize = 128;

/// Longest operation frame. The longest name of 0.5.6 has 41 bytes, and the frame is echoed in the reply.
pub const OPERATION_MAX_BYTES: usize = 128;

/// Most bytes of all frames of a registration. A descriptor has some 300 bytes, so [`DESCRIPTORS_MAX`] of them fit;
/// the daemon keeps what a worker has registered for as long as the worker lives.
pub const REGISTRATION_MAX_BYTES: usize = 4 << 20;

/// Most tensors that a worker may register: one or two per layer in every known engine.
pub const DESCRIPTORS_MAX: usize = 4096;

/// Most fields of a device descriptor. The largest known kind (`cuda_vmm`) has 9; the fields are searched in order.
pub const DESCRIPTOR_MAX_PAIRS: usize = 16;

/// Most dimensions of a tensor; KV caches have 3 to 6.
pub const RANK_MAX: usize = 8;

/// Most KV groups of one model; hybrid models have 2 to 10.
pub const GROUPS_MAX: usize = 256;

/// Most block ids of one transfer, all groups together: 64 M tokens in blocks of 16. A block id of one byte on the wire
/// takes eight in memory, so this is also the bound of that growth: 32 MiB.
pub const BLOCK_IDS_MAX: usize = 4 << 20;

/// Largest `report_block_allocation` payload. A report is one scheduler step, whose tokens a scheduler bounds at
/// thousands; decoded it takes up to eight times as much.
pub const BLOCK_REPORT_MAX_BYTES: usize = 8 << 20;

/// Deepest nesting of a struct that serde decodes; the real ones have 3, and serde recurses.
pub const DEPTH_MAX: usize = 32;

/// Longest token list that is remembered for a client, in bytes: some 80 k tokens. What is longer costs its client
/// time, not the daemon memory.
pub const MEMO_MAX_BYTES: usize = 256 << 10;
