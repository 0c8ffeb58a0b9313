// SPDX-License-Identifier: Apache-2.0
//! The system's allocator, with counts of the bytes that are held: as they were asked for, and as
//! weft's own allocator would hold them, in its classes of sizes.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Bytes that were asked for and not given back.
pub fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// What jemalloc would take for them.
pub fn taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

fn came(size: usize) {
    HELD.fetch_add(size, Ordering::Relaxed);
    TAKEN.fetch_add(class(size), Ordering::Relaxed);
}

fn went(size: usize) {
    HELD.fetch_sub(size, Ordering::Relaxed);
    TAKEN.fetch_sub(class(size), Ordering::Relaxed);
}

/// jemalloc's class of a size: multiples of 16 up to 128, from there on four classes between
/// each power of two and the next.
fn class(size: usize) -> usize {
    let step = match size {
        0..=128 => 16,
        _ => (size - 1).ilog2().checked_sub(2).map_or(16, |bits| 1 << bits),
    };
    size.next_multiple_of(step)
}

// SAFETY: every call goes to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        came(size);
        went(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        went(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}
