// SPDX-License-Identifier: Apache-2.0
//! TLS configurations: mutual TLS 1.3 of the mesh, and server TLS for doors.
//!
//! Called by the proxy (15008, upstreams), the xDS and agent doors (15012) and the HTTP doors.
//! A configuration belongs to one SVID and one set of expected peers; a new SVID or bundle makes
//! new configurations, and with them new session stores, so that no session outlives what it was
//! verified against. Nothing here reads a clock or a file.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use weft_base::clock::Clock;
use weft_base::snapshot::Snapshot;

use crate::guards;
use crate::join::CaPin;
use crate::leaf::Leaf;
use crate::provider::{TlsTime, provider};
use crate::svid::Svid;
use crate::verify::{ClientVerifier, Expected, IdentityError, PinnedVerifier, ServerVerifier};

/// Sessions one server configuration remembers.
const SERVER_SESSIONS_MAX: usize = 256;
/// Server names for which one client configuration remembers sessions.
const CLIENT_SESSIONS_MAX: usize = 32;
/// Client configurations kept per SVID; one per distinct set of expected peers and protocol.
const CLIENT_CONFIGS_MAX: usize = 4096;

/// Why a TLS configuration could not be made.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("the crypto provider refused the TLS configuration")]
    Config(#[from] rustls::Error),
    #[error("the bundle cannot verify clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Why a connection has no usable peer identity.
#[derive(Debug, Error)]
pub enum PeerError {
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the certificate of {0} is expired; its agent must renew it")]
    Expired(crate::SpiffeId),
}

/// What a client offers by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alpn {
    H2,
    Http11,
    /// HTTP/2 preferred; the server chooses.
    Both,
}

/// The mesh's server side: a configuration that follows its SVID.
pub struct ServerTls {
    svid: Snapshot<Svid>,
    clock: Clock,
    /// Peers without a certificate are let in; [`peer`] says that they showed none.
    guests: bool,
    current: ArcSwap<Option<ServerMade>>,
}

struct ServerMade {
    from: Arc<Svid>,
    config: Arc<ServerConfig>,
}

/// The mesh's client side: configurations per expected peers that follow the SVID.
pub struct ClientTls {
    svid: Snapshot<Svid>,
    clock: Clock,
    made: ArcSwap<ClientMade>,
}

#[derive(Clone, Default)]
struct ClientMade {
    from: Option<Arc<Svid>>,
    configs: HashMap<(Expected, Alpn), Arc<ClientConfig>>,
}

// === impl Alpn ===

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2 => vec![b"h2".to_vec()],
            Self::Http11 => vec![b"http/1.1".to_vec()],
            Self::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

// === impl ServerTls ===

impl ServerTls {
    pub fn new(svid: Snapshot<Svid>, clock: Clock) -> Self {
        Self { svid, clock, guests: false, current: ArcSwap::from_pointee(None) }
    }

    /// The same, for a port at which hosts join that have no certificate yet. Whoever serves it
    /// asks [`peer`] and keeps those without one out of everything else.
    pub fn with_guests(svid: Snapshot<Svid>, clock: Clock) -> Self {
        Self { guests: true, ..Self::new(svid, clock) }
    }

    /// The configuration for the newest SVID. Cheap unless the SVID changed.
    ///
    /// # Errors
    /// When rustls refuses the SVID's key or bundle.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let svid = self.svid.load();
        if let Some(made) = self.current.load().as_ref()
            && Arc::ptr_eq(&made.from, &svid)
        {
            return Ok(made.config.clone());
        }
        let config = Arc::new(server(&svid, &self.clock, self.guests)?);
        let made = ServerMade { from: svid, config: config.clone() };
        self.current.store(Arc::new(Some(made)));
        Ok(config)
    }

    pub fn svid(&self) -> Arc<Svid> {
        self.svid.load()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("svid", &self.svid.load()).finish_non_exhaustive()
    }
}

// === impl ClientTls ===

impl ClientTls {
    pub fn new(svid: Snapshot<Svid>, clock: Clock) -> Self {
        Self { svid, clock, made: ArcSwap::default() }
    }

    /// The configuration that accepts exactly `expected`. Cheap after the first call for the same
    /// peers and SVID; sessions are resumed only within it.
    ///
    /// # Errors
    /// When rustls refuses the SVID's key or bundle.
    pub fn config(&self, expected: &Expected, alpn: Alpn) -> Result<Arc<ClientConfig>, TlsError> {
        let svid = self.svid.load();
        let made = self.made.load();
        let current = made.from.as_ref().is_some_and(|from| Arc::ptr_eq(from, &svid));
        let key = (expected.clone(), alpn);
        if current && let Some(config) = made.configs.get(&key) {
            return Ok(config.clone());
        }
        let config = Arc::new(mesh_client(&svid, expected.clone(), alpn, &self.clock)?);
        self.made.rcu(|old| {
            let same = old.from.as_ref().is_some_and(|from| Arc::ptr_eq(from, &svid));
            let mut next = if same && old.configs.len() < CLIENT_CONFIGS_MAX {
                ClientMade::clone(old)
            } else {
                ClientMade { from: Some(svid.clone()), configs: HashMap::new() }
            };
            next.configs.insert(key.clone(), config.clone());
            next
        });
        Ok(config)
    }

    pub fn svid(&self) -> Arc<Svid> {
        self.svid.load()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("svid", &self.svid.load()).finish_non_exhaustive()
    }
}

/// Server side of the mesh for one SVID: TLS 1.3 only, a client certificate of the same trust
/// domain is mandatory, `h2` and `http/1.1` by ALPN.
///
/// # Errors
/// When rustls refuses the SVID's key or bundle.
pub fn mesh_server(svid: &Svid, clock: &Clock) -> Result<ServerConfig, TlsError> {
    server(svid, clock, false)
}

fn server(svid: &Svid, clock: &Clock, guests: bool) -> Result<ServerConfig, TlsError> {
    let domain = svid.bundle().trust_domain().clone();
    let verifier = ClientVerifier::new(svid.anchors(), domain, guests)?;
    let time = Arc::new(TlsTime(clock.clone()));
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key())));
    config.alpn_protocols = Alpn::Both.protocols();
    config.session_storage = guards::sessions(SERVER_SESSIONS_MAX);
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Client side of the mesh for one SVID and one set of expected peers.
///
/// # Errors
/// When rustls refuses the SVID's key or bundle.
pub fn mesh_client(
    svid: &Svid,
    expected: Expected,
    alpn: Alpn,
    clock: &Clock,
) -> Result<ClientConfig, TlsError> {
    let domain = svid.bundle().trust_domain().clone();
    let verifier = ServerVerifier { anchors: svid.anchors(), domain, expected };
    let time = Arc::new(TlsTime(clock.clone()));
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key())));
    config.alpn_protocols = alpn.protocols();
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
    Ok(config)
}

/// Client side of a host that joins: it has no certificate and no bundle, only the pin of the
/// root that it was given with its token, and accepts nobody but that root's server.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn join_client(pin: CaPin, clock: &Clock) -> Result<ClientConfig, TlsError> {
    let time = Arc::new(TlsTime(clock.clone()));
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { pin }))
        .with_no_client_auth();
    config.alpn_protocols = Alpn::H2.protocols();
    Ok(config)
}

/// Server TLS without client certificates: doors on other addresses than loopback, gateways'
/// HTTPS listeners. TLS 1.2 and 1.3.
///
/// # Errors
/// When the key cannot be used.
pub fn door_server(
    key: Arc<rustls::sign::CertifiedKey>,
    alpn: Alpn,
    clock: &Clock,
) -> Result<ServerConfig, TlsError> {
    let time = Arc::new(TlsTime(clock.clone()));
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = alpn.protocols();
    Ok(config)
}

/// The roots that this machine trusts for the world outside the mesh; read once. Empty where the
/// system keeps none in the usual places, so that nothing outside verifies.
pub fn system_roots() -> Arc<RootCertStore> {
    const PLACES: [&str; 3] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ];
    static ROOTS: std::sync::OnceLock<Arc<RootCertStore>> = std::sync::OnceLock::new();
    let read = || {
        let mut store = RootCertStore::empty();
        let text = PLACES.iter().find_map(|place| std::fs::read(place).ok()).unwrap_or_default();
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
        Arc::new(store)
    };
    ROOTS.get_or_init(read).clone()
}

/// Who is on the other end: for `connection.peer_certificates()` of a finished handshake.
/// Checks the dates again, since a resumed session was verified earlier.
///
/// # Errors
/// When there is no certificate, no identity in it, or it is expired by now.
pub fn peer(certificates: Option<&[CertificateDer<'_>]>, clock: &Clock) -> Result<Leaf, PeerError> {
    let leaf = certificates.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
    let leaf = Leaf::read(leaf).map_err(IdentityError::from)?;
    if leaf.is_valid_at(clock.wall_ms()) { Ok(leaf) } else { Err(PeerError::Expired(leaf.id)) }
}

/// A failed handshake in the words of the verifier that failed it; rustls shows those of others
/// for debugging only.
pub fn reason(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(own))) => {
            own.0.to_string()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
