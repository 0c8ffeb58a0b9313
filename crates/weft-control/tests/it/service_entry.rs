// SPDX-License-Identifier: Apache-2.0
//! A host that several ServiceEntries name belongs to the oldest, and passes on without a gap; a
//! name that is looked up comes and changes with its addresses.

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::{KindId, ObjectKey, ReadKey, World, WorldDelta, resolved_value};
use weft_model::{Resource, Root};

use crate::common::world_of;

fn entry(name: &str, created: &str, spec: Value) -> (ObjectKey, Value) {
    let key = ObjectKey::new(KindId::ServiceEntry, "shop", name);
    let raw = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": { "name": name, "namespace": "shop", "creationTimestamp": created },
        "spec": spec,
    });
    (key, raw)
}

fn fixed(ip: &str, port: u16) -> Value {
    json!({ "hosts": ["x.example.com"], "resolution": "STATIC", "exportTo": ["."],
        "ports": [{ "number": port, "name": "p", "protocol": "TCP" }],
        "endpoints": [{ "address": ip }] })
}

struct Rig {
    world: World,
    compiler: Compiler,
}

impl Rig {
    fn new() -> Self {
        let world = world_of([]);
        let (compiler, _) = Compiler::new(Env::default(), &world);
        Self { world, compiler }
    }

    /// Writes or deletes something; what was removed of the mesh by it.
    fn step(&mut self, key: &str, value: Option<&Value>) -> Vec<String> {
        let revision = self.world.revision() + 1;
        let bytes = value.map(ToString::to_string);
        let delta = self.world.apply(key, bytes.as_deref().map(str::as_bytes), revision);
        let update = self.compiler.update(&self.world, &delta);
        update.delta.removes.iter().map(ToString::to_string).collect()
    }

    /// Where the host's endpoints of a port are.
    fn endpoints(&self, host: &str, port: u16) -> Option<Vec<String>> {
        let name = Root::host(host).child(weft_model::endpoints_child(port));
        match &**self.compiler.mesh().get(&name)? {
            Resource::Endpoints(set) => {
                Some(set.endpoints.iter().map(|e| e.address.to_string()).collect())
            }
            _ => None,
        }
    }

    /// What is followed is what starting anew would give.
    fn check(&self) {
        let (fresh, _) = Compiler::new(Env::default(), &self.world);
        assert_eq!(self.compiler.mesh().resources(), fresh.mesh().resources());
    }
}

#[test]
fn a_host_passes_from_one_entry_to_the_other_without_a_gap() {
    let (late_key, late) = entry("a-late", "2026-01-02T00:00:00Z", fixed("192.0.2.2", 80));
    let (early_key, early) = entry("z-early", "2026-01-01T00:00:00Z", fixed("192.0.2.1", 80));
    let mut rig = Rig::new();
    let x = |rig: &Rig| rig.endpoints("x.example.com", 80);
    assert!(rig.step(&late_key.store_key(), Some(&late)).is_empty());
    assert_eq!(x(&rig), Some(vec!["192.0.2.2:80".into()]));
    // The older one takes it, and lets it go again, whichever compiles first.
    for _ in 0..2 {
        assert_eq!(rig.step(&early_key.store_key(), Some(&early)), Vec::<String>::new());
        assert_eq!(x(&rig), Some(vec!["192.0.2.1:80".into()]));
        rig.check();
        assert_eq!(rig.step(&early_key.store_key(), None), Vec::<String>::new());
        assert_eq!(x(&rig), Some(vec!["192.0.2.2:80".into()]));
        rig.check();
    }
    assert!(!rig.step(&late_key.store_key(), None).is_empty());
    assert_eq!(x(&rig), None);
    rig.check();
}

#[test]
fn a_name_that_is_looked_up_is_a_host_once_it_is_found() {
    let spec = json!({ "hosts": ["api.example.com"], "resolution": "DNS",
        "ports": [{ "number": 443, "name": "tls", "protocol": "TLS" }] });
    let (key, raw) = entry("api", "2026-01-01T00:00:00Z", spec);
    let mut rig = Rig::new();
    rig.step(&key.store_key(), Some(&raw));
    assert_eq!(rig.endpoints("api.example.com", 443), None, "it passes as it is");
    let found =
        |ips: &[[u8; 4]]| resolved_value(&ips.iter().map(|ip| (*ip).into()).collect::<Vec<_>>());
    rig.step("/s/resolved/api.example.com", Some(&found(&[[192, 0, 2, 1]])));
    assert_eq!(rig.endpoints("api.example.com", 443), Some(vec!["192.0.2.1:443".into()]));
    rig.step("/s/resolved/api.example.com", Some(&found(&[[192, 0, 2, 1], [192, 0, 2, 2]])));
    assert_eq!(rig.endpoints("api.example.com", 443).map(|all| all.len()), Some(2));
    rig.check();
    // Another name's addresses are none of its.
    let mut other = WorldDelta::default();
    other.touch(ReadKey::Setting("resolved/b.example.com".into()));
    assert_eq!(rig.compiler.update(&rig.world, &other).compiled, 0);
}
