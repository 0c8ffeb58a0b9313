// SPDX-License-Identifier: Apache-2.0
//! The system's allocator, with a count of what the workers of a proxy ask it for.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, PartialEq)]
enum Whose {
    Unknown,
    Asking,
    Worker,
    Other,
}

thread_local! {
    static WHOSE: Cell<Whose> = const { Cell::new(Whose::Unknown) };
}

/// Allocations of worker threads since the process began.
pub fn of_workers() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

fn count() {
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
    if whose == Whose::Worker {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it is; counting allocates nothing that is
// counted again.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}
