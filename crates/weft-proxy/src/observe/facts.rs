// SPDX-License-Identifier: Apache-2.0
//! What lines of the access log tell of connections: their numbers, their TLS, and where the
//! upstream one comes from. Noted once per connection, and only where a format asks for it. Called
//! when a connection is made; decides nothing.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::{CommonState, ProtocolVersion};
use weft_identity::outside::{Shown, shown};

use crate::upstream::connect::UpstreamIo;
use crate::upstream::pool::Wire;

/// What was agreed on, and who the other side says that it is.
#[derive(Debug)]
pub struct Session {
    pub version: &'static str,
    /// As OpenSSL names it.
    pub cipher: &'static str,
    pub peer: Option<Shown>,
}

/// One connection to an upstream.
#[derive(Debug)]
pub struct Upstream {
    pub number: u64,
    pub wire: Option<Wire>,
    pub local: Option<SocketAddr>,
    pub session: Option<Session>,
}

/// A number that no other connection of this process has.
pub fn number() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NEXT: Cell<u64> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) << 40);
    }
    NEXT.with(|next| {
        next.set(next.get() + 1);
        next.get()
    })
}

// === impl Session ===

impl Session {
    pub fn of(session: &CommonState) -> Self {
        Self {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: session.negotiated_cipher_suite().map_or("", |suite| cipher(suite.suite())),
            peer: shown(session.peer_certificates()),
        }
    }
}

fn cipher(suite: rustls::CipherSuite) -> &'static str {
    use rustls::CipherSuite as Suite;
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        Suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        Suite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        other => other.as_str().unwrap_or("unknown"),
    }
}

// === impl Upstream ===

impl Upstream {
    pub fn of(io: &UpstreamIo, wire: Option<Wire>) -> Self {
        let (stream, session) = match io {
            UpstreamIo::Plain(stream) => (Some(stream), None),
            UpstreamIo::Tls(tls) => {
                let (stream, session) = tls.get_ref();
                (Some(stream), Some(Session::of(session)))
            }
            #[cfg(any(test, feature = "testing"))]
            UpstreamIo::Memory(_) => (None, None),
        };
        let local = stream.and_then(|stream| stream.local_addr().ok());
        Self { number: number(), wire, local, session }
    }
}
