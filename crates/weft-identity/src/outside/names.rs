// SPDX-License-Identifier: Apache-2.0
//! What the certificate of a client from outside of the mesh says, in Envoy's words. Called when
//! a gateway's handshake is over and the chain is verified; never makes a mesh identity of it.

use std::fmt::Write as _;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Tag, ToDer};
use x509_parser::extensions::GeneralName;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::leaf::{LeafError, parse};

/// The URIs, the DNS names and the subject (RFC 2253) of the first certificate shown; none without
/// a certificate.
///
/// # Errors
/// When it cannot be read whole: what denies by a name must see all of them.
pub fn client_names(shown: Option<&[CertificateDer<'_>]>) -> Result<Box<[Arc<str>]>, LeafError> {
    let Some(leaf) = shown.and_then(<[_]>::first) else { return Ok(Box::default()) };
    let leaf = parse(leaf)?;
    let san = leaf.subject_alternative_name().map_err(|e| LeafError::Malformed(e.to_string()))?;
    let (mut out, mut dns): (Vec<Arc<str>>, Vec<Arc<str>>) = (Vec::new(), Vec::new());
    for name in san.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::URI(uri) => out.push(Arc::from(*uri)),
            GeneralName::DNSName(name) => dns.push(Arc::from(*name)),
            GeneralName::Invalid(tag, _) => {
                let why = format!("an alternative name of the type {tag} is no text");
                return Err(LeafError::Malformed(why));
            }
            _ => {}
        }
    }
    out.append(&mut dns);
    out.push(subject(leaf.subject()).into());
    Ok(out.into())
}

/// As RFC 2253 writes it, the last part first: `CN=a,O=b`.
pub(super) fn subject(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let mut parts: Vec<_> = name.iter_rdn().collect();
    parts.reverse();
    for part in parts {
        let mut attributes: Vec<_> = part.iter().collect();
        attributes.reverse();
        for (i, attribute) in attributes.into_iter().enumerate() {
            if !out.is_empty() {
                out.push(if i == 0 { ',' } else { '+' });
            }
            put(attribute, &mut out);
        }
    }
    out
}

fn put(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let oid = attribute.attr_type().to_id_string();
    let known = short(&oid);
    out.push_str(known.unwrap_or(&oid));
    out.push('=');
    if let Some(text) = text(attribute).filter(|_| known.is_some()) {
        return escape(&text, out);
    }
    out.push('#');
    for byte in attribute.attr_value().to_der_vec().unwrap_or_default() {
        let _ = write!(out, "{byte:02X}");
    }
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let bytes = attribute.as_slice();
    match attribute.attr_value().tag() {
        Tag::TeletexString => Some(bytes.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let unit = |pair: &[u8]| <[u8; 2]>::try_from(pair).ok().map(u16::from_be_bytes);
            let units: Option<Vec<u16>> = bytes.chunks(2).map(unit).collect();
            String::from_utf16(&units?).ok()
        }
        _ => attribute.as_str().ok().map(str::to_owned),
    }
}

/// The names of types that OpenSSL writes.
fn short(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.17" => "postalCode",
        "2.5.4.42" => "GN",
        "2.5.4.46" => "dnQualifier",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        _ => return None,
    })
}

fn escape(text: &str, out: &mut String) {
    let last = text.len().saturating_sub(1);
    for (i, byte) in text.bytes().enumerate() {
        let special = match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => true,
            b'#' => i == 0,
            b' ' => i == 0 || i == last,
            _ => false,
        };
        if special {
            out.push('\\');
        }
        if (0x20..0x7f).contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:02X}");
        }
    }
}
