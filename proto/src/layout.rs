//! What the bytes of a stored object mean.
//!
//! An object is the concatenation of one region per kernel group, each `[planes, layers, slots, width]` in the
//! engine's element type, token-major whatever the engine's own layout is (LMCache calls it "2LTD").
#![forbid(unsafe_code)]

use crate::fnv::Fnv;

/// Element types by their torch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "torch's names")]
pub enum Dtype {
    Float16,
    Bfloat16,
    Float32,
    Float64,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Float8E4m3fn,
    Float8E5m2,
}

use Dtype as D;

const DTYPES: [(Dtype, &str, u64); 11] = [
    (D::Float16, "float16", 2),
    (D::Bfloat16, "bfloat16", 2),
    (D::Float32, "float32", 4),
    (D::Float64, "float64", 8),
    (D::Uint8, "uint8", 1),
    (D::Int8, "int8", 1),
    (D::Int16, "int16", 2),
    (D::Int32, "int32", 4),
    (D::Int64, "int64", 8),
    (D::Float8E4m3fn, "float8_e4m3fn", 1),
    (D::Float8E5m2, "float8_e5m2", 1),
];

impl Dtype {
    /// Looks up a torch name (`half` and friends are aliases in torch, but the wire always carries these).
    pub fn from_name(name: &str) -> Option<Dtype> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// torch's name without prefix.
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].1
    }

    /// Bytes per element.
    pub fn size(self) -> u64 {
        DTYPES[self as usize].2
    }
}

/// One region of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// 2 for separate K and V, 1 for MLA and fused K/V.
    pub planes: u64,
    /// Layers in the group.
    pub layers: u64,
    /// Slots (physical tokens) per chunk.
    pub slots: u64,
    /// Elements per slot: heads × head size.
    pub width: u64,
    /// Element type.
    pub dtype: Dtype,
}

impl Region {
    /// Bytes of the region, or `None` if that overflows.
    pub fn bytes(&self) -> Option<u64> {
        [self.layers, self.slots, self.width, self.dtype.size()]
            .iter()
            .try_fold(self.planes, |product, factor| product.checked_mul(*factor))
    }
}

/// Layout of one object: its regions in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectLayout {
    regions: Vec<Region>,
    bytes: u64,
}

impl ObjectLayout {
    /// `None` if there is no region, one is empty, or the size overflows.
    pub fn new(regions: Vec<Region>) -> Option<ObjectLayout> {
        let bytes = regions.iter().try_fold(0u64, |sum, region| sum.checked_add(region.bytes()?))?;
        let empty = regions.iter().any(|region| region.bytes() == Some(0));
        if regions.is_empty() || empty { None } else { Some(ObjectLayout { regions, bytes }) }
    }

    /// The regions in order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of an object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A number that is equal for equal layouts, stored with each object so that an object written under
    /// another shape is never served. FNV-1a of the regions' numbers: stable across releases and machines.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Fnv::new();
        for region in &self.regions {
            for number in [region.planes, region.layers, region.slots, region.width, region.dtype as u64] {
                hash.bytes(&number.to_le_bytes());
            }
        }
        hash.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtype_table_is_in_enum_order() {
        for (position, row) in DTYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, position);
        }
    }

    #[test]
    fn absurd_layouts_are_refused() {
        let region = Region { planes: 2, layers: 32, slots: 256, width: 1024, dtype: Dtype::Bfloat16 };
        assert_eq!(ObjectLayout::new(vec![region]).expect("sane").bytes(), 2 * 32 * 256 * 1024 * 2);
        assert!(ObjectLayout::new(vec![]).is_none());
        assert!(ObjectLayout::new(vec![Region { layers: 0, ..region }]).is_none());
        assert!(ObjectLayout::new(vec![Region { width: u64::MAX, ..region }]).is_none());
    }

    #[test]
    fn fingerprint_tells_shapes_apart() {
        let region = Region { planes: 2, layers: 4, slots: 256, width: 64, dtype: Dtype::Float16 };
        let same_size = Region { dtype: Dtype::Bfloat16, ..region };
        let a = ObjectLayout::new(vec![region]).expect("a");
        let b = ObjectLayout::new(vec![same_size]).expect("b");
        assert_eq!(a.bytes(), b.bytes());
        assert_ne!(a.fingerprint(), b.fingerprint());
    }
}
