// SPDX-License-Identifier: Apache-2.0
//! One question of a Consul-type check and its answer in Consul's words.

use std::time::Duration;

use http::Method;
use weft_base::sockets::SocketFactory;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::{CheckDefinition, Probe};

use super::TIMEOUT_DEFAULT;
use crate::probe::ask::{self, HttpAsk, Target, Tls};

/// Asks once; `None` for checks that others report.
pub(super) async fn ask(definition: &CheckDefinition) -> Option<(Status, String)> {
    let timeout = match definition.timeout_ms {
        0 => TIMEOUT_DEFAULT,
        ms => Duration::from_millis(ms),
    };
    match &definition.probe {
        Probe::None | Probe::Ttl { .. } => None,
        Probe::Http { .. } => Some(http(&definition.probe, timeout).await),
        Probe::Tcp { address, tls } => {
            let tls = tls.then(Tls::default);
            Some(match ask::tcp(Target::here(address), tls.as_ref(), timeout).await {
                Ok(()) => (Status::Passing, format!("TCP connect {address}: Success")),
                Err(why) => (Status::Critical, why),
            })
        }
        Probe::Grpc { target, tls, tls_skip_verify } => {
            let (address, service) = target.split_once('/').unwrap_or((target, ""));
            let tls = tls.then(|| Tls { skip_verify: *tls_skip_verify, ..Tls::default() });
            Some(match ask::grpc(Target::here(address), service, tls.as_ref(), timeout).await {
                Ok(()) => (Status::Passing, format!("gRPC check {target}: success")),
                Err(why) => (Status::Critical, format!("gRPC check {target}: {why}")),
            })
        }
    }
}

async fn http(probe: &Probe, timeout: Duration) -> (Status, String) {
    let Probe::Http { url, method, header, body, tls_skip_verify, tls_server_name } = probe else {
        return (Status::Critical, String::new());
    };
    let uri = match url.parse() {
        Ok(uri) => uri,
        Err(why) => return (Status::Critical, format!("the URL {url:?} cannot be read: {why}")),
    };
    let name = if method.is_empty() { "GET".to_owned() } else { method.to_ascii_uppercase() };
    let Ok(method) = Method::from_bytes(name.as_bytes()) else {
        return (Status::Critical, format!("{name:?} is no HTTP method"));
    };
    let headers = header
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |v| (name.clone(), v.clone())))
        .collect();
    let tls = Tls { skip_verify: *tls_skip_verify, server_name: tls_server_name.clone() };
    let (body, via) = (body.clone(), SocketFactory::Here);
    let question = HttpAsk { uri, method, headers, body, tls, via };
    match ask::http(&question, timeout).await {
        Ok(answer) => {
            let status = match answer.status.as_u16() {
                200..=299 => Status::Passing,
                429 => Status::Warning,
                _ => Status::Critical,
            };
            (status, format!("HTTP {name} {url}: {} Output: {}", answer.status, answer.body))
        }
        Err(why) => (Status::Critical, format!("{name} {url:?}: {why}")),
    }
}
