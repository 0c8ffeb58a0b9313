// SPDX-License-Identifier: Apache-2.0
//! An SVID: private key, certificate chain and the bundle of roots it lives under.
//!
//! Made from a key that its holder generated and a chain that the CA signed. Immutable; a renewed
//! one is published through `weft_base::snapshot`. The key is never printed, and leaves its process
//! for one private file at most: a proxy's for its next start (`uds`), or a machine's (`join`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use weft_base::rng::Rng;

use crate::leaf::{Leaf, LeafError};
use crate::provider;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Roots one bundle may hold: more than two only meet during a botched rotation.
pub const BUNDLE_ROOTS_MAX: usize = 16;
/// Certificates in one chain.
pub const CHAIN_MAX: usize = 8;

/// Why key, chain and bundle do not make an SVID.
#[derive(Debug, Error)]
pub enum SvidError {
    #[error("the chain is empty; ask the CA again")]
    EmptyChain,
    #[error("the chain has {0} certificates; at most {CHAIN_MAX} are allowed")]
    LongChain(usize),
    #[error("the bundle holds no root, so nobody could be verified")]
    EmptyBundle,
    #[error("the bundle holds {0} roots; at most {BUNDLE_ROOTS_MAX} are allowed")]
    LargeBundle(usize),
    #[error("a root of the bundle cannot be used as a trust anchor")]
    Root(#[source] rustls::Error),
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("the identity {id} is not of the bundle's trust domain {domain}")]
    ForeignDomain { id: SpiffeId, domain: TrustDomain },
    #[error("private key and certificate do not belong together")]
    Key(#[source] rustls::Error),
    #[error("a key or a request for a certificate could not be made: {0}")]
    Generate(#[from] rcgen::Error),
}

/// The roots of one trust domain; several while one is being replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
}

/// Key, chain and bundle of one workload.
pub struct Svid {
    leaf: Leaf,
    key: Arc<CertifiedKey>,
    bundle: Bundle,
    anchors: Arc<RootCertStore>,
}

/// A fresh private key and the request to certify it.
pub struct KeyRequest {
    key: PrivateKeyDer<'static>,
    csr: Vec<u8>,
}

// === impl Bundle ===

impl Bundle {
    /// # Errors
    /// When it has no root, or too many.
    pub fn new(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SvidError> {
        match roots.len() {
            0 => Err(SvidError::EmptyBundle),
            n if n > BUNDLE_ROOTS_MAX => Err(SvidError::LargeBundle(n)),
            _ => Ok(Self { trust_domain, roots }),
        }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// All roots as PEM, for people and for clients' `--cacert`.
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| pem("CERTIFICATE", root)).collect()
    }

    /// The roots as rustls wants them.
    ///
    /// # Errors
    /// When a root is not a certificate that can anchor trust.
    pub fn anchors(&self) -> Result<RootCertStore, SvidError> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone()).map_err(SvidError::Root)?;
        }
        Ok(store)
    }
}

// === impl Svid ===

impl Svid {
    /// # Errors
    /// When the parts do not fit together by the rules of X.509-SVID.
    pub fn new(
        key: PrivateKeyDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        bundle: Bundle,
    ) -> Result<Self, SvidError> {
        if chain.len() > CHAIN_MAX {
            return Err(SvidError::LongChain(chain.len()));
        }
        let leaf = Leaf::read(chain.first().ok_or(SvidError::EmptyChain)?)?;
        if !leaf.id.is_member_of(&bundle.trust_domain) {
            let domain = bundle.trust_domain;
            return Err(SvidError::ForeignDomain { id: leaf.id, domain });
        }
        let key =
            CertifiedKey::from_der(chain, key, &provider::provider()).map_err(SvidError::Key)?;
        // `from_der` lets a key of unknown form pass; here that would be a broken SVID.
        key.keys_match().map_err(SvidError::Key)?;
        let anchors = Arc::new(bundle.anchors()?);
        Ok(Self { leaf, key: Arc::new(key), bundle, anchors })
    }

    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    pub fn anchors(&self) -> Arc<RootCertStore> {
        self.anchors.clone()
    }

    /// When to ask for the next one: at two thirds of the life left when it was obtained, up to
    /// 5 % earlier, so that a fleet started together does not renew together.
    pub fn renew_at_ms(&self, obtained_ms: u64, rng: &mut Rng) -> u64 {
        let due = self.leaf.not_after_ms.saturating_sub(obtained_ms) / 3 * 2;
        obtained_ms + due - rng.below(due / 20 + 1)
    }

    /// Life left.
    pub fn remaining(&self, wall_ms: u64) -> Duration {
        Duration::from_millis(self.leaf.not_after_ms.saturating_sub(wall_ms))
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

// === impl KeyRequest ===

impl KeyRequest {
    /// A new P-256 key and a PKCS#10 request that names nobody: the signer knows who asks.
    ///
    /// # Errors
    /// When the provider cannot make a key.
    pub fn generate() -> Result<Self, SvidError> {
        Self::naming(None)
    }

    /// The same, stating the identity that is expected, so that the signer can refuse early.
    ///
    /// # Errors
    /// When the provider cannot make a key.
    pub fn naming(id: Option<&SpiffeId>) -> Result<Self, SvidError> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(id) = id {
            params.subject_alt_names.push(rcgen::SanType::URI(id.as_str().try_into()?));
        }
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), csr })
    }

    /// The request, DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The private key as PEM, for the one file that keeps it.
    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_der())
    }

    /// Joins the key with what the signer answered.
    ///
    /// # Errors
    /// As [`Svid::new`].
    pub fn complete(
        self,
        chain: Vec<CertificateDer<'static>>,
        bundle: Bundle,
    ) -> Result<Svid, SvidError> {
        Svid::new(self.key, chain, bundle)
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").field("csr_bytes", &self.csr.len()).finish_non_exhaustive()
    }
}

/// One PEM block.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
