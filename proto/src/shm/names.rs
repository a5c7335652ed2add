//! Names, in the directory of POSIX shared memory, of the files that belong to a pool.
//!
//! The pool's own name is the peer's: its workers open the pool by it, and its tools look for files that begin so.

/// How the name of every pool begins.
pub const POOL_PREFIX: &str = "lmcache_l1_pool_";

/// The segment of a pool's table.
pub fn table(pool: &str) -> String {
    format!("lmcached_{pool}_table")
}

/// What becomes the segment of a pool's table when the pool is extended. A file of this name beside no daemon is of no use.
pub fn larger_table(pool: &str) -> String {
    format!("lmcached_{pool}_table.larger")
}

/// The segment of a pool's ring.
pub fn ring(pool: &str) -> String {
    format!("lmcached_{pool}_ring")
}

/// The registrations of a pool's workers.
pub fn workers(pool: &str) -> String {
    format!("lmcached_{pool}_workers")
}

/// The requests under way of a pool's daemon.
pub fn journal(pool: &str) -> String {
    format!("lmcached_{pool}_journal")
}

/// The second name of a segment, by which the daemon finds it when the first has been removed.
pub fn keeper(segment: &str) -> String {
    format!(".{segment}.keep")
}

/// Everything that may be there of a pool, itself first.
pub fn all(pool: &str) -> [String; 8] {
    [
        pool.to_owned(),
        keeper(pool),
        table(pool),
        larger_table(pool),
        workers(pool),
        journal(pool),
        ring(pool),
        keeper(&ring(pool)),
    ]
}
