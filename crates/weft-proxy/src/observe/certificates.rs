// SPDX-License-Identifier: Apache-2.0
//! Certificates in use: what `/certs` of the admin door and the metrics tell of them. No key is
//! ever shown.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use weft_base::limits::CERTIFICATES_TOLD_MAX;
use weft_identity::Svid;
use weft_identity::outside::{alternative_names, shown as leaf};
use weft_model::Section;

use crate::table::Table;
use crate::table::tls::Presented;

const DAY_SECONDS: i64 = 86_400;

/// Of each certificate that a listener presents the listener, the section and the seconds until it
/// runs out; the soonest first, as many as there may be.
pub fn seconds_left(table: &Table, wall_ms: u64) -> Vec<(&str, &str, i64)> {
    let now = seconds(wall_ms);
    let each = table.gateways().flat_map(|gateway| {
        let in_use = gateway.presented().filter_map(|(section, what)| Some((section, what?)));
        in_use.map(|(section, what)| (&*gateway.name, &*section.name, what.until - now))
    });
    let mut all: Vec<_> = each.collect();
    all.sort_by_key(|(.., left)| *left);
    all.truncate(CERTIFICATES_TOLD_MAX);
    all
}

/// `/certs`, in Envoy's words: the proxy's own certificate, and those that listeners present.
pub fn shown(svid: Option<&Svid>, table: &Table, wall_ms: u64) -> Value {
    let mut certificates: Vec<Value> = svid.map(|svid| own(svid, wall_ms)).into_iter().collect();
    let mut sections = Vec::new();
    for gateway in table.gateways() {
        for (section, presented) in gateway.presented() {
            let place = json!({ "listener": &*gateway.name, "section": &*section.name });
            certificates.extend(presented.map(|what| of_section(section, what, &place, wall_ms)));
            sections.push(json!({
                "listener": &*gateway.name, "section": &*section.name, "host": section.hostname,
                "in_use": presented.is_some(),
            }));
        }
    }
    json!({ "certificates": certificates, "weft": { "gateway_sections": sections } })
}

fn own(svid: &Svid, wall_ms: u64) -> Value {
    let leaf = svid.leaf();
    let left = leaf.not_after_ms.saturating_sub(wall_ms) / 86_400_000;
    json!({
        "ca_cert": [],
        "cert_chain": [{
            "serial_number": leaf.serial,
            "subject_alt_names": [{ "uri": leaf.id.as_str() }],
            "days_until_expiration": left.to_string(),
            "valid_from": rfc3339(seconds(leaf.not_before_ms)),
            "expiration_time": rfc3339(seconds(leaf.not_after_ms)),
        }],
    })
}

fn of_section(section: &Section, what: &Presented, place: &Value, wall_ms: u64) -> Value {
    let path = what.from.as_deref().unwrap_or("<inline>");
    let chain = what.key.cert.first().and_then(|der| details(der, path, wall_ms));
    let clients = section.tls.as_ref().and_then(|tls| tls.clients.as_ref());
    let authority = clients.and_then(|clients| {
        let der = CertificateDer::from_pem_slice(clients.ca_pem.as_bytes()).ok()?;
        details(&der, "<inline>", wall_ms)
    });
    let listed = |one: Option<Value>| one.into_iter().collect::<Vec<_>>();
    json!({ "ca_cert": listed(authority), "cert_chain": listed(chain), "weft": place })
}

fn details(der: &CertificateDer<'_>, path: &str, wall_ms: u64) -> Option<Value> {
    let said = leaf(Some(std::slice::from_ref(der)))?;
    let names = alternative_names(der).into_iter().map(|(kind, name)| json!({ kind: name }));
    let days = (said.until - seconds(wall_ms)).max(0) / DAY_SECONDS;
    Some(json!({
        "path": path,
        "serial_number": said.serial,
        "subject_alt_names": names.collect::<Vec<_>>(),
        "days_until_expiration": days.to_string(),
        "valid_from": rfc3339(said.from),
        "expiration_time": rfc3339(said.until),
    }))
}

fn seconds(wall_ms: u64) -> i64 {
    i64::try_from(wall_ms / 1_000).unwrap_or(i64::MAX)
}

fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map(|t| format!("{t:.0}")).unwrap_or_default()
}
