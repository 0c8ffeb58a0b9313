// SPDX-License-Identifier: Apache-2.0
//! The rules of a VirtualService below HTTP: `tcp[]`, and `tls[]` by the server name that a client
//! asks for. Called by `virtual_service`. A match that cannot be read takes nothing, and the
//! status says so: a rule never takes more than was written.

use std::sync::Arc;

use weft_base::issue::FieldPath;
use weft_kinds::views::istio::{L4Match, TcpRoute};
use weft_model::{
    Action, AddressRange, ConnectionMatch, Match, Regex, Retry, Rule, StringMatch, Timeouts,
};

use super::origin;
use super::vs_rule::{Context, Place, Prepared, Source};

impl Context<'_, '_> {
    /// A rule of `spec.tcp`. Where HTTP may come too (`undeclared`), it takes only what is none.
    pub(super) fn tcp(
        &mut self,
        route: &TcpRoute,
        index: usize,
        place: Place<'_>,
        undeclared: bool,
    ) -> Option<Prepared> {
        let path = FieldPath::new("spec.tcp").index(index);
        let mut alternatives = Vec::new();
        for (i, m) in route.matches.iter().enumerate() {
            if !self.is_for(&m.gateways, m.port, place) {
                continue;
            }
            if let Some(ends) = self.ends(m, &path.field("match").index(i)) {
                alternatives.push((source_of(m), connection(ends, undeclared)));
            }
        }
        if route.matches.is_empty() {
            let all = connection(ConnectionMatch::default(), undeclared);
            alternatives.push((Source::default(), all));
        }
        self.passed_on(route, path, place, alternatives)
    }

    /// A rule of `spec.tls`.
    pub(super) fn tls(
        &mut self,
        route: &TcpRoute,
        index: usize,
        place: Place<'_>,
    ) -> Option<Prepared> {
        let path = FieldPath::new("spec.tls").index(index);
        if route.matches.is_empty() {
            let text = "nothing is taken without sniHosts; a match is required";
            self.issues.error(path.field("match"), text);
        }
        let mut alternatives = Vec::new();
        for (i, m) in route.matches.iter().enumerate() {
            let at = path.field("match").index(i);
            if m.sni_hosts.is_empty() {
                self.issues.error(at.field("sniHosts"), "nothing is taken without a server name");
            }
            if !self.is_for(&m.gateways, m.port, place) {
                continue;
            }
            let Some(ends) = self.ends(m, &at) else { continue };
            for (j, name) in m.sni_hosts.iter().enumerate() {
                match server_name(name) {
                    Ok(authority) => {
                        let whole = connection(ends.clone(), false).unwrap_or_default();
                        let matched = Match { authority, ..whole };
                        alternatives.push((source_of(m), Some(matched)));
                    }
                    Err(why) => self.issues.error(at.field("sniHosts").index(j), why),
                }
            }
        }
        self.passed_on(route, path, place, alternatives)
    }

    fn passed_on(
        &mut self,
        route: &TcpRoute,
        path: FieldPath,
        place: Place<'_>,
        alternatives: Vec<(Source, Option<Match>)>,
    ) -> Option<Prepared> {
        if alternatives.is_empty() {
            return None;
        }
        let rule = Rule {
            name: "".into(),
            matches: Vec::new(),
            filters: Vec::new(),
            action: Action::Forward(self.destinations(&route.route, &path, place)),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            session: None,
            origin: origin(self.object, path.as_str()),
            sources: weft_model::Sources::default(),
        };
        Some(Prepared { rule, alternatives })
    }

    /// The addresses that a match asks for; `None` when one of them cannot be read.
    fn ends(&mut self, m: &L4Match, path: &FieldPath) -> Option<ConnectionMatch> {
        let mut read = |text: &Arc<str>, at: FieldPath| {
            let found = range(text);
            if found.is_none() {
                let text = format!("{text:?} is no address such as 10.0.0.0/8; it takes nothing");
                self.issues.error(at, text);
            }
            found
        };
        let source = m.source_subnet.iter().filter(|text| !text.is_empty());
        let sources = source.map(|text| read(text, path.field("sourceSubnet")));
        let sources = sources.collect::<Option<Vec<_>>>();
        let at = path.field("destinationSubnets");
        let each = m.destination_subnets.iter().enumerate();
        let destinations = each.map(|(i, text)| read(text, at.index(i)));
        let destinations = destinations.collect::<Option<Vec<_>>>();
        Some(ConnectionMatch { sources: sources?, destinations: destinations? })
    }
}

/// `None` takes all that comes.
fn connection(ends: ConnectionMatch, undeclared: bool) -> Option<Match> {
    let asks = undeclared || ends != ConnectionMatch::default();
    asks.then(|| Match { connection: Some(Box::new(ends)), ..Match::default() })
}

fn source_of(m: &L4Match) -> Source {
    let namespace = m.source_namespace.clone().filter(|ns| !ns.is_empty());
    Source { namespace, labels: m.source_labels.clone() }
}

/// An address, or all with the same first bits.
fn range(text: &str) -> Option<AddressRange> {
    let (base, bits) = match text.split_once('/') {
        Some((base, bits)) => (base, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let base: std::net::IpAddr = base.parse().ok()?;
    let most = if base.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(AddressRange { base, bits })
}

/// A server name, or all that end as it does: `*.example.com`, or `*`, also for who asks for none.
fn server_name(name: &str) -> Result<Option<StringMatch>, String> {
    let lower = name.to_ascii_lowercase();
    let plain = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        !text.is_empty() && text.bytes().all(allowed)
    };
    match lower.strip_prefix('*') {
        None if plain(&lower) => Ok(Some(StringMatch::Exact(lower.into()))),
        Some("") => Ok(None),
        Some(suffix) if suffix.starts_with('.') && plain(suffix) => {
            let ends = format!(".+{}", suffix.replace('.', r"\."));
            Ok(Some(StringMatch::Regex(Regex::new(&ends)?)))
        }
        _ => Err(format!("{name:?} is no server name; it takes nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_whole_or_not_at_all() {
        for (text, takes, not) in [
            ("10.9.9.0/24", "10.9.9.7", "10.9.8.7"),
            ("10.9.9.7", "10.9.9.7", "10.9.9.8"),
            ("fd00::/8", "fd12::1", "fe80::1"),
        ] {
            let range = range(text).unwrap();
            assert!(range.takes(takes.parse().unwrap()), "{text}");
            assert!(!range.takes(not.parse().unwrap()), "{text}");
        }
        for wrong in ["", "10.9.9.0/33", "10.9.9/24", "example.com", "10.0.0.0/", "::/129"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn server_names_take_what_they_say() {
        let takes = |name: &str, asked: &str| {
            server_name(name).unwrap().is_none_or(|m| m.holds(asked.as_bytes()))
        };
        assert!(takes("A.example", "a.example") && !takes("a.example", "b.a.example"));
        assert!(takes("*.example", "b.a.example") && !takes("*.example", "example"));
        assert!(!takes("*.example", "aXexample") && takes("*", ""));
        for wrong in ["", "a*", "*a", "a.*", "a(b", "*.a(b"] {
            assert!(server_name(wrong).is_err(), "{wrong}");
        }
    }
}
