// SPDX-License-Identifier: Apache-2.0
//! Every field of VirtualService and DestinationRule against the committed schemas and the page
//! that tells users: none is left out, and what is not served is said in the object's status.
//! `UPDATE_GOLDEN=1` writes the page's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use weft_control::compile::{
    DESTINATION_RULE, Env, Field, Fields, VIRTUAL_SERVICE, canonical, field_of,
};
use weft_control::compiler::Compiler;
use weft_kinds::schema::{Schema, Shape, stored};
use weft_kinds::world::KindId;

/// Fields of a schema that have values of their own, with one such value.
fn leaves(schema: &Schema, path: &str, fields: Fields, out: &mut BTreeMap<String, Value>) {
    let known = field_of(fields, path).is_some();
    match &schema.shape {
        Shape::Object(o) if !o.fields.is_empty() && !known => {
            for (name, field) in &o.fields {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(field, &format!("{path}{dot}{name}"), fields, out);
            }
        }
        Shape::List(list) if !known => leaves(&list.items, &format!("{path}[]"), fields, out),
        shape => drop(out.insert(path.to_owned(), sample(shape))),
    }
}

fn sample(shape: &Shape) -> Value {
    match shape {
        Shape::Text(text) => text.one_of.last().map_or(json!("5s"), |word| json!(word)),
        Shape::Integer(_) | Shape::Number(_) => json!(7),
        Shape::Boolean => json!(true),
        Shape::Object(_) => json!({"a": "b"}),
        _ => json!([]),
    }
}

fn spec_of(kind: KindId, fields: Fields) -> BTreeMap<String, Value> {
    let schema = stored(kind);
    let spec = schema.field("spec").expect("both kinds have a spec");
    let mut out = BTreeMap::new();
    leaves(spec, "", fields, &mut out);
    out
}

const KINDS: [(KindId, &str, Fields); 2] = [
    (KindId::VirtualService, "VirtualService", VIRTUAL_SERVICE),
    (KindId::DestinationRule, "DestinationRule", DESTINATION_RULE),
];

#[test]
fn no_field_of_istios_schemas_is_left_out_and_none_is_made_up() {
    for (kind, name, fields) in KINDS {
        let found: BTreeSet<String> = spec_of(kind, fields)
            .into_keys()
            .map(|path| canonical(fields, &path).into_owned())
            .collect();
        let told: BTreeSet<String> = fields.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(told.len(), fields.len(), "{name}: a field is told of twice");
        assert!(found.len() > 50, "{name}: {found:?}");
        let missing: Vec<_> = found.difference(&told).collect();
        assert!(missing.is_empty(), "{name}: nothing is said of {missing:?}");
        let extra: Vec<_> = told.difference(&found).collect();
        assert!(extra.is_empty(), "{name}: Istio has no {extra:?}");
    }
}

#[test]
fn the_page_says_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/istio.md");
    let have = std::fs::read_to_string(&path).expect("docs/istio.md");
    let mut want = have.clone();
    for (_, name, fields) in KINDS {
        let begin = format!("<!-- fields of {name} -->\n");
        let from = want.find(&begin).expect("the page has a place for the table") + begin.len();
        let to = from + want[from..].find("<!-- end -->").expect("and its end");
        let mut table = "| field of `spec` | |\n|---|---|\n".to_owned();
        for (path, field) in fields {
            let what = match field {
                Field::Served => "served".to_owned(),
                Field::Noted(note) => format!("served: {note}"),
                Field::Not(why) => format!("**Warning**: {why}"),
            };
            writeln!(table, "| `{path}` | {what} |").unwrap();
        }
        want.replace_range(from..to, &table);
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &want).unwrap();
    } else {
        assert!(have == want, "UPDATE_GOLDEN=1 writes the tables of docs/istio.md");
    }
}

/// Puts a value where a path says.
fn put(at: &mut Value, path: &str, value: Value) {
    let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
    let (name, list) = head.strip_suffix("[]").map_or((head, false), |name| (name, true));
    let mut next = &mut at[name];
    if list {
        if next.is_null() {
            *next = json!([{}]);
        }
        next = &mut next[0];
    }
    match rest {
        Some(rest) => put(next, rest, value),
        None => *next = value,
    }
}

/// What the status of an object with this field says.
fn told(kind: &str, path: &str, value: Value) -> String {
    let mut spec = match kind {
        "VirtualService" => json!({"hosts": ["user"]}),
        _ => json!({"host": "user"}),
    };
    put(&mut spec, path, value);
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "user", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}});
    let object = json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": "x", "namespace": "shop"}, "spec": spec});
    let mut world = crate::common::world_of([]);
    crate::common::put(&mut world, &service);
    crate::common::put(&mut world, &object);
    let (_, update) = Compiler::new(Env::default(), &world);
    let status = update.statuses.iter().find(|s| &*s.object.name == "x").expect("it has a status");
    status.settle(None, "NOW").unwrap_or(Value::Null).to_string()
}

#[test]
fn what_is_not_served_is_said_wherever_it_stands() {
    let mut seen = 0;
    for (kind, name, fields) in KINDS {
        for (path, value) in spec_of(kind, fields) {
            let Some(Field::Not(why)) = field_of(fields, &path) else { continue };
            let said = told(name, &path, value);
            assert!(said.contains(why), "{name} {path}: {said}");
            seen += 1;
        }
    }
    assert!(seen > 1, "{seen}");
}

#[test]
fn a_field_of_a_later_istio_is_said_to_be_unknown() {
    for (kind, path) in [
        ("VirtualService", "http[].newest.part"),
        ("VirtualService", "newest"),
        ("DestinationRule", "trafficPolicy.connectionPool.http.newest"),
        ("DestinationRule", "subsets[].trafficPolicy.portLevelSettings[].newest"),
    ] {
        let said = told(kind, path, json!("x"));
        assert!(said.contains("not known to this version of weft"), "{kind} {path}: {said}");
    }
    let said = told("VirtualService", "http[].name", json!("x"));
    assert!(!said.contains("Warning"), "{said}");
}
