// SPDX-License-Identifier: Apache-2.0
//! Who has something to send lets those go first that have something to read, once per message: a
//! turn of a worker reads first and writes then. Every write wakes its reader, on another core
//! perhaps; one that comes while the reader is awake yet costs far less, and the kernel's code for
//! either is in the cache. Called by both drivers; holds nothing back beyond a turn.

use std::task::{Context, Poll};

/// Whether the others went first.
#[derive(Debug, Default)]
pub struct Courtesy(bool);

// === impl Courtesy ===

impl Courtesy {
    /// Ready when all tasks have run that could when this was asked first.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        // Behind those that wait for their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;

    use futures_util::stream::{FuturesUnordered, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_turn_reads_first_and_writes_then() {
        let done = RefCell::new(Vec::new());
        let message = |n| {
            let done = &done;
            async move {
                done.borrow_mut().push(("reads", n));
                let mut courtesy = Courtesy::default();
                poll_fn(|cx| courtesy.poll(cx)).await;
                done.borrow_mut().push(("writes", n));
            }
        };
        (0..3).map(message).collect::<FuturesUnordered<_>>().collect::<()>().await;
        let each = |what| (0..3).map(move |n| (what, n));
        assert_eq!(*done.borrow(), each("reads").chain(each("writes")).collect::<Vec<_>>());
    }
}
