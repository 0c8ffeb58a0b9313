// SPDX-License-Identifier: Apache-2.0
//! Blocking queries: none is woken by a change that it does not see, and each by one that it does.

use super::*;

/// What a query asks, whether its index stands still as well, and what it sees.
struct Row {
    path: &'static str,
    /// Its index is its own; one that sees a part of it shares it with others.
    exact: bool,
    own: fn() -> (&'static str, Value),
}

fn entry(node: &str, service: &Value, checks: &Value) -> (&'static str, Value) {
    let body = json!({"Node": node, "Address": "10.0.0.1", "Service": service, "Checks": checks});
    ("/v1/catalog/register", body)
}

fn check(node: &str, service: &str, status: &str) -> Value {
    json!({"Node": node, "CheckID": format!("c-{service}"), "Name": "c", "ServiceID": service,
           "Status": status})
}

fn instance(node: &str, id: &str, port: u16, tags: &[&str], status: &str) -> (&'static str, Value) {
    let service = json!({"Service": id, "ID": id, "Port": port, "Tags": tags});
    entry(node, &service, &json!([check(node, id, status)]))
}

fn proxy(port: u16, status: &str) -> (&'static str, Value) {
    let service = json!({"Service": "web-proxy", "ID": "web-proxy", "Port": port,
        "Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "web"}});
    entry("n2", &service, &json!([check("n2", "web-proxy", status)]))
}

fn gateway(port: u16) -> (&'static str, Value) {
    let service = json!({"Service": "edge", "ID": "edge", "Port": port, "Kind": "ingress-gateway"});
    entry("n5", &service, &json!([]))
}

/// The gateway leads to another service besides.
fn led(to: &str) -> (&'static str, Value) {
    let services = json!([{"Name": "web"}, {"Name": to}]);
    let listener = json!({"Port": 80, "Protocol": "http", "Services": services});
    let entry = json!({"Kind": "ingress-gateway", "Name": "edge", "Listeners": [listener]});
    ("/v1/config", entry)
}

/// A node that is in the rack of its name from now on.
fn racked(node: &str) -> (&'static str, Value) {
    let (path, mut body) = entry(node, &Value::Null, &json!([]));
    body["NodeMeta"] = json!({ "rack": node });
    (path, body)
}

/// What is there: `web`, which the rows ask for, with its proxy on n2, and a gateway to it on n5;
/// `other` on n4; n6 with a check of its own alone.
fn beginning() -> Vec<(&'static str, Value)> {
    vec![
        instance("n2", "web", 80, &["a"], "passing"),
        proxy(81, "passing"),
        instance("n4", "other", 90, &["a"], "passing"),
        entry(
            "n4",
            &Value::Null,
            &json!([{"Node": "n4", "CheckID": "up", "Name": "up",
                                           "Status": "passing"}]),
        ),
        ("/v1/kv/a", json!(1)),
        ("/v1/kv/p/a", json!(1)),
        ("/v1/config", json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"})),
        (
            "/v1/config",
            json!({"Kind": "ingress-gateway", "Name": "edge",
                   "Listeners": [{"Port": 80, "Protocol": "http", "Services": [{"Name": "web"}]}]}),
        ),
        gateway(80),
        entry(
            "n6",
            &Value::Null,
            &json!([{"Node": "n6", "CheckID": "up", "Name": "up", "Status": "passing"}]),
        ),
    ]
}

/// What none of the rows sees.
fn others() -> Vec<(&'static str, Value)> {
    vec![
        instance("n4", "other", 90, &["a"], "warning"),
        instance("n4", "other", 91, &["a"], "warning"),
        instance("n4", "other", 91, &["a"], "passing"),
        entry(
            "n4",
            &Value::Null,
            &json!([{"Node": "n4", "CheckID": "up", "Name": "up",
                                           "Status": "warning"}]),
        ),
        ("/v1/kv/b", json!(2)),
        ("/v1/kv/q/a", json!(2)),
        ("/v1/config", json!({"Kind": "service-resolver", "Name": "other"})),
    ]
}

fn tagged() -> (&'static str, Value) {
    instance("n2", "web", 80, &["a", "b"], "passing")
}

fn moved() -> (&'static str, Value) {
    instance("n2", "web", 8080, &["a"], "passing")
}

fn sick() -> (&'static str, Value) {
    instance("n2", "web", 80, &["a"], "critical")
}

fn rows() -> Vec<Row> {
    let row = |path, own| Row { path, exact: true, own };
    let part = |path, own| Row { path, exact: false, own };
    vec![
        row("/v1/catalog/services", tagged),
        part("/v1/catalog/services?filter=ServiceName%20%3D%3D%20web", tagged),
        row("/v1/catalog/service/web", moved),
        part("/v1/catalog/service/web?tag=a", moved),
        row("/v1/catalog/connect/web", || proxy(82, "passing")),
        row("/v1/catalog/nodes", || entry("n9", &Value::Null, &json!([]))),
        part("/v1/catalog/nodes?filter=Node%20%3D%3D%20n9", || {
            entry("n9", &Value::Null, &json!([]))
        }),
        row("/v1/catalog/node/n2", moved),
        row("/v1/catalog/node-services/n2", moved),
        row("/v1/health/service/web", sick),
        part("/v1/health/service/web?passing", sick),
        part("/v1/health/service/web?filter=Service.Port%20%3D%3D%208080", moved),
        row("/v1/health/connect/web", || proxy(81, "critical")),
        row("/v1/health/checks/web", sick),
        row("/v1/health/node/n2", sick),
        row("/v1/health/state/critical", sick),
        part("/v1/health/state/any?filter=ServiceName%20%3D%3D%20web", sick),
        part("/v1/health/state/any?node-meta=rack:n2", || racked("n2")),
        part("/v1/health/state/passing?node-meta=rack:n6", || racked("n6")),
        part("/v1/health/ingress/web?passing", || gateway(8080)),
        part("/v1/health/ingress/web", || gateway(8080)),
        part("/v1/health/ingress/late", || led("late")),
        part("/v1/catalog/gateway-services/edge", || led("late")),
        part("/v1/discovery-chain/web", || {
            ("/v1/config", json!({"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"}))
        }),
        row("/v1/kv/a", || ("/v1/kv/a", json!(3))),
        row("/v1/kv/p/?recurse", || ("/v1/kv/p/b", json!(3))),
        row("/v1/config/service-defaults", || {
            ("/v1/config", json!({"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"}))
        }),
        row("/v1/session/list", || ("/v1/session/create", json!({"Node": "n2", "Checks": []}))),
    ]
}

impl Rig {
    async fn does(&self, (path, body): (&'static str, Value)) {
        let said = self.put(path, body).await;
        assert_eq!(said.status, 200, "{path}: {}", said.text);
    }

    /// Whether a query that waits is left alone: what woke it in vain has had its time.
    async fn settled(&self) {
        self.door.0.indexes.reached(self.registry.now().revision()).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_query_is_woken_by_what_it_sees_and_by_nothing_else() {
    for Row { path, exact, own } in rows() {
        let rig = rig().await;
        for write in beginning() {
            rig.does(write).await;
        }
        rig.settled().await;
        let before = rig.get(path).await;
        let joint = if path.contains('?') { '&' } else { '?' };
        let query = format!("{path}{joint}index={}&wait=300s", before.index());
        let asked = rig.get(&query);
        let changed = async {
            rig.blocked(1).await;
            for write in others() {
                rig.does(write).await;
                rig.settled().await;
            }
            let fresh = rig.get(path).await;
            assert_eq!(fresh.text, before.text, "{path}: the row is about something else");
            if exact {
                assert_eq!(fresh.index(), before.index(), "{path}: its index moved for others");
            }
            rig.blocked(1).await;
            rig.does(own()).await;
        };
        let both = async { tokio::join!(asked, changed).0 };
        let said = tokio::time::timeout(Duration::from_secs(150), both).await;
        let said = said.unwrap_or_else(|_| panic!("{path}: it was never woken, or by others"));
        assert_ne!(said.text, before.text, "{path}: it was woken for nothing");
        assert!(said.index() > before.index(), "{path}");
        rig.tasks.stop();
    }
}

#[tokio::test]
async fn a_query_of_a_part_ends_with_its_time_and_misses_nothing() {
    let rig = rig().await;
    for write in beginning() {
        rig.does(write).await;
    }
    let path = "/v1/health/service/web?passing";
    // What it sees comes and goes between two looks, with what it does not see.
    let mut known = rig.get(path).await;
    for n in 0..20_u16 {
        let at = known.index();
        let asked = format!("{path}&index={at}&wait=60s");
        let (said, ()) = tokio::join!(rig.get(&asked), async {
            rig.does(instance("n3", "web", 70, &[], "critical")).await;
            rig.does(instance("n3", "web", 71 + n, &[], "critical")).await;
            rig.does(instance("n2", "web", 100 + n, &[], "passing")).await;
        });
        let now = rig.get(path).await;
        let port = |of: &Answer| of.json()[0]["Service"]["Port"].clone();
        // It may have been answered before the last of them, never with what it had.
        known = if port(&said) == port(&known) { now } else { said };
        assert_eq!(port(&known), json!(100 + n));
    }
    let index = known.index();
    rig.does(instance("n3", "web", 70, &[], "warning")).await;
    rig.settled().await;
    let late = rig.get(&format!("{path}&index={index}&wait=10ms")).await;
    assert_eq!(late.text, known.text, "its time is over");
    rig.tasks.stop();
}
