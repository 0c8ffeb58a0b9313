// SPDX-License-Identifier: Apache-2.0
//! Bodies as real clients send them.

use serde_json::json;

use super::*;

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn refused(result: Result<impl std::fmt::Debug, Refusal>) -> String {
    result.unwrap_err().text
}

#[test]
fn python_consuls_registration_is_understood() {
    let body = map(json!({
        "name": "foo", "id": "foo-1", "address": "10.0.0.1", "port": 8080, "tags": ["a"],
        "check": {"tcp": "127.0.0.1:8080", "interval": "10s", "timeout": "2s",
                  "DeregisterCriticalServiceAfter": "90m"},
        "enabletagoverride": true,
    }));
    let service = service(&body, "", "Name", true).unwrap();
    assert_eq!((&*service.id, &*service.service, service.port), ("foo-1", "foo", 8080));
    assert!(service.enable_tag_override && service.agent);
    let checks = service_checks(&body, &service).unwrap();
    let definition = checks[0].typed();
    assert_eq!((&*checks[0].id, &*checks[0].name), ("service:foo-1", "Service 'foo' check"));
    assert_eq!(definition.probe, Probe::tcp("127.0.0.1:8080"));
    assert_eq!((definition.interval_ms, definition.timeout_ms), (10_000, 2_000));
    assert_eq!(definition.deregister_after_ms, 5_400_000);
    assert_eq!(checks[0].initial, Status::Critical);
}

#[test]
fn how_a_server_is_verified_is_read_for_every_kind_of_check() {
    for (kind, tls) in [
        ("HTTP", "Method"),
        ("TCP", "TCPUseTLS"),
        ("GRPC", "GRPCUseTLS"),
        ("H2PING", "H2PingUseTLS"),
    ] {
        let at = if kind == "HTTP" { "https://h:1" } else { "h:1" };
        let on = if kind == "HTTP" { json!("GET") } else { json!(true) };
        let body = map(json!({"Name": "c", kind: at, tls: on, "Interval": "1s",
            "TLSSkipVerify": true, "TLSServerName": "shop.example"}));
        let probe = serde_json::to_value(check(&body, true).unwrap().typed().probe).unwrap();
        assert_eq!(probe["tls_skip_verify"], true, "{kind}");
        assert_eq!(probe["tls_server_name"], "shop.example", "{kind}");
    }
}

#[test]
fn several_checks_are_numbered_in_order() {
    let body = map(json!({"Name": "w", "Check": {}, "Checks": [
        {"TTL": "10s"}, {"HTTP": "http://127.0.0.1/", "Interval": 10}, {"CheckID": "mine", "GRPC": "h:1/s", "Interval": "1s"}
    ]}));
    let service = service(&body, "", "Name", true).unwrap();
    let checks = service_checks(&body, &service).unwrap();
    let ids: Vec<&str> = checks.iter().map(|c| &*c.id).collect();
    assert_eq!(ids, ["service:w:1", "service:w:2", "mine"]);
}

#[test]
fn reg_59_a_script_check_is_never_taken() {
    for body in [
        json!({"Args": ["sh", "-c", "id"], "Interval": "1s"}),
        json!({"script": "id", "interval": "1s"}),
        json!({"ScriptArgs": ["id"], "Interval": "1s"}),
        json!({"docker_container_id": "x", "shell": "sh", "interval": "1s"}),
    ] {
        assert_eq!(refused(check(&map(body), true)), SCRIPTS);
    }
}

#[test]
fn wrong_fields_are_named() {
    let of = |body: Value| refused(service(&map(body), "", "Name", true));
    assert_eq!(of(json!({"ID": "x"})), "Missing service name");
    assert!(of(json!({"Name": "x", "Port": 70_000})).contains("Port: expected a whole number"));
    assert!(of(json!({"Name": "x", "Port": "80"})).contains("Port: expected a whole number"));
    assert!(of(json!({"Name": "x", "Meta": {"a": 1}})).contains("Meta: expected a map of strings"));
    assert!(of(json!({"Name": "x", "Tags": "a"})).contains("Tags: expected a list"));
    assert!(of(json!({"Name": "x", "Weights": {"Passing": 0}})).contains("Invalid weights"));
    assert!(of(json!({"Name": "x", "Address": "0.0.0.0"})).contains("Invalid service address"));
    let of = |body: Value| refused(check(&map(body), true));
    assert!(of(json!({"TCP": "nohost", "Interval": "1s"})).contains("not host:port"));
    assert!(
        of(json!({"HTTP": "ftp://x", "Interval": "1s"})).contains("not an http:// or https://")
    );
    let header = json!({"HTTP": "http://h/", "Interval": "1s", "Header": {"x": "y"}});
    assert!(of(header).contains("Header.x: expected a list of strings"));
    let never = json!({"TTL": "1s", "FailuresBeforeWarning": 5, "FailuresBeforeCritical": 3});
    assert!(of(never).contains("can't be higher than FailuresBeforeCritical"));
    assert!(of(json!({"TCP": "h:1"})).contains("Interval must be > 0"));
    assert!(of(json!({})).contains("TTL must be > 0"));
    assert_eq!(of(json!({"TTL": "1s", "Status": "ok"})), "Invalid check status: 'ok'");
}

#[test]
fn a_proxy_that_could_listen_nowhere_is_refused() {
    let read = |upstreams: Value, kind: &str| {
        let proxy = json!({"DestinationServiceName": "web", "Upstreams": upstreams});
        let body = map(json!({"Name": "x", "Port": 1, "Kind": kind, "Proxy": proxy}));
        service(&body, "", "Name", true).map(|_| ()).map_err(|refusal| refusal.text)
    };
    let two = |a: Value, b: Value| {
        let mut both = [a, b];
        for one in &mut both {
            one["destination_name"] = json!("db");
        }
        json!(both)
    };
    let port = |port: u16| json!({"local_bind_port": port});
    for (upstreams, why) in [
        (json!([{"DestinationName": "db"}]), "port or local socket path must be defined"),
        (json!([{"DestinationName": "*", "LocalBindPort": 1}]), "cannot be a wildcard"),
        (json!([{"LocalBindPort": 1}]), "name cannot be empty"),
        (json!([{"DestinationType": "x"}]), "unknown upstream destination type"),
        (
            json!([{"DestinationName": "db", "LocalBindPort": 1, "LocalBindSocketPath": "/s"}]),
            "only one of upstream local bind port",
        ),
        (two(port(1), port(1)), "\"127.0.0.1:1\" is specified twice"),
    ] {
        let said = read(upstreams.clone(), "connect-proxy");
        assert!(said.clone().is_err_and(|text| text.contains(why)), "{upstreams}: {said:?}");
    }
    let elsewhere = json!({"local_bind_port": 1, "local_bind_address": "127.0.0.2"});
    for fine in [two(port(1), elsewhere), two(port(1), port(2)), json!([]), Value::Null] {
        assert_eq!(read(fine, "connect-proxy"), Ok(()));
    }
}

#[test]
fn reg_56_any_value_in_any_field_is_taken_or_refused_with_a_sentence() {
    use weft_base::rng::Rng;
    const NAMES: [&str; 24] = [
        "Name",
        "ID",
        "Tags",
        "Meta",
        "Port",
        "Address",
        "TaggedAddresses",
        "Weights",
        "Check",
        "Checks",
        "Connect",
        "SidecarService",
        "Proxy",
        "TTL",
        "HTTP",
        "TCP",
        "GRPC",
        "Header",
        "Interval",
        "Timeout",
        "Status",
        "DeregisterCriticalServiceAfter",
        "Kind",
        "Passing",
    ];
    fn value(rng: &mut Rng, depth: u32) -> Value {
        match rng.below(if depth > 3 { 7 } else { 9 }) {
            0 => Value::Null,
            1 => json!(rng.below(2) == 0),
            2 => json!(rng.next_u64()),
            3 => json!(-1.5e300),
            4 => json!("10s"),
            5 => json!("127.0.0.1:80"),
            6 => json!("\u{0}\u{1F600}/%"),
            7 => (0..rng.below(4)).map(|_| value(rng, depth + 1)).collect(),
            _ => Value::Object(
                (0..rng.below(8))
                    .map(|_| {
                        let name = NAMES[usize::try_from(rng.below(24)).unwrap()];
                        (name.to_owned(), value(rng, depth + 1))
                    })
                    .collect(),
            ),
        }
    }
    for (field, found) in [("Name", "an object"), ("ID", "an object"), ("Address", "an object")] {
        let mut body = Map::from_iter([("Name".to_owned(), json!("x"))]);
        body.insert(field.to_owned(), json!({"a": 1}));
        let Err(why) = service(&body, "", "Name", true) else { panic!("{field}: it is taken") };
        let wanted = format!("Request decode failed: {field}: expected a string, found {found}");
        assert_eq!(why.text, wanted);
    }
    let mut rng = Rng::seeded(5);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..50_000 {
        let Value::Object(mut body) = value(&mut rng, 0) else { continue };
        body.insert("Name".into(), json!("x"));
        let read = service(&body, "", "Name", true).and_then(|service| {
            crate::consul::sidecar::Sidecar::read(&body, &service)?;
            service_checks(&body, &service)
        });
        for read in [read.map(|_| ()), check(&body, true).map(|_| ())] {
            match read {
                Ok(()) => taken += 1,
                Err(why) => {
                    let status = why.status;
                    let is_known = status.is_client_error() || status == 501;
                    assert!(is_known && why.text.len() > 10, "{why:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(taken > 10 && refused > 1000, "{taken} {refused}");
}

#[test]
fn gos_catalog_client_sends_zero_weights_for_none() {
    let body = map(json!({"ID": "db", "Service": "db", "Weights": {"Passing": 0, "Warning": 0}}));
    let read = service(&body, "Service.", "Service", false).unwrap();
    assert_eq!(read.weights, Weights::default());
}
