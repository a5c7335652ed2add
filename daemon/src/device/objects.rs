//! Which kernel groups share a stored object, how much of a prefix a reader of it needs, and where its regions begin.
//!
//! An object holds one region per kernel group, one after the other without gaps (`cache_context.py`,
//! `get_kernel_group_offset_in_object`). Without `--separate-object-groups` there is one object per chunk; with it,
//! groups of equal kind and window share one (`kv_layer_groups.py`, `_detect_object_groups`), so that a reader
//! fetches of a sliding window only the last chunks.
#![forbid(unsafe_code)]

use lmcache_proto::layout::{ObjectLayout, Region};

use super::groups::{GeometryError, GeometryInput, KernelGroup};

/// Kernel groups that share one stored object per chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectGroup {
    /// Indices of the kernel groups, in the order of their regions.
    pub kernel_groups: Vec<usize>,
    /// First byte of each kernel group's region.
    pub offsets: Vec<u64>,
    /// Shape of an object.
    pub layout: ObjectLayout,
    /// Chunks that a reader needs of the end of a prefix; −1 for all of them.
    pub window_chunks: i64,
    /// A connector's private group: stored, but never part of a lookup or a retrieve.
    pub aux: bool,
    /// Pages hold recurrent state.
    pub recurrent: bool,
}

impl ObjectGroup {
    /// The first of `chunks` chunks of a prefix that a reader of this group needs.
    pub fn first_chunk(&self, chunks: u64) -> u64 {
        // −1 stands for all of them.
        u64::try_from(self.window_chunks).map_or(0, |window| chunks.saturating_sub(window))
    }
}

/// Forms the object groups of `kernel_groups`: one for all, or one per kind and window.
///
/// # Errors
/// [`GeometryError::ObjectSize`] if an object's size overflows.
pub(super) fn form(
    kernel_groups: &[KernelGroup],
    input: &GeometryInput<'_>,
) -> Result<Vec<ObjectGroup>, GeometryError> {
    /// Kernel groups with equal keys share an object.
    #[derive(Clone, Copy, PartialEq)]
    struct Bucket {
        extra_tag: i64,
        recurrent: bool,
        window_chunks: i64,
    }
    let mut buckets: Vec<(Bucket, Vec<usize>)> = Vec::new();
    for (index, group) in kernel_groups.iter().enumerate() {
        let chunks = group.window_tokens.map(|tokens| tokens.div_ceil(input.chunk_tokens));
        let bucket = if input.separate_object_groups {
            let window_chunks = chunks.map_or(-1, |chunks| i64::try_from(chunks).unwrap_or(i64::MAX));
            Bucket { extra_tag: group.extra_tag, recurrent: group.recurrent, window_chunks }
        } else {
            Bucket { extra_tag: 0, recurrent: false, window_chunks: -1 }
        };
        match buckets.iter_mut().find(|(existing, _)| *existing == bucket) {
            Some((_, members)) => members.push(index),
            None => buckets.push((bucket, vec![index])),
        }
    }
    // Private groups go last, so that the ids of the regular ones are those of a registration without them.
    buckets.sort_by_key(|(bucket, _)| bucket.extra_tag != 0);
    let built = buckets.into_iter().enumerate().map(|(group, (bucket, members))| {
        let regions: Vec<Region> = members.iter().map(|&index| kernel_groups[index].region()).collect();
        let layout = ObjectLayout::new(regions).ok_or(GeometryError::ObjectSize { group })?;
        let mut end = 0;
        let offsets = layout.regions().iter().map(|region| {
            let begin = end;
            // The layout exists, so the sum of its regions fits.
            end += region.bytes().unwrap_or(0);
            begin
        });
        Ok(ObjectGroup {
            offsets: offsets.collect(),
            kernel_groups: members,
            window_chunks: bucket.window_chunks,
            aux: bucket.extra_tag != 0,
            recurrent: bucket.recurrent,
            layout,
        })
    });
    built.collect()
}
