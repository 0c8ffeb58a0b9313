// SPDX-License-Identifier: Apache-2.0
//! TLS towards backends that speak it themselves, made ready when the table is built: one value
//! per distinct policy, so that its sessions are resumed for as long as the policy stays.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use weft_base::clock::Clock;
use weft_identity::outside::{self, Origin, OriginNames};
use weft_model::{Names, Trust, UpstreamTls};

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    Http1,
    Http2,
    /// Bytes whose protocol is not ours to name.
    Opaque,
}

/// A backend's TLS. Two of them are equal when they are the same value.
#[derive(Debug)]
pub struct OriginTls {
    origin: Origin,
    server_name: Option<ServerName<'static>>,
    clock: Clock,
    /// By what is spoken inside; made when the first connection needs it.
    configs: [OnceLock<Result<Arc<ClientConfig>, String>>; 3],
}

// === impl OriginTls ===

impl OriginTls {
    /// # Errors
    /// What of the policy cannot be used.
    pub fn new(spec: &UpstreamTls, clock: &Clock) -> Result<Self, String> {
        let roots = match &spec.trust {
            Trust::System => Some(weft_identity::tls::system_roots()),
            Trust::Authorities(pem) => Some(
                outside::roots(pem)
                    .map_err(|e| format!("its trusted authorities cannot be used: {e}"))?,
            ),
            Trust::Anyone => None,
        };
        let names = match &spec.names {
            Names::ServerName => OriginNames::ServerName,
            Names::OneOf(names) => OriginNames::OneOf(names.clone()),
            Names::Any => OriginNames::Any,
        };
        let certificate = spec.certificate.as_ref().map(|c| {
            outside::certified(&c.chain_pem, &c.key_pem)
                .map_err(|e| format!("the certificate to show it cannot be used: {e}"))
        });
        let server_name = spec.server_name.as_ref().map(|name| {
            ServerName::try_from(name.to_string())
                .map_err(|_| format!("{name:?} is no server name"))
        });
        let only_13 = spec.only_13;
        let origin = Origin { roots, names, certificate: certificate.transpose()?, only_13 };
        let configs = Default::default();
        Ok(Self { origin, server_name: server_name.transpose()?, clock: clock.clone(), configs })
    }

    /// The configuration for what is spoken inside.
    ///
    /// # Errors
    /// When rustls refuses it.
    pub fn config(&self, inside: Inside) -> Result<Arc<ClientConfig>, String> {
        let (made, alpn): (_, &[&[u8]]) = match (inside, &self.configs) {
            (Inside::Http1, [made, _, _]) => (made, &[b"http/1.1"]),
            (Inside::Http2, [_, made, _]) => (made, &[b"h2"]),
            (Inside::Opaque, [_, _, made]) => (made, &[]),
        };
        made.get_or_init(|| {
            let config = outside::client(&self.origin, alpn, &self.clock);
            config.map(Arc::new).map_err(|e| e.to_string())
        })
        .clone()
    }

    /// What the handshake names; an address is never sent.
    pub fn server_name(&self, address: IpAddr) -> ServerName<'static> {
        self.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()))
    }
}

impl PartialEq for OriginTls {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for OriginTls {}

impl Hash for OriginTls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self, state);
    }
}
