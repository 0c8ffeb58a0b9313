// SPDX-License-Identifier: Apache-2.0
//! One question of a Consul-type check and its answer in Consul's words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use tokio::net::UdpSocket;
use weft_base::sockets::SocketFactory;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::{CheckDefinition, Probe};

use super::{TIMEOUT_DEFAULT, h2ping, reach};
use crate::probe::ask::{self, HttpAsk, Target, Tls};

/// Asked to answer nothing, a UDP service that took the datagram is silent for this long.
const SILENCE: Duration = Duration::from_secs(1);

/// Asks once; `None` for checks that others report. What a question needs (a client of HTTP/2 with
/// TLS has over 100 KiB) is there while it is asked only: a check is a small thing that waits.
pub(super) async fn ask(definition: &CheckDefinition) -> Option<(Status, String)> {
    let timeout = match definition.timeout_ms {
        0 => TIMEOUT_DEFAULT,
        ms => Duration::from_millis(ms),
    };
    let said = |done: Result<(), String>, well: String| match done {
        Ok(()) => (Status::Passing, well),
        Err(why) => (Status::Critical, why),
    };
    match &definition.probe {
        probe if !probe.is_asked() => None,
        Probe::Http { .. } => Some(Box::pin(http(&definition.probe, timeout)).await),
        Probe::Tcp { address, tls, tls_skip_verify, tls_server_name } => {
            let server_name = tls_server_name.clone();
            let tls = tls.then_some(Tls { skip_verify: *tls_skip_verify, server_name });
            let done = Box::pin(ask::tcp(target(address), tls.as_ref(), timeout)).await;
            Some(said(done, format!("TCP connect {address}: Success")))
        }
        Probe::Udp { address } => {
            let done = Box::pin(ask::limited(timeout, udp(address, timeout))).await;
            Some(said(done, format!("UDP connect {address}: Success")))
        }
        Probe::H2Ping { address, tls, tls_skip_verify, tls_server_name } => {
            let server_name = tls_server_name.clone();
            let tls = tls.then_some(Tls { skip_verify: *tls_skip_verify, server_name });
            let ping = async {
                let stream = ask::open(target(address), tls.as_ref(), &[b"h2"]).await;
                h2ping::ping(stream.map_err(|e| format!("Failed to dial to {address}: {e}"))?).await
            };
            let done = Box::pin(ask::limited(timeout, ping)).await;
            Some(said(done, "HTTP2 ping was successful".to_owned()))
        }
        Probe::Grpc { target: to, tls, tls_skip_verify, tls_server_name } => {
            let server_name = tls_server_name.clone();
            let (address, service) = to.split_once('/').unwrap_or((to, ""));
            let tls = tls.then_some(Tls { skip_verify: *tls_skip_verify, server_name });
            let done = Box::pin(ask::grpc(target(address), service, tls.as_ref(), timeout)).await;
            let done = done.map_err(|why| format!("gRPC check {to}: {why}"));
            Some(said(done, format!("gRPC check {to}: success")))
        }
        _ => None,
    }
}

/// A client named it.
fn target(address: &str) -> Target<'_> {
    Target::guarded(address)
}

/// Whether somebody takes a datagram there: the system says when nobody does. Silence is taken
/// for consent, as Consul does.
async fn udp(address: &str, timeout: Duration) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("dial udp {address}: {}", ask::plain(&e));
    let to = reach::reachable(address).await?;
    let Some(to) = to.first() else { return Err(format!("lookup {address}: no such host")) };
    let any: IpAddr = match to.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    socket.connect(to).await.map_err(failed)?;
    socket.send(&[]).await.map_err(failed)?;
    match tokio::time::timeout(SILENCE.min(timeout / 2), socket.recv(&mut [0; 64])).await {
        Ok(Err(why)) => Err(failed(why)),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// A URL without the user and password in it, and those as they are shown: `Basic`, as Go's client
/// does it.
fn apart(url: &str) -> (String, Option<String>) {
    let whole = || (url.to_owned(), None);
    let Some((scheme, rest)) = url.split_once("://") else { return whole() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((authority, path)) = rest.split_at_checked(end) else { return whole() };
    let Some((who, host)) = authority.rsplit_once('@') else { return whole() };
    let (user, password) = who.split_once(':').unwrap_or((who, ""));
    let pair = [decoded(user), vec![b':'], decoded(password)].concat();
    (format!("{scheme}://{host}{path}"), Some(format!("Basic {}", STANDARD.encode(pair))))
}

/// Undoes percent-encoding; what is none stays.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let pair = tail.get(..2).filter(|_| *byte == b'%');
        let pair = pair.and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(coded) => {
                out.push(coded);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

async fn http(probe: &Probe, timeout: Duration) -> (Status, String) {
    let Probe::Http { url, method, header, body, tls_skip_verify, tls_server_name } = probe else {
        return (Status::Critical, String::new());
    };
    let (bare, shown) = apart(url);
    let uri = match bare.parse() {
        Ok(uri) => uri,
        Err(why) => return (Status::Critical, format!("the URL {url:?} cannot be read: {why}")),
    };
    let name = if method.is_empty() { "GET".to_owned() } else { method.to_ascii_uppercase() };
    let Ok(method) = Method::from_bytes(name.as_bytes()) else {
        return (Status::Critical, format!("{name:?} is no HTTP method"));
    };
    let headers = header
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |v| (name.clone(), v.clone())));
    // What the definition says itself goes before what its URL says.
    let own = header.keys().any(|name| name.eq_ignore_ascii_case("authorization"));
    let shown = shown.filter(|_| !own).map(|shown| ("authorization".to_owned(), shown));
    let headers = headers.chain(shown).collect();
    let tls = Tls { skip_verify: *tls_skip_verify, server_name: tls_server_name.clone() };
    let (body, via) = (body.clone(), SocketFactory::Here);
    let question = HttpAsk { uri, method, headers, body, tls, via, guarded: true };
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
