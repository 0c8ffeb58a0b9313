// SPDX-License-Identifier: Apache-2.0
//! What files become, and what of them is never passed over in silence.

use super::*;
use crate::proxy::standalone::Source;

fn read(rest: &str) -> Result<Loaded, String> {
    read_whole(&format!("listeners: [{{name: web, bind: '127.0.0.1:0'}}]\n{rest}"))
}

fn read_whole(text: &str) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weft.yaml");
    std::fs::write(&path, text).unwrap();
    Source::File(path).load().map_err(|error| error.to_string())
}

fn refused_for(rest: &str, why: &str) {
    let said = read(rest).unwrap_err();
    assert!(said.contains(why), "{why:?} in\n{said}");
}

#[test]
fn a_file_without_fields_is_told_what_it_begins_with() {
    for text in ["", "~", "[]", "7", "# nothing\n"] {
        let said = read_whole(text).unwrap_err();
        assert!(
            said.contains("it has no fields; a file begins with listeners"),
            "{text:?}: {said}"
        );
    }
}

#[test]
fn a_star_beside_names_takes_what_they_leave() {
    for (hosts, wanted) in [
        ("['*', a.example]", &["*", "a.example"][..]),
        ("['*']", &[]),
        ("[]", &[]),
        ("[a.example]", &["a.example"]),
    ] {
        let rules = "rules: [{answer: {status: 204}}]";
        let loaded = read(&format!("routes: [{{hosts: {hosts}, {rules}}}]")).unwrap();
        let route = loaded.resources.values().find_map(|resource| match resource {
            Resource::Route(route) => Some(route),
            _ => None,
        });
        let weft_model::Parent::Listener { hostnames, .. } = &route.unwrap().parent else {
            panic!("a route of a listener")
        };
        let hostnames: Vec<&str> = hostnames.iter().map(|h| &**h).collect();
        assert_eq!(hostnames, wanted, "{hosts}");
    }
}

#[test]
fn a_backend_says_where_it_is_in_one_address_or_in_several() {
    for endpoints in ["127.0.0.1:9000", "['127.0.0.1:9000']", "[{address: '127.0.0.1:9000'}]"] {
        let loaded = read(&format!("backends: [{{name: up, endpoints: {endpoints}}}]")).unwrap();
        let sets: Vec<usize> = loaded
            .resources
            .values()
            .filter_map(|resource| match resource {
                Resource::Endpoints(set) => {
                    Some((set.port == 9000).then_some(set.endpoints.len())?)
                }
                _ => None,
            })
            .collect();
        assert_eq!(sets, [1], "{endpoints}");
    }
    // A list that is empty is said, an absent one may be a slip.
    assert!(read("backends: [{name: up, endpoints: []}]").is_ok());
    refused_for("backends: [{name: up}]", "backends[0].endpoints: where is it?");
    refused_for("backends: [{name: up, endpoints: 9000}]", "endpoints: expected a list");
    refused_for("backends: [{name: up, endpoints: {address: a}}]", "endpoints: expected a list");
    refused_for("backends: [{name: up, endpoints: nowhere}]", "\"nowhere\" is no address");
    for text in ["1.2.3.4", "1.2.3:80", "a b:80", "api:0", "api:", ":80", "api:70000"] {
        let backend = format!("backends: [{{name: up, endpoints: ['{text}']}}]");
        refused_for(&backend, "and no name with a port");
    }
    let mixed = "backends: [{name: up, endpoints: ['127.0.0.1:1', {address: '127.0.0.1:2'}]}]";
    refused_for(mixed, "endpoints: write all of them as texts");
}

#[test]
fn a_backends_name_is_looked_up_and_its_port_is_the_backends() {
    for endpoints in ["Api.example:9000", "[{address: 'Api.example:9000', weight: 3}]"] {
        let backends = format!("backends: [{{name: up, endpoints: {endpoints}}}]");
        let loaded = read(&format!("{backends}\nroutes: [{{rules: [{{to: up}}]}}]")).unwrap();
        let [set] = loaded.names.as_slice() else { panic!("{endpoints}") };
        let hosts: Vec<&str> = set.hosts().map(|h| &**h).collect();
        assert_eq!(hosts, ["api.example"]);
        let meant = [("api.example".into(), vec!["10.0.0.9".parse().unwrap()])];
        let found = set.endpoints(&meant.into_iter().collect());
        let at: Vec<String> = found.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!((found.port, at), (9000, vec!["10.0.0.9:9000".to_owned()]));
    }
}

#[test]
fn a_listener_for_datagrams_has_no_tls_and_no_header_before_them() {
    let listener = |rest: &str| {
        let bind = "bind: '127.0.0.1:0'";
        format!("listeners: [{{name: d, {bind}, protocol: udp{rest}}}]\n")
    };
    let loaded = read_whole(&listener("")).unwrap();
    let udp = loaded.resources.values().any(|resource| match resource {
        Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) => {
            gateway.sections.iter().all(|s| s.protocol == Protocol::Udp)
        }
        _ => false,
    });
    assert!(udp);
    for (rest, field) in [(", proxy_header: required", "proxy_header"), (", tls: []", "tls")] {
        let said = read_whole(&listener(rest)).unwrap_err();
        assert!(
            said.contains(&format!("listeners[0].{field}: a listener for datagrams")),
            "{said}"
        );
    }
}

#[test]
fn a_listener_passes_tls_on_by_its_names() {
    let file = |protocol: &str, rest: &str| {
        format!(
            "listeners: [{{name: l, bind: '127.0.0.1:0', protocol: {protocol}{rest}}}]\n\
             routes: [{{listeners: [l], hosts: [a.example], rules: [{{to: up}}]}}]\n\
             backends: [{{name: up, endpoints: '127.0.0.1:1'}}]"
        )
    };
    let loaded = read_whole(&file("tls", "")).unwrap();
    let passes = loaded.resources.values().any(|resource| match resource {
        Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) => {
            gateway.sections.iter().all(|s| s.protocol == Protocol::Tls && s.tls.is_none())
        }
        _ => false,
    });
    assert!(passes);
    let said = read_whole(&file("tls", ", tls: []")).unwrap_err();
    assert!(said.contains("listeners[0].tls: protocol tls passes TLS on unopened"), "{said}");
    // Nothing reads a name there.
    for protocol in ["tcp", "udp"] {
        let said = read_whole(&file(protocol, "")).unwrap_err();
        assert!(said.contains("routes[0].hosts: listener \"l\" passes bytes on"), "{said}");
        let every = file(protocol, "").replace("a.example", "'*'");
        assert!(read_whole(&every).is_ok(), "{protocol}");
    }
}

#[test]
fn what_only_requests_have_is_refused_where_bytes_are_passed_on() {
    let file = |protocol: &str, rule: &str| {
        format!(
            "listeners: [{{name: l, bind: '127.0.0.1:0', protocol: {protocol}}}]\n\
             routes: [{{listeners: [l], rules: [{{{rule}}}]}}]\n\
             backends: [{{name: up, endpoints: '127.0.0.1:1'}}]"
        )
    };
    for (rule, field) in [
        ("to: up, path: /a", "path"),
        ("answer: {status: 200}", "answer"),
        ("to: up, retry: 1", "retry"),
        ("to: up, request_headers: {set: {a: b}}", "request_headers"),
        ("to: up, filters: [{body_limit: 1}]", "filters"),
    ] {
        for protocol in ["tcp", "tls", "udp"] {
            let said = read_whole(&file(protocol, rule)).unwrap_err();
            let why = format!("routes[0].rules[0].{field}: listener \"l\" passes bytes on");
            assert!(said.contains(&why), "{said}");
        }
        assert!(read_whole(&file("http", rule)).is_ok(), "{rule}");
    }
    let kept = "to: up, timeouts: {idle_ms: 5}, matches: [{connection: {sources: [], \
                destinations: []}}]";
    assert!(read_whole(&file("tcp", kept)).is_ok());
}

#[test]
fn copies_go_to_backends_by_their_names() {
    let file = |mirror: &str| {
        format!(
            "routes: [{{rules: [{{to: up, mirror: {mirror}}}]}}]\n\
             backends: [{{name: up, endpoints: '127.0.0.1:1'}}, {{name: two, endpoints: 'a:2'}}]"
        )
    };
    let loaded = read(&file("[{to: two, percent: 10}, {to: up}]")).unwrap();
    let route = loaded.resources.values().find_map(|resource| match resource {
        Resource::Route(route) => Some(route),
        _ => None,
    });
    let filters = &route.unwrap().rules[0].filters;
    let shares: Vec<f64> = filters
        .iter()
        .filter_map(|filter| match filter {
            weft_model::Filter::Mirror(mirror) => Some(mirror.share.percent()),
            _ => None,
        })
        .collect();
    assert_eq!(shares, [10.0, 100.0]);
    for (mirror, why) in [
        ("[{to: three}]", "mirror[0].to: no backend has the name \"three\""),
        ("[{percent: 1}]", "mirror[0].to: copies need"),
        ("[{to: two, percent: 101}]", "mirror[0].percent: 101 is more"),
    ] {
        refused_for(&file(mirror), why);
    }
}

#[test]
fn what_cannot_start_or_never_match_is_refused_once_with_its_place() {
    let web = "{name: web, bind: '127.0.0.1:8080'}";
    let said_of = |file: &str| {
        let said = read_whole(file).unwrap_err();
        said.lines().skip(1).map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    for (bind, why) in [
        ("127.0.0.1:8080", "127.0.0.1:8080: listener \"web\" listens there, at 127.0.0.1:8080"),
        ("0.0.0.0:8080", "0.0.0.0:8080: listener \"web\" listens there, at 127.0.0.1:8080"),
        ("127.0.0.1:9901", "127.0.0.1:9901: the admin door listens there, at 127.0.0.1:9901"),
    ] {
        let other = format!("{{name: other, bind: '{bind}'}}");
        let file = format!("admin: 127.0.0.1:9901\nlisteners:\n- {web}\n- {other}\n");
        assert_eq!(said_of(&file), [format!("line 4: listeners[1].bind: {why}")]);
    }
    // Datagrams are others.
    let other = "{name: other, bind: '127.0.0.1:8080', protocol: udp}";
    assert!(read_whole(&format!("listeners: [{web}, {other}]")).is_ok());
    for (kind, one) in [
        ("listener", "listeners: [{name: a, bind: '127.0.0.1:0'}, {name: a, bind: '127.0.0.1:0'}]"),
        ("backend", "backends: [{name: a, endpoints: 'a:1'}, {name: a, endpoints: 'b:2'}]"),
    ] {
        let file =
            if kind == "listener" { one.to_owned() } else { format!("listeners: [{web}]\n{one}") };
        let line = file.lines().count();
        let why = format!("line {line}: {kind}s[1].name: another {kind} has the name \"a\"");
        assert_eq!(said_of(&file), [why]);
    }
    let up = "backends: [{name: up, endpoints: '127.0.0.1:1'}]";
    for (route, why) in [
        ("hosts: ['*.x.*']", "hosts[0]: \"*.x.*\" is no host"),
        ("hosts: [a.example, 'a b']", "hosts[1]: \"a b\" is no host"),
        ("hosts: ['']", "hosts[0]: \"\" is no host"),
        ("hosts: ['a.example:80']", "hosts[0]: \"a.example:80\": a host is named without its port"),
    ] {
        let rules = "rules: [{to: up}]";
        refused_for(&format!("routes: [{{{route}, {rules}}}]\n{up}"), why);
    }
    for (rule, why) in [
        ("retry: {statuses: [503, 99]}", "rules[0].retry.statuses[1]: 99 is no status"),
        ("filters: [{cors: {origins: [7]}}]", "rules[0].filters[0].cors.origins[0]: "),
        (
            "filters: [{mirror: {target: {backend: 'host:no/backend/1'}, share: 1, \
             mark_host: true}}]",
            "rules[0].filters[0].mirror.target: no such backend",
        ),
        ("request_headers: {set: {'bad name': x}}", "request_headers.set: \"bad name\" is no name"),
        (
            "response_headers: {add: {x-a: \"a\\nb\"}}",
            "response_headers.add: \"x-a\" has a value that no header can have",
        ),
        ("timeout: soon", "rules[0].timeout: expected a duration such as"),
    ] {
        refused_for(&format!("routes: [{{rules: [{{to: up, {rule}}}]}}]\n{up}"), why);
    }
    refused_for(
        "backends: [{name: up, endpoints: '127.0.0.1:0'}]",
        "\"127.0.0.1:0\" is no address",
    );
}

#[test]
fn durations_are_written_as_people_write_them() {
    for (said, ms) in [("300ms", 300), ("0.25s", 250), ("2m", 120_000), ("1m30s", 90_000)] {
        let backends = "backends: [{name: up, endpoints: '127.0.0.1:1'}]";
        let loaded =
            read(&format!("routes: [{{rules: [{{to: up, timeout: {said}}}]}}]\n{backends}"));
        let loaded = loaded.unwrap();
        let route = loaded.resources.values().find_map(|resource| match resource {
            Resource::Route(route) => Some(route),
            _ => None,
        });
        assert_eq!(route.unwrap().rules[0].timeouts.request_ms, Some(ms), "{said}");
    }
}

#[test]
fn what_is_said_is_known_by_its_field() {
    use weft_model::value;
    let rule = "{to: up, timeout: 2s, retry: 1, response_headers: {set: {a: b}}, \
                filters: [{cors: {origins: []}}, \
                {rate_limit: {name: one, requests: 1, per_ms: 9}}, {body_limit: 7}, \
                {rate_limit: {name: a few, requests: 3, per_ms: 9}}]}";
    let backend = "{name: up, endpoints: '127.0.0.1:1', connect_timeout: 1s, policy: {lb: random, \
                   limits: {requests_max: 7}, protection: {timeouts: {idle_ms: 5}, rate_limits: [\
                   {name: one, requests: 1, per_ms: 9}]}}}";
    let file = format!("routes: [{{name: r, rules: [{rule}]}}]\nbackends: [{backend}]");
    let loaded = read(&file).unwrap();
    let (mut route, mut known) = (None, None);
    for resource in loaded.resources.values() {
        match resource {
            Resource::Route(found) => route = Some(found.rules[0].sources.clone()),
            Resource::Backend(found) => known = Some(found.policy.sources.clone()),
            _ => {}
        }
    }
    let (route, known) = (route.unwrap(), known.unwrap());
    for (sources, what, wanted) in [
        (&route, value::REQUEST_TIMEOUT, Some("route file/r rules[0].timeout")),
        (&route, value::RETRIES, Some("route file/r rules[0].retry")),
        (&route, value::RESPONSE_HEADERS, Some("route file/r rules[0].response_headers")),
        (&route, value::CORS, Some("route file/r rules[0].filters[0].cors")),
        (&route, value::REQUEST_HEADERS, None),
        (&route, "rate limit one", Some("route file/r rules[0].filters[1].rate_limit")),
        (&route, value::BODY, Some("route file/r rules[0].filters[2].body_limit")),
        (&route, "rate limit a few", Some("route file/r rules[0].filters[3].rate_limit")),
        (&known, value::IDLE_TIMEOUT, Some("backend file/up policy.protection.timeouts.idle_ms")),
        (&known, "rate limit one", Some("backend file/up policy.protection.rate_limits[0]")),
        (&known, value::CONNECT_TIMEOUT, Some("backend file/up connect_timeout")),
        (&known, value::BALANCING, Some("backend file/up policy.lb")),
        (&known, value::IN_FLIGHT, Some("backend file/up policy.limits.requests_max")),
        (&known, value::CONNECTIONS, None),
    ] {
        let by = sources.of(what).map(|by| by.to_string());
        assert_eq!(by.as_deref(), wanted, "{what}");
    }
}

#[test]
fn half_of_a_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("half.pem");
    std::fs::write(&pem, "pem").unwrap();
    // Both are there, and no pair: the part that is wrong is named, with its line.
    let pair = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let path = |what: &str| folder.path().join(format!("{name}.{what}"));
        let certificate = params.self_signed(&key).unwrap().pem();
        std::fs::write(path("pem"), certificate).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        (path("pem").display().to_string(), path("key").display().to_string())
    };
    let (one, other, none) = (pair("one"), pair("other"), pem.display().to_string());
    for (certificate, key, why) in [
        (&one.0, &other.1, "line 6: listeners[0].tls[0].key: the private key is not that of"),
        (&one.0, &none, "line 6: listeners[0].tls[0].key: the private key cannot be read"),
        (&none, &one.1, "line 5: listeners[0].tls[0].certificate: "),
    ] {
        let file = format!(
            "listeners:\n- name: web\n  bind: 127.0.0.1:0\n  tls:\n  - certificate: \
             {certificate}\n    key: {key}\n"
        );
        let said = read_whole(&file).unwrap_err();
        assert!(said.contains(why) && !said.contains("Mismatch"), "{why:?} in\n{said}");
    }
    for half in ["certificate", "key"] {
        let tls = format!("tls: {{anyone: true, {half}: {}}}", pem.display());
        let backend = format!("backends: [{{name: up, endpoints: '127.0.0.1:1', {tls}}}]");
        refused_for(&backend, "tls.certificate: a certificate and its key are two PEM files");
    }
}

#[test]
fn memory_is_said_as_a_number_of_bytes_or_as_kubernetes_says_it() {
    for (said, wanted) in [("128Mi", 128 << 20), ("'1Gi'", 1 << 30), ("4096", 4096)] {
        assert_eq!(read(&format!("memory: {said}")).unwrap().memory, Some(wanted), "{said}");
    }
    let off = read("access_log: off").unwrap();
    assert_eq!((off.memory, off.log.map(|log| log.what)), (None, Some(LogWhat::Nothing)));
    for said in ["much", "0", "-1", "[1]"] {
        refused_for(&format!("memory: {said}"), "is no number of bytes such as 128Mi");
    }
}
