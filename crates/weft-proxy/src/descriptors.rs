// SPDX-License-Identifier: Apache-2.0
//! File descriptors are few: the last ones are kept for the admin door, certificates and what else
//! keeps a proxy manageable. The system gives the lowest free number, so a high one says by itself
//! that descriptors are short. Called where sockets are made for clients; counts nothing.

use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use crate::guards;

/// Kept free, of the many that a process may have; a quarter of few.
const RESERVED: RawFd = 64;

/// The first number that is kept free.
fn first_reserved() -> RawFd {
    static FIRST: OnceLock<RawFd> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let most = getrlimit(Resource::Nofile).current;
        let most = most.map_or(RawFd::MAX, |n| RawFd::try_from(n).unwrap_or(RawFd::MAX));
        most - RESERVED.min(most / 4)
    })
}

/// Whether a descriptor has one of the numbers that are kept free.
pub fn is_reserved(fd: &impl AsFd) -> bool {
    fd.as_fd().as_raw_fd() >= first_reserved() && guards::on("descriptors")
}

/// Whether the next one would not.
pub fn have_room(any: &impl AsFd) -> bool {
    // Closed at once: only its number matters.
    rustix::io::fcntl_dupfd_cloexec(any, 0).is_ok_and(|next| !is_reserved(&next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reg_64_the_last_descriptors_are_kept_free() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_reserved(&file) && have_room(&file));
        let first = first_reserved();
        assert!(first > 64);
        if let Ok(high) = rustix::io::fcntl_dupfd_cloexec(&file, first) {
            assert!(is_reserved(&high), "the last ones are given away");
        }
    }
}
