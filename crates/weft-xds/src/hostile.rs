// SPDX-License-Identifier: Apache-2.0
//! What a broken or hostile peer may send: no panic, bounded lists, and never a transaction that
//! was not whole.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use weft_base::rng::Rng;
use weft_model::{Fail, Resource, ResourceName, Root};
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use weft_proto::google::protobuf::Any;
use weft_proto::google::rpc::Status;

use crate::codec::{self, Commit};
use crate::{
    COMMIT_NAME, COMMIT_TYPE_URL, Entry, MODEL_TYPE_URL, NodeId, NodeInfo, REJECTED_TYPE_URL, View,
    client, server,
};

fn node() -> NodeInfo {
    NodeInfo::this_release(NodeId::sidecar("shop", "a").unwrap(), "test")
}

fn some_resource() -> Resource {
    Resource::Fail(Fail { reason: "why".into(), origin: None })
}

/// Mostly well-formed text, so that the machines are entered and not only their doors.
fn text(usual: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![8 => prop::sample::select(usual).prop_map(str::to_owned), 1 => ".{0,12}"]
}

fn names() -> impl Strategy<Value = String> {
    text(&["host:a", "host:a/x", "host:b", "listener:l", "commit", "", "host:", "future:x"])
}

fn values() -> impl Strategy<Value = Bytes> {
    let good = codec::encode(&some_resource()).unwrap().bytes;
    let counts = (0..4_u32, 0..4_u32, 0..3_u32);
    let commit = counts.prop_map(|(responses, resources, removed)| {
        let partial = responses == 2;
        codec::to_cbor(&Commit { generation: 1, responses, resources, removed, partial }).unwrap()
    });
    let noise = prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    prop_oneof![3 => Just(good), 3 => commit, 1 => noise]
}

fn resources() -> impl Strategy<Value = WireResource> {
    (names(), values(), ".{0,17}").prop_map(|(name, value, version)| WireResource {
        name,
        version,
        resource: Some(Any { type_url: COMMIT_TYPE_URL.to_owned(), value }),
        ..WireResource::default()
    })
}

fn responses() -> impl Strategy<Value = DeltaDiscoveryResponse> {
    let nonces = text(&["1/0", "1/1", "2/0", "2/1", "3/0", "0/0", "1/4294967295", "1"]);
    let resources = prop::collection::vec(resources(), 0..4);
    let removed = prop::collection::vec(names(), 0..3);
    let types = prop_oneof![9 => Just(MODEL_TYPE_URL.to_owned()), 1 => ".{0,5}"];
    (nonces, resources, removed, types).prop_map(|(nonce, resources, removed, type_url)| {
        let removed_resources = removed;
        DeltaDiscoveryResponse {
            nonce,
            resources,
            removed_resources,
            type_url,
            ..Default::default()
        }
    })
}

fn statuses() -> impl Strategy<Value = Status> {
    let detail = values().prop_map(|value| Any { type_url: REJECTED_TYPE_URL.to_owned(), value });
    (any::<i32>(), ".{0,20}", prop::collection::vec(detail, 0..3))
        .prop_map(|(code, message, details)| Status { code, message, details })
}

fn requests() -> impl Strategy<Value = DeltaDiscoveryRequest> {
    let wanted = || prop::collection::vec(text(&["*", "host:a", "host:a/x", "host:"]), 0..3);
    let held = prop::collection::hash_map(names(), ".{0,17}", 0..4);
    let nonces = text(&["1/0", "2/0", "3/0", "", "9"]);
    let types = prop_oneof![9 => Just(MODEL_TYPE_URL.to_owned()), 1 => ".{0,5}"];
    let nodes = prop_oneof![
        8 => Just(Some(node().to_proto())),
        1 => ".{0,9}".prop_map(|id| Some(Node { id, ..Node::default() })),
        1 => Just(None)
    ];
    (nodes, types, wanted(), wanted(), held, nonces, prop::option::of(statuses())).prop_map(
        |(node, type_url, subscribe, unsubscribe, held, response_nonce, error_detail)| {
            DeltaDiscoveryRequest {
                node,
                type_url,
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                initial_resource_versions: held,
                response_nonce,
                error_detail,
            }
        },
    )
}

fn view(generation: u64, names: &[&str]) -> Arc<View> {
    let entry = Arc::new(Entry::new(Arc::new(some_resource())).unwrap());
    let resources = names.iter().map(|n| (Root::host(*n).own(), entry.clone())).collect();
    Arc::new(View { generation, resources, ..View::default() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_client_survives_any_server(messages in prop::collection::vec(responses(), 1..12)) {
        let held = [(Root::host("a").own(), codec::Version::of(b"a"))];
        let mut client = client::Machine::new(node(), held, Rng::seeded(1));
        client.want(["a".into(), "b".into()].into());
        client.connected();
        for message in messages {
            let closing = message.resources.iter().any(|r| r.name == COMMIT_NAME);
            match client.received(message) {
                Some(client::Output::Deliver(transaction)) => {
                    prop_assert!(closing, "delivered without a commit");
                    let removed = |n: &ResourceName| transaction.removes.contains(n);
                    prop_assert!(transaction.upserts.iter().all(|u| !removed(&u.name)));
                    let generation = transaction.generation;
                    client.applied(client::Applied { generation, rejected: Vec::new() });
                }
                Some(client::Output::Reset(_)) => {
                    client.disconnected();
                    client.connected();
                }
                Some(client::Output::Send(_)) => prop_assert!(false, "nothing to say"),
                None => {}
            }
        }
    }

    #[test]
    fn a_server_survives_any_client(messages in prop::collection::vec(requests(), 1..12)) {
        let mut server = None;
        for (i, message) in messages.into_iter().enumerate() {
            let generation = u64::try_from(i).unwrap();
            let Some(machine) = &mut server else {
                server = server::Machine::open(message).ok().map(|(machine, _)| machine);
                continue;
            };
            machine.offer(view(generation, if i % 2 == 0 { &["a", "b"] } else { &["b"] }));
            if machine.received(message).is_err() {
                server = None;
            }
        }
    }

    #[test]
    fn no_bytes_decode_to_a_panic(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let _ = codec::decode(&noise);
        let mut bytes = codec::encode(&some_resource()).unwrap().bytes.to_vec();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = codec::decode(&bytes);
        let _ = crate::last_good::decode(&noise);
    }
}

/// CBOR that says it nests for ever, or that it is endless.
#[test]
fn deep_and_endless_cbor_is_refused() {
    assert!(codec::decode(&[0x81; 100_000]).is_err());
    assert!(codec::decode(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    let mut huge_text = b"\xa1dfail\xa1freason\x7b".to_vec();
    huge_text.extend([0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(codec::decode(&huge_text).is_err());
}
