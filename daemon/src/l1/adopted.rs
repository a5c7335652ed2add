//! Pages that were in use when the daemon started: a bit for each.
//!
//! A million objects are taken over in a second or less only if none of them costs a search; a bit of a page of 4 KiB is a
//! 32,768th of its memory, and only as long as the pool is being reserved.
#![forbid(unsafe_code)]

/// Bits of a word.
const BITS: u64 = u64::BITS as u64;

/// The pages; none, at first. Numbers are pages.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    words: Vec<u64>,
    /// Behind the last page that was taken.
    end: u64,
}

impl Adopted {
    /// Takes `[start, end)`; `false`, and nothing is changed, if a page of it is taken. The caller bounds `end`: the memory that
    /// this takes follows from it.
    pub(super) fn take(&mut self, start: u64, end: u64) -> bool {
        let words = end.div_ceil(BITS) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        if masks(start, end).any(|(word, mask)| self.words[word] & mask != 0) {
            return false;
        }
        masks(start, end).for_each(|(word, mask)| self.words[word] |= mask);
        self.end = self.end.max(end);
        true
    }

    /// What of `[from, to)` is not taken, as starts and lengths, in order.
    pub(super) fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = from;
        while at < to {
            let start = self.first(at, to, false);
            at = self.first(start, to, true);
            if at > start {
                gaps.push((start, at - start));
            }
        }
        gaps
    }

    /// Forgets everything if nothing is taken at `page` or behind it.
    pub(super) fn forget_below(&mut self, page: u64) {
        if page >= self.end {
            *self = Adopted::default();
        }
    }

    /// The first page in `[at, to)` that is `taken` or not; `to` if there is none.
    fn first(&self, mut at: u64, to: u64, taken: bool) -> u64 {
        while at < to {
            let Some(word) = self.words.get((at / BITS) as usize) else {
                return if taken { to } else { at };
            };
            let wanted = (if taken { *word } else { !word }) >> (at % BITS);
            if wanted != 0 {
                return (at + u64::from(wanted.trailing_zeros())).min(to);
            }
            at = (at / BITS + 1) * BITS;
        }
        to
    }
}

/// The words in which `[start, end)` lies, each with its bits.
fn masks(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    (start / BITS..end.div_ceil(BITS)).map(move |word| {
        let first = start.saturating_sub(word * BITS);
        let last = (end - word * BITS).min(BITS);
        (word as usize, u64::MAX >> (BITS - last) & u64::MAX << first)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_pages(
            ranges in proptest::collection::vec((0u64..400, 1u64..150), 0..12),
            from in 0u64..300,
            length in 0u64..400,
        ) {
            let (mut adopted, mut pages) = (Adopted::default(), BTreeSet::new());
            for (start, length) in ranges {
                let free = (start..start + length).all(|page| !pages.contains(&page));
                prop_assert_eq!(adopted.take(start, start + length), free);
                if free {
                    pages.extend(start..start + length);
                }
            }
            let gaps = adopted.gaps(from, from + length);
            let in_gaps: Vec<u64> = gaps.iter().flat_map(|(start, length)| *start..start + length).collect();
            let free: Vec<u64> = (from..from + length).filter(|page| !pages.contains(page)).collect();
            prop_assert_eq!(in_gaps, free);
            prop_assert!(gaps.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "as long as they can be");
        }
    }
}
