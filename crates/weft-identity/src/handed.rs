// SPDX-License-Identifier: Apache-2.0
//! Certificates with their keys, for clients that ask an authority over an API of another make
//! (Consul's) instead of making a request of their own. Such an authority is one of its own: what
//! it signs means nothing to the mesh.

use std::time::Duration;

use crate::ca::{Authority, SignError};
use crate::leaf::{Leaf, LeafError, ms, parse};
use crate::spiffe::SpiffeId;
use crate::svid::{KeyRequest, pem};

/// A leaf and its key as PEM.
pub struct Handed {
    pub leaf: Leaf,
    pub cert_pem: String,
    pub key_pem: String,
}

/// A root as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// The beginning of the certificate's SHA-256, in pairs with colons.
    pub id: String,
    pub serial: u64,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    pub cert_pem: String,
}

// === impl Authority ===

impl Authority {
    /// A new key with its certificate. Whoever asks has been judged.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn hand_out(&self, id: &SpiffeId, ttl: Duration) -> Result<Handed, SignError> {
        let request = KeyRequest::generate()?;
        let key_pem = request.key_pem();
        let issued = self.sign(request.csr(), id, ttl)?;
        let cert_pem = issued.chain.iter().map(|cert| pem("CERTIFICATE", cert)).collect();
        let svid = request.complete(issued.chain, self.bundle().clone())?;
        Ok(Handed { leaf: svid.leaf().clone(), cert_pem, key_pem })
    }

    /// The roots, the own one first.
    ///
    /// # Errors
    /// When one cannot be read, which only damage can cause.
    pub fn root_facts(&self) -> Result<Vec<RootFacts>, LeafError> {
        let facts = |cert| {
            let read = parse(cert)?;
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, cert);
            let id: Vec<String> =
                hash.as_ref().iter().take(20).map(|b| format!("{b:02x}")).collect();
            let digits = read.tbs_certificate.serial.to_u64_digits();
            Ok(RootFacts {
                id: id.join(":"),
                // Clients keep 64 bits of it.
                serial: digits.first().copied().unwrap_or(0) >> 1,
                not_before_ms: ms(read.validity().not_before.timestamp()),
                not_after_ms: ms(read.validity().not_after.timestamp()),
                cert_pem: pem("CERTIFICATE", cert),
            })
        };
        self.bundle().roots().iter().map(facts).collect()
    }
}

impl std::fmt::Debug for Handed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handed").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}
