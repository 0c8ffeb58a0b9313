// SPDX-License-Identifier: Apache-2.0
//! A proxy that is served by files: read whole, checked whole, and taken or refused whole. Files
//! that change are read again, names that were given for endpoints are resolved again. A name that
//! has no answer keeps what it meant, and keeps nothing else from going on.
//!
//! Called by `weft proxy`. What a file says, `weft_envoy` and [`super::file`] know; this only
//! notices changes and hands the difference to the proxy.

mod names;
mod stamps;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use weft_base::clock::Clock;
use weft_base::issue::{FieldPath, Issue};
use weft_base::task::TaskGroup;
use weft_envoy::{DnsSet, Log, Resolved};
use weft_model::{Listener, ListenerKind, Protocol, Resource, ResourceName};
use weft_proxy::Feed;
use weft_proxy::config::{AccessLog, LogFormat, LogWhat};
use weft_proxy::ingest::source;
use weft_proxy::observe::format::Format;
use weft_proxy::table::Builder;
use weft_xds::{Rejected, Transaction, Version};

use super::file;
use names::{Answer, Names};

pub use stamps::{Seen, Stamp, Stamps};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long names that were never asked for are waited for before their backends are served.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// weft's own file.
    File(PathBuf),
    /// An Envoy bootstrap, and whether what weft does not do is passed over.
    Envoy(PathBuf, bool),
}

/// What it says.
#[derive(Debug, Default)]
pub struct Loaded {
    pub resources: BTreeMap<ResourceName, Resource>,
    pub admin: Option<SocketAddr>,
    /// `None` leaves it to the command line.
    pub log: Option<AccessLog>,
    /// Memory of this process beyond which requests are refused.
    pub memory: Option<u64>,
    pub names: Vec<DnsSet>,
    /// Every file that was read, as it was before.
    pub files: Seen,
    pub warnings: Vec<Issue>,
}

// === impl Source ===

impl Source {
    /// What a file is, when a proxy could serve it by itself.
    pub fn of(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let map = weft_envoy::read::parse(&text).ok()?;
        let has = |keys: &[&str]| keys.iter().any(|key| map.contains_key(*key));
        if has(&["static_resources", "staticResources"]) {
            return Some(Self::Envoy(path.to_owned(), false));
        }
        (has(&["listeners"]) && !has(&["kind"])).then(|| Self::File(path.to_owned()))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Envoy(path, _) => path,
        }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// All that is wrong, each with its place.
    pub fn load(&self) -> Result<Loaded> {
        let (files, loaded) = self.load_from_disk();
        loaded.map(|loaded| Loaded { files, ..loaded })
    }

    /// The same, and which files that took, also when something is wrong.
    fn load_from_disk(&self) -> (Seen, Result<Loaded>) {
        let stamps = Stamps::default();
        let loaded = self.load_with(&stamps);
        (stamps.into_seen(), loaded)
    }

    fn load_with(&self, files: &Stamps) -> Result<Loaded> {
        let path = self.path();
        let text = files.read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let loaded = match self {
            Self::File(_) => file::load(path, &text, files)?,
            Self::Envoy(_, allow) => envoy(path, &text, *allow, files)?,
        };
        let wrong = check(&loaded);
        if wrong.is_empty() { Ok(loaded) } else { Err(refused(path, &wrong)) }
    }
}

/// One error for all issues of a file.
pub fn refused(path: &Path, issues: &[Issue]) -> anyhow::Error {
    let n = issues.len();
    let what = if n == 1 { "1 thing" } else { "things" };
    let count = if n == 1 { String::new() } else { format!("{n} ") };
    let mut text = format!("{}: {count}{what} to mend:", path.display());
    for issue in issues {
        text.push_str("\n  ");
        text.push_str(&issue.to_string());
    }
    anyhow!(text)
}

/// Relative names of files begin where the process runs, as Envoy's do.
fn envoy(path: &Path, text: &str, allow: bool, files: &Stamps) -> Result<Loaded> {
    let read = weft_envoy::bootstrap(text, files)
        .with_context(|| format!("{} is no Envoy bootstrap", path.display()))?;
    let mut wrong = read.errors;
    let mut warnings = Vec::new();
    if allow {
        warnings = read.unsupported;
    } else {
        let hint = "; --allow-unsupported makes it a warning";
        wrong.extend(read.unsupported.into_iter().map(|mut issue| {
            issue.message.push_str(hint);
            issue
        }));
    }
    let log = match read.log.map(|log| access_log(&log)) {
        None => Ok(AccessLog { what: LogWhat::Nothing, format: LogFormat::Text, path: None }),
        Some(log) => log,
    };
    let log = log.map_err(|issues| wrong.extend(issues)).ok();
    if !wrong.is_empty() {
        return Err(refused(path, &wrong));
    }
    Ok(Loaded {
        resources: read.resources.into_iter().collect(),
        admin: read.admin,
        log,
        names: read.names,
        warnings,
        ..Loaded::default()
    })
}

fn access_log(log: &Log) -> Result<AccessLog, Vec<Issue>> {
    let format = match &log.format {
        None => LogFormat::Text,
        Some((at, value)) => {
            let format = Format::parse(value, at)?;
            LogFormat::Of(Arc::new(format.omitting_empty(log.omit_empty)))
        }
    };
    Ok(AccessLog { what: LogWhat::Everything, format, path: log.path.clone() })
}

/// What the proxy itself would refuse, and routes that lead nowhere.
fn check(loaded: &Loaded) -> Vec<Issue> {
    let mut out = Vec::new();
    for (name, resource) in &loaded.resources {
        let Resource::Route(route) = resource else { continue };
        for (target, _) in route.targets() {
            if !loaded.resources.contains_key(target) {
                let path = FieldPath::new(format!("{} {}", route.origin, name.child));
                out.push(Issue::error(path, format!("there is no backend {target}")));
            }
        }
    }
    out.extend(two_on_one_address(&loaded.resources));
    let mut builder = Builder::new(1, Clock::system(), "standalone".into());
    let rejected = builder.refusals(&loaded.resources);
    out.extend(rejected.into_iter().map(|r| Issue::error(FieldPath::new(r.name), r.reason)));
    out
}

/// Listeners of which one alone can start.
fn two_on_one_address(resources: &BTreeMap<ResourceName, Resource>) -> Vec<Issue> {
    let (mut out, mut taken) = (Vec::new(), BTreeMap::new());
    for (name, resource) in resources {
        let Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) = resource
        else {
            continue;
        };
        let datagrams = gateway.sections.iter().any(|s| s.protocol == Protocol::Udp);
        for at in gateway.bind.iter().filter(|at| at.port() != 0) {
            if let Some(other) = taken.insert((*at, datagrams), name) {
                let path = FieldPath::new(name.root.to_string());
                out.push(Issue::error(path, format!("{at} is {}'s too", other.root)));
            }
        }
    }
    out
}

/// Keeps a proxy in step with its files.
pub struct Keeper {
    source: Source,
    feed: Feed,
    /// What the proxy was given last; it keeps the resources, we know their versions.
    given: BTreeMap<ResourceName, Version>,
    names: Vec<DnsSet>,
    lookups: Names,
    resolved: Resolved,
    /// Lookups that found nothing, not told yet.
    missed: u64,
    seen: Seen,
    generation: u64,
    /// The newest file is not in use.
    is_refused: bool,
    log: Option<AccessLog>,
    admin: Option<SocketAddr>,
}

impl Keeper {
    /// Gives the proxy what was loaded.
    ///
    /// # Errors
    /// When the proxy refuses a part of it, or ends.
    pub async fn start(source: Source, loaded: Loaded, feed: Feed) -> Result<Self> {
        let mut keeper = Self {
            source,
            feed,
            given: BTreeMap::new(),
            names: Vec::new(),
            lookups: Names::new(names::system),
            resolved: Resolved::new(),
            missed: 0,
            seen: Seen::new(),
            generation: 0,
            is_refused: false,
            log: loaded.log.clone(),
            admin: loaded.admin,
        };
        keeper.take(loaded).await?;
        Ok(keeper)
    }

    /// Looks for changes until the proxy ends. SIGHUP reads everything at once.
    ///
    /// # Errors
    /// When the signal cannot be waited for.
    pub fn keep(mut self, tasks: &TaskGroup) -> Result<()> {
        let mut again: Signal = signal(SignalKind::hangup())?;
        tasks.spawn("configuration file", async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut names_at = tokio::time::Instant::now() + self.refresh();
            loop {
                tokio::select! {
                    Some(()) = again.recv() => self.read_again().await,
                    _ = look.tick() => {
                        if self.has_changed() {
                            self.read_again().await;
                        }
                    }
                    () = tokio::time::sleep_until(names_at), if !self.names.is_empty() => {
                        self.ask_again().await;
                        names_at = tokio::time::Instant::now() + self.refresh();
                    }
                    answer = self.lookups.answer() => self.follow(answer).await,
                }
            }
        });
        Ok(())
    }

    async fn read_again(&mut self) {
        let (source, path) = (self.source.clone(), self.source.path().to_owned());
        // A file that a refusal keeps from being read counts as it is now. What is written while it
        // is being read is read again at the next look.
        self.stamp();
        super::notify::reloading();
        let loaded = tokio::task::spawn_blocking(move || source.load_from_disk()).await;
        let (files, loaded) = loaded.unwrap_or_else(|error| (Seen::new(), Err(error.into())));
        match loaded {
            Ok(loaded) => {
                let loaded = Loaded { files, ..loaded };
                let file = path.display();
                if loaded.log != self.log {
                    tracing::warn!(%file, "the access log changes with the next start only");
                }
                if loaded.admin != self.admin {
                    tracing::warn!(%file, "the admin door moves with the next start only");
                }
                for warning in &loaded.warnings {
                    tracing::warn!(%file, "{warning}");
                }
                match self.take(loaded).await {
                    Ok(()) => {
                        tracing::info!(%file, "the configuration was read again");
                        super::notify::ready();
                    }
                    Err(error) => self.refuse(&error.context(file.to_string())).await,
                }
            }
            Err(error) => {
                // One that is mended may be new in it.
                self.seen.extend(files);
                self.refuse(&error).await;
            }
        }
    }

    /// Says everywhere that the newest file is not in use.
    async fn refuse(&mut self, error: &anyhow::Error) {
        self.is_refused = true;
        tracing::error!("{error:#}\nthe configuration before stays in use");
        self.feed.refuse(format!("{error:#}")).await;
        super::notify::refused();
    }

    /// Takes all of it, or goes on as before.
    async fn take(&mut self, loaded: Loaded) -> Result<()> {
        let known = self.hosts();
        let meant = self.resolved.clone();
        let names = std::mem::replace(&mut self.names, loaded.names);
        let files = std::mem::replace(&mut self.seen, loaded.files);
        self.meet(&known).await;
        let mut wanted = loaded.resources;
        wanted.extend(self.meant());
        let removes = self.given.keys().filter(|n| !wanted.contains_key(*n)).cloned().collect();
        match self.hand_over_whole(wanted, removes).await {
            Ok(refused) if refused.is_empty() => {
                self.is_refused = false;
                Ok(())
            }
            Ok(refused) => Err(anyhow!("the proxy refused {}", refused.join("; "))),
            Err(refused) => {
                self.names = names;
                for (host, addresses) in meant {
                    self.resolved.entry(host).or_insert(addresses);
                }
                let unread = files.into_iter().filter(|(file, _)| !self.seen.contains_key(file));
                let unread: Vec<_> = unread.collect();
                self.seen.extend(unread);
                Err(anyhow!("all of it is refused: {}", refused.join("; ")))
            }
        }
    }

    /// Sets of the endpoints that names mean now.
    fn meant(&self) -> BTreeMap<ResourceName, Resource> {
        let set =
            |set: &DnsSet| (set.name.clone(), Resource::Endpoints(set.endpoints(&self.resolved)));
        self.names.iter().map(set).collect()
    }

    /// Gives the proxy what is different in the endpoints of names.
    async fn hand_over(&mut self, wanted: BTreeMap<ResourceName, Resource>) {
        let Ok(Some(transaction)) = self.difference(wanted, Vec::new()) else { return };
        self.note(&transaction);
        // What is refused of it the proxy says.
        let _ = self.feed.apply(transaction).await;
    }

    /// Gives the proxy what is different in a file; what it refused of that, or why of all.
    async fn hand_over_whole(
        &mut self,
        wanted: BTreeMap<ResourceName, Resource>,
        removes: Vec<ResourceName>,
    ) -> Result<Vec<String>, Vec<String>> {
        let transaction = match self.difference(wanted, removes) {
            Ok(Some(transaction)) => transaction,
            Ok(None) => return Ok(Vec::new()),
            Err(why) => return Err(vec![why]),
        };
        let before = self.given.clone();
        self.note(&transaction);
        let said = |all: Vec<Rejected>| {
            all.into_iter().map(|r| format!("{}: {}", r.name, r.reason)).collect()
        };
        match self.feed.apply_whole(transaction).await {
            // It is going down.
            None => Ok(Vec::new()),
            Some(Ok(applied)) => Ok(said(applied.rejected)),
            Some(Err(refused)) => {
                self.given = before;
                Err(said(refused))
            }
        }
    }

    /// What the proxy does not have yet; `None` when it has everything.
    fn difference(
        &self,
        wanted: BTreeMap<ResourceName, Resource>,
        removes: Vec<ResourceName>,
    ) -> Result<Option<Transaction>, String> {
        let transaction = source::transaction(self.generation + 1, wanted)?;
        let mut transaction = Transaction { removes, ..transaction };
        transaction.upserts.retain(|u| self.given.get(&u.name) != Some(&u.version));
        let nothing = transaction.upserts.is_empty() && transaction.removes.is_empty();
        // After a refusal the proxy is told that the file is in use again.
        let has_all = nothing && self.generation > 0 && !self.is_refused;
        Ok((!has_all).then_some(transaction))
    }

    fn note(&mut self, transaction: &Transaction) {
        self.generation = transaction.generation;
        for name in &transaction.removes {
            self.given.remove(name);
        }
        let versions = transaction.upserts.iter().map(|u| (u.name.clone(), u.version));
        self.given.extend(versions);
    }

    /// All names that stand for endpoints.
    fn hosts(&self) -> BTreeSet<Arc<str>> {
        self.names.iter().flat_map(DnsSet::hosts).cloned().collect()
    }

    /// Asks for all names, and waits a while for those that are new.
    async fn meet(&mut self, known: &BTreeSet<Arc<str>>) {
        let hosts = self.hosts();
        self.resolved.retain(|host, _| hosts.contains(host));
        for host in &hosts {
            self.lookups.ask(host);
        }
        let mut unknown: BTreeSet<_> = hosts.difference(known).cloned().collect();
        let until = tokio::time::Instant::now() + RESOLVE_TIMEOUT;
        while !unknown.is_empty() {
            match tokio::time::timeout_at(until, self.lookups.answer()).await {
                Ok(answer) => {
                    unknown.remove(&answer.0);
                    self.learn(answer);
                }
                Err(_) => {
                    unknown.iter().for_each(|host| self.unanswered(host));
                    break;
                }
            }
        }
        self.tell_missed().await;
    }

    /// Asks for all names that have no question out.
    async fn ask_again(&mut self) {
        for host in self.hosts() {
            if !self.lookups.ask(&host) {
                self.unanswered(&host);
            }
        }
        self.tell_missed().await;
    }

    fn unanswered(&mut self, host: &Arc<str>) {
        self.missed += 1;
        tracing::warn!(%host, "the resolver does not answer; what the name meant stays in use");
    }

    async fn tell_missed(&mut self) {
        let missed = std::mem::take(&mut self.missed);
        if missed > 0 {
            self.feed.unresolved(missed).await;
        }
    }

    /// Takes an answer, and those that came with it, into the table.
    async fn follow(&mut self, answer: Answer) {
        let mut news = self.learn(answer);
        while let Some(answer) = self.lookups.answered() {
            news |= self.learn(answer);
        }
        if news {
            let wanted = self.meant();
            self.hand_over(wanted).await;
        }
        self.tell_missed().await;
    }

    /// Whether an answer is news. A name that cannot be resolved keeps what it meant.
    fn learn(&mut self, (host, found): Answer) -> bool {
        match found {
            Ok(all) if !all.is_empty() => {
                let named = self.names.iter().flat_map(DnsSet::hosts).any(|of| *of == host);
                named && self.resolved.insert(host, all.clone()).as_ref() != Some(&all)
            }
            Ok(_) => {
                self.missed += 1;
                tracing::warn!(%host, "a name has no addresses; what it meant stays in use");
                false
            }
            Err(error) => {
                self.missed += 1;
                tracing::warn!(%host, %error, "a name is not resolved; what it meant stays in use");
                false
            }
        }
    }

    fn refresh(&self) -> Duration {
        let shortest = self.names.iter().map(|set| set.refresh_ms).min();
        Duration::from_millis(shortest.unwrap_or(5_000))
    }

    fn has_changed(&self) -> bool {
        self.seen.iter().any(|(file, seen)| Stamp::of(file) != *seen)
    }

    fn stamp(&mut self) {
        for (file, seen) in &mut self.seen {
            *seen = Stamp::of(file);
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
