// SPDX-License-Identifier: Apache-2.0
//! TLS of an Istio Gateway's server: what it presents, and whom of its clients it believes. Called
//! by `istio_gateway`. A server that asks for more of its clients than can be checked is not
//! served at all; what only makes it stricter about versions and ciphers is named.

use std::sync::Arc;

use base64::Engine as _;
use weft_base::issue::{FieldPath, Issues};
use weft_identity::outside;
use weft_kinds::views::View;
use weft_kinds::views::istio::{self, Server};
use weft_kinds::world::KindId;
use weft_model::{ClientCertificates, ServerTls};

use super::Reader;
use super::istio_gateway::Carries;
use super::listener_tls::{config_map_roots, secret_pem};

/// What ends the name of a Secret for authorities alone.
const AUTHORITIES_SUFFIX: &str = "-cacert";

/// Whether TLS ends at a server.
pub(super) fn is_opened(server: &Server) -> bool {
    let mode = server.tls.as_ref().map_or("", |tls| &*tls.mode);
    match &*server.port.protocol {
        "HTTPS" | "TLS" => mode != "PASSTHROUGH",
        // `httpsRedirect` alone asks for none.
        _ => matches!(mode, "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL"),
    }
}

/// What a server presents; `None` when it opens no TLS.
///
/// # Errors
/// Why it cannot be served.
pub(super) fn served(
    reader: &Reader<'_>,
    namespace: &str,
    server: &Server,
    carries: Carries,
) -> Result<Option<ServerTls>, String> {
    if carries == Carries::Names || !is_opened(server) {
        return Ok(None);
    }
    let protocol = &server.port.protocol;
    let tls = server.tls.as_ref().ok_or_else(|| format!("a server of {protocol} needs tls"))?;
    let mode = match &*tls.mode {
        "" => "PASSTHROUGH",
        mode => mode,
    };
    if !matches!(mode, "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL") {
        return Err(format!(
            "mode {mode} is not served here by this version; SIMPLE, MUTUAL and OPTIONAL_MUTUAL are"
        ));
    }
    checked(tls)?;
    let name = tls.credential_names.first().unwrap_or(&tls.credential_name);
    if name.is_empty() {
        return Err("no certificate: name a Secret by credentialName; the control plane reads no \
                    files of proxies"
            .to_owned());
    }
    let mut served = secret_pem(reader, namespace, name)
        .ok_or_else(|| format!("Secret {namespace}/{name} is no kubernetes.io/tls Secret"))?;
    served.only_13 = tls.min_protocol_version.as_deref() == Some("TLSV1_3");
    if mode != "SIMPLE" {
        let ca_pem = authorities(reader, namespace, tls, name)?;
        let insecure = tls.insecure_skip_verify == Some(true);
        let required = mode == "MUTUAL" && !insecure;
        served.clients = Some(Box::new(ClientCertificates { ca_pem, required, insecure }));
    }
    Ok(Some(served))
}

/// Nobody is let in whom the author would have turned away.
fn checked(tls: &istio::ServerTls) -> Result<(), String> {
    let asks = [
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
        ("verifyCertificateSpki", !tls.verify_certificate_spki.is_empty()),
        ("verifyCertificateHash", !tls.verify_certificate_hash.is_empty()),
        ("caCrl", tls.ca_crl.as_deref().is_some_and(|crl| !crl.is_empty())),
    ];
    match asks.iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((field, _)) => Err(format!(
            "{field} is not checked by this version, so the server is not served; leave it out to \
             let in whom the authorities have signed"
        )),
    }
}

/// The authorities of clients' certificates: of the Secret or ConfigMap that is named for them, of
/// the one beside the server's own, or in that one.
fn authorities(
    reader: &Reader<'_>,
    namespace: &str,
    tls: &istio::ServerTls,
    own: &str,
) -> Result<Arc<str>, String> {
    let named = &*tls.ca_cert_credential_name;
    if !named.is_empty() {
        let found = secret_roots(reader, namespace, named)
            .or_else(|| config_map_roots(reader, namespace, named).ok().map(Into::into));
        return found.ok_or_else(|| {
            format!("neither Secret nor ConfigMap {namespace}/{named} has authorities under ca.crt")
        });
    }
    let beside = format!("{own}{AUTHORITIES_SUFFIX}");
    secret_roots(reader, namespace, &beside)
        .or_else(|| secret_roots(reader, namespace, own))
        .ok_or_else(|| {
            format!(
                "neither Secret {namespace}/{beside} nor {namespace}/{own} has authorities under \
                 ca.crt, and clients must show certificates"
            )
        })
}

fn secret_roots(reader: &Reader<'_>, namespace: &str, name: &str) -> Option<Arc<str>> {
    let object = reader.object(KindId::Secret, namespace, name)?;
    let View::Secret(secret) = &object.view else { return None };
    let encoded = secret.data.get("ca.crt").or_else(|| secret.data.get("cacert"))?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()).ok()?;
    let pem = String::from_utf8(bytes).ok()?;
    outside::roots(&pem).is_ok().then(|| pem.into())
}

/// What of a server's TLS is not done as written though it is served.
pub(super) fn judge(server: &Server, path: &FieldPath, issues: &mut Issues) {
    let Some(tls) = &server.tls else { return };
    let path = path.field("tls");
    if !tls.cipher_suites.is_empty() {
        let text = "not applied: TLS 1.2 and 1.3 with forward secrecy and AEAD are offered";
        issues.warning(path.field("cipherSuites"), text);
    }
    let older = ["TLSV1_0", "TLSV1_1", "TLSV1_2"];
    if tls.max_protocol_version.as_deref().is_some_and(|v| older.contains(&v)) {
        let text = "not applied: TLS 1.3 is offered too";
        issues.warning(path.field("maxProtocolVersion"), text);
    }
    if tls.credential_names.len() > 1 {
        let text = "the first one is presented, the others are not";
        issues.warning(path.field("credentialNames"), text);
    }
    let files = tls.server_certificate.is_some() || !tls.tls_certificates.is_empty();
    if files && (!tls.credential_name.is_empty() || !tls.credential_names.is_empty()) {
        issues.warning(path, "the Secret is presented; files of proxies are not read");
    }
}
