// SPDX-License-Identifier: Apache-2.0
//! `/v1/connect/ca/configuration` and `/v1/agent/connect/authorize`. Who signs for Consul's clients
//! is in `ca`.

use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Change, State, Topic, keys};

use super::Door;
use super::body::Fields;
use super::ca::LEAF_TTL_MAX;
use super::duration;
use super::error::Refusal;
use super::http::Ask;
use super::register::bodies;
use super::reply::Reply;
use super::view::DEFAULT_NAMESPACE;
use crate::guards;

pub(super) const SETTINGS: &str = "setting";
/// The shortest life of a leaf that may be set, as in Consul.
const LEAF_TTL_LEAST: Duration = Duration::from_hours(1);

impl Door {
    pub(super) async fn ca_configuration(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.method == Method::PUT {
            ask.who.demand(Verb::Write, Kind::Operator, &ask.namespace, "")?;
            let body = bodies::object(&ask.body, bodies::AUTHORITY)?;
            let fields = Fields::new(&body, "");
            if !["", "consul"].contains(&&*fields.text("Provider")?) {
                return Err(Refusal::not_offered(
                    "weft has an authority of its own; other providers are not offered",
                ));
            }
            let config = fields.object("Config")?.cloned().unwrap_or_default();
            check_config(&config)?;
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
            let defaults = [
                ("LeafCertTTL", "72h"),
                ("IntermediateCertTTL", "8760h"),
                ("RootCertTTL", "87600h"),
            ];
            let defaults = defaults.map(|(name, value)| (name.to_owned(), json!(value)));
            let mut config = Map::from_iter(defaults);
            let set = known.as_ref().and_then(|(set, _)| set.as_object()).cloned();
            config.extend(set.into_iter().flatten().filter(|(name, _)| !is_of_a_root(name)));
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
        let body = bodies::object(&ask.body, bodies::AUTHORIZE)?;
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

/// Which fields would bring a root of one's own: not kept, and not shown where they once were.
fn is_of_a_root(name: &str) -> bool {
    ["PrivateKey", "RootCert"].iter().any(|field| field.eq_ignore_ascii_case(name))
}

/// The authority's configuration as far as it is followed; its other fields are kept and shown.
fn check_config(config: &Map<String, Value>) -> Result<(), Refusal> {
    let given = |value: &Value| !value.is_null() && value.as_str() != Some("");
    if let Some((name, _)) = config.iter().find(|(name, v)| is_of_a_root(name) && given(v)) {
        return Err(Refusal::not_offered(format!(
            "Config.{name}: weft signs with a root of its own; others are not offered"
        )));
    }
    let Some(ttl) = config.get("LeafCertTTL") else { return Ok(()) };
    let life = ttl.as_str().and_then(duration::parse).ok_or_else(|| {
        Refusal::bad(format!("Config.LeafCertTTL: {ttl} is no duration such as \"72h\""))
    })?;
    match life {
        life if life < LEAF_TTL_LEAST => {
            Err(Refusal::internal("leaf cert TTL must be greater or equal than 1h0m0s".to_owned()))
        }
        life if life > LEAF_TTL_MAX => {
            Err(Refusal::bad("Config.LeafCertTTL: at most 720h is offered".to_owned()))
        }
        _ => Ok(()),
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
