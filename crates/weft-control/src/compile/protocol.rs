// SPDX-License-Identifier: Apache-2.0
//! What a Service port speaks: appProtocol, then the port name's prefix, then what the Consul
//! registration said (`weft.dev/protocol`), then a look at the first bytes.

use weft_kinds::views::Meta;
use weft_kinds::views::core::{ServicePort, ServiceSpec};
use weft_model::Protocol;

/// What a Consul registration's meta said, carried by the mirrored Service.
pub const PROTOCOL_ANNOTATION: &str = "weft.dev/protocol";

/// Ports whose protocols wait for the server to speak; sniffing would stall them.
const SERVER_FIRST: [u16; 10] = [21, 22, 25, 110, 143, 465, 587, 3306, 3307, 27017];

/// What one port of a Service speaks.
pub fn of_service(meta: &Meta, spec: &ServiceSpec, port: &ServicePort) -> Protocol {
    if &*port.protocol == "UDP" {
        return Protocol::Udp;
    }
    let declared = port.app_protocol.as_deref().and_then(by_name);
    declared
        .or_else(|| by_prefix(&port.name))
        .or_else(|| meta.annotation(PROTOCOL_ANNOTATION).and_then(by_name))
        .unwrap_or_else(|| undeclared(port.port, spec.is_headless()))
}

/// What a container port speaks when no Service says it.
pub fn of_container_port(name: &str, port: u16, transport: &str) -> Protocol {
    if transport == "UDP" {
        return Protocol::Udp;
    }
    by_prefix(name).unwrap_or_else(|| undeclared(port, false))
}

/// Headless services are opaque unless declared: their clients choose instances themselves.
fn undeclared(port: u16, headless: bool) -> Protocol {
    if headless || SERVER_FIRST.contains(&port) { Protocol::Tcp } else { Protocol::Detect }
}

fn by_prefix(name: &str) -> Option<Protocol> {
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return Some(Protocol::Http1);
    }
    by_name(name.split('-').next().unwrap_or(name))
}

/// A protocol by any of its usual words.
pub fn by_name(name: &str) -> Option<Protocol> {
    Some(match name.to_ascii_lowercase().as_str() {
        "http" | "http1" | "ws" | "kubernetes.io/ws" | "grpc-web" => Protocol::Http1,
        "http2" | "h2c" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" | "wss" | "kubernetes.io/wss" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" | "postgres" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(app: Option<&str>, name: &str, port: u16, want: Protocol) {
        let port = ServicePort {
            app_protocol: app.map(Into::into),
            name: name.into(),
            port,
            ..ServicePort::default()
        };
        let got = of_service(&Meta::default(), &ServiceSpec::default(), &port);
        assert_eq!(got, want, "{port:?}");
    }

    #[test]
    fn the_more_explicit_word_wins() {
        check(Some("grpc"), "http", 80, Protocol::Grpc);
        check(Some("example.com/own"), "http-web", 80, Protocol::Http1);
        check(None, "grpc-api", 80, Protocol::Grpc);
        check(None, "grpc-web", 80, Protocol::Http1);
        check(None, "httpish", 80, Protocol::Detect);
        check(None, "", 3306, Protocol::Tcp);
        check(None, "", 80, Protocol::Detect);
    }
}
