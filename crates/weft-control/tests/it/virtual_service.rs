// SPDX-License-Identifier: Apache-2.0
//! What a VirtualService's rules mean where Istio's texts and its control plane say more than the
//! names of the fields.

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::World;
use weft_model::decide::{Headers, Request, find_rule};
use weft_model::{Action, Filter, Resource, Route, Rule, StringMatch};

fn istio(kind: &str, name: &str, created: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "spec": spec,
           "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created}})
}

fn world(objects: &[Value]) -> World {
    let mut world = crate::common::world_of([]);
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "user", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}});
    for object in objects.iter().chain([&service]) {
        crate::common::put(&mut world, object);
    }
    world
}

fn routes(world: &World) -> (Vec<Route>, String) {
    let (_, update) = Compiler::new(Env::default(), world);
    let routes = update.delta.upserts.values().filter_map(|resource| match &**resource {
        Resource::Route(route) => Some(route.clone()),
        _ => None,
    });
    let status = |s: &weft_control::status::StatusUpdate| {
        s.settle(None, "NOW").unwrap_or(Value::Null).to_string()
    };
    (routes.collect(), update.statuses.iter().map(status).collect())
}

/// The one rule that clients of the mesh have, if any is left of it, and what the status says.
fn compiled(mut rule: Value) -> (Option<Rule>, String) {
    if rule["route"].is_null() && rule["directResponse"].is_null() {
        rule["route"] = json!([{"destination": {"host": "user"}}]);
    }
    let spec = json!({"hosts": ["user"], "http": [rule]});
    let (routes, status) =
        routes(&world(&[istio("VirtualService", "x", "2026-01-01T00:00:00Z", spec)]));
    (routes.into_iter().flat_map(|r| r.rules).next(), status)
}

// === faults ===

/// "If not specified, no request will be aborted" (Abort), "If left unspecified, no request will
/// be delayed" (Delay).
#[test]
fn a_fault_without_a_percentage_hits_nobody_and_the_status_says_so() {
    let (rule, status) =
        compiled(json!({"fault": {"abort": {"httpStatus": 555}, "delay": {"fixedDelay": "2s"}}}));
    assert_eq!(rule.unwrap().filters, []);
    for part in ["abort", "delay"] {
        let said = format!("spec.http[0].fault.{part}: no percentage");
        assert!(status.contains(&said), "{status}");
    }
    let all = json!({"value": 100});
    let (rule, status) = compiled(json!({"fault": {"delay": {"fixedDelay": "2s", "percent": 5},
        "abort": {"httpStatus": 555, "percentage": all}}}));
    assert!(matches!(&*rule.unwrap().filters, [Filter::Fault(f)] if f.abort.is_some()
        && f.delay.is_some()));
    assert!(!status.contains("percentage"), "{status}");
}

// === cors ===

/// The deprecated list is a left-over where the new one stands; Istio reads one of them.
#[test]
fn the_old_list_of_origins_opens_nothing_beside_the_new_one() {
    let origins = |policy: Value| {
        let (rule, status) = compiled(json!({ "corsPolicy": policy }));
        let [Filter::Cors(cors)] = &*rule.unwrap().filters else { panic!("{status}") };
        (cors.origins.clone(), status)
    };
    let new = json!([{"exact": "http://ok.example"}]);
    let ok = [StringMatch::Exact("http://ok.example".into())];
    let (both, status) = origins(json!({"allowOrigin": ["*"], "allowOrigins": new}));
    assert_eq!(both, ok);
    assert!(status.contains("spec.http[0].corsPolicy.allowOrigin: "), "{status}");
    let (old, status) = origins(json!({"allowOrigin": ["http://ok.example"]}));
    assert_eq!(old, ok);
    assert!(!status.contains("allowOrigin"), "{status}");
}

// === hosts that are set ===

/// "We only override if the top level rewrite is not set" (Istio's control plane).
#[test]
fn a_rules_own_host_goes_before_that_of_its_destination() {
    let host = |own: Value| {
        let mut rule = json!({"route": [{"destination": {"host": "user"},
            "headers": {"request": {"set": {"Host": "dest.example"}}}}]});
        for (field, value) in own.as_object().unwrap() {
            rule[field] = value.clone();
        }
        let rule = compiled(rule).0.unwrap();
        let Action::Forward(shares) = &rule.action else { panic!("{rule:?}") };
        // A destination's filters come after its rule's.
        let filters = rule.filters.iter().chain(&shares[0].filters);
        let mut hosts = filters.filter_map(|filter| match filter {
            Filter::Rewrite(rewrite) => Some((rewrite.host.clone(), rewrite.path.is_some())),
            _ => None,
        });
        let (host, path) = hosts.next_back().unwrap();
        (host.unwrap().to_string(), path)
    };
    assert_eq!(host(json!({})), ("dest.example".into(), false));
    let uri = json!({"rewrite": {"uri": "/new"}});
    assert_eq!(host(uri), ("dest.example".into(), true));
    let top = json!({"rewrite": {"authority": "top.example", "uri": "/new"}});
    assert_eq!(host(top), ("top.example".into(), true));
    let set = json!({"headers": {"request": {"set": {"host": "top.example"}}}});
    assert_eq!(host(set), ("top.example".into(), false));
}

// === matches ===

/// "`*` is NOT a RE2 style regex, it's a metacharacter": whoever has the header (Istio).
#[test]
fn a_star_for_an_expression_asks_whether_there_is_one() {
    let star = json!({"x-a": {"regex": "*"}});
    let block = json!({"headers": star, "withoutHeaders": {"x-b": {"regex": "*"}},
        "queryParams": {"q": {"regex": "*"}}});
    let (rule, status) = compiled(json!({ "match": [block] }));
    let rule = rule.expect(&status);
    let m = &rule.matches[0];
    for list in [&m.headers, &m.without_headers, &m.query] {
        assert!(matches!(&**list, [one] if one.value == StringMatch::Present), "{list:?}");
    }
    let (rule, status) = compiled(json!({"match": [{"uri": {"regex": "*"}}]}));
    assert!(rule.is_none() && status.contains("spec.http[0].match[0]"), "{status}");
}

/// Istio reads them from a verified token; nothing here does, and `withoutHeaders` would let
/// everybody in.
#[test]
fn a_match_on_what_no_request_can_have_takes_nothing_and_is_an_error() {
    let claims = ["@request.auth.claims.admin", "@request.auth.claims[admin]", "a b", ""];
    for name in claims {
        for part in ["headers", "withoutHeaders"] {
            let (rule, status) = compiled(json!({"match": [{part: {name: {"exact": "1"}}}]}));
            assert_eq!(rule, None, "{part} {name:?}");
            let at = "spec.http[0].match[0]";
            assert!(status.contains("Invalid") && status.contains(at), "{name:?}: {status}");
        }
    }
    let (rule, _) = compiled(json!({"match": [{"headers": {":authority": {"exact": "a"}}}]}));
    assert_eq!(rule.unwrap().matches.len(), 1);
}

/// `?a=b%20c` is compared as `b c`, where Istio's users write what is sent.
#[test]
fn a_query_that_is_written_encoded_is_told() {
    let told = |value: Value| {
        let (rule, status) = compiled(json!({"match": [{"queryParams": {"a": value}}]}));
        assert_eq!(rule.unwrap().matches.len(), 1);
        status.contains("spec.http[0].match[0].queryParams.a: ")
    };
    for value in [json!({"exact": "b%20c"}), json!({"prefix": "b+"}), json!({"regex": "b%2[05]"})] {
        assert!(told(value.clone()), "{value}");
    }
    for value in [json!({"exact": "b c"}), json!({"regex": "b+"}), json!({})] {
        assert!(!told(value.clone()), "{value}");
    }
}

// === what is sent ===

#[test]
fn a_body_that_is_no_text_is_refused_and_not_changed() {
    let answer = |bytes: &str| {
        let body = json!({ "bytes": bytes });
        let (rule, status) = compiled(json!({"directResponse": {"status": 200, "body": body}}));
        (rule.unwrap().action, status)
    };
    let (text, status) = answer("aGVsbG8=");
    assert_eq!(text, Action::Direct { status: 200, body: "hello".into() });
    assert!(!status.contains("Invalid"), "{status}");
    for wrong in ["/wD+gA==", "no base64"] {
        let (action, status) = answer(wrong);
        assert!(matches!(action, Action::Fail { status: 500, .. }), "{action:?}");
        let at = "spec.http[0].directResponse.body.bytes";
        assert!(status.contains("Invalid") && status.contains(at), "{status}");
    }
}

/// A client that gets 100 waits for ever, and takes the next answer for this one.
#[test]
fn a_status_that_no_answer_has_is_refused() {
    let action = |rule: Value| {
        let (rule, status) = compiled(rule);
        (rule.unwrap().action, status)
    };
    for code in [0, 99, 100, 101, 199, 600, 700] {
        let (action, status) = action(json!({"directResponse": {"status": code}}));
        assert!(matches!(action, Action::Fail { status: 500, .. }), "{action:?}");
        assert!(status.contains("spec.http[0].directResponse.status"), "{status}");
    }
    for code in [200, 300, 304, 305, 404] {
        let (action, status) =
            action(json!({"redirect": {"uri": "/x", "redirectCode": code}, "route": []}));
        assert!(matches!(action, Action::Fail { status: 500, .. }), "{action:?}");
        assert!(status.contains("spec.http[0].redirect.redirectCode"), "{status}");
    }
    for code in [200, 304, 503, 599] {
        let (action, status) = action(json!({"directResponse": {"status": code}}));
        assert!(matches!(action, Action::Direct { .. }), "{action:?} {status}");
    }
}

/// Istio hands values to Envoy, which fills in what stands between percent signs.
#[test]
fn what_envoy_would_fill_in_is_not_sent_as_it_is_written() {
    let value = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%";
    let set = json!({"x-real-ip": value, "x-share": "100%%", "x-half": "50% of %s"});
    let add = json!({"x-in": "a %REQ(x-in?:path):10% b"});
    let response = json!({"set": {"x-p": "%PROTOCOL%"}});
    let headers = json!({"request": {"set": set, "add": add}, "response": response});
    let (rule, status) = compiled(json!({ "headers": headers }));
    let filters = rule.unwrap().filters;
    let [Filter::RequestHeaders(edit)] = &*filters else { panic!("{filters:?}") };
    let pair = |name: &str, value: &str| (name.into(), value.into());
    assert_eq!(edit.set, [pair("x-half", "50% of %s"), pair("x-share", "100%")]);
    assert!(edit.add.is_empty(), "{edit:?}");
    for field in ["request.set.x-real-ip", "request.add.x-in", "response.set.x-p"] {
        assert!(status.contains(&format!("spec.http[0].headers.{field}: ")), "{status}");
    }
    assert!(!status.contains("x-share") && !status.contains("x-half"), "{status}");
    let one = json!({"destination": {"host": "user"},
        "headers": {"request": {"set": {"x-a": "%START_TIME%"}}}});
    let (_, status) = compiled(json!({ "route": [one] }));
    assert!(status.contains("spec.http[0].route[0].headers.request.set.x-a: "), "{status}");
}

#[test]
fn a_header_that_no_message_can_have_is_told() {
    let set = json!({"bad name": "x", "x-nl": "a\nb", "x-accent": "é", "x-ok": "a\tb"});
    let (rule, status) = compiled(json!({"headers": {"response": {"set": set}}}));
    let filters = rule.unwrap().filters;
    let [Filter::ResponseHeaders(edit)] = &*filters else { panic!("{filters:?}") };
    assert!(matches!(&*edit.set, [(name, _)] if &**name == "x-ok"), "{edit:?}");
    for name in ["bad name", "x-nl", "x-accent"] {
        let said = format!("spec.http[0].headers.response.set.{name}: not applied");
        assert!(status.contains(&said), "{name}: {status}");
    }
}

// === several objects of one host ===

struct Nothing;

impl Headers for Nothing {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

/// The status that a Gateway answers a path with, of these lists of rules, the oldest first.
fn answered(lists: &[Value], path: &str) -> u16 {
    let server = json!({"port": {"number": 8000, "protocol": "HTTP", "name": "http"},
                        "hosts": ["*"]});
    let gateway = json!({"selector": {"a": "b"}, "servers": [server]});
    let mut objects = vec![istio("Gateway", "gw", "2026-01-01T00:00:00Z", gateway)];
    for (i, http) in lists.iter().enumerate() {
        let spec = json!({"hosts": ["m.example"], "gateways": ["gw"], "http": http});
        // Names in the other order than ages.
        let name = format!("m{}", lists.len() - i);
        objects.push(istio(
            "VirtualService",
            &name,
            &format!("2026-01-0{}T00:00:00Z", i + 1),
            spec,
        ));
    }
    let (routes, _) = routes(&world(&objects));
    let req = Request {
        method: "GET",
        scheme: "http",
        host: "m.example",
        port: 8000,
        written: None,
        path,
        query: "",
        headers: &Nothing,
    };
    match &find_rule(&routes, None, &req).expect("somebody takes it").rule.action {
        Action::Direct { status, .. } | Action::Fail { status, .. } => *status,
        other => panic!("{other:?}"),
    }
}

/// "Moves the catch all routes alone to the end, while retaining the relative order of other
/// routes" (Istio, of the VirtualServices of a Gateway's host).
#[test]
fn an_older_objects_rule_for_everything_hides_no_younger_objects_rules() {
    let direct = |status: u16| json!({"directResponse": {"status": status}});
    let on = |prefix: &str, status: u16| {
        let block = json!({"uri": {"prefix": prefix}});
        json!({"match": [block], "directResponse": {"status": status}})
    };
    let (all, slash) = (direct(231), on("/", 231));
    let regex = json!({"match": [{"uri": {"regex": ".*"}}], "directResponse": {"status": 231}});
    let mixed = json!({"match": [{"uri": {"prefix": "/old"}}, {"uri": {"prefix": "/"}}],
                       "directResponse": {"status": 231}});
    for last in [all, slash, regex, mixed] {
        // What stands behind a rule for everything is never reached.
        let older = json!([on("/both", 230), last, on("/dead", 299)]);
        let lists = [older, json!([on("/new", 232), on("/both", 233), direct(234)])];
        for (path, status) in
            [("/new", 232), ("/both", 230), ("/else", 231), ("/dead", 231), ("/old", 231)]
        {
            assert_eq!(answered(&lists, path), status, "{path}: {lists:?}");
        }
    }
    // A match for everything under a condition is a rule as any other.
    let posts = json!({"match": [{"uri": {"prefix": "/"}, "method": {"exact": "GET"}}],
                       "directResponse": {"status": 235}});
    assert_eq!(answered(&[json!([posts]), json!([on("/new", 232)])], "/new"), 235);
    // What none of them takes is nobody's.
    assert_eq!(answered(&[json!([on("/a", 232)]), json!([on("/b", 233)])], "/c"), 404);
}
