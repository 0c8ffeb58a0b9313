// SPDX-License-Identifier: Apache-2.0
//! TLS of a Gateway: what its listeners present, what it asks of its clients, and the certificate
//! that it shows to backends. Called by `listeners` and `gateway`. Keys go nowhere but into the
//! Gateway's own listeners.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use base64::Engine as _;
use weft_base::limits::{GATEWAY_LISTENERS_MAX, SET_CERTIFICATE_BYTES_MAX};
use weft_identity::outside;
use weft_kinds::views::View;
use weft_kinds::views::gateway::{FrontendValidation, Gateway, Listener, ObjectRef};
use weft_kinds::world::{KindId, Object};
use weft_model::{Certificate, ClientCertificates, ServerTls};

use super::Reader;
use super::http_rule::granted;
use super::listeners::{Failed, Whole, Wrong, is_passthrough};

/// What a listener presents and asks of its clients; `None` when it opens no TLS.
pub(super) fn served(
    reader: &Reader<'_>,
    whole: &Whole<'_>,
    owner: &Object,
    listener: &Listener,
    unresolved: &mut Option<Wrong>,
) -> Result<Option<ServerTls>, Failed> {
    let opened = match &*listener.protocol {
        "HTTPS" => true,
        "TLS" => !is_passthrough(listener),
        _ => false,
    };
    if !opened {
        return Ok(None);
    }
    let mut bad = |reason, text: String| {
        *unresolved = Some((reason, text));
        Failed::Unresolved
    };
    let Some(tls) = &listener.tls else {
        return Err(bad("InvalidCertificateRef", "tls.certificateRefs is missing".into()));
    };
    if tls.mode.as_deref().is_some_and(|m| m != "Terminate") {
        let text = "tls.mode: this listener terminates TLS".to_owned();
        return Err(Failed::Refused(("UnsupportedValue", text)));
    }
    let Some(reference) = tls.certificate_refs.first() else {
        return Err(bad("InvalidCertificateRef", "tls.certificateRefs is empty".into()));
    };
    let found = certificate(reader, owner, reference);
    let mut served = found.map_err(|(permitted, text)| {
        bad(if permitted { "InvalidCertificateRef" } else { "RefNotPermitted" }, text)
    })?;
    let bytes = served.chain_pem.len() + served.key_pem.len();
    if owner.key.kind == KindId::ListenerSet && bytes > SET_CERTIFICATE_BYTES_MAX {
        let text = format!(
            "Secret {} has {bytes} bytes; for a ListenerSet {SET_CERTIFICATE_BYTES_MAX} are enough",
            reference.name
        );
        return Err(bad("InvalidCertificateRef", text));
    }
    // One that a proxy cannot use would cost everybody's listeners on this port.
    if let Err(why) = usable(&served.chain_pem, &served.key_pem) {
        let text = format!("Secret {} cannot be used: {why}", reference.name);
        return Err(bad("InvalidCertificateRef", text));
    }
    // Who asks clients for certificates does so for all that speak HTTPS on a port, whoever's
    // listener it is.
    if &*listener.protocol == "HTTPS"
        && let Some(validation) = whole.gateway.spec.validation(listener.port)
    {
        let believed = whole.clients.of(reader, whole.object, listener.port, validation);
        if let Some(wrong) = believed.wrong {
            unresolved.get_or_insert(wrong);
        }
        served.clients = Some(believed.certificates.map_err(Failed::Refused)?);
    }
    Ok(Some(served))
}

/// A Secret's certificate and key, or why there is none, and whether that is all that is wrong: it
/// may be another namespace's.
fn certificate(
    reader: &Reader<'_>,
    owner: &Object,
    reference: &ObjectRef,
) -> Result<ServerTls, (bool, String)> {
    let (group, kind) = (reference.group.as_deref(), reference.kind.as_deref());
    if group.is_some_and(|g| !g.is_empty()) || kind.is_some_and(|k| k != "Secret") {
        let text = format!(
            "{:?} of group {:?} holds no certificate; name a Secret",
            kind.unwrap_or("Secret"),
            group.unwrap_or(""),
        );
        return Err((true, text));
    }
    let own = &*owner.key.namespace;
    let ns = reference.namespace.as_deref().unwrap_or(own);
    let (from, name) = (owner.key.kind.row().kind, &*reference.name);
    if ns != own && !granted(reader, from, own, ("", "Secret", name), ns) {
        return Err((false, format!("no ReferenceGrant in {ns} lets {own} use Secret {name}")));
    }
    secret_pem(reader, ns, name).ok_or_else(|| {
        (true, format!("Secret {ns}/{name} is no kubernetes.io/tls Secret with both parts in PEM"))
    })
}

/// The certificate and key of a `kubernetes.io/tls` Secret.
pub(super) fn secret_pem(reader: &Reader<'_>, namespace: &str, name: &str) -> Option<ServerTls> {
    let object = reader.object(KindId::Secret, namespace, name)?;
    let View::Secret(secret) = &object.view else { return None };
    let text = |key: &str| -> Option<Arc<str>> {
        let encoded = secret.data.get(key)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.contains("-----BEGIN ").then(|| text.into())
    };
    let from = Some(format!("{}", object.key).into());
    Some(ServerTls { from, ..ServerTls::new(text("tls.crt")?, text("tls.key")?) })
}

/// Certificates that were looked at, of which all are forgotten when there are more.
const LOOKED_AT_MAX: usize = 4 * GATEWAY_LISTENERS_MAX;

/// What was wrong with each, by two hashes that nobody can foresee.
#[derive(Default)]
struct LookedAt {
    hashers: [RandomState; 2],
    known: HashMap<[u64; 2], Option<Arc<str>>>,
}

static LOOKED_AT: LazyLock<Mutex<LookedAt>> = LazyLock::new(Mutex::default);

/// Whether a certificate and its key can be presented. To look costs a fraction of a millisecond,
/// and a Gateway with many listeners is judged again at every change of one: what is known is kept.
fn usable(chain_pem: &str, key_pem: &str) -> Result<(), Arc<str>> {
    let mut looked = LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    let at = [0, 1].map(|i| looked.hashers[i].hash_one((chain_pem, key_pem)));
    if looked.known.len() >= LOOKED_AT_MAX {
        looked.known.clear();
    }
    let look = || outside::certified(chain_pem, key_pem).err().map(|why| why.to_string().into());
    looked.known.entry(at).or_insert_with(look).clone().map_or(Ok(()), Err)
}

// === clients' certificates ===

/// What a Gateway asks of clients by port, read once: many listeners share it.
#[derive(Debug, Default)]
pub(super) struct Clients(RefCell<HashMap<u16, Believed>>);

/// Whom a Gateway believes of its clients.
#[derive(Clone, Debug)]
struct Believed {
    certificates: Result<Box<ClientCertificates>, Wrong>,
    /// The first reference that cannot be used.
    wrong: Option<Wrong>,
}

// === impl Clients ===

impl Clients {
    fn of(
        &self,
        reader: &Reader<'_>,
        gateway: &Object,
        port: u16,
        validation: &FrontendValidation,
    ) -> Believed {
        let mut known = self.0.borrow_mut();
        known.entry(port).or_insert_with(|| Believed::read(reader, gateway, validation)).clone()
    }
}

// === impl Believed ===

impl Believed {
    /// One reference that can be used is enough; the others are told of.
    fn read(reader: &Reader<'_>, gateway: &Object, validation: &FrontendValidation) -> Self {
        let (mut found, mut wrong) = (String::new(), None);
        for reference in &validation.ca_certificate_refs {
            match authorities(reader, gateway, reference) {
                Ok(pem) => {
                    found.push_str(pem);
                    found.push('\n');
                }
                Err(why) => drop(wrong.get_or_insert(why)),
            }
        }
        if found.is_empty() {
            let why = wrong.as_ref().map_or("none is named", |(_, text)| text);
            let text = format!("no authority of clients' certificates can be used: {why}");
            return Self { certificates: Err(("NoValidCACertificate", text)), wrong };
        }
        let insecure = is_insecure(validation);
        let asked = ClientCertificates { ca_pem: found.into(), required: !insecure, insecure };
        Self { certificates: Ok(Box::new(asked)), wrong }
    }
}

fn authorities<'w>(
    reader: &Reader<'w>,
    gateway: &Object,
    reference: &ObjectRef,
) -> Result<&'w str, Wrong> {
    let (group, kind) = (reference.group.as_deref(), reference.kind.as_deref());
    if group.is_some_and(|g| !g.is_empty()) || kind.is_some_and(|k| k != "ConfigMap") {
        let kind = kind.unwrap_or("ConfigMap");
        let text = format!("a {kind} holds no authorities; name a ConfigMap");
        return Err(("InvalidCACertificateKind", text));
    }
    let own = &*gateway.key.namespace;
    let ns = reference.namespace.as_deref().unwrap_or(own);
    let name = &*reference.name;
    if ns != own && !granted(reader, "Gateway", own, ("", "ConfigMap", name), ns) {
        let text = format!("no ReferenceGrant in {ns} lets {own} use ConfigMap {name}");
        return Err(("RefNotPermitted", text));
    }
    config_map_roots(reader, ns, name).map_err(|text| ("InvalidCACertificateRef", text))
}

/// The authorities that a ConfigMap has under `ca.crt`.
pub(super) fn config_map_roots<'w>(
    reader: &Reader<'w>,
    namespace: &str,
    name: &str,
) -> Result<&'w str, String> {
    let object = reader
        .object(KindId::ConfigMap, namespace, name)
        .ok_or_else(|| format!("there is no ConfigMap {namespace}/{name}"))?;
    let pem = object.raw["data"]["ca.crt"].as_str();
    let pem = pem.filter(|pem| outside::roots(pem).is_ok());
    pem.ok_or_else(|| format!("ConfigMap {namespace}/{name} has no certificate under ca.crt"))
}

/// Whether a client is let in whatever it shows.
fn is_insecure(validation: &FrontendValidation) -> bool {
    validation.mode.as_deref() == Some("AllowInsecureFallback")
}

/// Ports whose clients are let in whatever they show; 0 is every port that has no word of its own.
pub(super) fn insecure_ports(gateway: &Gateway) -> Vec<u16> {
    let frontend = &gateway.spec.tls.frontend;
    let named = frontend.per_port.iter().map(|p| (p.port, &p.tls));
    std::iter::once((0, &frontend.default))
        .chain(named)
        .filter(|(_, tls)| tls.validation.as_ref().is_some_and(is_insecure))
        .map(|(port, _)| port)
        .collect()
}

// === towards backends ===

/// What a Gateway shows to backends that ask for a certificate, if it says so at all.
pub(super) fn shown(
    reader: &Reader<'_>,
    object: &Object,
    gateway: &Gateway,
) -> Option<Result<Certificate, Wrong>> {
    let reference = gateway.spec.tls.backend.client_certificate_ref.as_ref()?;
    let found = certificate(reader, object, reference).map_err(|(permitted, text)| {
        let reason = if permitted { "InvalidClientCertificateRef" } else { "RefNotPermitted" };
        (reason, text)
    });
    let usable = found.and_then(|tls| match outside::certified(&tls.chain_pem, &tls.key_pem) {
        Ok(_) => Ok(Certificate { chain_pem: tls.chain_pem, key_pem: tls.key_pem }),
        Err(why) => {
            let text = format!("Secret {} cannot be used: {why}", reference.name);
            Err(("InvalidClientCertificateRef", text))
        }
    });
    Some(usable.map_err(|(reason, text)| {
        (reason, format!("spec.tls.backend.clientCertificateRef: {text}"))
    }))
}
