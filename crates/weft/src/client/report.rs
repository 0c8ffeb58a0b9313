// SPDX-License-Identifier: Apache-2.0
//! `weft status|top|proxy status|mtls report|get endpoints`: what is, and why it is not well.
//!
//! The server computes; this only prints (`crates/weft/src/server/facts.rs` is the other end).

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use super::Api;
use super::objects::encoded;
use crate::cli::{ClientArgs, Output, Scope, TopArgs};
use crate::exit::CheckFailed;
use crate::print;

pub async fn status(args: &ClientArgs) -> Result<()> {
    let facts = Api::new(&args.server).get("/v1/weft/status").await?;
    if structured(args, &facts)? {
        return Ok(());
    }
    let text = |key: &str| facts.get(key).map(print::cell).unwrap_or_default();
    crate::say!(
        "weft {}   up {} s   trust domain {}   revision {}   proxies {}/{} in sync",
        text("version"),
        text("uptime_s"),
        text("trust_domain"),
        text("revision"),
        text("proxies_in_sync"),
        text("proxies"),
    );
    let servers: Vec<String> = rows(&facts, "servers").iter().map(print::cell).collect();
    if !servers.is_empty() {
        let leader = facts.get("leader").and_then(Value::as_str);
        let leads = leader.map_or("nobody leads".to_owned(), |name| format!("{name} leads"));
        crate::say!("servers {}   {leads}", servers.join(", "));
    }
    crate::say!("");
    print_rows(
        &facts,
        "services",
        &["namespace", "service", "ready", "instances", "rps", "errors_per_s", "p99_ms"],
    );
    let problems = rows(&facts, "problems");
    crate::say!("");
    if problems.is_empty() {
        crate::say!("No problems.");
        return Ok(());
    }
    crate::say!("Problems:");
    for problem in &problems {
        let part = |key: &str| problem.get(key).map(print::cell).unwrap_or_default();
        crate::say!("  {}: {}", part("object"), part("reason"));
        let next = part("next");
        match next.strip_prefix("weft ") {
            Some(rest) => crate::say!("    next: {} {rest}", print::own_name()),
            None if next.is_empty() => {}
            None => crate::say!("    next: {next}"),
        }
    }
    bail!(CheckFailed(crate::manifest::plural(problems.len(), "problem")))
}

pub async fn top(args: &TopArgs) -> Result<()> {
    let api = Api::new(&args.client.server);
    loop {
        let facts = api.get("/v1/weft/status").await?;
        if args.client.output != Output::Table && args.client.output != Output::Wide {
            structured(&args.client, &facts)?;
            return Ok(());
        }
        if !args.once && !print::print_text("\u{1b}[2J\u{1b}[H") {
            return Ok(());
        }
        let columns = [
            "namespace",
            "service",
            "ready",
            "instances",
            "rps",
            "errors_per_s",
            "p50_ms",
            "p99_ms",
        ];
        print_rows(&facts, "services", &columns);
        if args.once {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

pub async fn proxies(args: &ClientArgs) -> Result<()> {
    let facts = Api::new(&args.server).get("/v1/weft/proxies").await?;
    if structured(args, &facts)? {
        return Ok(());
    }
    print_rows(&facts, "proxies", &["node", "connected", "sent", "applied", "state", "rejected"]);
    Ok(())
}

pub async fn endpoints(args: &ClientArgs, scope: &Scope, service: Option<&str>) -> Result<()> {
    let namespace = match (&scope.namespace, scope.all_namespaces) {
        (_, true) => String::new(),
        (Some(namespace), _) => namespace.clone(),
        (None, _) => "default".into(),
    };
    let (namespace, service) = (encoded(&namespace), encoded(service.unwrap_or("")));
    let path = format!("/v1/weft/endpoints?namespace={namespace}&service={service}");
    let facts = Api::new(&args.server).get(&path).await?;
    if structured(args, &facts)? {
        return Ok(());
    }
    let mut columns =
        vec!["namespace", "service", "port", "instance", "address", "health", "weight", "source"];
    if args.output == Output::Wide {
        columns.extend(["node", "identity", "why"]);
    }
    print_rows(&facts, "endpoints", &columns);
    Ok(())
}

pub async fn mtls(args: &ClientArgs) -> Result<()> {
    let facts = Api::new(&args.server).get("/v1/weft/mtls").await?;
    if structured(args, &facts)? {
        return Ok(());
    }
    print_rows(
        &facts,
        "services",
        &[
            "namespace",
            "service",
            "mode",
            "mtls_requests",
            "plaintext_requests",
            "strict",
            "bypassable",
        ],
    );
    for line in rows(&facts, "notes") {
        crate::say!("\n{}", print::cell(&line));
    }
    Ok(())
}

/// Prints JSON or YAML when asked to; says whether it did.
fn structured(args: &ClientArgs, facts: &Value) -> Result<bool> {
    match args.output {
        Output::Json => print::json(facts),
        Output::Yaml => print::yaml(facts)?,
        Output::Table | Output::Wide => return Ok(false),
    }
    Ok(true)
}

fn rows(facts: &Value, key: &str) -> Vec<Value> {
    facts.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn print_rows(facts: &Value, key: &str, columns: &[&str]) {
    let header: Vec<String> = columns.iter().map(|c| c.replace('_', " ").to_uppercase()).collect();
    let body: Vec<Vec<String>> = rows(facts, key)
        .iter()
        .map(|row| {
            columns.iter().map(|c| row.get(*c).map(print::cell).unwrap_or_default()).collect()
        })
        .collect();
    print::table(&header, &body);
}
