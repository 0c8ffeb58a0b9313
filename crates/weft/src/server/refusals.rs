// SPDX-License-Identifier: Apache-2.0
//! What the proxies of Gateways could not serve, and what that makes of the statuses of the
//! Gateway and of the ListenerSets with a listener there. Called by `control`, which writes them;
//! decides nothing about what is served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use weft_control::compile::{listener_roots, section_of};
use weft_control::push::Refused;
use weft_kinds::kind::KindId;
use weft_kinds::world::Object;
use weft_model::{ResourceName, Root};

use crate::ports;

/// What connected proxies refused of their listeners' roots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refusals(BTreeMap<Root, Refusal>);

#[derive(Clone, Debug, PartialEq)]
struct Refusal {
    why: String,
    /// The proxy could not listen; else something of its listeners cannot be used.
    is_address: bool,
    /// The sections that it is about; `None`: all of the port.
    sections: Option<BTreeSet<String>>,
}

// === impl Refusals ===

impl Refusals {
    /// Reads what connected proxies, by node, said; names the owner of a port that is in use.
    pub fn read<'a>(proxies: impl Iterator<Item = (&'a str, &'a [Refused])>) -> Self {
        let mut out = BTreeMap::new();
        for (node, all) in proxies {
            let Some(gateway) = node.strip_prefix("gateway~") else { continue };
            for refused in all {
                let Ok(name) = ResourceName::try_from(refused.name.clone()) else { continue };
                // What a proxy says of others' listeners is nothing that it knows.
                let own =
                    name.root.name().strip_prefix(gateway).is_some_and(|r| r.starts_with('~'));
                if own && matches!(name.root, Root::Listener(_)) && name.child.is_empty() {
                    note(&mut out, name.root, refused);
                }
            }
        }
        Self(out)
    }

    /// Whether an object's status says something else than it would by `before`.
    pub fn differ(&self, before: &Self, object: &Object) -> bool {
        let differs =
            |(name, r): &(Arc<str>, Root)| self.of(object, name, r) != before.of(object, name, r);
        self != before && listener_roots(object).iter().any(differs)
    }

    /// What was refused of an object's listener.
    fn of(&self, object: &Object, listener: &str, root: &Root) -> Option<&Refusal> {
        let refusal = self.0.get(root)?;
        let concerned =
            |sections: &BTreeSet<String>| sections.contains(&*section_of(object, listener));
        refusal.sections.as_ref().is_none_or(concerned).then_some(refusal)
    }

    /// Whether something of an object's listeners was refused.
    pub fn touch(&self, object: &Object) -> bool {
        let refused = |(name, root): &(Arc<str>, Root)| self.of(object, name, root).is_some();
        !self.0.is_empty() && listener_roots(object).iter().any(refused)
    }

    /// Turns `Programmed` into a refusal, of the listeners that it is about and of their owner.
    /// What was one already keeps its time.
    pub fn tell(&self, object: &Object, status: &mut Value, old: Option<&Value>, now: &str) {
        let none = Value::Null;
        let old = old.unwrap_or(&none);
        let roots: BTreeMap<Arc<str>, Root> = listener_roots(object).into_iter().collect();
        let (mut whys, mut is_address) = (BTreeSet::new(), true);
        for listener in status["listeners"].as_array_mut().into_iter().flatten() {
            let name = listener["name"].as_str().unwrap_or_default();
            let refusal = roots.get(name).and_then(|root| self.of(object, name, root));
            let Some(refusal) = refusal else { continue };
            let mut all = old["listeners"].as_array().into_iter().flatten();
            let before = all.find(|l| l["name"] == name).map_or(&none, |l| &l["conditions"]);
            let reason = if refusal.is_address { "PortUnavailable" } else { "Invalid" };
            if refuse(&mut listener["conditions"], before, (reason, &refusal.why), now) {
                whys.insert(&*refusal.why);
                is_address &= refusal.is_address;
            }
        }
        if whys.is_empty() {
            return;
        }
        let reason = match object.key.kind {
            _ if !is_address => "Invalid",
            KindId::Gateway => "AddressNotUsable",
            _ => "PortUnavailable",
        };
        let why = whys.into_iter().collect::<Vec<_>>().join("; ");
        refuse(&mut status["conditions"], &old["conditions"], (reason, &why), now);
    }
}

fn note(out: &mut BTreeMap<Root, Refusal>, root: Root, refused: &Refused) {
    let is_address = refused.reason.starts_with("cannot listen on ");
    let why = ports::with_owner(&refused.reason);
    let sections = (!refused.sections.is_empty()).then(|| refused.sections.iter().cloned());
    let sections: Option<BTreeSet<String>> = sections.map(Iterator::collect);
    match out.get_mut(&root) {
        Some(known) => {
            known.is_address &= is_address;
            known.sections = known.sections.take().zip(sections).map(|(a, b)| &a | &b);
            known.why = format!("{}; {why}", known.why);
        }
        None => drop(out.insert(root, Refusal { why, is_address, sections })),
    }
}

/// Says no where `Programmed` said yes; `false` when it did not.
fn refuse(conditions: &mut Value, before: &Value, (reason, why): (&str, &str), now: &str) -> bool {
    let programmed = |c: &&mut Value| c["type"] == "Programmed" && c["status"] == "True";
    let Some(condition) = conditions.as_array_mut().into_iter().flatten().find(programmed) else {
        return false;
    };
    let mut before = before.as_array().into_iter().flatten();
    let since = before
        .find(|c| c["type"] == "Programmed" && c["status"] == "False")
        .and_then(|c| c["lastTransitionTime"].as_str());
    condition["status"] = "False".into();
    condition["reason"] = reason.into();
    condition["message"] = why.into();
    condition["lastTransitionTime"] = since.unwrap_or(now).into();
    true
}

#[cfg(test)]
mod tests;
