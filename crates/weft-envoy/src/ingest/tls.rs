// SPDX-License-Identifier: Apache-2.0
//! TLS contexts of listeners and clusters, with certificates from files, from the text itself or
//! from static secrets.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use weft_model::{
    Certificate, ClientCertificates, Names, ProxyVersion, ServerTls, Trust, UpstreamTls,
};

use super::Context;
use crate::read::{Found, Message};

const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const RAW_NAME: &str = "envoy.transport_sockets.raw_buffer";
const PROXY: &str =
    "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// What both contexts have.
#[derive(Default)]
struct Common {
    certificate: Option<Certificate>,
    /// The file that it was read from.
    from: Option<Arc<str>>,
    authorities: Option<Arc<str>>,
    names: Vec<Arc<str>>,
    alpn: Vec<Arc<str>>,
    only_13: bool,
}

/// The static secrets by name.
pub fn secrets(map: &Map<String, Value>) -> BTreeMap<&str, &Map<String, Value>> {
    let list = ["static_resources", "staticResources"].iter().find_map(|k| map.get(*k));
    let list = list.and_then(|r| r.get("secrets")).and_then(Value::as_array);
    let each = list.into_iter().flatten().filter_map(Value::as_object);
    each.filter_map(|secret| Some((secret.get("name")?.as_str()?, secret))).collect()
}

/// The TLS of a filter chain; `None` for plaintext, or when it was reported.
pub fn downstream(chain: &Message<'_>, context: &Context<'_>) -> Option<ServerTls> {
    only_here(chain, &["tls_context"]);
    let socket = chain.message("transport_socket")?;
    let tls = opened(&socket, DOWNSTREAM)?;
    tls.not_done("session_timeout", &[], "how long a session may be resumed is weft's own");
    let why = "what a session is resumed from is kept here, not given to clients";
    tls.not_done("disable_stateless_session_resumption", &["true"], why);
    let required = tls.flag("require_client_certificate").unwrap_or(false);
    let common = common(&tls, context);
    if !common.names.is_empty() {
        let why = "clients are judged by authority here; use RBAC for their names";
        tls.error("common_tls_context.validation_context", why);
    }
    let Some(certificate) = common.certificate else {
        tls.error("common_tls_context", "a listener with TLS needs a certificate");
        return None;
    };
    let clients =
        common.authorities.map(|ca_pem| ClientCertificates { ca_pem, required, insecure: false });
    if clients.is_none() && required {
        tls.error("require_client_certificate", "nobody's certificate would be trusted");
    }
    Some(ServerTls {
        clients: clients.map(Box::new),
        alpn: common.alpn,
        only_13: common.only_13,
        from: common.from,
        ..ServerTls::new(certificate.chain_pem, certificate.key_pem)
    })
}

/// The TLS of a cluster, and whether connections begin with a header that says who the client is.
pub fn upstream(
    cluster: &Message<'_>,
    context: &Context<'_>,
) -> (Option<UpstreamTls>, Option<ProxyVersion>) {
    let others = ["tls_context", "transport_socket_matches", "transport_socket_matcher"];
    only_here(cluster, &others);
    let Some(socket) = cluster.message("transport_socket") else { return (None, None) };
    if !is_of(&socket, PROXY) {
        return (originated(&socket, context), None);
    }
    socket.pass_over(&["name"]);
    let Some((_, outer)) = socket.any("typed_config") else { return (None, None) };
    let version = match outer.message("config").and_then(|config| config.word("version")) {
        Some(word) if word == "V2" => ProxyVersion::V2,
        _ => ProxyVersion::V1,
    };
    let inner = outer.message("transport_socket");
    (inner.and_then(|inner| originated(&inner, context)), Some(version))
}

/// Whether a socket's configuration is of a type.
fn is_of(socket: &Message<'_>, wanted: &str) -> bool {
    let config = socket.item("typed_config");
    let url = config.and_then(|config| config.value.get("@type")).and_then(Value::as_str);
    url.is_some_and(|url| url.rsplit('/').next() == Some(wanted))
}

fn originated(socket: &Message<'_>, context: &Context<'_>) -> Option<UpstreamTls> {
    let tls = opened(socket, UPSTREAM)?;
    if tls.number::<u32>("max_session_keys") == Some(0) {
        tls.unsupported("max_session_keys", "0: sessions of servers are resumed");
    }
    judged_by_sni(&tls, "auto_sni_san_validation");
    let server_name = tls.text("sni").filter(|s| !s.is_empty()).map(Arc::from);
    let common = common(&tls, context);
    let trust = common.authorities.map_or(Trust::Anyone, Trust::Authorities);
    let names = if common.names.is_empty() { Names::Any } else { Names::OneOf(common.names) };
    if !common.alpn.is_empty() {
        let why = "ALPN follows what the cluster's http_protocol_options say";
        let said: Vec<&str> = common.alpn.iter().map(|a| &**a).collect();
        if !matches!(said.as_slice(), ["h2"] | ["http/1.1"] | ["h2", "http/1.1"]) {
            tls.unsupported("common_tls_context.alpn_protocols", why);
        }
    }
    let (certificate, only_13) = (common.certificate, common.only_13);
    Some(UpstreamTls { server_name, trust, names, certificate, only_13, anonymous: false })
}

/// Says that a server's certificate is not compared with the name that it was asked for. Who goes
/// on without that believes servers with any name.
pub fn judged_by_sni(message: &Message<'_>, field: &str) {
    if message.flag(field) == Some(true) {
        let why = "a server's name stands in match_typed_subject_alt_names of validation_context";
        message.error(field, why);
    }
}

/// Whoever passes over one of these speaks plaintext, or to somebody else.
fn only_here(message: &Message<'_>, others: &[&str]) {
    for field in others.iter().filter(|field| message.is_set(field)) {
        message.error(field, "how connections are secured stands in transport_socket");
    }
}

/// The TLS context in a transport socket; `None` for plaintext, or when it was reported. Another
/// kind of socket is an error: to go on without it would be plaintext.
fn opened<'s>(socket: &'s Message<'_>, wanted: &str) -> Option<Message<'s>> {
    let name = socket.text("name");
    let Some((kind, tls)) = socket.any("typed_config") else {
        if !socket.is_set("typed_config") && name != Some(RAW_NAME) {
            socket.error("typed_config", "it says how connections are secured");
        }
        return None;
    };
    if kind == wanted {
        return Some(tls);
    }
    if kind != RAW {
        tls.waive();
        let why = format!("{kind} is none of weft's, and without it this would be plaintext");
        socket.error("typed_config", why);
    }
    None
}

fn common(tls: &Message<'_>, context: &Context<'_>) -> Common {
    let mut out = Common::default();
    let Some(common) = tls.message("common_tls_context") else { return out };
    if let Some(params) = common.message("tls_params") {
        out.only_13 = match params.word("tls_minimum_protocol_version").as_deref() {
            None | Some("TLS_AUTO" | "TLSV1_2") => false,
            Some("TLSV1_3") => true,
            Some(other) => {
                let why = format!("{other} is not served; TLS begins at 1.2");
                params.unsupported("tls_minimum_protocol_version", why);
                false
            }
        };
        if !matches!(
            params.word("tls_maximum_protocol_version").as_deref(),
            None | Some("TLS_AUTO" | "TLSV1_3")
        ) {
            let why = "TLS 1.3 cannot be switched off";
            params.unsupported("tls_maximum_protocol_version", why);
        }
    }
    out.alpn = common.texts("alpn_protocols").into_iter().map(Arc::from).collect();
    let mut certificates = common.map("tls_certificates", |message| certificate(&message, context));
    common.each("tls_certificate_sds_secret_configs", |reference| {
        secret(&reference, context, |secret| {
            let found = secret.message("tls_certificate");
            certificates.extend(found.and_then(|message| certificate(&message, context)));
        });
    });
    if certificates.len() > 1 {
        let why = "a filter chain has one certificate; give each server name its own chain";
        common.unsupported("tls_certificates", why);
    }
    if let Some((certificate, from)) = certificates.into_iter().next() {
        (out.certificate, out.from) = (Some(certificate), from);
    }
    // From here on it is about who is believed: what is left out lets in more.
    common.firm(true);
    if let Some(validation) = common.message("validation_context") {
        validate(&validation, context, &mut out);
    }
    if let Some(reference) = common.message("validation_context_sds_secret_config") {
        secret(&reference, context, |secret| {
            if let Some(validation) = secret.message("validation_context") {
                validate(&validation, context, &mut out);
            }
        });
    }
    if let Some(combined) = common.message("combined_validation_context") {
        if let Some(validation) = combined.message("default_validation_context") {
            validate(&validation, context, &mut out);
        }
        if let Some(reference) = combined.message("validation_context_sds_secret_config") {
            secret(&reference, context, |secret| {
                if let Some(validation) = secret.message("validation_context") {
                    validate(&validation, context, &mut out);
                }
            });
        }
    }
    out
}

/// A certificate, and the file that it was read from.
fn certificate(
    message: &Message<'_>,
    context: &Context<'_>,
) -> Option<(Certificate, Option<Arc<str>>)> {
    message.pass_over(&["watched_directory"]);
    let chain_pem = context.data(message, "certificate_chain");
    let key_pem = context.data(message, "private_key");
    let source = message.item("certificate_chain").and_then(|item| item.value.get("filename"));
    let from = source.and_then(Value::as_str).map(Arc::from);
    Some((Certificate { chain_pem: chain_pem?, key_pem: key_pem? }, from))
}

fn validate(validation: &Message<'_>, context: &Context<'_>, out: &mut Common) {
    validation.pass_over(&["watched_directory"]);
    if let Some(ca) = context.data(validation, "trusted_ca") {
        out.authorities = Some(ca);
    }
    validation.each("match_typed_subject_alt_names", |name| {
        let kind = name.word("san_type");
        if !matches!(kind.as_deref(), Some("DNS" | "URI")) {
            name.unsupported("san_type", "names are DNS or URI");
        }
        let Some(matcher) = name.message("matcher") else { return };
        // Both are compared with all names: what can be one alone must not be told as the other.
        if let (Some(kind @ ("DNS" | "URI")), Some(text)) = (kind.as_deref(), matcher.text("exact"))
            && text.contains(':') != (kind == "URI")
        {
            name.error("san_type", format!("{text:?} is no name of the type {kind}"));
        }
        san(&matcher, out);
    });
    validation.each("match_subject_alt_names", |matcher| san(&matcher, out));
    let judged = validation.word("trust_chain_verification");
    if !matches!(judged.as_deref(), None | Some("VERIFY_TRUST_CHAIN")) {
        validation.unsupported("trust_chain_verification", "chains are always verified");
    }
}

fn san(matcher: &Message<'_>, out: &mut Common) {
    match matcher.text("exact") {
        Some(name) => out.names.push(name.into()),
        None => {
            matcher.waive();
            let said = matcher.names().next().unwrap_or("exact");
            matcher.unsupported(said, "names are compared exactly here; use exact");
        }
    }
}

/// Reads a secret that is named, when it stands among the static ones.
fn secret(reference: &Message<'_>, context: &Context<'_>, f: impl FnOnce(Message<'_>)) {
    let Some(name) = reference.text("name") else { return };
    let Some(map) = context.secrets.get(name).filter(|_| !reference.is_set("sds_config")) else {
        if reference.is_set("sds_config") {
            reference.waive();
            reference.unsupported("sds_config", "secrets come from files or static_resources");
        } else {
            reference.error("name", format!("static_resources has no secret {name:?}"));
        }
        return;
    };
    let found = Found::default();
    {
        let secret = found.root(map);
        secret.pass_over(&["name"]);
        f(secret);
    }
    let (errors, unsupported) = found.into_parts();
    for issue in errors {
        reference.error("name", format!("secret {name:?}: {issue}"));
    }
    for issue in unsupported {
        reference.unsupported("name", format!("secret {name:?}: {issue}"));
    }
}
