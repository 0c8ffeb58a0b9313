// SPDX-License-Identifier: Apache-2.0
//! Machines with doors of their own: what they tell the server, and what such a door says.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use weft_identity::permission::{Kind, Names, Permission, Permissions, Verb};
use weft_kinds::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Status};
use weft_kinds::views::check::{CheckDefinition, Probe};
use weft_kinds::world::{CheckKey, RegistrationKey};
use weft_registry::Leader;

use super::far::{Away, Coming, FarAnswer, FarAsk};
use super::sync::{SyncAsk, SyncCheck, SyncService};
use super::who::Who;
use super::*;

const M1: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn check_key(node: &str, id: &str) -> CheckKey {
    CheckKey { namespace: "default".into(), node: node.into(), id: id.into() }
}

fn check(id: &str, probe: Probe, status: Status) -> SyncCheck {
    let record = CheckRecord {
        id: id.into(),
        name: id.into(),
        node: "m1".into(),
        namespace: "default".into(),
        initial: Status::Critical,
        ..CheckRecord::default()
    };
    let definition = CheckDefinition { probe, agent: true, ..CheckDefinition::default() };
    let result = CheckStatus { status, ..CheckStatus::default() };
    SyncCheck { check: record.with(&definition), result, ..SyncCheck::default() }
}

fn service(id: &str, checks: Vec<SyncCheck>) -> SyncService {
    let registration = Registration {
        id: id.into(),
        service: id.into(),
        node: "m1".into(),
        namespace: "default".into(),
        agent: true,
        ..Registration::default()
    };
    SyncService { registration, checks, ..SyncService::default() }
}

async fn tell(door: &Door, ask: SyncAsk) {
    let said = door.sync("m1", M1, ask).await.unwrap();
    assert_eq!(said.refused, []);
}

/// Its clock is its own and stands still: no lease ends, and no check.
async fn server(store: &Arc<MemoryStore>, name: &str, tasks: &TaskGroup) -> (Registry, Door) {
    let (clock, _) = Clock::manual();
    let leader = Leader::among(name, clock.clone());
    let registry = Registry::open_as(store.clone(), clock, tasks.clone(), leader).await.unwrap();
    let config = Config {
        node_name: name.into(),
        node_id: String::new(),
        address: "127.0.0.1".parse().unwrap(),
        datacenter: "dc1".into(),
        version: "0.1.0".into(),
        hosts: Vec::new(),
    };
    let door = Door::new(&registry, config, tasks);
    (registry, door)
}

/// Until a registry's World is so.
async fn until(registry: &Registry, holds: impl Fn(&weft_kinds::world::World) -> bool) {
    let mut world = registry.world();
    while !holds(&world.load()) {
        assert!(world.changed().await);
    }
}

#[tokio::test]
async fn what_another_server_heard_is_written_again_by_who_is_told_it_now() {
    let tasks = TaskGroup::new();
    let store = Arc::new(MemoryStore::new(Clock::manual().0));
    let (a, door_a) = server(&store, "a", &tasks).await;
    let (b, door_b) = server(&store, "b", &tasks).await;
    let ttl = Probe::Ttl { ttl_ms: 60_000 };
    let up = check("up", ttl, Status::Passing);
    let ask =
        SyncAsk { whole: true, services: vec![service("web", vec![up])], ..Default::default() };
    let key = check_key("m1", "up");
    let by = |of: &Registry| of.now().catalog().result(&key).map(|result| result.by.clone());
    tell(&door_a, ask.clone()).await;
    let first = by(&a).expect("it passes");
    until(&b, |world| world.catalog().result(&key).is_some()).await;
    // A dies, its lease does not yet: the agent comes to B, where nothing seems to be new.
    tell(&door_b, ask.clone()).await;
    let second = by(&b).expect("it passes");
    assert_ne!(first, second, "it would end with the other server");
    let revision = b.now().revision();
    tell(&door_b, ask).await;
    assert_eq!(b.now().revision(), revision, "now it is B's, and nothing is new");
}

#[tokio::test]
async fn an_alias_of_what_is_on_another_node_is_worked_out_by_the_server() {
    let rig = rig().await;
    let on_m2 = json!({"Node": "m2", "Address": "10.0.0.2", "Service": {"Service": "db"},
        "Check": {"CheckID": "c", "Name": "c", "ServiceID": "db", "Status": "passing"}});
    rig.put("/v1/catalog/register", on_m2).await;
    let alias = |node: &str| Probe::Alias { node: node.into(), service_id: "db".into() };
    let checks = vec![
        check("far", alias("m2"), Status::Critical),
        // This one the machine works out.
        check("near", alias(""), Status::Warning),
    ];
    tell(&rig.door, SyncAsk { whole: true, checks, ..SyncAsk::default() }).await;
    let is = |id: &'static str, status: Status| {
        until(&rig.registry, move |w| w.catalog().status(&check_key("m1", id)) == status)
    };
    is("far", Status::Passing).await;
    is("near", Status::Warning).await;
    let turned = json!({"Node": "m2", "Address": "10.0.0.2",
        "Check": {"CheckID": "c", "Name": "c", "ServiceID": "db", "Status": "critical"}});
    rig.put("/v1/catalog/register", turned).await;
    is("far", Status::Critical).await;
    assert_eq!(rig.registry.now().catalog().status(&check_key("m1", "near")), Status::Warning);
}

#[tokio::test]
async fn everything_told_in_parts_removes_what_none_of_them_named() {
    let rig = rig().await;
    let node = NodeRecord { node: "m1".into(), ..NodeRecord::default() };
    for id in ["web-1", "foreign"] {
        let registration = service(id, Vec::new()).registration;
        let request = weft_registry::catalog::ServiceRequest {
            registration,
            node: node.clone(),
            ..Default::default()
        };
        rig.registry.catalog().register_service(request).await.unwrap();
    }
    let foreign = check("foreign", Probe::None, Status::Passing).check;
    rig.registry.catalog().register_check(&node, foreign).await.unwrap();
    let on = || {
        let world = rig.registry.now();
        let services = world.catalog().on_node("m1").map(|(key, _)| key.id.to_string());
        let checks = world.catalog().node_checks("m1").map(|(key, _)| key.id.to_string());
        services.chain(checks).collect::<Vec<_>>()
    };
    let whole = SyncAsk {
        services: vec![service("web-1", Vec::new()), service("web-2", Vec::new())],
        checks: vec![check("own", Probe::None, Status::Passing)],
        ..SyncAsk::default()
    };
    let marks = whole.marks();
    for service in whole.services {
        tell(&rig.door, SyncAsk { services: vec![service], ..SyncAsk::default() }).await;
    }
    tell(&rig.door, SyncAsk { checks: whole.checks, ..SyncAsk::default() }).await;
    assert_eq!(on(), ["foreign", "web-1", "web-2", "foreign", "own"], "it was not all yet");
    tell(&rig.door, SyncAsk { there: Some(marks), ..SyncAsk::default() }).await;
    assert_eq!(on(), ["web-1", "web-2", "own"]);
}

/// A server with access lists, as a machine's door sees it.
#[derive(Debug, Default)]
struct Server {
    /// The machine's own.
    registry: std::sync::OnceLock<Registry>,
    noted: Arc<Mutex<Vec<(String, String)>>>,
    defaults: Mutex<Vec<String>>,
    told: Mutex<usize>,
}

/// Notes what came.
struct Noted {
    of: Arc<Mutex<Vec<(String, String)>>>,
    what: (String, String),
}

impl Coming for Noted {
    fn came(self: Box<Self>) {
        self.of.lock().unwrap().push(self.what);
    }
}

impl Far for Server {
    fn token(&self, secret: String) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        let row = |kind, name: &str| Permission {
            subject: "p".into(),
            kind,
            namespace: None,
            names: Names::Exactly(name.into()),
            verb: Some(Verb::Write),
        };
        let rows = match &*secret {
            "web" => vec![row(Kind::Service, "web")],
            "node" => vec![row(Kind::Node, "n1"), row(Kind::Agent, "n1")],
            _ => Vec::new(),
        };
        let table = Some(Arc::new(Permissions::new(rows, false)));
        let who = Who { accessor: "a".into(), table, ..Who::anybody() };
        async move { Ok(far::write(Ok(who))) }.boxed()
    }

    fn ask(&self, ask: FarAsk) -> BoxFuture<'_, Result<FarAnswer, Away>> {
        let leader = ask.path == "/v1/status/leader";
        let body = if leader { "\"10.0.0.7:8300\"".into() } else { ask.token.into() };
        async move { Ok(FarAnswer { status: 200, headers: Vec::new(), body }) }.boxed()
    }

    fn was_there(&self) -> bool {
        false
    }

    fn registers(&self, what: String, secret: &str) -> Box<dyn Coming> {
        let world = self.registry.get().unwrap().now();
        let id = what.rsplit('/').next().unwrap();
        let is_there = world.catalog().on_node("n1").any(|(key, _)| &*key.id == id);
        let again = self.noted.lock().unwrap().iter().any(|(noted, _)| *noted == what);
        assert_eq!(is_there, again, "{what} would be told without its token");
        let what = (what, secret.to_owned());
        Box::new(Noted { of: self.noted.clone(), what })
    }

    fn defaults(&self, secret: &str) {
        self.defaults.lock().unwrap().push(secret.to_owned());
    }

    fn wrote(&self, _: u64) -> BoxFuture<'_, ()> {
        *self.told.lock().unwrap() += 1;
        async {}.boxed()
    }
}

async fn machine() -> (Rig, Arc<Server>) {
    let server = Arc::new(Server::default());
    let far: Arc<dyn Far> = server.clone();
    let rig = rig_with(Access { far: Some(far), ..Access::default() }).await;
    assert!(server.registry.set(rig.registry.clone()).is_ok());
    (rig, server)
}

#[tokio::test]
async fn only_what_was_registered_is_shown_to_the_server_with_a_token() {
    let (rig, server) = machine().await;
    let noted = || server.noted.lock().unwrap().clone();
    let web = json!({"Name": "web"}).to_string();
    let put = async |token: &str, path: &str, body: &str| {
        rig.as_token(token, "PUT", path, body).await.status
    };
    let register = "/v1/agent/service/register";
    assert_eq!(put("web", register, &web).await, 200);
    let mine = [("service/default/web".to_owned(), "web".to_owned())];
    assert_eq!(noted(), mine);
    // Another's, and nobody's, stand for nothing of it.
    assert_eq!(put("node", register, &web).await, 403);
    assert_eq!(put("", register, &web).await, 403);
    let check = json!({"Name": "c", "ServiceID": "none", "TTL": "10s"}).to_string();
    assert_eq!(put("node", "/v1/agent/check/register", &check).await, 404);
    assert_eq!(noted(), mine);
    let key = RegistrationKey { namespace: "default".into(), node: "n1".into(), id: "web".into() };
    assert!(rig.registry.now().catalog().registration(&key).is_some());
}

#[tokio::test]
async fn what_the_operators_files_define_waits_for_no_server() {
    let (rig, server) = machine().await;
    let body = json!({"Name": "web"}).to_string();
    let register = "/v1/agent/service/register";
    let (status, why) = rig.door.as_operator("PUT", register, "", body.clone().into()).await;
    assert_eq!((status, *server.told.lock().unwrap()), (200, 0), "{why}");
    assert_eq!(rig.as_token("web", "PUT", register, &body).await.status, 200);
    assert_eq!(*server.told.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_machines_door_knows_that_there_are_access_lists_and_has_a_default_token() {
    let (rig, server) = machine().await;
    let own = rig.as_token("node", "GET", "/v1/agent/self", "").await.json();
    assert_eq!(own["Stats"]["consul"]["acl"], "enabled");
    // It is no server, and the leader is who the server says.
    assert_eq!(own["Stats"]["consul"]["leader_addr"], "10.0.0.7:8300");
    assert_eq!(own["Stats"]["raft"].get("state"), None);
    assert_eq!(own["Member"]["Tags"]["role"], "node");
    assert_eq!(own["Member"]["Tags"]["acls"], "1");
    let set = async |token: &str| {
        let body = json!({"Token": "web"}).to_string();
        rig.as_token(token, "PUT", "/v1/agent/token/default", &body).await.status
    };
    assert_eq!(set("web").await, 403);
    assert_eq!(rig.get("/v1/kv/a").await.text, "", "no token is shown");
    assert_eq!(set("node").await, 200);
    assert_eq!(rig.get("/v1/kv/a").await.text, "web");
    assert_eq!(rig.as_token("node", "GET", "/v1/kv/a", "").await.text, "node");
    rig.put("/v1/agent/service/register", json!({"Name": "web"})).await;
    // The default token is nobody's own: another one will stand for it.
    assert_eq!(*server.noted.lock().unwrap(), [("service/default/web".to_owned(), String::new())]);
    assert_eq!(*server.defaults.lock().unwrap(), ["web"]);
}

#[tokio::test]
async fn maintenance_is_shown_to_the_server_with_the_token_that_set_it() {
    let (rig, server) = machine().await;
    rig.as_token("web", "PUT", "/v1/agent/service/register", r#"{"Name": "web"}"#).await;
    server.noted.lock().unwrap().clear();
    let set = async |token: &str, path: &str| {
        let path = format!("/v1/agent/{path}?enable=true&reason=why");
        assert_eq!(rig.as_token(token, "PUT", &path, "").await.status, 200);
    };
    set("node", "maintenance").await;
    set("web", "service/maintenance/web").await;
    let of = |what: &str, token: &str| (format!("check/default/{what}"), token.to_owned());
    assert_eq!(
        *server.noted.lock().unwrap(),
        [of("_node_maintenance", "node"), of("_service_maintenance:web", "web")]
    );
}

#[tokio::test]
async fn a_machines_maintenance_is_taken_with_its_own_token() {
    let rig = super::records::guarded(false).await;
    let node = rig.token(r#"node "m1" { policy = "write" }"#).await;
    let one =
        rig.token(r#"service "web" { policy = "write" } agent "x" { policy = "read" }"#).await;
    let other = rig.token(r#"service "web" { policy = "write" }"#).await;
    let whole = |web: &str, checks: Vec<SyncCheck>, own: Vec<SyncCheck>| {
        let web = SyncService { token: web.to_owned(), ..service("web", own) };
        SyncAsk { whole: true, services: vec![web], checks, ..SyncAsk::default() }
    };
    let down = |id: &str, token: &str| {
        let down = check(id, Probe::None, Status::Critical);
        SyncCheck { token: token.to_owned(), ..down }
    };
    tell(&rig.door, whole(&one, vec![down("_node_maintenance", &node)], Vec::new())).await;
    let critical = |id: &str| rig.registry.now().catalog().check(&check_key("m1", id)).is_some();
    assert!(critical("_node_maintenance"));
    // The token that registered the service is gone; who may write the service drains it.
    let own = rig.as_token(&one, "GET", "/v1/acl/token/self", "").await.json();
    let me = own["AccessorID"].clone();
    let gone = format!("/v1/acl/token/{}", me.as_str().unwrap());
    let root = super::records::ROOT;
    assert_eq!(rig.as_token(root, "DELETE", &gone, "").await.status, 200);
    let web = vec![down("_service_maintenance:web", &other)];
    tell(&rig.door, whole(&one, Vec::new(), web)).await;
    assert!(critical("_service_maintenance:web"));
    let bad = vec![down("_service_maintenance:web", &other), down("c", "nobody")];
    let said = rig.door.sync("m1", M1, whole(&one, Vec::new(), bad)).await.unwrap();
    assert_eq!(said.refused.len(), 1, "{said:?}");
    assert!(!critical("c"));
}

#[tokio::test]
async fn a_write_goes_on_when_its_machine_waits_no_more() {
    let rig = rig().await;
    let body = json!({"Node": "m1", "Address": "10.0.0.1", "Service": {"Service": "web"},
        "Checks": (0..20).map(|n| json!({"CheckID": format!("c{n}"), "Name": "c"}))
            .collect::<Vec<_>>()});
    let ask = super::host::HostAsk {
        method: "PUT".into(),
        target: "/v1/catalog/register".into(),
        token: String::new(),
        body: body.to_string().into(),
    };
    let mut asked = Box::pin(rig.door.for_host("m1", ask));
    // It is looked at once, and given up.
    assert!(asked.as_mut().now_or_never().is_none());
    drop(asked);
    until(&rig.registry, |world| world.catalog().check(&check_key("m1", "c19")).is_some()).await;
}

/// A server that cannot be asked.
#[derive(Debug)]
struct Gone {
    /// It is known that there are no access lists.
    open: bool,
    /// It was there before.
    was: bool,
}

impl Far for Gone {
    fn token(&self, _secret: String) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        let said = match self.open {
            true => Ok(far::write(Ok(Who::anybody()))),
            false => Err(Away("nobody answers".into())),
        };
        async move { said }.boxed()
    }

    fn ask(&self, _ask: FarAsk) -> BoxFuture<'_, Result<FarAnswer, Away>> {
        async { Err(Away("nobody answers".into())) }.boxed()
    }

    fn was_there(&self) -> bool {
        self.was
    }

    fn registers(&self, what: String, secret: &str) -> Box<dyn Coming> {
        Box::new(Noted { of: Arc::default(), what: (what, secret.to_owned()) })
    }

    fn defaults(&self, _secret: &str) {}

    fn wrote(&self, _revision: u64) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[tokio::test]
async fn a_machine_without_a_server_knows_what_is_registered_with_it() {
    let far = Some(Arc::new(Gone { open: true, was: false }) as Arc<dyn Far>);
    let rig = rig_with(Access { far, ..Access::default() }).await;
    let web = json!({"Name": "web", "Port": 80, "Check": {"TTL": "60s", "Status": "passing"}});
    rig.put("/v1/agent/service/register", web).await;
    let health = rig.get("/v1/health/service/web?passing").await;
    assert_eq!((health.status, count(&health)), (200, 1), "{}", health.text);
    assert_eq!(health.headers["x-consul-knownleader"], "false");
    assert_eq!(health.headers["x-consul-effective-consistency"], "stale");
    assert_eq!(count(&rig.get("/v1/catalog/service/web").await), 1);
    assert_eq!(count(&rig.get("/v1/health/checks/web").await), 1);
    assert!(count(&rig.get("/v1/health/node/n1").await) > 0);
    let waits = format!("/v1/health/service/web?index={}&wait=20ms", health.index());
    assert_eq!(count(&rig.get(&waits).await), 1, "who waits is answered");
    rig.put("/v1/agent/check/fail/service:web", Value::Null).await;
    let nobody = rig.get("/v1/health/service/web?passing").await;
    assert_eq!(nobody.status, 500, "others may pass: {}", nobody.text);
    // What others registered only the server could say, and who wants to be sure is told nothing.
    for path in [
        "/v1/health/service/db",
        "/v1/catalog/services",
        "/v1/catalog/node/n2",
        "/v1/health/service/web?consistent",
        "/v1/health/service/web?ns=shop",
        "/v1/health/service/web?tag=v2",
        "/v1/kv/web",
    ] {
        let answer = rig.get(path).await;
        assert_eq!(answer.status, 500, "{path}: {}", answer.text);
        assert!(answer.text.starts_with("No cluster leader"), "{path}: {}", answer.text);
    }
    // Where nobody knows who may see what nobody is shown anything, and where a server was there it
    // knows of others.
    for (open, was) in [(false, false), (true, true)] {
        let far = Some(Arc::new(Gone { open, was }) as Arc<dyn Far>);
        let closed = rig_with(Access { far, ..Access::default() }).await;
        let node = NodeRecord { node: "n1".into(), ..NodeRecord::default() };
        let registration =
            Registration { node: "n1".into(), ..service("web", Vec::new()).registration };
        let request =
            weft_registry::catalog::ServiceRequest { registration, node, ..Default::default() };
        closed.registry.catalog().register_service(request).await.unwrap();
        assert_eq!(closed.get("/v1/health/service/web").await.status, 500, "{open} {was}");
    }
}

#[tokio::test]
async fn a_machines_agent_does_not_say_that_it_read_its_files_again_or_may_be_ended() {
    let (rig, _server) = machine().await;
    let reload = rig.as_token("node", "PUT", "/v1/agent/reload", "").await;
    assert_eq!(reload.status, 501, "{}", reload.text);
    assert!(reload.text.contains("start it again"), "{}", reload.text);
    let leave = rig.as_token("node", "PUT", "/v1/agent/leave", "").await;
    assert_eq!(leave.status, 403, "{}", leave.text);
    assert!(!leave.text.contains("--consul-leave"), "no flag of its: {}", leave.text);
}

#[tokio::test]
async fn tags_that_a_machine_leaves_to_others_stay_until_it_has_new_ones() {
    let rig = rig().await;
    let web = |tag: &str, free: bool| {
        let mut web = service("web", Vec::new());
        web.registration.tags = vec![tag.into()];
        web.registration.enable_tag_override = free;
        web
    };
    let whole = |web: SyncService| SyncAsk { whole: true, services: vec![web], ..<_>::default() };
    let tags = || {
        let world = rig.registry.now();
        let key =
            RegistrationKey { namespace: "default".into(), node: "m1".into(), id: "web".into() };
        world.catalog().registration(&key).unwrap().tags[0].to_string()
    };
    tell(&rig.door, whole(web("orig", true))).await;
    let service = json!({"Service": "web", "Tags": ["theirs"], "EnableTagOverride": true});
    let written = json!({"Node": "m1", "SkipNodeUpdate": true, "Service": service});
    rig.put("/v1/catalog/register", written).await;
    tell(&rig.door, whole(web("orig", true))).await;
    assert_eq!(tags(), "theirs");
    // Another result of its check is no news of the instance.
    let turned = SyncService { retold: true, ..web("orig", true) };
    tell(&rig.door, SyncAsk { services: vec![turned], ..SyncAsk::default() }).await;
    assert_eq!(tags(), "theirs");
    tell(&rig.door, SyncAsk { services: vec![web("new", true)], ..SyncAsk::default() }).await;
    assert_eq!(tags(), "new", "its agent was given new ones");
    tell(&rig.door, whole(web("orig", false))).await;
    assert_eq!(tags(), "orig", "it leaves them to nobody any more");
}
