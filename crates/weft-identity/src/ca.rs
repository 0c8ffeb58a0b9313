// SPDX-License-Identifier: Apache-2.0
//! The certificate authority of one trust domain, in the data directory.
//!
//! Opened by the server role and by `weft up`; called to sign what agents ask for their own
//! children and to make certificates for doors. It takes nothing but the public key from a
//! request: the identity is what the caller was granted. It never listens and never decides who
//! may have which identity.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use thiserror::Error;
use weft_base::clock::Clock;

use crate::join::CaPin;
use crate::leaf::LeafError;
use crate::provider::{NoRandomness, provider, random};
use crate::spiffe::{SpiffeError, SpiffeId, TrustDomain};
use crate::svid::{Bundle, KeyRequest, Svid, SvidError};

pub(crate) mod files;

/// Life of an SVID unless asked otherwise.
pub const SVID_TTL_DEFAULT: Duration = Duration::from_hours(24);
/// Longest life of an SVID that is signed.
pub const SVID_TTL_MAX: Duration = Duration::from_hours(24 * 30);
/// Shortest life of an SVID that is signed.
pub const SVID_TTL_MIN: Duration = Duration::from_secs(5);
/// Life of a root.
const ROOT_TTL: Duration = Duration::from_hours(24 * 3652);
/// How much earlier than now certificates begin, for clocks that lag or are set back: an hour is
/// what goes wrong with daylight saving.
const SKEW: Duration = Duration::from_secs(65 * 60);
/// Largest certificate request that is read, bytes.
pub const CSR_BYTES_MAX: usize = 8 * 1024;

/// Why the authority could not be opened.
#[derive(Debug, Error)]
pub enum CaError {
    #[error("{path}: {what}")]
    Io { path: PathBuf, what: &'static str, source: std::io::Error },
    #[error(
        "{path} can be read by other users (mode {mode:o}), so its key may be known to them; \
         run `chmod 600 {path}`, and `weft reset` if others use this machine"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} is damaged: {what}; restore it from a backup, or begin anew with `weft reset`")]
    Damaged { path: PathBuf, what: String },
    #[error(
        "this data directory belongs to the trust domain {have}, but {asked} is asked for; a trust \
         domain is fixed at the first start, since it is part of every identity: start with \
         --trust-domain {have}, or with another --data-dir"
    )]
    OtherTrustDomain { have: TrustDomain, asked: TrustDomain },
    #[error("the root certificate in {path} expired; begin anew with `weft reset`")]
    Expired { path: PathBuf },
    #[error("the authority's key or certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error(transparent)]
    Bundle(#[from] SvidError),
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Why a request was not signed.
#[derive(Debug, Error)]
pub enum SignError {
    #[error("the certificate request has {0} bytes; at most {CSR_BYTES_MAX} are read")]
    TooLarge(usize),
    #[error("the certificate request is not a PKCS#10 request with a valid signature: {0}")]
    Request(#[source] rcgen::Error),
    #[error(
        "the request's key is of a kind that is not signed here; use ECDSA P-256 or P-384, or \
             Ed25519"
    )]
    Key,
    #[error("the request asks for {asked} as well; leave names out, the identity is {granted}")]
    OtherName { asked: String, granted: SpiffeId },
    #[error("the request asks to be a CA; only the root signs here")]
    AsksCa,
    #[error("{id} is not of this authority's trust domain {domain}")]
    ForeignDomain { id: SpiffeId, domain: TrustDomain },
    #[error("a certificate's name {0:?} cannot be written")]
    Name(String),
    #[error("signing failed: {0}")]
    Sign(#[source] rcgen::Error),
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("the new key cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// A signed leaf and what is above it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub id: SpiffeId,
    pub chain: Vec<CertificateDer<'static>>,
    pub not_after_ms: u64,
}

/// The certificate authority. Signing is `&self`; share it in an `Arc`.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root_not_after_ms: u64,
    bundle: Bundle,
    clock: Clock,
}

/// The root's key and certificate, as they lie in `root.pem`.
struct Root {
    key: KeyPair,
    cert: CertificateDer<'static>,
}

// === impl Authority ===

impl Authority {
    /// Opens the authority in `dir` (usually `DATA/ca`), creating it at the first start.
    /// `asked` is the trust domain; `None` takes the one there is, or `cluster.local`.
    ///
    /// # Errors
    /// When files cannot be used, belong to another trust domain or are open to others.
    pub fn open(dir: &Path, asked: Option<&TrustDomain>, clock: &Clock) -> Result<Self, CaError> {
        files::make_private_dir(dir)?;
        let path = dir.join("root.pem");
        let root = match files::read_private(&path)? {
            Some(text) => Root::read(&text, &path)?,
            None => {
                let default = TrustDomain::new("cluster.local").map_err(|e| damaged(&path, e))?;
                let root = Root::create(asked.unwrap_or(&default), clock)?;
                files::write(&path, &root.pem(), 0o600)?;
                root
            }
        };
        let (have, not_after_ms) = root.facts(&path)?;
        if let Some(asked) = asked.filter(|asked| **asked != have) {
            return Err(CaError::OtherTrustDomain { have, asked: asked.clone() });
        }
        if not_after_ms <= clock.wall_ms() {
            return Err(CaError::Expired { path });
        }
        let extra = files::read_certificates(&dir.join("bundle.pem"))?;
        let others = extra.into_iter().filter(|cert| *cert != root.cert);
        let roots = std::iter::once(root.cert.clone()).chain(others).collect();
        let bundle = Bundle::new(have.clone(), roots)?;
        bundle.anchors()?;
        // For people and `--cacert`, and the place where a further root is added.
        files::write(&dir.join("bundle.pem"), &bundle.pem(), 0o644)?;
        Ok(Self {
            trust_domain: have,
            issuer: Issuer::from_ca_cert_der(&root.cert, root.key)?,
            root_not_after_ms: not_after_ms,
            bundle,
            clock: clock.clone(),
        })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Signs the public key in a PKCS#10 request (DER) for the granted identity. The request's
    /// own names are not believed: it may state the granted one, or none.
    ///
    /// # Errors
    /// When the request is not well-formed, not self-signed, or asks for anything else.
    pub fn sign(&self, csr: &[u8], granted: &SpiffeId, ttl: Duration) -> Result<Issued, SignError> {
        if csr.len() > CSR_BYTES_MAX {
            return Err(SignError::TooLarge(csr.len()));
        }
        if !granted.is_member_of(&self.trust_domain) {
            let domain = self.trust_domain.clone();
            return Err(SignError::ForeignDomain { id: granted.clone(), domain });
        }
        let csr = CertificateSigningRequestDer::from(csr);
        let request =
            CertificateSigningRequestParams::from_der(&csr).map_err(SignError::Request)?;
        check_key(&request.public_key)?;
        check_names(&request.params, granted)?;
        let mut params = self.leaf_params(ttl, SVID_TTL_MAX)?;
        params.subject_alt_names = vec![uri(granted.as_str())?];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&request.public_key, &self.issuer).map_err(SignError::Sign)?;
        Ok(Issued {
            id: granted.clone(),
            chain: vec![cert.der().clone()],
            not_after_ms: crate::leaf::ms(params.not_after.unix_timestamp()),
        })
    }

    /// An SVID for this process itself, such as the server's.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn own_svid(&self, id: &SpiffeId, ttl: Duration) -> Result<Svid, SignError> {
        let request = KeyRequest::generate()?;
        let issued = self.sign(request.csr(), id, ttl)?;
        Ok(request.complete(issued.chain, self.bundle.clone())?)
    }

    /// The server's own SVID. Its chain ends with the root, so that who knows nothing but the
    /// root's pin can verify it.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn server_svid(&self, ttl: Duration) -> Result<Svid, SignError> {
        let request = KeyRequest::generate()?;
        let mut chain = self.sign(request.csr(), &self.trust_domain.server(), ttl)?.chain;
        chain.extend(self.bundle.roots().first().cloned());
        Ok(request.complete(chain, self.bundle.clone())?)
    }

    /// What tells this authority from others, to hand on with a join token.
    pub fn pin(&self) -> CaPin {
        // A bundle has at least one root, the own one first.
        self.bundle.roots().first().map(|root| CaPin::of(root)).unwrap_or_default()
    }

    /// A server certificate for a door, by DNS names and addresses. It carries no URI name, so no
    /// verifier of the mesh takes it for an identity.
    ///
    /// # Errors
    /// When a name cannot be written into a certificate.
    pub fn door_certificate(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        ttl: Duration,
    ) -> Result<CertifiedKey, SignError> {
        let key = KeyPair::generate().map_err(SignError::Sign)?;
        let mut params = self.leaf_params(ttl, Duration::from_hours(24 * 397))?;
        for name in names {
            let dns = name.as_str().try_into().map_err(|_| SignError::Name(name.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &self.issuer).map_err(SignError::Sign)?;
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        CertifiedKey::from_der(vec![cert.der().clone()], der, &provider())
            .map_err(SignError::Unusable)
    }

    fn leaf_params(&self, ttl: Duration, max: Duration) -> Result<CertificateParams, SignError> {
        let now_ms = self.clock.wall_ms();
        let ttl = ttl.clamp(SVID_TTL_MIN, max);
        let end_ms = (now_ms + millis(ttl)).min(self.root_not_after_ms);
        let mut params = CertificateParams::default();
        set_dates(&mut params, now_ms.saturating_sub(millis(SKEW)), end_ms);
        params.serial_number = Some(serial()?);
        // An empty subject makes rcgen mark the alternative names as critical (RFC 5280 §4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

// === impl Root ===

impl Root {
    fn create(domain: &TrustDomain, clock: &Clock) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let now_ms = clock.wall_ms();
        let mut params = CertificateParams::default();
        set_dates(&mut params, now_ms.saturating_sub(millis(SKEW)), now_ms + millis(ROOT_TTL));
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "weft");
        // Unique, so that two roots of one domain are told apart while one replaces the other.
        let tag: String = random::<4>()?.iter().map(|b| format!("{b:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("{domain} root {tag}"));
        params.subject_alt_names = vec![SanType::URI(domain.uri().try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?.der().clone();
        Ok(Self { key, cert })
    }

    fn read(text: &str, path: &Path) -> Result<Self, CaError> {
        let (key, cert) = files::key_and_certificate(text).map_err(|e| damaged(path, e))?;
        let key = KeyPair::try_from(&key).map_err(|e| damaged(path, e))?;
        Ok(Self { key, cert })
    }

    fn pem(&self) -> String {
        let key = crate::svid::pem("PRIVATE KEY", self.key.serialized_der());
        key + &crate::svid::pem("CERTIFICATE", &self.cert)
    }

    /// Trust domain and end of life, after checking that key and certificate belong together.
    fn facts(&self, path: &Path) -> Result<(TrustDomain, u64), CaError> {
        let cert = crate::leaf::parse(&self.cert).map_err(|e| damaged(path, e))?;
        if cert.public_key().subject_public_key.data.as_ref() != self.key.der_bytes() {
            return Err(damaged(path, "its key and its certificate do not belong together"));
        }
        let names = cert.subject_alternative_name().map_err(|e| damaged(path, e))?;
        let uri = names.and_then(|san| {
            san.value.general_names.iter().find_map(|name| match name {
                x509_parser::extensions::GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
                _ => None,
            })
        });
        let uri = uri.ok_or_else(|| damaged(path, LeafError::UriNames(0)))?;
        let domain = TrustDomain::new(uri).map_err(|e: SpiffeError| damaged(path, e))?;
        Ok((domain, crate::leaf::ms(cert.validity().not_after.timestamp())))
    }
}

/// Which keys are signed; the request's signature was verified with it already.
fn check_key(key: &rcgen::PublicKey) -> Result<(), SignError> {
    let raw = key.der_bytes();
    let uncompressed = raw.first() == Some(&4);
    let algorithm = PublicKeyData::algorithm(key);
    let good = (algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 && raw.len() == 65 && uncompressed)
        || (algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 && raw.len() == 97 && uncompressed)
        || (algorithm == &rcgen::PKCS_ED25519 && raw.len() == 32);
    if good { Ok(()) } else { Err(SignError::Key) }
}

/// A request may state the granted identity once, and nothing else.
fn check_names(asked: &CertificateParams, granted: &SpiffeId) -> Result<(), SignError> {
    let other = |asked: String| Err(SignError::OtherName { asked, granted: granted.clone() });
    if matches!(asked.is_ca, IsCa::Ca(_)) {
        return Err(SignError::AsksCa);
    }
    for (i, name) in asked.subject_alt_names.iter().enumerate() {
        match name {
            SanType::URI(uri) if i == 0 && uri.as_str() == granted.as_str() => {}
            SanType::URI(uri) => return other(format!("the URI {:?}", uri.as_str())),
            SanType::DnsName(dns) => return other(format!("the DNS name {:?}", dns.as_str())),
            SanType::IpAddress(ip) => return other(format!("the address {ip}")),
            SanType::Rfc822Name(mail) => {
                return other(format!("the mail name {:?}", mail.as_str()));
            }
            _ => return other("a name of an unusual kind".into()),
        }
    }
    Ok(())
}

fn uri(text: &str) -> Result<SanType, SignError> {
    text.try_into().map(SanType::URI).map_err(|_| SignError::Name(text.to_owned()))
}

/// 127 random bits, positive.
fn serial() -> Result<SerialNumber, NoRandomness> {
    let mut bytes = random::<16>()?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets both dates; rcgen's date type is not named, so that its crate is no dependency.
fn set_dates(params: &mut CertificateParams, from_ms: u64, to_ms: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from_ms / 1000);
    params.not_after = epoch + Duration::from_secs(to_ms / 1000);
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn damaged(path: &Path, what: impl fmt::Display) -> CaError {
    CaError::Damaged { path: path.to_owned(), what: what.to_string() }
}

#[cfg(test)]
mod tests;
