// SPDX-License-Identifier: Apache-2.0
//! A box whose memory a thread keeps for the next of its size: what every request needs, a future
//! and a record, costs no call of the allocator once a worker is warm. Called by the HTTP/1 server
//! and the phases; a box stays on its thread and never leaves memory to another.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::ptr::NonNull;

/// Memory of one layout that a thread keeps, at most.
const KEPT_BYTES_MAX: usize = 512 * 1024;
const KEPT_MAX: usize = 256;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept(Vec::new())) };
}

/// Free memory by layout; there are few.
struct Kept(Vec<(Layout, Vec<NonNull<u8>>)>);

/// An owned value, as in a `Box`.
pub struct Pooled<T>(NonNull<T>);

// === impl Pooled ===

impl<T> Pooled<T> {
    pub fn new(value: T) -> Self {
        let layout = Layout::new::<T>();
        if layout.size() == 0 {
            return Self(NonNull::dangling());
        }
        let place: NonNull<T> = room(layout).cast();
        // SAFETY: `place` is valid for writes of this layout and nobody else has it.
        unsafe { place.write(value) };
        Self(place)
    }

    /// A value that does not move again, such as a future, written where it stays: most of a
    /// future is room for later. `make` must not panic, or its memory is lost.
    #[inline(always)]
    pub fn pin(make: impl FnOnce() -> T) -> Pin<Self> {
        let layout = Layout::new::<T>();
        let place = if layout.size() == 0 { NonNull::dangling() } else { room(layout).cast() };
        // SAFETY: `place` is valid for writes of this layout and nobody else has it.
        unsafe { place.write(make()) };
        // SAFETY: the value stays where it is until it is dropped: nothing here moves it out, and
        // the memory is given back behind its drop only.
        unsafe { Pin::new_unchecked(Self(place)) }
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        /// Gives the memory back, also when the value's own drop panics.
        struct Memory(NonNull<u8>, Layout);
        impl Drop for Memory {
            fn drop(&mut self) {
                let (place, layout) = (self.0, self.1);
                let keep = |kept: &RefCell<Kept>| kept.borrow_mut().keep(layout, place);
                if layout.size() > 0 && !KEPT.try_with(keep).unwrap_or(false) {
                    // SAFETY: it was allocated with this layout and nobody has it any more.
                    unsafe { dealloc(place.as_ptr(), layout) };
                }
            }
        }
        let _memory = Memory(self.0.cast(), Layout::new::<T>());
        // SAFETY: the value is there, and it is dropped once, here.
        unsafe { self.0.drop_in_place() };
    }
}

impl<T> Deref for Pooled<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value is there for as long as this is; shared as this is.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and this is borrowed alone.
        unsafe { self.0.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

// === impl Kept ===

impl Kept {
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.0.iter_mut().find(|(l, _)| *l == layout)?.1.pop()
    }

    /// `false` when there is enough of it already.
    fn keep(&mut self, layout: Layout, place: NonNull<u8>) -> bool {
        if !self.0.iter().any(|(l, _)| *l == layout) {
            self.0.push((layout, Vec::new()));
        }
        let Some((_, places)) = self.0.iter_mut().find(|(l, _)| *l == layout) else { return false };
        let room = places.len() < KEPT_MAX && places.len() * layout.size() < KEPT_BYTES_MAX;
        if room {
            places.push(place);
        }
        room
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (layout, places) in self.0.drain(..) {
            for place in places {
                // SAFETY: everything kept was allocated with its layout and is nobody's.
                unsafe { dealloc(place.as_ptr(), layout) };
            }
        }
    }
}

/// Memory that was kept, or new.
#[inline(never)]
fn room(layout: Layout) -> NonNull<u8> {
    let kept = KEPT.try_with(|kept| kept.borrow_mut().take(layout)).ok().flatten();
    kept.unwrap_or_else(|| fresh(layout))
}

fn fresh(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layout has a size, its caller saw to that.
    let place = unsafe { alloc(layout) };
    NonNull::new(place).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    struct Noisy(Rc<Cell<u32>>, [u64; 40]);

    impl Drop for Noisy {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn memory_is_used_again_and_values_are_dropped_once() {
        let dropped = Rc::new(Cell::new(0));
        let first = Pooled::new(Noisy(dropped.clone(), [7; 40]));
        assert_eq!(first.1, [7; 40]);
        let place = first.0;
        drop(first);
        assert_eq!(dropped.get(), 1);
        let second = Pooled::new(Noisy(dropped.clone(), [8; 40]));
        let third = Pooled::new(Noisy(dropped.clone(), [9; 40]));
        assert_eq!(second.0, place);
        assert_ne!(third.0, place);
        assert_eq!((second.1, third.1), ([8; 40], [9; 40]));
        drop((second, third));
        assert_eq!(dropped.get(), 3);
        // Nothing to keep is kept nowhere.
        drop(Pooled::new(()));
    }

    #[test]
    fn a_pooled_future_runs() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let text = String::from("kept over an await");
        let future = Pooled::pin(|| async move {
            tokio::task::yield_now().await;
            text
        });
        assert_eq!(runtime.block_on(future), "kept over an await");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many: Vec<_> = (0..KEPT_MAX + 5).map(|i| Pooled::new([i; 8])).collect();
        drop(many);
        let layout = Layout::new::<[usize; 8]>();
        let kept = KEPT.with_borrow(|k| k.0.iter().find(|(l, _)| *l == layout).unwrap().1.len());
        assert_eq!(kept, KEPT_MAX);
    }
}
