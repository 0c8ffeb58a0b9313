// SPDX-License-Identifier: Apache-2.0
//! Whose TLS a captured connection begins with: a sidecar's, which names an app port of the mesh,
//! or the app's own, which is none of our business. Reads a copy; nothing is answered here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use weft_model::mesh_server_port;

use crate::tcp::prefixed::Prefixed;

/// A ClientHello is at most one record long here; longer ones are not a sidecar's.
const HELLO_BYTES_MAX: usize = 16 * 1024 + 5;

/// Reads until the ClientHello is whole, or is none. Says whether it is a sidecar's.
pub async fn is_sidecar<I>(mut io: I, limit: Duration) -> (bool, Prefixed<I>)
where
    I: AsyncRead + Unpin,
{
    let mut seen = BytesMut::new();
    let reading = async {
        let mut acceptor = Acceptor::default();
        let mut fed = 0;
        loop {
            while let Some(mut new) = seen.get(fed..).filter(|new| !new.is_empty()) {
                match acceptor.read_tls(&mut new) {
                    Ok(n) if n > 0 => fed += n,
                    _ => return false,
                }
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return hello.server_name().and_then(mesh_server_port).is_some();
                }
                Ok(None) if seen.len() < HELLO_BYTES_MAX => {}
                _ => return false,
            }
            seen.reserve(1024);
            match io.read_buf(&mut seen).await {
                Ok(n) if n > 0 => {}
                _ => return false,
            }
        }
    };
    let found = tokio::time::timeout(limit, reading).await.unwrap_or(false);
    let seen: Bytes = seen.freeze();
    (found, Prefixed::new(seen, io))
}

#[cfg(test)]
mod tests;
