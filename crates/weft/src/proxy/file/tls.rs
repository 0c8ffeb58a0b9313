// SPDX-License-Identifier: Apache-2.0
//! Certificates of listeners, and TLS towards backends; both name files.

use weft_envoy::read::Message;
use weft_identity::outside;
use weft_model::{
    Certificate, ClientCertificates, Names, Protocol, Section, ServerTls, Trust, UpstreamTls,
};

use super::Context;

/// A section for each certificate of a listener.
pub fn sections(listener: &Message<'_>, protocol: Protocol, context: &Context<'_>) -> Vec<Section> {
    let mut out: Vec<Section> = Vec::new();
    listener.each("tls", |tls| {
        let hostname = tls
            .text("host")
            .and_then(|text| super::host(text).map_err(|why| tls.error("host", why)).ok());
        let name = hostname.as_deref().unwrap_or("all").to_owned();
        let clients = tls.message("clients").and_then(|clients| {
            let required = clients.flag("required").unwrap_or(true);
            let ca_pem = context.file(&clients, "authority");
            if !clients.is_set("authority") {
                clients.error("authority", "whose certificates are believed? Name a PEM file");
            }
            Some(Box::new(ClientCertificates { ca_pem: ca_pem?, required, insecure: false }))
        });
        let only_13 = tls.flag("only_13").unwrap_or(false);
        let Some(certificate) = certificate(&tls, context) else {
            if !tls.is_set("certificate") && !tls.is_set("key") {
                tls.error("certificate", "a certificate and its key are two PEM files");
            }
            return;
        };
        let (chain, key) = (certificate.chain_pem, certificate.key_pem);
        let from = tls.text("certificate").map(|name| context.folder.join(name));
        let from = from.map(|path| path.display().to_string().into());
        let tls = ServerTls { clients, only_13, from, ..ServerTls::new(chain, key) };
        out.push(Section { name: name.into(), hostname, protocol, tls: Some(tls) });
    });
    // A host that a request names chooses the section: nobody may go round what one asks.
    let clients = |s: &Section| s.tls.as_ref().and_then(|t| t.clients.clone());
    let first = out.first().and_then(clients);
    if out.iter().any(|s| clients(s) != first) {
        listener.error("tls", "all certificates of a listener ask the same of clients");
    }
    out
}

fn certificate(message: &Message<'_>, context: &Context<'_>) -> Option<Certificate> {
    if message.is_set("certificate") != message.is_set("key") {
        message.error("certificate", "a certificate and its key are two PEM files: name both");
    }
    let chain_pem = context.file(message, "certificate");
    let key_pem = context.file(message, "key");
    let (chain_pem, key_pem) = (chain_pem?, key_pem?);
    if let Err(error) = outside::certified(&chain_pem, &key_pem) {
        let field = if error.is_of_key() { "key" } else { "certificate" };
        message.error(field, error.to_string());
    }
    Some(Certificate { chain_pem, key_pem })
}

/// TLS towards a backend.
pub fn upstream(backend: &Message<'_>, context: &Context<'_>) -> Option<UpstreamTls> {
    let tls = backend.message("tls")?;
    let server_name = tls.text("server_name").map(Into::into);
    let authority = context.file(&tls, "authority");
    let trust = match (authority, tls.flag("anyone")) {
        (Some(pem), None | Some(false)) => Trust::Authorities(pem),
        (None, Some(true)) => Trust::Anyone,
        (Some(_), Some(true)) => {
            tls.error("anyone", "either an authority is believed, or anyone");
            Trust::Anyone
        }
        (None, _) => Trust::System,
    };
    let names = tls.texts("names");
    let names = match (names.is_empty(), &trust) {
        (false, _) => Names::OneOf(names.into_iter().map(Into::into).collect()),
        (true, Trust::Anyone) => Names::Any,
        (true, _) => Names::ServerName,
    };
    if names == Names::ServerName && server_name.is_none() {
        tls.error("server_name", "its certificate is checked for this name");
    }
    let only_13 = tls.flag("only_13").unwrap_or(false);
    Some(UpstreamTls {
        server_name,
        trust,
        names,
        certificate: certificate(&tls, context),
        only_13,
        anonymous: false,
    })
}
