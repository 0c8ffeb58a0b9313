// SPDX-License-Identifier: Apache-2.0
//! `weft explain`: which client asks, which table its proxy has, and what that proxy would do.
//!
//! Online the server asks the proxy itself, and answers from the Mesh that it pushes where that
//! cannot be asked; offline the same is compiled from files. What is decided,
//! `weft_proxy::explain` decides with the proxy's own functions.

mod log;
mod offline;
mod print;
mod standalone;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_base::clock::Clock;
use weft_control::mesh::Mesh;
use weft_model::decide::pick_section;
use weft_model::{ListenerKind, Resource, Root};
use weft_proxy::explain::{Asked, Explanation, explain};
use weft_proxy::table::{Builder, Door};
use weft_xds::{NodeId, NodeKind};

use crate::cli::{ExplainArgs, Output};
use crate::client::Api;
use crate::print as out;

/// What is asked, as it travels to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub method: String,
    pub url: String,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// A workload or pod, `NAME` or `NAMESPACE/NAME`; without one a client outside of the mesh.
    #[serde(default)]
    pub from: Option<String>,
    /// The very proxy, when it is known: `sidecar~NAMESPACE~POD` or `gateway~NAMESPACE~GATEWAY`.
    #[serde(default)]
    pub node: Option<String>,
}

/// A question with the proxy that answers it.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    pub proxy: String,
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// `weft explain URL`.
pub async fn run(args: &ExplainArgs) -> Result<()> {
    let headers = args.headers.iter().map(|h| header(h)).collect::<Result<Vec<_>>>()?;
    // With a URL it is what weft itself logs: `--log` is a word of all commands too.
    if let (None, Some(line)) = (&args.url, &args.log) {
        return logged(args, line, headers).await;
    }
    let question = Question {
        method: args.method.clone(),
        url: with_scheme(args.url.as_deref().unwrap_or_default()),
        headers,
        from: args.from.clone(),
        node: None,
    };
    let found = ask(args, &question).await?;
    show(args, &found, || {
        print::explanation(&found, args.client.output == Output::Wide);
    })
}

/// `weft explain --log LINE`: what was decided then, and what would be now.
async fn logged(args: &ExplainArgs, line: &str, headers: Vec<(String, String)>) -> Result<()> {
    let line = match line {
        "-" => std::io::read_to_string(std::io::stdin()).context("cannot read the line")?,
        line => line.to_owned(),
    };
    let then = log::Line::parse(&line).map_err(|why| anyhow!(why))?;
    let now = match then.question(args.from.as_deref()) {
        Some(mut question) => {
            question.headers.extend(headers);
            Some(ask(args, &question).await?)
        }
        None => None,
    };
    let rule = now.as_ref().map(|now| match &now["route"] {
        Value::Object(route) => {
            let part = |key: &str| route.get(key).and_then(Value::as_str).unwrap_or_default();
            format!("{} {}", part("object"), part("field"))
        }
        _ => String::new(),
    });
    let generation = now.as_ref().and_then(|now| now["generation"].as_u64());
    let found = json!({
        "then": then,
        "now": now,
        "same_rule": rule.as_ref().map(|rule| *rule == then.route),
        "changed": generation.zip(then.generation).map(|(now, then)| now != then),
    });
    show(args, &found, || print::logged(&found, args.client.output == Output::Wide))
}

/// Asks the server, or compiles the files.
async fn ask(args: &ExplainArgs, question: &Question) -> Result<Value> {
    Ok(if args.files.is_empty() {
        let body = serde_json::to_vec(question)?;
        let api = Api::new(&args.client.server);
        let path = "/v1/weft/explain";
        api.call(http::Method::POST, path, "application/json", Some(body)).await?.ok()?
    } else if let Some(loaded) = standalone::loaded(&args.files)? {
        let answered = standalone::answer(loaded, question).map_err(|why| anyhow!(why))?;
        serde_json::to_value(answered)?
    } else {
        let mesh = offline::mesh(&args.files)?;
        let answered = answer(&mesh, question).map_err(|why| anyhow!(why))?;
        serde_json::to_value(answered)?
    })
}

fn show(args: &ExplainArgs, found: &Value, table: impl FnOnce()) -> Result<()> {
    match args.client.output {
        Output::Json => out::json(found),
        Output::Yaml => out::yaml(found)?,
        Output::Table | Output::Wide => table(),
    }
    Ok(())
}

/// Explains by what the proxies of a mesh are sent.
///
/// # Errors
/// Why nobody can say: the URL is none, or no proxy is meant.
pub fn answer(mesh: &Mesh, question: &Question) -> Result<Answered, String> {
    Ok(decide(mesh, question)?.0)
}

/// The same, with whose answer it is and what that proxy is to be asked.
///
/// # Errors
/// As [`answer`].
pub fn decide(mesh: &Mesh, question: &Question) -> Result<(Answered, NodeId, Asked), String> {
    let mut asked = read(question)?;
    let (node, (place, request)) = match (&question.from, named(question)?) {
        (Some(from), _) => (sidecar(mesh, from)?, asked.at_sidecar()?),
        (None, Some(node)) if node.kind == NodeKind::Sidecar => (node, asked.at_sidecar()?),
        (None, node) => {
            let (node, listener, local) = gateway(mesh, &asked, node.as_ref())?;
            asked.listener = Some(listener.to_string());
            let place = asked.at(Door::Gateway(listener), local);
            (node, (place, asked.request.clone()))
        }
    };
    let scope = mesh.scope(&node).ok_or_else(|| format!("{node} is no proxy of this mesh"))?;
    let view = mesh.view(&scope).map(|(name, resource)| (name.clone(), Ok((**resource).clone())));
    let namespace: Arc<str> = node.namespace.as_str().into();
    let mut builder = Builder::new(1, Clock::system(), namespace);
    let (table, _) = builder.apply(1, view.collect(), &[]);
    let explanation = explain(&table, &place, &request);
    Ok((Answered { proxy: node.to_string(), explanation }, node, asked))
}

fn read(question: &Question) -> Result<Asked, String> {
    Asked::read(&question.method, &question.url, &question.headers)
}

/// The proxy that a question names.
fn named(question: &Question) -> Result<Option<NodeId>, String> {
    question.node.as_deref().map(|n| n.parse::<NodeId>().map_err(|e| e.to_string())).transpose()
}

/// The gateway that listens on a port, and its listener: the one that serves the host if several
/// do.
fn gateway(
    mesh: &Mesh,
    asked: &Asked,
    only: Option<&NodeId>,
) -> Result<(NodeId, Arc<str>, SocketAddr), String> {
    let (port, host) = (asked.port, &asked.host);
    let mut found: Option<(bool, NodeId, Arc<str>, SocketAddr)> = None;
    for (name, resource) in mesh.resources() {
        let (Root::Listener(root), Resource::Listener(listener)) = (&name.root, &**resource) else {
            continue;
        };
        let ListenerKind::Gateway(gateway) = &listener.kind else { continue };
        let declared = root.rsplit('~').next().and_then(|p| p.parse::<u16>().ok());
        let bound = gateway.bind.iter().find(|at| at.port() == port);
        if bound.is_none() && declared != Some(port) {
            continue;
        }
        let mut parts = root.split('~');
        let (Some(ns), Some(gw)) = (parts.next(), parts.next()) else { continue };
        let Ok(node) = NodeId::gateway(ns, gw) else { continue };
        if only.is_some_and(|only| *only != node) {
            continue;
        }
        let local = bound.or_else(|| gateway.bind.first()).copied();
        let local = local.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        let serves = pick_section(gateway, &host.to_ascii_lowercase()).is_some();
        if found.as_ref().is_none_or(|(already, ..)| serves && !already) {
            found = Some((serves, node, listener.name.clone(), local));
        }
    }
    let none = || {
        let clients = workloads(mesh);
        let hint = match clients.as_slice() {
            [] => String::new(),
            [first, ..] => format!("; a client inside of the mesh is named with --from {first}"),
        };
        format!("no gateway listens on port {port}{hint}")
    };
    found.map(|(_, node, listener, local)| (node, listener, local)).ok_or_else(none)
}

/// The sidecar of a pod or of any pod of a workload.
fn sidecar(mesh: &Mesh, from: &str) -> Result<NodeId, String> {
    let (namespace, name) = match from.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, from),
    };
    let fits = |node: &&NodeId| {
        let pod = node.name.as_str();
        let of = pod.strip_prefix(name).is_some_and(|rest| rest.is_empty() || is_suffix(rest));
        node.kind == NodeKind::Sidecar
            && of
            && namespace.is_none_or(|ns| ns == node.namespace.as_str())
    };
    let found: Vec<&NodeId> = mesh.nodes().filter(fits).collect();
    let Some(first) = found.first() else {
        let clients = workloads(mesh);
        return Err(match clients.as_slice() {
            [] => format!("{from} has no sidecar; no pod of this mesh has one"),
            _ => format!("{from} has no sidecar; those that have: {}", clients.join(", ")),
        });
    };
    if found.iter().any(|other| other.namespace != first.namespace) {
        let namespace = first.namespace.as_str();
        return Err(format!("{from} is in several namespaces; say which: {namespace}/{from}"));
    }
    Ok((*first).clone())
}

/// What follows a workload's name in its pods' names: `-7d9f-x2x`, `-0`, but not `-db-7d9f-x2x`.
fn is_suffix(rest: &str) -> bool {
    let Some(rest) = rest.strip_prefix('-') else { return false };
    let mut parts = rest.split('-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), None, None) => true,
        (Some(hash), Some(_), None) => hash.bytes().any(|b| b.is_ascii_digit()) || hash.len() >= 8,
        _ => false,
    }
}

/// The workloads that have sidecars, about: pods' names without what was made up.
fn workloads(mesh: &Mesh) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for node in mesh.nodes().filter(|n| n.kind == NodeKind::Sidecar) {
        let mut parts: Vec<&str> = node.name.as_str().split('-').collect();
        while parts.len() > 1 && parts.last().is_some_and(|p| p.len() == 5 || is_number(p)) {
            parts.pop();
        }
        if parts.len() > 1 && parts.last().is_some_and(|p| p.len() >= 8) {
            parts.pop();
        }
        let name = format!("{}/{}", node.namespace, parts.join("-"));
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

fn header(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once(':')
        .with_context(|| format!("-H {text:?}: write a header as 'Name: value'"))?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_own_file_has_no_workload_that_could_ask() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy.yaml");
        let text = "listeners: [{name: web, bind: 127.0.0.1:1}]\n\
                    routes: [{name: r, rules: [{answer: {status: 200}}]}]\n";
        std::fs::write(&file, text).unwrap();
        let url = "http://127.0.0.1:1/".to_owned();
        let mut question = Question { method: "GET".into(), url, ..Question::default() };
        let asked = |question: &Question| {
            let loaded = standalone::loaded(std::slice::from_ref(&file)).unwrap().unwrap();
            standalone::answer(loaded, question).map(|answered| answered.proxy)
        };
        assert_eq!(asked(&question).as_deref(), Ok("standalone"));
        question.from = Some("shop/order".into());
        let why = asked(&question).unwrap_err();
        assert!(why.contains("shop/order") && why.contains("--from"), "{why}");
    }

    #[test]
    fn pods_belong_to_their_workload_only() {
        for (rest, want) in
            [("", false), ("-0", true), ("-7d9f8c6b5-x2x4z", true), ("-db-7d9f8c6b5-x2x4z", false)]
        {
            assert_eq!(is_suffix(rest), want, "{rest}");
        }
        assert_eq!(header("X-User:  a:b ").unwrap(), ("x-user".into(), "a:b".into()));
        assert!(header("nothing").is_err());
    }
}
