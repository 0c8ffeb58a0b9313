// SPDX-License-Identifier: Apache-2.0
//! Guards against attacks, by name. A test may do without one of them, to show that the cases which
//! rely on it can fail; every other build has all of them, at no cost.

use http::HeaderMap;
#[cfg(test)]
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Whether a guard is in force.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn on(_guard: &str) -> bool {
    true
}

/// Where a test asks as one does that follows redirects.
#[cfg(not(test))]
#[inline(always)]
pub(crate) async fn follow(_headers: &HeaderMap) {}

#[cfg(test)]
pub(crate) async fn follow(headers: &HeaderMap) {
    let to = headers.get(http::header::LOCATION).filter(|_| !on("check-redirects"));
    let to = to.and_then(|to| to.to_str().ok()?.parse::<http::Uri>().ok());
    if let Some(to) = to.as_ref().and_then(http::Uri::authority) {
        let mut there = tokio::net::TcpStream::connect(to.as_str()).await.unwrap();
        there.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        there.read_u8().await.unwrap();
    }
}

#[cfg(test)]
pub(crate) use switched::on;

#[cfg(test)]
#[path = "../../../tests/suites/switched.rs"]
mod switched;

#[test]
fn every_case_fails_without_its_guard() {
    switched::prove();
}
