// SPDX-License-Identifier: Apache-2.0
//! Route configurations: one route of the model for each virtual host, whose rules stand in their
//! written order.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_model::{
    Action, Dialect, Filter, Match, Matching, Origin, Parent, Rank, Resource, Root, Route, Rule,
    Scope, Timeouts,
};

use super::filter::{self, Chain};
use super::options::NotDone;
use super::route_action::{self, Defaults, Made};
use super::upgrade::Upgrades;
use super::{Context, edit, matching, options};
use crate::read::Message;

/// Where a route configuration is used.
#[derive(Debug)]
pub struct Place<'a> {
    pub root: &'a Root,
    pub listener: &'a str,
    pub sections: &'a [Arc<str>],
    /// Tells the routes of a listener's chains apart.
    pub index: usize,
    pub chain: &'a Chain,
    /// For what its requests may leave HTTP.
    pub upgrades: &'a Upgrades,
    /// Where a route says nothing else.
    pub timeouts: &'a Timeouts,
    /// What is made of an answer's word for who serves, after all that routes say.
    pub server: Option<Filter>,
}

/// Of a whole configuration.
const CONFIG: NotDone = &[
    // Either way a route that names a cluster which there is not is an error.
    ("validate_clusters", &["true", "false"], "a route names a cluster that there is"),
    ("ignore_port_in_host_matching", &["true"], "hosts are compared without their port"),
];
const VIRTUAL_CLUSTERS: &str =
    "metrics are weft's own, /stats/prometheus of the admin door shows them";

/// What is asked for is done only when it is what weft does anyhow.
const FLAGS: &[(&str, bool, &str)] = &[
    ("include_request_attempt_count", false, "requests do not say which attempt they are"),
    ("include_attempt_count_in_response", false, "answers do not say how many attempts it took"),
];

/// The same of a whole configuration.
const CONFIG_FLAGS: &[(&str, bool, &str)] = &[
    (
        "ignore_path_parameters_in_path_matching",
        false,
        "parameters are a part of the path that routes see",
    ),
    (
        "most_specific_header_mutations_wins",
        false,
        "edits of a route come first, then its virtual host's, then the whole configuration's",
    ),
];

/// Reads one `RouteConfiguration`.
pub fn read(config: &Message<'_>, place: &Place<'_>, context: &Context<'_>) {
    config.pass_over(&["name", "max_direct_response_body_size_bytes"]);
    options::not_done(config, CONFIG);
    options::flags(config, CONFIG_FLAGS);
    let own = edit::filters(config);
    let chain = place.chain.with(config);
    let (mut hosts, mut known) = (0_usize, BTreeSet::new());
    config.each("virtual_hosts", |host| {
        for domain in host.texts("domains") {
            if !known.insert(domain.to_ascii_lowercase()) {
                host.error("domains", format!("{domain:?} stands in an earlier place, too"));
            }
        }
        virtual_host(&host, hosts, (&own, &chain), place, context);
        hosts += 1;
    });
    if hosts == 0 {
        config.error("virtual_hosts", "there are none, so every request is answered 404");
    }
}

fn virtual_host(
    host: &Message<'_>,
    index: usize,
    (outer, chain): (&[Filter], &Chain),
    place: &Place<'_>,
    context: &Context<'_>,
) {
    host.pass_over(&["name"]);
    host.not_done("virtual_clusters", &["[]"], VIRTUAL_CLUSTERS);
    options::flags(host, FLAGS);
    let name = host.text("name").unwrap_or("").to_owned();
    if !matches!(host.word("require_tls").as_deref(), None | Some("NONE")) {
        host.error("require_tls", "redirect with a route of a plaintext listener");
    }
    let chain = chain.with(host);
    let mut filters = edit::filters(host);
    filters.extend(outer.iter().chain(&place.server).cloned());
    let defaults = Defaults {
        filters,
        retry: host.message("retry_policy").map(|retry| route_action::retry(&retry)),
        cors: host.message("cors").map(|policy| filter::cors(&policy)),
        upgrades: place.upgrades.clone(),
        timeouts: place.timeouts.clone(),
    };
    let origin = |field: String| Origin {
        kind: "Envoy".into(),
        namespace: place.listener.into(),
        name: name.as_str().into(),
        field: field.into(),
    };
    let (mut rules, mut each) = (Vec::new(), 0_usize);
    host.each("routes", |route| {
        let origin = origin(format!("routes[{each}]"));
        each += 1;
        rules.extend(rule(&route, &defaults, &chain, context, origin));
    });
    if !rules.iter().any(takes_all) {
        // A virtual host that was chosen by its name leaves nothing to the others.
        let reason = format!("the virtual host {name:?} has no route for this path");
        rules.push(Rule {
            name: "".into(),
            matches: Vec::new(),
            filters: Vec::new(),
            action: Action::Fail { status: 404, reason: reason.into() },
            timeouts: Timeouts::default(),
            retry: route_action::no_retry(),
            session: None,
            origin: origin("routes".into()),
            sources: weft_model::Sources::default(),
        });
    }
    let route = Route {
        parent: Parent::Listener {
            root: place.root.clone(),
            sections: place.sections.to_vec(),
            hostnames: domains(host),
        },
        scope: Scope::Any,
        matching: Matching::FirstMatch,
        rank: Rank {
            dialect: Dialect::VirtualService,
            created_ms: index as u64,
            name: name.as_str().into(),
        },
        rules,
        origin: origin(String::new()),
    };
    let child = format!("route/envoy/{}/{index}", place.index);
    context.put(place.root.child(child), Resource::Route(route));
}

fn takes_all(rule: &Rule) -> bool {
    use weft_model::PathMatch::StringPrefix;
    rule.matches.is_empty()
        || rule.matches.iter().any(|m| {
            let every = matches!(&m.path, Some(StringPrefix(p)) if &**p == "/") || m.path.is_none();
            every && Match { path: None, ..m.clone() } == Match::default()
        })
}

/// The names a virtual host serves; a port in one is the listener's own, which is not compared.
fn domains(host: &Message<'_>) -> Vec<Arc<str>> {
    let mut out: Vec<Arc<str>> = Vec::new();
    let all = host.texts("domains");
    for domain in &all {
        let (bare, port) = match domain.rsplit_once(':') {
            Some((bare, port)) if port == "*" || port.parse::<u16>().is_ok() => (bare, true),
            _ => (*domain, false),
        };
        let bare = bare.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if port && !all.iter().any(|d| d.eq_ignore_ascii_case(&bare)) && !bare.contains(':') {
            let why =
                format!("{domain:?}: hosts are matched without their port; name {bare:?} too");
            host.unsupported("domains", why);
            continue;
        }
        let wild = bare.contains('*');
        let suffix = bare == "*" || bare.strip_prefix("*.").is_some_and(|r| !r.contains('*'));
        if wild && !suffix {
            let why =
                format!("{domain:?}: a wildcard stands for whole first labels (*.example.com)");
            host.unsupported("domains", why);
            continue;
        }
        if !out.iter().any(|known| **known == *bare) {
            out.push(bare.into());
        }
    }
    if all.is_empty() {
        host.error("domains", "a virtual host serves at least one name; * is every one");
    }
    out
}

/// Whether a route keeps requests out by itself: a wider one behind it may let them in.
fn refuses(route: &Message<'_>, made: &Made) -> bool {
    let guarded = made.filters.iter().any(|filter| matches!(filter, Filter::Access(_)));
    (guarded && route.is_set("typed_per_filter_config"))
        || matches!(made.action, Action::Direct { status, .. } if status >= 400)
}

const ROUTE_PASSED_OVER: &[&str] = &["metadata", "stat_prefix"];

fn rule(
    route: &Message<'_>,
    defaults: &Defaults,
    chain: &Chain,
    context: &Context<'_>,
    origin: Origin,
) -> Option<Rule> {
    route.pass_over(ROUTE_PASSED_OVER);
    if let Some(decorator) = route.message("decorator") {
        decorator.pass_over(&["operation"]);
        decorator.not_done("propagate", &["true"], "no header says what an operation is called");
    }
    let name: Arc<str> = route.text("name").unwrap_or("").into();
    let Some(found) = route.message("match") else {
        route.error("match", "a route needs a match");
        return None;
    };
    let matched = matching::of_route(&found);
    let made = route_action::read(route, defaults, chain.with(route), context);
    if matched.is_none() && made.as_ref().is_some_and(|made| refuses(route, made)) {
        route
            .error("match", "it cannot be said whole, and without this route more would be let in");
    }
    let (matched, made) = (matched?, made?);
    Some(Rule {
        name,
        matches: vec![matched],
        filters: made.filters,
        action: made.action,
        timeouts: made.timeouts,
        retry: made.retry,
        session: None,
        origin,
        sources: weft_model::Sources::default(),
    })
}
