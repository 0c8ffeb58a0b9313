// SPDX-License-Identifier: Apache-2.0
//! What tokens may do as it travels, and what is handed on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt as _;

use super::*;

/// Says the same of every token, or nothing.
#[derive(Debug)]
struct Server {
    says: Vec<u8>,
    away: AtomicBool,
    asked: AtomicUsize,
}

impl Far for Server {
    fn token(&self, _: String) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let away = self.away.load(Ordering::Relaxed);
        let said = if away { Err(Away("gone".into())) } else { Ok(self.says.clone()) };
        async move { said }.boxed()
    }

    fn ask(&self, _: FarAsk) -> BoxFuture<'_, Result<FarAnswer, Away>> {
        async { Err(Away("gone".into())) }.boxed()
    }

    fn was_there(&self) -> bool {
        false
    }

    fn registers(&self, _: String, _: &str) -> Box<dyn Coming> {
        unreachable!("nothing is registered here")
    }

    fn defaults(&self, _: &str) {}

    fn wrote(&self, _: u64) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

fn table() -> Permissions {
    let row = |kind, names, verb| Permission {
        subject: "p".into(),
        kind,
        namespace: Some("default".into()),
        names,
        verb,
    };
    Permissions::new(
        vec![
            row(Kind::Service, Names::Prefix("".into()), Some(Verb::Read)),
            row(Kind::Service, Names::Exactly("web".into()), Some(Verb::Write)),
            row(Kind::Key, Names::Prefix("secret/".into()), None),
        ],
        false,
    )
}

#[test]
fn rows_of_a_token_travel_whole() {
    let table = Arc::new(table());
    let who = Who { accessor: "a".into(), table: Some(table.clone()), ..Who::anybody() };
    let back = read(&write(Ok(who))).unwrap().unwrap();
    assert_eq!((&*back.accessor, back.table), ("a", Some(table)));
    let open = read(&write(Ok(Who::anybody()))).unwrap().unwrap();
    assert!(open.may_all() && open.table.is_none());
    let refused = read(&write(Err(Refusal::forbidden("ACL not found")))).unwrap().unwrap_err();
    assert_eq!((refused.status.as_u16(), refused.text.as_str()), (403, "ACL not found"));
    let manage = Who { table: Some(Arc::new(Permissions::management())), ..Who::anybody() };
    assert!(read(&write(Ok(manage))).unwrap().unwrap().may_all());
}

#[test]
fn what_cannot_be_read_allows_nothing() {
    let verbs = r#"{"acl":true,"rows":[{"subject":"p","kind":"key","namespace":null,
        "exactly":false,"name":"","verb":"own"}]}"#;
    for json in ["", "{}", "{}x", "[]", r#"{"acl":true,"more":1}"#, verbs] {
        assert_eq!(read(json.as_bytes()).unwrap_err().status.as_u16(), 500, "{json}");
    }
}

#[tokio::test]
async fn a_token_holds_on_while_nobody_can_be_asked_and_no_other_does() {
    let who = Who { accessor: "a".into(), table: Some(Arc::new(table())), ..Who::anybody() };
    let (says, asked) = (write(Ok(who)), AtomicUsize::new(0));
    let server = Server { says, away: AtomicBool::new(false), asked };
    let (clock, time) = Clock::manual();
    let tokens = Tokens::new(clock);
    tokens.who(&server, "one").await.unwrap();
    tokens.who(&server, "one").await.unwrap();
    assert_eq!(server.asked.load(Ordering::Relaxed), 1, "it is believed for a while");
    server.away.store(true, Ordering::Relaxed);
    time.advance(TOKEN_FRESH);
    let who = tokens.who(&server, "one").await.unwrap();
    assert!(who.may(Verb::Write, Kind::Service, "default", "web"));
    let other = tokens.who(&server, "other").await.unwrap_err();
    assert!(other.text.starts_with("No cluster leader"), "{}", other.text);
}

/// Knows one token.
#[derive(Debug)]
struct Picky(AtomicBool);

impl Far for Picky {
    fn token(&self, secret: String) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        let said = match (self.0.load(Ordering::Relaxed), &*secret) {
            (true, _) => Err(Away("gone".into())),
            (false, "real") => {
                Ok(write(Ok(Who { table: Some(Arc::new(table())), ..Who::anybody() })))
            }
            (false, _) => Ok(write(Err(Refusal::forbidden("ACL not found")))),
        };
        async move { said }.boxed()
    }

    fn ask(&self, _: FarAsk) -> BoxFuture<'_, Result<FarAnswer, Away>> {
        async { Err(Away("gone".into())) }.boxed()
    }

    fn was_there(&self) -> bool {
        false
    }

    fn registers(&self, _: String, _: &str) -> Box<dyn Coming> {
        unreachable!("nothing is registered here")
    }

    fn defaults(&self, _: &str) {}

    fn wrote(&self, _: u64) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[tokio::test]
async fn tokens_that_are_made_up_push_out_none_that_is_somebodys() {
    let server = Picky(AtomicBool::new(false));
    let (clock, time) = Clock::manual();
    let tokens = Tokens::new(clock);
    tokens.who(&server, "real").await.unwrap();
    for n in 0..2 * TOKENS_MAX {
        let refused = tokens.who(&server, &format!("made up {n}")).await.unwrap_err();
        assert_eq!(refused.status.as_u16(), 403);
    }
    let told = || {
        let told = tokens.lock();
        (told.known.len(), told.refused.len())
    };
    assert_eq!(told().0, 1);
    assert!(told().1 <= REFUSED_MAX);
    server.0.store(true, Ordering::Relaxed);
    time.advance(TOKEN_FRESH);
    tokens.who(&server, "real").await.unwrap();
    // One that was taken back is not believed because it was once.
    server.0.store(false, Ordering::Relaxed);
    tokens.lock().note("real", Mono(0), Err(Refusal::forbidden("ACL not found")));
    assert_eq!(told().0, 0);
}

#[test]
fn the_token_that_nobody_showed_for_longest_makes_room() {
    let mut told = Told::default();
    for n in 0..=TOKENS_MAX as u64 {
        told.note(&n.to_string(), Mono(n), Ok(Who::anybody()));
    }
    assert_eq!(told.known.len(), TOKENS_MAX);
    assert!(!told.known.contains_key("0") && told.known.contains_key("1"));
}

#[test]
fn a_request_is_handed_on_without_its_secret() {
    let ask = |method: Method, uri: &str| {
        let uri: http::Uri = uri.parse().unwrap();
        let (endpoint, _) = super::super::routes::find(&method, uri.path()).unwrap();
        let params = Params::parse(uri.query()).unwrap();
        FarAsk::new((&method, &uri), (endpoint, &params), "s".into(), Bytes::new()).unwrap()
    };
    let one =
        ask(Method::GET, "/v1/health/service/web?index=7&passing&token=s&wait=2s&tag=a&stale");
    assert!(one.kept && one.index == 7);
    let second = Duration::from_secs(1);
    let wanted = "/v1/health/service/web?passing&tag=a&stale&index=9&wait=1000ms";
    assert_eq!(one.target(9, second), wanted);
    assert_eq!(one.target(0, second), "/v1/health/service/web?passing&tag=a&stale");
    assert!(!ask(Method::GET, "/v1/health/service/web?consistent").kept);
    assert!(!ask(Method::GET, "/v1/kv/a?recurse").kept);
    assert_eq!(ask(Method::PUT, "/v1/kv/a?cas=0").target(0, second), "/v1/kv/a?cas=0");
    assert!(!format!("{one:?}").contains("health"));
}

#[test]
fn without_access_lists_machines_steer_nobody_elses_traffic() {
    let refused = |method: &str, path: &str| {
        let method: Method = method.parse().unwrap();
        let (endpoint, _) = super::super::routes::find(&method, path).unwrap();
        refused_to_hosts(endpoint, &method).is_some()
    };
    for (method, path) in [
        ("PUT", "/v1/config"),
        ("DELETE", "/v1/config/service-router/web"),
        ("PUT", "/v1/connect/intentions/exact"),
        ("PUT", "/v1/connect/ca/configuration"),
        ("GET", "/v1/snapshot"),
        ("PUT", "/v1/snapshot"),
        ("PUT", "/v1/operator/autopilot/configuration"),
        ("PUT", "/v1/agent/force-leave/other"),
        ("GET", "/v1/agent/connect/ca/leaf/web"),
    ] {
        assert!(refused(method, path), "{method} {path}");
    }
    for (method, path) in [
        ("GET", "/v1/config/service-router"),
        ("GET", "/v1/health/service/web"),
        ("PUT", "/v1/kv/a"),
        ("PUT", "/v1/session/create"),
        ("PUT", "/v1/catalog/register"),
        ("PUT", "/v1/acl/bootstrap"),
    ] {
        assert!(!refused(method, path), "{method} {path}");
    }
}
