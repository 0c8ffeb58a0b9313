// SPDX-License-Identifier: Apache-2.0
//! An explanation for people: the way from the door to the answer, top down.

use serde_json::Value;

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
    route(found, wide);
    section(found, "steps", "What is done", &["what", "value", "object", "field"]);
    section(found, "shares", "Shares", &["backend", "weight", "percent", "fails"]);
    section(
        found,
        "candidates",
        "Instances",
        &["backend", "instance", "address", "weight", "percent", "why"],
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
        crate::say!("\nNo rule was asked: the client's own proxy, or its gateway, has that line.");
        return;
    }
    let (was, is) = (then("generation"), now.get("generation").map(cell).unwrap_or_default());
    let changed = match (found["changed"].as_bool(), found["same_rule"].as_bool()) {
        (Some(false), Some(true)) => format!("the configuration is the same (generation {is})"),
        (Some(true), Some(true)) => {
            format!("generation {is}, it was {was}; the same rule takes it")
        }
        (Some(true), _) => format!("generation {is}, it was {was}; another rule takes it now"),
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

fn section(found: &Value, key: &str, title: &str, columns: &[&str]) {
    let rows = rows(found, key);
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
