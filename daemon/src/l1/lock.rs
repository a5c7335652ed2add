//! The one lock of L1, as a type parameter: a model checker runs the code that ships (`models.rs`).
#![forbid(unsafe_code)]

use std::ops::DerefMut;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A lock around a value, and a word to those who wait for it to change.
pub trait Lock<T>: Sized {
    /// The value, while the lock is held.
    type Held<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// Around `value`.
    fn new(value: T) -> Self;

    /// Takes the lock.
    fn lock(&self) -> Self::Held<'_>;

    /// Wakes those who wait; to be called with the lock held.
    fn tell(&self);

    /// Waits while `still` says so of the value, at most until `until`. Whether it has stopped saying so.
    fn wait_while(&self, until: Instant, still: impl Fn(&T) -> bool) -> bool;
}

/// The lock of the product.
#[derive(Debug)]
pub struct Blocking<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Lock<T> for Blocking<T> {
    type Held<'a>
        = parking_lot::MutexGuard<'a, T>
    where
        T: 'a;

    fn new(value: T) -> Blocking<T> {
        Blocking { value: Mutex::new(value), changed: Condvar::new() }
    }

    #[inline]
    fn lock(&self) -> Self::Held<'_> {
        self.value.lock()
    }

    #[inline]
    fn tell(&self) {
        self.changed.notify_all();
    }

    fn wait_while(&self, until: Instant, still: impl Fn(&T) -> bool) -> bool {
        let mut value = self.value.lock();
        while still(&value) {
            if self.changed.wait_until(&mut value, until).timed_out() {
                return !still(&value);
            }
        }
        true
    }
}
