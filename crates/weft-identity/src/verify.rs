// SPDX-License-Identifier: Apache-2.0
//! The mesh's certificate verifiers: path to the bundle by webpki, then the identity by SPIFFE's
//! rules. Built by `tls`, called by rustls in every handshake of the mesh.
//!
//! Names of the host are never looked at, no address is trusted more than another (loopback is an
//! address like any other), and nothing matches by pattern.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;

use crate::join::CaPin;
use crate::leaf::{Leaf, LeafError};
use crate::provider;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Whom a client accepts as its server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Expected {
    /// Exactly one of these; an empty set accepts nobody.
    OneOf(BTreeSet<SpiffeId>),
    /// Anyone of the own trust domain. For places that check the identity themselves.
    AnyOfTrustDomain,
}

/// Why a peer with a good chain was still refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("the peer is {found}, which is not of the trust domain {domain}")]
    ForeignDomain { found: SpiffeId, domain: TrustDomain },
    #[error("the peer is {found}, but {expected} was expected")]
    Unexpected { found: SpiffeId, expected: String },
    #[error(
        "the server's certificate is not of the pinned authority {0}; is the address right, and \
         the token from this server?"
    )]
    OtherRoot(CaPin),
}

/// Verifies servers of the mesh.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) anchors: Arc<RootCertStore>,
    pub(crate) domain: TrustDomain,
    pub(crate) expected: Expected,
}

/// Verifies the server of a mesh by the pin of its root, for who has nothing else yet.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pub(crate) pin: CaPin,
}

/// Verifies clients of the mesh: a certificate is mandatory, or (at the port where hosts join)
/// good when there is one.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    domain: TrustDomain,
}

/// Accepts any certificate. Only for questions whose answer is no secret and proves nothing:
/// health probes, which kubelet does not verify either. Never for traffic.
#[derive(Debug)]
pub struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

// === impl Expected ===

impl Expected {
    /// Exactly this identity.
    pub fn only(id: SpiffeId) -> Self {
        Self::OneOf(BTreeSet::from([id]))
    }

    /// Whether the identity is acceptable in this trust domain.
    ///
    /// # Errors
    /// When not, with the sentence that says whom we met.
    pub fn admit(&self, id: &SpiffeId, domain: &TrustDomain) -> Result<(), IdentityError> {
        if !id.is_member_of(domain) {
            return Err(IdentityError::ForeignDomain { found: id.clone(), domain: domain.clone() });
        }
        match self {
            Self::AnyOfTrustDomain => Ok(()),
            Self::OneOf(ids) if ids.contains(id) => Ok(()),
            Self::OneOf(ids) => {
                let all: Vec<&str> = ids.iter().map(SpiffeId::as_str).collect();
                let expected = if all.is_empty() { "nobody".into() } else { all.join(" or ") };
                Err(IdentityError::Unexpected { found: id.clone(), expected })
            }
        }
    }
}

// === impl ServerVerifier ===

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = provider::provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.anchors,
            intermediates,
            now,
            algorithms.all,
        )?;
        let leaf = Leaf::read(end_entity).map_err(|e| refused(e.into()))?;
        self.expected.admit(&leaf.id, &self.domain).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::provider().signature_verification_algorithms.supported_schemes()
    }
}

// === impl PinnedVerifier ===

impl PinnedVerifier {
    /// The pinned root, which the server sends along with its chain.
    fn root(&self, intermediates: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let root = intermediates.iter().find(|cert| self.pin.is_of(cert));
        let root = root.ok_or_else(|| refused(IdentityError::OtherRoot(self.pin)))?;
        let mut anchors = RootCertStore::empty();
        anchors.add(root.clone().into_owned())?;
        Ok(anchors)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = provider::provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.root(intermediates)?,
            intermediates,
            now,
            algorithms.all,
        )?;
        let leaf = Leaf::read(end_entity).map_err(|e| refused(e.into()))?;
        // Workloads have certificates of the same root; they are not the server.
        let domain = leaf.id.trust_domain();
        Expected::only(domain.server()).admit(&leaf.id, &domain).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::provider().signature_verification_algorithms.supported_schemes()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    pub(crate) fn new(
        anchors: Arc<RootCertStore>,
        domain: TrustDomain,
        guests: bool,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let builder = WebPkiClientVerifier::builder_with_provider(anchors, provider::provider());
        let chain = match guests {
            true => builder.allow_unauthenticated().build()?,
            false => builder.build()?,
        };
        Ok(Self { chain, domain })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The client has one SVID; hints would only tell strangers about our roots.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let leaf = Leaf::read(end_entity).map_err(|e| refused(e.into()))?;
        Expected::AnyOfTrustDomain.admit(&leaf.id, &self.domain).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

// === impl AnyServer ===

impl AnyServer {
    pub fn new(provider: Arc<rustls::crypto::CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn refused(why: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}
