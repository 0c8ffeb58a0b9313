// SPDX-License-Identifier: Apache-2.0
//! TLS that a DestinationRule has clients speak to instances that do so themselves, in the place of
//! the mesh's own. Called by `service` and `service_entry`.
//!
//! What cannot be done as written fails the backend, with a sentence: nothing falls back to
//! plaintext. Private keys go to Gateways alone, as Istio has it without a `workloadSelector`.

use std::sync::Arc;

use base64::Engine as _;
use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::View;
use weft_kinds::views::istio::ClientTls;
use weft_kinds::world::{KindId, Object};
use weft_model::{Backend, Certificate, Fail, Names, Resource, Trust, UpstreamTls};

use super::{Reader, origin};

/// What is spoken: `None` is nothing of the kind, an error is why nothing can be sent.
pub(super) type Form = Option<Result<UpstreamTls, Said>>;

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
            let text = format!(
                "{} shows a client's certificate, whose key is given to Gateways alone; call \
                 {host} through one",
                object.key
            );
            Secured { all: Some(Err(failed(text))), gateways: Some(Some(Ok(tls))) }
        }
        form => Secured { all: Some(form), gateways: None },
    }
}

fn originates(tls: &ClientTls) -> bool {
    matches!(&*tls.mode, "SIMPLE" | "MUTUAL")
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
    let skip = tls.insecure_skip_verify == Some(true);
    let names = match tls.subject_alt_names.as_slice() {
        _ if skip => Names::Any,
        [] => Names::ServerName,
        list => Names::OneOf(list.to_vec()),
    };
    let trust = match tls.ca_certificates.as_deref().filter(|text| !text.is_empty()) {
        _ if skip => Trust::Anyone,
        Some("system") => Trust::System,
        Some(file) => {
            return Err(format!(
                "{}: the control plane reads no files of proxies, {file} among them; put the \
                 authorities under ca.crt of a Secret and name it by credentialName, or say system",
                object.key
            ));
        }
        None => secret.as_ref().and_then(Credential::authorities).unwrap_or(Trust::System),
    };
    let server_name = tls.sni.clone().filter(|sni| !sni.is_empty()).unwrap_or_else(|| host.into());
    Ok(UpstreamTls { server_name: Some(server_name), trust, names, certificate, only_13: false })
}

/// A Secret beside the rule.
struct Credential<'w> {
    object: &'w Object,
}

impl<'w> Credential<'w> {
    fn read(reader: &Reader<'w>, rule: &Object, name: &str) -> Result<Self, String> {
        let ns = &*rule.key.namespace;
        let found = reader.object(KindId::Secret, ns, name);
        let object =
            found.ok_or_else(|| format!("{}: there is no Secret {ns}/{name}", rule.key))?;
        Ok(Self { object })
    }

    fn text(&self, keys: &[&str]) -> Option<Arc<str>> {
        let View::Secret(secret) = &self.object.view else { return None };
        let encoded = keys.iter().find_map(|key| secret.data.get(*key))?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.contains("-----BEGIN ").then(|| text.into())
    }

    fn authorities(&self) -> Option<Trust> {
        self.text(&["ca.crt", "cacert"]).map(Trust::Authorities)
    }

    fn certificate(&self) -> Result<Certificate, String> {
        let pair = self.text(&["tls.crt", "cert"]).zip(self.text(&["tls.key", "key"]));
        let (chain_pem, key_pem) = pair.ok_or_else(|| {
            format!("{} has no certificate and key under tls.crt and tls.key", self.object.key)
        })?;
        Ok(Certificate { chain_pem, key_pem })
    }
}

// === impl Secured ===

/// A backend as it is spoken to, or why nothing is sent to it.
pub(super) fn formed(backend: &Backend, form: &Form) -> Resource {
    match form {
        None => Resource::Backend(backend.clone()),
        Some(Ok(tls)) => {
            let mut backend = backend.clone();
            backend.policy.tls = Some(Box::new(tls.clone()));
            Resource::Backend(backend)
        }
        Some(Err(Said { reason, origin })) => {
            Resource::Fail(Fail { reason: reason.as_str().into(), origin: Some(origin.clone()) })
        }
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
    if let Err(why) = spoken(reader, object, tls, "") {
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
        issues.warning(path, "Gateways alone show this certificate; sidecars are refused");
    }
}
