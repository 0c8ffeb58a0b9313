// SPDX-License-Identifier: Apache-2.0
//! The routes of one parent, ready to be searched: of thousands, a request looks at those few
//! that its host and path leave. The index only yields candidates in the order of precedence that
//! [`find_rule`] has; the same functions judge them. Built with a table, never written after.

mod paths;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use smallvec::SmallVec;

use self::paths::Paths;
use super::route::{Found, Request, attached, find_rule, holds, specificity};
use crate::{Dialect, Match, Matching, Parent, Route};

/// So many matches are looked at one by one as fast as they are looked up.
const SCANNED_MAX: usize = 8;

/// The routes of one parent.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    list: Vec<Arc<Route>>,
    /// None when they are few.
    index: Option<Box<Index>>,
}

#[derive(Clone, Debug)]
struct Index {
    /// The strongest dialect first.
    dialects: Vec<Speakers>,
}

/// The routes of one dialect by the host names that they serve.
#[derive(Clone, Debug, Default)]
struct Speakers {
    exact: HashMap<Arc<str>, Arc<Bucket>>,
    /// `.example.com` of `*.example.com`.
    suffixes: HashMap<Arc<str>, Arc<Bucket>>,
    any: Option<Arc<Bucket>>,
    /// The first rule that matches takes a request, not the most specific one.
    in_order: bool,
}

/// What is served for one host pattern.
#[derive(Debug)]
struct Bucket {
    routes: Box<[u32]>,
    /// In the order of precedence.
    entries: Box<[Entry]>,
    /// Entries by path; none when all are looked at.
    paths: Option<Paths>,
}

/// One match of a rule, or a rule that has none: then `matched` is past the end.
#[derive(Clone, Copy, Debug)]
struct Entry {
    route: u32,
    rule: u32,
    matched: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pattern {
    Exact(Arc<str>),
    Suffix(Arc<str>),
    Any,
}

// === impl Routes ===

impl Routes {
    pub fn new(list: Vec<Arc<Route>>) -> Self {
        Self::scanning(list, SCANNED_MAX)
    }

    /// The same, looked up however few they are.
    pub fn indexed(list: Vec<Arc<Route>>) -> Self {
        Self::scanning(list, 0)
    }

    /// As [`find_rule`] of them all, at a price that hardly grows with their number.
    pub fn find<'a>(&'a self, section: Option<&str>, req: &Request<'_>) -> Option<Found<'a>> {
        match &self.index {
            // A host that is not canonical has no place in the index.
            Some(index) if !req.host.bytes().any(|b| b.is_ascii_uppercase()) => {
                index.find(&self.list, section, req)
            }
            _ => find_rule(self.list.iter().map(|r| &**r), section, req),
        }
    }

    fn scanning(list: Vec<Arc<Route>>, scanned_max: usize) -> Self {
        let rules = list.iter().flat_map(|route| &route.rules);
        let many = rules.map(|rule| rule.matches.len().max(1)).sum::<usize>() > scanned_max;
        let index = if many { Index::new(&list, scanned_max) } else { None };
        Self { list, index: index.map(Box::new) }
    }
}

impl Deref for Routes {
    type Target = [Arc<Route>];

    fn deref(&self) -> &[Arc<Route>] {
        &self.list
    }
}

impl FromIterator<Arc<Route>> for Routes {
    fn from_iter<I: IntoIterator<Item = Arc<Route>>>(routes: I) -> Self {
        Self::new(routes.into_iter().collect())
    }
}

// === impl Index ===

impl Index {
    /// `None` when one order cannot be written down for all requests: of routes in one dialect
    /// some decide by order and some by precision.
    fn new(list: &[Arc<Route>], scanned_max: usize) -> Option<Self> {
        let mut dialects: BTreeMap<Dialect, Vec<u32>> = BTreeMap::new();
        for (i, route) in list.iter().enumerate() {
            dialects.entry(route.rank.dialect).or_default().push(u32::try_from(i).ok()?);
        }
        let speakers = dialects.into_values().map(|members| {
            let mut members: Vec<(u32, &Route)> =
                members.iter().filter_map(|i| Some((*i, &**list.get(*i as usize)?))).collect();
            members.sort_by(|(_, a), (_, b)| a.rank.cmp(&b.rank));
            let matching = members.first().map(|(_, r)| r.matching)?;
            let alike = members.iter().all(|(_, r)| r.matching == matching);
            alike.then(|| Speakers::new(&members, matching, scanned_max))
        });
        Some(Self { dialects: speakers.collect::<Option<_>>()? })
    }

    fn find<'a>(
        &self,
        list: &'a [Arc<Route>],
        section: Option<&str>,
        req: &Request<'_>,
    ) -> Option<Found<'a>> {
        let mut dialects = self.dialects.iter();
        let speakers = match (self.dialects.len(), dialects.next()) {
            (1, one) => one?,
            // A stronger dialect that speaks at all silences the weaker ones.
            _ => self.dialects.iter().find(|s| s.speak(list, section, req))?,
        };
        let mut buckets = speakers.buckets(req.host);
        if speakers.in_order {
            // The most specific name that anybody speaks for decides alone.
            let first = buckets.find(|bucket| bucket.speaks(list, section, req))?;
            return first.find(list, section, req);
        }
        buckets.find_map(|bucket| bucket.find(list, section, req))
    }
}

// === impl Speakers ===

impl Speakers {
    fn new(members: &[(u32, &Route)], matching: Matching, scanned_max: usize) -> Self {
        let mut served: BTreeMap<Pattern, Vec<u32>> = BTreeMap::new();
        for (i, route) in members {
            for pattern in patterns(&route.parent) {
                served.entry(pattern).or_default().push(*i);
            }
        }
        let routes: HashMap<u32, &Route> = members.iter().copied().collect();
        // Many names of the same routes share one.
        let mut made: HashMap<Vec<u32>, Arc<Bucket>> = HashMap::new();
        let in_order = matching == Matching::FirstMatch;
        let mut out = Self { in_order, ..Self::default() };
        for (pattern, of) in served {
            let bucket = made.entry(of).or_insert_with_key(|of| {
                let of = of.iter().filter_map(|i| Some((*i, *routes.get(i)?)));
                Arc::new(Bucket::new(&of.collect::<Vec<_>>(), matching, scanned_max))
            });
            let bucket = bucket.clone();
            match pattern {
                Pattern::Exact(name) => drop(out.exact.insert(name, bucket)),
                Pattern::Suffix(suffix) => drop(out.suffixes.insert(suffix, bucket)),
                Pattern::Any => out.any = Some(bucket),
            }
        }
        out.exact.shrink_to_fit();
        out.suffixes.shrink_to_fit();
        out
    }

    /// What serves a host, the best fit first.
    fn buckets<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Bucket> {
        let dots = host.bytes().enumerate().skip(1).filter(|(_, b)| *b == b'.');
        let dots = dots.take_while(|_| !self.suffixes.is_empty());
        let suffixes = dots.filter_map(|(i, _)| self.suffixes.get(host.get(i..)?));
        let exact = (!self.exact.is_empty()).then(|| self.exact.get(host)).flatten();
        exact.into_iter().chain(suffixes).chain(&self.any).map(|bucket| &**bucket)
    }

    fn speak(&self, list: &[Arc<Route>], section: Option<&str>, req: &Request<'_>) -> bool {
        self.buckets(req.host).any(|bucket| bucket.speaks(list, section, req))
    }
}

/// The host patterns of a route, each once.
fn patterns(parent: &Parent) -> BTreeSet<Pattern> {
    let Parent::Listener { hostnames, .. } = parent else { return [Pattern::Any].into() };
    if hostnames.is_empty() {
        return [Pattern::Any].into();
    }
    let pattern = |name: &Arc<str>| match name.strip_prefix('*') {
        Some("") => Some(Pattern::Any),
        Some(suffix) => suffix.starts_with('.').then(|| Pattern::Suffix(suffix.into())),
        None if name.is_empty() => Some(Pattern::Any),
        None if name.bytes().any(|b| b.is_ascii_uppercase()) => {
            Some(Pattern::Exact(name.to_ascii_lowercase().into()))
        }
        None => Some(Pattern::Exact(name.clone())),
    };
    hostnames.iter().filter_map(pattern).collect()
}

// === impl Bucket ===

impl Bucket {
    /// Whether any of its routes is for a request at all.
    fn speaks(&self, list: &[Arc<Route>], section: Option<&str>, req: &Request<'_>) -> bool {
        let mut routes = self.routes.iter().filter_map(|i| list.get(*i as usize));
        routes.any(|route| attached(route, section, req.port))
    }

    /// `routes` are in the order of their rank.
    fn new(routes: &[(u32, &Route)], matching: Matching, scanned_max: usize) -> Self {
        let nothing = Match::default();
        let mut found: Vec<(&Match, Entry)> = Vec::new();
        for (route, of) in routes {
            for (rule, of) in (0u32..).zip(&of.rules) {
                let entry = |matched| Entry { route: *route, rule, matched };
                if of.matches.is_empty() {
                    found.push((&nothing, entry(u32::MAX)));
                }
                found.extend((0u32..).zip(&of.matches).map(|(i, m)| (m, entry(i))));
            }
        }
        if matching == Matching::MostSpecific {
            // Stable: of equals the older route, then the earlier rule is first.
            found.sort_by_cached_key(|(m, _)| specificity(m));
        }
        let paths = (found.len() > scanned_max)
            .then(|| Paths::new((0u32..).zip(&found).map(|(at, (m, _))| (m.path.as_ref(), at))));
        Self {
            routes: routes.iter().map(|(i, _)| *i).collect(),
            entries: found.into_iter().map(|(_, entry)| entry).collect(),
            paths,
        }
    }

    fn find<'a>(
        &self,
        list: &'a [Arc<Route>],
        section: Option<&str>,
        req: &Request<'_>,
    ) -> Option<Found<'a>> {
        let Some(paths) = &self.paths else {
            return self.entries.iter().find_map(|entry| entry.judge(list, section, req));
        };
        let mut lists: SmallVec<[&[u32]; 8]> = SmallVec::new();
        paths.lists(req.path, &mut lists);
        // Each list is in order; the first of all their heads is next.
        while let Some(next) = lists.iter().filter_map(|list| list.first().copied()).min() {
            for list in &mut lists {
                if let Some((first, rest)) = list.split_first()
                    && *first == next
                {
                    *list = rest;
                }
            }
            let entry = self.entries.get(next as usize)?;
            if let Some(found) = entry.judge(list, section, req) {
                return Some(found);
            }
        }
        None
    }
}

// === impl Entry ===

impl Entry {
    fn judge<'a>(
        self,
        list: &'a [Arc<Route>],
        section: Option<&str>,
        req: &Request<'_>,
    ) -> Option<Found<'a>> {
        let route = list.get(self.route as usize)?;
        let rule_index = self.rule as usize;
        let rule = route.rules.get(rule_index)?;
        let matched = rule.matches.get(self.matched as usize);
        let takes = matched.is_none_or(|m| holds(m, req)) && attached(route, section, req.port);
        takes.then_some(Found { route, rule, rule_index, matched })
    }
}

#[cfg(test)]
mod tests;
