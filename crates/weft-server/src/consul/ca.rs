// SPDX-License-Identifier: Apache-2.0
//! `/v1/connect/ca/roots` and `/v1/agent/connect/ca/*`: an authority for Consul's clients, of a
//! trust domain of its own. What it signs is good among those clients and means nothing to the
//! mesh, whose identities are never had by registering or asking.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use weft_identity::handed::Handed;
use weft_identity::permission::{Kind, Verb};
use weft_identity::{Authority, SpiffeId};

use super::Door;
use super::connect::SETTINGS;
use super::duration;
use super::error::Refusal;
use super::http::Ask;
use super::index::Topic;
use super::params::Blocking;
use super::reply::Reply;

/// Life of a leaf where nobody set another, and between which they may.
const LEAF_TTL: Duration = Duration::from_hours(72);
const LEAF_TTL_MIN: Duration = Duration::from_secs(60);
pub(super) const LEAF_TTL_MAX: Duration = Duration::from_hours(24 * 30);
/// Leaves that are kept to be given again.
const LEAVES_MAX: usize = 4_096;
const PEM: &str = "application/pem-certificate-chain";

/// The authority, and what it signed last for each service.
#[derive(Debug)]
pub struct Ca {
    authority: Authority,
    leaves: Mutex<BTreeMap<(String, String), Kept>>,
}

#[derive(Debug)]
struct Kept {
    handed: Handed,
    service: String,
    /// When it was signed, which is its index: it grows over restarts as well.
    index: u64,
    renew_at_ms: u64,
}

// === impl Ca ===

impl Ca {
    pub fn new(authority: Authority) -> Self {
        Self { authority, leaves: Mutex::default() }
    }

    /// The leaf of a service as the API shows it: its index, when the next one is due, and all.
    fn leaf(
        &self,
        (namespace, datacenter): (&str, &str),
        service: &str,
        (ttl, now_ms): (Duration, u64),
    ) -> Result<(u64, u64, Value), Refusal> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), service.to_owned());
        if let Some(kept) = leaves.get(&key).filter(|kept| kept.renew_at_ms > now_ms) {
            return Ok((kept.index, kept.renew_at_ms, kept.shape()));
        }
        let domain = self.authority.trust_domain();
        let id = format!("spiffe://{domain}/ns/{namespace}/dc/{datacenter}/svc/{service}");
        let id = SpiffeId::new(&id).map_err(|why| {
            Refusal::bad(format!("the service's name does not do in a certificate: {why}"))
        })?;
        let signed = self.authority.hand_out(&id, ttl);
        let handed = signed.map_err(|why| Refusal::internal(format!("no leaf: {why}")))?;
        let last = leaves.get(&key).map_or(0, |kept| kept.index);
        let half = handed.leaf.not_after_ms.saturating_sub(now_ms) / 2;
        let kept = Kept {
            handed,
            service: service.to_owned(),
            index: (now_ms / 1000).max(last + 1),
            renew_at_ms: now_ms + half,
        };
        let shown = (kept.index, kept.renew_at_ms, kept.shape());
        if leaves.len() >= LEAVES_MAX && !leaves.contains_key(&key) {
            // They are made anew when they are asked for: at their latest before they end.
            leaves.clear();
        }
        leaves.insert(key, kept);
        Ok(shown)
    }
}

// === impl Kept ===

impl Kept {
    fn shape(&self) -> Value {
        let leaf = &self.handed.leaf;
        json!({
            "SerialNumber": colons(&leaf.serial),
            "CertPEM": self.handed.cert_pem,
            "PrivateKeyPEM": self.handed.key_pem,
            "Service": self.service,
            "ServiceURI": leaf.id.as_str(),
            "ValidAfter": date(leaf.not_before_ms),
            "ValidBefore": date(leaf.not_after_ms),
            "CreateIndex": self.index,
            "ModifyIndex": self.index,
        })
    }
}

impl Door {
    fn ca(&self) -> Result<&Ca, Refusal> {
        self.0.ca.as_deref().ok_or_else(|| {
            Refusal::not_offered(
                "no certificates are handed out here: ask a server's API, or a machine's agent",
            )
        })
    }

    pub(super) async fn ca_roots(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let ca = self.ca()?;
        let facts = ca.authority.root_facts();
        let facts = facts.map_err(|why| Refusal::internal(format!("a root is damaged: {why}")))?;
        if ask.params.flag("pem") {
            let all: String = facts.into_iter().map(|root| root.cert_pem).collect();
            return Ok(Reply::bytes(PEM, all));
        }
        let domain = ca.authority.trust_domain().as_str();
        let cluster = domain.strip_suffix(".consul").unwrap_or(domain);
        let roots: Vec<Value> = facts
            .iter()
            .enumerate()
            .map(|(at, root)| {
                json!({
                    "ID": root.id,
                    "Name": "Consul CA Root Cert",
                    "SerialNumber": root.serial,
                    "SigningKeyID": root.id,
                    "ExternalTrustDomain": cluster,
                    "NotBefore": date(root.not_before_ms),
                    "NotAfter": date(root.not_after_ms),
                    "RootCert": root.cert_pem,
                    "IntermediateCerts": null,
                    "Active": at == 0,
                    "PrivateKeyType": "ec",
                    "PrivateKeyBits": 256,
                    "CreateIndex": 1,
                    "ModifyIndex": 1,
                })
            })
            .collect();
        let active = facts.first().map(|root| root.id.as_str()).unwrap_or_default();
        let shape = json!({ "ActiveRootID": active, "TrustDomain": domain, "Roots": roots });
        self.read(Topic::Still, &ask.params.blocking()?, |_| Ok(shape.clone())).await
    }

    /// A leaf with its key, for who may write the service. Blocks until the next one is due.
    pub(super) async fn ca_leaf(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let service = ask.argument.as_str();
        if service.is_empty() {
            return Err(Refusal::bad("Missing service name"));
        }
        ask.who.demand(Verb::Write, Kind::Service, &ask.namespace, service)?;
        let ca = self.ca()?;
        let blocking: Blocking = ask.params.blocking()?;
        let of = (&*ask.namespace, &*self.own().datacenter);
        let ttl = self.leaf_ttl();
        let (index, renew_at_ms, shape) = ca.leaf(of, service, (ttl, self.wall_ms()))?;
        // A greater one is of a later leaf of another server's: that one is not due either.
        if blocking.index < index {
            return Ok(Reply::json(shape).at(index, &blocking));
        }
        let _place = self.place()?;
        let due = Duration::from_millis(renew_at_ms.saturating_sub(self.wall_ms()));
        tokio::select! {
            () = tokio::time::sleep(due.min(self.jittered(blocking.wait))) => {}
            () = self.0.tasks.draining() => {}
        }
        let (index, _, shape) = ca.leaf(of, service, (ttl, self.wall_ms()))?;
        Ok(Reply::json(shape).at(index, &blocking))
    }

    /// Of the names that discovery chains give; a placeholder where nobody signs.
    pub(super) fn trust_domain(&self) -> String {
        let known = self.0.ca.as_deref().map(|ca| ca.authority.trust_domain().as_str().to_owned());
        known.unwrap_or_else(|| "consul".to_owned())
    }

    /// Whether identities of a trust domain are signed here. Where nobody signs there are none.
    pub(super) fn is_own_domain(&self, domain: &str) -> bool {
        let own = self.0.ca.as_deref().map(|ca| ca.authority.trust_domain().as_str());
        own.is_some_and(|own| own.eq_ignore_ascii_case(domain))
    }

    /// `LeafCertTTL` of the authority's configuration.
    fn leaf_ttl(&self) -> Duration {
        let state = self.consul().state();
        let config = state.record(SETTINGS, "ca").map(|(config, _)| config.clone());
        let told = config.as_ref().and_then(|c| c.get("LeafCertTTL")?.as_str());
        let told = told.and_then(duration::parse).unwrap_or(LEAF_TTL);
        told.clamp(LEAF_TTL_MIN, LEAF_TTL_MAX)
    }
}

// === helpers ===

/// RFC 3339, as Go writes dates.
fn date(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.unwrap_or_default().to_string()
}

/// A number in hexadecimal as pairs with colons between.
fn colons(hex: &str) -> String {
    let padded = if hex.len().is_multiple_of(2) { hex.to_owned() } else { format!("0{hex}") };
    let pairs: Vec<&str> =
        (0..padded.len()).step_by(2).filter_map(|at| padded.get(at..at + 2)).collect();
    pairs.join(":")
}
