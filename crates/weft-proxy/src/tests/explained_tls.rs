// SPDX-License-Identifier: Apache-2.0
//! TLS at a gateway's listener as it is explained, as a real client meets it, and as the texts have
//! it: random listeners on one port, random server names and hosts. "The listener whose hostname is
//! the most specific match for the server name takes the connection" (Gateway API); a request for
//! another listener's host is misdirected (RFC 9110 §7.4).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_model::*;

use super::bed::*;
use crate::explain::{Explanation, Place, explain};
use crate::table::{Builder, Door};

const CONFIGS: u64 = 40;
const ASKS: usize = 12;
const PATTERNS: [Option<&str>; 5] = [None, Some("*.x"), Some("a.x"), Some("*.b.x"), Some("y")];
const NAMES: [&str; 6] = ["a.x", "b.x", "c.b.x", "y", "z", "d.a.x"];

/// One certificate for every name: what is looked at is who presents it.
struct Made {
    chain: String,
    key: String,
    client: Arc<ClientConfig>,
}

fn made() -> Made {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = NAMES.iter().map(|n| (*n).to_owned()).collect();
    let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Made { chain: cert.pem(), key: key.serialize_pem(), client: Arc::new(client) }
}

/// What a listener does with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Ends,
    /// Its certificate cannot be used.
    Broken,
    PassesOn,
}

#[derive(Clone, Debug)]
struct Listening {
    name: String,
    host: Option<&'static str>,
    mode: Mode,
}

fn below(rng: &mut Rng, n: usize) -> usize {
    usize::try_from(rng.below(n as u64)).unwrap()
}

fn any_listeners(rng: &mut Rng) -> Vec<Listening> {
    let mut hosts: Vec<_> = PATTERNS.into_iter().filter(|_| rng.below(2) == 0).collect();
    if hosts.is_empty() {
        hosts.push(Some("*.x"));
    }
    let each = hosts.into_iter().enumerate();
    let listeners = each.map(|(i, host)| Listening {
        name: format!("l{i}"),
        host,
        mode: [Mode::Ends, Mode::Ends, Mode::Ends, Mode::PassesOn, Mode::Broken][below(rng, 5)],
    });
    listeners.collect()
}

fn section(of: &Listening, made: &Made) -> Section {
    let key = if of.mode == Mode::Broken { "no key" } else { &made.key };
    let tls = (of.mode != Mode::PassesOn).then(|| ServerTls::new(made.chain.clone(), key));
    Section {
        name: of.name.as_str().into(),
        hostname: of.host.map(Into::into),
        protocol: if of.mode == Mode::PassesOn { Protocol::Tls } else { Protocol::Http1 },
        tls,
    }
}

/// The text's listener for a name: a name before a wildcard before nothing, then the longer.
fn takes<'l>(listeners: &'l [Listening], name: &str) -> Option<&'l Listening> {
    let fit = |pattern: Option<&str>| match pattern {
        None => Some((0, 0)),
        Some(pattern) => match pattern.strip_prefix('*') {
            Some(suffix) => name.ends_with(suffix).then_some((1, suffix.len())),
            None => (pattern == name).then_some((2, pattern.len())),
        },
    };
    let fits = listeners.iter().filter_map(|l| Some((fit(l.host)?, l)));
    fits.max_by_key(|(fit, _)| *fit).map(|(_, listener)| listener)
}

/// `closed`, `passed on`, or a status.
fn by_the_texts(listeners: &[Listening], sni: &str, host: &str) -> String {
    // Where nobody passes TLS on, it is ended by who has a certificate.
    let Some(taken) = takes(listeners, sni) else { return "closed".into() };
    match taken.mode {
        Mode::PassesOn => return "passed on".into(),
        Mode::Broken => return "closed".into(),
        Mode::Ends => {}
    }
    match takes(listeners, host) {
        None => "404".into(),
        Some(other) if other.name != taken.name => "421".into(),
        Some(_) => "200".into(),
    }
}

fn explained(said: &Explanation) -> String {
    match (&*said.answer.kind, said.answer.status) {
        ("closed", _) => "closed".into(),
        ("forwarded", _) if said.answer.text.contains("unread") => "passed on".into(),
        ("forwarded", _) => "200".into(),
        (_, status) => status.unwrap_or(0).to_string(),
    }
}

/// As a client meets it. Whoever is passed on meets a server that speaks no TLS and says so.
async fn met(at: SocketAddr, made: &Made, sni: &str, host: &str, raw: &Server) -> String {
    let before = raw.hits();
    let tcp = TcpStream::connect(at).await.unwrap();
    let connector = TlsConnector::from(made.client.clone());
    let name = sni.to_owned().try_into().unwrap();
    match connector.connect(name, tcp).await {
        Err(_) if raw.hits() > before => "passed on".into(),
        Err(_) => "closed".into(),
        Ok(mut stream) => {
            let asked = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(asked.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let text = String::from_utf8_lossy(&all).into_owned();
            text.split(' ').nth(1).unwrap_or_default().to_owned()
        }
    }
}

fn resources(listeners: &[Listening], made: &Made, user: &Server, raw: &Server) -> Vec<Named> {
    let mut all = http_service("user", &[user.address]);
    let mut opaque =
        service("raw", Protocol::Tcp, BackendPolicy::default(), vec![endpoint("raw", raw.address)]);
    all.append(&mut opaque);
    let (name, _) = gateway(None);
    let sections = listeners.iter().map(|l| section(l, made)).collect();
    let binds = vec!["127.0.0.1:0".parse().unwrap()];
    let kind = ListenerKind::Gateway(GatewayListener::new(binds, sections));
    all.push((
        name,
        Resource::Listener(Listener { name: "shop/web/8000".into(), kind, origin: None }),
    ));
    for (route, to_, passes) in [("http", "user", false), ("tls", "raw", true)] {
        let of = listeners.iter().filter(|l| (l.mode == Mode::PassesOn) == passes);
        let names: Vec<Arc<str>> = of.map(|l| l.name.as_str().into()).collect();
        let mut of_rule = rule("/", Action::Forward(vec![to(to_, "", 1)]));
        if passes {
            of_rule.matches.clear();
        }
        let mut made = gateway_route(route, &[], vec![of_rule]);
        if let Resource::Route(Route { parent: Parent::Listener { sections, .. }, .. }) =
            &mut made.1
        {
            *sections = names;
        }
        all.push(made);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_explained_as_clients_meet_it_and_as_the_texts_have_it() {
    let made = made();
    let user = Server::named("user").await;
    let raw = Server::raw(|_, mut stream| async move {
        let _ = stream.write_all(b"no TLS here").await;
    })
    .await;
    let mut rng = Rng::seeded(7);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for config in 0..CONFIGS {
        let listeners = any_listeners(&mut rng);
        let all = resources(&listeners, &made, &user, &raw);
        let bed = Bed::gateway(all.clone()).await;
        let mut builder = Builder::new(1, Clock::system(), "shop".into());
        let all = all.into_iter().map(|(name, resource)| (name, Ok(resource))).collect();
        let (table, _) = builder.apply(1, all, &[]);
        let local = bed.listener();
        for _ in 0..ASKS {
            let (sni, other) = (NAMES[below(&mut rng, 6)], NAMES[below(&mut rng, 6)]);
            let host = if rng.below(2) == 0 { sni } else { other };
            let place = Place {
                door: Door::Gateway("shop/web/8000".into()),
                local,
                scheme: "https",
                server_name: Some(sni.into()),
            };
            let request = Request::builder().uri("/").header("host", host).body(()).unwrap();
            let said = explain(&table, &place, &request);
            let want = by_the_texts(&listeners, sni, host);
            let shown = format!("{config}: {sni}, {host}: {listeners:?}");
            assert_eq!(explained(&said), want, "explained against the texts: {shown}\n{said:#?}");
            let got = met(local, &made, sni, host, &raw).await;
            assert_eq!(got, want, "met against the texts: {shown}");
            *seen.entry(want).or_default() += 1;
        }
    }
    for kind in ["200", "404", "421", "closed", "passed on"] {
        assert!(seen.get(kind).is_some_and(|n| *n >= 5), "{seen:?}");
    }
}

/// A client without TLS, and one with it where there is none.
#[tokio::test(flavor = "multi_thread")]
async fn tls_where_there_is_none_is_explained_as_closed() {
    let made = made();
    let (user, raw) = (Server::named("user").await, Server::named("raw").await);
    for (mode, scheme, want) in [
        (Some(Mode::Ends), "http", "the listener has TLS"),
        (Some(Mode::PassesOn), "http", "reads the server name"),
        (None, "https", "the listener has no TLS"),
    ] {
        let listeners: Vec<_> =
            mode.into_iter().map(|mode| Listening { name: "l".into(), host: None, mode }).collect();
        let mut all = resources(&listeners, &made, &user, &raw);
        if mode.is_none() {
            all.push(gateway(None));
        }
        let mut builder = Builder::new(1, Clock::system(), "shop".into());
        let all = all.into_iter().map(|(name, resource)| (name, Ok(resource))).collect();
        let (table, _) = builder.apply(1, all, &[]);
        let place = Place {
            door: Door::Gateway("shop/web/8000".into()),
            local: "127.0.0.1:8000".parse().unwrap(),
            scheme: if scheme == "http" { "http" } else { "https" },
            server_name: None,
        };
        let request = Request::builder().uri("/").header("host", "a.x").body(()).unwrap();
        let said = explain(&table, &place, &request);
        assert_eq!(said.answer.kind, "closed", "{said:?}");
        assert!(said.answer.text.contains(want), "{said:?}");
    }
}

/// What is said of a client of a listener whose bytes or datagrams nobody reads.
fn passed_on(protocol: Protocol, hosts: &[&str], idle_ms: Option<u64>) -> Explanation {
    let at = "127.0.0.1:1".parse().unwrap();
    let mut all = service("raw", protocol, BackendPolicy::default(), vec![endpoint("raw", at)]);
    let (name, _) = gateway(None);
    let opaque = Section { name: "l".into(), hostname: None, protocol, tls: None };
    let binds = vec!["127.0.0.1:0".parse().unwrap()];
    let kind = ListenerKind::Gateway(GatewayListener::new(binds, vec![opaque]));
    all.push((
        name,
        Resource::Listener(Listener { name: "shop/web/8000".into(), kind, origin: None }),
    ));
    let mut of_rule = rule("/", Action::Forward(vec![to("raw", "", 1)]));
    of_rule.matches.clear();
    of_rule.timeouts.idle_ms = idle_ms;
    let mut route = gateway_route("r", hosts, vec![of_rule]);
    if let Resource::Route(Route { parent: Parent::Listener { sections, .. }, .. }) = &mut route.1 {
        *sections = vec!["l".into()];
    }
    all.push(route);
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    let all = all.into_iter().map(|(name, resource)| (name, Ok(resource))).collect();
    let (table, _) = builder.apply(1, all, &[]);
    let place = Place {
        door: Door::Gateway("shop/web/8000".into()),
        local: "127.0.0.1:8000".parse().unwrap(),
        scheme: "https",
        server_name: Some("a.x".into()),
    };
    let request = Request::builder().uri("/").header("host", "a.x").body(()).unwrap();
    explain(&table, &place, &request)
}

/// Where bytes are passed on as they are nobody reads which name they ask for.
#[test]
fn a_name_that_nobody_reads_is_explained_as_none() {
    let said = passed_on(Protocol::Tcp, &["a.x"], None);
    assert_eq!(said.answer.kind, "closed", "{said:?}");
    assert!(said.answer.text.contains("no server name is read here"), "{said:?}");
}

/// What only requests have is not said of bytes: a connection may be silent for an hour, a flow of
/// datagrams for a minute, and nothing of it is sent again.
#[test]
fn bytes_and_datagrams_are_explained_by_their_own_times() {
    for (protocol, idle_ms, idle, by) in [
        (Protocol::Tcp, None, "3600000 ms", "weft's default"),
        (Protocol::Udp, None, "60000 ms", "weft's default"),
        (Protocol::Tcp, Some(5_000), "5000 ms", "HTTPRoute shop/r"),
        (Protocol::Udp, Some(0), "no limit", "HTTPRoute shop/r"),
    ] {
        let said = passed_on(protocol, &[], idle_ms);
        let datagrams = said.answer.text.contains("datagrams");
        assert_eq!(datagrams, protocol == Protocol::Udp);
        assert_eq!(said.answer.kind, "forwarded");
        assert!(said.answer.text.contains("unread"), "{said:?}");
        let told: Vec<_> =
            said.steps.iter().filter(|step| step.what == value::IDLE_TIMEOUT).collect();
        let [told] = told.as_slice() else { panic!("{said:?}") };
        assert_eq!((&*told.value, &*told.object), (idle, by), "{said:?}");
        // A question and its answer are less.
        let once = said.steps.iter().find(|step| step.what == "idle timeout once answered");
        assert_eq!(once.map(|step| &*step.value), datagrams.then_some("5000 ms"));
        let of_requests = [value::REQUEST_TIMEOUT, value::RETRY_BUDGET, value::IDLE_CONNECTIONS];
        assert!(!said.steps.iter().any(|step| of_requests.contains(&&*step.what)), "{said:?}");
    }
}
