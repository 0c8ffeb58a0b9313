// SPDX-License-Identifier: Apache-2.0
//! A door for the fuzz targets (`fuzz/`) and drills: any bytes through the whole way from datagram
//! to answer, without a socket. Decides nothing.
#![doc(hidden)]

use std::sync::Arc;

use weft_base::rng::Rng;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Status};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};

use super::answer::{Carrier, Desk, How, Sources, Step, forwarded, question};
use super::names::Zones;
use super::theirs::skim;
use crate::consul::view::Identity;

/// A small mesh that answers.
#[derive(Debug)]
pub struct Door {
    world: Arc<World>,
    own: Arc<Identity>,
    zones: Zones,
    desk: Desk,
    out: Vec<u8>,
}

// === impl Door ===

impl Default for Door {
    fn default() -> Self {
        Self::with(20)
    }
}

impl Door {
    /// A service `web` of that many instances.
    pub fn with(instances: u8) -> Self {
        let node =
            NodeRecord { node: "n1".into(), address: "127.0.0.1".into(), ..NodeRecord::default() };
        let own = Identity { node: Arc::new(node), datacenter: "dc1".into(), version: "".into() };
        let mut world = World::new();
        for n in 0..instances {
            register(&mut world, n);
        }
        Self {
            world: Arc::new(world),
            own: Arc::new(own),
            zones: Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() },
            desk: Desk::new(Rng::seeded(1)),
            out: Vec::new(),
        }
    }

    /// What a datagram is answered with, from a sender who may be somebody else unless `proven`.
    pub fn datagram(&mut self, bytes: &[u8], proven: bool) -> Option<&[u8]> {
        let how = How { carrier: Carrier::Udp, recursive: false, proven, cookie: None };
        let query = match question(bytes, &mut self.out) {
            Ok(query) => query,
            Err(step) => return (step == Step::Answer).then_some(self.out.as_slice()),
        };
        let sources = Sources::bare(&self.world, &self.own, &self.zones);
        match self.desk.step(&query, &how, None, &sources, &mut self.out) {
            Step::Answer => Some(&self.out),
            _ => None,
        }
    }
}

/// Another server's answer, as this door passes it on to who asked for an address, with and without
/// EDNS.
///
/// # Panics
/// It is longer than it may be, or what is passed on cannot be read as the answer to that question.
pub fn answer(bytes: &[u8]) {
    let plain = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let edns = b"\0\x07\x01\0\0\x01\0\0\0\0\0\x01\x01a\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";
    for (asked, has_edns) in [(&plain[..], false), (&edns[..], true)] {
        let mut out = Vec::new();
        let query = question(asked, &mut out).expect("it is a question");
        for carrier in [Carrier::Udp, Carrier::Tcp] {
            let how = How { carrier, recursive: true, proven: true, cookie: None };
            let told = forwarded(&query, &how, bytes.to_vec());
            assert!(told.len() <= how.limit(&query));
            let read = skim(&told);
            assert!(read.is_some_and(|read| (read.end < told.len()) == has_edns), "{told:?}");
        }
    }
}

fn register(world: &mut World, n: u8) {
    let id = format!("web-{n}");
    let registration = Registration {
        id: id.as_str().into(),
        service: "web".into(),
        node: "n1".into(),
        namespace: "default".into(),
        address: format!("10.0.0.{n}").into(),
        port: 8080,
        ..Registration::default()
    };
    let key =
        RegistrationKey { namespace: "default".into(), node: "n1".into(), id: id.as_str().into() };
    let check = CheckRecord {
        id: format!("service:{id}").into(),
        node: "n1".into(),
        namespace: "default".into(),
        service_id: id.as_str().into(),
        initial: Status::Passing,
        ..CheckRecord::default()
    };
    let check_key =
        CheckKey { namespace: "default".into(), node: "n1".into(), id: check.id.clone() };
    let each = [
        (StoreKey::Registration(key).to_string(), serde_json::to_vec(&registration)),
        (StoreKey::Check(check_key).to_string(), serde_json::to_vec(&check)),
    ];
    for (key, value) in each {
        let revision = world.revision() + 1;
        world.apply(&key, value.ok().as_deref(), revision);
    }
}
