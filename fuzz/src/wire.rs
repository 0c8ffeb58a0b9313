// SPDX-License-Identifier: Apache-2.0
//! What else arrives as bytes: first bytes of a connection, DNS, the mesh model and its stream.

use std::cell::RefCell;

use prost::Message as _;
use weft_base::rng::Rng;
use weft_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use weft_proxy::fuzz;
use weft_server::dns::fuzz::Door;
use weft_xds::client::Machine;
use weft_xds::codec;

pub fn sniff(data: &[u8]) {
    let mut decided = None;
    for n in 0..=data.len() {
        let now = fuzz::sniff(&data[..n]);
        // More bytes never change what was decided.
        assert!(decided.is_none() || decided == Some(now), "{decided:?} then {now:?}");
        decided = (now != "open").then_some(now);
    }
}

pub fn client_hello(data: &[u8]) {
    fuzz::client_hello(data);
}

pub fn proxy_header(data: &[u8]) {
    fuzz::proxy_header(data);
}

/// The first byte says how the others are cut.
pub fn h2_frames(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    fuzz::h2_frames(usize::from(*cut), bytes);
}

/// The first byte says how the others are cut.
pub fn grpc_web(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    fuzz::grpc_web(usize::from(*cut), bytes);
}

/// Values of small headers; the first byte says whose.
pub fn small_headers(data: &[u8]) {
    let Some((which, value)) = data.split_first() else { return };
    fuzz::small_headers(*which, value);
}

/// At a sidecar, and at the DNS door, whose answers are short, and none to an answer.
pub fn dns_message(data: &[u8]) {
    thread_local! {
        static DOOR: RefCell<Door> = RefCell::default();
    }
    fuzz::dns_message(data);
    DOOR.with_borrow_mut(|door| {
        let Some(answer) = door.datagram(data, false) else { return };
        assert!(answer.len() <= 1232.min(4 * data.len()), "longer than four times the question");
        assert!(data[2] & 0x80 == 0 && answer[2] & 0x80 != 0, "an answer to an answer");
        assert_eq!(answer[..2], data[..2]);
    });
}

/// What decodes is encoded again to something that decodes to the same.
pub fn model_cbor(data: &[u8]) {
    let Ok(resource) = codec::decode(data) else { return };
    let again = codec::encode(&resource).expect("what was decoded can be encoded");
    assert_eq!(codec::decode(&again.bytes).expect("our own bytes decode"), resource);
}

/// Messages of a server, each behind its length in two bytes.
pub fn xds_delta(data: &[u8]) {
    let mut machine = Machine::new(fuzz::node(), [], Rng::seeded(1));
    machine.connected();
    let mut rest = data;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let n = usize::from(u16::from_be_bytes(*length)).min(more.len());
        let (message, more) = more.split_at(n);
        rest = more;
        let Ok(message) = DeltaDiscoveryResponse::decode(message) else { continue };
        machine.received(message);
    }
    machine.disconnected();
}
