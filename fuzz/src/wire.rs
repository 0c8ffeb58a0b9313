// SPDX-License-Identifier: Apache-2.0
//! What else arrives as bytes: first bytes of a connection, DNS, the mesh model and its stream.

use std::cell::RefCell;
use std::sync::Arc;

use prost::Message as _;
use weft_base::limits::XDS_SUBSCRIPTIONS_MAX;
use weft_base::rng::Rng;
use weft_model::{Fail, Resource, Root};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proxy::fuzz;
use weft_server::dns::fuzz::{Door, answer};
use weft_xds::client::Machine;
use weft_xds::server::{self, Output};
use weft_xds::{Entry, MODEL_TYPE_URL, View, codec};

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

/// At a sidecar, and at the DNS door, whose answers are short, and none to an answer; and as what
/// another server answers.
pub fn dns_message(data: &[u8]) {
    thread_local! {
        static DOOR: RefCell<Door> = RefCell::default();
    }
    fuzz::dns_message(data);
    answer(data);
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
    for message in messages(data) {
        let Ok(message) = DeltaDiscoveryResponse::decode(message) else { continue };
        machine.received(message);
    }
    machine.disconnected();
}

/// Messages of a client, each behind its length in two bytes. What nothing can be asked without is
/// put in where the bytes leave it out. One transaction is on its way at a time, and after an
/// answer that refuses nothing the client is sent nothing again.
pub fn xds_request(data: &[u8]) {
    let (mut open, mut nonce) = (None, String::new());
    for (number, message) in messages(data).enumerate() {
        let Ok(mut request) = DeltaDiscoveryRequest::decode(message) else { continue };
        if request.type_url.is_empty() {
            request.type_url = MODEL_TYPE_URL.to_owned();
        }
        if request.response_nonce == "=" {
            request.response_nonce.clone_from(&nonce);
        }
        let Some(machine) = &mut open else {
            request.node.get_or_insert_with(|| fuzz::node().to_proto());
            open = server::Machine::open(request).ok().map(|(machine, _)| machine);
            continue;
        };
        let waited = machine.is_in_flight();
        let mut said = machine.offer(view(number));
        assert!(!waited || said.is_empty(), "a second transaction on its way");
        let Ok(more) = machine.received(request) else { return };
        said.extend(more);
        assert!(machine.asks().len() <= XDS_SUBSCRIPTIONS_MAX);
        for output in said {
            if let Output::Send(response) = output {
                nonce = response.nonce;
            }
        }
    }
    let Some(mut machine) = open else { return };
    let acked = |nonce: &str| DeltaDiscoveryRequest {
        type_url: MODEL_TYPE_URL.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // Whatever went before, a client that takes what it is sent comes to hold it.
    for _ in 0..3 {
        let said = machine.received(acked(&nonce)).expect("a plain answer");
        for output in said.into_iter().chain(machine.offer(view(0))) {
            if let Output::Send(response) = output {
                nonce = response.nonce;
            }
        }
    }
    assert!(!machine.is_in_flight(), "it waits for an answer that came");
}

fn view(number: usize) -> Arc<View> {
    let resource = Resource::Fail(Fail { reason: "why".into(), origin: None });
    let entry = Arc::new(Entry::new(Arc::new(resource)).expect("it can be encoded"));
    let names = if number.is_multiple_of(2) { &["a", "b"][..] } else { &["b"] };
    let resources = names.iter().map(|name| (Root::host(*name).own(), entry.clone())).collect();
    Arc::new(View { generation: number as u64, resources, ..View::default() })
}

/// Pieces, each behind its length in two bytes.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, more) = rest.split_first_chunk::<2>()?;
        let n = usize::from(u16::from_be_bytes(*length)).min(more.len());
        let (message, more) = more.split_at(n);
        rest = more;
        Some(message)
    })
}
