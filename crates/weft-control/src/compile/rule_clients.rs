// SPDX-License-Identifier: Apache-2.0
//! The DestinationRules of one host: whose they are, and the clients of whom they hold.
//!
//! A rule that names its host in full costs that host's backends once more. One for a pattern costs
//! as many as the mesh has hosts, and so does every namespace and `workloadSelector` that has one.
//! So only [`RULE_CLIENTS_MAX`] of these count: those of the widest patterns first, and of one
//! pattern each namespace's oldest before the second of any. That depends on no host, so a rule's
//! status can say it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;
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

/// What units of one World make of it once: the rules for a pattern, and the clients whose rules
/// for patterns count for a host, by these patterns.
#[derive(Debug, Default)]
pub struct Shared<'w> {
    levels: RefCell<HashMap<String, Rc<Level<'w>>>>,
    counted: RefCell<HashMap<String, Counted<'w>>>,
}

type Counted<'w> = Rc<BTreeSet<Whom<'w>>>;

/// All rules that take one host.
pub(super) struct Found<'a, 'w> {
    /// The namespace that defines the host.
    owner: &'a str,
    /// By pattern, most specific first.
    levels: Vec<Rc<Level<'w>>>,
    /// Those whose rules for patterns count.
    counted: Counted<'w>,
    /// Namespaces that rules of the host's own namespace, or the mesh's, name in `exportTo`.
    invited: BTreeSet<&'w str>,
}

/// The rules for one pattern, by namespace, the oldest first; of one client's rules for a pattern
/// so many are read as there may be clients.
#[derive(Debug)]
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
    let shared = reader.shared();
    let levels: Vec<_> = patterns.iter().map(|p| shared.level(reader, p)).collect();
    let rules = levels.first().and_then(|level| level.rules.get(own)).into_iter().flatten();
    let is_read = rules.into_iter().any(|(other, _)| other.key == object.key);
    is_read && shared.counted(&patterns, &levels).contains(&(own, selector(rule)))
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
        let shared = reader.shared();
        let levels: Vec<_> = patterns.iter().map(|p| shared.level(reader, p)).collect();
        let counted = shared.counted(patterns, &levels);
        let mut found = Self { owner, levels, counted, invited: BTreeSet::new() };
        found.invited = found.invited();
        found.note(reader);
        found
    }

    /// What was read beside the lists of rules: those that may mean anything to the host.
    fn note(&self, reader: &Reader<'w>) {
        let counted = self.counted.iter().map(|(namespace, _)| *namespace);
        let meant: BTreeSet<&str> = counted.chain(self.near()).collect();
        for level in &self.levels {
            if !level.is_pattern {
                level.each().for_each(|(_, (object, _))| reader.note_object(&object.key));
                continue;
            }
            let rules = meant.iter().filter_map(|namespace| level.rules.get(namespace)).flatten();
            let rules = rules.filter(|(object, rule)| {
                let own = &*object.key.namespace;
                self.is_near(own) || self.counted.contains(&(own, selector(rule)))
            });
            rules.for_each(|(object, _)| reader.note_object(&object.key));
        }
    }

    /// The host's own namespace, and the mesh's.
    fn near(&self) -> impl Iterator<Item = &str> {
        let root = (self.owner != ROOT_NAMESPACE).then_some(ROOT_NAMESPACE);
        std::iter::once(self.owner).chain(root)
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
        let mut out = self.invited.clone();
        for level in &self.levels {
            let unchosen = |rules: &[Rule<'w>]| rules.iter().any(|(_, r)| selector(r).is_none());
            let mut add = |(namespace, rules): (&&'w str, &Vec<Rule<'w>>)| {
                if **namespace != *self.owner && unchosen(rules) {
                    out.insert(*namespace);
                }
            };
            if level.is_pattern {
                let counted = self.counted.iter().filter(|whom| whom.1.is_none());
                let meant = counted.map(|(namespace, _)| *namespace).chain([ROOT_NAMESPACE]);
                meant.filter_map(|ns| level.rules.get_key_value(ns)).for_each(&mut add);
            } else {
                level.rules.iter().for_each(&mut add);
            }
        }
        out
    }

    /// Those that selectors choose, with the time of the oldest rule.
    fn chosen(&self) -> BTreeMap<(&'w str, &'w Labels), u64> {
        let mut out = BTreeMap::new();
        let mut add = |namespace, (object, rule): Rule<'w>| {
            let Some(labels) = selector(rule) else { return };
            let created = object.meta.created_ms();
            let oldest = out.entry((namespace, labels)).or_insert(created);
            *oldest = created.min(*oldest);
        };
        for level in self.levels.iter().filter(|level| !level.is_pattern) {
            level.each().for_each(|(namespace, rule)| add(namespace, rule));
        }
        for level in self.levels.iter().filter(|level| level.is_pattern) {
            for (namespace, labels) in self.counted.iter().filter(|whom| whom.1.is_some()) {
                let rules = level.rules.get(namespace).into_iter().flatten();
                let own = rules.filter(|(_, rule)| selector(rule) == *labels);
                own.for_each(|rule| add(*namespace, *rule));
            }
        }
        out
    }

    /// As many as there may be, in the order in which rules were made.
    fn invited(&self) -> BTreeSet<&'w str> {
        let of = |namespace| self.levels.iter().filter_map(move |l| l.rules.get(namespace));
        let near = self.near().flat_map(of).flatten().copied();
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

// === impl Shared ===

impl<'w> Shared<'w> {
    fn level(&self, reader: &Reader<'w>, pattern: &str) -> Rc<Level<'w>> {
        reader.note_list(Index::DestinationRulesByHost, pattern);
        if let Some(known) = self.levels.borrow().get(pattern) {
            return known.clone();
        }
        let level = Rc::new(Level::read(reader, pattern));
        if level.is_pattern {
            self.levels.borrow_mut().insert(pattern.to_owned(), level.clone());
        }
        level
    }

    fn counted(&self, patterns: &[String], levels: &[Rc<Level<'w>>]) -> Counted<'w> {
        let wide: Vec<&str> = patterns.iter().map(|p| &**p).filter(|p| p.contains('*')).collect();
        let key = wide.join(" ");
        let known = self.counted.borrow().get(&key).cloned();
        known.unwrap_or_else(|| {
            let made = Rc::new(counted(levels));
            self.counted.borrow_mut().insert(key, made.clone());
            made
        })
    }
}

/// The clients whose rules for patterns count.
fn counted<'w>(levels: &[Rc<Level<'w>>]) -> BTreeSet<Whom<'w>> {
    let mut out = BTreeSet::new();
    let patterns = levels.iter().rev().filter(|level| level.is_pattern);
    for whom in patterns.flat_map(|level| level.in_turn()) {
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
        for object in reader.listed(Index::DestinationRulesByHost, pattern) {
            if let View::DestinationRule(rule) = &object.view {
                rules.entry(&*object.key.namespace).or_default().push((object, rule));
            }
        }
        for rules in rules.values_mut() {
            rules.sort_by_cached_key(|(object, _)| {
                (object.meta.created_ms(), object.key.name.clone())
            });
        }
        let is_pattern = pattern.contains('*');
        for rules in rules.values_mut().filter(|_| is_pattern) {
            let mut read: BTreeMap<Option<&Labels>, usize> = BTreeMap::new();
            rules.retain(|(_, rule)| {
                let n = read.entry(selector(rule)).or_default();
                *n += 1;
                *n <= RULE_CLIENTS_MAX
            });
        }
        Self { is_pattern, rules }
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
