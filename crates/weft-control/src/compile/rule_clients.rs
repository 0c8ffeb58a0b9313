// SPDX-License-Identifier: Apache-2.0
//! The DestinationRules of one host: whose they are, and the clients of whom they hold.
//!
//! A rule that names its host in full costs that host's backends once more. One for a pattern costs
//! as many as the mesh has hosts, and so does every namespace and `workloadSelector` that has one.
//! So only [`RULE_CLIENTS_MAX`] of these count: those of the widest patterns first, and of one
//! pattern each namespace's oldest before the second of any. That depends on no host, so a rule's
//! status can say it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use weft_base::limits::RULE_CLIENTS_MAX;
use weft_kinds::views::View;
use weft_kinds::views::istio::DestinationRule;
use weft_kinds::world::{Index, Object, host_key};
use weft_model::{Chosen, ForClients, Labels};

use super::destination_rule::Rules;
use super::peer_authentication::ROOT_NAMESPACE;
use super::{Env, Reader, names};

/// Clients of whom something of their own holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Client {
    pub namespace: Arc<str>,
    /// Sidecars alone have labels to be chosen by.
    pub chosen: Option<Chosen>,
}

type Rule<'w> = (&'w Object, &'w DestinationRule);

/// The clients of a namespace: those that a selector chooses, or those of whom nothing is chosen.
type Whom<'a> = (&'a str, Option<&'a Labels>);

/// All rules that take one host.
pub(super) struct Found<'a, 'w> {
    /// The namespace that defines the host.
    owner: &'a str,
    /// By pattern, most specific first.
    levels: Vec<Level<'w>>,
    /// Those whose rules for patterns count.
    counted: BTreeSet<Whom<'w>>,
    /// Namespaces that rules of the host's own namespace, or the mesh's, name in `exportTo`.
    invited: BTreeSet<&'w str>,
}

/// The rules for one pattern, by namespace, the oldest first.
struct Level<'w> {
    is_pattern: bool,
    rules: BTreeMap<&'w str, Vec<Rule<'w>>>,
}

/// What holds for everybody, and then what differs from it for the clients of single namespaces,
/// and for those that rules choose.
pub(super) fn by_client<'w>(
    reader: &Reader<'w>,
    patterns: &[String],
    namespace: &str,
) -> Vec<(Option<Client>, Rules<'w>)> {
    let found = Found::read(reader, patterns, namespace);
    let whole = found.rules_for(None);
    let others = found.namespaces().into_iter().filter_map(|client| {
        let rules = found.rules_for(Some(client));
        let client = Client { namespace: client.into(), chosen: None };
        (rules.keys() != whole.keys()).then_some((Some(client), rules))
    });
    let others: Vec<_> = others.collect();
    let chosen = found.chosen().into_iter().map(|((namespace, labels), created_ms)| {
        let rules = Rules::new(found.own((namespace, Some(labels))), found.is_near(namespace));
        let chosen = Some(Chosen { created_ms, labels: labels.clone() });
        (Some(Client { namespace: namespace.into(), chosen }), rules)
    });
    let chosen: Vec<_> = chosen.collect();
    std::iter::once((None, whole)).chain(others).chain(chosen).collect()
}

/// Whether a rule for some of a namespace's clients defines a subset of a service.
pub(super) fn is_subset_of_some(
    reader: &Reader<'_>,
    patterns: &[String],
    (service, own): (&str, &str),
    subset: &str,
) -> bool {
    by_client(reader, patterns, service).iter().any(|(client, rules)| {
        let own = client.as_ref().is_some_and(|c| c.chosen.is_some() && *c.namespace == *own);
        own && rules.has_subset(subset)
    })
}

/// Whether a rule for a pattern counts for hosts that other namespaces define.
pub(super) fn counts(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    rule: &DestinationRule,
) -> bool {
    let own = &*object.key.namespace;
    let patterns = names::wider_patterns(&host_key(&rule.spec.host, own), env);
    Found::read(reader, &patterns, own).counted.contains(&(own, selector(rule)))
}

/// The namespaces that a rule's `exportTo` names: `None` is every namespace.
fn exported<'w>(rule: Rule<'w>) -> Option<impl Iterator<Item = &'w str>> {
    let (object, rule) = rule;
    let list = &rule.spec.export_to;
    let everybody = list.is_empty() || list.iter().any(|word| word.trim() == "*");
    let words = list.iter().take(RULE_CLIENTS_MAX).map(|word| match word.trim() {
        "." => &*object.key.namespace,
        word => word,
    });
    (!everybody).then(|| words.filter(|word| *word != "~"))
}

fn selector(rule: &DestinationRule) -> Option<&Labels> {
    rule.spec.workload_selector.as_ref().map(|s| &s.match_labels)
}

// === impl Found ===

impl<'a, 'w> Found<'a, 'w> {
    /// Reads the rules for patterns, the most specific first, of a host that a namespace defines.
    pub fn read(reader: &Reader<'w>, patterns: &[String], owner: &'a str) -> Self {
        let levels: Vec<_> = patterns.iter().map(|p| Level::read(reader, p)).collect();
        let counted = counted(&levels);
        let mut found = Self { owner, levels, counted, invited: BTreeSet::new() };
        found.invited = found.invited();
        found
    }

    /// The rules that clients of a namespace follow, or those of whom nothing else is said.
    pub fn rules_for(&self, client: Option<&str>) -> Rules<'w> {
        if let Some(client) = client {
            let own = self.own((client, None));
            if !own.is_empty() {
                return Rules::new(own, self.is_near(client));
            }
        }
        let exported = |from| self.first(from, |_, rule| self.is_seen(rule, client));
        let found = exported(self.owner);
        if found.is_empty() && self.owner != ROOT_NAMESPACE {
            return Rules::new(exported(ROOT_NAMESPACE), true);
        }
        Rules::new(found, true)
    }

    /// The rules of some clients' own namespace.
    pub fn own(&self, whom: Whom<'_>) -> Vec<Rule<'w>> {
        let counts = self.counts(whom);
        self.first(whom.0, |level, (_, rule)| {
            (counts || !level.is_pattern) && selector(rule) == whom.1
        })
    }

    /// Those of a namespace for the most specific pattern that has any there.
    fn first(
        &self,
        namespace: &str,
        is_meant: impl Fn(&Level<'w>, Rule<'w>) -> bool,
    ) -> Vec<Rule<'w>> {
        let each = self.levels.iter().map(|level| {
            let rules = level.rules.get(namespace).into_iter().flatten().copied();
            rules.filter(|rule| is_meant(level, *rule)).collect::<Vec<_>>()
        });
        each.into_iter().find(|rules| !rules.is_empty()).unwrap_or_default()
    }

    /// Whether rules of a namespace are those of the host's own, or the mesh's.
    fn is_near(&self, namespace: &str) -> bool {
        namespace == self.owner || namespace == ROOT_NAMESPACE
    }

    fn counts(&self, whom: Whom<'_>) -> bool {
        (whom.1.is_none() && self.is_near(whom.0)) || self.counted.contains(&whom)
    }

    fn is_seen(&self, rule: Rule<'w>, client: Option<&str>) -> bool {
        let Some(mut to) = exported(rule) else { return selector(rule.1).is_none() };
        let is_invited = client.is_some_and(|client| self.invited.contains(client));
        selector(rule.1).is_none() && is_invited && to.any(|to| Some(to) == client)
    }

    /// The namespaces that may have other rules than everybody.
    fn namespaces(&self) -> BTreeSet<&'w str> {
        let own = self.levels.iter().flat_map(|level| {
            let namespaces = level.rules.iter().filter(|(namespace, rules)| {
                (!level.is_pattern || self.counts((namespace, None)))
                    && rules.iter().any(|(_, rule)| selector(rule).is_none())
            });
            namespaces.map(|(namespace, _)| *namespace)
        });
        own.filter(|own| *own != self.owner).chain(self.invited.iter().copied()).collect()
    }

    /// Those that selectors choose, with the time of the oldest rule.
    fn chosen(&self) -> BTreeMap<(&'w str, &'w Labels), u64> {
        let mut out = BTreeMap::new();
        for level in &self.levels {
            for (namespace, (object, rule)) in level.each() {
                let Some(labels) = selector(rule) else { continue };
                if level.is_pattern && !self.counts((namespace, Some(labels))) {
                    continue;
                }
                let created = object.meta.created_ms();
                let oldest = out.entry((namespace, labels)).or_insert(created);
                *oldest = created.min(*oldest);
            }
        }
        out
    }

    /// As many as there may be, in the order in which rules were made.
    fn invited(&self) -> BTreeSet<&'w str> {
        let all = self.levels.iter().flat_map(Level::each);
        let near = all.filter(|(namespace, _)| self.is_near(namespace)).map(|(_, rule)| rule);
        let mut near: Vec<Rule<'w>> = near.filter(|rule| selector(rule.1).is_none()).collect();
        near.sort_by_key(|(object, _)| (object.meta.created_ms(), &object.key));
        let names = near.into_iter().filter_map(exported).flatten();
        let mut out = BTreeSet::new();
        for name in names {
            if out.len() < RULE_CLIENTS_MAX || self.is_near(name) {
                out.insert(name);
            }
        }
        out
    }
}

/// The clients whose rules for patterns count.
fn counted<'w>(levels: &[Level<'w>]) -> BTreeSet<Whom<'w>> {
    let mut out = BTreeSet::new();
    let patterns = levels.iter().rev().filter(|level| level.is_pattern);
    for whom in patterns.flat_map(Level::in_turn) {
        if out.len() >= RULE_CLIENTS_MAX {
            break;
        }
        out.insert(whom);
    }
    out
}

// === impl Level ===

impl<'w> Level<'w> {
    fn read(reader: &Reader<'w>, pattern: &str) -> Self {
        let mut rules: BTreeMap<_, Vec<Rule<'w>>> = BTreeMap::new();
        for object in reader.index(Index::DestinationRulesByHost, pattern) {
            if let View::DestinationRule(rule) = &object.view {
                rules.entry(&*object.key.namespace).or_default().push((object, rule));
            }
        }
        for rules in rules.values_mut() {
            rules.sort_by_key(|(object, _)| (object.meta.created_ms(), object.key.name.clone()));
        }
        Self { is_pattern: pattern.contains('*'), rules }
    }

    fn each(&self) -> impl Iterator<Item = (&'w str, Rule<'w>)> {
        self.rules.iter().flat_map(|(ns, rules)| rules.iter().map(|rule| (*ns, *rule)))
    }

    /// Whose rules these are: each namespace's first before the second of any, older ones first.
    fn in_turn(&self) -> Vec<Whom<'w>> {
        let mut turns = Vec::new();
        for (namespace, rules) in &self.rules {
            let mut seen = BTreeSet::new();
            for (object, rule) in rules {
                if seen.insert(selector(rule)) {
                    let created = object.meta.created_ms();
                    turns.push((seen.len(), created, (*namespace, selector(rule))));
                }
            }
        }
        turns.sort_unstable();
        turns.into_iter().map(|(_, _, whom)| whom).collect()
    }
}

// === impl Client ===

impl Client {
    /// What ends the names of children that are for these alone.
    pub fn mark(&self) -> String {
        ForClients(&self.namespace, self.chosen.as_ref()).to_string()
    }
}

/// `namespace shop`, `namespace shop with app=web`.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {}", self.namespace)?;
        let labels = self.chosen.iter().flat_map(|chosen| &chosen.labels).enumerate();
        for (i, (key, value)) in labels {
            write!(f, "{} {key}={value}", if i == 0 { " with" } else { "," })?;
        }
        Ok(())
    }
}
