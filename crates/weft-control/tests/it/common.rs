// SPDX-License-Identifier: Apache-2.0
//! Manifests to a World, as the registry would fold them.

use serde_json::Value;
use weft_kinds::world::{KindId, ObjectKey, World, WorldDelta};

/// Folds every document of the YAML texts, in order.
pub fn world_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> World {
    let mut world = World::new();
    for yaml in texts {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
        for object in documents.into_iter().filter(|d| !d.is_null()) {
            put(&mut world, &object);
        }
    }
    world
}

pub fn put(world: &mut World, object: &Value) -> WorldDelta {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (api, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let kind = KindId::by_api(&api, &kind).unwrap_or_else(|| panic!("{api} {kind}?"));
    let meta = &object["metadata"];
    let key = ObjectKey::new(kind, text(&meta["namespace"]), text(&meta["name"]));
    let revision = world.revision() + 1;
    world.apply(&key.store_key(), Some(object.to_string().as_bytes()), revision)
}
