//! Pages that somebody has: a bit for each.
//!
//! A million objects are taken over in a second or less only if none of them costs a search, and as few lookups in maps as can be.
//! A bit of a page of 4 KiB is a 32,768th of its memory.
#![forbid(unsafe_code)]

/// Bits of a word.
const BITS: u64 = u64::BITS as u64;

/// The pages; none, at first. Numbers are pages.
#[derive(Debug)]
pub(super) struct Taken {
    words: Vec<u64>,
    pages: u64,
}

impl Taken {
    /// For pages below `pages`. Their bits take memory when they are first set.
    pub(super) fn new(pages: u64) -> Taken {
        Taken { words: vec![0; pages.div_ceil(BITS) as usize], pages }
    }

    /// Takes `[start, end)`; `false`, and nothing is changed, if a page of it is taken or is none.
    pub(super) fn take(&mut self, start: u64, end: u64) -> bool {
        let free = end <= self.pages && masks(start, end).all(|(word, mask)| self.words[word] & mask == 0);
        if free {
            masks(start, end).for_each(|(word, mask)| self.words[word] |= mask);
        }
        free
    }

    /// Gives `[start, end)` back; `false`, and nothing is changed, if a page of it is not taken.
    pub(super) fn give_back(&mut self, start: u64, end: u64) -> bool {
        let taken =
            end <= self.pages && masks(start, end).all(|(word, mask)| self.words[word] & mask == mask);
        if taken {
            masks(start, end).for_each(|(word, mask)| self.words[word] &= !mask);
        }
        taken
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
            ranges in proptest::collection::vec((0u64..400, 1u64..150, any::<bool>()), 0..24),
            from in 0u64..300,
            length in 0u64..400,
        ) {
            let (mut taken, mut pages) = (Taken::new(420), BTreeSet::new());
            for (start, length, takes) in ranges {
                let range = start..start + length;
                let held = range.clone().filter(|page| pages.contains(page)).count() as u64;
                if takes {
                    let free = held == 0 && range.end <= 420;
                    prop_assert_eq!(taken.take(range.start, range.end), free);
                    if free {
                        pages.extend(range);
                    }
                } else {
                    prop_assert_eq!(taken.give_back(range.start, range.end), held == length);
                    if held == length {
                        pages.retain(|page| !range.contains(page));
                    }
                }
            }
            let gaps = taken.gaps(from, from + length);
            let in_gaps: Vec<u64> = gaps.iter().flat_map(|(start, length)| *start..start + length).collect();
            let free: Vec<u64> = (from..from + length).filter(|page| !pages.contains(page)).collect();
            prop_assert_eq!(in_gaps, free);
            prop_assert!(gaps.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "as long as they can be");
        }
    }
}
