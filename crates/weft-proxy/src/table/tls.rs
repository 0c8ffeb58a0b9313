// SPDX-License-Identifier: Apache-2.0
//! Server certificates of gateway listeners, made ready when the table is built.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_base::clock::Clock;
use weft_identity::Alpn;
use weft_identity::tls::door_server;
use weft_model::{GatewayListener, Section, ServerTls};

/// A host name (or `*`) and what is presented for it.
pub type ServedName = (Arc<str>, Arc<ServerConfig>);

/// One configuration per section that has a certificate.
///
/// # Errors
/// Which section's certificate or key cannot be used, and why.
pub fn configs(listener: &GatewayListener, clock: &Clock) -> Result<Vec<ServedName>, String> {
    let with_tls = listener.sections.iter().filter_map(|s| Some((s, s.tls.as_ref()?)));
    with_tls.map(|(section, tls)| config(section, tls, clock)).collect()
}

fn config(section: &Section, tls: &ServerTls, clock: &Clock) -> Result<ServedName, String> {
    let wrong = |what: &str, why: String| {
        format!("the {what} of listener {:?} cannot be used: {why}", &*section.name)
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(tls.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| wrong("certificate", e.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("certificate", "there is none in the PEM text".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes())
        .map_err(|e| wrong("key", e.to_string()))?;
    let certified = CertifiedKey::from_der(chain, key, &weft_identity::provider::provider())
        .map_err(|e| wrong("certificate", e.to_string()))?;
    let config = door_server(Arc::new(certified), Alpn::Both, clock)
        .map_err(|e| wrong("certificate", e.to_string()))?;
    let host = section.hostname.clone().unwrap_or_else(|| "*".into());
    Ok((host, Arc::new(config)))
}
