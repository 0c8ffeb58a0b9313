// SPDX-License-Identifier: Apache-2.0
//! `/v1/health/*`: instances with the checks that decide about them.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_base::name::service_slug;
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::Status;

use super::Door;
use super::agent::filter_of;
use super::catalog::{has_meta, kept, of_a_peer, sees_node};
use super::error::Refusal;
use super::filter::typed;
use super::gateways;
use super::http::Ask;
use super::index::Topic;
use super::params::Params;
use super::reply::Reply;
use super::shapes;
use super::shared::Written;
use super::view::{CONSUL_SERVICE, CheckView};

impl Door {
    pub(super) async fn health_service(&self, ask: &Ask, connect: bool) -> Result<Reply, Refusal> {
        let wanted = self.wanted(ask, connect)?;
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::HEALTH)?);
        let passing = passing(&ask.params)?;
        let slug = service_slug(&ask.argument);
        let topic = match wanted.connect {
            true => Topic::ConnectHealth(ask.namespace.clone(), slug.as_str().into()),
            false => Topic::Health(ask.namespace.clone(), slug.as_str().into()),
        };
        let plain = wanted.is_plain() && filter.is_none() && ask.params.get("pretty").is_none();
        // By slug, however it was written; but `consul` is its name and no slug of others.
        let own = ask.argument.eq_ignore_ascii_case(CONSUL_SERVICE);
        let asked = (plain && !own).then(|| (ask.namespace.clone(), slug, passing));
        self.read_as(topic, &blocking, |view| {
            let shared = &self.0.shared;
            if let Some(known) = asked.as_ref().and_then(|asked| shared.get(&view.world, asked)) {
                return Ok(Reply::shared("application/json", known));
            }
            let mut entries = wanted.entries(view);
            if passing {
                entries.retain(|e| e.status() == Status::Passing && !e.draining);
            }
            let shapes = entries.iter().map(|e| shapes::health_entry(e, view)).collect();
            let value = kept(filter.as_ref(), shapes)?;
            let Some(asked) = &asked else { return Ok(Reply::json(value)) };
            let written = Arc::new(Written::new(value.to_string()));
            shared.put(&view.world, asked.clone(), &written);
            Ok(Reply::shared("application/json", written))
        })
        .await
    }

    /// The instances of the gateways whose config entries lead to a service.
    pub(super) async fn health_ingress(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let wanted = self.wanted(ask, false)?;
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::HEALTH)?);
        let passing = passing(&ask.params)?;
        let seen = ask.who.may(Verb::Read, Kind::Service, &ask.namespace, &ask.argument);
        let topics = (Topic::Instances(ask.namespace.clone()), gateways::ingress_topic());
        self.read_both(topics, &blocking, |view, state| {
            let mut entries = Vec::new();
            if seen {
                let (ns, service) = (&ask.namespace, &ask.argument);
                for gateway in gateways::ingress_gateways(view, state, ns, service) {
                    entries.extend(wanted.named(gateway).entries(view));
                }
            }
            // Of all gateways together.
            if let Some(near) = &wanted.near {
                near.sort(&mut entries, |entry| &entry.node.node);
            }
            if passing {
                entries.retain(|e| e.status() == Status::Passing && !e.draining);
            }
            let shapes = entries.iter().map(|e| shapes::health_entry(e, view)).collect();
            kept(filter.as_ref(), shapes)
        })
        .await
    }

    pub(super) async fn health_checks(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let wanted = self.wanted(ask, false)?;
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::CHECK)?);
        let topic = Topic::Health(ask.namespace.clone(), service_slug(&ask.argument).into());
        self.read(topic, &blocking, |view| {
            let entries = wanted.entries(view);
            // The service's own checks: those of its nodes are asked for with the node.
            let own = entries.iter().flat_map(|entry| {
                entry.checks.iter().filter(|check| !check.record.service_id.is_empty())
            });
            kept(
                filter.as_ref(),
                own.map(|check| shapes::check(check, view.stamps.check(check))).collect(),
            )
        })
        .await
    }

    pub(super) async fn health_node(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (blocking, filter) = (ask.params.blocking()?, filter_of(ask, typed::CHECK)?);
        let name = self.node_asked(ask)?;
        self.read(Topic::NodeHealth(name.as_str().into()), &blocking, |view| {
            if !view.has_node(&name) || !sees_node(ask, &name) || of_a_peer(ask) {
                return Ok(json!([]));
            }
            let mut checks = view.checks_on_node(&ask.namespace, &name);
            checks.retain(|check| sees_check(ask, check));
            kept(
                filter.as_ref(),
                checks.iter().map(|c| shapes::check(c, view.stamps.check(c))).collect(),
            )
        })
        .await
    }

    pub(super) async fn health_state(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (blocking, filter, meta) =
            (ask.params.blocking()?, filter_of(ask, typed::CHECK)?, ask.params.node_meta());
        let state = match ask.argument.as_str() {
            "" => return Err(Refusal::bad("Missing check state")),
            "any" => None,
            // As in Consul nothing is in a state that there is not.
            text => match Status::parse(text) {
                None => return self.read(Topic::Checks, &blocking, |_| Ok(json!([]))).await,
                state => state,
            },
        };
        let (topic, near) = (state.map_or(Topic::Checks, Topic::State), self.near(ask));
        self.read(topic, &blocking, |view| {
            let mut checks = view.all_checks(&ask.namespace, state);
            checks.retain(|c| {
                !of_a_peer(ask)
                    && sees_check(ask, c)
                    && (meta.is_empty() || has_meta(&view.node(&c.record.node), &meta))
            });
            if let Some(near) = &near {
                near.sort(&mut checks, |check| &check.record.node);
            }
            let shapes: Vec<Value> =
                checks.iter().map(|c| shapes::check(c, view.stamps.check(c))).collect();
            kept(filter.as_ref(), shapes)
        })
        .await
    }
}

/// A service's check is seen with its service, any with its node.
pub(super) fn sees_check(ask: &Ask, check: &CheckView) -> bool {
    let record = &check.record;
    let may = |kind, name: &str| ask.who.may(Verb::Read, kind, &ask.namespace, name);
    may(Kind::Node, &record.node)
        && (record.service_name.is_empty() || may(Kind::Service, &record.service_name))
}

/// `?passing`, which Consul reads more strictly than its other flags.
fn passing(params: &Params) -> Result<bool, Refusal> {
    match params.get("passing") {
        None => Ok(false),
        Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(Refusal::bad("Invalid value for ?passing")),
    }
}
