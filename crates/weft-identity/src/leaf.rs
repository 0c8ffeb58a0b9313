// SPDX-License-Identifier: Apache-2.0
//! What weft reads from an end-entity certificate: exactly one SPIFFE ID and its dates.
//!
//! Called by the verifiers, by `svid` and by whoever wants to know a connection's peer. It never
//! judges trust: a chain is verified before (`verify`), the rules of the X.509-SVID standard here.

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::spiffe::{SpiffeError, SpiffeId};

/// Why a certificate is no X.509-SVID.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LeafError {
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    #[error("the certificate has {0} URI names; an SVID has exactly one")]
    UriNames(usize),
    #[error("the certificate's URI name is no SPIFFE ID: {0}")]
    Name(#[from] SpiffeError),
    #[error("the certificate may sign others (it is a CA), so it proves no workload's identity")]
    IsCa,
}

/// An end-entity certificate as far as weft cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub id: SpiffeId,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    /// Serial number, hexadecimal.
    pub serial: String,
}

impl Leaf {
    /// Reads one certificate by the rules of X.509-SVID §4 (leaf) and §5.2.
    ///
    /// # Errors
    /// When it is not a certificate or not an SVID's leaf.
    pub fn read(cert: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let cert = parse(cert)?;
        let (mut uris, mut count) = (None, 0);
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                // Only names of the type URI count; the same text as a DNS name is no identity.
                ParsedExtension::SubjectAlternativeName(san) => {
                    for name in &san.general_names {
                        if let GeneralName::URI(uri) = name {
                            count += 1;
                            uris = Some(*uri);
                        }
                    }
                }
                ParsedExtension::BasicConstraints(b) if b.ca => return Err(LeafError::IsCa),
                ParsedExtension::KeyUsage(u) if u.key_cert_sign() || u.crl_sign() => {
                    return Err(LeafError::IsCa);
                }
                ParsedExtension::ParseError { error } => {
                    return Err(LeafError::Malformed(error.to_string()));
                }
                _ => {}
            }
        }
        let uri = uris.filter(|_| count == 1).ok_or(LeafError::UriNames(count))?;
        Ok(Self {
            id: SpiffeId::new(uri)?,
            not_before_ms: ms(cert.validity().not_before.timestamp()),
            not_after_ms: ms(cert.validity().not_after.timestamp()),
            serial: format!("{:x}", cert.tbs_certificate.serial),
        })
    }

    pub fn is_valid_at(&self, wall_ms: u64) -> bool {
        (self.not_before_ms..=self.not_after_ms).contains(&wall_ms)
    }
}

pub(crate) fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, LeafError> {
    let (rest, cert) =
        X509Certificate::from_der(cert).map_err(|e| LeafError::Malformed(e.to_string()))?;
    if rest.is_empty() {
        Ok(cert)
    } else {
        Err(LeafError::Malformed("bytes follow the certificate".into()))
    }
}

pub(crate) fn ms(unix_s: i64) -> u64 {
    u64::try_from(unix_s).unwrap_or(0).saturating_mul(1000)
}
