// SPDX-License-Identifier: Apache-2.0
//! The admin door: every path of its own list, what changes only by POST, what nobody's browser
//! may do, and what each answer's headers say.

use http::{Method, Request};
use http_body_util::Full;
use serde_json::Value;
use weft_model::{
    BackendPolicy, Certificate, Listener, ListenerKind, Outlier, Protocol, Resource, Section,
    ServerTls, UpstreamTls,
};

use super::bed::*;

async fn ask(bed: &Bed, method: Method, path: &str) -> Got {
    let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
    send(bed.proxy.addresses().admin, request.body(Full::default()).unwrap()).await
}

async fn read(bed: &Bed, path: &str) -> Got {
    ask(bed, Method::GET, path).await
}

async fn read_json(bed: &Bed, path: &str) -> Value {
    let got = read(bed, path).await;
    assert_eq!(got.header("content-type"), "application/json", "{path}");
    serde_json::from_str(&got.body).unwrap()
}

async fn used() -> Bed {
    let user = Server::named("user").await;
    let bed = Bed::sidecar(http_service("user", &[user.address])).await;
    assert_eq!(bed.get("http://user/").await.status, 200);
    bed
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_45_65_every_path_says_its_type_and_changes_by_post_only() {
    let bed = used().await;
    let help = read(&bed, "/help").await.body;
    let mut seen = 0;
    for line in help.lines() {
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let other = if method == "GET" { Method::POST } else { Method::GET };
        let refused = ask(&bed, other, path).await;
        assert_eq!((refused.status, refused.header("allow")), (405, method), "{path}");
        for got in [refused, ask(&bed, Method::DELETE, path).await, read(&bed, path).await] {
            assert_eq!(got.header("x-content-type-options"), "nosniff", "{path}");
            assert_eq!(got.header("cache-control"), "no-store", "{path}");
            let kind = got.header("content-type").to_owned();
            assert!(!kind.is_empty() && !kind.contains("html"), "{path}: {kind}");
        }
        if method == "GET" {
            // One needs a question.
            let bare = if path == "/explain" { 400 } else { 200 };
            assert_eq!(read(&bed, path).await.status, bare, "{path}");
        }
        seen += 1;
    }
    assert_eq!(seen, 21, "{help}");
    assert_eq!(read(&bed, "/").await.body, help);
    let none = read(&bed, "/%3Cscript%3E").await;
    assert_eq!((none.status, none.body.contains("script")), (404, false));
    // Reads and changes of the admin door are not there at the other doors.
    let metrics = bed.proxy.addresses().metrics;
    for path in ["/config_dump", "/quitquitquit", "/stats", "/clusters"] {
        assert_eq!(send(metrics, get(path, "127.0.0.1")).await.status, 404, "{path}");
    }
}

/// What a browser must not take for a page.
async fn is_no_page(path: &str, kind: &str) {
    let bed = used().await;
    let got = read(&bed, path).await;
    assert_eq!(got.header("content-type"), kind);
    let sniffed = got.header("x-content-type-options");
    assert_eq!(sniffed, "nosniff", "a browser may take it for a page");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_45_names_of_services_in_json_are_no_page() {
    is_no_page("/clusters?format=json", "application/json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_45_names_of_services_in_text_are_no_page() {
    is_no_page("/clusters", "text/plain; charset=utf-8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_45_names_of_counters_in_json_are_no_page() {
    is_no_page("/stats?format=json", "application/json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_45_a_link_changes_nothing() {
    let bed = used().await;
    assert_eq!(read(&bed, "/healthcheck/fail").await.status, 405, "a GET changes something");
    assert_eq!(read(&bed, "/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_45_65_no_web_page_reaches_the_admin_door() {
    let bed = used().await;
    let admin = bed.proxy.addresses().admin;
    for (name, value) in [("origin", "http://evil.example"), ("origin", "null")] {
        for method in [Method::GET, Method::POST] {
            let request = Request::builder().method(method).uri("/healthcheck/fail");
            let request = request.header("host", "127.0.0.1").header(name, value);
            let got = send(admin, request.body(Full::default()).unwrap()).await;
            assert_eq!(got.status, 403, "{name}: {value}");
        }
    }
    for host in ["evil.example", "evil.example:15000", "127.0.0.1.evil.example"] {
        assert_eq!(send(admin, get("/stats", host)).await.status, 403, "{host}");
    }
    for host in ["127.0.0.1", "localhost:15000", "[::1]:15000"] {
        assert_eq!(send(admin, get("/stats", host)).await.status, 200, "{host}");
    }
    assert_eq!(read(&bed, "/ready").await.body, "LIVE\n");
}

/// What fails without a check of the admin door.
#[tokio::test(flavor = "multi_thread")]
async fn reg_58_a_clients_check_asks_a_proxy_for_its_health_only() {
    let bed = used().await;
    let addresses = bed.proxy.addresses();
    let check = async |door, method: Method, path: &str| {
        let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
        let request = request.header("X-Weft-Check", "1").body(Full::default()).unwrap();
        send(door, request).await
    };
    for path in ["/", "/help", "/stats", "/config_dump", "/certs", "/clusters", "/ready/"] {
        assert_eq!(check(addresses.admin, Method::GET, path).await.status, 403, "{path}");
    }
    for path in ["/ready", "/healthz/ready", "/metrics", "/stats/prometheus?usedonly"] {
        assert_eq!(check(addresses.admin, Method::GET, path).await.status, 200, "{path}");
    }
    for path in ["/healthcheck/fail", "/reset_counters", "/drain_listeners", "/quitquitquit"] {
        let got = check(addresses.admin, Method::POST, path).await;
        assert_eq!(got.status, 403, "{path}");
        assert!(got.body.contains("for its health only"), "{}", got.body);
    }
    assert_eq!(check(addresses.metrics, Method::GET, "/config_dump").await.status, 403);
    assert_eq!(check(addresses.ready, Method::GET, "/healthz/ready").await.status, 200);
    assert_eq!(read(&bed, "/ready").await.body, "LIVE\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_are_narrowed_and_counted_anew() {
    let bed = used().await;
    let text = read(&bed, "/stats").await.body;
    let cluster = "cluster.outbound|80||user.shop.svc.cluster.local";
    assert!(text.contains(&format!("{cluster}.membership_healthy: 1\n")), "{text}");
    assert!(text.contains("weft_downstream_connections: 1\n"), "{text}");
    let narrowed = read(&bed, "/stats?filter=membership_.*&usedonly").await.body;
    assert_eq!(narrowed.lines().count(), 2, "{narrowed}");
    let json = read_json(&bed, "/stats?format=json&filter=%5Eweft_config_generation%24").await;
    assert_eq!(json["stats"][0]["value"], 1, "{json}");
    let metrics = read(&bed, "/stats?format=prometheus&filter=istio_requests").await.body;
    assert!(metrics.lines().all(|l| l.contains("istio_requests")), "{metrics}");
    assert!(metrics.contains("istio_requests_total{"), "{metrics}");
    assert_eq!(read(&bed, "/stats?filter=(").await.status, 400);
    assert_eq!(read(&bed, "/stats?format=html").await.status, 400);
    assert_eq!(ask(&bed, Method::POST, "/reset_counters").await.status, 200);
    let text = read(&bed, "/stats").await.body;
    assert!(text.contains("weft_downstream_connections: 0\n"), "{text}");
    assert!(text.contains(&format!("{cluster}.membership_healthy: 1\n")), "{text}");
    assert!(bed.metrics().await.contains("weft_downstream_connections_total 1\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejection_is_seen_in_every_place_for_as_long_as_it_lasts() {
    let good = Server::named("good").await;
    let bad = Server::http(|_, _| async { super::bed::text(500, "bad") }).await;
    let both = vec![endpoint("good", good.address), endpoint("bad", bad.address)];
    let of = |name: &str, base_ejection_ms| {
        let outlier = Outlier { consecutive_failures: 3, base_ejection_ms, ..Outlier::default() };
        let policy = BackendPolicy { outlier, ..BackendPolicy::default() };
        service(name, Protocol::Http1, policy, both.clone())
    };
    // One of them is over sooner than anybody could look.
    let bed = Bed::sidecar([of("user", 600_000), of("brief", 50)].concat()).await;
    let (bed, cluster) = (&bed, |name: &str| format!("outbound|80||{name}.shop.svc.cluster.local"));
    let places = |name: &'static str| async move {
        let stats = read(bed, "/stats?filter=membership_healthy|ejections_").await.body;
        let json = read_json(bed, "/clusters?format=json").await;
        let all = json["cluster_statuses"].as_array().unwrap();
        let own = all.iter().find(|c| c["name"] == *cluster(name)).unwrap();
        let hosts = own["host_statuses"].as_array().unwrap().iter();
        let out = hosts.filter(|h| h["health_status"]["failed_outlier_check"] == true).count();
        let text = read(bed, "/clusters").await.body;
        let flagged = |l: &str| l.contains(name) && l.contains("flags::/failed_outlier_check");
        (stats, out, text.lines().any(flagged), bed.metrics().await)
    };
    let told = |text: &str, name: &str, line: &str| {
        let line = format!("cluster.{}.{line}\n", cluster(name));
        assert!(text.contains(&line), "{line}: {text}");
    };
    let (stats, out, flagged, metrics) = places("user").await;
    told(&stats, "user", "membership_healthy: 2");
    assert!((out, flagged) == (0, false) && !metrics.contains("weft_backend_ejected{"));
    for name in ["user", "brief"] {
        let enforced =
            format!("cluster.{}.outlier_detection.ejections_enforced_total: 0\n", cluster(name));
        wait_until("the ejection", || async {
            bed.get(&format!("http://{name}/")).await;
            !places(name).await.0.contains(&enforced)
        })
        .await;
    }
    let (stats, out, flagged, metrics) = places("user").await;
    assert!((out, flagged) == (1, true), "{stats}");
    told(&stats, "user", "membership_healthy: 1");
    told(&stats, "user", "outlier_detection.ejections_active: 1");
    told(&stats, "user", "outlier_detection.ejections_enforced_total: 1");
    for line in ["weft_backend_ejected", "weft_backend_ejections_total"] {
        let line = format!("{line}{{backend=\"{}\"}} 1\n", cluster("user"));
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    wait_until("it is over", || async { places("brief").await.1 == 0 }).await;
    let (stats, _, flagged, metrics) = places("brief").await;
    told(&stats, "brief", "membership_healthy: 2");
    told(&stats, "brief", "outlier_detection.ejections_active: 0");
    assert!(!flagged, "{stats}");
    let line = format!("weft_backend_ejected{{backend=\"{}\"}} 0\n", cluster("brief"));
    assert!(metrics.contains(&line), "{line}: {metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_to_fail_is_not_ready_until_it_is_to_be_well() {
    let bed = used().await;
    assert_eq!(ask(&bed, Method::POST, "/healthcheck/fail").await.body, "OK\n");
    let ready = bed.proxy.addresses().ready;
    let got = read(&bed, "/ready").await;
    assert_eq!((got.status, got.body.as_str()), (503, "DRAINING\n"));
    assert_eq!(send(ready, get("/healthz/ready", "any.example")).await.status, 503);
    assert_eq!(read_json(&bed, "/server_info").await["state"], "DRAINING");
    // It still serves: whoever routes to it is to stop first.
    assert_eq!(bed.get("http://user/").await.status, 200);
    assert_eq!(ask(&bed, Method::POST, "/healthcheck/ok").await.body, "OK\n");
    assert_eq!(read(&bed, "/ready").await.body, "LIVE\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_certificates_and_memory_are_shown() {
    let bed = used().await;
    let doors = read_json(&bed, "/listeners?format=json").await;
    let ports: Vec<u64> = doors["listener_statuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["local_address"]["socket_address"]["port_value"].as_u64().unwrap())
        .collect();
    assert!(ports.contains(&bed.outbound().port().into()), "{doors}");
    let memory = read_json(&bed, "/memory").await;
    let bytes: u64 = memory["total_physical_bytes"].as_str().unwrap().parse().unwrap();
    assert!(bytes > 1_000_000, "{memory}");
    assert_eq!(read_json(&bed, "/certs").await["certificates"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_listeners_are_told_before_they_run_out() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["shop.example".to_owned()]).unwrap();
    params.serial_number = Some(rcgen::SerialNumber::from(vec![0x0a, 0xff]));
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let made = params.self_signed(&key).unwrap();
    let from = Some("/etc/tls/shop.pem".into());
    let tls = ServerTls { from, ..ServerTls::new(made.pem(), key.serialize_pem()) };
    let (name, mut listener) = gateway(Some("shop.example"));
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.sections[0].tls = Some(tls);
        let broken = ServerTls::new("none", "none");
        g.sections.push(Section {
            name: "broken".into(),
            hostname: Some("broken.example".into()),
            tls: Some(broken),
            ..g.sections[0].clone()
        });
    }
    let bed = Bed::gateway(vec![(name, listener)]).await;
    let shown = read_json(&bed, "/certs").await;
    let [one] = shown["certificates"].as_array().unwrap().as_slice() else { panic!("{shown}") };
    assert_eq!(one["weft"]["section"], "http");
    let leaf = &one["cert_chain"][0];
    assert_eq!(
        *leaf,
        serde_json::json!({
            "path": "/etc/tls/shop.pem", "serial_number": "0aff", "days_until_expiration": "0",
            "subject_alt_names": [{"dns": "shop.example"}],
            "valid_from": "2020-01-01T00:00:00Z", "expiration_time": "2021-01-01T00:00:00Z",
        })
    );
    let sections = shown["weft"]["gateway_sections"].as_array().unwrap();
    let in_use: Vec<_> = sections.iter().map(|s| s["in_use"].as_bool().unwrap()).collect();
    assert_eq!(in_use, [true, false]);
    // It has run out, which is below 0.
    let metrics = read(&bed, "/metrics").await.body;
    let left = metrics.lines().find(|l| l.starts_with("weft_certificate_left_seconds{")).unwrap();
    assert!(left.contains("section=\"http\"") && left.contains("} -"), "{left}");
    let stats = read(&bed, "/stats").await.body;
    assert!(stats.contains("server.days_until_first_cert_expiring: 0\n"), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_shown_in_the_dump() {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let chain_pem = cert.self_signed(&key).unwrap().pem();
    let certificate =
        Certificate { chain_pem: chain_pem.into(), key_pem: key.serialize_pem().into() };
    let tls = UpstreamTls { certificate: Some(certificate), ..UpstreamTls::default() };
    let policy = BackendPolicy { tls: Some(Box::new(tls)), ..BackendPolicy::default() };
    let user = Server::named("user").await;
    let endpoints = vec![endpoint("user-0", user.address)];
    let bed = Bed::sidecar(service("user", Protocol::Http1, policy, endpoints)).await;
    let dump = read(&bed, "/config_dump").await.body;
    assert!(dump.contains("BEGIN CERTIFICATE") && dump.contains("(not shown)"), "{dump}");
    assert!(!dump.contains("PRIVATE KEY"), "{dump}");
    let key = key.serialize_pem().lines().nth(1).unwrap().to_owned();
    assert!(!dump.contains(&key), "{dump}");
}
