// SPDX-License-Identifier: Apache-2.0
//! Checks that guard against attacks, by name. A test may do without one of them, to show that its
//! cases can fail; every other build has all of them, at no cost.

/// Whether a check is in force.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn on(_check: &str) -> bool {
    true
}

#[cfg(test)]
std::thread_local! {
    static OFF: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

#[cfg(test)]
pub(crate) fn on(check: &str) -> bool {
    OFF.get() != check
}

/// Does something without a check, on this thread.
#[cfg(test)]
pub(crate) async fn without<T>(check: &'static str, work: impl Future<Output = T>) -> T {
    OFF.set(check);
    let done = work.await;
    OFF.set("");
    done
}
