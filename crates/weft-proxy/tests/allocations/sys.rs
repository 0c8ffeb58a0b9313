// SPDX-License-Identifier: Apache-2.0
//! The system's allocator, with a count of what the workers of a proxy ask it for.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// How many more the workers get.
static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

#[derive(Clone, Copy, PartialEq)]
enum Whose {
    Unknown,
    Asking,
    Worker,
    Other,
}

thread_local! {
    static WHOSE: Cell<Whose> = const { Cell::new(Whose::Unknown) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// Allocations of worker threads since the process began.
pub fn of_workers() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes that this thread has taken and not given back.
pub fn held_here() -> i64 {
    HELD.get()
}

fn hold(bytes: usize, sign: i64) {
    // The thread may be ending.
    let _ = HELD.try_with(|held| held.set(held.get() + sign * bytes as i64));
}

/// After so many more allocations the workers get no memory.
pub fn fail_after(allocations: i64) {
    LEFT.store(allocations, Ordering::Relaxed);
}

/// Whether there is memory for one more.
fn count() -> bool {
    let whose = WHOSE.try_with(Cell::get).unwrap_or(Whose::Other);
    let whose = match whose {
        Whose::Unknown => {
            // Asking for the name may allocate.
            WHOSE.set(Whose::Asking);
            let thread = std::thread::current();
            let worker = thread.name().is_some_and(|name| name.starts_with("weft-worker"));
            let whose = if worker { Whose::Worker } else { Whose::Other };
            WHOSE.set(whose);
            whose
        }
        known => known,
    };
    if whose != Whose::Worker {
        return true;
    }
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    LEFT.load(Ordering::Relaxed) == i64::MAX || LEFT.fetch_sub(1, Ordering::Relaxed) > 0
}

// SAFETY: every call goes to the system's allocator as it is, or gets nothing; counting allocates
// nothing that is counted again.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !count() {
            return std::ptr::null_mut();
        }
        hold(layout.size(), 1);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !count() {
            return std::ptr::null_mut();
        }
        hold(layout.size(), 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !count() {
            return std::ptr::null_mut();
        }
        hold(layout.size(), -1);
        hold(size, 1);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        hold(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}
