// SPDX-License-Identifier: Apache-2.0
//! What a node must hold: an immutable map that views of many nodes share structurally.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use weft_model::{NodeFeatures, Resource, ResourceName, express, needs};

use crate::codec::{CodecError, Encoded, Version, encode};
use bytes::Bytes;

/// One resource, encoded once and shared by every view and stream that has it.
#[derive(Debug)]
pub struct Entry {
    pub version: Version,
    /// How many bytes it has on the wire.
    pub size: usize,
    pub(crate) bytes: OnceLock<Bytes>,
    /// The same as a value, for scoping and for people.
    pub resource: Arc<Resource>,
    /// What a proxy must know to take it as it is.
    pub needs: NodeFeatures,
    /// Its forms for proxies that lack something; few do, and of few kinds.
    lesser: Mutex<Vec<(NodeFeatures, Arc<Entry>)>>,
}

/// The desired resources of one node at a generation. Cloning is cheap; the difference of two
/// views that came from each other costs what changed, not what they hold.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub generation: u64,
    pub resources: imbl::OrdMap<ResourceName, Arc<Entry>>,
    /// The node may ask for more than it is sent: what is not here may exist all the same.
    pub partial: bool,
    /// The host names that the node asked for, as it wrote them.
    pub asked: imbl::OrdMap<Arc<str>, Asked>,
}

/// What became of one name that a node asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Tells one asking from the next, since each is answered.
    pub number: u64,
    /// Whether it means any host that this node may see.
    pub exists: bool,
}

// === impl Entry ===

impl Entry {
    /// # Errors
    /// When the resource cannot be encoded.
    pub fn new(resource: Arc<Resource>) -> Result<Self, CodecError> {
        let Encoded { version, bytes } = encode(&resource)?;
        let (needs, size) = (needs(&resource), bytes.len());
        let bytes = OnceLock::from(bytes);
        Ok(Self { version, size, bytes, resource, needs, lesser: Mutex::default() })
    }

    /// The same for one that nobody may ever be sent: its bytes are let go, and made again at the
    /// first need.
    ///
    /// # Errors
    /// As [`Entry::new`].
    pub fn unsent(resource: Arc<Resource>) -> Result<Self, CodecError> {
        let mut entry = Self::new(resource)?;
        entry.bytes.take();
        Ok(entry)
    }

    /// Its wire form, which is kept from the first call on.
    pub fn bytes(&self) -> &Bytes {
        // What was encoded once is encoded again.
        let again = || encode(&self.resource).map(|again| again.bytes).unwrap_or_default();
        self.bytes.get_or_init(again)
    }

    /// The form for a proxy with these features: this one, unless it lacks something. Made once
    /// per set of features.
    pub fn for_features(self: &Arc<Self>, have: NodeFeatures) -> Arc<Self> {
        let missing = self.needs.without(have);
        if missing.is_empty() {
            return self.clone();
        }
        let mut lesser = self.lesser.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = lesser.iter().find(|(lacks, _)| *lacks == missing) {
            return made.clone();
        }
        let said = express(&self.resource, have).map(|said| Self::new(Arc::new(said)));
        let made = match said {
            Some(Ok(entry)) => Arc::new(entry),
            // What was encoded once is encoded in part, too.
            Some(Err(_)) | None => return self.clone(),
        };
        lesser.push((missing, made.clone()));
        made
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
        let mut view = View { generation: 1, resources, ..View::default() };
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
    fn what_was_not_sent_is_the_same_on_the_wire() {
        let resource = entry("x").resource.clone();
        let unsent = Entry::unsent(resource.clone()).unwrap();
        assert!(unsent.bytes.get().is_none());
        let sent = Entry::new(resource).unwrap();
        assert_eq!((unsent.version, unsent.size), (sent.version, sent.bytes().len()));
        assert_eq!(unsent.bytes(), sent.bytes());
        assert_eq!(Version::of(unsent.bytes()), sent.version);
    }

    #[test]
    fn one_change_costs_the_same_in_a_small_and_in_a_large_mesh() {
        let (small, large) = (cost(150), cost(15_000));
        assert!(small > 0 && large <= small * 4 && large < 600, "{small} and {large}");
    }
}
