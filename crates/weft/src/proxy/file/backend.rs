// SPDX-License-Identifier: Apache-2.0
//! Backends: where they are, what they speak, how they are treated.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde_json::Value;
use weft_base::name::Hostname;
use weft_envoy::DnsSet;
use weft_envoy::read::Message;
use weft_model::{
    Backend, BackendPolicy, Endpoint, EndpointSet, Health, Host, HostPort, Labels, Locality,
    Protocol, Resource, Root, Target, Transport, backend_child, endpoints_child,
};

use super::{Context, origin, sources, tls};

/// What routes may name.
#[derive(Clone, Debug)]
pub struct Known {
    name: String,
    port: u16,
    parts: Vec<String>,
}

/// All backends of a file, before any is read.
pub fn known(root: &Message<'_>) -> Vec<Known> {
    let list = root.item("backends").and_then(|i| i.value.as_array().cloned());
    let each = list.unwrap_or_default().into_iter().filter_map(|backend| {
        let name = backend.get("name")?.as_str()?.to_owned();
        let endpoints = listed(backend.get("endpoints"));
        let at = endpoints.first().and_then(|e| e.as_str().or_else(|| e.get("address")?.as_str()));
        let port = at.and_then(place).map_or(0, |(_, at)| at.port());
        let parts = backend.get("parts").and_then(Value::as_object);
        let parts = parts.map(|m| m.keys().cloned().collect()).unwrap_or_default();
        Some(Known { name, port, parts })
    });
    each.collect()
}

/// The backend that a name means: `users`, or a part of it, `users/v2`.
pub fn target(context: &Context<'_>, name: &str) -> Result<Target, String> {
    let (backend, part) = name.split_once('/').unwrap_or((name, ""));
    let Some(known) = context.backends.iter().find(|b| b.name == backend) else {
        let all: Vec<&str> = context.backends.iter().map(|b| b.name.as_str()).collect();
        return Err(format!("no backend has the name {backend:?}; there are: {}", all.join(", ")));
    };
    if !part.is_empty() && !known.parts.iter().any(|p| p == part) {
        let all = known.parts.join(", ");
        return Err(format!("the backend {backend:?} has no part {part:?}; it has: {all}"));
    }
    Ok(Target::Backend(Root::host(backend).child(backend_child(known.port, part))))
}

/// Whether a target in the model's own form is there.
pub fn is_known(context: &Context<'_>, target: &Target) -> bool {
    let Target::Backend(name) = target else { return true };
    context.backends.iter().any(|known| {
        let root = Root::host(known.name.as_str());
        let parts = std::iter::once("").chain(known.parts.iter().map(String::as_str));
        parts.into_iter().any(|part| root.child(backend_child(known.port, part)) == *name)
    })
}

/// Reads one backend.
pub fn read(message: &Message<'_>, context: &Context<'_>) {
    let Some(name) = message.text("name") else {
        message.error("name", "a backend needs a name, which routes use");
        return;
    };
    if name.contains('/') {
        message.error("name", "a name has no /");
    }
    if !context.is_first(message, "backend", name) {
        return;
    }
    let port = context.backends.iter().find(|b| b.name == name).map_or(0, |b| b.port);
    let protocol = match message.choice("protocol").unwrap_or("http1") {
        "http1" => Protocol::Http1,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        "detect" => Protocol::Detect,
        other => {
            let why = format!("{other:?}: expected http1, http2, grpc, tcp or detect");
            message.error("protocol", why);
            Protocol::Http1
        }
    };
    let mut policy: BackendPolicy = context.model(message, "policy").unwrap_or_default();
    let path = message.at().path().field("policy").field("outlier").field("statuses");
    context.statuses(&path, &policy.outlier.statuses);
    if let Some(ms) = context.duration(message, "connect_timeout") {
        policy.connect_timeout_ms = ms;
    }
    if let Some(tls) = tls::upstream(message, context) {
        policy.tls = Some(Box::new(tls));
    }
    policy.sources = sources::of_backend(message, &origin("backend", name, ""));
    let service: Arc<str> = name.into();
    let root = Root::host(service.clone());
    let ports = vec![HostPort {
        port,
        name: "".into(),
        protocol,
        backend: backend_child(port, "").into(),
        upstream_port: None,
    }];
    let host = Host { name: service.clone(), aliases: Vec::new(), addresses: Vec::new(), ports };
    context.put(root.own(), Resource::Host(host));
    let (endpoints, named) = endpoints(message, context);
    let (of, namespace) = (service.clone(), "".into());
    let set = EndpointSet { service: of, namespace, port, protocol, endpoints };
    let child = root.child(endpoints_child(port));
    match named.is_empty() {
        true => context.put(child, Resource::Endpoints(set)),
        false => context.names.borrow_mut().push(DnsSet::new(child, set, named)),
    }
    let parts: BTreeMap<String, Labels> = context.model(message, "parts").unwrap_or_default();
    for (subset, selector) in parts.into_iter().chain([(String::new(), Labels::new())]) {
        let made = Backend {
            service: service.clone(),
            port,
            subset: subset.as_str().into(),
            selector,
            policy: policy.clone(),
            origin: Some(origin("backend", name, "")),
        };
        context.put(root.child(backend_child(port, &subset)), Resource::Backend(made));
    }
}

/// Endpoints with the names that some of them have instead of an address.
type Endpoints = (Vec<Endpoint>, Vec<(Arc<str>, Endpoint)>);

fn endpoints(message: &Message<'_>, context: &Context<'_>) -> Endpoints {
    let mut out = Endpoints::default();
    let texts = listed(message.item("endpoints").map(|i| i.value));
    if !message.is_set("endpoints") {
        message.error("endpoints", "where is it? Name addresses such as 127.0.0.1:9000");
    }
    if texts.iter().all(Value::is_string) {
        for text in texts.iter().filter_map(Value::as_str) {
            match place(text) {
                Some(at) => add(&mut out, at, |usual| usual),
                None => message.error("endpoints", no_place(text)),
            }
        }
        return out;
    }
    if texts.iter().any(Value::is_string) {
        message.error("endpoints", "write all of them as texts, or all as objects with an address");
        return out;
    }
    message.each("endpoints", |each| {
        let Some(text) = each.text("address") else {
            return each.error("address", "an endpoint needs one, such as 127.0.0.1:9000");
        };
        let Some(at) = place(text) else { return each.error("address", no_place(text)) };
        add(&mut out, at, |usual| Endpoint {
            weight: each.number("weight").unwrap_or(1),
            health: context.model(&each, "health").unwrap_or(Health::Healthy),
            labels: context.model(&each, "labels").unwrap_or_default(),
            locality: context.model(&each, "locality").unwrap_or_default(),
            ..usual
        });
    });
    out
}

fn add(out: &mut Endpoints, at: Place, with: impl FnOnce(Endpoint) -> Endpoint) {
    match at {
        (Some(name), at) => {
            let id = format!("{name}:{}", at.port()).into();
            out.1.push((name, with(Endpoint { id, ..endpoint(at) })));
        }
        (None, at) => out.0.push(with(endpoint(at))),
    }
}

/// A name that is to be looked up, and an address; with a name only the port of that counts.
type Place = (Option<Arc<str>>, SocketAddr);

/// Where an endpoint is: `127.0.0.1:9000`, or `api.example:9000`.
fn place(text: &str) -> Option<Place> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        return (at.port() > 0).then_some((None, at));
    }
    let (name, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = Hostname::new(name).ok()?;
    // What has only numbers is an address that is none.
    let numbers = name.rsplit('.').next()?.bytes().all(|b| b.is_ascii_digit());
    let none = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    (!numbers).then(|| (Some(host.as_str().into()), none))
}

fn no_place(text: &str) -> String {
    let as_in = "such as 127.0.0.1:9000, and no name with a port, such as api.example:9000";
    format!("{text:?} is no address {as_in}")
}

/// One thing, or a list of them.
fn listed(value: Option<&Value>) -> Vec<Value> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.clone(),
        Some(one) => vec![one.clone()],
    }
}

fn endpoint(at: SocketAddr) -> Endpoint {
    Endpoint {
        id: at.to_string().into(),
        address: at,
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::Plaintext,
        workload: "".into(),
        mesh_address: None,
    }
}
