// SPDX-License-Identifier: Apache-2.0
//! Doors for the fuzz targets (`fuzz/`) to what Kubernetes' clients say beside objects: the frames
//! of exec and port-forward, and selectors. Decides nothing; each function says what must hold for
//! any bytes.
#![doc(hidden)]

use bytes::BytesMut;
use serde_json::json;
use weft_kinds::kind::KindId;

use super::selector::Selector;
use super::stream::spdy::{Event, Machine, SpdyError};

/// # Panics
/// What a connection says, or is answered, depends on how its bytes were cut.
pub fn spdy(cut: usize, bytes: &[u8]) {
    assert_eq!(told(bytes, bytes.len()), told(bytes, cut));
}

/// What a client did, what it is answered, and how its connection ended.
fn told(bytes: &[u8], cut: usize) -> (Vec<Event>, Vec<u8>, Option<SpdyError>) {
    let (mut machine, mut all) = (Machine::new(), Vec::new());
    for piece in bytes.chunks(cut.max(1)) {
        machine.receive(piece);
        let wrong = loop {
            match machine.next() {
                Ok(Some(event)) => heard(&mut machine, &mut all, event),
                Ok(None) => break None,
                Err(why) => break Some(why),
            }
        };
        if wrong.is_some() {
            return (all, machine.take_output().to_vec(), wrong);
        }
    }
    (all, machine.take_output().to_vec(), None)
}

/// As the connection's driver does it. Data are one piece however they came.
fn heard(machine: &mut Machine, all: &mut Vec<Event>, event: Event) {
    match (&event, all.last_mut()) {
        (Event::Opened { stream, .. }, _) => {
            assert!(machine.reply(*stream).is_ok(), "our own headers can be compressed");
        }
        (Event::Data { stream, piece }, last) => {
            machine.consumed(*stream, piece.len());
            if let Some(Event::Data { stream: before, piece: held }) = last
                && before == stream
            {
                let mut both = BytesMut::from(&held[..]);
                both.extend_from_slice(piece);
                *held = both.freeze();
                return;
            }
        }
        _ => {}
    }
    all.push(event);
}

/// Label and field selectors, asked about a pod.
///
/// # Panics
/// A selector that says nothing leaves the pod out, or a name chooses another one.
pub fn selectors(labels: &str, fields: &str) {
    let Ok(selector) = Selector::parse(KindId::Pod, labels, fields) else { return };
    let pod = json!({
        "metadata": {"name": "p", "namespace": "n", "labels": {"app": "web", "n": "7", "x/y": ""}},
        "spec": {"nodeName": "m", "hostNetwork": true}, "status": {"phase": "Running"},
    });
    let holds = selector.holds(&pod);
    assert!(holds || !selector.is_empty());
    assert_eq!(selector.clone().with_name("p").holds(&pod), holds);
    assert!(!selector.with_name("q").holds(&pod));
}
