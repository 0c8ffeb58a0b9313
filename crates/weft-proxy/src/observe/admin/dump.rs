// SPDX-License-Identifier: Apache-2.0
//! `/config_dump` of the admin door: the table in use in the form of weft's model, or the part of
//! it that is asked for in Envoy's words. Private keys are never shown. Called by the door only.

use serde_json::{Map, Value, json};
use weft_model::Resource;

use super::stats::percent_decoded;
use crate::table::Table;

/// Stands where a private key was.
const HIDDEN: &str = "(not shown)";
/// The parts of a dump that can be asked for.
const PARTS: [&str; 3] = ["hosts", "gateways", "inbound"];

/// What is asked for.
#[derive(Debug, Default)]
pub struct Asked {
    part: Option<&'static str>,
    /// Paths of fields; none is all of them.
    mask: Vec<Vec<String>>,
}

// === impl Asked ===

impl Asked {
    /// `resource=hosts&mask=host.name,routes`: one part, and fields of each of its elements.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut out = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value);
            match name {
                "resource" => {
                    let part = PARTS.into_iter().find(|part| *part == value);
                    let why = || format!("resource={value:?}: say one of {}\n", PARTS.join(", "));
                    out.part = Some(part.ok_or_else(why)?);
                }
                "mask" => {
                    let paths = value.split(',').filter(|path| !path.is_empty());
                    out.mask = paths.map(|p| p.split('.').map(str::to_owned).collect()).collect();
                }
                other => {
                    let text = format!("{other:?} is not known here; say resource= and mask=");
                    let hint = match other {
                        "include_eds" => "; endpoints are at /clusters",
                        _ => "",
                    };
                    return Err(format!("{text}{hint}\n"));
                }
            }
        }
        Ok(out)
    }

    /// The part of a whole dump.
    fn of(&self, mut whole: Value) -> Value {
        let masked = |value: &Value| match self.mask.as_slice() {
            [] => value.clone(),
            paths => only(value, &paths.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        };
        let Some(part) = self.part else { return masked(&whole) };
        let list = whole.get_mut(part).map(Value::take).unwrap_or_default();
        let each = list.as_array().into_iter().flatten().map(masked);
        json!({ "generation": whole.get("generation"), part: each.collect::<Vec<_>>() })
    }
}

/// The table, as far as it is asked for.
pub fn dumped(table: &Table, asked: &Asked) -> Value {
    let hosts = table.hosts().map(|h| {
        let backends: Vec<&weft_model::Backend> = h.backends.values().map(|b| &b.backend).collect();
        let routes: Vec<&weft_model::Route> = h.routes.iter().map(|r| &**r).collect();
        let fails: Vec<_> = h.fails.iter().map(|(n, f)| json!({"name": &**n, "fail": f})).collect();
        json!({ "host": &h.host, "routes": routes, "backends": backends, "fails": fails })
    });
    let gateways = table.gateways().map(|g| {
        let mut listener = g.listener.clone();
        for section in &mut listener.sections {
            section.tls = None;
        }
        let routes: Vec<Resource> =
            g.routes.iter().map(|r| Resource::Route((**r).clone())).collect();
        json!({ "name": &*g.name, "listener": listener, "routes": routes })
    });
    let inbound: Vec<_> = table.inbounds().map(|i| i.listener.clone()).collect();
    let mut dump = json!({
        "generation": table.generation,
        "hosts": hosts.collect::<Vec<_>>(),
        "gateways": gateways.collect::<Vec<_>>(),
        "inbound": inbound,
    });
    hide_keys(&mut dump);
    asked.of(dump)
}

/// The fields at some paths; lists on the way are gone through.
fn only(value: &Value, paths: &[&[String]]) -> Value {
    if paths.iter().any(|path| path.is_empty()) {
        return value.clone();
    }
    match value {
        Value::Array(all) => all.iter().map(|one| only(one, paths)).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().filter_map(|(name, field)| {
                let below = paths.iter().filter_map(|path| {
                    let (first, rest) = path.split_first()?;
                    (first == name).then_some(rest)
                });
                let below: Vec<&[String]> = below.collect();
                (!below.is_empty()).then(|| (name.clone(), only(field, &below)))
            });
            Value::Object(kept.collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}

/// Takes private keys out of what is shown, wherever they lie: by their field's name, and any text
/// that holds one under another name.
fn hide_keys(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("PRIVATE KEY") => *value = HIDDEN.into(),
        Value::Array(all) => all.iter_mut().for_each(hide_keys),
        Value::Object(fields) => fields.iter_mut().for_each(|(name, field)| match &**name {
            "key_pem" => *field = HIDDEN.into(),
            _ => hide_keys(field),
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_and_its_fields_are_shown_and_what_is_not_known_is_refused() {
        let whole = json!({
            "generation": 7, "gateways": [{"name": "g"}], "inbound": [],
            "hosts": [{"host": {"name": "a", "ports": [{"port": 80, "name": "http"}]}, "routes": [1]}],
        });
        let of = |query: &str| Asked::parse(query).map(|asked| asked.of(whole.clone()));
        assert_eq!(of("").unwrap(), whole);
        let gateways = json!({"generation": 7, "gateways": [{"name": "g"}]});
        assert_eq!(of("resource=gateways").unwrap(), gateways);
        let masked =
            json!({"generation": 7, "hosts": [{"host": {"name": "a", "ports": [{"port": 80}]}}]});
        assert_eq!(of("resource=hosts&mask=host.name%2Chost.ports.port").unwrap(), masked);
        assert_eq!(of("mask=gateways.name").unwrap(), json!({"gateways": [{"name": "g"}]}));
        assert_eq!(of("resource=hosts&mask=nothing").unwrap()["hosts"], json!([{}]));
        for (query, why) in [
            ("resource=static_clusters", "say one of hosts, gateways, inbound"),
            ("include_eds", "endpoints are at /clusters"),
            ("name_regex=x", "\"name_regex\" is not known here"),
        ] {
            let said = of(query).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
