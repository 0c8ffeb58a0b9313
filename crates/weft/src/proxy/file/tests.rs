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
fn half_of_a_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("half.pem");
    std::fs::write(&pem, "pem").unwrap();
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
