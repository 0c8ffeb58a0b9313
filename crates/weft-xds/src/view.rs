// SPDX-License-Identifier: Apache-2.0
//! What a node must hold: an immutable map that views of many nodes share structurally.

use std::sync::Arc;

use weft_model::{Resource, ResourceName};

use crate::codec::{CodecError, Encoded, Version, encode};
use bytes::Bytes;

/// One resource, encoded once and shared by every view and stream that has it.
#[derive(Debug)]
pub struct Entry {
    pub version: Version,
    pub bytes: Bytes,
    /// The same as a value, for scoping and for people.
    pub resource: Arc<Resource>,
}

/// The desired resources of one node at a generation. Cloning is cheap; the difference of two
/// views that came from each other costs what changed, not what they hold.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub generation: u64,
    pub resources: imbl::OrdMap<ResourceName, Arc<Entry>>,
}

// === impl Entry ===

impl Entry {
    /// # Errors
    /// When the resource cannot be encoded.
    pub fn new(resource: Arc<Resource>) -> Result<Self, CodecError> {
        let Encoded { version, bytes } = encode(&resource)?;
        Ok(Self { version, bytes, resource })
    }
}

impl PartialEq for Entry {
    /// Equal bytes have equal versions.
    fn eq(&self, other: &Self) -> bool {
        #[cfg(test)]
        tests::COMPARED.with(|n| n.set(n.get() + 1));
        self.version == other.version
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use weft_model::{Fail, Root};

    use super::*;
    use crate::{NodeId, NodeInfo, client, server};
    use weft_base::rng::Rng;

    thread_local! {
        /// Entries compared on this thread: what finding a difference costs.
        pub(super) static COMPARED: Cell<usize> = const { Cell::new(0) };
    }

    fn entry(reason: &str) -> Arc<Entry> {
        let resource = Resource::Fail(Fail { reason: reason.into(), origin: None });
        Arc::new(Entry::new(Arc::new(resource)).unwrap())
    }

    fn name(i: usize) -> ResourceName {
        Root::host(format!("h{i}")).child("endpoints/80")
    }

    /// Entries compared when one of `size` resources changes, is added and is removed.
    fn cost(size: usize) -> usize {
        let resources: imbl::OrdMap<_, _> = (0..size).map(|i| (name(i), entry("x"))).collect();
        let mut view = View { generation: 1, resources };
        let id = NodeId::sidecar("shop", "a").unwrap();
        let node = NodeInfo::this_release(id, "test");
        let mut client = client::Machine::new(node, [], Rng::seeded(1));
        let Some(client::Output::Send(first)) = client.connected() else { panic!() };
        let (mut server, _) = server::Machine::open(*first).unwrap();
        let mut step = |view: &View| {
            let before = COMPARED.get();
            let outputs = server.offer(Arc::new(view.clone()));
            let cost = COMPARED.get() - before;
            let mut resources = 0;
            for output in outputs {
                let server::Output::Send(response) = output else { continue };
                resources += response.resources.len() + response.removed_resources.len() - 1;
                let Some(client::Output::Deliver(t)) = client.received(*response) else { continue };
                let generation = t.generation;
                let answer = client.applied(client::Applied { generation, rejected: Vec::new() });
                let Some(client::Output::Send(answer)) = answer else { panic!() };
                server.received(*answer).unwrap();
            }
            (cost, resources)
        };
        step(&view);
        let mut total = 0;
        for change in 0..3 {
            view.generation += 1;
            match change {
                0 => drop(view.resources.insert(name(size / 2), entry("y"))),
                1 => drop(view.resources.insert(name(size * 2), entry("z"))),
                _ => drop(view.resources.remove(&name(size / 3))),
            }
            let (cost, resources) = step(&view);
            assert_eq!(resources, 1, "change {change}");
            total += cost;
        }
        total
    }

    #[test]
    fn one_change_costs_the_same_in_a_small_and_in_a_large_mesh() {
        let (small, large) = (cost(150), cost(15_000));
        assert!(small > 0 && large <= small * 4 && large < 600, "{small} and {large}");
    }
}
