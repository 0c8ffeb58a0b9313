// SPDX-License-Identifier: Apache-2.0
//! The allocator's own door. It returns unused pages as it is used itself, and a proxy at rest does
//! not use it: what making a large table has left would be charged to it for hours.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// Every arena (jemalloc's `MALLCTL_ARENAS_ALL`).
const PURGE: &std::ffi::CStr = c"arena.4096.purge";

unsafe extern "C" {
    #[link_name = "_rjem_mallctl"]
    fn mallctl(
        name: *const c_char,
        old: *mut c_void,
        old_length: *mut usize,
        new: *mut c_void,
        new_length: usize,
    ) -> c_int;
}

/// Has the allocator return the pages that it does not use. Costs a system call for each run of
/// them, and a soft page fault for those that are needed again.
pub fn give_back() {
    // SAFETY: the name ends with a zero, and this control neither reads nor writes anything.
    let failed =
        unsafe { mallctl(PURGE.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0) };
    debug_assert_eq!(failed, 0, "the allocator has no such control");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kb() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = text.lines().find(|l| l.starts_with("Pss_Anon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_is_the_systems_again() {
        let mut seen = Vec::new();
        // Other tests allocate meanwhile; not so much each time.
        for _ in 0..5 {
            let many: Vec<Vec<u8>> = (0..32 << 10).map(|n| vec![n as u8; 1024]).collect();
            let full = resident_kb();
            drop(many);
            give_back();
            let left = resident_kb();
            if left + (16 << 10) < full {
                return;
            }
            seen.push((full, left));
        }
        panic!("kB before and after: {seen:?}");
    }
}
