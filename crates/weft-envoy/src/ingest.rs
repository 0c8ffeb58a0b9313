// SPDX-License-Identifier: Apache-2.0
//! A whole bootstrap: which of its parts become what. Called by `weft proxy --envoy` and by
//! `weft explain -f`; reads files only through [`Files`], opens no socket and asks no resolver.

mod access;
mod cluster;
mod connection;
mod edit;
mod endpoints;
mod filter;
mod health;
mod listener;
mod matching;
mod options;
mod outlier;
mod route;
mod route_action;
mod tls;
mod upgrade;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use weft_base::issue::{FieldPath, Issue};
use weft_model::{HashBy, Labels, Resource, ResourceName, Root, Target, backend_child};

use self::options::NotDone;
use crate::read::{Found, Message, Unreadable, parse};

pub use cluster::{DnsSet, Resolved};

/// Where the files come from that a bootstrap names: certificates, keys, bodies.
pub trait Files {
    /// # Errors
    /// Why the file cannot be read.
    fn read(&self, path: &Path) -> io::Result<String>;
}

/// What a bootstrap says.
#[derive(Debug, Default)]
pub struct Bootstrap {
    pub resources: Vec<(ResourceName, Resource)>,
    pub admin: Option<SocketAddr>,
    pub log: Option<Log>,
    /// Endpoints that are names: their sets are made again whenever those were asked for.
    pub names: Vec<DnsSet>,
    /// Files that were read; when one changes, so may what this says.
    pub files: BTreeSet<PathBuf>,
    /// What is wrong; a bootstrap with any of these cannot be served.
    pub errors: Vec<Issue>,
    /// What weft does not do, or not as Envoy does.
    pub unsupported: Vec<Issue>,
}

/// The access log that its connection managers ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Standard output when absent.
    pub path: Option<PathBuf>,
    /// A format string or dictionary of Envoy's operators, and where it stands; the usual line
    /// when absent.
    pub format: Option<(FieldPath, Value)>,
    pub omit_empty: bool,
}

/// What the readers of one bootstrap share.
struct Context<'a> {
    files: &'a dyn Files,
    read: RefCell<BTreeSet<PathBuf>>,
    clusters: BTreeMap<&'a str, u16>,
    /// Certificates and authorities that TLS contexts name.
    secrets: BTreeMap<&'a str, &'a Map<String, Value>>,
    resources: RefCell<Vec<(ResourceName, Resource)>>,
    /// How routes want their clusters to hash.
    hashed: RefCell<BTreeMap<String, HashBy>>,
    /// Parts of clusters that routes name.
    subsets: RefCell<BTreeMap<String, BTreeMap<String, Labels>>>,
    names: RefCell<Vec<DnsSet>>,
    logs: RefCell<Vec<Option<Log>>>,
}

const RE2: &str = "envoy.extensions.regex_engines.v3.GoogleRE2";

/// What means nothing to a single weft proxy.
const PASSED_OVER: &[&str] = &["node", "stats_flush_interval"];

const METRICS: &str = "metrics are weft's own, /stats/prometheus of the admin door shows them";
const WATCHDOG: &str = "weft does not watch its threads";
const NOT_DONE: NotDone = &[
    ("stats_config", &["{}"], METRICS),
    ("enable_dispatcher_stats", &["false"], METRICS),
    ("watchdog", &["{}"], WATCHDOG),
    ("watchdogs", &["{}"], WATCHDOG),
    ("use_tcp_for_dns_lookups", &["false"], "names are asked for as the system does it"),
    ("header_prefix", &["x-envoy"], "nothing is added that has a prefix"),
];

/// Of the admin door.
const ADMIN: NotDone = &[
    ("access_log_path", &["", NOWHERE], NO_ADMIN_LOG),
    ("profile_path", &[""], "there is no profiler"),
];
const NO_ADMIN_LOG: &str = "the admin door has no access log";
const NOWHERE: &str = "/dev/null";

/// Reads a bootstrap.
///
/// # Errors
/// When the text is neither JSON nor YAML.
pub fn bootstrap(text: &str, files: &dyn Files) -> Result<Bootstrap, Unreadable> {
    let map = parse(text)?;
    let found = Found::default();
    let mut out = {
        let root = found.root(&map);
        root.pass_over(PASSED_OVER);
        options::not_done(&root, NOT_DONE);
        regex_engine(&root);
        let admin = root.message("admin").and_then(|admin| {
            options::not_done(&admin, ADMIN);
            admin.each("access_log", |log| no_log(&log));
            address(&admin, "address")
        });
        if let Some(dynamic) = root.message("dynamic_resources") {
            dynamic.waive();
            let why = "a bootstrap is served without a control plane; only static_resources are";
            root.unsupported("dynamic_resources", why);
        }
        layers(&root);
        let mut out = Bootstrap { admin, ..Bootstrap::default() };
        match root.message("static_resources") {
            Some(resources) => fill(&resources, &map, files, &mut out),
            None => root.error("static_resources", "there are none, so nothing is served"),
        }
        out
    };
    let (errors, unsupported) = found.into_parts();
    out.errors = errors;
    out.unsupported = unsupported;
    Ok(out)
}

fn fill(resources: &Message<'_>, map: &Map<String, Value>, files: &dyn Files, out: &mut Bootstrap) {
    let context = Context {
        files,
        read: RefCell::default(),
        clusters: cluster::ports(map),
        secrets: tls::secrets(map),
        resources: RefCell::default(),
        hashed: RefCell::default(),
        subsets: RefCell::default(),
        names: RefCell::default(),
        logs: RefCell::default(),
    };
    resources.each("secrets", |secret| secret.waive());
    resources.each("listeners", |message| listener::read(&message, &context));
    let mut names = BTreeSet::new();
    resources.each("clusters", |message| {
        let name = message.text("name").unwrap_or_default();
        if !name.is_empty() && !names.insert(name.to_owned()) {
            message.error("name", format!("an earlier cluster is named {name:?}, too"));
        }
        cluster::read(&message, &context);
    });
    let logs = context.logs.into_inner();
    let mut asked = logs.iter().flatten();
    out.log = asked.next().cloned();
    if asked.any(|other| !out.log.as_ref().is_some_and(|log| log.is_same(other))) {
        let why = "its listeners ask for different access logs; a weft proxy has one";
        resources.unsupported("listeners", why);
    }
    out.resources = context.resources.into_inner();
    out.names = context.names.into_inner();
    out.files = context.read.into_inner();
}

/// An access log of the admin door, which has none: one that is written nowhere is that.
fn no_log(log: &Message<'_>) {
    log.pass_over(&["name"]);
    let written = log.any("typed_config").and_then(|(_, config)| {
        config.waive();
        config.text("path").map(|path| path != NOWHERE)
    });
    if written != Some(false) {
        log.unsupported("typed_config", NO_ADMIN_LOG);
    }
}

/// Runtime layers say nothing as long as nothing is in them.
fn layers(root: &Message<'_>) {
    let Some(runtime) = root.message("layered_runtime") else { return };
    runtime.each("layers", |layer| {
        layer.pass_over(&["name", "admin_layer"]);
        if let Some(values) = layer.item("static_layer")
            && values.value.as_object().is_some_and(|map| !map.is_empty())
        {
            layer.unsupported("static_layer", "weft has no runtime flags");
        }
    });
}

/// Expressions are RE2's.
fn regex_engine(root: &Message<'_>) {
    let Some(engine) = root.message("default_regex_engine") else { return };
    engine.pass_over(&["name"]);
    let Some((kind, config)) = engine.any("typed_config") else { return };
    if kind != RE2 {
        config.waive();
        engine.unsupported("typed_config", format!("{kind} is none of weft's"));
    }
}

/// A socket's address with its port.
fn address(message: &Message<'_>, name: &str) -> Option<SocketAddr> {
    let address = message.message(name)?;
    let socket = address.message("socket_address")?;
    socket.not_done("resolver_name", &[""], "an address is an IP address");
    socket.not_done("ipv4_compat", &["false"], "a socket of IPv6 takes IPv6 only");
    if socket.word("protocol").is_some_and(|p| p != "TCP") {
        socket.unsupported("protocol", "only TCP");
    }
    let port = socket.number::<u16>("port_value").unwrap_or(0);
    let host = socket.text("address")?;
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => {
            socket.error("address", format!("{host:?} is no IP address"));
            None
        }
    }
}

// === impl Log ===

impl Log {
    /// Whether both write the same, wherever they stand.
    fn is_same(&self, other: &Self) -> bool {
        let format = |log: &Self| log.format.as_ref().map(|(_, value)| value.clone());
        let same = format(self) == format(other) && self.omit_empty == other.omit_empty;
        same && self.path == other.path
    }
}

// === impl Context ===

impl Context<'_> {
    /// The backend that a cluster becomes.
    fn target(&self, message: &Message<'_>, field: &str, subset: &str) -> Option<Target> {
        let name = message.text(field)?;
        let Some(port) = self.clusters.get(name) else {
            message.error(field, format!("no cluster has the name {name:?}"));
            return None;
        };
        let root = Root::host(rooted(name));
        Some(Target::Backend(root.child(backend_child(*port, subset))))
    }

    fn put(&self, name: ResourceName, resource: Resource) {
        self.resources.borrow_mut().push((name, resource));
    }

    /// A `core.v3.DataSource`: a file, or text that stands there.
    fn data(&self, message: &Message<'_>, field: &str) -> Option<Arc<str>> {
        let source = message.message(field)?;
        source.pass_over(&["watched_directory"]);
        if let Some(path) = source.text("filename") {
            let path = PathBuf::from(path);
            let text = self.files.read(&path);
            self.read.borrow_mut().insert(path);
            return match text {
                Ok(text) => Some(text.into()),
                Err(error) => {
                    source.error("filename", format!("it cannot be read: {error}"));
                    None
                }
            };
        }
        if let Some(text) = source.text("inline_string") {
            return Some(text.into());
        }
        let bytes = source.text("inline_bytes")?;
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(bytes).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        if text.is_none() {
            source.error("inline_bytes", "it is no base64 of a text");
        }
        text.map(Into::into)
    }
}

/// A cluster's name as a root has it: `/` ends a root's name.
fn rooted(name: &str) -> String {
    name.replace('/', "~")
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("clusters", &self.clusters).finish_non_exhaustive()
    }
}
