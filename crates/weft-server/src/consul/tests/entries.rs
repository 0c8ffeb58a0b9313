// SPDX-License-Identifier: Apache-2.0
//! Config entries judged and filled in as Consul does, and the chains that they make.

use super::records::{ROOT, guarded};
use super::*;

async fn entry(rig: &Rig, body: Value) -> Value {
    let (kind, name) = (body["Kind"].as_str().unwrap(), body["Name"].as_str().unwrap_or("global"));
    let path = format!("/v1/config/{kind}/{name}");
    assert_eq!(rig.put("/v1/config", body.clone()).await.text, "true");
    let mut shown = rig.get(&path).await.json();
    for index in ["CreateIndex", "ModifyIndex"] {
        assert!(shown[index].as_u64().unwrap() > 0);
        shown.as_object_mut().unwrap().remove(index);
    }
    shown
}

#[tokio::test]
async fn what_is_no_entry_is_refused_with_consuls_words() {
    let rig = rig().await;
    let decode = "Request decoding failed: ";
    let resolver = |more: Value| {
        let mut body = json!({"Kind": "service-resolver", "Name": "web"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({"Name": "web"}), 400, format!("{decode}Payload does not contain a kind/Kind key")),
        (json!({"Kind": 7}), 400, format!("{decode}Kind value in payload is not a string")),
        (json!({"Kind": "nope", "Name": "a"}), 400, format!("{decode}invalid config entry kind")),
        (json!({"Kind": "service-defaults"}), 500, "Name is required".into()),
        (
            json!({"Kind": "service-defaults", "Name": "web", "Protocl": "http"}),
            400,
            format!("{decode}invalid config key \"Protocl\""),
        ),
        (
            json!({"Kind": "service-router", "Name": "web",
                   "Routes": [{"Match": {"http": {"path": "/"}}}]}),
            400,
            "invalid config key \"Routes[0].Match.http.path\"".into(),
        ),
        (
            resolver(json!({"ConnectTimeout": "soon"})),
            400,
            "'ConnectTimeout' expected a duration".into(),
        ),
        (
            resolver(json!({"Subsets": [1]})),
            400,
            "'Subsets' expected an object, found a list".into(),
        ),
        (
            json!({"Kind": "service-defaults", "Name": "*"}),
            500,
            "must be the name of a service, and not a wildcard".into(),
        ),
        (
            json!({"Kind": "service-defaults", "Name": "web", "MeshGateway": {"Mode": "far"}}),
            500,
            "Invalid Mesh Gateway Mode: \"far\"".into(),
        ),
        (
            json!({"Kind": "service-defaults", "Name": "web",
                   "Destination": {"Addresses": ["*.a"], "Port": 80}}),
            500,
            "Destination address '*.a' is invalid".into(),
        ),
        (
            json!({"Kind": "proxy-defaults", "Name": "other"}),
            500,
            "invalid name (\"other\"), only \"global\" is supported".into(),
        ),
        (
            json!({"Kind": "proxy-defaults", "AccessLogs": {"Type": "file"}}),
            500,
            "path must be specified when using file type access logs".into(),
        ),
        (
            json!({"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 99.5}]}),
            500,
            "the sum of all split weights must be 100, not 99.500000".into(),
        ),
        (
            json!({"Kind": "service-splitter", "Name": "web",
                   "Splits": [{"Weight": 50}, {"Weight": 50, "Service": "web"}]}),
            500,
            "split destination occurs more than once: service=\"web\"".into(),
        ),
        (
            json!({"Kind": "service-router", "Name": "web",
                   "Routes": [{"Match": {"HTTP": {"PathPrefix": "x"}}}]}),
            500,
            "Route[0] PathPrefix doesn't start with '/': \"x\"".into(),
        ),
        (
            json!({"Kind": "service-router", "Name": "web",
                   "Routes": [{"Match": {"HTTP": {"Methods": ["get", "GET"]}}}]}),
            500,
            "Route[0] Methods contains \"GET\" more than once".into(),
        ),
        (
            json!({"Kind": "service-router", "Name": "web",
                   "Routes": [{"Destination": {"PrefixRewrite": "/"}}]}),
            500,
            "Route[0] cannot make use of PrefixRewrite without configuring".into(),
        ),
        (
            json!({"Kind": "service-router", "Name": "web",
                   "Routes": [{"Destination": {"RetryOn": ["often"]}}]}),
            500,
            "Route[0] contains an invalid retry condition: \"often\"".into(),
        ),
        (resolver(json!({"Redirect": {}})), 500, "Redirect is empty".into()),
        (
            resolver(json!({"Redirect": {"ServiceSubset": "v1"}})),
            500,
            "Redirect.ServiceSubset defined without Redirect.Service".into(),
        ),
        (
            resolver(json!({"DefaultSubset": "v1"})),
            500,
            "DefaultSubset \"v1\" is not a valid subset".into(),
        ),
        (
            resolver(json!({"Subsets": {"v1": {"Filter": "=="}}})),
            500,
            "Filter for subset \"v1\" is not a valid expression".into(),
        ),
        (
            resolver(json!({"Failover": {"v9": {"Service": "x"}}})),
            500,
            "Bad Failover[\"v9\"]: not a valid subset subset".into(),
        ),
        (
            resolver(json!({"Failover": {"*": {"Targets": [{"Peer": "p", "Datacenter": "d"}]}}})),
            500,
            "Bad Failover[\"*\"].Targets[0]: Peer cannot be set with Datacenter".into(),
        ),
        (
            resolver(json!({"ConnectTimeout": "-1s"})),
            500,
            "Bad ConnectTimeout '-1s', must be >= 0".into(),
        ),
        (
            resolver(json!({"LoadBalancer": {"Policy": "luck"}})),
            500,
            "Bad LoadBalancer policy: \"luck\" is not supported".into(),
        ),
        (
            resolver(json!({"LoadBalancer": {"Policy": "maglev", "HashPolicies": [
                {"Field": "header"}]}})),
            500,
            "HashPolicy[0]: Field \"header\" was specified without a FieldValue".into(),
        ),
        (
            json!({"Kind": "ingress-gateway", "Name": "g", "Listeners": [{"Port": 80}]}),
            500,
            "No service declared for listener with port 80".into(),
        ),
        (
            json!({"Kind": "ingress-gateway", "Name": "g", "Listeners": [
                {"Port": 80, "Services": [{"Name": "*"}]}]}),
            500,
            "Wildcard service name is only valid for protocol = 'http' (listener on port 80)"
                .into(),
        ),
        (
            json!({"Kind": "terminating-gateway", "Name": "t", "Services": [
                {"Name": "db", "CertFile": "c"}]}),
            500,
            "Service \"db\" must have a CertFile, CAFile, and KeyFile".into(),
        ),
        (
            json!({"Kind": "service-intentions", "Name": "db"}),
            500,
            "At least one source is required".into(),
        ),
        (
            json!({"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web"}]}),
            500,
            "Sources[0].Action must be set to 'allow' or 'deny'".into(),
        ),
        (
            json!({"Kind": "service-intentions", "Name": "db", "Sources": [
                {"Name": "web", "Permissions": [{"Action": "allow", "HTTP": {}}]}]}),
            500,
            "Sources[0].Permissions[0].HTTP should not be empty".into(),
        ),
        (
            json!({"Kind": "service-intentions", "Name": "db", "Sources": [
                {"Name": "web", "Action": "deny"}, {"Name": "web", "Action": "allow"}]}),
            500,
            "Sources[1] defines \"web\" more than once".into(),
        ),
        (json!({"Kind": "jwt-provider", "Name": "p"}), 500, "JSONWebKeySet is required".into()),
        (
            json!({"Kind": "jwt-provider", "Name": "p", "JSONWebKeySet": {"Local": {"JWKS": "?"}}}),
            500,
            "JWKS must be valid base64 encoded string".into(),
        ),
        (
            json!({"Kind": "mesh", "TLS": {"Incoming": {
                "TLSMinVersion": "TLSv1_3", "TLSMaxVersion": "TLSv1_2"}}}),
            500,
            "error in incoming TLS configuration: configuring max version".into(),
        ),
        (
            json!({"Kind": "exported-services", "Name": "default", "Services": [{"Name": "a"}]}),
            500,
            "Services[0]: must have at least one consumer".into(),
        ),
        (
            json!({"Kind": "service-defaults", "Name": "web",
                   "Meta": {"k": "v".repeat(513)}}),
            500,
            "Meta value for key \"k\" exceeds maximum length 512".into(),
        ),
    ];
    for (body, status, part) in cases {
        let answer = rig.ask("PUT", "/v1/config", &body.to_string()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(&part), "{body}: {:?}", answer.text);
    }
    for kind in ["service-defaults", "service-resolver", "jwt-provider", "mesh"] {
        let kept = rig.get(&format!("/v1/config/{kind}")).await.json();
        assert_eq!(kept, json!([]), "what was refused is not kept");
    }
}

#[tokio::test]
async fn entries_are_shown_as_consul_would_have_read_them() {
    let rig = rig().await;
    let body = json!({"kind": "service-defaults", "Kind": "service-defaults", "Name": "web",
        "protocol": "HTTP", "external_sni": null, "max_inbound_connections": "7",
        "upstream_config": {"defaults": {"passive_health_check": {
            "interval": 90_000_000_000_u64, "enforcing_consecutive_5xx": 0}}}});
    assert_eq!(
        entry(&rig, body).await,
        json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http",
            "TransparentProxy": {}, "MeshGateway": {}, "Expose": {}, "MaxInboundConnections": 7,
            "UpstreamConfig": {"Defaults": {"PassiveHealthCheck": {
                "Interval": 90_000_000_000_u64, "EnforcingConsecutive5xx": 0}}}})
    );
    let body = json!({"Kind": "service-router", "Name": "web", "Routes": [{
        "match": {"http": {"path_exact": "/a", "methods": ["get"]}},
        "destination": {"service": "web", "request_timeout": "1500ms", "num_retries": 3}}]});
    assert_eq!(
        entry(&rig, body).await["Routes"],
        json!([{"Match": {"HTTP": {"PathExact": "/a", "Methods": ["GET"]}},
                "Destination": {"Service": "web", "RequestTimeout": "1.5s", "NumRetries": 3}}])
    );
    let body = json!({"Kind": "service-splitter", "Name": "web", "Splits": [
        {"Weight": 33.333}, {"Weight": 66.667, "Service": "web2"}]});
    let other = json!({"Kind": "service-defaults", "Name": "web2", "Protocol": "http"});
    rig.put("/v1/config", other).await;
    let shown = entry(&rig, body).await;
    assert_eq!(
        (&shown["Splits"][0]["Weight"], &shown["Splits"][1]["Weight"]),
        (&json!(33.33), &json!(66.67))
    );
    let body = json!({"Kind": "service-intentions", "Name": "db", "Sources": [
        {"Name": "*", "Action": "deny"}, {"Name": "web", "Action": "allow"}]});
    assert_eq!(
        entry(&rig, body).await["Sources"],
        json!([{"Name": "web", "Action": "allow", "Type": "consul", "Precedence": 9},
               {"Name": "*", "Action": "deny", "Type": "consul", "Precedence": 8}])
    );
    let shown = entry(&rig, json!({"Kind": "proxy-defaults", "Config": {"any_Thing": 1}})).await;
    assert_eq!((&shown["Name"], &shown["Config"]), (&json!("global"), &json!({"any_Thing": 1})));
    let body = json!({"Kind": "ingress-gateway", "Name": "g", "Listeners": [
        {"Port": 80, "Services": [{"Name": "web"}]}]});
    let shown = entry(&rig, body).await;
    assert_eq!(shown["TLS"], json!({"Enabled": false}));
    assert_eq!(shown["Listeners"][0]["Protocol"], "tcp");
    // The same through the other door to intentions.
    let exact = "/v1/connect/intentions/exact?source=web&destination=db";
    let wrong = json!({"Permissions": [{"Action": "allow", "HTTP": {"PathExact": "x"}}]});
    let refused = rig.ask("PUT", exact, &wrong.to_string()).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert!(refused.text.contains("PathExact doesn't start with '/'"), "{}", refused.text);
}

#[tokio::test]
async fn a_change_is_made_only_while_the_entry_is_what_it_was() {
    let rig = rig().await;
    let body = |protocol: &str| {
        json!({"Kind": "service-defaults", "Name": "web", "Protocol": protocol}).to_string()
    };
    assert_eq!(rig.ask("PUT", "/v1/config?cas=7", &body("tcp")).await.text, "false");
    assert_eq!(rig.ask("PUT", "/v1/config?cas=0", &body("tcp")).await.text, "true");
    assert_eq!(rig.ask("PUT", "/v1/config?cas=0", &body("http")).await.text, "false");
    let path = "/v1/config/service-defaults/web";
    let index = rig.get(path).await.json()["ModifyIndex"].as_u64().unwrap();
    let cas = format!("/v1/config?cas={index}");
    assert_eq!(rig.ask("PUT", &cas, &body("http")).await.text, "true");
    assert_eq!(rig.get(path).await.json()["Protocol"], "http");
    assert_eq!(rig.ask("DELETE", &format!("{path}?cas={index}"), "").await.text, "false");
    let index = rig.get(path).await.json()["ModifyIndex"].as_u64().unwrap();
    assert_eq!(rig.ask("DELETE", &format!("{path}?cas={index}"), "").await.text, "true");
    assert_eq!(rig.get(path).await.status, 404);
    assert_eq!(rig.ask("PUT", "/v1/config?cas=x", &body("tcp")).await.status, 400);
}

async fn chain(rig: &Rig, service: &str) -> Value {
    let answer = rig.get(&format!("/v1/discovery-chain/{service}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["Chain"].clone()
}

#[tokio::test]
async fn a_chain_without_entries_is_the_services_own_resolver() {
    let rig = rig().await;
    assert_eq!(
        chain(&rig, "web").await,
        json!({
            "ServiceName": "web", "Namespace": "default", "Partition": "default",
            "Datacenter": "dc1", "Default": true, "Protocol": "tcp",
            "StartNode": "resolver:web.default.default.dc1",
            "Nodes": {"resolver:web.default.default.dc1": {
                "Type": "resolver", "Name": "web.default.default.dc1",
                "Resolver": {"Default": true, "ConnectTimeout": "5s",
                             "Target": "web.default.default.dc1"}}},
            "Targets": {"web.default.default.dc1": {
                "ID": "web.default.default.dc1", "Service": "web", "Namespace": "default",
                "Partition": "default", "Datacenter": "dc1", "MeshGateway": {}, "Subset": {},
                "TransparentProxy": {}, "ConnectTimeout": "5s",
                "SNI": "web.default.dc1.internal.consul",
                "Name": "web.default.dc1.internal.consul"}},
        })
    );
}

#[tokio::test]
async fn a_chain_has_its_router_splitters_subsets_redirects_and_failovers() {
    let rig = rig().await;
    for body in [
        json!({"Kind": "proxy-defaults", "Config": {"protocol": "http"},
               "MeshGateway": {"Mode": "local"}}),
        json!({"Kind": "service-resolver", "Name": "web", "DefaultSubset": "v1",
               "ConnectTimeout": "3s", "Subsets": {
                   "v1": {"Filter": "Service.Meta.version == 1"}, "v2": {"OnlyPassing": true}},
               "Failover": {"v2": {"Datacenters": ["dc2", "dc1"]}, "*": {"Service": "spare"}}}),
        json!({"Kind": "service-resolver", "Name": "old", "Redirect": {
                   "Service": "web", "ServiceSubset": "v2"}}),
        json!({"Kind": "service-splitter", "Name": "both", "Splits": [
            {"Weight": 90, "Service": "web", "RequestHeaders": {"Set": {"a": "1"}}},
            {"Weight": 10, "Service": "inner"}]}),
        json!({"Kind": "service-splitter", "Name": "inner", "Splits": [
            {"Weight": 50, "Service": "old", "RequestHeaders": {"Set": {"b": "2"}}},
            {"Weight": 50}]}),
        json!({"Kind": "service-router", "Name": "shop", "Routes": [
            {"Match": {"HTTP": {"PathPrefix": "/both"}}, "Destination": {"Service": "both"}},
            {"Destination": {"Service": "web", "ServiceSubset": "v2"}}]}),
    ] {
        rig.put("/v1/config", body).await;
    }
    let got = chain(&rig, "shop").await;
    assert_eq!(
        (&got["StartNode"], &got["Protocol"]),
        (&json!("router:shop.default.default"), &json!("http"))
    );
    assert_eq!(got.get("Default"), None);
    let routes = &got["Nodes"]["router:shop.default.default"]["Routes"];
    let next = |at: usize| routes[at]["NextNode"].as_str().unwrap().to_owned();
    assert_eq!(
        (next(0).as_str(), next(1).as_str(), next(2).as_str()),
        (
            "splitter:both.default.default",
            "resolver:v2.web.default.default.dc1",
            "resolver:shop.default.default.dc1"
        )
    );
    assert_eq!(routes[2]["Definition"]["Match"]["HTTP"]["PathPrefix"], "/");
    // A splitter below another one is one with it.
    let splits = &got["Nodes"]["splitter:both.default.default"]["Splits"];
    let ways: Vec<(f64, &str)> = splits
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["Weight"].as_f64().unwrap(), s["NextNode"].as_str().unwrap()))
        .collect();
    assert_eq!(
        ways,
        [
            (90.0, "resolver:v1.web.default.default.dc1"),
            (5.0, "resolver:v2.web.default.default.dc1"),
            (5.0, "resolver:inner.default.default.dc1"),
        ]
    );
    assert_eq!(splits[1]["Definition"]["RequestHeaders"], json!({"Set": {"b": "2"}}));
    let v1 = &got["Nodes"]["resolver:v1.web.default.default.dc1"]["Resolver"];
    assert_eq!(v1["Failover"], json!({"Targets": ["spare.default.default.dc1"]}));
    assert_eq!(v1["ConnectTimeout"], "3s");
    // Nobody fails over to itself.
    let v2 = &got["Nodes"]["resolver:v2.web.default.default.dc1"]["Resolver"];
    assert_eq!(v2["Failover"], json!({"Targets": ["v2.web.default.default.dc2"]}));
    let target = &got["Targets"]["v1.web.default.default.dc1"];
    assert_eq!(target["Subset"], json!({"Filter": "Service.Meta.version == 1"}));
    assert_eq!(target["SNI"], "v1.web.default.dc1.internal.consul");
    assert_eq!(target["MeshGateway"], json!({"Mode": "local"}));
    assert_eq!(got["Targets"].get("web.default.default.dc1"), None, "nothing leads there");
    assert_eq!(chain(&rig, "old").await["StartNode"], "resolver:v2.web.default.default.dc1");
    // Who asks for TCP is answered without routers and splitters.
    let path = "/v1/discovery-chain/shop";
    let body = json!({"OverrideProtocol": "tcp", "OverrideConnectTimeout": "9s"}).to_string();
    let plain = rig.ask("POST", path, &body).await.json()["Chain"].clone();
    assert_eq!(plain["StartNode"], "resolver:shop.default.default.dc1");
    assert_eq!(plain["Protocol"], "tcp");
    assert_eq!(plain["CustomizationHash"].as_str().unwrap().len(), 8);
    let only = &plain["Nodes"]["resolver:shop.default.default.dc1"]["Resolver"];
    assert_eq!(only["ConnectTimeout"], "9s");
    // A change of an entry wakes who waits for the chain.
    let path = format!("{path}?index={}&wait=60s", rig.get(path).await.index());
    let change = rig.ask("DELETE", "/v1/config/service-router/shop", "");
    let (answer, _) = tokio::join!(rig.get(&path), change);
    assert_eq!(answer.json()["Chain"]["StartNode"], "resolver:shop.default.default.dc1");
}

#[tokio::test]
async fn entries_that_make_no_chain_together_are_refused() {
    let rig = rig().await;
    let http = |name: &str| json!({"Kind": "service-defaults", "Name": name, "Protocol": "http"});
    let redirect = |name: &str, to: &str| {
        let to = json!({"Service": to});
        json!({"Kind": "service-resolver", "Name": name, "Redirect": to})
    };
    let split = |name: &str, to: &str| {
        json!({"Kind": "service-splitter", "Name": name, "Splits": [
            {"Weight": 100, "Service": to}]})
    };
    for (body, part) in [
        (
            json!({"Kind": "service-router", "Name": "web"}),
            "uses a protocol \"tcp\" that does not permit advanced routing or splitting behavior",
        ),
        (http("web"), ""),
        (json!({"Kind": "service-router", "Name": "web"}), ""),
        (split("web", "other"), "uses inconsistent protocols; service \"other\" has \"tcp\""),
        (http("other"), ""),
        (split("web", "other"), ""),
        (split("other", "web"), "detected circular reference: [splitter:"),
        (redirect("a", "b"), ""),
        (redirect("b", "a"), "detected circular resolver redirect: [a.default.default.dc1 -> "),
        (
            json!({"Kind": "service-splitter", "Name": "web", "Splits": [
                {"Weight": 100, "ServiceSubset": "v9"}]}),
            "service \"web\" does not have a subset named \"v9\"",
        ),
    ] {
        let answer = rig.ask("PUT", "/v1/config", &body.to_string()).await;
        let status = if part.is_empty() { 200 } else { 500 };
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(part), "{body}: {}", answer.text);
    }
    // What others rest on does not go.
    let gone = rig.ask("DELETE", "/v1/config/service-defaults/web", "").await;
    assert_eq!(gone.status, 500, "{}", gone.text);
    assert!(gone.text.contains("discovery chain \"web\""), "{}", gone.text);
}

#[tokio::test]
async fn an_entry_takes_the_rights_of_what_it_is_about() {
    let rig = guarded(false).await;
    let web = rig.token(r#"service "web" { policy = "write" }"#).await;
    let both = rig
        .token(r#"service "web" { policy = "write" } service "other" { policy = "read" }"#)
        .await;
    let operator = rig.token(r#"operator = "write""#).await;
    let mesh = rig.token(r#"mesh = "write" operator = "read""#).await;
    let closed =
        rig.token(r#"mesh = "read" operator = "write" agent_prefix "" { policy = "read" }"#).await;
    let own = json!({"Kind": "service-resolver", "Name": "web"});
    let leads =
        json!({"Kind": "service-resolver", "Name": "web", "Redirect": {"Service": "other"}});
    let all = json!({"Kind": "mesh"});
    for (token, body, status) in [
        (&web, &own, 200),
        (&web, &leads, 403),
        (&both, &leads, 200),
        (&web, &all, 403),
        (&operator, &all, 200),
        (&mesh, &all, 200),
        (&closed, &all, 403),
        (&operator, &own, 403),
    ] {
        let answer = rig.as_token(token, "PUT", "/v1/config", &body.to_string()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
    }
    assert_eq!(rig.as_token(ROOT, "GET", "/v1/config/mesh/mesh", "").await.status, 200);
}
