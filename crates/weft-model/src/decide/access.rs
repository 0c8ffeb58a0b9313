// SPDX-License-Identifier: Apache-2.0
//! Whether a request may pass, and which policy says so.

use std::net::IpAddr;
use std::sync::Arc;

use super::route::{Request, path_holds, written_authority};
use crate::guards;
use crate::{Access, AccessPolicy, AccessTest, Effect, NamedMatch};

/// What is known of who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub ip: IpAddr,
    /// Of the mesh, proved by a certificate.
    pub identity: Option<&'a str>,
    /// What a certificate from outside of the mesh says, which a gateway checked.
    pub names: &'a [Arc<str>],
}

/// A list's judgement of one request.
#[derive(Clone, Copy, Debug)]
pub enum AccessVerdict<'a> {
    Pass(Option<&'a AccessPolicy>),
    /// By the policy that denies it, or because none allows it.
    Refuse(Option<&'a AccessPolicy>),
}

/// Judges a request by one list.
pub fn access_verdict<'a>(
    access: &'a Access,
    req: &Request<'_>,
    client: &Client<'_>,
) -> AccessVerdict<'a> {
    let doubt = Doubt { takes: access.effect == Effect::Deny };
    let takes =
        |p: &&AccessPolicy| test(&p.who, req, client, doubt) && test(&p.what, req, client, doubt);
    let taken = access.policies.iter().find(takes);
    match (access.effect, taken) {
        (Effect::Allow, Some(policy)) => AccessVerdict::Pass(Some(policy)),
        (Effect::Deny, None) => AccessVerdict::Pass(None),
        (Effect::Allow, None) => AccessVerdict::Refuse(None),
        (Effect::Deny, Some(policy)) => AccessVerdict::Refuse(Some(policy)),
    }
}

/// What a header counts as that has several values of which only some fit: a policy that denies
/// takes it, one that allows does not.
#[derive(Clone, Copy)]
struct Doubt {
    takes: bool,
}

fn test(t: &AccessTest, req: &Request<'_>, client: &Client<'_>, doubt: Doubt) -> bool {
    match t {
        AccessTest::Always => true,
        AccessTest::All(tests) => tests.iter().all(|t| test(t, req, client, doubt)),
        AccessTest::OneOf(tests) => tests.iter().any(|t| test(t, req, client, doubt)),
        AccessTest::Not(t) => !test(t, req, client, Doubt { takes: !doubt.takes }),
        AccessTest::Header(m) => header(m, req, doubt),
        AccessTest::Path(path) => path_holds(path, req.path),
        AccessTest::Port(port) => req.port == *port,
        AccessTest::Source(range) => range.takes(client.ip),
        AccessTest::Identity(m) => {
            let mut names = client.names.iter().map(|name| &**name).chain(client.identity);
            names.any(|name| m.holds(name.as_bytes()))
        }
    }
}

fn header(m: &NamedMatch, req: &Request<'_>, doubt: Doubt) -> bool {
    match &*m.name {
        ":method" => m.value.holds(req.method.as_bytes()),
        ":scheme" => m.value.holds(req.scheme.as_bytes()),
        // HTTP/2 has no line `host`. Whoever writes a port asks the host all the same.
        ":authority" | "host" => {
            m.value.holds(req.host.as_bytes()) || m.value.holds(written_authority(req).as_bytes())
        }
        ":path" if req.query.is_empty() => m.value.holds(req.path.as_bytes()),
        ":path" => m.value.holds(format!("{}?{}", req.path, req.query).as_bytes()),
        name => {
            let some = req.headers.any(name, &mut |value| m.value.holds(value));
            let each = guards::on("header-each");
            some && (!each
                || doubt.takes
                || !req.headers.any(name, &mut |value| !m.value.holds(value)))
        }
    }
}

#[cfg(test)]
mod regressions;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Headers;
    use crate::{AddressRange, StringMatch};

    struct Of(&'static [(&'static str, &'static str)]);

    impl Headers for Of {
        fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
            self.0.iter().any(|(n, v)| *n == name && f(v.as_bytes()))
        }
    }

    fn named(name: &str, value: StringMatch) -> AccessTest {
        AccessTest::Header(NamedMatch { name: name.into(), value })
    }

    fn check(what: AccessTest, expect: bool) {
        let headers = Of(&[("x-team", "a"), ("x-team", "b")]);
        let req = Request {
            method: "GET",
            scheme: "https",
            host: "shop.example",
            port: 443,
            written: None,
            path: "/p/1",
            query: "q=1",
            headers: &headers,
        };
        let client =
            Client { ip: "10.1.2.3".parse().unwrap(), identity: Some("spiffe://d/a"), names: &[] };
        let policy = AccessPolicy { name: "p".into(), who: AccessTest::Always, what: what.clone() };
        for (effect, passes) in [(Effect::Allow, expect), (Effect::Deny, !expect)] {
            let access = Access { effect, policies: vec![policy.clone()] };
            let verdict = access_verdict(&access, &req, &client);
            assert_eq!(matches!(verdict, AccessVerdict::Pass(_)), passes, "{what:?} {effect:?}");
        }
    }

    #[test]
    fn each_test_holds_for_what_it_says() {
        let exact = |s: &str| StringMatch::Exact(s.into());
        let range = |base: &str, bits| AddressRange { base: base.parse().unwrap(), bits };
        check(AccessTest::Always, true);
        check(AccessTest::Not(Box::new(AccessTest::Always)), false);
        check(AccessTest::All(vec![]), true);
        check(AccessTest::OneOf(vec![]), false);
        check(named(":method", exact("GET")), true);
        check(named(":authority", exact("shop.example:443")), false);
        check(named("host", exact("shop.example")), true);
        check(named("host", exact("other.example")), false);
        check(named(":path", exact("/p/1")), false);
        check(named(":path", exact("/p/1?q=1")), true);
        check(named("x-team", StringMatch::Present), true);
        check(named("x-team", exact("c")), false);
        check(named("x-none", StringMatch::Present), false);
        check(AccessTest::Path(crate::PathMatch::Exact("/p/1".into())), true);
        check(AccessTest::Port(80), false);
        check(AccessTest::Source(range("10.0.0.0", 8)), true);
        check(AccessTest::Source(range("10.2.0.0", 16)), false);
        check(AccessTest::Source(range("0.0.0.0", 0)), true);
        check(AccessTest::Source(range("::", 0)), false);
        check(AccessTest::Identity(StringMatch::Prefix("spiffe://d/".into())), true);
    }

    /// A listener's own port is nothing that a client said.
    #[test]
    fn an_authority_has_the_port_that_was_written() {
        let regex = StringMatch::Regex(crate::Regex::new(".*:[0-9]+").unwrap());
        let exact = |s: &str| StringMatch::Exact(s.into());
        for (value, written, holds) in [
            (regex.clone(), None, false),
            (regex, Some(8443), true),
            (exact("shop.example:443"), None, false),
            (exact("shop.example:443"), Some(443), true),
            (exact("shop.example"), Some(443), true),
        ] {
            let headers = Of(&[]);
            let req = Request {
                method: "GET",
                scheme: "https",
                host: "shop.example",
                port: 443,
                written,
                path: "/",
                query: "",
                headers: &headers,
            };
            let what = named(":authority", value.clone());
            let policy = AccessPolicy { name: "p".into(), who: AccessTest::Always, what };
            let access = Access { effect: Effect::Allow, policies: vec![policy] };
            let client = Client { ip: "::1".parse().unwrap(), identity: None, names: &[] };
            let verdict = access_verdict(&access, &req, &client);
            let passes = matches!(verdict, AccessVerdict::Pass(_));
            assert_eq!(passes, holds, "{value:?} {written:?}");
        }
    }

    #[test]
    fn any_name_of_a_certificate_from_outside_is_an_identity() {
        let headers = Of(&[]);
        let req = Request {
            method: "GET",
            scheme: "https",
            host: "a",
            port: 443,
            written: None,
            path: "/",
            query: "",
            headers: &headers,
        };
        let names = ["spiffe://x/a".into(), "b.example".into(), "CN=c".into()];
        for (name, taken) in [("spiffe://x/a", true), ("CN=c", true), ("CN=d", false)] {
            let who = AccessTest::Identity(StringMatch::Exact(name.into()));
            let what = AccessTest::Always;
            let policies = vec![AccessPolicy { name: "p".into(), who, what }];
            let access = Access { effect: Effect::Deny, policies };
            let client = Client { ip: "::1".parse().unwrap(), identity: None, names: &names };
            let verdict = access_verdict(&access, &req, &client);
            assert_eq!(matches!(verdict, AccessVerdict::Refuse(_)), taken, "{name}");
        }
    }

    #[test]
    fn a_list_without_policies_allows_nothing_and_denies_nothing() {
        let headers = Of(&[]);
        let req = Request {
            method: "GET",
            scheme: "http",
            host: "a",
            port: 80,
            written: None,
            path: "/",
            query: "",
            headers: &headers,
        };
        let client = Client { ip: "::1".parse().unwrap(), identity: None, names: &[] };
        let of = |effect| Access { effect, policies: vec![] };
        assert!(matches!(
            access_verdict(&of(Effect::Allow), &req, &client),
            AccessVerdict::Refuse(None)
        ));
        assert!(matches!(
            access_verdict(&of(Effect::Deny), &req, &client),
            AccessVerdict::Pass(None)
        ));
    }
}
