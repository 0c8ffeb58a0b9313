// SPDX-License-Identifier: Apache-2.0
//! TLS that a DestinationRule has clients speak to instances that do so themselves, in the place of
//! the mesh's own. Called by `service` and `service_entry`.
//!
//! What cannot be done as written fails the backend, with a sentence: nothing falls back to
//! plaintext. Private keys go to Gateways of the rule's namespace alone, as Istio gives a
//! `credentialName`'s Secret to proxies of its namespace.

use std::sync::Arc;

use base64::Engine as _;
use weft_base::issue::{FieldPath, Issues};
use weft_identity::outside;
use weft_kinds::views::View;
use weft_kinds::views::istio::{ClientTls, TrafficPolicy};
use weft_kinds::world::{KindId, Object};
use weft_model::{Backend, Certificate, Fail, Names, Resource, Trust, UpstreamTls};

use super::{Reader, origin};

/// What is spoken: `None` is nothing of the kind, an error is why nothing can be sent.
pub(super) type Form = Option<Result<UpstreamTls, Said>>;

/// Keys of a Secret that belong together, Kubernetes' and Istio's older ones.
const PAIRS: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert", "key")];
const AUTHORITIES: [&str; 2] = ["ca.crt", "cacert"];
/// What ends the name of a Secret for authorities alone.
const AUTHORITIES_SUFFIX: &str = "-cacert";

/// A sentence and the object that is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub reason: String,
    pub origin: weft_model::Origin,
}

/// TLS with a backend by who speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Secured {
    pub all: Form,
    /// What Gateways do when that is something else.
    pub gateways: Option<Form>,
    /// Only those of this namespace do, because it has a private key in it.
    pub only: Option<Arc<str>>,
}

/// What a rule's settings mean for a host.
pub(super) fn secured(
    reader: &Reader<'_>,
    rule: Option<(&Object, &ClientTls)>,
    host: &str,
) -> Secured {
    let Some((object, tls)) = rule else { return Secured::default() };
    let failed = |reason: String| Said { reason, origin: origin(object, "spec.trafficPolicy.tls") };
    if !originates(tls) {
        return Secured::default();
    }
    let whole = spoken(reader, object, tls, host).map_err(failed);
    match whole {
        Ok(tls) if tls.certificate.is_some() => {
            let ns = &object.key.namespace;
            let text = format!(
                "{} shows a client's certificate, whose key is given to Gateways of namespace \
                 {ns} alone; call {host} through one",
                object.key
            );
            Secured {
                all: Some(Err(failed(text))),
                gateways: Some(Some(Ok(tls))),
                only: Some(ns.clone()),
            }
        }
        form => Secured { all: Some(form), ..Secured::default() },
    }
}

pub(super) fn originates(tls: &ClientTls) -> bool {
    matches!(&*tls.mode, "SIMPLE" | "MUTUAL")
}

/// Whether a policy has TLS begun on any port.
pub(super) fn originates_any(policy: &TrafficPolicy) -> bool {
    let ports = policy.port_level_settings.iter().map(|port| port.tls.as_ref());
    ports.chain([policy.tls.as_ref()]).flatten().any(originates)
}

fn spoken(
    reader: &Reader<'_>,
    object: &Object,
    tls: &ClientTls,
    host: &str,
) -> Result<UpstreamTls, String> {
    let files = [&tls.client_certificate, &tls.private_key];
    if files.iter().any(|f| f.as_deref().is_some_and(|f| !f.is_empty())) {
        return Err(format!(
            "{}: the control plane reads no files of proxies; put certificate and key into a \
             Secret and name it by credentialName",
            object.key
        ));
    }
    let secret = tls.credential_name.as_deref().filter(|name| !name.is_empty());
    let secret = secret.map(|name| Credential::read(reader, object, name)).transpose()?;
    let certificate = match (&*tls.mode, &secret) {
        ("MUTUAL", Some(secret)) => Some(secret.certificate()?),
        ("MUTUAL", None) => {
            return Err(format!("{}: mode MUTUAL needs a credentialName", object.key));
        }
        _ => None,
    };
    let names = match tls.subject_alt_names.as_slice() {
        _ if tls.insecure_skip_verify == Some(true) => Names::Any,
        [] => Names::ServerName,
        list => Names::OneOf(list.to_vec()),
    };
    let trust = trusted(object, tls, secret.as_ref())?;
    let sni = tls.sni.as_ref().filter(|sni| !sni.is_empty());
    let server_name = sni.cloned().unwrap_or_else(|| host.into());
    if !outside::is_server_name(&server_name) {
        let what = if sni.is_some() { "sni" } else { "the host" };
        return Err(format!(
            "{}: {what} {server_name:?} is no name that a handshake can ask for; set sni to a \
             host name without *",
            object.key
        ));
    }
    let (server_name, anonymous) = (Some(server_name), certificate.is_none());
    Ok(UpstreamTls { server_name, trust, names, certificate, only_13: false, anonymous })
}

/// Whom a rule believes. The machine's authorities stand in for no Secret's.
fn trusted(
    object: &Object,
    tls: &ClientTls,
    secret: Option<&Credential<'_>>,
) -> Result<Trust, String> {
    match (tls.ca_certificates.as_deref().filter(|text| !text.is_empty()), secret) {
        _ if tls.insecure_skip_verify == Some(true) => Ok(Trust::Anyone),
        (Some("system"), _) | (None, None) => Ok(Trust::System),
        (Some(file), _) => Err(format!(
            "{}: the control plane reads no files of proxies, {file} among them; put the \
             authorities under ca.crt of a Secret and name it by credentialName, or say system",
            object.key
        )),
        (None, Some(secret)) => secret.authorities(),
    }
}

/// The Secrets beside the rule that a `credentialName` means: one of that name, and one for
/// authorities, which counts before it.
struct Credential<'w> {
    /// For people: the namespace and the name.
    name: String,
    own: Option<&'w Object>,
    beside: Option<&'w Object>,
}

impl<'w> Credential<'w> {
    fn read(reader: &Reader<'w>, rule: &Object, name: &str) -> Result<Self, String> {
        let ns = &*rule.key.namespace;
        let find = |name: &str| reader.object(KindId::Secret, ns, name).map(|o| &**o);
        let (own, beside) = (find(name), find(&format!("{name}{AUTHORITIES_SUFFIX}")));
        let name = format!("{ns}/{name}");
        if own.is_none() && beside.is_none() {
            return Err(format!("{}: there is no Secret {name}", rule.key));
        }
        Ok(Self { name, own, beside })
    }

    fn authorities(&self) -> Result<Trust, String> {
        let read = |object| AUTHORITIES.iter().find_map(|k| Some((*k, text(object, k)?)));
        let object = self.beside.or(self.own);
        let found = object.and_then(|object| Some((&object.key, read(object)?)));
        let Some((secret, (key, pem))) = found else {
            let name = object.map_or_else(|| self.name.clone(), |o| o.key.to_string());
            return Err(format!(
                "{name} has no authorities under ca.crt; put them there, or say caCertificates: \
                 system"
            ));
        };
        let pem = pem?;
        outside::roots(&pem).map_err(|e| format!("{secret}: {key} cannot be used: {e}"))?;
        Ok(Trust::Authorities(pem))
    }

    fn certificate(&self) -> Result<Certificate, String> {
        let own = self.own.ok_or_else(|| format!("there is no Secret {}", self.name))?;
        let read = |(chain, key): (&str, &str)| Some((text(own, chain)?, text(own, key)?));
        let (chain_pem, key_pem) = PAIRS.into_iter().find_map(read).ok_or_else(|| {
            format!("{} has no certificate and key under tls.crt and tls.key", own.key)
        })?;
        let (chain_pem, key_pem) = (chain_pem?, key_pem?);
        outside::certified(&chain_pem, &key_pem)
            .map_err(|e| format!("{}: its certificate and key cannot be used: {e}", own.key))?;
        Ok(Certificate { chain_pem, key_pem })
    }
}

/// What a Secret has under a key, if it has the key.
fn text(object: &Object, key: &str) -> Option<Result<Arc<str>, String>> {
    let View::Secret(secret) = &object.view else { return None };
    let encoded = secret.data.get(key)?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    Some(text.map(Into::into).ok_or_else(|| format!("{}: {key} is no base64 of text", object.key)))
}

// === impl Secured ===

impl Secured {
    /// Whether Gateways of a namespace speak in another way than sidecars.
    pub fn is_for_gateways_of(&self, namespace: &str) -> bool {
        self.gateways.is_some() && self.only.as_deref().is_none_or(|only| only == namespace)
    }
}

/// A backend as it is spoken to, or why nothing is sent to it.
pub(super) fn formed(backend: &Backend, form: &Form) -> Resource {
    match form {
        None => Resource::Backend(backend.clone()),
        Some(Ok(tls)) => {
            let mut backend = backend.clone();
            backend.policy.tls = Some(Box::new(tls.clone()));
            Resource::Backend(backend)
        }
        Some(Err(said)) => said.fail(),
    }
}

impl Said {
    pub fn fail(&self) -> Resource {
        let reason = self.reason.as_str().into();
        Resource::Fail(Fail { reason, origin: Some(self.origin.clone()) })
    }
}

/// What of a rule's settings people should know.
pub(super) fn judge(
    reader: &Reader<'_>,
    object: &Object,
    tls: Option<&ClientTls>,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let Some(tls) = tls else { return };
    let path = path.field("tls");
    if !originates(tls) {
        if !matches!(&*tls.mode, "" | "DISABLE" | "ISTIO_MUTUAL") {
            issues
                .warning(path.field("mode"), format!("{} is no mode; it is not applied", tls.mode));
        }
        return;
    }
    // Whether hosts that fit can be asked for is theirs to say.
    if let Err(why) = spoken(reader, object, tls, "localhost") {
        issues.warning(path.clone(), format!("nothing is sent there: {why}"));
    }
    if tls.insecure_skip_verify == Some(true) {
        issues.warning(
            path.field("insecureSkipVerify"),
            "whoever answers is believed; anybody between may read and change what is sent",
        );
    }
    if tls.ca_crl.is_some() {
        issues
            .warning(path.field("caCrl"), "revocation lists are not read by this version of weft");
    }
    if &*tls.mode == "MUTUAL" {
        let ns = &object.key.namespace;
        let text = format!(
            "Gateways of namespace {ns} alone show this certificate; others and \
             sidecars are refused"
        );
        issues.warning(path, text);
    }
}
