// SPDX-License-Identifier: Apache-2.0
//! The kernel's network, spoken to directly: links, addresses and routes ([`route`]), capture
//! rules ([`capture`]), and what pods need of both ([`pods`]).
//!
//! Called by the sandbox's roles and by the agent of a machine. No program is started for it and
//! no C library is used. Calls block for the microseconds that the kernel takes. Architecture
//! invariant: a namespace is named by whoever calls; nothing here decides which one is changed.

pub mod capture;
pub mod netlink;
pub mod nft;
pub mod pods;
pub mod route;
#[cfg(test)]
mod sys;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `job` in another network namespace, on a thread that ends with it. Sockets made by it
/// stay sockets of that namespace; files under `/proc/sys/net` are that namespace's.
///
/// # Errors
/// When the namespace may not be entered.
pub fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    job: impl FnOnce() -> T + Send,
) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
                Ok(job())
            })?;
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the job panicked")))
    })
}
