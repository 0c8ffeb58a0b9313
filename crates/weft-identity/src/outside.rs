// SPDX-License-Identifier: Apache-2.0
//! TLS with those who are no part of the mesh: listeners of gateways and standalone proxies, and
//! backends that speak TLS themselves. Called by the proxy when a table is built; never used
//! between sidecars, whose rules are in `verify`.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use thiserror::Error;
use weft_base::clock::Clock;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Version};

use crate::guards;
use crate::provider::{TlsTime, has_aes, provider};
use crate::tls::TlsError;

mod names;
mod shown;

pub use names::client_names;
pub use shown::{Shown, alternative_names, shown};

/// Sessions that one listener's configuration remembers.
const SERVER_SESSIONS_MAX: usize = 256;
/// Server names for which one configuration remembers sessions.
const CLIENT_SESSIONS_MAX: usize = 32;

/// Why PEM text cannot be used.
#[derive(Debug, Error)]
pub enum PemError {
    #[error("the PEM text cannot be read: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    #[error("there is no certificate in the PEM text")]
    NoCertificate,
    #[error("the private key cannot be read: {0}")]
    NoKey(rustls_pki_types::pem::Error),
    #[error("the private key is not that of the certificate")]
    Mismatch,
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("{0}")]
    Key(Error),
}

/// What a listener presents and asks.
#[derive(Clone, Debug)]
pub struct Served {
    pub key: Arc<CertifiedKey>,
    /// What is asked of clients; `None` asks nothing.
    pub clients: Option<Asked>,
    pub alpn: Vec<Vec<u8>>,
    pub only_13: bool,
}

/// Whose certificates a listener asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who signs them.
    pub roots: Arc<RootCertStore>,
    /// A client must show one.
    pub required: bool,
    /// A certificate that does not hold is taken too: nothing that a client shows may be believed.
    pub insecure: bool,
}

/// Which backends are believed.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Whose signature counts; `None` believes everybody.
    pub roots: Option<Arc<RootCertStore>>,
    pub names: OriginNames,
    pub certificate: Option<Arc<CertifiedKey>>,
    pub only_13: bool,
}

/// What a backend's certificate must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginNames {
    /// The server name of the handshake.
    ServerName,
    /// A DNS name or URI among these.
    OneOf(Vec<Arc<str>>),
    Any,
}

#[derive(Debug)]
struct OriginVerifier {
    roots: Option<Arc<RootCertStore>>,
    names: OriginNames,
}

/// A certificate with its chain and its key.
///
/// # Errors
/// What of the texts cannot be used.
pub fn certified(chain_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, PemError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<_, _>>()?;
    if chain.is_empty() {
        return Err(PemError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(PemError::NoKey)?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

/// Whether a key is that of a chain's own certificate, also of one that cannot be served: of X.509
/// version 1, which is kept for whoever wrote it and which no client takes.
///
/// # Errors
/// What of the texts cannot be used.
pub fn is_pair(chain_pem: &str, key_pem: &str) -> Result<(), PemError> {
    match certified(chain_pem, key_pem) {
        Err(PemError::Malformed) => {}
        done => return done.map(drop),
    }
    let first = CertificateDer::from_pem_slice(chain_pem.as_bytes())?;
    let (_, leaf) = X509Certificate::from_der(&first).map_err(|_| PemError::Malformed)?;
    if leaf.version() != X509Version::V1 {
        return Err(PemError::Malformed);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(PemError::NoKey)?;
    let key = provider().key_provider.load_private_key(key).map_err(PemError::Key)?;
    match key.public_key() {
        Some(own) if *own != *leaf.public_key().raw => Err(PemError::Mismatch),
        _ => Ok(()),
    }
}

/// The authorities of a PEM text.
///
/// # Errors
/// When there is none, or one cannot be read.
pub fn roots(pem: &str) -> Result<Arc<RootCertStore>, PemError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store.add(certificate?)?;
    }
    if store.is_empty() { Err(PemError::NoCertificate) } else { Ok(Arc::new(store)) }
}

/// Whether a handshake can ask for a name: a host name or an address, and no pattern.
pub fn is_server_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

/// Server side of a listener.
///
/// # Errors
/// When rustls refuses the key or the authorities.
pub fn server(served: &Served, clock: &Clock) -> Result<ServerConfig, TlsError> {
    let verifier = match &served.clients {
        None => Arc::new(NoClientAuth),
        Some(asked) => asked.verifier()?,
    };
    let time = Arc::new(TlsTime(clock.clone()));
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(versions(served.only_13))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(served.key.clone())));
    config.alpn_protocols.clone_from(&served.alpn);
    config.ignore_client_order = has_aes();
    // What one listener verified is no other's, nor its own with other authorities of clients.
    config.session_storage = guards::sessions(SERVER_SESSIONS_MAX);
    // Who resumes is given the next.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Client side towards a backend.
///
/// # Errors
/// When rustls refuses the versions or the key.
pub fn client(origin: &Origin, alpn: &[&[u8]], clock: &Clock) -> Result<ClientConfig, TlsError> {
    let verifier = OriginVerifier { roots: origin.roots.clone(), names: origin.names.clone() };
    let time = Arc::new(TlsTime(clock.clone()));
    let builder = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(versions(origin.only_13))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &origin.certificate {
        Some(key) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
    Ok(config)
}

fn versions(only_13: bool) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    static BOTH: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS13, &rustls::version::TLS12];
    if only_13 { &ONLY_13 } else { &BOTH }
}

// === impl PemError ===

impl PemError {
    /// Whether another key might do.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::NoKey(_) | Self::Mismatch | Self::Key(_))
    }
}

/// What rustls says in words of its own.
impl From<Error> for PemError {
    fn from(error: Error) -> Self {
        match error {
            Error::InconsistentKeys(_) => Self::Mismatch,
            Error::InvalidCertificate(_) => Self::Malformed,
            error => Self::Key(error),
        }
    }
}

// === impl Asked ===

impl Asked {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let roots = self.roots.clone();
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
        if self.insecure {
            let strict = builder.allow_unauthenticated().build()?;
            return Ok(Arc::new(AnyClient { strict }));
        }
        Ok(if self.required {
            builder.build()?
        } else {
            builder.allow_unauthenticated().build()?
        })
    }
}

/// Asks for the certificates of some authorities and takes anybody's, or none. That its key is the
/// client's own still has to hold.
#[derive(Debug)]
struct AnyClient {
    strict: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.strict.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.strict.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.strict.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}

// === impl OriginVerifier ===

impl OriginVerifier {
    fn check_names(&self, leaf: &CertificateDer<'_>, asked: &ServerName<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        match &self.names {
            OriginNames::Any => Ok(()),
            OriginNames::ServerName => verify_server_name(&parsed, asked),
            OriginNames::OneOf(names) => {
                let as_dns = |name: &Arc<str>| {
                    let name = ServerName::try_from(&**name);
                    name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
                };
                let uris = uris(leaf)?;
                if names.iter().any(|n| as_dns(n) || uris.iter().any(|uri| **uri == **n)) {
                    return Ok(());
                }
                Err(Error::InvalidCertificate(CertificateError::NotValidForName))
            }
        }
    }
}

/// The URIs among a certificate's alternative names.
fn uris(leaf: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(bad)?;
    let mut out = Vec::new();
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
            out.extend(san.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }));
        }
    }
    Ok(out)
}

impl ServerCertVerifier for OriginVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                provider().signature_verification_algorithms.all,
            )?;
        }
        self.check_names(end_entity, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Display for OriginNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerName => f.write_str("the server name"),
            Self::OneOf(names) => f.write_str(&names.join(" or ")),
            Self::Any => f.write_str("any name"),
        }
    }
}

#[cfg(test)]
mod tests;
