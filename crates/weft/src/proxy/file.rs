// SPDX-License-Identifier: Apache-2.0
//! weft's own configuration file: listeners, routes, backends, as `docs/proxy.md` shows them.
//!
//! A front for the model: what most files say has short words here, everything else is the
//! model's own form (`policy`, `filters`, `retry`, ...). Everything wrong is found at once and
//! named with its line. Called by [`super::standalone`] and by `weft explain -f`.

mod backend;
mod lines;
mod route;
mod sources;
mod tls;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_base::issue::{FieldPath, Issue};
use weft_control::compile::duration::parse_ms;
use weft_envoy::DnsSet;
use weft_envoy::read::{Found, Message, Unreadable, parse};
use weft_kinds::views::autoscaling::Quantity;
use weft_model::decide::Authority;
use weft_model::{
    GatewayListener, Listener, ListenerKind, Origin, Protocol, ProxyHeader, Resource, ResourceName,
    Root, Section,
};
use weft_proxy::config::{AccessLog, LogFormat, LogWhat};
use weft_proxy::ingest::source;
use weft_proxy::observe::format::Format;

use super::standalone::{Loaded, Stamps, refused};
use lines::Lines;

const NO_FIELDS: &str = "it has no fields; a file begins with listeners, such as \
                         listeners: [{name: web, bind: 127.0.0.1:8080}]";

/// What the parts of one file share.
struct Context<'a> {
    /// Files it names are looked for beside it.
    folder: &'a Path,
    files: &'a Stamps,
    resources: RefCell<BTreeMap<ResourceName, Resource>>,
    /// Sets of endpoints whose names are to be looked up.
    names: RefCell<Vec<DnsSet>>,
    /// Issues of parts that are read as the model itself reads them.
    issues: RefCell<Vec<Issue>>,
    /// Names and ports of backends, with the names of their parts.
    backends: Vec<backend::Known>,
    /// Names of listeners, and whether they are HTTP.
    listeners: Vec<(String, bool)>,
    /// What has a name already, with that.
    named: RefCell<BTreeSet<(String, String)>>,
    /// Addresses that are taken, whether for datagrams, and by whom.
    taken: RefCell<Vec<(SocketAddr, bool, String)>>,
}

/// Reads a file.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path, text: &str, files: &Stamps) -> Result<Loaded> {
    if text.trim_start().starts_with('-') {
        return resources(path, text);
    }
    let map = parse(text).map_err(|error| match error {
        Unreadable::NoObject => anyhow!("{}: {NO_FIELDS}", path.display()),
        error => anyhow!("{}: {error}", path.display()),
    })?;
    let found = Found::default();
    let mut context = Context {
        folder: path.parent().unwrap_or(Path::new("")),
        files,
        resources: RefCell::default(),
        names: RefCell::default(),
        issues: RefCell::default(),
        backends: Vec::new(),
        listeners: Vec::new(),
        named: RefCell::default(),
        taken: RefCell::default(),
    };
    let (mut admin, mut log, mut memory) = (None, None, None);
    {
        let root = found.root(&map);
        admin = admin.or(root.text("admin").and_then(|text| address(&root, "admin", text)));
        context.take(
            &root,
            "admin",
            &admin.into_iter().collect::<Vec<_>>(),
            false,
            "the admin door",
        );
        log = log.or(access_log(&root, &context));
        memory = memory.or(root.item("memory").and_then(|item| bytes(&root, item.value)));
        context.backends = backend::known(&root);
        context.listeners = listeners_of(&root);
        root.each("listeners", |message| listener(&message, &context));
        root.each("backends", |message| backend::read(&message, &context));
        let mut index = 0;
        root.each("routes", |message| {
            route::read(&message, index, &context);
            index += 1;
        });
        if context.listeners.is_empty() {
            root.error("listeners", "there is none, so nothing is served");
        }
    }
    let (errors, unknown) = found.into_parts();
    let mut issues = context.issues.into_inner();
    issues.extend(errors.into_iter().chain(unknown));
    if !issues.is_empty() {
        return Err(refused(path, &with_lines(&Lines::of(text), issues)));
    }
    let resources = context.resources.into_inner();
    let names = context.names.into_inner();
    Ok(Loaded { resources, names, admin, log, memory, ..Loaded::default() })
}

/// Resources of the model as they are: a list of `{name, resource}`.
fn resources(path: &Path, text: &str) -> Result<Loaded> {
    let listed = source::from_yaml(text).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    let resources = listed.upserts.into_iter().filter_map(|u| Some((u.name, u.resource.ok()?)));
    Ok(Loaded { resources: resources.collect(), ..Loaded::default() })
}

/// Issues in the order of the file, each with its line.
fn with_lines(lines: &Lines, issues: Vec<Issue>) -> Vec<Issue> {
    let line = |issue: &Issue| lines.line(&issue.path).unwrap_or(0);
    let mut placed: Vec<(u64, Issue)> = issues.into_iter().map(|i| (line(&i), i)).collect();
    placed.sort_by_key(|(line, _)| *line);
    let named = placed.into_iter().map(|(line, mut issue)| {
        if line > 0 {
            issue.path = FieldPath::new(format!("line {line}: {}", issue.path));
        }
        issue
    });
    named.collect()
}

fn listeners_of(root: &Message<'_>) -> Vec<(String, bool)> {
    let list = root.item("listeners").and_then(|i| i.value.as_array().cloned());
    let each = list.unwrap_or_default().into_iter().filter_map(|listener| {
        let name = listener.get("name")?.as_str()?.to_owned();
        let protocol = listener.get("protocol").and_then(Value::as_str).unwrap_or("http");
        Some((name, matches!(protocol, "http" | "http2")))
    });
    each.collect()
}

fn listener(message: &Message<'_>, context: &Context<'_>) {
    let name = message.text("name");
    let bind = addresses(message, "bind");
    let protocol = match message.choice("protocol").unwrap_or("http") {
        "http" => Protocol::Http1,
        "http2" => Protocol::Http2,
        "tcp" => Protocol::Tcp,
        "tls" => Protocol::Tls,
        "udp" => Protocol::Udp,
        other => {
            message.error("protocol", format!("{other:?}: expected http, http2, tcp, tls or udp"));
            Protocol::Http1
        }
    };
    let proxy_header = match message.choice("proxy_header").unwrap_or("off") {
        "off" => ProxyHeader::Off,
        "required" => ProxyHeader::Required,
        "optional" => ProxyHeader::Optional,
        other => {
            message.error("proxy_header", format!("{other:?}: expected off, required or optional"));
            ProxyHeader::Off
        }
    };
    for field in ["tls", "proxy_header"] {
        if protocol == Protocol::Udp && message.is_set(field) {
            message
                .error(field, "a listener for datagrams has none: it passes them on as they are");
        }
    }
    if protocol == Protocol::Tls && message.is_set("tls") {
        let why = "protocol tls passes TLS on unopened; to end it say what is inside: http, http2 \
                   or tcp";
        message.error("tls", why);
    }
    let mut sections = tls::sections(message, protocol, context);
    if sections.is_empty() {
        let name: Arc<str> = "all".into();
        sections.push(Section { name, hostname: None, protocol, tls: None });
    }
    let Some(name) = name else {
        message.error("name", "a listener needs a name, which routes use");
        return;
    };
    if name.contains('/') {
        message.error("name", "a name has no /");
    }
    if bind.is_empty() && !message.is_set("bind") {
        message.error("bind", "a listener needs an address such as 127.0.0.1:8080");
    }
    if !context.is_first(message, "listener", name) {
        return;
    }
    let whose = format!("listener {name:?}");
    context.take(message, "bind", &bind, protocol == Protocol::Udp, &whose);
    let gateway = GatewayListener { proxy_header, ..GatewayListener::new(bind, sections) };
    let origin = Some(origin("listener", name, ""));
    let kind = ListenerKind::Gateway(gateway);
    let made = Listener { name: name.into(), kind, origin };
    context.put(Root::listener(name).own(), Resource::Listener(made));
}

/// One address, or a list of them.
fn addresses(message: &Message<'_>, field: &str) -> Vec<SocketAddr> {
    let texts: Vec<String> = match message.item(field).map(|i| i.value) {
        Some(Value::String(one)) => vec![one.clone()],
        Some(_) => message.texts(field).into_iter().map(str::to_owned).collect(),
        None => Vec::new(),
    };
    texts.iter().filter_map(|text| address(message, field, text)).collect()
}

fn address(message: &Message<'_>, field: &str, text: &str) -> Option<SocketAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let why = format!("{text:?} is no address such as 127.0.0.1:8080 or [::1]:8080");
        message.error(field, why);
    }
    parsed
}

/// Bytes as Kubernetes writes them: `128Mi`, or a number.
fn bytes(root: &Message<'_>, value: &Value) -> Option<u64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let read = Quantity::parse(&text).map(|milli| milli.0 / 1000).filter(|n| *n > 0);
    if read.is_none() {
        root.error("memory", format!("{text:?} is no number of bytes such as 128Mi"));
    }
    read
}

fn access_log(root: &Message<'_>, context: &Context<'_>) -> Option<AccessLog> {
    let item = root.item("access_log")?;
    let plain = |what, format| Some(AccessLog { what, format, path: None });
    // Where YAML is read as of old, `off` is no word.
    let word = if *item.value == Value::Bool(false) { Some("off") } else { item.value.as_str() };
    match word {
        Some("text") => return plain(LogWhat::Everything, LogFormat::Text),
        Some("json") => return plain(LogWhat::Everything, LogFormat::Json),
        Some("failures") => return plain(LogWhat::Failures, LogFormat::Text),
        Some("off") => return plain(LogWhat::Nothing, LogFormat::Text),
        Some(other) => {
            let why = format!("{other:?}: expected text, json, failures, off or an object");
            root.error("access_log", why);
            return None;
        }
        None => {}
    }
    let log = item.into_message()?;
    let path = log.text("path").map(PathBuf::from);
    let what = match log.flag("failures_only") {
        Some(true) => LogWhat::Failures,
        _ => LogWhat::Everything,
    };
    let format = match log.item("format") {
        None => LogFormat::Text,
        Some(item) => match Format::parse(item.value, &item.at.path()) {
            Ok(format) => LogFormat::Of(Arc::new(format)),
            Err(issues) => {
                context.issues.borrow_mut().extend(issues);
                return None;
            }
        },
    };
    Some(AccessLog { what, format, path })
}

/// Whether who listens at one address is in the way of who does at another.
fn meet(one: &SocketAddr, other: &SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    let all = a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified());
    one.port() == other.port() && (a == b || all)
}

/// A place within a field.
fn below(at: &FieldPath, path: &serde_ignored::Path<'_>) -> FieldPath {
    use serde_ignored::Path;
    match path {
        Path::Root => at.clone(),
        Path::Seq { parent, index } => below(at, parent).index(*index),
        Path::Map { parent, key } => below(at, parent).field(key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => below(at, parent),
    }
}

/// What a host of a route or section is to requests, or why none has it.
fn host(text: &str) -> Result<Arc<str>, String> {
    let text = text.to_ascii_lowercase();
    let (star, name) = match text.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", text.as_str()),
    };
    if text == "*" || (star.is_empty() && name.parse::<IpAddr>().is_ok()) {
        return Ok(text.as_str().into());
    }
    match Authority::parse(name) {
        Some(Authority { host, port: None }) => Ok(format!("{star}{host}").into()),
        Some(_) => Err(format!("{text:?}: a host is named without its port")),
        None => Err(format!("{text:?} is no host such as shop.example or *.shop.example")),
    }
}

/// Who says something, for logs and explanations.
fn origin(kind: &str, name: &str, field: &str) -> Origin {
    Origin { kind: kind.into(), namespace: "file".into(), name: name.into(), field: field.into() }
}

// === impl Context ===

impl Context<'_> {
    fn put(&self, name: ResourceName, resource: Resource) {
        self.resources.borrow_mut().insert(name, resource);
    }

    /// Says that something within a part is wrong.
    fn wrong(&self, path: FieldPath, why: impl Into<String>) {
        self.issues.borrow_mut().push(Issue::error(path, why));
    }

    /// Statuses are to be some that an answer can have.
    fn statuses(&self, path: &FieldPath, statuses: &[u16]) {
        for (i, status) in statuses.iter().enumerate() {
            if !(200..600).contains(status) {
                self.wrong(path.index(i), format!("{status} is no status of an answer"));
            }
        }
    }

    /// Whether nothing of its kind has this name yet; it is an issue if something has.
    fn is_first(&self, message: &Message<'_>, kind: &str, name: &str) -> bool {
        let is_first = self.named.borrow_mut().insert((kind.to_owned(), name.to_owned()));
        if !is_first {
            message.error("name", format!("another {kind} has the name {name:?}"));
            // Of the rest of it nothing is read.
            message.waive();
        }
        is_first
    }

    /// Notes who listens where; two cannot on one address. Of port 0 each has one of its own.
    fn take(
        &self,
        message: &Message<'_>,
        field: &str,
        addresses: &[SocketAddr],
        datagrams: bool,
        whose: &str,
    ) {
        let mut taken = self.taken.borrow_mut();
        for at in addresses.iter().filter(|at| at.port() != 0) {
            let other = taken.iter().find(|(other, of, _)| *of == datagrams && meet(other, at));
            if let Some((other, _, by)) = other {
                message.error(field, format!("{at}: {by} listens there, at {other}"));
            }
            taken.push((*at, datagrams, whose.to_owned()));
        }
    }

    /// A duration as people write it, milliseconds.
    fn duration(&self, message: &Message<'_>, field: &str) -> Option<u64> {
        let value = message.item(field)?.value;
        let ms = value.as_str().and_then(parse_ms);
        if ms.is_none() {
            let why = format!("expected a duration such as \"5s\" or \"300ms\", found {value}");
            message.error(field, why);
        }
        ms
    }

    /// A field in the model's own form; fields that the model has not are issues too.
    fn model<T: DeserializeOwned>(&self, message: &Message<'_>, field: &str) -> Option<T> {
        let item = message.item(field)?;
        let at = item.at.path();
        let mut unknown = Vec::new();
        let mut noted = |path: serde_ignored::Path<'_>| {
            unknown.push(Issue::error(below(&at, &path), "weft has no such field"));
        };
        let mut track = serde_path_to_error::Track::new();
        let known = serde_path_to_error::Deserializer::new(item.value.clone(), &mut track);
        let read = T::deserialize(serde_ignored::Deserializer::new(known, &mut noted));
        let mut issues = self.issues.borrow_mut();
        issues.extend(unknown);
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                let inner = track.path().to_string();
                let dot = if inner.starts_with('[') { "" } else { "." };
                let path = match inner.as_str() {
                    "." => at,
                    _ => FieldPath::new(format!("{at}{dot}{inner}")),
                };
                issues.push(Issue::error(path, format!("{error}")));
                None
            }
        }
    }

    /// The text of a file that a field names.
    fn file(&self, message: &Message<'_>, field: &str) -> Option<Arc<str>> {
        let path = self.folder.join(message.text(field)?);
        match self.files.read(&path) {
            Ok(text) => Some(text.into()),
            Err(error) => {
                message.error(field, format!("cannot read {}: {error}", path.display()));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
