// SPDX-License-Identifier: Apache-2.0
//! Answers before the answer (1xx): what an upstream says while it works, on its way to the client
//! that waits. The attempt puts them in, the client's codec, in the same task, takes them out.

use std::cell::{Cell, RefCell};

use http::{Response, StatusCode};

use super::headers;

/// One request's interim answers.
#[derive(Debug, Default)]
pub struct Interim {
    heads: RefCell<Vec<Response<()>>>,
    /// The client waits for 100 before it sends its body, and somebody wants that now.
    wanted: Cell<bool>,
}

/// More wait only where a client takes nothing.
const WAITING_MAX: usize = 32;

// === impl Interim ===

impl Interim {
    /// Passes one on. 100 is between two neighbours, and 101 is none of these.
    pub fn push(&self, mut head: Response<()>) {
        let passed = head.status().is_informational()
            && head.status() != StatusCode::CONTINUE
            && head.status() != StatusCode::SWITCHING_PROTOCOLS;
        let mut heads = self.heads.borrow_mut();
        if passed && heads.len() < WAITING_MAX {
            headers::strip_hop_by_hop(head.headers_mut());
            headers::strip_own(head.headers_mut());
            heads.push(head);
        }
    }

    /// The next one to send.
    pub fn take(&self) -> Option<Response<()>> {
        if self.wanted.take() {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            return Some(go_on);
        }
        let mut heads = self.heads.borrow_mut();
        (!heads.is_empty()).then(|| heads.remove(0))
    }

    /// The body is wanted that a client holds back.
    pub fn want(&self) {
        self.wanted.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16) -> Response<()> {
        Response::builder().status(status).header("x-weft-flags", "UF").body(()).unwrap()
    }

    #[test]
    fn only_what_is_for_the_client_passes_and_in_order() {
        let interim = Interim::default();
        for status in [100, 101, 103, 200, 102] {
            interim.push(head(status));
        }
        interim.want();
        let seen: Vec<u16> =
            std::iter::from_fn(|| interim.take()).map(|r| r.status().as_u16()).collect();
        assert_eq!(seen, [100, 103, 102]);
        interim.push(head(103));
        assert!(interim.take().unwrap().headers().is_empty());
        for _ in 0..100 {
            interim.push(head(103));
        }
        assert_eq!(std::iter::from_fn(|| interim.take()).count(), WAITING_MAX);
    }
}
