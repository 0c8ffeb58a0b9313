// SPDX-License-Identifier: Apache-2.0
//! Server certificates of gateway listeners, made ready when the table is built.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use weft_base::clock::Clock;
use weft_identity::outside::{self, Served};
use weft_model::{GatewayListener, Protocol, Section, ServerTls};

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
    let key = outside::certified(&tls.chain_pem, &tls.key_pem).map_err(|e| {
        let readable = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).is_ok();
        wrong(if readable { "certificate" } else { "key" }, e.to_string())
    })?;
    let clients = tls.clients.as_ref().map(|clients| {
        let roots = outside::roots(&clients.ca_pem)
            .map_err(|e| wrong("clients' authority", e.to_string()))?;
        Ok::<_, String>((roots, clients.required))
    });
    let alpn = match tls.alpn.as_slice() {
        [] if section.protocol == Protocol::Tcp => Vec::new(),
        [] => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        named => named.iter().map(|p| p.as_bytes().to_vec()).collect(),
    };
    let served = Served { key, clients: clients.transpose()?, alpn, only_13: tls.only_13 };
    let config =
        outside::server(&served, clock).map_err(|e| wrong("certificate", e.to_string()))?;
    let host = section.hostname.clone().unwrap_or_else(|| "*".into());
    Ok((host, Arc::new(config)))
}
