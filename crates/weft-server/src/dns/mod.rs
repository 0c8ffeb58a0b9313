// SPDX-License-Identifier: Apache-2.0
//! The DNS door (port 8600, UDP and TCP): healthy instances by name, for both naming schemes.
//!
//! The binary binds the sockets and runs [`Server::serve_udp`] and [`Server::serve_tcp`]
//! (`serve.rs`). Each query is answered from one World snapshot (`answer.rs`); what was answered
//! is kept until the World is another (`ready.rs`). Over UDP, where senders are claims, `guard.rs`
//! decides first.
//!
//! There are three such doors. The public one asks nobody else unless it was given recursors, and
//! then only for clients of private networks: a name outside our zones is REFUSED. The one for
//! pods ([`Server::recursive`]), on a loopback port that only their sidecars know, asks the
//! machine's resolvers what is outside (`forward.rs`). The one of an agent ([`Server::distant`])
//! has no World: it asks the server about every name first.

mod answer;
mod directory;
mod find;
mod forward;
pub mod fuzz;
mod guard;
mod names;
pub mod outside;
mod query;
mod ready;
mod serve;
mod theirs;
mod write;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use weft_base::clock::Clock;
use weft_base::limits::DNS_FORWARDS_MAX;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_kinds::world::World;
use weft_registry::consul::{Handle, State};

pub use answer::Carrier;
pub use forward::{Servers, Upstream};
pub use names::Zones;

use self::answer::{Alias, Desk, How, Sources, Step};
use self::forward::LooseEnd;
use self::guard::Cookies;
use self::query::Query;
use crate::consul::view::Identity;
use crate::consul::{self, Who};
use crate::meter::Meter;

/// The DNS server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    options: Options,
    cookies: Cookies,
}

/// Where names of the mesh are known.
enum Source {
    Here { world: Snapshot<World>, own: Arc<Identity>, zones: Zones, desk: Box<Mutex<Desk>> },
    Elsewhere { mesh: Arc<dyn Mesh>, places: Semaphore },
}

/// What a door may do besides answering from the World.
#[derive(Debug)]
pub struct Options {
    pub clock: Clock,
    /// Prepared queries and gateways are found here.
    pub records: Option<Handle>,
    /// Says what of Consul's names may be seen: without it all of them.
    pub eyes: Option<consul::Door>,
    /// Who is asked what is outside of our zones.
    pub upstream: Option<Upstream>,
    /// Questions over UDP that each source may ask in a second; `None` for any number.
    pub per_source: Option<u32>,
    /// The bound is for loopback, too.
    pub loopback_counts: bool,
    /// Instances whose checks warn are left out of Consul's names, too.
    pub only_passing: bool,
    /// Where answers are counted.
    pub meter: Arc<Meter>,
}

/// Said while the mesh is asked as many questions as it may be.
const MESH_BUSY: &str = "too many questions wait for the mesh";

/// What the mesh says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Answer(Vec<u8>),
    /// It deserves no answer.
    Silence,
    /// It is about a name that the mesh does not know.
    Outside,
    /// Nobody can say now.
    Away,
}

/// Said when the mesh cannot be asked and never said anything about the name.
const MESH_AWAY: &str = "no server of the mesh can be asked";

/// How long a machine waits for what an alias leads to. Its agent gives the whole answer a second,
/// and can look the target up itself.
const ALIAS_PATIENCE: Duration = Duration::from_millis(500);

/// Names of the mesh, known elsewhere. Answers within a time of its own.
pub trait Mesh: Send + Sync {
    fn ask(&self, query: Vec<u8>, carrier: Carrier) -> BoxFuture<'_, Told>;

    /// Whether it is asked as other resolvers are, with nothing of what is between the client and
    /// this door (cookies, sizes).
    fn is_apart(&self) -> bool {
        false
    }

    /// Whether nobody else is asked about a name, even while the mesh cannot say anything. Labels
    /// in lower case, without the root.
    fn keeps(&self, labels: &[&str]) -> bool;
}

// === impl Server ===

impl Server {
    /// A door that answers from the World and does nothing besides. `rng` shuffles answers.
    pub fn new(world: Snapshot<World>, own: Arc<Identity>, zones: Zones, rng: Rng) -> Self {
        Self::with(world, own, zones, rng, Options::new(Clock::system()))
    }

    /// The door for pods: what is outside of our zones is asked of `upstream`.
    pub fn recursive(
        world: Snapshot<World>,
        own: Arc<Identity>,
        zones: Zones,
        rng: Rng,
        upstream: Upstream,
    ) -> Self {
        let options = Options { upstream: Some(upstream), ..Options::new(Clock::system()) };
        Self::with(world, own, zones, rng, options)
    }

    pub fn with(
        world: Snapshot<World>,
        own: Arc<Identity>,
        zones: Zones,
        rng: Rng,
        options: Options,
    ) -> Self {
        let desk = Box::new(Mutex::new(Desk::new(rng)));
        Self::of(Source::Here { world, own, zones, desk }, options)
    }

    /// The door of a machine whose server is elsewhere.
    pub fn distant(mesh: Arc<dyn Mesh>, upstream: Upstream) -> Self {
        let source = Source::Elsewhere { mesh, places: Semaphore::new(DNS_FORWARDS_MAX) };
        Self::of(source, Options { upstream: Some(upstream), ..Options::new(Clock::system()) })
    }

    /// The same with these options.
    pub fn elsewhere_with(mesh: Arc<dyn Mesh>, options: Options) -> Self {
        let source = Source::Elsewhere { mesh, places: Semaphore::new(DNS_FORWARDS_MAX) };
        Self::of(source, options)
    }

    fn of(source: Source, options: Options) -> Self {
        let mut key = [0; 16];
        // Without chance there are no cookies worth the name: one of nobody's is nobody's proof.
        if aws_lc_rs::rand::fill(&mut key).is_err() {
            tracing::warn!("this system gave no random bytes: DNS cookies prove nothing");
        }
        Self(Arc::new(Inner { source, options, cookies: Cookies::new(key) }))
    }

    /// What the mesh says to a machine's question, which may name a Service as a pod of that
    /// namespace would.
    pub async fn of_mesh(&self, query: &[u8], carrier: Carrier, namespace: Option<&str>) -> Told {
        let mut out = Vec::new();
        let query = match answer::question(query, &mut out) {
            Ok(query) => query,
            Err(Step::Answer) => return Told::Answer(out),
            Err(_) => return Told::Silence,
        };
        let how = self.how(&query, carrier, None);
        match self.step(&query, &how, namespace, &mut out) {
            Step::Answer => Told::Answer(out),
            Step::Silence => Told::Silence,
            Step::Outside => Told::Outside,
            Step::Alias(alias) => {
                match self.follow(&query, &how, *alias, Some(ALIAS_PATIENCE)).await {
                    Some(answer) => Told::Answer(answer),
                    None => Told::Silence,
                }
            }
        }
    }

    /// The answer to one query's bytes; `None` when it deserves none. Cancel-safe.
    pub async fn answer(&self, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        self.answer_to(query, carrier, None).await
    }

    async fn answer_to(
        &self,
        bytes: &[u8],
        carrier: Carrier,
        from: Option<IpAddr>,
    ) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let query = match answer::question(bytes, &mut out) {
            Ok(query) => query,
            Err(step) => return (step == Step::Answer).then_some(out),
        };
        let how = self.how(&query, carrier, from);
        match self.step(&query, &how, None, &mut out) {
            Step::Answer => Some(out),
            Step::Silence => None,
            waits => self.finish(bytes, &query, &how, waits).await,
        }
    }

    fn how(&self, query: &Query, carrier: Carrier, from: Option<IpAddr>) -> How {
        let recursive = self.0.options.upstream.is_some() && from.is_none_or(is_near);
        let mut how =
            How { carrier, recursive, proven: How::is_proven(carrier, from), cookie: None };
        let shown = query.edns.and_then(|edns| edns.cookie);
        if let (Some(shown), Some(from)) = (shown, from)
            && let Some(client) = shown.first_chunk::<8>()
        {
            let secs = self.0.options.clock.wall_ms() / 1000;
            let now = u32::try_from(secs & 0xffff_ffff).unwrap_or(0);
            how.proven |= self.0.cookies.knows(shown, from, now);
            how.cookie = Some(self.0.cookies.make(*client, from, now));
        }
        how
    }

    /// As far as our own zones go; costs no waiting.
    fn step(&self, query: &Query, how: &How, namespace: Option<&str>, out: &mut Vec<u8>) -> Step {
        let Source::Here { world, own, zones, desk } = &self.0.source else {
            return Step::Outside;
        };
        let world = world.load();
        let (records, who) = (|| self.records(), self.who());
        let holder = |secret: &str| self.holder(secret, &who);
        let sources = Sources {
            world: &world,
            own,
            zones,
            records: &records,
            who: &who,
            holder: &holder,
            only_passing: self.0.options.only_passing,
        };
        lock(desk).step(query, how, namespace, &sources, out)
    }

    /// What had to wait for others.
    async fn finish(
        &self,
        bytes: &[u8],
        query: &Query<'_>,
        how: &How,
        step: Step,
    ) -> Option<Vec<u8>> {
        match step {
            Step::Answer | Step::Silence => None,
            Step::Alias(alias) => self.follow(query, how, *alias, None).await,
            Step::Outside => {
                let Some(told) = self.elsewhere(bytes, query, how).await else {
                    // It may be the mesh's: nobody else hears of it.
                    return Some(answer::fail(query, how, MESH_BUSY));
                };
                match told {
                    Told::Answer(answer) => Some(self.lengthened(query, how, answer).await),
                    Told::Silence => None,
                    Told::Outside => Some(self.outside(query, how).await),
                    // Names that are not the mesh's outlive it, where others are asked at all.
                    Told::Away
                        if how.recursive
                            && !self.keeps(&query.name.labels().collect::<Vec<_>>()) =>
                    {
                        Some(self.outside(query, how).await)
                    }
                    Told::Away => Some(answer::fail(query, how, MESH_AWAY)),
                }
            }
        }
    }

    /// A name that the mesh does not know.
    async fn outside(&self, query: &Query<'_>, how: &How) -> Vec<u8> {
        match &self.0.options.upstream {
            Some(upstream) if how.recursive => {
                match upstream.ask(&answer::onward(query), how.carrier).await {
                    Ok(answer) => answer::forwarded(query, how, answer),
                    Err(why) => answer::fail(query, how, &why.to_string()),
                }
            }
            _ => answer::refuse_outside(query, how),
        }
    }

    /// What the mesh said elsewhere. Where that ends at a name outside of it, with what this door's
    /// own resolvers say of that.
    async fn lengthened(&self, query: &Query<'_>, how: &How, told: Vec<u8>) -> Vec<u8> {
        if let Some(upstream) = self.0.options.upstream.as_ref().filter(|_| how.recursive)
            && let Some(alias) = LooseEnd::of(&told, query.rtype)
        {
            let target = alias.target.to_ascii_lowercase();
            let outside = !self.keeps(&target.split('.').collect::<Vec<_>>());
            let found = match outside {
                true => upstream.lookup(&target, query.rtype).await,
                false => Vec::new(),
            };
            if !found.is_empty() {
                return answer::lengthened(query, how, alias, found, &mut Rng::from_system());
            }
        }
        answer::forwarded(query, how, told)
    }

    fn keeps(&self, labels: &[&str]) -> bool {
        match &self.0.source {
            Source::Here { zones, .. } => zones.hold(labels),
            Source::Elsewhere { mesh, .. } => mesh.keeps(labels),
        }
    }

    /// With a patience what takes longer is left out.
    async fn follow(
        &self,
        query: &Query<'_>,
        how: &How,
        alias: Alias,
        patience: Option<Duration>,
    ) -> Option<Vec<u8>> {
        let chain = match &self.0.options.upstream {
            Some(upstream) if how.recursive => {
                let found = upstream.lookup(&alias.target, alias.rtype);
                match patience {
                    Some(most) => tokio::time::timeout(most, found).await.unwrap_or_default(),
                    None => found.await,
                }
            }
            _ => Vec::new(),
        };
        let Source::Here { world, own, zones, .. } = &self.0.source else { return None };
        let world = world.load();
        let sources = Sources::bare(&world, own, zones);
        let mut rng = Rng::from_system();
        Some(answer::complete(query, how, alias, chain, &sources, &mut rng))
    }

    /// What the mesh says about a name that this door does not know; `None` when too many ask it
    /// already.
    async fn elsewhere(&self, bytes: &[u8], query: &Query<'_>, how: &How) -> Option<Told> {
        let Source::Elsewhere { mesh, places } = &self.0.source else {
            return Some(Told::Outside);
        };
        let _place = places.try_acquire().ok()?;
        let bytes = if mesh.is_apart() { answer::onward(query) } else { bytes.to_vec() };
        Some(mesh.ask(bytes, how.carrier).await)
    }

    /// Who asks, as far as Consul's access lists go: over DNS nobody shows a token.
    fn who(&self) -> Who {
        self.0.options.eyes.as_ref().map_or_else(Who::anybody, consul::Door::over_dns)
    }

    /// Who holds the token of a prepared query; who asks where there are no access lists.
    fn holder(&self, secret: &str, who: &Who) -> Who {
        match &self.0.options.eyes {
            Some(door) => door.holder(secret),
            None => who.clone(),
        }
    }

    fn records(&self) -> Option<State> {
        self.0.options.records.as_ref().map(Handle::state)
    }
}

// === impl Options ===

impl Options {
    /// Nothing besides.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            records: None,
            eyes: None,
            upstream: None,
            per_source: None,
            loopback_counts: false,
            only_passing: false,
            meter: Arc::default(),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here { .. } => "Here",
            Self::Elsewhere { .. } => "Elsewhere",
        })
    }
}

// === helpers ===

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Machines of one's own networks: nobody else's questions are asked on.
fn is_near(from: IpAddr) -> bool {
    match from.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
