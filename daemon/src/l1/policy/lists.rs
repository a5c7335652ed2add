//! Lists of objects by last use, linked through one table, so that an object is taken out of the middle in O(1).

const NIL: u32 = u32::MAX;

/// A list.
pub(super) type ListId = u32;

#[derive(Clone, Copy, Debug)]
struct Link {
    /// When it was put there; larger is later.
    stamp: u64,
    prev: u32,
    next: u32,
    list: ListId,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    bytes: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Lists {
    links: Vec<Link>,
    lists: Vec<List>,
    unused: Vec<ListId>,
    clock: u64,
}

impl Lists {
    /// A new, empty list.
    pub(super) fn open(&mut self) -> ListId {
        let empty = List { head: NIL, tail: NIL, bytes: 0 };
        match self.unused.pop() {
            Some(list) => {
                self.lists[list as usize] = empty;
                list
            }
            None => {
                self.lists.push(empty);
                (self.lists.len() - 1) as ListId
            }
        }
    }

    /// Gives an empty list's number back.
    pub(super) fn close(&mut self, list: ListId) {
        debug_assert!(self.oldest(list).is_none(), "closed with objects in it");
        self.unused.push(list);
    }

    /// Makes room for objects with indexes below `objects`.
    pub(super) fn expect(&mut self, objects: usize) {
        self.links.reserve(objects.saturating_sub(self.links.len()));
    }

    /// Puts an object, which is in no list, at the head.
    pub(super) fn push(&mut self, list: ListId, index: u32, bytes: u64) {
        let at = index as usize;
        if self.links.len() <= at {
            self.links.resize(at + 1, Link { stamp: 0, prev: NIL, next: NIL, list: NIL });
        }
        debug_assert_eq!(self.links[at].list, NIL, "inserted twice");
        self.clock += 1;
        let old = self.lists[list as usize].head;
        self.links[at] = Link { stamp: self.clock, prev: NIL, next: old, list };
        if old == NIL {
            self.lists[list as usize].tail = index;
        } else {
            self.links[old as usize].prev = index;
        }
        self.lists[list as usize].head = index;
        self.lists[list as usize].bytes += bytes;
    }

    /// Takes an object out of the list that it is in.
    pub(super) fn take(&mut self, index: u32, bytes: u64) {
        let Some(&Link { prev, next, list, .. }) = self.links.get(index as usize) else { return };
        if list == NIL {
            return;
        }
        if prev == NIL {
            self.lists[list as usize].head = next;
        } else {
            self.links[prev as usize].next = next;
        }
        if next == NIL {
            self.lists[list as usize].tail = prev;
        } else {
            self.links[next as usize].prev = prev;
        }
        self.lists[list as usize].bytes -= bytes;
        self.links[index as usize].list = NIL;
    }

    /// The list that an object is in.
    pub(super) fn list_of(&self, index: u32) -> Option<ListId> {
        self.links.get(index as usize).map(|link| link.list).filter(|list| *list != NIL)
    }

    /// The object at the tail, with its stamp.
    pub(super) fn oldest(&self, list: ListId) -> Option<(u64, u32)> {
        let tail = self.lists[list as usize].tail;
        (tail != NIL).then(|| (self.links[tail as usize].stamp, tail))
    }

    /// Bytes of a list.
    pub(super) fn bytes(&self, list: ListId) -> u64 {
        self.lists[list as usize].bytes
    }
}
