// SPDX-License-Identifier: Apache-2.0
//! An explanation for people: the way from the door to the answer, top down.

use serde_json::Value;
use weft_proxy::explain::DEFAULT;

use crate::print::{cell, render};

/// Losers that are shown without `-o wide`.
const LOSERS_SHOWN: usize = 8;

pub fn explanation(found: &Value, wide: bool) {
    let text = |key: &str| found.get(key).map(cell).unwrap_or_default();
    crate::say!("{}", text("request"));
    crate::say!("  proxy   {}", text("proxy"));
    crate::say!("  door    {}", text("door"));
    if !text("target").is_empty() {
        crate::say!("  for     {}", text("target"));
    }
    match (found["live"]["asked"].as_bool(), text("generation")) {
        (Some(true), generation) => {
            crate::say!("  state   as this proxy knows it now (generation {generation})");
        }
        (Some(false), _) => {
            let why = cell(&found["live"]["why"]);
            crate::say!("  state   not known, for the proxy could not be asked: {why}");
        }
        (None, _) => {}
    }
    route(found, wide);
    let (usual, said): (Vec<&Value>, Vec<&Value>) =
        rows(found, "steps").into_iter().partition(|step| step["object"] == DEFAULT);
    section(&said, "What is done", &["what", "of", "value", "object", "field"]);
    let usual = merged(&usual);
    section(&usual.iter().collect::<Vec<_>>(), "By default", &["what", "of", "value"]);
    let shares = rows(found, "shares");
    section(&shares, "Shares", &["backend", "weight", "percent", "fails"]);
    section(
        &rows(found, "candidates"),
        "Instances",
        &["backend", "instance", "address", "weight", "percent", "why", "state"],
    );
    let answer = |key: &str| found["answer"].get(key).map(cell).unwrap_or_default();
    let status = [answer("status"), answer("flag")].join(" ");
    let (kind, text) = (answer("kind"), answer("text"));
    crate::say!("\nAnswer");
    match status.trim() {
        "" => crate::say!("  {kind}: {text}"),
        status => crate::say!("  {kind} ({status}): {text}"),
    }
}

/// Why there is nothing to ask about a line.
fn not_asked(cluster: &str, status: &str) -> &'static str {
    match (cluster.starts_with("inbound|"), status) {
        (true, _) => "the client's own proxy, or its gateway, has that line",
        (false, "" | "0") => "bytes were passed on, and no request was read",
        (false, _) => "what came was answered before any is looked at",
    }
}

/// A line of the access log: what was decided then, then what would be now.
pub fn logged(found: &Value, wide: bool) {
    let then = |key: &str| found["then"].get(key).map(cell).unwrap_or_default();
    crate::say!("{} {} of {} at {}", then("method"), then("path"), then("authority"), then("time"));
    crate::say!("  proxy     {}", then("node"));
    crate::say!("  answered  {} ({})", then("status"), then("details"));
    for flag in found["then"]["flags"].as_array().into_iter().flatten() {
        let part = |key: &str| flag.get(key).map(cell).unwrap_or_default();
        crate::say!("  {:<9} {}", part("flag"), part("meaning"));
    }
    for (what, key) in [("because", "sentence"), ("rule", "route"), ("instance", "instance")] {
        if !then(key).is_empty() {
            crate::say!("  {what:<9} {}", then(key));
        }
    }
    let now = &found["now"];
    if now.is_null() {
        crate::say!("\nNo rule was asked: {}.", not_asked(&then("cluster"), &then("status")));
        return;
    }
    let (was, is) = (then("generation"), now.get("generation").map(cell).unwrap_or_default());
    let changed = match (found["changed"].as_bool(), found["same_rule"].as_bool()) {
        (Some(false), Some(true)) => format!("the configuration is the same (generation {is})"),
        (Some(true), Some(true)) => {
            format!("generation {is}, it was {was}; the same rule takes it")
        }
        (Some(true), _) => format!("generation {is}, it was {was}; another rule takes it now"),
        (_, Some(true)) if now["route"].is_null() => "no rule takes it, as then".into(),
        (_, Some(true)) => "the same rule takes it".into(),
        _ => "another rule takes it; a line has no headers: name those that rules match with -H"
            .into(),
    };
    crate::say!("\nNow: {changed}\n");
    explanation(now, wide);
}

fn route(found: &Value, wide: bool) {
    let route = &found["route"];
    let part = |key: &str| route.get(key).map(cell).unwrap_or_default();
    crate::say!("\nRoute");
    if route.is_null() {
        crate::say!("  none");
    } else {
        crate::say!("  {} {}", part("object"), part("field"));
        crate::say!("  matched {}", part("matched"));
    }
    let lost = rows(found, "lost");
    let shown = if wide { lost.len() } else { LOSERS_SHOWN.min(lost.len()) };
    for loser in lost.iter().take(shown) {
        let part = |key: &str| loser.get(key).map(cell).unwrap_or_default();
        let whose = [part("object"), part("field")].join(" ");
        crate::say!("  not {}: {}", whose.trim_end(), part("why"));
    }
    if lost.len() > shown {
        crate::say!("  and {} more; see them with -o wide", lost.len() - shown);
    }
}

/// What nobody wrote, once for all backends of which it holds alike.
fn merged(steps: &[&Value]) -> Vec<Value> {
    let named = steps.iter().filter_map(|s| s["of"].as_str());
    let mut all: Vec<&str> = named.collect();
    all.sort_unstable();
    all.dedup();
    let mut out: Vec<(Value, Vec<&str>)> = Vec::new();
    for step in steps {
        let of = step["of"].as_str();
        let same = |(known, _): &&mut (Value, Vec<&str>)| {
            known["what"] == step["what"] && known["value"] == step["value"]
        };
        match out.iter_mut().find(same) {
            Some((_, backends)) => backends.extend(of),
            None => out.push(((*step).clone(), of.into_iter().collect())),
        }
    }
    let named = out.into_iter().map(|(mut step, of)| {
        let of = if of.len() == all.len() { String::new() } else { of.join(", ") };
        step["of"] = of.into();
        step
    });
    named.collect()
}

fn section(rows: &[&Value], title: &str, columns: &[&str]) {
    if rows.is_empty() {
        return;
    }
    let used: Vec<&&str> = columns
        .iter()
        .filter(|c| rows.iter().any(|row| row.get(**c).is_some_and(|v| !cell(v).is_empty())))
        .collect();
    let header: Vec<String> = used.iter().map(|c| c.to_uppercase()).collect();
    let cells = |row: &&Value| used.iter().map(|c| shown(row.get(**c))).collect();
    let lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    crate::say!("\n{title}");
    for line in render(&header, &lines).lines() {
        crate::say!("  {line}");
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::Number(n)) if n.is_f64() => format!("{:.1}", n.as_f64().unwrap_or_default()),
        Some(value) => cell(value),
        None => String::new(),
    }
}

fn rows<'v>(found: &'v Value, key: &str) -> Vec<&'v Value> {
    found.get(key).and_then(Value::as_array).into_iter().flatten().collect()
}
