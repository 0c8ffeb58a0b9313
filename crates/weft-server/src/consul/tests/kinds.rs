// SPDX-License-Identifier: Apache-2.0
//! Kinds of checks at the door, the authority for Consul's clients, and its gateways' services.

use weft_identity::{Authority, TrustDomain};

use super::records::guarded;
use super::*;

#[tokio::test]
async fn every_kind_of_check_is_taken_and_shown_as_consul_shows_it() {
    let rig = rig().await;
    for (kind, body, shown) in [
        ("udp", json!({"UDP": "127.0.0.1:53", "Interval": "10s"}), json!({"UDP": "127.0.0.1:53"})),
        (
            "h2ping",
            json!({"h2ping": "127.0.0.1:443", "interval": "10s"}),
            json!({"H2PING": "127.0.0.1:443", "H2PingUseTLS": true}),
        ),
        (
            "h2ping",
            json!({"H2PING": "127.0.0.1:80", "H2PingUseTLS": false, "Interval": "1s"}),
            json!({"H2PING": "127.0.0.1:80", "H2PingUseTLS": false}),
        ),
        ("alias", json!({"AliasService": "web"}), json!({"AliasNode": "", "AliasService": "web"})),
        ("alias", json!({"alias_node": "n1"}), json!({"AliasNode": "n1", "AliasService": ""})),
    ] {
        let mut body = body;
        body["Name"] = json!("c");
        rig.put("/v1/agent/check/register", body.clone()).await;
        let checks = rig.get("/v1/agent/checks").await.json();
        assert_eq!(checks["c"]["Type"], kind, "{body}");
        // What nobody here runs is shown with what it asks, for whoever does.
        let check = json!({"CheckID": "c", "Name": "c", "Definition": body});
        let outside = json!({"Node": "n2", "Address": "10.0.0.2", "Check": check});
        rig.put("/v1/catalog/register", outside).await;
        let all = rig.get("/v1/health/node/n2").await.json();
        let own = all.as_array().unwrap().iter().find(|c| c["CheckID"] == "c").unwrap();
        for (name, value) in shown.as_object().unwrap() {
            assert_eq!(&own["Definition"][name], value, "{own}");
        }
    }
    // All of what consul-esm and its like act by.
    let definition = json!({"HTTP": "https://a/", "Method": "POST", "Header": {"x": ["1"]},
        "TLSSkipVerify": true, "Interval": "10s", "Timeout": "2s",
        "DeregisterCriticalServiceAfter": "1h0m0s"});
    let check = json!({"CheckID": "esm", "Name": "esm", "Definition": definition});
    let outside = json!({"Node": "n3", "Address": "10.0.0.3", "Check": check});
    rig.put("/v1/catalog/register", outside).await;
    let all = rig.get("/v1/health/node/n3").await.json();
    assert_eq!(all[0]["Definition"], definition);
    for (body, why) in [
        (json!({"UDP": "nowhere", "Interval": "1s"}), "UDP: \"nowhere\" is not host:port"),
        (json!({"UDP": "127.0.0.1:53"}), "Interval must be > 0"),
        (json!({"H2PING": "x", "Interval": "1s"}), "H2PING: \"x\" is not host:port"),
        (json!({"OSService": "sshd", "Interval": "1s"}), "which knows no service manager"),
        (json!({"WeftProcess": "1h"}), "WeftProcess: expected 500ms to 1m"),
    ] {
        let mut body = body;
        body["Name"] = json!("bad");
        let answer = rig.ask("PUT", "/v1/agent/check/register", &body.to_string()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text.contains(why), "{body}: {}", answer.text);
    }
}

#[tokio::test]
async fn an_alias_needs_the_right_to_see_what_it_names() {
    let rig = guarded(false).await;
    let db = json!({"Name": "db"}).to_string();
    let done = rig.as_token(super::records::ROOT, "PUT", "/v1/agent/service/register", &db).await;
    assert_eq!(done.status, 200, "{}", done.text);
    let rules = r#"service "web" { policy = "write" } node "n1" { policy = "write" }"#;
    let mine = rig.token(rules).await;
    let seeing = rig.token(&format!("{rules} service \"db\" {{ policy = \"read\" }}")).await;
    let alias = json!({"Name": "a", "AliasService": "db"}).to_string();
    let put = async |token: &str| {
        rig.as_token(token, "PUT", "/v1/agent/check/register", &alias).await.status
    };
    assert_eq!(put(&mine).await, 403);
    assert_eq!(put(&seeing).await, 200);
}

#[tokio::test]
async fn output_is_kept_as_far_as_its_check_says() {
    let rig = rig().await;
    let body = json!({"Name": "t", "TTL": "60s", "OutputMaxSize": 10});
    rig.put("/v1/agent/check/register", body).await;
    let long = json!({"Status": "passing", "Output": "x".repeat(100)});
    rig.put("/v1/agent/check/update/t", long).await;
    let output = rig.get("/v1/agent/checks").await.json()["t"]["Output"].clone();
    assert_eq!(output, "x".repeat(10));
}

async fn with_ca() -> (Rig, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let domain = TrustDomain::new("0190a6c8.consul").unwrap();
    let authority = Authority::open(folder.path(), Some(&domain), &Clock::system()).unwrap();
    let ca = Some(Arc::new(Ca::new(authority)));
    (rig_with(Access { ca, ..Access::default() }).await, folder)
}

#[tokio::test]
async fn consuls_clients_get_roots_and_leaves_of_an_authority_of_their_own() {
    let (rig, _folder) = with_ca().await;
    let roots = rig.get("/v1/agent/connect/ca/roots").await.json();
    assert_eq!(roots["TrustDomain"], "0190a6c8.consul");
    let root = &roots["Roots"][0];
    assert_eq!((&root["ID"], &root["Active"]), (&roots["ActiveRootID"], &json!(true)));
    assert!(root["SerialNumber"].as_u64().is_some(), "{root}");
    let pem = rig.get("/v1/connect/ca/roots?pem=true").await;
    assert_eq!(pem.headers["content-type"], "application/pem-certificate-chain");
    assert_eq!(pem.text, root["RootCert"].as_str().unwrap());

    let first = rig.get("/v1/agent/connect/ca/leaf/web").await;
    let leaf = first.json();
    assert_eq!(leaf["Service"], "web");
    assert_eq!(leaf["ServiceURI"], "spiffe://0190a6c8.consul/ns/default/dc/dc1/svc/web");
    assert!(leaf["CertPEM"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(leaf["PrivateKeyPEM"].as_str().unwrap().contains("PRIVATE KEY"));
    // The same one until it is due; who waits is answered with it at the end of the wait.
    let again = rig.get("/v1/agent/connect/ca/leaf/web").await;
    assert_eq!((again.text.as_str(), again.index()), (first.text.as_str(), first.index()));
    let path = format!("/v1/agent/connect/ca/leaf/web?index={}&wait=20ms", first.index());
    assert_eq!(rig.get(&path).await.text, first.text);
    let other = rig.get("/v1/agent/connect/ca/leaf/db").await.json();
    assert_ne!(other["SerialNumber"], leaf["SerialNumber"]);
    assert_eq!(rig.get("/v1/agent/connect/ca/leaf/a%20b").await.status, 400);
    // Where nobody signs for them it is said.
    let without = super::rig().await;
    for path in ["/v1/agent/connect/ca/roots", "/v1/agent/connect/ca/leaf/web"] {
        assert_eq!(without.get(path).await.status, 501);
    }
}

#[tokio::test]
async fn what_gateways_lead_to_is_listed() {
    let rig = rig().await;
    assert_eq!(rig.get("/v1/catalog/gateway-services/edge").await.json(), json!([]));
    let listener = json!({"Port": 8080, "Protocol": "http", "Services": [
        {"Name": "web", "Hosts": ["a.example"]}, {"Name": "*"}]});
    rig.put(
        "/v1/config",
        json!({"Kind": "ingress-gateway", "Name": "edge",
                                 "Listeners": [listener]}),
    )
    .await;
    rig.put(
        "/v1/config",
        json!({"Kind": "terminating-gateway", "Name": "out",
                                 "Services": [{"Name": "db", "SNI": "db.example"}]}),
    )
    .await;
    let rows = rig.get("/v1/catalog/gateway-services/edge").await;
    let list = rows.json();
    assert_eq!(list[0]["Service"]["Name"], "web");
    assert_eq!(list[0]["Gateway"]["Name"], "edge");
    assert_eq!(
        (&list[0]["GatewayKind"], &list[0]["Port"]),
        (&json!("ingress-gateway"), &json!(8080))
    );
    assert_eq!(list[0]["Hosts"], json!(["a.example"]));
    // Of the services that are there none can be reached through it.
    assert_eq!(count(&rows), 1);
    let out = rig.get("/v1/catalog/gateway-services/out").await.json();
    assert_eq!(
        (&out[0]["GatewayKind"], &out[0]["SNI"]),
        (&json!("terminating-gateway"), &json!("db.example"))
    );
    // Where a gateway runs is health/ingress's to say.
    assert_eq!(rig.get("/v1/health/ingress/web").await.json(), json!([]));
    let edge = json!({"Name": "edge", "Kind": "ingress-gateway", "Port": 8080,
                      "Check": {"TTL": "60s"}});
    rig.put("/v1/agent/service/register", edge).await;
    let found = rig.get("/v1/health/ingress/web").await.json();
    assert_eq!((&found[0]["Service"]["Service"], &found[1]), (&json!("edge"), &Value::Null));
    assert_eq!(rig.get("/v1/health/ingress/web?passing").await.json(), json!([]));
    // A change of the entry wakes who waits for it.
    let rows = rig.get("/v1/catalog/gateway-services/edge").await;
    let path = format!("/v1/catalog/gateway-services/edge?index={}&wait=60s", rows.index());
    let change = rig.put(
        "/v1/config",
        json!({"Kind": "ingress-gateway", "Name": "edge",
                                              "Listeners": []}),
    );
    let (answer, _) = tokio::join!(rig.get(&path), change);
    assert_eq!(answer.json(), json!([]));
}

#[tokio::test]
async fn every_service_that_a_gateway_can_lead_to_is_in_the_place_of_all() {
    let rig = rig().await;
    let put = async |body: Value| rig.put("/v1/agent/service/register", body).await;
    put(json!({"Name": "plain", "Port": 80})).await;
    put(json!({"Name": "web", "Port": 80})).await;
    let proxy = json!({"DestinationServiceName": "web"});
    put(json!({"Name": "web-proxy", "Kind": "connect-proxy", "Port": 81, "Proxy": proxy})).await;
    put(json!({"Name": "native", "Port": 82, "Connect": {"Native": true}})).await;
    put(json!({"Name": "edge", "Kind": "ingress-gateway", "Port": 443})).await;
    let services = json!([{"Name": "web", "Hosts": ["a.example"]}, {"Name": "*"}]);
    let listener = json!({"Port": 443, "Protocol": "http", "Services": services});
    rig.put(
        "/v1/config",
        json!({"Kind": "ingress-gateway", "Name": "edge",
        "Listeners": [listener]}),
    )
    .await;
    let outside = json!([{"Name": "plain", "SNI": "p"}, {"Name": "*", "SNI": "all"}]);
    rig.put(
        "/v1/config",
        json!({"Kind": "terminating-gateway", "Name": "out",
        "Services": outside}),
    )
    .await;
    let listed = async |gateway: &str| {
        let rows = rig.get(&format!("/v1/catalog/gateway-services/{gateway}")).await;
        let row = |row: &Value| {
            let all = if row["FromWildcard"] == true { "*" } else { "" };
            format!("{}{all}", row["Service"]["Name"].as_str().unwrap())
        };
        let list: Vec<String> = rows.json().as_array().unwrap().iter().map(row).collect();
        (list.join(" "), rows)
    };
    assert_eq!(listed("edge").await.0, "native* web");
    let (list, rows) = listed("out").await;
    assert_eq!(list, "plain web*");
    let sni: Vec<Value> =
        rows.json().as_array().unwrap().iter().map(|r| r["SNI"].clone()).collect();
    assert_eq!(sni, ["p", "all"]);
    for (name, found) in [("web", 1), ("native", 1), ("plain", 0), ("nobody", 0), ("edge", 0)] {
        assert_eq!(count(&rig.get(&format!("/v1/health/ingress/{name}")).await), found, "{name}");
    }
    // Whoever waits hears of a service that comes.
    let path = format!("/v1/catalog/gateway-services/out?index={}&wait=300s", rows.index());
    let (said, _) = tokio::join!(rig.get(&path), async {
        rig.blocked(1).await;
        put(json!({"Name": "redis", "Port": 6379})).await
    });
    assert_eq!(count(&said), 3, "{}", said.text);
    assert_eq!(listed("out").await.0, "plain redis* web*");
}

#[tokio::test]
async fn a_query_that_waits_is_small() {
    let rig = rig().await;
    let ask = super::super::http::Ask {
        argument: "web".into(),
        params: super::super::params::Params::parse(None).unwrap(),
        body: bytes::Bytes::new(),
        namespace: "default".into(),
        method: ::http::Method::GET,
        who: super::super::who::Who::anybody(),
        secret: None,
    };
    let endpoint = super::super::routes::Endpoint::HealthService;
    let whole = std::mem::size_of_val(&rig.door.dispatch(endpoint, &ask));
    let own = std::mem::size_of_val(&rig.door.health_service(&ask, false));
    assert!(whole <= 512 && own <= 2_048, "{whole} {own}");
}

#[tokio::test]
async fn reg_61_whom_another_authority_names_is_nobody_here() {
    let (rig, _folder) = with_ca().await;
    let exact = "/v1/connect/intentions/exact?source=a&destination=web";
    rig.put(exact, json!({"Action": "allow"})).await;
    let ask = async |rig: &Rig, uri: &str| {
        let body = json!({"Target": "web", "ClientCertURI": uri, "ClientCertSerial": "1"});
        rig.ask("POST", "/v1/agent/connect/authorize", &body.to_string()).await
    };
    let own = "spiffe://0190a6c8.consul/ns/default/dc/dc1/svc/a";
    assert_eq!(ask(&rig, own).await.json()["Authorized"], true);
    for (uri, what) in [
        ("spiffe://x/ns/default/dc/dc1/svc/a", "trust domain"),
        ("spiffe://0190a6c8.consul.x/ns/default/dc/dc1/svc/a", "trust domain"),
        ("spiffe://0190a6c8.consul/ns/default/dc/dc2/svc/a", "datacenter"),
        ("spiffe://0190a6c8.consul/ns/other/dc/dc1/svc/a", "namespace"),
    ] {
        let said = ask(&rig, uri).await.json();
        let why = format!("Identity from an external {what}");
        assert_eq!(said, json!({"Authorized": false, "Reason": why}), "{uri} is let in");
    }
    for uri in [
        "spiffe://0190a6c8.consul/whatever/svc/a",
        "spiffe://0190a6c8.consul/ns/default/dc/dc1/svc/a/svc/a",
        "spiffe://0190a6c8.consul/ns/default/dc/dc1/svc/",
        "https://0190a6c8.consul/ns/default/dc/dc1/svc/a",
        "a",
    ] {
        let said = ask(&rig, uri).await;
        assert_eq!(said.status, 400, "{uri}: {}", said.text);
        assert!(said.text.starts_with("ClientCertURI not a valid Service identifier"));
    }
    // Where nobody signs, nobody is signed for.
    let without = super::rig().await;
    let said = ask(&without, "spiffe://consul/ns/default/dc/dc1/svc/a").await.json();
    assert_eq!(said["Reason"], "Identity from an external trust domain");
}

#[tokio::test]
async fn what_consul_refuses_is_refused_in_its_words() {
    let rig = rig().await;
    let agent = "/v1/agent/service/register";
    let catalog = "/v1/catalog/register";
    let of = |part: Value| {
        let mut body = json!({"Node": "ext", "Address": "10.0.0.1"});
        body.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        body
    };
    let unknown = "Request decode failed: json: unknown field";
    for (path, body, status, why) in [
        (agent, json!({"Name": "web", "Bogus": 1}), 400, unknown),
        (agent, json!({"Name": "web", "Chek": {"TTL": "1s"}}), 400, unknown),
        (agent, json!({"Name": "web", "Check": {"TTL": "1s", "Htpp": ""}}), 400, unknown),
        (agent, json!({"Name": "web", "Connect": {"SidecarService": {"Prot": 1}}}), 400, unknown),
        ("/v1/agent/check/register", json!({"Name": "c", "TTl": "1s", "Tll": 1}), 400, unknown),
        (catalog, of(json!({"Bogus": 1})), 400, unknown),
        (catalog, of(json!({"Service": {"Service": "web", "Tag": ["a"]}})), 400, unknown),
        (agent, json!({"Name": "web", "Kind": "nonsense"}), 400, "nonsense"),
        (
            agent,
            json!({"Name": "web", "Kind": "connect-proxy"}),
            400,
            "Proxy.DestinationServiceName must be non-empty for Connect proxy services",
        ),
        (
            catalog,
            of(json!({"Service": {"Service": "web", "Kind": "connect-proxy"}})),
            400,
            "Proxy.DestinationServiceName must be non-empty",
        ),
        (
            agent,
            json!({"Name": "g", "Kind": "mesh-gateway", "Proxy": {"DestinationServiceName": "a"}}),
            400,
            "configuration is invalid for Mesh Gateways",
        ),
        (
            agent,
            json!({"Name": "web", "Meta": {"bad key": "x"}}),
            400,
            "Invalid Service Meta: Couldn't load metadata pair ('bad key', 'x'): Key contains \
             invalid characters",
        ),
        (agent, json!({"Name": "web", "Meta": {"consul-x": "x"}}), 400, "is reserved for internal"),
        (catalog, of(json!({"NodeMeta": {"a b": "x"}})), 400, "Invalid Node Meta"),
        (
            agent,
            json!({"Name": "web", "Port": 1, "Connect": {"Native": true, "SidecarService": {}}}),
            400,
            "Connect Native",
        ),
        (agent, json!({"Name": "web", "SocketPath": "/x"}), 501, "Unix sockets"),
        (agent, json!({"Name": "web", "Partition": "foo"}), 501, "no partitions"),
        (agent, json!({"Name": "web", "Namespace": "Bad NS"}), 400, "the namespace does not do"),
        (catalog, of(json!({"Partition": "foo"})), 501, "no partitions"),
        (
            catalog,
            of(json!({"Service": {"Service": "web", "PeerName": "p"}})),
            501,
            "no peering of clusters",
        ),
        ("/v1/kv/x?partition=foo", json!(1), 501, "no partitions"),
        ("/v1/kv/x?ns=*", json!(1), 501, "name one namespace"),
        ("/v1/kv/x?ns=Bad%20NS", json!(1), 400, "the namespace does not do"),
        (agent, json!({"Name": "web", "Ports": [{"Name": "a", "Port": 1}]}), 501, "several ports"),
        (
            agent,
            json!({"Name": "web", "TaggedAddresses": {"lan": {"Address": "0.0.0.0"}}}),
            400,
            "Invalid tagged address \"lan\"",
        ),
        (
            agent,
            json!({"Name": "web", "Check": {"HTTP": "http://a", "Interval": "1s", "TTL": "1s"}}),
            400,
            "Interval and TTL cannot both be specified",
        ),
        (catalog, of(json!({"ID": "not-a-uuid"})), 500, "Bad node ID"),
        (
            catalog,
            of(json!({"Check": {"Node": "other", "Name": "c"}})),
            500,
            "check node \"other\" does not match node \"ext\"",
        ),
    ] {
        let answer = rig.ask("PUT", path, &body.to_string()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(why), "{body}: {}", answer.text);
    }
    assert_eq!(rig.get("/v1/agent/services").await.json(), json!({}));
    let twice = json!({"Name": "web", "Checks": [
        {"CheckID": "a", "TTL": "10s", "Notes": "first"},
        {"CheckID": "a", "TTL": "10s", "Notes": "second"}]});
    rig.put(agent, twice).await;
    let checks = rig.get("/v1/agent/checks").await.json();
    assert_eq!((checks.as_object().unwrap().len(), &checks["a"]["Notes"]), (1, &json!("second")));
}

#[tokio::test]
async fn keys_that_are_no_text_or_too_long_are_refused_for_good() {
    let rig = rig().await;
    for (method, path) in [("PUT", "/v1/kv/%ff"), ("GET", "/v1/kv/%ff"), ("GET", "/v1/kv/%zz")] {
        let answer = rig.ask(method, path, "x").await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text);
    }
    assert_eq!(rig.get("/v1/kv/?keys").await.status, 404);
    let answer = rig.ask("PUT", &format!("/v1/kv/{}", "k".repeat(6_000)), "x").await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert!(answer.text.contains("bytes too long") && answer.text.len() < 200, "{}", answer.text);
}

#[tokio::test]
async fn an_interval_below_a_second_is_raised_and_shown_as_it_holds() {
    let rig = rig().await;
    let check = json!({"CheckID": "c", "Name": "c", "TCP": "127.0.0.1:9", "Interval": "1ms"});
    rig.put("/v1/agent/check/register", check).await;
    assert_eq!(rig.get("/v1/agent/checks").await.json()["c"]["Interval"], "1s");
    let check = json!({"CheckID": "c", "Name": "c", "TCP": "127.0.0.1:9", "Interval": "1500ms"});
    rig.put("/v1/agent/check/register", check).await;
    assert_eq!(rig.get("/v1/agent/checks").await.json()["c"]["Interval"], "1.5s");
}

#[tokio::test]
async fn a_nodes_id_is_its_own() {
    let rig = rig().await;
    let id = "0190a6c8-0000-7000-8000-00000000abcd";
    let node = |name: &str| json!({"Node": name, "Address": "10.0.0.1", "ID": id});
    rig.put("/v1/catalog/register", node("n2")).await;
    rig.put("/v1/catalog/register", node("N2")).await;
    let set = json!([{"Node": {"Verb": "set", "Node": node("n3")}}]);
    for (path, body) in [("/v1/catalog/register", node("n3")), ("/v1/txn", set)] {
        let said = rig.ask("PUT", path, &body.to_string()).await;
        assert_eq!(said.status, 500, "{path}: {}", said.text);
        assert!(said.text.contains("is that of node \"n2\""), "{}", said.text);
    }
    let own = json!({"Node": "n3", "Address": "10.0.0.1",
        "ID": "0190a6c8-0000-7000-8000-000000000001"});
    let said = rig.ask("PUT", "/v1/catalog/register", &own.to_string()).await;
    assert!(said.status == 500 && said.text.contains("\"n1\""), "{}", said.text);
}

#[tokio::test]
async fn a_session_of_a_node_that_nobody_hears_names_what_ends_it() {
    let rig = rig().await;
    rig.put("/v1/catalog/register", json!({"Node": "ext", "Address": "10.0.0.1"})).await;
    let said = rig.ask("PUT", "/v1/session/create", r#"{"Node": "ext"}"#).await;
    assert_eq!(said.status, 500, "{}", said.text);
    assert!(said.text.contains("Missing check 'serfHealth' registration"), "{}", said.text);
    for body in [json!({"Node": "ext", "NodeChecks": []}), json!({"Node": "n1"}), json!({})] {
        let said = rig.ask("PUT", "/v1/session/create", &body.to_string()).await;
        assert_eq!(said.status, 200, "{body}: {}", said.text);
    }
}

#[tokio::test]
async fn a_node_has_the_addresses_that_it_was_registered_with() {
    let rig = rig().await;
    let node = json!({"Node": "n2", "Address": "10.0.0.2"});
    let wan = json!({"Node": "n3", "Address": "10.0.0.3", "TaggedAddresses": {"wan": "1.1.1.1"}});
    rig.put("/v1/catalog/register", node).await;
    rig.put("/v1/catalog/register", wan).await;
    let nodes = rig.get("/v1/catalog/nodes").await.json();
    let of = |at: usize| nodes[at]["TaggedAddresses"].clone();
    assert_eq!((of(1), of(2)), (Value::Null, json!({"wan": "1.1.1.1"})));
    assert_eq!(of(0)["lan"], "127.0.0.1", "its own agent says it");
}
