// SPDX-License-Identifier: Apache-2.0
//! `weft apply|get|describe|delete`: objects through the API door, printed as kubectl would.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};
use weft_kinds::kind::{KINDS, Kind};

use super::Api;
use crate::cli::{ApplyArgs, DeleteArgs, DescribeArgs, GetArgs, Output, Scope};
use crate::exit::Usage;
use crate::manifest::{self, Manifest};
use crate::print;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// The name under which `weft up` and `weft apply` own what files say.
pub const FIELD_MANAGER: &str = "weft";

pub async fn apply(args: &ApplyArgs) -> Result<()> {
    let api = Api::new(&args.client.server);
    let manifests = manifest::load(&args.files)?;
    let mut failed = 0usize;
    for manifest in &manifests {
        match apply_one(&api, manifest, args.dry_run).await {
            Ok(verb) => crate::say!("{} {verb}", manifest.title()),
            Err(error) if error.is::<crate::exit::Unreachable>() => return Err(error),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {}: {error:#}", manifest.place, manifest.title());
            }
        }
    }
    if failed > 0 {
        let rest = if failed < manifests.len() { "; the others are applied" } else { "" };
        bail!("{failed} of {} refused{rest}", manifest::plural(manifests.len(), "object"));
    }
    Ok(())
}

/// Server-side apply of one object; returns what happened to it.
pub async fn apply_one(api: &Api, manifest: &Manifest, dry_run: bool) -> Result<&'static str> {
    let dry = if dry_run { "&dryRun=All" } else { "" };
    let path = format!(
        "{}?fieldManager={FIELD_MANAGER}&force=true&fieldValidation=Strict{dry}",
        manifest.path()
    );
    let body = serde_json::to_vec(&manifest.object)?;
    let answer = api.call(Method::PATCH, &path, "application/apply-patch+yaml", Some(body)).await?;
    let status = answer.status;
    answer.ok()?;
    Ok(match (dry_run, status) {
        (true, _) => "would be applied",
        (false, 201) => "created",
        (false, _) => "applied",
    })
}

pub async fn get(args: &GetArgs) -> Result<()> {
    if matches!(args.kind.as_str(), "endpoints" | "ep") {
        return super::report::endpoints(&args.client, &args.scope, args.name.as_deref()).await;
    }
    let kinds: Vec<_> = args.kind.split(',').map(kind_named).collect::<Result<_>>()?;
    let api = Api::new(&args.client.server);
    let is_table = matches!(args.client.output, Output::Table | Output::Wide);
    let mut found = Vec::new();
    for kind in kinds {
        let path = object_path(kind, &args.scope, args.name.as_deref());
        let answer =
            if is_table { api.get_as(&path, TABLE).await? } else { api.get(&path).await? };
        found.push((kind, answer));
    }
    match args.client.output {
        Output::Json => print::json(&one_list(found)),
        Output::Yaml => print::yaml(&one_list(found))?,
        wide_or_not => {
            let wide = wide_or_not == Output::Wide;
            print::print_text(&tables(&found, wide, args.scope.all_namespaces));
        }
    }
    Ok(())
}

/// The answers for several kinds as one List, as kubectl makes it: every item says what it is.
fn one_list(mut found: Vec<(&Kind, Value)>) -> Value {
    if found.len() == 1 {
        return found.remove(0).1;
    }
    let mut items = Vec::new();
    for (kind, mut answer) in found {
        let Some(Value::Array(list)) = answer.get_mut("items").map(Value::take) else {
            items.push(answer);
            continue;
        };
        let version = answer.get("apiVersion").cloned().unwrap_or_default();
        items.extend(list.into_iter().map(|mut item| {
            if let Some(fields) = item.as_object_mut() {
                fields.entry("apiVersion").or_insert_with(|| version.clone());
                fields.entry("kind").or_insert_with(|| kind.kind.into());
            }
            item
        }));
    }
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
}

/// One table for each kind that has objects. Of several kinds names say which: `service/web`.
fn tables(found: &[(&Kind, Value)], wide: bool, with_namespace: bool) -> String {
    let is_filled = |table: &Value| table["rows"].as_array().is_some_and(|rows| !rows.is_empty());
    let mut filled: Vec<_> = found.iter().filter(|(_, table)| is_filled(table)).collect();
    filled.extend(found.first().filter(|_| filled.is_empty()));
    let each = filled.into_iter().map(|(kind, table)| {
        let kind = (found.len() > 1).then_some(*kind);
        table_text(table, kind, wide, with_namespace)
    });
    each.collect::<Vec<_>>().join("\n")
}

pub async fn describe(args: &DescribeArgs) -> Result<()> {
    let api = Api::new(&args.client.server);
    let kind = kind_named(&args.kind)?;
    let object = api.get(&object_path(kind, &args.scope, Some(&args.name))).await?;
    match args.client.output {
        Output::Json => {
            print::json(&object);
            return Ok(());
        }
        Output::Yaml => return print::yaml(&object),
        Output::Table | Output::Wide => {}
    }
    let mut text = String::new();
    let meta = object.get("metadata").cloned().unwrap_or_default();
    let field = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    writeln!(text, "Kind:       {}", kind.kind)?;
    writeln!(text, "Namespace:  {}", field("namespace"))?;
    writeln!(text, "Name:       {}", field("name"))?;
    writeln!(text, "Created:    {}", field("creationTimestamp"))?;
    for (title, part) in [("Labels", meta.get("labels")), ("Annotations", meta.get("annotations"))]
    {
        writeln!(text, "{title}:")?;
        for (key, value) in part.and_then(Value::as_object).into_iter().flatten() {
            writeln!(text, "  {key}: {}", value.as_str().unwrap_or(""))?;
        }
    }
    for part in ["spec", "data", "status"] {
        if let Some(value) = object.get(part).filter(|v| !v.is_null()) {
            let yaml = serde_saphyr::to_string(value).context("print as YAML")?;
            writeln!(text, "{part}:")?;
            for line in yaml.lines() {
                writeln!(text, "  {line}")?;
            }
        }
    }
    print!("{text}");
    Ok(())
}

pub async fn delete(args: &DeleteArgs) -> Result<()> {
    let api = Api::new(&args.client.server);
    if !args.files.is_empty() {
        for manifest in manifest::load(&args.files)?.iter().rev() {
            let answer =
                api.call(Method::DELETE, &manifest.path(), "application/json", None).await?;
            let gone = answer.status == 404;
            if !gone {
                answer.ok()?;
            }
            crate::say!("{} {}", manifest.title(), if gone { "was not there" } else { "deleted" });
        }
        return Ok(());
    }
    let (Some(kind), Some(name)) = (&args.kind, &args.name) else {
        bail!(Usage(
            "name what to delete: `weft delete KIND NAME` or `weft delete -f FILE`".into()
        ));
    };
    let row = kind_named(kind)?;
    let path = object_path(row, &args.scope, Some(name));
    api.call(Method::DELETE, &path, "application/json", None).await?.ok()?;
    crate::say!("{}/{name} deleted", row.singular);
    Ok(())
}

/// The row of a kind by any of its names.
pub fn kind_named(name: &str) -> Result<&'static Kind> {
    let (name, group) = name.split_once('.').unwrap_or((name, ""));
    let named = |k: &&Kind| {
        let any = k.plural == name
            || k.singular == name
            || k.kind.eq_ignore_ascii_case(name)
            || k.short_names.contains(&name);
        any && (group.is_empty() || k.group.starts_with(group))
    };
    KINDS.iter().find(named).ok_or_else(|| {
        let all: Vec<&str> = KINDS.iter().map(|k| k.plural).collect();
        anyhow::anyhow!(Usage(format!("{name:?} is no kind; there are: {}", all.join(", "))))
    })
}

/// The API path of a kind's objects, or of one object.
pub fn resource_path(kind: &Kind, namespace: Option<&str>, name: Option<&str>) -> String {
    versioned_path(kind, kind.storage_version(), namespace, name)
}

/// The same in one of the kind's versions.
pub fn versioned_path(
    kind: &Kind,
    version: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> String {
    let mut path = if kind.group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{}/{version}", kind.group)
    };
    if let Some(namespace) = namespace.filter(|_| kind.namespaced) {
        path.push_str(&format!("/namespaces/{}", encoded(namespace)));
    }
    path.push('/');
    path.push_str(kind.plural);
    if let Some(name) = name {
        path.push('/');
        path.push_str(&encoded(name));
    }
    path
}

/// A text as one segment of a path, or one value of a query.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn object_path(kind: &Kind, scope: &Scope, name: Option<&str>) -> String {
    let namespace = match (&scope.namespace, scope.all_namespaces && name.is_none()) {
        (_, true) => None,
        (Some(namespace), _) => Some(namespace.as_str()),
        (None, _) => Some("default"),
    };
    resource_path(kind, namespace, name)
}

/// A server's table as text; a `kind` stands before each name.
fn table_text(table: &Value, kind: Option<&Kind>, wide: bool, with_namespace: bool) -> String {
    let empty = Vec::new();
    let columns = table.get("columnDefinitions").and_then(Value::as_array).unwrap_or(&empty);
    let shown: Vec<usize> = columns
        .iter()
        .enumerate()
        .filter(|(_, c)| wide || c.get("priority").and_then(Value::as_i64).unwrap_or(0) == 0)
        .map(|(i, _)| i)
        .collect();
    let title = |i: &usize| {
        let name = columns.get(*i).and_then(|c| c.get("name")).and_then(Value::as_str);
        name.unwrap_or("").to_uppercase()
    };
    let mut header: Vec<String> = shown.iter().map(title).collect();
    if with_namespace {
        header.insert(0, "NAMESPACE".into());
    }
    let rows = table.get("rows").and_then(Value::as_array).unwrap_or(&empty);
    let body = rows.iter().map(|row| {
        let cells = row.get("cells").and_then(Value::as_array).unwrap_or(&empty);
        let mut line: Vec<String> =
            shown.iter().map(|i| cells.get(*i).map(print::cell).unwrap_or_default()).collect();
        if let (Some(kind), Some(name)) = (kind, line.first_mut()) {
            name.insert_str(0, &format!("{}/", kind.singular));
        }
        if with_namespace {
            let namespace = row.pointer("/object/metadata/namespace").and_then(Value::as_str);
            line.insert(0, namespace.unwrap_or("").to_owned());
        }
        line
    });
    print::render(&header, &body.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str]) -> Value {
        let rows = names
            .iter()
            .map(|name| json!({"cells": [name], "object": {"metadata": {"namespace": "shop"}}}));
        json!({"columnDefinitions": [{"name": "Name"}], "rows": rows.collect::<Vec<_>>()})
    }

    #[test]
    fn names_of_several_kinds_say_which() {
        let (services, pods) = (kind_named("svc").unwrap(), kind_named("pods").unwrap());
        let one = [(services, table(&["web"]))];
        assert_eq!(tables(&one, false, true), "NAMESPACE   NAME\nshop        web\n");
        let [one] = one;
        let both = [one, (pods, table(&["web-1"]))];
        assert_eq!(tables(&both, false, false), "NAME\nservice/web\n\nNAME\npod/web-1\n");
        let both = [(services, table(&[])), (pods, table(&["web-1"]))];
        assert_eq!(tables(&both, false, false), "NAME\npod/web-1\n");
        let none = [(services, table(&[])), (pods, table(&[]))];
        assert_eq!(tables(&none, false, false), "nothing found\n");
    }

    #[test]
    fn items_of_one_list_say_what_they_are() {
        let (services, routes) = (kind_named("svc").unwrap(), kind_named("httproutes").unwrap());
        let named = |name: &str| json!({"metadata": {"name": name}});
        let list = |api: &str| json!({"apiVersion": api, "items": [named("a")]});
        let alone = one_list(vec![(services, list("v1"))]);
        assert_eq!(alone, list("v1"), "as the server says it");
        let api = "gateway.networking.k8s.io/v1";
        let both = one_list(vec![(services, list("v1")), (routes, list(api))]);
        let kinds: Vec<_> = both["items"].as_array().unwrap().iter().map(|i| &i["kind"]).collect();
        assert_eq!(kinds, ["Service", "HTTPRoute"]);
        assert_eq!(both["items"][1]["apiVersion"], api);
        let objects = one_list(vec![(services, named("a")), (routes, named("b"))]);
        assert_eq!(objects["items"], json!([named("a"), named("b")]));
    }
}
