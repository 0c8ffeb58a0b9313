// SPDX-License-Identifier: Apache-2.0
//! `/v1/config*` and `/v1/discovery-chain/*`: config entries, judged as Consul judges them, kept
//! and served. What they do to traffic is the control plane's affair and comes with it.

mod chain;
mod form;
mod judge;
mod kinds;

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_kinds::world::encode;
use weft_registry::consul::{Change, State, Topic, keys};

use super::Door;
use super::agent::filter_of;
use super::body::{self, Fields};
use super::duration;
use super::error::Refusal;
use super::filter::{Filter, typed};
use super::http::Ask;
use super::register::bodies;
use super::reply::Reply;
use super::view::DEFAULT_NAMESPACE;

pub(super) const TABLE: &str = "config";
pub(super) const INTENTIONS: &str = "service-intentions";
/// Entries of this kind name files.
const FILES: &str = "file-system-certificate";

/// The kinds that discovery chains are compiled from.
const OF_CHAINS: [&str; 5] = [
    "proxy-defaults",
    "service-defaults",
    "service-resolver",
    "service-router",
    "service-splitter",
];

impl Door {
    pub(super) async fn config_put(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = body::object(&ask.body)?;
        let (kind, entry) = read(&body, &ask.namespace)?;
        let name = body::word_of(&entry, "Name").to_owned();
        demand(ask, &kind, &name, Verb::Write)?;
        for other in chain::related(&kind, &entry) {
            ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &other)?;
        }
        let entry = judge::judge(&kind, entry).map_err(Refusal::internal)?;
        let cas = cas(ask)?;
        let at = record(&kind, &name);
        let plan = |state: &State| {
            let now = state.record(TABLE, &at).map_or(0, |(_, item)| item.modified);
            if cas.is_some_and(|index| index != now) {
                return Ok((Vec::new(), false));
            }
            self.together(state, (&kind, &name), Some(&entry))?;
            Ok::<_, Refusal>((vec![Change::Put(at.clone(), Value::Object(entry.clone()))], true))
        };
        let (_, done) = self.consul().change(TABLE, plan).await?;
        Ok(Reply::json(Value::Bool(done)))
    }

    pub(super) async fn config_of(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (kind, name) = match ask.argument.split_once('/') {
            Some((kind, name)) if !name.is_empty() => (kind, Some(name)),
            Some((kind, _)) => (kind, None),
            None => (ask.argument.as_str(), None),
        };
        check_kind(kind)?;
        match (name, &ask.method) {
            (Some(name), &Method::DELETE) => self.config_delete(ask, kind, name).await,
            (None, &Method::DELETE) => Err(Refusal::not_found("Must provide a kind and a name")),
            (Some(name), _) => {
                demand(ask, kind, name, Verb::Read)?;
                let at = record(kind, name);
                let topic = Topic::Key(keys::record(TABLE, &at).into());
                self.read_shelf(topic, &ask.params.blocking()?, |state| {
                    let text = format!("Config entry not found for {kind:?} / {name:?}");
                    Ok(match state.record(TABLE, &at) {
                        Some((entry, item)) => Reply::json(shown(entry, item)),
                        None => Reply::text(StatusCode::NOT_FOUND, text),
                    })
                })
                .await
            }
            (None, _) => {
                let (filter, table) = (filter(ask, kind)?, format!("{TABLE}/{}", encode(kind)));
                let topic = Topic::Under(keys::record(&table, "").into());
                self.read_shelf(topic, &ask.params.blocking()?, |state| {
                    let readable =
                        |entry: &Value| demand(ask, kind, body::word(entry, "Name"), Verb::Read);
                    let all = state.records(&table).into_iter();
                    let mut all: Vec<_> = all.map(|(entry, item)| shown(&entry, &item)).collect();
                    all.retain(|entry| readable(entry).is_ok());
                    super::catalog::kept(filter.as_ref(), all).map(Reply::json)
                })
                .await
            }
        }
    }

    async fn config_delete(&self, ask: &Ask, kind: &str, name: &str) -> Result<Reply, Refusal> {
        demand(ask, kind, name, Verb::Write)?;
        let (at, cas) = (record(kind, name), cas(ask)?);
        let plan = |state: &State| {
            let now = state.record(TABLE, &at).map_or(0, |(_, item)| item.modified);
            match cas {
                Some(index) if index != now => Ok((Vec::new(), false)),
                _ => {
                    self.together(state, (kind, name), None)?;
                    Ok::<_, Refusal>((vec![Change::Delete(at.clone())], true))
                }
            }
        };
        let (_, done) = self.consul().change(TABLE, plan).await?;
        Ok(match cas {
            Some(_) => Reply::json(Value::Bool(done)),
            None => Reply::json(json!({})),
        })
    }

    /// Whether the entries still make chains with this one as it is to be. One that makes none
    /// already stops nobody.
    pub(super) fn together(
        &self,
        state: &State,
        (kind, name): (&str, &str),
        new: Option<&Map<String, Value>>,
    ) -> Result<(), Refusal> {
        if !OF_CHAINS.contains(&kind) && kind != INTENTIONS {
            return Ok(());
        }
        let before = |k: &str, n: &str| known(state, k, n);
        let after = |k: &str, n: &str| match (k, n) == (kind, name) {
            true => new.cloned(),
            false => before(k, n),
        };
        let kinds = ["service-resolver", "service-router", "service-splitter"];
        let entries = kinds.map(|kind| state.records(&format!("{TABLE}/{}", encode(kind))));
        let entries: Vec<&Value> = entries.iter().flatten().map(|(entry, _)| &**entry).collect();
        let services = match kind {
            INTENTIONS => BTreeSet::from([name.to_owned()]),
            // What holds for all is in all chains.
            "proxy-defaults" => {
                let guarded = state.records(&format!("{TABLE}/{}", encode(INTENTIONS)));
                let guarded = guarded.iter().map(|(entry, _)| &**entry);
                let all = entries.iter().copied().chain(guarded);
                all.map(|entry| body::word(entry, "Name").to_owned()).collect()
            }
            _ => leading_to(name, &entries),
        };
        for service in services {
            let asked = self.chain_of(&service);
            if let Err(why) = chain::compile(&asked, &after)
                && chain::compile(&asked, &before).is_ok()
            {
                return Err(Refusal::internal(why));
            }
            if let Some(protocol) = unreadable(&asked, &after)
                && unreadable(&asked, &before).is_none()
            {
                return Err(Refusal::internal(format!(
                    "service {service:?} has protocol {protocol:?}, which is incompatible with L7 \
                     intentions permissions"
                )));
            }
        }
        Ok(())
    }

    fn chain_of(&self, service: &str) -> chain::Asked {
        chain::Asked {
            service: service.to_owned(),
            datacenter: self.own().datacenter.to_string(),
            trust_domain: self.trust_domain(),
            ..chain::Asked::default()
        }
    }

    /// A service's chain, compiled from what is kept. weft's proxies take their routes from the
    /// server; this is for Consul's own.
    pub(super) async fn discovery_chain(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = ask.argument.clone();
        if name.is_empty() {
            return Err(Refusal::bad("Missing chain name"));
        }
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &name)?;
        let body = bodies::maybe(&ask.body, bodies::CHAIN)?;
        let fields = Fields::new(&body, "");
        let gateway = fields.object("OverrideMeshGateway")?;
        let gateway = gateway.map(|one| Fields::new(one, "OverrideMeshGateway.").text("Mode"));
        let timeout = fields.duration_ms("OverrideConnectTimeout")?;
        let datacenter = ask.params.filled("compile-dc").map(str::to_owned);
        let asked = chain::Asked {
            protocol: fields.text("OverrideProtocol")?.to_ascii_lowercase(),
            connect_timeout: if timeout == 0 { String::new() } else { duration::format(timeout) },
            mesh_gateway: gateway.transpose()?.unwrap_or_default(),
            ..self.chain_of(&name)
        };
        let asked = match datacenter {
            Some(datacenter) => chain::Asked { datacenter, ..asked },
            None => asked,
        };
        let topic = Topic::Under(keys::record(TABLE, "").into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let compiled = chain::compile(&asked, &|kind, name| known(state, kind, name));
            compiled.map(Reply::json).map_err(Refusal::internal)
        })
        .await
    }
}

/// An intention's source as it would stand in its entry.
///
/// # Errors
/// When it could not.
pub(super) fn judged_source(
    destination: &str,
    mut source: Map<String, Value>,
) -> Result<Map<String, Value>, Refusal> {
    let own_meta = source.remove("Meta");
    let body = json!({"Kind": INTENTIONS, "Name": destination, "Sources": [source]});
    let body = body.as_object().cloned().unwrap_or_default();
    let (kind, entry) = read(&body, DEFAULT_NAMESPACE)?;
    let mut entry = judge::judge(&kind, entry).map_err(Refusal::bad)?;
    let mut source = match entry.remove("Sources") {
        Some(Value::Array(mut sources)) if sources.len() == 1 => sources.remove(0),
        _ => Value::Null,
    };
    match (source.as_object_mut().map(std::mem::take), own_meta) {
        (Some(mut source), Some(meta)) => {
            source.insert("Meta".into(), meta);
            Ok(source)
        }
        (source, _) => Ok(source.unwrap_or_default()),
    }
}

/// A kept record with its indexes.
pub(super) fn stamped(entry: &Value, item: &weft_registry::consul::Item) -> Value {
    let mut out = entry.clone();
    if let Value::Object(map) = &mut out {
        map.insert("CreateIndex".into(), json!(item.created));
        map.insert("ModifyIndex".into(), json!(item.modified));
    }
    out
}

/// The same of an entry, in the form that entries have now.
fn shown(entry: &Value, item: &weft_registry::consul::Item) -> Value {
    let mut out = stamped(entry, item);
    let kind = kinds::KINDS.iter().find(|(kind, _)| *kind == body::word(entry, "Kind"));
    if let (Some((_, Some(fields))), Value::Object(map)) = (kind, &mut out) {
        form::renew(fields, map);
    }
    out
}

/// A config entry's name among the records.
pub(super) fn record(kind: &str, name: &str) -> String {
    format!("{}/{}", encode(kind), encode(name))
}

/// `?cas=`, when it is given.
///
/// # Errors
/// When it is no number.
pub(super) fn cas(ask: &Ask) -> Result<Option<u64>, Refusal> {
    let parse = |text: &str| {
        text.parse().map_err(|_| Refusal::bad(format!("Invalid cas: {text:?} is no number")))
    };
    ask.params.filled("cas").map(parse).transpose()
}

// === helpers ===

/// The protocol of a service whose intentions look at requests that it does not have.
fn unreadable(asked: &chain::Asked, entries: chain::Entries) -> Option<String> {
    let intentions = Value::Object(entries(INTENTIONS, &asked.service)?);
    let sources = body::part(&intentions, "Sources").as_array()?;
    let looks = |source: &Value| body::part(source, "Permissions").is_array();
    if asked.service == "*" || !sources.iter().any(looks) {
        return None;
    }
    let compiled = chain::compile(asked, entries).ok()?;
    let protocol = body::word(body::part(&compiled, "Chain"), "Protocol");
    (!chain::is_http(protocol)).then(|| protocol.to_owned())
}

/// Consul filters entries of one kind.
fn filter(ask: &Ask, kind: &str) -> Result<Option<Filter>, Refusal> {
    match ask.params.filled("filter") {
        Some(_) if kind != "service-defaults" => {
            Err(Refusal::internal(format!("filtering not supported for config entry kind={kind}")))
        }
        _ => filter_of(ask, typed::SERVICE_DEFAULTS),
    }
}

/// The services whose chains an entry of this one may be in: itself, and those that lead to it by
/// routes, splits, redirects and failover, however far. Every other chain is as it was.
fn leading_to(name: &str, entries: &[&Value]) -> BTreeSet<String> {
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in entries {
        let mut named = BTreeSet::new();
        services_in(entry, &mut named);
        for one in named {
            users.entry(one).or_default().push(body::word(entry, "Name"));
        }
    }
    let mut found = BTreeSet::from([name.to_owned()]);
    let mut next = vec![name.to_owned()];
    while let Some(one) = next.pop() {
        for user in users.get(one.as_str()).into_iter().flatten() {
            if found.insert((*user).to_owned()) {
                next.push((*user).to_owned());
            }
        }
    }
    found
}

/// Every `Service` that an entry names. Entries are nested no deeper than bodies are read.
fn services_in<'a>(value: &'a Value, named: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(map) => {
            named.extend(map.get("Service").and_then(Value::as_str));
            map.values().for_each(|value| services_in(value, named));
        }
        Value::Array(items) => items.iter().for_each(|item| services_in(item, named)),
        _ => {}
    }
}

fn check_kind(kind: &str) -> Result<(), Refusal> {
    match judge::is_kind(kind) {
        true => Ok(()),
        false => Err(Refusal::bad(format!("invalid config entry kind: {kind:?}"))),
    }
}

fn known(state: &State, kind: &str, name: &str) -> Option<Map<String, Value>> {
    state.record(TABLE, &record(kind, name))?.0.as_object().cloned()
}

/// A body as an entry of its kind, every field in its place.
fn read(
    body: &Map<String, Value>,
    namespace: &str,
) -> Result<(String, Map<String, Value>), Refusal> {
    let wrong = |why: String| Refusal::bad(format!("Request decoding failed: {why}"));
    let fields = Fields::new(body, "");
    let kind = match fields.value("Kind") {
        Some(Value::String(kind)) => kind.clone(),
        Some(_) => return Err(wrong("Kind value in payload is not a string".into())),
        None => {
            let why = "Payload does not contain a kind/Kind key at the top level";
            return Err(wrong(why.into()));
        }
    };
    // Nothing in the API is a path of the server's machine, now or later.
    if kind == FILES {
        return Err(Refusal::not_offered(
            "weft reads no files that entries name: put the certificate itself into an \
             \"inline-certificate\"",
        ));
    }
    let row = kinds::KINDS.iter().find(|(known, _)| *known == kind);
    let (_, own) = row.ok_or_else(|| wrong(format!("invalid config entry kind: {kind}")))?;
    let is_common = |key: &str| kinds::COMMON.iter().any(|(name, _)| body::same(key, name));
    let (common, rest): (Map<_, _>, Map<_, _>) =
        body.clone().into_iter().partition(|(key, _)| is_common(key));
    let mut entry = form::read(kinds::COMMON, &common, "").map_err(wrong)?;
    entry.extend(match own {
        Some(own) => form::read(own, &rest, "").map_err(wrong)?,
        None => rest,
    });
    for gone in ["CreateIndex", "ModifyIndex", "Hash", "Status"] {
        entry.remove(gone);
    }
    for (field, usual) in [("Partition", "default"), ("Namespace", namespace)] {
        let given = entry.remove(field);
        let given = given.as_ref().and_then(Value::as_str).unwrap_or(usual);
        if given != usual && given != "default" {
            return Err(Refusal::bad(format!(
                "{field} {given:?} is not served for config entries; leave it out"
            )));
        }
    }
    let name = named(&kind, body::word_of(&entry, "Name"))?;
    entry.insert("Kind".into(), json!(kind));
    entry.insert("Name".into(), json!(name));
    Ok((kind, entry))
}

/// An entry's name; of some kinds there is one entry only.
fn named(kind: &str, given: &str) -> Result<String, Refusal> {
    let only = match kind {
        "mesh" => "mesh",
        "proxy-defaults" => "global",
        _ if given.is_empty() => return Err(Refusal::internal("Name is required")),
        _ => return Ok(given.to_owned()),
    };
    match given.is_empty() || given == only {
        true => Ok(only.to_owned()),
        false => {
            Err(Refusal::internal(format!("invalid name ({given:?}), only {only:?} is supported")))
        }
    }
}

/// By whose right an entry is read and written: its service's, or the mesh's.
fn demand(ask: &Ask, kind: &str, name: &str, verb: Verb) -> Result<(), Refusal> {
    match kind {
        INTENTIONS => ask.who.demand(verb, Kind::Intention, &ask.namespace, name),
        // Everybody may read the defaults of all proxies.
        "proxy-defaults" if verb == Verb::Read => Ok(()),
        "control-plane-request-limit" => ask.who.demand(verb, Kind::Operator, &ask.namespace, name),
        "ingress-gateway" | "terminating-gateway" if verb == Verb::Read => {
            ask.who.demand(verb, Kind::Service, &ask.namespace, name)
        }
        "service-defaults" | "service-resolver" | "service-router" | "service-splitter" => {
            ask.who.demand(verb, Kind::Service, &ask.namespace, name)
        }
        _ => ask.who.demand_mesh(verb, &ask.namespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_looks_at_the_chains_that_lead_to_it_and_at_no_others() {
        let entries = [
            json!({"Name": "front", "Routes": [{"Destination": {"Service": "mid"}}]}),
            json!({"Name": "mid", "Splits": [{"Service": "v1"}, {"Service": "v2"}]}),
            json!({"Name": "v2", "Failover": {"*": {"Targets": [{"Service": "v3"}]}}}),
            json!({"Name": "v3", "Redirect": {"Service": "front"}}),
            json!({"Name": "other", "Redirect": {"Service": "else"}}),
        ];
        let entries: Vec<&Value> = entries.iter().collect();
        let of = |name: &str| leading_to(name, &entries).into_iter().collect::<Vec<_>>();
        assert_eq!(of("v1"), ["front", "mid", "v1", "v2", "v3"]);
        assert_eq!(of("else"), ["else", "other"]);
        assert_eq!(of("other"), ["other"]);
        assert_eq!(of("nobody"), ["nobody"]);
    }
}
