// SPDX-License-Identifier: Apache-2.0
//! `/v1/connect/ca/configuration` and `/v1/agent/connect/authorize`. Who signs for Consul's clients
//! is in `ca`.

use http::Method;
use serde_json::{Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Change, State, Topic, keys};

use super::Door;
use super::body::{self, Fields};
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;
use super::view::DEFAULT_NAMESPACE;
use crate::guards;

pub(super) const SETTINGS: &str = "setting";

impl Door {
    pub(super) async fn ca_configuration(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.method == Method::PUT {
            ask.who.demand(Verb::Write, Kind::Operator, &ask.namespace, "")?;
            let body = body::object(&ask.body)?;
            let fields = Fields::new(&body, "");
            if !["", "consul"].contains(&&*fields.text("Provider")?) {
                return Err(Refusal::not_offered(
                    "weft has an authority of its own; other providers are not offered",
                ));
            }
            let config = fields.object("Config")?.cloned().unwrap_or_default();
            let plan = |_: &State| {
                let config = Value::Object(config.clone());
                Ok::<_, Refusal>((vec![Change::Put("ca".into(), config)], ()))
            };
            self.consul().change(SETTINGS, plan).await?;
            return Ok(Reply::empty());
        }
        ask.who.demand(Verb::Read, Kind::Operator, &ask.namespace, "")?;
        let topic = Topic::Key(keys::record(SETTINGS, "ca").into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let known = state.record(SETTINGS, "ca");
            let (created, modified) = known.map_or((1, 1), |(_, i)| (i.created, i.modified));
            let default = json!({"LeafCertTTL": "24h", "IntermediateCertTTL": "8760h"});
            let config = known.map_or(default, |(config, _)| (**config).clone());
            Ok(Reply::json(json!({
                "Provider": "consul",
                "Config": config,
                "State": null,
                "ForceWithoutCrossSigning": false,
                "CreateIndex": created,
                "ModifyIndex": modified,
            })))
        })
        .await
    }

    /// Whether a client certificate's service may connect, by the intentions.
    pub(super) fn connect_authorize(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = body::object(&ask.body)?;
        let fields = Fields::new(&body, "");
        let target = fields.text("Target")?;
        if target.is_empty() {
            return Err(Refusal::bad("Target service must be specified"));
        }
        ask.who.demand(Verb::Write, Kind::Service, &ask.namespace, &target)?;
        let uri = fields.text("ClientCertURI")?;
        let Some([domain, ns, dc, source]) = service_of(&uri) else {
            return Err(Refusal::bad(format!(
                "ClientCertURI not a valid Service identifier: {uri:?}"
            )));
        };
        // Whom another authority vouches for is nobody here, whatever it is called.
        let foreign = match () {
            () if !self.is_own_domain(domain) => Some("trust domain"),
            () if !dc.eq_ignore_ascii_case(&self.own().datacenter) => Some("datacenter"),
            () if ns != DEFAULT_NAMESPACE => Some("namespace"),
            () => None,
        };
        if let Some(what) = foreign.filter(|_| guards::on("connect-domain")) {
            let why = format!("Identity from an external {what}");
            return Ok(Reply::json(json!({"Authorized": false, "Reason": why})));
        }
        let said = super::intention::decide(&self.consul().state(), source, &target);
        let (allowed, why) = match said {
            Some(true) => (true, "Matched intention: ALLOW"),
            Some(false) => (false, "Matched intention: DENY"),
            None if self.acl().default_allow() => (true, "Default behavior configured: ALLOW"),
            None => (false, "Default behavior configured: DENY"),
        };
        Ok(Reply::json(json!({"Authorized": allowed, "Reason": why})))
    }
}

/// The trust domain, namespace, datacentre and name of `spiffe://D/ns/N/dc/DC/svc/S`, and of
/// nothing else.
fn service_of(uri: &str) -> Option<[&str; 4]> {
    let parts: Vec<&str> = uri.strip_prefix("spiffe://")?.split('/').collect();
    match parts.as_slice() {
        [domain, "ns", ns, "dc", dc, "svc", service] => {
            let found = [*domain, *ns, *dc, *service];
            found.iter().all(|part| !part.is_empty()).then_some(found)
        }
        _ => None,
    }
}
