// SPDX-License-Identifier: Apache-2.0
//! `/v1/connect/ca/configuration`, `/v1/agent/connect/authorize` and `/v1/discovery-chain/*`. Who
//! signs for Consul's clients is in `ca`.

use http::Method;
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Change, State, Topic, keys};

use super::Door;
use super::body::{self, Fields};
use super::config::{self, record};
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;

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
        let of = uri.strip_prefix("spiffe://").and_then(|rest| rest.rsplit_once("/svc/"));
        let Some((_, source)) = of.filter(|(_, source)| !source.is_empty()) else {
            return Err(Refusal::bad(format!("ClientCertURI {uri:?} names no service")));
        };
        let said = super::intention::decide(&self.consul().state(), source, &target);
        let (allowed, why) = match said {
            Some(true) => (true, "Matched intention: ALLOW"),
            Some(false) => (false, "Matched intention: DENY"),
            None if self.acl().default_allow() => (true, "Default behavior configured: ALLOW"),
            None => (false, "Default behavior configured: DENY"),
        };
        Ok(Reply::json(json!({"Authorized": allowed, "Reason": why})))
    }

    /// The chain of a service without routers, splitters and resolvers: what it is for clients
    /// of Consul's own; weft's proxies take their routes from the server.
    pub(super) async fn discovery_chain(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = ask.argument.clone();
        if name.is_empty() {
            return Err(Refusal::bad("Missing chain name"));
        }
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &name)?;
        let body = if ask.body.is_empty() { Map::new() } else { body::object(&ask.body)? };
        let overridden = Fields::new(&body, "").text("OverrideProtocol")?;
        let topic = Topic::Under(keys::record(config::TABLE, "").into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let of = |kind: &str, name: &str| -> Option<String> {
                let (entry, _) = state.record(config::TABLE, &record(kind, name))?;
                let fields = entry.as_object()?;
                Fields::new(fields, "").text("Protocol").ok().filter(|p| !p.is_empty())
            };
            let proxies = || {
                let (entry, _) =
                    state.record(config::TABLE, &record("proxy-defaults", "global"))?;
                entry.get("Config")?.get("protocol")?.as_str().map(str::to_owned)
            };
            let protocol = match overridden.as_str() {
                "" => of("service-defaults", &name).or_else(proxies),
                text => Some(text.to_owned()),
            };
            let dc = &self.own().datacenter;
            Ok(Reply::json(chain(&name, dc, protocol.as_deref().unwrap_or("tcp"))))
        })
        .await
    }
}

// === helpers ===

fn chain(name: &str, datacenter: &str, protocol: &str) -> Value {
    let target = format!("{name}.default.default.{datacenter}");
    let node = format!("resolver:{target}");
    json!({"Chain": {
        "ServiceName": name,
        "Namespace": "default",
        "Partition": "default",
        "Datacenter": datacenter,
        "Default": true,
        "Protocol": protocol,
        "StartNode": node,
        "Nodes": {node: {
            "Type": "resolver",
            "Name": target,
            "Resolver": {"Default": true, "ConnectTimeout": "5s", "Target": target},
        }},
        "Targets": {&target: {
            "ID": target,
            "Service": name,
            "Namespace": "default",
            "Partition": "default",
            "Datacenter": datacenter,
            "MeshGateway": {},
            "Subset": {},
            "ConnectTimeout": "5s",
            "SNI": "",
            "Name": target,
        }},
    }})
}
