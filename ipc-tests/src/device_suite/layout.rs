//! How the layers of the suite's workers are laid out.

use lmcache_proto::wire::TensorMetadata;

/// Blocks of a layer.
pub(super) const BLOCKS: u64 = 72;
/// Slots of a block, and its tokens.
pub(super) const SLOTS: u64 = 16;
const HEADS: u64 = 2;
const WIDTH: u64 = 32;
/// Bytes of an element: float16.
const ELEMENT: u64 = 2;

/// How an engine lays a layer out. Without another word slots come before heads, and blocks follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All K blocks, then all V blocks.
    KvFirst,
    /// As `KvFirst`, heads before slots.
    HeadMajor,
    /// K and V of a block side by side.
    BlocksFirst,
    /// As `BlocksFirst`, heads before slots.
    BlocksFirstHeadMajor,
    /// K and V of a head side by side: one plane.
    Fused,
    /// As `Fused`, heads before slots.
    FusedHeadMajor,
    /// One latent for each slot: one plane.
    Mla,
    /// As `Fused`, with padding behind each block.
    FusedPadded,
    /// As `FusedHeadMajor`, with padding behind each block.
    FusedHeadMajorPadded,
    /// As `Mla`, with padding behind each block.
    MlaPadded,
}

/// All of them.
pub const LAYOUTS: [Layout; 10] = [
    Layout::KvFirst,
    Layout::HeadMajor,
    Layout::BlocksFirst,
    Layout::BlocksFirstHeadMajor,
    Layout::Fused,
    Layout::FusedHeadMajor,
    Layout::Mla,
    Layout::FusedPadded,
    Layout::FusedHeadMajorPadded,
    Layout::MlaPadded,
];

/// Bytes of a layer.
pub fn layer_bytes(layout: Layout) -> u64 {
    layout.layer_bytes()
}

impl Layout {
    pub(super) fn planes(self) -> u64 {
        match self {
            Layout::KvFirst | Layout::HeadMajor | Layout::BlocksFirst | Layout::BlocksFirstHeadMajor => 2,
            _ => 1,
        }
    }

    fn is_head_major(self) -> bool {
        matches!(
            self,
            Layout::HeadMajor
                | Layout::BlocksFirstHeadMajor
                | Layout::FusedHeadMajor
                | Layout::FusedHeadMajorPadded
        )
    }

    /// Heads, and elements of one in a slot.
    fn heads(self) -> (u64, u64) {
        match self {
            Layout::Mla | Layout::MlaPadded => (1, HEADS * WIDTH),
            _ if self.planes() == 2 => (HEADS, WIDTH),
            _ => (HEADS, 2 * WIDTH),
        }
    }

    /// Elements of one block of one plane.
    fn tile(self) -> u64 {
        let (heads, width) = self.heads();
        SLOTS * heads * width
    }

    /// Elements of the padding behind a block: such that blocks begin at multiples of 2, 8 and 16 bytes, as each of them has
    /// its own way through the GPU's kernel.
    fn padding(self) -> u64 {
        match self {
            Layout::FusedPadded => 5,
            Layout::FusedHeadMajorPadded => 12,
            Layout::MlaPadded => 24,
            _ => 0,
        }
    }

    /// Elements from one plane to the next, and from one block to the next.
    fn steps(self) -> (u64, u64) {
        let tile = self.tile();
        match self {
            Layout::KvFirst | Layout::HeadMajor => (BLOCKS * tile, tile),
            Layout::BlocksFirst | Layout::BlocksFirstHeadMajor => (tile, 2 * tile),
            _ => (0, tile + self.padding()),
        }
    }

    /// Elements from one slot to the next, and from one head to the next.
    fn steps_in_block(self) -> (u64, u64) {
        let (heads, width) = self.heads();
        if self.is_head_major() { (width, SLOTS * width) } else { (heads * width, width) }
    }

    /// What the engine says of the order. To one layer of a cache whose blocks hold all layers, the others are padding.
    pub(super) fn hint(self) -> &'static str {
        match (self.is_head_major(), self.padding() > 0) {
            (false, false) => "NHD",
            (true, false) => "HND",
            (false, true) => "BLNHC",
            (true, true) => "BLHNC",
        }
    }

    /// The view that an engine hands out: slots before heads in the shape, whatever the strides say.
    pub(super) fn metadata(self, uuid: &str, offset: u64) -> TensorMetadata {
        let (plane, block) = self.steps();
        let (slot, head) = self.steps_in_block();
        let (heads, width) = self.heads();
        let (shape, stride) = match self {
            Layout::KvFirst | Layout::HeadMajor => {
                (vec![2, BLOCKS, SLOTS, heads, width], vec![plane, block, slot, head, 1])
            }
            Layout::BlocksFirst | Layout::BlocksFirstHeadMajor => {
                (vec![BLOCKS, 2, SLOTS, heads, width], vec![block, plane, slot, head, 1])
            }
            Layout::Mla | Layout::MlaPadded => (vec![BLOCKS, SLOTS, width], vec![block, slot, 1]),
            _ => (vec![BLOCKS, SLOTS, heads, width], vec![block, slot, head, 1]),
        };
        let (dtype, device_uuid) = ("float16".to_owned(), uuid.to_owned());
        TensorMetadata { dtype, shape, stride, storage_offset: offset, device_uuid }
    }

    /// Bytes of one block of one plane.
    pub(super) fn block_bytes(self) -> usize {
        (self.tile() * ELEMENT) as usize
    }

    /// Where a block of a plane begins.
    pub(super) fn at(self, plane: u64, block: u64) -> usize {
        let (plane_step, block_step) = self.steps();
        ((plane * plane_step + block * block_step) * ELEMENT) as usize
    }

    /// Bytes of one slot of one plane.
    pub(super) fn slot_bytes(self) -> usize {
        let (heads, width) = self.heads();
        (heads * width * ELEMENT) as usize
    }

    /// One slot of a block of a plane as an object has it: one head after the other.
    pub(super) fn slot(self, layer: &[u8], plane: u64, block: u64, slot: u64) -> Vec<u8> {
        let (slot_step, head_step) = self.steps_in_block();
        let (heads, width) = self.heads();
        let head = |head: u64| {
            let at = self.at(plane, block) + ((slot * slot_step + head * head_step) * ELEMENT) as usize;
            &layer[at..at + (width * ELEMENT) as usize]
        };
        (0..heads).flat_map(head).copied().collect()
    }

    /// Where the padding behind each block is.
    pub(super) fn gaps(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let bytes = (self.padding() * ELEMENT) as usize;
        (0..BLOCKS).filter(move |_| bytes > 0).map(move |block| {
            let end = self.at(0, block) + self.block_bytes();
            end..end + bytes
        })
    }

    pub(super) fn layer_bytes(self) -> u64 {
        let (plane, block) = self.steps();
        // Whichever of the two is outermost.
        ELEMENT * if self.planes() == 2 { (2 * plane).max(BLOCKS * block) } else { BLOCKS * block }
    }
}
