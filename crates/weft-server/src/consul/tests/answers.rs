// SPDX-License-Identifier: Apache-2.0
//! What Consul's own Go client and its test suite read of answers.

use super::records::guarded;
use super::*;

/// What a list's items say under a pointer.
fn said(answer: &Answer, at: &str) -> Vec<String> {
    let list = answer.json();
    let items = list.as_array().unwrap_or_else(|| panic!("{}", answer.text)).clone();
    items.iter().map(|one| one.pointer(at).and_then(Value::as_str).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn answers_come_nearest_first_where_that_is_asked() {
    let rig = rig().await;
    for (at, node) in [(9.0, "a"), (3.0, "b"), (2.0, "c"), (0.0, "d")] {
        let body = json!({"Node": node, "Address": "10.1.1.1", "Service": {"Service": "web"},
            "Check": {"CheckID": "up", "Name": "up", "Status": "warning", "ServiceID": "web"}});
        rig.put("/v1/catalog/register", body).await;
        if node != "d" {
            let mut place = vec![0.0; 8];
            place[0] = at;
            let coord = json!({"Vec": place, "Error": 1, "Adjustment": 0, "Height": 0.001});
            rig.put("/v1/coordinate/update", json!({"Node": node, "Coord": coord})).await;
        }
    }
    for (path, at) in [
        ("/v1/health/service/web?", "/Node/Node"),
        ("/v1/catalog/service/web?", "/Node"),
        ("/v1/health/checks/web?", "/Node"),
        ("/v1/health/state/warning?", "/Node"),
    ] {
        let near = |name: &str| format!("{path}near={name}");
        assert_eq!(said(&rig.get(path).await, at), ["a", "b", "c", "d"], "{path}");
        // Without a coordinate: last; with none to look from: as they are, but for that one.
        assert_eq!(said(&rig.get(&near("c")).await, at), ["c", "b", "a", "d"], "{path}");
        assert_eq!(said(&rig.get(&near("C")).await, at), ["c", "b", "a", "d"], "{path}");
        assert_eq!(said(&rig.get(&near("d")).await, at), ["d", "a", "b", "c"], "{path}");
        assert_eq!(said(&rig.get(&near("_agent")).await, at), ["a", "b", "c", "d"], "{path}");
    }
    let nodes = said(&rig.get("/v1/catalog/nodes?near=c").await, "/Node");
    assert_eq!(nodes, ["c", "b", "a", "d", "n1"]);
    let query = json!({"Name": "close", "Service": {"Service": "web", "Near": "c"}});
    assert_eq!(rig.ask("POST", "/v1/query", &query.to_string()).await.status, 200);
    for (asked, nodes) in [("", ["c", "b", "a", "d"]), ("?near=a", ["a", "b", "c", "d"])] {
        let ran = rig.get(&format!("/v1/query/close/execute{asked}")).await.json();
        let found: Vec<_> = ran["Nodes"].as_array().unwrap().iter().collect();
        let found: Vec<_> = found.iter().map(|n| n["Node"]["Node"].as_str().unwrap()).collect();
        assert_eq!(found, nodes, "{asked}");
    }
}

#[tokio::test]
async fn a_coordinate_is_its_nodes_however_that_one_is_named() {
    let rig = rig().await;
    for node in ["nA", "nB"] {
        let body = json!({"Node": node, "Address": "10.1.1.1", "Service": {"Service": "web"}});
        rig.put("/v1/catalog/register", body).await;
    }
    let at = |place: f64| {
        let place = [place, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        json!({"Vec": place, "Error": 1, "Adjustment": 0, "Height": 0.001})
    };
    for (node, place) in [("n1.dc1", 5.0), ("NB", 4.0), ("na.dc1", 1.0)] {
        rig.put("/v1/coordinate/update", json!({"Node": node, "Coord": at(place)})).await;
    }
    for near in ["n1", "N1", "n1.dc1", "_agent", "nb.dc1"] {
        let found = rig.get(&format!("/v1/catalog/service/web?near={near}")).await;
        assert_eq!(said(&found, "/Node"), ["nB", "nA"], "{near}");
    }
    assert_eq!(said(&rig.get("/v1/coordinate/nodes").await, "/Node"), ["n1", "nA", "nB"]);
    for (asked, shown) in [("nB", "nB"), ("nb", "nB"), ("nB.dc1", "nB.dc1")] {
        let found = rig.get(&format!("/v1/coordinate/node/{asked}")).await.json();
        assert_eq!(found[0]["Node"], shown);
        assert_eq!(found[0]["Coord"]["Vec"][0], 4.0);
    }
}

#[tokio::test]
async fn a_coordinate_goes_with_its_node() {
    let rig = rig().await;
    let node = |name: &str| json!({"Node": name, "Address": "10.1.1.1"});
    let coord = json!({"Vec": [1, 0, 0, 0, 0, 0, 0, 0], "Error": 1, "Adjustment": 0, "Height": 0});
    let listed = "/v1/coordinate/nodes";
    for (way, gone) in [
        ("/v1/catalog/deregister", json!({"Node": "a b"})),
        ("/v1/txn", json!([{"Node": {"Verb": "delete", "Node": {"Node": "a b"}}}])),
    ] {
        for name in ["a b", "stays"] {
            rig.put("/v1/catalog/register", node(name)).await;
            rig.put("/v1/coordinate/update", json!({"Node": name, "Coord": coord})).await;
        }
        let before = rig.get(listed).await;
        assert_eq!(said(&before, "/Node"), ["n1", "a b", "stays"]);
        let waiting = format!("{listed}?index={}&wait=60s", before.index());
        let (told, ()) = tokio::join!(rig.get(&waiting), async {
            rig.blocked(1).await;
            rig.put(way, gone).await;
        });
        assert_eq!(said(&told, "/Node"), ["n1", "stays"], "{way}");
        // Another one of its name is nowhere yet.
        rig.put("/v1/catalog/register", node("a b")).await;
        assert_eq!(rig.get("/v1/coordinate/node/a%20b").await.status, 404, "{way}");
    }
    // What an older version left of one is not shown.
    let left = json!({"Node": "ghost", "Segment": "", "Coord": coord});
    let plan = |_: &weft_registry::consul::State| {
        let put = weft_registry::consul::Change::Put("ghost".to_owned(), left.clone());
        Ok::<_, weft_registry::consul::ConsulError>((vec![put], ()))
    };
    rig.door.consul().change(weft_registry::consul::COORDINATES, plan).await.unwrap();
    rig.door.0.indexes.reached(rig.registry.now().revision()).await;
    assert_eq!(said(&rig.get(listed).await, "/Node"), ["n1", "stays"]);
    assert_eq!(rig.get("/v1/coordinate/node/ghost").await.status, 404);
}

#[tokio::test]
async fn a_duration_that_an_older_version_kept_as_text_is_shown_as_clients_read_it() {
    let rig = rig().await;
    let check = json!({"Interval": "10s", "BaseEjectionTime": ""});
    let upstreams = json!({"Defaults": {"PassiveHealthCheck": check},
                           "Overrides": [{"Name": "db", "PassiveHealthCheck": check}]});
    let kept = json!({"Kind": "service-defaults", "Name": "web", "UpstreamConfig": upstreams,
                      "Meta": {"Interval": "10s"}});
    let at = config::record("service-defaults", "web");
    let plan = |_: &weft_registry::consul::State| {
        let put = weft_registry::consul::Change::Put(at.clone(), kept.clone());
        Ok::<_, weft_registry::consul::ConsulError>((vec![put], ()))
    };
    rig.door.consul().change(config::TABLE, plan).await.unwrap();
    let one = rig.get("/v1/config/service-defaults/web").await.json();
    let listed = rig.get("/v1/config/service-defaults").await.json();
    for shown in [&one, &listed[0]] {
        let of = &shown["UpstreamConfig"];
        let checks = [&of["Defaults"], &of["Overrides"][0]].map(|of| &of["PassiveHealthCheck"]);
        for check in checks {
            assert_eq!(check["Interval"], 10_000_000_000_u64, "{shown}");
            assert_eq!(check["BaseEjectionTime"], 0, "{shown}");
        }
        assert_eq!(shown["Meta"]["Interval"], "10s");
    }
}

#[tokio::test]
async fn what_is_asked_for_as_it_was_known_says_how_old_it_is() {
    let rig = rig().await;
    let answer = rig.get("/v1/catalog/services?cached").await;
    assert_eq!((&*answer.headers["x-cache"], &*answer.headers["age"]), ("HIT", "0"));
    assert!(!rig.get("/v1/catalog/services").await.headers.contains_key("x-cache"));
    let told = rig.get("/v1/agent/self").await.json();
    assert_eq!(told["DebugConfig"]["SerfAdvertiseAddrLAN"], "tcp://127.0.0.1:8301");
    let member = rig.get("/v1/agent/members").await.json();
    assert_eq!((&member[0]["Addr"], &member[0]["Port"]), (&json!("127.0.0.1"), &json!(8301)));
}

#[tokio::test]
async fn a_service_of_a_peer_is_no_way_back_to_the_service_here() {
    let rig = rig().await;
    let resolver = json!({"Kind": "service-resolver", "Name": "web", "DefaultSubset": "v1",
        "Subsets": {"v1": {"Filter": "Service.Meta.v == 1"}}});
    rig.put("/v1/config", resolver).await;
    let away = json!({"Kind": "service-resolver", "Name": "far",
        "Redirect": {"Service": "web", "Peer": "cluster-01"}});
    rig.put("/v1/config", away).await;
    let chain = rig.get("/v1/discovery-chain/far").await.json();
    assert!(chain["Chain"]["Targets"]["web.default.default.external.cluster-01"].is_object());
}

#[tokio::test]
async fn an_event_is_for_the_nodes_and_services_that_it_names() {
    let rig = rig().await;
    let web = json!({"Name": "web", "ID": "web-1", "Tags": ["blue"]});
    rig.put("/v1/agent/service/register", web).await;
    // On this node, but nothing of its agent's.
    let other = json!({"Node": "n1", "Address": "127.0.0.1", "Service": {"Service": "db"}});
    rig.put("/v1/catalog/register", other).await;
    for (name, filter, is_for) in [
        ("all", "", true),
        ("node", "?node=^n[0-9]$", true),
        ("nodes", "?node=^zzz", false),
        ("service", "?service=^web", true),
        ("services", "?service=db", false),
        ("tag", "?service=web&tag=bl", true),
        ("tags", "?service=web&tag=green", false),
        ("both", "?node=^zzz&service=web", false),
    ] {
        rig.ask("PUT", &format!("/v1/event/fire/{name}{filter}"), "").await;
        let heard = rig.get(&format!("/v1/event/list?name={name}")).await;
        assert_eq!(count(&heard), usize::from(is_for), "{name}: {}", heard.text);
    }
    assert_eq!(said(&rig.get("/v1/event/list").await, "/Name"), ["all", "node", "service", "tag"]);
    // A few letters that are megabytes once they are compiled: everybody's list would pay for it.
    let large = rig.ask("PUT", "/v1/event/fire/large?node=%5Cw%7B100%7D", "").await;
    assert_eq!(large.status, 400, "{}", large.text);
}

#[tokio::test]
async fn durations_of_entries_are_numbers_where_consuls_clients_read_numbers() {
    let rig = rig().await;
    let check = json!({"Interval": "5s", "BaseEjectionTime": 7_000_000_000_u64});
    let upstreams = json!({"Defaults": {"PassiveHealthCheck": check}});
    let remote = json!({"URI": "https://k", "CacheDuration": "1m",
        "RetryPolicy": {"RetryPolicyBackOff": {"BaseInterval": "1s", "MaxInterval": "2s"}},
        "JWKSCluster": {"ConnectTimeout": "5s"}});
    let hash = json!([{"Field": "cookie", "FieldValue": "c", "CookieConfig": {"TTL": "1h"}}]);
    for (entry, reads) in [
        (
            json!({"Kind": "service-defaults", "Name": "web", "UpstreamConfig": upstreams}),
            vec![
                ("/UpstreamConfig/Defaults/PassiveHealthCheck/Interval", json!(5_000_000_000_u64)),
                (
                    "/UpstreamConfig/Defaults/PassiveHealthCheck/BaseEjectionTime",
                    json!(7_000_000_000_u64),
                ),
            ],
        ),
        (
            json!({"Kind": "jwt-provider", "Name": "k", "JSONWebKeySet": {"Remote": remote}}),
            vec![
                ("/JSONWebKeySet/Remote/CacheDuration", json!(60_000_000_000_u64)),
                ("/JSONWebKeySet/Remote/JWKSCluster/ConnectTimeout", json!(5_000_000_000_u64)),
                (
                    "/JSONWebKeySet/Remote/RetryPolicy/RetryPolicyBackOff/MaxInterval",
                    json!(2_000_000_000_u64),
                ),
            ],
        ),
        (
            json!({"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "15s",
                "LoadBalancer": {"Policy": "maglev", "HashPolicies": hash}}),
            vec![
                ("/LoadBalancer/HashPolicies/0/CookieConfig/TTL", json!(3_600_000_000_000_u64)),
                ("/ConnectTimeout", json!("15s")),
            ],
        ),
        (
            json!({"Kind": "ingress-gateway", "Name": "g",
                "Defaults": {"MaxConnections": 7, "PassiveHealthCheck": {"Interval": "2s"}}}),
            vec![
                ("/Defaults/PassiveHealthCheck/Interval", json!(2_000_000_000_u64)),
                ("/Defaults/MaxConnections", json!(7)),
                ("/Defaults/MaxPendingRequests", json!(0)),
            ],
        ),
    ] {
        rig.put("/v1/config", entry.clone()).await;
        let (kind, name) = (entry["Kind"].as_str().unwrap(), entry["Name"].as_str().unwrap());
        let kept = rig.get(&format!("/v1/config/{kind}/{name}")).await.json();
        for (at, expected) in reads {
            assert_eq!(kept.pointer(at), Some(&expected), "{kind} {at}: {kept}");
        }
        // What was read may be written again.
        rig.put("/v1/config", kept).await;
    }
    let negative = json!({"Kind": "service-defaults", "Name": "x",
        "UpstreamConfig": {"Defaults": {"PassiveHealthCheck": {"Interval": "-1s"}}}});
    let refused = rig.ask("PUT", "/v1/config", &negative.to_string()).await;
    assert!(refused.text.contains("interval cannot be negative"), "{}", refused.text);
}

#[tokio::test]
async fn what_only_the_catalog_shows_of_a_check_is_not_judged() {
    let rig = rig().await;
    let definition = json!({"TCP": "1.1.1.1", "Interval": "2s", "Timeout": "1s"});
    let check = json!({"CheckID": "bla", "Name": "bla", "Definition": definition});
    let body = json!({"Node": "foo", "Address": "10.1.1.1", "Check": check});
    rig.put("/v1/catalog/register", body).await;
    let check = json!({"Node": "foo", "CheckID": "txn", "Name": "txn", "Definition": definition});
    rig.put("/v1/txn", json!([{"Check": {"Verb": "set", "Check": check}}])).await;
    let shown = rig.get("/v1/health/node/foo").await.json();
    for check in shown.as_array().unwrap() {
        assert_eq!(check["Definition"]["TCP"], "1.1.1.1", "{check}");
    }
    assert_eq!(shown.as_array().unwrap().len(), 2);
    // Of one that is to be asked here it is.
    let asked = json!({"Name": "x", "TCP": "1.1.1.1", "Interval": "2s"});
    assert_eq!(rig.ask("PUT", "/v1/agent/check/register", &asked.to_string()).await.status, 400);
}

#[tokio::test]
async fn a_transaction_reads_what_it_wrote_before() {
    let rig = rig().await;
    let node = json!({"Node": "tx1", "Address": "10.0.0.9"});
    let service = json!({"ID": "s1", "Service": "web"});
    let op = |what: &str, verb: &str, record: &Value| {
        let mut of = json!({"Verb": verb, what: record});
        if what == "Service" {
            of["Node"] = json!("tx1");
        }
        json!({what: of})
    };
    let ops = json!([
        op("Node", "set", &node),
        op("Node", "get", &node),
        op("Service", "set", &service),
        op("Service", "get", &service),
    ]);
    let done = rig.put("/v1/txn", ops).await.json();
    assert_eq!(done["Results"].as_array().unwrap().len(), 4, "{done}");
    assert_eq!(done["Results"][1]["Node"]["Address"], "10.0.0.9");
    assert_eq!(done["Results"][3]["Service"]["Service"], "web");

    let ops = json!([op("Service", "get", &service), op("Service", "delete", &service)]);
    let done = rig.put("/v1/txn", ops).await.json();
    assert_eq!(done["Results"][0]["Service"]["ID"], "s1", "as it was then: {done}");

    for gone in ["Service", "Node"] {
        rig.put("/v1/txn", json!([op("Service", "set", &service)])).await;
        let deleted = if gone == "Node" { &node } else { &service };
        let ops = json!([op(gone, "delete", deleted), op("Service", "get", &service)]);
        let refused = rig.ask("PUT", "/v1/txn", &ops.to_string()).await;
        assert_eq!(refused.status, 409, "{gone}: {}", refused.text);
        assert_eq!(refused.json()["Errors"][0]["OpIndex"], 1);
        assert_eq!(count(&rig.get("/v1/catalog/service/web").await), 1, "nothing was done");
    }
}

#[tokio::test]
async fn who_shows_a_token_of_nobody_is_told_what_everybody_may_know() {
    let rig = guarded(false).await;
    for (path, status) in [
        ("/v1/status/leader", 200),
        ("/v1/status/peers", 200),
        ("/v1/catalog/datacenters", 200),
        ("/v1/agent/self", 403),
        ("/v1/catalog/nodes", 403),
    ] {
        let answer = rig.as_token("nobody", "GET", path, "").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
    let token = r#"{"Token": "x"}"#;
    for name in ["dns_token", "acl_agent_master_token"] {
        let path = format!("/v1/agent/token/{name}");
        let set = rig.as_token(super::records::ROOT, "PUT", &path, token).await;
        assert_eq!(set.status, 200, "{name}: {}", set.text);
    }
}

#[tokio::test]
async fn wrong_requests_are_answered_in_consuls_words() {
    let rig = rig().await;
    let bare = json!({"Service": {"Service": "web"}}).to_string();
    let lock = json!([{"KV": {"Verb": "lock", "Key": "k", "Value": ""}}]).to_string();
    for (method, path, body, status, words) in [
        ("GET", "/v1/connect/intentions/hello", "", 400, "no UUID"),
        ("DELETE", "/v1/query/nope", "", 500, "Cannot modify non-existent prepared query: 'nope'"),
        ("POST", "/v1/query", &*bare, 500, "Must be bound to a session"),
        ("PUT", "/v1/txn", &*lock, 409, "missing session"),
    ] {
        let answer = rig.ask(method, path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert!(answer.text.contains(words), "{path}: {}", answer.text);
    }
    let config = rig.get("/v1/connect/ca/configuration").await.json();
    assert_eq!(config["Config"]["RootCertTTL"], "87600h");
    for (id, more) in [
        ("p", json!({"Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "web"}})),
        ("n", json!({"Connect": {"Native": true}})),
    ] {
        let mut body = json!({"Name": id, "Port": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rig.put("/v1/agent/service/register", body).await;
    }
    let usage = rig.get("/v1/operator/usage").await.json();
    let counted = &usage["Usage"]["dc1"]["ConnectServiceInstances"];
    assert_eq!((&counted["connect-proxy"], &counted["connect-native"]), (&json!(1), &json!(1)));
    assert_eq!(counted.as_object().unwrap().len(), 6, "{counted}");
}

#[tokio::test]
async fn who_waits_for_a_services_intentions_is_not_answered_for_anothers() {
    let rig = rig().await;
    let at = |source: &str, destination: &str| {
        format!("/v1/connect/intentions/exact?source={source}&destination={destination}")
    };
    let deny = || json!({"Action": "deny"});
    rig.put(&at("a", "web"), deny()).await;
    for (n, path) in [
        "/v1/connect/intentions/match?by=destination&name=web",
        "/v1/connect/intentions/exact?source=a&destination=web",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("{path}&index={}&wait=60s", rig.get(path).await.index());
        let waiting = rig.get(&path);
        tokio::pin!(waiting);
        tokio::select! {
            answer = &mut waiting => panic!("answered early: {}", answer.text),
            () = rig.blocked(1) => {}
        }
        for other in 0..5 {
            let (path, body) = (at("a", &format!("other-{n}-{other}")), deny());
            tokio::select! {
                answer = &mut waiting => panic!("answered for another's: {}", answer.text),
                _ = rig.put(&path, body) => {}
            }
        }
        let told = json!({"Action": "deny", "Description": format!("told {n}")});
        let own = at("a", "web");
        let (answer, _) = tokio::join!(waiting, rig.put(&own, told));
        assert!(answer.text.contains(&format!("told {n}")), "{}", answer.text);
    }
}

#[tokio::test]
async fn nothing_is_of_a_cluster_peer() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"Name": "web"})).await;
    for (path, nothing) in [
        ("health/service/web", json!([])),
        ("health/state/any", json!([])),
        ("health/node/n1", json!([])),
        ("catalog/service/web", json!([])),
        ("catalog/nodes", json!([])),
        ("catalog/services", json!({})),
        ("catalog/node/n1", Value::Null),
    ] {
        let path = format!("/v1/{path}");
        assert_ne!(rig.get(&path).await.json(), nothing, "{path}");
        assert_eq!(rig.get(&format!("{path}?peer=far")).await.json(), nothing, "{path}");
    }
}
