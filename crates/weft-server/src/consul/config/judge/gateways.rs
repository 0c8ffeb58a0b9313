// SPDX-License-Identifier: Apache-2.0
//! Gateways' entries: what Consul checks of each by itself.

use std::collections::HashSet;

use serde_json::Value;

use super::{is_name, items, passive, versions};
use crate::consul::body::{part, word};

const LISTENS: [&str; 4] = ["tcp", "http", "http2", "grpc"];

pub fn ingress(entry: &Value) -> Result<(), String> {
    let tls = part(entry, "TLS");
    versions(tls)?;
    passive(part(part(entry, "Defaults"), "PassiveHealthCheck"))?;
    if word(part(tls, "SDS"), "ClusterName").is_empty()
        && !word(part(tls, "SDS"), "CertResource").is_empty()
    {
        return Err("TLS.SDS.ClusterName is required if CertResource is set".into());
    }
    let mut ports = HashSet::new();
    for listener in items(entry, "Listeners") {
        let port = part(listener, "Port").as_i64().unwrap_or(0);
        if !ports.insert(port) {
            return Err(format!("port {port} declared on two listeners"));
        }
        if !(0..=65_535).contains(&port) {
            return Err(format!("Invalid Port number {port}"));
        }
        self::listener(listener, port, *part(tls, "Enabled") == true)?;
    }
    Ok(())
}

fn listener(listener: &Value, port: i64, tls: bool) -> Result<(), String> {
    let at = format!("(listener on port {port})");
    let (protocol, services) = (word(listener, "Protocol"), items(listener, "Services"));
    if !LISTENS.contains(&protocol) {
        return Err(format!(
            "protocol must be 'tcp', 'http', 'http2', or 'grpc'. '{protocol}' is an unsupported \
             protocol"
        ));
    }
    if services.is_empty() {
        return Err(format!("No service declared for listener with port {port}"));
    }
    if protocol == "tcp" && services.len() > 1 {
        return Err(format!(
            "Multiple services per listener are only supported for L7 protocols, 'http', 'grpc' \
             and 'http2' {at}"
        ));
    }
    versions(part(listener, "TLS"))?;
    let (mut names, mut hosts) = (HashSet::new(), HashSet::new());
    for service in services {
        let name = word(service, "Name");
        let own: Vec<&str> = items(service, "Hosts").iter().filter_map(Value::as_str).collect();
        if protocol == "tcp" && name == "*" {
            return Err(format!("Wildcard service name is only valid for protocol = 'http' {at}"));
        }
        if protocol == "tcp" && !own.is_empty() {
            return Err(format!(
                "Associating hosts to a service is not supported for the {protocol} protocol {at}"
            ));
        }
        if name.is_empty() {
            return Err(format!("Service name cannot be blank {at}"));
        }
        if name == "*" && !own.is_empty() {
            return Err(format!("Associating hosts to a wildcard service is not supported {at}"));
        }
        if word(service, "Namespace") == "*" {
            return Err(format!("Wildcard namespace is not supported for ingress services {at}"));
        }
        if !names.insert((name, word(service, "Namespace"))) {
            return Err(format!("Service {name} cannot be added multiple times {at}"));
        }
        for way in ["RequestHeaders", "ResponseHeaders"] {
            if protocol == "tcp" && part(service, way).as_object().is_some_and(|h| !h.is_empty()) {
                let named = if way.starts_with("Req") { "request" } else { "response" };
                return Err(format!(
                    "{named} headers only valid for http, http2 or grpc protocols (service \
                     {name:?} on listener on port {port})"
                ));
            }
        }
        passive(part(service, "PassiveHealthCheck"))?;
        for host in own {
            if !hosts.insert(host) {
                return Err(format!("Hosts must be unique within a specific listener {at}"));
            }
            self::host(host, tls)?;
        }
    }
    Ok(())
}

fn host(host: &str, tls: bool) -> Result<(), String> {
    if host == "*" {
        return match tls {
            true => Err("Host '*' is not allowed when TLS is enabled, all hosts must be valid \
                         DNS records to add as a DNSSAN"
                .into()),
            false => Ok(()),
        };
    }
    if !is_name(host) {
        return Err(format!("Host {host:?} must be a valid DNS hostname"));
    }
    match host.strip_prefix("*.").unwrap_or(host).contains('*') {
        true => Err(format!(
            "Host {host:?} is not valid, a wildcard specifier is only allowed as the leftmost label"
        )),
        false => Ok(()),
    }
}

pub fn terminating(entry: &Value) -> Result<(), String> {
    let mut seen = HashSet::new();
    for service in items(entry, "Services") {
        let (name, namespace) = (word(service, "Name"), word(service, "Namespace"));
        if name.is_empty() {
            return Err("Service name cannot be blank.".into());
        }
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        if namespace == "*" {
            return Err(format!(
                "Wildcard namespace is not supported for terminating services (service {name:?})"
            ));
        }
        if !seen.insert((name, namespace)) {
            return Err(format!(
                "Service {name:?} was specified more than once within a namespace {namespace:?}"
            ));
        }
        let set = |field: &str| !word(service, field).is_empty();
        // Both halves of a client certificate, and what verifies the other side.
        if (set("CertFile") || set("KeyFile"))
            && !(set("CertFile") && set("KeyFile") && set("CAFile"))
        {
            return Err(format!(
                "Service {name:?} must have a CertFile, CAFile, and KeyFile specified for TLS \
                 origination"
            ));
        }
    }
    Ok(())
}

pub fn api(entry: &Value) -> Result<(), String> {
    let mut names = HashSet::new();
    for listener in items(entry, "Listeners") {
        let (name, port) = (word(listener, "Name"), part(listener, "Port").as_i64().unwrap_or(0));
        if !names.insert(name) {
            return Err(format!("found multiple listeners with the name \"{name}\""));
        }
        let protocol = word(listener, "Protocol").to_ascii_lowercase();
        if !["http", "tcp"].contains(&protocol.as_str()) {
            return Err(format!("unsupported listener protocol {protocol:?}, must be http or tcp"));
        }
        if !(1..=65_535).contains(&port) {
            return Err(format!("listener port {port} not in the range 1-65535"));
        }
        let host = word(listener, "Hostname");
        if !host.is_empty() && host != "*" {
            self::host(host, false)?;
        }
    }
    Ok(())
}
