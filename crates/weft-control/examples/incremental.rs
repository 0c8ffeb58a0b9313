// SPDX-License-Identifier: Apache-2.0
//! `incremental SERVICES CHANGES`: folds and compiles that many services, then moves one endpoint
//! that many times, each time as the server does it: the World before and the Mesh before are
//! still held by readers. `tests/incrementality.rs` counts its instructions.

use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::World;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>().expect("a number"));
    let services = numbers.next().expect("SERVICES");
    let changes = numbers.next().expect("CHANGES");
    let mut world = World::new();
    for i in 0..services {
        let name = format!("s{i:05}");
        let key = format!("/o/core/services/shop/{name}");
        let value = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"shop"}},
                "spec":{{"clusterIP":"127.96.{}.{}","ports":[{{"name":"http","port":80}}]}}}}"#,
            i / 256,
            i % 256
        );
        put(&mut world, &key, &value);
        put(&mut world, &slice_key(&name), &slice(&name, 0));
    }
    let (mut compiler, _) = Compiler::new(Env::default(), &world);
    let name = format!("s{:05}", services / 2);
    let mut sent = 0;
    for n in 0..changes {
        sent += one_change(&mut world, &mut compiler, &name, n + 1);
    }
    println!("{sent}");
}

/// What is counted: never inlined, so that the counter finds its beginning and end.
#[inline(never)]
fn one_change(world: &mut World, compiler: &mut Compiler, name: &str, n: usize) -> usize {
    let (world_before, mesh_before) = (world.clone(), compiler.mesh().clone());
    let delta = put(world, &slice_key(name), &slice(name, n));
    let update = compiler.update(world, &delta);
    assert_eq!(update.compiled, 1, "one change compiles one unit");
    drop((world_before, mesh_before));
    update.delta.upserts.len()
}

fn put(world: &mut World, key: &str, value: &str) -> weft_kinds::world::WorldDelta {
    let revision = world.revision() + 1;
    world.apply(key, Some(value.as_bytes()), revision)
}

fn slice_key(service: &str) -> String {
    format!("/o/discovery.k8s.io/endpointslices/shop/{service}")
}

/// Two endpoints; the second one moves.
fn slice(service: &str, n: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"{service}","namespace":"shop",
              "labels":{{"kubernetes.io/service-name":"{service}"}}}},
            "addressType":"IPv4","ports":[{{"name":"http","port":8080}}],
            "endpoints":[{{"addresses":["127.64.0.1"]}},{{"addresses":["127.65.{}.{}"]}}]}}"#,
        n / 256,
        n % 256
    )
}
