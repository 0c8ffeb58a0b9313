// SPDX-License-Identifier: Apache-2.0
//! One configuration after the other: objects → World → Mesh → table → a real worker.

mod compare;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_base::clock::Clock;
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::{KindId, ObjectKey, World};
use weft_model::{Resource, Route};
use weft_proxy::config::{LogFormat, LogWhat, NodeId, ProxyConfig};
use weft_proxy::explain::Place;
use weft_proxy::memory::MemoryProxy;
use weft_proxy::observe::format::Format;
use weft_proxy::table::{Builder, Door, Table};
use weft_testkit::Ask;
use weft_testkit::random::{self, Chance, Scene};
use weft_testkit::reference::{Verdict, gateway_api, grpc, istio};

use wire::{Client, Origins};

/// More than a request takes whose time-out is kept, on the clock of the test.
const ANSWER_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    Mesh,
    /// GRPCRoutes.
    Calls,
    /// VirtualServices at a Gateway of Istio's.
    Edge,
}

pub struct Harness {
    kind: Kind,
    base: Vec<Value>,
    world: World,
    proxy: MemoryProxy,
    origins: Origins,
    place: Place,
    /// Of the last table.
    generation: u64,
    /// How often each kind of answer was seen.
    pub seen: BTreeMap<String, usize>,
    bug: Option<Bug>,
}

/// What a wrong compiler would make of a route.
pub type Bug = fn(&mut Route);

// === impl Kind ===

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Mesh => "mesh",
            Self::Calls => "calls",
            Self::Edge => "edge",
        }
    }

    /// Objects of one configuration.
    fn objects(self, chance: &mut Chance) -> Vec<Value> {
        match self {
            Self::Gateway => random::gateway(chance),
            Self::Mesh => random::virtual_services(chance),
            Self::Calls => random::grpc::gateway(chance),
            Self::Edge => random::edge::gateway(chance),
        }
    }

    fn ask(self, chance: &mut Chance) -> Ask {
        match self {
            Self::Gateway | Self::Edge => random::request(chance, Scene::Gateway),
            Self::Mesh => random::request(chance, Scene::Mesh),
            Self::Calls => random::grpc::call(chance),
        }
    }

    fn judge(self, objects: &[Value], ask: &Ask) -> Verdict {
        match self {
            Self::Gateway => gateway_api::judge(objects, ask),
            Self::Mesh => istio::judge(objects, ask),
            Self::Calls => grpc::judge(objects, ask),
            Self::Edge => istio::judge_at_gateway(objects, ask),
        }
    }

    fn node(self) -> &'static str {
        match self {
            Self::Gateway | Self::Calls | Self::Edge => "gateway~shop~edge",
            Self::Mesh => "sidecar~shop~client-0",
        }
    }
}

// === impl Harness ===

impl Harness {
    pub fn new(kind: Kind) -> Self {
        let mut world = World::new();
        let base = random::base();
        let class = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "weft"}, "spec": {"controllerName": "weft.dev/gateway"},
        });
        for object in base.iter().chain([&class]) {
            put(&mut world, object);
        }
        let origins = Origins::default();
        let dialled = origins.clone();
        MemoryProxy::dial(move |address| Ok(dialled.connect(address)));
        let place = match kind {
            Kind::Gateway | Kind::Calls | Kind::Edge => Place {
                door: Door::Gateway("shop~edge~8000".into()),
                local: SocketAddr::from(([127, 0, 0, 1], 8000)),
                scheme: "http",
                server_name: None,
            },
            Kind::Mesh => Place {
                door: Door::Forward,
                local: SocketAddr::from(([127, 0, 0, 1], 15_001)),
                scheme: "http",
                server_name: None,
            },
        };
        let proxy = MemoryProxy::new(config(kind), Arc::default());
        let (generation, seen) = (0, BTreeMap::new());
        Self { kind, base, world, proxy, origins, place, generation, seen, bug: None }
    }

    /// The same with a bug, which the comparison is to find.
    pub fn with_bug(kind: Kind, bug: Bug) -> Self {
        Self { bug: Some(bug), ..Self::new(kind) }
    }

    /// Makes the configuration of a seed and sends it requests.
    pub async fn check(&mut self, seed: u64, requests: usize) {
        if let Err(wrong) = self.differences(seed, requests).await {
            panic!("{wrong}");
        }
    }

    /// The same.
    ///
    /// # Errors
    /// The first disagreement of the four.
    pub async fn differences(&mut self, seed: u64, requests: usize) -> Result<(), String> {
        let mut chance = Chance::seeded(seed);
        let mesh = self.kind == Kind::Mesh;
        let made = self.kind.objects(&mut chance);
        let table = self.apply(&made);
        self.proxy.swap(table.clone());
        let objects: Vec<Value> = self.base.iter().chain(&made).cloned().collect();
        let stream = self.proxy.connect(self.place.door.clone(), self.place.local);
        let mut client = Client::new(stream);
        for _ in 0..requests {
            let ask = self.kind.ask(&mut chance);
            let verdict = self.kind.judge(&objects, &ask);
            let said = compare::explained(&table, &self.place, mesh, &ask);
            self.proxy.logged();
            self.origins.next(ask.failures, compare::is_late(&verdict));
            let answered = async {
                let got = client.send(&ask, mesh).await;
                // The record is written when the answer's end was passed on.
                let mut lines = self.proxy.logged();
                while lines.is_empty() {
                    // Time passes only where nobody has anything to do.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    lines = self.proxy.logged();
                }
                (got, lines.join("\n"))
            };
            let Ok((got, line)) = tokio::time::timeout(ANSWER_MAX, answered).await else {
                let kind = self.kind.name();
                return Err(format!(
                    "WEFT_EXPLAIN_SEED={kind}:{seed}: no answer, or no record of it: {ask:?}"
                ));
            };
            let done = compare::Done { got, origin: self.origins.seen(), line };
            let kind = compare::kind(&verdict);
            *self.seen.entry(kind.to_owned()).or_default() += 1;
            let wrong = compare::differences(&ask, &verdict, &said, &done);
            if !wrong.is_empty() {
                return Err(format!(
                    "{}:\n{}\n{ask:?}\nthe texts: {verdict:?}\nexplained: {}\ndone: {done:?}\n{}",
                    format_args!("WEFT_EXPLAIN_SEED={}:{seed}", self.kind.name()),
                    wrong.join("\n"),
                    serde_json::to_string(&said).unwrap(),
                    made.iter().map(|o| format!("{o}\n")).collect::<String>(),
                ));
            }
        }
        Ok(())
    }

    /// Compiles a World of these objects and builds the node's table. Anew each time: a change
    /// would hold routes back whose backends are not ready, which is not what is proved here.
    fn apply(&mut self, objects: &[Value]) -> Arc<Table> {
        let mut world = self.world.clone();
        for object in objects {
            put(&mut world, object);
        }
        let (compiler, _) = Compiler::new(Env::default(), &world);
        let mesh = compiler.mesh();
        let node: weft_xds::NodeId = self.kind.node().parse().unwrap();
        let scope = mesh.scope(&node).unwrap();
        let view = mesh.view(&scope).map(|(name, r)| {
            let mut resource = (**r).clone();
            if let (Some(bug), Resource::Route(route)) = (self.bug, &mut resource) {
                bug(route);
            }
            (name.clone(), Ok(resource))
        });
        let mut builder = Builder::new(1, Clock::system(), "shop".into());
        self.generation += 1;
        // Few routes are searched one by one, thousands by their index: both are proved.
        if self.generation.is_multiple_of(2) {
            builder = builder.indexed();
        }
        let (table, rejected) = builder.apply(self.generation, view.collect(), &[]);
        assert!(rejected.is_empty(), "{rejected:?}");
        table
    }
}

fn put(world: &mut World, object: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = match object["kind"].as_str().unwrap() {
        "Service" => KindId::Service,
        "Pod" => KindId::Pod,
        "EndpointSlice" => KindId::EndpointSlice,
        "GatewayClass" => KindId::GatewayClass,
        "Gateway" if object["apiVersion"] == "networking.istio.io/v1" => KindId::IstioGateway,
        "Gateway" => KindId::Gateway,
        "HTTPRoute" => KindId::HttpRoute,
        "GRPCRoute" => KindId::GrpcRoute,
        "TrafficPolicy" => KindId::TrafficPolicy,
        "VirtualService" => KindId::VirtualService,
        "DestinationRule" => KindId::DestinationRule,
        other => panic!("{other}"),
    };
    let meta = &object["metadata"];
    let key = ObjectKey::new(kind, text(&meta["namespace"]), text(&meta["name"]));
    let revision = world.revision() + 1;
    world.apply(&key.store_key(), Some(object.to_string().as_bytes()), revision);
}

fn config(kind: Kind) -> ProxyConfig {
    let mut config = ProxyConfig::new(NodeId::parse(kind.node()).unwrap());
    config.seed = Some(1);
    let format =
        "%ROUTE_NAME%\t%RESPONSE_CODE%\t%RESPONSE_FLAGS%\t%UPSTREAM_CLUSTER%\t%UPSTREAM_HOST%";
    config.access_log.what = LogWhat::Everything;
    config.access_log.format = LogFormat::Of(Arc::new(Format::text(format).unwrap()));
    config
}
