// SPDX-License-Identifier: Apache-2.0
//! What tokens and roles point to: policies and roles by id or name, and identities. Pure.

use serde_json::{Map, Value, json};
use weft_registry::consul::State;

use super::{BUILT_IN, TABLE, built_in_policy, templates};
use crate::consul::body::Fields;
use crate::consul::error::Refusal;

/// Links and identities of one token or role.
const LINKS_MAX: usize = 256;

/// A record of the table as an object.
pub fn record(state: &State, name: &str) -> Option<Map<String, Value>> {
    state.record(TABLE, name).and_then(|(record, _)| record.as_object().cloned())
}

/// A policy by its id.
pub fn policy(state: &State, id: &str) -> Option<Map<String, Value>> {
    let known = record(state, &format!("policy/{id}"));
    known.or_else(|| built_in_policy(id)?.as_object().cloned())
}

/// The id of what has a name.
pub fn by_name(state: &State, kind: &str, name: &str) -> Option<String> {
    let own = BUILT_IN.iter().find(|(_, own)| kind == "policy" && *own == name);
    if let Some((id, _)) = own {
        return Some((*id).to_owned());
    }
    let known = record(state, &format!("{kind}-name/{name}"))?;
    known.get("ID").and_then(Value::as_str).map(str::to_owned)
}

/// Shows a record's links as they are now: under the names that what they lead to has, and without
/// those that lead nowhere any more.
pub fn renew(state: &State, record: &mut Map<String, Value>) {
    for (kind, field) in [("policy", "Policies"), ("role", "Roles")] {
        let Some(Value::Array(links)) = record.get(field) else { continue };
        let links: Vec<Value> =
            links.iter().filter_map(|link| present(state, kind, link)).collect();
        match links.is_empty() {
            true => record.remove(field),
            false => record.insert(field.to_owned(), Value::Array(links)),
        };
    }
}

fn present(state: &State, kind: &str, link: &Value) -> Option<Value> {
    let found = linked(state, kind, link.get("ID")?.as_str()?)?;
    Some(json!({"ID": found.get("ID"), "Name": found.get("Name")}))
}

fn linked(state: &State, kind: &str, id: &str) -> Option<Map<String, Value>> {
    match kind {
        "policy" => policy(state, id),
        _ => record(state, &format!("{kind}/{id}")),
    }
}

/// Links as they are kept: every one of them leads somewhere.
///
/// # Errors
/// When one does not.
pub fn resolve(
    state: &State,
    kind: &str,
    body: &Map<String, Value>,
    field: &str,
) -> Result<Vec<Value>, Refusal> {
    let links = Fields::new(body, "").objects(field)?;
    bounded(field, links.len())?;
    let mut out: Vec<Value> = Vec::new();
    for link in links {
        let given = Fields::new(link, field);
        let (id, name) = (given.text("ID")?, given.text("Name")?);
        let id = match id.is_empty() {
            false => Some(id),
            true => by_name(state, kind, &name),
        };
        let found = id.and_then(|id| linked(state, kind, &id));
        let Some(found) = found else {
            return Err(Refusal::internal(format!("No such ACL {kind} with name or ID {name:?}")));
        };
        let link = json!({"ID": found.get("ID"), "Name": found.get("Name")});
        if !out.contains(&link) {
            out.push(link);
        }
    }
    Ok(out)
}

/// Copies policies, roles and identities of a body into a record, as Consul shows them.
///
/// # Errors
/// When a link leads nowhere, or an identity is none.
pub fn copy(
    state: &State,
    body: &Map<String, Value>,
    out: &mut Map<String, Value>,
    with_roles: bool,
) -> Result<(), Refusal> {
    let mut set = |name: &str, items: Vec<Value>| {
        if items.is_empty() {
            out.remove(name);
        } else {
            out.insert(name.to_owned(), Value::Array(items));
        }
    };
    set("Policies", resolve(state, "policy", body, "Policies")?);
    if with_roles {
        set("Roles", resolve(state, "role", body, "Roles")?);
    }
    let fields = Fields::new(body, "");
    let holder = if with_roles { "token" } else { "role" };
    let mut services = Vec::new();
    for one in fields.objects("ServiceIdentities")? {
        let given = Fields::new(one, "ServiceIdentities.");
        let mut shape = Map::new();
        let name = given.text("ServiceName")?;
        let datacenters = given.list("Datacenters")?;
        if with_roles && fields.flag("Local")? && !datacenters.is_empty() {
            return Err(Refusal::internal(format!(
                "Service identity {name:?} cannot specify a list of datacenters on a local token"
            )));
        }
        shape.insert("ServiceName".into(), json!(name));
        if !datacenters.is_empty() {
            shape.insert("Datacenters".into(), json!(datacenters));
        }
        services.push(Value::Object(shape));
    }
    let mut nodes = Vec::new();
    for one in fields.objects("NodeIdentities")? {
        let given = Fields::new(one, "NodeIdentities.");
        let (name, datacenter) = (given.text("NodeName")?, given.text("Datacenter")?);
        if datacenter.is_empty() {
            return Err(Refusal::internal(format!(
                "Node identity is missing the datacenter field on this {holder}"
            )));
        }
        nodes.push(json!({"NodeName": name, "Datacenter": datacenter}));
    }
    let mut templated = Vec::new();
    for one in fields.objects("TemplatedPolicies")? {
        let given = Fields::new(one, "TemplatedPolicies.");
        let name = given.text("TemplateName")?;
        let mut shape = Map::new();
        shape.insert("TemplateName".into(), json!(name));
        if let Some(variables) = given.object("TemplateVariables")? {
            let name = Fields::new(variables, "TemplateVariables.").text("Name")?;
            shape.insert("TemplateVariables".into(), json!({"name": name}));
        }
        let datacenters = given.list("Datacenters")?;
        if !datacenters.is_empty() {
            shape.insert("Datacenters".into(), json!(datacenters));
        }
        templated.push(Value::Object(shape));
    }
    bounded("identities", services.len() + nodes.len() + templated.len())?;
    set("ServiceIdentities", services);
    set("NodeIdentities", nodes);
    set("TemplatedPolicies", templated);
    // Whatever is kept can be worked out later.
    templates::identities(out, None).map(|_| ())
}

fn bounded(what: &str, found: usize) -> Result<(), Refusal> {
    match found <= LINKS_MAX {
        true => Ok(()),
        false => Err(Refusal::bad(format!(
            "{what} has {found} entries, but at most {LINKS_MAX} are allowed; leave some out"
        ))),
    }
}
