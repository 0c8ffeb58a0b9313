// SPDX-License-Identifier: Apache-2.0
//! A question to an answer's bytes, from our own zones. Total: any input gives an answer of at
//! most FORMERR, or nothing at all. Owns no socket: what lies outside of our zones is handed back
//! ([`Step`]) to whoever may ask others (`mod.rs`).

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use domain::base::iana::Rtype;
use weft_base::limits::{DNS_AMPLIFICATION_MAX, DNS_UDP_BYTES_MAX};
use weft_base::rng::Rng;
use weft_identity::permission::Permissions;
use weft_kinds::world::World;
use weft_registry::consul::State;

use super::directory::Directory;
use super::find::{Data, Found, Look, entry, find};
use super::forward::LooseEnd;
use super::names::{Lookup, Zone, Zones, parse};
use super::query::{Query, Unread, read};
use super::ready::{Cache, Ready};
use super::theirs::skim;
use super::write::{self, Frame, Scratch};
use crate::consul::Who;
use crate::consul::view::{Identity, View};

/// What carries the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// Who is answered, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    pub carrier: Carrier,
    /// This door looks up what it does not hold itself.
    pub recursive: bool,
    /// It is who it says: what it is sent reaches nobody else.
    pub proven: bool,
    /// The client's cookie and ours.
    pub cookie: Option<[u8; 24]>,
}

/// What becomes of a query as far as our own zones go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is written.
    Answer,
    /// It deserves no answer.
    Silence,
    /// It asks for a name outside of our zones.
    Outside,
    /// It ends at an alias, whose target is outside of our zones.
    Alias(Box<Alias>),
}

/// An answer that lacks what its alias leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub target: String,
    pub rtype: Rtype,
    found: Found,
    zone: Zone,
}

/// What answers are made of.
pub struct Sources<'a> {
    pub world: &'a Arc<World>,
    pub own: &'a Arc<Identity>,
    pub zones: &'a Zones,
    /// The Consul door's records as they are now.
    pub records: &'a (dyn Fn() -> Option<State> + Sync),
    /// Who asks, as far as Consul's access lists go.
    pub who: &'a Who,
    /// Who holds a prepared query's own token.
    pub holder: &'a (dyn Fn(&str) -> Who + Sync),
    pub only_passing: bool,
}

/// What is kept from answer to answer.
#[derive(Debug)]
pub struct Desk {
    cache: Cache,
    directory: Directory,
    /// What the answers that are kept were seen with.
    seen_with: Option<Arc<Permissions>>,
    scratch: Scratch,
    /// Shuffles answers.
    rng: Rng,
}

/// Aliases followed before an answer is what it is.
const ALIASES_MAX: usize = 8;
const BADVERS: u8 = 16;

// === impl Desk ===

impl Desk {
    pub fn new(rng: Rng) -> Self {
        let (cache, directory) = (Cache::default(), Directory::default());
        Self { cache, directory, seen_with: None, scratch: Scratch::default(), rng }
    }

    /// Answers one query as far as our own zones go; with a namespace also what is short for a
    /// name of the cluster, as a pod's resolver would have completed it.
    pub fn step(
        &mut self,
        query: &Query,
        how: &How,
        namespace: Option<&str>,
        sources: &Sources,
        out: &mut Vec<u8>,
    ) -> Step {
        let frame = how.frame(query);
        if query.edns.is_some_and(|edns| edns.version != 0) {
            write::code(out, &frame, BADVERS);
            return Step::Answer;
        }
        // Zone transfers and the like.
        if (251..=254).contains(&query.rtype.to_int()) {
            write::refused(out, &frame);
            return Step::Answer;
        }
        let same_world = self.directory.turn_to(sources.world);
        if !self.turn_to(sources.who) || !same_world {
            self.cache.clear();
        }
        if let Some(ready) = self.cache.get(&query.name, query.rtype.to_int()) {
            self.write(&frame, how, &ready, out);
            return Step::Answer;
        }
        let (zone, found) = match self.search(query, namespace, sources) {
            Searched::Whole(zone, found) => (zone, found),
            Searched::Outside => return Step::Outside,
            Searched::Alias(alias) => return Step::Alias(alias),
        };
        let ready = Ready::new(&found, zone, sources.zones, sources.world.revision());
        let ready = Arc::new(ready);
        if !found.passing {
            self.cache.put(&ready);
        }
        self.write(&frame, how, &ready, out);
        Step::Answer
    }

    /// Whether what is seen was seen with the same rights before.
    fn turn_to(&mut self, who: &Who) -> bool {
        let same = match (&self.seen_with, &who.table) {
            (None, None) => true,
            (Some(was), Some(is)) => Arc::ptr_eq(was, is),
            _ => false,
        };
        if !same {
            self.seen_with.clone_from(&who.table);
        }
        same
    }

    fn write(&mut self, frame: &Frame, how: &How, ready: &Ready, out: &mut Vec<u8>) {
        let everything = frame.query.rtype == Rtype::ANY && !how.proven;
        match everything && !ready.answers.is_empty() {
            true => write::instead_of_any(out, frame),
            false => write::answer(out, frame, ready, &mut self.rng, &mut self.scratch),
        }
    }

    fn search(&mut self, query: &Query, namespace: Option<&str>, sources: &Sources) -> Searched {
        let view = View::new(sources.world.clone(), sources.own.clone());
        let state = (sources.records)();
        let mut look = Look {
            view: &view,
            zones: sources.zones,
            records: state.as_ref(),
            who: sources.who,
            holder: sources.holder,
            only_passing: sources.only_passing,
            directory: &mut self.directory,
        };
        let labels: Vec<&str> = query.name.labels().collect();
        let rtype = query.rtype;
        let looked = labelled(&mut look, &labels, rtype).or_else(|| {
            let found = short(&mut look, &labels, namespace?, rtype)?;
            // Another namespace has another answer to the same question.
            Some((Zone::Cluster, Found { passing: true, ..found }))
        });
        let Some((zone, mut found)) = looked else { return Searched::Outside };
        let mut asked = Vec::new();
        for _ in 0..ALIASES_MAX {
            let Some(target) = found.loose_end(rtype) else { break };
            let text = target.trim_end_matches('.').to_ascii_lowercase();
            if asked.is_empty() {
                asked.push(labels.join(".").to_ascii_lowercase());
            }
            // What a name leads to is said once.
            if asked.contains(&text) {
                break;
            }
            asked.push(text.clone());
            let labels: Vec<&str> = text.split('.').filter(|label| !label.is_empty()).collect();
            let Some((_, next)) = labelled(&mut look, &labels, rtype) else {
                return Searched::Alias(Box::new(Alias { target, rtype, found, zone }));
            };
            found.passing |= next.passing;
            if next.answers.is_empty() {
                break;
            }
            found.chain.extend(next.answers.into_iter().map(|data| (target.clone(), data)));
        }
        Searched::Whole(zone, found)
    }
}

// === impl Sources ===

impl<'a> Sources<'a> {
    /// Without records, and with everybody's rights.
    pub fn bare(world: &'a Arc<World>, own: &'a Arc<Identity>, zones: &'a Zones) -> Self {
        static ANYBODY: LazyLock<Who> = LazyLock::new(Who::anybody);
        let holder = &|_: &str| Who::anybody();
        let (records, only_passing) = (&|| None, false);
        Self { world, own, zones, records, who: &ANYBODY, holder, only_passing }
    }
}

enum Searched {
    Whole(Zone, Found),
    Outside,
    Alias(Box<Alias>),
}

// === impl How ===

impl How {
    fn frame<'a>(&'a self, query: &'a Query<'a>) -> Frame<'a> {
        let Self { recursive, .. } = *self;
        Frame { query, limit: self.limit(query), recursive, cookie: self.cookie.as_ref() }
    }

    /// How long an answer may be. Who may be somebody else's victim is sent little.
    pub fn limit(&self, query: &Query) -> usize {
        let edns = query.edns.map_or(512, |edns| edns.size.into());
        match (self.carrier, self.proven) {
            (Carrier::Tcp, _) => usize::from(u16::MAX),
            (Carrier::Udp, true) => edns.clamp(512, DNS_UDP_BYTES_MAX),
            (Carrier::Udp, false) => {
                edns.clamp(512, DNS_UDP_BYTES_MAX).min(query.bytes * DNS_AMPLIFICATION_MAX)
            }
        }
    }

    /// Whether nobody can be meant by these questions but who sent them.
    pub fn is_proven(carrier: Carrier, source: Option<IpAddr>) -> bool {
        carrier == Carrier::Tcp || source.is_none_or(|ip| ip.to_canonical().is_loopback())
    }
}

// === answers that had to wait ===

/// The answer that ends at an alias, with what its target's servers said.
pub fn complete(
    query: &Query,
    how: &How,
    alias: Alias,
    chain: Vec<(String, Data)>,
    sources: &Sources,
    rng: &mut Rng,
) -> Vec<u8> {
    let mut found = alias.found;
    found.chain.extend(chain);
    let ready = Ready::new(&found, alias.zone, sources.zones, sources.world.revision());
    let mut out = Vec::new();
    write::answer(&mut out, &how.frame(query), &ready, rng, &mut Scratch::default());
    out
}

/// What the mesh said and ended at an alias, with what that leads to outside of it.
pub fn lengthened(
    query: &Query,
    how: &How,
    alias: LooseEnd,
    chain: Vec<(String, Data)>,
    rng: &mut Rng,
) -> Vec<u8> {
    let mut said = alias.said.into_iter();
    let answers = said.next().map(|(_, data)| data).into_iter().collect();
    let chain = said.chain(chain).collect();
    let found = Found { exists: true, answers, chain, ttl: Some(alias.ttl), ..Found::default() };
    // Only an answer without records says of which zone it is.
    let zones = Zones { datacenter: String::new(), cluster_domain: String::new() };
    let ready = Ready::new(&found, Zone::Consul, &zones, 0);
    let mut out = Vec::new();
    write::answer(&mut out, &how.frame(query), &ready, rng, &mut Scratch::default());
    out
}

/// A name outside of our zones, at a door that asks nobody else.
pub fn refuse_outside(query: &Query, how: &How) -> Vec<u8> {
    let mut out = Vec::new();
    write::refused(&mut out, &how.frame(query));
    out
}

/// The question as it is asked of others: what is between the client and this door stays here.
pub fn onward(query: &Query) -> Vec<u8> {
    let mut out = Vec::new();
    write::question(&mut out, query);
    out
}

/// What others said, as this door says it: with this door's own EDNS record instead of theirs, if
/// it is no longer than whoever asks may be sent.
pub fn forwarded(query: &Query, how: &How, answer: Vec<u8>) -> Vec<u8> {
    let (frame, mut out) = (how.frame(query), answer);
    match skim(&out) {
        None => write::failed(&mut out, &frame, "the answer of another resolver was not readable"),
        Some(theirs) => {
            write::reframe(&mut out, &frame, &theirs);
            if out.len() > frame.limit {
                write::cut(&mut out, &frame);
            }
        }
    }
    out
}

/// Nobody could be asked: SERVFAIL with a sentence (RFC 8914).
pub fn fail(query: &Query, how: &How, why: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::failed(&mut out, &how.frame(query), why);
    out
}

/// Too many questions: one that is heard comes again over TCP.
pub fn come_again(query: &Query, how: &How, out: &mut Vec<u8>) {
    write::cut(out, &how.frame(query));
}

/// Reads a question; what is none is answered here, or not at all.
pub fn question<'q>(bytes: &'q [u8], out: &mut Vec<u8>) -> Result<Query<'q>, Step> {
    read(bytes).map_err(|unread| match unread {
        Unread::Silence => Step::Silence,
        Unread::Refused { id, flags, rcode } => {
            write::header_only(out, id, flags, rcode);
            Step::Answer
        }
    })
}

// === helpers ===

/// A name of our zones, looked up. Labels in lower case, without the root.
fn labelled(look: &mut Look, labels: &[&str], rtype: Rtype) -> Option<(Zone, Found)> {
    match parse(labels, look.zones, rtype) {
        Some((zone, lookup)) => Some((zone, find(look, zone, &lookup, rtype)?)),
        // A host that the mesh was told of is the mesh's, wherever its name hangs.
        None => entry(look.view, &labels.join("."), rtype).map(|found| (Zone::Cluster, found)),
    }
}

/// A name of the cluster without its end: `web`, `web.shop`, `web.shop.svc`. `None` when there is
/// no such Service: then it is somebody else's name.
fn short(look: &mut Look, labels: &[&str], namespace: &str, rtype: Rtype) -> Option<Found> {
    let domain: Vec<&str> = look.zones.cluster_domain.split('.').collect();
    let ends = [&[namespace, "svc"][..], &["svc"], &[]];
    ends.iter().find_map(|end| {
        let whole = [labels, end, &domain].concat();
        let (zone, lookup) = parse(&whole, look.zones, rtype)?;
        let of_service = matches!(
            lookup,
            Lookup::Service { .. }
                | Lookup::Port { .. }
                | Lookup::Endpoint { .. }
                | Lookup::Hostname { .. }
        );
        let found = if of_service { find(look, zone, &lookup, rtype) } else { None };
        found.filter(|found| found.exists)
    })
}

#[cfg(test)]
mod tests;
