// SPDX-License-Identifier: Apache-2.0
//! What a certificate says, as a line of an access log shows it: names, serial number, dates and
//! fingerprints. Called for logs only; nobody is believed by it.

use std::fmt::Write as _;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use super::names::subject;
use crate::leaf::parse;

/// One certificate, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// As RFC 2253 writes it.
    pub subject: String,
    pub issuer: String,
    /// Lower-case hexadecimal digits.
    pub serial: String,
    pub uris: String,
    pub dns: String,
    pub ips: String,
    pub emails: String,
    pub sha256: String,
    pub sha1: String,
    /// Seconds since the epoch.
    pub from: i64,
    pub until: i64,
}

/// The first certificate of a chain; `None` when there is none that can be read.
pub fn shown(chain: Option<&[CertificateDer<'_>]>) -> Option<Shown> {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
    let der = chain?.first()?;
    let leaf = parse(der).ok()?;
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
    };
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
    let of = |pick: fn(&GeneralName<'_>) -> Option<String>| {
        names.iter().filter_map(pick).collect::<Vec<_>>().join(",")
    };
    Some(Shown {
        subject: subject(leaf.subject()),
        issuer: subject(leaf.issuer()),
        serial: hex(leaf.raw_serial()),
        uris: of(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        }),
        dns: of(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }),
        ips: of(|name| match name {
            GeneralName::IPAddress(ip) => address(ip),
            _ => None,
        }),
        emails: of(|name| match name {
            GeneralName::RFC822Name(name) => Some((*name).to_owned()),
            _ => None,
        }),
        sha256: hex(digest(&SHA256, der).as_ref()),
        sha1: hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref()),
        from: leaf.validity().not_before.timestamp(),
        until: leaf.validity().not_after.timestamp(),
    })
}

/// The alternative names of a certificate, each with its kind as Envoy calls it.
pub fn alternative_names(der: &CertificateDer<'_>) -> Vec<(&'static str, String)> {
    let Ok(leaf) = parse(der) else { return Vec::new() };
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
    let named = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(("dns", (*name).to_owned())),
        GeneralName::URI(uri) => Some(("uri", (*uri).to_owned())),
        GeneralName::IPAddress(ip) => Some(("ip_address", address(ip)?)),
        _ => None,
    });
    named.collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    let ip = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from));
    ip.ok().map(|ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    #[test]
    fn a_certificate_is_shown_as_openssl_shows_it() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Shop, Ltd");
        params.distinguished_name.push(DnType::CommonName, "client");
        params.serial_number = Some(SerialNumber::from(vec![0x0a, 0xff]));
        params.subject_alt_names.push(SanType::URI("spiffe://x/y".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let shown = shown(Some(std::slice::from_ref(&der))).unwrap();
        assert!(shown.subject.contains("O=Shop\\, Ltd"), "{}", shown.subject);
        assert_eq!((&*shown.serial, &*shown.dns), ("0aff", "a.example"));
        assert_eq!((&*shown.uris, &*shown.ips), ("spiffe://x/y", "10.0.0.1"));
        let names = alternative_names(&der);
        assert_eq!(names[0], ("dns", "a.example".to_owned()));
        assert_eq!(names[1], ("uri", "spiffe://x/y".to_owned()));
        assert_eq!(names[2], ("ip_address", "10.0.0.1".to_owned()));
        assert_eq!((shown.sha256.len(), shown.sha1.len()), (64, 40));
        assert!(shown.from < shown.until && shown.emails.is_empty());
        assert_eq!(super::shown(None), None);
        assert_eq!(super::shown(Some(&[CertificateDer::from(vec![1, 2, 3])])), None);
    }
}
